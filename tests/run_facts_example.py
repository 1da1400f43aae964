"""Facts of a run for tests: 285 of 300 test texts are correct, and one warning (one seed)."""

from dataclasses import replace
from typing import Any

import numpy as np

from gpt2_from_scratch.classifier.settings import HeadSettings, TrainConfig
from gpt2_from_scratch.classifier.train import Epoch
from gpt2_from_scratch.data.messages import DataConfig
from gpt2_from_scratch.evaluation.assessment import Assessment, assess
from gpt2_from_scratch.evaluation.metrics import (
    Evaluation,
    LabelledPredictions,
    evaluate_predictions,
)
from gpt2_from_scratch.evaluation.significance import compare_paired
from gpt2_from_scratch.reports.findings import RunFacts

LABELS = ("ham", "spam")


def answers(
    n: int, wrong: int, labels: tuple[str, str] = LABELS, sure: float = 0.9
) -> LabelledPredictions:
    """n texts with alternating labels; the first `wrong` texts are predicted wrongly."""
    true = np.arange(n) % 2
    said = np.where(np.arange(n) < wrong, 1 - true, true)
    spread = sure - 0.3 * np.arange(n) / n  # all probabilities differ
    probabilities = np.where(np.arange(2) == said[:, None], spread[:, None], 1 - spread[:, None])
    return LabelledPredictions(labels, [f"text {i}" for i in range(n)], true, probabilities)


def assessed(n: int = 300, wrong: int = 15, n_near: int = 0, **others: Any) -> Assessment:
    test = replace(answers(n, wrong, **others), near_duplicates=np.arange(n) >= n - n_near)
    val = answers(200, 8, **others)
    return assess(test, val, temperature=1.5, uncalibrated=answers(n, wrong, sure=0.99, **others))


def baseline(name: str, wrong: int, n: int = 300, ours: int = 15) -> tuple:
    right, theirs = answers(n, ours).correct, answers(n, wrong)
    return name, scored(theirs), compare_paired(right, theirs.correct)


def scored(answered: LabelledPredictions) -> Evaluation:
    return evaluate_predictions(answered.true, answered.predicted, list(answered.labels))


def run_facts(**changed: Any) -> RunFacts:
    assessment = assessed()
    facts: dict[str, Any] = {
        "run": "runs/mini-demo-5",
        "model": "mini",
        "data": DataConfig(source="/home/somebody/secret folder/inbox.csv"),
        "seed": 5,
        "task": "classification",
        "training": TrainConfig().for_texts(1050),
        "head": HeadSettings(),
        "max_tokens": 384,
        "counts": {
            "train": {"ham": 525, "spam": 525},
            "val": {"ham": 100, "spam": 100},
            "test": {"ham": 150, "spam": 150},
        },
        "ledger": "  wte   1,048,576  frozen\n  head        514  trains",
        "n_parameters": 5_886_466,
        "n_trained": 790_786,
        "history": [Epoch(1, 0.7, 0.5, 0.69, 0.6)],
        "scores": assessment.evaluation,
        "base_sha256": "b9" * 32,
        "versions": {"python": "3.11.7", "torch": "2.9.0"},
        "assessment": replace(assessment, temperature=1.0, thresholds=[]),
        "baselines": [baseline("length alone", 100), baseline("bag of words", 45)],
        "n_near_duplicates": 0,
    }
    return RunFacts(**facts | changed)
