"""GPT-2 as it is held against baselines: finetuned, from random weights, and frozen.

N texts, C = n_embd, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from gpt2_from_scratch.classifier.classifier import Classifier
from gpt2_from_scratch.classifier.settings import HeadConfig, HeadSettings, TrainConfig
from gpt2_from_scratch.classifier.train import finetune
from gpt2_from_scratch.data.split import Split
from gpt2_from_scratch.evaluation.baselines import Baseline, class_numbers
from gpt2_from_scratch.gpt2.weights import random_twin
from gpt2_from_scratch.progress import silenced
from gpt2_from_scratch.runs.recipes import new_classifier
from gpt2_from_scratch.runs.results import calibrate
from gpt2_from_scratch.speed.feature_store import FeatureStore
from gpt2_from_scratch.studies.probes import PENALTIES, fit_logistic

FROZEN = "frozen GPT-2 features, logistic regression"
AT_ONCE = 1024  # texts whose states are numbers of Python's for a moment


@dataclass(frozen=True)
class Finetuning:
    """A base model and how it is finetuned."""

    model: str | Path = "mini"
    config: TrainConfig = field(default_factory=TrainConfig)
    settings: HeadSettings = field(default_factory=HeadSettings)
    max_tokens: int | None = None
    device: torch.device | str = "cpu"
    dtype: torch.dtype = torch.float32

    @property
    def name(self) -> str:
        """The model, and what of it trains."""
        config, lora = self.config, self.settings.lora
        blocks = {0: "head alone", 1: "last block"}
        trains = blocks.get(config.n_last_blocks, f"last {config.n_last_blocks} blocks")
        if config.trainable:
            trains = f"trainable {config.trainable}"
        elif lora:
            trains = f"LoRA {lora}" + (f" and {trains}" if config.n_last_blocks else "")
        return f"GPT-2 {Path(self.model).name}, {trains}"

    @property
    def random_name(self) -> str:
        """The same with weights as before pretraining."""
        return f"GPT-2 {Path(self.model).name} with random weights"


def fit_finetuned(
    finetuning: Finetuning,
    split: Split,
    labels: Sequence[str],
    *,
    store: FeatureStore | None = None,
) -> Baseline:
    """The classifier that `train` makes: the best epoch by the validation part, and its temperature."""
    f = finetuning
    classifier = new_classifier(f.model, split, f.config, f.settings, f.max_tokens, f.dtype)
    classifier.model.to(f.device)
    with TemporaryDirectory() as run, silenced():
        finetune(classifier, split, f.config, Path(run), store=store)
        calibrate(classifier, split.val)
    classifier.merge()
    return saved_as_baseline(f.name, classifier, labels)


def fit_random(finetuning: Finetuning, split: Split, labels: Sequence[str]) -> Baseline:
    """The same architecture and tokenizer from random weights, trained in the same way."""
    with TemporaryDirectory() as folder:
        seed = finetuning.config.seed
        twin = replace(finetuning, model=random_twin(finetuning.model, Path(folder) / "twin", seed))
        return replace(fit_finetuned(twin, split, labels), name=finetuning.random_name)


def saved_as_baseline(name: str, classifier: Classifier, labels: Sequence[str]) -> Baseline:
    """A trained classifier as what gives texts probabilities, of `labels` in their order."""

    def probabilities(texts: Sequence[str]) -> np.ndarray:
        told = [answer.probabilities for answer in classifier.predict(list(texts)) if answer]
        return np.array([[shares[label] for label in labels] for shares in told], dtype=float)

    return Baseline(name, probabilities)


def fit_frozen(finetuning: Finetuning, split: Split, labels: Sequence[str]) -> Baseline:
    """Logistic regression on GPT-2's final states as pretraining left them: of the last token, and
    the mean over tokens, side by side.

    The penalty is selected by the cross-entropy on the validation set.
    """
    f = finetuning
    heads = [HeadConfig(pooling, "features", pooling=pooling) for pooling in ("last_token", "mean")]
    classifier = Classifier.on_base(f.model, heads=heads, max_tokens=f.max_tokens, dtype=f.dtype)
    classifier.model.to(f.device)
    train, val = (
        (_states(classifier, [m.text for m in part]).numpy(), class_numbers(part, labels))
        for part in (split.train, split.val)
    )
    model, _ = fit_logistic(train, val, PENALTIES)

    def probabilities(texts: Sequence[str]) -> np.ndarray:
        found = np.zeros((len(texts), len(labels)))
        if texts:
            found[:, model.classes_] = model.predict_proba(_states(classifier, texts).numpy())
        return found

    return Baseline(FROZEN, probabilities)


def _states(classifier: Classifier, texts: Sequence[str]) -> Tensor:
    """The states that the heads of a classifier read, side by side: (N, 2C) float32."""
    rows = [torch.empty(0, 2 * classifier.model.config.n_embd)]
    for first in range(0, len(texts), AT_ONCE):
        told = classifier.predict(texts[first : first + AT_ONCE])
        values = [[v for state in t.answers.values() for v in state.values] for t in told if t]
        rows.append(torch.tensor(values))
    return torch.cat(rows)
