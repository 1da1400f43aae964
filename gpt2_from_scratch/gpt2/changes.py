"""What others did to a model: names that `torch.compile` gives, hooks, replaced methods and weights."""

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
WATCHES = "torch.utils.module_tracker"  # its hooks, as in torch's counter of FLOPs, change nothing
COMPUTES = {"forward", "hidden", "embed", "attend"}
ORIGINAL = {  # {kind: {method: the function that it was when this package was imported}}
    kind: {name: getattr(kind, name) for name in COMPUTES if hasattr(kind, name)} for kind in KINDS
}


def parameters_by_name(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return all parameters by the names they have here, also after `torch.compile`.

    What `torch.compile` returns puts `_orig_mod.` before the names of the module inside it.
    """
    return {name.replace("_orig_mod.", ""): p for name, p in model.named_parameters()}


def alteration(part: nn.Module) -> str:
    """Say what was done to a part besides giving it other weights; empty if nothing was.

    That is hooks, also those for all modules; another method, of this part or of its class; and a
    weight that is no parameter any more. Code that reads the weights would ignore all of these.
    """
    own = vars(part)  # this is asked at every batch, so it looks up as little as it can
    if any([own[hooks] for hooks in HOOKS]) or (any(HOOKS_OF_ALL) and _some_hook_changes()):
        return "has hooks"
    if not COMPUTES.isdisjoint(own):
        return f"has another method {min(COMPUTES & own.keys())}"
    for name, function in ORIGINAL.get(type(part), {}).items():
        if getattr(type(part), name) is not function:
            return f"has another method {name}"
    # parameters are kept elsewhere than a module's other attributes
    if own.get("weight") is not None or own.get("bias") is not None:
        return "has a weight that is no parameter"
    return ""


def _some_hook_changes() -> bool:
    return any(
        getattr(hook, "__module__", "") != WATCHES
        for hooks in HOOKS_OF_ALL
        for hook in hooks.values()
    )
