"""The model card read back: its head by the Hugging Face hub's library, its body by a Markdown parser."""

import pytest
from html_reader import Reader
from huggingface_hub import ModelCard
from run_facts_example import answers, assessed, baseline, run_facts, scored

from gpt2_from_scratch.classifier.tasks.span import SpanScores
from gpt2_from_scratch.reports.findings import run_warnings
from gpt2_from_scratch.reports.model_card import fenced, model_card
from gpt2_from_scratch.reports.render import escape


def rendered(markdown: str) -> Reader:
    """The card as Markdown's own parser makes HTML of it; with tables, links and HTML on."""
    parser = pytest.importorskip("markdown_it").MarkdownIt("commonmark", {"html": True})
    return Reader(parser.enable(["table", "strikethrough"]).render(markdown))


def body(card: str) -> str:
    return card.split("\n---\n", 1)[1]


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
    data = ModelCard(model_card(run_facts(model=model))).data.to_dict()
    expected = {
        "tags": ["gpt2", "gpt2-from-scratch", "text-classification"],
        "metrics": ["accuracy"],
    }
    assert data == expected | ({"base_model": base} if base else {})  # no licence, no language


def test_all_its_sections_are_there():
    read = rendered(body(model_card(run_facts(assessment=assessed(twins=100), n_near_twins=100))))
    assert read.texts["h1"] == ["GPT-2 mini on inbox.csv"]
    assert read.texts["h2"] == [
        "What it was trained on",
        "How good it is",
        "Calibration",
        "What it is for",
        "Limits",
        "How to load it",
        "Versions",
    ]
    told = " ".join(read.texts["p"])
    assert "95.0 % (285 of 300 right" in told and "92.5 % (185 of 200 right" in told
    assert "temperature 1.50" in told and "equal texts count once" in told
    assert "b9" * 32 in read.texts["td"] and "bag of words" in read.texts["td"]
    assert "p is McNemar's, adjusted for the number of baselines (Holm)." in read.texts["p"]
    assert "gpt2-classifier predict runs/mini-demo-5" in read.texts["code"][1]
    assert "Classifier.load('runs/mini-demo-5')" in read.texts["code"][2]
    assert read.texts["td"][:8] == ["ham", "525", "100", "150", "spam", "525", "100", "150"]


def test_without_a_temperature_probabilities_are_as_trained():
    assert "Probabilities are as trained. On the test part" in model_card(run_facts())


def test_limits_are_the_warnings():
    facts = run_facts(n_cut=3, baselines=[baseline("bag_of_*words*", 12)])
    warnings = run_warnings(facts)
    assert len(warnings) == 3 and rendered(body(model_card(facts))).texts["li"] == warnings


HOSTILE = [
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


@pytest.mark.parametrize("text", HOSTILE)
def test_what_is_escaped_is_shown_as_it_is(text):
    read = rendered(f"{escape(text)}\n\n- {escape(text)}\n\n| a |\n| - |\n| {escape(text)} |\n")
    shown = " ".join(text.split())
    assert read.texts["p"] == [shown] and read.texts["li"][0].strip() == shown
    assert read.texts["td"] == [shown]
    assert {tag for tag, _ in read.tags} == {
        "p",
        "ul",
        "li",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
    }


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("https://evil.example", "https\\://evil.example"),
        ("www.evil.example", "www\\.evil.example"),
        ("me@evil.example", "me\\@evil.example"),
        ("1.5 and -3", "1.5 and -3"),
        ("95.0 % (285 of 300)", "95.0 % (285 of 300)"),
    ],
)
def test_addresses_make_no_links_and_numbers_stay_as_they_are(text, escaped):
    assert escape(text) == escaped


def test_code_does_not_end_early():
    read = rendered(fenced("sh", "a\n```\n# b\n````\nc"))
    assert read.texts["code"] == ["a\n```\n# b\n````\nc\n"] and "h1" not in read.texts


def test_hostile_labels_stay_in_their_cells():
    evil = ("ham | <b>\n---", "](x) `")
    counts = {p: dict.fromkeys(evil, 150) for p in ("train", "val", "test")}
    facts = run_facts(
        counts=counts, scores=scored(answers(300, 15, evil)), data="a_b*.csv", run="```"
    )
    read = rendered(body(model_card(facts)))
    assert read.texts["td"][0] == "ham | <b> ---" and read.texts["td"][4] == "](x) `"
    assert not {"b", "a", "hr", "em"} & {tag for tag, _ in read.tags}
    assert read.texts["h1"] == ["GPT-2 mini on a_b*.csv"]


def test_another_task():
    scores = SpanScores(290, 300, (0.94, 0.98), 0.97)
    counts = {"train": {"texts": 1000}, "val": {"texts": 200}, "test": {"texts": 300}}
    card = model_card(
        run_facts(task="span", scores=scores, counts=counts, assessment=None, baselines=[])
    )
    data = ModelCard(card).data.to_dict()
    assert data["metrics"] == ["f1"] and "question-answering" in data["tags"]
    read = rendered(body(card))
    assert "Calibration" not in read.texts["h2"] and "F1 97.00%" in read.texts["code"][0]


def test_equal_facts_equal_cards():
    assert model_card(run_facts()) == model_card(run_facts())
    assert model_card(run_facts()).endswith("|\n")
