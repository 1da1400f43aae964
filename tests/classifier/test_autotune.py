"""A search for settings: what it tries, what it keeps, how it ends and how it continues."""

import json
import math
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from interrupted import interrupted_after

from gpt2_from_scratch.classifier import autotune as module
from gpt2_from_scratch.classifier.autotune import (
    TRIES,
    Try,
    autotune,
    best_try,
    candidates,
    fixed_settings,
    neighbours,
    read_tries,
)
from gpt2_from_scratch.classifier.classifier import Classifier
from gpt2_from_scratch.classifier.settings import HeadSettings, TrainConfig
from gpt2_from_scratch.classifier.train import Epoch, OutOfTime, finetune, freeze
from gpt2_from_scratch.data.messages import Message
from gpt2_from_scratch.data.split import Split
from gpt2_from_scratch.errors import CheckpointError, GPT2Error, Interrupted, UsageError
from gpt2_from_scratch.storage.files import sha256_of

LABELS = ["ham", "spam"]
TRAINING = TrainConfig(epochs=2, batch_size=8, seed=3)
FILES = ("best.safetensors", "last.safetensors", "metrics.jsonl")
Make = Callable[[TrainConfig, HeadSettings], Classifier]


@pytest.fixture
def split() -> Split:
    """Texts of two kinds. A classifier that reads the test messages fails, as their label is new."""
    messages = [
        Message(f"{word} the thing {n}", label)
        for n in range(12)
        for word, label in (("win", "spam"), ("see", "ham"))
    ]
    return Split(messages[:16], messages[16:], [Message("never read this", "unknown")])


@pytest.fixture
def make(tiny_checkpoint: Path) -> Make:
    def made(training: TrainConfig, head: HeadSettings) -> Classifier:
        classifier = Classifier.on_base(
            tiny_checkpoint,
            heads=[head.head_config(LABELS, [], 32)],
            lora=head.lora_config(),
            seed=training.seed,
        )
        freeze(classifier, training)
        return classifier

    return made


def trained(make: Make, split: Split, training: TrainConfig, head: HeadSettings, out: Path) -> Path:
    out.mkdir()
    finetune(make(training, head), split, training, out)
    return out


@pytest.mark.slow
def test_a_search_ends_with_a_training_of_the_settings_it_found(make, split, tmp_path):
    training, head = autotune(make, split, TRAINING, HeadSettings(), 1000, tmp_path)
    tries = read_tries(tmp_path)
    best = max(tries, key=lambda one: (one.score, -one.loss))
    assert {name: getattr(training, name, getattr(head, name, None)) for name in best.settings} == (
        best.settings
    )
    assert {"lr", "pooling", "n_last_blocks", "lora"} <= {n for t in tries for n in t.settings}
    plain = trained(make, split, training, head, tmp_path / "plain")
    for name in FILES:
        assert sha256_of(tmp_path / name) == sha256_of(plain / name), name
    assert [path.name for path in tmp_path.glob("try-*")] == []  # other trainings are removed


@pytest.mark.slow
def test_an_interrupted_search_continues_after_its_last_try(make, split, tmp_path, monkeypatch):
    """Two steps per epoch: the third step of a training is in its second and last epoch."""
    made = []

    def counted(training: TrainConfig, head: HeadSettings) -> Classifier:
        made.append(head.pooling)
        if len(made) == 5:
            interrupted.__enter__()
        return make(training, head)

    interrupted = interrupted_after(3, monkeypatch)
    with pytest.raises(Interrupted):
        autotune(counted, split, TRAINING, HeadSettings(), 1000, tmp_path)
    interrupted.__exit__(None, None, None)
    before = read_tries(tmp_path)
    assert 1 <= len(before) < len(made)
    n_before = len(made)
    again = autotune(counted, split, TRAINING, HeadSettings(), 1000, tmp_path)
    tries = read_tries(tmp_path)
    assert tries[: len(before)] == before
    # one classifier shows the number of blocks; the others are trained
    assert len(made) - n_before == 1 + len(tries) - len(before)
    (tmp_path / "other").mkdir()
    whole = autotune(make, split, TRAINING, HeadSettings(), 1000, tmp_path / "other")
    assert again == whole
    assert sha256_of(tmp_path / FILES[0]) == sha256_of(tmp_path / "other" / FILES[0])


def test_one_training_is_complete_even_without_time(make, split, tmp_path):
    training, head = autotune(make, split, TRAINING, HeadSettings(), 1e-9, tmp_path)
    assert (training, head) == (TRAINING, HeadSettings())
    assert [(one.settings, one.n_texts, one.epochs) for one in read_tries(tmp_path)] == [
        ({}, 16, 2)
    ]
    assert all((tmp_path / name).exists() for name in FILES)


def test_settings_that_were_given_stay(make, split, tmp_path):
    training = replace(TRAINING, lr=0.01, n_last_blocks=2)
    found, head = autotune(make, split, training, HeadSettings(), 1000, tmp_path, keep=["pooling"])
    assert (found, head) == (training, HeadSettings())
    assert [one.settings for one in read_tries(tmp_path)] == [{}]


def test_settings_that_cannot_be_trained_are_an_error(make, split, tmp_path):
    with pytest.raises(UsageError, match="9"):
        autotune(make, split, replace(TRAINING, n_last_blocks=9), HeadSettings(), 1, tmp_path)


def test_a_damaged_list_of_tries_is_named(tmp_path):
    for line in ("{", '{"number": 1}', '["number"]', '{"number": "1"}', "\N{SNOWMAN}"):
        (tmp_path / TRIES).write_text(line, "utf-8")
        with pytest.raises(CheckpointError, match=TRIES):
            read_tries(tmp_path)
    (tmp_path / TRIES).write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match=TRIES):
        read_tries(tmp_path)


def test_a_training_is_given_up_at_its_deadline(make, split, tmp_path):
    with pytest.raises(OutOfTime):
        finetune(make(TRAINING, HeadSettings()), split, TRAINING, tmp_path, deadline=0.0)


def test_the_best_try_used_all_texts_and_has_the_lowest_loss_of_the_highest_score():
    def one(number: int, n_texts: int, score: float | None, loss: float | None) -> Try:
        return Try(number, {}, n_texts, 1, 1.0, score, loss)

    tries = [one(1, 9, 0.9, 0.1), one(2, 10, 0.8, 0.3), one(3, 10, 0.8, 0.2), one(4, 10, 0.7, 0.1)]
    best = best_try([*tries, one(5, 10, None, None)], 10)
    assert best is not None and best.number == 3
    assert best_try(tries[:1], 10) is None


@pytest.mark.parametrize(
    ("training", "head", "changed"),
    [
        ({}, {}, {"lr", "pooling", "n_last_blocks", "lora"}),
        ({"lr": 1e-3}, {}, {"pooling", "n_last_blocks"}),
        ({"n_last_blocks": 2}, {}, {"lr", "pooling"}),
        ({"trainable": "head.*"}, {}, {"lr", "pooling"}),
        ({}, {"lora": 4}, {"lr", "pooling"}),
        ({}, {"causal_mask": False}, {"lr", "pooling"}),
        ({}, {"pooling": "last_token"}, {"lr", "n_last_blocks", "lora"}),
        ({}, {"task": "token-classification"}, {"lr", "n_last_blocks", "lora"}),
    ],
)
def test_what_a_search_changes(training, head, changed):
    config, settings = TrainConfig(**training), HeadSettings(**head)
    found = candidates(config, 12, fixed_settings(config, settings, ()))
    assert found[0] == {}  # the given settings come first
    assert {name for one in found for name in one} == changed
    assert all(one.get("n_last_blocks", 0) in (0, 3, 12) for one in found)
    assert len({json.dumps(one, sort_keys=True) for one in found}) == len(found)
    for one in found:  # each of them is valid
        of_head = {n: one[n] for n in ("pooling", "lora") if n in one}
        replace(settings, **of_head)
        replace(config, **{n: value for n, value in one.items() if n not in of_head})


def test_neighbours_keep_what_is_fixed():
    best = Try(1, {"lr": 0.001}, 10, 20, 1.0, 0.9, 0.1)
    assert [*neighbours(best, TrainConfig())] == [
        ({"lr": 0.002}, 20),
        ({"lr": 0.0005}, 20),
        ({"lr": 0.001}, 40),
    ]
    assert [*neighbours(best, TrainConfig(), {"lr", "epochs"})] == []
    assert math.isclose(best.rank[1], -0.1)


# --- decisions of a search, with a simulated clock ---


class Killed(BaseException):
    """The process was killed."""


class Simulated:
    """Trainings that take simulated seconds and have random scores.

    The seconds depend on the texts, the epochs and the settings, except the learning rate. Some
    trainings fail. `make` is not called, because the head reads a given layer.
    """

    def __init__(self, seed: int, n: int, patch: pytest.MonkeyPatch):
        self.seed, self.now, self.n_trained = seed, 0.0, 0
        self.killed_after = 10**6  # so many tries
        self.n_asked, self.slower = 0, 1.0  # the factor of the seconds of all tries but the first
        self.split = Split([Message(f"text {k}", LABELS[k % 2]) for k in range(n)], [], [])
        patch.setattr(module.time, "monotonic", lambda: self.now)

        def trained(search: Any, one: Try, deadline: float) -> Epoch:
            return self.trained(search, one, deadline)

        def asked(*args: Any) -> Any:
            self.n_asked += 1
            assert self.n_asked < 200, "it does not end"
            return neighbours(*args)

        patch.setattr(module._Search, "_trained", trained)
        patch.setattr(module, "neighbours", asked)

    def trained(self, search: Any, one: Try, deadline: float) -> Epoch:
        if self.n_trained == self.killed_after:
            raise Killed
        self.n_trained += 1
        search.changed(one.settings, one.epochs)  # raises UsageError for contradictions
        what = json.dumps({**one.settings, "lr": 0}, sort_keys=True)
        speed = np.random.RandomState([self.seed, zlib.crc32(what.encode())]).lognormal(-7, 2)
        draw = np.random.RandomState([self.seed, self.n_trained])
        seconds = one.n_texts * one.epochs * speed * draw.uniform(0.7, 1.3)
        seconds *= self.slower if one.number > 1 else 1
        self.now = min(self.now + seconds, max(self.now, deadline))
        if self.now >= deadline:
            raise OutOfTime("not finished")
        if draw.rand() < 0.05 and one.settings:
            raise GPT2Error("the loss became NaN")
        place = search.place(one.number)
        place.mkdir(parents=True)
        for name in FILES:
            (place / name).write_text(f"{one.settings} {one.n_texts} {one.epochs}")
        return Epoch(1, 0.5, 0.5, draw.rand(), draw.randint(10) / 10, {})

    def search(
        self, training: TrainConfig, seconds: float, folder: Path, **head: Any
    ) -> tuple[TrainConfig, HeadSettings]:
        def never(training: TrainConfig, head: HeadSettings) -> Classifier:
            raise AssertionError

        return autotune(never, self.split, training, HeadSettings(layer=6, **head), seconds, folder)


@pytest.mark.parametrize(
    "given", [{}, {"epochs": 20}, {"unfreeze_every": 2}, {"lr": 1e-3}], ids=str
)
@pytest.mark.parametrize("n", [30, 800, 20_000])
def test_a_search_ends_in_time_with_the_files_of_its_settings(given, n, tmp_path, monkeypatch):
    training = TrainConfig(**given)
    for seed in range(6):
        folder, budget = tmp_path / f"{seed}", (3.0, 30.0, 300.0)[seed % 3]
        folder.mkdir()
        simulated = Simulated(seed, n, monkeypatch)
        found, _ = simulated.search(training, budget, folder)
        tries = read_tries(folder)
        best = best_try(tries, n, found.epochs)
        assert best is not None and best.epochs == found.epochs
        assert (folder / FILES[0]).read_text() == f"{best.settings} {n} {best.epochs}"
        assert sorted(path.name for path in folder.iterdir()) == sorted([*FILES, TRIES])
        for name, value in given.items():
            assert getattr(found, name) == value
        if "epochs" in given and n > 500:  # the rounds before use fewer texts
            assert {one.epochs for one in tries if one.n_texts == n} == {20}
        # only the first try, and one that makes up for all others, may take longer
        in_time = [one for one in tries[1:] if one.settings or one.n_texts < n]
        assert sum(one.seconds for one in in_time) <= budget + 1e-6


def test_a_training_that_was_given_up_is_repeated_if_there_is_no_other(tmp_path, monkeypatch):
    """There seemed to be enough time, but all trainings except the first take ten times as long."""
    simulated = Simulated(1, 800, monkeypatch)
    simulated.slower = 10.0
    training = TrainConfig(lr=1e-3, n_last_blocks=2)
    found, _ = simulated.search(training, 70.0, tmp_path, pooling="mean")
    tries = read_tries(tmp_path)
    assert [one.score is None for one in tries if one.n_texts == 800][0]
    assert tries[-1].score is not None and tries[-1].epochs == found.epochs
    assert (tmp_path / FILES[0]).exists()


@pytest.mark.slow
@pytest.mark.parametrize("n", [30, 800, 20_000])
def test_a_search_that_was_killed_anywhere_ends_the_same(n, tmp_path, monkeypatch):
    whole = Simulated(7, n, monkeypatch)
    (tmp_path / "whole").mkdir()
    expected = whole.search(TrainConfig(), 100.0, tmp_path / "whole")
    tries = [replace(one, seconds=0.0) for one in read_tries(tmp_path / "whole")]
    for killed in range(1, len(tries), 4):
        folder = tmp_path / f"{killed}"
        folder.mkdir()
        part = Simulated(7, n, monkeypatch)
        part.killed_after = killed
        with pytest.raises(Killed):
            part.search(TrainConfig(), 100.0, folder)
        assert len(read_tries(folder)) == killed
        rest = Simulated(7, n, monkeypatch)
        rest.n_trained = killed  # the same draws as in the whole search
        assert rest.search(TrainConfig(), 100.0, folder) == expected
        assert [replace(one, seconds=0.0) for one in read_tries(folder)] == tries
        assert (folder / FILES[0]).read_text() == (tmp_path / "whole" / FILES[0]).read_text()
