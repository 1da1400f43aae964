"""The page of explanations shows what is in them, whatever their texts contain."""

from dataclasses import replace
from pathlib import Path

import pytest
from html_reader import Reader

from gpt2_from_scratch.explain.tokens import Explanation, Part
from gpt2_from_scratch.reports.render import render, write_explanations

HOSTILE = "</span><script>alert(1)</script> \" onload='x' {{ 1 }} \x1b\u202e"
FOUND = Explanation(
    "leave-one-out",
    "win  a\n prize",
    False,
    "label",
    "spam",
    2.0,
    0.88,
    (
        Part("win", (0, 3), (0, 1), 1.5, 0.2),
        Part("  a", (3, 6), (1, 3), -0.75, -0.1),
        Part("\n prize", (6, 13), (3, 5), -0.0001, -0.0),
    ),
    "every token left out",
    1.25,
)
AFTER = [("win", 0.5), (" ", 0.25), (" a", 0.125), ("\n", 1.0), (" prize", 0.88)]


def page(*explained: tuple[Explanation, list[tuple[str, float]]]) -> Reader:
    return Reader(render("explanation.html", explained=explained))


def test_words_and_numbers_are_shown() -> None:
    read = page((FOUND, AFTER))
    words = [tag for tag in read.all("span") if "title" in tag]
    assert [word["class"] for word in words] == ["for", "against", "neither"]
    assert [word["title"] for word in words] == ["+1.500", "-0.750", "+0.000"]
    assert [word["style"] for word in words] == [
        f"--strength: {s}" for s in ("0.60", "0.30", "0.00")
    ]
    assert read.texts["span"][:3] == ["win", "a", "prize"]
    assert read.texts["h2"] == ["spam: 88.0%"]
    assert [rect["width"] for rect in read.all("rect")] == ["50.0", "25.0", "12.5", "100.0", "88.0"]
    assert {'" "', r'"\n"', " a"} <= {*read.texts["th"]}
    assert {"+1.500", "+0.200", "-0.750", "-0.100", "+0.000"} <= {*read.texts["td"]}
    shown = " ".join(read.texts["p"])
    assert "2.000" in shown and "1.250" in shown and "+0.750" in shown  # the sum of the values
    assert FOUND.limit in shown and FOUND.baseline in shown


def test_a_value_has_no_probability() -> None:
    parts = tuple(replace(part, probability=None) for part in FOUND.parts)
    value = replace(FOUND, label="stars", probability=None, parts=parts, evidence=-3.5)
    read = page((value, AFTER))
    assert read.texts["h2"] == ["stars: -3.5"]
    assert not read.all("rect")
    assert not any("probability" in text for text in (*read.texts["th"], *read.texts["caption"]))


def test_a_text_without_tokens() -> None:
    read = page((replace(FOUND, text="", parts=()), []))
    assert read.texts["h2"] == ["spam: 88.0%"]
    assert not [tag for tag in read.all("span") if "title" in tag]


@pytest.mark.parametrize("hostile", [HOSTILE, "x" * 5000, "<!-- ]]>"])
def test_hostile_texts_stay_text(hostile: str, tmp_path: Path) -> None:
    part = replace(FOUND.parts[0], text=hostile)
    odd = replace(FOUND, text=hostile, label=hostile, parts=(part,))
    explained = [(odd, [(hostile, 0.5)]), (FOUND, AFTER)]
    write_explanations(explained, tmp_path / "why.html")
    html = (tmp_path / "why.html").read_text("utf-8")
    read = Reader(html)
    assert not read.all("script") and "\x1b" not in html and "\u202e" not in html
    assert not [name for _, attributes in read.tags for name in attributes if name.startswith("on")]
    shown = hostile.replace("\x1b", r"\x1b").replace("\u202e", r"\u202e")
    assert read.texts["span"][0] == shown
    assert any(shown in text for text in read.texts["h2"])
    policy = [m["content"] for m in read.all("meta") if "content" in m]
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in policy
    assert "2 explanations" in read.texts["title"]
