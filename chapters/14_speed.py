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
# **Reading time:** 25 minutes. **Running time:** about ten seconds, offline.

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
# This is how the lecture's code computes the logits of a batch (except that we read another position).
# It pads every message to the length of the longest one, sends it through every block, and then reads
# a single position. We take twelve batches of eight messages, which is enough for counting.

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
C = plain.model.config.n_embd
n_layer = plain.model.config.n_layer


def textbook_logits(numbers):
    texts = [encoded[n] for n in numbers]
    ids, ends = pad_batch(texts, plain.tokenizer.end_of_text_id, T)
    return plain.model(ids)[range(len(numbers)), ends - 1]  # (B, 2)


print(textbook_logits(batches[0]).detach())
print(f"{len(messages)} messages of {min(lengths)} to {T} tokens, {n_layer} blocks, C = {C}")

# %% [markdown]
# ## What does a step compute?
#
# We count *multiply-adds*, because nearly all of the time goes into products of matrices. A matrix
# with $n$ entries needs $n$ of them for each position it is applied to. PyTorch has a counter for
# them, `FlopCounterMode`. It counts a multiply-add as two operations, so we divide by two. On a CPU,
# PyTorch computes attention in one piece, which the counter cannot look into. So while we count, we
# switch to attention that is computed step by step.
#
# A guess first: the last block is the only block that is trained. What proportion of the work is done
# in the others, which never change?


# %%
def counted(compute):
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        compute()
    return counter.get_total_flops() // 2


def one_step():
    F.cross_entropy(textbook_logits(batches[0]), labels[:B]).backward()


def one_frozen_block():
    plain.model.blocks[0](torch.randn(B, T, C))


work_of_step = counted(one_step)
work_of_frozen = (n_layer - 1) * counted(one_frozen_block)
proportion = work_of_frozen / work_of_step
print(f"one step:      {work_of_step / 1e6:>6,.0f} million multiply-adds")
print(f"frozen blocks: {work_of_frozen / 1e6:>6,.0f} million, {proportion:.0%}")

# %% [markdown]
# Most of the work is in the frozen blocks. The backward pass costs nothing there, because no gradient
# is needed. But the forward pass costs as much as in any other block. And many of the positions
# contain only padding:

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
kept = ours.texts(encoded)  # what the frozen blocks give for each text


def compute_frozen_blocks():
    ours.texts(encoded)


frozen_ours = counted(compute_frozen_blocks)
frozen_textbook = EPOCHS * len(batches) * work_of_frozen
print("billion multiply-adds in frozen blocks, five epochs:")
print(f"textbook {frozen_textbook / 1e9:6.1f}")
print(f"ours     {frozen_ours / 1e9:6.1f}")

# %% [markdown]
# ## One query is enough
#
# Now the last block. It is trained, so it has to run in every step. But we read only one position of its
# output, and after it no layer mixes positions any more. So of all its outputs only one per text is
# needed: one query, one product with `c_proj`, one MLP.
#
# The keys and values are another matter. The query is compared with the keys of *all* tokens, and the
# result is a weighted mean of the values of *all* tokens. So it seems that we need a key and a value
# for each token. We look at one head, and do it the usual way first:

# %%
block = ours.model.blocks[-1]
H = block.attn.n_head
D = C // H
inputs, ends = kept.batch(batches[0])  # output of the frozen blocks (B, T, C), lengths (B,)
matrix = block.attn.c_attn.weight.detach()  # (3C, C): queries, keys and values of all heads
bias = block.attn.c_attn.bias.detach()  # (3C,)
W_query, b_query = matrix[:D], bias[:D]  # of the first head: (D, C), (D,)
W_key, b_key = matrix[C : C + D], bias[C : C + D]
W_value, b_value = matrix[2 * C : 2 * C + D], bias[2 * C : 2 * C + D]
with torch.no_grad():
    states = block.ln_1(inputs[0, : ends[0]])  # (T, C), the first message, without padding

query = W_query @ states[-1] + b_query  # (D,), of the last token
keys = states @ W_key.T + b_key  # (T, D), of all tokens
values = states @ W_value.T + b_value  # (T, D), of all tokens
weights = (keys @ query / D**0.5).softmax(dim=0)  # (T,), the attention of the last token
result = weights @ values  # (D,)
print("attention weights:", weights[:6].numpy().round(4))
print("result:           ", result[:6].numpy().round(4))

# %% [markdown]
# ## No keys
#
# The score of position $t$ is the product of the query $q$ with the key $k_t$. Let $a_t$ be the
# normalised state at that position, and $W_k$ and $b_k$ the matrix and the bias that make keys. Then
#
# $$q \cdot k_t = q \cdot (W_k a_t + b_k) = (W_k^\top q) \cdot a_t + q \cdot b_k$$
#
# Two things have happened. The matrix has moved from the states to the query: instead of multiplying
# every state by $W_k$, we multiply the one query by its transpose. And the last term is the same for
# every $t$. Softmax does not change when the same number is added to all its inputs, so we can leave
# this term out.

# %%
query_for_states = W_key.T @ query  # (C,)
weights_without_keys = (states @ query_for_states / D**0.5).softmax(dim=0)  # (T,)
print("with keys:   ", weights[:6].numpy().round(4))
print("without keys:", weights_without_keys[:6].numpy().round(4))

# %% [markdown]
# ## No values
#
# The same can be done with the values. The attention weights $w_t$ sum to 1, so
#
# $$\sum_t w_t v_t = \sum_t w_t (W_v a_t + b_v) = W_v \Big(\sum_t w_t a_t\Big) + b_v$$
#
# Instead of multiplying every state by $W_v$, we first take the weighted mean of the states, and
# multiply only this mean.

# %%
mean_state = weights_without_keys @ states  # (C,)
result_without = W_value @ mean_state + b_value  # (D,)
print("with keys and values:", result[:6].numpy().round(4))
print("without either:      ", result_without[:6].numpy().round(4))

# %% [markdown]
# The package does this for all heads and all texts of a batch at once. Its names are those of the
# formulas: `a` are the states, `q` is the query, `u` is the query after the product with $W_k^\top$,
# and `w` are the weights. The shapes are in the comments.

# %%
show(block_at)


# %%
def whole_block():
    block(inputs)


def one_position_per_text():
    block_at(block, inputs, ends - 1)


whole = counted(whole_block)
one = counted(one_position_per_text)
print(f"the whole block:          {whole / 1e6:7.1f} million multiply-adds")
print(f"at one position per text: {one / 1e6:7.1f} million, {whole / one:.0f} times fewer")

# %% [markdown]
# ## What each idea saves
#
# The bars show five epochs: first the textbook loop, then with one idea after the other.


# %%
def one_epoch_of_the_last_block():
    for numbers in batches:
        ours.batch_logits(kept, numbers).sum().backward()


last_textbook = EPOCHS * len(batches) * (work_of_step - work_of_frozen)  # last block and head
last_ours = EPOCHS * counted(one_epoch_of_the_last_block)
work_textbook = frozen_textbook + last_textbook
work_ours = frozen_ours + last_ours
work = {  # name: (in the frozen blocks, in the last block and the head)
    "textbook loop": (frozen_textbook, last_textbook),
    "frozen blocks once": (frozen_textbook / EPOCHS, last_textbook),
    "... without padding": (frozen_ours, last_textbook),
    "... last block at one position": (frozen_ours, last_ours),
}

# %%
BILLION = 1e9
figure = Figure(figsize=(9, 2.8), layout="constrained")
axes = figure.subplots()
for name, (in_frozen, in_last) in work.items():
    total = in_frozen + in_last
    axes.barh(name, in_frozen / BILLION, color="#0072B2")
    axes.barh(name, in_last / BILLION, left=in_frozen / BILLION, color="#E69F00")
    text = f"{total / BILLION:.0f}, {work_textbook / total:.1f} times less"
    if name == "textbook loop":
        text = f"{total / BILLION:.0f}"
    axes.text(total / BILLION + 2, name, text, va="center")
middle = frozen_textbook / 2 / BILLION
axes.text(middle, "textbook loop", "frozen blocks", color="white", ha="center", va="center")
middle = (frozen_textbook + last_textbook / 2) / BILLION
axes.text(middle, "textbook loop", "last block", ha="center", va="center")
axes.invert_yaxis()
axes.set(title="The same losses, with less and less work", xlim=(0, 1.07 * work_textbook / BILLION))
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


def our_logits(numbers):
    return ours.batch_logits(kept, numbers)


losses_of_textbook = train_one_epoch(plain.model, textbook_logits)
losses_of_ours = train_one_epoch(ours.model, our_logits)

# %%
for n in (0, 1, 5, 11):
    print(f"step {n + 1:>2}: loss {losses_of_textbook[n]:.5f} and {losses_of_ours[n]:.5f}")

# %% [markdown]
# ## What you know now
#
# - Most of the textbook loop's work is in frozen blocks, and most of its positions are padding.
# - A frozen block has to see each text only once.
# - The last block has to compute only one position of each text.
# - It needs neither keys nor values: the query is multiplied by the transpose of $W_k$, and a weighted
#   mean of the states by $W_v$.
# - None of this changes the answers or the losses, apart from rounding.

# %% [markdown]
# ## Checks
#
# These cells check what the chapter said. They are folded in the notebook; an error here means that
# something is wrong.

# %% check
block_forward = B * T * (12 * C**2 + 2 * T * C)  # scores and values: T C each per position
head_forward = B * T * C * 2
forward = n_layer * block_forward + head_forward
backward = 2 * (block_forward + head_forward)
assert work_of_frozen == (n_layer - 1) * block_forward
assert work_of_step == forward + backward
assert proportion > 0.5 and sum(lengths) < positions / 2
print(f"checked: by hand, {n_layer} blocks forward, and one block backward at twice the work")

# %% check
fresh = Classifier.on_base(MODEL, LABELS)
set_trainable(fresh.model)
fresh_texts = fresh.texts(encoded)
ids, ends_of_all = pad_batch(encoded, fresh.tokenizer.end_of_text_id, T)
with torch.no_grad():
    expected = fresh.model(ids)[range(len(encoded)), ends_of_all - 1]
    found = fresh.batch_logits(fresh_texts, range(len(encoded)))
assert (found - expected).abs().max() < 1e-4
assert frozen_ours < frozen_textbook / EPOCHS
print(f"checked: all {len(encoded)} messages have the same logits as in the textbook loop")

# %% check
torch.testing.assert_close(weights_without_keys, weights, atol=1e-5, rtol=1e-3)
torch.testing.assert_close(result_without, result, atol=1e-4, rtol=1e-3)
last_block = fresh.model.blocks[-1]
fresh_inputs, fresh_ends = fresh_texts.batch(batches[0])
usual = last_block(fresh_inputs)[range(B), fresh_ends - 1]
short = block_at(last_block, fresh_inputs, fresh_ends - 1)
torch.testing.assert_close(short, usual, atol=1e-4, rtol=1e-3)
names = [name for name, _ in last_block.named_parameters()]
parameters = list(last_block.parameters())
usual_gradients = torch.autograd.grad(usual.square().mean(), parameters)
short_gradients = torch.autograd.grad(short.square().mean(), parameters)
torch.testing.assert_close(short_gradients, usual_gradients, atol=1e-4, rtol=1e-3)
of_bias = short_gradients[names.index("attn.c_attn.bias")]
assert not of_bias[C : 2 * C].any(), "the key bias: no answer depends on it"
assert one == B * (12 * C**2 + 2 * H * inputs.shape[1] * C)
print("checked: same weights, same output, same gradients, without keys and values")

# %% check
torch.testing.assert_close(losses_of_ours, losses_of_textbook, atol=1e-4, rtol=0)
assert work_textbook == EPOCHS * len(batches) * work_of_step
assert work_textbook > 15 * work_ours
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
