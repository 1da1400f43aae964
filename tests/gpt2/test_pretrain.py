"""A small pretraining run learns, can be resumed, and its files load.

torch.compile is replaced by the identity, because compiling takes half a minute.
"""

import json
import math
import os
import random
import shutil
import signal
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from said import listen
from several import in_processes
from torch.nn.attention import SDPBackend, sdpa_kernel

from gpt2_from_scratch import errors
from gpt2_from_scratch.errors import DataError, UsageError
from gpt2_from_scratch.gpt2 import pretrain as pretrain_module
from gpt2_from_scratch.gpt2.config import GPT2Config, PretrainConfig
from gpt2_from_scratch.gpt2.corpus import Source, encode_corpus, is_held_out, n_bytes
from gpt2_from_scratch.gpt2.model import GPT2, init_weights
from gpt2_from_scratch.gpt2.pretrain import (
    bits_per_byte,
    deepened,
    draw_rows,
    learning_rate_factor,
    make_optimizers,
    next_token_loss,
    pretrain,
)
from gpt2_from_scratch.gpt2.tokenizer import Tokenizer
from gpt2_from_scratch.gpt2.weights import load_gpt2
from gpt2_from_scratch.storage import states
from gpt2_from_scratch.storage.tensors import read_tensors, tensors_sha256

CONFIG = PretrainConfig(
    n_vocab=300,
    n_ctx=32,
    n_embd=16,
    n_head=2,
    n_layer=1,
    steps=8,
    tokens=64,
    row=16,
    long_every=3,
    warmup=2,
    decay=0.5,
    lr=0.02,
    save_every=4,
)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True, scope="module")
def no_compiling():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", lambda function, **settings: function)
        yield


def write_documents(path: Path, seed: int, n: int = 60, held_out: int = 1) -> None:
    """Write `n` training documents and `held_out` held-out ones.

    Each has a few short sentences.
    """
    draw, documents = random.Random(seed), []
    while n or held_out:
        names = [draw.choice(["the cat", "the dog", "you", "a man"]) for _ in range(4)]
        document = (
            f"{names[0]} saw {names[1]} on day {draw.randrange(99)}\nand {names[2]} saw {names[3]}"
        )
        if is_held_out(document):
            held_out -= held_out > 0
        elif n:
            n -= 1
        else:
            continue
        documents.append(document)
    path.write_text("\n\n".join(documents) + "\n")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("corpus")
    write_documents(folder / "book.txt", 1)
    write_documents(folder / "chat.txt", 2)
    (folder / "MANIFEST.tsv").write_text("file\tregister\nchat.txt\tconversation\n")
    return folder


def run(corpus: Path, out: Path, config: PretrainConfig = CONFIG, **settings) -> GPT2:
    return pretrain(corpus, out, config, device=CPU, **settings)


@pytest.fixture(scope="module")
def finished_once(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, GPT2]:
    out = tmp_path_factory.mktemp("finished")
    return out, run(corpus, out)


@pytest.fixture
def finished(finished_once: tuple[Path, GPT2], tmp_path: Path) -> Path:
    """The folder of a finished run of 8 steps. Each test gets a copy."""
    return shutil.copytree(finished_once[0], tmp_path / "finished")


def curve(out: Path) -> list[dict]:
    """Read the learning curve, without the speed."""
    lines = (out / "pretraining.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [{k: v for k, v in record.items() if k != "tokens_per_second"} for record in records]


def assert_equal_to_the_bit(a: GPT2, b: GPT2) -> None:
    for (name, p), q in zip(a.named_parameters(), b.parameters(), strict=True):
        assert torch.equal(p, q), name


# --- a run ---


def test_the_loss_falls(corpus, tmp_path):
    run(corpus, tmp_path, replace(CONFIG, steps=40, save_every=10))
    records = curve(tmp_path)
    assert [record["step"] for record in records] == [10, 20, 30, 40]
    assert [record["tokens"] for record in records] == [640, 1280, 1920, 2560]
    for name in ("train_loss", "held_out_bits_per_byte"):
        assert records[-1][name] < 0.75 * records[0][name]
    assert records[0]["train_loss"] < math.log(300)  # the loss of a uniform prediction


def test_the_files_load(finished_once):
    out, model = finished_once
    found, tokenizer = load_gpt2(out), Tokenizer(out)
    assert_equal_to_the_bit(found, model)
    assert found.config == GPT2Config(n_vocab=300, n_ctx=32, n_embd=16, n_head=2, n_layer=1)
    assert tokenizer.n_vocab == 300
    assert tokenizer.decode(tokenizer.encode("you saw the dog")) == "you saw the dog"
    settings = json.loads((out / "pretraining.json").read_text())
    assert settings.pop("gzip_bits_per_byte") > 0
    assert settings == asdict(CONFIG) | {"torch": torch.__version__}
    assert sorted(path.name for path in out.iterdir()) == [
        "encoder.json",
        "hparams.json",
        "model.safetensors",
        "pretraining.json",
        "pretraining.jsonl",
        "state-00000004.safetensors",
        "state-00000008.safetensors",
        "vocab.bpe",
    ]


def test_a_run_equals_a_plain_loop(corpus, finished_once):
    """The loop has the same rows and explicit learning rates: 2 of 8 steps rise, the last 4 fall."""
    out, expected = finished_once
    sources, _ = encode_corpus(corpus, Tokenizer(out), CONFIG)
    model = GPT2(expected.config)
    init_weights(model, torch.Generator().manual_seed(CONFIG.seed))
    optimizers = make_optimizers(model, CONFIG)
    for step, factor in enumerate([0.5, 1, 1, 1, 1, 0.75, 0.5, 0.25]):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = 0.02 * factor
        with sdpa_kernel(SDPBackend.MATH):
            next_token_loss(model, draw_rows(sources, CONFIG, step)).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    assert_equal_to_the_bit(model, expected)


def test_weights_on_disk_may_be_float16(corpus, tmp_path):
    model = run(corpus, tmp_path, dtype=torch.float16)
    for name, parameter in load_gpt2(tmp_path).named_parameters():
        assert torch.equal(parameter, model.get_parameter(name).half().float()), name


def test_held_out_text_is_scored_by_register(corpus, finished_once):
    """The mean over all bytes equals the score of the whole held-out text."""
    out, model = finished_once
    _, held_out = encode_corpus(corpus, Tokenizer(out), CONFIG)
    expected = {
        source.register: bits_per_byte(model, [source], n_bytes(source, Tokenizer(out)))
        for source in held_out
    }
    assert [*expected] == ["general", "conversation"]
    last = curve(out)[-1]
    assert last["by_register"] == pytest.approx(expected, abs=1e-4)
    size = sum(n_bytes(source, Tokenizer(out)) for source in held_out)
    whole = bits_per_byte(model, held_out, size)
    assert last["held_out_bits_per_byte"] == pytest.approx(whole, abs=1e-4)


def test_what_it_logs(corpus, tmp_path):
    lines = listen()
    run(corpus, tmp_path)
    sources, held_out = encode_corpus(corpus, Tokenizer(tmp_path), CONFIG)
    tokens = sum(len(source.tokens) for source in sources)
    assert "300 tokens" in lines[0] and str(corpus) in lines[0]
    assert lines[1].startswith(f"{tokens:,} tokens in 3 sources; ")
    assert [json.loads(line)["step"] for line in lines[2:]] == [4, 8] and len(held_out) == 2


def test_two_runs_with_the_same_seed_are_bit_identical(corpus, tmp_path, finished_once):
    out, first = finished_once
    torch.rand(5), np.random.rand(5), random.random()  # the global generators must not matter
    assert_equal_to_the_bit(run(corpus, tmp_path / "second"), first)
    assert curve(out) == curve(tmp_path / "second")
    other = run(corpus, tmp_path / "other", replace(CONFIG, seed=5))
    assert not torch.equal(other.wte.weight, first.wte.weight)


# --- resuming ---


class Killed(Exception):
    """Stops a run at a chosen step, like a kill."""


def kill_at(kills, monkeypatch):
    """Kill runs at these steps, each once; the steps are removed from the list."""
    plain = pretrain_module.draw_rows

    def draw(sources, config, step):
        if step in kills:
            kills.remove(step)
            raise Killed
        return plain(sources, config, step)

    monkeypatch.setattr(pretrain_module, "draw_rows", draw)


def test_a_killed_run_ends_like_an_uninterrupted_one(corpus, tmp_path, monkeypatch):
    """The run is killed after its first checkpoint, resumed, killed again, and resumed again."""
    config = replace(CONFIG, save_every=2)
    unbroken = run(corpus, tmp_path / "unbroken", config)
    kills = [3, 5]
    kill_at(kills, monkeypatch)
    while kills:
        with pytest.raises(Killed):
            run(corpus, tmp_path / "broken", config, resume=True)
    resumed = run(corpus, tmp_path / "broken", config, resume=True)
    assert_equal_to_the_bit(resumed, unbroken)
    assert curve(tmp_path / "broken") == curve(tmp_path / "unbroken")
    for name in ("model.safetensors", "vocab.bpe", "encoder.json"):
        files = [tmp_path / folder / name for folder in ("broken", "unbroken")]
        assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.slow
def test_curves_for_tensorboard_survive_a_kill(corpus, tmp_path, monkeypatch):
    """Each step has one point, and the held-out points are those of the learning curve."""
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    out = tmp_path / "run"
    kill_at([6], monkeypatch)  # the newest state is that after step 4
    with pytest.raises(Killed):
        run(corpus, out, tensorboard=True)
    run(corpus, out, resume=True, tensorboard=True)
    read = events.EventAccumulator(str(out / "tensorboard")).Reload()
    held_out = [(each.step, each.value) for each in read.Scalars("bits_per_byte/held_out")]
    records = [(each["step"], each["held_out_bits_per_byte"]) for each in curve(out)]
    assert held_out == [(step, pytest.approx(bits, abs=1e-4)) for step, bits in records]
    losses = [(each.step, each.value) for each in read.Scalars("loss/train")]
    assert [step for step, _ in losses] == [*range(1, 9)]
    means = [np.mean([loss for _, loss in losses[n : n + 4]]) for n in (0, 4)]
    assert means == pytest.approx([each["train_loss"] for each in curve(out)], abs=1e-4)
    for each in read.Scalars("learning_rate"):
        rate = CONFIG.lr * learning_rate_factor(each.step - 1, CONFIG)
        assert each.value == pytest.approx(rate, rel=1e-6)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_between_checkpoints_saves(
    corpus, finished_once, tmp_path, monkeypatch, number, code
):
    plain = pretrain_module.draw_rows

    def draw(sources, config, step):
        if step == 2:
            signal.raise_signal(number)
        return plain(sources, config, step)

    with monkeypatch.context() as patch:
        patch.setattr(pretrain_module, "draw_rows", draw)
        with pytest.raises(errors.Interrupted, match="after step 3 of 8") as error:
            run(corpus, tmp_path / "run")
    assert error.value.exit_code == code
    assert_equal_to_the_bit(run(corpus, tmp_path / "run", resume=True), finished_once[1])
    assert curve(tmp_path / "run") == curve(finished_once[0])


def test_a_loss_that_is_not_finite_leaves_the_last_good_state(corpus, tmp_path):
    with pytest.raises(errors.GPT2Error, match="in step 2.*--lr"):
        run(corpus, tmp_path, replace(CONFIG, lr=1e30, warmup=0, save_every=1))
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_run_can_be_made_longer(corpus, tmp_path):
    """A run of 4 steps at the full rate that is extended by 4 equals a run of 8 steps."""
    config = replace(CONFIG, decay=0.0)
    long = run(corpus, tmp_path / "long", config)
    run(corpus, tmp_path / "short", replace(config, steps=4))
    assert_equal_to_the_bit(run(corpus, tmp_path / "short", config, resume=True), long)


def test_resuming_a_finished_run_changes_nothing(corpus, finished, finished_once):
    before = (finished / "model.safetensors").read_bytes()
    assert_equal_to_the_bit(run(corpus, finished, resume=True), finished_once[1])
    assert (finished / "model.safetensors").read_bytes() == before
    assert [record["step"] for record in curve(finished)] == [4, 8]


def test_an_existing_run_is_not_overwritten(corpus, finished):
    before = {path: path.read_bytes() for path in finished.iterdir()}
    with pytest.raises(UsageError, match="--resume") as error:
        run(corpus, finished)
    assert str(finished) in str(error.value)
    assert {path: path.read_bytes() for path in finished.iterdir()} == before


@pytest.mark.parametrize("change", [{"lr": 0.01}, {"tokens": 128, "seed": 7}, {"n_layer": 2}])
def test_other_settings_are_refused_with_both_values(corpus, finished, change):
    before = (finished / "pretraining.json").read_bytes()
    with pytest.raises(UsageError) as error:
        run(corpus, finished, replace(CONFIG, **change), resume=True)
    for name, value in change.items():
        assert f"{name}: {getattr(CONFIG, name)!r} -> {value!r}" in str(error.value)
    assert str(error.value).count("->") == len(change)
    assert (finished / "pretraining.json").read_bytes() == before


def test_length_decay_and_checkpoints_may_change(corpus, finished):
    run(corpus, finished, replace(CONFIG, steps=11, decay=0.1, save_every=1), resume=True)
    assert [record["step"] for record in curve(finished)] == [4, 8, 9, 10, 11]


def test_another_training_text_is_refused(corpus, finished):
    with pytest.raises(UsageError, match=r"training_text: .*tokens.* -> .*tokens"):
        run(corpus, finished, exclude=["the cat saw you on day 17"], resume=True)


def test_a_state_of_an_older_version_resumes(corpus, finished, finished_once):
    """Such a state has only the weight of `conversation`, and no checksum of the training text."""
    metadata, tensors = read_tensors(finished / "state-00000008.safetensors", states.FORMAT)
    record = json.loads(metadata["record"])
    del record["training_text"]
    assert record["settings"].pop("register_weights") == "conversation=2"
    record["settings"]["conversation"] = 2.0
    states.save_state(finished, 8, tensors, record)
    assert_equal_to_the_bit(run(corpus, finished, resume=True), finished_once[1])
    record["settings"]["conversation"] = 3.0
    states.save_state(finished, 8, tensors, record)
    with pytest.raises(UsageError, match="register_weights: 'conversation=3' -> 'conversation=2'"):
        run(corpus, finished, resume=True)


# --- starting from a model ---


def test_a_run_starts_from_given_weights(corpus, finished_once, tmp_path):
    """With a tiny learning rate the weights hardly change. The model's vocabulary is used."""
    out, model = finished_once
    config = replace(CONFIG, steps=1, lr=1e-12, weight_decay=0.0)
    continued = run(corpus, tmp_path / "next", config, start=out)
    for (name, p), q in zip(continued.named_parameters(), model.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-9), name
    for name in ("vocab.bpe", "encoder.json"):
        assert (tmp_path / "next" / name).read_bytes() == (out / name).read_bytes()
    assert curve(tmp_path / "next")[0]["held_out_bits_per_byte"] == pytest.approx(
        curve(out)[-1]["held_out_bits_per_byte"], abs=1e-3
    )
    about = json.loads((tmp_path / "next" / "pretraining.json").read_text())
    assert about["started_from_sha256"] == tensors_sha256(dict(model.named_parameters()))


def test_a_model_of_other_sizes_is_refused_before_anything_is_written(
    corpus, finished_once, tmp_path
):
    with pytest.raises(UsageError, match="n_head=2.*n_head=4"):
        run(corpus, tmp_path / "next", replace(CONFIG, n_head=4), start=finished_once[0])
    assert not (tmp_path / "next").exists()


def test_a_deeper_model_starts_with_the_same_logits(tiny_gpt2: GPT2) -> None:
    ids = torch.arange(2, 12)[None]
    old = tiny_gpt2.config.n_layer
    for more in (1, 2, old, old + 1):
        deeper = deepened(tiny_gpt2, old + more)
        assert len(deeper.blocks) == deeper.config.n_layer == old + more
        assert torch.equal(deeper(ids), tiny_gpt2(ids))
        F.cross_entropy(deeper(ids)[0, :-1], ids[0, 1:]).backward()
        for block in deeper.blocks:  # each new block can learn
            assert block.attn.c_proj.weight.grad.abs().max() > 0
        assert deeper.head.weight is deeper.wte.weight


def test_a_run_continues_with_more_blocks(corpus, finished_once, tmp_path):
    out, _ = finished_once
    config = replace(CONFIG, steps=1, lr=1e-12, weight_decay=0.0, n_layer=3)
    run(corpus, tmp_path / "deeper", config, start=out)
    assert load_gpt2(tmp_path / "deeper").config.n_layer == 3
    assert curve(tmp_path / "deeper")[0]["held_out_bits_per_byte"] == pytest.approx(
        curve(out)[-1]["held_out_bits_per_byte"], abs=1e-3
    )
    with pytest.raises(UsageError, match="n_layer=3.*n_layer=2"):
        run(corpus, tmp_path / "less", replace(config, n_layer=2), start=tmp_path / "deeper")


# --- unusual corpora ---


def test_a_corpus_with_nothing_held_out_is_refused_at_once(tmp_path):
    pytest.importorskip("tokenizers")
    (tmp_path / "corpus").mkdir()
    write_documents(tmp_path / "corpus" / "a.txt", 3, held_out=0)
    with pytest.raises(DataError, match="too small"):
        run(tmp_path / "corpus", tmp_path / "out", replace(CONFIG, n_vocab=280))


def test_a_file_shorter_than_a_row_does_no_harm(tmp_path):
    pytest.importorskip("tokenizers")
    (tmp_path / "corpus").mkdir()
    write_documents(tmp_path / "corpus" / "a.txt", 3)
    (tmp_path / "corpus" / "short.txt").write_text("hi you\n")
    (tmp_path / "corpus" / "MANIFEST.tsv").write_text("file\tregister\nshort.txt\tconversation\n")
    run(
        tmp_path / "corpus",
        tmp_path / "out",
        replace(CONFIG, n_vocab=280, register_weights="conversation=1000"),
    )


def test_a_vocabulary_left_by_another_run_must_fit(corpus, finished):
    """A run that is killed before its first checkpoint leaves only the vocabulary."""
    for path in (*finished.glob("*.safetensors"), *finished.glob("*.json*")):
        if path.name != "encoder.json":
            path.unlink()
    with pytest.raises(UsageError, match="300"):
        run(corpus, finished, replace(CONFIG, n_vocab=280))


# --- rows ---


@pytest.fixture
def sources() -> list[Source]:
    """Two sources with lines of 5 and 7 tokens. Token ids are positions, from 0 and from 10,000."""
    return [
        Source("a", np.arange(1000, dtype=np.uint16), np.arange(0, 1000, 5), 3.0),
        Source("b", np.arange(10_000, 12_000, dtype=np.uint16), np.arange(0, 2000, 7), 1.0),
    ]


def test_rows_depend_only_on_seed_and_step(sources):
    rows = [draw_rows(sources, CONFIG, step) for step in range(6)]
    np.random.seed(0), torch.manual_seed(0)
    for step in (5, 0, 3):
        assert torch.equal(draw_rows(sources, CONFIG, step), rows[step])
    assert not torch.equal(rows[0], rows[1])
    assert not torch.equal(draw_rows(sources, replace(CONFIG, seed=1), 0), rows[0])


def test_rows_are_long_at_regular_intervals(sources):
    shapes = [tuple(draw_rows(sources, CONFIG, step).shape) for step in range(6)]
    assert shapes == [(4, 17), (4, 17), (2, 33)] * 2  # 64 tokens, and the next one of each row
    always = replace(CONFIG, long_every=1)
    assert draw_rows(sources, always, 0).shape == (2, 33)
    assert draw_rows(sources, CONFIG, 0).dtype == torch.int64


def test_rows_begin_at_line_starts_and_are_contiguous(sources):
    for step in range(200):
        rows = draw_rows(sources, CONFIG, step)
        assert (rows.diff(dim=1) == 1).all()
        for first in rows[:, 0].tolist():
            last = (1000 if first < 10_000 else 12_000) - rows.shape[1]
            line = first % 5 == 0 if first < 10_000 else (first - 10_000) % 7 == 0
            assert line or first == last  # a row near the end of a source ends with the source
            assert first <= last


def test_sources_are_drawn_by_weight(sources):
    config = replace(CONFIG, tokens=16 * 1000, long_every=10**6)
    firsts = draw_rows(sources, config, 0)[:, 0]
    # 75% are expected, with a standard deviation of 1.4%
    assert 0.71 < (firsts < 10_000).float().mean() < 0.79
    assert len(set(firsts.tolist())) > 300


# --- the learning rate ---


def test_the_rate_rises_stays_and_falls():
    config = replace(CONFIG, steps=20, warmup=4, decay=0.25)
    factors = [learning_rate_factor(step, config) for step in range(20)]
    assert factors == [0.25, 0.5, 0.75, *[1.0] * 13, 0.8, 0.6, 0.4, 0.2]


def test_a_longer_run_has_the_same_rates_before_it_falls():
    short, long = (replace(CONFIG, steps=steps, warmup=10, decay=0.4) for steps in (100, 1000))
    rates = [[learning_rate_factor(step, c) for step in range(60)] for c in (short, long)]
    assert rates[0] == rates[1]
    assert learning_rate_factor(61, short) < learning_rate_factor(61, long) == 1


@pytest.mark.parametrize("change", [{"warmup": 0}, {"decay": 0.0}, {"decay": 1.0}, {"steps": 1}])
def test_the_rate_is_above_0_and_never_above_its_peak(change):
    config = replace(CONFIG, **change)
    factors = [learning_rate_factor(step, config) for step in range(config.steps)]
    assert all(0 < factor <= 1 for factor in factors)


def test_every_parameter_has_one_optimizer():
    model = GPT2(GPT2Config(n_vocab=300, n_ctx=32, n_embd=16, n_head=2, n_layer=2))
    muon, adamw = make_optimizers(model, CONFIG)
    names = {id(p): name for name, p in model.named_parameters()}
    by_muon = [names[id(p)] for group in muon.param_groups for p in group["params"]]
    by_adamw = [names[id(p)] for group in adamw.param_groups for p in group["params"]]
    parts = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert by_muon == [f"blocks.{n}.{part}.weight" for n in range(2) for part in parts]
    assert sorted(by_muon + by_adamw) == sorted(names.values())
    assert by_adamw[:2] == ["wte.weight", "wpe.weight"]


@pytest.mark.parametrize("has", [True, False])
def test_products_are_in_float32_on_a_cpu_without_bfloat16(tiny_gpt2, monkeypatch, has):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "amx_bf16": has})
    seen = []
    tiny_gpt2.blocks[0].mlp.c_fc.register_forward_hook(lambda *call: seen.append(call[2].dtype))
    with torch.no_grad():
        next_token_loss(tiny_gpt2, torch.zeros(1, 5, dtype=torch.long))
    assert seen == [torch.bfloat16 if has else torch.float32]


# --- bits per byte ---


def source_of(ids: np.ndarray) -> Source:
    return Source("a", ids.astype(np.uint16), np.array([0]), 1.0)


def plain_bits(model: GPT2, ids: np.ndarray) -> float:
    """Compute the bits in float32, one window at a time. Each token but the first is predicted."""
    nats, T = 0.0, model.config.n_ctx
    tokens = torch.from_numpy(ids.astype(np.int64))
    for first in range(0, len(tokens) - 1, T):
        targets = tokens[first + 1 : first + T + 1]
        logits = model(tokens[None, first : first + len(targets)])[0]
        nats += F.cross_entropy(logits, targets, reduction="sum").item()
    return nats / math.log(2)


@pytest.mark.parametrize("length", [1, 2, 32, 33, 34, 64, 65, 32 * 32 + 1, 32 * 33 + 5])
def test_bits_per_byte_equals_a_plain_loop(tiny_gpt2, length):
    ids = np.random.default_rng(length).integers(277, size=length)
    with torch.no_grad():
        expected = plain_bits(tiny_gpt2, ids)
        expected_twice = expected + plain_bits(tiny_gpt2, ids[::-1].copy())
    sources = [source_of(ids), source_of(ids[::-1])]
    assert bits_per_byte(tiny_gpt2, sources[:1], 1000) == pytest.approx(expected / 1000, rel=1e-2)
    assert bits_per_byte(tiny_gpt2, sources, 500) == pytest.approx(expected_twice / 500, rel=1e-2)
    assert expected >= 8.2 * (length - 1)  # worse than a uniform prediction, which needs 8.1 bits


def test_a_model_that_knows_nothing_needs_log2_of_the_vocabulary(tiny_gpt2):
    """All its logits are equal. The first token of each source is given and not predicted."""
    with torch.no_grad():
        tiny_gpt2.wte.weight.zero_()
    held_out = [source_of(np.arange(n) % 277) for n in (200, 77, 33)]
    expected = (199 + 76 + 32) * math.log2(277) / 1234
    assert bits_per_byte(tiny_gpt2, held_out, 1234) == pytest.approx(expected, rel=1e-6)


def test_the_loss_is_cross_entropy_of_the_next_token(tiny_gpt2):
    rows = torch.randint(277, (3, 20), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = tiny_gpt2(rows[:, :-1])
        expected = F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        assert next_token_loss(tiny_gpt2, rows).item() == pytest.approx(expected.item(), rel=1e-2)
        total = next_token_loss(tiny_gpt2, rows, reduction="sum").item()
        assert total == pytest.approx(expected.item() * 57, rel=1e-2)


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("mine")
    with pytest.raises(UsageError, match="contains other files"):
        pretrain(tmp_path, tmp_path, PretrainConfig(), device=CPU)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


# --- several processes ---


@pytest.mark.skipif(os.name == "nt", reason="needs forks")
def test_several_processes_train_the_model_of_one(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # in float32, and without Muon, which computes in bfloat16: differences are only rounding
    monkeypatch.setattr(
        pretrain_module, "make_optimizers", lambda model, _: [torch.optim.SGD(model.parameters())]
    )
    monkeypatch.setattr(pretrain_module, "multiplies_bfloat16", lambda device: False)
    config = replace(CONFIG, lr=0.5)
    expected = run(corpus, tmp_path / "one", config)
    assert curve(tmp_path / "one")[-1]["train_loss"] < 5
    for count in (2, 3):  # of 4 or 2 rows per step
        out = tmp_path / f"by {count}"
        found = in_processes(count, partial(_pretrained, corpus, out, config), tmp_path)
        assert found == [found[0]] * count  # equal to the bit
        several = load_gpt2(out)
        for (name, p), q in zip(expected.named_parameters(), several.parameters(), strict=True):
            torch.testing.assert_close(q, p, atol=1e-5, rtol=0, msg=name)
        assert curve(out) == curve(tmp_path / "one")
        (out / "state-00000008.safetensors").unlink()
        resumed = in_processes(
            count, partial(_pretrained, corpus, out, config, resume=True), tmp_path
        )
        assert resumed == found


def _pretrained(corpus: Path, out: Path, config: PretrainConfig, rank: int, **options: bool) -> str:
    """Pretrain in one of several processes; return a hash of the weights."""
    model = run(corpus, out, config, **options)
    return tensors_sha256(dict(model.named_parameters()))
