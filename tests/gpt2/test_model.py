"""The network is compared with its formulas written out.

Shapes: B texts, T tokens, C = n_embd, D = C / n_head.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2_from_scratch.errors import DataError
from gpt2_from_scratch.gpt2.config import SIZES, GPT2Config
from gpt2_from_scratch.gpt2.model import GPT2, init_weights
from gpt2_from_scratch.gpt2.weights import meta_gpt2


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def random_ids(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(277, shape, generator=torch.Generator().manual_seed(seed))


def random_states(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --- the whole network ---


@pytest.mark.parametrize(("B", "T"), [(1, 1), (1, 32), (3, 7)])
def test_forward_returns_logits_and_nothing_else(tiny_gpt2, B, T):
    ids = random_ids(B, T)
    logits = tiny_gpt2(ids)
    assert isinstance(logits, Tensor)
    assert (logits.shape, logits.dtype) == ((B, T, 277), torch.float32)
    assert tiny_gpt2.embed(ids).shape == tiny_gpt2.hidden(ids).shape == (B, T, 32)


@pytest.mark.parametrize("t", [0, 1, 9, 15])
def test_causality(tiny_gpt2, t):
    """A changed token changes the logits at its own position and after it, but none before it."""
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


def test_a_text_that_is_too_long_is_refused(tiny_gpt2):
    assert tiny_gpt2(random_ids(1, 32)).shape == (1, 32, 277)
    with pytest.raises(DataError, match="33 .* n_ctx = 32"):
        tiny_gpt2(random_ids(1, 33))


WHOLE = torch.tensor([[1, 2, 3]])


@pytest.mark.parametrize(
    ("ids", "fact"),
    [
        ([[1, 2, 3]], "list"),
        ("the cat", "str"),
        (WHOLE.numpy(), "ndarray"),
        (WHOLE[0], r"\(3,\)"),
        (WHOLE[None], r"\(1, 1, 3\)"),
        (torch.tensor(3), r"\(\)"),
        (WHOLE.float(), "float32"),
        (WHOLE.bool(), "bool"),
        (torch.tensor([]), "float32"),
        (WHOLE[:, :0], r"\(\d, 0\) are empty"),
        (WHOLE[:0], r"\(0, \d\) are empty"),
        (torch.tensor([[1, 277]]), "to 277; they must be from 0 to 276"),
        (torch.tensor([[1, -1]]), "from -1 "),
    ],
)
def test_invalid_ids_raise_a_value_error(tiny_gpt2, ids, fact):
    for call in (tiny_gpt2, tiny_gpt2.hidden, tiny_gpt2.embed):
        with pytest.raises(ValueError, match=fact) as error:
            call(ids)
        assert isinstance(error.value, DataError)


def test_ids_may_be_int32(tiny_gpt2):
    with torch.no_grad():
        assert torch.equal(tiny_gpt2(WHOLE.int()), tiny_gpt2(WHOLE))


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
    norm = 2 * C
    attention = (3 * C * C + 3 * C) + (C * C + C)
    mlp = (4 * C * C + 4 * C) + (4 * C * C + C)
    block = norm + attention + norm + mlp
    assert 50257 * C + 1024 * C + config.n_layer * block + norm == published
    assert sum(p.numel() for p in meta_gpt2(config).parameters()) == published


# --- parts, each against the formula written out ---


def layer_norm(x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    mean = x.mean(dim=-1, keepdim=True)
    variance = ((x - mean) ** 2).sum(dim=-1, keepdim=True) / x.shape[-1]
    return (x - mean) / torch.sqrt(variance + 1e-5) * gain + bias


def attention(x: Tensor, weights: dict[str, Tensor], n_head: int) -> Tensor:
    """Compute the attention one head after the other: (T, C) -> (T, C)."""
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
@pytest.mark.parametrize("scale", [0.003, 1.0, 100.0])  # 0.003 makes the variance similar to eps
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


def test_init_weights_draws_only_from_its_generator(tiny_config):
    models = [GPT2(tiny_config) for _ in range(3)]
    before = torch.get_rng_state()
    for model, seed in zip(models, (1, 1, 2), strict=True):
        init_weights(model, torch.Generator().manual_seed(seed))
    assert torch.equal(torch.get_rng_state(), before)
    first, same, other = (dict(model.named_parameters()) for model in models)
    for name, parameter in first.items():
        assert torch.equal(parameter, same[name])
        assert torch.equal(parameter, other[name]) == (parameter.ndim == 1)
