"""The network in training loops that are not this package's, with torch's own tools."""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from gpt2_from_scratch import (
    GPT2,
    Classifier,
    Tokenizer,
    TrainConfig,
    class_logits,
    encode_texts,
    load_gpt2,
    pad_batch,
    parameter_groups,
    pool,
    replace_head,
    set_trainable,
)

TEXTS = ["the cat is in the house", "win", "you and the other one at ten", "in the hat", "and you"]
LABELS = torch.tensor([0, 1, 0, 1, 1])
# raised by imports of torch.compile
COMPILES = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def model(tiny_checkpoint: Path) -> GPT2:
    gpt2 = load_gpt2(tiny_checkpoint)
    torch.manual_seed(4)
    replace_head(gpt2, 2)
    set_trainable(gpt2, 1)
    return gpt2


@pytest.fixture
def batch(tiny_checkpoint: Path) -> tuple[Tensor, Tensor]:
    tokenizer = Tokenizer(tiny_checkpoint)
    return pad_batch(encode_texts(TEXTS, tokenizer, 32)[0], tokenizer.end_of_text_id)


def plain_logits(model, ids: Tensor, lengths: Tensor) -> Tensor:
    """Without this package's shortcuts."""
    return model(ids)[torch.arange(len(ids)), lengths - 1]


def gradients(model: GPT2, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-4, msg=name)


def train(model, batch: tuple[Tensor, Tensor], steps: int = 5) -> list[float]:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    losses = []
    for _ in range(steps):
        loss = F.cross_entropy(class_logits(model, *batch, "last_token").float(), LABELS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


# --- from a loop to a classifier ---


def test_a_trained_network_becomes_a_classifier(tiny_checkpoint, model, batch, tmp_path) -> None:
    losses = train(model, batch)
    assert losses[-1] < losses[0]
    classifier = Classifier.on_base(tiny_checkpoint, ["ham", "spam"], pooling="last_token")
    classifier.model = model
    classifier.save(tmp_path / "own.safetensors")
    loaded = Classifier.load(tmp_path / "own.safetensors", tiny_checkpoint)
    expected = plain_logits(model, *batch).softmax(dim=1)[:, 1].tolist()
    for one in (classifier, copy.deepcopy(classifier), loaded):
        found = [answer.probabilities["spam"] for answer in one.predict(TEXTS)]
        assert found == pytest.approx(expected, abs=1e-6)
    names = {name for name in load_file(tmp_path / "own.safetensors")}
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert names == trained


def test_the_network_of_a_classifier_can_be_trained_in_place(tiny_checkpoint, batch) -> None:
    classifier = Classifier.on_base(tiny_checkpoint, ["ham", "spam"], pooling="last_token", seed=4)
    set_trainable(classifier.model, 1)
    classifier.predict(TEXTS)  # the frozen blocks' output is now in memory
    classifier.model.train()
    train(classifier.model, batch)
    assert classifier.model.training
    expected = plain_logits(classifier.model, *batch).softmax(dim=1)[:, 1].tolist()
    found = [answer.probabilities["spam"] for answer in classifier.predict(TEXTS)]
    assert found == pytest.approx(expected, abs=1e-6)
    assert classifier.model.training


# --- copies and states ---


def test_a_deep_copy_is_independent_and_stays_tied(tiny_gpt2, batch) -> None:
    ids, _ = batch
    twin, before = copy.deepcopy(tiny_gpt2), tiny_gpt2(ids)
    assert twin.head.weight is twin.wte.weight
    assert not {*map(id, twin.parameters())} & {*map(id, tiny_gpt2.parameters())}
    with torch.no_grad():
        twin.wte.weight.add_(1.0)
    assert torch.equal(tiny_gpt2(ids), before)
    assert torch.equal(twin.head.weight, tiny_gpt2.wte.weight + 1)


def test_a_state_is_saved_and_loaded(tiny_checkpoint, model, batch, tmp_path) -> None:
    train(model, batch)
    save_file(model.state_dict(), tmp_path / "state.safetensors")
    state, other = load_file(tmp_path / "state.safetensors"), load_gpt2(tiny_checkpoint)
    with pytest.raises(RuntimeError, match=r"head\.weight.*\[2, 32\].*\[277, 32\]"):
        other.load_state_dict(state)
    replace_head(other, 2)
    other.load_state_dict(state)
    assert torch.equal(other(batch[0]), model(batch[0]))
    with pytest.raises(RuntimeError, match=r"ln_f\.bias"):
        other.load_state_dict({name: v for name, v in state.items() if name != "ln_f.bias"})


def test_the_state_of_a_tied_model(tiny_gpt2, tiny_config, batch, tmp_path) -> None:
    save_model(tiny_gpt2, str(tmp_path / "tied.safetensors"))
    other = GPT2(tiny_config)
    load_model(other, tmp_path / "tied.safetensors")
    assert other.head.weight is other.wte.weight
    assert torch.equal(other(batch[0]), tiny_gpt2(batch[0]))
    other = GPT2(tiny_config)
    other.load_state_dict(tiny_gpt2.state_dict())
    assert other.head.weight is other.wte.weight
    assert torch.equal(other(batch[0]), tiny_gpt2(batch[0]))


# --- precision ---


def test_float64_and_back(model, batch) -> None:
    before = class_logits(model, *batch, "last_token")
    exact = class_logits(model.double(), *batch, "last_token")
    assert exact.dtype == torch.float64
    torch.testing.assert_close(exact.float(), before, atol=1e-5, rtol=1e-5)
    assert torch.equal(class_logits(model.float(), *batch, "last_token"), before)


def test_a_tied_head_stays_tied_in_another_precision(tiny_gpt2) -> None:
    for dtype in (torch.bfloat16, torch.float32):
        tiny_gpt2.to(dtype)
        assert tiny_gpt2.head.weight is tiny_gpt2.wte.weight
        assert tiny_gpt2.wte.weight.dtype == dtype


@pytest.mark.parametrize("pooling", ["last_token", "mean", "mean_position"])
def test_bfloat16_is_near_float32(model, batch, pooling) -> None:
    """bfloat16 has 8 bits: each number is off by up to 0.4%."""
    exact = class_logits(model, *batch, pooling)
    bound = 0.03 * exact.abs().max()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = class_logits(model, *batch, pooling)
    assert mixed.dtype == torch.bfloat16
    assert (mixed.float() - exact).abs().max() < bound
    rounded = class_logits(model.to(torch.bfloat16), *batch, pooling)
    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - exact).abs().max() < bound


def test_training_in_bfloat16(model, batch) -> None:
    losses = train(model.to(torch.bfloat16), batch)
    assert losses[-1] < losses[0]
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_training_with_autocast(model, batch) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        loss = F.cross_entropy(class_logits(model, *batch, "last_token").float(), LABELS)
    mixed = gradients(model, loss)
    exact = gradients(model, F.cross_entropy(plain_logits(model, *batch), LABELS))
    assert mixed.keys() == exact.keys()
    for name, value in exact.items():
        assert mixed[name].dtype == torch.float32
        assert F.cosine_similarity(mixed[name].flatten(), value.flatten(), dim=0) > 0.99, name


# --- torch's tools ---


def test_accumulated_gradients_are_those_of_the_batch(model, batch) -> None:
    ids, lengths = batch
    whole = gradients(model, F.cross_entropy(plain_logits(model, ids, lengths), LABELS))
    model.zero_grad(set_to_none=True)
    for part in torch.arange(len(ids)).split(2):
        logits = class_logits(model, ids[part], lengths[part], "last_token")
        (F.cross_entropy(logits, LABELS[part], reduction="sum") / len(ids)).backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert_close(found, whole)
    norm = torch.stack([value.norm() for value in whole.values()]).norm().item()
    found_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1).item()
    assert found_norm == pytest.approx(norm, rel=1e-4)
    clipped = (
        torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm().item()
    )
    assert clipped == pytest.approx(0.1, rel=1e-3)


def test_parameter_groups_hold_each_trainable_parameter_once(model, batch) -> None:
    set_trainable(model, 2)
    config = TrainConfig(lr=0.01, rate_decay=2.0, weight_decay=0.3)
    optimizer = torch.optim.AdamW(parameter_groups(model, config))
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    rates = {
        name: group["lr"] for group in optimizer.param_groups for name in group["names"]
    }  # the head, the last block, the block below it
    assert [rates[f"{part}.weight"] for part in ("head", "blocks.1.ln_1", "blocks.0.ln_1")] == [
        0.01,
        0.005,
        0.0025,
    ]
    F.cross_entropy(class_logits(model, *batch, "last_token"), LABELS).backward()
    optimizer.step()


def test_gradient_checkpointing(model, batch) -> None:
    ids, lengths = batch
    model.requires_grad_(True)
    expected = gradients(model, F.cross_entropy(plain_logits(model, ids, lengths), LABELS))
    x = model.embed(ids)
    for block in model.blocks:
        x = checkpoint(block, x, use_reentrant=False)
    logits = model.head(pool(model.ln_f(x), lengths, "last_token"))
    assert_close(gradients(model, F.cross_entropy(logits, LABELS)), expected)


@pytest.mark.parametrize("tied", [False, True])
def test_functional_call(model, tiny_gpt2, batch, tied) -> None:
    network = tiny_gpt2 if tied else model
    twin = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(1.1)
    found = functional_call(network, dict(twin.named_parameters()), (batch[0],))
    assert torch.equal(found, twin(batch[0]))
    assert not torch.equal(found, network(batch[0]))


@pytest.mark.slow
@COMPILES
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_model_is_one_graph_with_the_same_gradients(model, batch, backend) -> None:
    expected = gradients(model, F.cross_entropy(plain_logits(model, *batch), LABELS))
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    for rows in (slice(None), slice(1, 4)):  # another length of batch
        ids, lengths = batch[0][rows], batch[1][rows]
        torch.testing.assert_close(
            plain_logits(compiled, ids, lengths), plain_logits(model, ids, lengths)
        )
        torch.testing.assert_close(
            class_logits(compiled, ids, lengths, "last_token"), plain_logits(model, ids, lengths)
        )
    loss = F.cross_entropy(plain_logits(compiled, *batch), LABELS)
    assert_close(gradients(model, loss), expected)


@pytest.mark.slow
@COMPILES
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # raised inside dynamo
def test_a_compiled_step_has_the_same_loss(model, batch) -> None:
    def step(ids: Tensor, lengths: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(class_logits(model, ids, lengths, "last_token"), labels)

    compiled = torch.compile(step, backend="eager")
    torch.testing.assert_close(compiled(*batch, LABELS), step(*batch, LABELS))


@pytest.mark.slow
@COMPILES
def test_a_compiled_model_trained_and_used_in_a_classifier(tiny_checkpoint, model, batch) -> None:
    compiled = torch.compile(model, backend="eager")
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(plain_logits(compiled, *batch), LABELS).backward()
        optimizer.step()
    answers = []
    for network in (model, compiled):
        classifier = Classifier.on_base(tiny_checkpoint, ["ham", "spam"], pooling="last_token")
        classifier.model = network
        answers.append([answer.probabilities for answer in classifier.predict(TEXTS)])
    assert answers[0] == answers[1]
