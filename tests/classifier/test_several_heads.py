"""Several heads trained at once: against a loop of one forward pass a head, written out here."""

import json
import math
import re
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gpt2_from_scratch.classifier import train as training_run
from gpt2_from_scratch.classifier.classifier import Classifier
from gpt2_from_scratch.classifier.settings import HeadConfig, TrainConfig
from gpt2_from_scratch.classifier.train import (
    TrainingRun,
    epoch_order,
    finetune,
    loss_and_scores,
    to_labelled,
)
from gpt2_from_scratch.data.messages import Message, Span
from gpt2_from_scratch.data.split import Split
from gpt2_from_scratch.errors import Interrupted
from gpt2_from_scratch.speed.feature_cache import Embedded, Features
from gpt2_from_scratch.storage.files import sha256_of
from gpt2_from_scratch.storage.tensors import read_tensors

CONFIG = TrainConfig(epochs=3, batch_size=4, lr=0.01, patience=3, seed=3, n_last_blocks=2)
KIND = HeadConfig("kind", labels=("see", "win"), class_weights=(1.0, 3.0), label_smoothing=0.1)
SIZE = HeadConfig(
    "size",
    "regression",
    ("letters", "words"),
    layer=1,
    final_norm=False,
    pooling="mean",
    center=(20.0, 4.0),
    scale=(5.0, 2.0),
    loss_weight=0.5,
)
MARKS = HeadConfig(
    "marks", "multi-label", ("h", "t", "r"), class_weights=(1.0, 2.0, 0.5), gradient=False
)
TAGS = HeadConfig("tags", "token-classification", ("O", "NUM"), layer=2, loss_weight=2.0)
HEADS = [KIND, SIZE, TAGS, MARKS]


def example(n: int, word: str, thing: str) -> Message:
    """A text and its labels by rule; a fifth of them lack one, each another."""
    text = f"{word} the {thing} {n}"
    words = [Span(*m.span(), "NUM" if m[0].isdigit() else "O") for m in re.finditer(r"\S+", text)]
    labels: dict[str, Any] = {
        "kind": word,
        "size": (float(len(text)), float(len(words))),
        "marks": tuple(letter for letter in "htr" if letter in thing),
        "tags": words,
    }
    labels.pop(["kind", "size", "marks", "tags", ""][n % 5], None)
    return Message(text, labels)


@pytest.fixture(scope="module")
def split() -> Split:
    things = ["house", "river", "tree", "street", "garden", "window", "letter", "road"]
    every = [
        example(n + 7 * (word == "win"), word, thing)
        for n, thing in enumerate(things)
        for word in ("win", "see")
    ]
    return Split(every[:10], every[10:], [])


def fresh(base: Path, heads: Sequence[HeadConfig] = HEADS) -> Classifier:
    return Classifier.on_base(base, heads=heads, seed=3)


def run(base: Path, split: Split, out: Path, config=CONFIG, heads=HEADS, **more):
    """(the classifier, its history, the numbers it ended with by name)"""
    out.mkdir(exist_ok=True)
    classifier = fresh(base, heads)
    history = finetune(classifier, split, config, out, **more)
    return classifier, history, read_tensors(out / "last.safetensors", "gpt2-classifier 3")[1]


# --- the loop, written out ---


def own_loss(classifier: Classifier, head: HeadConfig, texts: Sequence[Message]) -> Tensor | None:
    """The mean loss of one head over some texts, one forward pass a text; None without labels."""
    model, losses, weights = classifier.model, [], 0.0
    for text in (t for t in texts if head.name in t.label):
        label, ids = text.label[head.name], classifier.tokenizer.encode(text.text)
        x = model.wte.weight[ids] + model.wpe.weight[: len(ids)]
        for block in model.blocks[: 2 if head.layer is None else head.layer]:
            x = block(x[None])[0]
        x = model.ln_f(x) if head.final_norm else x  # (T, C)
        x = x if head.gradient else x.detach()
        outputs = x @ model.head[head.name].weight.T + model.head[head.name].bias  # (T, K)
        if head is KIND:
            soft, k = outputs[-1].log_softmax(dim=0), KIND.labels.index(label)
            weight = torch.tensor(KIND.class_weights)
            losses.append(-0.9 * weight[k] * soft[k] - 0.1 * (weight * soft).mean())
            weights += float(weight[k])
        elif head is SIZE:
            wanted = torch.tensor([(label[0] - 20) / 5, (label[1] - 4) / 2])
            losses.append(((outputs.mean(dim=0) - wanted) ** 2).mean())
            weights += 1
        elif head is MARKS:
            p = outputs[-1].sigmoid()
            y = torch.tensor([float(name in label) for name in MARKS.labels])
            positive = torch.tensor(MARKS.class_weights)
            losses.append(-(positive * y * p.log() + (1 - y) * (1 - p).log()).mean())
            weights += 1
        else:
            ends = [len(classifier.tokenizer.decode(ids[: n + 1])) for n in range(len(ids))]
            for word in label:
                first = min(n for n, end in enumerate(ends) if end > word.start)
                losses.append(-outputs[first].log_softmax(dim=0)[int(word.label == "NUM")])
                weights += 1
    return torch.stack(losses).sum() / weights if losses else None


def plain_loop(base: Path, split: Split, config: TrainConfig) -> tuple[Classifier, list[float]]:
    """The classifier in the end, and the training loss of each epoch."""
    classifier, epochs, running, step = fresh(base), list[float](), dict[str, float](), 0
    model, N = classifier.model, len(split.train)
    first = 2 - config.n_last_blocks
    trains = ("head.", "ln_f.", *(f"blocks.{n}." for n in range(first, 2)))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(trains))
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() == 2]},
        {"params": [p for p in trained if p.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay)
    steps = config.epochs * math.ceil(N / config.batch_size)
    for epoch in range(1, config.epochs + 1):
        order, shown = epoch_order(N, config.seed, epoch), 0.0
        for begin in range(0, N, config.batch_size):
            batch = [split.train[n] for n in order[begin : begin + config.batch_size]]
            rise = max(1, round(0.1 * steps))
            fall = (1 + math.cos(math.pi * (step - rise) / (steps - rise))) / 2
            for group in optimizer.param_groups:
                group["lr"] = config.lr * ((step + 1) / rise if step < rise else fall)
            optimizer.zero_grad()
            for head in HEADS:
                if (loss := own_loss(classifier, head, batch)) is None:
                    continue
                now = loss.item()
                shown += head.loss_weight * now * len(batch) / N
                mean = running.get(head.name, now)
                running[head.name] = 0.95 * mean + 0.05 * now
                (head.loss_weight * loss / (mean if config.balance_losses else 1.0)).backward()
            optimizer.step()
            step += 1
        epochs.append(shown)
    return classifier, epochs


def close(found: dict[str, Tensor], expected: dict[str, Tensor], atol: float) -> None:
    """But for key biases: they have no gradient but rounding, which AdamW blows up at will."""
    for name, value in found.items():
        other = expected[name].detach()
        if name.endswith("c_attn.bias"):
            C = len(other) // 3
            value, other = (
                value[[*range(C), *range(2 * C, 3 * C)]],
                other[[*range(C), *range(2 * C, 3 * C)]],
            )
        torch.testing.assert_close(value, other, atol=atol, rtol=0, msg=lambda m: f"{name}: {m}")  # noqa: B023


@pytest.mark.parametrize(
    "changes",
    [{}, {"n_last_blocks": 1}, {"balance_losses": True}, {"micro_batch": 3}]
    + [{"balance_losses": True, "micro_batch": 1}],
)
def test_joint_training_is_the_sum_of_the_heads(tiny_checkpoint, split, tmp_path, changes):
    """Losses with their weights, over the texts that have a label for the head."""
    config = replace(CONFIG, **changes)
    _, history, last = run(tiny_checkpoint, split, tmp_path, config)
    plain, losses = plain_loop(tiny_checkpoint, split, config)
    assert [epoch.train_loss for epoch in history] == pytest.approx(losses, abs=1e-4)
    assert losses[-1] < 0.8 * losses[0]
    trained = {n for n, p in plain.model.named_parameters() if p.requires_grad}
    assert last.keys() == trained and len(trained) == 12 * config.n_last_blocks + 2 + 8
    close(last, dict(plain.model.named_parameters()), 1e-4)


def test_validation_sums_the_heads_too(tiny_checkpoint, split, tmp_path):
    classifier = fresh(tiny_checkpoint)
    loss, scores = loss_and_scores(classifier, to_labelled(classifier, split.val))
    each = [head.loss_weight * own_loss(classifier, head, split.val).item() for head in HEADS]
    assert loss == pytest.approx(sum(each), abs=1e-4)
    assert [*scores] == [head.name for head in HEADS]
    for name, found in scores.items():
        labels = [m.label[name] for m in split.val if name in m.label]
        assert found.total == (sum(map(len, labels)) if name == "tags" else len(labels))


# --- losses of other sizes ---


def kilo(head: HeadConfig) -> HeadConfig:
    """The same values in units a thousand times smaller, as a table might have them."""
    return replace(head, center=(), scale=(0.005, 0.002))


def test_balanced_losses_do_not_hang_on_units(tiny_checkpoint, split, tmp_path):
    """From the first step on, which AdamW remembers for long: the loss begins at about 10^7."""
    config = replace(CONFIG, epochs=6, patience=6)
    losses = {}
    for name, changes in (("as they are", {}), ("balanced", {"balance_losses": True})):
        heads = [KIND, replace(kilo(SIZE), layer=2, loss_weight=1.0)]
        folder = tmp_path / name
        classifier, _, _ = run(tiny_checkpoint, split, folder, replace(config, **changes), heads)
        last = Classifier.load(folder / "last.safetensors", tiny_checkpoint)
        losses[name] = own_loss(last, KIND, split.train).item()
    assert losses["balanced"] < losses["as they are"] / 2


# --- what a head may change ---


def test_a_head_without_gradient_leaves_the_blocks_as_they_were(tiny_checkpoint, split, tmp_path):
    with_it = run(tiny_checkpoint, split, tmp_path / "with")[2]
    without = run(tiny_checkpoint, split, tmp_path / "without", heads=HEADS[:-1])[2]
    assert with_it.keys() - without.keys() == {"head.marks.weight", "head.marks.bias"}
    close(without, with_it, 1e-5)
    begun = dict(fresh(tiny_checkpoint).model.named_parameters())
    assert (with_it["head.marks.weight"] - begun["head.marks.weight"]).abs().max() > 0.01
    pulls = [*HEADS[:-1], replace(MARKS, gradient=True)]  # the control
    other = run(tiny_checkpoint, split, tmp_path / "pulls", heads=pulls)[2]
    with pytest.raises(AssertionError):
        close(without, other, 1e-3)


def test_a_head_that_does_not_train_stays_to_the_bit(tiny_checkpoint, split, tmp_path):
    """Its loss counts all the same: the block follows it."""
    fixed = [KIND, replace(TAGS, trainable=False)]
    begun = dict(fresh(tiny_checkpoint, fixed).model.named_parameters())
    classifier, _, last = run(tiny_checkpoint, split, tmp_path / "fixed", heads=fixed)
    assert torch.equal(classifier.model.head["tags"].weight, begun["head.tags.weight"])
    alone = run(tiny_checkpoint, split, tmp_path / "alone", heads=[KIND])[2]
    name = "blocks.1.mlp.c_fc.weight"
    assert (last[name] - alone[name]).abs().max() > 1e-3
    again = Classifier.load(tmp_path / "fixed", tiny_checkpoint)  # saved all the same
    assert torch.equal(again.model.head["tags"].weight, begun["head.tags.weight"])


# --- what is computed once ---


@pytest.mark.parametrize(
    ("layers", "n_last_blocks", "depth"),
    [
        ((None, None), 1, 1),
        ((None, 1), 1, 1),
        ((1, 1), 0, 1),
        ((None, None), 0, 2),
        ((None, 0), 1, 0),
    ],
)
def test_frozen_blocks_are_computed_once_up_to_the_lowest_layer_read(
    tiny_checkpoint, split, tmp_path, monkeypatch, layers, n_last_blocks, depth
):
    """And the end is that of computing them again at each use."""
    heads = [replace(KIND, layer=layers[0]), replace(MARKS, layer=layers[1], gradient=True)]
    config, taken = replace(CONFIG, n_last_blocks=n_last_blocks), []
    plain = Classifier.texts

    def texts(self, encoded, **more):
        taken.append(plain(self, encoded, **more))
        return taken[-1]

    def embedded(self, encoded, **more):
        return Embedded(self.model, encoded, self.tokenizer.end_of_text_id)

    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "texts", texts)
        kept = run(tiny_checkpoint, split, tmp_path / "kept", config, heads)
        patch.setattr(Classifier, "texts", embedded)
        again = run(tiny_checkpoint, split, tmp_path / "again", config, heads)
    assert {(type(t), t.depth) for t in taken} == {(Features if depth else Embedded, depth)}
    assert [e.train_loss for e in kept[1]] == pytest.approx(
        [e.train_loss for e in again[1]], abs=1e-4
    )
    close(kept[2], again[2], 1e-4)


# --- going on after an interruption ---

DRAWING = [replace(KIND, dropout=0.3, hidden=(6,), activation="tanh"), SIZE, TAGS, MARKS]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"unfreeze_every": 1, "epochs": 4},
        {"clip": 0.5, "micro_batch": 3, "balance_losses": True, "rate_decay": 2.0},
    ],
)
def test_a_run_that_was_stopped_ends_with_the_same_bits(
    tiny_checkpoint, split, tmp_path, monkeypatch, changes
):
    """Stopped in the first epoch, at the end of the second, in the third; with dropout."""
    config, out = replace(CONFIG, **changes), tmp_path / "stopped"
    unbroken, _, _ = run(tiny_checkpoint, split, tmp_path / "unbroken", config, DRAWING)
    plain = TrainingRun.step

    def step(self: TrainingRun, batch: list[int]) -> None:
        plain(self, batch)
        if self.at.step in (2, 6, 7):
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "step", step)
        for n, resume in ((2, False), (6, True), (7, True)):
            with pytest.raises(Interrupted, match=f"after step {n} of"):
                run(tiny_checkpoint, split, out, config, DRAWING, resume=resume)
    torch.rand(7)  # whatever else drew random numbers
    classifier, history, _ = run(tiny_checkpoint, split, out, config, DRAWING, resume=True)
    assert len(history) == config.epochs
    for name in ("metrics.jsonl", "last.safetensors", "best.safetensors"):
        assert sha256_of(out / name) == sha256_of(tmp_path / "unbroken" / name), name
    for ours, theirs in zip(
        classifier.model.parameters(), unbroken.model.parameters(), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_dropout_draws_another_time_at_each_step(tiny_checkpoint, split, tmp_path, monkeypatch):
    """The control of the test above: there is something to draw."""
    still = run(
        tiny_checkpoint, split, tmp_path / "still", heads=[replace(DRAWING[0], dropout=0.0)]
    )
    drawn = run(tiny_checkpoint, split, tmp_path / "drawn", heads=DRAWING[:1])
    assert still[1][0].train_loss != pytest.approx(drawn[1][0].train_loss, abs=1e-3)


@pytest.mark.parametrize("name", ["step", "end_epoch"])
def test_the_best_epoch_is_kept_as_it_was_when_blocks_join(
    tiny_checkpoint, split, tmp_path, monkeypatch, name
):
    """A run that goes on saves the same best again, not what joined after it."""
    config = replace(CONFIG, unfreeze_every=1, epochs=3)
    monkeypatch.setattr(training_run, "best_epoch", lambda history: history[0])
    run(tiny_checkpoint, split, tmp_path / "unbroken", config)
    plain = getattr(TrainingRun, name)

    def stopped(self: TrainingRun, *given: Any) -> None:
        plain(self, *given)
        if self.at.step == {"step": 5, "end_epoch": 9}[name]:  # in the second, behind the last
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, name, stopped)
        with pytest.raises(Interrupted):
            run(tiny_checkpoint, split, tmp_path / "stopped", config)
    run(tiny_checkpoint, split, tmp_path / "stopped", config, resume=True)
    best = read_tensors(tmp_path / "unbroken" / "best.safetensors", "gpt2-classifier 3")[1]
    assert all(name.startswith(("head.", "ln_f.")) for name in best)
    for file in ("best.safetensors", "last.safetensors"):
        found, expected = (sha256_of(tmp_path / run / file) for run in ("stopped", "unbroken"))
        assert found == expected, file


def test_the_history_tells_each_head(tiny_checkpoint, split, tmp_path):
    classifier, history, _ = run(tiny_checkpoint, split, tmp_path)
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert [*line["heads"]] == [head.name for head in HEADS]
    assert line["val_score"] == pytest.approx(sum(line["heads"].values()) / 4)
    assert history[-1].heads == line["heads"]
    found = classifier.predict(["win the road 9"])[0].answers
    assert [*found] == [*line["heads"]]
