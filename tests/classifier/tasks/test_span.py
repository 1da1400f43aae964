"""Extracted answers: targets against bytes, answers against all pairs, scores by SQuAD's rules."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from task_targets import TEXT, owners, targets_of
from three_blocks import ANSWER, assert_same, plain_extract

from gpt2_from_scratch.classifier.classifier import Classifier
from gpt2_from_scratch.classifier.settings import TrainConfig
from gpt2_from_scratch.classifier.tasks import TASKS
from gpt2_from_scratch.classifier.tasks.span import (
    LONGEST_ANSWER,
    Extract,
    answer_words,
    span_scores,
    within,
)
from gpt2_from_scratch.classifier.tasks.task import IGNORED, Batch
from gpt2_from_scratch.classifier.train import finetune, loss_and_scores, to_labelled
from gpt2_from_scratch.data.messages import GoldAnswers, Message, Span
from gpt2_from_scratch.data.split import Split
from gpt2_from_scratch.errors import DataError
from gpt2_from_scratch.evaluation.metrics import wilson_interval
from gpt2_from_scratch.gpt2.tokenizer import Tokenizer

TASK = TASKS["span"]


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint: Path) -> Tokenizer:
    return Tokenizer(tiny_checkpoint)


# --- targets and loss ---


@pytest.mark.parametrize("max_tokens", [5, 12, 32])
def test_the_ends_of_a_span_are_the_tokens_of_its_bytes(
    tokenizer: Tokenizer, max_tokens: int
) -> None:
    """All spans of the text are tried; a span that is cut has no target."""
    spans = [Span(a, b) for a in range(len(TEXT)) for b in range(a + 1, len(TEXT) + 1)]
    found, encoded = targets_of(
        tokenizer, ANSWER, *((TEXT, span) for span in spans), max_tokens=max_tokens
    )
    owner = owners(tokenizer, encoded[0])
    expected = []
    for span in spans:
        first, after = len(TEXT[: span.start].encode()), len(TEXT[: span.end].encode())
        whole = after <= len(owner)
        expected.append([owner[first], owner[after - 1]] if whole else [IGNORED] * 2)
    assert found.batch(range(len(spans))).tolist() == expected
    assert found.weights.tolist() == [float(ends[0] != IGNORED) for ends in expected]
    assert found.weights.sum() == len(spans) or max_tokens < 32


def test_a_text_without_an_answer_has_no_ends(tokenizer: Tokenizer) -> None:
    found, _ = targets_of(
        tokenizer, ANSWER, ("the cat", Span(0, 3)), ("the", None), ("x", Span(1, 1))
    )
    assert found.batch([0, 1, 2])[1:].tolist() == [[IGNORED] * 2] * 2
    assert found.weights.tolist() == [1, 0, 0]


@pytest.mark.parametrize("label", [Span(4, 8), Span(9, 12), Span(-3, 3), (0, 3)])
def test_what_is_not_a_span_of_the_text_is_refused(tokenizer: Tokenizer, label: object) -> None:
    with pytest.raises(DataError, match="'the cat'.*7 characters"):
        targets_of(tokenizer, ANSWER, ("the cat", label))


def test_an_answer_in_the_question_is_refused(tokenizer: Tokenizer) -> None:
    """Answers are extracted after the first line, so the model could never give this one."""
    text = "Who came?\nTom came."
    good, bad = (Span(text.index(word), text.index(word) + 3) for word in ("Tom", "Who"))
    assert targets_of(tokenizer, ANSWER, (text, good))[0].counts.tolist() == [1.0]
    with pytest.raises(DataError, match="'Who'.*question"):
        targets_of(tokenizer, ANSWER, (text, bad))
    with pytest.raises(DataError, match="'Who'.*question"):
        targets_of(tokenizer, ANSWER, (text, GoldAnswers([good, bad])))


def test_training_uses_the_first_of_several_answers(tokenizer: Tokenizer) -> None:
    first, second = Span(4, 7), Span(0, 3)
    several = targets_of(tokenizer, ANSWER, (TEXT, GoldAnswers([first, second])))[0]
    one = targets_of(tokenizer, ANSWER, (TEXT, first))[0]
    assert several.batch([0]).tolist() == one.batch([0]).tolist()
    assert (
        several.batch([0]).tolist()
        != targets_of(tokenizer, ANSWER, (TEXT, second))[0].batch([0]).tolist()
    )
    with pytest.raises(DataError, match="Span"):
        targets_of(tokenizer, ANSWER, (TEXT, GoldAnswers([first, Span(0, 99)])))
    with pytest.raises(DataError, match="no answer"):
        Message(TEXT, GoldAnswers())


def test_ends_of_a_span() -> None:
    """Computed text by text, without padding."""
    head, outputs = ANSWER, 3 * torch.randn(4, 6, 2, generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([6, 2, 4, 1])
    targets = torch.tensor([[1, 5], [1, 1], [IGNORED, IGNORED], [0, 0]])
    expected, right = 0.0, 0
    for row, n, ends in zip(outputs, lengths, targets, strict=True):
        if ends[0] != IGNORED:
            losses = [F.cross_entropy(row[None, :n, k], ends[k, None]) for k in range(2)]
            expected += sum(float(loss) for loss in losses) / 2
            right += row[:n].argmax(dim=0).tolist() == ends.tolist()
    found = float(TASK.loss_sum(head, outputs, targets, lengths))
    assert found == pytest.approx(expected, abs=1e-5)
    assert TASK.correct_sum(head, outputs, targets, lengths) == right >= 1


def test_scores_within_a_text() -> None:
    found = within(torch.zeros(2, 4, 2), torch.tensor([4, 2]), torch.tensor([1, 0]))
    assert (found == 0)[:, :, 0].tolist() == [[False, True, True, True], [True, True, False, False]]
    assert torch.equal(found[..., 0], found[..., 1])


# --- answers ---


@pytest.mark.parametrize("seed", range(10))
def test_an_extract_is_the_best_of_all_pairs(tokenizer: Tokenizer, seed: int) -> None:
    rng = np.random.default_rng(seed)
    pieces = ["the", " cat", "\n", " ", "é", "🎉", "ing", "?", " you", "\u3000"]
    text = "".join(rng.choice(pieces, size=int(rng.integers(1, 50))))
    ids = tokenizer.encode(text)[: int(rng.integers(1, 60))]
    outputs = torch.from_numpy(rng.normal(size=(len(ids) + 3, 2)).astype(np.float32)) * 3
    outputs[len(ids) :] = 1e4  # padding would have by far the best scores
    (found,) = TASK.answers(ANSWER, outputs[None], Batch([text], [ids], tokenizer))
    assert_same(found, plain_extract(outputs[: len(ids)].numpy(), text, ids, tokenizer))
    assert text.find("\n") < found.start <= found.end <= len(text)
    assert found.text == text[found.start : found.end] == found.text.strip()
    assert 0 <= found.probability <= 1


def test_an_extract_is_not_too_long(tokenizer: Tokenizer) -> None:
    """The most probable start is the first token and the most probable end the last."""
    text = "x" * 50
    batch = Batch([text], [tokenizer.encode(text)], tokenizer)
    outputs = torch.zeros(1, 50, 2)
    outputs[0, 0, 0], outputs[0, 49, 1] = 5.0, 4.0
    (found,) = TASK.answers(ANSWER, outputs, batch)
    assert found.end - found.start <= LONGEST_ANSWER == 30
    assert found.start == 0  # the better one; both together would be too long
    outputs[0, 49, 1] = 6.0
    (found,) = TASK.answers(ANSWER, outputs, batch)
    assert found.end == 50 and found.start >= 20


def test_answers_as_json_and_in_words() -> None:
    found = Extract("the\ncat", 4, 11, 0.25)
    assert found.as_dict() == {"text": "the\ncat", "start": 4, "end": 11, "probability": 0.25}
    assert found.in_words() == "'the cat'  (4 to 11, 0.250)"


# --- scores ---


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("The  Eiffel-Tower, in Paris!", ["eiffeltower", "in", "paris"]),
        ("an apple a day", ["apple", "day"]),
        ("U.S.", ["us"]),
        # these words only begin like articles
        ("Theatre and anthem", ["theatre", "and", "anthem"]),
        ("a.n.", []),  # without punctuation this is the article an
        ("$1,000.50", ["100050"]),
        ("\tA\nB ", ["b"]),
        ("“the” end", ["“", "”", "end"]),  # SQuAD removes only ASCII punctuation
        ("", []),
    ],
)
def test_answers_are_normalised_as_squads(answer, words):
    assert answer_words(answer) == words


@pytest.mark.parametrize(
    ("true", "predicted", "exact", "f1"),
    [
        ("the Denver Broncos", "Denver Broncos.", 1, 1.0),
        ("Denver Broncos", "Broncos", 0, 2 / 3),  # precision 1, recall 1/2
        ("in the year 1066", "1066", 0, 1 / 2),  # precision 1, recall 1/3
        ("red red blue", "red blue blue green", 0, 4 / 7),  # red once, blue once; 2/4 and 2/3
        ("red red", "red red blue", 0, 4 / 5),  # red twice; 2/3 and 1
        ("blue red", "red blue", 0, 1.0),  # the same words in another order
        ("yes", "no", 0, 0.0),
        ("", "no", 0, 0.0),
        ("The", "an", 1, 1.0),
    ],
)
def test_answers_by_hand(true, predicted, exact, f1):
    for gold, answer in ((true, predicted), (predicted, true)):
        found = span_scores([[gold]], [answer])
        assert (found.exact, found.total) == (exact, 1)
        assert found.f1 == pytest.approx(f1, abs=1e-12)


@pytest.mark.parametrize(
    ("gold", "predicted", "exact", "f1"),
    [
        (["Denver", "the Denver Broncos", "Broncos"], "Denver Broncos", 1, 1.0),
        (["Denver", "Carolina Panthers"], "Denver Broncos", 0, 2 / 3),  # with the first
        (["Carolina Panthers", "the Denver Broncos team"], "Denver Broncos", 0, 4 / 5),
        (["no", "neither", "none"], "yes", 0, 0.0),
        (["yes", "yes", "yes"], "yes", 1, 1.0),
    ],
)
def test_the_best_gold_answer_counts(gold, predicted, exact, f1):
    for order in (gold, gold[::-1]):
        found = span_scores([order, ["x"]], [predicted, "y"])
        assert (found.exact, found.total) == (exact, 2)
        assert found.f1 == pytest.approx(f1 / 2, abs=1e-12)


def letter_by_letter(answer):
    """SQuAD's normalisation, one letter at a time, without patterns or tables."""
    words, word = [], ""
    for letter in answer.lower() + " ":
        if letter in " \t\n":
            words.append(word)
            word = ""
        elif letter.isalnum():
            word += letter
    return [word for word in words if word not in ("", "a", "an", "the")]


def shared_words(one, other):
    """The words that both answers contain, found by crossing out."""
    other = list(other)
    return sum(1 for word in one if word in other and other.remove(word) is None)


def squad_f1(gold, answer):
    a, b = letter_by_letter(gold), letter_by_letter(answer)
    shared = shared_words(a, b)
    if not shared:
        return float(a == b == [])
    precision, recall = shared / len(b), shared / len(a)
    return 2 * precision * recall / (precision + recall)


WORDS = st.text("aThe n.,-'x\t")


@settings(deadline=None)  # a busy machine is slow
@given(st.lists(st.tuples(st.lists(WORDS, min_size=1, max_size=3), WORDS), min_size=1, max_size=4))
def test_answers_are_squads(rows):
    exact, f1 = 0, 0.0
    for gold, answer in rows:
        exact += any(letter_by_letter(one) == letter_by_letter(answer) for one in gold)
        f1 += sorted(squad_f1(one, answer) for one in gold)[-1]
    found = span_scores(*map(list, zip(*rows, strict=True)))
    assert found.exact == exact and found.interval == wilson_interval(exact, len(rows))
    assert found.f1 == pytest.approx(f1 / len(rows), abs=1e-12)
    assert (found.main, found.measure) == (found.f1, "F1")


def test_scores_compare_texts_at_the_labels() -> None:
    labels = [Span(0, 7), None, Span(2, 5), GoldAnswers([Span(0, 3), Span(6, 10)])]
    answers = [Extract(text, 0, 0, 1.0) for text in ("cat", "x", "red", "bird")]
    found = TASK.scores(ANSWER, labels, answers, ["the cat", "x", "a red bird", "a red bird"])
    assert (found.exact, found.total, found.f1) == (3, 3, 1.0)


def test_scores_need_answers() -> None:
    with pytest.raises(DataError, match="no labelled texts"):
        span_scores([], [])


def test_scores_as_a_table() -> None:
    found = span_scores([["the cat"], ["red"], ["x"]], ["cat", "red bird", "y"])
    assert found.as_table().splitlines() == [
        "F1 55.56%",
        "exact match 33.33%  (1 of 3; 95% interval 6.1% to 79.2%)",
    ]


# --- learned ---


@pytest.mark.slow
def test_an_answer_is_found_in_a_text(tmp_path: Path) -> None:
    """It answers who and where; the test set has the same names in other sentences."""
    draw, messages = random.Random(2), []
    names = "Anna Tom Maria Henry Julia Oscar Peter Wanda Olga Felix Ruth Alice".split()
    places = "Paris London Dublin Vienna Oslo Lisbon Berlin Madrid Chicago Glasgow".split()
    forms = ["I met {} in {}.", "{} moved to {}.", "We saw {} near {}.", "{} called from {}."]
    for n in range(150):
        name, place = draw.choice(names), draw.choice(places)
        context = f"{draw.choice(forms).format(name, place)} It was day {n}."
        for question, answer in (("Who?", name), ("Where?", place)):
            text = f"{question}\n{context}"
            start = text.index(answer)
            messages.append(Message(text, Span(start, start + len(answer))))
    split = Split(messages[:210], messages[210:240], messages[240:])
    classifier = Classifier.on_base("mini", heads=[ANSWER])
    finetune(classifier, split, TrainConfig(n_last_blocks=3, epochs=5, lr=1e-3), tmp_path)
    scores = loss_and_scores(classifier, to_labelled(classifier, split.test))[1]["answer"]
    assert scores.f1 > 0.6 and scores.total == 60
