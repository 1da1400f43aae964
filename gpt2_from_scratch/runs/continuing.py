"""Runs that continue from a trained classifier: what they keep, and what may change.

Such a run starts with the classifier's weights. It keeps the form of the head, LoRA, and the way
texts are read. The data may be new, and so may the labels. The head keeps its weights for known
labels; its weights for new labels are drawn at random. A copy of the classifier stays in the run's
folder until the run is complete, so the run does not depend on the earlier run.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpt2_from_scratch.classifier.classifier import Classifier
from gpt2_from_scratch.classifier.saving import read_classifier, saved_file
from gpt2_from_scratch.classifier.settings import VALUE_TASKS, HeadConfig, HeadSettings
from gpt2_from_scratch.classifier.train import freeze
from gpt2_from_scratch.data.formats import LABELLED, label_names
from gpt2_from_scratch.data.messages import labels_alike
from gpt2_from_scratch.data.split import Split
from gpt2_from_scratch.errors import CheckpointError, DataError, UsageError
from gpt2_from_scratch.evaluation.metrics import several
from gpt2_from_scratch.gpt2.config import MATRICES
from gpt2_from_scratch.runs.folder import CONFIG, START, RunConfig
from gpt2_from_scratch.storage.paths import MODELS

log = logging.getLogger(__name__)

FORMS = {  # forms of heads, by number of hidden layers, activation, and whether there is one output
    (0, "none", False): "linear",
    (1, "none", False): "two-layer",
    (1, "tanh", False): "tanh",
    (0, "none", True): "sigmoid",
}


# --- settings that are kept ---


def inherited_head(start: str | Path, asked: Mapping[str, Any]) -> HeadSettings:
    """The settings of a saved classifier's head and LoRA, changed as asked.

    `asked` are the settings that the user gave, by name. Only the labels, the class weights, the
    label smoothing and the use of n-grams may differ from the classifier's; n-grams are not
    inherited, because they would be fitted to other texts. Raises UsageError if another setting
    differs. Also raises it if `train` cannot make such a classifier, for example
    one with several heads.
    """
    path = saved_file(start)
    description, _, ngrams = read_classifier(path)
    head, lora = description.head, description.lora
    form = FORMS.get((len(head.hidden), head.activation, head.one_output))
    odd_lora = lora is not None and (lora.head or {*lora.matrices} != {*MATRICES})
    if len(description.heads) > 1 or head.task not in LABELLED or form is None or odd_lora:
        raise UsageError(
            f"{path} has heads or adapters that train cannot make. Continue in Python, with "
            "finetune(Classifier.load(...), ...)."
        )
    found: dict[str, Any] = {
        "task": head.task,
        "head": form,
        "layer": -1 if head.layer is None else head.layer,
        "state": "normed" if head.final_norm else "raw",
        "pooling": head.pooling,
        "max_tokens": description.max_tokens,
        "pad_to": description.pad_to or 0,
        "causal_mask": description.causal_mask,
        "dropout": head.dropout,
        "name": head.name,
    }
    if lora:
        found |= {"lora": lora.rank, "lora_alpha": float(lora.alpha), "lora_dropout": lora.dropout}
        found |= {"quantize": lora.quantize}
        found |= {"lora_blocks": -1 if lora.n_last_blocks is None else lora.n_last_blocks}
    free = {"class_weights", "label_smoothing", "with_ngrams"}
    if head.task not in (*VALUE_TASKS, "span"):
        free.add("labels")
    inherited = HeadSettings(**found | {name: asked[name] for name in free & asked.keys()})
    for name, value in asked.items():
        if value != (has := getattr(inherited, name)):
            raise UsageError(
                f"{name} = {value!r} contradicts {path}, which has {has!r}. Leave this setting out to "
                "continue from that classifier, or train without --from."
            )
    if ngrams and not inherited.with_ngrams:
        log.info(f"the n-grams of {path} are not kept; --with-ngrams fits new ones")
    return inherited


def inherited_training(start: str | Path) -> dict[str, Any]:
    """The training settings that train the same last blocks and final norm as before.

    `start` is the saved classifier. The result has the fields of `TrainConfig` to set, by name. They
    are those of its run if the file contains all of GPT-2, because GPT-2 was adapted to texts.
    """
    path = saved_file(start)
    description, tensors, _ = read_classifier(path)
    if "wte.weight" in tensors and (path.parent / CONFIG).exists():
        training = RunConfig.read(path.parent).training
        return {n: getattr(training, n) for n in ("n_last_blocks", "final_norm", "trainable")}
    names = [name for name in tensors if not name.endswith(("lora_A", "lora_B"))]
    blocks = {int(name.split(".")[1]) for name in names if name.startswith("blocks.")}
    top = max(blocks, default=-1) + 1 if description.head.layer is None else description.head.layer
    return {
        "n_last_blocks": max(0, top - min(blocks, default=top)),
        "final_norm": any(name.startswith("ln_f.") for name in names),
    }


def known_base(start: str | Path) -> str:
    """The name of the GPT-2 on which a saved classifier was trained.

    Raises CheckpointError if that GPT-2 has no known name, because it was given as a folder.
    """
    path = saved_file(start)
    base = read_classifier(path)[0].base
    if base not in MODELS:
        raise CheckpointError(
            f"{path} was trained on a model in {base}; give that folder with --model"
        )
    return base


# --- the classifier that training starts with ---


def continued_classifier(config: RunConfig, split: Split) -> Classifier:
    """The classifier `config.start`, with the labels of the new data, frozen as configured.

    Raises DataError if two labels differ only in case, spaces or Unicode form. Also raises it if a
    text of a regression has another number of values than before. Raises UsageError if a head with
    one output would get other labels.
    """
    classifier = config.load_classifier(config.start)
    classifier.ngrams = None  # fitted again after the training
    old, n_embd = classifier.description.head, classifier.model.config.n_embd
    found = label_names([*split.train, *split.val, *split.test], old.task)
    new = config.head.head_config(_labels(old, found, config), split.train, n_embd)
    new = replace(new, layer=old.layer, hidden=old.hidden)
    if old.task in VALUE_TASKS:  # keep the unit of its outputs
        new = replace(new, center=old.center, scale=old.scale)
    if new.labels != old.labels:
        classifier.relabel(new.labels, seed=config.training.seed)
    classifier.description = replace(classifier.description, heads=(new,))
    freeze(classifier, config.training)
    log.info(f"continuing from {config.start}; {_labels_in_words(old.labels, new.labels)}")
    return classifier


def _labels(old: HeadConfig, found: Sequence[str], config: RunConfig) -> tuple[str, ...]:
    """The labels for `head_config`: the old ones, then those found in the data.

    If the user named the labels, these are only those found, which must be among the named ones.
    A regression keeps its old labels.
    """
    source, start = config.data.source, config.start
    if old.task in VALUE_TASKS:
        if len(found) != len(old.labels):
            raise DataError(
                f"{source} has {len(found)} values per text, but {start} was trained on "
                f"{len(old.labels)}: {several(old.labels)}. Name as many with --label-column."
            )
        return old.labels
    if alike := labels_alike({*old.labels, *found}):
        raise DataError(
            f"{source} and {start} write labels differently: {alike[:5]}. Make them the same."
        )
    if old.one_output and (config.head.labels or {*found} - {*old.labels}):
        raise UsageError(
            f"{start} has a head of one output for the labels {several(old.labels)}, but {source} "
            f"has {several(found)}. Train without --from, with --head linear."
        )
    return (*found,) if config.head.labels else tuple(dict.fromkeys((*old.labels, *found)))


def resumed_classifier(run: Path, config: RunConfig) -> Classifier:
    """The classifier with which the training of a run starts, from the run's own folder."""
    classifier = config.load_classifier(run / START)
    freeze(classifier, config.training)
    return classifier


def _labels_in_words(old: Sequence[str], new: Sequence[str]) -> str:
    if new == old:
        return "its head is kept"
    kept, drawn = [n for n in new if n in old], [n for n in new if n not in old]
    if not kept and len(new) == len(old):
        return f"the labels {several(old)} are now called {several(new)}"
    words = [f"labels whose weights are kept: {several(kept) or 'none'}"]
    if drawn:
        words.append(f"new labels, whose weights are drawn: {several(drawn)}")
    if left := [label for label in old if label not in new]:
        words.append(f"labels that are left out: {several(left)}")
    return "; ".join(words)
