"""The rows of a study: each one is fitted on a split and predicts the split's test set.

A row is a text baseline, frozen features, a finetuned GPT-2 with some settings changed, or a
finished run.

N texts, C = n_embd, K classes.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch

from gpt2_from_scratch.classifier.adaptation import adapt
from gpt2_from_scratch.classifier.classifier import Classifier, in_mode
from gpt2_from_scratch.classifier.freezing import count_trainable
from gpt2_from_scratch.classifier.settings import HeadConfig, HeadSettings, TrainConfig
from gpt2_from_scratch.classifier.train import finetune, freeze
from gpt2_from_scratch.data.messages import DataConfig, Message, Span
from gpt2_from_scratch.data.split import Split, load_split, messages_sha256
from gpt2_from_scratch.errors import DataError, GPT2Error, UsageError
from gpt2_from_scratch.evaluation.baselines import (
    Baseline,
    baseline_fits,
    class_numbers,
    predictions_of,
)
from gpt2_from_scratch.evaluation.metrics import LabelledPredictions, read_predictions
from gpt2_from_scratch.gpt2.weights import random_twin
from gpt2_from_scratch.progress import silenced
from gpt2_from_scratch.runs.folder import PROVENANCE, RunConfig
from gpt2_from_scratch.runs.recipes import new_classifier
from gpt2_from_scratch.runs.results import (
    TEST_PREDICTIONS,
    VAL_PREDICTIONS,
    add_ngrams,
    calibrate,
)
from gpt2_from_scratch.speed.batching import by_length
from gpt2_from_scratch.speed.devices import DTYPES
from gpt2_from_scratch.speed.feature_store import FeatureStore
from gpt2_from_scratch.storage.files import check_listed, read_json

log = logging.getLogger(__name__)

TEXT = "text baselines"  # kind of the text baselines
AT_ONCE = 1024  # texts whose states are converted at a time
AUXILIARY = 0.5  # weight of the next-token loss: Radford et al. 2018 (GPT-1), section 3.2
STATED = {"lr", "batch_size"}  # rows name these settings, so the default may have any value
PENALTIES = (10.0, 1.0, 0.1, 0.01, 0.001)  # l2 penalties for frozen features, strongest first

# "": the head alone. "language": GPT-2's own head is trained too, and predicts the next token.
# "tokens": the head is replaced by one whose loss is computed at every token.
Extra = Literal["", "language", "tokens"]


@dataclass(frozen=True)
class Setup:
    """The settings that all rows of a study have in common."""

    model: str | Path = "mini"
    training: TrainConfig = field(default_factory=TrainConfig)  # each split has its own seed
    head: HeadSettings = field(default_factory=HeadSettings)
    data: DataConfig = field(default_factory=DataConfig)  # its texts without labels, for `adapt`
    labels: tuple[str, ...] = ()  # the K classes, in the order of probabilities
    device: torch.device | str = "cpu"
    dtype: str = "float32"  # precision of the frozen blocks
    cache: bool = True

    @property
    def config(self) -> RunConfig:
        """The settings of a run that trains the same classifier."""
        return RunConfig(
            model=str(self.model),
            data=self.data,
            training=self.training,
            head=self.head,
            dtype=self.dtype,
        )


@dataclass(frozen=True)
class StudySplit:
    """The texts for fitting a row, and the test set that it predicts."""

    name: str
    seed: int  # seed of initial weights and of the order of messages
    parts: Split
    # (N,) bool: test texts with a near duplicate in training
    near_duplicates: np.ndarray | None = None
    unbalanced: Sequence[Message] = ()  # training set before balancing, for rows that need it


@dataclass(frozen=True)
class Book:
    """A row of the book's table: its number, and its test accuracy in %."""

    row: int
    accuracy: float
    note: str = ""  # how it differs from our row, or why it is wrong


@dataclass(frozen=True)
class Row:
    """One line of a table. A plain Row fits nothing: its predictions come from other rows."""

    name: str
    about: str = ""  # its kind, which is what it varies; rows of one kind are shown together
    book: Book | None = None

    @property
    def work(self) -> float:
        """Its approximate duration, relative to the default row; used only for ordering."""
        return 1.0

    def answer(self, setup: Setup, split: StudySplit) -> "Result | None":
        """Fit on a split and predict its test set; None if there is nothing to fit."""
        return None


@dataclass(frozen=True)
class Result:
    """One row's predictions for one split's test set, and facts about the fit."""

    row: Row
    split: str
    predictions: LabelledPredictions
    n_train: int = 0
    val_accuracy: float | None = None
    learned: str = ""  # what was fitted, if it can be said in a few words
    epochs: int | None = None
    n_trainable: int | None = None
    seconds: float = 0.0  # time for fitting and predicting
    cpu_seconds: float = 0.0

    @property
    def accuracy(self) -> float:
        """The proportion of correct predictions."""
        return float(self.predictions.correct.mean())


def result_of(row: Row, setup: Setup, split: StudySplit, fitted: Baseline, **known: Any) -> Result:
    """Predict the validation and test sets with a fitted row.

    Args:
        row: The row.
        setup: The study's settings.
        split: The split.
        fitted: The fitted classifier.
        known: Other fields of Result.

    Returns:
        The predictions for the test set, with the accuracy on the validation set if there is one.
    """
    parts, labels = split.parts, setup.labels
    val = predictions_of(fitted, parts.val, labels).correct.mean() if parts.val else None
    return Result(
        row,
        split.name,
        predictions_of(fitted, parts.test, labels, split.near_duplicates),
        val_accuracy=None if val is None else float(val),
        learned=fitted.name.partition(": ")[2],
        **{"n_train": len(parts.train)} | known,
    )


@dataclass(frozen=True)
class TextBaseline(Row):
    """One of the baselines of `evaluation.baselines`."""

    about: str = TEXT

    def answer(self, setup: Setup, split: StudySplit) -> Result | None:
        """Fit the baseline; None if it cannot be fitted on these texts."""
        fitted = baseline_fits()[self.name](split.parts, setup.labels)
        return None if fitted is None else result_of(self, setup, split, fitted)


def text_baselines(*, quick: bool) -> list[Row]:
    """All text baselines, or only the fast ones."""
    return [TextBaseline(name) for name in baseline_fits(quick=quick)]


@dataclass(frozen=True)
class FrozenFeatures(Row):
    """Logistic regression on the final states of the pretrained GPT-2."""

    name: str = "frozen GPT-2 features, logistic regression"
    about: str = "frozen features"

    def answer(self, setup: Setup, split: StudySplit) -> Result | None:
        """Fit on two states per text, side by side: that of the last token, and the mean.

        The penalty with the lowest cross-entropy on the validation set is selected; on a tie, the
        strongest. The result is None if the training set has only one label.
        """
        from sklearn.linear_model import LogisticRegression
        from sklearn.metrics import log_loss
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        poolings: tuple[Any, ...] = ("last_token", "mean")
        heads = [HeadConfig(pooling, "features", pooling=pooling) for pooling in poolings]
        max_tokens = setup.head.max_tokens or None
        classifier = Classifier.on_base(
            setup.model,
            heads=heads,
            max_tokens=max_tokens,
            dtype=DTYPES[setup.dtype],
            device=setup.device,
        )
        train, val = split.parts.train, split.parts.val
        y_train, y_val = class_numbers(train, setup.labels), class_numbers(val, setup.labels)
        if len(set(y_train.tolist())) < 2:
            log.warning(f"{self.name}: left out, because all training texts have the same label")
            return None
        x_train, x_val = (_states(classifier, [m.text for m in part]) for part in (train, val))
        K = len(setup.labels)
        # the loss is the mean cross-entropy plus l2 / 2 times the squared weights of all classes
        # for two classes scikit-learn penalises a single vector, so the penalty is halved
        scale = 2 if len(set(y_train.tolist())) == 2 else 1
        fits = []
        for l2 in PENALTIES:
            C = scale / (l2 * len(train))
            regression = LogisticRegression(C=C, tol=1e-6, max_iter=10_000)
            fitted = make_pipeline(StandardScaler(), regression).fit(x_train, y_train)
            loss = log_loss(y_val, _of_all_classes(fitted, x_val, K), labels=range(K))
            fits.append((loss, fitted))
        best = min(fits, key=lambda fit: fit[0])[1]

        def probabilities(texts: Sequence[str]) -> np.ndarray:
            return _of_all_classes(best, _states(classifier, texts), K)

        return result_of(self, setup, split, Baseline(self.name, probabilities))


def _states(classifier: Classifier, texts: Sequence[str]) -> np.ndarray:
    """The states that a classifier's heads read, side by side: (N, 2C) float64."""
    rows = [np.empty((0, 2 * classifier.model.config.n_embd))]
    for first in range(0, len(texts), AT_ONCE):
        some = classifier.predict(texts[first : first + AT_ONCE])
        values = [[v for state in p.answers.values() for v in state.values] for p in some if p]
        rows.append(np.array(values, dtype=float))
    return np.concatenate(rows)


def _of_all_classes(fitted: Any, states: np.ndarray, K: int) -> np.ndarray:
    """Probabilities (N, K) from a pipeline; 0 for classes that are not in the training set."""
    probabilities = np.zeros((len(states), K))
    if len(states):
        probabilities[:, fitted.classes_] = fitted.predict_proba(states)
    return probabilities


@dataclass(frozen=True)
class Finetuned(Row):
    """A finetuned GPT-2, with changes to the study's settings."""

    training: dict[str, Any] = field(default_factory=dict)  # changes to TrainConfig
    head: dict[str, Any] = field(default_factory=dict)  # changes to HeadSettings
    random_weights: bool = False  # start from random instead of pretrained weights
    # train on all messages that are not in validation or test, without balancing
    all_messages: bool = False
    extra: Extra = ""

    @property
    def work(self) -> float:
        """Its approximate duration, relative to the default row; used only for ordering."""
        training, head = self.training, self.head
        if training.get("trainable") or (head.get("lora") and "lora_blocks" not in head):
            return 20.0
        work = float(training.get("n_last_blocks", 1) ** 2 or 0.5)
        work *= 3 if self.extra or head.get("pooling", "").startswith("mean") else 1
        work *= 4 if self.all_messages else 1
        work *= 6 if 1 in (training.get("batch_size"), training.get("micro_batch")) else 1
        return work * (8 if head.get("pad_to", 0) > 0 else 1)

    def changed(
        self, training: TrainConfig, head: HeadSettings
    ) -> tuple[TrainConfig, HeadSettings]:
        """This row's settings, made from those of the default row."""
        return replace(training, **self.training), replace(head, **self.head)

    def answer(self, setup: Setup, split: StudySplit) -> Result:
        """Train as `gpt2-classifier train` does, and predict the test set.

        The best epoch is selected, and the temperature fitted, on the validation set. Raises
        DataError if the row needs messages that balancing left out and there are none.
        """
        training, head = self.changed(replace(setup.training, seed=split.seed), setup.head)
        setup = replace(setup, training=training, head=head)
        parts = split.parts
        if self.all_messages:
            if len(split.unbalanced) == len(parts.train):
                raise DataError("the default already uses all messages; try --balance")
            parts = replace(parts, train=list(split.unbalanced))
        with TemporaryDirectory() as folder, silenced():
            run = Path(folder) / "run"
            run.mkdir()
            if self.random_weights:
                twin = random_twin(setup.model, Path(folder) / "twin", split.seed)
                # features of random weights belong to one seed, so they are not kept on disk
                setup = replace(setup, model=twin, cache=False)
            classifier, labelled = self._prepared(setup, parts)
            if training.adapt:
                unlabelled = setup.config.load_unlabelled(parts)
                adapt(classifier, labelled, unlabelled, training, run / "adaptation")
            classifier.store = FeatureStore() if setup.cache else None
            history = finetune(classifier, labelled, training, run)
            n_trainable = count_trainable(classifier.model)
            if classifier.description.head.task == "classification":
                if head.with_ngrams:
                    add_ngrams(classifier, parts)
                if not classifier.ngrams:
                    calibrate(classifier, labelled.val)
            if not classifier.description.is_quantized:
                classifier.merge()
            fitted = Baseline("", lambda texts: _probabilities(classifier, texts, setup.labels))
            known = {"n_train": len(parts.train), "epochs": len(history)}
            return result_of(self, setup, split, fitted, n_trainable=n_trainable, **known)

    def _prepared(self, setup: Setup, parts: Split) -> tuple[Classifier, Split]:
        """The untrained classifier of this row, and messages with labels for its heads."""
        classifier = new_classifier(setup.config, parts)
        if self.extra:
            head = classifier.description.head
            heads = [head, HeadConfig("next", "language", loss_weight=AUXILIARY)]
            if self.extra == "tokens":
                heads = [replace(head, task="token-classification", one_output=False)]

            def label(m: Message) -> Any:
                if self.extra == "language":
                    return {"label": m.label}
                # label each character, and so each token that contains it
                return [Span(n, n + 1, m.label) for n, c in enumerate(m.text) if not c.isspace()]

            parts = Split(
                *(
                    [Message(m.text, label(m)) for m in part]
                    for part in (parts.train, parts.val, parts.test)
                )
            )
            classifier = Classifier.on_base(
                setup.model,
                heads=heads,
                max_tokens=setup.head.max_tokens or None,
                seed=setup.training.seed,
                dtype=DTYPES[setup.dtype],
            )
            freeze(classifier, setup.training)
        return classifier.to(setup.device), parts


def _probabilities(
    classifier: Classifier, texts: Sequence[str], labels: Sequence[str]
) -> np.ndarray:
    """The first head's probability of each of `labels`, (N, K).

    A head for tokens is read at the last token of each text.
    """
    head = classifier.description.head
    if head.reads_one_state:
        found = [answer.probabilities for answer in classifier.predict(list(texts)) if answer]
        return np.array([[p[label] for label in labels] for p in found], dtype=float)
    encoded, _ = classifier.encode(list(texts))
    read = classifier.texts(encoded)
    columns = [head.labels.index(label) for label in labels]
    probabilities = np.empty((len(encoded), len(labels)))
    with in_mode(classifier.model, training=False), torch.no_grad():
        for batch in by_length(encoded, 32):
            outputs, lengths = classifier.batch_outputs(read, batch)
            last = outputs[head.name][torch.arange(len(batch)), lengths - 1]  # (B, K)
            probabilities[batch] = last.double().softmax(dim=1)[:, columns].cpu().numpy()
    return probabilities


def finetuned(setup: Setup) -> Finetuned:
    """A row without changes to the settings, named after the model and its trained part."""
    training, lora = setup.training, setup.head.lora
    blocks = {0: "head alone", 1: "last block"}
    trains = blocks.get(training.n_last_blocks, f"last {training.n_last_blocks} blocks")
    if training.trainable:
        trains = f"trainable {training.trainable}"
    elif lora:
        trains = f"LoRA {lora}" + (f" and {trains}" if training.n_last_blocks else "")
    if training.adapt:
        trains += f", adapted for {training.adapt} epochs"
    if setup.head.with_ngrams:
        trains += ", with n-grams"
    return Finetuned(f"GPT-2 {Path(setup.model).name}, {trains}", "finetuned")


def with_random_weights(setup: Setup) -> Finetuned:
    """A row with the same model, trained in the same way from random weights."""
    name = f"GPT-2 {Path(setup.model).name} with random weights"
    return Finetuned(name, "random weights", random_weights=True)


@dataclass(frozen=True)
class FinishedRun(Row):
    """A run that was trained earlier; its saved predictions are used."""

    folder: Path = Path()

    def answer(self, setup: Setup, split: StudySplit) -> Result:
        """Read the run's predictions for its test set. Raises DataError for other texts."""
        test = replace(
            self.test_answers(setup.labels, split), near_duplicates=split.near_duplicates
        )
        val = float(self.kept(VAL_PREDICTIONS).correct.mean())
        return Result(self, split.name, test, len(split.parts.train), val)

    def kept(self, file: str) -> LabelledPredictions:
        """Read one of the run's files of predictions. Raises DataError if it is missing."""
        path = self.folder / file
        if not path.exists():
            raise DataError(
                f"{path} is missing, so this run of an earlier version cannot be compared"
            )
        check_listed(path)
        return read_predictions(path)

    def test_answers(self, labels: Sequence[str], split: StudySplit) -> LabelledPredictions:
        """The predictions for the test set, with labels and texts in the given order.

        Raises DataError if the texts or labels differ; the message names the first difference.
        """
        found = self.kept(TEST_PREDICTIONS)
        if sorted(found.labels) != sorted(labels):
            raise DataError(f"{self.name} has labels {found.labels}, not {tuple(labels)}")
        mine = [(t, found.labels[k]) for t, k in zip(found.texts, found.true, strict=True)]
        wanted = [(m.text, m.label) for m in split.parts.test]
        for (text, label), (other, others) in zip(sorted(mine), sorted(wanted), strict=False):
            if (text, label) != (other, others):
                raise DataError(
                    f"{self.name} has other test texts; the first difference in alphabetical "
                    f"order: {text!r:.80} ({label}) instead of {other!r:.80} ({others})"
                )
        if len(mine) != len(wanted):
            raise DataError(f"{self.name} has {len(mine)} test texts instead of {len(wanted)}")
        order = np.empty(len(mine), dtype=int)
        order[_sorted_places(wanted)] = _sorted_places(mine)
        columns = [found.labels.index(label) for label in labels]
        messages = split.parts.test
        return LabelledPredictions(
            tuple(labels),
            [message.text for message in messages],
            class_numbers(messages, labels),
            found.probabilities[order][:, columns],
        )

    def split(self) -> Split | None:
        """The run's split, read and split again from its data.

        If the data is not available or has changed, the result is None, and a warning says why.
        """
        why = "the data has changed"
        try:
            config = RunConfig.read(self.folder)
            with silenced():  # these lines were logged when the run was trained
                found = load_split(config.data, config.head.task, config.training.seed)
            saved = read_json(self.folder / PROVENANCE).get("messages_sha256")
            if messages_sha256(found) == saved:
                return found
        except GPT2Error as error:
            why = f"{error}"
        log.warning(
            f"no text baselines are fitted: the split of {self.folder} cannot be repeated: {why:.300}"
        )
        return None


def _sorted_places(pairs: Sequence[tuple[str, str]]) -> list[int]:
    return sorted(range(len(pairs)), key=lambda n: pairs[n])


def refuse_unfit(setup: Setup, rows: Sequence[Row]) -> None:
    """Raise UsageError if the study's settings do not fit its rows.

    Settings that rows vary must have their usual values, so that the names of the rows are correct.
    """
    changing = [row for row in rows if isinstance(row, Finetuned)]
    settings = asdict(setup.training) | asdict(setup.head)
    default = asdict(TrainConfig()) | asdict(HeadSettings())
    for name in {name for row in changing for name in (*row.training, *row.head)} - STATED:
        given, usual = settings[name], default[name]
        if given != usual:
            raise UsageError(
                f"{name} = {given!r}: rows vary this setting, so it must be {usual!r} by default"
            )
    for row in changing:
        try:
            row.changed(setup.training, setup.head)
        except UsageError as error:
            raise UsageError(f"row {row.name!r} does not fit the default: {error}") from None
