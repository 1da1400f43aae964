"""A page comes out as it was meant, whatever is in its texts: read back by html.parser."""

import base64
import re
import struct

import pytest
from html_reader import Reader
from matplotlib.figure import Figure

from gpt2_from_scratch.reports.render import (
    Page,
    Picture,
    Preformatted,
    Section,
    Table,
    Text,
    Texts,
    render,
    write_page,
)

HOSTILE = {
    "script": "<script>alert('owned')</script>",
    "closing": '</td></table></title></style></pre><img src=x onerror="alert(1)">',
    "quotes": '" onload="alert(1)" \' x=\'',
    "entities": "&lt;b&gt; &amp; &#60;",
    "template": "{{ page.title }} {% raw %} {# no #}",
    "right to left": "abc \u202e gnp.exe \u2066 שלום",
    "emoji": "👩‍👩‍👧 🇩🇪 ✨",
    "comment": "<!-- never closed ]]> <![CDATA[ <?php",
    "spaces": "  two  spaces\n\n\tand a tab ",
    "long": "10,000 <i> " + "ab< " * 2500,
    "unbroken": "x" * 10_000,
}


def page(text: str) -> Page:
    parts = [
        Text(text),
        Preformatted(text),
        Table([text, "n"], [[text, "1"]], caption=text),
        Texts([(text, text, text, 0.987)]),
    ]
    return Page(text, [text, "second"], [text], [Section(text, parts)] * 3)


def figure() -> Figure:
    drawn = Figure(figsize=(4, 2))
    drawn.subplots().plot([1, 2, 3])
    return drawn


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_texts_come_out_as_text(name):
    text = HOSTILE[name]
    read = Reader(render(page(text)))
    expected = {"title": 1, "h1": 1, "p": 4, "li": 1, "h2": 3, "a": 3, "pre": 3, "caption": 3}
    assert {tag: read.texts[tag].count(text) for tag in expected} == expected
    assert read.texts["th"].count(text) == 6
    tags = {tag for tag, _ in read.tags}
    assert tags <= {
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "header",
        "h1",
        "div",
        "p",
        "aside",
        "h2",
        "ul",
        "li",
        "nav",
        "a",
        "main",
        "section",
        "pre",
        "table",
        "caption",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "details",
        "summary",
        "span",
    }
    if len(text) < 300:
        assert read.texts["td"].count(text) == 9  # text, true and predicted of three tables
    else:  # shown in two pieces
        assert read.texts["summary"] + read.texts["details"] != ["", ""]
        for first, rest in zip(read.texts["summary"], read.texts["details"], strict=True):
            assert first + rest == text and len(first) <= 300


def test_what_html_cannot_hold_becomes_a_replacement():
    text = "a\x00b\x1bc\x7fd\x9fe\ud800f\ud83d\ude00g\rh\r\ni"
    read = Reader(render(page(text)))
    expected = "a\ufffdb\ufffdc\ufffdd\ufffde\ufffdf\U0001f600g\nh\ni"
    assert read.texts["h1"] == [expected] and expected in read.texts["td"]
    render(page(text)).encode("utf-8")  # no halves of characters are left


def test_the_page_asks_nobody_for_anything():
    html = render(Page("t", [], [], [Section("s", [Picture(figure(), 'a "line"')])]))
    read = Reader(html)
    assert html.startswith("<!doctype html>\n<html lang=")
    policy = [
        m["content"] for m in read.all("meta") if m.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    assert {"charset": "utf-8"} in read.all("meta")
    assert any(m.get("name") == "viewport" for m in read.all("meta"))
    assert not {"script", "link", "iframe", "object", "form", "base"} & {t for t, _ in read.tags}
    for _, attributes in read.tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "action", "srcset"):
            assert attributes.get(name, "#").startswith(("#", "data:image/png;base64,"))
    assert not re.search(r"url\(|@import|https?:", "".join(read.texts["style"]))


def test_pictures_are_inside_twice_as_sharp_and_told_in_words():
    read = Reader(render(Page("t", [], [], [Section("s", [Picture(figure(), 'a "line"')])])))
    [image] = read.all("img")
    png = base64.b64decode(image["src"].removeprefix("data:image/png;base64,"), validate=True)
    assert png[:8] == b"\x89PNG\r\n\x1a\n" and b"matplotlib" not in png
    assert struct.unpack(">II", png[16:24]) == (768, 384)  # 4 x 2 inches of 96 pixels, twice
    assert (image["width"], image["height"], image["alt"]) == ("384", "192", 'a "line"')


def test_equal_pages_are_equal_bytes(tmp_path):
    for name in ("a", "b"):
        sections = [Section("s", [Picture(figure(), "x"), *page("<b>").sections[0].parts])]
        write_page(tmp_path / name, Page("t", ["x"], ["y"], sections))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").read_bytes().decode("utf-8").endswith("</html>\n")


def test_numbers_stand_at_the_right_from_the_named_column_on():
    table = Table(["name", "note", "n"], [["a", "b", "3"]], numeric=2)
    read = Reader(render(Page("t", [], [], [Section("s", [table])])))
    cells = [attributes.get("class") for tag, attributes in read.tags if tag in ("th", "td")]
    assert cells == [None, None, "number"] * 2
    assert read.texts["td"] == ["b", "3"] and "caption" not in read.texts


def test_what_is_not_there_leaves_no_heading():
    read = Reader(render(Page("t", ["only this"])))
    assert not {"aside", "nav", "section"} & {tag for tag, _ in read.tags}
    assert read.texts["p"] == ["only this"]


def test_every_heading_can_be_jumped_to():
    read = Reader(render(page("x")))
    targets = [attributes["href"].removeprefix("#") for attributes in read.all("a")]
    ids = [attributes["id"] for _, attributes in read.tags if "id" in attributes]
    assert len(targets) == 3 and len(set(ids)) == len(ids) and set(targets) <= set(ids)
