"""Trainable parameters, checked by exact names, by counts, and by what training changes."""

from pathlib import Path

import pytest
import torch
from three_blocks import LABEL, LANGUAGE, LAYERS, STARS, STATE, classifier_with
from torch import nn

from gpt2_from_scratch.classifier import train as training_run
from gpt2_from_scratch.classifier.classifier import Classifier
from gpt2_from_scratch.classifier.freezing import (
    format_ledger,
    ledger,
    set_trainable,
    trainable_names,
)
from gpt2_from_scratch.classifier.heads import class_logits, replace_head
from gpt2_from_scratch.classifier.settings import HeadConfig, TrainConfig
from gpt2_from_scratch.classifier.train import Labelled, TrainingRun, finetune, freeze, to_labelled
from gpt2_from_scratch.data.messages import Message
from gpt2_from_scratch.data.split import Split
from gpt2_from_scratch.errors import UsageError
from gpt2_from_scratch.gpt2.config import SIZES, GPT2Config, LoRAConfig
from gpt2_from_scratch.gpt2.lora import lora_names
from gpt2_from_scratch.gpt2.model import GPT2

HEAD, NORM = ["head.weight", "head.bias"], ["ln_f.weight", "ln_f.bias"]
BLOCK_1 = [
    "blocks.1.ln_1.weight",
    "blocks.1.ln_1.bias",
    "blocks.1.attn.c_attn.weight",
    "blocks.1.attn.c_attn.bias",
    "blocks.1.attn.c_proj.weight",
    "blocks.1.attn.c_proj.bias",
    "blocks.1.ln_2.weight",
    "blocks.1.ln_2.bias",
    "blocks.1.mlp.c_fc.weight",
    "blocks.1.mlp.c_fc.bias",
    "blocks.1.mlp.c_proj.weight",
    "blocks.1.mlp.c_proj.bias",
]
BLOCK_0 = [name.replace("blocks.1", "blocks.0") for name in BLOCK_1]


@pytest.fixture
def classifier(tiny_gpt2: GPT2) -> GPT2:
    replace_head(tiny_gpt2, 2)
    return tiny_gpt2


def meta_124M() -> GPT2:
    """The 124M model with a head of two classes, without allocating its memory."""
    with torch.device("meta"):
        model = GPT2(SIZES["124M"])
    replace_head(model, 2)
    return model


@pytest.mark.parametrize(
    ("n_last_blocks", "final_norm", "names"),
    [
        (0, False, HEAD),
        (0, True, NORM + HEAD),
        (1, False, BLOCK_1 + HEAD),
        (1, True, BLOCK_1 + NORM + HEAD),
        (2, True, BLOCK_0 + BLOCK_1 + NORM + HEAD),
    ],
)
def test_exactly_these_parameters_are_trainable(classifier, n_last_blocks, final_norm, names):
    set_trainable(classifier, n_last_blocks, final_norm)
    assert trainable_names(classifier) == names
    # also after an earlier call with other arguments
    set_trainable(classifier, 2, True)
    set_trainable(classifier, n_last_blocks, final_norm)
    assert trainable_names(classifier) == names
    assert not classifier.wte.weight.requires_grad and not classifier.wpe.weight.requires_grad


def test_the_default_is_the_last_block_the_final_norm_and_the_head(classifier):
    set_trainable(classifier)
    assert trainable_names(classifier) == BLOCK_1 + NORM + HEAD


def test_a_new_model_is_trainable_as_a_whole(classifier):
    assert trainable_names(classifier) == [name for name, _ in classifier.named_parameters()]


@pytest.mark.parametrize("n_last_blocks", [-1, 3])
def test_too_many_blocks_are_refused(classifier, n_last_blocks):
    before = trainable_names(classifier)
    with pytest.raises(UsageError, match=f"n_last_blocks = {n_last_blocks}: .* 2 blocks"):
        set_trainable(classifier, n_last_blocks)
    assert trainable_names(classifier) == before


def test_a_tied_head_is_refused(tiny_gpt2):
    with pytest.raises(UsageError, match="replace_head"):
        set_trainable(tiny_gpt2)
    assert len(trainable_names(tiny_gpt2)) == 28


def test_frozen_parameters_are_bit_identical_after_training(classifier):
    set_trainable(classifier)
    before = {name: p.detach().clone() for name, p in classifier.named_parameters()}
    # the optimizer gets all parameters and weight decay: only freezing protects them
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=1e-2, weight_decay=0.1)
    ids = torch.randint(277, (4, 9), generator=torch.Generator().manual_seed(1))
    lengths, labels = torch.tensor([9, 4, 1, 7]), torch.tensor([0, 1, 0, 1])
    for _ in range(3):
        optimizer.zero_grad()
        logits = class_logits(classifier, ids, lengths, "last_token")
        nn.functional.cross_entropy(logits, labels).backward()
        optimizer.step()
    changed = [n for n, p in classifier.named_parameters() if not torch.equal(p, before[n])]
    assert changed == BLOCK_1 + NORM + HEAD
    with_gradient = [n for n, p in classifier.named_parameters() if p.grad is not None]
    assert with_gradient == BLOCK_1 + NORM + HEAD


# --- counts ---


def test_counts_of_the_124M():
    C = 768
    block = (
        2 * C + (C * 3 * C + 3 * C) + (C * C + C) + 2 * C + (C * 4 * C + 4 * C) + (4 * C * C + C)
    )
    assert block == 7_087_872
    model = meta_124M()
    set_trainable(model)
    lines = ledger(model)
    assert sum(line.trainable for line in lines) == block + 2 * C + 2 * C + 2 == 7_090_946
    assert sum(line.parameters for line in lines) == 124_439_808 + 2 * C + 2 == 124_441_346
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 7_090_946
    assert sum(p.numel() for p in model.parameters()) == 124_441_346


@pytest.mark.parametrize("tied", [True, False])
def test_the_ledger_has_every_parameter_once(tiny_gpt2, tied):
    if not tied:
        replace_head(tiny_gpt2, 5)
        set_trainable(tiny_gpt2, 1, final_norm=False)
    lines = ledger(tiny_gpt2)
    parts = ["wte", "wpe", "blocks.0", "blocks.1", "ln_f"] + ["head"] * (not tied)
    assert [line.part for line in lines] == parts
    for line in lines:
        of_part = [
            p for name, p in tiny_gpt2.named_parameters() if f"{name}.".startswith(f"{line.part}.")
        ]
        assert line.parameters == sum(p.numel() for p in of_part)
        assert line.trainable == sum(p.numel() for p in of_part if p.requires_grad)
    assert sum(line.parameters for line in lines) == sum(p.numel() for p in tiny_gpt2.parameters())


def test_the_ledger_as_a_table():
    model = meta_124M()
    set_trainable(model)
    assert format_ledger(ledger(model)).splitlines() == [
        "wte             38,597,376  frozen",
        "wpe                786,432  frozen",
        "blocks.0 to 10  77,966,592  frozen",
        "blocks.11        7,087,872  trainable",
        "ln_f                 1,536  trainable",
        "head                 1,538  trainable",
        "7,090,946 trainable (5.70%) of 124,441,346 parameters",
    ]


def test_the_table_shows_partly_trainable_blocks():
    model = GPT2(GPT2Config(n_vocab=300, n_ctx=8, n_embd=4, n_head=2, n_layer=4))
    replace_head(model, 2)
    set_trainable(model, 2, final_norm=False)
    model.blocks[1].mlp.requires_grad_(True)  # 4 * 16 + 16 + 16 * 4 + 4 = 148 of 244
    assert format_ledger(ledger(model)).splitlines() == [
        "wte            1,200  frozen",
        "wpe               32  frozen",
        "blocks.0         244  frozen",
        "blocks.1         244  partly",
        "blocks.2 to 3    488  trainable",
        "ln_f               8  frozen",
        "head              10  trainable",
        "646 trainable (29.02%) of 2,226 parameters",
    ]


# --- by pattern ---


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("head.*", HEAD),
        ("head.*,ln_f.bias", ["ln_f.bias", *HEAD]),
        ("blocks.1.*, head.bias", [*BLOCK_1, "head.bias"]),
        ("blocks.*.mlp.c_fc.weight", ["blocks.0.mlp.c_fc.weight", "blocks.1.mlp.c_fc.weight"]),
        ("*.ln_?.bias", [f"blocks.{b}.ln_{n}.bias" for b in (0, 1) for n in (1, 2)]),
        ("wpe.weight", ["wpe.weight"]),
        ("*", None),
    ],
)
def test_patterns_override_the_other_settings(classifier, pattern, names):
    for n_last_blocks in (0, 2):
        set_trainable(classifier, n_last_blocks, pattern=pattern)
        expected = [name for name, _ in classifier.named_parameters()] if names is None else names
        assert trainable_names(classifier) == expected


def test_a_pattern_that_matches_nothing_is_refused(classifier):
    with pytest.raises(UsageError, match=r"'block\.1\.\*'.*wte"):
        set_trainable(classifier, pattern="head.*,block.1.*")


def test_lora_is_trainable_in_addition_to_a_pattern(tiny_checkpoint: Path):
    adapted = Classifier.on_base(tiny_checkpoint, ["a", "b"], lora=LoRAConfig(matrices=("value",)))
    set_trainable(adapted.model, pattern="head.bias")
    lora = [f"blocks.{n}.attn.c_attn.lora_{x}" for n in (0, 1) for x in "AB"]
    assert trainable_names(adapted.model) == [*lora, "head.bias"]


def test_only_heads_marked_trainable_are_trained(tiny_checkpoint: Path):
    heads = [
        HeadConfig("kind", labels=("a", "b"), pooling="last_token"),
        HeadConfig("size", "regression", ("x",), pooling="last_token", trainable=False),
        HeadConfig("next", "language"),  # tied to wte, which stays frozen
    ]
    several = Classifier.on_base(tiny_checkpoint, heads=heads)
    freeze(several, TrainConfig())
    own = ["head.kind.weight", "head.kind.bias"]
    assert trainable_names(several.model) == BLOCK_1 + NORM + own
    assert not several.model.wte.weight.requires_grad


# --- in which epoch, and how fast ---


def split_of(n: int = 8) -> Split:
    texts = [Message(f"{'win' if k % 2 else 'see'} the {k}", "ab"[k % 2]) for k in range(n)]
    return Split(texts, texts[:2], [])


def training(base: Path, config: TrainConfig, folder: Path) -> TrainingRun:
    """A run that has not started."""
    classifier = Classifier.on_base(base, ["a", "b"])
    freeze(classifier, config)
    split = split_of()
    labelled = to_labelled(classifier, split.train)
    return TrainingRun(classifier, split, labelled, config, folder)


@pytest.mark.parametrize(
    ("n_last_blocks", "every", "blocks"),
    [(2, 1, [0, 1, 2, 2]), (2, 2, [0, 0, 1, 1, 2]), (1, 1, [0, 1, 1]), (2, 0, [2, 2])],
)
def test_blocks_are_unfrozen_one_after_the_other(
    tiny_checkpoint, tmp_path, monkeypatch, n_last_blocks, every, blocks
):
    """Gradual unfreezing (ULMFiT): which parameters change in each epoch, from the last block."""
    epochs = len(blocks)
    config = TrainConfig(
        n_last_blocks=n_last_blocks,
        unfreeze_every=every,
        epochs=epochs,
        lr=0.01,
        batch_size=4,
        patience=epochs,
    )
    classifier, changed = Classifier.on_base(tiny_checkpoint, ["a", "b"]), []
    model, plain = classifier.model, TrainingRun.end_epoch
    seen = [{name: p.detach().clone() for name, p in model.named_parameters()}]

    def end_epoch(run: TrainingRun, val: Labelled) -> None:
        now = {name: p.detach().clone() for name, p in model.named_parameters()}
        changed.append([name for name in now if not torch.equal(now[name], seen[-1][name])])
        seen.append(now)
        plain(run, val)

    monkeypatch.setattr(TrainingRun, "end_epoch", end_epoch)
    finetune(classifier, split_of(), config, tmp_path)
    names = {0: [], 1: BLOCK_1, 2: BLOCK_0 + BLOCK_1}
    assert changed == [names[count] + NORM + HEAD for count in blocks]


@pytest.mark.parametrize(("every", "epochs"), [(2, 5), (0, 2)])
def test_patience_counts_from_the_last_unfreezing(
    tiny_checkpoint, tmp_path, monkeypatch, every, epochs
):
    """Validation never improves, and the last block is unfrozen only after the fourth epoch."""
    monkeypatch.setattr(training_run, "best_epoch", lambda history: history[0])
    config = TrainConfig(n_last_blocks=2, unfreeze_every=every, epochs=9, patience=1)
    classifier = Classifier.on_base(tiny_checkpoint, ["a", "b"])
    history = finetune(classifier, split_of(), config, tmp_path)
    assert len(history) == epochs


def test_rate_decay_divides_the_learning_rate_per_block(tiny_checkpoint, tmp_path):
    config = TrainConfig(n_last_blocks=2, lr=0.008, rate_decay=2.0, warmup=0.5, epochs=4)
    run = training(tiny_checkpoint, config, tmp_path)
    names = {id(p): name for name, p in run.classifier.model.named_parameters()}

    def rates() -> dict[str, float]:
        return {names[id(p)]: g["lr"] for g in run.optimizer.param_groups for p in g["params"]}

    expected = (
        {n: 0.008 for n in NORM + HEAD}
        | dict.fromkeys(BLOCK_1, 0.004)
        | dict.fromkeys(BLOCK_0, 0.002)
    )
    assert rates() == expected
    factors = []
    for _ in range(4):
        run.step([0, 1, 2])
        factor = rates()["head.bias"] / 0.008
        factors.append(factor)
        assert rates() == pytest.approx({name: rate * factor for name, rate in expected.items()})
    # the learning rate rises in two of four steps
    assert factors[:2] == [0.5, 1.0] and factors[3] < 1


def test_embeddings_learn_slowest(tiny_checkpoint, tmp_path):
    config = TrainConfig(trainable="*", lr=0.008, rate_decay=2.0)
    run = training(tiny_checkpoint, config, tmp_path)
    [group] = [g for g in run.optimizer.param_groups if "wte.weight" in g["names"]]
    assert group["names"] == ["wte.weight"] and group["lr"] == run.config.lr / 2**3
    [group] = [g for g in run.optimizer.param_groups if "wpe.weight" in g["names"]]
    assert group["weight_decay"] == 0.0 and group["lr"] == run.config.lr / 2**3


def test_decay_shrinks_matrices_and_nothing_else(tiny_checkpoint, tmp_path):
    """With this low learning rate only decay shows: lr * 100 per step, which leaves 0.9."""
    config = TrainConfig(n_last_blocks=2, lr=1e-6, weight_decay=1e5, warmup=0.0, epochs=1)
    run = training(tiny_checkpoint, config, tmp_path)
    before = {name: p.detach().clone() for name, p in run.trainable.items()}
    run.step([0, 1])
    for name, parameter in run.trainable.items():
        factor = 0.9 if parameter.dim() == 2 else 1.0
        torch.testing.assert_close(parameter.detach(), factor * before[name], atol=3e-6, rtol=0)
    biases = [name for name in before if name.endswith(".bias") or ".ln_" in name or "ln_f" in name]
    assert len(biases) == 2 * 8 + 3 and all(run.trainable[name].dim() == 1 for name in biases)


def test_the_ledger_shows_learning_rates_and_decay(tiny_checkpoint, tmp_path):
    config = TrainConfig(lr=0.008, rate_decay=2.0, weight_decay=0.1)
    run = training(tiny_checkpoint, config, tmp_path)
    *_, block, norm, head = ledger(run.classifier.model, config)
    matrices = 32 * (96 + 32 + 128 + 128)
    assert (block.part, block.lr, block.weight_decay, block.decayed) == (
        "blocks.1",
        0.004,
        0.1,
        matrices,
    )
    assert (norm.lr, norm.weight_decay, norm.decayed) == (0.008, 0.0, 0)
    assert (head.lr, head.weight_decay, head.decayed) == (0.008, 0.1, 64)
    line = format_ledger([block]).splitlines()[0]
    assert "trainable" in line and "lr 4.0e-03" in line and f"decay 0.1 of {matrices:,}" in line


def test_blocks_are_counted_from_the_layer_read(tiny_checkpoint: Path) -> None:
    """Blocks after the layer that a head reads have no effect, so none of them is trained."""
    low = HeadConfig(labels=("a", "b"), layer=1)
    classifier = Classifier.on_base(tiny_checkpoint, heads=[low], lora=LoRAConfig(rank=2))
    assert {name.split(".")[1] for name in lora_names(classifier.model)} == {"0"}
    freeze(classifier, TrainConfig(n_last_blocks=1, rate_decay=2.0, lr=0.1))
    trains = trainable_names(classifier.model)
    assert {name.split(".")[1] for name in trains if name.startswith("blocks")} == {"0"}
    lines = ledger(classifier.model, TrainConfig(rate_decay=2.0, lr=0.1), [low])
    assert [line.lr for line in lines if line.part == "blocks.0"] == [0.05]
    with pytest.raises(UsageError, match="the heads read 1 blocks"):
        freeze(classifier, TrainConfig(n_last_blocks=2))
    with pytest.raises(UsageError, match="the heads read 1 blocks"):
        Classifier.on_base(tiny_checkpoint, heads=[low], lora=LoRAConfig(n_last_blocks=2))


def test_the_final_norm_is_trainable_only_if_a_head_reads_it(tiny_checkpoint: Path) -> None:
    for final_norm in (True, False):
        head = HeadConfig(labels=("a", "b"), final_norm=final_norm)
        classifier = Classifier.on_base(tiny_checkpoint, heads=[head])
        freeze(classifier, TrainConfig(n_last_blocks=0))
        assert ("ln_f.weight" in trainable_names(classifier.model)) == final_norm


@pytest.mark.parametrize("heads", [(LAYERS,), (LABEL, STARS), (STATE, LABEL)])
def test_heads_of_any_kind_are_trainable_by_default(
    base: Path, heads: tuple[HeadConfig, ...]
) -> None:
    model = classifier_with(base, *heads).model
    set_trainable(model, 0, final_norm=False)
    trains = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trains == [n for n, _ in model.named_parameters() if n.startswith("head.")] != []


def test_a_tied_head_among_others_has_to_be_named(base: Path) -> None:
    model = classifier_with(base, LABEL, LANGUAGE).model
    with pytest.raises(UsageError, match="tied to wte"):
        set_trainable(model)
