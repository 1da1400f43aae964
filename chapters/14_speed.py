# %% [markdown]
# # 14. Why it is fast
#
# The textbook loop computes the same numbers again and again, and most of them are never read. We
# count what it computes, leave out what is not needed, and check that the answers stay the same.
#
# **At the end you will know** what a training step costs, why frozen blocks need to see each text
# only once, and how the last block can answer without computing keys and values. **Time:** about ten
# seconds, offline.

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

MODEL, DATA = setting("mini")  # "124M": OpenAI's model. DATA: the SMS Spam Collection
B, EPOCHS = 8, 5  # as in the lecture
messages = split_messages(load_messages(DATA), balance=True).train[: 12 * B]  # 12 steps suffice
labels = torch.tensor([message.label == "spam" for message in messages]).long()
plain, ours = (Classifier.on_base(MODEL, ["ham", "spam"]) for _ in range(2))  # the same weights
encoded, _ = plain.encode([message.text for message in messages])
batches = torch.arange(len(messages)).split(B)
T, C, L = max(map(len, encoded)), plain.model.config.n_embd, plain.model.config.n_layer

# %% [markdown]
# ## What a step computes
#
# The textbook loop pads every message to the length of the longest one, sends it through every block,
# and reads a single position. We measure work in *multiply-adds*: a matrix with $n$ entries needs $n$
# of them per position. PyTorch's counter counts each as two operations, so we divide by two. It does
# not see the CPU's fused attention kernel, so we switch to plain attention while counting.


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
print(f"{step / 1e6:,.0f} million multiply-adds per step, {frozen / step:.0%} in frozen blocks")
print(
    f"{len(encoded) * T:,} positions, {sum(map(len, encoded)):,} of them tokens, the rest padding"
)

# %% check
block, head = B * T * (12 * C**2 + 2 * T * C), B * T * C * 2  # scores and values: T C each
assert frozen == (L - 1) * block and forward == L * block + head
assert step == forward + 2 * (block + head), "gradients of each matrix and of its input"
print(f"checked by hand: {L} blocks forward, and one block backward at twice the work")

# %% [markdown]
# ## Frozen blocks see each text once
#
# A frozen block always gives the same output for the same text. In five epochs the textbook loop
# computes that output five times, and once more for every evaluation. `Classifier.texts` computes it
# once and keeps it; training starts from there. It also avoids padding: texts are stored end to end,
# and texts that begin with the same tokens share the work for those tokens (`frozen_trunk.py`).

# %%
set_trainable(ours.model)
kept = []
once = counted(lambda: kept.append(ours.texts(encoded)))
again = EPOCHS * len(batches) * frozen
print("billion multiply-adds in frozen blocks, 5 epochs: ", end="")
print(f"textbook {again / 1e9:.1f}, ours {once / 1e9:.1f}")

# %% check
gap = max((ours.batch_logits(kept[0], n) - textbook(n)).abs().max() for n in batches)
assert gap < 1e-4 and once < again / EPOCHS
print(f"checked: all {len(encoded)} messages have the same logits as in the textbook loop")

# %% [markdown]
# ## The last block, for one position
#
# After the last block no layer mixes positions any more, and we read one position per text. So the
# last block has to compute only one query and one MLP per text. It seems to need a key and a value
# for every token, but it does not. Let $a_t$ be the normalised state at position $t$, and look at
# one head. Its score for position $t$ is
#
# $$q \cdot k_t = q \cdot (W_k a_t + b_k) = (W_k^\top q) \cdot a_t + q \cdot b_k$$
#
# The last term is the same for every $t$, and softmax does not change when the same number is added
# to all its inputs. So instead of sending every token forward through $W_k$, we send the query back
# through it, once. And since the attention weights $w_t$ sum to 1, $W_v$ needs to be applied only
# once too, to a weighted mean of the states:
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
assert not gradients[1][3][C : 2 * C].any(), "the key bias: no answer depends on it"
whole, one = counted(lambda: last(x)), counted(lambda: block_at(last, x, lengths - 1))
assert one == B * (12 * C**2 + 2 * last.attn.n_head * x.shape[1] * C), (
    "little more than one token needs"
)
print(f"checked: same output, same gradients, {whole / one:.0f} times fewer multiply-adds")

# %% [markdown]
# Now we run one epoch of each loop. Ours starts from the stored output of the frozen blocks. The
# seconds depend on the machine, so the notebook does not keep them. With the 124M model, the
# lecture's whole recipe is 20 to 35 times faster here than with the textbook loop.

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
picture(plot_seconds(work, unit="multiply-adds", title="Multiply-adds of five epochs"), "14-work")

# %% check
torch.testing.assert_close(losses["ours"], losses["textbook"], atol=1e-4, rtol=0)
assert sum(work["textbook loop"].values()) > 15 * sum(work["ours"].values())
print(f"checked: the same {len(batches)} losses, with less than a fifteenth of the work")

# %% [markdown]
# ## Exercises
#
# 1. Sort the messages by length and pad each batch only to its own longest message. What proportion
#    of the work does that save?
# 2. For one head and one message, by how much do $q \cdot k_t$ and $(W_k^\top q) \cdot a_t$ differ?
# 3. Train both loops without weight decay. Part of one bias changes in only one of them. Which part,
#    and why?
#
# Solutions: [`solutions/14_speed.py`](solutions/14_speed.py).
