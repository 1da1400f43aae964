"""Tags of words: targets against bytes, scores against seqeval and scikit-learn."""

import itertools
import math
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics
import torch
import torch.nn.functional as F
from task_targets import TEXT, owners, targets_of, words_of
from three_blocks import TAGS as HEAD
from three_blocks import token_of_each_byte

from gpt2_from_scratch.classifier.settings import HeadConfig
from gpt2_from_scratch.classifier.tasks import TASKS
from gpt2_from_scratch.classifier.tasks.tagging import (
    Tag,
    Tags,
    entities,
    is_bio,
    tag_scores,
)
from gpt2_from_scratch.classifier.tasks.task import IGNORED, Batch
from gpt2_from_scratch.data.messages import Span
from gpt2_from_scratch.errors import DataError
from gpt2_from_scratch.evaluation.metrics import wilson_interval
from gpt2_from_scratch.gpt2.tokenizer import Tokenizer

TASK = TASKS["token-classification"]
LABELS = ("ham", "other", "spam")
NOUNS = HeadConfig(task="token-classification", labels=LABELS)
NONE = (None, None, None)


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint: Path) -> Tokenizer:
    return Tokenizer(tiny_checkpoint)


# --- targets and loss ---


@pytest.mark.parametrize("max_tokens", range(1, 22))
def test_a_words_first_token_has_its_tag_and_no_other(
    tokenizer: Tokenizer, max_tokens: int
) -> None:
    """For every cut of the text, including cuts within a word or a character."""
    words = [span._replace(label=LABELS[n % 3]) for n, span in enumerate(words_of(TEXT))]
    found, [ids] = targets_of(tokenizer, NOUNS, (TEXT, words), max_tokens=max_tokens)
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


def test_tags_are_padded_and_weighted_one_by_one(tokenizer: Tokenizer) -> None:
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


@pytest.mark.parametrize(
    "label, fact",
    [
        ([Span(0, 3, "eggs")], "'eggs'"),
        ([Span(0, 3)], "''"),
        ([Span(-1, 3, "ham")], "'the cat'.*7 characters"),
        ([Span(2, 1, "ham")], "start=2"),
        ([Span(4, 8, "ham")], "end=8"),
        (["ham"], "'ham'"),
        ("ham", "'h'"),
    ],
)
def test_other_labels_are_refused(tokenizer: Tokenizer, label: object, fact: str) -> None:
    with pytest.raises(DataError, match=fact):
        targets_of(tokenizer, NOUNS, ("the cat", label))


def test_an_unknown_tag_after_a_cut_is_refused_too(tokenizer: Tokenizer) -> None:
    words = [*words_of("the cat"), Span(8, 9, "eggs")]
    with pytest.raises(DataError, match="'eggs'"):
        targets_of(tokenizer, NOUNS, ("the cat x", words), max_tokens=1)


@pytest.mark.parametrize("weights", [(), (0.3, 1.0, 2.5)])
def test_the_loss_is_torchs_over_all_tokens(weights: tuple[float, ...]) -> None:
    head = replace(NOUNS, class_weights=weights, label_smoothing=0.2)
    draw = torch.Generator().manual_seed(1)
    outputs, targets = (
        torch.randn(6, 4, 3, generator=draw),
        torch.randint(3, (6, 4), generator=draw),
    )
    targets[1] = targets[5, 3] = IGNORED
    weight = torch.tensor(weights or (1.0,) * 3)
    expected = F.cross_entropy(
        outputs.flatten(0, 1), targets.flatten(), weight=weight, label_smoothing=0.2
    )
    total = TASK.loss_sum(head, outputs, targets, torch.full((6,), 4))
    divisor = weight[targets[targets != IGNORED]].sum()
    torch.testing.assert_close(total / divisor, expected, atol=1e-5, rtol=1e-5)
    correct = int((outputs.argmax(dim=2) == targets).sum())
    assert TASK.correct_sum(head, outputs, targets, torch.full((6,), 4)) == correct > 0


# --- answers ---


def test_given_words_are_tagged(tokenizer: Tokenizer) -> None:
    """Words after the cut are O, and entities are made from BIO tags."""
    text = "the cat is here"
    ids = tokenizer.encode(text)[:5]
    words = [Span(0, 3), Span(4, 7), Span(4, 5), Span(11, 15)]
    outputs = torch.full((1, len(ids), 3), -5.0)
    owner = token_of_each_byte(tokenizer, ids)
    outputs[0, :, 1] = 0.0
    outputs[0, owner[4]] = torch.tensor([5.0, 0, 0])
    (found,) = TASK.answers(HEAD, outputs, Batch([text], [ids], tokenizer, [words]))
    assert [(w.word, w.label) for w in found.words] == [
        ("the", "O"),
        ("cat", "B-x"),
        ("c", "B-x"),
        ("here", "O"),
    ]
    assert found.words[3].probability == 0 < found.words[0].probability
    assert found.entities == [Span(4, 7, "x"), Span(4, 5, "x")]
    plain = replace(HEAD, labels=("noun", "verb"))
    (found,) = TASK.answers(plain, outputs[:, :, :2], Batch([text], [ids], tokenizer, [words]))
    assert found.words[3].label == "noun"  # the first tag, because there is no O
    with pytest.raises(DataError, match="'noun'|'verb'"):
        _ = found.entities


def test_answers_as_json_and_in_words() -> None:
    """The answer contains entities only if the tags are BIO tags."""
    words = [Tag("the", 0, 3, "O", 0.9), Tag("cat", 4, 7, "B-x", 0.8)]
    found = Tags(words).as_dict()
    assert found["words"][1] == vars(words[1])
    assert found["entities"] == [{"start": 4, "end": 7, "label": "x"}]
    assert Tags(words).in_words() == "cat/B-x" and Tags(words[:1]).in_words() == "-"
    assert Tags(words[:1]).as_dict()["entities"] == []
    assert "entities" not in Tags([Tag("cat", 0, 3, "NOUN", 1.0)]).as_dict()
    assert TASK.columns(HEAD) is None


# --- entities ---

# get_entities of seqeval 1.2.2
SEQEVAL_ENTITIES = {
    "O O O": [],
    "B-PER I-PER O": [(0, 2, "PER")],
    "I-PER I-PER O": [(0, 2, "PER")],
    "B-PER B-PER I-PER": [(0, 1, "PER"), (1, 3, "PER")],
    "B-PER I-LOC I-LOC": [(0, 1, "PER"), (1, 3, "LOC")],
    "I-PER I-LOC O I-LOC": [(0, 1, "PER"), (1, 2, "LOC"), (3, 4, "LOC")],
    "O I-PER B-PER": [(1, 2, "PER"), (2, 3, "PER")],
    "B-LOC I-PER B-LOC I-LOC": [(0, 1, "LOC"), (1, 2, "PER"), (2, 4, "LOC")],
    "I-PER O I-PER I-PER": [(0, 1, "PER"), (2, 4, "PER")],
    "B-PER I-PER I-PER": [(0, 3, "PER")],
    "B-a-b I-a-b I-b": [(0, 2, "a-b"), (2, 3, "b")],
    "I-LOC B-LOC I-PER O B-PER": [(0, 1, "LOC"), (1, 2, "LOC"), (2, 3, "PER"), (4, 5, "PER")],
}
# seed; then from seqeval 1.2.2: accuracy; precision, recall, F1, support for all, LOC and PER
# fmt: off
SEQEVAL_SCORES = [
    (0, 0.633333,
     (0.525, 0.5, 0.512195, 42), (0.590909, 0.590909, 0.590909, 22), (0.444444, 0.4, 0.421053, 20)),
    (1, 0.742857,
     (0.576923, 0.681818, 0.625, 22), (0.571429, 0.666667, 0.615385, 12), (0.583333, 0.7, 0.636364, 10)),
    (2, 0.607143,
     (0.692308, 0.692308, 0.692308, 39), (0.761905, 0.727273, 0.744186, 22), (0.611111, 0.647059, 0.628571, 17)),
    (3, 0.7,
     (0.659574, 0.673913, 0.666667, 46), (0.708333, 0.708333, 0.708333, 24), (0.608696, 0.636364, 0.622222, 22)),
    (4, 0.690476,
     (0.482759, 0.56, 0.518519, 25), (0.461538, 0.461538, 0.461538, 13), (0.5, 0.666667, 0.571429, 12)),
    (5, 0.761905,
     (0.636364, 0.538462, 0.583333, 26), (0.833333, 0.625, 0.714286, 16), (0.4, 0.4, 0.4, 10)),
    (6, 0.652778,
     (0.654545, 0.692308, 0.672897, 52), (0.62069, 0.692308, 0.654545, 26), (0.692308, 0.692308, 0.692308, 26)),
    (7, 0.68,
     (0.612903, 0.575758, 0.59375, 33), (0.4, 0.461538, 0.428571, 13), (0.8125, 0.65, 0.722222, 20)),
]
# fmt: on


@pytest.mark.parametrize("tags", SEQEVAL_ENTITIES)
def test_entities_are_seqevals(tags):
    assert entities(tags.split()) == SEQEVAL_ENTITIES[tags]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["O", "B-PER", "I-PER"], True),
        (["B-PER"], True),
        (["I-x", "O"], True),
        (["O"], False),
        ([], False),
        (["O", "B-PER", "NOUN"], False),
        (["NOUN", "VERB"], False),
        (["O", "B", "I"], False),
    ],
)
def test_which_tags_name_entities(labels, expected):
    assert is_bio(labels) is is_bio(labels[::-1]) is expected


# --- scores ---

TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]


def row(scores):
    return scores.precision, scores.recall, scores.f1, scores.support


def table(classes):
    """In scikit-learn's format: (4, K), with nan instead of None."""
    return np.array([[math.nan if x is None else x for x in row(s)] for s in classes]).T


def random_tags(seed):
    rng = random.Random(seed)

    def tag():
        return TAGS[int(5 * rng.random())]

    true = [[tag() for _ in range(1 + int(12 * rng.random()))] for _ in range(8)]
    return true, [[t if rng.random() < 0.6 else tag() for t in tags] for tags in true]


@pytest.mark.parametrize(("seed", "accuracy", "everything", "loc", "per"), SEQEVAL_SCORES)
def test_tags_are_scored_as_by_seqeval(seed, accuracy, everything, loc, per):
    found = tag_scores(*random_tags(seed))
    assert found.accuracy == pytest.approx(accuracy, abs=1e-6)
    assert row(found.entities) == pytest.approx(everything, abs=1e-6)
    assert {s.label: row(s) for s in found.classes} == {
        "LOC": pytest.approx(loc, abs=1e-6),
        "PER": pytest.approx(per, abs=1e-6),
    }
    assert (found.main, found.measure) == (found.entities.f1, "entity F1")
    assert found.interval == wilson_interval(found.correct, found.total)


def test_entities_of_two_texts():
    """The example in seqeval's README."""
    true = [["O", "O", "O", "B-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    predicted = [["O", "O", "B-MISC", "I-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    found = tag_scores(true, predicted)
    assert row(found.entities) == (0.5, 0.5, 0.5, 2)
    assert [(s.label, *row(s)) for s in found.classes] == [
        ("MISC", 0, 0, 0, 1),
        ("PER", 1, 1, 1, 1),
    ]
    assert (found.correct, found.total) == (8, 10)


def test_an_entity_does_not_reach_into_the_next_text():
    found = tag_scores([["O", "B-PER"], ["I-PER"]], [["O", "B-PER"], ["B-PER"]])
    assert (found.entities.f1, found.entities.support, found.correct) == (1, 2, 2)


def test_entities_of_different_texts_do_not_match():
    found = tag_scores([["B-PER"], ["O"]], [["O"], ["B-PER"]])
    assert row(found.entities) == (0, 0, 0, 1)


@pytest.mark.parametrize("seed", range(5))
def test_tags_that_name_no_entities_are_scored_by_word(seed):
    true, predicted = (
        [[{"O": "NOUN"}.get(t, t) for t in tags] for tags in texts] for texts in random_tags(seed)
    )
    found = tag_scores(true, predicted, ["VERB", "NOUN", *TAGS[1:]])
    flat = [list(itertools.chain(*texts)) for texts in (true, predicted)]
    names = ["VERB", "NOUN", *TAGS[1:]]
    expected = sklearn.metrics.precision_recall_fscore_support(
        *flat, labels=names, zero_division=np.nan
    )
    np.testing.assert_allclose(table(found.classes), np.array(expected), atol=1e-12)
    assert [s.label for s in found.classes] == names
    assert found.entities is None and found.measure == "word accuracy"
    assert found.main == found.accuracy == sklearn.metrics.accuracy_score(*flat)


def test_all_words_outside_of_entities():
    """Entities are scored whenever the possible tags mark entities, even if no text has one."""
    assert tag_scores([["O", "O"]], [["O", "O"]]).measure == "word accuracy"
    found = tag_scores([["O", "O"]], [["O", "O"]], ["O", "B-x", "I-x", "B-y"])
    assert (found.measure, found.main, found.accuracy) == ("entity F1", 0, 1)
    assert row(found.entities) == (*NONE, 0)
    assert [(s.label, *row(s)) for s in found.classes] == [("x", *NONE, 0), ("y", *NONE, 0)]


def test_there_must_be_one_tag_per_word():
    with pytest.raises(ValueError):
        tag_scores([["O", "O"]], [["O"]])
    with pytest.raises(ValueError):
        tag_scores([["O"], ["O"]], [["O"]])


def test_scores_need_words() -> None:
    for tags in ([], [[]]):
        with pytest.raises(DataError, match="no labelled texts"):
            tag_scores(tags, tags, TAGS)


def test_scores_compare_labelled_words_with_answers() -> None:
    labels = [[Span(0, 3, "O"), Span(4, 7, "B-x")], None]
    answers = [Tags([Tag("the", 0, 3, "O", 1.0), Tag("cat", 4, 7, "B-x", 1.0)]), Tags([])]
    found = TASK.scores(HEAD, labels, answers, ["the cat", "x"])
    assert (found.correct, found.total, found.main) == (2, 2, 1.0)
    assert TASK.words(labels) == [labels[0], ()]


def test_entity_scores_as_a_table() -> None:
    true = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "O"]]
    predicted = [["B-PER", "I-PER", "O", "O"], ["O", "O"]]
    assert tag_scores(true, predicted).as_table().splitlines() == [
        "entity F1 66.67%",
        "word accuracy 83.33%  (5 of 6; 95% interval 43.6% to 97.0%)",
        "",
        "entity      precision    recall       F1    entities",
        "LOC                 -     0.00%    0.00%           1",
        "PER           100.00%   100.00%  100.00%           1",
        "all           100.00%    50.00%   66.67%           2",
    ]


def test_word_scores_as_a_table() -> None:
    found = tag_scores([["DET", "N"], ["V"]], [["DET", "V"], ["V"]])
    assert found.as_table().splitlines() == [
        "word accuracy 66.67%  (2 of 3; 95% interval 20.8% to 93.9%)",
        "",
        "tag      precision    recall       F1    words",
        "DET        100.00%   100.00%  100.00%        1",
        "N                -     0.00%    0.00%        1",
        "V           50.00%   100.00%   66.67%        1",
    ]
    assert next(iter(found.as_json().items())) == ("word_accuracy", pytest.approx(2 / 3))
