"""Where a text is read; padding and other texts change no answer; several heads at once."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from three_blocks import (
    BOTTOM,
    FIRST,
    HEADS,
    LABEL,
    LAYERS,
    SIGMOID,
    STARS,
    STATE,
    TAGS,
    TEXTS,
    TOPICS,
    classifier_with,
)
from torch import Tensor, nn

from gpt2_from_scratch.classifier import heads as heads_module
from gpt2_from_scratch.classifier.classifier import Classifier
from gpt2_from_scratch.classifier.heads import class_logits, pad_right, pool, replace_head
from gpt2_from_scratch.classifier.settings import POOLINGS, HeadConfig
from gpt2_from_scratch.errors import UsageError
from gpt2_from_scratch.gpt2.changes import ORIGINAL
from gpt2_from_scratch.gpt2.model import GPT2, TransformerBlock

LAWFUL = ["last_token", "first_token", "mean"]


@pytest.fixture
def classifier(tiny_gpt2: GPT2) -> GPT2:
    """A head of 3 classes with weights of std 0.2 on the tiny GPT-2."""
    replace_head(tiny_gpt2, 3)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in tiny_gpt2.head.parameters():
            parameter.normal_(0.0, 0.2, generator=generator)
    return tiny_gpt2


def random_texts(rng: torch.Generator, count: int, longest: int) -> list[Tensor]:
    lengths = torch.randint(1, longest + 1, (count,), generator=rng)
    return [torch.randint(277, (n,), generator=rng) for n in lengths.tolist()]


def pad(texts: list[Tensor], width: int, pad_id: int, left: bool = False) -> tuple[Tensor, Tensor]:
    """ids (B, T), and which of them are real (B, T)."""
    ids = torch.full((len(texts), width), pad_id)
    real = torch.zeros(len(texts), width, dtype=torch.bool)
    for row, text in enumerate(texts):
        place = slice(width - len(text), width) if left else slice(0, len(text))
        ids[row, place], real[row, place] = text, True
    return ids, real


# --- replace_head ---


@pytest.mark.parametrize("K", [2, 3, 7, 300])
def test_replace_head_makes_k_logits_for_each_position(tiny_gpt2, K):
    wte = tiny_gpt2.wte.weight
    before = wte.detach().clone()
    replace_head(tiny_gpt2, K)
    assert tiny_gpt2(torch.tensor([[5, 211, 34, 5]])).shape == (1, 4, K)
    assert tiny_gpt2.wte.weight is wte and torch.equal(wte, before)
    assert tiny_gpt2.head.weight is not wte
    assert (tiny_gpt2.head.weight.shape, tiny_gpt2.head.bias.shape) == ((K, 32), (K,))
    assert tiny_gpt2.head.weight.dtype == torch.float32


@pytest.mark.parametrize("K", [1, 0, -2])
def test_fewer_than_two_classes_are_refused(tiny_gpt2, K):
    with pytest.raises(UsageError, match=f"num_classes = {K}"):
        replace_head(tiny_gpt2, K)
    assert tiny_gpt2.head.weight is tiny_gpt2.wte.weight


def test_the_new_head_is_seeded_by_torch(tiny_gpt2):
    heads = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        replace_head(tiny_gpt2, 2)
        heads.append(tiny_gpt2.head.weight.detach().clone())
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])


def test_the_new_head_reads_the_final_states(classifier):
    ids = torch.arange(6)[None]
    with torch.no_grad():
        expected = classifier.hidden(ids) @ classifier.head.weight.T + classifier.head.bias
        torch.testing.assert_close(classifier(ids), expected, atol=1e-5, rtol=0)


# --- pool ---


@pytest.mark.parametrize("pooling", POOLINGS)
def test_pool_is_the_loop(pooling):
    B, T, C = 5, 7, 4
    states = torch.randn(B, T, C, generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([1, 7, 3, 6, 2])
    found = pool(states, lengths, pooling)
    assert found.shape == (B, C)
    for b in range(B):
        n = int(lengths[b])
        for c in range(C):
            expected = {
                "end_token": float(states[b, n - 1, c]),  # the text's last one
                "last_token": float(states[b, n - 1, c]),
                "last_position": float(states[b, T - 1, c]),
                "first_token": float(states[b, 0, c]),
                "mean": sum(float(states[b, t, c]) for t in range(n)) / n,
                "mean_position": sum(float(states[b, t, c]) for t in range(T)) / T,
            }
            assert float(found[b, c]) == pytest.approx(expected[pooling], abs=1e-5)


def test_an_unknown_pooling_is_refused():
    with pytest.raises(UsageError, match="'max'.*last_token, "):
        pool(torch.zeros(1, 2, 3), torch.tensor([1]), "max")


@pytest.mark.parametrize("pooling", POOLINGS)
def test_gradients_reach_only_the_real_tokens(pooling):
    states = torch.randn(2, 5, 3, requires_grad=True)
    lengths = torch.tensor([2, 5])
    pool(states, lengths, pooling).sum().backward()
    read = states.grad.abs().sum(dim=2) > 0  # (B, T)
    expected = {
        "end_token": [[1], [4]],
        "last_token": [[1], [4]],
        "last_position": [[4], [4]],
        "first_token": [[0], [0]],
        "mean": [[0, 1], [0, 1, 2, 3, 4]],
        "mean_position": [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4]],
    }
    assert [row.nonzero().flatten().tolist() for row in read] == expected[pooling]


# --- padding changes no answer ---


@torch.no_grad()
def alone(model: GPT2, text: Tensor, pooling: str) -> Tensor:
    """The model's own answer for one text without padding: (K,)"""
    states = model.hidden(text[None])[0]  # (T, C)
    read = {"last_token": states[-1], "first_token": states[0], "mean": states.mean(dim=0)}
    return model.head.weight @ read[pooling] + model.head.bias


@torch.no_grad()
@pytest.mark.parametrize("pooling", LAWFUL)
@pytest.mark.parametrize("seed", range(8))
def test_padding_and_other_texts_change_no_answer(classifier, pooling, seed):
    """Amount and side of padding, its id, the other texts and their order change no logit."""
    rng = torch.Generator().manual_seed(seed)
    texts = random_texts(rng, count=4, longest=20)
    expected = torch.stack([alone(classifier, text, pooling) for text in texts])
    longest = max(map(len, texts))
    for width in (longest, longest + 1, 32):
        pad_id = int(torch.randint(277, (1,), generator=rng))
        mates = random_texts(rng, count=2, longest=longest)
        order = torch.randperm(6, generator=rng)
        batch = [[*texts, *mates][n] for n in order.tolist()]
        for left in (False, True):
            ids, lengths = pad_right(*pad(batch, width, pad_id, left))
            found = class_logits(classifier, ids, lengths, pooling)
            found = found[order.argsort()][:4]  # back to the texts' own order
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_real_tokens_with_the_id_of_padding_count(classifier):
    """Lengths decide which tokens are real, not ids: a text may end in the padding's id."""
    text, pad_id = torch.tensor([9, 8, 7, 276, 276]), 276
    ids, real = pad([text, text[:3]], 8, pad_id)
    found = class_logits(classifier, ids, real.sum(dim=1), "last_token")
    expected = torch.stack([alone(classifier, t, "last_token") for t in (text, text[:3])])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert (found[0] - found[1]).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("seed", range(5))
def test_last_position_depends_on_padding(classifier, seed):
    """A control for the test above: the lecture's pooling does change with padding."""
    rng = torch.Generator().manual_seed(seed)
    [text] = random_texts(rng, count=1, longest=20)

    def logits(width: int, pad_id: int) -> Tensor:
        ids, real = pad([text], width, pad_id)
        return class_logits(classifier, ids, real.sum(dim=1), "last_position")[0]

    unpadded = logits(len(text), 0)
    torch.testing.assert_close(unpadded, alone(classifier, text, "last_token"), atol=1e-5, rtol=0)
    assert (logits(32, 276) - unpadded).abs().max() > 1e-2
    assert (logits(32, 276) - logits(32, 5)).abs().max() > 1e-2
    assert (logits(32, 276) - logits(25, 276)).abs().max() > 1e-2


# --- pad_right ---


@pytest.mark.parametrize("seed", range(5))
def test_pad_right_keeps_each_row_and_its_order(seed):
    rng = torch.Generator().manual_seed(seed)
    ids = torch.randint(277, (6, 11), generator=rng)
    real = torch.rand(6, 11, generator=rng) < 0.5
    found, lengths = pad_right(ids, real)
    assert found.shape == ids.shape
    for row in range(6):
        of_row = [int(token) for token, is_real in zip(ids[row], real[row], strict=True) if is_real]
        assert int(lengths[row]) == len(of_row)
        assert found[row, : len(of_row)].tolist() == of_row
        assert sorted(found[row].tolist()) == sorted(ids[row].tolist())


def test_pad_right_leaves_right_padding_as_it_is():
    ids, real = pad([torch.arange(3), torch.arange(5)], 7, pad_id=276)
    found, lengths = pad_right(ids, real)
    assert torch.equal(found, ids) and lengths.tolist() == [3, 5]


# --- several heads in one pass ---


def graph(classifier: Classifier, *names: str) -> dict[str, Tensor]:
    """One number per head, computed from its outputs at real tokens, for taking gradients."""
    everyone = range(len(TEXTS))
    encoded, _ = classifier.encode(TEXTS)
    texts = classifier.texts(encoded)
    outputs, lengths = classifier.batch_outputs(texts, everyone)
    found = {}
    for name, out in outputs.items():
        if out.dim() == 3:
            out = torch.cat([row[:n] for row, n in zip(out, lengths.tolist(), strict=True)])
        found[name] = (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum()
    return found


def gradients(classifier: Classifier, total: Tensor) -> dict[str, Tensor]:
    """Gradients under the parameter names of a model with several heads."""
    classifier.model.zero_grad()
    total.backward()
    only = [head.name for head in classifier.description.heads]
    within = "head." if len(only) > 1 else f"head.{only[0]}."
    return {
        name.replace("head.", within, 1) if name.startswith("head.") else name: p.grad
        for name, p in classifier.model.named_parameters()
        if p.grad is not None
    }


@pytest.mark.slow
@pytest.mark.parametrize("heads", [HEADS, (LABEL, STARS), (LABEL, FIRST), (TOPICS, LAYERS, BOTTOM)])
def test_several_heads_at_once_are_independent(base: Path, heads: tuple[HeadConfig, ...]) -> None:
    """Outputs are equal, and gradients add up."""
    together = classifier_with(base, *(replace(head, dropout=0.0) for head in heads))
    together.model.requires_grad_(True)
    found = graph(together)
    expected: dict[str, Tensor] = {}
    for head in heads:
        alone = classifier_with(base, replace(head, dropout=0.0))
        alone.model.requires_grad_(True)
        number = graph(alone)[head.name]
        torch.testing.assert_close(found[head.name], number, atol=1e-3, rtol=1e-5)
        for name, gradient in gradients(alone, number).items():
            expected[name] = expected.get(name, 0) + gradient
    together_gradients = gradients(together, sum(found.values()))
    assert together_gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        size = max(1.0, float(gradient.abs().max()))
        torch.testing.assert_close(
            together_gradients[name], gradient, atol=1e-5 * size, rtol=0, msg=name
        )


@pytest.mark.parametrize("head", [LABEL, LAYERS, SIGMOID, TAGS], ids=lambda head: head.name)
def test_a_head_without_gradient_does_not_affect_the_model(base: Path, head: HeadConfig) -> None:
    """The head itself learns the same, and the gradient of another head is unchanged."""
    head = replace(head, dropout=0.0)
    found = {}
    for gradient in (True, False):
        classifier = classifier_with(base, replace(head, gradient=gradient))
        classifier.model.requires_grad_(True)
        found[gradient] = gradients(classifier, graph(classifier)[head.name])
    assert found[False].keys() == {name for name in found[True] if name.startswith("head.")}
    for name, gradient in found[False].items():
        torch.testing.assert_close(gradient, found[True][name], atol=1e-6, rtol=1e-6)
    both = classifier_with(base, replace(head, gradient=False), STARS)
    both.model.requires_grad_(True)
    stars = classifier_with(base, STARS)
    stars.model.requires_grad_(True)
    expected = gradients(stars, graph(stars)["stars"])
    for name, gradient in gradients(both, sum(graph(both).values())).items():
        if not name.startswith("head."):
            size = max(1.0, float(expected[name].abs().max()))
            torch.testing.assert_close(gradient, expected[name], atol=1e-5 * size, rtol=0)


@pytest.mark.parametrize(
    "heads, whole, at_one",
    [
        ((LAYERS,), [], [0]),  # the block before it computes one position
        ((STATE,), [0], []),  # a mean needs all positions
        ((LAYERS, TOPICS), [0], [1]),
        ((TAGS,), [0, 1], []),
        ((TAGS, TOPICS), [0, 1], []),
        ((BOTTOM,), [], []),
        ((LABEL,), [0, 1], [2]),
        ((LABEL, SIGMOID), [0, 1, 2], []),
        ((LABEL, FIRST), [0, 1, 2], []),  # two positions per text
        ((LABEL, LAYERS, STARS), [0, 1], [2]),
    ],
)
def test_blocks_above_the_layer_read_do_not_run(
    base: Path,
    monkeypatch: pytest.MonkeyPatch,
    heads: tuple[HeadConfig, ...],
    whole: list[int],
    at_one: list[int],
) -> None:
    classifier = classifier_with(base, *heads)
    blocks = list(classifier.model.blocks)
    ran: dict[str, list[int]] = {"whole": [], "at one": []}

    def counted(kind: str, inner: Callable) -> Callable:
        def run(block: TransformerBlock, *rest: Any) -> Tensor:
            ran[kind].append(blocks.index(block))
            return inner(block, *rest)

        return run

    forward = counted("whole", TransformerBlock.forward)
    monkeypatch.setattr(TransformerBlock, "forward", forward)
    # the replacement computes the same
    monkeypatch.setitem(ORIGINAL[TransformerBlock], "forward", forward)
    monkeypatch.setattr(heads_module, "block_on", counted("whole", heads_module.block_on))
    monkeypatch.setattr(heads_module, "block_at", counted("at one", heads_module.block_at))
    classifier.model.requires_grad_(True)  # so that no features are computed in advance
    graph(classifier)
    assert ran == {"whole": whole, "at one": at_one}


def test_weights_above_the_layer_read_do_not_matter(base: Path) -> None:
    classifier = classifier_with(base, LAYERS, STATE)
    before = classifier.predict(TEXTS)
    for block in list(classifier.model.blocks)[1:]:
        for parameter in block.parameters():
            nn.init.constant_(parameter, torch.nan)
    assert classifier.predict(TEXTS) == before


@pytest.mark.parametrize("name", ["type", "keys", "values", "train"])
def test_names_that_torch_has_are_refused(base: Path, name: str) -> None:
    with pytest.raises(UsageError, match=f"'{name}'"):
        classifier_with(base, LABEL, replace(TOPICS, name=name))
