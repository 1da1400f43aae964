"""What a head ought to answer, held against plain loops over the bytes of each text.

B texts, T tokens, K outputs.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gpt2_from_scratch.classifier.classifier import Classifier
from gpt2_from_scratch.classifier.settings import HeadConfig, TrainConfig
from gpt2_from_scratch.classifier.tasks.targets import IGNORED, Targets, make_targets
from gpt2_from_scratch.classifier.train import finetune
from gpt2_from_scratch.data.messages import Message, Span
from gpt2_from_scratch.data.split import Split
from gpt2_from_scratch.errors import DataError, UsageError
from gpt2_from_scratch.gpt2.tokenizer import Tokenizer
from gpt2_from_scratch.speed.batching import encode_texts

LABELS = ("ham", "other", "spam")
CLASS = HeadConfig(labels=LABELS)
MULTI = HeadConfig(task="multi-label", labels=LABELS)
TAGS = HeadConfig(task="token-classification", labels=LABELS)
VALUE = HeadConfig(task="regression", labels=("a", "b"), center=(10.0, -1), scale=(4.0, 0.5))
SPAN = HeadConfig(task="span")
LANGUAGE = HeadConfig(task="language")
FEATURES = HeadConfig(task="features")
TEXT = "the cat héllo 🎉 xyz"


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint: Path) -> Tokenizer:
    return Tokenizer(tiny_checkpoint)


def targets_of(
    tokenizer: Tokenizer, head: HeadConfig, *pairs: tuple[str, Any], max_tokens: int = 32
) -> tuple[Targets, list[list[int]]]:
    encoded, _ = encode_texts([text for text, _ in pairs], tokenizer, max_tokens)
    messages = [Message(text, label) for text, label in pairs]
    return make_targets(head, messages, encoded, tokenizer), encoded


def owners(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    """The token of each byte."""
    return [t for t, token in enumerate(ids) for _ in tokenizer.token_bytes(token)]


def words_of(text: str, label: str = "ham") -> list[Span]:
    spans, start = [], 0
    for word in text.split(" "):
        spans.append(Span(start, start + len(word), label))
        start += len(word) + 1
    return spans


# --- classes, labels, values ---


def test_classes_are_numbers_weighed_by_their_class(tokenizer: Tokenizer) -> None:
    head = HeadConfig(labels=LABELS, class_weights=(0.5, 1, 3))
    found, _ = targets_of(tokenizer, head, ("x", "spam"), ("y", None), ("z", "ham"), ("", "spam"))
    assert isinstance(found.values, torch.Tensor)
    assert found.values.tolist() == [2, IGNORED, 0, 2] and found.values.dtype == torch.int64
    assert found.weights.tolist() == [3, 0, 0.5, 3]
    assert found.counts.tolist() == [1, 0, 1, 1]
    assert found.batch([3, 1]).tolist() == [2, IGNORED]


def test_labels_are_zeros_and_ones(tokenizer: Tokenizer) -> None:
    pairs = [("x", ("spam", "ham")), ("y", ()), ("z", None), ("w", ["other", "other"])]
    found, _ = targets_of(tokenizer, MULTI, *pairs)
    expected = [[1, 0, 1], [0, 0, 0], [np.nan] * 3, [0, 1, 0]]
    np.testing.assert_equal(found.values.numpy(), np.array(expected, dtype=np.float32))
    assert found.weights.tolist() == found.counts.tolist() == [1, 1, 0, 1]


def test_values_are_in_the_heads_units(tokenizer: Tokenizer) -> None:
    found, _ = targets_of(
        tokenizer, VALUE, ("x", (10.0, 0)), ("y", None), ("z", (np.float32(2), -1.5))
    )
    expected = [[0, 2], [np.nan, np.nan], [-2, -1]]
    np.testing.assert_equal(found.values.numpy(), np.array(expected, dtype=np.float32))
    assert found.weights.tolist() == [1, 0, 1]


def test_one_value_needs_no_tuple(tokenizer: Tokenizer) -> None:
    head = HeadConfig(task="regression", labels=("stars",))
    found, _ = targets_of(tokenizer, head, ("x", 4), ("y", (2.5,)), ("z", -1e30))
    np.testing.assert_allclose(found.values.numpy(), [[4], [2.5], [-1e30]], rtol=1e-6)


def test_each_head_takes_its_own_of_several_labels(tokenizer: Tokenizer) -> None:
    both = {"label": "spam", "stars": 4.0}
    found, _ = targets_of(tokenizer, CLASS, ("x", both), ("y", {"stars": 1.0}), ("z", {}))
    assert torch.equal(found.batch([0, 1, 2]), torch.tensor([2, IGNORED, IGNORED]))
    stars = HeadConfig(name="stars", task="regression", labels=("stars",))
    found, _ = targets_of(tokenizer, stars, ("x", both), ("y", {"label": "ham"}))
    np.testing.assert_equal(found.values.numpy(), np.array([[4], [np.nan]], dtype=np.float32))


# --- tokens ---


@pytest.mark.parametrize("max_tokens", range(1, 22))
def test_a_words_first_token_has_its_tag_and_no_other(
    tokenizer: Tokenizer, max_tokens: int
) -> None:
    """Wherever the text is cut, within a word and within a character."""
    words = [span._replace(label=LABELS[n % 3]) for n, span in enumerate(words_of(TEXT))]
    found, [ids] = targets_of(tokenizer, TAGS, (TEXT, words), max_tokens=max_tokens)
    assert len(ids) == min(max_tokens, len(tokenizer.encode(TEXT)))
    owner = owners(tokenizer, ids)
    expected = [IGNORED] * len(ids)
    for word in words:
        if (place := len(TEXT[: word.start].encode())) < len(owner):
            expected[owner[place]] = LABELS.index(word.label)
    assert found.batch([0]).tolist() == [expected]
    assert (
        found.counts.tolist() == found.weights.tolist() == [len(expected) - expected.count(IGNORED)]
    )


def test_tags_are_padded_and_weighed_one_by_one(tokenizer: Tokenizer) -> None:
    head = HeadConfig(task="token-classification", labels=LABELS, class_weights=(1, 2, 5))
    long, short = words_of(TEXT, "spam"), words_of("cat", "other")
    pairs = [(TEXT, long), ("cat", short), ("cat", None), ("cat", ()), ("", ())]
    found, encoded = targets_of(tokenizer, head, *pairs)
    assert found.weights.tolist() == [5 * 5, 2, 0, 0, 0]
    assert found.counts.tolist() == [5, 1, 0, 0, 0]
    batch = found.batch([1, 0, 3])
    assert batch.shape == (3, len(encoded[0]))
    assert batch[0].tolist() == [1] + [IGNORED] * (batch.shape[1] - 1)
    assert (batch[2] == IGNORED).all()


def test_the_target_of_a_token_is_the_next(tokenizer: Tokenizer) -> None:
    found, encoded = targets_of(tokenizer, LANGUAGE, (TEXT, None), ("the", "ham"), ("", {}))
    for ids, row in zip(encoded, found.batch([0, 1, 2]).tolist(), strict=True):
        assert row == [*ids[1:], *[IGNORED] * (len(encoded[0]) - len(ids) + 1)]
    assert found.weights.tolist() == found.counts.tolist() == [len(ids) - 1 for ids in encoded]


@pytest.mark.parametrize("max_tokens", [5, 12, 32])
def test_the_ends_of_a_span_are_the_tokens_of_its_bytes(
    tokenizer: Tokenizer, max_tokens: int
) -> None:
    """All spans of the text there are; one that is cut anywhere has no target."""
    spans = [Span(a, b) for a in range(len(TEXT)) for b in range(a + 1, len(TEXT) + 1)]
    found, encoded = targets_of(
        tokenizer, SPAN, *((TEXT, span) for span in spans), max_tokens=max_tokens
    )
    owner = owners(tokenizer, encoded[0])
    expected = []
    for span in spans:
        first, behind = len(TEXT[: span.start].encode()), len(TEXT[: span.end].encode())
        whole = behind <= len(owner)
        expected.append([owner[first], owner[behind - 1]] if whole else [IGNORED] * 2)
    assert found.batch(range(len(spans))).tolist() == expected
    assert found.weights.tolist() == [float(ends[0] != IGNORED) for ends in expected]
    assert found.weights.sum() == len(spans) or max_tokens < 32


def test_a_text_without_an_answer_has_no_ends(tokenizer: Tokenizer) -> None:
    found, _ = targets_of(
        tokenizer, SPAN, ("the cat", Span(0, 3)), ("the", None), ("x", Span(1, 1))
    )
    assert found.batch([0, 1, 2])[1:].tolist() == [[IGNORED] * 2] * 2
    assert found.weights.tolist() == [1, 0, 0]


# --- no texts, and wrong labels ---


@pytest.mark.parametrize("head", [CLASS, MULTI, TAGS, VALUE, SPAN, LANGUAGE, FEATURES])
def test_of_no_texts_there_are_no_targets(tokenizer: Tokenizer, head: HeadConfig) -> None:
    found, _ = targets_of(tokenizer, head)
    assert len(found.values) == len(found.weights) == len(found.counts) == 0


@pytest.mark.parametrize(
    "head, label, message",
    [
        (CLASS, "Ham", "'Ham' is none of the head's"),
        (CLASS, ("ham",), "none of the head's"),
        (CLASS, 0, "label 0 is none of the head's"),
        (MULTI, ("ham", "eggs"), "'eggs' is none of the head's"),
        (MULTI, ("ham", None), "None is none of the head's"),
        (MULTI, "ham", "'ham' must be a tuple"),
        (MULTI, 3, "3 must be a tuple"),
        (TAGS, [Span(0, 3, "eggs")], "'eggs' is none of the head's"),
        (TAGS, [Span(0, 3)], "'' is none of the head's"),
        (TAGS, [Span(-1, 3, "ham")], "is no Span of 'the cat', which has 7 characters"),
        (TAGS, [Span(2, 1, "ham")], "is no Span"),
        (TAGS, [Span(4, 8, "ham")], "is no Span"),
        (TAGS, ["ham"], "'ham' is no Span"),
        (TAGS, "ham", "'h' is no Span"),
        (SPAN, Span(4, 8), "is no Span"),
        (SPAN, Span(9, 12), "is no Span"),
        (SPAN, Span(-3, 3), "is no Span"),
        (SPAN, (0, 3), "is no Span"),
        (VALUE, 1.0, r"1 values \(1.0,\), where the head has \['a', 'b'\]"),
        (VALUE, (1.0, 2.0, 3.0), "3 values"),
        (VALUE, (1.0, "2"), "'2' is no number"),
        (VALUE, (1.0, None), "None is no number"),
        (VALUE, (1.0, float("nan")), "nan is no number"),
        (VALUE, (float("-inf"), 1.0), "-inf is no number"),
        (VALUE, (10**400, 1.0), "is no number that can be learned"),
        (VALUE, (1e300, 1.0), "1e.300 is no number that can be learned"),
    ],
)
def test_other_labels_are_refused(
    tokenizer: Tokenizer, head: HeadConfig, label: Any, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        targets_of(tokenizer, head, ("the cat", label))


def test_an_unknown_tag_is_told_behind_a_cut_too(tokenizer: Tokenizer) -> None:
    words = [*words_of("the cat"), Span(8, 9, "eggs")]
    with pytest.raises(DataError, match="'eggs' is none"):
        targets_of(tokenizer, TAGS, ("the cat x", words), max_tokens=1)


# --- nothing to learn ---


def finetuned(base: Path, head: HeadConfig, split: Split, out: Path, **settings: Any) -> None:
    classifier = Classifier.on_base(base, heads=[head])
    finetune(classifier, split, TrainConfig(epochs=1, **settings), out)


@pytest.mark.parametrize("part", ["training", "validation"])
def test_a_head_without_any_target_is_told_before_training(
    tiny_checkpoint: Path, tmp_path: Path, part: str
) -> None:
    good = [Message("the cat", {"label": label}) for label in LABELS]
    bad = [Message("the cat", {"lable": label}) for label in LABELS]
    split = Split(bad, good, []) if part == "training" else Split(good, bad, [])
    with pytest.raises(DataError, match=f"no message of the {part} part has a target .* 'label'"):
        finetuned(tiny_checkpoint, CLASS, split, tmp_path)
    assert not list(tmp_path.iterdir())


def test_nothing_that_trains_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    split = Split(*[[Message("the cat", "ham")]] * 3)
    with pytest.raises(UsageError, match="nothing to train: heads for features"):
        finetuned(tiny_checkpoint, FEATURES, split, tmp_path)
    frozen = HeadConfig(labels=LABELS, trainable=False)
    with pytest.raises(UsageError, match="nothing to train: every parameter is frozen"):
        finetuned(tiny_checkpoint, frozen, split, tmp_path, n_last_blocks=0, final_norm=False)


def test_an_answer_in_the_question_is_refused(tokenizer: Tokenizer) -> None:
    """What is extracted begins behind the first line, so such an answer could never be given."""
    head, text = HeadConfig(task="span"), "Who came?\nTom came."
    good, bad = (
        Message(text, Span(text.index(word), text.index(word) + 3)) for word in ("Tom", "Who")
    )
    encoded = [tokenizer.encode(text)]
    assert make_targets(head, [good], encoded, tokenizer).counts.tolist() == [1.0]
    with pytest.raises(DataError, match="taken for the question"):
        make_targets(head, [bad], encoded, tokenizer)
