"""Text generation is compared with argmax and softmax written out."""

import math

import pytest
import torch
from torch import Tensor

from gpt2_from_scratch.errors import CheckpointError, DataError, UsageError
from gpt2_from_scratch.gpt2.generate import generate
from gpt2_from_scratch.gpt2.model import GPT2


def random_ids(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(277, shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def argmax_again_and_again(model: GPT2, ids: list[int], count: int) -> list[int]:
    for _ in range(count):
        window = torch.tensor([ids[max(0, len(ids) - model.config.n_ctx) :]])
        ids = [*ids, int(model(window)[0, -1].argmax())]
    return ids


@pytest.mark.parametrize(("length", "count"), [(1, 0), (1, 10), (5, 27), (30, 9), (40, 3)])
def test_greedy_is_argmax_again_and_again(tiny_gpt2, length, count):
    """(5, 27) fills n_ctx = 32 exactly. In (30, 9) and (40, 3) the first tokens no longer fit."""
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


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_refused(tiny_gpt2, temperature, number):
    with torch.no_grad():
        tiny_gpt2.ln_f.bias[3] = number
    with pytest.raises(CheckpointError, match="NaN or infinite"):
        generate(tiny_gpt2, random_ids(4), 3, temperature=temperature)


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
        counts[int(found[-1])] += 1  # raises KeyError for a token that is not among the top k
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
    # a stop_id in the given text is ignored
    with_stop = torch.tensor([absent, *ids.tolist()])
    assert len(generate(tiny_gpt2, with_stop, 3, stop_id=absent)) == 8


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        ({"temperature": -0.1}, "temperature = -0.1"),
        ({"temperature": math.nan}, "temperature = nan"),
        ({"top_k": 0}, "top_k = 0"),
        ({"seed": -1}, "seed = -1"),
        ({"max_new_tokens": -1}, "max_new_tokens = -1"),
        ({"ids": random_ids(0)}, "at least one token"),
    ],
)
def test_impossible_settings_are_refused(tiny_gpt2, bad, named):
    with pytest.raises(UsageError, match=named):
        generate(tiny_gpt2, **{"ids": random_ids(3), "max_new_tokens": 2} | bad)


@pytest.mark.parametrize("wrong", [277, -1])
def test_ids_that_are_not_in_the_vocabulary_are_refused(tiny_gpt2, wrong):
    with pytest.raises(DataError, match=f"{wrong}.* 0 to 276"):
        generate(tiny_gpt2, torch.tensor([1, wrong]), 1)


@pytest.mark.parametrize(
    "ids", [[1, 2], torch.tensor([[1, 2]]), torch.tensor([1.0]), torch.tensor(1), "the"]
)
def test_ids_that_are_not_integers_of_one_text_are_refused(tiny_gpt2, ids):
    with pytest.raises(DataError, match="tensor"):
        generate(tiny_gpt2, ids, 1)
