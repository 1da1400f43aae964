"""Loaded weights are compared with the numpy oracle and Hugging Face."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import oracle
import pytest
import torch
from safetensors.torch import load_file, save_file
from said import listen
from torch import Tensor
from write_bundle import as_bfloat16, random_gpt2, write_bundle, write_random_gpt2

from gpt2_from_scratch.errors import CheckpointError
from gpt2_from_scratch.gpt2 import weights
from gpt2_from_scratch.gpt2.config import SIZES, GPT2Config
from gpt2_from_scratch.gpt2.model import GPT2
from gpt2_from_scratch.gpt2.openai_checkpoint import open_arrays, read_index
from gpt2_from_scratch.gpt2.weights import (
    load_gpt2,
    meta_gpt2,
    names_on_disk,
    parameters_sha256,
    save_gpt2,
    stored_parameters,
)
from gpt2_from_scratch.storage.files import sha256_of
from gpt2_from_scratch.storage.mapped import is_mapped

FIXTURE = Path(__file__).parents[1] / "fixtures" / "tf_checkpoint"  # written by TensorFlow itself
HPARAMS = {"n_vocab": 277, "n_ctx": 16, "n_embd": 8, "n_head": 2, "n_layer": 2}
DATA = "model.ckpt.data-00000-of-00001"


def hugging_face_name(name: str) -> str:
    """Convert `model/h0/attn/c_attn/w` to `h.0.attn.c_attn.weight`, without the package's map."""
    name = re.sub(r"^h(\d+)/", r"h.\1/", name.removeprefix("model/")).replace("/", ".")
    name = re.sub(r"\.[wg]$", ".weight", re.sub(r"\.b$", ".bias", name))
    return name if "." in name else f"{name}.weight"


def hugging_face_tensors(arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """Convert arrays to Hugging Face's layout.

    Its Conv1D weights are (in, out) instead of (1, in, out).
    """
    return {
        hugging_face_name(name): torch.from_numpy(array[0].copy() if array.ndim == 3 else array)
        for name, array in arrays.items()
    }


def write_hugging_face(folder: Path, tensors: dict[str, Tensor]) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "hparams.json").write_text(json.dumps(HPARAMS))
    return folder


def assert_equal_models(found: GPT2, expected: GPT2) -> None:
    expected_parameters = dict(expected.named_parameters())
    assert [name for name, _ in found.named_parameters()] == list(expected_parameters)
    for name, parameter in found.named_parameters():
        assert parameter.dtype == torch.float32, name
        assert torch.equal(parameter, expected_parameters[name]), name


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    return random_gpt2(HPARAMS, seed=5)


@pytest.fixture
def openai(tmp_path: Path, arrays: dict[str, np.ndarray]) -> Path:
    write_random_gpt2(tmp_path / "openai", HPARAMS, seed=5)
    return tmp_path / "openai"


# --- against the oracle ---


def assert_logits_of_the_oracle(folder: Path) -> None:
    model, raw = load_gpt2(folder), open_arrays(folder)
    rng = np.random.default_rng(1)
    for length in (1, 2, model.config.n_ctx - 1, model.config.n_ctx):
        ids = rng.integers(model.config.n_vocab, size=length)
        expected = oracle.gpt2(ids, raw, model.config.n_head)
        with torch.no_grad():
            found = model(torch.from_numpy(ids)[None])[0].numpy()
        assert expected.std() > 0.3  # logits near zero would hide errors
        np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)


def test_oracle_on_tensorflows_own_checkpoint():
    assert_logits_of_the_oracle(FIXTURE)


def test_oracle_on_a_folder_like_openais(tiny_checkpoint):
    assert_logits_of_the_oracle(tiny_checkpoint)


def test_oracle_where_the_eps_of_layer_norm_matters(tmp_path):
    """With small embeddings, the variance is smaller than eps."""
    raw = random_gpt2(HPARAMS, seed=6)
    raw["model/wte"] *= np.float32(0.02)
    raw["model/wpe"] *= np.float32(0.02)
    ids = np.arange(10) * 7
    expected = oracle.gpt2(ids, raw, HPARAMS["n_head"])
    write_random_gpt2(tmp_path, HPARAMS)
    write_bundle(tmp_path, raw)
    with torch.no_grad():
        # the head is as small as wte; it is scaled up again, so that 1e-4 is a strict tolerance
        found = load_gpt2(tmp_path)(torch.from_numpy(ids)[None])[0].numpy() * 50
    np.testing.assert_allclose(found, expected * 50, atol=1e-4, rtol=0)


# --- Hugging Face's files ---


def as_stored(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return tensors


def with_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"transformer.{name}": tensor for name, tensor in tensors.items()}


def with_masks(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    mask = torch.ones(16, 16).tril().view(1, 1, 16, 16)
    masks = {f"h.{n}.attn.bias": mask.clone() for n in range(2)}
    return tensors | masks | {f"h.{n}.attn.masked_bias": torch.tensor(-1e4) for n in range(2)}


def with_bool_masks(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: mask.bool() if ".attn.bias" in name else mask
        for name, mask in with_masks(tensors).items()
    }


def with_head(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return tensors | {"lm_head.weight": tensors["wte.weight"].clone()}


def with_everything(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return with_prefix(with_masks(tensors)) | {"lm_head.weight": tensors["wte.weight"].clone()}


@pytest.mark.parametrize(
    "change", [as_stored, with_prefix, with_masks, with_bool_masks, with_head, with_everything]
)
def test_hugging_faces_file_gives_the_same_model(tmp_path, openai, arrays, change):
    folder = write_hugging_face(tmp_path / "hf", change(hugging_face_tensors(arrays)))
    assert_equal_models(load_gpt2(folder), load_gpt2(openai))


@pytest.mark.parametrize("change", [as_stored, with_everything])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_give_the_rounded_weights_in_float32(tmp_path, arrays, dtype, change):
    tensors = {name: tensor.to(dtype) for name, tensor in hugging_face_tensors(arrays).items()}
    rounded = {name: tensor.float() for name, tensor in tensors.items()}
    found = load_gpt2(write_hugging_face(tmp_path / "half", change(tensors)))
    expected = load_gpt2(write_hugging_face(tmp_path / "float", rounded))
    assert_equal_models(found, expected)
    same = torch.equal(expected.wte.weight, torch.from_numpy(arrays["model/wte"]))
    assert same == (dtype == torch.float64)


def test_half_precision_in_openais_format(tmp_path, openai, arrays):
    halves = {name: array.astype(np.float16) for name, array in arrays.items()}
    write_bundle(openai, halves)
    found = load_gpt2(openai)
    expected = write_hugging_face(
        tmp_path / "hf", {n: t.float() for n, t in hugging_face_tensors(halves).items()}
    )
    assert_equal_models(found, load_gpt2(expected))


# --- what a loaded model is ---


@pytest.fixture(params=["openai", "hugging face"])
def any_folder(request, tmp_path, openai, arrays) -> Path:
    if request.param == "openai":
        return openai
    return write_hugging_face(tmp_path / "hf", with_everything(hugging_face_tensors(arrays)))


def test_a_loaded_model_is_like_a_new_one(any_folder):
    model, new = load_gpt2(any_folder), GPT2(GPT2Config(**HPARAMS))
    assert model.config == GPT2Config(**HPARAMS)
    assert model.head.weight is model.wte.weight
    assert model.training == new.training
    shapes = {name: parameter.shape for name, parameter in new.named_parameters()}
    assert {name: parameter.shape for name, parameter in model.named_parameters()} == shapes
    assert not list(model.buffers())
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad and parameter.is_leaf, name
        assert parameter.is_contiguous() and parameter.device.type == "cpu", name


def test_parameters_own_their_memory(any_folder):
    """Changing a parameter does not change the files or another parameter, and vice versa."""
    before = {path: path.read_bytes() for path in any_folder.iterdir()}
    model = load_gpt2(any_folder)
    places = {p.untyped_storage().data_ptr() for p in model.parameters()}
    assert len(places) == len(list(model.parameters()))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert {path: path.read_bytes() for path in any_folder.iterdir()} == before
    for path in any_folder.iterdir():
        path.unlink()
    assert all((p == 0).all() for p in model.parameters())


def test_frozen_parameters_stay_as_loaded(any_folder):
    model, again = load_gpt2(any_folder), load_gpt2(any_folder)
    model.requires_grad_(False)
    model.ln_f.requires_grad_(True)
    model(torch.arange(8)[None]).square().mean().backward()
    with_gradient = [name for name, p in model.named_parameters() if p.grad is not None]
    assert with_gradient == ["ln_f.weight", "ln_f.bias"]
    assert_equal_models(model, again)


def test_loading_draws_no_random_numbers(any_folder):
    before = torch.get_rng_state()
    load_gpt2(any_folder)
    assert torch.equal(torch.get_rng_state(), before)


# --- every array once, every parameter once ---


@pytest.mark.parametrize("size", SIZES)
def test_the_name_map_is_one_to_one(size):
    parameters = [name for name, _ in meta_gpt2(SIZES[size]).named_parameters()]
    names = names_on_disk(SIZES[size])
    assert sorted(names) == sorted(parameters) and len(parameters) == len(set(parameters))
    openai, hugging_face = zip(*names.values(), strict=True)
    assert len(set(openai)) == len(set(hugging_face)) == len(parameters)
    assert [hugging_face_name(name) for name in openai] == list(hugging_face)


def test_stored_parameters_yields_each_once(any_folder):
    model = meta_gpt2(GPT2Config(**HPARAMS))
    names = [name for name, _ in stored_parameters(any_folder, model)]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())


def test_a_file_is_opened_a_few_times_not_once_per_tensor(tmp_path, arrays, monkeypatch):
    """It is opened once for the names, and once each for wte, wpe, ln_f and every block."""
    folder = write_hugging_face(tmp_path / "hf", hugging_face_tensors(arrays))
    opened, original = [], weights.mapped_tensors
    monkeypatch.setattr(weights, "mapped_tensors", lambda path: opened.append(1) or original(path))
    load_gpt2(folder)
    assert len(opened) <= HPARAMS["n_layer"] + 4 < len(arrays)


def test_a_model_on_the_meta_device_is_like_a_new_one():
    config, before = GPT2Config(**HPARAMS), torch.get_rng_state()
    shapes = {name: p.shape for name, p in meta_gpt2(config).named_parameters()}
    assert torch.equal(torch.get_rng_state(), before)
    assert {p.device.type for p in meta_gpt2(config).parameters()} == {"meta"}
    assert shapes == {name: p.shape for name, p in GPT2(config).named_parameters()}


@pytest.mark.slow
def test_each_array_reaches_its_own_parameter(openai, arrays):
    """When the values of one array change, exactly one parameter changes."""
    before, changed_by = dict(load_gpt2(openai).named_parameters()), {}
    for name in arrays:
        write_bundle(openai, arrays | {name: arrays[name] + 1})
        after = load_gpt2(openai).named_parameters()
        changed = [parameter for parameter, p in after if not torch.equal(p, before[parameter])]
        assert len(changed) == 1, name
        changed_by[changed[0]] = name
    assert {
        parameter: openai for parameter, (openai, _) in names_on_disk(GPT2Config(**HPARAMS)).items()
    } == changed_by


def test_the_genuine_index_maps_one_to_one(openai_124M):
    entries = read_index(openai_124M / "model.ckpt.index")
    shapes = {n: tuple(p.shape) for n, p in meta_gpt2(SIZES["124M"]).named_parameters()}
    names = names_on_disk(SIZES["124M"])
    assert len(entries) == len(shapes) == len(names) == 148
    assert {name for name, _ in names.values()} == set(entries)
    for parameter, (name, _) in names.items():
        stored = entries[name].shape
        expected = (stored[2], stored[1]) if len(stored) == 3 else stored
        assert shapes[parameter] == expected, parameter
        assert len(stored) < 3 or stored[0] == 1
    assert sum(math.prod(entry.shape) for entry in entries.values()) == 124_439_808


# --- save_gpt2 ---


def test_round_trip_is_bit_equal(tmp_path, tiny_gpt2):
    save_gpt2(tiny_gpt2, tmp_path / "saved")
    found = load_gpt2(tmp_path / "saved")
    assert found.config == tiny_gpt2.config
    assert_equal_models(found, tiny_gpt2)
    # saving a second time gives the same bytes
    save_gpt2(found, tmp_path / "again")
    for name in ("model.safetensors", "hparams.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "saved" / name).read_bytes()


def test_saved_tensors_are_hugging_faces(tmp_path, openai, arrays):
    save_gpt2(load_gpt2(openai), tmp_path / "saved")
    found = load_file(tmp_path / "saved" / "model.safetensors")
    expected = hugging_face_tensors(arrays)
    assert sorted(found) == sorted(expected)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_saved_float16_weights_are_rounded_once(tmp_path, tiny_gpt2):
    save_gpt2(tiny_gpt2, tmp_path, dtype=torch.float16)
    assert {t.dtype for t in load_file(tmp_path / "model.safetensors").values()} == {torch.float16}
    for name, parameter in load_gpt2(tmp_path).named_parameters():
        assert torch.equal(parameter, tiny_gpt2.get_parameter(name).half().float())


# --- errors ---


def outcome(folder: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        load_gpt2(folder)
    assert str(folder) in str(error.value)
    return str(error.value)


@pytest.fixture(params=["openai", "hugging face"])
def rewrite(request, tmp_path):
    """Return two functions for one of the formats.

    The first writes arrays to a folder, and the second converts an array's name.
    """
    folder = tmp_path / "changed"

    def write(arrays: dict[str, np.ndarray]) -> Path:
        if request.param == "hugging face":
            return write_hugging_face(folder, hugging_face_tensors(arrays))
        write_random_gpt2(folder, HPARAMS)
        write_bundle(folder, arrays)
        return folder

    return write, hugging_face_name if request.param == "hugging face" else str


@pytest.mark.parametrize("name", ["model/wte", "model/h1/mlp/c_proj/w", "model/ln_f/b"])
def test_a_missing_array_is_named(rewrite, arrays, name):
    write, on_disk = rewrite
    message = outcome(write({n: array for n, array in arrays.items() if n != name}))
    assert f"{on_disk(name)}: found nothing, expected (" in message


@pytest.mark.parametrize("name", ["model/h2/attn/c_attn/w", "model/extra/w", "model/h0/attn/c/w"])
def test_an_extra_array_is_named(rewrite, arrays, name):
    write, on_disk = rewrite
    message = outcome(write(arrays | {name: np.ones((3, 4), "f4")}))
    assert f"{on_disk(name)}: found (3, 4), expected nothing" in message


@pytest.mark.parametrize(
    ("name", "shape", "found", "expected"),
    [
        ("model/wte", (276, 8), "(276, 8)", "(277, 8)"),
        ("model/wte", (8, 277), "(8, 277)", "(277, 8)"),
        ("model/wpe", (32, 8), "(32, 8)", "(16, 8)"),
        ("model/h0/attn/c_attn/w", (1, 24, 8), "(24, 8)", "(8, 24)"),
        ("model/h1/mlp/c_fc/w", (1, 8, 31), "(8, 31)", "(8, 32)"),
        ("model/h1/attn/c_proj/b", (1,), "(1,)", "(8,)"),
        ("model/h0/ln_1/g", (8, 1), "(8, 1)", "(8,)"),
    ],
)
def test_a_wrong_shape_is_reported_with_both(rewrite, arrays, name, shape, found, expected):
    write, on_disk = rewrite
    message = outcome(write(arrays | {name: np.ones(shape, "f4")}))
    assert f"{on_disk(name)}: found {found}, expected {expected}" in message


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("model/h0/attn/c_attn/w", (2, 8, 24)),
        ("model/h0/attn/c_proj/w", (3, 8, 8)),
        ("model/wte", (2, 277, 8)),
        ("model/h0/ln_1/g", (8, 1, 8)),
    ],
)
def test_a_wrong_leading_axis_is_reported(openai, arrays, name, shape):
    write_bundle(openai, arrays | {name: np.ones(shape, "f4")})
    assert name in outcome(openai)


@pytest.mark.parametrize(
    ("name", "value"),
    [("model/wpe", np.nan), ("model/h0/attn/c_proj/w", np.inf), ("model/ln_f/g", -np.inf)],
)
def test_numbers_that_are_not_finite_are_refused(rewrite, arrays, name, value):
    write, _ = rewrite
    arrays[name].flat[5] = value
    message = outcome(write(arrays))
    parameters = {
        openai: ours for ours, (openai, _) in names_on_disk(GPT2Config(**HPARAMS)).items()
    }
    assert f"{parameters[name]} holds NaN or inf" in message


@pytest.mark.parametrize("dtype", ["i4", "i8"])
def test_integers_are_not_accepted_as_weights(rewrite, arrays, dtype):
    """A quantised file has the correct names and shapes, but its values are not weights."""
    write, on_disk = rewrite
    name = "model/h0/mlp/c_fc/w"
    message = outcome(write(arrays | {name: np.ones((1, 8, 32), dtype)}))
    assert on_disk(name) in message or "blocks.0.mlp.c_fc.weight" in message
    assert f"int{8 * int(dtype[1])}" in message


def test_a_differing_head_is_refused(tmp_path, arrays):
    tensors = hugging_face_tensors(arrays)
    head = tensors["wte.weight"].clone()
    head[276, 7] += 1e-6
    folder = write_hugging_face(tmp_path / "hf", tensors | {"lm_head.weight": head})
    assert "lm_head.weight differs from wte.weight" in outcome(folder)
    write_hugging_face(folder, tensors | {"lm_head.weight": head[:5].clone()})
    assert "lm_head.weight differs from wte.weight" in outcome(folder)


@pytest.mark.parametrize("name", ["model.ckpt.index", DATA, "hparams.json"])
def test_a_missing_file_is_named(openai, name):
    (openai / name).unlink()
    assert name in outcome(openai)


def test_a_path_that_is_not_a_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "none", tmp_path / "file"):
        assert "folder" in outcome(folder)


@pytest.mark.parametrize(
    "damage",
    [lambda raw: raw[:-1], lambda raw: raw[:100], lambda raw: b"", lambda raw: raw + b"\0"],
)
def test_a_damaged_safetensors_file_is_refused(tmp_path, arrays, damage):
    folder = write_hugging_face(tmp_path / "hf", hugging_face_tensors(arrays))
    path = folder / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    assert str(path) in outcome(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_layer": 1}, "model/h1/attn/c_attn/b: found (24,), expected nothing"),
        ({"n_layer": 3}, "model/h2/attn/c_attn/b: found nothing, expected (24,)"),
        ({"n_vocab": 278}, "model/wte: found (277, 8), expected (278, 8)"),
        ({"n_ctx": 15}, "model/wpe: found (16, 8), expected (15, 8)"),
        ({"n_embd": 16}, "model/h0/attn/c_attn/w: found (8, 24), expected (16, 48)"),
        ({"n_head": 3}, "n_head = 3"),
    ],
)
def test_hparams_that_do_not_fit(openai, change, message):
    (openai / "hparams.json").write_text(json.dumps(HPARAMS | change))
    assert message in outcome(openai)


# --- against Hugging Face's own GPT-2 ---


@pytest.fixture(scope="module")
def hugging_face():
    """GPT2LMHeadModel with random weights of std 0.2."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=277,
        n_positions=32,
        n_embd=32,
        n_head=4,
        n_layer=2,
        bos_token_id=276,
        eos_token_id=276,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        attn_implementation="eager",
    )
    model, generator = transformers.GPT2LMHeadModel(config), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            gain = ".ln_" in name and name.endswith("weight")
            parameter.normal_(1.0 if gain else 0.0, 0.2, generator=generator)
    return model


def test_hugging_faces_logits(tmp_path, hugging_face):
    hugging_face.save_pretrained(tmp_path)  # writes config.json and model.safetensors
    model = load_gpt2(tmp_path)
    ids = torch.randint(277, (3, 32), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        torch.testing.assert_close(model(ids), hugging_face(ids).logits, atol=1e-4, rtol=0)


def test_hugging_faces_gradients(tmp_path, hugging_face):
    """The comparison is in float64, so rounding hides nothing. wte gets gradients from two places."""
    state = {n: t.clone() for n, t in hugging_face.state_dict().items() if n != "lm_head.weight"}
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(hugging_face.config.to_dict()))
    ours, theirs = load_gpt2(tmp_path).double(), hugging_face.double()
    ids = torch.randint(277, (3, 33), generator=torch.Generator().manual_seed(5))
    for logits in (ours(ids[:, :-1]), theirs(ids[:, :-1]).logits):
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
    expected = {name: p.grad for name, p in theirs.transformer.named_parameters()}
    names = names_on_disk(ours.config)
    assert len(expected) == len(list(ours.parameters())) == 28
    for name, parameter in ours.named_parameters():
        grad = expected[names[name][1]]
        grad = grad.t() if re.search(r"c_(attn|proj|fc)\.weight", name) else grad
        assert grad.abs().max() > 1e-4, name
        torch.testing.assert_close(parameter.grad, grad, atol=1e-9, rtol=0, msg=name)


def test_hugging_face_reads_what_we_save(tmp_path, hugging_face, tiny_gpt2):
    save_gpt2(tiny_gpt2, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(hugging_face.config.to_dict()))
    theirs = type(hugging_face).from_pretrained(tmp_path).eval()
    ids = torch.randint(277, (3, 32), generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        torch.testing.assert_close(tiny_gpt2(ids), theirs(ids).logits, atol=1e-4, rtol=0)


# --- checksums ---


def test_a_flipped_bit_of_the_data_is_refused_on_loading(openai):
    path = openai / DATA
    raw = bytearray(path.read_bytes())
    raw[-1000] ^= 1
    path.write_bytes(raw)
    assert "is damaged" in outcome(openai)


@pytest.mark.parametrize("name", ["model.safetensors", "hparams.json"])
def test_files_are_compared_with_their_sums(tmp_path, arrays, name):
    """hparams.json needs a checksum, too: another n_head fits the same weights."""
    folder = write_hugging_face(tmp_path / "hf", hugging_face_tensors(arrays))
    lines = [f"{sha256_of(path)}  {path.name}\n" for path in sorted(folder.iterdir())]
    (folder / "SHA256SUMS").write_text("".join(lines))
    assert load_gpt2(folder)
    raw = bytearray((folder / name).read_bytes())
    raw[-10] ^= 1
    (folder / name).write_bytes(raw)
    assert re.search(f"{name} .*SHA256SUMS", outcome(folder))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no such pipes")
def test_a_pipe_instead_of_the_sums_does_not_hang(openai: Path) -> None:
    os.mkfifo(openai / "SHA256SUMS")
    assert "SHA256SUMS" in outcome(openai)


# --- several files in one folder ---


def test_equal_weights_in_two_formats(tmp_path, openai, arrays):
    expected = load_gpt2(openai)
    write_hugging_face(openai, hugging_face_tensors(arrays))
    assert_equal_models(load_gpt2(openai), expected)


def test_different_weights_in_two_formats_are_refused(openai, arrays):
    tensors = hugging_face_tensors(arrays)
    tensors["h.1.mlp.c_fc.bias"] = tensors["h.1.mlp.c_fc.bias"] + 1e-6
    write_hugging_face(openai, tensors)
    message = outcome(openai)
    assert "blocks.1.mlp.c_fc.bias" in message
    assert "model.ckpt.index" in message and "model.safetensors" in message


def write_shards(folder: Path, tensors: dict[str, Tensor], n: int = 3) -> Path:
    """Write tensors in n files and an index, as transformers does."""
    folder.mkdir(exist_ok=True)
    (folder / "hparams.json").write_text(json.dumps(HPARAMS))
    weight_map = {}
    for shard in range(n):
        name = f"model-{shard + 1:05d}-of-{n:05d}.safetensors"
        part = {t: tensors[t] for t in sorted(tensors)[shard::n]}
        save_file(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("change", [as_stored, with_everything])
def test_shards_give_the_same_model(tmp_path, openai, arrays, change):
    folder = write_shards(tmp_path / "sharded", change(hugging_face_tensors(arrays)))
    assert_equal_models(load_gpt2(folder), load_gpt2(openai))


def change_weight_map(folder: Path, tensor: str, name: object) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"][tensor] = name
    path.write_text(json.dumps(index))


@pytest.mark.parametrize(
    "name",
    [
        "../model-00001-of-00003.safetensors",
        "/tmp/x.safetensors",
        "..",
        "sub/x.safetensors",
        "a\\x.safetensors",
        ".safetensors",
        "x.bin",
        "x.safetensors\n",
        7,
        None,
    ],
)
def test_an_index_that_leaves_its_folder_is_refused(tmp_path, arrays, name):
    folder = write_shards(tmp_path / "sharded", hugging_face_tensors(arrays))
    save_file({"wte.weight": torch.ones(277, 8)}, tmp_path / "model-00001-of-00003.safetensors")
    change_weight_map(folder, "wte.weight", name)
    assert "is not a safetensors file of this folder" in outcome(folder)


def test_a_tensor_in_another_shard_is_refused(tmp_path, arrays):
    folder = write_shards(tmp_path / "sharded", hugging_face_tensors(arrays))
    weight_map = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    other = next(name for name in weight_map.values() if name != weight_map["wte.weight"])
    change_weight_map(folder, "wte.weight", other)
    message = outcome(folder)
    assert "wte.weight is only in" in message


def test_a_tensor_that_the_index_does_not_list_is_refused(tmp_path, arrays):
    tensors = hugging_face_tensors(arrays)
    folder = write_shards(tmp_path / "sharded", tensors)
    path = folder / "model-00002-of-00003.safetensors"
    save_file(load_file(path) | {"wte.weight": tensors["wte.weight"]}, path)
    assert f"wte.weight is only in {path.name}" in outcome(folder)


def test_a_missing_shard_is_named(tmp_path, arrays):
    folder = write_shards(tmp_path / "sharded", hugging_face_tensors(arrays))
    (folder / "model-00002-of-00003.safetensors").unlink()
    assert "model-00002-of-00003.safetensors is missing" in outcome(folder)


@pytest.mark.parametrize("index", [{}, {"weight_map": {}}, {"weight_map": ["x"]}])
def test_an_index_without_files_is_refused(tmp_path, arrays, index):
    folder = write_shards(tmp_path / "sharded", hugging_face_tensors(arrays))
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "weight_map" in outcome(folder)


@pytest.mark.slow
def test_shards_written_by_transformers(tmp_path, hugging_face):
    hugging_face.float().save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    ids = torch.randint(277, (3, 32), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        torch.testing.assert_close(
            load_gpt2(tmp_path)(ids), hugging_face(ids).logits, atol=1e-4, rtol=0
        )


# --- nanoGPT ---


class NanoGPT(torch.nn.Module):
    """A network with the names and layers of nanoGPT's: nn.Linear, tied head, optional biases."""

    def __init__(self, sizes: dict[str, int], bias: bool, approximate: str = "none"):
        super().__init__()
        C, nn = sizes["n_embd"], torch.nn

        def block() -> torch.nn.ModuleDict:
            attn = {"c_attn": nn.Linear(C, 3 * C, bias=bias), "c_proj": nn.Linear(C, C, bias=bias)}
            mlp = {"c_fc": nn.Linear(C, 4 * C, bias=bias), "c_proj": nn.Linear(4 * C, C, bias=bias)}
            return nn.ModuleDict(
                {
                    "ln_1": nn.LayerNorm(C, bias=bias),
                    "attn": nn.ModuleDict(attn),
                    "ln_2": nn.LayerNorm(C, bias=bias),
                    "mlp": nn.ModuleDict(mlp),
                }
            )

        parts = {
            "wte": nn.Embedding(sizes["n_vocab"], C),
            "wpe": nn.Embedding(sizes["n_ctx"], C),
            "h": nn.ModuleList(block() for _ in range(sizes["n_layer"])),
            "ln_f": nn.LayerNorm(C, bias=bias),
        }
        self.transformer = nn.ModuleDict(parts)
        self.lm_head = nn.Linear(C, sizes["n_vocab"], bias=False)
        self.lm_head.weight = self.transformer["wte"].weight
        self.n_head, self.approximate = sizes["n_head"], approximate
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                gain = ".ln_" in name and name.endswith("weight")
                parameter.normal_(1.0 if gain else 0.0, 0.2, generator=generator)

    def forward(self, ids: Tensor) -> Tensor:
        parts = self.transformer
        x = parts["wte"](ids) + parts["wpe"](torch.arange(ids.shape[1]))
        for block in parts["h"]:
            B, T, C = x.shape
            qkv = block["attn"]["c_attn"](block["ln_1"](x)).split(C, dim=2)
            q, k, v = (part.view(B, T, self.n_head, -1).transpose(1, 2) for part in qkv)
            y = (q @ k.transpose(-2, -1)) / math.sqrt(q.shape[-1])
            y = y.masked_fill(~torch.ones(T, T).tril().bool(), -math.inf).softmax(-1) @ v
            x = x + block["attn"]["c_proj"](y.transpose(1, 2).reshape(B, T, C))
            up = block["mlp"]["c_fc"](block["ln_2"](x))
            up = torch.nn.functional.gelu(up, approximate=self.approximate)
            x = x + block["mlp"]["c_proj"](up)
        return self.lm_head(parts["ln_f"](x))


def write_nanogpt(folder: Path, model: NanoGPT, compiled: bool, sizes: dict[str, int]) -> Path:
    start = "_orig_mod." if compiled else ""  # torch.compile adds it
    state = {f"{start}{name}": value.clone() for name, value in model.state_dict().items()}
    folder.mkdir(exist_ok=True)
    save_file(state, folder / "model.safetensors")
    (folder / "hparams.json").write_text(json.dumps(sizes))
    return folder


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("compiled", [True, False])
def test_nanogpts_state_dict_gives_its_logits(tmp_path, bias, compiled):
    """With the tanh approximation, that is; nanoGPT's exact GELU gives slightly other logits."""
    sizes = HPARAMS | {"n_vocab": 320}  # 277 padded to a multiple of 64
    theirs = NanoGPT(sizes, bias, approximate="tanh")
    folder = write_nanogpt(tmp_path / "nano", theirs, compiled, sizes)
    said = listen()
    ours = load_gpt2(folder)
    assert "nanoGPT" in "".join(said)
    ids = torch.randint(320, (3, 16), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs(ids), atol=1e-4, rtol=0)
        theirs.approximate = "none"
        difference = (ours(ids) - theirs(ids)).abs().max().item()
    assert 1e-5 < difference < 0.02


def test_nanogpts_state_dict_without_sizes_names_them(tmp_path):
    folder = write_nanogpt(tmp_path / "nano", NanoGPT(HPARAMS, bias=False), True, HPARAMS)
    (folder / "hparams.json").unlink()
    message = outcome(folder)
    for fact in ('"n_vocab": 277', '"n_ctx": 16', '"n_embd": 8', '"n_layer": 2', "n_head"):
        assert fact in message


def test_some_missing_biases_are_not_taken_for_zeros(tmp_path):
    model = NanoGPT(HPARAMS, bias=True)
    folder = write_nanogpt(tmp_path / "nano", model, False, HPARAMS)
    state = load_file(folder / "model.safetensors")
    del state["transformer.h.0.mlp.c_fc.bias"]
    save_file(state, folder / "model.safetensors")
    assert "h.0.mlp.c_fc.bias: found nothing" in outcome(folder)


# --- checkpoints of other heads ---


@pytest.mark.parametrize(
    "kind", ["GPT2ForSequenceClassification", "GPT2ForTokenClassification", "GPT2DoubleHeadsModel"]
)
def test_the_gpt2_of_a_model_with_another_head(tmp_path, hugging_face, kind):
    transformers = pytest.importorskip("transformers")
    theirs = getattr(transformers, kind)(hugging_face.config).float()
    theirs.transformer.load_state_dict(hugging_face.float().transformer.state_dict())
    theirs.save_pretrained(tmp_path)
    said = listen()
    ours = load_gpt2(tmp_path)
    assert kind in "".join(said)
    ids = torch.randint(277, (3, 32), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), hugging_face(ids).logits, atol=1e-4, rtol=0)


# --- folders without readable weights ---


@pytest.mark.slow
def test_a_pickle_is_refused_with_a_command_that_converts_it(tmp_path):
    """The command is run as it is printed."""
    sizes = HPARAMS | {"n_layer": 1}
    theirs = NanoGPT(sizes, bias=False, approximate="tanh")
    names = {"vocab_size": "n_vocab", "block_size": "n_ctx"}
    arguments = {name: sizes[names.get(name, name)] for name in ("n_layer", "n_head", "n_embd")}
    arguments |= {name: sizes[ours] for name, ours in names.items()} | {"bias": False}
    torch.save({"model": theirs.state_dict(), "model_args": arguments}, tmp_path / "ckpt.pt")
    torch.save({}, tmp_path / "optimizer.pt")
    message = outcome(tmp_path)
    assert "ckpt.pt is a pickle" in message
    command = message[message.index("python - ") :].removeprefix("python")
    subprocess.run(f"{sys.executable}{command}", shell=True, check=True)
    ids = torch.arange(16)[None]
    with torch.no_grad():
        torch.testing.assert_close(load_gpt2(tmp_path)(ids), theirs(ids), atol=1e-4, rtol=0)


def test_an_adapter_alone_is_refused(tmp_path):
    config = {"peft_type": "LORA", "base_model_name_or_path": "openai-community/gpt2"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    save_file({"x": torch.ones(1)}, tmp_path / "adapter_model.safetensors")
    message = outcome(tmp_path)
    for fact in ("adapter_config.json", "openai-community/gpt2", "merge_and_unload", "-merged"):
        assert fact in message


def test_other_formats_are_named(tmp_path):
    (tmp_path / "hparams.json").write_text(json.dumps(HPARAMS))
    (tmp_path / "tf_model.h5").write_bytes(b"")
    assert "tf_model.h5" in outcome(tmp_path)


# --- TensorFlow's checkpoints of other programs ---


@pytest.mark.parametrize("prefix", ["model-1000", "model.ckpt-1000"])
@pytest.mark.parametrize("shards", [1, 2])
def test_other_names_of_tensorflows_files(tmp_path, openai, arrays, prefix, shards):
    folder = tmp_path / "renamed"
    write_bundle(folder, arrays, prefix, shards)
    (folder / "hparams.json").write_text(json.dumps(HPARAMS))
    assert_equal_models(load_gpt2(folder), load_gpt2(openai))


def test_of_several_checkpoints_the_newest_is_read(tmp_path, openai, arrays):
    older = {name: array + 1 for name, array in arrays.items()}
    write_bundle(tmp_path / "two", older, "model-1000")
    write_bundle(tmp_path / "two", arrays, "model-2000")
    (tmp_path / "two" / "hparams.json").write_text(json.dumps(HPARAMS))
    assert "model-1000, model-2000" in outcome(tmp_path / "two")
    lines = 'model_checkpoint_path: "/content/run1/model-2000"\nall_model_checkpoint_paths: "model-1000"\n'
    (tmp_path / "two" / "checkpoint").write_text(lines)
    assert_equal_models(load_gpt2(tmp_path / "two"), load_gpt2(openai))
    (tmp_path / "two" / "checkpoint").write_text('model_checkpoint_path: "../model-3000"\n')
    assert "several checkpoints" in outcome(tmp_path / "two")


def test_the_state_of_the_optimizer_is_not_read(openai, arrays):
    expected = load_gpt2(openai)
    slots = {f"{name}/Adam": array * 0 for name, array in arrays.items()}
    slots |= {f"{name}/Adam_1": array * 0 for name, array in arrays.items()}
    slots |= {"beta1_power": np.float32(0.9).reshape(()), "global_step": np.array(7, "i8")}
    write_bundle(openai, arrays | slots)
    assert_equal_models(load_gpt2(openai), expected)
    write_bundle(openai, arrays | {"model/Adam/w": np.ones((3, 4), "f4")})
    assert "model/Adam/w: found (3, 4), expected nothing" in outcome(openai)


def test_bfloat16_in_tensorflows_format(tmp_path, openai, arrays):
    write_bundle(openai, {name: as_bfloat16(array) for name, array in arrays.items()})
    found = dict(load_gpt2(openai).named_parameters())
    wte = torch.from_numpy(arrays["model/wte"])
    assert torch.equal(found["wte.weight"].bfloat16().float(), found["wte.weight"])  # exact
    error = (found["wte.weight"] - wte).abs()
    assert 0 < error.max() and (error <= wte.abs() / 128).all()  # cut to 8 bits


def test_attention_that_is_computed_in_another_order_is_the_same(tmp_path, hugging_face):
    """`reorder_and_upcast_attn` matters in half precision only, so it is accepted."""
    hugging_face.float().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["reorder_and_upcast_attn"] is False
    config["reorder_and_upcast_attn"] = True
    (tmp_path / "config.json").write_text(json.dumps(config))
    theirs = type(hugging_face).from_pretrained(tmp_path, attn_implementation="eager").eval()
    ids = torch.randint(277, (3, 32), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        expected = theirs(ids).logits
        torch.testing.assert_close(load_gpt2(tmp_path)(ids), expected, atol=1e-4, rtol=0)


# --- matrices that stay in their file ---


def assert_streams(folder: Path) -> None:
    """Compare a streamed model with one in memory: names, values, types and hashes."""
    streamed, plain = load_gpt2(folder, stream=True), load_gpt2(folder)
    assert parameters_sha256(streamed) == parameters_sha256(plain)
    expected = dict(plain.named_parameters())
    assert [name for name, _ in streamed.named_parameters()] == list(expected)
    for name, parameter in streamed.named_parameters():
        assert torch.equal(parameter.float(), expected[name]), name
        is_matrix = name.startswith("blocks.") and parameter.dim() == 2
        assert is_mapped(parameter) == is_matrix, name
        assert parameter.requires_grad == (not is_matrix), name


@pytest.mark.parametrize("change", [lambda x: x, as_bfloat16, lambda x: x.astype("<f2")])
@pytest.mark.parametrize("shards", [1, 3])
def test_matrices_of_openais_files_can_stay_there(tmp_path, openai, arrays, change, shards):
    for file in openai.glob("model.ckpt*"):
        file.unlink()
    write_bundle(openai, {name: change(value) for name, value in arrays.items()}, shards=shards)
    assert_streams(openai)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_matrices_of_safetensors_can_stay_there(tmp_path, arrays, dtype):
    tensors = {name: value.to(dtype) for name, value in hugging_face_tensors(arrays).items()}
    assert_streams(write_hugging_face(tmp_path / "one", tensors))
    assert_streams(write_shards(tmp_path / "three", tensors))


def test_matrices_of_nanogpts_state_dict_can_stay_there(tmp_path):
    assert_streams(write_nanogpt(tmp_path, NanoGPT(HPARAMS, bias=False), False, HPARAMS))


def test_streamed_weights_are_checked_as_others_are(tmp_path, openai, arrays):
    data = openai / DATA
    raw = bytearray(data.read_bytes())
    raw[-5] ^= 1  # in the last array, wte
    raw[read_index(openai / "model.ckpt.index")["model/h1/mlp/c_fc/w"].offset] ^= 1
    data.write_bytes(raw)
    with pytest.raises(CheckpointError, match="h1/mlp/c_fc/w is damaged|wte is damaged"):
        load_gpt2(openai, stream=True)
    arrays["model/h1/mlp/c_fc/w"][0, 1, 2] = np.nan
    write_bundle(openai, arrays)
    with pytest.raises(CheckpointError, match=r"blocks\.1\.mlp\.c_fc\.weight"):
        load_gpt2(openai, stream=True)


def test_two_formats_are_compared_if_the_first_stays_in_its_file(tmp_path, openai, arrays):
    tensors = hugging_face_tensors(arrays)
    write_hugging_face(openai, tensors)
    assert_streams(openai)
    tensors["h.0.attn.c_proj.weight"][0, 0] += 1
    write_hugging_face(openai, tensors)
    with pytest.raises(CheckpointError, match=r"blocks\.0\.attn\.c_proj\.weight"):
        load_gpt2(openai, stream=True)
