"""Detect how other code changed a model.

It may have compiled the model, added hooks, or replaced methods or weights.
"""

from torch import nn

from gpt2_from_scratch.gpt2.model import GPT2, MLP, CausalSelfAttention, TransformerBlock

KINDS: tuple[type[nn.Module], ...] = (
    GPT2,
    TransformerBlock,
    CausalSelfAttention,
    MLP,
    nn.Linear,
    nn.LayerNorm,
    nn.Embedding,
)
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
HOOKS_OF_ALL = tuple(getattr(nn.modules.module, f"_global{hooks}") for hooks in HOOKS)
# torch's FLOP counter installs hooks from this module; they do not change any output
WATCHES = "torch.utils.module_tracker"
COMPUTES = {"forward", "hidden", "embed", "attend"}  # methods that compute outputs
ORIGINAL = {  # {class: {method: its function when this package was imported}}
    kind: {name: getattr(kind, name) for name in COMPUTES if hasattr(kind, name)} for kind in KINDS
}


def parameters_by_name(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return all parameters by name, without the prefix that `torch.compile` adds.

    `torch.compile` wraps a module and puts `_orig_mod.` before the names of its parameters.
    """
    return {name.replace("_orig_mod.", ""): p for name, p in model.named_parameters()}


def alteration(part: nn.Module) -> str:
    """Describe how a module was changed, other than by new weights.

    Returns an empty string if it was not changed. Changes are hooks (also global ones), a replaced
    method of the module or its class, and a weight that is no longer a parameter. Code that reads
    only the weights would ignore all of these.
    """
    own = vars(part)  # this runs for every batch, so it must be quick
    if any([own[hooks] for hooks in HOOKS]) or (any(HOOKS_OF_ALL) and _some_hook_changes()):
        return "has hooks"
    if not COMPUTES.isdisjoint(own):
        return f"has a replaced method {min(COMPUTES & own.keys())}"
    for name, function in ORIGINAL.get(type(part), {}).items():
        if getattr(type(part), name) is not function:
            return f"has a replaced method {name}"
    # a module keeps its parameters in a separate dictionary, not among its other attributes
    if own.get("weight") is not None or own.get("bias") is not None:
        return "has a weight that is not a parameter"
    return ""


def _some_hook_changes() -> bool:
    return any(
        getattr(hook, "__module__", "") != WATCHES
        for hooks in HOOKS_OF_ALL
        for hook in hooks.values()
    )
