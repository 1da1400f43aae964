"""Next-token prediction, compared with torch and SciPy; hidden states."""

import math
from pathlib import Path

import pytest
import scipy.stats
import torch
from task_targets import TEXT, targets_of

from gpt2_from_scratch.classifier.settings import HeadConfig
from gpt2_from_scratch.classifier.tasks import TASKS
from gpt2_from_scratch.classifier.tasks.language import (
    LanguageScores,
    Likelihood,
    State,
    language_scores,
)
from gpt2_from_scratch.classifier.tasks.task import IGNORED
from gpt2_from_scratch.errors import DataError
from gpt2_from_scratch.gpt2.tokenizer import Tokenizer

TASK = TASKS["language"]
HEAD = HeadConfig(task="language")


def test_the_target_of_a_token_is_the_next(tiny_checkpoint: Path) -> None:
    pairs = (TEXT, None), ("the", "ham"), ("", {})
    found, encoded = targets_of(Tokenizer(tiny_checkpoint), HEAD, *pairs)
    for ids, row in zip(encoded, found.batch([0, 1, 2]).tolist(), strict=True):
        assert row == [*ids[1:], *[IGNORED] * (len(encoded[0]) - len(ids) + 1)]
    assert found.weights.tolist() == found.counts.tolist() == [len(ids) - 1 for ids in encoded]


def test_language_scores_are_torchs():
    torch.manual_seed(0)
    logits, targets = torch.randn(50, 7), torch.randint(7, (50,))
    nats = torch.nn.functional.cross_entropy(logits, targets, reduction="sum").item()
    right = int((logits.argmax(dim=1) == targets).sum())
    found = language_scores(nats, right, 50, 200)
    chances = logits.double().softmax(dim=1)[torch.arange(50), targets]
    assert found.nats_per_token == pytest.approx(-chances.log().mean().item(), rel=1e-5)
    assert found.perplexity == pytest.approx(scipy.stats.gmean(1 / chances.numpy()), rel=1e-5)
    assert found.bits_per_byte == pytest.approx(-chances.log2().sum().item() / 200, rel=1e-5)
    assert (found.main, found.measure) == (right / 50, "next-token accuracy")


def test_guessing_among_256_bytes():
    found = language_scores(10 * math.log(256), 0, 10, 10)
    assert found.perplexity == pytest.approx(256) and found.bits_per_byte == pytest.approx(8)


def test_overflow_gives_none():
    assert language_scores(709.7, 0, 1, 1).perplexity == pytest.approx(math.exp(709.7))
    assert language_scores(709.8, 0, 1, 1).perplexity is None
    assert language_scores(1.0, 0, 1, 0).bits_per_byte is None


def test_scores_add_up_all_texts_labelled_or_not() -> None:
    answers = [Likelihood(2.0, 1, 4, 10), Likelihood(1.0, 0, 2, 2)]
    found = TASK.scores(HEAD, [None, "ham"], answers, ["x", "y"])
    assert found == LanguageScores(1, 6, 0.5, math.exp(0.5), 3 / math.log(2) / 12)


def test_scores_need_tokens() -> None:
    with pytest.raises(DataError, match="no tokens"):
        language_scores(0.0, 0, 0, 0)


def test_scores_as_a_table() -> None:
    assert language_scores(200.0, 31, 100, 450).as_table().splitlines() == [
        "next-token accuracy 31.00%  (31 of 100)",
        "2.0000 nats per token, perplexity 7.3891, 0.6412 bits per byte",
    ]
    assert "2.203e+04, 14.4270 bits" in language_scores(10.0, 0, 1, 1).as_table()
    assert "perplexity -, - bits" in language_scores(9e4, 0, 1, 0).as_table()
    assert Likelihood(3.0, 1, 2, 9).in_words() == "1.500 nats per token"
    assert Likelihood(0.0, 0, 0, 0).in_words() == "0.000 nats per token"


def test_states_have_neither_loss_nor_scores() -> None:
    task, head = TASKS["features"], HeadConfig(task="features")
    assert not task.has_loss and task.scores(head, ["x"], [State([1.0])], ["x"]) is None
    assert State([0.5] * 9).in_words() == "9 numbers: 0.500, 0.500, 0.500, 0.500, ..."
