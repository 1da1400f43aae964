"""Search for settings within a time budget.

The search is successive halving (Jamieson & Talwalkar 2016): many candidates are trained briefly on
some of the texts, the best third of them for longer on more texts, and the best of those completely.
In the time that is left, settings near the best ones are tried. All choices are made on the
validation set. fastText's autotune is the model.

The search makes its decisions from the list of its tries, which it keeps on disk. So it can
continue after an interruption.
"""

import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Set
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from gpt2_from_scratch.classifier.classifier import Classifier
from gpt2_from_scratch.classifier.settings import TEXT_TASKS, HeadSettings, TrainConfig
from gpt2_from_scratch.classifier.train import Epoch, OutOfTime, best_epoch, finetune
from gpt2_from_scratch.data.split import Split
from gpt2_from_scratch.errors import CheckpointError, GPT2Error, ResourceError, is_out_of_memory
from gpt2_from_scratch.progress import progress_bar, silenced
from gpt2_from_scratch.storage.files import write_text
from gpt2_from_scratch.storage.settings import record_from_json

log = logging.getLogger(__name__)

TRIES = "autotune.jsonl"  # one line per try
ROUNDS = (0.3, 0.5)  # shares of the budget after which the second and the last round begin
KEPT = 3  # one of so many candidates reaches the next round
FEWEST_TEXTS, FEWEST_STEPS = 500, 125  # fewer say little about a candidate
LORA_RANK = 8
TRAINED = ("best.safetensors", "last.safetensors", "metrics.jsonl")  # what a training leaves
Settings = dict[str, Any]  # values of TrainConfig and HeadSettings that the search changes
Make = Callable[[TrainConfig, HeadSettings], Classifier]


@dataclass(frozen=True)
class Try:
    """One training of a search, and its best epoch on the validation set."""

    number: int  # counted from 1
    settings: Settings
    n_texts: int  # training texts
    epochs: int
    seconds: float
    score: float | None  # None if it was not finished in time or could not be trained
    loss: float | None  # in the epoch with this score

    @property
    def rank(self) -> tuple[float, float]:
        """The higher the better: by the validation score, on a tie by the validation loss."""
        if self.score is None or self.loss is None:
            return -math.inf, -math.inf
        return self.score, -self.loss

    @property
    def in_words(self) -> str:
        """The settings that the search changed."""
        values = {n: f"{v:g}" if isinstance(v, float) else v for n, v in self.settings.items()}
        return ", ".join(f"{name} {value}" for name, value in values.items()) or "as given"


def read_tries(folder: Path) -> list[Try]:
    """Read the tries of a search. Raises CheckpointError if they cannot be read."""
    path = folder / TRIES
    if not path.exists():
        return []
    try:
        lines = path.read_text("utf-8").splitlines()
        return [record_from_json(Try, json.loads(line)) for line in lines]
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error!s:.200}. Remove it.") from None


def best_try(tries: Iterable[Try], n_texts: int, epochs: int = 0) -> Try | None:
    """The best of the tries on all `n_texts` training texts; None if there is none.

    With `epochs`, only tries with so many epochs count.
    """
    possible = [one for one in tries if one.score is not None and one.n_texts == n_texts]
    if epochs:
        possible = [one for one in possible if one.epochs == epochs]
    return max(possible, key=lambda one: one.rank, default=None)


def autotune(
    make: Make,
    split: Split,
    training: TrainConfig,
    head: HeadSettings,
    seconds: float,
    folder: Path,
    *,
    keep: Collection[str] = (),
) -> tuple[TrainConfig, HeadSettings]:
    """Search for the settings with the highest validation score.

    Settings that differ from their defaults, and those in `keep`, stay as they are. The test
    messages are not used. A search that was interrupted in this folder is continued. Afterwards the
    folder has the files that `finetune` writes with the settings that were found.

    Args:
        make: Makes an untrained classifier with these settings.
        split: The training and validation messages.
        training: The settings of training to start from.
        head: The settings of the head to start from.
        seconds: The budget. The search takes longer if no training is complete by then.
        folder: The folder for the list of tries and the files of the best training.
        keep: Names of settings that the search must not change.

    Returns:
        The settings of training and of the head that were found.

    Raises:
        GPT2Error: The given settings cannot be trained.
        Interrupted: The search was stopped by Ctrl-C or SIGTERM.
    """
    search = _Search(make, replace(split, test=[]), training, head, seconds, folder, keep)
    with progress_bar(total=round(seconds), unit="s", desc="autotune") as search.bar:
        best = search.run()
    log.info(
        f"autotune: {len(search.tries)} tries in {search.used:.0f} seconds; best: "
        f"{best.in_words}, {best.epochs} epochs"
    )
    for name in TRAINED:
        trained = search.place(best.number) / name
        if trained.exists():  # an interrupted search may have moved it already
            trained.replace(folder / name)
    search.remove_places()
    return search.changed(best.settings, best.epochs)


@dataclass
class _Search:
    """A search in progress; `autotune` describes its fields."""

    make: Make
    split: Split
    training: TrainConfig
    head: HeadSettings
    seconds: float
    folder: Path
    keep: Collection[str]
    tries: list[Try] = field(default_factory=list)
    bar: Any = None

    def __post_init__(self) -> None:
        self.fixed = fixed_settings(self.training, self.head, self.keep)
        self.known = read_tries(self.folder)  # of an interrupted search
        kept = best_try(self.known, len(self.split.train), self._only_epochs)
        # the last one may have been interrupted
        self.remove_places(but={kept.number if kept else 0, len(self.known) + 1})

    @property
    def used(self) -> float:
        """The seconds that the tries took."""
        return sum(one.seconds for one in self.tries)

    @property
    def best(self) -> Try | None:
        """The best try so far."""
        return best_try(self.tries, len(self.split.train), self._only_epochs)

    @property
    def _only_epochs(self) -> int:
        """The given number of epochs; 0 if the search may choose it."""
        return self.training.epochs if "epochs" in self.fixed else 0

    def place(self, number: int) -> Path:
        """The folder of a try's training."""
        return self.folder / f"try-{number:03}"

    def remove_places(self, but: Set[int] = frozenset()) -> None:
        """Remove the folders of all tries, except those with these numbers."""
        kept = {self.place(number) for number in but}
        for place in {*self.folder.glob("try-*")} - kept:
            shutil.rmtree(place, ignore_errors=True)

    def changed(self, settings: Settings, epochs: int = 0) -> tuple[TrainConfig, HeadSettings]:
        """The run's settings with these changes."""
        of_head = {f.name for f in fields(HeadSettings)} & settings.keys()
        of_training = {n: value for n, value in settings.items() if n not in of_head}
        epochs = epochs or self.training.epochs
        return (
            replace(self.training, **of_training, epochs=epochs),
            replace(self.head, **{name: settings[name] for name in of_head}),
        )

    def run(self) -> Try:
        """Search, and return the best try on all training texts."""
        alive = candidates(self.training, self._most_blocks(), self.fixed)
        dropped: list[Settings] = [{}]
        for number, until in enumerate(ROUNDS, 1):
            found = [*self._compared(alive, number, until * self.seconds)]
            found = sorted((t for t in found if t.score is not None), key=lambda t: t.rank)[::-1]
            possible = [one.settings for one in found if self._epochs_possible(one.settings)]
            if possible:
                alive = possible[: math.ceil(len(found) / KEPT)]
            dropped = [one.settings for one in found if one.settings not in alive] + dropped
        for settings in alive:
            self._train_fully(settings)
        for settings in dropped:
            if not self.best:  # too slow for the time that is left
                self._train_fully(settings)
        if not self.best:
            self._try({}, len(self.split.train), self._enough({}), math.inf)
        while best := self.best:
            near = neighbours(best, self.training, self.fixed)
            tried = [(one.settings, one.epochs) for one in self.tries]
            if not any(self._train_fully(*one) for one in near if one not in tried):
                return best
        raise AssertionError("the try without a limit succeeds or raises an error")

    def _most_blocks(self) -> int:
        """The number of blocks that can be trained."""
        if self.head.layer >= 0:
            return self.head.layer
        return len(self.make(self.training, self.head).model.blocks)

    def _enough(self, settings: Settings) -> int:
        """The number of epochs of a complete training."""
        return self.changed(settings)[0].for_texts(len(self.split.train)).epochs

    def _compared(self, alive: list[Settings], number: int, until: float) -> Iterator[Try]:
        """Train each candidate as far as this round goes, if there is time for it."""
        n = len(self.split.train)
        for settings in alive:
            training, enough = self.changed(settings)[0], self._enough(settings)
            steps = enough * n / training.batch_size  # of a complete training
            first = min(1.0, FEWEST_STEPS / steps)
            share = first if number == 1 else math.sqrt(first)
            n_texts = min(n, max(FEWEST_TEXTS, round(share * n)))
            epochs = round(share * steps * training.batch_size / n_texts)
            epochs = min(enough, max(1, epochs, training.all_unfrozen_in))
            if not self.tries:
                yield self._try(settings, n_texts, epochs, math.inf)
            elif self.used + self._seconds_per_text(settings) * n_texts * epochs < until:
                yield self._try(settings, n_texts, epochs, until)

    def _seconds_per_text(self, settings: Settings) -> float:
        """The seconds per text and epoch in similar tries; 0 if there is none."""
        similar = (one for one in self.tries if _as_fast(one, settings))
        return min((t.seconds / t.n_texts / t.epochs for t in similar), default=0.0)

    def _epochs_possible(self, settings: Settings, wanted: int = 0) -> int:
        """The number of epochs on all texts for which there is time, at most `wanted`.

        0 if there is not even time for half of them. By default `wanted` is a complete training.
        """
        wanted = wanted or self._enough(settings)
        fewest = self._only_epochs or max(wanted / 2, self.training.all_unfrozen_in)
        seconds = self._seconds_per_text(settings) * len(self.split.train)  # of an epoch
        left = self.seconds - self.used
        possible = min(wanted, int(left / seconds)) if seconds else wanted
        return possible if left > 0 and possible >= fewest else 0

    def _train_fully(self, settings: Settings, wanted: int = 0) -> bool:
        """Train on all texts if there is time for it, and say whether this was a new try."""
        n_before, epochs = len(self.tries), self._epochs_possible(settings, wanted)
        if epochs:
            self._try(settings, len(self.split.train), epochs, self.seconds)
        return len(self.tries) > n_before

    def _try(self, settings: Settings, n_texts: int, epochs: int, until: float) -> Try:
        """Train on some of the texts, or find the result of the same training.

        `until` is the number of seconds of the search after which the training is given up. A try
        that was given up is repeated if there is no limit now.
        """
        what = settings, n_texts, epochs
        for one in self.tries:
            same = (one.settings, one.n_texts, one.epochs) == what
            if same and (one.score is not None or until < math.inf):
                return one
        number = len(self.tries) + 1
        if self.known:
            one = self.known.pop(0)
            if (one.settings, one.n_texts, one.epochs) == what:
                self.tries.append(one)
                return one
            self.known.clear()  # the rest belongs to other decisions
            self.remove_places(but={self.best.number} if self.best else set())
        one = Try(number, *what, 0.0, None, None)
        started = time.monotonic()
        try:
            best = self._trained(one, started + until - self.used)
            one = replace(one, score=best.val_score, loss=best.val_loss)
        except GPT2Error as error:  # out of time or memory, NaN, contradictory settings
            disk = isinstance(error, ResourceError) and not is_out_of_memory(
                error.__cause__ or error
            )
            if disk or not (settings or isinstance(error, OutOfTime)):
                raise
            log.debug(f"autotune {number}: {one.in_words}: {error}")
        one = replace(one, seconds=time.monotonic() - started)
        self.tries.append(one)
        lines = (json.dumps(asdict(each)) + "\n" for each in self.tries)
        write_text(self.folder / TRIES, "".join(lines))
        self.remove_places(but={self.best.number} if self.best else set())
        self.bar.update(one.seconds)
        score = "not finished" if one.score is None else f"{100 * one.score:.1f}%"
        log.info(
            f"autotune {number}: {n_texts:,} texts, {epochs} epochs, {one.in_words}: {score} "
            f"({one.seconds:.1f} s)"
        )
        return one

    def _trained(self, one: Try, deadline: float) -> Epoch:
        """Train in the try's folder, and return the best epoch."""
        training, head = self.changed(one.settings, one.epochs)
        every = self.split.train
        order = np.random.RandomState(training.seed).permutation(len(every))[: one.n_texts]
        split = replace(self.split, train=[every[n] for n in sorted(order)])
        place = self.place(one.number)
        with silenced():
            classifier = self.make(training, head)
            resume = any(place.glob("state-*"))
            return best_epoch(
                finetune(classifier, split, training, place, resume=resume, deadline=deadline)
            )


def candidates(
    training: TrainConfig, n_blocks: int, fixed: Set[str] = frozenset()
) -> list[Settings]:
    """The settings that the first round compares, the most promising first.

    Learning rates are multiples of the given one: a head alone tolerates a higher one, and many blocks
    need a lower one. Candidates that change a setting in `fixed` are left out.
    """
    low, high, highest = (float(f"{x * training.lr:.2g}") for x in (0.3, 3, 10))
    mean = {"pooling": "mean"}
    few, many, none = ({"n_last_blocks": n} for n in (3, n_blocks, 0))
    lora = none | {"lora": LORA_RANK, "lr": high}
    every: list[Settings] = [
        {},
        {"lr": high},
        few,
        mean | {"lr": high},
        mean | few,
        many | {"lr": low},
        mean | none | {"lr": highest},
        lora,
        mean | many | {"lr": low},
        none | {"lr": highest},
        mean,
        mean | lora,
        few | {"lr": high},
        mean | few | {"lr": low},
        many,
    ]
    found = list[Settings]()
    for settings in every:
        is_new = settings not in found and settings.get("n_last_blocks") != training.n_last_blocks
        if is_new and not fixed & settings.keys() and settings.get("n_last_blocks", 0) <= n_blocks:
            found.append(settings)
    return found


def neighbours(
    best: Try, training: TrainConfig, fixed: Set[str] = frozenset()
) -> Iterator[tuple[Settings, int]]:
    """Yield settings near those of the best try, and their epochs."""
    lr = best.settings.get("lr", training.lr)
    if "lr" not in fixed:
        yield best.settings | {"lr": 2 * lr}, best.epochs
        yield best.settings | {"lr": lr / 2}, best.epochs
    if "epochs" not in fixed:
        yield best.settings, 2 * best.epochs


def fixed_settings(training: TrainConfig, head: HeadSettings, keep: Collection[str]) -> set[str]:
    """The names of settings that a search does not change."""
    fixed = {*keep}
    for given in (training, head):
        fixed |= {f.name for f in fields(given) if getattr(given, f.name) != f.default}
    if head.task not in TEXT_TASKS:  # a head that reads every token has no pooling
        fixed.add("pooling")
    # without the causal mask only the last block can be trained; the others say what is trained
    if fixed & {"n_last_blocks", "lora", "trainable", "unfreeze_every", "causal_mask"}:
        fixed |= {"n_last_blocks", "lora"}
    return fixed


def _as_fast(one: Try, settings: Settings) -> bool:
    """Whether a training with these settings takes about as long per text as this try."""
    return {**one.settings, "lr": 0} == {**settings, "lr": 0}
