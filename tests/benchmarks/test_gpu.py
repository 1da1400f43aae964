"""`make gpu` on a CPU with tiny sizes: every stage works, a failure is noted, the model comes back."""

import importlib
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from gpt2_from_scratch.gpt2.config import PretrainConfig
from gpt2_from_scratch.gpt2.corpus import (
    CorpusFile,
    Source,
    is_held_out,
    read_documents,
    registers,
)
from gpt2_from_scratch.gpt2.weights import load_gpt2

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
DEFAULT = ["compare", "speed", "pretrain_next"]
STAGES = ["compare", "speed", "qlora", "large", "torchrun", "pretrain_next"]
CPU = torch.device("cpu")


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Import a file of benchmarks/gpu; it and what it imports are forgotten after the test."""
    for folder in (BENCHMARKS, BENCHMARKS / "gpu"):
        monkeypatch.syspath_prepend(folder)
    for path in (*BENCHMARKS.glob("*.py"), *BENCHMARKS.glob("gpu/*.py")):
        monkeypatch.delitem(sys.modules, path.stem, raising=False)
    return importlib.import_module


@pytest.mark.slow
def test_every_stage_works_on_a_cpu_and_the_model_comes_back(
    module: Callable[[str], ModuleType], tmp_path: Path
):
    out = tmp_path / "out"
    command = ["make", "gpu", "DEVICE=cpu", "SMALL=1", f"GPU_PYTHON={sys.executable}"]
    command += [f"OUT={out}", f"PACK={tmp_path / 'pack'}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = {name: json.loads((out / f"{name}.json").read_text()) for name in STAGES}
    assert not [(n, r) for results in found.values() for n, r in results.items() if "error" in r]
    assert all(result["ok"] for result in found["compare"].values())
    assert len(found["compare"]) == 16
    ours = found["speed"]["finetune, 124M: ours, float32"]
    assert {"seconds", "textbook loop / it", "share of peak", "peak MB"} <= ours.keys()
    qlora = [found["qlora"][f"124M: {kind}, float32"] for kind in ("QLoRA", "LoRA")]
    assert qlora[0]["blocks, MB"] < qlora[1]["blocks, MB"] / 2
    last = found["large"]["float32: last block"]
    assert last["validation loss after"] < last["validation loss before"]
    assert found["torchrun"]["finetune, 124M"]["ok"]
    files = list(out.iterdir())
    assert len([file for file in files if file.stem not in set(STAGES) - {*DEFAULT}]) <= 8
    assert max(file.stat().st_size for file in files) < 16_000_000
    names = module("parts").join(out, tmp_path / "next")
    assert "pretraining.jsonl" in names
    model = load_gpt2(tmp_path / "next")
    settings = found["pretrain_next"]["pretraining"]["settings"]
    assert model.config == PretrainConfig(**settings).sizes()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], DEFAULT),
        (["--small"], STAGES),
        (["--stages", "qlora", "compare"], ["compare", "qlora"]),
        (["--small", "--stages", "large"], ["large"]),
    ],
)
def test_the_stages_that_run(
    module: Callable[[str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    options: list[str],
    expected: list[str],
):
    """In the order of the table, all within the time."""
    runner, ran = module("run"), []
    monkeypatch.setattr(runner, "run_stage", lambda name, seconds, *_: ran.append((name, seconds)))
    monkeypatch.setattr(sys, "path", [*sys.path])
    pack, out = tmp_path / "pack", tmp_path / "out"
    pack.mkdir()
    tarfile.open(pack / "data.tar.xz", "w:xz").close()
    command = ["run.py", "--pack", str(pack), "--out", str(out), *options]
    monkeypatch.setattr(sys, "argv", command)
    runner.main()
    assert [name for name, _ in ran] == expected
    for name, seconds in ran:
        assert "--small" in options or seconds <= min(runner.STAGES[name], runner.WHOLE)
        program = runner.PROGRAMS.get(name, f"{name}.py")
        assert (BENCHMARKS / "gpu" / program).exists()
    monkeypatch.setattr(sys, "argv", [*command, "--stages", "tpu"])
    with pytest.raises(SystemExit):
        runner.main()


def test_results_are_not_overwritten(tmp_path: Path):
    (tmp_path / "data.tar.xz").touch()
    command = [sys.executable, BENCHMARKS / "gpu" / "run.py"]
    command += ["--pack", tmp_path, "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "not empty" in done.stderr
    done = subprocess.run([*command[:-3], tmp_path / "no pack"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "make gpu-pack" in done.stderr


# --- splitting and joining ---


@pytest.fixture
def split(module: Callable[[str], ModuleType], tmp_path: Path) -> Path:
    """Two files in parts of 5,000 bytes."""
    for name, size in (("model.safetensors", 12_000), ("vocab.bpe", 10)):
        (tmp_path / name).write_bytes(bytes(n * n % 251 for n in range(size)))
    out = tmp_path / "out"
    out.mkdir()
    files = [tmp_path / "model.safetensors", tmp_path / "vocab.bpe"]
    written = module("parts").split(files, out, 5_000)
    assert sorted(written) == sorted(out.iterdir())
    return out


def test_parts_join_to_the_same_files(module: Callable[[str], ModuleType], split: Path):
    assert max(part.stat().st_size for part in split.iterdir()) <= 5_000
    command = [sys.executable, "-I", BENCHMARKS / "gpu" / "parts.py", "join", split]
    done = subprocess.run([*command, split / "joined"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in ("model.safetensors", "vocab.bpe"):
        joined, original = split / "joined" / name, split.parent / name
        assert joined.read_bytes() == original.read_bytes()


@pytest.mark.parametrize("fault", ["changed", "missing", "short", "exchanged"])
def test_no_part_may_be_damaged(module: Callable[[str], ModuleType], split: Path, fault: str):
    part = split / "model.tar.1"
    whole = part.read_bytes()
    match fault:
        case "changed":
            part.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
        case "missing":
            part.unlink()
        case "short":
            part.write_bytes(whole[:-1])
        case "exchanged":
            part.write_bytes((split / "model.tar.0").read_bytes())
    with pytest.raises(ValueError, match=r"model\.tar\.1"):
        module("parts").join(split, split.parent / "joined")
    assert not (split.parent / "joined").exists()


def test_a_folder_is_not_overwritten(module: Callable[[str], ModuleType], split: Path):
    with pytest.raises(ValueError, match="choose another"):
        module("parts").join(split, split)


# --- a stage that fails ---


def fake_stage(
    module: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str
) -> dict:
    """Run a stage with this code, and read its results."""
    runner = module("run")
    monkeypatch.setattr(runner, "__file__", str(tmp_path / "run.py"))
    monkeypatch.setattr(runner, "GRACE", 1)
    (tmp_path / "fake.py").write_text(code)
    runner.run_stage("fake", 1 if "sleep" in code else 60, [], tmp_path / "site", tmp_path)
    return json.loads((tmp_path / "fake.json").read_text())


def test_a_stage_that_ends_is_noted(
    module: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    (tmp_path / "fake.json").write_text('{"logits": {"ok": true}}')  # what it found before
    found = fake_stage(module, monkeypatch, tmp_path, "import sys; sys.exit('no card is here')")
    assert found["logits"] == {"ok": True}
    assert found["stage"]["error"] == "exit status 1"
    assert found["stage"]["last line"] == "no card is here"


@pytest.mark.slow
def test_a_stage_that_hangs_is_ended(
    module: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(999)"
    found = fake_stage(module, monkeypatch, tmp_path, code)
    assert found["stage"]["error"] in ("exit status -9", "exit status -15")


def test_packages_that_the_pack_lacks_are_named(
    module: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    runner = module("run")
    monkeypatch.setattr(sys, "path", [*sys.path])
    runner.install(tmp_path / "no wheels", tmp_path / "site")
    monkeypatch.setattr(runner, "PACKAGES", ("torch", "found_nowhere"))
    with pytest.raises(SystemExit, match=r"found_nowhere.*PACK_PYTHON"):
        runner.install(tmp_path / "no wheels", tmp_path / "site")


def test_a_measurement_that_fails_does_not_stop_the_next(
    module: Callable[[str], ModuleType], tmp_path: Path
):
    def run(error: Exception | None) -> dict:
        if error:
            raise error
        return {"seconds": 1.0}

    stage = module("stage").Stage(CPU, True, tmp_path, tmp_path, tmp_path / "found.json", 1e9)
    stage.measure("one", lambda: run(RuntimeError("CUDA error: out of luck")))
    stage.measure("two", lambda: run(ModuleNotFoundError("no", name="transformers")))
    stage.measure("three", lambda: run(None))
    stage.seconds = 0
    stage.measure("four", lambda: run(None))
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["one"]["error"] == "RuntimeError: CUDA error: out of luck"
    assert "transformers" in found["two"]["skipped"]
    assert found["three"]["seconds"] == 1.0
    assert "time" in found["four"]["skipped"]


# --- the plan of the pretraining ---

CONFIG = PretrainConfig(n_vocab=300, n_ctx=16, n_embd=8, n_head=2, n_layer=1, tokens=64, row=8)


def test_the_steps_fit_into_the_time(module: Callable[[str], ModuleType]):
    plan = module("pretrain_next").planned(CONFIG, seconds=300, per_step=0.05)
    assert plan.steps == 5400  # 0.9 * 300 s / 0.05 s
    assert plan.save_every == 1200  # 60 s
    short = module("pretrain_next").planned(CONFIG, seconds=10, per_step=0.5)
    assert (short.steps, short.save_every, short.warmup) == (18, 18, 1)
    assert module("pretrain_next").planned(CONFIG, seconds=-5, per_step=0.5).steps == 2


def test_less_memory_and_no_compiler_are_no_end(
    module: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
):
    pretrain_next = module("pretrain_next")
    source, tried = Source("x", torch.zeros(99).numpy(), torch.zeros(1).numpy(), 1.0), []

    def seconds_per_step(config: PretrainConfig, *_: object) -> float:
        eager = torch.compiler.is_compiling() or stances[-1] == "force_eager"
        tried.append((config.tokens, eager))
        if config.tokens > 32:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if not eager:
            raise RuntimeError("no compiler is here")
        return 0.25

    stances: list[str] = []
    monkeypatch.setattr(torch.compiler, "set_stance", stances.append)
    monkeypatch.setattr(pretrain_next, "seconds_per_step", seconds_per_step)
    config, found = pretrain_next.calibrated(CONFIG, source, CPU)
    assert tried == [(64, False), (32, False), (32, True)]
    assert config.tokens == 32
    assert found["compiled"] is False
    assert "no compiler is here" in found["why"]
    assert found["tokens / s"] == 128


# --- the pack ---


def documents(prefix: str, count: int) -> list[str]:
    made = (f"{prefix} number {n} says something" for n in range(10 * count))
    return [text for text in made if not is_held_out(text)][:count]


def test_large_registers_are_cut_and_held_out_text_is_not(module: Callable[[str], ModuleType]):
    aside = ["held out"]
    files = [
        CorpusFile("book.txt", "books", documents("book", 2000), aside),
        CorpusFile("more.txt", "books", documents("more", 2000), aside),
        CorpusFile("chat.txt", "chat", documents("chat", 400), aside),
    ]
    chat = sum(map(len, files[2].train))
    cut = module("pack").cut(files, 3 * chat)
    assert cut[2].train == files[2].train
    books = sum(len(d) for file in cut[:2] for d in file.train)
    assert books == pytest.approx(2 * chat, rel=0.1)
    assert all(file.held_out == aside for file in cut)
    assert set(cut[0].train) < set(files[0].train)
    assert module("pack").cut(files, 10**9) == files


def test_the_packed_corpus_holds_out_what_the_corpus_did(
    module: Callable[[str], ModuleType], tmp_path: Path
):
    looks_held_out = next(t for t in (f"cut {n}" for n in range(9999)) if is_held_out(t))
    files = [CorpusFile("a.txt", "news", ["one\ntwo", looks_held_out, "three"], [])]
    module("pack").write_corpus(files, tmp_path / "corpus")
    assert read_documents(tmp_path / "corpus" / "a.txt") == ["one\ntwo", "three"]
    assert registers(tmp_path / "corpus") == {"a.txt": "news"}
