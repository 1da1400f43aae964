"""GPT-2 as it is compared: frozen features against scikit-learn on states computed text by text,
random weights against those drawn here, the finetuned one against the recipe `train`.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler

from gpt2_from_scratch.classifier.settings import HeadSettings, TrainConfig
from gpt2_from_scratch.data.messages import Message, write_messages
from gpt2_from_scratch.data.split import Split, split_messages
from gpt2_from_scratch.gpt2.config import read_config
from gpt2_from_scratch.gpt2.model import GPT2, init_weights
from gpt2_from_scratch.gpt2.tokenizer import Tokenizer
from gpt2_from_scratch.gpt2.weights import load_gpt2, random_twin
from gpt2_from_scratch.runs.recipes import train_classifier
from gpt2_from_scratch.studies.contenders import Finetuning, fit_finetuned, fit_frozen, fit_random

LABELS = ["no", "yes"]
CONFIG = TrainConfig(epochs=2, lr=0.005, seed=3)


def quietly(line: str) -> None:
    pass


@pytest.fixture(scope="module")
def messages() -> list[Message]:
    draw, found = np.random.RandomState(5), {}
    while len(found) < 60:
        words = ["".join(draw.choice(list("abcde"), 2)) for _ in range(draw.randint(1, 6))]
        label = LABELS[len(found) % 2]
        if draw.rand() < 0.7:
            words[draw.randint(len(words))] = {"no": "x", "yes": "y"}[label]
        label = LABELS[draw.randint(2)] if draw.rand() < 0.3 else label  # no one can have all right
        found.setdefault(" ".join(words), Message(" ".join(words), label))
    return list(found.values())


@pytest.fixture(scope="module")
def split(messages: list[Message]) -> Split:
    return split_messages(messages, seed=3)


@pytest.fixture
def finetuning(tiny_checkpoint: Path) -> Finetuning:
    return Finetuning(tiny_checkpoint, CONFIG)


@torch.no_grad()
def states(model: GPT2, tokenizer: Tokenizer, part: list[Message]) -> np.ndarray:
    """The final states of each text on its own: of its last token, and their mean."""
    rows = []
    for message in part:
        x = model.hidden(torch.tensor([tokenizer.encode(message.text)]))[0]  # (T, C)
        rows.append(torch.cat((x[-1], x.mean(dim=0))).double().numpy())
    return np.array(rows)


def test_frozen_features_are_fitted_as_scikit_learn_does(
    finetuning: Finetuning, split: Split, tiny_checkpoint: Path
) -> None:
    found = fit_frozen(finetuning, split, LABELS)
    model, tokenizer = load_gpt2(tiny_checkpoint), Tokenizer(tiny_checkpoint)
    train, val, test = (states(model, tokenizer, p) for p in (split.train, split.val, split.test))
    scaler = StandardScaler().fit(train)
    fits = []
    for l2 in (10.0, 1.0, 0.1, 0.01, 0.001):
        logistic = LogisticRegression(C=2 / (l2 * len(train)), tol=1e-8, max_iter=10_000)
        logistic.fit(scaler.transform(train), [m.label for m in split.train])
        shares = logistic.predict_proba(scaler.transform(val))
        fits.append((log_loss([m.label for m in split.val], shares), l2, logistic))
    _, l2, best = min(fits, key=lambda fit: fit[0])
    assert 0.001 < l2 < 10  # so that the choice is one
    expected = best.predict_proba(scaler.transform(test))
    np.testing.assert_allclose(
        found.probabilities([m.text for m in split.test]), expected, atol=1e-4
    )
    assert found.probabilities([]).shape == (0, 2)


def test_a_random_twin_has_sizes_and_tokenizer_and_other_weights(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    expected = GPT2(read_config(tiny_checkpoint))
    init_weights(expected, torch.Generator().manual_seed(7))
    folder = random_twin(tiny_checkpoint, tmp_path / "twin", 7)
    for name, parameter in load_gpt2(folder).named_parameters():
        assert torch.equal(parameter, dict(expected.named_parameters())[name]), name
    assert Tokenizer(folder).encode("the thing") == Tokenizer(tiny_checkpoint).encode("the thing")


def test_ours_is_what_train_makes(
    finetuning: Finetuning, messages: list[Message], split: Split, tmp_path: Path
) -> None:
    write_messages(tmp_path / "m.csv", messages)
    _, classifier, scores = train_classifier(
        finetuning.model, tmp_path / "m.csv", tmp_path / "run", CONFIG, cache=False
    )
    found = fit_finetuned(finetuning, split, LABELS)
    texts = [m.text for m in split.test]
    shares = found.probabilities(texts)
    told = [classifier.predict([text])[0] for text in texts]
    expected = [[t.probabilities[label] for label in LABELS] for t in told if t]
    np.testing.assert_allclose(shares, expected, atol=1e-6)
    turned = fit_finetuned(finetuning, split, LABELS[::-1]).probabilities(texts)
    np.testing.assert_allclose(turned[:, ::-1], shares, atol=1e-6)
    assert scores.total == len(texts)
    right = sum(LABELS[row.argmax()] == m.label for row, m in zip(shares, split.test, strict=True))
    assert right == scores.correct


def test_random_weights_are_trained_as_ours_is(
    finetuning: Finetuning, split: Split, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    texts = [m.text for m in split.test]
    found = fit_random(finetuning, split, LABELS)
    folder = random_twin(tiny_checkpoint, tmp_path / "twin", CONFIG.seed)
    twin = fit_finetuned(replace(finetuning, model=folder), split, LABELS)
    np.testing.assert_allclose(found.probabilities(texts), twin.probabilities(texts))
    other = replace(finetuning, config=replace(CONFIG, seed=4))
    other_shares = fit_random(other, split, LABELS).probabilities(texts)
    assert np.abs(found.probabilities(texts) - other_shares).max() > 1e-4
    assert found.name == f"GPT-2 {tiny_checkpoint.name} with random weights"


@pytest.mark.parametrize(
    "config, settings, name",
    [
        ({}, {}, "GPT-2 mini, last block"),
        ({"n_last_blocks": 3}, {}, "GPT-2 mini, last 3 blocks"),
        ({"n_last_blocks": 0}, {}, "GPT-2 mini, head alone"),
        ({"n_last_blocks": 0}, {"lora": 8}, "GPT-2 mini, LoRA 8"),
        ({"n_last_blocks": 1}, {"lora": 8}, "GPT-2 mini, LoRA 8 and last block"),
        ({"trainable": "*"}, {}, "GPT-2 mini, trainable *"),
    ],
)
def test_names_say_what_trains(config: dict, settings: dict, name: str) -> None:
    assert Finetuning("mini", TrainConfig(**config), HeadSettings(**settings)).name == name
