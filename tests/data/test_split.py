"""Splitting: no text in two parts, each text tested once by folds, and the split never changes."""

import json
import random
import unicodedata
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_messages import KINDS, OTHERS, fingerprint, made_up, parts, with_near_duplicates
from said import listen

from gpt2_from_scratch.data.messages import (
    DataConfig,
    GoldAnswers,
    Message,
    Span,
    count_labels,
    load_messages,
)
from gpt2_from_scratch.data.near_duplicates import has_near_duplicate, near_duplicate_groups
from gpt2_from_scratch.data.split import (
    Split,
    folds,
    load_split,
    load_unlabelled,
    split_messages,
    texts_with_two_labels,
    with_known_labels,
    with_settled_targets,
)
from gpt2_from_scratch.errors import DataError, UsageError


def test_the_lecture_numbers_without_its_leak(sms_file):
    """653 spam texts are distinct: 457 + 65 + 131. The lecture's 747 include copies."""
    messages = load_messages(sms_file)
    assert len({m.text for m in messages if m.label == "spam"}) == 653
    split = split_messages(messages, balance=True)
    assert [len(part) for part in parts(split)] == [914, 130, 262]
    for part, each in zip(parts(split), (457, 65, 131), strict=True):
        assert Counter(m.label for m in part) == {"ham": each, "spam": each}
    assert sum(len({m.text for m in part}) for part in parts(split)) == 653 * 2
    assert len({m.text for part in parts(split) for m in part}) == 653 * 2


def test_no_text_is_in_two_parts(sms_file):
    messages = load_messages(sms_file)
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
    messages = load_messages(sms_file)
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
    """numpy's RandomState is frozen, so this holds on every machine and in the future."""
    messages = [Message(f"{label} {n}", label) for label in ("ham", "spam") for n in range(10)]
    split = split_messages(messages, seed=1)
    assert [m.text for m in split.val] == ["ham 7", "spam 1"]
    assert [m.text for m in split.test] == ["spam 7", "spam 6", "ham 8", "ham 5"]


def test_the_order_is_random():
    """Labels are mixed, so that a batch contains both."""
    labels = [m.label for m in split_messages(made_up(200, 200)).train]
    changes = sum(a != b for a, b in zip(labels, labels[1:], strict=False))
    assert 100 < changes < 180  # of 279; sorting by label would give one change


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
def test_one_label_is_refused(messages):
    with pytest.raises(DataError, match="only one label|no label"):
        split_messages(messages)


@pytest.mark.parametrize("balance", [False, True])
@pytest.mark.parametrize("rare", ["ham", "spam"])
def test_too_few_texts_are_refused(balance, rare):
    """The error names the label that has too few texts."""
    counts = {"ham": 50, "spam": 50, rare: 9}
    with pytest.raises(DataError, match=f"9 texts of label '{rare}' are too few; 10 are needed"):
        split_messages(made_up(**counts), balance=balance)


def test_copies_do_not_count_as_texts():
    with pytest.raises(DataError, match="9 texts of label 'spam' are too few"):
        split_messages([*made_up(50, 9)] * 5, keep_duplicates=True)


# --- texts with two labels ---


def with_contradictions(count: int) -> list[Message]:
    return made_up() + [Message(f"see you at {n}", "spam") for n in range(count)]


def test_contradictions_are_counted_and_the_first_is_shown():
    with pytest.raises(DataError) as error:
        split_messages(with_contradictions(7))
    message = str(error.value)
    assert message.count("one text, two labels ['ham', 'spam']: 'see you at ") == 5
    assert "and 2 more; 7 such texts in total" in message and "--on-error skip" in message


def test_contradictions_are_left_out_and_logged():
    said = listen()
    split = split_messages(with_contradictions(7), on_error="skip")
    unclear = {f"see you at {n}" for n in range(7)}
    found = Counter(m for part in parts(split) for m in part)
    assert found == Counter(m for m in made_up() if m.text not in unclear)
    assert len(said) == 1 and "7 such texts in total" in said[0]
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


# --- labels that are not classes ---


def made_of(labels: list, count: int = 60) -> list[Message]:
    return [Message(f"see you at {n}", labels[n % len(labels)]) for n in range(count)]


@pytest.mark.parametrize("labels", OTHERS, ids=KINDS)
def test_other_labels_are_cut_as_one_class(labels):
    """The split equals that of messages with one class, if one class were allowed."""
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
    with pytest.raises(UsageError, match="balance = True"):
        split_messages(made_of(labels), balance=True)
    with pytest.raises(DataError, match="9 texts are too few; 10 are needed"):
        split_messages(made_of(labels, 9) * 2)
    assert [len(part) for part in parts(split_messages(made_of(labels, 10)))] == [7, 1, 2]


def test_different_numbers_of_one_text_are_averaged():
    messages = [*made_of([(1.0, 7.0)]), Message("see you at 0", (4.0, 8.0))]
    messages += [Message("see you at 1", (1.7e308, 7.0))] * 2
    reported = listen()
    split = split_messages(messages)
    found = {m.text: m.label for part in parts(split) for m in part}
    assert len(found) == 60 and sum(map(len, parts(split))) == 60
    assert found["see you at 0"] == (2.5, 7.5)
    # the sum alone would be infinite
    assert found["see you at 1"] == pytest.approx((1.7e308 / 3 * 2, 7.0), rel=1e-12)
    assert set(found.values()) == {(1.0, 7.0), found["see you at 0"], found["see you at 1"]}
    assert reported == ["2 texts have different targets, which were averaged"]
    both = split_messages(messages, keep_duplicates=True)
    assert sum(m.label == (2.5, 7.5) for part in parts(both) for m in part) == 2


def test_a_number_alone_and_lists_are_settled_too():
    found = with_settled_targets([Message("a", 1.0), Message("a", np.float64(2)), Message("b", 3)])
    assert [m.label for m in found] == [1.5, 1.5, 3]
    found = with_settled_targets([Message("a", ["x"]), Message("a", ["y", "x"])])
    assert [m.label for m in found] == [("x", "y")] * 2


def test_different_sets_of_labels_of_one_text_are_merged():
    messages = [*made_of([("b", "a"), ()]), Message("see you at 0", ("c", "a"))]
    messages += [Message("see you at 1", ("d",)), Message("see you at 2", ("a", "b"))]
    reported = listen()
    found = {m.text: m.label for part in parts(split_messages(messages)) for m in part}
    assert found["see you at 0"] == ("b", "a", "c") and found["see you at 1"] == ("d",)
    assert found["see you at 2"] == ("b", "a") and len(found) == 60  # the same set in two orders
    assert reported == ["2 texts have different targets, which were merged"]


@pytest.mark.parametrize("labels", OTHERS[2:5], ids=KINDS[2:5])
def test_other_targets_of_one_text_are_kept_in_one_part(labels):
    messages = [*made_of(labels[:1]), *made_of(labels[1:2]), *made_of(labels[:1])]
    reported = listen()
    split = split_messages(messages)
    assert reported == ["60 texts have different targets, which were kept"]
    for part in parts(split):
        texts = Counter(m.text for m in part)
        assert set(texts.values()) == {2}
        assert {m.text for m in part if m.label == labels[0]} == set(texts)
        assert {m.text for m in part if m.label == labels[1]} == set(texts)
    assert [len(part) for part in parts(split)] == [84, 12, 24]
    alone = split_messages(made_of(labels[:1]))  # no text changes its part because of this
    assert [texts_of(split)[n][::2] for n in range(3)] == texts_of(alone)


def test_several_labels_have_no_order():
    messages = [*made_of([("b", "a")]), *made_of([("a", "b")])]
    assert not texts_with_two_labels(messages)
    assert texts_with_two_labels([Message("a", (1.0, 2.0)), Message("a", (2.0, 1.0))])


# --- rare labels ---


def with_rare(**counts: int) -> list[Message]:
    return [
        *made_up(),
        *(Message(f"{x} {n}", x) for x, count in counts.items() for n in range(count)),
    ]


def test_a_rare_label_stops_with_the_name_of_the_option():
    for options in ({}, {"rare_labels": "stop"}):
        with pytest.raises(DataError, match="9 texts of label 'eggs' .*--rare-labels drop, keep"):
            split_messages(with_rare(eggs=9), **options)


def test_rare_labels_are_dropped_and_logged():
    reported = listen()
    split = split_messages(with_rare(eggs=9, toast=1, tea=10) * 2, rare_labels="drop")
    assert split == split_messages(with_rare(tea=10))  # as if these texts did not exist
    assert reported == ["20 texts of 2 rare labels were left out: 'eggs', 'toast'"]


def test_rare_labels_are_joined_and_logged():
    reported = listen()
    split = split_messages(with_rare(eggs=9, toast=1), rare_labels="join:food")
    counts = [count_labels(part) for part in parts(split)]
    assert [n["food"] for n in counts] == [7, 1, 2] and all("eggs" not in n for n in counts)
    assert reported == ["10 texts of 2 rare labels now have 'food': 'eggs', 'toast'"]
    into_ham = split_messages(with_rare(eggs=9), rare_labels="join:ham")
    assert sum(count_labels(part)["ham"] for part in parts(into_ham)) == 69
    with pytest.raises(DataError, match="4 texts of label 'food' are too few"):
        split_messages(with_rare(eggs=3, toast=1), rare_labels="join:food")


@pytest.mark.slow
@pytest.mark.parametrize("keep_together", ["copies", "near-duplicates"])
@pytest.mark.parametrize("count", [1, 3, 9])
def test_rare_labels_are_kept_and_training_has_them(keep_together, count):
    messages = with_near_duplicates(90, 60) + [
        Message(f"{'eggs' * n} and {'ham' * n} with {'tea' * n}", "eggs")
        for n in range(1, count + 1)
    ]
    for seed in range(3):
        split = split_messages(messages, keep_together=keep_together, rare_labels="keep", seed=seed)
        found = [count_labels(part).get("eggs", 0) for part in parts(split)]
        assert found[0] >= 1 and sum(found) == count
        assert sum(map(len, parts(split))) == len(messages)


def test_rare_labels_that_are_kept_are_logged():
    reported = listen()
    split_messages(with_rare(eggs=3), rare_labels="keep")
    assert reported == ["3 texts of 1 rare labels were kept: 'eggs'"]


def test_all_labels_are_rare():
    messages = [Message(f"{label} {n}", label) for label in "abc" for n in range(4)]
    more = [Message(f"text {n}", "ham") for n in range(20)]
    for some, rare_labels, left in (
        (messages, "drop", "leaves no label, of 3 in"),
        (messages, "join:other", "leaves only one label, 'other', of 3 in"),
        (messages + more, "drop", "leaves only one label, 'ham', of 4 in"),
    ):
        with pytest.raises(DataError, match=f"--rare-labels {rare_labels} {left}.*or use.*keep"):
            split_messages(some, rare_labels=rare_labels)
    with pytest.raises(DataError, match="4 texts of label 'other' .*join:LABEL with a label that"):
        split_messages(messages[:4] + more, rare_labels="join:other")


def test_rare_labels_that_cannot_be_kept():
    few = [Message(f"{label} {n}", label) for label in "abc" for n in range(3)]
    for together in ("copies", "near-duplicates"):
        with pytest.raises(DataError, match="9 texts are too few"):
            split_messages(few, rare_labels="keep", keep_together=together)
    with pytest.raises(UsageError, match="'join'.*join:other"):
        split_messages(few, rare_labels="join")
    with pytest.raises(UsageError, match="one class per text"):
        split_messages(made_of([(1.0,)]), rare_labels="drop")


# --- the split never changes ---


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "7b9b1092c7734594"),
        ({"seed": 7}, "c903b3121542ab3a"),
        ({"balance": True}, "7b9b1092c7734594"),
        ({"keep_duplicates": True, "balance": True, "seed": 1}, "e6801580f5e84689"),
    ],
)
def test_the_split_never_changes(options, expected):
    """A run can be repeated, and its test messages have never been used for training."""
    messages = load_messages("hard")
    assert fingerprint(split_messages(messages + messages[:50], **options)) == expected
    assert (
        fingerprint(split_messages(messages + messages[:50], on_error="skip", **options))
        == expected
    )


# --- near duplicates stay together ---


def texts_of(split: Split) -> list[list[str]]:
    return [[m.text for m in part] for part in parts(split)]


@pytest.mark.parametrize("seed", range(3))
def test_no_near_duplicate_is_in_two_parts(seed):
    messages = with_near_duplicates()
    plain = texts_of(split_messages(messages, seed=seed))
    assert has_near_duplicate(plain[2], plain[0]).sum() > 10  # this is what must not happen
    split = split_messages(messages, keep_together="near-duplicates", seed=seed)
    train, val, test = texts_of(split)
    assert not has_near_duplicate(test, train + val).any()
    assert not has_near_duplicate(val, train).any()
    assert Counter(m for part in parts(split) for m in part) == Counter(messages)
    for label, n in (("ham", 300), ("spam", 120)):
        found = [count_labels(part)[label] for part in parts(split)]
        assert np.abs(np.array(found) - n * np.array([0.7, 0.1, 0.2])).max() < 2


@pytest.mark.slow
def test_no_near_duplicate_in_the_collection(sms_file):
    messages = load_messages(sms_file)
    for options in ({"balance": True}, {"keep_duplicates": True}):
        split = split_messages(messages, keep_together="near-duplicates", **options)
        train, val, test = texts_of(split)
        assert not has_near_duplicate(test, train + val).any()
        assert not has_near_duplicate(val, train).any()
    plain = split_messages(messages)
    assert has_near_duplicate(texts_of(plain)[2], texts_of(plain)[0]).sum() > 50


def test_balance_draws_equal_numbers_where_near_duplicates_stay_together():
    split = split_messages(with_near_duplicates(), keep_together="near-duplicates", balance=True)
    counts = [count_labels(part) for part in parts(split)]
    assert sum(map(Counter, counts), Counter()) == {"ham": 120, "spam": 120}
    for found, n in zip(counts, (84, 12, 24), strict=True):
        assert abs(found["ham"] - n) < 2 and abs(found["spam"] - n) < 2
    assert not has_near_duplicate(texts_of(split)[2], texts_of(split)[0]).any()


@pytest.mark.slow
def test_a_large_group_comes_into_any_part():
    """It does so in proportion to the part's size: 30 of 200 texts do not fit into a tenth."""
    large = [Message("see you at the pub" + "." * n, "ham") for n in range(30)]
    words = ["".join(random.Random(n).choices("bdfklmnrst", k=9)) for n in range(170)]
    others = [Message(word, "ham" if n < 85 else "spam") for n, word in enumerate(words)]
    found = Counter()
    for seed in range(50):
        split = split_messages(large + others, keep_together="near-duplicates", seed=seed)
        held = [sum(m in large for m in part) for part in parts(split)]
        assert sorted(held) == [0, 0, 30]
        found[held.index(30)] += 1
    # expected counts: 35, 5, 10; standard deviations: 3.2, 2.1, 2.8
    assert 25 < found[0] < 45 and 0 < found[1] < 13 and 2 < found[2] < 20


def test_the_split_by_group_is_pinned():
    """Pinned for this version of scikit-learn; resuming a run compares the messages' hash."""
    messages = [
        Message(f"{label} {n} " + "x" * (n // 2 + 1), label)
        for label in ("ham", "spam")
        for n in range(24)
    ]
    split = split_messages(messages, seed=1, keep_together="near-duplicates")
    assert len(set(near_duplicate_groups([m.text for m in messages]))) == 24
    assert split == split_messages(messages, seed=1, keep_together="near-duplicates")
    assert split != split_messages(messages, seed=2, keep_together="near-duplicates")
    assert fingerprint(split) == "10f055aa559a95bf"


def test_copies_stay_with_their_near_duplicates():
    messages = with_near_duplicates()
    split = split_messages(messages * 2, keep_together="near-duplicates", keep_duplicates=True)
    assert sum((Counter(part) for part in parts(split)), Counter()) == Counter(messages * 2)


def test_too_few_groups_are_refused():
    messages = made_up() + [Message(f"you get {n}", "eggs") for n in range(50)]  # one group
    assert split_messages(messages)
    with pytest.raises(DataError, match="groups of near duplicates of label 'eggs'.*10"):
        split_messages(messages, keep_together="near-duplicates")


@pytest.mark.parametrize(
    ("value", "named"), [("groups", "copies, near-duplicates"), ("near-twins", "near-duplicates")]
)
def test_keep_together_must_be_a_known_name(value, named):
    for cut in (split_messages, lambda *x, **options: folds(*x, 5, **options)):
        with pytest.raises(UsageError, match=f"keep_together.*{value}.*{named}"):
            cut(made_up(), keep_together=value)


def test_a_group_counts_for_its_most_common_label():
    """One of ten groups of eggs is mostly ham, so eggs has too few groups."""
    eggs = [Message(f"{word} get egg {word}", "eggs") for word in "abcdefghi"]
    mixed = [Message("you all get eggs" + "." * n, "eggs" if n < 3 else "ham") for n in range(8)]
    with pytest.raises(DataError, match="^9 groups of near duplicates of label 'eggs'"):
        split_messages([*with_near_duplicates(), *eggs, *mixed], keep_together="near-duplicates")
    mixed = [Message(m.text, "eggs" if n < 5 else "ham") for n, m in enumerate(mixed)]
    assert split_messages([*with_near_duplicates(), *eggs, *mixed], keep_together="near-duplicates")


@pytest.mark.parametrize("labels", OTHERS, ids=KINDS)
def test_near_duplicates_of_other_labels(labels):
    messages = [
        Message(m.text, labels[n % len(labels)]) for n, m in enumerate(with_near_duplicates())
    ]
    split = split_messages(messages, keep_together="near-duplicates")
    assert np.abs(np.array([len(part) for part in parts(split)]) - [294, 42, 84]).max() < 3
    assert not has_near_duplicate(texts_of(split)[2], texts_of(split)[0]).any()
    few = [Message(f"you get {n}", labels[0]) for n in range(50)]
    with pytest.raises(DataError, match="^2 groups of near duplicates are too few; 10"):
        split_messages(few, keep_together="near-duplicates")


# --- folds: each text is tested once ---


@pytest.mark.slow
@pytest.mark.parametrize("keep_together", ["copies", "near-duplicates"])
@pytest.mark.parametrize("n", [2, 5, 10])
def test_each_text_is_tested_once_and_is_in_one_part(n, keep_together):
    messages = with_near_duplicates()
    found = folds(messages + messages[:30], n, keep_together=keep_together)
    assert len(found) == n
    assert Counter(m for split in found for m in split.test) == Counter(messages)
    for split in found:
        assert Counter(m for part in parts(split) for m in part) == Counter(messages)
        train, val, test = texts_of(split)
        near = has_near_duplicate(test, train + val).sum() + has_near_duplicate(val, train).sum()
        assert (near == 0) == (keep_together == "near-duplicates")


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 5, 10])
def test_every_fold_keeps_the_proportions(n):
    for split in folds(with_near_duplicates(), n):
        for label, count in (("ham", 300), ("spam", 120)):
            train, val, test = (count_labels(part)[label] for part in parts(split))
            rest = count - count / n
            assert abs(test - count / n) < 2 and abs(val - rest / 8) < 2
            assert train == count - test - val


@pytest.mark.slow
def test_folds_of_the_collection(sms_file):
    found = folds(load_messages(sms_file), 5)
    for split in found:
        train, val, test = texts_of(split)
        assert not has_near_duplicate(test, train + val).any()
        assert not has_near_duplicate(val, train).any()
        assert abs(count_labels(split.test)["spam"] - 653 / 5) < 1
    assert sum(len(split.test) for split in found) == 5171


def test_folds_of_balanced_messages():
    found = folds(with_near_duplicates(), 4, balance=True)
    for split in found:
        assert all(abs(n - 30) < 2 for n in count_labels(split.test).values())
    assert len({m for split in found for m in split.test}) == 240


@pytest.mark.slow
def test_a_seed_gives_the_same_folds():
    messages = load_messages("hard")
    assert folds(messages, 3) == folds(messages, 3, seed=123) != folds(messages, 3, seed=124)
    assert fingerprint(folds(messages, 3)[2]) == "7e0c9a32abd9682e"


@pytest.mark.slow
@pytest.mark.parametrize("labels", OTHERS[:3], ids=KINDS[:3])
def test_folds_of_other_labels(labels):
    messages = [
        Message(m.text, labels[n % len(labels)]) for n, m in enumerate(with_near_duplicates())
    ]
    assert all(abs(len(split.test) - 84) < 2 for split in folds(messages, 5))


def test_a_class_in_few_groups_is_in_every_part():
    messages = [
        Message(f"{label}{'q' * group} word {label * group}x " + "." * n, label)
        for label in "abc"
        for group in range(10)
        for n in range(30 if group == 3 else 1)
    ]
    for split in (
        split_messages(messages, keep_together="near-duplicates"),
        *folds(messages, 5),
        *folds(messages, 10),
    ):
        assert all(set(count_labels(part)) == set("abc") for part in parts(split))


@pytest.mark.slow
def test_messages_that_cannot_be_cut_into_folds():
    with pytest.raises(UsageError, match="n_folds = 1 .*2"):
        folds(with_near_duplicates(), 1)
    with pytest.raises(DataError, match="30 texts of label 'spam' are too few; 31"):
        folds(made_up(60, 30), 31, keep_together="copies")
    with pytest.raises(DataError, match="groups of near duplicates of label 'ham' are too few"):
        folds(made_up(60, 30), 5)
    contradiction = [
        *with_near_duplicates(),
        Message(with_near_duplicates()[0].text, "eggs"),
        *made_up(),
    ]
    with pytest.raises(DataError, match="one text, two labels"):
        folds(contradiction, 5)
    said = listen()
    eggs = [Message(f"{m.text} {m.text}", "eggs") for m in with_near_duplicates(90, 30)]
    assert len(folds(contradiction + eggs, 5, on_error="skip")) == 5
    assert len(said) == 1


# --- questions: each context is in one part ---


def questions(n_contexts: int = 40, most: int = 9, seed: int = 0) -> list[Message]:
    """One to `most` questions about each context; every third has several correct answers."""
    draw = random.Random(seed)
    found = []
    for context in range(n_contexts):
        words = " ".join(draw.choices("bcdfghjklm", k=12))
        for question in range(draw.randint(1, most)):
            text = f"Who is number {question}?\n{words} {context}\nso it is"
            start = text.index("\n") + 1
            answers = GoldAnswers([Span(start, start + 3), Span(start + 4, start + 5)])
            found.append(Message(text, answers if question % 3 == 2 else answers[0]))
    draw.shuffle(found)
    return found


def contexts_of(part: list[Message]) -> set[str]:
    return {message.text.split("\n", 1)[1] for message in part}


def assert_no_context_in_two_parts(split: Split) -> None:
    train, val, test = map(contexts_of, parts(split))
    assert train and val and test
    assert not train & val and not train & test and not val & test


@pytest.mark.parametrize("keep_together", ["copies", "near-duplicates"])
@pytest.mark.parametrize("seed", range(5))
def test_no_context_is_in_two_parts(keep_together: str, seed: int) -> None:
    messages = questions(seed=seed)
    split = split_messages(messages, seed=seed, keep_together=keep_together)
    assert_no_context_in_two_parts(split)
    assert Counter(m for part in parts(split) for m in part) == Counter(messages)
    wanted = np.array([0.7, 0.1, 0.2]) * len(messages)
    assert np.abs(np.array([len(part) for part in parts(split)]) - wanted).max() < 9
    assert split_messages(messages, seed=seed, keep_together=keep_together) == split


def test_seeds_put_a_context_into_different_parts() -> None:
    tests = [frozenset(contexts_of(split_messages(questions(), seed=n).test)) for n in range(5)]
    assert len(set(tests)) == 5


@pytest.mark.parametrize("keep_together", ["copies", "near-duplicates"])
def test_each_context_is_tested_by_one_fold(keep_together: str) -> None:
    messages = questions()
    found = folds(messages, 5, keep_together=keep_together)
    for split in found:
        assert_no_context_in_two_parts(split)
    tested = [context for split in found for context in contexts_of(split.test)]
    assert sorted(tested) == sorted(contexts_of(messages))
    assert Counter(m for split in found for m in split.test) == Counter(messages)


def test_contexts_of_some_questions_without_an_answer_and_of_several_heads() -> None:
    """All texts are questions if one of them has an answer."""
    messages = [
        Message(m.text, None if n % 2 else {"topic": "a", "answer": m.label})
        for n, m in enumerate(questions())
    ]
    assert_no_context_in_two_parts(split_messages(messages))


def test_near_duplicates_of_contexts_stay_together() -> None:
    """The same long question about different contexts does not join them."""
    asked = "which of the many people in this long story was the first of all to arrive here?"
    near = [
        Message(f"{asked}\n{name} b{n}c d{n}e f{n}g h{n}i j{n}k l{n}m n{n}o", Span(82, 84))
        for n in map(lambda n: "abcdefghijklmnopqrst"[n] * 3, range(20))
        for name in ("Anna", "Olga")
    ]
    split = split_messages(near, keep_together="near-duplicates")
    without_names = [{c.split(" ", 1)[1] for c in contexts_of(part)} for part in parts(split)]
    assert sum(map(len, without_names)) == 20 == len(set.union(*without_names))


def test_a_question_per_context_is_split_as_other_texts_are() -> None:
    messages = questions(most=1)
    others = [Message(m.text, (1.0,)) for m in messages]
    assert texts_of(split_messages(messages)) == texts_of(split_messages(others))


def test_first_lines_of_other_tasks_do_not_matter() -> None:
    """Texts that are equal after their first lines are different texts."""
    texts = [f"{n}\nthe same" for n in range(20)]
    for label in ((1.0,), ("a",), (Span(0, 1, "O"),), None):
        split = split_messages([Message(text, label) for text in texts])
        assert [len(part) for part in parts(split)] == [14, 2, 4]


def test_too_few_contexts_are_refused() -> None:
    with pytest.raises(DataError, match="^9 contexts are too few; 10"):
        split_messages(questions(9))
    with pytest.raises(DataError, match="^20 contexts are too few; 21"):
        folds(questions(20, most=20), 21, keep_together="copies")
    assert_no_context_in_two_parts(split_messages(questions(10)))


def written(path: Path, messages: list[Message]) -> str:
    rows = []
    for message in messages:
        several = isinstance(message.label, GoldAnswers)
        label = [s[:2] for s in message.label] if several else message.label[:2]
        rows.append(json.dumps({"text": message.text, "label": label}) + "\n")
    path.write_text("".join(rows))
    return str(path)


def test_contexts_of_an_earlier_file_are_left_out(tmp_path: Path) -> None:
    messages = sorted(questions(30), key=lambda m: m.text.split("\n", 1)[1])
    contexts = sorted(contexts_of(messages))

    def about(some: list[str]) -> list[Message]:
        return [m for m in messages if m.text.split("\n", 1)[1] in some]

    train, val, test = about(contexts[:20]), about(contexts[20:25]), about(contexts[25:])
    other = [Message("Why?\n" + m.text.split("\n", 1)[1], Span(5, 8)) for m in (*train, *val)]
    names = ("train.jsonl", "val.jsonl", "test.jsonl")
    files = [
        written(tmp_path / name, found)
        for name, found in zip(names, (train, [*val, other[0]], [*other, *test]), strict=True)
    ]
    said = listen()
    split = load_split(DataConfig(*files), "span")
    assert split == Split(train, val, test)
    assert any(f"{len(other)} texts of {files[2]} were left out" in line for line in said)
    two = load_split(DataConfig(files[0], test_source=files[2]), "span")
    assert_no_context_in_two_parts(two)
    assert contexts_of(two.train) | contexts_of(two.val) == contexts_of(train)
    alone = written(tmp_path / "alone.jsonl", other[:3])
    with pytest.raises(DataError, match="all contexts are in an earlier part"):
        load_split(DataConfig(files[0], test_source=alone), "span")


# --- texts without labels ---

HELD = Split([Message("one", "a")], [Message("two  cafe\u0301", "a")], [Message("three", "b")])


@pytest.mark.parametrize(
    ("name", "content", "options"),
    [
        ("more.txt", "one\ntwo caf\u00e9\n\nfour\n three\nfour\n", {}),
        ("more.csv", "id,text\n1,one\n2,two caf\u00e9\n3,\n4,four\n5,three\n", {}),
        ("more.tsv", "1\tone\n2\ttwo caf\u00e9\n4\tfour\n", {"header": False, "text_column": "2"}),
        ("more.jsonl", '{"text": "one"}\n{"text": "three "}\n{"text": "four"}\n', {}),
        ("more.conll", "one\tO\n\nthree\tO\n\nfour\tO\n\n", {}),
    ],
)
def test_unlabelled_texts_of_every_format(tmp_path, name, content, options) -> None:
    """Each once, without empty ones, and without those of the validation and test set."""
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    said = listen()
    assert load_unlabelled(DataConfig(unlabelled=str(path), **options), HELD) == ["one", "four"]
    assert any("unlabelled texts are left out" in line for line in said)
    assert load_unlabelled(DataConfig(), HELD) == []


def test_unlabelled_texts_with_a_held_out_context_are_left_out(tmp_path: Path) -> None:
    messages = questions(12)
    split = split_messages(messages)
    held = contexts_of([*split.val, *split.test])
    texts = [*(f"Why?\n{context}" for context in contexts_of(messages)), *contexts_of(messages)]
    path = tmp_path / "more.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    kept = load_unlabelled(DataConfig(unlabelled=str(path)), split)
    expected = [text for text in texts if text.removeprefix("Why?\n") not in held]
    assert kept == expected and len(expected) < len(texts)


# --- reading and splitting: one source or three ---


def table(folder: Path, name: str, rows: list[str]) -> str:
    (folder / name).write_text("text,label\n" + "".join(f"{row}\n" for row in rows))
    return str(folder / name)


def three(folder: Path, train: list[str], val: list[str], test: list[str], **options) -> Split:
    said = listen()
    config = DataConfig(
        source=table(folder, "train.csv", train),
        val_source=table(folder, "val.csv", val),
        test_source=table(folder, "test.csv", test),
        **options,
    )
    split = load_split(config, "classification", 123)
    assert said  # the number of texts left out is logged
    return split


def test_copies_stay_in_the_first_part(tmp_path: Path) -> None:
    split = three(tmp_path, ["one,a", "two,b", "one,a"], ["two,b", "six,b"], ["one,a", "ten,a"])
    assert texts_of(split) == [["one", "two"], ["six"], ["ten"]]


def test_a_text_with_two_labels_in_one_source(tmp_path: Path) -> None:
    rows = ["one,a", "two,b", "one,b", "four,a"], ["six,b"], ["ten,a"]
    with pytest.raises(DataError, match="one text, two labels"):
        three(tmp_path, *rows)
    assert texts_of(three(tmp_path, *rows, on_error="skip"))[0] == ["two", "four"]


@pytest.mark.parametrize("emptied", ["val", "test"])
def test_a_part_without_texts_of_its_own_is_refused(tmp_path: Path, emptied: str) -> None:
    own = {"val": ["six,b"], "test": ["ten,a"]} | {emptied: ["one,a"]}
    with pytest.raises(DataError, match=f"no text of .*{emptied}.csv is left"):
        three(tmp_path, ["one,a", "two,b"], own["val"], own["test"])


FILES = ["one,ham", "two,spam", "one,ham"], ["six,spam"], ["nine,spam", "ten,spam"]


@pytest.mark.parametrize("labels", [("Ham", "ham"), ("a ", "a"), ("a", "a\u200b")])
def test_labels_are_compared_in_messages(labels: tuple[str, str]) -> None:
    for several in (False, True):
        messages = [
            Message(f"text {n}", (labels[n % 2],) if several else labels[n % 2]) for n in range(60)
        ]
        for split in (split_messages, partial(folds, n_folds=2)):
            with pytest.raises(DataError, match="Unicode form") as error:
                split(messages)
            assert all(repr(label) in str(error.value) for label in labels)


@pytest.mark.parametrize("odd", [1, True, None, float("nan"), ("a",)])
def test_labels_of_several_types(odd: Any) -> None:
    for other in ("a", False) if odd is not True else ("a", 1):
        messages = [Message(f"text {n}", [other, odd][n % 2]) for n in range(60)]
        for use in (split_messages, count_labels):
            with pytest.raises(DataError, match="counted from 0, has the label.*NaN.*pandas"):
                use(messages)
    numbers = [Message(f"text {n}", n % 2) for n in range(60)]
    assert count_labels(numbers) == {0: 30, 1: 30} and len(split_messages(numbers).test) == 12


@pytest.mark.parametrize("label", ["Ham", "ham ", "HAM"])
@pytest.mark.parametrize("part", [1, 2])
def test_labels_are_compared_across_files(tmp_path: Path, label: str, part: int) -> None:
    files = [*FILES]
    files[part] = [*files[part], f"more,{label}"]
    name = ("train.csv", "val.csv", "test.csv")[part]
    with pytest.raises(DataError, match="differ in case") as error:
        three(tmp_path, *files)
    assert f"{label!r} (" in str(error.value) and "'ham' (" in str(error.value)
    assert f"{name}, line {len(files[part]) + 1})" in str(error.value)
    assert "train.csv, line 2)" in str(error.value)


def test_unicode_forms_are_compared_across_files(tmp_path: Path) -> None:
    forms = [unicodedata.normalize(form, "café") for form in ("NFC", "NFD")]
    with pytest.raises(DataError, match="Unicode form"):
        three(tmp_path, [*FILES[0], f"c,{forms[0]}"], [f"d,{forms[1]}"], FILES[2])


@pytest.mark.parametrize("task", ["multi-label", "token-classification"])
def test_labels_of_other_tasks_are_compared_across_files(tmp_path: Path, task: str) -> None:
    raw = {"multi-label": '["{}"]', "token-classification": '[[0, 3, "{}"]]'}[task]
    for name, tag in (("a", "B-x"), ("b", "B-x"), ("c", "B-X")):
        label = raw.format(tag)
        (tmp_path / f"{name}.jsonl").write_text(f'{{"text": "{name}bc", "label": {label}}}\n')
    files = [str(tmp_path / f"{name}.jsonl") for name in "abc"]
    with pytest.raises(
        DataError, match=r"'B-X' \(.*c.jsonl, line 1\), 'B-x' \(.*a.jsonl, line 1\)"
    ):
        load_split(DataConfig(*files), task)


@pytest.mark.parametrize("part", [1, 2])
def test_a_label_that_no_training_text_has(tmp_path: Path, part: int) -> None:
    files = [*FILES]
    files[part] = [*files[part], "more,eggs", "most,toast"]
    name = ("train.csv", "val.csv", "test.csv")[part]
    line = len(files[part])
    with pytest.raises(
        DataError, match=f"{name}, line {line}: .*'eggs'.*1 more rows.*--rare-labels"
    ):
        three(tmp_path, *files)
    split = three(tmp_path, *files, rare_labels="keep")
    assert texts_of(split) == [["one", "two"], *(texts_of(split)[1:])]
    assert sum(map(len, parts(split))) == 7


def test_labels_that_a_classifier_knows() -> None:
    messages = [Message("a", "ham", 2), Message("b", "eggs", 3), Message("c", "Spam", 4)]
    known = ("ham", "spam")
    with pytest.raises(DataError, match="m.csv, line 3: .*'eggs', nor those of 1 more rows"):
        with_known_labels(messages, known, "stop", "m.csv")
    with pytest.raises(DataError, match="m.csv, line 4: .*'Spam'. Is 'spam' meant?"):
        with_known_labels(messages[2:], known, "stop", "m.csv")
    with pytest.raises(DataError, match="line 3"):
        with_known_labels(messages, known, "join:other", "m.csv")
    reported = listen()
    assert with_known_labels(messages, known, "drop", "m.csv") == messages[:1]
    joined = with_known_labels(messages, known, "join:ham", "m.csv")
    assert [m.label for m in joined] == ["ham"] * 3
    assert with_known_labels(messages, known, "keep", "m.csv") == messages
    assert [said.split(": 'eggs', 'Spam'")[1] for said in reported] == [""] * 3
    assert (
        with_known_labels(messages[:1], known, "stop", "m.csv") == messages[:1]
        and len(reported) == 3
    )


def test_a_text_with_two_labels_in_two_files(tmp_path: Path) -> None:
    rows = ["one,a", "two,b"], ["six,b", "two,a"], ["ten,a", "six,a", "one,a"]
    with pytest.raises(DataError, match=r"val.csv, line 3: 'a', but 'b' in .*train.csv, line 3"):
        three(tmp_path, *rows)
    with pytest.raises(DataError, match=r"test.csv, line 3: 'a', but 'b' in .*val.csv, line 2"):
        three(tmp_path, rows[0], rows[1][:1], rows[2])
    reported = listen()
    split = three(tmp_path, *rows, on_error="skip")
    assert texts_of(split) == [["one", "two"], ["six"], ["ten"]]
    assert sum("left out: one text, two labels" in line for line in reported) == 2


def test_rare_labels_of_several_files(tmp_path: Path) -> None:
    train = [f"{label} {n},{label}" for label in ("ham", "spam") for n in range(10)]
    files = [*train, "e1,eggs"], ["six,spam", "e2,eggs"], ["nine,ham", "t,toast"]
    split = three(tmp_path, *files, rare_labels="drop")
    assert [len(part) for part in parts(split)] == [20, 1, 1]
    split = three(tmp_path, *files, rare_labels="join:food")
    assert [count_labels(part).get("food") for part in parts(split)] == [1, 1, 1]
    with pytest.raises(
        DataError, match="test.csv, line 3: .*'food'"
    ):  # 'food' is still in no training text
        three(tmp_path, train, ["six,spam"], ["nine,ham", "t,toast"], rare_labels="join:food")
    for rare in ("stop", "join:food"):  # "food" occurs in the validation file only
        with pytest.raises(DataError, match="val.csv, line 3: no training text.*'toast'") as error:
            three(tmp_path, train, ["six,spam", "t,toast"], ["nine,ham"], rare_labels=rare)
        assert ("nor the label 'food' of --rare-labels join:food" in str(error.value)) == (
            rare == "join:food"
        )
    with pytest.raises(UsageError, match="rare_labels is for classification"):
        load_split(DataConfig(rare_labels="drop"), "multi-label")


def test_targets_that_differ_in_one_of_several_files(tmp_path: Path) -> None:
    data = DataConfig(
        source=table(tmp_path, "a.csv", ["one,1", "one,2", "two,5"]),
        val_source=table(tmp_path, "b.csv", ["six,3", "one,9"]),
        test_source=table(tmp_path, "c.csv", ["ten,3", "ten,4"]),
    )
    split = load_split(data, "regression")
    assert [[(m.text, m.label) for m in part] for part in parts(split)] == [
        [("one", (1.5,)), ("two", (5.0,))],
        [("six", (3.0,))],
        [("ten", (3.5,))],
    ]


# --- a test file in addition to a training file ---


@pytest.mark.slow
@pytest.mark.parametrize("keep_together", ["copies", "near-duplicates"])
@pytest.mark.parametrize("balance", [False, True])
def test_validation_is_cut_from_training(tmp_path: Path, keep_together: str, balance: bool) -> None:
    messages = with_near_duplicates(120, 60)
    rows = [f"{m.text},{m.label}" for m in messages]
    data = DataConfig(
        source=table(tmp_path, "train.csv", rows * 2),
        test_source=table(tmp_path, "test.csv", ["new text,ham", rows[0], "new one,spam"]),
        keep_together=keep_together,
        balance=balance,
    )
    split = load_split(data, seed=3)
    assert texts_of(split)[2] == ["new text", "new one"]
    train, val = texts_of(split)[:2]
    assert not {*train} & {*val} and len({*train, *val}) == len(train) + len(val)
    counts = [count_labels(part) for part in parts(split)[:2]]
    whole = {"ham": 60 if balance else 120, "spam": 60}
    for label, n in whole.items():
        assert sum(found[label] for found in counts) == n
        assert abs(counts[1][label] - n / 8) <= (0 if keep_together == "copies" else 3) + 0.99
    near = bool(has_near_duplicate(val, train).any())
    assert near == (keep_together == "copies")
    assert load_split(data, seed=3) == split != load_split(data, seed=4)


@pytest.mark.slow
def test_one_source_is_split_as_its_messages_are(tmp_path: Path) -> None:
    path = table(tmp_path, "m.csv", [f"{m.text},{m.label}" for m in with_near_duplicates()])
    messages = load_messages(path)
    assert load_split(path) == split_messages(messages)
    for options in (
        {"keep_together": "near-duplicates"},
        {"balance": True},
        {"keep_together": "near-duplicates", "balance": True},
    ):
        config = DataConfig(source=path, **options)
        assert load_split(config, seed=5) == split_messages(messages, seed=5, **options)
    numbers = load_split(
        DataConfig(source=table(tmp_path, "n.csv", [f"a {n},{n}" for n in range(20)])), "regression"
    )
    assert {type(m.label) for m in numbers.train} == {tuple}
