"""The scikit-learn estimators on the SMS collection: a cross-validation, and a grid search.

    python benchmarks/estimators.py
    python benchmarks/estimators.py --texts 600 --epochs 1     # a short one

Every row of the cross-validation predicts the same five folds. Near duplicates are in one fold. The
grid search tries learning rates and numbers of blocks in two processes, which share the frozen
blocks' output on disk. Results are kept in --out, and a second call computes only what is missing.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from bench import measure_machine, note
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from gpt2_from_scratch import GPT2Classifier, GPT2Features, load_messages
from gpt2_from_scratch.data.near_duplicates import near_duplicate_groups
from gpt2_from_scratch.data.split import distinct
from gpt2_from_scratch.evaluation.baselines import words_and_characters
from gpt2_from_scratch.evaluation.metrics import wilson_interval
from gpt2_from_scratch.evaluation.significance import compare_paired, format_p
from gpt2_from_scratch.speed.devices import set_threads

GRID = {"lr": [2e-4, 5e-4, 1.5e-3], "n_last_blocks": [0, 1, 2]}
GRID_EPOCHS, GRID_FOLDS, JOBS = 3, 3, 2
SEED, FOLDS = 123, 5
FINETUNED = "GPT2Classifier"


def rows(epochs: int) -> dict[str, Any]:
    """The estimators that the cross-validation compares, by their names in the table."""
    return {
        "TF-IDF of words, LogisticRegression": make_pipeline(
            TfidfVectorizer(), LogisticRegression(C=10, max_iter=5000)
        ),
        "TF-IDF of words and characters, LogisticRegression": make_pipeline(
            words_and_characters(), LogisticRegression(C=10, max_iter=5000)
        ),
        "GPT2Features, StandardScaler, LogisticRegression": make_pipeline(
            GPT2Features(), StandardScaler(), LogisticRegression(C=0.01, max_iter=5000)
        ),
        FINETUNED: GPT2Classifier(epochs=epochs, device="cpu"),
        f"{FINETUNED}(with_ngrams=True)": GPT2Classifier(
            epochs=epochs, device="cpu", with_ngrams=True
        ),
    }


def main() -> None:
    """Compute what is missing, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=10**6, help="at most")
    parser.add_argument("--epochs", type=int, default=0, help="0: the default of GPT2Classifier")
    parser.add_argument("--out", type=Path, default=Path("runs/estimators"))
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    set_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    messages = distinct(load_messages("sms"))
    order = np.random.RandomState(SEED).permutation(len(messages))[: args.texts]
    X = [messages[n].text for n in order]
    y = np.array([messages[n].label for n in order])
    groups = np.array(near_duplicate_groups(X))
    note(f"{len(X):,} distinct texts in {len(set(groups)):,} groups of near duplicates")
    of = f"{len(X)}-{args.epochs}"

    folds = list(StratifiedGroupKFold(FOLDS, shuffle=True, random_state=SEED).split(X, y, groups))
    found = {}
    for name, estimator in rows(args.epochs).items():

        def predicted(estimator: Any = estimator) -> list[str]:
            return cross_val_predict(estimator, X, y, cv=folds).tolist()

        found[name] = kept(args.out / f"{of} {name}.json", name, predicted)

    def searched() -> dict[str, Any]:
        search = GridSearchCV(
            GPT2Classifier(epochs=args.epochs or GRID_EPOCHS, device="cpu"),
            GRID,
            cv=list(StratifiedGroupKFold(GRID_FOLDS).split(X, y, groups)),
            n_jobs=JOBS,
        )
        results = search.fit(X, y).cv_results_
        names = ("mean_test_score", "mean_fit_time", "mean_score_time")
        return {"params": results["params"]} | {name: results[name].tolist() for name in names}

    grid = kept(args.out / f"{of} grid.json", "grid search", searched)

    print(f"\nMachine: {measure_machine().name}, {args.threads} thread per process")
    print("\n| | accuracy | 95% interval | F1 of spam | p | seconds |\n|---|---|---|---|---|---|")
    finetuned = np.array(found[FINETUNED]["result"]) == y
    for name, part in found.items():
        answers = np.array(part["result"])
        correct = answers == y
        low, high = wilson_interval(int(correct.sum()), len(y))
        f1 = f1_score(y, answers, pos_label="spam")
        p = "" if name == FINETUNED else format_p(compare_paired(correct, finetuned).p)
        print(
            f"| {name} | {100 * correct.mean():.2f}% | {100 * low:.2f}% to {100 * high:.2f}% | "
            f"{100 * f1:.1f}% | {p} | {part['seconds']:.0f} |"
        )
    print(f"\np: McNemar's exact test against {FINETUNED}")
    print(
        f"\nGrid search, {JOBS} processes: {grid['seconds']:.0f} s, with the last fit on all texts"
    )
    print("\n| lr | blocks | accuracy | seconds per fit |\n|---|---|---|---|")
    result = grid["result"]
    for parameters, score, seconds in zip(
        result["params"], result["mean_test_score"], result["mean_fit_time"], strict=True
    ):
        print(
            f"| {parameters['lr']:g} | {parameters['n_last_blocks']} | {100 * score:.2f}% | "
            f"{seconds:.1f} |"
        )


def kept(path: Path, name: str, compute: Callable[[], Any]) -> dict[str, Any]:
    """The result and its duration in seconds, from the file if it exists."""
    if not path.exists():
        note(name)
        started = time.perf_counter()
        result = compute()
        part = {"seconds": time.perf_counter() - started, "result": result}
        path.write_text(json.dumps(part))
    return json.loads(path.read_text())


if __name__ == "__main__":
    main()
