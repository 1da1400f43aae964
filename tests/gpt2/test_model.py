"""B texts, T tokens, C = n_embd, H heads, D = C / H, V = n_vocab, as in the model."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2_from_scratch.errors import CheckpointError, DataError, UsageError
from gpt2_from_scratch.gpt2.config import SIZES, GPT2Config, read_config, write_hparams
from gpt2_from_scratch.gpt2.generate import generate
from gpt2_from_scratch.gpt2.model import GPT2, init_weights


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def random_ids(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(277, shape, generator=torch.Generator().manual_seed(seed))


def random_states(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --- the whole ---


@pytest.mark.parametrize(("B", "T"), [(1, 1), (1, 32), (3, 7)])
def test_forward_returns_logits_and_nothing_else(tiny_gpt2, B, T):
    ids = random_ids(B, T)
    logits = tiny_gpt2(ids)
    assert isinstance(logits, Tensor)
    assert (logits.shape, logits.dtype) == ((B, T, 277), torch.float32)
    assert tiny_gpt2.embed(ids).shape == tiny_gpt2.hidden(ids).shape == (B, T, 32)


@pytest.mark.parametrize("t", [0, 1, 9, 15])
def test_causality(tiny_gpt2, t):
    """A changed token changes no logit before it, and every one from it on."""
    ids = random_ids(2, 16)
    changed = ids.clone()
    changed[:, t] = (ids[:, t] + 1) % 277
    with torch.no_grad():
        difference = (tiny_gpt2(ids) - tiny_gpt2(changed)).abs().amax(dim=2)  # (B, T)
    assert (difference[:, :t] < 1e-5).all()
    assert (difference[:, t:] > 1e-4).all()


def test_texts_of_a_batch_do_not_see_each_other(tiny_gpt2):
    ids = random_ids(4, 9)
    with torch.no_grad():
        close(tiny_gpt2(ids), torch.cat([tiny_gpt2(row[None]) for row in ids]))


def test_a_text_that_is_too_long_raises_with_both_numbers(tiny_gpt2):
    assert tiny_gpt2(random_ids(1, 32)).shape == (1, 32, 277)
    with pytest.raises(DataError, match=r"33 tokens .* n_ctx = 32"):
        tiny_gpt2(random_ids(1, 33))


def test_the_tied_head_is_one_parameter(tiny_gpt2):
    assert tiny_gpt2.head.weight is tiny_gpt2.wte.weight
    assert tiny_gpt2.head.bias is None
    names = [name for name, _ in tiny_gpt2.named_parameters()]
    assert len(names) == len(set(names)) == 2 + 12 * 2 + 2
    assert "wte.weight" in names and not [name for name in names if "head" in name]


@pytest.mark.parametrize(
    ("size", "published"),
    [("124M", 124_439_808), ("355M", 354_823_168), ("774M", 774_030_080), ("1558M", 1_557_611_200)],
)
def test_parameter_counts(size, published):
    config = SIZES[size]
    C = config.n_embd
    norm, attention, mlp = (
        2 * C,
        (3 * C * C + 3 * C) + (C * C + C),
        (4 * C * C + 4 * C) + (4 * C * C + C),
    )
    block = norm + attention + norm + mlp
    assert 50257 * C + 1024 * C + config.n_layer * block + norm == published
    with torch.device("meta"):
        assert sum(p.numel() for p in GPT2(config).parameters()) == published


# --- parts, each against the formula written out ---


def layer_norm(x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    mean = x.mean(dim=-1, keepdim=True)
    variance = ((x - mean) ** 2).sum(dim=-1, keepdim=True) / x.shape[-1]
    return (x - mean) / torch.sqrt(variance + 1e-5) * gain + bias


def attention(x: Tensor, weights: dict[str, Tensor], n_head: int) -> Tensor:
    """(T, C) -> (T, C), one head after the other."""
    T, C = x.shape
    D = C // n_head
    w_q, w_k, w_v = (weights["c_attn.weight"][i * C : (i + 1) * C] for i in range(3))
    b_q, b_k, b_v = (weights["c_attn.bias"][i * C : (i + 1) * C] for i in range(3))
    heads = []
    for h in range(n_head):
        of_head = slice(h * D, (h + 1) * D)
        q = F.linear(x, w_q[of_head], b_q[of_head])  # (T, D)
        k = F.linear(x, w_k[of_head], b_k[of_head])
        v = F.linear(x, w_v[of_head], b_v[of_head])
        scores = torch.full((T, T), -math.inf)
        for t in range(T):
            scores[t, : t + 1] = k[: t + 1] @ q[t] / math.sqrt(D)
        heads.append(F.softmax(scores, dim=1) @ v)
    return F.linear(torch.cat(heads, dim=1), weights["c_proj.weight"], weights["c_proj.bias"])


def mlp(x: Tensor, weights: dict[str, Tensor]) -> Tensor:
    x = F.linear(x, weights["c_fc.weight"], weights["c_fc.bias"])
    x = 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return F.linear(x, weights["c_proj.weight"], weights["c_proj.bias"])


def block(x: Tensor, weights: dict[str, Tensor], n_head: int) -> Tensor:
    def of(part: str) -> dict[str, Tensor]:
        start = f"{part}."
        return {name[len(start) :]: w for name, w in weights.items() if name.startswith(start)}

    x = x + attention(layer_norm(x, *of("ln_1").values()), of("attn"), n_head)
    return x + mlp(layer_norm(x, *of("ln_2").values()), of("mlp"))


@torch.no_grad()
def test_parts_embeddings(tiny_gpt2):
    ids = random_ids(2, 5)
    found = tiny_gpt2.embed(ids)
    for b in range(2):
        for t in range(5):
            expected = tiny_gpt2.wte.weight[ids[b, t]] + tiny_gpt2.wpe.weight[t]
            assert torch.equal(found[b, t], expected)


@torch.no_grad()
@pytest.mark.parametrize("scale", [0.003, 1.0, 100.0])  # at 0.003 the variance is near the eps
def test_parts_layer_norm(tiny_gpt2, scale):
    norms = [tiny_gpt2.ln_f] + [n for b in tiny_gpt2.blocks for n in (b.ln_1, b.ln_2)]
    x = random_states(2, 6, 32) * scale + 0.5 * scale
    assert len(norms) == 5
    for norm in norms:
        close(norm(x), layer_norm(x, norm.weight, norm.bias))
        close(norm(x), F.layer_norm(x, (32,), norm.weight, norm.bias, 1e-5))


@torch.no_grad()
@pytest.mark.parametrize("T", [1, 2, 32])
def test_parts_attention(tiny_gpt2, T):
    for n, part in enumerate(tiny_gpt2.blocks):
        x = random_states(2, T, 32, seed=n)
        weights = dict(part.attn.named_parameters())
        assert part.attn(x).shape == (2, T, 32)
        close(part.attn(x), torch.stack([attention(text, weights, n_head=4) for text in x]))


@torch.no_grad()
def test_parts_mlp(tiny_gpt2):
    for n, part in enumerate(tiny_gpt2.blocks):
        x = 2 * random_states(2, 6, 32, seed=n)
        close(part.mlp(x), mlp(x, dict(part.mlp.named_parameters())))


@torch.no_grad()
def test_parts_block(tiny_gpt2):
    for n, part in enumerate(tiny_gpt2.blocks):
        x = random_states(2, 6, 32, seed=n)
        weights = dict(part.named_parameters())
        close(part(x), torch.stack([block(text, weights, n_head=4) for text in x]))


@torch.no_grad()
def test_parts_together(tiny_gpt2):
    ids = random_ids(9)
    x = F.embedding(ids, tiny_gpt2.wte.weight) + F.embedding(torch.arange(9), tiny_gpt2.wpe.weight)
    for part in tiny_gpt2.blocks:
        x = block(x, dict(part.named_parameters()), n_head=4)
    x = layer_norm(x, tiny_gpt2.ln_f.weight, tiny_gpt2.ln_f.bias)
    close(tiny_gpt2.hidden(ids[None])[0], x)
    close(tiny_gpt2(ids[None])[0], F.linear(x, tiny_gpt2.wte.weight))


# --- init_weights ---


def test_init_weights_statistics():
    config = GPT2Config(n_vocab=277, n_ctx=64, n_embd=64, n_head=4, n_layer=8)
    model = GPT2(config)
    init_weights(model, torch.Generator().manual_seed(1))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert (parameter == 0).all(), name
        elif parameter.ndim == 1:
            assert (parameter == 1).all(), name
        else:
            std = 0.01 if name == "wpe.weight" else 0.005 if "c_proj" in name else 0.02
            assert parameter.std().item() == pytest.approx(std, rel=0.05), name
            assert abs(parameter.mean().item()) < 0.05 * std, name
    assert model.head.weight is model.wte.weight


def test_init_weights_draws_from_its_generator_alone(tiny_config):
    models = [GPT2(tiny_config) for _ in range(3)]
    before = torch.get_rng_state()
    for model, seed in zip(models, (1, 1, 2), strict=True):
        init_weights(model, torch.Generator().manual_seed(seed))
    assert torch.equal(torch.get_rng_state(), before)
    first, same, other = (dict(model.named_parameters()) for model in models)
    for name, parameter in first.items():
        assert torch.equal(parameter, same[name])
        assert torch.equal(parameter, other[name]) == (parameter.ndim == 1)


# --- generate ---


@torch.no_grad()
def argmax_again_and_again(model: GPT2, ids: list[int], count: int) -> list[int]:
    for _ in range(count):
        window = torch.tensor([ids[max(0, len(ids) - model.config.n_ctx) :]])
        ids = [*ids, int(model(window)[0, -1].argmax())]
    return ids


@pytest.mark.parametrize(("length", "count"), [(1, 0), (1, 10), (5, 27), (30, 9), (40, 3)])
def test_greedy_is_argmax_again_and_again(tiny_gpt2, length, count):
    """(5, 27) fills n_ctx = 32 just so; in (30, 9) and (40, 3) the front falls off."""
    ids = random_ids(length, seed=length)
    found = generate(tiny_gpt2, ids, count)
    assert found.tolist() == argmax_again_and_again(tiny_gpt2, ids.tolist(), count)
    assert found.dtype == torch.int64 and not found.requires_grad
    assert generate(tiny_gpt2, ids, count, seed=7).tolist() == found.tolist()


def test_only_the_last_n_ctx_tokens_count(tiny_gpt2):
    tail = random_ids(32)
    for head in (random_ids(1), random_ids(50)):
        found = generate(tiny_gpt2, torch.cat([head, tail]), 5)
        assert found[: len(head)].tolist() == head.tolist()
        assert found[len(head) :].tolist() == generate(tiny_gpt2, tail, 5).tolist()


def test_sampling_is_seeded(tiny_gpt2):
    ids = random_ids(4)
    before = torch.get_rng_state()
    draws = [generate(tiny_gpt2, ids, 12, temperature=1.0, seed=s).tolist() for s in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
    assert torch.equal(torch.get_rng_state(), before)
    assert all(draw[:4] == ids.tolist() and len(draw) == 16 for draw in draws)


def test_top_k_1_is_greedy(tiny_gpt2):
    ids = random_ids(4)
    for seed in range(5):
        found = generate(tiny_gpt2, ids, 10, temperature=1.5, top_k=1, seed=seed)
        assert found.tolist() == generate(tiny_gpt2, ids, 10).tolist()


@pytest.mark.parametrize(("temperature", "top_k"), [(2.0, 4), (0.3, None)])
def test_samples_follow_the_softmax(tiny_gpt2, temperature, top_k):
    ids, draws = random_ids(4), 250
    logits = tiny_gpt2(ids[None])[0, -1].double().tolist()
    kept = sorted(range(277), key=lambda token: -logits[token])[:top_k]
    weights = {token: math.exp(logits[token] / temperature) for token in kept}
    counts = dict.fromkeys(kept, 0)
    for seed in range(draws):
        found = generate(tiny_gpt2, ids, 1, temperature=temperature, top_k=top_k, seed=seed)
        counts[int(found[-1])] += 1  # a KeyError would be a token that is not among the top k
    for token, count in counts.items():
        p = weights[token] / sum(weights.values())
        assert abs(count / draws - p) < 4 * math.sqrt(p * (1 - p) / draws) + 0.01


def test_a_top_k_beyond_the_vocabulary_keeps_all(tiny_gpt2):
    ids = random_ids(4)
    draws = [generate(tiny_gpt2, ids, 9, temperature=1.0, top_k=k) for k in (None, 277, 1000)]
    assert draws[0].tolist() == draws[1].tolist() == draws[2].tolist()


def test_stop_id_is_the_last_token(tiny_gpt2):
    ids = random_ids(4)
    full = generate(tiny_gpt2, ids, 12).tolist()
    stop = full[8]
    first = full.index(stop, 4)
    assert generate(tiny_gpt2, ids, 12, stop_id=stop).tolist() == full[: first + 1]
    absent = next(token for token in range(277) if token not in full)
    assert generate(tiny_gpt2, ids, 12, stop_id=absent).tolist() == full
    # a stop_id in the text to continue stops nothing
    with_stop = torch.tensor([absent, *ids.tolist()])
    assert len(generate(tiny_gpt2, with_stop, 3, stop_id=absent)) == 8


@pytest.mark.parametrize("bad", [{"temperature": -0.1}, {"top_k": 0}, {"top_k": -1}])
def test_generate_refuses_nonsense(tiny_gpt2, bad):
    with pytest.raises(UsageError, match=str(next(iter(bad.values())))):
        generate(tiny_gpt2, random_ids(3), 2, **bad)
    with pytest.raises(UsageError, match="nothing to continue"):
        generate(tiny_gpt2, random_ids(0), 2)


# --- config ---


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_vocab", 0),
        ("n_ctx", -1),
        ("n_embd", 768.0),
        ("n_head", "12"),
        ("n_layer", None),
        ("n_layer", True),
        ("n_vocab", 10**8),
        ("n_ctx", float("nan")),
    ],
)
def test_a_bad_size_is_named(name, value):
    with pytest.raises(CheckpointError, match=f"{name} = {value!r}: it must be a whole number"):
        GPT2Config(**{name: value})


def test_heads_must_divide_the_width():
    with pytest.raises(CheckpointError, match="n_embd = 768 .* n_head = 7"):
        GPT2Config(n_head=7)


def test_config_is_frozen_and_knows_its_keys():
    with pytest.raises(AttributeError):
        GPT2Config().n_ctx = 5
    with pytest.raises(TypeError, match="n_embed"):
        GPT2Config(n_embed=768)


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
        (
            json.dumps({k: v for k, v in HPARAMS.items() if k != "n_ctx"}),
            "expected exactly .*n_ctx",
        ),
        (json.dumps(HPARAMS | {"n_head": 3}), "n_head = 3"),
        (json.dumps(HPARAMS | {"n_layer": 2.0}), "n_layer = 2.0"),
        ("[1, 2]", "expected an object"),
        ('{"n_vocab": 277', "not JSON"),
        ("", "not JSON"),
        ("\xff", "not JSON"),
    ],
)
def test_bad_hparams_are_refused_with_the_file(tmp_path, text, message):
    path = tmp_path / "hparams.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError, match=message) as error:
        read_config(tmp_path)
    assert str(path) in str(error.value)


def test_missing_hparams(tmp_path):
    with pytest.raises(CheckpointError, match="hparams.json is missing"):
        read_config(tmp_path)


HUGGING_FACE = {  # from the config.json of huggingface.co/openai-community/gpt2, made smaller
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


def test_hugging_faces_config_is_understood(tmp_path):
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
    with pytest.raises(CheckpointError, match=rf"config.json: {name} is {value!r}; GPT-2 has"):
        read_config(tmp_path)


@pytest.mark.parametrize("name", ["vocab_size", "n_positions", "n_embd", "n_head", "n_layer"])
def test_a_size_missing_from_hugging_faces_config(tmp_path, name):
    config = {key: value for key, value in HUGGING_FACE.items() if key != name}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="expected exactly the keys"):
        read_config(tmp_path)
