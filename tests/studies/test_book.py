"""The rows of the book's table: they are complete, have one change each, and can be selected."""

import importlib
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest, kendalltau

from gpt2_from_scratch.classifier.settings import HeadSettings, TrainConfig
from gpt2_from_scratch.errors import UsageError
from gpt2_from_scratch.evaluation.metrics import LabelledPredictions
from gpt2_from_scratch.gpt2.config import GPT2Config
from gpt2_from_scratch.studies.book import NOT_RUN, book_rows, chosen
from gpt2_from_scratch.studies.rows import Result, Row, Setup, refuse_unfit
from gpt2_from_scratch.studies.scoreboard import ABOUT_THE_BOOK

EVERY = book_rows(GPT2Config(4096, 384, 256, 4, 6), TrainConfig(epochs=5))


def test_every_row_of_the_book_is_repeated_or_excluded():
    rows = [row.book.row for row in EVERY if row.book]
    assert sorted([*rows, *NOT_RUN]) == list(range(1, 20))


def test_every_row_is_another_change_from_the_default():
    base = TrainConfig(epochs=5), HeadSettings()
    changed = {
        repr((row.changed(*base), row.random_weights, row.all_messages, row.extra)): row.name
        for row in EVERY
    }
    assert len(changed) == len({row.name for row in EVERY}) == len(EVERY) >= 30
    assert EVERY[0].changed(*base) == base and EVERY[0].name == "default"
    refuse_unfit(Setup(training=TrainConfig(epochs=5, lr=1e-4, batch_size=8)), EVERY)


def test_rows_a_small_model_cannot_have_are_left_out():
    names = [row.name for row in book_rows(GPT2Config(300, 32, 32, 2, 2), TrainConfig())]
    assert "last two blocks" in names and "last four blocks" not in names
    assert not [name for name in names if name.startswith("three blocks")]


def test_a_row_that_needs_more_epochs_is_left_out():
    """Three blocks are trained from the fourth epoch on; without a number there are at least ten."""
    sizes = GPT2Config(4096, 384, 256, 4, 6)
    for epochs, is_there in ((0, True), (3, False), (4, True)):
        names = [row.name for row in book_rows(sizes, TrainConfig(epochs=epochs))]
        assert ("three blocks, one more every epoch" in names) == is_there


def test_rows_are_chosen_by_name_or_kind():
    found = [row.name for row in chosen(EVERY, ["LoRA", "first token"])]
    assert found[:2] == ["default", "first token"] and len(found) == 6
    assert chosen(EVERY, []) == EVERY
    with pytest.raises(UsageError, match="'lora'.*token position.*first token"):
        chosen(EVERY, ["lora"])


def test_the_books_interval_is_wilsons():
    found = binomtest(285, 300).proportion_ci(method="wilson")
    assert f"95.00% is {100 * found.low:.1f} to {100 * found.high:.1f}" in ABOUT_THE_BOOK


def results_of(row: Row, correct: list[str]) -> list[Result]:
    """Results of a row, one per split, from strings with a 1 per correct answer."""
    p = [np.array([[1 - int(c), int(c)] for c in one], dtype=float) for one in correct]
    true = np.ones(10, dtype=int)
    return [
        Result(row, f"seed {n}", LabelledPredictions(("ham", "spam"), ["x"] * 10, true, one), 70)
        for n, one in enumerate(p)
    ]


def test_the_order_of_rows_is_compared_with_the_books(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    agreement = importlib.import_module("experiments").agreement
    last, first, two, everything = (
        next(row for row in EVERY if row.name == name)
        for name in ("last token", "first token", "last two blocks", "everything")
    )
    results = results_of(last, ["1111111110", "1111111100", "1111111110"])
    results += results_of(first, ["1110000000", "1100000000", "1000000000"])
    assert agreement(results) is None  # two rows are too few to compare orders
    results += results_of(two, ["1111111110", "1111111111", "1111111110"])
    found = agreement(results)
    expected = kendalltau([26 / 30, 6 / 30, 28 / 30], [98.33, 75.00, 98.33])
    assert (found.rows, found.contrary) == (3, [])
    assert found.tau == pytest.approx(expected.statistic)
    assert found.p == pytest.approx(expected.pvalue)
    contrary = results_of(last, ["1" * 10] * 5) + results_of(first, ["1" * 10] * 5)
    contrary += results_of(everything, ["0" * 9 + "1"] * 5)
    assert agreement(contrary).contrary == [("everything", "first token")]
