"""The results of a run: predictions, scores, and the report.

N texts, K classes.
"""

import json
import logging
import shutil
from collections import Counter
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpt2_from_scratch.classifier.adaptation import Adaptation
from gpt2_from_scratch.classifier.autotune import read_tries
from gpt2_from_scratch.classifier.classifier import Classifier
from gpt2_from_scratch.classifier.freezing import format_ledger, ledger
from gpt2_from_scratch.classifier.ngrams import NGrams
from gpt2_from_scratch.classifier.settings import HeadConfig
from gpt2_from_scratch.classifier.tasks import TASKS
from gpt2_from_scratch.classifier.tasks.multi_label import label_probabilities
from gpt2_from_scratch.classifier.tasks.task import Scores, has_target
from gpt2_from_scratch.classifier.train import Epoch, loss_and_scores, to_labelled
from gpt2_from_scratch.data.messages import Message
from gpt2_from_scratch.data.near_duplicates import has_near_duplicate
from gpt2_from_scratch.data.split import Split, messages_sha256
from gpt2_from_scratch.errors import DataError, UsageError
from gpt2_from_scratch.evaluation.assessment import Assessment, assess, assessment_as_json
from gpt2_from_scratch.evaluation.baselines import fit_baselines, predictions_of
from gpt2_from_scratch.evaluation.calibration import best_f1_threshold, fit_temperature
from gpt2_from_scratch.evaluation.metrics import (
    Evaluation,
    LabelledPredictions,
    evaluate_predictions,
    read_predictions,
    several,
    write_predictions,
)
from gpt2_from_scratch.evaluation.significance import Paired, compare_paired, holm
from gpt2_from_scratch.evaluation.task_baselines import fit_task_baselines
from gpt2_from_scratch.reports.findings import RunFacts
from gpt2_from_scratch.reports.plots import plot_epochs, plot_training
from gpt2_from_scratch.reports.render import write_run_report
from gpt2_from_scratch.runs.folder import (
    ADAPTATION,
    ADAPTED,
    FILES,
    PROVENANCE,
    START,
    RunConfig,
    TrainedOn,
    read_test_part,
    refuse_missing_data,
)
from gpt2_from_scratch.runs.lecture import SPLIT_RULE, read_lecture_split
from gpt2_from_scratch.speed.devices import environment
from gpt2_from_scratch.storage.files import (
    add_to_manifest,
    check_listed,
    read_json,
    write_json,
    write_manifest,
)
from gpt2_from_scratch.storage.states import remove_states

log = logging.getLogger(__name__)

MOST_FOR_BASELINES = 20_000  # most training texts; for more, baselines are only fitted by `compare`
MOST_FOR_SLOW_BASELINES = 3_000_000  # most characters of training texts: about a minute of fitting
MOST_FOR_NEAR_DUPLICATES = 100_000  # most training texts that are searched for near duplicates
TEST_PREDICTIONS, VAL_PREDICTIONS = "test-answers.jsonl", "val-answers.jsonl"
REPORT = ("report.html", "model_card.md", "curves.png")


# --- predictions for labelled texts, the temperature, and the thresholds ---


def class_logits_of(
    classifier: Classifier, messages: Sequence[Message]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the first head's class logits (N, K), float64, and the true classes (N,).

    The logits include the classifier's n-grams. Raises UsageError unless the head is for
    classification, and DataError for an unknown label.
    """
    head = classifier.description.head
    if head.task != "classification":
        raise UsageError(f"head {head.name!r} is for {head.task}; this needs classification")
    labelled = to_labelled(classifier, messages)
    texts = [message.text for message in messages]
    logits = classifier.class_logits(classifier.logits(labelled.texts), texts)
    return logits.numpy(), labelled.labels.numpy()


def predictions_at(
    temperature: float,
    classifier: Classifier,
    messages: Sequence[Message],
    logits: np.ndarray,
    true: np.ndarray,
    near_duplicates: np.ndarray | None = None,
) -> LabelledPredictions:
    """The predictions that follow from logits (N, K) at a temperature.

    Args:
        temperature: The number that divides the logits.
        classifier: The classifier, for its labels.
        messages: The N messages.
        logits: One logit per class, (N, K).
        true: The true classes (N,).
        near_duplicates: Which messages have a near duplicate in training, (N,) bool; None if
            unknown.

    Returns:
        The predictions, with probabilities (N, K).
    """
    probabilities = torch.from_numpy(logits / temperature).softmax(dim=1).numpy()
    texts = [message.text for message in messages]
    labels = classifier.description.head.labels
    return LabelledPredictions(labels, texts, true, probabilities, near_duplicates)


def labelled_predictions(
    classifier: Classifier, messages: Sequence[Message]
) -> LabelledPredictions:
    """A classifier's predictions for labelled messages. Raises as `class_logits_of` does."""
    logits, true = class_logits_of(classifier, messages)
    temperature = classifier.description.head.temperature
    return predictions_at(temperature, classifier, messages, logits, true)


def calibrate(classifier: Classifier, messages: Sequence[Message]) -> LabelledPredictions:
    """Fit the first head's temperature on messages it was not trained on; return its predictions.

    Only probabilities change, not the predicted labels. Source: Guo et al. 2017, "On Calibration of
    Modern Neural Networks". Raises the errors of `class_logits_of`.
    """
    logits, true = class_logits_of(classifier, messages)
    temperature = fit_temperature(logits, true)
    first, *others = classifier.description.heads
    heads = (replace(first, temperature=temperature), *others)
    classifier.description = replace(classifier.description, heads=heads)
    return predictions_at(temperature, classifier, messages, logits, true)


def add_ngrams(classifier: Classifier, split: Split) -> None:
    """Fit n-grams, and combine the first head's answers with theirs from now on.

    The n-grams are fitted on the training set. The weights of the combination are fitted on the
    validation set. If the texts have no n-grams, the reason is logged, and GPT-2 answers alone.
    Raises the errors of `class_logits_of` and DataError if the training or validation set is empty.
    """
    first, *others = classifier.description.heads
    classifier.ngrams = None
    logits, true = class_logits_of(classifier, split.val)
    log.info("fitting n-grams")
    if ngrams := NGrams.fitted(split, first.labels):
        unseen = [label for k, label in enumerate(first.labels) if k not in ngrams.seen]
        if unseen:
            log.warning(
                f"labels without training texts are hardly ever predicted: {several(unseen)}"
            )
        classifier.ngrams = ngrams.weighted(logits, split.val, true)
        heads = (replace(first, temperature=1.0), *others)
        classifier.description = replace(classifier.description, heads=heads)


def choose_thresholds(classifier: Classifier, messages: Sequence[Message]) -> None:
    """Choose the first head's threshold per label on messages it was not trained on.

    Each label gets the threshold with the highest F1. Raises UsageError unless the head is for
    multi-label, and DataError for an unknown label.
    """
    first, *others = classifier.description.heads
    if first.task != "multi-label":
        raise UsageError(f"head {first.name!r} is for {first.task}; this needs multi-label")
    labelled = to_labelled(classifier, messages)
    targets = torch.stack([*labelled.targets[first.name].values])  # (N, K)
    known = has_target(targets)
    probabilities = label_probabilities(classifier.logits(labelled.texts)[known])
    true = targets[known].numpy() == 1
    columns = zip(probabilities.T, true.T, strict=True)
    thresholds = tuple(best_f1_threshold(p, is_positive) for p, is_positive in columns)
    heads = (replace(first, thresholds=thresholds), *others)
    classifier.description = replace(classifier.description, heads=heads)


# --- scores ---


@dataclass
class Run:
    """A finished run: its folder, its classifier, and its scores on the test set."""

    folder: Path
    config: RunConfig
    classifier: Classifier
    scores: Any  # an Evaluation, or another task's Scores
    assessment: Assessment | None = None  # for classification only
    split: Split | None = None  # None: `load_split` reads and splits the data again

    def load_split(self) -> Split:
        """Read the run's data again, and return the training, validation and test messages.

        Raises DataError if the data have changed since the run.
        """
        config = self.config
        refuse_missing_data(self.folder, replace(config.data, unlabelled=""))
        if config.recipe == "lecture":
            split = read_lecture_split(config.data.source, config.training.seed)
        else:
            split = config.load_split()
        if messages_sha256(split) != read_json(self.folder / PROVENANCE).get("messages_sha256"):
            raise DataError(f"{config.data.source} has changed since {self.folder} was trained")
        return split

    def load_history(self) -> list[Epoch]:
        """Read each epoch's losses and scores.

        The list is empty for the lecture's recipe, which counts steps.
        """
        path = self.folder / "metrics.jsonl"
        lines = path.read_text("utf-8").splitlines() if path.exists() else []
        return [Epoch(**json.loads(line)) for line in lines]

    def load_adaptation(self) -> Adaptation | None:
        """Read how GPT-2 was adapted to the texts; None if it was not."""
        path = self.folder / ADAPTED
        return Adaptation(**read_json(path)) if path.exists() else None

    def write_report(self) -> None:
        """Write the page `report.html`, the card `model_card.md`, and `curves.png`.

        Raises DataError if the data have changed since the run.
        """
        facts = self.facts
        if self.config.recipe == "lecture":  # this recipe counts steps, not epochs
            trace = read_json(self.folder / "trace.json")
            steps, train_losses, val_losses = zip(*trace["losses"], strict=True)
            train, val = zip(*trace["accuracies"], strict=True)
            curves = plot_training(
                steps, (train_losses, val_losses), (train, val), step_name="step"
            )
        else:
            curves = plot_epochs(facts.history, self.scores.measure)
        write_run_report(facts, self.folder, curves)
        add_to_manifest(self.folder, REPORT)

    @cached_property
    def facts(self) -> RunFacts:
        """Everything that the report page and the model card show.

        Text baselines are fitted when this is first read. Raises DataError if the run's data have
        changed since it was trained.
        """
        split = self.split or self.load_split()
        classifier, description, config = self.classifier, self.classifier.description, self.config
        parts = vars(split)
        classes = description.head.task == "classification"
        texts = [message.text for part in parts.values() for message in part]
        lines = ledger(classifier.model, config.training, description.heads)
        predictions = read_predictions(self.folder / TEST_PREDICTIONS) if classes else None
        if predictions:
            near_duplicates = predictions.near_duplicates
        else:
            near_duplicates = _near_duplicates(split, description.head.task)
        return RunFacts(
            run=str(self.folder),
            model=config.model,
            data=config.data,
            training=config.training,
            head=config.head,
            seed=config.training.seed,
            task=description.head.task,
            counts={
                name: Counter(m.label if classes else "texts" for m in part)
                for name, part in parts.items()
            },
            ledger=format_ledger(lines),
            n_parameters=sum(line.parameters for line in lines),
            n_trained=sum(line.trainable for line in lines),
            history=self.load_history(),
            scores=self.scores,
            base_sha256=description.base_sha256,
            versions=environment(classifier.device)
            | {"gpt2_from_scratch": version("gpt2-from-scratch")},
            split=SPLIT_RULE if config.recipe == "lecture" else "",
            assessment=self.assessment,
            predictions=predictions,
            baselines=_baselines(split, predictions, classifier.ngrams) if predictions else [],
            task_baselines=[] if predictions else _task_baselines(split, description.head),
            tries=read_tries(self.folder),
            start=config.start,
            adaptation=self.load_adaptation(),
            n_trained_on=TrainedOn.of(self.folder).count(split.test),
            n_near_duplicates=None if near_duplicates is None else int(near_duplicates.sum()),
            max_tokens=description.max_tokens,
            n_cut=sum(classifier.encode(texts)[1]),
            ngram_weights=classifier.ngrams.weights if classifier.ngrams else None,
            alone=_gpt2_alone(classifier, split.test) if classifier.ngrams else None,
        )


def score_run(folder: Path, config: RunConfig, classifier: Classifier, split: Split) -> Run:
    """Score a trained classifier on its test set, and return the finished run.

    The manifest is written and the states for resuming are removed. For a classification, the
    predictions are saved. The temperature is first fitted on the validation set, except with the
    lecture's recipe. With n-grams, their weights are fitted instead. The thresholds of several
    labels are also chosen on the validation set.
    """
    head = classifier.description.head
    assessment: Assessment | None = None
    if head.task == "classification":
        if config.head.with_ngrams:
            add_ngrams(classifier, split)
        calibrated = config.recipe != "lecture"
        calibrates = calibrated and not classifier.ngrams  # their weights already calibrate
        val = (calibrate if calibrates else labelled_predictions)(classifier, split.val)
        if calibrated:
            classifier.save(folder / "best.safetensors")
        near_duplicates = _near_duplicates(split, head.task)
        assessment, test = _assessed(classifier, split.test, near_duplicates, val)
        write_predictions(folder / TEST_PREDICTIONS, test)
        write_predictions(folder / VAL_PREDICTIONS, val)
        scores: Any = assessment.evaluation
        write_json(folder / "evaluation.json", assessment_as_json(assessment))
    else:
        if head.task == "multi-label":
            choose_thresholds(classifier, split.val)
            classifier.save(folder / "best.safetensors")
        scores = evaluate_classifier(classifier, split.test)
        write_json(folder / "evaluation.json", scores.as_json())
    write_manifest(folder, FILES)
    remove_what_resumes(folder)  # removed last, so that a run killed before this line is complete
    return Run(folder, config, classifier, scores, assessment, split)


def remove_what_resumes(folder: Path) -> None:
    """Remove the files of a complete run that only serve for resuming."""
    remove_states(folder)
    shutil.rmtree(folder / ADAPTATION, ignore_errors=True)
    (folder / START).unlink(missing_ok=True)
    for place in folder.glob("try-*"):
        shutil.rmtree(place, ignore_errors=True)


def score_again(
    folder: Path, config: RunConfig, classifier: Classifier, split: Split | None = None
) -> Run:
    """Score the classifier of a complete run on the test set in the run's folder.

    Args:
        folder: The run's folder.
        config: The run's settings.
        classifier: The run's best classifier.
        split: The run's messages, if they were already read.

    Returns:
        The run with its new scores.
    """
    messages = read_test_part(folder, config.head.task)
    if config.head.task == "classification":
        assessment = assess_again(classifier, messages, folder)
        return Run(folder, config, classifier, assessment.evaluation, assessment, split)
    scores = evaluate_classifier(classifier, messages)
    return Run(folder, config, classifier, scores, split=split)


def evaluate_classifier(classifier: Classifier, messages: Sequence[Message]) -> Any:
    """Score a classifier's first head on labelled messages: an Evaluation, or its task's scores."""
    if classifier.ngrams:
        found = labelled_predictions(classifier, messages)
        return evaluate_predictions(found.true, found.predicted, found.labels)
    labelled = to_labelled(classifier, messages)
    return loss_and_scores(classifier, labelled)[1][classifier.description.head.name]


def assess_again(
    classifier: Classifier, messages: Sequence[Message], run: Path | None, **options: Any
) -> Assessment:
    """Assess a saved classifier on labelled messages.

    Args:
        classifier: The classifier.
        messages: The labelled messages.
        run: The folder of the run whose best classifier this is, if it is known. It provides the
            predictions for the validation set, on which thresholds are selected, and shows which
            test texts have near duplicates in training.
        options: Options of `assess`.

    Returns:
        The assessment.
    """
    kept: dict[str, LabelledPredictions] = {}
    for path in (run / TEST_PREDICTIONS, run / VAL_PREDICTIONS) if run else ():
        if path.exists():
            check_listed(path)
            kept[path.name] = read_predictions(path)
    test, val = kept.get(TEST_PREDICTIONS), kept.get(VAL_PREDICTIONS)
    texts = [message.text for message in messages]
    near_duplicates = test.near_duplicates if test is not None and test.texts == texts else None
    if val is not None and val.labels != classifier.description.head.labels:
        val = None
    return _assessed(classifier, messages, near_duplicates, val, **options)[0]


def _assessed(
    classifier: Classifier,
    messages: Sequence[Message],
    near_duplicates: np.ndarray | None,
    val: LabelledPredictions | None,
    **options: Any,
) -> tuple[Assessment, LabelledPredictions]:
    """Return the assessment on labelled messages, and the predictions with the temperature.

    The assessment also has the scores without the temperature, if that is not 1.
    """
    temperature = classifier.description.head.temperature
    logits, true = class_logits_of(classifier, messages)
    test, before = (
        predictions_at(t, classifier, messages, logits, true, near_duplicates)
        for t in (temperature, 1.0)
    )
    uncalibrated = before if temperature != 1 else None
    found = assess(test, val, temperature=temperature, uncalibrated=uncalibrated, **options)
    return found, test


def _near_duplicates(split: Split, task: str) -> np.ndarray | None:
    """Which test texts have a near duplicate in training: (N,) bool.

    None if there are very many training texts. Also None for spans, because many of them have the
    same context.
    """
    if task == "span" or len(split.train) > MOST_FOR_NEAR_DUPLICATES:
        return None
    train, test = ([message.text for message in part] for part in (split.train, split.test))
    return has_near_duplicate(test, train)


def _gpt2_alone(classifier: Classifier, messages: Sequence[Message]) -> float:
    """The accuracy of a classifier with n-grams if they are left out."""
    alone = copy(classifier)
    alone.ngrams = None
    return evaluate_classifier(alone, messages).accuracy


def _baselines(
    split: Split, predictions: LabelledPredictions, ngrams: NGrams | None
) -> list[tuple[str, Evaluation, Paired]]:
    """Fit text baselines on the same split, and compare the classifier with each of them.

    The classifier's own n-grams are one of them, and not fitted again. Returns (name, scores,
    comparison) per baseline, with p-values adjusted by Holm. The list is empty if there are too many
    training texts.
    """
    if len(split.train) > MOST_FOR_BASELINES:
        log.warning("too many texts: no text baselines were fitted; use gpt2-classifier compare")
        return []
    quick = sum(len(message.text) for message in split.train) > MOST_FOR_SLOW_BASELINES
    if quick:
        log.warning(
            "the training texts are too long for the stronger text baselines: use "
            "gpt2-classifier compare"
        )
    found: list[tuple[str, Evaluation, Paired]] = []
    labels = list(predictions.labels)
    fitted = [ngrams.as_baseline()] if ngrams else []
    for baseline in fit_baselines(split, labels, quick=quick, fitted=fitted):
        theirs = predictions_of(baseline, split.test, labels)
        evaluation = evaluate_predictions(theirs.true, theirs.predicted, labels)
        found.append(
            (baseline.name, evaluation, compare_paired(predictions.correct, theirs.correct))
        )
    adjusted = holm([paired.p for _, _, paired in found])
    return [
        (name, evaluation, replace(paired, p=p))
        for (name, evaluation, paired), p in zip(found, adjusted, strict=True)
    ]


def _task_baselines(split: Split, head: HeadConfig) -> list[tuple[str, Scores]]:
    """Fit the baselines of a task other than classification; return (name, scores) of each.

    They have the scores of the classifier on the same test texts.
    """
    n_characters = sum(len(message.text) for message in split.train)
    quick = (
        len(split.train) > MOST_FOR_BASELINES
        or n_characters * len(head.labels) > MOST_FOR_SLOW_BASELINES
    )
    task, texts = TASKS[head.task], [message.text for message in split.test]
    labels = [message.label for message in split.test]
    found = []
    for baseline in fit_task_baselines(head.task, split, head.labels, quick=quick):
        answers = [
            task.answer_of(head, message.text, answer)
            for message, answer in zip(split.test, baseline.answers(split.test), strict=True)
        ]
        found.append((baseline.name, task.scores(head, labels, answers, texts)))
    return found
