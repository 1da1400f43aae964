# %% [markdown]
# # 17. LoRA
#
# LoRA ([Hu et al.](https://arxiv.org/abs/2106.09685)) leaves a matrix as it is and trains two narrow
# ones beside it, whose product is what it should change by. **At the end you will know** what they
# compute, what they save, when they are worth it. **Time:** about thirty seconds, offline.

# %%
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from gpt2_from_scratch import (
    Classifier,
    FeatureStore,
    LoRAConfig,
    LoRALinear,
    TrainConfig,
    add_lora,
    evaluate_classifier,
    finetune,
    format_ledger,
    frozen_depth,
    ledger,
    load_gpt2,
    load_messages,
    plot_seconds,
    set_trainable,
    split_messages,
)
from gpt2_from_scratch.course import picture, setting, show

MODEL, DATA = setting("mini")  # "124M": OpenAI's model, and the SMS Spam Collection

# %% [markdown]
# ## Two narrow matrices beside a wide one
#
# A layer computes $Wx + b$. LoRA adds $\frac{\alpha}{r} B A x$: $A$ takes $x$ down to $r$ numbers,
# $r$ being the *rank*, and $B$ these up to the layer's width. A begins random, B zero. By hand, for an
# MLP's first layer; then the package's. Query, key and value are one matrix, each with its own A and B.

# %%
model, rank, alpha, labels = load_gpt2(MODEL), 4, 8.0, ["ham", "spam"]
layer, x = model.blocks[0].mlp.c_fc, model.embed(torch.tensor([[1, 2, 3]]))  # any states will do
A, B = torch.randn(rank, layer.in_features), torch.randn(layer.out_features, rank)
by_hand = layer(x) + alpha / rank * (x @ A.T @ B.T)
print(f"W has {layer.weight.numel():,} numbers, A and B together {A.numel() + B.numel():,}")
show(LoRALinear.forward)

# %% check
before = model(ids := torch.tensor([[5, 7, 11, 13]]))
add_lora(model, LoRAConfig(rank=rank, alpha=alpha))
assert torch.equal(model(ids), before), "at the start no logit moves"
(adapter := model.blocks[0].mlp.c_fc).lora_A.data[0], adapter.lora_B.data[0] = A, B
dense = layer.weight + alpha / rank * B @ A  # the same as one matrix
for same in (adapter(x), x @ dense.T + layer.bias):
    torch.testing.assert_close(same, by_hand, atol=1e-3, rtol=1e-3)
assert torch.linalg.matrix_rank(B @ A) == rank, "as large as W, but made of few directions"
print("checked: by hand, the package and one dense matrix agree; at the start nothing moves")

# %% [markdown]
# ## How many numbers train
#
# A matrix from $m$ to $n$ numbers gets $r(m + n)$. A block's six (query, key, value, attention's
# output, both of the MLP) come to $18 r C$. The book's appendix E has rank 16 in all blocks of 124M
# and in the head, and counts 2,666,528. The ledger for this chapter's model; then both by arithmetic:

# %%
model = Classifier.on_base(MODEL, labels, lora=LoRAConfig(rank=16, alpha=16, head=True)).model
set_trainable(model, n_last_blocks=0, final_norm=False)
print(format_ledger(ledger(model)))

# %% check
C, L = model.config.n_embd, model.config.n_layer
assert (count := 16 * 18 * 768 * 12 + 16 * (768 + 2)) == 2_666_528
assert sum(line.trainable for line in ledger(model)) == 16 * 18 * C * L + 16 * (C + 2)
print(f"checked: {count:,} for 124M, and the ledger's count by the same formula")

# %% [markdown]
# ## What it costs, and what it saves
#
# The ledger's head was just drawn at random, and the book freezes it: only an adapter trains, which
# has more numbers. A random matrix is not worth keeping: here the head trains whole, unless
# `head=True` asks for the book's way. Both alone, then blocks. The seconds are your machine's:

# %% tags=["clock"]
LR, folder = 1e-3 * 256 / C, TemporaryDirectory()
split = split_messages([m for m in load_messages(DATA) if len(m.text) <= 120])
del split.train[160:]  # to save time
book = LoRAConfig(rank=16, alpha=16, matrices=(), head=True)  # blocks are left as they are
ways = {f"book's head, {n} LR": (book, 0) for n in (1, 4)}  # LoRA, and blocks that train whole
ways |= {f"head whole, {n} LR": (None, 0) for n in (1, 4)}
ways |= {f"last block whole, {n} LR": (None, 1) for n in (1, 2)}
ways |= {f"LoRA {r}, last block, 4 LR": (LoRAConfig(r, r, n_last_blocks=1), 0) for r in (1, 4, 16)}
ways["LoRA 4, every block, 4 LR"] = LoRAConfig(rank=4, alpha=4), 0
store = FeatureStore()  # what frozen blocks make of a text, for the next way
for name, (lora, blocks) in ways.items():
    began = time.perf_counter()
    way = Classifier.on_base(MODEL, labels, lora=lora, store=store)
    config = TrainConfig(n_last_blocks=blocks, lr=int(name[-4]) * LR, epochs=3)
    history = finetune(way, split, config, run := Path(folder.name))
    ways[name] = way, history[-1].train_loss, (run / "best.safetensors").stat().st_size / 1000
    print(f"{name:<26}{time.perf_counter() - began:6.1f} s")

# %%
trained, bars, ends = {}, {}, {}
print(f"{'trained':>33}     kB  blocks a step  last epoch's training loss  accuracy, 95 % interval")
for name, (way, loss, size) in ways.items():
    count = trained[name] = sum(p.numel() for p in way.model.parameters() if p.requires_grad)
    test = evaluate_classifier(way, split.test)
    low, high = ends[name] = [100 * end for end in test.interval]
    print(f"{name:<25}{count:>8,}{size:>7,.0f}{L - frozen_depth(way.model)[0]:>15}", end="")
    print(f"{loss:>28.2f}{100 * test.accuracy:>8.1f} %, {low:.0f} to {high:.0f}")
    bars[name[:-6]] = {"trained and saved": count / 1000}  # the same at each rate
picture(plot_seconds(bars, unit="thousand", title="Numbers trained and saved"), "17-numbers")

# %% [markdown]
# All train the final norm's 512: the book's head has 4,128 more, the plain one 514. At the plain
# head's rate the book's has hardly begun (exercise 2); at four times that it comes close. It costs more
# numbers than the head and buys nothing. Each rate is one we chose, and the loss is of training: that
# column does not rank the ways (see the block at 2 LR). Nor do so few test messages.
#
# LoRA saves numbers that train, AdamW's two means of each, and the file; no time, here. In the last
# block it takes about as long as the block whole. In every block nothing is computed once (chapter
# 11): a step runs 6 blocks, not 1, and keeps what they computed for the gradient. Use it for many tasks
# on one base, at 25 to 452 kilobytes each, not 3,165, or where deep blocks must change and their means
# find no room. Otherwise train the last block. Low rank can do as most of a change has it (exercise 3).

# %% check
assert ways["book's head, 1 LR"][1] > ways["head whole, 1 LR"][1] + 0.03, "it has hardly begun"
assert abs(ways["book's head, 4 LR"][1] - ways["head whole, 4 LR"][1]) < 0.1, "it comes close"
assert ways["last block whole, 2 LR"][1] < ways["last block whole, 1 LR"][1] - 0.03, "the rate"
low, high = ends["last block whole, 1 LR"]
assert [n for n, (a, b) in ends.items() if b < low or high < a] == ["book's head, 1 LR"]
assert [frozen_depth(way.model)[0] for way, *_ in ways.values()] == [L] * 4 + [L - 1] * 5 + [0]
assert all(0 < size - 0.004 * trained[name] < 20 for name, (_, _, size) in ways.items())
print(f"checked: files, depths, intervals; of the heads' numbers {16 * (C + 2):,} and {2 * C + 2}")

# %% [markdown]
# ## One matrix again
#
# `merge` adds the product to W, as `dense` above: a plain GPT-2, with all its short cuts. What is
# saved should stay small, so `save` refuses until `unmerge`.

# %% check
adapted = ways["LoRA 4, every block, 4 LR"][0]
apart = adapted.logits(ids := adapted.encode([message.text for message in split.test])[0])
adapted.merge()
torch.testing.assert_close(adapted.logits(ids), apart, atol=1e-3, rtol=0)
assert frozen_depth(adapted.model) == (L, ""), "all blocks are GPT-2's own again"
adapted.unmerge()
adapted.save(run / "small.safetensors")
assert torch.allclose(Classifier.load(run / "small.safetensors").logits(ids), apart, atol=1e-3)
print(f"checked: the same logits for {len(ids)} messages apart, merged, and from a file")

# %% [markdown]
# ## Exercises
#
# 1. B begins as zero. What if A did too? And which of the two moves at the first step as it is?
# 2. Train rank 4 in the last block at the rate of the whole block. How far does the loss come down?
# 3. Train the last block whole. Of how high a rank is the change of one of its matrices, nearly?
#
# Solutions: [`solutions/17_lora.py`](solutions/17_lora.py).
