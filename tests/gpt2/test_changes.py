"""Parameter names after torch.compile, and which changes of a module are detected."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from gpt2_from_scratch.errors import UsageError
from gpt2_from_scratch.gpt2.changes import alteration, parameters_by_name
from gpt2_from_scratch.gpt2.config import LoRAConfig
from gpt2_from_scratch.gpt2.lora import add_lora, merge_lora
from gpt2_from_scratch.gpt2.model import GPT2


class Wrapper(nn.Module):
    """Wraps a module in the same way as torch.compile."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self._orig_mod = inner


def test_names_do_not_contain_the_prefix_of_torch_compile(tiny_gpt2: GPT2) -> None:
    expected = dict(tiny_gpt2.named_parameters())
    tiny_gpt2.blocks[1] = Wrapper(tiny_gpt2.blocks[1])
    found = parameters_by_name(Wrapper(tiny_gpt2))
    assert list(found) == list(expected)
    assert all(found[name] is parameter for name, parameter in expected.items())


def test_new_weights_are_not_a_change(tiny_gpt2: GPT2) -> None:
    with torch.no_grad():
        tiny_gpt2.wte.weight.mul_(2)
    tiny_gpt2.ln_f.weight = nn.Parameter(torch.ones(32))
    tiny_gpt2.requires_grad_(False).eval().double()
    assert not any(alteration(part) for part in tiny_gpt2.modules())


@pytest.mark.parametrize("at", ["attn", "mlp", "ln_1", "mlp.c_fc"])
@pytest.mark.parametrize(
    "register",
    ["forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook"],
)
def test_a_hook_is_a_change_until_it_is_removed(tiny_gpt2: GPT2, at: str, register: str) -> None:
    part = tiny_gpt2.blocks[0].get_submodule(at)
    hook = getattr(part, f"register_{register}")(lambda *args: None)
    assert alteration(part) == "has hooks"
    hook.remove()
    assert alteration(part) == ""


def test_an_adapter_with_a_hook_is_not_merged(tiny_gpt2: GPT2) -> None:
    add_lora(tiny_gpt2, LoRAConfig(rank=2))
    tiny_gpt2.blocks[1].mlp.c_fc.register_forward_hook(lambda *args: None)
    before = {name: p.clone() for name, p in tiny_gpt2.named_parameters()}
    with pytest.raises(UsageError, match=r"blocks\.1\.mlp\.c_fc has hooks"):
        merge_lora(tiny_gpt2)
    assert all(torch.equal(p, before[name]) for name, p in tiny_gpt2.named_parameters())


def test_hooks_of_torchs_flop_counter_are_ignored(tiny_gpt2: GPT2) -> None:
    with FlopCounterMode(display=False):
        assert not any(alteration(part) for part in tiny_gpt2.modules())
        handle = nn.modules.module.register_module_forward_hook(lambda *call: None)
        assert all(alteration(part) == "has hooks" for part in tiny_gpt2.modules())
        handle.remove()
