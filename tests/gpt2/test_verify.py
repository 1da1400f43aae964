"""Intact model folders pass every check, and damage is reported."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from write_bundle import random_gpt2, write_bundle, write_random_gpt2

from gpt2_from_scratch.classifier.classifier import Classifier
from gpt2_from_scratch.cli.main import main
from gpt2_from_scratch.errors import CheckpointError
from gpt2_from_scratch.gpt2 import verify
from gpt2_from_scratch.gpt2.config import GPT2Config
from gpt2_from_scratch.gpt2.download import PinnedFile
from gpt2_from_scratch.gpt2.openai_checkpoint import read_index
from gpt2_from_scratch.gpt2.tokenizer import Tokenizer, write_bpe
from gpt2_from_scratch.gpt2.verify import Check, format_checks, verify_model
from gpt2_from_scratch.gpt2.weights import load_gpt2, save_gpt2
from gpt2_from_scratch.storage.files import write_manifest

TINY = {"n_vocab": 277, "n_ctx": 16, "n_embd": 8, "n_head": 2, "n_layer": 1}
MERGES = [(a, b) for a in "abcde" for b in "wxyz"]  # 20, so that 256 + 20 + 1 tokens are 277
INDEX, DATA = "model.ckpt.index", "model.ckpt.data-00000-of-00001"


@pytest.fixture
def openai(tmp_path: Path) -> Path:
    folder = tmp_path / "openai"
    write_random_gpt2(folder, TINY, seed=8)
    write_bpe(folder, MERGES)
    return folder


@pytest.fixture
def safetensors(tmp_path: Path, openai: Path) -> Path:
    folder = tmp_path / "safetensors"
    save_gpt2(load_gpt2(openai), folder)
    write_bpe(folder, MERGES)
    write_sums(folder)
    return folder


def write_sums(folder: Path) -> None:
    names = sorted(path.name for path in folder.iterdir() if path.name != "SHA256SUMS")
    lines = [
        f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names
    ]
    (folder / "SHA256SUMS").write_text("".join(lines))


def failed(folder: Path) -> list[Check]:
    return [check for check in verify_model(folder) if not check.ok]


# --- intact folders ---


def test_an_intact_folder_in_openais_format(openai):
    checks = list(verify_model(openai))
    assert [check for check in checks if not check.ok] == []
    names = [check.what for check in checks if check.what.startswith("tensor ")]
    assert names == [f"tensor {name}" for name in read_index(openai / INDEX)]
    lines = format_checks(checks).split("\n")
    assert len(lines) == len(checks) - len(names) + 1
    assert all(line.startswith("ok ") for line in lines)
    assert "16 of 16 have the CRC-32C" in lines[-1]
    assert f"all {sum(a.size for a in random_gpt2(TINY).values()):,}" in format_checks(checks)


def test_an_intact_folder_of_safetensors(safetensors):
    checks = list(verify_model(safetensors))
    assert [check for check in checks if not check.ok] == []
    assert "as in SHA256SUMS" in format_checks(checks)
    (safetensors / "SHA256SUMS").unlink()
    assert failed(safetensors) == []


def test_no_folder_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="is not a folder"):
        next(verify_model(tmp_path / "none"))


# --- damage ---


def places(size: int, count: int) -> list[int]:
    """Choose both ends of a file and some fixed positions between them."""
    inside = np.random.default_rng(size).integers(0, size, max(0, count - 2)).tolist()
    return sorted({0, size - 1, *inside})


@pytest.mark.parametrize(
    "name", [INDEX, DATA, "hparams.json", "vocab.bpe", "encoder.json", "SHA256SUMS"]
)
def test_a_bit_that_flips_in_any_file_is_reported(openai, name):
    write_sums(openai)
    raw = (openai / name).read_bytes()
    for place in places(len(raw), 10):
        damaged = bytearray(raw)
        damaged[place] ^= 1 << place % 8
        (openai / name).write_bytes(damaged)
        assert failed(openai), f"bit {place % 8} of byte {place} of {name}"


@pytest.mark.parametrize("name", ["model.safetensors", "hparams.json", "SHA256SUMS"])
def test_a_bit_that_flips_in_a_safetensors_folder_is_reported(safetensors, name):
    raw = (safetensors / name).read_bytes()
    for place in places(len(raw), 12):
        damaged = bytearray(raw)
        damaged[place] ^= 1 << place % 8
        (safetensors / name).write_bytes(damaged)
        assert failed(safetensors), f"bit {place % 8} of byte {place} of {name}"


def test_without_sums_the_index_still_verifies_itself_and_the_data(openai):
    for name in (INDEX, DATA):
        raw = (openai / name).read_bytes()
        for place in places(len(raw), 12):
            damaged = bytearray(raw)
            damaged[place] ^= 1 << place % 8
            (openai / name).write_bytes(damaged)
            assert failed(openai), f"bit {place % 8} of byte {place} of {name}"
        (openai / name).write_bytes(raw)


def test_a_damaged_tensor_is_named_alone(openai):
    entry = read_index(openai / INDEX)["model/h0/ln_1/g"]
    raw = bytearray((openai / DATA).read_bytes())
    raw[entry.offset] ^= 1
    (openai / DATA).write_bytes(raw)
    (check,) = failed(openai)
    assert check.what == "tensor model/h0/ln_1/g"
    assert f"expected {entry.crc32c:08x}" in check.detail
    text = format_checks(verify_model(openai))
    assert "FAILED  tensor model/h0/ln_1/g" in text and "15 of 16" in text
    assert text.count("tensor model/") == 1


@pytest.mark.parametrize("kind", ["openai", "safetensors"])
@pytest.mark.parametrize("harm", ["missing", "empty", "half", "a folder", "noise", "deep"])
def test_a_missing_or_foreign_file_is_reported(request, kind, harm):
    folder = request.getfixturevalue(kind)
    (folder / "SHA256SUMS").unlink(missing_ok=True)
    for path in sorted(folder.iterdir()):
        raw = path.read_bytes()
        path.unlink()
        if harm == "a folder":
            path.mkdir()
        elif harm != "missing":
            noise = np.random.default_rng(1).bytes(len(raw))
            deep = b"[" * 200_000  # JSON that exceeds Python's recursion limit
            path.write_bytes(
                {"empty": b"", "half": raw[: len(raw) // 2], "noise": noise, "deep": deep}[harm]
            )
        assert failed(folder), path.name
        assert "FAILED" in format_checks(verify_model(folder))
        path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
        path.write_bytes(raw)
    assert failed(folder) == []


def test_an_empty_folder_is_reported(tmp_path):
    assert "model.safetensors" in [check.what for check in failed(tmp_path)]


def test_numbers_that_are_not_finite(openai, safetensors):
    arrays = random_gpt2(TINY)
    arrays["model/wpe"][3, 2] = np.nan
    write_bundle(openai, arrays)
    tensors = load_file(safetensors / "model.safetensors")
    tensors["h.0.mlp.c_fc.bias"][1] = -torch.inf
    save_file(tensors, safetensors / "model.safetensors")
    write_sums(safetensors)
    for folder, name in ((openai, "wpe.weight"), (safetensors, "blocks.0.mlp.c_fc.bias")):
        (check,) = failed(folder)
        assert check.what in ("finite numbers", "names and shapes") and name in check.detail


def test_other_names_and_shapes(openai):
    for change in ({"n_ctx": 8}, {"n_layer": 2}, {"n_embd": 16}, {"n_vocab": 278}):
        (openai / "hparams.json").write_text(json.dumps(TINY | change))
        assert "names and shapes" in [check.what for check in failed(openai)]
    (openai / "hparams.json").write_text(json.dumps(TINY))
    write_bpe(openai, MERGES[:-1])
    (check,) = failed(openai)
    assert check.what == "tokenizer" and "276 tokens, but n_vocab = 277" in check.detail


# --- SHA256SUMS ---


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "",
        lambda text: text[:-1],
        lambda text: text.upper(),
        lambda text: text.replace("  ", " "),
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace("model.safetensors", "../model.safetensors"),
        lambda text: text + f"{'0' * 64}  more.json\n",
        lambda text: text.split("\n", 1)[1],  # encoder.json is no longer listed
        lambda text: text.replace("model", "mödel"),
    ],
)
def test_sums_that_do_not_fit(safetensors, change):
    path = safetensors / "SHA256SUMS"
    path.write_bytes(change(path.read_text()).encode())
    assert failed(safetensors)


# --- OpenAI's 124M ---


def test_the_genuine_index_without_its_data(openai_124M, tmp_path):
    found = {check.what: check for check in verify_model(openai_124M)}
    for name in ("hparams.json", "vocab.bpe", "encoder.json", INDEX, "sizes", "tokenizer", "index"):
        assert found[name].ok, name
    for name in (DATA, "names and shapes", "model", "published logits", "published continuation"):
        assert not found[name].ok, name
    assert "is missing" in found[DATA].detail
    folder = tmp_path / "124M"  # this name selects the published files even without sizes
    shutil.copytree(openai_124M, folder, copy_function=shutil.copyfile)
    (folder / "hparams.json").write_text("{}")
    (folder / "vocab.bpe").write_text("#version: 0.2\n")
    details = {check.what: check.detail for check in failed(folder)}
    assert "expected 456,318" in details["vocab.bpe"] and "keys" in details["sizes"]


def test_a_folder_must_have_the_size_in_its_name(tmp_path, openai, safetensors):
    (check, *_) = [c for c in failed(openai.rename(tmp_path / "355M")) if c.what == "sizes"]
    assert "355M has GPT2Config" in check.detail
    details = {c.what: c.detail for c in failed(safetensors.rename(tmp_path / "124M"))}
    assert "expected 548,105,171" in details["model.safetensors"]


def test_logits_of_a_new_head(openai):
    model, ids = load_gpt2(openai), torch.tensor([5, 1, 200, 7])
    expected_head = nn.Linear(8, 3)
    before = torch.get_rng_state()
    found = verify.logits_of_new_head(model, ids, 3, seed=123)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.head.weight is model.wte.weight
    # nn.Linear draws its weight and its bias from U(-1/sqrt(C), 1/sqrt(C))
    generator = torch.Generator().manual_seed(123)
    bound = 8**-0.5
    with torch.no_grad():
        expected_head.weight.uniform_(-bound, bound, generator=generator)
        expected_head.bias.uniform_(-bound, bound, generator=generator)
        expected = expected_head(model.hidden(ids[None]))[0]
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_a_greedy_continuation(openai):
    model, tokenizer = load_gpt2(openai), Tokenizer(openai)
    ids = tokenizer.encode("axe")
    for _ in range(6):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    found = verify.greedy_continuation(model, tokenizer, "axe", 6)
    assert "axe" + found == tokenizer.decode(ids)


def test_published_numbers_are_compared(openai, safetensors, monkeypatch):
    """The test pretends that outputs were published for the tiny models."""
    model, tokenizer = load_gpt2(openai), Tokenizer(openai)
    for name, path in (
        ("HUGGING_FACE_124M", safetensors / "model.safetensors"),
        ("INDEX_124M", openai / INDEX),
    ):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        monkeypatch.setattr(verify, name, PinnedFile(path.name, known_hash=f"sha256:{digest}"))
    monkeypatch.setattr(verify, "IDS", (5, 1, 200, 7))
    logits = verify.logits_of_new_head(model, torch.tensor([5, 1, 200, 7]), 2, 123)
    monkeypatch.setattr(verify, "LOGITS", tuple(map(tuple, logits.tolist())))
    monkeypatch.setattr(verify, "PROMPT", "axe")
    text = verify.greedy_continuation(model, tokenizer, "axe", 15)
    monkeypatch.setattr(verify, "CONTINUATION", text)
    for folder in (openai, safetensors):
        checks = {check.what: check for check in verify_model(folder)}
        assert checks["published logits"].ok and checks["published continuation"].ok
    logits[2, 1] += 1e-3
    monkeypatch.setattr(verify, "LOGITS", tuple(map(tuple, logits.tolist())))
    monkeypatch.setattr(verify, "CONTINUATION", text + "!")
    for folder in (openai, safetensors):
        names = [check.what for check in failed(folder)]
        assert names == ["published logits", "published continuation"]


# --- runs ---


def test_a_finished_run_is_checked_file_by_file(tiny_checkpoint, tmp_path, capsys):
    run = tmp_path / "run"
    classifier = Classifier.on_base(tiny_checkpoint, ["ham", "spam"])
    run.mkdir()
    classifier.save(run / "best.safetensors")
    (run / "evaluation.json").write_text("{}")
    write_manifest(run, ["best.safetensors", "evaluation.json"])
    assert main(["verify", str(run)]) == 0
    assert capsys.readouterr().out.count("ok") == 4
    (run / "evaluation.json").write_text('{"accuracy": 1.0}')
    (run / "notes.txt").write_text("")
    raw = bytearray((run / "best.safetensors").read_bytes())
    raw[-1] ^= 1
    (run / "best.safetensors").write_bytes(raw)
    assert main(["verify", str(run)]) == 4
    out = capsys.readouterr().out
    assert out.count("FAILED") == 3 and "loads" in out
    assert "not part of the run, not checked: notes.txt" in out
    (run / "best.safetensors").unlink()
    assert main(["verify", str(run)]) == 4 and "is missing" in capsys.readouterr().out


# --- folders of other programs ---


def test_a_finetuned_model_of_openais_size_is_not_taken_for_openais(openai, monkeypatch):
    monkeypatch.setitem(verify.SIZES, "124M", GPT2Config(**TINY))  # the test does not write 500 MB
    assert failed(openai) == []


def test_several_data_files_under_another_name(tmp_path, openai):
    folder = tmp_path / "other"
    write_bundle(folder, random_gpt2(TINY, seed=8), "model-1000", shards=2)
    (folder / "hparams.json").write_text(json.dumps(TINY))
    write_bpe(folder, MERGES)
    assert failed(folder) == []
    path = folder / "model-1000.data-00001-of-00002"
    path.write_bytes(path.read_bytes()[:-1])
    assert path.name in format_checks(failed(folder))


def test_two_formats_are_compared(openai, safetensors):
    shutil.copyfile(safetensors / "model.safetensors", openai / "model.safetensors")
    assert failed(openai) == []
    assert "model.ckpt.index and model.safetensors have equal" in format_checks(
        verify_model(openai)
    )
    tensors = load_file(openai / "model.safetensors")
    save_file(tensors | {"ln_f.bias": tensors["ln_f.bias"] + 1}, openai / "model.safetensors")
    (check,) = failed(openai)[:1]
    assert check.what == "names and shapes" and "ln_f.bias" in check.detail


def test_contradicting_sizes_are_reported(openai):
    config = {"vocab_size": 277, "n_positions": 16, "n_embd": 8, "n_head": 4, "n_layer": 1}
    (openai / "config.json").write_text(json.dumps(config))
    (check,) = [check for check in failed(openai) if check.what == "sizes"]
    assert "n_head is 2" in check.detail and "4" in check.detail
