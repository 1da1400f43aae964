"""LoRA is compared with a dense version and with published counts."""

import copy
import json
from dataclasses import asdict

import numpy as np
import oracle
import pytest
import torch
import torch.nn.functional as F
from tiny import Halved
from torch import Tensor, nn
from torch.func import functional_call

from gpt2_from_scratch.classifier.freezing import set_trainable, trainable_names
from gpt2_from_scratch.classifier.heads import class_logits, replace_head
from gpt2_from_scratch.errors import UsageError
from gpt2_from_scratch.gpt2.config import MATRICES, SIZES, GPT2Config, LoRAConfig
from gpt2_from_scratch.gpt2.lora import LoRALinear, add_lora, lora_names, merge_lora, unmerge_lora
from gpt2_from_scratch.gpt2.model import GPT2
from gpt2_from_scratch.gpt2.weights import meta_gpt2
from gpt2_from_scratch.speed.partial_blocks import is_plain
from gpt2_from_scratch.storage.settings import from_json

IDS = torch.randint(277, (3, 9), generator=torch.Generator().manual_seed(4))
LENGTHS = torch.tensor([9, 1, 5])
CHOICES = [MATRICES, ("query", "value"), ("key", "mlp.c_fc"), ("attn.c_proj", "mlp.c_proj")]


def fill(model: nn.Module, names: list[str]) -> None:
    """Draw parameters with std 0.2.

    A B of zeros would hide errors in the adapters.
    """
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name in names:
            model.get_parameter(name).normal_(0, 0.2, generator=generator)


@pytest.fixture
def classifier(tiny_gpt2: GPT2) -> GPT2:
    """A model with three classes and random weights.

    Each matrix has a random adapter of rank 3.
    """
    replace_head(tiny_gpt2, 3)
    add_lora(tiny_gpt2, LoRAConfig(rank=3, alpha=6.0, head=True))
    fill(tiny_gpt2, ["head.weight", "head.bias", *lora_names(tiny_gpt2)])
    return tiny_gpt2


def numbers(names: list[str], model: nn.Module) -> int:
    return sum(model.get_parameter(name).numel() for name in names)


# --- at the start ---


@pytest.mark.parametrize("matrices, layers", list(zip(CHOICES, [4, 1, 2, 2], strict=True)))
def test_new_adapters_do_not_change_a_bit_of_the_logits(
    tiny_gpt2: GPT2, matrices: tuple, layers: int
) -> None:
    before, names = tiny_gpt2(IDS), [name for name, _ in tiny_gpt2.named_parameters()]
    add_lora(tiny_gpt2, LoRAConfig(matrices=matrices))
    assert torch.equal(tiny_gpt2(IDS), before)
    added = lora_names(tiny_gpt2)
    assert [n for n, _ in tiny_gpt2.named_parameters() if n not in added] == names
    assert len(added) == 2 * 2 * layers  # A and B, in 2 blocks


def test_the_parameters_are_the_same_objects(tiny_gpt2: GPT2) -> None:
    before = dict(tiny_gpt2.named_parameters())
    add_lora(tiny_gpt2, LoRAConfig())
    after = dict(tiny_gpt2.named_parameters())
    assert all(after[name] is parameter for name, parameter in before.items())
    merge_lora(tiny_gpt2)
    assert list(dict(tiny_gpt2.named_parameters())) == list(before)
    assert all(tiny_gpt2.get_parameter(name) is parameter for name, parameter in before.items())


def test_a_is_drawn_as_nn_linear_draws_its_weight_and_b_is_zero(tiny_gpt2: GPT2) -> None:
    """All layers are drawn from one generator; torch's global generator is not used."""
    torch.manual_seed(9)
    expected_next = torch.rand(3)
    torch.manual_seed(9)
    add_lora(tiny_gpt2, LoRAConfig(rank=4), seed=77)
    unmerge_lora(tiny_gpt2, merge_lora(tiny_gpt2))
    assert torch.equal(torch.rand(3), expected_next)
    torch.manual_seed(77)
    for name in lora_names(tiny_gpt2):
        found = tiny_gpt2.get_parameter(name)
        assert found.dtype == torch.float32 and found.requires_grad
        if name.endswith("B"):
            assert not found.any()
            continue
        for A in found:
            assert torch.equal(A, nn.Linear(A.shape[1], 4, bias=False).weight)


def test_another_seed_draws_other_numbers(tiny_gpt2: GPT2) -> None:
    other, again = copy.deepcopy(tiny_gpt2), copy.deepcopy(tiny_gpt2)
    for model, seed in ((tiny_gpt2, 1), (other, 2), (again, 1)):
        add_lora(model, LoRAConfig(), seed)
    for name in lora_names(tiny_gpt2)[::2]:
        assert torch.equal(tiny_gpt2.get_parameter(name), again.get_parameter(name))
        assert not torch.equal(tiny_gpt2.get_parameter(name), other.get_parameter(name))


# --- against the dense formula ---


def dense(weight: Tensor, A: Tensor, B: Tensor, scale: float, first_rows: list[int]) -> Tensor:
    """Compute W + scale B A. A matrix product puts each product into its rows."""
    for a, b, row in zip(A, B, first_rows, strict=True):
        place = torch.eye(len(weight))[:, row : row + len(b)]  # (out, out_slice)
        weight = weight + scale * place @ b @ a
    return weight


def dense_weights(model: GPT2, scale: float, matrices: tuple) -> dict[str, Tensor]:
    """Return the parameters of an equivalent model without adapters."""
    fused = [32 * n for n in range(3) if MATRICES[n] in matrices]
    parameters = dict(model.named_parameters())
    added = {name: parameters.pop(name) for name in lora_names(model)}
    for name in [name for name in added if name.endswith("lora_A")]:
        layer = name.removesuffix(".lora_A")
        first_rows = fused if layer.endswith("c_attn") else [0]
        A, B = added[name], added[f"{layer}.lora_B"]
        weight = parameters[f"{layer}.weight"]
        parameters[f"{layer}.weight"] = dense(weight, A, B, scale, first_rows)
    return parameters


@pytest.mark.parametrize("matrices", CHOICES)
def test_outputs_and_gradients_are_those_of_the_dense_model(
    tiny_gpt2: GPT2, matrices: tuple
) -> None:
    plain = copy.deepcopy(tiny_gpt2)
    add_lora(tiny_gpt2, LoRAConfig(rank=3, alpha=4.5, matrices=matrices))
    fill(tiny_gpt2, lora_names(tiny_gpt2))
    direction = torch.randn(3, 9, 277, generator=torch.Generator().manual_seed(8)) / 50
    weights = dense_weights(tiny_gpt2, 1.5, matrices)
    found = []
    for logits in (functional_call(plain, weights, IDS), tiny_gpt2(IDS)):
        tiny_gpt2.zero_grad()
        (logits * direction).sum().backward()
        grads = [p.grad.clone() for p in tiny_gpt2.parameters()]
        found.append([logits.detach(), *grads])
    for expected, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)
    assert all(tiny_gpt2.get_parameter(name).grad.any() for name in lora_names(tiny_gpt2))


def arrays(parameters: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """Convert parameters to OpenAI's names and layout."""
    found = {}
    for name, tensor in parameters.items():
        array = tensor.detach().numpy()
        *layer, kind = name.replace("blocks.", "h").split(".")
        letter = "g" if layer[-1].startswith("ln_") and kind == "weight" else kind[0]
        if layer[0] in ("wte", "wpe"):
            found[f"model/{layer[0]}"] = array
        else:
            found["/".join(["model", *layer, letter])] = array.T[None] if array.ndim == 2 else array
    return found


def test_the_logits_are_those_of_the_reference(tiny_gpt2: GPT2) -> None:
    """The reference is the numpy oracle in float64, with dense weights."""
    add_lora(tiny_gpt2, LoRAConfig(rank=5, alpha=10, n_last_blocks=1))
    fill(tiny_gpt2, lora_names(tiny_gpt2))
    assert all(name.startswith("blocks.1.") for name in lora_names(tiny_gpt2))
    raw = arrays(dense_weights(tiny_gpt2, 2.0, MATRICES))
    with torch.no_grad():
        found = tiny_gpt2(IDS)
    for row, ids in enumerate(IDS.tolist()):
        np.testing.assert_allclose(found[row], oracle.gpt2(ids, raw, 4), atol=1e-4)


def test_adapters_of_query_and_value_do_not_change_the_key(tiny_gpt2: GPT2) -> None:
    layer = tiny_gpt2.blocks[0].attn.c_attn
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(6))
    before, keys = layer(x), layer.weight[32:64].clone()
    add_lora(tiny_gpt2, LoRAConfig(matrices=("value", "query")))
    fill(tiny_gpt2, lora_names(tiny_gpt2))
    q, k, v = (tiny_gpt2.blocks[0].attn.c_attn(x) - before).split(32, dim=2)
    assert not k.any() and q.abs().min() > 0 and v.abs().min() > 0
    merge_lora(tiny_gpt2)
    assert torch.equal(tiny_gpt2.blocks[0].attn.c_attn.weight[32:64], keys)
    assert type(tiny_gpt2.blocks[0].mlp.c_fc) is nn.Linear


# --- dropout ---


def test_dropout_applies_to_the_input_of_a_and_only_in_training(tiny_gpt2: GPT2) -> None:
    layer = tiny_gpt2.blocks[0].mlp.c_fc
    add_lora(tiny_gpt2, LoRAConfig(rank=3, alpha=3, dropout=0.4))
    fill(tiny_gpt2, lora_names(tiny_gpt2))
    adapter = tiny_gpt2.blocks[0].mlp.c_fc
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(6))
    A, B = adapter.lora_A[0], adapter.lora_B[0]
    torch.manual_seed(3)
    found = adapter.train()(x)
    torch.manual_seed(3)
    kept = F.dropout(torch.ones_like(x), 0.4)  # each value is 0 or 1 / 0.6
    expected = layer(x) + (x * kept) @ A.T @ B.T
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(adapter.eval()(x), layer(x) + x @ A.T @ B.T, atol=1e-5, rtol=0)
    assert torch.equal(adapter(x), adapter(x))


@pytest.mark.parametrize("training", [True, False])
def test_an_adapter_has_the_training_mode_of_the_model(tiny_gpt2: GPT2, training: bool) -> None:
    """Otherwise the adapters of a model in evaluation mode would apply dropout."""
    tiny_gpt2.train(training)
    add_lora(tiny_gpt2, LoRAConfig(dropout=0.5))
    assert all(part.training is training for part in tiny_gpt2.modules())
    adapters = merge_lora(tiny_gpt2)
    tiny_gpt2.train(not training)
    unmerge_lora(tiny_gpt2, adapters)
    assert all(part.training is not training for part in tiny_gpt2.modules())


# --- merging and unmerging ---


def test_a_merged_model_is_a_plain_gpt2_with_the_same_logits(classifier: GPT2) -> None:
    with torch.no_grad():
        expected = class_logits(classifier, IDS, LENGTHS, "last_token")
        weights = {name: p.clone() for name, p in classifier.named_parameters()}
        assert not any(is_plain(block) for block in classifier.blocks)

        adapters = merge_lora(classifier)
        assert lora_names(classifier) == [] and merge_lora(classifier) == {}
        assert all(is_plain(block) for block in classifier.blocks)
        assert type(classifier.head) is nn.Linear
        merged = class_logits(classifier, IDS, LENGTHS, "last_token")
        torch.testing.assert_close(merged, expected, atol=1e-5, rtol=0)
        changed = {n for n, p in classifier.named_parameters() if not torch.equal(p, weights[n])}
        assert changed == {f"{name}.weight" for name in adapters} and len(changed) == 9

        unmerge_lora(classifier, adapters)
        assert not any(is_plain(block) for block in classifier.blocks)
        apart = class_logits(classifier, IDS, LENGTHS, "last_token")
        torch.testing.assert_close(apart, expected, atol=1e-5, rtol=0)
    for name, parameter in classifier.named_parameters():
        torch.testing.assert_close(parameter, weights[name], atol=1e-6, rtol=0)


def test_merged_weights_are_those_of_the_dense_model(classifier: GPT2) -> None:
    weights = dense_weights(classifier, 2.0, MATRICES)
    merge_lora(classifier)
    for name, parameter in classifier.named_parameters():
        torch.testing.assert_close(parameter, weights[name], atol=1e-6, rtol=0)


def test_adapters_are_put_back_where_they_were(classifier: GPT2) -> None:
    before = dict(classifier.named_parameters())
    unmerge_lora(classifier, merge_lora(classifier))
    after = dict(classifier.named_parameters())
    assert list(after) == list(before)
    assert all(after[name] is parameter for name, parameter in before.items())
    assert isinstance(classifier.head, LoRALinear)


def test_merging_does_not_change_which_parameters_are_trainable(classifier: GPT2) -> None:
    names = trainable_names(classifier)
    assert "head.weight" not in names and "wte.weight" in names
    adapters = merge_lora(classifier)
    assert trainable_names(classifier) == [name for name in names if "lora" not in name]
    unmerge_lora(classifier, adapters)
    assert trainable_names(classifier) == names


def test_copies_have_adapters_of_their_own(classifier: GPT2) -> None:
    twin = copy.deepcopy(classifier)
    merge_lora(twin)
    with torch.no_grad():
        torch.testing.assert_close(twin(IDS), classifier(IDS), atol=1e-5, rtol=0)
    assert lora_names(classifier)


# --- the head ---


def test_heads_of_several_layers_are_adapted_layer_by_layer(tiny_gpt2: GPT2) -> None:
    """GPT-2's own head, if it is among the heads, is not adapted."""
    mlp = nn.Sequential(nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, 2, bias=False))
    tiny_gpt2.head = nn.ModuleDict({"mlp": mlp, "language": tiny_gpt2.head})
    state = torch.randn(4, 32, generator=torch.Generator().manual_seed(6))
    before = mlp(state)
    add_lora(tiny_gpt2, LoRAConfig(rank=2, alpha=2, matrices=(), head=True))
    assert torch.equal(mlp(state), before)
    assert lora_names(tiny_gpt2) == [f"head.mlp.{n}.lora_{m}" for n in (0, 2) for m in "AB"]
    frozen = {name for name, p in tiny_gpt2.named_parameters() if not p.requires_grad}
    assert frozen == {"head.mlp.0.weight", "head.mlp.0.bias", "head.mlp.2.weight"}
    assert tiny_gpt2.head["language"].weight is tiny_gpt2.wte.weight

    fill(tiny_gpt2, lora_names(tiny_gpt2))
    adapted = mlp(state)
    assert (adapted - before).abs().min() > 1e-4
    adapters = merge_lora(tiny_gpt2)
    assert [type(part) for part in mlp] == [nn.Linear, nn.ReLU, nn.Linear]
    assert mlp[2].bias is None
    torch.testing.assert_close(mlp(state), adapted, atol=1e-5, rtol=0)
    unmerge_lora(tiny_gpt2, adapters)
    torch.testing.assert_close(mlp(state), adapted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("head", [None, nn.Identity()])
def test_a_head_without_a_layer_of_its_own_is_refused(tiny_gpt2: GPT2, head: nn.Module) -> None:
    tiny_gpt2.head = head or tiny_gpt2.head
    with pytest.raises(UsageError, match="replace_head"):
        add_lora(tiny_gpt2, LoRAConfig(head=True))
    assert lora_names(tiny_gpt2) == [] and is_plain(tiny_gpt2.blocks[0])


# --- numbers of trainable parameters ---


def test_the_lectures_appendix_e_has_2_666_528() -> None:
    model = meta_gpt2(GPT2Config())
    replace_head(model, 2)
    model.requires_grad_(False)
    add_lora(model, LoRAConfig(rank=16, alpha=16, head=True))
    assert trainable_names(model) == lora_names(model)
    assert numbers(trainable_names(model), model) == 2_666_528
    assert {p.device.type for p in model.parameters()} == {"meta"}


def test_with_a_fully_trained_head_2_654_208_and_1_538() -> None:
    model = meta_gpt2(GPT2Config())
    replace_head(model, 2)
    set_trainable(model, n_last_blocks=0, final_norm=False)
    add_lora(model, LoRAConfig(rank=16, alpha=16))
    assert numbers(lora_names(model), model) == 2_654_208
    assert numbers(trainable_names(model), model) == 2_654_208 + 1_538


GPT3 = GPT2Config(n_ctx=2048, n_embd=12288, n_head=96, n_layer=96)


# Hu et al. 2021, tables 2 and 4, adapters of query and value. The matrices of RoBERTa base and large
# have the same shapes as those of 124M and 355M. GPT-3 has the same matrices as GPT-2.
@pytest.mark.parametrize(
    "config, rank, published",
    [(SIZES["124M"], 8, "0.3M"), (SIZES["355M"], 8, "0.8M"), (GPT3, 1, "4.7M"), (GPT3, 8, "37.7M")],
)
def test_the_papers_own_counts(config: GPT2Config, rank: int, published: str) -> None:
    model = meta_gpt2(config)
    add_lora(model, LoRAConfig(rank=rank, matrices=("query", "value")))
    assert f"{numbers(lora_names(model), model) / 1e6:.1f}M" == published


# --- what is refused ---


def test_adding_adapters_twice_is_refused(tiny_gpt2: GPT2) -> None:
    add_lora(tiny_gpt2, LoRAConfig(n_last_blocks=1))
    with pytest.raises(UsageError, match="already"):
        add_lora(tiny_gpt2, LoRAConfig())


@pytest.mark.parametrize(
    "config, what",
    [
        (LoRAConfig(n_last_blocks=3), "n_last_blocks = 3.* 2 blocks"),
        (LoRAConfig(rank=33), "rank 33 exceeds n_embd = 32"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(
    tiny_gpt2: GPT2, config: LoRAConfig, what: str
) -> None:
    with pytest.raises(UsageError, match=what):
        add_lora(tiny_gpt2, config)


def test_other_parts_are_not_overwritten(tiny_gpt2: GPT2) -> None:
    """The blocks before such a part are not changed either."""
    linear = tiny_gpt2.blocks[1].mlp.c_proj
    tiny_gpt2.blocks[1].mlp.c_proj = Halved(linear)
    with pytest.raises(UsageError, match="blocks.1.mlp.c_proj .*nn.Linear"):
        add_lora(tiny_gpt2, LoRAConfig())
    tiny_gpt2.blocks[1].mlp.c_proj = linear
    hook = linear.register_forward_hook(lambda module, args, output: output / 2)
    with pytest.raises(UsageError, match="blocks.1.mlp.c_proj .*nn.Linear"):
        add_lora(tiny_gpt2, LoRAConfig())
    assert lora_names(tiny_gpt2) == []
    hook.remove()
    add_lora(tiny_gpt2, LoRAConfig())


def test_adapters_of_another_model_are_refused(classifier: GPT2) -> None:
    other = copy.deepcopy(classifier)
    adapters, others = merge_lora(classifier), merge_lora(other)
    before = other.head.weight.clone()
    with pytest.raises(UsageError, match="blocks.0.attn.c_attn"):
        unmerge_lora(other, adapters)
    assert torch.equal(other.head.weight, before)
    unmerge_lora(other, others)
    with pytest.raises(UsageError, match="blocks.0.attn.c_attn .*nn.Linear"):
        unmerge_lora(other, others)  # a second time


@pytest.mark.parametrize(
    "values",
    [
        {"rank": 0},
        {"rank": 2.0},
        {"rank": True},
        {"alpha": 0},
        {"alpha": float("nan")},
        {"alpha": float("inf")},
        {"dropout": 1.0},
        {"dropout": -0.1},
        {"matrices": "query"},
        {"matrices": ["c_attn"]},
        {"matrices": [["query"]]},
        {"matrices": ["key", "key"]},
        {"matrices": []},
        {"n_last_blocks": 0},
        {"n_last_blocks": 1.0},
        {"head": 1},
        {"r": 8},
    ],
)
def test_impossible_settings_are_refused(values: dict) -> None:
    with pytest.raises(UsageError):
        from_json(LoRAConfig, values)


def test_a_list_instead_of_a_tuple_is_refused() -> None:
    with pytest.raises(UsageError, match="matrices"):
        LoRAConfig(matrices=["query"])


@pytest.mark.parametrize(
    "config",
    [LoRAConfig(), LoRAConfig(1, 2, 0.5, ("value",), 3, True), LoRAConfig(matrices=(), head=True)],
)
def test_settings_come_back_from_json(config: LoRAConfig) -> None:
    assert from_json(LoRAConfig, json.loads(json.dumps(asdict(config)))) == config
