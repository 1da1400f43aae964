"""Pages and cards come out as they were meant, whatever is in their texts.

Pages are read back by html.parser, the card's head by the Hugging Face hub's library and its body
by a Markdown parser.
"""

import base64
import re
import struct
from dataclasses import replace

import numpy as np
import pytest
from html_reader import Reader
from huggingface_hub import ModelCard
from matplotlib.figure import Figure
from run_facts_example import LABELS, answers, assessed, baseline, run_facts, scored
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from gpt2_from_scratch.classifier.settings import HeadSettings, TrainConfig
from gpt2_from_scratch.classifier.tasks.span import SpanScores
from gpt2_from_scratch.data.messages import DataConfig
from gpt2_from_scratch.evaluation.assessment import PredictedText, assess
from gpt2_from_scratch.evaluation.calibration import AtThreshold
from gpt2_from_scratch.evaluation.metrics import LabelledPredictions, evaluate_predictions
from gpt2_from_scratch.reports.findings import RunFacts, distinct_thresholds, run_findings
from gpt2_from_scratch.reports.render import (
    environment,
    escape_markdown,
    render,
    run_pictures,
    write_run_report,
    write_study_report,
)
from gpt2_from_scratch.reports.study_findings import StudyFacts, StudyRow

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


PARTS = """{% extends "base.html" %}
{% block title %}{{ text }}{% endblock %}
{% block main %}
{% for _ in range(3) %}
{% call section(text) %}
<p>{{ text }}</p>
{{ pre(text) }}
{% call table([text, "n"], text) %}{{ row([text, 1]) }}{% endcall %}
{{ texts([reported]) }}
{% if figure %}{% call picture(figure) %}a "line" {{ text }}{% endcall %}{% endif %}
{% endcall %}
{% endfor %}
{% endblock %}"""
PAGE_TAGS = set(
    "html head meta title style body header h1 div p aside h2 ul li nav a main section pre table "
    "caption thead tbody tr th td details summary span".split()
)


def page(text: str, figure: Figure | None = None) -> str:
    """A page with every kind of part, three times."""
    template = environment(".html").from_string(PARTS)
    reported = PredictedText(text, text, text, 0.987)
    return template.render(
        text=text, reported=reported, figure=figure, summary=[text, "second"], warnings=[text]
    )


def as_shown(text: str) -> str:
    """Overrides of the direction as escapes; nothing else in these texts is unsafe."""
    return text.replace("\u202e", r"\u202e").replace("\u2066", r"\u2066")


def figure() -> Figure:
    drawn = Figure(figsize=(4, 2))
    drawn.subplots().plot([1, 2, 3])
    return drawn


# --- the macros of base.html ---


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_texts_come_out_as_text(name):
    text = as_shown(HOSTILE[name])
    line = " ".join(text.split())
    read = Reader(page(HOSTILE[name]))
    as_they_are = {"title": 1, "h1": 1, "p": 4, "li": 1, "pre": 3}
    assert {tag: read.texts[tag].count(text) for tag in as_they_are} == as_they_are
    on_one_line = {"h2": 3, "a": 3, "caption": 3, "th": 6}
    assert {tag: read.texts[tag].count(line) for tag in on_one_line} == on_one_line
    assert {tag for tag, _ in read.tags} <= PAGE_TAGS
    assert read.texts["td"].count(line) >= 6  # true and predicted label of three tables
    if len(text) < 300:
        assert text in read.texts["td"]
    else:  # shown in two pieces
        for first, rest in zip(read.texts["summary"], read.texts["details"], strict=True):
            assert first + rest == text and len(first) <= 300


def test_characters_that_html_cannot_contain_are_escaped():
    text = "a\x00b\x1bc\x7fd\x9fe\ud800f\ud83d\ude00g\rh\r\ni"
    html = page(text)
    read = Reader(html)
    expected = r"a\x00b\x1bc\u007fd\x9fe" + "\ufffdf\U0001f600g\nh\ni"
    assert read.texts["h1"] == [expected] and expected in read.texts["td"]
    html.encode("utf-8")  # no halves of characters are left


def test_the_page_loads_nothing():
    html = page("t", figure())
    read = Reader(html)
    assert html.startswith("<!doctype html>\n<html lang=")
    policy = [
        m["content"] for m in read.all("meta") if m.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    assert {"charset": "utf-8"} in read.all("meta")
    assert any(m.get("name") == "viewport" for m in read.all("meta"))
    assert {tag for tag, _ in read.tags} <= PAGE_TAGS | {"img"}
    for _, attributes in read.tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "action", "srcset"):
            assert attributes.get(name, "#").startswith(("#", "data:image/png;base64,"))
    assert not re.search(r"url\(|@import|https?:", "".join(read.texts["style"]))


def test_pictures_are_inside_twice_as_sharp_and_described_in_words():
    image = Reader(page('">', figure())).all("img")[0]
    png = base64.b64decode(image["src"].removeprefix("data:image/png;base64,"), validate=True)
    assert png[:8] == b"\x89PNG\r\n\x1a\n" and b"matplotlib" not in png
    assert struct.unpack(">II", png[16:24]) == (768, 384)  # 4 x 2 inches of 96 pixels, twice
    assert (image["width"], image["height"], image["alt"]) == ("384", "192", 'a "line" ">')


def test_numbers_are_aligned_to_the_right():
    template = environment(".html").from_string(
        """{% extends "base.html" %}{% block main %}
        {% call table(["name", "note", "n"], numeric=2) %}{{ row(["a", "b", 3], 2) }}{% endcall %}
        {% endblock %}"""
    )
    read = Reader(template.render(summary=["only this"], warnings=[]))
    cells = [attributes.get("class") for tag, attributes in read.tags if tag in ("th", "td")]
    assert cells == [None, None, "number"] * 2
    assert read.texts["td"] == ["b", "3"] and "caption" not in read.texts
    assert not {"aside", "nav", "section"} & {tag for tag, _ in read.tags}  # none without content
    assert read.texts["p"] == ["only this"]


def test_every_heading_has_a_link():
    read = Reader(page("x"))
    targets = [attributes["href"].removeprefix("#") for attributes in read.all("a")]
    ids = [attributes["id"] for _, attributes in read.tags if "id" in attributes]
    assert len(targets) == 3 and len(set(ids)) == len(ids) and set(targets) <= set(ids)


# --- the page of a run ---

SECTIONS = [
    "What was trained",
    "Data",
    "Ledger",
    "Curves",
    "Scores",
    "Confusion",
    "Baselines on the same split",
    "Calibration",
    "Thresholds",
    "Mistakes",
    "Least certain",
    "How to use it",
    "Versions and seeds",
]


class Page:
    """A page read back: its text by element, and the tables of each section."""

    def __init__(self, html: str):
        self.read, self.sections = Reader(html), {}
        for part in html.split("<section ")[1:]:
            read = Reader("<section " + part.split("</section>")[0] + "</section>")
            self.sections[read.texts["h2"][0]] = read
        self.tables = {
            title: [rows(table) for table in re.findall("<table.*?</table>", part, re.S)]
            for title, part in zip(self.sections, html.split("<section ")[1:], strict=True)
        }


def rows(table: str) -> list[list[str]]:
    """The cells of a table's body."""
    body = table[table.index("<tbody>") :]
    cells = [
        re.findall("<t[hd].*?</t[hd]>", row, re.S) for row in re.findall("<tr>.*?</tr>", body, re.S)
    ]
    return [["".join(Reader(c).texts[c[1:3]]) for c in row] for row in cells]


def run_page(facts: RunFacts, **pictures: Figure | None) -> Page:
    """The page of a run, with small pictures in place of its own."""
    small = dict.fromkeys(["curves", "accuracies", "reliability"], figure())
    given = {"confusion": None, "trade": None} | small | pictures
    return Page(render("run.html", **run_findings(facts), **given))


def whole() -> RunFacts:
    return run_facts(
        assessment=assessed(n_near=100),
        predictions=answers(300, 15),
        n_near_duplicates=100,
        n_cut=3,
    )


@pytest.mark.slow
def test_all_of_a_run_in_order(tmp_path):
    write_run_report(whole(), tmp_path)
    page = Page((tmp_path / "report.html").read_text("utf-8"))
    assert page.read.texts["title"] == page.read.texts["h1"] == ["GPT-2 mini on inbox.csv"]
    assert page.read.texts["p"][:3] == run_findings(whole())["summary"]
    assert (
        page.read.texts["li"][: len(run_findings(whole())["warnings"])]
        == run_findings(whole())["warnings"]
    )
    assert list(page.sections) == page.read.texts["a"] == SECTIONS
    pictures = page.read.all("img")
    assert len(pictures) == 5 and all(len(image["alt"]) > 40 for image in pictures)
    assert {path.name for path in tmp_path.iterdir()} == {
        "report.html",
        "model_card.md",
        "curves.png",
    }


@pytest.mark.slow
def test_equal_facts_give_equal_bytes(tmp_path):
    found = []
    for _ in range(2):
        write_run_report(whole(), tmp_path)
        found.append({path.name: path.read_bytes() for path in tmp_path.iterdir()})
    assert found[0] == found[1]
    assert (
        found[0]["report.html"].endswith(b"</html>\n") and len(found[0]["report.html"]) < 3_000_000
    )
    assert found[0]["model_card.md"].endswith(b"|\n")


@pytest.mark.slow
def test_reports_contain_no_folders(tmp_path):
    write_run_report(whole(), tmp_path)
    for name in ("report.html", "model_card.md"):
        text = (tmp_path / name).read_text("utf-8")
        assert "inbox.csv" in text and "somebody" not in text and "secret folder" not in text


@pytest.mark.parametrize(
    ("training", "blocks", "epochs"),
    [
        (TrainConfig(n_last_blocks=0, epochs=10), "none", "10"),
        (TrainConfig(n_last_blocks=1, epochs=100), "the last", "100"),
        (TrainConfig(n_last_blocks=3, epochs=4), "the last 3", "4"),
        (TrainConfig(trainable="head.*", epochs=10), "head.*", "10"),
        (None, "–", "–"),
    ],
)
def test_what_was_trained(training, blocks, epochs):
    head = HeadSettings(lora=8) if training else None
    page = run_page(run_facts(training=training, head=head))
    found = dict(page.tables["What was trained"][0])
    assert found["trainable blocks"] == blocks and found["epochs"] == f"1 of at most {epochs}"
    assert found["trainable parameters"] == "790,786 of 5,886,466 (13.4%)"
    assert found["LoRA"] == ("rank 8" if head else "none")
    assert found["head"] == ("linear, reads end_token" if head else "–")


def test_the_page_and_the_card_of_many_labels_are_bounded():
    labels = [f"label {k}" for k in range(77)]
    true = np.arange(770) % 77
    scores = evaluate_predictions(true, np.where(true % 3, true, 76 - true), labels)
    counts = {"train": {label: 100 - k for k, label in enumerate(labels)}}
    counts |= {"val": dict.fromkeys(labels, 2), "test": dict.fromkeys(labels, 10)}
    facts = run_facts(
        scores=scores, counts=counts, assessment=None, baselines=[], n_near_duplicates=None
    )
    page = run_page(facts)
    (data,), scored_classes = page.tables["Data"], page.tables["Scores"][1]
    assert len(data) == 22 and data[0] == ["label 76", "24", "2", "10", "36"]
    others = [sum(100 - k for k in range(57)), 57 * 2, 57 * 10]
    assert data[20] == ["57 other labels", *map("{:,}".format, [*others, sum(others)])]
    assert data[21][0] == "all" and len(scored_classes) == 20
    assert {row[2] for row in scored_classes} == {"0.0%"}  # the weakest, every third label
    assert "Confusion" in page.tables and len(page.tables["Confusion"][0]) == 10
    card = render("model_card.md", **run_findings(facts))
    assert "label (20 weakest of 77)" in card and len(card.splitlines()) < 150


def test_the_counts_and_the_scores():
    page = run_page(whole())
    assert page.tables["Data"] == [
        [
            ["ham", "525", "100", "150", "775"],
            ["spam", "525", "100", "150", "775"],
            ["all", "1,050", "200", "300", "1,550"],
        ]
    ]
    assert "Texts that were cut to 384 tokens: 3." in page.sections["Data"].texts["p"]
    accuracies, classes = page.tables["Scores"]
    assert [row[1] for row in accuracies] == ["95.0%", "92.5%"]
    assert [row[3:5] for row in accuracies] == [["285", "300"], ["185", "200"]]
    test = answers(300, 15)
    parts = [(test.true[:n], test.predicted[:n]) for n in (300, 200)]
    f1s = [f"{100 * f1_score(*part, average='macro'):.1f}%" for part in parts]
    assert [row[5] for row in accuracies] == f1s
    assert f"The macro F1 is {f1s[0]}." in render("model_card.md", **run_findings(whole()))
    # of the first 15 texts, predicted wrongly, 8 are ham: 142 of 150 found, of 149 predicted so
    assert classes[0][:5] == ["ham", "95.3%", "94.7%", "95.0%", "150"]
    area = roc_auc_score(test.true, test.probabilities[:, 1])
    precision = average_precision_score(test.true, test.probabilities[:, 1])
    assert [row[5] for row in classes] == [f"{area:.4f}"] * 2
    assert classes[1][6] == f"{precision:.4f}"


def test_the_score_card_comes_first():
    """Counted by hand from the first 15 texts, which are wrong: 8 are ham and 7 are spam."""
    card = dict(run_findings(whole())["card"])
    assert card["accuracy on the test set"].startswith("95.0% (285 of 300")
    assert "143 of 150 spam" in card["messages"] and "8 of 150 good" in card["messages"]
    assert card["accuracy of the best text baseline (bag of words)"] == "85.0%"
    cells = run_page(whole()).read.texts["td"]
    assert cells.index(dict(run_findings(whole())["card"])["messages"]) < cells.index("text 15")


def test_examples_are_correct_texts_and_then_mistakes():
    found = run_findings(run_facts(predictions=answers(300, 15)))["examples"]
    assert [one.text for one in found[:3]] == ["text 15", "text 16", "text 17"]
    assert [one.true == one.predicted for one in found] == [True] * 3 + [False] * 3
    assert run_findings(run_facts())["examples"] == []


def test_equal_thresholds_are_one_row():
    at = AtThreshold("spam", 0.9, 1, 150, 140, 150, 0.03, allowed_per_1000=0)
    same, other = replace(at, allowed_per_1000=5), replace(at, threshold=0.5, allowed_per_1000=20)
    rows = distinct_thresholds([at, same, other, replace(other, allowed_per_1000=None)])
    assert rows == [("0, 5 of 1,000", at), ("20 of 1,000", other)]
    assert distinct_thresholds([replace(at, allowed_per_1000=None)])[0][0] == "–"


def test_baselines_are_next_to_the_run_the_best_first():
    found = [baseline("length | alone", 100), baseline("bag", 12), baseline("regex", 60)]
    [table] = run_page(run_facts(baselines=found)).tables["Baselines on the same split"]
    names = ["bag", "GPT-2 mini, this run", "regex", "length | alone"]
    assert [row[0] for row in table] == names
    assert [row[1] for row in table] == ["96.0%", "95.0%", "80.0%", "66.7%"]
    assert [row[3] for row in table] == ["-1.0", "–", "+15.0", "+28.3"]
    assert [row[5] for row in table] == ["0.250", "–", "< 0.001", "< 0.001"]  # 2 / 2 ** 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "names"),
    [
        ({"temperature": 1.0}, ["as trained"]),
        ({"temperature": 1.0, "uncalibrated": None}, ["as trained"]),
        ({}, ["as trained", "temperature 1.50"]),
        ({"uncalibrated": None}, ["temperature 1.50"]),
    ],
)
def test_the_calibration_before_and_after_the_temperature(changed, names):
    found = replace(assessed(), **changed)
    page = run_page(run_facts(assessment=found))
    [table] = page.tables["Calibration"]
    assert [row[0] for row in table] == names
    assert table[-1][1] == f"{found.calibration.brier:.4f}"
    fitted = "fitted on the validation set" in page.sections["Calibration"].texts["p"][0]
    assert fitted == (names[-1] != "as trained")


@pytest.mark.slow
def test_thresholds_and_their_picture():
    facts = run_facts(assessment=assessed(), predictions=answers(300, 15))
    page = run_page(facts, trade=figure())
    [table] = page.tables["Thresholds"]
    rows = {limit: row for row in table for limit in row[0].removesuffix(" of 1,000").split(", ")}
    assert [*rows] == ["0", "5", "10", "20"]
    for row, at in zip(rows.values(), facts.assessment.thresholds, strict=True):
        assert (row[2], row[4]) == (f"{at.false_positives} of 150", f"{at.true_positives} of 150")
    assert len({row[1] for row in table}) == len(table)  # equal thresholds are one row
    [image] = page.sections["Thresholds"].all("img")
    assert "spam" in image["alt"]
    assert run_pictures(run_findings(facts))["trade"]
    assert not run_pictures(run_findings(replace(facts, predictions=None)))["trade"]


@pytest.mark.parametrize(
    ("probability", "reported"),
    [(1.0, "never"), (1 - 1e-7, "1.0000"), (1 - 1e-5, "0.999995"), (0.5, "0.7")],
)
def test_a_threshold_is_shown_without_misleading_rounding(probability, reported):
    """A ham that gets `probability` of spam: the threshold lies midway from there to 1, or above."""
    probabilities = np.array(
        [[1 - probability, probability], [0.1, 0.9 * probability + 0.1 - 0.1 * probability]]
    )
    probabilities[1] = [1 - probabilities[1, 1], probabilities[1, 1]]
    val = LabelledPredictions(LABELS, ["good", "spam"], np.array([0, 1]), probabilities)
    found = assess(answers(300, 15), val, positive="spam", allowed_per_1000=(0,))
    [table] = run_page(run_facts(assessment=found)).tables["Thresholds"]
    assert table[0][1].startswith(reported)


def test_mistakes_are_shown_as_they_are():
    page = run_page(whole())
    table = page.read.texts["td"]
    start = table.index("text 0")
    assert table[start : start + 4] == ["text 0", "ham", "spam", "90.0%"]
    assert len(page.sections["Mistakes"].all("tr")) == 1 + 10


def test_most_frequent_confusions_of_many_labels():
    labels = [f"c{k}" for k in range(40)]
    true = np.repeat(np.arange(40), 5)
    said = np.where(true == 7, 3, true)
    said[0] = 9
    scores = evaluate_predictions(true, said, labels)
    counts = {p: dict.fromkeys(labels, 5) for p in ("train", "val", "test")}
    facts = run_facts(scores=scores, counts=counts, assessment=None, baselines=[])
    page = run_page(facts)
    assert page.tables["Confusion"] == [[["c7", "c3", "5"], ["c0", "c9", "1"]]]
    assert not run_pictures(run_findings(facts))["confusion"]  # no room for 40 classes


def another_task() -> RunFacts:
    scores = SpanScores(290, 300, (0.94, 0.98), 0.97)
    counts = {"train": {"texts": 1000}, "val": {"texts": 200}, "test": {"texts": 300}}
    return run_facts(task="span", scores=scores, counts=counts, assessment=None, baselines=[])


def test_another_task_has_its_own_scores_and_no_classes():
    page = run_page(another_task())
    without = {"Confusion", "Baselines on the same split", "Calibration", "Thresholds"}
    without |= {"Mistakes", "Least certain"}
    assert list(page.sections) == [title for title in SECTIONS if title not in without]
    assert page.sections["Scores"].texts["pre"] == [another_task().scores.as_table()]


def test_the_baselines_of_another_task_are_a_small_table():
    found = [("a | b", SpanScores(0, 300, (0.0, 0.01), 0.125)), ("c", another_task().scores)]
    facts = replace(another_task(), task_baselines=found)
    [table] = run_page(facts).tables["Baselines on the same split"]
    rows = [["GPT-2 mini, this run", "97.0%"], ["c", "97.0%"], ["a | b", "12.5%"]]
    assert table == rows
    read = body(facts).texts["td"]
    start = read.index("GPT-2 mini, this run")
    assert read[start : start + 6] == [cell for row in rows for cell in row]


def test_without_a_history_there_are_no_curves():
    page = run_page(run_facts(history=[]))
    assert "Curves" not in page.sections and "Calibration" in page.sections
    assert "epochs" not in dict(page.tables["What was trained"][0])


@pytest.mark.slow
def test_hostile_labels_and_texts_of_a_run_stay_text(tmp_path):
    evil = ("<img src=x onerror=alert(1)>", "'\"</style><script>")
    test = answers(300, 15, evil)
    test.texts[:] = [f"<script>{n}</script>" for n in range(300)]
    counts = {p: dict.fromkeys(evil, 150) for p in ("train", "val", "test")}
    found = assess(test, answers(200, 8, evil))
    facts = run_facts(
        counts=counts,
        scores=scored(test),
        assessment=found,
        predictions=test,
        data=DataConfig(source="<b>.csv"),
        ledger="<b>",
        split="<i>",
        run="<u>'",
        versions={"<s>": "<s>"},
    )
    write_run_report(facts, tmp_path)
    read = Reader((tmp_path / "report.html").read_text("utf-8"))
    assert {tag for tag, _ in read.tags} <= PAGE_TAGS | {"img"}
    assert len(read.all("img")) == 5 and "<script>0</script>" in read.texts["td"]
    assert evil[0] in read.texts["th"] and "GPT-2 mini on <b>.csv" in read.texts["h1"]
    assert evil[0] in read.all("img")[1]["alt"]


# --- the model card ---

HOSTILE_MARKDOWN = [
    "<script>alert(1)</script>",
    "*a* _b_ `c` ~~d~~",
    "[x](http://evil.example)",
    "![x](y)",
    "| a | b |",
    "# heading",
    "1. item",
    "- item",
    "+ item",
    "---",
    "&lt; &amp;",
    "a\\",
    "\\*",
    "$x$",
    "<http://evil.example>",
    "line\nbreak",
    "===",
    "> quote",
    "2) item",
    "``` sh",
    "[ref]: http://x",
]


def rendered(markdown: str) -> Reader:
    """The card as Markdown's own parser makes HTML of it; with tables, links and HTML on."""
    parser = pytest.importorskip("markdown_it").MarkdownIt("commonmark", {"html": True})
    return Reader(parser.enable(["table", "strikethrough"]).render(markdown))


def card(facts: RunFacts) -> str:
    return render("model_card.md", **run_findings(facts))


def body(facts: RunFacts) -> Reader:
    return rendered(card(facts).split("\n---\n", 1)[1])


@pytest.mark.parametrize(
    ("model", "base"),
    [
        ("124M", "openai-community/gpt2"),
        ("1558M", "openai-community/gpt2-xl"),
        ("mini", None),
        ("/x/y", None),
    ],
)
def test_the_head_is_read_by_the_hub(model, base):
    data = ModelCard(card(run_facts(model=model))).data.to_dict()
    expected = {
        "tags": ["gpt2", "gpt2-from-scratch", "text-classification"],
        "metrics": ["accuracy"],
    }
    assert data == expected | ({"base_model": base} if base else {})  # no licence, no language


def test_all_sections_of_the_card():
    read = body(run_facts(assessment=assessed(n_near=100), n_near_duplicates=100))
    assert read.texts["h1"] == ["GPT-2 mini on inbox.csv"]
    assert read.texts["h2"] == [
        "Training data",
        "Scores",
        "Calibration",
        "Intended use",
        "Limits",
        "How to use it",
        "Versions",
    ]
    reported = " ".join(read.texts["p"])
    assert "95.0% (285 of 300 correct" in reported and "92.5% (185 of 200 correct" in reported
    assert "temperature of 1.50" in reported and "Equal texts count once" in reported
    assert "b9" * 32 in read.texts["td"] and "bag of words" in read.texts["td"]
    assert any("McNemar" in paragraph and "Holm" in paragraph for paragraph in read.texts["p"])
    assert "gpt2-classifier predict runs/mini-demo-5" in read.texts["code"][1]
    assert "Classifier.load('runs/mini-demo-5')" in read.texts["code"][2]
    assert read.texts["td"][:8] == ["ham", "525", "100", "150", "spam", "525", "100", "150"]


def test_without_a_temperature_probabilities_are_as_trained():
    assert "The probabilities were not changed after training. On the test set" in card(run_facts())


def test_limits_are_the_warnings():
    facts = run_facts(n_cut=3, baselines=[baseline("bag_of_*words*", 12)])
    warnings = run_findings(facts)["warnings"]
    assert len(warnings) == 3 and body(facts).texts["li"] == warnings


@pytest.mark.parametrize("text", HOSTILE_MARKDOWN)
def test_escaped_markdown_is_shown_as_it_is(text):
    escaped = escape_markdown(text)
    read = rendered(f"{escaped}\n\n- {escaped}\n\n| a |\n| - |\n| {escaped} |\n")
    shown = " ".join(text.split())
    assert read.texts["p"] == [shown] and read.texts["li"][0].strip() == shown
    assert read.texts["td"] == [shown]
    assert {tag for tag, _ in read.tags} == set("p ul li table thead tbody tr th td".split())


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("https://evil.example", "https\\://evil.example"),
        ("www.evil.example", "www\\.evil.example"),
        ("me@evil.example", "me\\@evil.example"),
        ("1.5 and -3", "1.5 and -3"),
        ("95.0% (285 of 300)", "95.0% (285 of 300)"),
    ],
)
def test_addresses_make_no_links_and_numbers_stay_as_they_are(text, escaped):
    assert escape_markdown(text) == escaped


def test_code_does_not_end_early():
    text = "a\n```\n# b\n````\nc"
    read = rendered(environment(".md").from_string("{{ text|fenced|safe }}").render(text=text))
    assert read.texts["code"] == [text + "\n"] and "h1" not in read.texts


def test_hostile_labels_of_the_card_stay_in_their_cells():
    evil = ("ham | <b>\n---", "](x) `")
    counts = {p: dict.fromkeys(evil, 150) for p in ("train", "val", "test")}
    read = body(
        run_facts(
            counts=counts,
            scores=scored(answers(300, 15, evil)),
            data=DataConfig(source="a_b*.csv"),
            run="```",
            split="# not a heading <b>",
            versions={"<b>": "*x*"},
        )
    )
    assert read.texts["td"][0] == "ham | <b> ---" and read.texts["td"][4] == "](x) `"
    assert not {"b", "a", "hr", "em"} & {tag for tag, _ in read.tags}
    assert read.texts["h1"] == ["GPT-2 mini on a_b*.csv"]


def test_the_card_of_another_task():
    data = ModelCard(card(another_task())).data.to_dict()
    assert data["metrics"] == ["f1"] and "question-answering" in data["tags"]
    assert ModelCard(card(replace(another_task(), task="regression"))).data.metrics == ["r_squared"]
    read = body(another_task())
    assert "Calibration" not in read.texts["h2"] and "F1 97.00%" in read.texts["code"][0]


# --- the page of a study ---


def study() -> StudyFacts:
    ours, bag = answers(300, 15), answers(300, 45)
    rows = [
        StudyRow(
            "ours", 0.95, (0.92, 0.97), (0.95,), f1=0.95, roc_auc=0.99, brier=0.1, seconds=2.0
        ),
        StudyRow(
            "bag: of words",
            0.85,
            (0.81, 0.89),
            (0.85,),
            difference=-0.1,
            difference_interval=(-0.15, -0.05),
            p=0.0001,
            is_text_baseline=True,
            f1=0.85,
            roc_auc=None,
            brier=0.2,
            without_near_duplicates=0.8,
            learned=["a|b"],
            seconds=0.04,
        ),
    ]
    return StudyFacts(
        title="ours and what it must beat",
        model="/home/somebody/mini",
        data="/home/somebody/inbox.csv",
        rows=rows,
        reference="ours",
        splits=["seed 1"],
        n_train=700,
        n_test=300,
        labels=LABELS,
        positive="spam",
        predictions={"ours": [ours], "bag: of words": [bag]},
        settings={"model": "/home/somebody/mini", "lr": 0.0005},
        versions={"torch": "2.9"},
    )


def study_page(folder, facts: StudyFacts) -> Page:
    write_study_report(facts, folder)
    return Page((folder / "scoreboard.html").read_text("utf-8"))


@pytest.mark.slow
def test_all_of_a_study_in_order(tmp_path):
    page = study_page(tmp_path, study())
    assert page.read.texts["h1"] == ["ours and what it must beat"]
    assert list(page.sections) == page.read.texts["a"]
    assert list(page.sections) == [
        "Scores",
        "Differences from ours",
        "Calibration",
        "Only bag: of words is correct",
        "Only ours is correct",
        "Settings",
        "Versions and seeds",
    ]
    scores, learned = page.tables["Scores"]
    assert scores[0] == ["ours", "95.0%", "92.0 to 97.0", "95.0%", "0.9900", "0.1000", "–", "2.0"]
    assert scores[1][4:] == ["–", "0.2000", "80.0%", "0.0"]
    assert learned == [["bag: of words", "seed 1", "a|b"]]
    [differences] = page.tables["Differences from ours"]
    assert differences == [["bag: of words", "-10.00", "-15.00 to -5.00", "< 0.001", "no"]]
    assert page.tables["Settings"] == [[["model", "mini"], ["lr", "0.0005"]]]
    assert page.tables["Versions and seeds"][0][-1] == ["splits and their seeds", "seed 1"]
    assert "somebody" not in str(page.read.texts)
    assert len(page.read.all("img")) == 2 and (tmp_path / "scoreboard.png").stat().st_size > 1000


@pytest.mark.slow
def test_texts_that_only_one_has_correct(tmp_path):
    """Of the first 45 texts, which the bag has wrong, ours has the first 15 wrong too."""
    page = study_page(tmp_path, study())
    found = page.sections["Only ours is correct"]
    assert "30 texts" in found.texts["p"][0] and "first 15" in found.texts["p"][0]
    texts = [cell for cell in found.texts["td"] if cell.startswith("text")]
    assert texts == [f"text {n}" for n in range(15, 30)]  # the most confident first
    assert page.sections["Only bag: of words is correct"].texts["p"] == ["No text."]


def test_changes_of_a_reference(tmp_path):
    rows = [
        StudyRow("default", 0.9, (0.8, 1.0), (0.9, 0.9), published=0.95, published_as="row 16"),
        StudyRow(
            "first token",
            0.6,
            (0.5, 0.7),
            (0.5, 0.7),
            difference=-0.3,
            p=0.001,
            change="token position",
        ),
    ]
    facts = StudyFacts(
        "Experiments",
        "mini",
        "hard",
        rows,
        "default",
        ["seed 1", "seed 2"],
        30,
        published_in="the book",
        notes=["a *note*"],
    )
    page = study_page(tmp_path, facts)
    titles = ["What makes a difference", "Scores", "Differences from default", "Notes"]
    assert list(page.sections) == [*titles, "Versions and seeds"]
    [scores] = page.tables["Scores"]
    assert scores[0] == ["default", "90.0%", "80.0 to 100.0", "90.0%, 90.0%", "95.0% (row 16)", "–"]
    assert scores[1][-2] == "–"  # not in the book
    assert page.tables["Differences from default"][0][0][2:] == ["–", "0.001", "no"]
    assert page.sections["Notes"].texts["p"] == ["a *note*"]


@pytest.mark.slow
def test_hostile_texts_of_a_study_stay_text(tmp_path):
    evil = "</td></table><script>alert('owned')</script> {{ page }} \u202e\x00 \ud800 &lt; "
    facts = study()
    rows = [facts.rows[0], replace(facts.rows[1], learned=[evil])]
    hostile = [
        replace(answered, labels=("ham", "<b>spam</b>"), texts=[evil + t for t in answered.texts])
        for (answered,) in facts.predictions.values()
    ]
    facts = replace(
        facts,
        title=evil,
        rows=rows,
        labels=("ham", "<b>spam</b>"),
        positive="<b>spam</b>",
        predictions=dict(zip(facts.predictions, [[one] for one in hostile], strict=True)),
        settings={"x": evil},
        notes=[evil],
        warnings=[evil],
    )
    read = study_page(tmp_path, facts).read
    assert {tag for tag, _ in read.tags} <= PAGE_TAGS | {"img"}
    shown = [text for text in read.texts["td"] if text.startswith("</td></table><script>")]
    assert len(shown) == 15 + 1 + 1  # mistakes, what was learned, the setting
    assert all("{{ page }}" in text for text in shown)
