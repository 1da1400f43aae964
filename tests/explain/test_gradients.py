"""Gradient x input and integrated gradients: completeness, known answers, and captum's values."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from captum.attr import InputXGradient, IntegratedGradients
from tiny import random_classifier
from torch import Tensor

from gpt2_from_scratch.classifier.classifier import Classifier
from gpt2_from_scratch.classifier.settings import POOLINGS, HeadConfig
from gpt2_from_scratch.errors import UsageError
from gpt2_from_scratch.explain.gradients import gradient_times_input, integrated_gradients
from gpt2_from_scratch.gpt2.config import LoRAConfig

TEXT = "you and the cat, don't win 🎉 in the house!"
CLASSES = HeadConfig(labels=("ham", "other", "spam"))


def log_odds_from_embeddings(classifier: Classifier, number: int) -> Callable[[Tensor], Tensor]:
    """A plain forward pass from the embeddings of tokens (B, n, C) to the log odds (B,)."""
    model, head = classifier.model.eval(), classifier.description.head
    end = classifier.tokenizer.encode("\n") if head.pooling == "end_token" else []

    def forward(rows: Tensor) -> Tensor:
        ends = model.wte(torch.tensor(end, dtype=torch.int64)).expand(len(rows), -1, -1)
        x = torch.cat([rows, ends], dim=1)
        x = x + model.wpe.weight[: x.shape[1]]
        for block in model.blocks:
            x = block(x)
        states = model.ln_f(x)
        read = {"first_token": states[:, 0], "mean": states.mean(dim=1)}
        p = model.head(read.get(head.pooling, states[:, -1])).softmax(dim=1)[:, number]
        return torch.log(p / (1 - p))

    return forward


def values(explanation) -> list[float]:
    return [part.value for part in explanation.parts]


@pytest.fixture(params=["end_token", "last_token", "first_token", "mean"])
def classifier(tiny_checkpoint: Path, request: pytest.FixtureRequest) -> Classifier:
    lora = LoRAConfig(rank=2, alpha=4, n_last_blocks=1)
    return random_classifier(tiny_checkpoint, replace(CLASSES, pooling=request.param), lora=lora)


# --- captum ---


def test_gradient_times_input_equals_captum(classifier: Classifier) -> None:
    rows = classifier.model.wte(torch.tensor([classifier.tokenizer.encode(TEXT)])).detach()
    expected = InputXGradient(log_odds_from_embeddings(classifier, 2)).attribute(
        rows.requires_grad_()
    )
    found = gradient_times_input(classifier, TEXT, "spam", unit="token")
    np.testing.assert_allclose(values(found), expected[0].sum(dim=1).detach(), atol=1e-4)


@pytest.mark.parametrize("baseline", ["end_of_text", "zero"])
def test_integrated_gradients_equal_captum(classifier: Classifier, baseline: str) -> None:
    rows = classifier.model.wte(torch.tensor([classifier.tokenizer.encode(TEXT)])).detach()
    start = torch.zeros_like(rows)
    if baseline == "end_of_text":
        start += classifier.model.wte.weight[classifier.tokenizer.end_of_text_id].detach()
    expected, delta = IntegratedGradients(log_odds_from_embeddings(classifier, 2)).attribute(
        rows, start, n_steps=20, method="gausslegendre", return_convergence_delta=True
    )
    found = integrated_gradients(
        classifier, TEXT, "spam", unit="token", steps=20, baseline=baseline
    )
    np.testing.assert_allclose(values(found), expected[0].sum(dim=1), atol=1e-4)
    assert found.error == pytest.approx(delta.item(), abs=1e-4)
    assert found.steps == 20


# --- known answers ---


@pytest.mark.parametrize("pooling", POOLINGS)
def test_values_add_up(tiny_checkpoint: Path, pooling: str) -> None:
    classifier = random_classifier(tiny_checkpoint, replace(CLASSES, pooling=pooling))
    found = integrated_gradients(classifier, TEXT)
    assert abs(found.error) <= 0.01 * max(1, abs(found.total))
    (prediction,) = classifier.predict([TEXT])
    assert prediction
    assert found.probability == pytest.approx(prediction.probabilities[found.label], abs=1e-5)


def test_more_steps_are_taken_until_values_add_up(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = random_classifier(tiny_checkpoint, CLASSES)
    monkeypatch.setattr("gpt2_from_scratch.explain.gradients.FEWEST_STEPS", 1)
    one = integrated_gradients(classifier, TEXT, steps=1)
    found = integrated_gradients(classifier, TEXT)
    assert abs(one.error) > 0.01 * max(1, abs(one.total))
    assert found.steps > 1
    assert abs(found.error) <= 0.01 * max(1, abs(found.total))


@pytest.mark.parametrize("explain", [gradient_times_input, integrated_gradients])
def test_a_linear_classifier_is_explained_exactly(tiny_checkpoint: Path, explain: Callable) -> None:
    """A head on the mean of the embeddings is linear: one planted token decides."""
    head = HeadConfig(
        labels=("ham", "spam"), layer=0, final_norm=False, pooling="mean", one_output=True
    )
    classifier = random_classifier(tiny_checkpoint, head)
    model, win = classifier.model, classifier.tokenizer.encode(" the")[0]
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.weight[0, 5] = 1.0
        model.wte.weight[:, 5] = 0.0
        model.wte.weight[win, 5] = 14.0
    found = explain(classifier, "you and the cat", "spam", unit="token")
    n = len(found.parts)
    expected = [14.0 / n if part.text == " the" else 0.0 for part in found.parts]
    assert sum(map(bool, expected)) == 1
    assert values(found) == pytest.approx(expected, abs=1e-5)
    assert found.error == pytest.approx(0, abs=1e-5)
    assert found.total == pytest.approx(14.0 / n, abs=1e-5)


def test_a_word_has_the_sum_of_its_tokens(classifier: Classifier) -> None:
    words, tokens = (integrated_gradients(classifier, TEXT, unit=u) for u in ("word", "token"))
    for word in words.parts:
        assert word.value == pytest.approx(sum(values(tokens)[slice(*word.tokens)]))
    assert len(words.parts) < len(tokens.parts)


def test_the_model_is_left_as_it_was(classifier: Classifier) -> None:
    classifier.model.train()
    with torch.no_grad():
        integrated_gradients(classifier, TEXT)
    assert all(module.training for module in classifier.model.modules())
    assert all(parameter.grad is None for parameter in classifier.model.parameters())
    classifier.model.eval()


def test_settings_that_cannot_be_used(tiny_checkpoint: Path) -> None:
    classifier = random_classifier(tiny_checkpoint, CLASSES)
    with pytest.raises(UsageError, match="'black'.*end_of_text, zero"):
        integrated_gradients(classifier, TEXT, baseline="black")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="steps = 0"):
        integrated_gradients(classifier, TEXT, steps=0)
    both = random_classifier(tiny_checkpoint, CLASSES, causal_mask=False)
    both.model.requires_grad_(False)
    for explain in (gradient_times_input, integrated_gradients):
        with pytest.raises(UsageError, match="causal mask.*leave_one_out"):
            explain(both, TEXT)
