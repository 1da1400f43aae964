"""Near duplicates, compared with brute force over all pairs."""

import random
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_messages import are_near_duplicates, components

from gpt2_from_scratch.data import near_duplicates
from gpt2_from_scratch.data.messages import load_messages
from gpt2_from_scratch.data.near_duplicates import (
    has_near_duplicate,
    masked,
    near_duplicate_groups,
)

TEXTS = st.lists(st.lists(st.sampled_from("abcd1!"), max_size=7).map(" ".join), max_size=14)


def as_sets(groups: list[int]) -> list[set[int]]:
    return [{n for n, g in enumerate(groups) if g == group} for group in sorted(set(groups))]


def drawn(seed: int, count: int) -> list[str]:
    """Texts from a few templates with a word or two changed, mixed with unrelated texts."""
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
    assert has_near_duplicate([one], [other]).tolist() == [True] and near_duplicate_groups(
        [one, other]
    ) == [0, 0]


@pytest.mark.parametrize(
    ("one", "other"),
    [("call 1", "call 22"), ("ab", "a b"), ("!!!", "???"), ("😀", "😢"), ("a", "b"), ("", "a")],
)
def test_masked_not_alike(one: str, other: str) -> None:
    """Texts of only punctuation have no words to compare, and two words are too few."""
    assert masked(one) != masked(other)
    assert has_near_duplicate([one], [other]).tolist() == [False] and near_duplicate_groups(
        [one, other]
    ) == [0, 1]


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("a b c d e", "a b c d x", True),  # 3 of 5 pairs, exactly the threshold
        ("a b c d", "a b c x", False),  # 2 of 4
        ("a b c d e f g h i", "x b c d e f g h y", True),  # 6 of 10
        ("a b c d e f g h", "x b c d e f g y", False),  # 5 of 9
        ("a b a b a b", "b a b", True),  # pairs form a set, so repetition does not count
        ("a b", "a b a b", False),  # two words are too few, although the other text contains both
        ("Win $500! Text GO to 81010", "win £950, text go to 70112 ", True),
    ],
)
def test_known_pairs(one: str, other: str, expected: bool) -> None:
    assert are_near_duplicates(one, other) is expected
    assert (
        has_near_duplicate([one], [other])[0] == has_near_duplicate([other], [one])[0] == expected
    )
    assert (len(set(near_duplicate_groups([one, other]))) == 1) == expected


def test_near_duplicates_of_near_duplicates_are_one_group() -> None:
    texts = ["a b c d e f", "z", "a b c d e x", "y b c d e x", "z?"]
    assert not are_near_duplicates(texts[0], texts[3])
    assert near_duplicate_groups(texts) == [0, 1, 0, 0, 1]


def test_no_texts() -> None:
    assert has_near_duplicate([], ["a"]).tolist() == [] and has_near_duplicate(
        ["a"], []
    ).tolist() == [False]
    assert has_near_duplicate([], []).dtype == bool and near_duplicate_groups([]) == []


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(TEXTS, TEXTS)
def test_has_near_duplicate_by_brute_force(texts: list[str], others: list[str]) -> None:
    expected = [any(are_near_duplicates(text, other) for other in others) for text in texts]
    assert has_near_duplicate(texts, others).tolist() == expected


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(TEXTS)
def test_groups_by_brute_force(texts: list[str]) -> None:
    assert as_sets(near_duplicate_groups(texts)) == components(texts)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_templates_by_brute_force(seed: int) -> None:
    texts = drawn(seed, 180)
    groups, known = (
        as_sets(near_duplicate_groups(texts)),
        has_near_duplicate(texts[:90], texts[90:]),
    )
    assert groups == components(texts) and 20 < len(groups) < 150
    assert known.tolist() == [
        any(are_near_duplicates(a, b) for b in texts[90:]) for a in texts[:90]
    ]
    assert 10 < known.sum() < 80


@pytest.mark.slow
@pytest.mark.parametrize("threshold", [0.3, 0.7, 0.9, 1.0])
def test_any_threshold(monkeypatch, threshold: float) -> None:
    monkeypatch.setattr(near_duplicates, "THRESHOLD", threshold)
    monkeypatch.setitem(are_near_duplicates.__globals__, "THRESHOLD", threshold)
    texts = drawn(7, 120)
    assert as_sets(near_duplicate_groups(texts)) == components(texts)
    assert has_near_duplicate(texts[:60], texts[60:]).tolist() == [
        any(are_near_duplicates(a, b) for b in texts[60:]) for a in texts[:60]
    ]


@pytest.mark.slow
def test_the_collection(sms_file: Path) -> None:
    """The counts in the module's docstring; no group contains both labels."""
    label_of = {message.text: message.label for message in load_messages(sms_file)}
    texts = list(label_of)
    groups = [
        {texts[n] for n in group}
        for group in as_sets(near_duplicate_groups(texts))
        if len(group) > 1
    ]
    labels = [{label_of[text] for text in group} for group in groups]
    assert len(texts) == 5171 and len(groups) == 153 and {len(found) for found in labels} == {1}
    counts = {"spam": 0, "ham": 0}
    for group, (label,) in zip(groups, labels, strict=True):
        counts[label] += len(group)
    assert counts == {"spam": 282, "ham": 112}
    tunes = {text for text in texts if "set as your callertune" in text}
    assert len(tunes) == 2 and tunes in groups


@pytest.mark.slow
def test_large_products_are_computed_in_chunks(monkeypatch, sms_file: Path) -> None:
    """Memory is bounded however many texts have a pair in common, and answers do not change."""
    texts = list({message.text: None for message in load_messages(sms_file)})[:1500]
    groups, known = near_duplicate_groups(texts), has_near_duplicate(texts[:700], texts[700:])
    products = []
    similar = near_duplicates._similar
    monkeypatch.setattr(
        near_duplicates,
        "_similar",
        lambda *pairs: (products.append(1) or chunk for chunk in similar(*pairs)),
    )
    for largest, at_least in ((10**9, 1), (1000, 20), (1, 1000)):
        monkeypatch.setattr(near_duplicates, "LARGEST_PRODUCT", largest)
        products.clear()
        assert near_duplicate_groups(texts) == groups
        assert len(products) >= at_least
        assert (has_near_duplicate(texts[:700], texts[700:]) == known).all()


def test_a_template_of_many_texts_is_one_group() -> None:
    """Every text is near all others, which makes a million pairs."""
    words = ["".join(letters) for letters in product("abcdefgh", repeat=4)][:1500]
    texts = [f"you have won a prize of {word} pounds call now or never" for word in words]
    assert set(near_duplicate_groups(texts)) == {0}
