"""Files and folders that cannot be used, closed streams, and too few resources."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from command import call
from folders import read_only_folder

from gpt2_from_scratch.classifier.classifier import Classifier
from gpt2_from_scratch.cli import main as cli
from gpt2_from_scratch.data.messages import Message, write_messages
from gpt2_from_scratch.progress import PACKAGE_LOG

POSIX = pytest.mark.skipif(os.name == "nt", reason="names and permissions as POSIX has them")
LONG = "n" * 300
MESSAGES = [Message(f"{word} {n}", word) for n in range(20) for word in ("ham", "spam")]


@pytest.fixture(scope="module")
def classifier(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "best.safetensors"
    Classifier.on_base(tiny_checkpoint, ["ham", "spam"]).save(path)
    return path


def reading(model: Path, classifier: Path, path: object, out: Path) -> list[tuple[int, list]]:
    """(exit code if `path` cannot be read, arguments) for every command that reads something."""
    small = ["--model", model]
    return [
        (3, ["train", *small, "--data", path, "--out", out]),
        (4, ["train", "--model", path, "--data", "hard", "--out", out]),
        (4, ["train", "--resume", path]),
        (3, ["find-rate", *small, "--data", path, "--out", out]),
        (3, ["compare", *small, "--data", path, "--out", out]),
        (4, ["compare", path, "--out", out]),
        (3, ["experiments", *small, "--data", path, "--jobs", 1, "--out", out]),
        (3, ["evaluate", classifier, *small, "--data", path]),
        (4, ["evaluate", path]),
        (3, ["predict", classifier, *small, "--file", path]),
        (4, ["predict", path, "a"]),
        (4, ["predict", classifier, "--model", path, "a"]),
        (3, ["features", *small, "--file", path, "--out", out]),
        (3, ["check", path]),
        (4, ["check", "hard", "--model", path]),
        (4, ["verify", path]),
        (4, ["generate", "--model", path, "--prompt", "a"]),
        (3, ["pretrain", "--corpus", path, "--out", out]),
        (3, ["probe", *small, "--data", path]),
    ]


def refused(capsys: pytest.CaptureFixture, calls: list[tuple[int, list]]) -> list:
    """The calls that do not end as they should."""
    wrong = []
    for expected, arguments in calls:
        code, out, err = call(capsys, *arguments)
        if code != expected or "Traceback" in err or len(err) < 20:
            wrong.append((expected, arguments, code, out, err))
    return wrong


@POSIX
@pytest.mark.slow
@pytest.mark.parametrize("name", [LONG, "missing", "folder", "folder/missing", "file/inside"])
def test_a_path_that_cannot_be_read(name, tiny_checkpoint, classifier, tmp_path, capsys):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("a\n")
    calls = reading(tiny_checkpoint, classifier, tmp_path / name, tmp_path / "out")
    assert not refused(capsys, calls)
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


@POSIX
@pytest.mark.slow
def test_a_path_without_permission(tiny_checkpoint, classifier, tmp_path, capsys):
    """Root may read everything, so it becomes nobody, who may not read this file and this folder."""
    missing, out = tmp_path / "missing", tmp_path / "out"
    refused(capsys, reading(tiny_checkpoint, classifier, missing, out))  # nobody may not import
    files = {name: (tiny_checkpoint / name).read_bytes() for name in os.listdir(tiny_checkpoint)}
    with tempfile.TemporaryDirectory() as name, read_only_folder(**files) as model:
        user, place = os.geteuid(), Path(name)
        os.seteuid(os.getuid())
        place.chmod(0o755)
        Classifier.on_base(model, ["ham", "spam"]).save(place / "best.safetensors")
        closed = [place / "closed", place / "closed.csv"]
        closed[0].mkdir()
        closed[1].write_text("label,text\nham,a\n")
        for path in closed:
            path.chmod(0)
        os.seteuid(user)
        wrong = []
        for path in (*closed, closed[0] / "inside"):
            calls = reading(model, place / "best.safetensors", path, model / "out")
            wrong += refused(capsys, [(c, words) for c, words in calls if words[0] != "compare"])
        os.seteuid(os.getuid())
        assert not wrong


@POSIX
@pytest.mark.slow
@pytest.mark.parametrize("place", ["file/out", LONG])
def test_a_place_that_cannot_be_written(place, tiny_checkpoint, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    write_messages(tmp_path / "m.csv", MESSAGES)
    small = ["--model", tiny_checkpoint, "--data", tmp_path / "m.csv"]
    out = ["--out", tmp_path / place]
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    calls = [
        (6, ["train", *small, "--epochs", 1, *out]),
        (6, ["find-rate", *small, "--steps", 2, *out]),
        (6, ["compare", *small, "--quick", "--seeds", 1, *out]),
        (6, ["experiments", *small, "--rows", "LoRA", "--seeds", 1, "--jobs", 1, *out]),
        (6, ["features", *small[:2], "--file", tmp_path / "m.csv", *out]),
        (6, ["probe", *small, "--pooling", "mean", *out]),
        (3, ["pretrain", "--corpus", corpus, *out]),  # which has no texts
    ]
    assert not refused(capsys, calls)


# --- names that are not UTF-8 ---


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_data_whose_name_is_not_utf8(tiny_checkpoint, tmp_path, capsys, monkeypatch):
    """Everything works with such names, and a run resumes from its folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(PACKAGE_LOG, "propagate", False)  # pytest-xdist cannot send such names
    name = os.fsdecode(b"m\xff\xfe.csv")
    write_messages(tmp_path / "m.csv", MESSAGES)
    os.rename("m.csv", name)
    small = ["--model", tiny_checkpoint, "--data", name, "--epochs", 1]
    code, out, err = call(capsys, "train", *small)
    assert code == 0 and "m---123" in err, ascii(err)
    run = Path("runs") / f"{tiny_checkpoint.name}-m---123"
    assert call(capsys, "train", "--resume", run)[0] == 0
    for words in (
        ["evaluate", run, *small[:-2]],
        ["predict", run, *small[:2], "--file", name],
        ["check", name],
        ["find-rate", *small[:-2], "--steps", 2],
        ["compare", *small, "--quick", "--seeds", 1],
        ["features", *small[:2], "--file", name, "--out", f"{name}.npy"],
        ["probe", *small[:-2], "--pooling", "mean", "--out", f"{name}.png"],
    ):
        code, _, err = call(capsys, *words)
        assert code == 0, ascii((words, err))


# --- streams, descriptors, home ---


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "gpt2_from_scratch", *map(str, words)]


@pytest.mark.slow
@POSIX
def test_a_closed_standard_input(tiny_checkpoint, classifier):
    words = command("predict", classifier, "--model", tiny_checkpoint)
    line = ["bash", "-c", '"$@" <&-', "bash", *words]
    found = subprocess.run(line, capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (3, "") and "closed" in found.stderr
    assert "Traceback" not in found.stderr
    found = subprocess.run([*line, "a text"], capture_output=True, text=True)
    assert found.returncode == 0 and "a text" in found.stdout


@pytest.mark.slow
@POSIX
@pytest.mark.parametrize("number", [5, 8])
def test_few_open_files(number, tiny_checkpoint, classifier):
    """It works, or says what to do."""
    words = command("predict", classifier, "--model", tiny_checkpoint, "a text")
    line = ["bash", "-c", f'ulimit -n {number}; "$@"', "bash", *words]
    found = subprocess.run(line, capture_output=True, text=True)
    assert "Traceback" not in found.stderr
    assert found.returncode in (0, 6) and bool(found.stderr) == (found.returncode == 6)


def test_too_many_open_files_is_a_clear_error(monkeypatch, capsys):
    def full(args):
        raise OSError(24, "Too many open files", "x")

    monkeypatch.setattr(cli.inspecting, "run_generate", full)
    code, _, err = call(capsys, "generate", "--prompt", "x")
    assert code == 6 and "ulimit -n" in err


@POSIX
@pytest.mark.parametrize("command", ["cache", "evaluate"])
def test_a_user_without_a_home(command, classifier, tiny_checkpoint, monkeypatch, capsys):
    import pwd

    def unknown(*_: object) -> None:
        raise KeyError("uid not found")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "XDG_CACHE_HOME", "GPT2_FROM_SCRATCH_CACHE"):
        monkeypatch.delenv(name, raising=False)
    words = [classifier, "--model", tiny_checkpoint, "--data", "hard"]
    code, out, err = call(capsys, command, *(words if command == "evaluate" else []))
    assert (code, out) == (2, "") and "GPT2_FROM_SCRATCH_CACHE" in err


def test_an_endless_error_is_cut(monkeypatch, capsys):
    def endless(args):
        raise cli.DataError("x" * 100_000)

    monkeypatch.setattr(cli.inspecting, "run_generate", endless)
    code, _, err = call(capsys, "generate", "--prompt", "x")
    assert code == 3 and len(err) < 4_100 and "96,000 more" in err
