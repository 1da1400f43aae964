"""Attention weights are Hugging Face's, and what the parts add sums to the classifier's logit."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from their_gpt2 import their_gpt2
from tiny import TINY, Halved, random_classifier

from gpt2_from_scratch.classifier.classifier import Classifier
from gpt2_from_scratch.classifier.settings import HeadConfig
from gpt2_from_scratch.classifier.tasks.classification import logit_per_class
from gpt2_from_scratch.errors import DataError, UsageError
from gpt2_from_scratch.explain.attribution import (
    Contributions,
    attention,
    attention_weights,
    contributions,
)
from gpt2_from_scratch.gpt2.config import LoRAConfig

TEXT = "the cat is in the house and where is the mat"
L, H, C = TINY["n_layer"], TINY["n_head"], TINY["n_embd"]
TWO = HeadConfig(labels=("ham", "spam"))
THREE = HeadConfig(labels=("ham", "other", "spam"))
LORA = LoRAConfig(rank=3, alpha=6, head=True)


def logit_of(classifier: Classifier, text: str, label: str) -> float:
    """The classifier's own way to the logit, with all its shortcuts."""
    head = classifier.description.head
    logits = logit_per_class(head, classifier.logits(classifier.encode([text])[0]))
    return float(logits[0, head.labels.index(label)])


def total(found: Contributions) -> float:
    return sum(found.by_part().values())


# --- attention ---


@pytest.mark.slow
def test_attention_weights_of_hugging_face(tiny_gpt2):
    pytest.importorskip("transformers")
    ids = torch.randint(277, (1, 32), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = torch.cat(their_gpt2(tiny_gpt2)(ids).attentions)
    found = attention_weights(tiny_gpt2, ids[0].tolist())
    assert found.shape == (L, H, 32, 32)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.slow
def test_attention_with_adapters(tiny_checkpoint: Path):
    """They count before they are merged, and the merged model is Hugging Face's."""
    pytest.importorskip("transformers")
    classifier = random_classifier(tiny_checkpoint, TWO, lora=LORA)
    plain = attention(random_classifier(tiny_checkpoint, TWO), TEXT)
    before = attention(classifier, TEXT)
    classifier.merge()
    after = attention(classifier, TEXT)
    (ids,), _ = classifier.encode([TEXT])
    with torch.no_grad():
        expected = torch.cat(their_gpt2(classifier.model)(torch.tensor([ids])).attentions)
    np.testing.assert_allclose(before.weights, expected, atol=1e-4)
    np.testing.assert_allclose(after.weights, expected, atol=1e-4)
    assert abs(plain.weights - before.weights).max() > 0.1
    assert before.tokens == [classifier.tokenizer.decode([n]) for n in ids]
    assert before.tokens[-1] == "\n", "the end token, which the head reads"


# --- contributions add up ---


@pytest.mark.parametrize(
    ("head", "settings"),
    [
        (TWO, {}),
        (THREE, {}),
        (replace(THREE, pooling="last_token"), {}),
        (replace(THREE, pooling="first_token"), {}),
        (replace(THREE, pooling="mean"), {}),
        (replace(THREE, pooling="mean_position"), {"pad_to": 31}),
        (replace(THREE, pooling="last_position"), {"pad_to": 31}),
        (replace(THREE, pooling="last_position"), {}),
        (replace(THREE, final_norm=False), {}),
        (replace(THREE, final_norm=False, pooling="mean"), {}),
        (replace(THREE, layer=0), {}),
        (replace(THREE, layer=1, final_norm=False), {}),
        (replace(THREE, layer=1, pooling="mean"), {}),
        (replace(THREE, dropout=0.4, temperature=3.0), {}),
        (replace(TWO, one_output=True), {}),
        (replace(THREE, task="multi-label"), {}),
        (replace(THREE, task="regression", center=(1.0, 2, 3), scale=(2.0, 2, 2)), {}),
        (THREE, {"lora": LORA}),
        (replace(THREE, layer=1, pooling="mean"), {"lora": LORA}),
    ],
)
def test_the_contributions_add_up_to_the_logit(
    tiny_checkpoint: Path, head: HeadConfig, settings: dict[str, Any]
):
    classifier = random_classifier(tiny_checkpoint, head, **settings)
    classifier.model.train()  # dropout must not matter
    for text in (TEXT, "", "win"):
        logits = {label: logit_of(classifier, text, label) for label in head.labels}
        for label, logit in logits.items():
            found = contributions(classifier, text, label)
            layer = L if head.layer is None else head.layer
            assert (found.heads.shape, found.mlps.shape) == ((layer, H), (layer,))
            assert abs(total(found) - logit) < 1e-4
            assert abs(found.logit - logit) < 1e-4
        difference = contributions(classifier, text, head.labels[0], head.labels[-1])
        expected = logits[head.labels[0]] - logits[head.labels[-1]]
        assert abs(total(difference) - expected) < 1e-4
        assert abs(difference.logit - expected) < 1e-4
        best = max(logits, key=logits.__getitem__) if head.task != "regression" else "ham"
        assert contributions(classifier, text).label == best
    assert classifier.model.training


def test_after_merging_the_contributions_are_the_same(tiny_checkpoint: Path):
    classifier = random_classifier(tiny_checkpoint, THREE, lora=LORA)
    before = contributions(classifier, TEXT, "spam").by_part()
    classifier.merge()
    after = contributions(classifier, TEXT, "spam").by_part()
    assert list(before) == list(after)
    np.testing.assert_allclose([*before.values()], [*after.values()], atol=1e-4)


def test_one_of_several_heads(tiny_checkpoint: Path):
    label, stars = (
        replace(THREE, pooling="last_token"),
        HeadConfig(
            "stars", task="regression", labels=("low", "high"), layer=1, pooling="first_token"
        ),
    )
    classifier = random_classifier(tiny_checkpoint, label, stars)
    values = classifier.predict([TEXT])[0].answers["stars"].values
    for name, value in values.items():
        found = contributions(classifier, TEXT, name, head="stars")
        assert abs(total(found) - value) < 1e-4 and found.heads.shape == (1, H)
    assert (
        abs(total(contributions(classifier, TEXT, "ham")) - logit_of(classifier, TEXT, "ham"))
        < 1e-4
    )


# --- each single contribution ---


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["end_token", "mean"])
def test_each_part_is_what_hugging_faces_part_adds(tiny_checkpoint: Path, pooling: Any):
    """Their heads and MLPs are watched with hooks, and the final norm is linear by hand."""
    pytest.importorskip("transformers")
    classifier = random_classifier(tiny_checkpoint, replace(THREE, pooling=pooling))
    theirs, added = their_gpt2(classifier.model), {}

    def watch_attention(n: int) -> Any:
        def hook(c_proj: Any, inputs: Any, output: Any) -> None:
            for h in range(H):  # the columns of one head, and its rows of the matrix
                own = slice(h * C // H, (h + 1) * C // H)
                added[f"head {n}.{h}"] = inputs[0][0, :, own] @ c_proj.weight[own]
            added[f"bias {n}"] = c_proj.bias.expand_as(output[0])

        return hook

    def watch_mlp(n: int) -> Any:
        return lambda mlp, inputs, output: added.update({f"mlp {n}": output[0]})

    for n, block in enumerate(theirs.h):
        block.attn.c_proj.register_forward_hook(watch_attention(n))
        block.mlp.register_forward_hook(watch_mlp(n))
    (ids,), _ = classifier.encode([TEXT])
    with torch.no_grad():
        theirs(torch.tensor([ids]))
        added["token"], added["position"] = theirs.wte.weight[ids], theirs.wpe.weight[: len(ids)]
    terms = {name: term.detach().double().numpy() for name, term in added.items()}
    end = sum(terms.values())  # (T, C)
    deviation = np.sqrt(end.var(axis=1, keepdims=True) + 1e-5)
    gain, shift = (p.detach().double().numpy() for p in theirs.ln_f.parameters())
    weight, bias = (p.detach().double().numpy()[2] for p in classifier.model.head.parameters())
    rows = slice(-1, None) if pooling == "end_token" else slice(None)
    expected = {
        name: ((u - u.mean(axis=1, keepdims=True)) / deviation * gain @ weight)[rows].mean()
        for name, u in terms.items()
    }
    biases = shift @ weight + bias + sum(expected.pop(f"bias {n}") for n in range(L))
    found = contributions(classifier, TEXT, "spam").by_part()
    assert found.pop("biases") == pytest.approx(biases, abs=1e-4)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert value == pytest.approx(expected[name], abs=1e-4), name
    assert max(abs(value) for value in expected.values()) > 0.1


@pytest.mark.parametrize("part", ["head 1.2", "head 0.3", "mlp 0", "mlp 1", "token", "position"])
def test_a_part_that_alone_writes_the_direction_gets_all(tiny_checkpoint: Path, part: str):
    """All other parts are kept from writing to columns 5 and 6, whose difference is the logit."""
    classifier = random_classifier(tiny_checkpoint, TWO)
    model = classifier.model
    writers = {"token": model.wte.weight.T, "position": model.wpe.weight.T}
    for n, block in enumerate(model.blocks):
        for h in range(H):
            own = slice(h * C // H, (h + 1) * C // H)
            writers[f"head {n}.{h}"] = block.attn.c_proj.weight[:, own]
        writers[f"mlp {n}"] = block.mlp.c_proj.weight
    with torch.no_grad():
        model.ln_f.weight.fill_(1)
        model.ln_f.bias.zero_()
        model.head.weight.zero_()
        model.head.bias.zero_()
        model.head.weight[1, 5], model.head.weight[1, 6] = 1, -1
        for block in model.blocks:
            block.attn.c_proj.bias[5:7] = 0
            block.mlp.c_proj.bias[5:7] = 0
        for name, weight in writers.items():
            if name != part:
                weight[5:7] = 0
    found = contributions(classifier, TEXT, "spam", "ham")
    expected = logit_of(classifier, TEXT, "spam") - logit_of(classifier, TEXT, "ham")
    parts = found.by_part()
    assert abs(expected) > 0.01
    assert parts.pop(part) == pytest.approx(expected, abs=1e-5)
    assert max(map(abs, parts.values())) < 1e-6


# --- what has no contributions ---


@pytest.mark.parametrize(
    ("head", "fact"),
    [
        (replace(TWO, hidden=(8,)), "hidden layers"),
        (replace(TWO, hidden=(C,), activation="tanh", dropout=0.1), "hidden layers"),
        (HeadConfig(task="token-classification", labels=("O", "B-x")), "every token"),
        (HeadConfig(task="language"), "every token"),
        (HeadConfig(task="features"), "features"),
    ],
)
def test_heads_without_contributions(tiny_checkpoint: Path, head: HeadConfig, fact: str):
    classifier = Classifier.on_base(tiny_checkpoint, heads=[head])
    with pytest.raises(UsageError, match=fact):
        contributions(classifier, TEXT)


def test_what_is_unknown_or_changed_is_refused(tiny_checkpoint: Path):
    classifier = random_classifier(tiny_checkpoint, TWO)
    with pytest.raises(UsageError, match="'eggs'.*ham, spam"):
        contributions(classifier, TEXT, "eggs")
    with pytest.raises(UsageError, match="'eggs'.*ham, spam"):
        contributions(classifier, TEXT, "ham", "eggs")
    with pytest.raises(UsageError, match="'other'.*label"):
        contributions(classifier, TEXT, head="other")
    with pytest.raises(DataError):
        contributions(classifier, 3)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="277"):
        attention_weights(classifier.model, [277])
    block = classifier.model.blocks[1]
    block.mlp = Halved(block.mlp)
    for function in (contributions, attention):
        with pytest.raises(UsageError, match=r"blocks\.1 was changed"):
            function(classifier, TEXT)


def test_without_the_causal_mask_nothing_is_explained(tiny_checkpoint: Path):
    classifier = Classifier.on_base(tiny_checkpoint, ["ham", "spam"], causal_mask=False)
    for function in (contributions, attention):
        with pytest.raises(UsageError, match="causal mask"):
            function(classifier, TEXT)


def test_attention_does_not_depend_on_the_head(tiny_checkpoint: Path):
    """Adebayo et al.'s test, 2018: with another head, attention is the same and contributions are not."""
    one, other = random_classifier(tiny_checkpoint, TWO), random_classifier(tiny_checkpoint, TWO)
    with torch.no_grad():
        other.model.head.weight.copy_(one.model.head.weight.roll(1, dims=1))
    np.testing.assert_array_equal(attention(one, TEXT).weights, attention(other, TEXT).weights)
    first, second = (contributions(c, TEXT, "spam", "ham").by_part() for c in (one, other))
    values = np.array([[*first.values()], [*second.values()]])
    assert abs(np.corrcoef(values)[0, 1]) < 0.8 and abs(values[0] - values[1]).max() > 0.1
