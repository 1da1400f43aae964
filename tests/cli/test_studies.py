"""The commands `compare` and `experiments`."""

import json
from pathlib import Path

import pytest
from command import call

from gpt2_from_scratch.data.messages import Message, write_messages


@pytest.fixture
def table(tmp_path: Path) -> Path:
    words = [("ham", "see you"), ("spam", "win now")]
    messages = [Message(f"{w} {n} {'abc'[n % 3] * n}", k) for k, w in words for n in range(20)]
    write_messages(tmp_path / "inbox.csv", messages)
    return tmp_path / "inbox.csv"


@pytest.mark.slow
def test_compare_new_trainings_and_finished_runs(
    tiny_checkpoint: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    common = ("--model", tiny_checkpoint, "--device", "cpu")
    training = (*common, "--data", table, "--epochs", 1)
    out = tmp_path / "out"
    code, printed, err = call(capsys, "compare", *training, "--quick", "--seeds", 1, "--out", out)
    everything = (out / "scoreboard.md").read_text("utf-8")
    assert code == 0 and str(out) in err and max(map(len, printed.splitlines())) <= 100
    lines = [line.strip("| ").split(" | ") for line in everything.splitlines()[2:7]]
    assert all(accuracy in printed and interval in printed for _, accuracy, interval, *_ in lines)
    again = ("compare", *training, "--quick", "--seeds", 1, "--out", out)
    code, same, err = call(capsys, *again)
    assert (code, same) == (0, printed) and "5 of 5 results are already in" in err
    assert call(capsys, *again, "--verbose")[:2] == (0, everything)

    for name, blocks in (("one", 1), ("two", 2)):
        run = ("--out", tmp_path / name, "--n-last-blocks", blocks)
        assert call(capsys, "train", *training, *run)[0] == 0
    given = ("compare", tmp_path / "one", tmp_path / "two", *common)
    code, printed, _ = call(capsys, *given, "--quick", "--out", tmp_path / "runs")
    assert code == 0 and "two" in printed and "TF-IDF of characters" not in printed
    code, _, err = call(capsys, *given, "--epochs", 3)
    assert code == 2 and "Leave out epochs" in err


@pytest.mark.slow
def test_a_table_of_experiments(
    tiny_checkpoint: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    given = ("experiments", "--model", tiny_checkpoint, "--data", table, "--epochs", 1)
    given += ("--seeds", 1, 2, "--jobs", 1, "--out", tmp_path / "out")
    code, printed, err = call(capsys, *given, "--rows", "first token")
    assert code == 0 and "first token" in printed and str(tmp_path) in err
    code, printed, _ = call(capsys, *given, "--rows", "first token", "--verbose")
    assert code == 0 and printed == (tmp_path / "out" / "experiments.md").read_text("utf-8")
    assert printed.startswith("| change | test accuracy, % | spread |")
    code, printed, _ = call(capsys, *given, "--rows", "head alone")
    rows = json.loads((tmp_path / "out" / "experiments.json").read_text())["rows"]
    # all rows that are finished, whichever were asked for now: p is adjusted for their number
    assert [row["name"] for row in rows] == ["default", "first token", "head alone"]
    code, _, err = call(capsys, *given, "--rows", "nothing")
    assert code == 2 and "'nothing'" in err


def test_the_list_of_rows(capsys: pytest.CaptureFixture):
    code, printed, _ = call(capsys, "experiments", "--list")
    lines = printed.splitlines()
    assert code == 0 and lines[0].split() == ["default", "default"] and len(lines) >= 30
    assert "token position   first token" in lines


def test_seeds_are_those_of_the_splits(capsys: pytest.CaptureFixture):
    for command in ("compare", "experiments"):
        code, _, err = call(capsys, command, "--seed", 1, "--seeds", 1, 2)
        assert code == 2 and "Leave out --seed" in err
