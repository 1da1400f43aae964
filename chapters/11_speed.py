# %% [markdown]
# # 11. Why it is fast
#
# The textbook loop computes the same numbers again and again, and most of them nobody reads. We
# count what it computes, leave out what is not needed, and check that the answers stay the same.
#
# **At the end you will know** what a training step costs, why frozen blocks see each text once, and
# how the last block answers without keys and values. **Time:** about ten seconds, offline.

# %%
import time

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from gpt2_from_scratch import (
    Classifier,
    block_at,
    load_messages,
    pad_batch,
    plot_seconds,
    set_trainable,
    split_messages,
)
from gpt2_from_scratch.course import picture, setting, show

MODEL, DATA = setting("mini")  # "124M": OpenAI's model, and the SMS Spam Collection
B, EPOCHS = 8, 5  # the lecture's
messages = split_messages(load_messages(DATA)).train[: 12 * B]  # enough to see it
labels = torch.tensor([message.label == "spam" for message in messages]).long()
plain, ours = (Classifier.on_base(MODEL, ["ham", "spam"]) for _ in range(2))  # equal, heads too
encoded, _ = plain.encode([message.text for message in messages])
batches = torch.arange(len(messages)).split(B)
T, C, L = max(map(len, encoded)), plain.model.config.n_embd, plain.model.config.n_layer

# %% [markdown]
# ## What a step computes
#
# The textbook loop pads every message to the longest of all, sends it through every block, and reads
# one position. We count *multiply-adds*: a matrix of $n$ numbers takes $n$ of them a position. PyTorch
# counts each as two, so we halve; it does not see a CPU's fused attention, so we take the plain one.


# %%
def textbook(numbers):
    ids, lengths = pad_batch([encoded[n] for n in numbers], plain.tokenizer.end_of_text_id, T)
    return plain.model(ids)[range(len(numbers)), lengths - 1]  # (B, 2)


def counted(compute):
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        compute()
    return counter.get_total_flops() // 2


set_trainable(plain.model)
frozen = (L - 1) * counted(lambda: plain.model.blocks[0](torch.randn(B, T, C)))
forward = counted(lambda: textbook(batches[0]))
step = counted(lambda: F.cross_entropy(textbook(batches[0]), labels[:B]).backward())
print(f"{step / 1e6:,.0f} million multiply-adds a step, frozen blocks {100 * frozen / step:.0f} %")
print(f"{sum(map(len, encoded)):,} tokens in {len(encoded) * T:,} positions; the rest are pads")

# %% check
block, head = B * T * (12 * C**2 + 2 * T * C), B * T * C * 2  # its matrices, and attention twice
assert frozen == (L - 1) * block and forward == L * block + head
assert step == forward + 2 * (block + head), "gradients: of each matrix, and of what came in"
print(f"checked by hand: {L} blocks forward, one backward at twice the work")

# %% [markdown]
# ## Frozen blocks see each text once
#
# What never trains gives one output for a text, for ever. In five epochs the textbook loop computes
# it five times, and again for every evaluation. `Classifier.texts` does so once, and what trains
# begins there. Texts lie end to end; those that begin alike share that work (`trunk.py`).

# %%
set_trainable(ours.model)
kept = []
once = counted(lambda: kept.append(ours.texts(encoded)))
again = EPOCHS * len(batches) * frozen
print(f"textbook {again / 1e9:.1f}, ours {once / 1e9:.1f} billion multiply-adds in frozen blocks")

# %% check
gap = max((ours.batch_logits(kept[0], n) - textbook(n)).abs().max() for n in batches)
assert gap < 1e-4 and once < again / EPOCHS
print(f"checked: the logits of all {len(encoded)} messages are the textbook's")

# %% [markdown]
# ## The last block, for one position
#
# Behind the last block nothing mixes positions, so it owes us one query and one MLP a text. Keys and
# values seem to be owed for every token. They are not. Write $a_t$ for the normalised state of
# position $t$ and look at one head. Its score is
#
# $$q \cdot k_t = q \cdot (W_k a_t + b_k) = (W_k^\top q) \cdot a_t + q \cdot b_k$$
#
# The last term is the same for every $t$; softmax does not see what all its inputs share. So the
# query goes back through $W_k$ once, instead of every token forward through it. And since the
# weights $w_t$ that softmax gives sum to 1, $W_v$ is applied once, to a mean of states:
#
# $$\sum_t w_t v_t = \sum_t w_t (W_v a_t + b_v) = W_v \Big(\sum_t w_t a_t\Big) + b_v$$

# %%
show(block_at)

# %% check
last, (x, lengths) = ours.model.blocks[-1], kept[0].batch(batches[0])
outputs = last(x)[range(B), lengths - 1], block_at(last, x, lengths - 1)
gradients = [torch.autograd.grad(y.square().mean(), [*last.parameters()]) for y in outputs]
for theirs, same in (outputs, gradients):
    torch.testing.assert_close(same, theirs, atol=1e-4, rtol=1e-3)
assert not gradients[1][3][C : 2 * C].any(), "of the key bias: no answer depends on it"
whole, one = counted(lambda: last(x)), counted(lambda: block_at(last, x, lengths - 1))
assert one == B * (12 * C**2 + 2 * last.attn.n_head * x.shape[1] * C), "little more than one token"
print(f"checked: same output, same gradients, {whole / one:.0f} times fewer multiply-adds")

# %% [markdown]
# An epoch of each, ours behind the frozen blocks. The seconds are your machine's, so the notebook
# keeps none. At 124M's size the lecture's whole recipe took 20 to 35 times less (README).

# %% tags=["clock"]
losses = {"textbook": [], "ours": []}
for classifier, (name, found) in zip((plain, ours), losses.items(), strict=True):
    optimizer, began = torch.optim.AdamW(classifier.model.parameters(), 2e-4), time.perf_counter()
    for n in batches:
        optimizer.zero_grad()
        logits = textbook(n) if classifier is plain else ours.batch_logits(kept[0], n)
        found.append(F.cross_entropy(logits, labels[n]))
        found[-1].backward()
        optimizer.step()
    print(f"{name:<9} {time.perf_counter() - began:.2f} s")

# %%
steps = counted(lambda: [ours.batch_logits(kept[0], n).sum().backward() for n in batches])
work = {
    "textbook loop": {"frozen blocks": again, "last block": EPOCHS * len(batches) * step - again},
    "ours": {"frozen blocks": once, "last block": EPOCHS * steps},
}
picture(plot_seconds(work, unit="multiply-adds", title="Where the work goes"), "11-work")

# %% check
torch.testing.assert_close(losses["ours"], losses["textbook"], atol=1e-4, rtol=0)
assert sum(work["textbook loop"].values()) > 15 * sum(work["ours"].values())
print(f"checked: {len(batches)} equal losses with less than a fifteenth of the work")

# %% [markdown]
# ## Exercises
#
# 1. Sort messages by length and pad each batch to its own longest: how much of the work goes?
# 2. For one head of one message, by what do $q \cdot k_t$ and $(W_k^\top q) \cdot a_t$ differ?
# 3. Train both without weight decay: part of one bias moves in only one of them. Which, and why?
#
# Solutions: [`solutions/11_speed.py`](solutions/11_speed.py).
