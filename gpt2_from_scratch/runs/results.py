"""A classifier's answers to labelled texts, and the temperature that makes its shares honest.

N texts, K classes.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from gpt2_from_scratch.classifier.classifier import Classifier
from gpt2_from_scratch.classifier.freezing import LedgerLine, format_ledger
from gpt2_from_scratch.classifier.settings import HeadSettings, TrainConfig
from gpt2_from_scratch.classifier.tasks.losses import class_scores
from gpt2_from_scratch.classifier.tasks.scores import Scores, scores_as_json
from gpt2_from_scratch.classifier.train import Epoch, loss_and_scores, to_labelled
from gpt2_from_scratch.data.messages import DataConfig, Message
from gpt2_from_scratch.data.near_duplicates import has_twin
from gpt2_from_scratch.data.split import Split
from gpt2_from_scratch.errors import UsageError
from gpt2_from_scratch.evaluation.assessment import Assessment, as_json, assess
from gpt2_from_scratch.evaluation.baselines import answered_by, fit_baselines
from gpt2_from_scratch.evaluation.calibration import fit_temperature
from gpt2_from_scratch.evaluation.metrics import (
    Answered,
    Evaluation,
    evaluate_predictions,
    read_answered,
    write_answered,
)
from gpt2_from_scratch.evaluation.significance import Paired, compare_paired, holm
from gpt2_from_scratch.reports.findings import RunFacts, against_baselines
from gpt2_from_scratch.reports.render import write_run_report
from gpt2_from_scratch.speed.devices import environment
from gpt2_from_scratch.speed.feature_store import FeatureStore
from gpt2_from_scratch.storage.files import check_listed, write_json, write_manifest
from gpt2_from_scratch.storage.states import remove_states

log = logging.getLogger(__name__)


def class_logits_of(
    classifier: Classifier,
    messages: Sequence[Message],
    *,
    store: FeatureStore | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """What the first head gives each class, before any softmax (N, K) float64, and true classes (N,).

    Raises UsageError for a head that does not choose one class, DataError for an unknown label.
    """
    head = classifier.description.head
    if head.task != "classification":
        raise UsageError(f"head {head.name!r} is for {head.task}; this is for classification")
    labelled = to_labelled(
        classifier,
        messages,
        store=store,
    )
    with torch.no_grad():
        scores = class_scores(head, classifier.all_logits(labelled.texts))
    return scores.double().numpy(), labelled.labels.numpy()


def answered_with(
    classifier: Classifier,
    messages: Sequence[Message],
    *,
    store: FeatureStore | None = None,
) -> Answered:
    """What a classifier says of labelled messages. Raises as `class_logits_of` does."""
    logits, true = class_logits_of(
        classifier,
        messages,
        store=store,
    )
    return answers_at(classifier.description.head.temperature, classifier, messages, logits, true)


def answers_at(
    temperature: float,
    classifier: Classifier,
    messages: Sequence[Message],
    logits: np.ndarray,
    true: np.ndarray,
    near_twins: np.ndarray | None = None,
) -> Answered:
    """The answers that logits (N, K) of messages give at a temperature; `near_twins` (N,) are the
    texts to which training had one that is nearly the same.
    """
    shares = torch.from_numpy(logits / temperature).softmax(dim=1).numpy()
    texts = [message.text for message in messages]
    return Answered(classifier.description.head.labels, texts, true, shares, near_twins)


def calibrate(
    classifier: Classifier,
    messages: Sequence[Message],
    *,
    store: FeatureStore | None = None,
) -> Answered:
    """Set the first head's temperature by messages it was not trained on; its answers to them, then.

    No answer changes, only how sure it claims to be. Source: Guo et al. 2017, "On Calibration of
    Modern Neural Networks". Raises as `class_logits_of` does.
    """
    logits, true = class_logits_of(
        classifier,
        messages,
        store=store,
    )
    temperature = fit_temperature(logits, true)
    first, *others = classifier.description.heads
    heads = (replace(first, temperature=temperature), *others)
    classifier.description = replace(classifier.description, heads=heads)
    return answers_at(temperature, classifier, messages, logits, true)


# --- What a finished run leaves: scores and answers, curves, a page to send, a card for its model. ---


MOST_FOR_BASELINES = 20_000  # texts to train on: beyond, `compare` has them, at its own time
MOST_FOR_TWINS = 100_000
TEST_ANSWERS, VAL_ANSWERS = "test-answers.jsonl", "val-answers.jsonl"


@dataclass(frozen=True)
class Finished:
    """A run whose training is over, and how it came about."""

    run: Path
    classifier: Classifier
    split: Split
    history: Sequence[Epoch]
    settings: Mapping[str, Any]  # as config.json has them
    ledger: list[LedgerLine]
    split_rule: str = ""  # how the parts were made, if not as the default recipe makes them
    curves: Figure | None = None  # none: drawn from the history


def finish_run(
    finished: Finished,
    *,
    calibrated: bool = True,
    store: FeatureStore | None = None,
) -> Scores:
    """Score a run on its test part and write all that it leaves; from then on it is complete.

    A classifier that chooses one class gets its temperature, by the validation part, unless it is
    not to be `calibrated`, and is compared with text baselines, where scikit-learn is there.
    """
    run, classifier, split = finished.run, finished.classifier, finished.split
    twins = _near_twins(split, classifier.description.head.task)
    facts: dict[str, Any] = {}
    if classifier.description.head.task == "classification":
        assessment, answered = _assess(
            finished,
            twins,
            calibrated,
            store,
        )
        scores: Scores = assessment.evaluation
        baselines = _baselines(
            split,
            classifier.description.labels,
            answered.right,
        )
        facts = {"assessment": assessment, "predictions": answered, "baselines": baselines}
        written = as_json(assessment)
    else:
        labelled = to_labelled(
            classifier,
            split.test,
            store=store,
        )
        scores = loss_and_scores(classifier, labelled)[1][classifier.description.head.name]
        written = scores_as_json(scores)
    told = _facts(
        finished,
        scores=scores,
        n_near_duplicates=None if twins is None else int(twins.sum()),
        **facts,
    )
    write_json(run / "evaluation.json", written)
    write_run_report(told, run, finished.curves)
    remove_states(run)
    write_manifest(run)
    if sentence := against_baselines(told):
        log.info(sentence)
    log.info(f"report: {run / 'report.html'}")
    return scores


def assess_again(
    classifier: Classifier,
    messages: Sequence[Message],
    run: Path | None,
    *,
    store: FeatureStore | None = None,
    **options: Any,
) -> Assessment:
    """Assess a saved classifier on labelled messages, with what the run's folder still knows whose
    best it is: the answers to the validation part, and which test texts have near twins. `options`
    are `assess`'s.
    """
    before, val = (_kept(run / name) if run else None for name in (TEST_ANSWERS, VAL_ANSWERS))
    texts = [message.text for message in messages]
    twins = before.near_twins if before is not None and before.texts == texts else None
    if val is not None and val.labels != classifier.description.head.labels:
        val = None
    return _assessed(classifier, messages, twins, val, store, **options)[0]


def _kept(path: Path) -> Answered | None:
    if not path.exists():
        return None
    check_listed(path)
    return read_answered(path)


def _assess(
    finished: Finished,
    twins: np.ndarray | None,
    calibrated: bool,
    store: FeatureStore | None,
) -> tuple[Assessment, Answered]:
    """The assessment, and the answers to the test part that it was made from."""
    run, classifier, split = finished.run, finished.classifier, finished.split
    answer = calibrate if calibrated else answered_with
    val = answer(
        classifier,
        split.val,
        store=store,
    )
    if calibrated:
        classifier.save(run / "best.safetensors")
    assessment, test = _assessed(
        classifier,
        split.test,
        twins,
        val,
        store,
    )
    write_answered(run / TEST_ANSWERS, test)
    write_answered(run / VAL_ANSWERS, val)
    return assessment, test


def _assessed(
    classifier: Classifier,
    messages: Sequence[Message],
    twins: np.ndarray | None,
    val: Answered | None,
    store: FeatureStore | None,
    **options: Any,
) -> tuple[Assessment, Answered]:
    """The assessment on labelled messages, before and after the temperature, and the answers."""
    temperature = classifier.description.head.temperature
    logits, true = class_logits_of(
        classifier,
        messages,
        store=store,
    )
    test, before = (
        answers_at(t, classifier, messages, logits, true, twins) for t in (temperature, 1.0)
    )
    uncalibrated = before if temperature != 1 else None
    found = assess(test, val, temperature=temperature, uncalibrated=uncalibrated, **options)
    return found, test


def _near_twins(split: Split, task: str) -> np.ndarray | None:
    """Which test texts training has nearly too: (N,) bool; None where it is not looked for: among
    very many texts, and of spans, whose contexts are shared.
    """
    if task == "span" or len(split.train) > MOST_FOR_TWINS:
        return None
    train, test = ([message.text for message in part] for part in (split.train, split.test))
    return has_twin(test, train)


def _baselines(
    split: Split,
    labels: Sequence[str],
    right: np.ndarray,
) -> Sequence[tuple[str, Evaluation, Paired | None]]:
    """Text baselines on the same split, the classifier compared with each; p is adjusted (Holm)."""
    if len(split.train) > MOST_FOR_BASELINES:
        log.info(
            "text baselines are left out, as there are many texts: gpt2-classifier compare has them"
        )
        return []
    found: list[tuple[str, Evaluation, Paired]] = []
    for baseline in fit_baselines(
        split,
        labels,
        quick=True,
    ):
        answered = answered_by(baseline, split.test, labels)
        evaluation = evaluate_predictions(answered.true, answered.predicted, list(labels))
        found.append((baseline.name, evaluation, compare_paired(right, answered.right)))
    adjusted = holm([paired.p for _, _, paired in found])
    return [
        (name, e, replace(paired, p=p))
        for (name, e, paired), p in zip(found, adjusted, strict=True)
    ]


def _facts(finished: Finished, **found: Any) -> RunFacts:
    """All that page and card tell; `found` is what the test part showed."""
    classifier, settings = finished.classifier, finished.settings
    description = classifier.description
    parts = vars(finished.split)
    texts = [message.text for part in parts.values() for message in part]
    where = environment(classifier.model.wte.weight.device)
    classes = description.head.task == "classification"
    return RunFacts(
        run=str(finished.run),
        model=settings["model"],
        data=DataConfig(
            source=settings["data"],
            val_source=settings.get("val_data", ""),
            test_source=settings.get("test_data", ""),
            keep_together="near-duplicates"
            if settings.get("together") == "near-twins"
            else "copies",
            **_of(DataConfig, settings),
        ),
        training=None if finished.split_rule else TrainConfig(**_of(TrainConfig, settings)),
        head=None if finished.split_rule else HeadSettings(**_of(HeadSettings, settings)),
        max_tokens=description.max_tokens,
        seed=settings["seed"],
        task=description.head.task,
        counts={
            name: Counter(m.label if classes else "texts" for m in part)
            for name, part in parts.items()
        },
        ledger=format_ledger(finished.ledger),
        n_parameters=sum(line.numbers for line in finished.ledger),
        n_trained=sum(line.trainable for line in finished.ledger),
        history=finished.history,
        base_sha256=description.base_sha256,
        versions=where
        | {
            "dtype": settings.get("dtype", "float32"),
            "gpt2_from_scratch": version("gpt2-from-scratch"),
        },
        split=finished.split_rule,
        n_cut=sum(classifier.encode(texts)[1]),
        **found,
    )


def _of(kind: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that are fields of a dataclass."""
    return {known.name: settings[known.name] for known in fields(kind) if known.name in settings}
