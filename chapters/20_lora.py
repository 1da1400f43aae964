# %% [markdown]
# # 20. LoRA
#
# **You are here:** pretraining → heads → words and spans → probes → several heads → **LoRA** → explanations
#
# Finetuning changes weights. But how complicated is that change? If it is simple, we need not store and
# train a whole matrix for it. LoRA ([Hu et al.](https://arxiv.org/abs/2106.09685)) leaves each matrix as it
# is, and trains two narrow ones next to it. It is the most common way of finetuning large models today.
#
# **At the end you will know** what the rank of a matrix is, what LoRA computes, what it saves and what it
# does not save, a detail of the book's LoRA that is worth changing, and how four bits per weight are enough.
#
# **Reading time:** 30 minutes. **Running time:** about twenty seconds, offline.

# %%
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from matplotlib.figure import Figure

from gpt2_from_scratch import (
    LABELS,
    NF4_LEVELS,
    Classifier,
    FeatureStore,
    LoRAConfig,
    LoRALinear,
    NF4Linear,
    Split,
    TrainConfig,
    add_lora,
    evaluate_classifier,
    finetune,
    format_ledger,
    frozen_depth,
    ledger,
    load_gpt2,
    load_messages,
    set_trainable,
    split_messages,
)
from gpt2_from_scratch.course import picture, setting, show

MODEL, DATA = setting("mini")  # "124M": OpenAI's model. DATA: the SMS Spam Collection

# %% [markdown]
# ## How complicated is a change?
#
# We train the last block, as in chapter 10. Then we subtract the old weights of its widest matrix from the
# new ones. What is left is the change:

# %%
whole = split_messages(load_messages(DATA), balance=True)
split = Split(whole.train[:160], whole.val[:30], whole.test[:160])  # some, to save time
store = FeatureStore()  # keeps what the frozen blocks compute, for the next training
TEMPORARY = TemporaryDirectory()  # gone when Python ends
folder = Path(TEMPORARY.name)


def train_way(lora, blocks, lr):
    classifier = Classifier.on_base(MODEL, LABELS, lora=lora, store=store)
    config = TrainConfig(n_last_blocks=blocks, lr=lr, epochs=3)
    history = finetune(classifier, split, config, folder)
    size = (folder / "best.safetensors").stat().st_size
    return classifier, history[-1].train_loss, size


base = load_gpt2(MODEL)
LR = 1e-3 * 256 / base.config.n_embd  # 1e-3 for the miniature; wider networks need a lower rate
block_whole = train_way(None, 1, LR)
before = base.blocks[-1].mlp.c_fc.weight.detach()
after = block_whole[0].model.blocks[-1].mlp.c_fc.weight.detach()
change = after - before
print(
    "W     ",
    tuple(before.shape),
    f"{before.numel():,} numbers, mean size {before.abs().mean():.4f}",
)
print(
    "change",
    tuple(change.shape),
    f"{change.numel():,} numbers, mean size {change.abs().mean():.4f}",
)

# %% [markdown]
# The simplest matrix is a column times a row: one number per output and one number per input, and every
# entry is a product of the two. Such a matrix has *rank* 1. The sum of r such products has rank r. Any
# matrix can be written as a sum of this kind, with the largest product first. That is the *singular value
# decomposition*, and the *singular values* say how large each product is.
#
# How many products does our change need? For comparison, we take a random matrix of the same shape. Guess
# first: what proportion of the change do the 8 largest of all products hold?

# %%
torch.manual_seed(123)
random = torch.randn(change.shape)


def held(matrix):
    squares = torch.linalg.svdvals(matrix).square()
    return squares.cumsum(dim=0) / squares.sum()  # entry r - 1: what rank r holds


held_by_change = held(change)
held_by_random = held(random)
for r in (1, 4, 8, 16):
    print(
        f"rank {r:>2} holds {held_by_change[r - 1]:.0%} of the change, {held_by_random[r - 1]:.0%} of a random matrix"
    )

# %%
figure = Figure(figsize=(8, 3.6), layout="constrained")
axes = figure.subplots()
ranks = range(1, len(held_by_change) + 1)
axes.plot(ranks, 100 * held_by_change, color="#0072B2", linewidth=2)
axes.plot(ranks, 100 * held_by_random, color="#404040", linestyle="--")
axes.axvline(8, color="#E69F00")
axes.text(9, 3, "rank 8", color="#E69F00")
axes.text(40, 80, "change made by finetuning", color="#0072B2")
axes.text(90, 40, "random matrix", color="#404040")
axes.set_xlabel("rank")
axes.set_ylabel("proportion held (%)")
axes.set_title("A few products hold most of what finetuning changed")
picture(figure, "20-ranks")

# %% [markdown]
# Of the 256 products, a few hold most of the change. A random matrix has no such structure. The gradient
# pushes the weights in a few directions again and again: those that tell ham from spam. This is the
# observation that LoRA is built on. (The rest of the change is spread over many small products, so a low
# rank is not exact.)
#
# ## Two narrow matrices
#
# If the change is nearly of low rank, why not train it in that form from the start? LoRA freezes $W$
# and writes the change as $\frac{\alpha}{r} B A$. The matrix $A$ turns the inputs into only $r$
# numbers, and $B$ turns these into the outputs. The constant $\alpha$ only scales the result. $A$ and
# $B$ together are called an *adapter*:

# %%
rank, alpha = 8, 8.0
n_out, n_in = before.shape
A = torch.randn(rank, n_in) / n_in**0.5  # random at the start
B = torch.zeros(n_out, rank)  # zero at the start
x = torch.randn(3, n_in)  # any three inputs
y = x @ before.T  # what the frozen matrix computes
with_adapter = y + alpha / rank * (x @ A.T @ B.T)
print("the adapter changes the output by", (with_adapter - y).abs().max().item())
print(f"W: {before.numel():,} numbers; A and B: {A.numel() + B.numel():,}")

# %% [markdown]
# At the start $B$ is zero, so the adapter changes nothing: finetuning begins with exactly the
# pretrained model. (Exercise 1 asks why $A$ must not be zero too.) The package's layer is the same
# line. It adds that one matrix may have several adapters: GPT-2 stores query, key and value in one
# matrix, and each of them gets its own. (A matrix that is `packed` is stored with four bits per
# number. LoRA next to such a matrix is called QLoRA.)

# %%
show(LoRALinear.forward)

# %% [markdown]
# ## How many parameters are trained
#
# The adapter of a matrix with $m$ inputs and $n$ outputs has $r(m + n)$ parameters. A block has six adapted
# matrices: query, key, value, the output of attention, and the two of the MLP. Appendix E of the book uses
# rank 16 in all blocks of 124M and also in the head, and counts 2,666,528 trainable parameters. We count
# along:

# %%
C, L, r = 768, 12, 16  # 124M
attention = 4 * r * (C + C)  # query, key, value and output: C inputs, C outputs
mlp = r * (C + 4 * C) + r * (4 * C + C)
head = r * (C + 2)
print(f"{L} blocks of {attention + mlp:,} and a head of {head:,}: {L * (attention + mlp) + head:,}")

# %% [markdown]
# Here is the ledger of this chapter's model with such adapters (chapter 8 introduced ledgers). `partly` means
# that a part has both frozen and trained parameters:

# %%
adapted = Classifier.on_base(MODEL, LABELS, lora=LoRAConfig(rank=16, alpha=16, head=True))
set_trainable(adapted.model, n_last_blocks=0, final_norm=False)
print(format_ledger(ledger(adapted.model)))

# %% [markdown]
# ## The head that stays random
#
# Look at the head in this ledger. The book freezes it as well and trains only its adapter. But this head is
# new. Its weights were drawn at random a moment ago, so there is nothing in them to preserve. And its
# adapter has *more* parameters than the head itself. Is it any good? We freeze all blocks, and train either
# the adapter of the head or the head:

# %%
book_head = LoRAConfig(rank=16, alpha=16, matrices=(), head=True)  # no adapter in any block
heads = {
    "book's head": train_way(book_head, 0, LR),
    "book's head, 4 times the learning rate": train_way(book_head, 0, 4 * LR),
    "whole head": train_way(None, 0, LR),
    "whole head, 4 times the learning rate": train_way(None, 0, 4 * LR),
}


def trained_parameters(classifier):
    return sum(p.numel() for p in classifier.model.parameters() if p.requires_grad)


for name, (classifier, loss, _) in heads.items():
    print(f"{name:<40}{trained_parameters(classifier):>6,} parameters, training loss {loss:.3f}")

# %% [markdown]
# (The counts include the final norm, which all of them train.) At the same learning rate, the whole head has
# the lower loss each time, with fewer parameters. $B$ starts at zero and $A$ has small numbers, so an
# adapter's effect is small at first. So the package trains the whole head, next
# to the adapters in the blocks, unless `head=True` asks for the book's way.

# %% [markdown]
# ## What it costs, and what it saves
#
# Now the real comparison: the last block whole, the last block with LoRA, and all blocks with LoRA.
# Adapters get four times the learning rate, because they start slowly.

# %%
last = LoRAConfig(rank=8, alpha=8, n_last_blocks=1)
every = LoRAConfig(rank=8, alpha=8)
ways = {
    "last block, whole": block_whole,
    "last block, LoRA": train_way(last, 0, 4 * LR),
    "every block, LoRA": train_way(every, 0, 4 * LR),
}
n_layer = base.config.n_layer
for name, (classifier, loss, size) in ways.items():
    computed = n_layer - frozen_depth(classifier.model)[0]
    test = evaluate_classifier(classifier, split.test)
    low, high = test.interval
    print(name)
    print(
        f"    trained {trained_parameters(classifier):>9,} parameters, file {size / 1000:,.0f} kB"
    )
    print(f"    blocks computed per step: {computed}")
    print(
        f"    training loss {loss:.2f}, test accuracy {test.accuracy:.1%} ({low:.1%} to {high:.1%})"
    )

# %% [markdown]
# **What it saves.** LoRA trains far fewer parameters, and only these have to be saved: the file is many
# times smaller. AdamW also keeps two running averages for each trained parameter, of its gradient and of the
# square of its gradient. They shrink too.
#
# **What it does not save.** Computation. In the last block, the big matrix still has to be multiplied. With
# adapters in every block no block is frozen any more, so the shortcut of chapter 14 is gone: every step runs
# all 6 blocks instead of 1.
#
# **Accuracy.** All intervals overlap, so this table does not say which way is best.
#
# So use LoRA if you need many classifiers on one base, and want to store each of them in a small file. Or
# use it if all blocks have to change and AdamW's averages do not fit into memory, which is why it is
# popular for models a hundred times larger than this one. For a small model and one classifier, train the
# last block.

# %% [markdown]
# ## One matrix again
#
# $W + \frac{\alpha}{r} B A$ is a matrix of the same shape as $W$. So after training the product can be added
# to $W$, and the adapter is gone. `merge` does this. The result is a plain GPT-2, as fast as before:

# %%
adapted = ways["every block, LoRA"][0]
ids, _ = adapted.encode([message.text for message in split.test[:2]])
print("frozen blocks with adapters:", frozen_depth(adapted.model)[0], adapted.logits(ids)[0])
adapted.merge()
print("frozen blocks after merging:", frozen_depth(adapted.model)[0], adapted.logits(ids)[0])
adapted.unmerge()

# %% [markdown]
# ## Four bits per weight
#
# LoRA never changes $W$. So does $W$ have to be stored exactly? QLoRA ([Dettmers et
# al.](https://arxiv.org/abs/2305.14314)) stores each weight as one of only 16 levels, so four bits are
# enough. It takes the weights in blocks of 64, and divides each block by its largest absolute value. Then
# it replaces each weight by the nearest level. We do this for the first 64 weights of our matrix:

# %%
levels = torch.tensor(NF4_LEVELS)
block = before[0, :64]
largest = block.abs().max()
distances = (block[:, None] / largest - levels).abs()  # (64, 16)
codes = distances.argmin(dim=1)
print("weights ", block[:5])
print("codes   ", codes[:5])
print("restored", largest * levels[codes[:5]])

# %% [markdown]
# The restored weights are similar to the weights, but not equal. The levels are the same for every matrix
# of every model. Guess first: are they evenly spaced?

# %%
packed = NF4Linear(base.blocks[-1].mlp.c_fc)  # stores the whole matrix in this way
blocks = before.reshape(-1, 64)
units = blocks / blocks.abs().amax(dim=1, keepdim=True)  # each block divided by its largest

figure = Figure(figsize=(8, 4), layout="constrained")
axes = figure.subplot_mosaic([["levels", "levels"], ["before", "after"]])
axes["levels"].hist(units.flatten().numpy(), bins=200, color="#0072B2")
axes["levels"].vlines(levels, 0, 3200, color="#D55E00")
axes["levels"].set(title="The 16 levels are close together where most weights are")
axes["levels"].set(xlabel="weight / largest of its block", ylabel="weights")
axes["before"].imshow(before[:24, :64].numpy(), cmap="RdBu", vmin=-0.4, vmax=0.4)
axes["before"].set_title("a part of the matrix, 32 bits per weight")
axes["after"].imshow(packed.weight[:24, :64].numpy(), cmap="RdBu", vmin=-0.4, vmax=0.4)
axes["after"].set_title("the same part, four bits per weight")
picture(figure, "20-four-bits")

# %% [markdown]
# Most weights of a block are much smaller than its largest one. So the levels are close together near 0 and
# far apart at the ends. To the eye, the two matrices are the same.
#
# What does it save, and what does it cost? We train the adapters of the last block again, next to matrices
# of this kind. `quantize="nf4"` asks for them (NF4 is the name of these levels):

# %%
stored = sum(buffer.nbytes for buffer in packed.buffers())
error = (packed.weight - before).abs().mean() / before.abs().mean()
print(f"{8 * stored / before.numel():.2f} bits per weight instead of 32, mean error {error:.1%}")

quantized = train_way(LoRAConfig(rank=8, alpha=8, n_last_blocks=1, quantize="nf4"), 0, 4 * LR)
print(f"training loss, exact matrices:     {ways['last block, LoRA'][1]:.2f}")
print(f"training loss, four-bit matrices:  {quantized[1]:.2f}")

# %% [markdown]
# The matrices take an eighth of the memory, and the loss is about the same, although each weight is a
# little wrong. This is how models with billions of weights are finetuned on one GPU. Two things
# become worse: a matrix has to be restored whenever it is used, which takes time, and the product of the
# adapters cannot be added to it, because the sum would not be one of the 16 levels.

# %% [markdown]
# ## What you know now
#
# - The change that finetuning makes to a matrix has a structure: a few products of a column and a row hold
#   most of it.
# - LoRA trains such products, $B A$, next to a frozen matrix. At the start $B$ is zero, so nothing changes.
# - LoRA saves trained parameters, memory for AdamW, and file size. It does not save computation.
# - A new head has nothing to preserve, and here its loss was lower when it was trained whole.
# - After training, the product can be added to the matrix.
# - The frozen matrices need not be exact: QLoRA stores them with about four bits per weight.

# %% [markdown]
# ## Checks
#
# These cells check what the chapter said. They are folded in the notebook; an error here means that
# something is wrong.

# %% check
left, values, right = torch.linalg.svd(change, full_matrices=False)
best = left[:, :8] @ torch.diag(values[:8]) @ right[:8]  # the best matrix of rank 8
by_hand = 1 - ((change - best) ** 2).sum() / (change**2).sum()
assert torch.isclose(by_hand, held_by_change[7], atol=1e-4)
assert held_by_change[7] > 3 * held_by_random[7] and held_by_change[7] > 0.5
print("checked: what rank 8 holds of the change, by another way")

# %% check
model = load_gpt2(MODEL)
tokens = torch.tensor([[5, 7, 11, 13]])
untouched = model(tokens)
add_lora(model, LoRAConfig(rank=rank, alpha=alpha))
assert torch.equal(model(tokens), untouched), "at the start no logit changes"
layer = model.blocks[-1].mlp.c_fc
B_trained = torch.randn(n_out, rank)
with torch.no_grad():
    layer.lora_A[0] = A
    layer.lora_B[0] = B_trained
    dense = layer.weight + alpha / rank * B_trained @ A
    by_hand = x @ layer.weight.T + alpha / rank * (x @ A.T @ B_trained.T) + layer.bias
    torch.testing.assert_close(layer(x), by_hand, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(layer(x), x @ dense.T + layer.bias, atol=1e-3, rtol=1e-3)
assert torch.linalg.matrix_rank(B_trained @ A) == rank
print("checked: by hand, by the package and as one dense matrix; at the start nothing changes")

# %% check
assert L * (attention + mlp) + head == 2_666_528
lines = ledger(Classifier.on_base(MODEL, LABELS, lora=LoRAConfig(rank=16, alpha=16)).model)
lora_model = Classifier.on_base(MODEL, LABELS, lora=LoRAConfig(rank=16, alpha=16, head=True)).model
set_trainable(lora_model, n_last_blocks=0, final_norm=False)
width = base.config.n_embd
assert sum(line.trainable for line in ledger(lora_model)) == 16 * 18 * width * n_layer + 16 * (
    width + 2
)
print("checked: the count of the book, and that of the ledger")

# %% check
loss_of = {name: loss for name, (_, loss, _) in heads.items()}
assert loss_of["whole head"] < loss_of["book's head"] - 0.02
assert (
    loss_of["whole head, 4 times the learning rate"]
    < loss_of["book's head, 4 times the learning rate"]
)
print("checked: at the same learning rate, the whole head has the lower loss")

# %% check
ends = [evaluate_classifier(way[0], split.test).interval for way in ways.values()]
assert max(low for low, _ in ends) < min(high for _, high in ends), "all intervals overlap"
depths = [frozen_depth(way[0].model)[0] for way in ways.values()]
assert depths == [n_layer - 1, n_layer - 1, 0]
for classifier, _, size in ways.values():
    assert 0 < size - 4 * trained_parameters(classifier) < 20_000, "four bytes each, and a header"
print("checked: intervals, frozen blocks, sizes of files")

# %% check
encoded, _ = adapted.encode([message.text for message in split.test])
logits = adapted.logits(encoded)
adapted.merge()
assert frozen_depth(adapted.model)[0] == n_layer
torch.testing.assert_close(adapted.logits(encoded), logits, atol=1e-3, rtol=0)
adapted.unmerge()
adapted.save(folder / "small.safetensors")
loaded = Classifier.load(folder / "small.safetensors")
torch.testing.assert_close(loaded.logits(encoded), logits, atol=1e-3, rtol=0)
print("checked: the same logits with adapters, merged, and from the file")

# %% check
assert 4.12 < 8 * stored / before.numel() < 4.13
restored = packed.weight[
    0, :64
]  # the largest absolute values are stored with 8 bits, so not exactly
torch.testing.assert_close(restored, largest * levels[codes], atol=0, rtol=0.1)
middles = (levels[1:] + levels[:-1]) / 2
assert torch.equal(torch.bucketize(block / largest, middles), codes), "the nearest, by another way"
gaps = levels.diff()
assert gaps[:7].argmin() == 6 and gaps[7:].argmin() == 0, "smallest next to the level 0"
assert abs(quantized[1] - ways["last block, LoRA"][1]) < 0.05
print("checked: bits per weight, the nearest levels, their distances, and the loss")

# %% [markdown]
# ## Exercises
#
# 1. (easy) $B$ begins as zero. What would happen if $A$ were zero too? And which of the two changes in the
#    first step?
#    <details><summary>Hint</summary>Look at the gradients after one `backward`.</details>
# 2. (medium) Train rank 8 in the last block with the learning rate of the whole block. How far does the loss
#    fall?
#    <details><summary>Hint</summary>It is one call of `train_way`.</details>
# 3. (hard) Replace the change of every matrix of the last block by the best matrix of rank 8. Does the
#    classifier still give the same answers?
#    <details><summary>Hint</summary>`torch.linalg.svd` gives the products; keep the first
#    eight.</details>
#
# Solutions: [`solutions/20_lora.py`](solutions/20_lora.py).
