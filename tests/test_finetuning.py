"""What trains: by its exact names, by count, and by what training leaves untouched."""

import pytest
import torch
from torch import nn

from gpt2_from_scratch.config import SIZES, GPT2Config
from gpt2_from_scratch.errors import UsageError
from gpt2_from_scratch.finetuning import format_ledger, ledger, set_trainable, trainable_names
from gpt2_from_scratch.heads import class_logits, replace_head
from gpt2_from_scratch.model import GPT2

HEAD, NORM = ["head.weight", "head.bias"], ["ln_f.weight", "ln_f.bias"]
BLOCK_1 = [
    "blocks.1.ln_1.weight", "blocks.1.ln_1.bias",
    "blocks.1.attn.c_attn.weight", "blocks.1.attn.c_attn.bias",
    "blocks.1.attn.c_proj.weight", "blocks.1.attn.c_proj.bias",
    "blocks.1.ln_2.weight", "blocks.1.ln_2.bias",
    "blocks.1.mlp.c_fc.weight", "blocks.1.mlp.c_fc.bias",
    "blocks.1.mlp.c_proj.weight", "blocks.1.mlp.c_proj.bias",
]  # fmt: skip
BLOCK_0 = [name.replace("blocks.1", "blocks.0") for name in BLOCK_1]


@pytest.fixture
def classifier(tiny_gpt2: GPT2) -> GPT2:
    replace_head(tiny_gpt2, 2)
    return tiny_gpt2


def meta_124M() -> GPT2:
    """The 124M model with a head of two classes, without its memory."""
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
def test_exactly_these_parameters_train(classifier, n_last_blocks, final_norm, names):
    set_trainable(classifier, n_last_blocks, final_norm)
    assert trainable_names(classifier) == names
    # also after another choice was made before
    set_trainable(classifier, 2, True)
    set_trainable(classifier, n_last_blocks, final_norm)
    assert trainable_names(classifier) == names
    assert not classifier.wte.weight.requires_grad and not classifier.wpe.weight.requires_grad


def test_the_default_is_the_last_block_the_final_norm_and_the_head(classifier):
    set_trainable(classifier)
    assert trainable_names(classifier) == BLOCK_1 + NORM + HEAD


def test_a_new_model_trains_whole(classifier):
    assert trainable_names(classifier) == [name for name, _ in classifier.named_parameters()]


@pytest.mark.parametrize("n_last_blocks", [-1, 3])
def test_blocks_that_are_not_there(classifier, n_last_blocks):
    before = trainable_names(classifier)
    with pytest.raises(UsageError, match=f"n_last_blocks = {n_last_blocks}: .* 2 blocks"):
        set_trainable(classifier, n_last_blocks)
    assert trainable_names(classifier) == before


def test_a_tied_head_is_refused(tiny_gpt2):
    with pytest.raises(UsageError, match="tied to wte: call replace_head first"):
        set_trainable(tiny_gpt2)
    assert len(trainable_names(tiny_gpt2)) == 28


def test_frozen_parameters_are_bit_identical_after_training(classifier):
    set_trainable(classifier)
    before = {name: p.detach().clone() for name, p in classifier.named_parameters()}
    # all parameters go to the optimizer, weight decay too: freezing alone must protect them
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
    assert sum(line.numbers for line in lines) == 124_439_808 + 2 * C + 2 == 124_441_346
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
        assert line.numbers == sum(p.numel() for p in of_part)
        assert line.trainable == sum(p.numel() for p in of_part if p.requires_grad)
    assert sum(line.numbers for line in lines) == sum(p.numel() for p in tiny_gpt2.parameters())


def test_the_ledger_as_a_table():
    model = meta_124M()
    set_trainable(model)
    assert format_ledger(ledger(model)).splitlines() == [
        "  wte                 38,597,376  frozen",
        "  wpe                    786,432  frozen",
        "  blocks.0 to 10      77,966,592  frozen",
        "  blocks.11            7,087,872  trains",
        "  ln_f                     1,536  trains",
        "  head                     1,538  trains",
        "  all                124,441,346  7,090,946 train (5.70 %)",
    ]


def test_the_table_says_what_trains_in_part():
    model = GPT2(GPT2Config(n_vocab=300, n_ctx=8, n_embd=4, n_head=2, n_layer=4))
    replace_head(model, 2)
    set_trainable(model, 2, final_norm=False)
    model.blocks[1].mlp.requires_grad_(True)  # 4 * 16 + 16 + 16 * 4 + 4 = 148 of 244
    assert format_ledger(ledger(model)).splitlines() == [
        "  wte                      1,200  frozen",
        "  wpe                         32  frozen",
        "  blocks.0                   244  frozen",
        "  blocks.1                   244  in part",
        "  blocks.2 to 3              488  trains",
        "  ln_f                         8  frozen",
        "  head                        10  trains",
        "  all                      2,226  646 train (29.02 %)",
    ]
