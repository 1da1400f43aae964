"""A number per token: targets, loss, gradients, answers and scores against plain loops."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from task_targets import TEXT, owners, targets_of
from three_blocks import TEXTS, classifier_with, plain_outputs

from gpt2_from_scratch.classifier.classifier import Classifier
from gpt2_from_scratch.classifier.hugging_face import to_transformers
from gpt2_from_scratch.classifier.onnx_graph import heads_to_export
from gpt2_from_scratch.classifier.settings import HeadConfig, HeadSettings, TrainConfig
from gpt2_from_scratch.classifier.tasks import TASKS, answer_columns
from gpt2_from_scratch.classifier.tasks.token_regression import TokenValue, TokenValues
from gpt2_from_scratch.classifier.train import finetune, freeze
from gpt2_from_scratch.data.formats import load_examples, values_in, write_examples
from gpt2_from_scratch.data.messages import Message
from gpt2_from_scratch.data.split import Split
from gpt2_from_scratch.errors import DataError, UsageError
from gpt2_from_scratch.gpt2.tokenizer import Tokenizer
from gpt2_from_scratch.runs.recipes import train_classifier
from gpt2_from_scratch.runs.results import evaluate_classifier

TASK = TASKS["token-regression"]
HEAD = HeadConfig("reward", "token-regression", ("reward",), center=(2.0,), scale=(0.5,))
PLAIN = HeadConfig("reward", "token-regression", ("reward",))


@pytest.fixture(scope="module")
def tiny(tiny_checkpoint: Path) -> Tokenizer:
    return Tokenizer(tiny_checkpoint)


def plain_targets(tokenizer: Tokenizer, text: str, label: Any, ids: list[int]) -> list[float]:
    """The target of each token: walk through the characters and their bytes."""
    if not isinstance(label, tuple):
        return [label] * len(ids)
    owner, found = owners(tokenizer, ids), [math.nan] * len(ids)
    for position, value in label:
        last_byte = len(text[:position].encode()) - 1
        if last_byte < len(owner):
            found[owner[last_byte]] = value
    return found


# --- targets ---


@pytest.mark.parametrize("max_tokens", [3, 32])
def test_each_token_has_the_value_after_its_characters(tiny: Tokenizer, max_tokens: int) -> None:
    every = tuple((n, n / 10) for n in range(1, len(TEXT) + 1))
    pairs = [(TEXT, every), (TEXT, every[::3]), (TEXT, ()), (TEXT, 1.5), (TEXT, None), ("win", 2)]
    targets, encoded = targets_of(tiny, PLAIN, *pairs, max_tokens=max_tokens)
    for (text, label), ids, found in zip(pairs, encoded, targets.values, strict=True):
        expected = plain_targets(tiny, text, math.nan if label is None else label, ids)
        np.testing.assert_allclose(found, expected, atol=1e-6)
    counts = [sum(not math.isnan(x) for x in row.tolist()) for row in targets.values]
    assert targets.weights.tolist() == targets.counts.tolist() == counts
    assert counts[2] == counts[4] == 0 and counts[3] == len(encoded[3])


def test_targets_are_standardised_and_padded_without_a_target(tiny: Tokenizer) -> None:
    targets, encoded = targets_of(tiny, HEAD, ("the cat", 3.0), ("the", ((3, 1.0),)))
    batch = targets.batch([1, 0])
    assert batch.shape == (2, len(encoded[0])) and (batch[1] == 2.0).all()
    assert batch[0, len(encoded[1]) - 1] == -2.0
    assert batch[0, len(encoded[1]) :].isnan().all()


@pytest.mark.parametrize(
    "label",
    ["1", ((0, 1.0),), ((99, 1.0),), ((2, 1.0), (2, 1.0)), ((1, 1.0, 2.0),), (1.0,), ((1.0, 1.0),)],
)
def test_other_labels_are_refused(tiny: Tokenizer, label: Any) -> None:
    with pytest.raises(DataError):
        targets_of(tiny, HEAD, ("the cat", label))


def test_a_value_that_is_no_number_is_refused(tiny: Tokenizer) -> None:
    for value in ("1", math.nan, 1e300):
        with pytest.raises(DataError, match="not a number"):
            targets_of(tiny, HEAD, ("the cat", ((1, value),)))


# --- loss ---


def test_the_loss_and_its_gradient_are_those_of_a_loop(tiny: Tokenizer) -> None:
    """Tokens without a target, padding, and texts without a target have neither."""
    pairs = [("the cat", ((3, 1.0), (5, -2.0))), (TEXT, 0.5), ("win", None)]
    targets, encoded = targets_of(tiny, HEAD, *pairs)
    lengths = torch.tensor([len(ids) for ids in encoded])
    T, generator = int(lengths.max()), torch.Generator().manual_seed(1)
    outputs = torch.randn(3, T, 1, generator=generator, requires_grad=True)
    batch = targets.batch([0, 1, 2])
    loss = TASK.loss_sum(HEAD, outputs, batch, lengths)
    loss.backward()
    total, right, gradient = 0.0, 0.0, np.zeros((3, T, 1))
    for n, ((text, label), ids) in enumerate(zip(pairs, encoded, strict=True)):
        if label is None:
            continue
        for t, value in enumerate(plain_targets(tiny, text, label, ids)):
            if not math.isnan(value):
                error = outputs[n, t, 0].item() - (value - 2.0) / 0.5
                total += error**2
                right += 1 - error**2
                gradient[n, t, 0] = 2 * error
    assert loss.item() == pytest.approx(total, rel=1e-5)
    assert TASK.correct_sum(HEAD, outputs.detach(), batch, lengths) == pytest.approx(
        right, rel=1e-5
    )
    np.testing.assert_allclose(outputs.grad, gradient, atol=1e-4)


# --- answers ---


def test_answers_are_those_of_the_loop(base: Path) -> None:
    classifier = classifier_with(base, HEAD)
    encoded, _ = classifier.encode(TEXTS)
    for text, ids, found in zip(TEXTS, encoded, classifier.predict(TEXTS), strict=True):
        outputs = plain_outputs(classifier, HEAD, ids)[:, 0].tolist()
        tokens, read = found.answer.tokens, b""
        assert len(tokens) == len(ids)
        for token, n, output in zip(tokens, ids, outputs, strict=True):
            read += classifier.tokenizer.token_bytes(n)
            assert token.value == pytest.approx(output * 0.5 + 2.0, abs=1e-4)
            assert token.token == classifier.tokenizer.decode([n])
            assert token.end == min(len(text), len(read.decode(errors="ignore")))
        assert found.answer.in_words() and json.loads(found.as_json(1))["tokens"]
        values = [token.value for token in tokens]
        assert found.answer.after([1, len(text) + 1])[1] == values[-1]


def test_a_head_answers_after_each_token_of_a_generated_text(base: Path) -> None:
    classifier = classifier_with(base, HEAD)
    outputs = torch.tensor([[1.0], [-2.0]])
    found = TASK.answers_by_token(HEAD, outputs, classifier.tokenizer)
    assert [answer.values for answer in found] == [{"reward": 2.5}, {"reward": 1.0}]


def test_what_does_not_fit_is_refused(base: Path) -> None:
    classifier = classifier_with(base, HEAD)
    with pytest.raises(UsageError, match="token-regression"):
        to_transformers(classifier)
    with pytest.raises(UsageError, match="token-regression"):
        heads_to_export(classifier, "")
    with pytest.raises(UsageError, match="columns of a table"):
        answer_columns([HEAD], [], [])
    with pytest.raises(UsageError, match="every token"):
        classifier.predict_by_token("the cat")
    with pytest.raises(UsageError, match="nothing to explain"):
        TASK.evidence(HEAD, torch.zeros(1, 1), 0)
    with pytest.raises(UsageError, match="one value"):
        HeadConfig(task="token-regression", labels=("a", "b"))
    with pytest.raises(UsageError, match="no pooling"):
        HeadSettings(task="token-regression", pooling="mean")


# --- scores ---


def test_scores_are_those_of_the_positions() -> None:
    tokens = [TokenValue("ab", 2, 1.0), TokenValue("c", 3, 4.0), TokenValue("de", 5, 2.0)]
    answer, texts = TokenValues(tokens), ["abcdefg", "abcde"]
    labels = [((1, 0.0), (2, 1.0), (3, 5.0), (7, 2.0)), 3.0]
    found = TASK.scores(PLAIN, [*labels, None], [answer] * 3, [*texts, ""])
    true, predicted = np.array([0, 1, 5, 2, 3.0]), np.array([1, 1, 4, 2, 2.0])
    rest, spread = ((true - predicted) ** 2).sum(), ((true - true.mean()) ** 2).sum()
    assert found.total == 5 and found.main == pytest.approx(1 - rest / spread)
    assert found.values[0].mae == pytest.approx(3 / 5)
    assert "5 positions" in found.as_table() and "r2" in found.as_json()
    with pytest.raises(DataError, match="no text has a value"):
        TASK.scores(PLAIN, [()], [answer], ["abcde"])


def test_values_in_labels() -> None:
    assert values_in(2.5) == [(2.5,)] and values_in(((1, 2.0), (4, 3.0))) == [(2.0,), (3.0,)]
    assert values_in((1.0, 2.0)) == [(1.0, 2.0)] and values_in(()) == []


# --- files ---


@pytest.mark.parametrize(
    "label",
    ["[[0, 1]]", "[[4, 1]]", "[[2, 1], [1, 1]]", "[[1]]", "[[1.5, 1]]", '[[1, "a"]]', '"a"'],
)
def test_rows_with_other_labels_are_refused(tmp_path: Path, label: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(
        f'{{"text": "abc", "label": [[1, 0.5], [3, 2]]}}\n{{"text": "abd", "label": {label}}}\n'
    )
    with pytest.raises(DataError, match="line 2"):
        load_examples(path, "token-regression")


def test_a_table_has_a_number_for_all_tokens(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,label\nabc,0.5\nabd,-2\n")
    found = load_examples(path, "token-regression")
    assert [message.label for message in found] == [0.5, -2.0]


# --- training ---


def digits_to_come(text: str, discount: float = 0.8) -> tuple[tuple[int, float], ...]:
    """After each character: the digits that follow, each counted discount^(its distance - 1)."""
    values, value = [], 0.0
    for character in reversed(text):
        values.append(value)
        value = character.isdigit() + discount * value
    return tuple(enumerate(reversed(values), start=1))


def messages(count: int) -> list[Message]:
    draw = np.random.RandomState(0)
    texts = [
        f"{'win' if draw.rand() < 0.5 else 'see'} the {draw.randint(9)} {n}" for n in range(count)
    ]
    return [Message(text, digits_to_come(text)) for text in texts]


def test_digits_to_come_by_hand() -> None:
    assert digits_to_come("a12", 0.5) == ((1, 1.5), (2, 1.0), (3, 0.0))


@pytest.mark.slow
def test_training_is_that_of_a_loop(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """One epoch of the head alone: the loss is the mean over the tokens of each batch."""
    every = messages(12)
    split, config = (
        Split(every[:8], every[8:], []),
        TrainConfig(n_last_blocks=0, final_norm=False, epochs=1, batch_size=8, lr=0.01),
    )
    classifier = Classifier.on_base(tiny_checkpoint, heads=[HEAD])
    freeze(classifier, config)
    weight = classifier.model.head.weight.detach().clone()
    bias = classifier.model.head.bias.detach().clone()
    (epoch,) = finetune(classifier, split, config, tmp_path)
    errors = []
    for message in split.train:
        ids = classifier.encode([message.text])[0][0]
        with torch.no_grad():
            states = classifier.model.hidden(torch.tensor([ids]))[0]
            outputs = (states @ weight.T + bias)[:, 0].tolist()
        wanted = plain_targets(classifier.tokenizer, message.text, message.label, ids)
        errors += [(o - (w - 2.0) / 0.5) ** 2 for o, w in zip(outputs, wanted, strict=True)]
    assert epoch.train_loss == pytest.approx(np.mean(errors), rel=1e-4)


@pytest.mark.slow
def test_a_run_is_trained_saved_loaded_and_scored(tiny_checkpoint: Path, tmp_path: Path) -> None:
    write_examples(tmp_path / "values.jsonl", messages(60))
    head = HeadSettings(task="token-regression", labels="digits")
    training = TrainConfig(epochs=4, lr=0.01, n_last_blocks=1)
    run = train_classifier(
        tiny_checkpoint, tmp_path / "values.jsonl", training, head, run=tmp_path / "run"
    )
    assert run.scores.main > 0
    run.write_report()
    again = Classifier.load(tmp_path / "run", tiny_checkpoint)
    assert again.description.head.labels == ("digits",) and again.description.head.scale
    assert evaluate_classifier(again, messages(30)) == evaluate_classifier(
        run.classifier, messages(30)
    )
    more = train_classifier(
        tiny_checkpoint, tmp_path / "values.jsonl", start=tmp_path / "run", run=tmp_path / "more"
    )
    assert more.classifier.description.head.center == again.description.head.center
