"""No command writes characters that control a terminal, whatever is in names, labels and texts."""

import csv
import io
import itertools
import json
import logging
import sys
import unicodedata
from pathlib import Path

import pytest
from command import call
from tiny import write_checkpoint

from gpt2_from_scratch.classifier.classifier import Classifier
from gpt2_from_scratch.cli import main as cli
from gpt2_from_scratch.cli.main import build_parser
from gpt2_from_scratch.progress import VisibleStream, log_to, progress_bar, visible

# by Unicode's general categories and its property Bidi_Control
OBEYED = {c for c in map(chr, range(0x3000)) if unicodedata.category(c) in ("Cc", "Zl", "Zp")}
OBEYED |= set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
OBEYED -= set("\t\n")
NAME = "o\x1b[31m\x07\x9b2J\x85\u2028\u202e\u2066dd"  # of files and folders
LABEL = NAME + "\x00\x7f\u200f"


def obeyed(text: str) -> set[str]:
    """Characters of the text that would control a terminal."""
    return OBEYED & set(text) | {c for c in text if unicodedata.category(c) == "Cs"}


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


# --- the stream, the log and the bars ---


def test_what_is_escaped() -> None:
    shown = {c for c in map(chr, range(0x110000)) if visible(c) != c}
    halves = set(map(chr, range(0xD800, 0xE000)))
    assert shown == OBEYED | halves | set(map(chr, range(0x206A, 0x2070)))
    assert not obeyed("".join(map(visible, shown)))
    assert visible("\x1b\x9b\u202e\udcff") == r"\x1b\x9b\u202e\udcff"
    text = "naïve 漢字 👩\u200d👩 می\u200cخواهم\ta\n\xa0"  # joiners and spaces are for reading
    assert visible(text) == text


def test_printed_json_is_still_json() -> None:
    every = "".join(map(chr, range(0x3000)))
    assert json.loads(visible(json.dumps(every))) == every


def test_a_log_line_is_written_above_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", VisibleStream(screen))
    log_to(sys.stderr)
    with progress_bar(total=3, desc=f"read {NAME}", mininterval=0, leave=False) as bar:
        bar.update()
        logging.getLogger("gpt2_from_scratch.x").info(f"line \r{LABEL}")
    written = screen.getvalue()
    assert r"read o\x1b[31m" in written and r"line \x0do\x1b[31m" in written
    assert obeyed(written) == {"\r"}  # the bar's own
    before = written[: written.index("line ")]
    assert before.endswith("\r") and before.rstrip("\r").endswith(" ")  # the bar was wiped


# --- all commands ---


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which everything has odd names and labels; a model and a trained classifier."""
    place = tmp_path_factory.mktemp("odd") / NAME
    place.mkdir()
    write_checkpoint(place / f"model {NAME}", seed=124)
    with (place / f"{NAME}.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerow([f"text {NAME}", f"label {NAME}"])
        words = {f"a {LABEL}": "the goal in", f"b {LABEL}": "a pill at"}
        for number, label in itertools.product(range(20), words):
            writer.writerow([f"{words[label]} {number} {LABEL}", label])
    (place / f"{NAME}.txt").write_text(f"one {LABEL}\ntwo\n", encoding="utf-8", newline="\n")
    (place / "damaged").mkdir()
    (place / "damaged" / "hparams.json").write_text(json.dumps({LABEL: 1}))
    corpus = place / f"corpus {NAME}"
    corpus.mkdir()
    for number in range(4):
        text = f"the cat and the hat {number}\n" * 40
        (corpus / f"{NAME}{number}.txt").write_text(text, encoding="utf-8")
    return place


def commands(place: Path) -> dict[str, list[tuple[int, list[object]]]]:
    """{command: [(exit code, arguments)]}: calls with a result, and with an error that has a name."""
    model, table = place / f"model {NAME}", place / f"{NAME}.csv"
    columns = ["--text-column", f"text {NAME}", "--label-column", f"label {NAME}"]
    data = ["--data", table, *columns]
    small = ["--model", model, *data, "--epochs", 1, "--device", "cpu"]
    run, out = place / f"run {NAME}", place / f"out {NAME}"
    kept = ["--model", model]
    return {
        "train": [
            (0, [*small, "--out", run]),
            (2, [*small, "--out", run]),
            (3, ["--data", table, "--text-column", NAME]),
            (2, [*small, "--trainable", NAME]),
            (3, ["--resume", run, "--label-column", NAME]),
            (2, ["--resume", run, "--trainable", NAME]),
            (2, ["--from", run, *kept, "--data", table, "--name", NAME]),
            (4, ["--from", out / NAME, "--data", table]),
            (3, ["--recipe", "lecture", "--data", place / NAME]),
        ],
        "demo": [(2, ["--out", run])],
        "find-rate": [(0, [*small[:-4], "--steps", 2, "--out", out / "rates.png"])],
        "compare": [(0, [*small[:-2], "--quick", "--seeds", 1, "--out", out / "compare"])],
        "experiments": [
            (0, [*small[:-2], "--rows", "LoRA", "--seeds", 1, "--jobs", 1, "--out", out / "rows"]),
            (2, ["--rows", NAME]),
        ],
        "evaluate": [
            (0, [run, *kept]),
            (0, [run, *kept, "--json"]),
            (3, [run, *kept, "--data", place / "nowhere" / NAME]),
            (2, [run, *kept, "--positive", NAME]),
        ],
        "predict": [
            (0, [run, *kept, NAME]),
            (0, [run, *kept, "--json", NAME]),
            (0, [run, *kept, "--file", place / f"{NAME}.txt"]),
            (2, [run, *kept, "--threshold", f"{NAME}=2", NAME]),
            (4, [table, NAME]),
        ],
        "explain": [
            (0, [run, *kept, NAME]),
            (0, [run, *kept, "--json", NAME]),
            (0, [run, *kept, "--html", out / f"why {NAME}.html", NAME]),
            (2, [run, *kept, "--label", NAME, NAME]),
            (4, [table, NAME]),
        ],
        "export": [
            (0, [run, out / f"exported {NAME}", *kept]),
            (2, [run, out / "adapter", *kept, "--to", "peft"]),
        ],
        "serve": [
            (2, [run, *kept, "--host", NAME]),
            (4, [out / NAME]),
        ],
        "features": [
            (0, ["--file", place / f"{NAME}.txt", *kept, "--out", out / f"{NAME}.npy"]),
            (6, ["--file", place / f"{NAME}.txt", *kept, "--out", table / "x.npy"]),
        ],
        "check": [
            (0, [table, *columns]),
            (0, [table, *columns, "--json"]),
            (3, [table]),
            (3, [place / f"{NAME}.txt"]),
        ],
        "verify": [(0, [model]), (0, [run]), (4, [place / "damaged"]), (4, [place / f"no {NAME}"])],
        "generate": [
            (0, [*kept, "--prompt", f"you {NAME}", "--tokens", 3]),
            (4, ["--model", place / "damaged", "--prompt", NAME]),
        ],
        "pretrain": [
            (3, ["--corpus", place / f"corpus {NAME}", "--out", out / "small"]),
            (3, ["--corpus", out / NAME, "--out", out / "small"]),
        ],
        "download": [(5, ["124M"])],
        "cache": [(0, []), (0, ["--clear"])],
        "probe": [
            (0, ["--model", model, *data, "--pooling", "mean", "--out", out / f"{NAME}.png"]),
            (0, ["--model", model, *data, "--pooling", "mean", "--json"]),
            (3, ["--data", table, "--text-column", NAME]),
            (4, [out / NAME]),
        ],
    }


def test_every_command_is_tried() -> None:
    assert set(commands(Path())) == set(build_parser()._subparsers._group_actions[0].choices)


@pytest.fixture
def calm(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send no request, and keep features in a folder with an odd name."""
    monkeypatch.setenv("GPT2_FROM_SCRATCH_OFFLINE", "1")
    monkeypatch.setenv("GPT2_FROM_SCRATCH_HOME", str(place / f"home {NAME}"))
    monkeypatch.setenv("GPT2_FROM_SCRATCH_CACHE", str(place / f"cache {NAME}"))
    monkeypatch.chdir(place)


@pytest.mark.slow
def test_no_command_writes_characters_that_control_a_terminal(
    place: Path, calm: None, capsys: pytest.CaptureFixture
) -> None:
    """The commands run in order: `train` makes the run that the others use."""
    wrong = []
    for command, calls in commands(place).items():
        for expected, arguments in calls:
            code, out, err = call(capsys, command, *arguments)
            if code != expected or obeyed(out + err) or "Traceback" in err:
                wrong.append((command, *arguments, code, out, err))
    assert not wrong
    written = [path for path in place.rglob("*") if path.suffix in (".md", ".html")]
    assert len(written) == 8 and not [path for path in written if obeyed(path.read_text("utf-8"))]
    assert r"\x1b" in (place / f"run {NAME}" / "model_card.md").read_text("utf-8")


@pytest.mark.parametrize("command", commands(Path()))
def test_nor_does_any_usage_error(
    command: str, place: Path, calm: None, capsys: pytest.CaptureFixture
) -> None:
    option = f"--{NAME}"
    with pytest.raises(SystemExit) as stopped:
        cli.main([command, option])
    assert stopped.value.code == 2
    _, err = capsys.readouterr()
    assert not obeyed(err) and (visible(option) in err or "required" in err)


def test_csv_is_raw_for_programs_and_visible_on_a_terminal(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Classifier.on_base(tiny_checkpoint, ["ham", LABEL]).save(tmp_path / "best.safetensors")
    words = ["predict", str(tmp_path), "--model", str(tiny_checkpoint), "--csv", "--with-text"]
    found = {}
    for screen in (io.StringIO(newline=""), Terminal(newline="")):
        monkeypatch.setattr(sys, "stdout", screen)
        assert cli.main([*words, "--", f"a {NAME}"]) == 0
        found[type(screen)] = screen.getvalue()
    header, row = csv.reader(io.StringIO(found[io.StringIO], newline=""))
    assert LABEL in header and row[-1] == f"a {NAME}"
    assert not obeyed(found[Terminal]) and visible(f"a {NAME}") in found[Terminal]


def test_a_traceback_that_was_asked_for_is_visible(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    code, _, err = call(capsys, "verify", "-v", tmp_path / NAME)
    assert code == 4 and "Traceback" in err and not obeyed(err)
