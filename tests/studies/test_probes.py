"""Probes: the states they read, against one text at a time; how they are fitted and scored, against
scikit-learn.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from gpt2_from_scratch.studies.logistic_regression import fit_logistic, standardize
from said import listen
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler
from tiny import Halved

from gpt2_from_scratch.classifier.settings import POOLINGS
from gpt2_from_scratch.data.messages import Message
from gpt2_from_scratch.data.split import Split
from gpt2_from_scratch.errors import DataError, UsageError
from gpt2_from_scratch.evaluation.metrics import wilson_interval
from gpt2_from_scratch.gpt2.model import GPT2
from gpt2_from_scratch.gpt2.tokenizer import Tokenizer
from gpt2_from_scratch.speed.frozen_trunk import Trunk
from gpt2_from_scratch.studies.probes import PENALTIES, format_probes, pooled_states, probe_layers

TEXTS = [[5, 6, 7, 8], [5, 6, 9], [5], [1, 5, 6, 7], [5, 6, 7, 8, 9, 10, 11], [200] * 12, [5, 6, 9]]
PAD, PAD_TO = 276, 7  # shorter than one of the texts


def messages(seed: int, count: int, kinds: int = 3) -> list[Message]:
    """Words of two letters, some of which go with the label and most with nothing."""
    draw = np.random.RandomState(seed)
    found = []
    for n in range(count):
        words = ["".join(draw.choice(list("abcd"), 2)) for _ in range(draw.randint(1, 6))]
        if draw.rand() < 0.6:
            words[draw.randint(len(words))] = "xyz"[n % kinds]
        found.append(Message(" ".join(words), f"kind {n % kinds}"))
    return found


@pytest.fixture
def split() -> Split:
    return Split(messages(1, 60), messages(2, 24), messages(3, 30))


@pytest.fixture
def tokenizer(tiny_checkpoint: Path) -> Tokenizer:
    return Tokenizer(tiny_checkpoint)


@torch.no_grad()
def one_by_one(model: GPT2, ids: list[int], pooling: str, final_norm: bool) -> torch.Tensor:
    """(L, C) of one text, by the plain blocks, padded or cut only where the pooling wants it."""
    if "position" in pooling:
        ids = (ids + [PAD] * PAD_TO)[:PAD_TO]
    x = model.embed(torch.tensor([ids]))
    layers = [x]
    for block in model.blocks:
        layers.append(x := block(x))
    layers = [model.ln_f(x) if final_norm else x for x in layers]
    place = {"last_token": -1, "last_position": -1, "first_token": 0}
    return torch.stack(
        [x[0].mean(0) if "mean" in pooling else x[0, place[pooling]] for x in layers]
    )


@pytest.mark.parametrize("poolings", [POOLINGS, ("mean", "last_token"), ("last_position",)])
def test_states_are_those_of_each_text_alone(tiny_gpt2: GPT2, poolings) -> None:
    states = pooled_states(Trunk(tiny_gpt2, 2), tiny_gpt2.ln_f, TEXTS, poolings, PAD, PAD_TO)
    assert list(states) == [(p, final_norm) for p in poolings for final_norm in (False, True)]
    for (pooling, final_norm), found in states.items():
        expected = torch.stack([one_by_one(tiny_gpt2, t, pooling, final_norm) for t in TEXTS], 1)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)


def test_one_pass_and_pads_only_where_they_are_read(tiny_gpt2: GPT2, monkeypatch) -> None:
    rows = []
    block = Trunk._block
    monkeypatch.setattr(
        Trunk, "_block", lambda s, b, x, p: rows.append(len(x)) or block(s, b, x, p)
    )
    beginnings = {tuple(text[:n]) for text in TEXTS for n in range(1, len(text) + 1)}
    for poolings, more in (
        (POOLINGS[:1], False),
        (("mean", "first_token"), False),
        (POOLINGS, True),
    ):
        rows.clear()
        pooled_states(Trunk(tiny_gpt2, 2), tiny_gpt2.ln_f, TEXTS, poolings, PAD, PAD_TO)
        assert len(rows) == 2, "each of the two blocks once, for all layers and poolings"
        assert (rows[0] > len(beginnings)) is more and rows[0] >= len(beginnings)


# --- the fit ---


def blobs(kinds: int, inputs: int = 6, count: int = 90) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping clouds, with inputs of very different sizes that go together."""
    draw = np.random.RandomState(kinds)
    labels = draw.permutation(np.arange(count) % kinds)
    x = draw.randn(count, inputs) + 1.5 * draw.randn(kinds, inputs)[labels]
    return (x @ draw.randn(inputs, inputs)) * 10.0 ** draw.randint(-2, 3, inputs) + 7, labels


@pytest.mark.parametrize("kinds", [2, 3, 5])
def test_weights_are_scikit_learn_s(kinds: int) -> None:
    x, labels = blobs(kinds)
    other = x[:, ::-1].copy() ** 3  # a second regression at once, of another shape
    both = standardize(torch.tensor(np.stack([x, other])), 70)
    start = None
    for l2 in (1.0, 0.1, 0.01):
        start = fit_logistic(both[:, :70], torch.tensor(labels[:70]), kinds, l2, start=start)
        assert start.shape == (2, x.shape[1] + 1, kinds) and start.dtype == torch.float64
        for n, raw in enumerate((x, other)):
            scaled = StandardScaler().fit(raw[:70]).transform(raw)
            np.testing.assert_allclose(both[n], scaled, atol=1e-9)
            # of two classes scikit-learn has one vector, the difference of ours: half the squares
            C = (2 if kinds == 2 else 1) / (l2 * 70)
            witness = LogisticRegression(C=C, tol=1e-10, max_iter=10_000)
            witness.fit(scaled[:70], labels[:70])
            weights = start[n].numpy().T
            found = weights[1:] - weights[:1] if kinds == 2 else weights
            np.testing.assert_allclose(found[:, :-1], witness.coef_, atol=1e-3)
            np.testing.assert_allclose(found[:, -1], witness.intercept_, atol=1e-3)


def test_separable_labels_and_inputs_without_any_information() -> None:
    labels = torch.tensor([0, 1] * 20)
    x = torch.stack([(labels * 2.0 - 1)[:, None].repeat(1, 3), torch.zeros(40, 3)])
    weights = fit_logistic(x, labels, 2, 1e-3)
    assert weights.isfinite().all() and weights[1].abs().max() < 1e-9
    assert ((x[0].double() @ weights[0, :3] + weights[0, 3]).argmax(dim=1) == labels).all()


def test_rounding_noise_is_not_blown_up() -> None:
    x = torch.full((1, 50, 2), 3000.0)
    x[0, ::2, 0] += 1e-3  # of a few last bits
    x[0, ::2, 1] += 1.0
    found = standardize(x, 50)
    assert not found[0, :, 0].any() and found[0, :, 1].std(correction=0).item() == pytest.approx(1)


@pytest.mark.parametrize("l2", [0.0, -1.0, float("nan"), float("inf")])
def test_a_penalty_that_is_none(l2: float) -> None:
    with pytest.raises(UsageError, match="l2 = .* must be a number above 0"):
        fit_logistic(torch.randn(1, 4, 2), torch.tensor([0, 1, 0, 1]), 2, l2)


def test_inputs_that_are_no_numbers() -> None:
    with pytest.raises(DataError, match="NaN or infinite"):
        fit_logistic(torch.full((1, 4, 2), torch.nan), torch.tensor([0, 1, 0, 1]), 2, 1.0)


# --- the scores ---


def test_probes_are_scored_as_scikit_learn_would(
    tiny_gpt2: GPT2, tokenizer: Tokenizer, split: Split
) -> None:
    """Fitted on train, penalty chosen by the loss on val, counted on test."""
    found = probe_layers(tiny_gpt2, tokenizer, split, poolings=("mean", "last_token"))
    assert [(p.pooling, p.final_norm, p.layer) for p in found] == [
        (pooling, norm, n)
        for pooling in ("mean", "last_token")
        for norm in (False, True)
        for n in range(3)
    ]
    parts = (split.train, split.val, split.test)
    encoded = [tokenizer.encode(m.text) for part in parts for m in part]
    y = [m.label for part in parts for m in part]
    for probe in found:
        x = [
            one_by_one(tiny_gpt2, ids, probe.pooling, probe.final_norm)[probe.layer]
            for ids in encoded
        ]
        scaled = StandardScaler().fit(np.stack(x)[:60]).transform(np.stack(x))
        tried = []
        for l2 in PENALTIES:
            witness = LogisticRegression(C=1 / (l2 * 60), tol=1e-8, max_iter=10_000)
            witness.fit(scaled[:60], y[:60])
            loss = log_loss(y[60:84], witness.predict_proba(scaled[60:84]))
            tried.append((loss, l2, witness))
        _, l2, witness = min(tried, key=lambda found: found[0])
        right = witness.predict(scaled) == y
        assert probe.l2 == l2 and probe.n_train == 60
        assert (probe.correct, probe.total) == (right[84:].sum(), 30)
        assert probe.train_accuracy == pytest.approx(right[:60].mean())
        assert probe.val_accuracy == pytest.approx(right[60:84].mean())
        assert probe.interval == wilson_interval(probe.correct, 30)
        assert probe.accuracy == probe.correct / 30 and probe.majority == pytest.approx(1 / 3)
    assert max(p.accuracy for p in found) > 0.45 > 1 / 3, "something is there to be found"


def test_nothing_is_chosen_on_the_test_part_and_the_model_stays(
    tiny_gpt2: GPT2, tokenizer: Tokenizer, split: Split
) -> None:
    before = {name: value.clone() for name, value in tiny_gpt2.state_dict().items()}
    turned = [Message(m.text, "kind 0") for m in split.test]
    first, again, other = (
        probe_layers(tiny_gpt2, tokenizer, Split(split.train, split.val, test))
        for test in (split.test, split.test, turned)
    )
    assert first == again
    assert [(p.l2, p.val_accuracy) for p in first] == [(p.l2, p.val_accuracy) for p in other]
    assert [p.correct for p in first] != [p.correct for p in other]
    assert {p.majority for p in other} == {1.0}
    assert all(torch.equal(value, before[name]) for name, value in tiny_gpt2.state_dict().items())
    assert all(parameter.grad is None for parameter in tiny_gpt2.parameters())


def test_long_texts_are_cut_and_told(tiny_gpt2: GPT2, tokenizer: Tokenizer, split: Split) -> None:
    said = listen()
    longer = Split(split.train, split.val, [Message("q" * 40, "kind 1"), *split.test])
    probe_layers(tiny_gpt2, tokenizer, longer, poolings=["mean"], penalties=[1.0])
    assert said == ["1 of 115 texts are longer than 32 tokens and were cut"]


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"train": []}, "training part has no texts"),
        ({"val": []}, "validation part has no texts"),
        ({"test": []}, "test part has no texts"),
        ({"train": messages(1, 9, kinds=1)}, "one label only"),
        ({"val": [Message("a", "kind 3")]}, r"\['kind 3'\] are not in the training part"),
        ({"test": [Message("a", "other")]}, r"\['other'\] are not in the training part"),
        ({"test": [Message("a", (0.5,))]}, "a label must be a string"),
    ],
)
def test_splits_that_cannot_be_probed(tiny_gpt2, tokenizer, split, changed, told) -> None:
    with pytest.raises(DataError, match=told):
        probe_layers(tiny_gpt2, tokenizer, Split(**(vars(split) | changed)))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"poolings": []}, "some different ones"),
        ({"poolings": "mean"}, "some different ones"),
        ({"poolings": ["mean", "mean"]}, "some different ones"),
        ({"poolings": ["max"]}, "'max' is none"),
        ({"penalties": []}, "at least one"),
        ({"penalties": [1.0, 0.0]}, "l2 = 0.0"),
    ],
)
def test_settings_that_make_no_sense(tiny_gpt2, tokenizer, split, settings, told) -> None:
    with pytest.raises(UsageError, match=told):
        probe_layers(tiny_gpt2, tokenizer, split, **settings)


def test_a_model_with_other_parts(tiny_gpt2: GPT2, tokenizer: Tokenizer, split: Split) -> None:
    tiny_gpt2.blocks[1].mlp = Halved(tiny_gpt2.blocks[1].mlp)
    with pytest.raises(UsageError, match="blocks.1 holds a part"):
        probe_layers(tiny_gpt2, tokenizer, split)


def test_the_table(tiny_gpt2: GPT2, tokenizer: Tokenizer, split: Split) -> None:
    probes = probe_layers(tiny_gpt2, tokenizer, split, poolings=["mean", "first_token"])
    lines = format_probes(probes).splitlines()
    assert lines[0].endswith("% of 30 texts; always the commonest label: 33.3")
    assert lines[2].split() == ["mean", "first_token"]
    shares = {(p.layer, p.pooling, p.final_norm): f"{100 * p.correct / 30:.1f}" for p in probes}
    for layer, line in enumerate(lines[4:7]):
        assert line.split() == [str(layer)] + [
            shares[layer, pooling, norm] for pooling in ("mean", "first_token") for norm in (0, 1)
        ]
    half = max(p.interval[1] - p.interval[0] for p in probes) / 2
    assert lines[-1] == f"95 % intervals reach up to {100 * half:.1f} points to either side"
