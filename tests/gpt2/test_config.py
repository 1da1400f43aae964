"""Sizes are checked, and read from OpenAI's and Hugging Face's files."""

import json

import pytest
import torch

from gpt2_from_scratch.errors import CheckpointError
from gpt2_from_scratch.gpt2.config import SIZES, GPT2Config, read_config, write_hparams


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_vocab", 0),
        ("n_embd", 768.0),
        ("n_head", "12"),
        ("n_layer", None),
        ("n_layer", True),
        ("n_vocab", 10**8),
    ],
)
def test_a_bad_size_is_named(name, value):
    with pytest.raises(CheckpointError, match=f"{name} = {value!r} .*whole number"):
        GPT2Config(**{name: value})


def test_heads_must_divide_the_width():
    with pytest.raises(CheckpointError, match="n_embd = 768 .* n_head = 7"):
        GPT2Config(n_head=7)


def test_openais_hparams(openai_124M):
    assert read_config(openai_124M) == SIZES["124M"] == GPT2Config()


def test_hparams_round_trip(tmp_path, tiny_config):
    write_hparams(tmp_path / "hparams.json", tiny_config)
    assert read_config(tmp_path) == tiny_config


HPARAMS = {"n_vocab": 277, "n_ctx": 16, "n_embd": 8, "n_head": 2, "n_layer": 2}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (json.dumps(HPARAMS | {"dropout": 0.1}), "dropout"),
        (json.dumps({k: v for k, v in HPARAMS.items() if k != "n_ctx"}), "n_ctx"),
        (json.dumps(HPARAMS | {"n_head": 3}), "n_head = 3"),
        (json.dumps(HPARAMS | {"n_layer": 2.0}), "n_layer = 2.0"),
        ("[1, 2]", "object"),
        ('{"n_vocab": 277', "JSON"),
    ],
)
def test_bad_hparams_are_refused_with_the_file(tmp_path, text, message):
    path = tmp_path / "hparams.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError, match=message) as error:
        read_config(tmp_path)
    assert str(path) in str(error.value)


def test_missing_hparams(tmp_path):
    with pytest.raises(CheckpointError, match="hparams.json"):
        read_config(tmp_path)


HUGGING_FACE = {  # the config.json of huggingface.co/openai-community/gpt2, with smaller sizes
    "activation_function": "gelu_new",
    "architectures": ["GPT2LMHeadModel"],
    "attn_pdrop": 0.1,
    "bos_token_id": 276,
    "embd_pdrop": 0.1,
    "eos_token_id": 276,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2",
    "n_ctx": 16,
    "n_embd": 8,
    "n_head": 2,
    "n_layer": 2,
    "n_positions": 16,
    "resid_pdrop": 0.1,
    "vocab_size": 277,
}


def test_hugging_faces_config_is_read(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(HUGGING_FACE))
    assert read_config(tmp_path) == GPT2Config(**HPARAMS)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model_type", "llama"),
        ("activation_function", "gelu"),
        ("layer_norm_epsilon", 1e-6),
        ("scale_attn_weights", False),
        ("scale_attn_by_inverse_layer_idx", True),
        ("add_cross_attention", True),
        ("n_inner", 16),
    ],
)
def test_another_architecture_is_refused(tmp_path, name, value):
    (tmp_path / "config.json").write_text(json.dumps(HUGGING_FACE | {name: value}))
    with pytest.raises(CheckpointError, match=rf"config.json: {name} is {value!r}"):
        read_config(tmp_path)


@pytest.mark.parametrize("name", ["vocab_size", "n_positions", "n_embd", "n_head", "n_layer"])
def test_a_size_missing_from_hugging_faces_config(tmp_path, name):
    config = {key: value for key, value in HUGGING_FACE.items() if key != name}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="expected .*keys"):
        read_config(tmp_path)


# --- two files, and two names of one setting ---


@pytest.mark.parametrize(
    ("name", "value"),
    [("vocab_size", 280), ("n_positions", 32), ("n_embd", 16), ("n_head", 4), ("n_layer", 3)],
)
def test_two_files_that_contradict_each_other(tmp_path, name, value):
    write_hparams(tmp_path / "hparams.json", GPT2Config(**HPARAMS))
    (tmp_path / "config.json").write_text(json.dumps(HUGGING_FACE | {name: value}))
    with pytest.raises(CheckpointError, match=rf"hparams.json.*config.json.* {value}\b") as error:
        read_config(tmp_path)
    assert f" {HUGGING_FACE[name]}" in str(error.value)


def test_two_files_that_agree(tmp_path):
    write_hparams(tmp_path / "hparams.json", GPT2Config(**HPARAMS))
    (tmp_path / "config.json").write_text(json.dumps(HUGGING_FACE))
    assert read_config(tmp_path) == GPT2Config(**HPARAMS)


def test_a_config_with_another_activation_is_refused_next_to_hparams(tmp_path):
    write_hparams(tmp_path / "hparams.json", GPT2Config(**HPARAMS))
    (tmp_path / "config.json").write_text(
        json.dumps(HUGGING_FACE | {"activation_function": "relu"})
    )
    with pytest.raises(CheckpointError, match="config.json: activation_function is 'relu'"):
        read_config(tmp_path)


def aliases() -> dict[str, str]:
    return pytest.importorskip("transformers").GPT2Config.attribute_map


def test_aliases_are_read_as_transformers_reads_them(tmp_path):
    alias_of = {name: alias for alias, name in aliases().items()}
    renamed = {alias_of.get(name, name): value for name, value in HUGGING_FACE.items()}
    assert len(HUGGING_FACE.keys() - renamed.keys()) == 4
    (tmp_path / "config.json").write_text(json.dumps(renamed))
    assert read_config(tmp_path) == GPT2Config(**HPARAMS)


def test_an_alias_that_contradicts_its_setting(tmp_path):
    for alias, name in aliases().items():
        config = HUGGING_FACE | {alias: HUGGING_FACE[name]}
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert read_config(tmp_path) == GPT2Config(**HPARAMS)
        (tmp_path / "config.json").write_text(json.dumps(config | {alias: 5}))
        with pytest.raises(
            CheckpointError, match=rf"{name} is {HUGGING_FACE[name]}\b.*{alias}.* 5"
        ):
            read_config(tmp_path)


@pytest.mark.parametrize("name", ["gelu_new", "gelu_pytorch_tanh", "gelu_fast"])
def test_other_names_of_gpt2s_activation(tmp_path, name):
    activations = pytest.importorskip("transformers.activations").ACT2FN
    x = torch.linspace(-6, 6, 1001)
    expected = torch.nn.functional.gelu(x, approximate="tanh")
    torch.testing.assert_close(activations[name](x), expected, atol=1e-6, rtol=0)
    (tmp_path / "config.json").write_text(json.dumps(HUGGING_FACE | {"activation_function": name}))
    assert read_config(tmp_path) == GPT2Config(**HPARAMS)
