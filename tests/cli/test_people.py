"""What a person types: help, slips of the finger, an interruption, a terminal."""

import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from command import call

from gpt2_from_scratch import progress
from gpt2_from_scratch.classifier.classifier import Classifier
from gpt2_from_scratch.cli import main as cli
from gpt2_from_scratch.cli.main import build_parser
from gpt2_from_scratch.speed.frozen_trunk import Trunk

COMMANDS = build_parser()._subparsers._group_actions[0].choices
SETTINGS = ["--epochs", "1", "--device", "cpu", "--no-cache"]


def refused(capsys: pytest.CaptureFixture, *words: str) -> str:
    """What the command line prints about a mistake in these words."""
    with pytest.raises(SystemExit) as stopped:
        cli.main([*words])
    out, err = capsys.readouterr()
    assert stopped.value.code == 2 and out == ""
    return err


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty messages of two labels."""
    path = tmp_path_factory.mktemp("data") / "two.csv"
    rows = [f"{'ham' if n % 2 else 'spam'},you and {n % 7} the {n}" for n in range(100)]
    path.write_text("label,text\n" + "\n".join(rows) + "\n")
    return path


# --- help ---


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_on_a_screen(
    command: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "90")
    shown = {}
    for option in ("--help", "--help-all"):
        with pytest.raises(SystemExit) as stopped:
            cli.main([command, option])
        assert stopped.value.code == 0
        shown[option] = capsys.readouterr().out
    lines = shown["--help"].splitlines()
    assert len(lines) <= 46 and lines[0].startswith(f"usage: gpt2-classifier {command} ")
    every = {name for action in COMMANDS[command]._actions for name in action.option_strings}
    every = {name for name in every if not name.startswith("--no-")}
    missing = {o: {n for n in every if n.strip("-") not in shown[o]} for o in shown}
    assert not missing["--help-all"]
    assert not missing["--help"] or re.search(r"\d+ more options: .* --help-all$", lines[-1])


def test_the_help_of_train_has_what_most_people_need(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    found = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    assert {"--model", "--data", "--label-column", "--epochs", "--lr", "--out", "--resume"} <= found
    assert "--lora-dropout" not in found


def test_no_command_at_all_shows_the_commands(capsys: pytest.CaptureFixture) -> None:
    err = refused(capsys)
    assert {*COMMANDS} <= set(re.findall(r"^ +(\S+)", err, re.MULTILINE))


# --- slips of the finger ---


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("trian", "train"),
        ("train --epcohs 3", "--epochs"),
        ("train --epcohs=3", "--epochs"),
        ("train --task clasification", "classification"),
        ("train reviews.csv", "--data reviews.csv"),
        ("train 124M", "--model 124M"),
        ("pretrain texts --out x --corpus y", "--corpus texts"),
        ("--verison", "--version"),
        ("predict run --jason", "--json"),
    ],
)
def test_the_nearest_spelling_is_named(
    words: str, meant: str, capsys: pytest.CaptureFixture
) -> None:
    err = refused(capsys, *words.split())
    assert f"Did you mean {meant}?" in err and len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("code", "words", "meant"),
    [
        (4, "train --model 124m", "124M"),
        (4, "train --model gtp2", "gpt2"),
        (3, "train --data smss", "sms"),
        (3, "check topcis", "topics"),
    ],
)
def test_so_is_the_nearest_name(
    code: int, words: str, meant: str, capsys: pytest.CaptureFixture
) -> None:
    found, out, err = call(capsys, *words.split())
    assert (found, out) == (code, "") and f"Did you mean {meant}?" in err


@pytest.mark.parametrize(
    ("words", "fact"),
    [
        ("xyzzy", "train"),
        ("train --epochs ten", "'ten'"),
        ("train --task xyzzy", "multi-label"),
        ("check sms now", "'now'"),
        ("predict", "RUN"),
        ("train --model", "--model"),
        ("download sms", "ships with the package"),
        ("download 9M", "124M"),
    ],
)
def test_a_mistake_takes_two_lines_at_most(
    words: str, fact: str, capsys: pytest.CaptureFixture
) -> None:
    err = refused(capsys, *words.split())
    assert fact in err and len(err.splitlines()) <= 2 and "usage:" not in err


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["Hello you"], ["--prompt", "Hello you"]),
        (["mini", "Hello"], ["--prompt", "Hello"]),
        (["gpt2", "Hello"], ["--model", "gpt2", "--prompt", "Hello"]),
        (["Hello", "you"], ["--prompt", "Hello you"]),
        ([], ["--prompt", "..."]),
    ],
)
def test_generate_shows_the_command_that_was_meant(
    words: list[str], meant: list[str], capsys: pytest.CaptureFixture
) -> None:
    code, out, err = call(capsys, "generate", *words)
    assert (code, out) == (2, "") and err.endswith(f"{shlex.join(['generate', *meant])}\n")


def test_a_missing_run_names_those_that_exist(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = call(capsys, "predict", "demo", "hi")
    assert code == 4 and "no runs" in err
    for n, name in enumerate(["old", "demo", "demo-2", "reviews"]):
        run = tmp_path / "runs" / name
        run.mkdir(parents=True)
        (run / "best.safetensors").touch()
        os.utime(run, (n, n))
    for command in (["predict", "demo", "hi"], ["evaluate", "demoo"]):
        code, _, err = call(capsys, *command)
        assert code == 4 and f"Did you mean {Path('runs') / 'demo'}?" in err
    code, _, err = call(capsys, "predict", "xyz", "hi")
    names = [Path("runs") / name for name in ("reviews", "demo-2", "demo")]
    assert code == 4 and ", ".join(map(str, names)) in err and "old" not in err


def test_check_says_once_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "r.csv").write_text("body,kind\nhello,ham\nwin,spam\n")
    code, out, err = call(capsys, "check", tmp_path / "r.csv")
    assert code == 3 and (out + err).count("--label-column") == 1 and "--on-error" in out


# --- folders that exist ---


@pytest.mark.parametrize(
    "words",
    [
        ["train"],
        ["train", "--recipe", "lecture"],
        ["demo"],
        ["compare"],
        ["experiments", "--model", "mini"],
    ],
    ids=" ".join,
)
def test_an_existing_folder_is_refused_before_anything_is_read(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "mine.txt").touch()
    missing = [] if words == ["demo"] else ["--data", "nowhere.csv"]
    code, out, err = call(capsys, *words, *missing, "--out", tmp_path)
    assert (code, out) == (2, "") and str(tmp_path) in err and "--out" in err
    assert "nowhere" not in err and [*tmp_path.iterdir()] == [tmp_path / "mine.txt"]


# --- Ctrl-C ---


def interrupted_at(monkeypatch: pytest.MonkeyPatch, target: object, name: str) -> None:
    def interrupt(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(target, name, interrupt)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "phase"),
    [
        *(("default", phase) for phase in ("frozen blocks", "training", "scoring", "report")),
        *(("lecture", phase) for phase in ("frozen blocks", "training", "scoring")),
    ],
)
def test_after_ctrl_c_the_printed_command_works(
    recipe: str, phase: str, table: Path, tiny_checkpoint: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    from gpt2_from_scratch.classifier import train
    from gpt2_from_scratch.runs import lecture, recipes, results

    of_recipe = {"default": (train.TrainingRun, "step"), "lecture": (lecture, "_train")}
    places = {
        "frozen blocks": (Trunk, "__call__"),
        "training": of_recipe[recipe],
        "scoring": (recipes, "score_run"),
        "report": (results, "write_run_report"),
    }
    words = ["train", "--recipe", recipe, "--data", table, "--model", tiny_checkpoint]
    words += ["--out", tmp_path / "a run", "--device", "cpu", "--no-cache"]
    words += ["--epochs", 1] if recipe == "default" else []
    with monkeypatch.context() as patch:
        interrupted_at(patch, *places[phase])
        code, _, err = call(capsys, *words)
    assert code == 130 and "interrupted" in err and "gpt2-classifier: ;" not in err
    printed = shlex.split(err.splitlines()[-1])
    assert printed[0] == "gpt2-classifier"
    code, out, err = call(capsys, *printed[1:])
    assert code == 0 and "accuracy" in out and str(tmp_path / "a run") in out, err
    assert (tmp_path / "a run" / "report.html").exists()


def test_ctrl_c_before_anything_is_saved(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gpt2_from_scratch.runs import recipes

    interrupted_at(monkeypatch, recipes, "new_classifier")
    words = ["train", "--data", table, "--out", tmp_path / "run", "--device", "cpu"]
    code, out, err = call(capsys, *words)
    assert (code, out, err) == (130, "", "gpt2-classifier: interrupted\n")
    assert not (tmp_path / "run").exists()


# --- how the command is called ---


def test_the_module_is_a_command_that_names_itself() -> None:
    words = [sys.executable, "-m", "gpt2_from_scratch", "train", "--help"]
    found = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
    assert f"usage: {sys.executable} -m gpt2_from_scratch train" in found.stdout
    assert f"\n  {sys.executable} -m gpt2_from_scratch train --data" in found.stdout


def test_a_command_that_is_not_on_the_path_is_named_by_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "a b" / "gpt2-classifier"
    script.parent.mkdir()
    script.touch(mode=0o755)
    monkeypatch.setattr(sys, "argv", [str(script)])
    monkeypatch.setenv("PATH", str(tmp_path))
    assert shlex.split(progress.command("predict", "x y")) == [str(script), "predict", "x y"]
    monkeypatch.setenv("PATH", str(script.parent))
    assert progress.command("predict", "x y") == "gpt2-classifier predict 'x y'"


@pytest.mark.skipif(os.name == "nt", reason="completion is for POSIX shells")
@pytest.mark.parametrize(
    ("line", "completed"),
    [("gpt2-classifier tr", "train "), ("gpt2-classifier train --task s", "span ")],
)
def test_the_shell_completes(line: str, completed: str, tmp_path: Path) -> None:
    asked = {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_SHELL": "bash", "COMP_TYPE": "9"}
    asked |= {"COMP_LINE": line, "COMP_POINT": str(len(line))}
    asked |= {"_ARGCOMPLETE_STDOUT_FILENAME": str(tmp_path / "out")}
    words = [sys.executable, "-m", "gpt2_from_scratch"]
    subprocess.run(words, env=os.environ | asked, timeout=60, check=True)
    assert (tmp_path / "out").read_text() == completed


# --- a terminal ---


class Typed(io.TextIOWrapper):
    """Standard input of a terminal."""

    def isatty(self) -> bool:
        return True


def test_predict_says_that_it_waits_for_lines(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch
) -> None:
    Classifier.on_base(tiny_checkpoint, ["ham", "spam"]).save(tmp_path / "best.safetensors")
    words = ["predict", tmp_path, "--model", tiny_checkpoint]
    for stdin, waits in ((Typed, True), (io.TextIOWrapper, False)):
        monkeypatch.setattr(sys, "stdin", stdin(io.BytesIO(b"the cat\nwin\n")))
        code, out, err = call(capsys, *words)
        assert code == 0 and len(out.splitlines()) == 2
        assert ("Ctrl-" in err) == waits
    monkeypatch.setattr(sys, "stdin", Typed(io.BytesIO()))
    code, out, err = call(capsys, *words, "hello")
    assert code == 0 and len(out.splitlines()) == 1 and err == ""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no pseudo-terminals")
def test_each_typed_line_is_answered_at_once(tiny_checkpoint: Path, tmp_path: Path) -> None:
    import pty
    import termios

    Classifier.on_base(tiny_checkpoint, ["ham", "spam"]).save(tmp_path / "best.safetensors")
    words = [sys.executable, "-m", "gpt2_from_scratch", "predict", str(tmp_path)]
    ours, theirs = pty.openpty()
    settings = termios.tcgetattr(theirs)
    settings[3] &= ~termios.ECHO
    termios.tcsetattr(theirs, termios.TCSANOW, settings)
    with subprocess.Popen(
        [*words, "--model", str(tiny_checkpoint)],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout and process.stderr
        assert "Ctrl-D" in process.stderr.readline()
        for text in ("the cat", "win"):
            os.write(ours, f"{text}\n".encode())
            assert process.stdout.readline().endswith(f"  {text}\n")
        os.write(ours, b"\x04")  # Ctrl-D
        assert process.wait(60) == 0
    os.close(ours)
    os.close(theirs)
