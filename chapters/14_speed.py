# %% [markdown]
# # 14. Why it is fast
#
# **You are here:** evaluation → where to read → **speed**
#
# In chapter 10 the package and our loop had the same losses, but the package took less time. How is that
# possible? The loop computes many numbers again and again, and most of them are never read. In
# this chapter we count what it computes, leave out what is not needed, and check that the answers stay
# the same.
#
# **At the end you will know** what a training step costs, why frozen blocks need to see each text
# only once, and how the last block can answer without computing keys and values.
#
# **Reading time:** 20 minutes. **Running time:** about ten seconds, offline.

# %%
import time

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from gpt2_from_scratch import (
    LABELS,
    Classifier,
    block_at,
    load_messages,
    pad_batch,
    set_trainable,
    split_messages,
)
from gpt2_from_scratch.course import picture, setting, show

MODEL, DATA = setting("mini")  # "124M": OpenAI's model. DATA: the SMS Spam Collection

# %% [markdown]
# ## The textbook loop
#
# This loop computes what the lecture's does (it only reads another position). It pads every message to the
# length of the longest one, sends it through every block, and then reads a single position. We take twelve batches of eight messages, as
# many as we need for counting.

# %%
B, EPOCHS = 8, 5  # as in the lecture
messages = split_messages(load_messages(DATA), balance=True).train[: 12 * B]
labels = torch.tensor([LABELS.index(message.label) for message in messages])
batches = torch.arange(len(messages)).split(B)

plain = Classifier.on_base(MODEL, LABELS)
set_trainable(plain.model)
encoded, _ = plain.encode([message.text for message in messages])
lengths = [len(ids) for ids in encoded]
T = max(lengths)
C, L = plain.model.config.n_embd, plain.model.config.n_layer


def textbook(numbers):
    texts = [encoded[n] for n in numbers]
    ids, ends = pad_batch(texts, plain.tokenizer.end_of_text_id, T)
    return plain.model(ids)[range(len(numbers)), ends - 1]  # (B, 2)


print(textbook(batches[0]).detach())
print(f"{len(messages)} messages of {min(lengths)} to {T} tokens, {L} blocks, C = {C}")

# %% [markdown]
# ## What does a step compute?
#
# We count *multiply-adds*, because nearly all of the time goes into products of matrices. A matrix
# with $n$ entries needs $n$ of them for each position it is applied to. PyTorch has a counter. It counts
# a multiply-add as two operations, so we divide by two. And it does not see the fused attention of the
# CPU, so we switch to plain attention while counting.
#
# A guess first: the last block is the only block that is trained. What part of the work is in the
# others, which never change?


# %%
def counted(compute):
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        compute()
    return counter.get_total_flops() // 2


def one_step():
    F.cross_entropy(textbook(batches[0]), labels[:B]).backward()


def one_frozen_block():
    plain.model.blocks[0](torch.randn(B, T, C))


step = counted(one_step)
frozen = (L - 1) * counted(one_frozen_block)
print(f"one step:      {step / 1e6:>6,.0f} million multiply-adds")
print(f"frozen blocks: {frozen / 1e6:>6,.0f} million, {frozen / step:.0%}")

# %% [markdown]
# Most of the work is in the frozen blocks. Backward costs nothing there, because no gradient is
# needed, but forward costs as much as ever. And many of the positions hold only padding:

# %%
positions = len(encoded) * T
print(f"{positions:,} positions, {sum(lengths):,} of them tokens, the rest padding")

# %% [markdown]
# ## Frozen blocks see each text once
#
# A frozen block gives the same output for the same text, every time. In five epochs the textbook loop
# computes it five times, and once more for every evaluation. `Classifier.texts` computes it once and
# keeps it, and training starts from there. It also leaves out the padding: texts are stored one after
# another, as in the picture of chapter 2. And texts that begin with the same tokens share the work for
# these tokens.

# %%
ours = Classifier.on_base(MODEL, LABELS)  # the same weights as `plain`
set_trainable(ours.model)
kept = []


def keep_states():
    kept.append(ours.texts(encoded))


once = counted(keep_states)
again = EPOCHS * len(batches) * frozen
print("billion multiply-adds in frozen blocks, five epochs:")
print(f"textbook {again / 1e9:6.1f}")
print(f"ours     {once / 1e9:6.1f}")

# %% [markdown]
# ## One query is enough
#
# Now the last block. It is trained, so it has to run in every step. But we read only one position of its
# output, and after it no layer mixes positions any more. So of all its outputs only one per text is
# needed: one query, one product with `c_proj`, one MLP.
#
# The keys and values are another matter. The query is compared with the keys of *all* tokens, and the
# result is a mean of the values of *all* tokens. That seems to need both for each token. We look at one
# head, and do it the usual way first:

# %%
block = ours.model.blocks[-1]
H = block.attn.n_head
D = C // H
x, ends = kept[0].batch(batches[0])  # output of the frozen blocks (B, T, C), lengths (B,)
with torch.no_grad():
    a = block.ln_1(x[0, : ends[0]])  # (T, C), the first message, without padding
    W_q, W_k, W_v = (W[:D] for W in block.attn.c_attn.weight.split(C))  # (D, C), the first head
    b_q, b_k, b_v = (b[:D] for b in block.attn.c_attn.bias.split(C))  # (D,)
    q = W_q @ a[-1] + b_q  # (D,), the query of the last token

    k = a @ W_k.T + b_k  # (T, D), the keys of all tokens
    v = a @ W_v.T + b_v  # (T, D), their values
    w = (k @ q / D**0.5).softmax(dim=0)  # (T,), the attention weights
    usual = w @ v  # (D,)
print("attention weights:", w[:6].numpy().round(4))
print("result:           ", usual[:6].numpy().round(4))

# %% [markdown]
# ## No keys
#
# The score of position $t$ is the product of the query $q$ with the key $k_t$. Let $a_t$ be the
# normalised state at that position. Then
#
# $$q \cdot k_t = q \cdot (W_k a_t + b_k) = (W_k^\top q) \cdot a_t + q \cdot b_k$$
#
# Two things have happened. The matrix has moved from the states to the query: instead of sending every
# token forward through $W_k$, we send the one query back through it, once. And the last term is the same
# for every $t$. Softmax does not change when the same number is added to all its inputs, so we can leave
# this term out.

# %%
with torch.no_grad():
    u = W_k.T @ q  # (C,), the query, carried back
    w_2 = (a @ u / D**0.5).softmax(dim=0)  # (T,)
print("with keys:   ", w[:6].numpy().round(4))
print("without keys:", w_2[:6].numpy().round(4))

# %% [markdown]
# ## No values
#
# The same can be done with the values. The attention weights $w_t$ sum to 1, so
#
# $$\sum_t w_t v_t = \sum_t w_t (W_v a_t + b_v) = W_v \Big(\sum_t w_t a_t\Big) + b_v$$
#
# Instead of sending every token through $W_v$, we first take the mean of the states, and send only this
# mean through it.

# %%
with torch.no_grad():
    without = W_v @ (w_2 @ a) + b_v
print("with keys and values:", usual[:6].numpy().round(4))
print("without either:      ", without[:6].numpy().round(4))

# %% [markdown]
# The package does this for all heads and all texts of a batch at once. The shapes are in the comments.

# %%
show(block_at)

# %%
whole = counted(lambda: block(x))
one = counted(lambda: block_at(block, x, ends - 1))
print(f"the whole block:        {whole / 1e6:7.1f} million multiply-adds")
print(f"at one position a text: {one / 1e6:7.1f} million, {whole / one:.0f} times fewer")

# %% [markdown]
# ## What each idea saves
#
# The bars show five epochs: first the textbook loop, then with one idea after the other.

# %%
steps = counted(lambda: [ours.batch_logits(kept[0], n).sum().backward() for n in batches])
last = EPOCHS * len(batches) * (step - frozen)  # last block and head, as in the textbook
work = {
    "textbook loop": (again, last),
    "frozen blocks once": (again / EPOCHS, last),
    "... without padding": (once, last),
    "... last block at one position": (once, EPOCHS * steps),
}
figure = Figure(figsize=(9, 2.8), layout="constrained")
axes = figure.subplots()
for row, (in_frozen, in_last) in enumerate(work.values()):
    total = in_frozen + in_last
    axes.barh(row, in_frozen / 1e9, color="#0072B2")
    axes.barh(row, in_last / 1e9, left=in_frozen / 1e9, color="#E69F00")
    text = (
        f"{total / 1e9:.0f}"
        if row == 0
        else f"{total / 1e9:.0f}, {(again + last) / total:.1f} times less"
    )
    axes.text(total / 1e9 + 2, row, text, va="center")
axes.text(again / 2e9, 0, "frozen blocks", color="white", ha="center", va="center")
axes.text((again + last / 2) / 1e9, 0, "last block", ha="center", va="center")
axes.set_yticks(range(len(work)), list(work))
axes.invert_yaxis()
axes.set(title="The same losses, with less and less work", xlim=(0, 1.07 * (again + last) / 1e9))
axes.set_xlabel("billion multiply-adds in five epochs")
picture(figure, "14-work")

# %% [markdown]
# ## In seconds
#
# Fewer multiply-adds do not help if the program then waits for something else. So we run one epoch of
# both loops with a clock. Ours starts from the kept states. The seconds depend on the machine, so the
# notebook does not show them. With the 124M model, this package runs the lecture's whole recipe 20 to 35 times faster
# than the textbook loop (the page *Speed* of the documentation has the measurements).


# %% tags=["clock"]
def train_one_epoch(model, logits_of):
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=2e-4)
    losses = []
    began = time.perf_counter()
    for numbers in batches:
        optimizer.zero_grad()
        loss = F.cross_entropy(logits_of(numbers), labels[numbers])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    print(f"{time.perf_counter() - began:.2f} s")
    return losses


losses_of_textbook = train_one_epoch(plain.model, textbook)
losses_of_ours = train_one_epoch(ours.model, lambda numbers: ours.batch_logits(kept[0], numbers))

# %%
for n in (0, 1, 5, 11):
    print(f"step {n + 1:>2}: loss {losses_of_textbook[n]:.5f} and {losses_of_ours[n]:.5f}")

# %% [markdown]
# ## What you know now
#
# - Most of the textbook loop's work is in frozen blocks, and most of its positions are padding.
# - A frozen block has to see each text only once.
# - The last block has to compute only one position of each text.
# - It needs neither keys nor values: the query is carried back through $W_k$, and $W_v$ is applied to a
#   mean of states.
# - None of this changes the answers or the losses, apart from rounding.

# %% [markdown]
# ## Checks
#
# These cells check what the chapter said. They are folded in the notebook; an error here means that
# something is wrong.

# %% check
block_forward = B * T * (12 * C**2 + 2 * T * C)  # scores and values: T C each per position
head_forward = B * T * C * 2
assert frozen == (L - 1) * block_forward
assert step == L * block_forward + head_forward + 2 * (block_forward + head_forward)
assert frozen / step > 0.5 and sum(lengths) < positions / 2
print(f"checked: by hand, {L} blocks forward, and one block backward at twice the work")

# %% check
fresh = Classifier.on_base(MODEL, LABELS)
set_trainable(fresh.model)
states = fresh.texts(encoded)
ids, ends_of_all = pad_batch(encoded, fresh.tokenizer.end_of_text_id, T)
with torch.no_grad():
    expected = fresh.model(ids)[range(len(encoded)), ends_of_all - 1]
    found = fresh.batch_logits(states, range(len(encoded)))
assert (found - expected).abs().max() < 1e-4
assert once < again / EPOCHS
print(f"checked: all {len(encoded)} messages have the same logits as in the textbook loop")

# %% check
torch.testing.assert_close(w_2, w, atol=1e-5, rtol=1e-3)
torch.testing.assert_close(without, usual, atol=1e-4, rtol=1e-3)
last_block = fresh.model.blocks[-1]
x, ends = states.batch(batches[0])
outputs = last_block(x)[range(B), ends - 1], block_at(last_block, x, ends - 1)
parameters = list(last_block.parameters())
gradients = [torch.autograd.grad(y.square().mean(), parameters) for y in outputs]
for theirs, same in (outputs, gradients):
    torch.testing.assert_close(same, theirs, atol=1e-4, rtol=1e-3)
assert not gradients[1][3][C : 2 * C].any(), "the key bias: no answer depends on it"
assert one == B * (12 * C**2 + 2 * H * x.shape[1] * C)
print("checked: same weights, same output, same gradients, without keys and values")

# %% check
torch.testing.assert_close(losses_of_ours, losses_of_textbook, atol=1e-4, rtol=0)
assert again + last == EPOCHS * len(batches) * step
assert again + last > 15 * (once + EPOCHS * steps)
print(f"checked: the same {len(batches)} losses, with less than a fifteenth of the work")

# %% [markdown]
# ## Exercises
#
# 1. (easy) Sort the messages by length and pad each batch only to its own longest message. What
#    proportion of the positions does that save?
#    <details><summary>Hint</summary>You need only the lengths, not the network.</details>
# 2. (medium) Is it always cheaper to do without keys and values? Compute the multiply-adds of both ways
#    for texts of 1, 2, 10, 100 and 1000 tokens.
#    <details><summary>Hint</summary>Keys and values need 2 T C² multiply-adds for a text of T tokens. In
#    the other way, each head works with states of C numbers instead of keys of D numbers.</details>
# 3. (hard) Train both loops without weight decay. Part of one bias changes in only one of them. Which
#    part, and why?
#    <details><summary>Hint</summary>Look at the formula for $q \cdot k_t$ again.</details>
#
# Solutions: [`solutions/14_speed.py`](solutions/14_speed.py).
