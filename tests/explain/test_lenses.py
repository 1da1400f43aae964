"""The lenses agree with Hugging Face's states, and end with the model's own answer."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from their_gpt2 import their_gpt2
from three_blocks import plain_outputs
from tiny import TINY, Halved, random_classifier

from gpt2_from_scratch.classifier.classifier import Classifier
from gpt2_from_scratch.classifier.settings import HeadConfig
from gpt2_from_scratch.errors import DataError, UsageError
from gpt2_from_scratch.explain.lenses import answer_by_layer, next_tokens, tuned_lenses
from gpt2_from_scratch.gpt2.config import LoRAConfig
from gpt2_from_scratch.gpt2.tokenizer import Tokenizer

TEXT = "the cat is in the house and where is the mat"
L = TINY["n_layer"]
THREE = HeadConfig(labels=("ham", "other", "spam"))


# --- the classifier's answer ---


@pytest.mark.parametrize(
    "head",
    [
        THREE,
        replace(THREE, pooling="mean", temperature=2.5),
        replace(THREE, pooling="first_token", final_norm=False),
        replace(THREE, layer=1, pooling="last_token"),
        replace(THREE, layer=0),
        replace(THREE, hidden=(8,), activation="tanh", dropout=0.3),
        replace(THREE, task="multi-label"),
    ],
)
def test_the_last_layer_is_the_answer(tiny_checkpoint: Path, head: HeadConfig):
    classifier = random_classifier(tiny_checkpoint, head)
    for text in (TEXT, ""):
        found = answer_by_layer(classifier, text)
        T = len(classifier.encode([text])[0][0])
        layers = 1 + (L if head.layer is None else head.layer)
        assert found.labels == head.labels and len(found.tokens) == T
        assert found.probabilities.shape == (layers, 3)
        assert found.by_token.shape == (layers, T, 3)
        expected = [*classifier.predict([text])[0].probabilities.values()]
        np.testing.assert_allclose(found.probabilities[-1], expected, atol=1e-5)


@pytest.mark.parametrize("lora", [None, LoRAConfig(rank=2)])
def test_each_layer_by_a_plain_loop(tiny_checkpoint: Path, lora: LoRAConfig | None):
    head = replace(THREE, pooling="last_token")
    classifier = random_classifier(tiny_checkpoint, head, lora=lora)
    found = answer_by_layer(classifier, TEXT)
    (ids,), _ = classifier.encode([TEXT])
    for n in range(L + 1):
        for t in range(len(ids)):  # a text that ends with this token
            logits = plain_outputs(classifier, replace(head, layer=n), ids[: t + 1])
            expected = logits.softmax(dim=0).numpy()
            np.testing.assert_allclose(found.by_token[n, t], expected, atol=1e-5)
        np.testing.assert_allclose(found.probabilities[n], expected, atol=1e-5)


def test_one_of_several_heads(tiny_checkpoint: Path):
    heads = (
        replace(THREE, pooling="mean"),
        replace(THREE, name="early", layer=1, pooling="first_token"),
        HeadConfig("tags", task="token-classification", labels=("O", "B-x")),
    )
    classifier = random_classifier(tiny_checkpoint, *heads)
    found = answer_by_layer(classifier, TEXT, head="early")
    expected = classifier.predict([TEXT])[0].answers["early"].probabilities
    assert len(found.probabilities) == 2
    np.testing.assert_allclose(found.probabilities[-1], [*expected.values()], atol=1e-5)


@pytest.mark.parametrize(
    ("head", "fact"),
    [
        (HeadConfig(task="regression", labels=("stars",)), "regression"),
        (HeadConfig(task="token-classification", labels=("O", "B-x")), "every token"),
        (HeadConfig(task="language"), "every token"),
    ],
)
def test_heads_without_probabilities_per_label(tiny_checkpoint: Path, head: HeadConfig, fact: str):
    with pytest.raises(UsageError, match=fact):
        answer_by_layer(Classifier.on_base(tiny_checkpoint, heads=[head]), TEXT)


# --- the next token ---


@pytest.mark.slow
def test_next_tokens_from_hugging_faces_states(tiny_checkpoint: Path):
    pytest.importorskip("transformers")
    classifier = random_classifier(tiny_checkpoint, THREE)
    model, tokenizer = classifier.model, classifier.tokenizer
    found = next_tokens(model, tokenizer, TEXT, top=4)
    ids = tokenizer.encode(TEXT)
    theirs = their_gpt2(model)
    with torch.no_grad():
        *early, last = theirs(torch.tensor([ids])).hidden_states
        states = [*map(theirs.ln_f, early), last]  # theirs are normed in the last layer only
        expected = torch.cat([s @ theirs.wte.weight.T for s in states]).softmax(dim=2)
    assert found.ids.shape == found.probabilities.shape == found.predicted.shape
    assert found.ids.shape == (L + 1, len(ids), 4)
    assert (np.diff(found.probabilities) <= 0).all()
    values, numbers = expected.topk(4)
    np.testing.assert_allclose(found.probabilities, values, atol=1e-4)
    assert (found.ids == numbers.numpy()).mean() > 0.98, "ties may be ordered otherwise"
    assert found.predicted[1, 2, 3] == tokenizer.decode([found.ids[1, 2, 3]])
    assert found.tokens == [tokenizer.decode([n]) for n in ids]


def test_the_last_layer_is_gpt2_itself(tiny_gpt2, tiny_checkpoint: Path):
    tokenizer = Tokenizer(tiny_checkpoint)
    found = next_tokens(tiny_gpt2, tokenizer, TEXT, top=277)
    with torch.no_grad():
        expected = tiny_gpt2(torch.tensor([tokenizer.encode(TEXT)]))[0].softmax(dim=1).numpy()
    np.testing.assert_allclose(
        found.probabilities[-1], np.take_along_axis(expected, found.ids[-1], axis=1), atol=1e-5
    )
    np.testing.assert_allclose(found.probabilities.sum(axis=2), 1, atol=1e-5)


def test_a_lens_of_its_own_for_one_layer(tiny_gpt2, tiny_checkpoint: Path):
    """It reads the residual stream after the first block; the other layers have the logit lens."""
    tokenizer = Tokenizer(tiny_checkpoint)
    lens = torch.nn.Sequential(torch.nn.Linear(32, 277), torch.nn.Dropout(0.5))
    plain = next_tokens(tiny_gpt2, tokenizer, TEXT)
    found = next_tokens(tiny_gpt2, tokenizer, TEXT, lenses={1: lens})
    with torch.no_grad():
        x = tiny_gpt2.blocks[0](tiny_gpt2.embed(torch.tensor([tokenizer.encode(TEXT)])))[0]
        expected = lens[0](x).softmax(dim=1).topk(5)
    np.testing.assert_allclose(found.probabilities[1], expected.values, atol=1e-6)
    np.testing.assert_array_equal(found.ids[1], expected.indices)
    np.testing.assert_array_equal(found.ids[[0, 2]], plain.ids[[0, 2]])
    assert lens.training
    with pytest.raises(UsageError, match="layer 3 of 0 to 2"):
        next_tokens(tiny_gpt2, tokenizer, TEXT, lenses={3: lens})


@pytest.mark.slow
def test_tuned_lenses_of_a_classifier(tiny_checkpoint: Path):
    """A new tuned lens is the logit lens; a trained one gives the predictions of its own head."""
    heads = [HeadConfig(f"lens_{n}", task="language", layer=n, form="tuned lens") for n in (0, 1)]
    classifier = Classifier.on_base(tiny_checkpoint, heads=[*heads, HeadConfig(task="language")])
    model, tokenizer = classifier.model, classifier.tokenizer
    lenses = tuned_lenses(classifier)
    assert [*lenses] == [0, 1]
    plain = next_tokens(model, tokenizer, TEXT)
    new = next_tokens(model, tokenizer, TEXT, lenses=lenses)
    np.testing.assert_allclose(new.probabilities, plain.probabilities, atol=1e-5)
    with torch.no_grad():
        lenses[1].change.weight.normal_(0, 0.2, generator=torch.Generator().manual_seed(1))
    trained = next_tokens(model, tokenizer, TEXT, lenses=lenses)
    ((_, outputs, _),) = classifier.outputs([tokenizer.encode(TEXT)])
    expected = outputs["lens_1"][0].softmax(dim=1).topk(5)
    np.testing.assert_allclose(trained.probabilities[1], expected.values, atol=1e-5)
    np.testing.assert_array_equal(trained.ids[1], expected.indices)
    assert abs(trained.probabilities[1] - plain.probabilities[1]).max() > 0.01


def test_what_no_lens_can_read(tiny_checkpoint: Path):
    classifier = random_classifier(tiny_checkpoint, THREE)
    model, tokenizer = classifier.model, classifier.tokenizer
    for top in (0, 278):
        with pytest.raises(UsageError, match=f"{top} .*277"):
            next_tokens(model, tokenizer, TEXT, top=top)
    for text, fact in (("", "empty"), ("win " * 40, "n_ctx")):
        with pytest.raises(DataError, match=fact):
            next_tokens(model, tokenizer, text)
    model.blocks[0].attn = Halved(model.blocks[0].attn)
    with pytest.raises(UsageError, match=r"blocks\.0 was changed"):
        next_tokens(model, tokenizer, TEXT)
    with pytest.raises(UsageError, match=r"blocks\.0 was changed"):
        answer_by_layer(classifier, TEXT)
