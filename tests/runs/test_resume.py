"""An interrupted run resumes to a bit-identical result; errors explain why a run cannot resume."""

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from interrupted import interrupted_after
from said import listen

from gpt2_from_scratch.classifier import train as training_run
from gpt2_from_scratch.classifier.classifier import Classifier
from gpt2_from_scratch.classifier.settings import TrainConfig
from gpt2_from_scratch.classifier.train import TrainingRun
from gpt2_from_scratch.cli import main as cli
from gpt2_from_scratch.data.messages import DataConfig
from gpt2_from_scratch.errors import (
    CheckpointError,
    DataError,
    GPT2Error,
    Interrupted,
    UsageError,
)
from gpt2_from_scratch.runs.folder import LATER, RunConfig
from gpt2_from_scratch.runs.recipes import resume_training, train_classifier
from gpt2_from_scratch.runs.results import Run
from gpt2_from_scratch.storage.files import check_listed, sha256_of
from gpt2_from_scratch.storage.states import newest_state, save_state

POSIX = pytest.mark.skipif(os.name == "nt", reason="signals as POSIX has them")
CONFIG = TrainConfig(epochs=4, batch_size=5, lr=0.01, patience=4, seed=3)
LASTING = ("best.safetensors", "last.safetensors", "metrics.jsonl", "evaluation.json", "test.csv")


@pytest.fixture
def every_step_is_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_run, "SAVE_EVERY", 0.0)


def train(base: Path, table: Path, out: Path, config: TrainConfig = CONFIG) -> Run:
    return train_classifier(base, table, config, run=out, device="cpu")


def digests(run: Path) -> dict[str, str]:
    return {name: sha256_of(run / name) for name in LASTING}


@pytest.fixture(scope="module")
def unbroken(tiny_checkpoint: Path, table: Path, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("unbroken") / "run"
    train(tiny_checkpoint, table, out)
    return out


def broken_off(monkeypatch, base: Path, table: Path, out: Path, steps: int) -> None:
    """A run that Ctrl-C stops after this many steps."""
    match = f"after step {steps} of 24(?s:.*)--resume"
    with interrupted_after(steps, monkeypatch), pytest.raises(Interrupted, match=match):
        train(base, table, out)


# --- bit-identical results ---


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 4, 6, 7, 23, 24])
def test_a_stopped_run_ends_bit_identical(
    tiny_checkpoint, table, unbroken, tmp_path, monkeypatch, steps
):
    """In the middle of an epoch (4), at its end (6), after it (7), and at the very end."""
    broken_off(monkeypatch, tiny_checkpoint, table, tmp_path / "run", steps)
    assert [p.name for p in (tmp_path / "run").glob("state*")] == [f"state-{steps:08}.safetensors"]
    run = resume_training(tmp_path / "run", device="cpu")
    assert digests(run.folder) == digests(unbroken)
    assert sorted(p.name for p in run.folder.iterdir()) == sorted(
        p.name for p in unbroken.iterdir()
    )
    assert resume_training(run.folder).scores == run.scores  # a complete run is only scored again


@pytest.mark.slow
def test_stopped_again_and_again(tiny_checkpoint, table, unbroken, tmp_path, monkeypatch):
    plain, run = TrainingRun.step, tmp_path / "run"

    def step(self: TrainingRun, batch: list[int]) -> None:
        plain(self, batch)
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(TrainingRun, "step", step)
    with pytest.raises(Interrupted) as error:
        train(tiny_checkpoint, table, run)
    assert error.value.exit_code == 143
    for _ in range(23):
        with pytest.raises(Interrupted):
            resume_training(run)
    resume_training(run)
    assert digests(run) == digests(unbroken)


@pytest.mark.slow
def test_features_computed_in_two_parts_are_bit_identical(
    tiny_checkpoint, table, unbroken, tmp_path, monkeypatch
):
    """Killed while the frozen blocks run: the remaining texts are computed in the same batches."""
    from gpt2_from_scratch.speed import feature_cache as features
    from gpt2_from_scratch.speed import frozen_trunk as trunk

    monkeypatch.setenv("GPT2_FROM_SCRATCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(trunk.TOKENS, "cpu", 64)  # many small batches
    monkeypatch.setattr(features, "SHARD", 1)
    train(tiny_checkpoint, table, tmp_path / "whole")
    monkeypatch.setenv("GPT2_FROM_SCRATCH_CACHE", str(tmp_path / "another"))
    plain, calls = trunk.Trunk.__call__, []

    def interrupted(self, packed):
        calls.append(packed.ids.tolist())
        if len(calls) == 3:
            raise KeyboardInterrupt
        return plain(self, packed)

    with monkeypatch.context() as patch:
        patch.setattr(trunk.Trunk, "__call__", interrupted)
        with pytest.raises(Interrupted, match="--resume"):
            train(tiny_checkpoint, table, tmp_path / "run")
    resume_training(tmp_path / "run")
    assert digests(tmp_path / "run") == digests(tmp_path / "whole")


@pytest.mark.slow
def test_states_do_not_change_the_result(
    tiny_checkpoint, table, unbroken, tmp_path, every_step_is_saved
):
    train(tiny_checkpoint, table, tmp_path / "run")
    assert digests(tmp_path / "run") == digests(unbroken)


@pytest.mark.slow
def test_a_run_killed_after_its_manifest_is_complete(
    tiny_checkpoint, table, unbroken, tmp_path, monkeypatch, every_step_is_saved
):
    """The files for resuming are removed last, or by the next command that reads the run."""

    def killed(folder: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("gpt2_from_scratch.runs.results.remove_states", killed)
        with pytest.raises(Interrupted):
            train(tiny_checkpoint, table, tmp_path / "run")
    assert len([*(tmp_path / "run").glob("state-*")]) == 2
    monkeypatch.setattr(TrainingRun, "step", lambda *_: pytest.fail("it is trained again"))
    run = resume_training(tmp_path / "run", device="cpu")
    assert digests(run.folder) == digests(unbroken)
    assert {p.name for p in run.folder.iterdir()} == {p.name for p in unbroken.iterdir()}


@pytest.mark.slow
def test_the_precision_that_auto_chose_is_kept_on_another_processor(
    tiny_checkpoint, table, unbroken, tmp_path, monkeypatch, capsys
):
    run = tmp_path / "run"
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    with interrupted_after(9, monkeypatch), pytest.raises(Interrupted):
        train_classifier(tiny_checkpoint, table, CONFIG, run=run, device="cpu", dtype="auto")
    assert RunConfig.read(run).dtype == "float32"
    has = {"avx512_bf16": True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has, raising=False)
    assert cli.main(["train", "--resume", str(run), "--dtype", "bfloat16"]) == 2
    assert "float32" in capsys.readouterr().err
    assert cli.main(["train", "--resume", str(run), "--dtype", "auto", "--device", "cpu"]) == 0
    assert RunConfig.read(run).dtype == "float32"
    assert digests(run) == digests(unbroken)


# --- states on disk ---


@pytest.mark.slow
def test_two_states_are_kept_and_the_newest_undamaged_one_is_used(
    tiny_checkpoint, table, unbroken, tmp_path, monkeypatch, every_step_is_saved
):
    run = tmp_path / "run"
    broken_off(monkeypatch, tiny_checkpoint, table, run, 9)
    older, newer = sorted(run.glob("state-*.safetensors"))
    assert (older.name, newer.name) == ("state-00000008.safetensors", "state-00000009.safetensors")
    raw = bytearray(newer.read_bytes())
    raw[-1] ^= 1
    newer.write_bytes(raw)
    said = listen()
    resume_training(run)
    assert any(f"{newer} is damaged" in line for line in said)
    assert f"resuming from {older}" in said
    assert newer.with_name(f"{newer.name}.bad").exists()
    assert digests(run) == digests(unbroken)


@pytest.mark.slow
def test_without_an_undamaged_state_the_run_restarts(
    tiny_checkpoint, table, unbroken, tmp_path, monkeypatch
):
    run = tmp_path / "run"
    broken_off(monkeypatch, tiny_checkpoint, table, run, 9)
    for state in run.glob("state-*.safetensors"):
        state.write_bytes(state.read_bytes()[:-1])
    said = listen()
    resume_training(run)
    assert any("starting at the first step" in line for line in said)
    assert digests(run) == digests(unbroken)


def test_a_state_never_contains_nan(tmp_path):
    save_state(tmp_path, 1, {"a": torch.ones(2)}, {})
    with pytest.raises(CheckpointError, match="NaN"):
        save_state(tmp_path, 2, {"a": torch.tensor([1.0, torch.inf])}, {})
    record, tensors = newest_state(
        tmp_path,
    )
    assert tensors["a"].tolist() == [1, 1]


@pytest.mark.slow
def test_another_processor_or_thread_count_is_reported(
    tiny_checkpoint, table, tmp_path, monkeypatch
):
    run = tmp_path / "run"
    broken_off(monkeypatch, tiny_checkpoint, table, run, 2)
    monkeypatch.setattr(training_run, "environment", lambda device: {"torch": "9.9"})
    lines = listen()
    resume_training(run, device="cpu")
    assert any("not bit-identical" in line and "9.9" in line for line in lines)


# --- refused ---


def test_changed_settings_are_refused_with_the_difference(
    tiny_checkpoint, table, tmp_path, monkeypatch, capsys
):
    run = tmp_path / "run"
    broken_off(monkeypatch, tiny_checkpoint, table, run, 2)
    before = {path: path.read_bytes() for path in run.iterdir() if path.name != "config.json"}
    others = ["--lr", "0.02", "--balance", "--together", "near-duplicates"]
    assert cli.main(["train", "--resume", str(run), *others]) == 2
    err = capsys.readouterr().err
    assert "lr: 0.01 -> 0.02" in err and "balance: False -> True" in err and err.count("->") == 3
    assert "together: 'copies' -> 'near-duplicates'" in err
    # called in Python, without the command's checks
    with pytest.raises(UsageError, match="epochs: 4 -> 5"):
        edited = json.loads((run / "config.json").read_text())
        edited["training"]["epochs"] = 5
        (run / "config.json").write_text(json.dumps(edited))
        resume_training(run)
    with pytest.raises(UsageError, match=r"other messages.*hash [0-9a-f]{12}, now .* hash "):
        edited["training"]["epochs"] = 4
        (run / "config.json").write_text(json.dumps(edited))
        changed = table.read_text().replace("a pill 0,", "a pill 1000,")
        original = table.read_text()
        try:
            table.write_text(changed)
            resume_training(run)
        finally:
            table.write_text(original)
    assert before and all(path.read_bytes() == raw for path, raw in before.items())


@pytest.fixture
def moved(tiny_checkpoint, table, tmp_path, monkeypatch) -> Path:
    """A run that was interrupted, and whose data was then moved."""
    away = tmp_path / "kinds.csv"
    away.write_bytes(table.read_bytes())
    broken_off(monkeypatch, tiny_checkpoint, away, tmp_path / "run", 9)
    away.rename(tmp_path / "elsewhere.csv")
    return tmp_path / "run"


def test_missing_data_are_named_with_what_to_do(moved, capsys):
    before = {path: path.read_bytes() for path in moved.iterdir()}
    assert cli.main(["train", "--resume", str(moved)]) == 3
    err = capsys.readouterr().err
    assert f"{moved.parent / 'kinds.csv'} is missing" in err and "--data NEW" in err
    assert cli.main(["train", "--resume", str(moved), "--data", str(moved / "no.csv")]) == 3
    found = capsys.readouterr().err
    assert f"{moved / 'no.csv'} is missing" in found
    assert f"started with {moved.parent / 'kinds.csv'}" in found
    assert {path: path.read_bytes() for path in moved.iterdir()} == before


@pytest.mark.slow
@pytest.mark.parametrize("form", ["csv", "tsv"])
def test_moved_data_can_be_given(moved, unbroken, form, capsys):
    new, reading = moved.parent / "elsewhere.csv", []
    if form == "tsv":  # other columns and another encoding, but the same messages
        rows = [*csv.reader(new.read_text().splitlines())][1:]
        new = moved.parent / "other.tsv"
        raw = "".join(f"{label}\t{text}\n" for text, label in [("body", "kind"), *rows])
        new.write_text(raw, encoding="utf-16")
        reading = ["--text-column", "body", "--label-column", "kind", "--encoding", "utf-16"]
    assert cli.main(["train", "--resume", str(moved), "--data", str(new), *reading]) == 0
    assert digests(moved) == digests(unbroken)
    config = json.loads((moved / "config.json").read_text())["data"]
    assert config["source"] == str(new)
    assert config["text_column"] == ("body" if form == "tsv" else "text")
    assert cli.main(["verify", str(moved)]) == 0
    # moved again; a lost report is written again
    again = new.rename(new.with_stem("again"))
    (moved / "report.html").unlink()
    assert cli.main(["train", "--resume", str(moved)]) == 3
    assert "--data NEW" in capsys.readouterr().err
    assert cli.main(["train", "--resume", str(moved), "--data", str(again)]) == 0
    assert (moved / "report.html").exists() and cli.main(["verify", str(moved)]) == 0
    resume_training(moved).load_split()


@pytest.mark.parametrize("change", ["text", "label", "row", "order"])
def test_other_messages_are_refused_with_both_facts(moved, change, capsys):
    new = moved.parent / "elsewhere.csv"
    header, *rows = new.read_text().splitlines()
    if change == "row":
        rows.append("a pill 99,a")
    elif change == "order":
        rows[0], rows[2] = rows[2], rows[0]  # rows of one label; the split depends on their order
    else:
        rows[0] = {"text": "a pill 1000,a", "label": "a pill 0,b"}[change]
    new.write_text("\n".join([header, *rows]) + "\n")
    before = {path: path.read_bytes() for path in moved.iterdir()}
    assert cli.main(["train", "--resume", str(moved), "--data", str(new)]) == 2
    err = capsys.readouterr().err
    then = json.loads((moved / "provenance.json").read_text())
    assert str(new) in err and f"{then['messages']} with hash {then['messages_sha256'][:12]}" in err
    assert ("'test': 9" in err) == (change == "row") and err.count("with hash") == 2
    if change in ("order", "row"):
        assert ("original order" in err) == (change == "order")
    assert {path: path.read_bytes() for path in moved.iterdir()} == before
    with pytest.raises(UsageError, match="other messages"):
        resume_training(moved, data=new)


@pytest.mark.slow
def test_three_moved_files_can_be_given(tiny_checkpoint, tmp_path, monkeypatch):
    names = ("train", "val", "test")
    for name in names:
        rows = [f"{'the goal' if n % 2 else 'a pill'} {n} {name},{'ab'[n % 2]}" for n in range(12)]
        (tmp_path / f"{name}.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    places = [str(tmp_path / f"{name}.csv") for name in names]
    data = DataConfig(*places)
    plain = TrainingRun.end_epoch
    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "end_epoch", lambda *_: signal.raise_signal(signal.SIGINT))
        with pytest.raises(Interrupted):
            train_classifier(tiny_checkpoint, data, CONFIG, run=tmp_path / "run", device="cpu")
    assert TrainingRun.end_epoch is plain
    (tmp_path / "new").mkdir()
    for place in places:
        Path(place).rename(tmp_path / "new" / Path(place).name)
    new = DataConfig(*(str(tmp_path / "new" / f"{name}.csv") for name in names))
    with pytest.raises(DataError, match=r"val.csv is missing.*--val-data"):
        resume_training(tmp_path / "run", data=tmp_path / "new" / "train.csv")
    run = resume_training(tmp_path / "run", data=new)
    assert run.config.data == new and run.scores.total == 12


def test_folders_that_are_not_runs_are_refused(tmp_path, tiny_checkpoint, capsys):
    for content in (None, "{}", '{"recipe": "default"}', "[", '{"recipe": "lecture"}'):
        folder = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        if content is not None:
            (folder / "config.json").write_text(content)
        assert cli.main(["train", "--resume", str(folder)]) in (2, 4)
        assert "config.json" in (err := capsys.readouterr().err) or "recipe" in err
    assert cli.main(["train", "--resume", str(tmp_path), "--out", "x"]) == 2


def test_one_process_at_a_time(tiny_checkpoint, table, tmp_path, monkeypatch):
    run = tmp_path / "run"
    broken_off(monkeypatch, tiny_checkpoint, table, run, 2)

    def second(self: TrainingRun, batch: list[int]) -> None:
        with pytest.raises(UsageError, match="another process"):
            resume_training(run)
        raise KeyboardInterrupt

    monkeypatch.setattr(TrainingRun, "step", second)
    with pytest.raises(Interrupted):
        resume_training(run)


# --- NaN and lack of memory ---


def test_nan_keeps_the_last_good_state(
    tiny_checkpoint, table, tmp_path, monkeypatch, every_step_is_saved
):
    plain, run = TrainingRun.step, tmp_path / "run"

    def step(self: TrainingRun, batch: list[int]) -> None:
        plain(self, batch)
        if self.at.step == 5:
            self.trainable["head.bias"].data[0] = torch.nan

    monkeypatch.setattr(TrainingRun, "step", step)
    with pytest.raises(GPT2Error, match="the weights became nan in epoch 1, step 6"):
        train(tiny_checkpoint, table, run)
    record, tensors = newest_state(run)
    assert record["progress"]["step"] == 4 and all(t.isfinite().all() for t in tensors.values())
    assert json.loads((run / "nan_report.json").read_text())["settings"]["lr"] == 0.01


@pytest.mark.slow
@pytest.mark.parametrize("room", [4, 3, 2, 1])
def test_out_of_memory_halves_the_micro_batch(
    tiny_checkpoint, table, unbroken, tmp_path, monkeypatch, room
):
    """The batch size stays 5: only rounding changes the weights of the uninterrupted run."""
    plain = Classifier.batch_outputs

    def scarce(self, texts, numbers):
        if len(numbers) > room and torch.is_grad_enabled():
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to ...")
        return plain(self, texts, numbers)

    monkeypatch.setattr(Classifier, "batch_outputs", scarce)
    said = listen()
    found = train(tiny_checkpoint, table, tmp_path / "run").classifier
    micro = {4: 3, 3: 3, 2: 2, 1: 1}[room]
    assert f"not enough memory: continuing with {micro} messages per forward pass" in said
    expected = Classifier.load(unbroken / "best.safetensors", tiny_checkpoint)
    for name, value in expected.model.state_dict().items():
        assert torch.allclose(found.model.state_dict()[name], value, atol=1e-4), name


@pytest.mark.slow
def test_no_memory_at_all_is_exit_6(tiny_checkpoint, table, tmp_path, monkeypatch, capsys):
    def none(self, texts, numbers):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Classifier, "batch_outputs", none)
    code = cli.main(
        [
            "train",
            "--model",
            str(tiny_checkpoint),
            "--data",
            str(table),
            "--out",
            str(tmp_path / "run"),
            "--device",
            "cpu",
        ]
    )
    assert code == 6 and "--max-tokens" in capsys.readouterr().err


# --- the manifest ---


@pytest.mark.slow
@pytest.mark.parametrize("name", ["best.safetensors", "test.csv"])
def test_a_file_changed_since_is_refused(tiny_checkpoint, table, tmp_path, name, capsys):
    train(tiny_checkpoint, table, tmp_path / "run")
    path = tmp_path / "run" / name
    check_listed(path)
    path.write_bytes(path.read_bytes() + b" ")
    code = cli.main(["evaluate", str(tmp_path / "run"), "--model", str(tiny_checkpoint)])
    assert code == 4 and "MANIFEST.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not JSON"),
        ("[]", "object"),
        ('{"sha256": 3}', "does not list files"),
        ('{"sha256": {"../x": "0"}}', "outside its folder"),
        ('{"sha256": {}}', "not in MANIFEST"),
        ('{"sha256": {}, "sha256": {}}', "twice"),
        ('{"sha256": {"best.safetensors": NaN}}', "NaN"),
    ],
)
def test_an_invalid_manifest_is_refused(unbroken, tiny_checkpoint, tmp_path, content, message):
    (tmp_path / "best.safetensors").write_bytes((unbroken / "best.safetensors").read_bytes())
    (tmp_path / "MANIFEST.json").write_text(content)
    with pytest.raises(CheckpointError, match=message):
        Classifier.load(tmp_path, tiny_checkpoint)


# --- signals to the command itself ---

COMMAND = [sys.executable, "-m", "gpt2_from_scratch", "train", "--device", "cpu"]


def started(base: Path, table: Path, out: Path) -> subprocess.Popen:
    """The command, after it has printed its first epoch."""
    options = ["--model", base, "--data", table, "--out", out, "--epochs", "500", "--lr", "0.01"]
    command = [*COMMAND, *map(str, options), "--patience", "500", "--threads", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if line.startswith("epoch "):
            return process
    pytest.fail("it ended before its first epoch")


@pytest.mark.slow
@POSIX
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_says_how_to_resume(tiny_checkpoint, table, tmp_path, number, code):
    run = tmp_path / "my run"
    process = started(tiny_checkpoint, table, run)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code and out == ""
    assert "Traceback" not in err and f"train --resume '{run}'" in err
    record, _ = newest_state(run)
    assert 0 < record["progress"]["step"] < 500 * 6
    assert Classifier.load(run, tiny_checkpoint)  # the best epoch so far


@POSIX
def test_a_second_signal_stops_at_once(tiny_checkpoint, table, tmp_path, monkeypatch):
    """The second signal arrives while the first one's step is still running."""
    plain: Callable = TrainingRun.step

    def step(self: TrainingRun, batch: list[int]) -> None:
        plain(self, batch)
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("it went on")

    monkeypatch.setattr(TrainingRun, "step", step)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match="stopped immediately"):
        train(tiny_checkpoint, table, tmp_path / "run")
    assert not list((tmp_path / "run").glob("state*"))
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.slow
def test_a_signal_during_validation(tiny_checkpoint, table, unbroken, tmp_path, monkeypatch):
    """Even after the last step: then only the scores remain to be computed."""
    plain, run = TrainingRun.end_epoch, tmp_path / "run"

    def end_epoch(self, val) -> None:
        signal.raise_signal(signal.SIGINT)
        plain(self, val)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "end_epoch", end_epoch)
        for step in (6, 12, 18, 24):
            with pytest.raises(Interrupted, match=f"after step {step} of 24"):
                if step == 6:
                    train(tiny_checkpoint, table, run)
                else:
                    resume_training(run)
    resume_training(run)
    assert digests(run) == digests(unbroken)


@pytest.mark.slow
def test_epochs_of_one_message(tiny_checkpoint, table, unbroken, tmp_path):
    """A batch size larger than the number of messages, and batches of one message."""
    for size in (1, 1000):
        out = tmp_path / str(size)
        train(tiny_checkpoint, table, out, replace(CONFIG, batch_size=size, epochs=1))
        assert json.loads((out / "evaluation.json").read_text())["total"] == 8


# --- a full disk ---


@pytest.mark.slow
@POSIX
@pytest.mark.parametrize("limit", [100, 20_000, 60_000])
def test_a_full_disk_is_exit_6_and_loses_nothing_saved(
    tiny_checkpoint, table, unbroken, tmp_path, limit
):
    """The size of files is limited: the classifier takes 55,000 bytes, a state 220,000."""
    code = (
        "import resource, sys; from gpt2_from_scratch.cli import main as cli; from gpt2_from_scratch.classifier import train as training_run\n"
        "training_run.SAVE_EVERY = 0.0\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, resource.RLIM_INFINITY))\n"
        "sys.exit(cli.main(sys.argv[1:]))"
    )
    run = tmp_path / "run"
    options = ["--epochs", 4, "--batch-size", 5, "--lr", 0.01, "--seed", 3, "--threads", 1]
    words = ["train", "--model", tiny_checkpoint, "--data", table, "--out", run, "--device", "cpu"]
    found = subprocess.run(
        [sys.executable, "-c", code, *map(str, [*words, *options])], capture_output=True, text=True
    )
    assert found.returncode == 6 and "Traceback" not in found.stderr, found.stderr
    assert "could not be written" in found.stderr and found.stdout == ""
    assert not list(run.glob(".*.tmp"))
    if (run / "config.json").exists():  # the run can be resumed when there is space again
        resume_training(run)
        assert digests(run) == digests(unbroken)


# --- attempts of a hostile user ---


@pytest.mark.slow
def test_test_messages_are_written_again(tiny_checkpoint, table, unbroken, tmp_path, monkeypatch):
    """A resumed run does not accept a test set that somebody has replaced."""
    for number, forged in enumerate([None, "label,text\na,hello\n"]):
        run = tmp_path / str(number)
        broken_off(monkeypatch, tiny_checkpoint, table, run, 9)
        (run / "test.csv").unlink()
        if forged:
            (run / "test.csv").write_text(forged)
        resume_training(run)
        assert digests(run) == digests(unbroken)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes are Linux's")
def test_a_folder_whose_name_is_not_utf_8(tiny_checkpoint, table, tmp_path, monkeypatch, capsys):
    """safetensors can write but not read there, and an unreadable state is not damaged."""
    run = tmp_path / "run"
    broken_off(monkeypatch, tiny_checkpoint, table, run, 9)
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/n\xff"))
    run.rename(odd)
    before = sorted(path.name for path in odd.iterdir())
    assert cli.main(["train", "--resume", str(odd)]) == 2 and "UTF-8" in capsys.readouterr().err
    assert sorted(path.name for path in odd.iterdir()) == before
    odd.rename(run)
    assert cli.main(["train", "--out", str(odd)]) == 2 and not odd.exists()
    resume_training(run)


def test_settings_of_another_type_are_refused(tiny_checkpoint, table, tmp_path, unbroken, capsys):
    """A valid `config.json` except for one setting of a wrong type, which the error names."""
    saved = json.loads((unbroken / "config.json").read_text())
    damages = [
        ("", {"model": []}),
        ("", {"zzz": 1}),
        ("", {"cache": 1}),
        ("", {"dtype": "float64"}),
        ("", {"threads": "2"}),
        ("data", {"source": 5}),
        ("data", {"keep_empty": "no"}),
        ("data", {"text_column": None}),
        ("data", {"encoding": "rot13"}),
        ("training", {"seed": 1.5}),
        ("training", {"n_last_blocks": True}),
        ("training", {"final_norm": None}),
        ("training", {"say": 1}),
        ("head", {"max_tokens": "5"}),
    ]
    for part, damage in damages:
        run = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        run.mkdir()
        changed = saved | (damage if not part else {part: saved[part] | damage})
        (run / "config.json").write_text(json.dumps(changed))
        code = cli.main(["train", "--resume", str(run)])
        err = capsys.readouterr().err
        assert code == 4 and "config.json" in err and "Traceback" not in err, damage
        assert next(iter(damage)) in err, err
    for part in ("data", "training", "head"):
        name = next(iter(saved[part]))
        less = saved | {part: {k: v for k, v in saved[part].items() if k != name}}
        (run / "config.json").write_text(json.dumps(less))
        assert cli.main(["train", "--resume", str(run)]) == 4
        assert name in capsys.readouterr().err


def test_settings_of_a_later_version_may_be_missing(unbroken, tmp_path):
    """Before they were settings, they had their default values."""
    saved = json.loads((unbroken / "config.json").read_text())
    less = saved | {
        part: {k: v for k, v in saved[part].items() if k not in LATER}
        for part in ("data", "training")
    }
    assert less != saved
    (tmp_path / "config.json").write_text(json.dumps(less))
    assert RunConfig.read(tmp_path) == RunConfig.read(unbroken)


def test_a_run_of_an_earlier_version_predicts_but_does_not_resume(
    tiny_checkpoint, unbroken, tmp_path, capsys
):
    """Version 1 had one flat dictionary of settings."""
    run = tmp_path / "old"
    run.mkdir()
    for name in ("best.safetensors", "test.csv"):
        (run / name).write_bytes((unbroken / name).read_bytes())
    settings = {"model": str(tiny_checkpoint), "data": "kinds.csv", "epochs": 4, "lr": 0.01}
    (run / "config.json").write_text(json.dumps({"recipe": "default", "settings": settings}))
    model = ["--model", str(tiny_checkpoint)]
    assert cli.main(["predict", str(run), "the goal", *model]) == 0
    assert cli.main(["evaluate", str(run), "--json", *model]) == 0
    capsys.readouterr()
    assert cli.main(["train", "--resume", str(run)]) == 2
    assert "another version" in capsys.readouterr().err


@pytest.mark.slow
def test_equivalent_options_are_accepted(tiny_checkpoint, table, unbroken, tmp_path, monkeypatch):
    run = tmp_path / "run"
    broken_off(monkeypatch, tiny_checkpoint, table, run, 9)
    same = ["--encoding", "UTF8", "--recipe", "default", "--lr", "1e-2"]
    same += ["--model", tiny_checkpoint, "--data", table, "--threads", torch.get_num_threads()]
    assert cli.main(["train", "--resume", str(run), "--device", "cpu", *map(str, same)]) == 0
    assert digests(run) == digests(unbroken)
    edited = json.loads((run / "config.json").read_text()) | {"cache": False}
    (run / "config.json").write_text(json.dumps(edited))
    assert cli.main(["train", "--resume", str(run)]) == 4, "its manifest has another config.json"


@pytest.mark.slow
@POSIX
@pytest.mark.parametrize("name", ["config.json", "state-00000009.safetensors", "MANIFEST.json"])
def test_a_pipe_in_a_files_place_does_not_hang(tiny_checkpoint, table, tmp_path, monkeypatch, name):
    run = tmp_path / "run"
    broken_off(monkeypatch, tiny_checkpoint, table, run, 9)
    (run / name).unlink(missing_ok=True)
    os.mkfifo(run / name)
    signal.alarm(30)
    try:
        assert cli.main(["train", "--resume", str(run), "--device", "cpu"]) in (0, 4)
    finally:
        signal.alarm(0)
