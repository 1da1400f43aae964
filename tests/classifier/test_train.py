"""Finetuning learns, leaves what is frozen untouched to the bit, and is a function of its seed."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from said import listen

from gpt2_from_scratch.classifier.classifier import Classifier
from gpt2_from_scratch.classifier.freezing import set_trainable
from gpt2_from_scratch.classifier.settings import TrainConfig
from gpt2_from_scratch.classifier.train import (
    Epoch,
    best_epoch,
    epoch_order,
    finetune,
    loss_and_scores,
    rate_factor,
    to_labelled,
)
from gpt2_from_scratch.data.messages import Message
from gpt2_from_scratch.data.split import Split
from gpt2_from_scratch.errors import DataError, GPT2Error, UsageError

CONFIG = TrainConfig(epochs=6, batch_size=4, lr=0.01, patience=6, seed=3)


@pytest.fixture
def split() -> Split:
    """Two kinds of texts that differ in one word; every text another."""
    things = ["house", "river", "tree", "street", "garden", "window", "letter", "road"]
    messages = [
        Message(f"{word} the {thing} {n}", label)
        for n, thing in enumerate(things)
        for word, label in (("win", "spam"), ("see", "ham"))
    ]
    return Split(messages[:10], messages[10:13], messages[13:])


def run(base: Path, split: Split, out: Path, config: TrainConfig = CONFIG, **settings):
    out.mkdir()
    classifier = Classifier.on_base(base, ["ham", "spam"], seed=config.seed, **settings)
    history = finetune(classifier, split, config, out)
    return classifier, history


def test_the_loss_falls_and_frozen_tensors_keep_their_bits(
    tiny_checkpoint: Path, split: Split, tmp_path: Path
) -> None:
    before = Classifier.on_base(tiny_checkpoint, ["ham", "spam"], seed=3).model.state_dict()
    classifier, history = run(tiny_checkpoint, split, tmp_path / "run")
    assert history[-1].train_loss < 0.5 * history[0].train_loss
    for name, value in classifier.model.state_dict().items():
        trains = name.startswith(("blocks.1.", "ln_f.", "head."))
        assert torch.equal(value, before[name]) != trains, name


def test_training_equals_a_plain_loop(tiny_checkpoint: Path, split: Split, tmp_path: Path) -> None:
    """The same batches through an independent loop: one text at a time, rates written out."""
    config = replace(CONFIG, epochs=2)
    _, history = run(tiny_checkpoint, split, tmp_path / "run", config)
    plain = Classifier.on_base(tiny_checkpoint, ["ham", "spam"], seed=3)
    model, tokenizer = plain.model, plain.tokenizer
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(("blocks.1.", "ln_f.", "head.")))
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.dim() == 2]  # these decay, biases and norms do not
    others = [p for p in trained if p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices}, {"params": others, "weight_decay": 0.0}],
        lr=config.lr,
        weight_decay=config.weight_decay,
    )
    steps, step = 2 * math.ceil(len(split.train) / 4), 0
    for epoch in (1, 2):
        order, losses = epoch_order(len(split.train), 3, epoch), []
        for first in range(0, len(order), 4):
            batch = [split.train[n] for n in order[first : first + 4]]
            logits = [model(torch.tensor([tokenizer.encode(m.text)]))[0, -1] for m in batch]
            labels = torch.tensor([int(m.label == "spam") for m in batch])
            loss = F.cross_entropy(torch.stack(logits), labels)
            losses += [loss.item()] * len(batch)
            rise = max(1, round(0.1 * steps))
            share = (
                (step + 1) / rise
                if step < rise
                else (1 + math.cos(math.pi * (step - rise) / (steps - rise))) / 2
            )
            for group in optimizer.param_groups:
                group["lr"] = config.lr * share
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
        assert history[epoch - 1].train_loss == pytest.approx(sum(losses) / len(losses), abs=1e-5)
    # compared by answers: the key bias has no gradient but rounding, which AdamW blows up at will
    last = Classifier.load(tmp_path / "run" / "last.safetensors", tiny_checkpoint)
    with torch.no_grad():
        for message in split.test:
            plain_logits = model(torch.tensor([tokenizer.encode(message.text)]))[0, -1]
            ours = last.logits(last.encode([message.text])[0])[0]
            torch.testing.assert_close(ours, plain_logits, atol=1e-4, rtol=0)


def test_two_runs_of_one_seed_are_equal_to_the_bit(
    tiny_checkpoint: Path, split: Split, tmp_path: Path
) -> None:
    first, _ = run(tiny_checkpoint, split, tmp_path / "first")
    torch.rand(5)  # whatever else drew random numbers
    second, _ = run(tiny_checkpoint, split, tmp_path / "second")
    for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)
    other, _ = run(tiny_checkpoint, split, tmp_path / "other", replace(CONFIG, seed=4))
    assert not torch.equal(first.model.head.weight, other.model.head.weight)


def test_the_run_folder_tells_the_run(tiny_checkpoint: Path, split: Split, tmp_path: Path) -> None:
    classifier, history = run(tiny_checkpoint, split, tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [vars(epoch) for epoch in history]
    best = Classifier.load(tmp_path / "run", tiny_checkpoint)
    val = to_labelled(best, split.val)
    assert torch.equal(best.all_logits(val.texts), classifier.all_logits(val.texts))
    assert loss_and_scores(best, val)[1]["label"].main == max(epoch.val_score for epoch in history)
    assert loss_and_scores(best, val)[0] == best_epoch(history).val_loss
    last = Classifier.load(tmp_path / "run" / "last.safetensors", tiny_checkpoint)
    assert loss_and_scores(last, val)[0] == history[-1].val_loss


def test_it_stops_when_validation_no_longer_rises(
    tiny_checkpoint: Path, split: Split, tmp_path: Path
) -> None:
    swapped = {"ham": "spam", "spam": "ham"}
    contrary = replace(split, val=[Message(m.text, swapped[m.label]) for m in split.train[:4]])
    config = replace(CONFIG, epochs=30, patience=2, lr=0.001)
    _, history = run(tiny_checkpoint, contrary, tmp_path / "run", config)
    assert len(history) == best_epoch(history).epoch + 2 < 30


def test_a_loss_that_is_no_number_stops_the_run(
    tiny_checkpoint: Path, split: Split, tmp_path: Path
) -> None:
    with pytest.raises(GPT2Error, match="the loss became .* in epoch 1, step 2"):
        run(tiny_checkpoint, split, tmp_path / "run", replace(CONFIG, lr=1e30, warmup=0.0))
    report = json.loads((tmp_path / "run" / "nan_report.json").read_text())
    shown = epoch_order(10, CONFIG.seed, 1)[4:8]
    assert report["texts"] == [split.train[n].text for n in shown] and report["step"] == 2


@pytest.mark.parametrize(
    "wrong",
    [{"epochs": 0}, {"batch_size": 0}, {"lr": 0.0}, {"lr": math.nan}, {"lr": math.inf}]
    + [{"warmup": 2.0}, {"seed": -1}, {"seed": 2**32}, {"weight_decay": math.inf}],
)
def test_senseless_settings_are_refused(wrong: dict) -> None:
    (name,) = wrong
    with pytest.raises(UsageError, match=name):
        replace(CONFIG, **wrong)


def test_a_validation_loss_that_is_no_number_is_never_the_best(
    tiny_checkpoint: Path, split: Split, tmp_path: Path
) -> None:
    """One step ruins the weights, so only the look at the validation part can see it."""
    config = replace(CONFIG, epochs=1, batch_size=1000, lr=1e30, warmup=0.0)
    with pytest.raises(GPT2Error, match="the validation loss became"):
        run(tiny_checkpoint, split, tmp_path / "run", config)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["nan_report.json"]


def test_messages_that_are_cut_are_counted(tiny_checkpoint: Path, capsys) -> None:
    classifier = Classifier.on_base(tiny_checkpoint, ["ham", "spam"], max_tokens=4)
    set_trainable(classifier.model)
    said = listen()
    messages = [Message("the", "ham"), Message("the house at ten", "spam")]
    to_labelled(classifier, messages)
    assert said == ["1 of 2 messages are longer than 4 tokens and were cut"]


def test_an_unknown_label_is_named(tiny_checkpoint: Path) -> None:
    classifier = Classifier.on_base(tiny_checkpoint, ["ham", "spam"])
    with pytest.raises(DataError, match="Spam"):
        to_labelled(classifier, [Message("x", "Spam")])


def test_the_best_epoch_is_the_latest_of_the_most_accurate() -> None:
    accuracies = [0.5, 0.9, 0.8, 0.9, 0.7]
    history = [Epoch(n, 0.1, 1.0, 0.1 * n, a) for n, a in enumerate(accuracies, start=1)]
    assert best_epoch(history).epoch == 4 and best_epoch(history[:3]).epoch == 2


def test_the_rate_rises_and_falls_to_nothing() -> None:
    shares = [rate_factor(step, 100, 0.1) for step in range(101)]
    assert shares[0] == 0.1 and shares[9] == shares[10] == 1.0
    assert shares[55] == pytest.approx(0.5) and shares[100] == pytest.approx(0)
    assert sorted(shares[10:], reverse=True) == shares[10:]


def test_the_order_of_messages_is_pinned() -> None:
    """numpy's RandomState is frozen, so this order holds on every machine, for good."""
    assert epoch_order(8, 123, 1).tolist() == [2, 7, 4, 3, 1, 5, 6, 0]
    assert epoch_order(8, 123, 2).tolist() == [5, 6, 1, 3, 7, 0, 2, 4]


@pytest.mark.parametrize(
    "pooling", ["last_token", "last_position", "first_token", "mean", "mean_position"]
)
def test_every_pooling_trains(
    tiny_checkpoint: Path, split: Split, tmp_path: Path, pooling: str
) -> None:
    _, history = run(tiny_checkpoint, split, tmp_path / "run", pooling=pooling)
    assert history[-1].train_loss < history[0].train_loss


@pytest.mark.parametrize(
    "wrong",
    [{"epochs": "3"}, {"epochs": 1.5}, {"epochs": True}, {"lr": "x"}, {"seed": None}, {"lr": True}]
    + [{"final_norm": "no"}, {"n_last_blocks": 0.5}],
)
def test_settings_of_another_type_are_refused(wrong: dict) -> None:
    with pytest.raises(UsageError, match="must be of type"):
        replace(CONFIG, **wrong)
    assert replace(CONFIG, lr=1).lr == 1  # a whole number is a number
