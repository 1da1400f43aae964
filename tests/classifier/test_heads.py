"""Where a text is read, and the law: padding and neighbours change no answer."""

import pytest
import torch
from torch import Tensor

from gpt2_from_scratch.classifier.heads import POOLINGS, class_logits, pad_right, pool, replace_head
from gpt2_from_scratch.errors import UsageError
from gpt2_from_scratch.gpt2.model import GPT2

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
    """ids (B, T) and which of them are real (B, T)."""
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
                "last_token": float(states[b, n - 1, c]),
                "last_position": float(states[b, T - 1, c]),
                "first_token": float(states[b, 0, c]),
                "mean": sum(float(states[b, t, c]) for t in range(n)) / n,
                "mean_position": sum(float(states[b, t, c]) for t in range(T)) / T,
            }
            assert float(found[b, c]) == pytest.approx(expected[pooling], abs=1e-5)


def test_an_unknown_pooling_is_refused():
    with pytest.raises(UsageError, match="'max' is none of last_token, "):
        pool(torch.zeros(1, 2, 3), torch.tensor([1]), "max")


@pytest.mark.parametrize("pooling", POOLINGS)
def test_gradients_flow_to_the_real_tokens_alone(pooling):
    states = torch.randn(2, 5, 3, requires_grad=True)
    lengths = torch.tensor([2, 5])
    pool(states, lengths, pooling).sum().backward()
    read = states.grad.abs().sum(dim=2) > 0  # (B, T)
    expected = {
        "last_token": [[1], [4]],
        "last_position": [[4], [4]],
        "first_token": [[0], [0]],
        "mean": [[0, 1], [0, 1, 2, 3, 4]],
        "mean_position": [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4]],
    }
    assert [row.nonzero().flatten().tolist() for row in read] == expected[pooling]


# --- the law ---


@torch.no_grad()
def alone(model: GPT2, text: Tensor, pooling: str) -> Tensor:
    """The answer for one text without any padding, by the model itself: (K,)"""
    states = model.hidden(text[None])[0]  # (T, C)
    read = {"last_token": states[-1], "first_token": states[0], "mean": states.mean(dim=0)}
    return model.head.weight @ read[pooling] + model.head.bias


@torch.no_grad()
@pytest.mark.parametrize("pooling", LAWFUL)
@pytest.mark.parametrize("seed", range(25))
def test_the_law(classifier, pooling, seed):
    """Padding amount, pad id, batch mates, their order and padding side change no logit."""
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
def test_real_tokens_that_look_like_pads_count(classifier):
    """Lengths say what is real, not the id: a text may end in the pad's id."""
    text, pad_id = torch.tensor([9, 8, 7, 276, 276]), 276
    ids, real = pad([text, text[:3]], 8, pad_id)
    found = class_logits(classifier, ids, real.sum(dim=1), "last_token")
    expected = torch.stack([alone(classifier, t, "last_token") for t in (text, text[:3])])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert (found[0] - found[1]).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("seed", range(5))
def test_last_position_breaks_the_law(classifier, seed):
    """The control: what the lecture reads does change with padding, so the law is no tautology."""
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
