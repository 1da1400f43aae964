"""Scores against scikit-learn's, SciPy's and seqeval's; answers against SQuAD's rules, letter by letter."""

import itertools
import json
import math
import random
import subprocess
import sys
from collections import Counter
from dataclasses import asdict

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpt2_from_scratch.classifier.tasks.baselines import most_frequent_tag
from gpt2_from_scratch.classifier.tasks.score_tables import format_scores
from gpt2_from_scratch.classifier.tasks.scores import (
    answer_words,
    language_scores,
    multi_label_scores,
    regression_scores,
    span_scores,
    tag_scores,
)
from gpt2_from_scratch.data.conll import entities, is_bio
from gpt2_from_scratch.errors import DataError
from gpt2_from_scratch.evaluation.metrics import (
    evaluate_predictions,
    format_evaluation,
    wilson_interval,
)

NONE = (None, None, None)


def row(scores):
    return scores.precision, scores.recall, scores.f1, scores.support


def table(classes):
    """As scikit-learn has it: (4, K), nan for None."""
    return np.array([[math.nan if x is None else x for x in row(s)] for s in classes]).T


# --- any of K labels a text ---


def random_sets(seed, N=60, K=4):
    rng = np.random.default_rng(seed)
    true = rng.random((N, K)) < rng.random(K)
    return true, np.where(rng.random((N, K)) < 0.7, true, rng.random((N, K)) < 0.5)


@pytest.mark.parametrize("seed", range(10))
def test_sets_of_labels_are_scikit_learns(seed):
    true, predicted = random_sets(seed)
    found = multi_label_scores(true, predicted, "abcd")
    undefined = {"zero_division": np.nan}
    expected = sklearn.metrics.precision_recall_fscore_support(true, predicted, **undefined)
    np.testing.assert_allclose(table(found.classes), np.array(expected), atol=1e-12)
    assert [s.label for s in found.classes] == list("abcd")
    for average in ("micro", "macro"):
        f1 = sklearn.metrics.f1_score(true, predicted, average=average, **undefined)
        assert getattr(found, f"{average}_f1") == pytest.approx(f1, abs=1e-12)
    assert found.exact == sklearn.metrics.accuracy_score(true, predicted, normalize=False)
    assert found.total == 60 and found.interval == wilson_interval(found.exact, 60)
    assert (found.main, found.measure) == (found.micro_f1, "micro F1")


def test_labels_without_an_f1():
    """b never is and is never called: the mean leaves it out, as zero_division=nan does."""
    true = np.array([[1, 0, 0], [1, 0, 1], [0, 0, 0]], dtype=bool)
    predicted = np.array([[1, 0, 1], [0, 0, 0], [0, 0, 0]], dtype=bool)
    found = multi_label_scores(true, predicted, ["a", "b", "c"])
    assert [row(s) for s in found.classes] == [(1, 0.5, 2 / 3, 2), (*NONE, 0), (0, 0, 0, 1)]
    macro = sklearn.metrics.f1_score(true, predicted, average="macro", zero_division=np.nan)
    assert found.macro_f1 == pytest.approx(macro, abs=1e-12) == pytest.approx(1 / 3)
    assert (found.exact, found.micro_f1) == (1, 2 / 5)
    nothing = multi_label_scores(true & False, true & False, ["a", "b", "c"])
    assert (nothing.micro_f1, nothing.macro_f1, nothing.main, nothing.exact) == (None, None, 0, 3)


# --- K numbers a text ---


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_numbers_are_scipys_and_scikit_learns(seed, dtype):
    """The second value has many ties, the third lies far from 0 and is told apart by little."""
    rng = np.random.default_rng(seed)
    true = rng.normal(size=(50, 3)) * [1, 1.5, 300] + [0, 3, 1000]
    true[:, 1] = true[:, 1].round()
    predicted = true + rng.normal(size=(50, 3)) * [0.3, 1, 500]
    predicted[:, 1] = predicted[:, 1].round()
    true, predicted = true.astype(dtype), predicted.astype(dtype)
    found = regression_scores(true, predicted, ["a", "b", "c"])
    for value, name, *pair in zip(
        found.values, "abc", true.T.astype(float), predicted.T.astype(float), strict=True
    ):
        expected = (
            name,
            scipy.stats.pearsonr(*pair).statistic,
            scipy.stats.spearmanr(*pair).statistic,
            sklearn.metrics.r2_score(*pair),
            sklearn.metrics.root_mean_squared_error(*pair),
            sklearn.metrics.mean_absolute_error(*pair),
        )
        assert value.name == expected[0]
        np.testing.assert_allclose(
            [value.pearson, value.spearman, value.r2, value.rmse, value.mae],
            expected[1:],
            atol=1e-9,
        )
    assert found.mean_r2 == pytest.approx(
        sklearn.metrics.r2_score(true.astype(float), predicted.astype(float)), abs=1e-9
    )
    assert found.values[2].r2 < 0, "one that is worse than answering the mean"
    assert (found.main, found.measure, found.total) == (found.mean_r2, "mean R2", 50)


def test_numbers_by_hand():
    found = regression_scores(
        np.array([[1.0], [2], [2], [3]]), np.array([[2.0], [1], [1], [5]]), "y"
    )
    (value,) = found.values
    assert value.spearman == pytest.approx(1 / 3)  # ranks 1 2.5 2.5 4 and 3 1.5 1.5 4
    assert (value.r2, value.mae) == (1 - 7 / 2, 5 / 4)
    assert value.rmse == pytest.approx(math.sqrt(7 / 4))


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e9 + 0.1, -7.3])  # the mean of 7 × 0.1 is not 0.1
def test_constants_leave_correlations_undefined(constant):
    some, same = np.arange(7.0)[:, None] / 3, np.full((7, 1), constant)
    (value,) = regression_scores(some, same, "y").values
    assert (value.pearson, value.spearman) == (None, None)
    assert value.r2 == pytest.approx(sklearn.metrics.r2_score(some, same)) and value.r2 <= 0
    found = regression_scores(same, some, "y")
    (value,) = found.values
    assert (value.pearson, value.spearman, value.r2) == NONE
    assert value.mae == pytest.approx(np.abs(some - constant).mean())
    assert (found.mean_r2, found.main) == (None, 0)
    both = regression_scores(np.hstack([same, some]), np.hstack([some, some]), ["x", "y"])
    assert both.mean_r2 == both.main == 1, "the mean of those that have one"
    (one,) = regression_scores(some[:1], some[:1], "y").values
    assert (one.pearson, one.r2, one.rmse) == (None, None, 0)


def test_neither_scipy_nor_torch_is_needed():
    code = (
        "import sys; sys.modules.update(scipy=None, torch=None, sklearn=None)\n"
        "import numpy as np\n"
        "from gpt2_from_scratch.classifier.tasks import scores, baselines\n"
        "assert 'pandas' not in sys.modules, 'it is loaded when it is wanted'\n"
        "y = np.array([[1.0], [2], [2], [3]])\n"
        "print(scores.regression_scores(y, y**3, ['y']).values[0].spearman)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (found.stdout.strip(), found.stderr) == ("1.0", "")


@pytest.mark.parametrize("odd", [math.nan, math.inf])
def test_what_is_no_number_is_refused(odd):
    good, bad = np.zeros((3, 2)), np.zeros((3, 2))
    bad[1, 1] = odd
    with pytest.raises(DataError, match="text 1, counted from 0: predicted values"):
        regression_scores(good, bad, "ab")
    with pytest.raises(DataError, match="text 1, counted from 0: true values"):
        regression_scores(bad, good, "ab")


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
# seed; then of seqeval 1.2.2: accuracy; precision, recall, F1, support of all, of LOC, of PER
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


# --- a tag for every word ---

TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]


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


def test_the_same_place_in_another_text_is_no_hit():
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
    """What is measured does not hang on the texts, if all tags there can be are told."""
    assert tag_scores([["O", "O"]], [["O", "O"]]).measure == "word accuracy"
    found = tag_scores([["O", "O"]], [["O", "O"]], ["O", "B-x", "I-x", "B-y"])
    assert (found.measure, found.main, found.accuracy) == ("entity F1", 0, 1)
    assert row(found.entities) == (*NONE, 0)
    assert [(s.label, *row(s)) for s in found.classes] == [("x", *NONE, 0), ("y", *NONE, 0)]


def test_tags_must_be_one_a_word():
    with pytest.raises(ValueError):
        tag_scores([["O", "O"]], [["O"]])
    with pytest.raises(ValueError):
        tag_scores([["O"], ["O"]], [["O"]])


# --- the most frequent tag ---


def test_the_most_frequent_tag():
    words = ["the run", "a run", "I run", "I fish", "fish swim", "The end"]
    tags = ["D N", "D N", "P V", "P N", "V V", "D N"]
    tag = most_frequent_tag([w.split() for w in words], [t.split() for t in tags])
    assert [tag(word) for word in ["the", "run", "I", "swim", "The", "end"]] == list("DNPVDN")
    assert tag("fish") == "N", "of N and V, once each, the first"
    assert tag("unseen") == "N", "four N, three D and V, two P"


def test_a_word_that_was_not_seen_is_outside():
    tag = most_frequent_tag([["in", "Rome", "Paris"]], [["O", "B-LOC", "B-LOC"]])
    assert [tag(word) for word in ("in", "Rome", "rome")] == ["O", "B-LOC", "O"]


@pytest.mark.parametrize("seed", range(5))
def test_no_rule_by_word_has_more_training_words_right(seed):
    """All 4^5 rules tried."""
    rng = random.Random(seed)
    words = [[rng.choice("vwxyz") for _ in range(6)] for _ in range(6)]
    tags = [[rng.choice("ABCD") for _ in text] for text in words]
    tag = most_frequent_tag(words, tags)
    pairs = Counter(zip(itertools.chain(*words), itertools.chain(*tags), strict=True))
    best = max(
        sum(pairs[pair] for pair in zip("vwxyz", rule, strict=True))
        for rule in itertools.product("ABCD", repeat=5)
    )
    assert tag_scores(tags, [[tag(word) for word in text] for text in words]).correct == best


# --- an answer inside a text ---


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("The  Eiffel-Tower, in Paris!", ["eiffeltower", "in", "paris"]),
        ("an apple a day", ["apple", "day"]),
        ("U.S.", ["us"]),
        ("Theatre and anthem", ["theatre", "and", "anthem"]),  # no articles, but begin like ones
        ("a.n.", []),  # punctuation goes first: an
        ("$1,000.50", ["100050"]),
        ("\tA\nB ", ["b"]),
        ("“the” end", ["“", "”", "end"]),  # not ASCII, so no punctuation to SQuAD
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
    for pair in ([true], [predicted]), ([predicted], [true]):
        found = span_scores(*pair)
        assert (found.exact, found.total) == (exact, 1)
        assert found.f1 == pytest.approx(f1, abs=1e-12)


def letter_by_letter(answer):
    """SQuAD's normalisation without patterns or tables."""
    words, word = [], ""
    for letter in answer.lower() + " ":
        if letter in " \t\n":
            words.append(word)
            word = ""
        elif letter.isalnum():
            word += letter
    return [word for word in words if word not in ("", "a", "an", "the")]


def shared_words(one, other):
    """The longest list that can be had from both, by crossing out."""
    other = list(other)
    return sum(1 for word in one if word in other and other.remove(word) is None)


@given(
    st.lists(st.tuples(st.text("aThe n.,-'x\t"), st.text("aThe n.,-'x\t")), min_size=1, max_size=4)
)
def test_answers_are_squads(pairs):
    exact, f1 = 0, 0.0
    for pair in pairs:
        a, b = map(letter_by_letter, pair)
        exact += a == b
        shared = shared_words(a, b)
        if shared:
            precision, recall = shared / len(b), shared / len(a)
            f1 += 2 * precision * recall / (precision + recall)
        else:
            f1 += a == b == []
    found = span_scores(*map(list, zip(*pairs, strict=True)))
    assert found.exact == exact and found.interval == wilson_interval(exact, len(pairs))
    assert found.f1 == pytest.approx(f1 / len(pairs), abs=1e-12)
    assert (found.main, found.measure) == (found.f1, "F1")


# --- the next token ---


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


def test_what_no_float_can_hold():
    assert language_scores(709.7, 0, 1, 1).perplexity == pytest.approx(math.exp(709.7))
    assert language_scores(709.8, 0, 1, 1).perplexity is None
    assert language_scores(1.0, 0, 1, 0).bits_per_byte is None


# --- all kinds ---

SETS = multi_label_scores(*random_sets(0), ["a", "b", "c", "a long label"])
NUMBERS = regression_scores(
    np.array([[1.0, 5], [2, 5], [3, 5]]),
    np.array([[1.5, 5], [2, 6], [3, 123456]]),
    ["age", "income"],
)
ENTITIES = tag_scores(*random_tags(0))
WORDS = tag_scores([["DET", "N"], ["V"]], [["DET", "V"], ["V"]])
SPANS = span_scores(["the cat", "red", "x"], ["cat", "red bird", "y"])
LANGUAGE = language_scores(200.0, 31, 100, 450)
CLASSES = evaluate_predictions(np.array([0, 0, 0, 1]), np.array([0, 0, 0, 0]), ["ham", "spam"])


@pytest.mark.parametrize("scores", [SETS, NUMBERS, ENTITIES, WORDS, SPANS, LANGUAGE, CLASSES])
def test_every_kind_has_a_main_measure_and_plain_numbers(scores):
    assert json.loads(json.dumps({scores.measure: scores.main} | asdict(scores), allow_nan=False))
    assert type(scores.main) is float
    assert format_scores(scores).splitlines()[0].startswith(scores.measure)


def test_main_of_classes_is_the_accuracy():
    assert (CLASSES.main, CLASSES.measure) == (0.75, "accuracy")
    assert format_scores(CLASSES) == format_evaluation(CLASSES)


@pytest.mark.parametrize(
    "score",
    [
        lambda: multi_label_scores(np.zeros((0, 2), bool), np.zeros((0, 2), bool), "ab"),
        lambda: regression_scores(np.zeros((0, 2)), np.zeros((0, 2)), "ab"),
        lambda: tag_scores([], []),
        lambda: tag_scores([[]], [[]]),
        lambda: tag_scores([], [], TAGS),
        lambda: span_scores([], []),
        lambda: language_scores(0.0, 0, 0, 0),
        lambda: most_frequent_tag([[]], [[]]),
    ],
)
def test_nothing_to_score(score):
    with pytest.raises(DataError, match="nothing to|no labelled texts"):
        score()


@pytest.mark.parametrize("score", [multi_label_scores, regression_scores])
def test_shapes_that_do_not_fit(score):
    """Numpy would broadcast the first two."""
    column = np.zeros((3, 1), dtype=bool)
    for other, names in ((column[:, 0], "a"), (column[:1], "a"), (column, "ab")):
        with pytest.raises(DataError, match="a row a text, a column a name"):
            score(column, other, names)


# --- as a person reads them ---


def test_sets_as_read():
    small = multi_label_scores(
        np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0], [1, 0, 0]], dtype=bool),
        np.array([[1, 0, 0], [1, 0, 0], [0, 0, 0], [0, 1, 0]], dtype=bool),
        ["politics", "sport", "weather"],
    )
    assert format_scores(small).splitlines() == [
        "micro F1 57.14 %, macro F1 40.00 %",
        "exactly the right set 50.00%  (2 of 4; 95% interval 15.0 to 85.0)",
        "",
        "label       precision    recall     F1    texts",
        "politics       100.00     66.67  80.00        3",
        "sport            0.00      0.00   0.00        1",
        "weather             -         -      -        0",
    ]


def test_numbers_as_read():
    assert format_scores(NUMBERS).splitlines() == [
        "mean R2 0.8750  (3 texts)",
        "",
        "value      Pearson    Spearman          R2        RMSE         MAE",
        "age         0.9820      1.0000      0.8750      0.2887      0.1667",
        "income           -           -           -   7.127e+04   4.115e+04",
    ]


def test_entities_as_read():
    true = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "O"]]
    predicted = [["B-PER", "I-PER", "O", "O"], ["O", "O"]]
    assert format_scores(tag_scores(true, predicted)).splitlines() == [
        "entity F1 66.67 %",
        "word accuracy 83.33%  (5 of 6; 95% interval 43.6 to 97.0)",
        "",
        "entity      precision    recall      F1    entities",
        "LOC                 -      0.00    0.00           1",
        "PER            100.00    100.00  100.00           1",
        "all            100.00     50.00   66.67           2",
    ]


def test_words_as_read():
    assert format_scores(WORDS).splitlines() == [
        "word accuracy 66.67%  (2 of 3; 95% interval 20.8 to 93.9)",
        "",
        "tag      precision    recall      F1    words",
        "DET         100.00    100.00  100.00        1",
        "N                -      0.00    0.00        1",
        "V            50.00    100.00   66.67        1",
    ]


def test_answers_and_tokens_as_read():
    assert format_scores(SPANS).splitlines() == [
        "F1 55.56 %",
        "exact match 33.33%  (1 of 3; 95% interval 6.1 to 79.2)",
    ]
    assert format_scores(LANGUAGE).splitlines() == [
        "next-token accuracy 31.00 %  (31 of 100)",
        "2.0000 nats a token, perplexity 7.3891, 0.6412 bits a byte",
    ]
    assert "perplexity 2.203e+04, 14.4270 bits" in format_scores(language_scores(10.0, 0, 1, 1))
    assert format_scores(language_scores(9e4, 0, 1, 0)).endswith("perplexity -, - bits a byte")


def test_columns_stand_below_each_other():
    for scores in (SETS, NUMBERS, ENTITIES, WORDS):
        lines = format_scores(scores).split("\n\n")[1].splitlines()
        assert len(lines) > 2 and len({len(line) for line in lines}) == 1
