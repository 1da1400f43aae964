"""A modified model gives the answers of `model(ids)`, text by text, for all ways to call it."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import MethodType

import pytest
import torch
from said import listen
from three_blocks import FIRST, LABEL, SIGMOID, classifier_with
from tiny import Halved
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from gpt2_from_scratch.classifier.classifier import Classifier
from gpt2_from_scratch.classifier.freezing import set_trainable
from gpt2_from_scratch.errors import UsageError
from gpt2_from_scratch.gpt2.config import LoRAConfig
from gpt2_from_scratch.gpt2.lora import add_lora
from gpt2_from_scratch.gpt2.model import MLP, CausalSelfAttention
from gpt2_from_scratch.speed.feature_cache import Embedded, Features
from gpt2_from_scratch.speed.frozen_trunk import Trunk

ENCODED = [[1, 2, 3, 4, 5, 6, 7], [1, 2, 3], [4], [5, 6, 9], [1, 2, 3, 4, 5, 6, 8], [5, 6, 9]]


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


class Shifted(nn.Linear):
    """A subclass with another forward method."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0.3


class Mixing(nn.Module):
    """A final norm that also reads other positions."""

    def forward(self, x: Tensor) -> Tensor:
        return x.cumsum(dim=1) / x.shape[1]


def attention_forward(model: nn.Module) -> None:
    model.blocks[1].attn.forward = lambda x: 0 * x  # the documentation shows this ablation


def bound_forward(model: nn.Module) -> None:
    block = model.blocks[0]
    block.forward = MethodType(lambda block, x: x + block.mlp(block.ln_2(x)), block)


def attend(model: nn.Module) -> None:
    model.blocks[0].attn.attend = lambda qkv, seen=None: qkv[..., -32:]


def norm_forward(model: nn.Module) -> None:
    model.blocks[2].ln_2.forward = lambda x: x


def steered_last_position(model: nn.Module) -> None:
    def steer(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        return torch.cat([output[:, :-1], output[:, -1:] + torch.arange(32.0) / 16], dim=1)

    model.blocks[1].register_forward_hook(steer)


def pre_hook(model: nn.Module) -> None:
    model.blocks[0].mlp.c_fc.register_forward_pre_hook(lambda module, args: (args[0] + 1,))


def parametrized(model: nn.Module) -> None:
    parametrize.register_parametrization(model.blocks[1].mlp.c_fc, "weight", Doubled())


def weight_normed(model: nn.Module) -> None:
    layer = nn.utils.parametrizations.weight_norm(model.blocks[1].attn.c_attn)
    layer.parametrizations.weight.original0.data *= 3


def pruned(model: nn.Module) -> None:
    prune.random_unstructured(model.blocks[0].attn.c_proj, "weight", amount=0.5)


def subclassed(model: nn.Module) -> None:
    layer = Shifted(32, 128)
    layer.load_state_dict(model.blocks[0].mlp.c_fc.state_dict())
    model.blocks[0].mlp.c_fc = layer


def other_class(model: nn.Module) -> None:
    model.blocks[0].mlp.c_fc.__class__ = Shifted


def other_part(model: nn.Module) -> None:
    model.blocks[1].mlp = nn.Linear(32, 32)  # GPT-2 has this kind of layer, but not here


def wrapped_block(model: nn.Module) -> None:
    model.blocks[1] = Halved(model.blocks[1])


def no_bias(model: nn.Module) -> None:
    layer = nn.Linear(32, 96, bias=False)
    layer.weight = model.blocks[2].attn.c_attn.weight
    model.blocks[2].attn.c_attn = layer


def no_parameter(model: nn.Module) -> None:
    weight = model.blocks[1].mlp.c_fc.weight
    del model.blocks[1].mlp.c_fc.weight
    model.blocks[1].mlp.c_fc.weight = 2 * weight.detach()


def other_epsilon(model: nn.Module) -> None:
    model.blocks[0].ln_1.eps = 10.0


def other_number_of_heads(model: nn.Module) -> None:
    model.blocks[0].attn.n_head = 1


def adapters_and_a_hook(model: nn.Module) -> None:
    add_lora(model, LoRAConfig(rank=2))
    with torch.no_grad():
        for block in model.blocks:
            block.mlp.c_fc.lora_B.normal_(0, 0.3)
    model.blocks[1].mlp.c_fc.register_forward_hook(lambda module, args, output: output / 2)


def embed(model: nn.Module) -> None:
    own = model.embed
    model.embed = lambda ids: 0.5 * own(ids)


def token_hook(model: nn.Module) -> None:
    model.wte.register_forward_hook(lambda module, args, output: output * 2)


def token_norms(model: nn.Module) -> None:
    model.wte.max_norm = 0.5


def final_norm_hook(model: nn.Module) -> None:
    def steer(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        return torch.cat([output[:, :-1], output[:, -1:] + torch.arange(32.0) / 16], dim=1)

    model.ln_f.register_forward_hook(steer)


def final_norm_mixes(model: nn.Module) -> None:
    model.ln_f = Mixing()


def final_norm_epsilon(model: nn.Module) -> None:
    model.ln_f.eps = 10.0


def head_forward(model: nn.Module) -> None:
    own = model.head.forward
    model.head.forward = lambda x: own(x) + 1


def half(model: nn.Module) -> None:
    model.bfloat16()


CHANGES = [
    value
    for value in list(globals().values())
    if getattr(value, "__module__", "") == __name__ and callable(value) and type(value) is not type
]


@torch.no_grad()
def text_by_text(classifier: Classifier) -> Tensor:
    """The logits after the last token, computed by the model itself, one text at a time."""
    model = classifier.model.eval()
    return torch.cat([model(torch.tensor([ids]))[:, -1] for ids in ENCODED]).float()


def found_by(classifier: Classifier) -> Iterator[Tensor]:
    """Predicting, prepared texts, one text at a time with gradients, and by word."""
    yield classifier.logits(ENCODED)
    texts = classifier.texts(ENCODED)
    yield classifier.logits(texts)
    yield torch.cat([classifier.batch_logits(texts, [n]) for n in range(len(ENCODED))])


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_every_route_computes_what_the_model_computes(base: Path, change: Callable) -> None:
    classifier = classifier_with(base, LABEL)
    plain = classifier.logits(ENCODED)
    change(classifier.model)
    classifier.model.requires_grad_(False)
    expected = text_by_text(classifier)
    atol = 0.1 if change is half else 1e-4
    for found in found_by(classifier):
        torch.testing.assert_close(found.float(), expected, atol=atol, rtol=0)
    assert (expected - plain).abs().max() > 1e-3, "the change must make a difference"


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_saving_logs_changes_that_a_file_cannot_contain(
    base: Path, tmp_path: Path, change: Callable
) -> None:
    said, classifier = listen(), classifier_with(base, LABEL)
    change(classifier.model)
    try:
        for _ in range(2):
            classifier.save(tmp_path / "c.safetensors")
    except UsageError:  # the parameters have other names
        return
    reported = [line for line in said if "will answer without this change" in line]
    again = Classifier.load(tmp_path / "c.safetensors", base)
    same = torch.allclose(again.logits(ENCODED), text_by_text(classifier), atol=1e-2)
    assert len(reported) == (
        0 if same or change is half else 1
    )  # a loaded model computes in float32


def test_another_config_is_not_in_the_file_either(base: Path, tmp_path: Path) -> None:
    with torch.inference_mode():
        said, classifier = listen(), classifier_with(base, LABEL)
    classifier.save(tmp_path / "c.safetensors")
    assert said == []
    classifier.model.config = replace(classifier.model.config, n_head=8)
    for block in classifier.model.blocks:
        block.attn.n_head = 8
    classifier.save(tmp_path / "c.safetensors")
    assert len(said) == 1 and "blocks.0.attn has n_head = 8 instead of 4" in said[0]


@pytest.mark.slow
def test_other_settings_of_adapters_and_heads_are_not_in_the_file(
    base: Path, tmp_path: Path
) -> None:
    said, classifier = listen(), classifier_with(base, LABEL, lora=LoRAConfig(rank=2))
    classifier.save(tmp_path / "c.safetensors")
    classifier.model = torch.compile(classifier.model, backend="eager")
    classifier.save(tmp_path / "c.safetensors")
    assert said == []
    classifier.model.blocks[2].attn.c_attn.scale = 100.0
    classifier.save(tmp_path / "c.safetensors")
    classifier.model.blocks[2].attn.c_attn.scale = 4.0
    classifier.model.head.register_buffer("mean", torch.ones(3))
    classifier.save(tmp_path / "c.safetensors")
    assert [line.partition(",")[0] for line in said] == [
        "blocks.2.attn.c_attn has scale = 100.0 instead of 4.0",
        "head has buffers",
    ]


@pytest.mark.parametrize("kind", [CausalSelfAttention, MLP, nn.LayerNorm, nn.Linear, nn.Embedding])
def test_a_method_of_a_class_is_not_ignored(
    base: Path, monkeypatch: pytest.MonkeyPatch, kind: type[nn.Module]
) -> None:
    classifier = classifier_with(base, LABEL)
    own = kind.forward
    monkeypatch.setattr(kind, "forward", lambda part, x: 0.9 * own(part, x))
    expected = text_by_text(classifier)
    for found in found_by(classifier):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_hooks_of_all_modules_are_run(base: Path) -> None:
    classifier = classifier_with(base, LABEL)

    def halve(module: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
        return output / 2 if isinstance(module, nn.Linear) else None

    hook = nn.modules.module.register_module_forward_hook(halve)
    try:
        expected = text_by_text(classifier)
        for found in found_by(classifier):
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    finally:
        hook.remove()


@pytest.mark.parametrize("head", [LABEL, FIRST, SIGMOID], ids=lambda head: head.name)
def test_a_hook_on_gradients_sees_every_position(base: Path, head) -> None:
    classifier = classifier_with(base, head)
    set_trainable(classifier.model, 3, heads=[head])
    gradients: list[Tensor] = []
    classifier.model.blocks[2].mlp.register_full_backward_hook(
        lambda module, into, out: gradients.append(out[0])
    )
    classifier.batch_logits(classifier.texts(ENCODED), [0, 1]).sum().backward()
    assert [gradient.shape for gradient in gradients] == [(2, 7, 32)]


def test_the_reason_is_logged_once(base: Path) -> None:
    said, classifier = listen(), classifier_with(base, LABEL)
    classifier.predict(["the cat", "you"])
    assert said == []
    attention_forward(classifier.model)
    for _ in range(3):
        classifier.predict(["the cat", "you"])
    assert len(said) == 1 and "blocks.1" in said[0] and "attn has a replaced method" in said[0]
    classifier.texts([[1, 2], [3]])
    assert "blocks.1 on run again" in said[1] and "attn has a replaced method" in said[1]


def test_adapters_do_not_count_as_changes(base: Path) -> None:
    said, classifier = listen(), classifier_with(base, LABEL, lora=LoRAConfig(rank=2))
    classifier.predict(["the cat", "you"])
    assert said == []


def test_undoing_a_change_restores_the_shortcuts(base: Path) -> None:
    classifier = classifier_with(base, LABEL)
    attention_forward(classifier.model)
    set_trainable(classifier.model, 0)
    assert classifier.texts(ENCODED).depth == 1
    del classifier.model.blocks[1].attn.forward
    assert isinstance(classifier.texts(ENCODED), Features)
    bound_forward(classifier.model)
    assert isinstance(classifier.texts(ENCODED), Embedded)


def test_texts_prepared_before_the_change_are_refused(base: Path) -> None:
    classifier = classifier_with(base, LABEL)
    texts = classifier.texts(ENCODED)
    attention_forward(classifier.model)
    for use in (classifier.logits, lambda texts: classifier.batch_logits(texts, [0])):
        with pytest.raises(UsageError, match=r"blocks\.1 was changed.*call texts"):
            use(texts)
    with pytest.raises(UsageError, match=r"blocks\.1"):
        Trunk(classifier.model, 2)


def whole_forward(model: nn.Module) -> None:
    model.forward = lambda ids: torch.zeros(1, 1, 3)


def whole_hidden(model: nn.Module) -> None:
    model.hidden = lambda ids: torch.zeros(1, 1, 32)


def whole_hook(model: nn.Module) -> None:
    model.register_forward_hook(lambda module, args, output: 2 * output)


def whole_class(model: nn.Module) -> None:
    class Other(type(model)):  # type: ignore[misc]
        def hidden(self, ids: Tensor) -> Tensor:
            return 2 * super().hidden(ids)

    model.__class__ = Other


@pytest.mark.parametrize("change", [whole_forward, whole_hidden, whole_hook, whole_class])
def test_changes_outside_the_parts_are_refused(base: Path, change: Callable) -> None:
    """A classifier runs the parts itself, so it would ignore this change."""
    classifier = classifier_with(base, LABEL)
    change(classifier.model)
    for use in (classifier.logits, classifier.texts):
        with pytest.raises(UsageError, match="runs the model's parts"):
            use(ENCODED)


def compiled_hook(compiled: nn.Module) -> None:
    compiled.register_forward_pre_hook(lambda module, args: (args[0].flip(1),))


def compiled_forward(compiled: nn.Module) -> None:
    own = compiled.forward
    compiled.forward = lambda ids: 2 * own(ids)


def compiled_inner_hook(compiled: nn.Module) -> None:
    whole_hook(compiled._orig_mod)


@pytest.mark.slow
@pytest.mark.parametrize("change", [compiled_hook, compiled_forward, compiled_inner_hook])
def test_changes_of_a_compiled_model_are_refused(base: Path, change: Callable) -> None:
    classifier = classifier_with(base, LABEL)
    expected = classifier.logits(ENCODED)
    classifier.model = torch.compile(classifier.model, backend="eager")
    assert torch.equal(classifier.logits(ENCODED), expected)
    change(classifier.model)
    for use in (classifier.logits, classifier.texts):
        with pytest.raises(UsageError, match="runs the model's parts"):
            use(ENCODED)


@pytest.mark.parametrize("kept", [2, 4])
def test_another_number_of_blocks_is_refused(base: Path, kept: int) -> None:
    classifier = classifier_with(base, LABEL)
    blocks = [*classifier.model.blocks] * 2
    classifier.model.blocks = nn.ModuleList(blocks[:kept])
    for use in (classifier.logits, classifier.texts):
        with pytest.raises(UsageError, match=f"has {kept} blocks, but its config n_layer = 3"):
            use(ENCODED)
