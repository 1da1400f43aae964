"""Near twins, against all pairs compared one by one."""

import random
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_messages import components, twins

from gpt2_from_scratch.data import near_duplicates as near_twins
from gpt2_from_scratch.data.messages import load_sms_spam
from gpt2_from_scratch.data.near_duplicates import has_twin, masked, twin_groups

TEXTS = st.lists(st.lists(st.sampled_from("abcd1!"), max_size=7).map(" ".join), max_size=14)


def as_sets(groups: list[int]) -> list[set[int]]:
    return [{n for n, g in enumerate(groups) if g == group} for group in sorted(set(groups))]


def drawn(seed: int, count: int) -> list[str]:
    """Texts from a few templates, changed in a word or two, among unlike ones."""
    draw = random.Random(seed)
    words = [f"{a}{b}" for a, b in product("bdfgklmnprst", "aeiou")]
    templates = [draw.choices(words, k=draw.randrange(2, 16)) for _ in range(count // 6)]
    texts = []
    for _ in range(count):
        text = list(draw.choice(templates))
        for _ in range(draw.randrange(4)):
            text[draw.randrange(len(text))] = draw.choice(words)
        texts.append(" ".join(text))
    return texts


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Call 08001 NOW!", "call 99999 now"),
        ("a  b", "A-b."),
        ("it's", "It s"),
        ("über_1", "ÜBER 2"),
    ],
)
def test_masked_alike(one: str, other: str) -> None:
    assert masked(one) == masked(other)
    assert has_twin([one], [other]).tolist() == [True] and twin_groups([one, other]) == [0, 0]


@pytest.mark.parametrize(
    ("one", "other"),
    [("call 1", "call 22"), ("ab", "a b"), ("!!!", "???"), ("😀", "😢"), ("a", "b"), ("", "a")],
)
def test_masked_not_alike(one: str, other: str) -> None:
    """Texts of punctuation alone have no words to compare, and two words are too few."""
    assert masked(one) != masked(other)
    assert has_twin([one], [other]).tolist() == [False] and twin_groups([one, other]) == [0, 1]


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("a b c d e", "a b c d x", True),  # 3 of 5 pairs: the threshold itself
        ("a b c d", "a b c x", False),  # 2 of 4
        ("a b c d e f g h i", "x b c d e f g h y", True),  # 6 of 10
        ("a b c d e f g h", "x b c d e f g y", False),  # 5 of 9
        ("a b a b a b", "b a b", True),  # sets: how often a pair stands there is nothing
        ("a b", "a b a b", False),  # too short, though all of it stands there
        ("Win $500! Text GO to 81010", "win £950, text go to 70112 ", True),
    ],
)
def test_known_pairs(one: str, other: str, expected: bool) -> None:
    assert twins(one, other) is expected
    assert has_twin([one], [other])[0] == has_twin([other], [one])[0] == expected
    assert (len(set(twin_groups([one, other]))) == 1) == expected


def test_twins_of_twins_are_one_group() -> None:
    texts = ["a b c d e f", "z", "a b c d e x", "y b c d e x", "z?"]
    assert not twins(texts[0], texts[3])
    assert twin_groups(texts) == [0, 1, 0, 0, 1]


def test_of_nothing() -> None:
    assert has_twin([], ["a"]).tolist() == [] and has_twin(["a"], []).tolist() == [False]
    assert has_twin([], []).dtype == bool and twin_groups([]) == []


@settings(max_examples=150, deadline=None)
@given(TEXTS, TEXTS)
def test_has_twin_by_brute_force(texts: list[str], others: list[str]) -> None:
    expected = [any(twins(text, other) for other in others) for text in texts]
    assert has_twin(texts, others).tolist() == expected


@settings(max_examples=150, deadline=None)
@given(TEXTS)
def test_groups_by_brute_force(texts: list[str]) -> None:
    assert as_sets(twin_groups(texts)) == components(texts)


@pytest.mark.parametrize("seed", range(3))
def test_templates_by_brute_force(seed: int) -> None:
    texts = drawn(seed, 180)
    groups, known = as_sets(twin_groups(texts)), has_twin(texts[:90], texts[90:])
    assert groups == components(texts) and 20 < len(groups) < 150
    assert known.tolist() == [any(twins(a, b) for b in texts[90:]) for a in texts[:90]]
    assert 10 < known.sum() < 80


@pytest.mark.parametrize("threshold", [0.3, 0.7, 0.9, 1.0])
def test_the_filter_is_right_for_any_threshold(monkeypatch, threshold: float) -> None:
    monkeypatch.setattr(near_twins, "THRESHOLD", threshold)
    monkeypatch.setitem(twins.__globals__, "THRESHOLD", threshold)
    texts = drawn(7, 120)
    assert as_sets(twin_groups(texts)) == components(texts)
    assert has_twin(texts[:60], texts[60:]).tolist() == [
        any(twins(a, b) for b in texts[60:]) for a in texts[:60]
    ]


def test_the_collection(sms_file: Path) -> None:
    """The counts that the module's docstring has; every group is of one label."""
    label_of = {message.text: message.label for message in load_sms_spam(sms_file)}
    texts = list(label_of)
    groups = [{texts[n] for n in group} for group in as_sets(twin_groups(texts)) if len(group) > 1]
    labels = [{label_of[text] for text in group} for group in groups]
    assert len(texts) == 5171 and len(groups) == 153 and {len(found) for found in labels} == {1}
    counts = {"spam": 0, "ham": 0}
    for group, (label,) in zip(groups, labels, strict=True):
        counts[label] += len(group)
    assert counts == {"spam": 282, "ham": 112}
    tunes = {text for text in texts if "set as your callertune" in text}
    assert len(tunes) == 2 and tunes in groups


def test_a_template_of_many_texts_is_quick(monkeypatch) -> None:
    """Each is near all others: a million pairs, of which few are looked at."""
    words = ["".join(letters) for letters in product("abcdefgh", repeat=4)][:1500]
    texts = [f"you have won a prize of {word} pounds call now or never" for word in words]
    looked_at = []
    are_alike = near_twins._are_alike
    monkeypatch.setattr(near_twins, "_are_alike", lambda *x: looked_at.append(x) or are_alike(*x))
    assert set(twin_groups(texts)) == {0}
    assert len(looked_at) < 3 * len(texts)
