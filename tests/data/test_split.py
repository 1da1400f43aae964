"""Messages split: no text in two parts, and the same split as ever."""

import random
from collections import Counter

import numpy as np
import pytest
from made_messages import KINDS, OTHERS, PLACES, fingerprint, made_up, parts, with_twins
from said import listen

from gpt2_from_scratch.data.messages import Message, count_labels, load_messages, load_sms_spam
from gpt2_from_scratch.data.near_duplicates import has_twin, masked, twin_groups
from gpt2_from_scratch.data.split import deal, split_messages, texts_with_two_labels
from gpt2_from_scratch.errors import DataError, UsageError


def test_the_lecture_numbers_without_its_leak(sms_file):
    """653 spam texts are distinct, 457 + 65 + 131; the lecture's 747 count copies too."""
    messages = load_sms_spam(sms_file)
    assert len({m.text for m in messages if m.label == "spam"}) == 653
    split = split_messages(messages, balance=True)
    assert [len(part) for part in parts(split)] == [914, 130, 262]
    for part, each in zip(parts(split), (457, 65, 131), strict=True):
        assert Counter(m.label for m in part) == {"ham": each, "spam": each}
    assert sum(len({m.text for m in part}) for part in parts(split)) == 653 * 2
    assert len({m.text for part in parts(split) for m in part}) == 653 * 2


def test_no_text_stands_in_two_parts(sms_file):
    messages = load_sms_spam(sms_file)
    for keep in (False, True):
        train, val, test = (
            {m.text for m in p} for p in parts(split_messages(messages, keep_duplicates=keep))
        )
        assert not train & val and not train & test and not val & test
        assert train | val | test == {m.text for m in messages}


def test_each_distinct_text_once():
    messages = made_up()
    found = [m for part in parts(split_messages(messages * 3)) for m in part]
    assert Counter(found) == Counter(messages)


def test_copies_stay_together_and_none_is_lost(sms_file):
    messages = load_sms_spam(sms_file)
    split = split_messages(messages, keep_duplicates=True)
    assert sum((Counter(part) for part in parts(split)), Counter()) == Counter(messages)


def test_a_seed_gives_one_split():
    messages = made_up()
    assert (
        split_messages(messages) == split_messages(messages) == split_messages(messages, seed=123)
    )
    others = [split_messages(messages, seed=seed) for seed in range(5)]
    assert len({tuple(other.train) for other in others}) == 5
    assert len({frozenset(other.test) for other in others}) == 5


def test_the_split_is_pinned():
    """numpy's RandomState is frozen, so this holds on every machine, for good."""
    messages = [Message(f"{label} {n}", label) for label in ("ham", "spam") for n in range(10)]
    split = split_messages(messages, seed=1)
    assert [m.text for m in split.val] == ["ham 7", "spam 1"]
    assert [m.text for m in split.test] == ["spam 7", "spam 6", "ham 8", "ham 5"]


def test_the_order_is_random():
    """Labels stand mixed, so that a step sees both."""
    labels = [m.label for m in split_messages(made_up(200, 200)).train]
    changes = sum(a != b for a, b in zip(labels, labels[1:], strict=False))
    assert 100 < changes < 180  # of 279; sorted by label it would be one


@pytest.mark.parametrize(("ham", "spam"), [(60, 30), (10, 10), (1000, 10), (37, 83)])
def test_every_part_keeps_the_proportions(ham, spam):
    split = split_messages(made_up(ham, spam))
    for label, n in (("ham", ham), ("spam", spam)):
        found = [count_labels(part)[label] for part in parts(split)]
        assert found == [n * 7 // 10, n // 10, n - n * 7 // 10 - n // 10]


def test_balance_takes_as_many_as_the_rarest_has():
    split = split_messages(made_up(100, 20), balance=True)
    for part, each in zip(parts(split), (14, 2, 4), strict=True):
        assert count_labels(part) == {"ham": each, "spam": each}


def test_three_labels():
    messages = [Message(f"{label} {n}", label) for label in "abc" for n in range(20)]
    assert [count_labels(p) for p in parts(split_messages(messages))] == [
        dict.fromkeys("abc", n) for n in (14, 2, 4)
    ]


def test_one_text_with_two_labels_is_refused():
    messages = [*made_up(), Message("see you at 7", "spam")]
    with pytest.raises(DataError, match=r"two labels \['ham', 'spam'\]: 'see you at 7'"):
        split_messages(messages)


@pytest.mark.parametrize("messages", [[], made_up(60, 0)], ids=["none", "ham only"])
def test_one_label_is_nothing_to_tell_apart(messages):
    with pytest.raises(DataError, match="one label only"):
        split_messages(messages)


@pytest.mark.parametrize("balance", [False, True])
@pytest.mark.parametrize("rare", ["ham", "spam"])
def test_too_few_texts_are_refused(balance, rare):
    """And the label that has too few is the one named."""
    counts = {"ham": 50, "spam": 50, rare: 9}
    with pytest.raises(DataError, match=f"9 texts of label '{rare}' are too few; 10 are needed"):
        split_messages(made_up(**counts), balance=balance)


def test_copies_do_not_make_up_for_texts():
    with pytest.raises(DataError, match="9 texts of label 'spam' are too few"):
        split_messages([*made_up(50, 9)] * 5, keep_duplicates=True)


# --- texts with two labels ---


def with_contradictions(count: int) -> list[Message]:
    return made_up() + [Message(f"see you at {n}", "spam") for n in range(count)]


def test_contradictions_are_counted_and_the_first_told():
    with pytest.raises(DataError) as error:
        split_messages(with_contradictions(7))
    message = str(error.value)
    assert message.count("one text, two labels ['ham', 'spam']: 'see you at ") == 5
    assert "and 2 more: 7 such texts in all" in message and "--on-error skip" in message


def test_contradictions_are_left_out_and_told():
    said = listen()
    split = split_messages(with_contradictions(7), on_error="skip")
    unclear = {f"see you at {n}" for n in range(7)}
    found = Counter(m for part in parts(split) for m in part)
    assert found == Counter(m for m in made_up() if m.text not in unclear)
    assert len(said) == 1 and "7 such texts in all" in said[0]
    with pytest.raises(UsageError, match="on_error"):
        split_messages(made_up(), on_error="never")


def test_texts_with_two_labels_by_brute_force():
    draw = random.Random(3)
    messages = [Message(str(draw.randrange(30)), draw.choice("abc")) for _ in range(60)]
    expected = {
        a.text: sorted({m.label for m in messages if m.text == a.text})
        for a in messages
        if any(b.text == a.text and b.label != a.label for b in messages)
    }
    assert expected and texts_with_two_labels(messages) == expected
    assert texts_with_two_labels([Message("t", "b's"), Message("t", "a")]) == {"t": ["a", "b's"]}


def test_as_many_labels_as_texts():
    messages = [Message(str(n), str(n)) for n in range(30)]
    with pytest.raises(
        DataError, match="1 texts of label '0' are too few; 10 are needed, and 29 more of the 30"
    ):
        split_messages(messages)


# --- labels that are no classes ---


def made_of(labels: list, count: int = 60) -> list[Message]:
    return [Message(f"see you at {n}", labels[n % len(labels)]) for n in range(count)]


@pytest.mark.parametrize("labels", OTHERS, ids=KINDS)
def test_other_labels_are_cut_as_one_class(labels):
    """Just as messages of one class would be cut, if that were no reason to refuse them."""
    messages = made_of(labels)
    for keep in (False, True):
        split = split_messages(messages + messages[:20], keep_duplicates=keep)
        copies = 2 if keep else 1
        found = [m for part in parts(split) for m in part]
        assert all(found.count(m) == (copies if n < 20 else 1) for n, m in enumerate(messages))
        assert [len({m.text for m in part}) for part in parts(split)] == [42, 6, 12]
        texts = [{m.text for m in part} for part in parts(split)]
        assert sum(map(len, texts)) == len(set.union(*texts)) == 60
    random_order = [m.text for m in split_messages(messages, seed=1).train]
    assert random_order != [m.text for m in split_messages(messages, seed=2).train]


@pytest.mark.parametrize("labels", OTHERS, ids=KINDS)
def test_other_labels_are_not_balanced_and_not_too_few(labels):
    with pytest.raises(UsageError, match="balance = True wants one class a text"):
        split_messages(made_of(labels), balance=True)
    with pytest.raises(DataError, match="9 texts are too few; 10 are needed"):
        split_messages(made_of(labels, 9) * 2)
    assert [len(part) for part in parts(split_messages(made_of(labels, 10)))] == [7, 1, 2]


@pytest.mark.parametrize("labels", OTHERS[:3], ids=KINDS[:3])
def test_other_labels_that_contradict(labels):
    messages = made_of(labels)
    wrong = [Message("see you at 0", labels[1]), Message("see you at 1", labels[0])]
    with pytest.raises(DataError, match=r"one text, two labels \[.*: 'see you at 0'"):
        split_messages(messages + wrong)
    told = listen()
    split = split_messages(messages + wrong, on_error="skip")
    assert {m.text for part in parts(split) for m in part} == {m.text for m in messages[2:]}
    found = texts_with_two_labels(messages + wrong)
    both = sorted(labels[:2], key=str)
    assert found == {"see you at 0": both, "see you at 1": both} and len(told) == 1


def test_several_labels_have_no_order():
    messages = [*made_of([("b", "a")]), *made_of([("a", "b")])]
    assert not texts_with_two_labels(messages)
    assert texts_with_two_labels([Message("a", (1.0, 2.0)), Message("a", (2.0, 1.0))])


@pytest.mark.parametrize("labels", OTHERS[3:5], ids=KINDS[3:5])
def test_the_first_of_two_answers_is_taken(labels):
    messages = made_of(labels[:1])
    split = split_messages(messages + made_of(labels[1:]))
    found = [m for part in parts(split) for m in part]
    assert sorted(m.text for m in found) == sorted(m.text for m in messages)
    assert all(m.label == labels[0] for m in found)


# --- the same split as ever ---


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "7b9b1092c7734594"),
        ({"seed": 7}, "c903b3121542ab3a"),
        ({"balance": True}, "7b9b1092c7734594"),
        ({"keep_duplicates": True, "balance": True, "seed": 1}, "e6801580f5e84689"),
    ],
)
def test_the_split_is_the_one_it_always_was(options, expected):
    """So that a run can be repeated, and its test messages were never trained on."""
    messages = load_messages("demo")
    assert fingerprint(split_messages(messages + messages[:50], **options)) == expected
    assert (
        fingerprint(split_messages(messages + messages[:50], on_error="skip", **options))
        == expected
    )


# --- near twins stay together ---


@pytest.mark.parametrize("seed", range(3))
def test_no_near_twin_stands_in_two_parts(seed):
    messages = with_twins()
    plain = [[m.text for m in part] for part in parts(split_messages(messages, seed=seed))]
    assert has_twin(plain[2], plain[0]).sum() > 10  # what is to be mended
    split = split_messages(messages, together="near-twins", seed=seed)
    train, val, test = ([m.text for m in part] for part in parts(split))
    assert not has_twin(test, train + val).any() and not has_twin(val, train).any()
    assert Counter(m for part in parts(split) for m in part) == Counter(messages)
    for label, n in (("ham", 300), ("spam", 120)):
        found = [count_labels(part)[label] for part in parts(split)]
        assert found == [n * 7 // 10, n // 10, n * 2 // 10]  # single texts fill up what is left


def test_no_near_twin_in_the_collection(sms_file):
    messages = load_sms_spam(sms_file)
    for options in ({}, {"balance": True}, {"keep_duplicates": True}):
        split = split_messages(messages, together="near-twins", **options)
        train, val, test = ([m.text for m in part] for part in parts(split))
        assert not has_twin(test, train + val).any() and not has_twin(val, train).any()
    plain = split_messages(messages)
    assert has_twin([m.text for m in plain.test], [m.text for m in plain.train]).sum() > 50


def test_balance_draws_equal_numbers_where_twins_stay_together():
    split = split_messages(with_twins(), together="near-twins", balance=True)
    assert [count_labels(part) for part in parts(split)] == [
        {"ham": n, "spam": n} for n in (84, 12, 24)
    ]
    assert not has_twin([m.text for m in split.test], [m.text for m in split.train]).any()


def test_a_group_goes_with_the_label_of_most_of_its_texts():
    """Ten of it are ham, but they stand where the eleven go: all in one part of spam's."""
    alike = [
        Message("see you at the pub" + "." * n, "spam" if n < 11 else "ham") for n in range(21)
    ]
    others = [m for m in with_twins(60, 60) if not masked(m.text).endswith(tuple(PLACES))]
    split = split_messages(others + alike, together="near-twins")
    held = [[m for m in part if m in alike] for part in parts(split)]
    assert sorted(map(len, held)) == [0, 0, 21]
    of_spam = sum(m.label == "spam" for m in others) + 21
    train = [m for m in split.train if m.label == "spam" or m in alike]
    assert len(train) == int(0.7 * of_spam)


def test_the_split_of_twins_is_pinned():
    messages = [
        Message(f"{label} {n} " + "x" * (n // 2 + 1), label)
        for label in ("ham", "spam")
        for n in range(24)
    ]
    split = split_messages(messages, seed=1, together="near-twins")
    assert len(set(twin_groups([m.text for m in messages]))) == 24
    assert split == split_messages(messages, seed=1, together="near-twins")
    assert split != split_messages(messages, seed=2, together="near-twins")
    assert fingerprint(split) == "3ebf87d1daf6d75a"


def test_copies_stay_with_their_twins():
    messages = with_twins()
    split = split_messages(messages * 2, together="near-twins", keep_duplicates=True)
    assert sum((Counter(part) for part in parts(split)), Counter()) == Counter(messages * 2)


def test_too_few_groups_are_refused():
    messages = made_up() + [Message(f"you get {n}", "eggs") for n in range(50)]  # one group
    assert split_messages(messages)
    with pytest.raises(DataError, match="groups of near twins of label 'eggs' are too few; 10"):
        split_messages(messages, together="near-twins")
    with pytest.raises(UsageError, match="together = 'twins' must be copies or near-twins"):
        split_messages(messages, together="twins")


@pytest.mark.parametrize("labels", OTHERS, ids=KINDS)
def test_near_twins_of_other_labels(labels):
    messages = [Message(m.text, labels[n % len(labels)]) for n, m in enumerate(with_twins())]
    split = split_messages(messages, together="near-twins")
    assert [len(part) for part in parts(split)] == [294, 42, 84]
    assert not has_twin([m.text for m in split.test], [m.text for m in split.train]).any()
    few = [Message(f"you get {n}", labels[0]) for n in range(50)]
    with pytest.raises(DataError, match="^2 groups of near twins are too few; 10 are needed"):
        split_messages(few, together="near-twins")


@pytest.mark.parametrize("seed", range(20))
def test_deal_loses_nothing_and_leaves_no_part_empty(seed):
    draw = random.Random(seed)
    groups = [
        [f"{g} {n}" for n in range(draw.choice([1, 1, 2, 9]))] for g in range(draw.randrange(3, 30))
    ]
    count = sum(map(len, groups))
    sizes = [count - count // 3 - 1, count // 3, 1]
    dealt = deal(groups, sizes, np.random.RandomState(seed))
    assert sorted(group for part in dealt for group in part) == sorted(groups)
    assert all(dealt) and len(dealt) == 3
    with pytest.raises(DataError, match="2 groups of texts are too few for 3 parts"):
        deal(groups[:2], sizes, np.random.RandomState(0))


def test_a_large_group_comes_into_any_part_where_it_fits():
    """As often as the part is large: 30 texts into parts of 140 and 60, never into that of 20."""
    groups = [[f"a {n}" for n in range(30)]] + [[f"b {n}"] for n in range(190)]
    found = Counter()
    for seed in range(300):
        dealt = deal(groups, [140, 20, 60], np.random.RandomState(seed))
        assert [sum(map(len, part)) for part in dealt] == [140, 20, 60]
        found.update(k for k, part in enumerate(dealt) if groups[0] in part)
    assert found[1] == 0 and 170 < found[0] < 250  # 300 * 139 / 198 = 211, sd 7.9
