"""Classifiers that answer the same test texts, one after the other, and the folder that keeps it.

In the folder: `settings.json`; `answers-CLASSIFIER-SPLIT.jsonl`, what each classifier said of each
test text; `finished.json`, what else is known of those that are done; and at the end
`scoreboard.json`, `scoreboard.md`, `scoreboard.png` and the page of all that, `scoreboard.html`.
"""

import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gpt2_from_scratch.data.messages import Message, on_one_line
from gpt2_from_scratch.data.near_duplicates import has_twin
from gpt2_from_scratch.data.split import Split
from gpt2_from_scratch.errors import Interrupted, UsageError
from gpt2_from_scratch.evaluation.baselines import Baseline, answered_by, baseline_fits
from gpt2_from_scratch.evaluation.metrics import read_answered, write_answered
from gpt2_from_scratch.progress import progress_bar
from gpt2_from_scratch.storage.files import locked, read_json, sweep, write_json, write_text
from gpt2_from_scratch.storage.states import refuse_changes
from gpt2_from_scratch.studies.scoreboard import Result, Scoreboard, format_scoreboard, mean_result

log = logging.getLogger(__name__)

ENSEMBLE = "mean of ours and the best text baseline"
Fits = dict[str, Callable[[], Baseline | None]]  # {kind of classifier: what fits it}


@dataclass(frozen=True)
class Contest:
    """One split, and what is fitted on it."""

    name: str  # of the split
    test: list[Message]
    val: list[Message]
    near_twins: np.ndarray | None  # (N,) bool, of the test texts
    fits: Fits

    def file(self, folder: Path, kind: str) -> Path:
        """Where a classifier's answers lie."""
        split = re.sub(r"\W+", "-", self.name.removeprefix("seed "))
        return folder / f"answers-{slug(kind)}-{split}.jsonl"


def contest(name: str, split: Split, fits: Fits) -> Contest:
    """A contest on a split, which knows what near twins its test texts have in training."""
    twins = has_twin([m.text for m in split.test], [m.text for m in split.train])
    return Contest(name, split.test, split.val, twins, fits)


def text_fits(split: Split, labels: Sequence[str], quick: bool) -> Fits:
    """The text baselines of a split."""
    fits = baseline_fits(quick=quick)
    return {kind: partial(fit, split, labels) for kind, fit in fits.items()}


def play(contests: Sequence[Contest], labels: Sequence[str], folder: Path) -> list[Result]:
    """Fit every classifier of every contest, and let it answer, unless `folder` has its answers.

    A line is said of each when it is finished.
    """
    path = folder / "finished.json"
    finished: dict[str, Any] = read_json(path) if path.exists() else {}
    results = []
    total = sum(len(c.fits) for c in contests)
    with progress_bar(total=total, desc="classifiers") as bar:
        for c in contests:
            done = finished.setdefault(c.name, {})
            for kind, fit in c.fits.items():
                bar.set_postfix_str(on_one_line(f"{c.name}: {kind}"))
                file = c.file(folder, kind)
                if kind not in done or (done[kind] and not file.exists()):
                    done[kind] = _answer(c, fit, labels, file)
                    write_json(path, finished)
                    log.info(_line(c, kind, done[kind]))
                if done[kind]:
                    known = {key: done[kind][key] for key in ("name", "seconds", "val_accuracy")}
                    results.append(Result(split=c.name, answered=read_answered(file), **known))
                bar.update()
    return results


def ensembles(results: Sequence[Result], ours: str) -> Iterator[Result]:
    """On each split the mean of ours and the text baseline that is best on the validation part, of
    equals the first.
    """
    text_kinds = baseline_fits()
    for split in dict.fromkeys(result.split for result in results):
        here = [result for result in results if result.split == split]
        texts = [r for r in here if r.kind in text_kinds and r.val_accuracy is not None]
        if texts:
            best = max(texts, key=lambda result: result.val_accuracy or 0.0)
            mine = next(result for result in here if result.kind == ours)
            yield mean_result(f"{ENSEMBLE}: {best.kind}", [mine, best])


def write_scoreboard(folder: Path, board: Scoreboard) -> None:
    """Write it as JSON and as Markdown."""
    write_json(folder / "scoreboard.json", asdict(board))
    write_text(folder / "scoreboard.md", format_scoreboard(board) + "\n")


@contextmanager
def working_in(folder: Path, settings: Mapping[str, Any]) -> Iterator[None]:
    """Keep other processes out of a comparison's folder; refuse one of other settings."""
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".lock", wait=False):
        sweep(folder)
        path = folder / "settings.json"
        if path.exists():
            refuse_changes(read_json(path), settings, folder)
        elif any(found.name != ".lock" for found in folder.iterdir()):
            raise UsageError(f"{folder} holds something else; choose another --out")
        write_json(path, settings)
        try:
            yield
        except KeyboardInterrupt as error:
            number = getattr(error, "exit_code", 130) - 128
            raise Interrupted(
                "interrupted; the same command goes on behind the classifiers that are finished",
                number,
            ) from None


def slug(name: str) -> str:
    """A name as part of a file's."""
    return re.sub(r"\W+", "-", name.lower()).strip("-")


# --- its parts ---


def _answer(
    c: Contest, fit: Callable[[], Baseline | None], labels: Sequence[str], file: Path
) -> dict[str, Any] | None:
    """Fit one classifier, write its answers; what is known of it, None if there is nothing to fit."""
    began = time.perf_counter()
    found = fit()
    if found is None:
        return None
    answered = answered_by(found, c.test, labels, c.near_twins)
    seconds = time.perf_counter() - began
    val = float(answered_by(found, c.val, labels).right.mean()) if c.val else None
    write_answered(file, answered)
    right = int(answered.right.sum())
    return {
        "name": found.name,
        "seconds": seconds,
        "val_accuracy": val,
        "right": right,
        "of": len(c.test),
    }


def _line(c: Contest, kind: str, done: dict[str, Any] | None) -> str:
    if done is None:
        return on_one_line(f"{c.name}, {kind}: left out")
    share = 100 * done["right"] / done["of"]
    name = on_one_line(f"{c.name}, {done['name']}")
    return f"{name}: {share:.2f} %  ({done['right']} of {done['of']}; {done['seconds']:.1f} s)"
