"""Commands that torchrun starts in several processes."""

import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from command import call
from made_messages import made_up
from safetensors.torch import load_file

from gpt2_from_scratch.cli import main
from gpt2_from_scratch.data.messages import write_messages
from gpt2_from_scratch.runs import recipes
from gpt2_from_scratch.storage import processes
from gpt2_from_scratch.storage.files import read_json

PATIENCE = 120  # seconds


def start(*words: object, count: int = 2, cwd: Path) -> subprocess.Popen:
    """Start a command in several processes."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    return subprocess.Popen(
        [sys.executable, *torchrun, "-m", "gpt2_from_scratch", *map(str, words)],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )


def ended(process: subprocess.Popen) -> tuple[int, str, str]:
    """Wait for a command; return its exit code, standard output and standard error."""
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out, err


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals as POSIX has them")
def test_a_run_of_two_processes_is_stopped_resumed_and_used(
    tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture
) -> None:
    table, run, alone = tmp_path / "table.csv", tmp_path / "two", tmp_path / "one"
    write_messages(table, made_up())
    words = ["train", "--model", tiny_checkpoint, "--data", table, "--device", "cpu"]
    words += ["--epochs", "100", "--patience", "100", "--lr", "0.0005"]
    process = start(*words, "--out", run, cwd=tmp_path)
    while not (run / "metrics.jsonl").exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    code, out, err = ended(process)
    assert code != 0 and out == "" and [*run.glob("state-*.safetensors")], err
    assert f"train --resume {run}" in err and "epoch 1/100" in err
    assert err.count("stopped after step") == 1  # only the first process says so
    code, out, err = ended(start("train", "--resume", run, cwd=tmp_path))
    assert code == 0 and out.count("Test set: ") == 1 and err.count("epoch 100/100") == 1, err
    assert (run / "report.html").exists() and not [*run.glob("state-*")]
    assert read_json(run / "provenance.json")["environment"]["processes"] == 2

    assert call(capsys, *words, "--threads", "1", "--out", alone)[0] == 0
    expected, found = (load_file(path / "last.safetensors") for path in (alone, run))
    for name, value in expected.items():
        if name.endswith("c_attn.bias"):
            continue  # the gradient of the keys' bias is only rounding
        np.testing.assert_allclose(found[name], value, atol=1e-5, err_msg=name)

    texts = tmp_path / "texts.txt"
    texts.write_text("".join(f"win {n % 90} at {n % 70}\n" for n in range(1000)))
    read = ["predict", run, "--model", tiny_checkpoint, "--file", texts, "--csv"]
    _, expected_table, _ = call(capsys, *read, "--threads", "1", "--device", "cpu")
    code, out, err = ended(start(*read, "--device", "cpu", cwd=tmp_path))
    assert code == 0 and out == expected_table and len(out.splitlines()) == 1001, err


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["evaluate", "runs/x"], "evaluate runs in one process"),
        (["train", "--autotune", "1m"], "--autotune"),
        (["train", "--no-cache"], "--no-cache"),
        (["train", "--recipe", "lecture"], "recipe"),
    ],
    ids=["evaluate", "autotune", "no cache", "lecture"],
)
def test_what_cannot_be_shared_is_refused(
    words: list[str],
    reason: str,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The parser and the recipes refuse before any process connects."""
    monkeypatch.setenv(main.STARTED_BY_TORCHRUN, "none")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(processes, "joined", nullcontext)
    monkeypatch.setattr(recipes, "count", lambda: 2)
    code, out, err = call(capsys, *words)
    assert code == 2 and out == "" and reason in err
    assert err.startswith("gpt2-classifier, process 1 of 2: ")
