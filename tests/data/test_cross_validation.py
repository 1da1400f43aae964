"""Folds: each text is tested once, near twins stay in one part, labels keep their shares."""

from collections import Counter

import pytest
from made_messages import OTHERS, fingerprint, made_up, parts, with_twins
from said import listen

from gpt2_from_scratch.data.messages import Message, count_labels, load_messages, load_sms_spam
from gpt2_from_scratch.data.near_duplicates import has_twin, twin_groups
from gpt2_from_scratch.data.split import folds, repeated_splits, split_messages
from gpt2_from_scratch.errors import DataError, UsageError


def texts_of(split) -> list[list[str]]:
    return [[message.text for message in part] for part in parts(split)]


@pytest.mark.parametrize("together", ["copies", "near-twins"])
@pytest.mark.parametrize("n", [2, 5, 10])
def test_each_text_is_tested_once_and_stands_in_one_part(n, together):
    messages = with_twins()
    found = folds(messages + messages[:30], n, together=together)
    assert len(found) == n
    assert Counter(m for split in found for m in split.test) == Counter(messages)
    for split in found:
        assert Counter(m for part in parts(split) for m in part) == Counter(messages)
        twins = has_twin(texts_of(split)[2], texts_of(split)[0] + texts_of(split)[1]).sum()
        twins_of_val = has_twin(texts_of(split)[1], texts_of(split)[0]).sum()
        assert (twins == twins_of_val == 0) == (together == "near-twins")


@pytest.mark.parametrize("n", [2, 5, 10])
def test_every_part_keeps_the_proportions(n):
    for split in folds(with_twins(), n):
        for label, count in (("ham", 300), ("spam", 120)):
            train, val, test = (count_labels(part)[label] for part in parts(split))
            rest = count - count // n
            assert test == count // n and val == round(rest / 8) and train == rest - val


def test_labels_are_kept_as_well_as_by_scikit_learn():
    """The largest distance of a label's count in a test part from its share."""
    from sklearn.model_selection import StratifiedGroupKFold

    messages = with_twins(203, 61)
    labels, groups = [m.label for m in messages], twin_groups([m.text for m in messages])
    theirs = StratifiedGroupKFold(5, shuffle=True, random_state=0).split(labels, labels, groups)
    counts = [Counter(labels[n] for n in test) for _, test in theirs]
    ours = [count_labels(split.test) for split in folds(messages, 5)]

    def worst(found):
        return max(abs(one[label] - n / 5) for one in found for label, n in Counter(labels).items())

    assert worst(ours) <= worst(counts) and worst(ours) < 1


def test_the_collection(sms_file):
    messages = load_sms_spam(sms_file)
    found = folds(messages, 5)
    for split in found:
        train, val, test = texts_of(split)
        assert not has_twin(test, train + val).any() and not has_twin(val, train).any()
        assert abs(count_labels(split.test)["spam"] - 653 / 5) < 1
    assert sum(len(split.test) for split in found) == 5171


def test_balance_draws_first():
    found = folds(with_twins(), 4, balance=True)
    assert [count_labels(split.test) for split in found] == [{"ham": 30, "spam": 30}] * 4
    assert len({m for split in found for m in split.test}) == 240


def test_a_seed_gives_the_same_folds_for_good():
    messages = load_messages("demo")
    assert folds(messages, 3) == folds(messages, 3, seed=123) != folds(messages, 3, seed=124)
    assert fingerprint(folds(messages, 3)[2]) == "582a5c34763d06ac"


@pytest.mark.parametrize("labels", OTHERS[:3])
def test_labels_that_are_no_classes(labels):
    messages = [Message(m.text, labels[n % len(labels)]) for n, m in enumerate(with_twins())]
    assert [len(split.test) for split in folds(messages, 5)] == [84] * 5


def test_what_cannot_be_cut():
    with pytest.raises(UsageError, match="n = 1 folds: at least 2"):
        folds(with_twins(), 1)
    with pytest.raises(UsageError, match="together = 'groups'"):
        folds(with_twins(), 5, together="groups")
    with pytest.raises(DataError, match="30 groups of texts are too few for 31 parts"):
        folds(made_up(60, 30), 31, together="copies")
    with pytest.raises(DataError, match="groups of near twins of label 'ham' are too few"):
        folds(made_up(60, 30), 5)
    contradiction = [*with_twins(), Message(with_twins()[0].text, "eggs")] + made_up()
    with pytest.raises(DataError, match="one text, two labels"):
        folds(contradiction, 5)
    said = listen()
    eggs = [Message(f"{m.text} {m.text}", "eggs") for m in with_twins(90, 30)]
    assert len(folds(contradiction + eggs, 5, on_error="skip")) == 5
    assert len(said) == 1


def test_repeated_splits():
    messages = with_twins()
    found = repeated_splits(messages, [1, 2], together="near-twins", balance=True)
    expected = [
        split_messages(messages, seed=s, together="near-twins", balance=True) for s in (1, 2)
    ]
    assert found == expected and found[0] != found[1]
