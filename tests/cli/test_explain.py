"""The command `explain`: colours, numbers, JSON and pages, and errors."""

import io
import json
import re
import sys
from pathlib import Path

import pytest
from command import call
from html_reader import Reader
from tiny import random_classifier

from gpt2_from_scratch.classifier.classifier import Classifier
from gpt2_from_scratch.classifier.settings import HeadConfig
from gpt2_from_scratch.cli.main import main
from gpt2_from_scratch.explain.gradients import gradient_times_input, integrated_gradients
from gpt2_from_scratch.explain.tokens import leave_one_out

TEXT = "you and the cat, don't win 🎉 in the house!"
COLOUR = re.compile(r"\x1b\[38;5;16;48;5;(\d+)m(.*?)\x1b\[0m")
FUNCTIONS = {
    "leave-one-out": leave_one_out,
    "integrated-gradients": integrated_gradients,
    "gradient-x-input": gradient_times_input,
}


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(scope="module")
def run(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of three classes in a folder."""
    folder = tmp_path_factory.mktemp("run")
    classifier = random_classifier(tiny_checkpoint, HeadConfig(labels=("ham", "other", "spam")))
    classifier.save(folder / "best.safetensors")
    return folder


@pytest.fixture
def explain(run: Path, tiny_checkpoint: Path) -> list[object]:
    """The beginning of the command."""
    return ["explain", run, "--model", tiny_checkpoint]


@pytest.mark.parametrize("method", FUNCTIONS)
@pytest.mark.parametrize("unit", ["word", "token"])
def test_json_has_what_the_function_returns(
    explain: list, run: Path, tiny_checkpoint: Path, method: str, unit: str, capsys
) -> None:
    options = ["--json", "--method", method, "--unit", unit, "--label", "spam"]
    code, out, err = call(capsys, *explain, *options, TEXT, "the cat")
    assert (code, err) == (0, "")
    classifier = Classifier.load(run, tiny_checkpoint)
    expected = [
        FUNCTIONS[method](classifier, text, "spam", unit=unit) for text in (TEXT, "the cat")
    ]
    records = [json.loads(line) for line in out.splitlines()]
    assert records == [
        json.loads(json.dumps({"number": n} | found.as_dict()))
        for n, found in enumerate(expected, 1)
    ]


def test_without_a_terminal_every_word_has_its_number(
    explain: list, run: Path, tiny_checkpoint: Path, capsys
) -> None:
    code, out, err = call(capsys, *explain, TEXT, "", "the \x1b[31m\n cat")
    assert (code, err) == (0, "")
    classifier = Classifier.load(run, tiny_checkpoint)
    found = leave_one_out(classifier, TEXT)
    assert found.limit in out and "leave-one-out" in out
    assert f"{found.label}  {found.probability:.3f}, log odds {found.evidence:+.2f}\n" in out
    words = "".join(f"{part.text}({part.value:+.2f})" for part in found.parts)
    assert f"\n{words}\n" in out
    assert "\x1b" not in out and r"\x1b" in out
    assert len([line for line in out.splitlines() if "log odds " in line and ", " in line]) == 3


def test_a_terminal_shows_colours(
    explain: list, run: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    assert main([*map(str, explain), TEXT]) == 0
    shown = screen.getvalue()
    assert COLOUR.sub(r"\2", shown).splitlines()[-1] == TEXT
    parts = leave_one_out(Classifier.load(run, tiny_checkpoint), TEXT).parts
    strongest = max(parts, key=lambda part: abs(part.value))
    colours = {word: int(colour) for colour, word in COLOUR.findall(shown)}
    assert colours[strongest.text.strip()] == (208 if strongest.value > 0 else 75)
    for part in parts:
        if part.text.strip() in colours and [p.text for p in parts].count(part.text) == 1:
            is_orange = colours[part.text.strip()] in (230, 223, 215, 208)
            assert is_orange == (part.value > 0)


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_colours_can_be_switched_off(
    explain: list, name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv(name, value)
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    assert main([*map(str, explain), TEXT]) == 0
    assert "\x1b" not in screen.getvalue()
    assert re.search(r"house\([+-]\d", screen.getvalue())


def test_texts_are_read_as_predict_reads_them(
    explain: list, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "inbox.txt").write_text("the cat\n\nyou win\n", encoding="utf-8")
    _, out, _ = call(capsys, *explain, "--json", "--file", tmp_path / "inbox.txt")
    records = [json.loads(line) for line in out.splitlines()]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"the cat\n\nyou win\n")))
    _, piped, _ = call(capsys, *explain, "--json")
    assert piped == out
    assert [record["text"] for record in records] == ["the cat", "", "you win"]
    code, _, err = call(capsys, *explain, "--file", tmp_path / "inbox.txt", "hi")
    assert code == 3 and "--file" in err
    code, _, err = call(capsys, *explain, tmp_path / "inbox.txt")
    assert code == 2 and "--file" in err


def test_a_page_shows_all_texts(
    explain: list, run: Path, tiny_checkpoint: Path, tmp_path: Path, capsys
) -> None:
    path = tmp_path / "why.html"
    texts = [TEXT, "<script>alert(1)</script> the"]
    code, out, _ = call(capsys, *explain, "--html", path, *texts, "--label", "ham")
    assert (code, out) == (0, f"{path}\n")
    html = path.read_text("utf-8")
    read = Reader(html)
    assert not read.all("script") and not read.all("img")
    assert "".join(read.texts["title"])
    classifier = Classifier.load(run, tiny_checkpoint)
    (prediction,) = classifier.predict(texts[:1])
    assert prediction
    assert f"ham: {100 * prediction.probabilities['ham']:.1f}%" in read.texts["h2"]
    found = leave_one_out(classifier, TEXT, "ham")
    assert [part.text.strip() for part in found.parts] == read.texts["span"][: len(found.parts)]
    assert {f"{part.value:+z.3f}" for part in found.parts} <= {*read.texts["td"]}
    after = classifier.predict_by_token(TEXT)
    shown = {f"{answers['label'].probabilities['ham']:.3f}" for _, answers in after}
    assert shown <= {*read.texts["td"]}
    tokens = sum(len(classifier.predict_by_token(text)) for text in texts)
    assert len(read.all("rect")) == tokens
    with pytest.raises(SystemExit, match="2"):
        main([*map(str, explain), "--html", str(path), "again"])
    assert str(path) in capsys.readouterr().err
    assert path.read_text("utf-8") == html


def test_mistakes(explain: list, tmp_path: Path, capsys) -> None:
    for options, fact in (
        (["--label", "junk"], "junk"),
        (["--head", "x"], "'x'"),
    ):
        code, out, err = call(capsys, *explain, *options, "hi")
        assert code == 2 and fact in err and "Traceback" not in err
    (tmp_path / "many.txt").write_text("the cat\n" * 101)
    code, out, err = call(
        capsys, *explain, "--file", tmp_path / "many.txt", "--html", tmp_path / "why.html"
    )
    assert code == 2 and "100" in err
    (tmp_path / "none.txt").write_text("")
    code, out, err = call(
        capsys, *explain, "--file", tmp_path / "none.txt", "--html", tmp_path / "why.html"
    )
    assert code == 3
    assert not (tmp_path / "why.html").exists()
    code, _, err = call(capsys, "explain", tmp_path / "nowhere", "hi")
    assert code == 4 and "nowhere" in err
