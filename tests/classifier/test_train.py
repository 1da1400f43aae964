"""Finetuning equals plain loops, keeps frozen parameters, and depends only on its seed.

The tests are about one head first, then about LoRA, then about several heads at once.
"""

import json
import math
import re
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from said import listen
from tiny import write_checkpoint
from torch import Tensor
from torch.func import functional_call

from gpt2_from_scratch.classifier import train as training_run
from gpt2_from_scratch.classifier.classifier import Classifier
from gpt2_from_scratch.classifier.freezing import frozen_depth, set_trainable
from gpt2_from_scratch.classifier.heads import class_logits
from gpt2_from_scratch.classifier.settings import HeadConfig, TrainConfig
from gpt2_from_scratch.classifier.train import (
    Epoch,
    TrainingRun,
    best_epoch,
    epoch_order,
    finetune,
    format_epoch,
    freeze,
    loss_and_scores,
    rate_factor,
    to_labelled,
)
from gpt2_from_scratch.data.messages import Message, Span
from gpt2_from_scratch.data.split import Split
from gpt2_from_scratch.errors import DataError, GPT2Error, Interrupted, ResourceError, UsageError
from gpt2_from_scratch.gpt2.config import LoRAConfig
from gpt2_from_scratch.gpt2.lora import lora_names
from gpt2_from_scratch.speed.feature_cache import Embedded, Features
from gpt2_from_scratch.speed.feature_store import FeatureStore
from gpt2_from_scratch.storage.files import sha256_of
from gpt2_from_scratch.storage.states import newest_state, save_state
from gpt2_from_scratch.storage.tensors import read_tensors

LABELS = ["ham", "spam"]
CONFIG = TrainConfig(epochs=6, batch_size=4, lr=0.01, patience=6, seed=3)


@pytest.fixture
def split() -> Split:
    """Two kinds of texts that differ in one word; all texts are distinct."""
    things = ["house", "river", "tree", "street", "garden", "window", "letter", "road"]
    messages = [
        Message(f"{word} the {thing} {n}", label)
        for n, thing in enumerate(things)
        for word, label in (("win", "spam"), ("see", "ham"))
    ]
    return Split(messages[:10], messages[10:13], messages[13:])


def run(base: Path, split: Split, out: Path, config: TrainConfig = CONFIG, **settings):
    """A new classifier, finetuned in `out`, and its history."""
    out.mkdir()
    classifier = Classifier.on_base(base, LABELS, seed=config.seed, **settings)
    history = finetune(classifier, split, config, out)
    return classifier, history


def ids_of(classifier: Classifier, text: str) -> list[int]:
    """The tokens of a text and a newline, whose state a head reads by default."""
    return [*classifier.tokenizer.encode(text), *classifier.tokenizer.encode("\n")]


def train_plainly(
    config: TrainConfig,
    trained: Sequence[Tensor],
    messages: Sequence[Message],
    losses_of: Callable[[list[Message]], list[tuple[float, Tensor]]],
) -> list[float]:
    """AdamW with hand-written learning rates and order; returns each epoch's mean training loss.

    `losses_of` returns, for a batch, pairs: the loss to report, and the loss to differentiate.
    """
    groups = [  # matrices decay, biases and norms do not
        {"params": [p for p in trained if p.dim() > 1]},
        {"params": [p for p in trained if p.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay)
    N, epochs, step = len(messages), [], 0
    steps = config.epochs * math.ceil(N / config.batch_size)
    for epoch in range(1, config.epochs + 1):
        order, total = epoch_order(N, config.seed, epoch), 0.0
        for first in range(0, N, config.batch_size):
            batch = [messages[n] for n in order[first : first + config.batch_size]]
            rise = max(1, round(0.1 * steps))
            fall = (1 + math.cos(math.pi * (step - rise) / (steps - rise))) / 2
            later = {"cosine": fall, "constant": 1.0}[config.schedule]
            for group in optimizer.param_groups:
                group["lr"] = config.lr * ((step + 1) / rise if step < rise else later)
            optimizer.zero_grad()
            for reported, loss in losses_of(batch):
                total += reported * len(batch)
                loss.backward()
            optimizer.step()
            step += 1
        epochs.append(total / N)
    return epochs


def cross_entropy(batch: list[Message], logits: list[Tensor]) -> list[tuple[float, Tensor]]:
    loss = F.cross_entropy(
        torch.stack(logits), torch.tensor([LABELS.index(m.label) for m in batch])
    )
    return [(loss.item(), loss)]


# --- one head ---


def test_the_loss_falls_and_frozen_tensors_keep_their_bits(
    tiny_checkpoint: Path, split: Split, tmp_path: Path
) -> None:
    before = Classifier.on_base(tiny_checkpoint, LABELS, seed=3).model.state_dict()
    classifier, history = run(tiny_checkpoint, split, tmp_path / "run")
    assert history[-1].train_loss < 0.5 * history[0].train_loss
    for name, value in classifier.model.state_dict().items():
        trains = name.startswith(("blocks.1.", "ln_f.", "head."))
        assert torch.equal(value, before[name]) != trains, name


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_training_equals_a_plain_loop(
    tiny_checkpoint: Path, split: Split, tmp_path: Path, schedule: Any
) -> None:
    """The reference uses the same batches, and runs the whole model on one text at a time."""
    config = replace(CONFIG, epochs=2, schedule=schedule)
    _, history = run(tiny_checkpoint, split, tmp_path / "run", config)
    plain = Classifier.on_base(tiny_checkpoint, LABELS, seed=3)
    model = plain.model
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(("blocks.1.", "ln_f.", "head.")))

    def logits(message: Message) -> Tensor:
        return model(torch.tensor([ids_of(plain, message.text)]))[0, -1]

    losses = train_plainly(
        config,
        [p for p in model.parameters() if p.requires_grad],
        split.train,
        lambda batch: cross_entropy(batch, [logits(m) for m in batch]),
    )
    assert [epoch.train_loss for epoch in history] == pytest.approx(losses, abs=1e-5)
    # compare answers: the key bias has only rounding as its gradient, which AdamW magnifies
    last = Classifier.load(tmp_path / "run" / "last.safetensors", tiny_checkpoint)
    with torch.no_grad():
        expected = torch.stack([logits(message) for message in split.test])
    found = last.logits(last.encode([m.text for m in split.test])[0])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_two_runs_of_one_seed_are_equal_to_the_bit(
    tiny_checkpoint: Path, split: Split, tmp_path: Path
) -> None:
    first, _ = run(tiny_checkpoint, split, tmp_path / "first")
    torch.rand(5)  # other code may have drawn random numbers
    second, _ = run(tiny_checkpoint, split, tmp_path / "second")
    for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)
    other, _ = run(tiny_checkpoint, split, tmp_path / "other", replace(CONFIG, seed=4))
    assert not torch.equal(first.model.head.weight, other.model.head.weight)


def test_the_run_folder_describes_the_run(
    tiny_checkpoint: Path, split: Split, tmp_path: Path
) -> None:
    classifier, history = run(tiny_checkpoint, split, tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [vars(epoch) for epoch in history]
    best = Classifier.load(tmp_path / "run", tiny_checkpoint)
    val = to_labelled(best, split.val)
    assert torch.equal(best.logits(val.texts), classifier.logits(val.texts))
    assert loss_and_scores(best, val)[1]["label"].main == max(epoch.val_score for epoch in history)
    assert loss_and_scores(best, val)[0] == best_epoch(history).val_loss
    last = Classifier.load(tmp_path / "run" / "last.safetensors", tiny_checkpoint)
    assert loss_and_scores(last, val)[0] == history[-1].val_loss


def test_training_stops_when_validation_no_longer_improves(
    tiny_checkpoint: Path, split: Split, tmp_path: Path
) -> None:
    swapped = {"ham": "spam", "spam": "ham"}
    contrary = replace(split, val=[Message(m.text, swapped[m.label]) for m in split.train[:4]])
    config = replace(CONFIG, epochs=30, patience=2, lr=0.001)
    _, history = run(tiny_checkpoint, contrary, tmp_path / "run", config)
    assert len(history) == best_epoch(history).epoch + 2 < 30


# --- how long ---


def started(base: Path, split: Split, config: TrainConfig, folder: Path) -> TrainingRun:
    """A run that has not taken a step."""
    classifier = Classifier.on_base(base, LABELS, seed=config.seed)
    freeze(classifier, config)
    return TrainingRun(classifier, split, to_labelled(classifier, split.train), config, folder)


def test_a_state_may_be_older_than_a_setting(
    tiny_checkpoint: Path, split: Split, tmp_path: Path
) -> None:
    """It is continued with the setting's default, and with no other value."""
    started(tiny_checkpoint, split, CONFIG, tmp_path).save()
    record, tensors = newest_state(tmp_path)
    del record["settings"]["vary_endings"]
    save_state(tmp_path, 0, tensors, record)
    started(tiny_checkpoint, split, CONFIG, tmp_path).restore()
    other = started(tiny_checkpoint, split, replace(CONFIG, vary_endings=True), tmp_path)
    with pytest.raises(UsageError, match="vary_endings: False -> True"):
        other.restore()


def test_a_run_of_few_texts_has_enough_steps(
    tiny_checkpoint: Path, split: Split, tmp_path: Path
) -> None:
    """Ten texts are one step of 16, or three of 4."""
    for size, epochs, patience, steps in ((16, 500, 200, 500), (4, 167, 67, 501)):
        training = started(tiny_checkpoint, split, TrainConfig(batch_size=size), tmp_path)
        assert (training.config.epochs, training.config.patience) == (epochs, patience)
        assert training.steps == steps
        assert (training.settings["epochs"], training.settings["patience"]) == (epochs, patience)
    training = started(tiny_checkpoint, split, TrainConfig(epochs=3, batch_size=4), tmp_path)
    assert training.steps == 3 * 3


@pytest.mark.slow
def test_by_default_few_texts_are_trained_on_in_500_steps(
    tiny_checkpoint: Path, split: Split, tmp_path: Path
) -> None:
    """No epoch is better than one in which all validation texts are correct, so none is skipped."""
    said, config = listen(), TrainConfig(batch_size=1)
    _, history = run(tiny_checkpoint, replace(split, val=split.train), tmp_path / "run", config)
    assert "up to 50 epochs of 10 steps" in said
    assert len(history) == 50 and history[-1].val_score == 1.0


@pytest.mark.parametrize(
    ("scores", "epochs", "said_at_the_end"),
    [
        ([0.5, 0.9], 2, "train longer, for example 4 epochs"),
        ([0.9, 0.5, 0.95], 3, "train longer, for example 6 epochs"),
        ([0.9, 0.9], 2, ""),  # an earlier epoch was as good
        ([0.5, 0.9, 0.9], 3, ""),
        ([0.5, 0.9, 0.8], 3, ""),
        ([0.9], 1, ""),  # nothing to compare with
        ([0.9, 0.8, 0.7], 9, "stopped early"),
        ([0.7, 0.8, 0.9], 9, "stopped early"),
    ],
)
def test_a_longer_training_is_proposed_if_the_last_epoch_was_the_best(
    tiny_checkpoint: Path,
    split: Split,
    tmp_path: Path,
    scores: list[float],
    epochs: int,
    said_at_the_end: str,
) -> None:
    training = started(tiny_checkpoint, split, replace(CONFIG, epochs=epochs), tmp_path)
    # the losses do not count
    training.at.history = [Epoch(n, 1 / n, 1.0, 1 / n, a) for n, a in enumerate(scores, start=1)]
    said = listen()
    training.finish()
    found = [line for line in said if "train longer" in line or "stopped early" in line]
    assert len(found) == bool(said_at_the_end) and all(said_at_the_end in line for line in found)


@pytest.mark.parametrize("lr", [0.002, 1e-30])
def test_a_run_says_how_long_it_may_take_and_whether_that_was_enough(
    tiny_checkpoint: Path, split: Split, tmp_path: Path, lr: float
) -> None:
    said = listen()
    config = replace(CONFIG, epochs=2, lr=lr)
    _, history = run(tiny_checkpoint, replace(split, val=split.train), tmp_path / "run", config)
    assert "up to 2 epochs of 3 steps" in said
    first, last = [epoch.val_score for epoch in history]
    assert last > first if lr == 0.002 else last == first
    proposed = "the last epoch was the best: train longer, for example 4 epochs"
    assert (proposed in said) == (lr == 0.002)


def test_a_nan_loss_stops_the_run(tiny_checkpoint: Path, split: Split, tmp_path: Path) -> None:
    with pytest.raises(GPT2Error, match="loss .* epoch 1, step 2"):
        run(tiny_checkpoint, split, tmp_path / "run", replace(CONFIG, lr=1e30, warmup=0.0))
    report = json.loads((tmp_path / "run" / "nan_report.json").read_text())
    shown = epoch_order(10, CONFIG.seed, 1)[4:8]
    # a text as the model reads it, with the newline at its end
    assert report["texts"] == [f"{split.train[n].text}\n" for n in shown] and report["step"] == 2


def test_a_nan_validation_loss_is_never_the_best(
    tiny_checkpoint: Path, split: Split, tmp_path: Path
) -> None:
    """One step ruins the weights, so only validation can notice."""
    config = replace(CONFIG, epochs=1, batch_size=1000, lr=1e30, warmup=0.0)
    with pytest.raises(GPT2Error, match="validation loss"):
        run(tiny_checkpoint, split, tmp_path / "run", config)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["nan_report.json"]


def test_messages_that_are_cut_are_counted(tiny_checkpoint: Path, capsys) -> None:
    classifier = Classifier.on_base(tiny_checkpoint, LABELS, max_tokens=4)
    set_trainable(classifier.model)
    said = listen()
    messages = [Message("the", "ham"), Message("the house at ten", "spam")]
    to_labelled(classifier, messages)
    [line] = said
    assert re.match("1 of 2 .* 4 tokens", line)


def test_an_unknown_label_is_named(tiny_checkpoint: Path) -> None:
    classifier = Classifier.on_base(tiny_checkpoint, LABELS)
    with pytest.raises(DataError, match="Spam"):
        to_labelled(classifier, [Message("x", "Spam")])


def test_the_best_epoch_is_the_latest_of_the_most_accurate() -> None:
    accuracies = [0.5, 0.9, 0.8, 0.9, 0.7]
    history = [Epoch(n, 0.1, 1.0, 0.1 * n, a) for n, a in enumerate(accuracies, start=1)]
    assert best_epoch(history).epoch == 4 and best_epoch(history[:3]).epoch == 2


def test_the_learning_rate_rises_and_falls_to_zero() -> None:
    factors = [rate_factor(step, 100, 0.1) for step in range(101)]
    assert factors[0] == 0.1 and factors[9] == factors[10] == 1.0
    assert factors[55] == pytest.approx(0.5) and factors[100] == pytest.approx(0)
    assert sorted(factors[10:], reverse=True) == factors[10:]
    constant = [rate_factor(step, 100, 0.1, "constant") for step in range(101)]
    assert constant[:10] == factors[:10] and set(constant[10:]) == {1.0}


def test_the_order_of_messages_is_pinned() -> None:
    """numpy's RandomState is frozen, so this order holds on every machine and in the future."""
    assert epoch_order(8, 123, 1).tolist() == [2, 7, 4, 3, 1, 5, 6, 0]
    assert epoch_order(8, 123, 2).tolist() == [5, 6, 1, 3, 7, 0, 2, 4]


@pytest.mark.slow
@pytest.mark.parametrize(
    "pooling",
    ["end_token", "last_token", "last_position", "first_token", "mean", "mean_position"],
)
def test_every_pooling_can_be_trained(
    tiny_checkpoint: Path, split: Split, tmp_path: Path, pooling: str
) -> None:
    _, history = run(tiny_checkpoint, split, tmp_path / "run", pooling=pooling)
    assert history[-1].train_loss < history[0].train_loss


def test_an_epoch_as_a_line() -> None:
    epoch = Epoch(3, 0.25, 0.9, 0.5, 0.75, {"label": 0.75})
    line = "epoch 3/10: train loss 0.250, accuracy 90.00%; val loss 0.500, accuracy 75.00%"
    assert format_epoch(epoch, 10) == line
    several = format_epoch(replace(epoch, heads={"a": 0.5, "b": 1.0}), 10, "mean score")
    assert "correct 90.00%" in several and several.endswith("75.00% (a 50.00%, b 100.00%)")


@pytest.mark.parametrize("part", ["training", "validation"])
def test_a_head_without_targets_is_refused_before_training(
    tiny_checkpoint: Path, tmp_path: Path, part: str
) -> None:
    good = [Message("the cat", {"label": label}) for label in LABELS]
    bad = [Message("the cat", {"lable": label}) for label in LABELS]
    split = Split(bad, good, []) if part == "training" else Split(good, bad, [])
    with pytest.raises(DataError, match=f"{part} set.*'label'"):
        finetune(Classifier.on_base(tiny_checkpoint, LABELS), split, CONFIG, tmp_path)
    assert not list(tmp_path.iterdir())


def test_nothing_trainable_is_refused(tiny_checkpoint: Path, split: Split, tmp_path: Path) -> None:
    config = replace(CONFIG, n_last_blocks=0, final_norm=False)
    frozen = HeadConfig(labels=("ham", "spam"), trainable=False)
    for head, fact in ((HeadConfig(task="features"), "features"), (frozen, "frozen")):
        classifier = Classifier.on_base(tiny_checkpoint, heads=[head])
        with pytest.raises(UsageError, match=f"nothing to train.*{fact}"):
            finetune(classifier, split, config, tmp_path)


# --- LoRA ---

LORA = LoRAConfig(rank=4, alpha=6.0)
ADAPTED = replace(CONFIG, n_last_blocks=0, epochs=2)
HEAD_AND_NORM = {"head.weight", "head.bias", "ln_f.weight", "ln_f.bias"}


def parameters(classifier: Classifier) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in classifier.model.named_parameters()}


def changed(before: dict[str, Tensor], classifier: Classifier) -> set[str]:
    return {n for n, p in classifier.model.named_parameters() if not torch.equal(p, before[n])}


def logits(classifier: Classifier) -> Tensor:
    return classifier.logits(classifier.encode(["win the house", "see", "", "win"])[0])


def test_adapters_head_and_norm_change_and_nothing_else(
    tiny_checkpoint: Path, split: Split, tmp_path: Path
) -> None:
    before = parameters(Classifier.on_base(tiny_checkpoint, LABELS, lora=LORA, seed=3))
    classifier, history = run(tiny_checkpoint, split, tmp_path / "run", ADAPTED, lora=LORA)
    adapters = set(lora_names(classifier.model))
    assert len(adapters) == 2 * 2 * 4  # A and B for four layers in two blocks
    assert changed(before, classifier) == adapters | HEAD_AND_NORM
    assert history[-1].train_loss < history[0].train_loss


def test_training_lora_equals_a_dense_loop(
    tiny_checkpoint: Path, split: Split, tmp_path: Path
) -> None:
    """The reference adds BA to W in a plain GPT-2, and runs one text at a time."""
    _, history = run(tiny_checkpoint, split, tmp_path / "run", ADAPTED, lora=LORA)
    plain = Classifier.on_base(tiny_checkpoint, LABELS, seed=3)
    adapted = Classifier.on_base(tiny_checkpoint, LABELS, lora=LORA, seed=3).model
    own = parameters(plain)
    trains = {name: own[name] for name in HEAD_AND_NORM}
    trains |= {name: adapted.get_parameter(name).detach().clone() for name in lora_names(adapted)}
    for value in trains.values():
        value.requires_grad_(True)

    def answer(message: Message) -> Tensor:
        weights = own | {name: trains[name] for name in HEAD_AND_NORM}
        for name in (name for name in trains if name.endswith("lora_A")):
            layer = name.removesuffix(".lora_A")
            pairs = zip(trains[f"{layer}.lora_B"], trains[name], strict=True)
            product = torch.cat([B @ A for B, A in pairs])  # for query, key and value
            weights[f"{layer}.weight"] = own[f"{layer}.weight"] + 6.0 / 4 * product
        ids = torch.tensor([ids_of(plain, message.text)])
        return functional_call(plain.model, weights, ids)[0, -1]

    losses = train_plainly(
        ADAPTED,
        list(trains.values()),
        split.train,
        lambda batch: cross_entropy(batch, [answer(m) for m in batch]),
    )
    assert [epoch.train_loss for epoch in history] == pytest.approx(losses, abs=1e-5)
    last = Classifier.load(tmp_path / "run" / "last.safetensors", tiny_checkpoint)
    with torch.no_grad():
        expected = torch.stack([answer(m) for m in split.test])
    found = last.logits(last.encode([m.text for m in split.test])[0])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def go_on(classifier: Classifier, split: Split, out: Path, config: TrainConfig = ADAPTED):
    out.mkdir()
    return finetune(classifier, split, config, out)


def test_blocks_and_adapters_train_together(
    tiny_checkpoint: Path, split: Split, tmp_path: Path
) -> None:
    config = replace(ADAPTED, n_last_blocks=1)
    before = parameters(Classifier.on_base(tiny_checkpoint, LABELS, lora=LORA, seed=3))
    classifier, _ = run(tiny_checkpoint, split, tmp_path / "run", config, lora=LORA)
    last = {name for name in before if name.startswith("blocks.1.")}
    assert changed(before, classifier) == last | set(lora_names(classifier.model)) | HEAD_AND_NORM
    loaded = Classifier.load(tmp_path / "run", tiny_checkpoint)
    assert torch.equal(logits(loaded), logits(classifier))


@pytest.mark.slow
def test_dropout_is_drawn_only_in_training(
    tiny_checkpoint: Path, split: Split, tmp_path: Path
) -> None:
    half = replace(LORA, dropout=0.5)
    _, without = run(tiny_checkpoint, split, tmp_path / "without", ADAPTED, lora=LORA)
    torch.manual_seed(5)
    classifier, history = run(tiny_checkpoint, split, tmp_path / "with", ADAPTED, lora=half)
    after = torch.rand(3)
    _, again = run(tiny_checkpoint, split, tmp_path / "again", ADAPTED, lora=half)
    assert history == again and history[-1].train_loss != without[-1].train_loss
    assert torch.equal(logits(classifier), logits(classifier))
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), after)  # other random draws are not affected


def test_heads_at_other_layers(tiny_checkpoint: Path, split: Split, tmp_path: Path) -> None:
    """Two heads, after one block and after both; the reference computes them with dense weights."""
    heads = [
        HeadConfig("early", labels=("ham", "spam"), layer=1),
        HeadConfig(labels=("ham", "spam")),
    ]
    both = Split(
        *(
            [replace(m, label={"early": m.label, "label": m.label}) for m in part]
            for part in vars(split).values()
        )
    )
    classifier = Classifier.on_base(tiny_checkpoint, heads=heads, lora=LORA, seed=3)
    history = go_on(classifier, both, tmp_path / "run")
    assert history[-1].train_loss < history[0].train_loss and set(history[-1].heads) == {
        "early",
        "label",
    }
    found = classifier.predict([m.text for m in split.test])
    classifier.merge()
    model = classifier.model
    for prediction, message in zip(found, split.test, strict=True):
        with torch.no_grad():
            x = model.embed(torch.tensor([ids_of(classifier, message.text)]))
            for name, block in zip(("early", "label"), model.blocks, strict=True):
                x = block(x)
                expected = model.head[name](model.ln_f(x[0, -1])).softmax(dim=0)
                reported = prediction.answers[name].probabilities
                assert list(reported.values()) == pytest.approx(expected.tolist(), abs=1e-5)


def test_adapters_above_the_layer_read_do_not_change(
    tiny_checkpoint: Path, split: Split, tmp_path: Path
) -> None:
    heads = [HeadConfig(labels=("ham", "spam"), layer=1)]
    classifier = Classifier.on_base(tiny_checkpoint, heads=heads, lora=LORA, seed=3)
    before = parameters(classifier)
    go_on(classifier, split, tmp_path / "run")
    below = {name for name in lora_names(classifier.model) if name.startswith("blocks.0.")}
    assert changed(before, classifier) == below | HEAD_AND_NORM


def test_an_adapted_head_keeps_its_initial_weights(
    tiny_checkpoint: Path, split: Split, tmp_path: Path
) -> None:
    """Also after saving, loading and further training."""
    config = replace(ADAPTED, final_norm=False)
    settings = {"lora": replace(LORA, head=True)}
    before = parameters(Classifier.on_base(tiny_checkpoint, LABELS, seed=3, **settings))
    classifier, _ = run(tiny_checkpoint, split, tmp_path / "run", config, **settings)
    assert changed(before, classifier) == set(lora_names(classifier.model))
    assert {"head.lora_A", "head.lora_B"} <= changed(before, classifier)
    loaded = Classifier.load(tmp_path / "run", tiny_checkpoint)
    assert torch.equal(logits(loaded), logits(classifier))
    go_on(loaded, split, tmp_path / "more", config)
    assert changed(before, loaded) == set(lora_names(loaded.model))


@pytest.mark.slow
def test_a_loaded_model_answers_and_trains_identically(
    tiny_checkpoint: Path, split: Split, tmp_path: Path
) -> None:
    classifier, _ = run(tiny_checkpoint, split, tmp_path / "run", ADAPTED, lora=LORA)
    loaded = Classifier.load(tmp_path / "run", tiny_checkpoint)
    assert loaded.description == classifier.description
    assert torch.equal(logits(loaded), logits(classifier))
    before = parameters(loaded)
    go_on(classifier, split, tmp_path / "on")
    go_on(loaded, split, tmp_path / "from_file")
    assert changed(before, loaded) == set(lora_names(loaded.model)) | HEAD_AND_NORM
    for name in ("best.safetensors", "last.safetensors", "metrics.jsonl"):
        assert sha256_of(tmp_path / "on" / name) == sha256_of(tmp_path / "from_file" / name)


@pytest.mark.slow
def test_training_unmerges_lora_first(tiny_checkpoint: Path, split: Split, tmp_path: Path) -> None:
    classifier, _ = run(tiny_checkpoint, split, tmp_path / "run", ADAPTED, lora=LORA)
    loaded = Classifier.load(tmp_path / "run", tiny_checkpoint)
    loaded.merge()
    expected = go_on(classifier, split, tmp_path / "on")
    found = go_on(loaded, split, tmp_path / "merged_before")
    assert len(lora_names(loaded.model)) == 16
    for one, other in zip(found, expected, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, abs=1e-4)


@pytest.mark.parametrize("k", [1, 3])
def test_the_frozen_blocks_below_are_computed_once(split: Split, tmp_path: Path, k: int) -> None:
    deep_checkpoint = write_checkpoint(tmp_path / "deep", seed=5, n_layer=4)
    lora = replace(LORA, n_last_blocks=k)
    classifier = Classifier.on_base(deep_checkpoint, LABELS, lora=lora, seed=3)
    adapted = {name.split(".")[1] for name in lora_names(classifier.model)}
    assert adapted == {str(n) for n in range(4 - k, 4)}
    classifier.store = FeatureStore(tmp_path / "store")
    go_on(classifier, split, tmp_path / "run")
    assert frozen_depth(classifier.model) == (4 - k, "")
    (space,) = (tmp_path / "store").iterdir()
    assert space.name.startswith(f"{4 - k}-blocks-float32") and len(list(space.iterdir())) == 2

    encoded = classifier.encode([m.text for m in split.test])[0]
    said = listen()
    texts = classifier.texts(encoded)
    assert isinstance(texts, Features) and texts.depth == 4 - k and said == []
    found = []
    for ours in (True, False):
        classifier.model.zero_grad()
        if ours:
            outputs = classifier.batch_logits(texts, range(len(encoded)))
        else:  # the whole model runs, text by text
            rows = [classifier.model(torch.tensor([ids]))[0, -1] for ids in encoded]
            outputs = torch.stack(rows)
        outputs.square().sum().backward()
        grads = [classifier.model.get_parameter(name).grad for name in lora_names(classifier.model)]
        found.append([outputs.detach(), *grads])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
        assert other.abs().max() > 1e-3


def test_with_adapters_in_every_block_nothing_is_computed_once(tiny_checkpoint: Path) -> None:
    classifier = Classifier.on_base(tiny_checkpoint, LABELS, lora=LORA)
    set_trainable(classifier.model, 0)
    said = listen()
    texts = classifier.texts(classifier.encode(["win the house", "see"])[0])
    assert isinstance(texts, Embedded) and said == []
    ids, lengths = torch.tensor([[5, 7, 9], [5, 7, 0]]), torch.tensor([3, 2])
    plain = Classifier.on_base(tiny_checkpoint, LABELS).model
    expected = class_logits(plain, ids, lengths, "last_token")
    torch.testing.assert_close(
        class_logits(classifier.model, ids, lengths, "last_token"), expected, atol=1e-5, rtol=0
    )


# --- several heads ---

SEVERAL = TrainConfig(epochs=3, batch_size=4, lr=0.01, patience=3, seed=3, n_last_blocks=2)
KIND = HeadConfig(
    "kind",
    labels=("see", "win"),
    pooling="last_token",
    class_weights=(1.0, 3.0),
    label_smoothing=0.1,
)
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
    "marks",
    "multi-label",
    ("h", "t", "r"),
    pooling="last_token",
    class_weights=(1.0, 2.0, 0.5),
    gradient=False,
)
TAGS = HeadConfig("tags", "token-classification", ("O", "NUM"), layer=2, loss_weight=2.0)
HEADS = [KIND, SIZE, TAGS, MARKS]


def example(n: int, word: str, thing: str) -> Message:
    """A text with labels made by rules; a fifth of the texts lack one of the labels."""
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
def labelled_split() -> Split:
    things = ["house", "river", "tree", "street", "garden", "window", "letter", "road"]
    every = [
        example(n + 7 * (word == "win"), word, thing)
        for n, thing in enumerate(things)
        for word in ("win", "see")
    ]
    return Split(every[:10], every[10:], [])


def run_heads(base: Path, split: Split, out: Path, config=SEVERAL, heads=HEADS, lora=None, **more):
    """(the classifier, its history, its final parameters by name)"""
    out.mkdir(exist_ok=True)
    classifier = Classifier.on_base(base, heads=heads, lora=lora, seed=3)
    history = finetune(classifier, split, config, out, **more)
    return classifier, history, read_tensors(out / "last.safetensors", "gpt2-classifier 3")[1]


def own_loss(classifier: Classifier, head: HeadConfig, texts: Sequence[Message]) -> Tensor | None:
    """The mean loss of one head, one forward pass per text; None without labels."""
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
    """The final classifier, and the training loss of each epoch."""
    classifier, running = Classifier.on_base(base, heads=HEADS, seed=3), dict[str, float]()
    first = 2 - config.n_last_blocks
    trains = ("head.", "ln_f.", *(f"blocks.{n}." for n in range(first, 2)))
    for name, parameter in classifier.model.named_parameters():
        parameter.requires_grad_(name.startswith(trains))

    def losses_of(batch: list[Message]) -> list[tuple[float, Tensor]]:
        found = []
        for head in HEADS:
            if (loss := own_loss(classifier, head, batch)) is not None:
                mean = running.get(head.name, loss.item())
                running[head.name] = 0.95 * mean + 0.05 * loss.item()
                weighted = head.loss_weight * loss
                scale = mean if config.balance_losses else 1.0
                found.append((weighted.item(), weighted / scale))
        return found

    trained = [p for p in classifier.model.parameters() if p.requires_grad]
    return classifier, train_plainly(config, trained, split.train, losses_of)


def close(found: dict[str, Tensor], expected: dict[str, Tensor], atol: float) -> None:
    """Compare all but key biases, whose gradient is only rounding, which AdamW magnifies."""
    for name, value in found.items():
        other = expected[name].detach()
        if name.endswith("c_attn.bias"):
            C = len(other) // 3
            value, other = (
                value[[*range(C), *range(2 * C, 3 * C)]],
                other[[*range(C), *range(2 * C, 3 * C)]],
            )
        torch.testing.assert_close(value, other, atol=atol, rtol=0, msg=lambda m: f"{name}: {m}")  # noqa: B023


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [{}, {"n_last_blocks": 1}, {"balance_losses": True}, {"micro_batch": 3}]
    + [{"balance_losses": True, "micro_batch": 1}],
)
def test_joint_training_is_the_sum_of_the_heads(tiny_checkpoint, labelled_split, tmp_path, changes):
    """The sum of the weighted losses, each over the texts that have a label for its head."""
    config = replace(SEVERAL, **changes)
    _, history, last = run_heads(tiny_checkpoint, labelled_split, tmp_path, config)
    plain, losses = plain_loop(tiny_checkpoint, labelled_split, config)
    assert [epoch.train_loss for epoch in history] == pytest.approx(losses, abs=1e-4)
    assert losses[-1] < 0.8 * losses[0]
    trained = {n for n, p in plain.model.named_parameters() if p.requires_grad}
    assert last.keys() == trained and len(trained) == 12 * config.n_last_blocks + 2 + 8
    close(last, dict(plain.model.named_parameters()), 1e-4)


def test_validation_sums_the_heads_too(tiny_checkpoint, labelled_split, tmp_path):
    classifier = Classifier.on_base(tiny_checkpoint, heads=HEADS, seed=3)
    loss, scores = loss_and_scores(classifier, to_labelled(classifier, labelled_split.val))
    each = [
        head.loss_weight * own_loss(classifier, head, labelled_split.val).item() for head in HEADS
    ]
    assert loss == pytest.approx(sum(each), abs=1e-4)
    assert [*scores] == [head.name for head in HEADS]
    for name, found in scores.items():
        labels = [m.label[name] for m in labelled_split.val if name in m.label]
        assert found.total == (sum(map(len, labels)) if name == "tags" else len(labels))


def kilo(head: HeadConfig) -> HeadConfig:
    """The same values in units that are a thousand times smaller, as a table might have them."""
    return replace(head, center=(), scale=(0.005, 0.002))


@pytest.mark.slow
def test_balanced_losses_do_not_depend_on_units(tiny_checkpoint, labelled_split, tmp_path):
    """The first step counts most, because AdamW remembers it: the loss begins at about 10^7."""
    config = replace(SEVERAL, epochs=6, patience=6)
    losses = {}
    for name, changes in (("as they are", {}), ("balanced", {"balance_losses": True})):
        heads = [KIND, replace(kilo(SIZE), layer=2, loss_weight=1.0)]
        folder = tmp_path / name
        classifier, _, _ = run_heads(
            tiny_checkpoint, labelled_split, folder, replace(config, **changes), heads
        )
        last = Classifier.load(folder / "last.safetensors", tiny_checkpoint)
        losses[name] = own_loss(last, KIND, labelled_split.train).item()
    assert losses["balanced"] < losses["as they are"] / 2


@pytest.mark.slow
def test_a_head_without_gradient_leaves_the_blocks_as_they_were(
    tiny_checkpoint, labelled_split, tmp_path
):
    with_it = run_heads(tiny_checkpoint, labelled_split, tmp_path / "with")[2]
    without = run_heads(tiny_checkpoint, labelled_split, tmp_path / "without", heads=HEADS[:-1])[2]
    assert with_it.keys() - without.keys() == {"head.marks.weight", "head.marks.bias"}
    close(without, with_it, 1e-5)
    begun = dict(Classifier.on_base(tiny_checkpoint, heads=HEADS, seed=3).model.named_parameters())
    assert (with_it["head.marks.weight"] - begun["head.marks.weight"]).abs().max() > 0.01
    pulls = [*HEADS[:-1], replace(MARKS, gradient=True)]  # a control: with a gradient
    other = run_heads(tiny_checkpoint, labelled_split, tmp_path / "pulls", heads=pulls)[2]
    with pytest.raises(AssertionError):
        close(without, other, 1e-3)


@pytest.mark.slow
def test_a_frozen_head_stays_bit_identical(tiny_checkpoint, labelled_split, tmp_path):
    """Its loss counts all the same, and the block is trained with it."""
    fixed = [KIND, replace(TAGS, trainable=False)]
    begun = dict(Classifier.on_base(tiny_checkpoint, heads=fixed, seed=3).model.named_parameters())
    classifier, _, last = run_heads(
        tiny_checkpoint, labelled_split, tmp_path / "fixed", heads=fixed
    )
    assert torch.equal(classifier.model.head["tags"].weight, begun["head.tags.weight"])
    alone = run_heads(tiny_checkpoint, labelled_split, tmp_path / "alone", heads=[KIND])[2]
    name = "blocks.1.mlp.c_fc.weight"
    assert (last[name] - alone[name]).abs().max() > 1e-3
    again = Classifier.load(tmp_path / "fixed", tiny_checkpoint)  # a frozen head is saved too
    assert torch.equal(again.model.head["tags"].weight, begun["head.tags.weight"])


@pytest.mark.slow
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
    tiny_checkpoint, labelled_split, tmp_path, monkeypatch, layers, n_last_blocks, depth
):
    """The result equals that of computing them again at each use."""
    heads = [replace(KIND, layer=layers[0]), replace(MARKS, layer=layers[1], gradient=True)]
    config, taken = replace(SEVERAL, n_last_blocks=n_last_blocks), []
    plain = Classifier.texts

    def texts(self, encoded, **more):
        taken.append(plain(self, encoded, **more))
        return taken[-1]

    def embedded(self, encoded, **more):
        return Embedded(self.model, encoded, self.tokenizer.end_of_text_id)

    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "texts", texts)
        kept = run_heads(tiny_checkpoint, labelled_split, tmp_path / "kept", config, heads)
        patch.setattr(Classifier, "texts", embedded)
        again = run_heads(tiny_checkpoint, labelled_split, tmp_path / "again", config, heads)
    assert {(type(t), t.depth) for t in taken} == {(Features if depth else Embedded, depth)}
    assert [e.train_loss for e in kept[1]] == pytest.approx(
        [e.train_loss for e in again[1]], abs=1e-4
    )
    close(kept[2], again[2], 1e-4)


DRAWING = [replace(KIND, dropout=0.3, hidden=(6,), activation="tanh"), SIZE, TAGS, MARKS]


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"unfreeze_every": 1, "epochs": 4},
        {"clip": 0.5, "micro_batch": 3, "balance_losses": True, "rate_decay": 2.0},
        {"lora": LoRAConfig(rank=2, dropout=0.3)},
    ],
)
def test_a_stopped_run_ends_bit_identical(
    tiny_checkpoint, labelled_split, tmp_path, monkeypatch, changes
):
    """Stopped in the first epoch, at the end of the second, and in the third; with dropout."""
    changes, lora = {**changes}, changes.get("lora")
    changes.pop("lora", None)
    config, out = replace(SEVERAL, **changes), tmp_path / "stopped"
    unbroken, _, _ = run_heads(
        tiny_checkpoint, labelled_split, tmp_path / "unbroken", config, DRAWING, lora
    )
    plain = TrainingRun.step

    def step(self: TrainingRun, batch: list[int]) -> None:
        plain(self, batch)
        if self.at.step in (2, 6, 7):
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "step", step)
        for n, resume in ((2, False), (6, True), (7, True)):
            with pytest.raises(Interrupted, match=f"after step {n} of"):
                run_heads(
                    tiny_checkpoint, labelled_split, out, config, DRAWING, lora, resume=resume
                )
    torch.rand(7)  # other code may have drawn random numbers
    classifier, history, _ = run_heads(
        tiny_checkpoint, labelled_split, out, config, DRAWING, lora, resume=True
    )
    assert len(history) == config.epochs
    for name in ("metrics.jsonl", "last.safetensors", "best.safetensors"):
        assert sha256_of(out / name) == sha256_of(tmp_path / "unbroken" / name), name
    for ours, theirs in zip(
        classifier.model.parameters(), unbroken.model.parameters(), strict=True
    ):
        assert torch.equal(ours, theirs)


@pytest.mark.slow
def test_a_state_of_an_earlier_version_is_resumed(
    tiny_checkpoint, labelled_split, tmp_path, monkeypatch
):
    """That version used other names for the counts of correct and of all decisions."""
    run_heads(tiny_checkpoint, labelled_split, tmp_path / "unbroken")
    plain = TrainingRun.step

    def step(self: TrainingRun, batch: list[int]) -> None:
        plain(self, batch)
        if self.at.step == 2:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "step", step)
        with pytest.raises(Interrupted):
            run_heads(tiny_checkpoint, labelled_split, tmp_path / "stopped")
    record, tensors = training_run.newest_state(tmp_path / "stopped")
    progress = record["progress"]
    progress |= {"right": progress.pop("correct"), "asked": progress.pop("decisions")}
    monkeypatch.setattr(training_run, "newest_state", lambda folder: (record, tensors))
    run_heads(tiny_checkpoint, labelled_split, tmp_path / "stopped", resume=True)
    for name in ("metrics.jsonl", "last.safetensors", "best.safetensors"):
        found, expected = (sha256_of(tmp_path / run / name) for run in ("stopped", "unbroken"))
        assert found == expected, name


@pytest.mark.slow
def test_dropout_differs_at_each_step(tiny_checkpoint, labelled_split, tmp_path, monkeypatch):
    """A control for the test above: it shows that dropout is drawn."""
    still = run(
        tiny_checkpoint,
        labelled_split,
        tmp_path / "still",
        heads=[replace(DRAWING[0], dropout=0.0)],
    )
    drawn = run_heads(tiny_checkpoint, labelled_split, tmp_path / "drawn", heads=DRAWING[:1])
    assert still[1][0].train_loss != pytest.approx(drawn[1][0].train_loss, abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["step", "end_epoch"])
def test_the_best_weights_stay_the_same_when_blocks_are_unfrozen(
    tiny_checkpoint, labelled_split, tmp_path, monkeypatch, name
):
    """A resumed run saves the best weights again as they were, without blocks unfrozen later."""
    config = replace(SEVERAL, unfreeze_every=1, epochs=3)
    monkeypatch.setattr(training_run, "best_epoch", lambda history: history[0])
    run_heads(tiny_checkpoint, labelled_split, tmp_path / "unbroken", config)
    plain = getattr(TrainingRun, name)

    def stopped(self: TrainingRun, *given: Any) -> None:
        plain(self, *given)
        # in the second epoch, and after the last
        if self.at.step == {"step": 5, "end_epoch": 9}[name]:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, name, stopped)
        with pytest.raises(Interrupted):
            run_heads(tiny_checkpoint, labelled_split, tmp_path / "stopped", config)
    run_heads(tiny_checkpoint, labelled_split, tmp_path / "stopped", config, resume=True)
    best = read_tensors(tmp_path / "unbroken" / "best.safetensors", "gpt2-classifier 3")[1]
    assert all(name.startswith(("head.", "ln_f.")) for name in best)
    for file in ("best.safetensors", "last.safetensors"):
        found, expected = (sha256_of(tmp_path / run / file) for run in ("stopped", "unbroken"))
        assert found == expected, file


def test_the_history_has_each_head(tiny_checkpoint, labelled_split, tmp_path):
    classifier, history, _ = run_heads(tiny_checkpoint, labelled_split, tmp_path)
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert [*line["heads"]] == [head.name for head in HEADS]
    assert line["val_score"] == pytest.approx(sum(line["heads"].values()) / 4)
    assert history[-1].heads == line["heads"]
    found = classifier.predict(["win the road 9"])[0].answers
    assert [*found] == [*line["heads"]]


@pytest.mark.parametrize("run", ["file", "file/below", "/proc/none/x", "nul\0"])
def test_a_folder_that_cannot_be_written_is_refused_before_the_first_step(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: str
) -> None:
    monkeypatch.setattr(TrainingRun, "step", lambda *_: pytest.fail("it trained"))
    (tmp_path / "file").write_text("")
    messages = [Message("the cat", "ham"), Message("win", "spam")] * 4
    with pytest.raises((ResourceError, UsageError)):
        finetune(
            Classifier.on_base(tiny_checkpoint, ["ham", "spam"]),
            Split(messages, messages, messages),
            TrainConfig(epochs=1),
            tmp_path / run,
        )
