"""Probes: their states compared with one text at a time, their fit with the gradient of the loss,
and their scores with scikit-learn.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
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
from gpt2_from_scratch.studies.probes import (
    PENALTIES,
    fit_logistic,
    format_probes,
    pooled_states,
    probe_layers,
)

TEXTS = [[5, 6, 7, 8], [5, 6, 9], [5], [1, 5, 6, 7], [5, 6, 7, 8, 9, 10, 11], [200] * 12, [5, 6, 9]]
PAD, PAD_TO = 276, 7  # shorter than the longest text


def messages(seed: int, count: int, kinds: int = 3) -> list[Message]:
    """Words of two letters; some are related to the label, most are not."""
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
    """(L, C) of one text from the plain blocks, padded or cut only if the pooling requires it."""
    if "position" in pooling:
        ids = (ids + [PAD] * PAD_TO)[:PAD_TO]
    x = model.embed(torch.tensor([ids]))
    layers = [x]
    for block in model.blocks:
        layers.append(x := block(x))
    layers = [model.ln_f(x) if final_norm else x for x in layers]
    place = {"end_token": -1, "last_token": -1, "last_position": -1, "first_token": 0}
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


def test_one_pass_and_padding_only_if_it_is_read(tiny_gpt2: GPT2, monkeypatch) -> None:
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
    """Overlapping clouds; the inputs differ in size and are correlated."""
    draw = np.random.RandomState(kinds)
    labels = draw.permutation(np.arange(count) % kinds)
    x = draw.randn(count, inputs) + 1.5 * draw.randn(kinds, inputs)[labels]
    return (x @ draw.randn(inputs, inputs)) * 10.0 ** draw.randint(-2, 3, inputs) + 7, labels


@pytest.mark.parametrize("kinds", [2, 3, 5])
@pytest.mark.parametrize("l2", [1.0, 0.01])
def test_the_slope_of_the_loss_is_zero(kinds: int, l2: float) -> None:
    """The loss is the mean cross-entropy plus l2 / 2 times the squared weights of all classes."""
    x, y = blobs(kinds)
    model, chosen = fit_logistic((x[:70], y[:70]), (x[70:], y[70:]), [l2])
    assert chosen == l2
    logistic = model[-1]
    # (K, C), (K,); a single row for two classes
    weights, bias = logistic.coef_, logistic.intercept_
    if kinds == 2:  # the row is the difference of two opposite vectors
        weights, bias = np.concatenate((-weights, weights)) / 2, np.concatenate((-bias, bias)) / 2
    w, b = torch.tensor(weights, requires_grad=True), torch.tensor(bias, requires_grad=True)
    scaled = torch.tensor((x[:70] - x[:70].mean(axis=0)) / x[:70].std(axis=0))
    loss = F.cross_entropy(scaled @ w.T + b, torch.tensor(y[:70])) + l2 / 2 * (w**2).sum()
    slopes = torch.autograd.grad(loss, (w, b))
    assert max(slope.abs().max() for slope in slopes) < 1e-4
    expected = ((x - x[:70].mean(axis=0)) / x[:70].std(axis=0)) @ weights.T + bias
    assert (model.predict(x) == expected.argmax(axis=1)).all()


def test_the_penalty_is_selected_on_the_validation_set() -> None:
    """With random labels the strongest is best; with labels that one input decides, the weakest."""
    x, y = blobs(2)
    drawn = np.random.RandomState(0).permutation(y)
    _, strongest = fit_logistic((x[:70], drawn[:70]), (x[70:], drawn[70:]), [0.001, 100.0])
    clear = (x[:, 0] > x[:, 0].mean()).astype(int)
    _, weakest = fit_logistic((x[:70], clear[:70]), (x[70:], clear[70:]), [0.001, 100.0])
    assert (strongest, weakest) == (100.0, 0.001)


def test_separable_labels_and_inputs_without_any_information() -> None:
    y = np.array([0, 1] * 20)
    clear, nothing = np.repeat(y[:, None] * 2.0 - 1, 3, axis=1), np.zeros((40, 3))
    model, _ = fit_logistic((clear, y), (clear, y), [1e-3])
    assert np.isfinite(model[-1].coef_).all() and model.score(clear, y) == 1.0
    model, _ = fit_logistic((nothing, y), (nothing, y), [1e-3])
    np.testing.assert_allclose(model.predict_proba(nothing), 0.5)


def test_rounding_noise_is_not_scaled_up() -> None:
    """An input that varies only in its last bits carries no information, even if it fits."""
    y = np.array([0, 1] * 25)
    noise = 3000.0 + 1e-3 * y[:, None]
    model, _ = fit_logistic((noise, y), (noise, y), [1e-3])
    np.testing.assert_allclose(model.predict_proba(noise), 0.5)
    model, _ = fit_logistic((noise * 1000 * y[:, None], y), (noise, y), [1e-3])
    assert model[-1].coef_.any()


@pytest.mark.parametrize("l2", [0.0, -1.0, float("nan"), float("inf")])
def test_invalid_penalties(l2: float) -> None:
    x, y = blobs(2)
    with pytest.raises(UsageError, match="penalties .* above 0"):
        fit_logistic((x, y), (x, y), [1.0, l2])


def test_inputs_that_are_not_numbers_and_unknown_classes() -> None:
    x, y = blobs(2)
    with pytest.raises(DataError, match="finite"):
        fit_logistic((x * np.nan, y), (x, y), [1.0])
    with pytest.raises(DataError, match="validation set"):
        fit_logistic((x, y), (x, y + 1), [1.0])


# --- the scores ---


@pytest.mark.slow
def test_probes_are_scored_as_scikit_learn_would(
    tiny_gpt2: GPT2, tokenizer: Tokenizer, split: Split
) -> None:
    """Fitted on the training set, penalty from the validation loss, scored on the test set."""
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


@pytest.mark.slow
def test_the_test_set_selects_nothing_and_the_model_stays(
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


def test_long_texts_are_cut_and_logged(tiny_gpt2: GPT2, tokenizer: Tokenizer, split: Split) -> None:
    said = listen()
    longer = Split(split.train, split.val, [Message("q" * 40, "kind 1"), *split.test])
    probe_layers(tiny_gpt2, tokenizer, longer, poolings=["mean"], penalties=[1.0])
    assert said == ["1 of 115 texts are longer than 32 tokens and were cut"]


@pytest.mark.parametrize(
    ("changed", "reported"),
    [
        ({"train": []}, "training set has no texts"),
        ({"val": []}, "validation set has no texts"),
        ({"test": []}, "test set has no texts"),
        ({"train": messages(1, 9, kinds=1)}, "only one label"),
        ({"val": [Message("a", "kind 3")]}, "'kind 3'"),
        ({"test": [Message("a", "other")]}, "'other'"),
        ({"test": [Message("a", (0.5,))]}, "a label must be a string"),
    ],
)
def test_splits_that_cannot_be_probed(tiny_gpt2, tokenizer, split, changed, reported) -> None:
    with pytest.raises(DataError, match=reported):
        probe_layers(tiny_gpt2, tokenizer, Split(**(vars(split) | changed)))


@pytest.mark.parametrize(
    ("settings", "reported"),
    [
        ({"poolings": []}, "without repetition"),
        ({"poolings": "mean"}, "without repetition"),
        ({"poolings": ["mean", "mean"]}, "without repetition"),
        ({"poolings": ["max"]}, "'max'"),
        ({"penalties": []}, "one or more"),
        ({"penalties": [1.0, 0.0]}, "above 0"),
    ],
)
def test_invalid_settings_of_probes(tiny_gpt2, tokenizer, split, settings, reported) -> None:
    with pytest.raises(UsageError, match=reported):
        probe_layers(tiny_gpt2, tokenizer, split, **settings)


def test_a_model_with_other_parts(tiny_gpt2: GPT2, tokenizer: Tokenizer, split: Split) -> None:
    tiny_gpt2.blocks[1].mlp = Halved(tiny_gpt2.blocks[1].mlp)
    with pytest.raises(UsageError, match="blocks.1 "):
        probe_layers(tiny_gpt2, tokenizer, split)


@pytest.mark.slow
def test_the_table(tiny_gpt2: GPT2, tokenizer: Tokenizer, split: Split) -> None:
    probes = probe_layers(tiny_gpt2, tokenizer, split, poolings=["mean", "first_token"])
    lines = format_probes(probes).splitlines()
    assert lines[0].endswith("% of 30 texts; always predicting the most common label: 33.3")
    assert lines[2].split() == ["layer", "mean", "mean", "first_token", "first_token"]
    assert lines[3].split() == ["raw", "normed"] * 2
    tested = {(p.layer, p.pooling, p.final_norm): f"{100 * p.correct / 30:.1f}" for p in probes}
    for layer, line in enumerate(lines[4:7]):
        assert line.split() == [str(layer)] + [
            tested[layer, pooling, norm] for pooling in ("mean", "first_token") for norm in (0, 1)
        ]
    half = max(p.interval[1] - p.interval[0] for p in probes) / 2
    assert f"{100 * half:.1f} points" in lines[-1]
