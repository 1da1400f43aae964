"""Rows of a study: frozen features compared with scikit-learn on states computed text by text,
finetuned rows with the recipe of `train`, and finished runs with their saved predictions.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler

from gpt2_from_scratch import GPT2, Message, Split, Tokenizer, load_gpt2, train_classifier
from gpt2_from_scratch.classifier.settings import HeadSettings, TrainConfig
from gpt2_from_scratch.classifier.train import to_labelled
from gpt2_from_scratch.data.messages import write_messages
from gpt2_from_scratch.data.split import split_messages
from gpt2_from_scratch.errors import DataError, UsageError
from gpt2_from_scratch.gpt2.config import read_config
from gpt2_from_scratch.gpt2.model import init_weights
from gpt2_from_scratch.gpt2.weights import random_twin
from gpt2_from_scratch.studies.rows import (
    Finetuned,
    FinishedRun,
    FrozenFeatures,
    Setup,
    StudySplit,
    TextBaseline,
    _probabilities,
    finetuned,
    refuse_unfit,
    with_random_weights,
)

LABELS = ("no", "yes")
CONFIG = TrainConfig(epochs=2, lr=0.005, batch_size=8)


@pytest.fixture(scope="module")
def messages() -> list[Message]:
    """Sixty texts with a word that often, but not always, predicts the label."""
    draw, found = np.random.RandomState(5), {}
    while len(found) < 60:
        words = ["".join(draw.choice(list("abcde"), 2)) for _ in range(draw.randint(1, 6))]
        label = LABELS[len(found) % 2]
        if draw.rand() < 0.7:
            words[draw.randint(len(words))] = {"no": "x", "yes": "y"}[label]
        label = LABELS[draw.randint(2)] if draw.rand() < 0.3 else label
        found.setdefault(" ".join(words), Message(" ".join(words), label))
    return list(found.values())


@pytest.fixture(scope="module")
def split(messages: list[Message]) -> StudySplit:
    return StudySplit("seed 3", 3, split_messages(messages, seed=3))


@pytest.fixture
def setup(tiny_checkpoint: Path) -> Setup:
    return Setup(tiny_checkpoint, CONFIG, labels=LABELS, cache=False)


@torch.no_grad()
def states(model: GPT2, tokenizer: Tokenizer, part: Sequence[Message]) -> np.ndarray:
    """The final states of each text alone: the last token's state, and the mean state."""
    rows = []
    for message in part:
        x = model.hidden(torch.tensor([tokenizer.encode(message.text)]))[0]  # (T, C)
        rows.append(torch.cat((x[-1], x.mean(dim=0))).double().numpy())
    return np.array(rows)


def test_frozen_features_are_fitted_as_scikit_learn_does(
    setup: Setup, split: StudySplit, tiny_checkpoint: Path
):
    found = FrozenFeatures().answer(setup, split)
    model, tokenizer = load_gpt2(tiny_checkpoint), Tokenizer(tiny_checkpoint)
    parts = (split.parts.train, split.parts.val, split.parts.test)
    train, val, test = (states(model, tokenizer, part) for part in parts)
    scaler = StandardScaler().fit(train)
    fits = []
    for l2 in (10.0, 1.0, 0.1, 0.01, 0.001):
        logistic = LogisticRegression(C=2 / (l2 * len(train)), tol=1e-8, max_iter=10_000)
        logistic.fit(scaler.transform(train), [m.label for m in split.parts.train])
        probabilities = logistic.predict_proba(scaler.transform(val))
        fits.append((log_loss([m.label for m in split.parts.val], probabilities), l2, logistic))
    _, l2, best = min(fits, key=lambda fit: fit[0])
    assert 0.001 < l2 < 10  # the selected penalty is at neither end of the list
    expected = best.predict_proba(scaler.transform(test))
    np.testing.assert_allclose(found.predictions.probabilities, expected, atol=1e-4)


def test_frozen_features_of_classes_that_training_lacks(setup: Setup, split: StudySplit):
    three = replace(setup, labels=("maybe", *LABELS))
    found = FrozenFeatures().answer(three, split).predictions
    both = FrozenFeatures().answer(setup, split).predictions
    np.testing.assert_allclose(found.probabilities[:, 1:], both.probabilities, atol=1e-6)
    one = [m for m in split.parts.train if m.label == "no"]
    assert (
        FrozenFeatures().answer(setup, replace(split, parts=replace(split.parts, train=one)))
        is None
    )


@pytest.mark.slow
def test_ours_equals_train(
    setup: Setup, messages: list[Message], split: StudySplit, tmp_path: Path
):
    write_messages(tmp_path / "m.csv", messages)
    config = replace(CONFIG, seed=3)
    run = train_classifier(
        setup.model, tmp_path / "m.csv", config, run=tmp_path / "run", device="cpu", cache=False
    )
    classifier, scores = run.classifier, run.scores
    near_duplicates = np.arange(len(split.parts.test)) % 2 == 0
    found = finetuned(setup).answer(setup, replace(split, near_duplicates=near_duplicates))
    answers = found.predictions
    assert answers.texts == [m.text for m in split.parts.test]
    assert [LABELS[k] for k in answers.true] == [m.label for m in split.parts.test]
    assert (answers.near_duplicates == near_duplicates).all()
    alone = [classifier.predict([text])[0].probabilities for text in answers.texts]
    expected = [[p[label] for label in LABELS] for p in alone]
    np.testing.assert_allclose(answers.probabilities, expected, atol=1e-6)
    assert int(answers.correct.sum()) == scores.correct and found.n_train == len(split.parts.train)
    val = [classifier.predict([m.text])[0].label == m.label for m in split.parts.val]
    assert found.val_accuracy == np.mean(val) and found.epochs == 2
    turned = finetuned(setup).answer(replace(setup, labels=LABELS[::-1]), split).predictions
    np.testing.assert_allclose(turned.probabilities[:, ::-1], answers.probabilities, atol=1e-6)


@pytest.mark.slow
def test_random_weights_are_those_drawn_with_the_splits_seed(
    setup: Setup, split: StudySplit, tiny_checkpoint: Path, tmp_path: Path
):
    folder = random_twin(tiny_checkpoint, tmp_path / "twin", 3)
    expected = GPT2(read_config(tiny_checkpoint))
    init_weights(expected, torch.Generator().manual_seed(3))
    for name, parameter in load_gpt2(folder).named_parameters():
        assert torch.equal(parameter, dict(expected.named_parameters())[name]), name
    assert Tokenizer(folder).encode("the thing") == Tokenizer(tiny_checkpoint).encode("the thing")
    row = with_random_weights(setup)
    assert row.name == f"GPT-2 {tiny_checkpoint.name} with random weights"
    found = row.answer(setup, split).predictions.probabilities
    twin = Finetuned("").answer(replace(setup, model=folder), split).predictions.probabilities
    np.testing.assert_allclose(found, twin)
    other = row.answer(setup, replace(split, seed=4)).predictions.probabilities
    assert np.abs(found - other).max() > 1e-4


@pytest.mark.parametrize(
    ("training", "head", "name"),
    [
        ({}, {}, "last block"),
        ({"n_last_blocks": 3}, {}, "last 3 blocks"),
        ({"n_last_blocks": 0}, {}, "head alone"),
        ({"n_last_blocks": 0}, {"lora": 8}, "LoRA 8"),
        ({}, {"lora": 8}, "LoRA 8 and last block"),
        ({"trainable": "*"}, {}, "trainable *"),
    ],
)
def test_names_say_what_is_trained(training: dict, head: dict, name: str):
    setup = Setup("mini", TrainConfig(**training), HeadSettings(**head))
    assert finetuned(setup).name == f"GPT-2 mini, {name}"


# --- rows of a table of experiments ---

EVERY_TOKEN = Finetuned("every token", extra="tokens")


@pytest.mark.parametrize(
    "row",
    [
        EVERY_TOKEN,
        Finetuned("language", head={"pooling": "last_token"}, extra="language"),
        Finetuned("all", head={"class_weights": "balanced"}, all_messages=True),
        Finetuned("bidirectional", head={"causal_mask": False}),
        Finetuned("n-grams", head={"with_ngrams": True}),
        Finetuned("both", head={"pooling": "last_token", "with_ngrams": True}, extra="language"),
        Finetuned("padded", head={"pooling": "mean_position", "pad_to": -1}),
        Finetuned("far", head={"pooling": "last_position", "pad_to": 32}),
        Finetuned("LoRA", "", None, {"n_last_blocks": 0}, {"lora": 2, "lora_blocks": 1}),
        Finetuned(
            "gradually", training={"n_last_blocks": 2, "unfreeze_every": 1, "rate_decay": 2.6}
        ),
    ],
    ids=lambda row: row.name,
)
def test_every_kind_of_row_is_trained(setup: Setup, split: StudySplit, row: Finetuned):
    epochs = 3 if row.name == "gradually" else 1
    setup = replace(setup, training=replace(CONFIG, epochs=epochs))
    more = [*split.parts.train, Message("one more", "yes"), Message("two more", "no")]
    found = row.answer(setup, replace(split, unbalanced=more))
    assert found.n_train == len(split.parts.train) + 2 * row.all_messages
    assert found.epochs == epochs and len(found.predictions.texts) == len(split.parts.test)
    head_and_norm = 32 * 2 + 2 + 2 * 32
    block = 3 * 32 * 33 + 32 * 33 + 4 * 32 * 33 + 32 * (4 * 32 + 1) + 4 * 32
    lora = 4 * 32 + 2 * (32 + 96 + 32 + 32 + 32 + 128 + 128 + 32)  # norms; rank 2 for four matrices
    trained = {"LoRA": lora, "gradually": 2 * block}.get(row.name, block)
    assert found.n_trainable == trained + head_and_norm


@pytest.mark.slow
def test_gradient_accumulation_is_the_same_batch(setup: Setup, split: StudySplit):
    """Gradients are accumulated as in the book, but padding has no effect."""
    whole, parts = (
        Finetuned("", training={"batch_size": 8, "micro_batch": n}).answer(setup, split)
        for n in (0, 1)
    )
    np.testing.assert_allclose(
        whole.predictions.probabilities, parts.predictions.probabilities, atol=1e-4
    )


def test_balancing_may_leave_out_no_messages(setup: Setup, split: StudySplit):
    row = Finetuned("all", all_messages=True)
    with pytest.raises(DataError, match="--balance"):
        row.answer(setup, replace(split, unbalanced=split.parts.train))


def test_every_token_of_a_text_has_its_label(setup: Setup, split: StudySplit):
    """The prediction is read at the last token; padding is excluded from the loss."""
    classifier, parts = EVERY_TOKEN._prepared(setup, split.parts)
    labelled = to_labelled(classifier, parts.val)
    probabilities = _probabilities(classifier, [m.text for m in split.parts.val], LABELS)
    names = classifier.description.labels
    for n, message in enumerate(split.parts.val):
        target = labelled.targets["label"].batch([n])[0]
        k = names.index(message.label)
        assert set(target.tolist()) <= {k, -100} and target[-1] == k
        assert (target == k).float().mean() > 0.5  # all except tokens of white space
        ids = torch.tensor([labelled.texts.encoded[n]])
        with torch.no_grad():
            logits = classifier.model.head(classifier.model.hidden(ids)[0, -1]).numpy()
        expected = np.exp(logits) / np.exp(logits).sum()
        for column, label in enumerate(LABELS):
            assert probabilities[n, column] == pytest.approx(expected[names.index(label)], abs=1e-5)


def test_settings_that_rows_vary_are_left_to_them():
    rows = [Finetuned("a", head={"pooling": "mean"}), Finetuned("b", training={"lr": 0.1})]
    refuse_unfit(Setup(training=TrainConfig(lr=1e-3, n_last_blocks=2)), rows)
    with pytest.raises(UsageError, match="pooling = 'first_token'.*'end_token'"):
        refuse_unfit(Setup(head=HeadSettings(pooling="first_token")), rows)
    gradually = Finetuned("slowly", training={"unfreeze_every": 10})
    with pytest.raises(UsageError, match="'slowly' does not fit.*unfreeze_every = 10"):
        refuse_unfit(Setup(training=TrainConfig(epochs=10)), [gradually])
    refuse_unfit(Setup(), [gradually])  # as many epochs as it needs


# --- finished runs ---


def finished(
    folder: Path, texts: Sequence[str], true: Sequence[str], p_yes: Sequence[float]
) -> FinishedRun:
    """A run's folder that contains only predictions, in the format that runs write."""
    folder.mkdir(exist_ok=True)
    lines = [
        {"text": t, "label": k, "predicted": "", "probabilities": {"yes": p, "no": 1 - p}}
        for t, k, p in zip(texts, true, p_yes, strict=True)
    ]
    for name in ("test-answers.jsonl", "val-answers.jsonl"):
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return FinishedRun(folder.name, folder=folder)


def test_a_finished_run_answers_in_the_order_asked_for(tmp_path: Path):
    test = [Message("b", "no"), Message("a", "yes"), Message("c", "no")]
    split = StudySplit("test set", 0, Split([], [], test), np.array([True, False, False]))
    row = finished(tmp_path / "run", "abc", ["yes", "no", "no"], [0.9, 0.2, 0.7])
    found = row.answer(Setup(labels=LABELS), split)
    assert found.predictions.texts == ["b", "a", "c"]
    np.testing.assert_allclose(found.predictions.probabilities[:, 1], [0.2, 0.9, 0.7])
    assert found.predictions.correct.tolist() == [True, True, False]
    assert found.predictions.near_duplicates.tolist() == [True, False, False]
    assert found.val_accuracy == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("texts", "true", "facts"),
    [
        ("abd", ["yes", "no", "no"], r"'d' \(no\).*'c' \(no\)"),
        ("abc", ["no", "no", "no"], r"'a' \(no\).*'a' \(yes\)"),
        ("ab", ["yes", "no"], "2 test texts instead of 3"),
    ],
)
def test_a_run_on_other_texts_is_refused(tmp_path: Path, texts: str, true: list[str], facts: str):
    test = [Message("a", "yes"), Message("b", "no"), Message("c", "no")]
    split = StudySplit("test set", 0, Split([], [], test))
    row = finished(tmp_path / "run", texts, true, [0.5] * len(texts))
    with pytest.raises(DataError, match=f"run has.*{facts}"):
        row.test_answers(LABELS, split)
    with pytest.raises(DataError, match=r"run has labels \('yes', 'no'\)"):
        row.test_answers(("no", "maybe"), split)


def test_a_run_that_kept_no_answers_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"test-answers\.jsonl is missing"):
        FinishedRun("old", folder=tmp_path).kept("test-answers.jsonl")


def test_a_text_baseline_says_what_it_learned(setup: Setup, split: StudySplit):
    found = TextBaseline("commonest label").answer(setup, split)
    counts = [sum(m.label == label for m in split.parts.train) for label in LABELS]
    assert found.learned == LABELS[int(np.argmax(counts))]
    np.testing.assert_allclose(found.predictions.probabilities[0], np.array(counts) / sum(counts))
    tree = TextBaseline("patterns and words").answer(setup, split)
    assert tree.learned.startswith(LABELS) or " if " in tree.learned
