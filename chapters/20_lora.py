# %% [markdown]
# # 20. LoRA
#
# LoRA ([Hu et al.](https://arxiv.org/abs/2106.09685)) leaves a weight matrix as it is. It trains two
# narrow matrices instead, and adds their product to the wide one.
#
# **At the end you will know** what the narrow matrices compute, what they save, and when they are
# worth using. **Time:** about thirty seconds, offline.

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

MODEL, DATA = setting("mini")  # "124M": OpenAI's model. DATA: the SMS Spam Collection

# %% [markdown]
# ## Two narrow matrices next to a wide one
#
# A layer computes $Wx + b$. LoRA adds $\frac{\alpha}{r} B A x$. The matrix $A$ maps $x$ to only $r$
# numbers, and $B$ maps these $r$ numbers to the layer's outputs; $r$ is called the *rank*, and
# $\alpha$ is a constant. The two matrices are an *adapter*. At the start $A$ is random and $B$ is
# zero, so nothing changes. We compute it by hand for the first layer of an MLP and compare with the
# package. (Query, key and value are one matrix in GPT-2, but each has its own adapter.)

# %%
model, rank, alpha, labels = load_gpt2(MODEL), 4, 8.0, ["ham", "spam"]
layer, x = model.blocks[0].mlp.c_fc, model.embed(torch.tensor([[1, 2, 3]]))  # any input will do
A, B = torch.randn(rank, layer.in_features), torch.randn(layer.out_features, rank)
by_hand = layer(x) + alpha / rank * (x @ A.T @ B.T)
print(f"parameters: W {layer.weight.numel():,}, A and B together {A.numel() + B.numel():,}")
show(LoRALinear.forward)

# %% check
before = model(ids := torch.tensor([[5, 7, 11, 13]]))
add_lora(model, LoRAConfig(rank=rank, alpha=alpha))
assert torch.equal(model(ids), before), "at the start no logit changes"
adapter = model.blocks[0].mlp.c_fc
adapter.lora_A.data[0], adapter.lora_B.data[0] = A, B
dense = layer.weight + alpha / rank * B @ A  # the same as one matrix
for same in (adapter(x), x @ dense.T + layer.bias):
    torch.testing.assert_close(same, by_hand, atol=1e-3, rtol=1e-3)
assert torch.linalg.matrix_rank(B @ A) == rank, "as large as W, but of low rank"
print("checked: by hand, by the package and as one dense matrix; at the start nothing changes")

# %% [markdown]
# ## How many parameters are trained
#
# The adapter of a matrix with $m$ inputs and $n$ outputs has $r(m + n)$ parameters. The adapters of
# a block (for query, key, value, the output of attention, and two matrices in the MLP) have
# $18 r C$ together. Appendix E of the book uses rank 16 in all blocks of 124M and in the head, and
# counts 2,666,528 trainable parameters. Here is the ledger for this chapter's model. The check
# computes both numbers.

# %%
model = Classifier.on_base(MODEL, labels, lora=LoRAConfig(rank=16, alpha=16, head=True)).model
set_trainable(model, n_last_blocks=0, final_norm=False)
print(format_ledger(ledger(model)))

# %% check
C, L = model.config.n_embd, model.config.n_layer
assert (count := 16 * 18 * 768 * 12 + 16 * (768 + 2)) == 2_666_528
assert sum(line.trainable for line in ledger(model)) == 16 * 18 * C * L + 16 * (C + 2)
print(f"checked: {count:,} for 124M; the same formula gives the ledger's count")

# %% [markdown]
# ## What it costs, and what it saves
#
# The book freezes the head as well and trains only its adapter. But this head is new: its weights
# have just been drawn at random, and there is no reason to keep them. The adapter even has more
# parameters than the head itself. So our package trains the whole head, unless `head=True` asks for
# the book's way. We try both ways with all blocks frozen. Then we train the last block, whole or
# with LoRA, and finally all blocks with LoRA. LR is our basic learning rate; some ways need a
# multiple of it.

# %% tags=["clock"]
LR, folder = 1e-3 * 256 / C, TemporaryDirectory()
split = split_messages(load_messages(DATA), balance=True)
del split.train[120:], split.val[30:], split.test[120:]  # to save time
book = LoRAConfig(rank=16, alpha=16, matrices=(), head=True)  # no adapter in any block
ways = {  # LoRA, last blocks that are trained whole, multiple of LR
    "book's head, 1 LR": (book, 0, 1),
    "book's head, 4 LR": (book, 0, 4),
    "head whole, 1 LR": (None, 0, 1),
    "head whole, 4 LR": (None, 0, 4),
    "last block whole, 1 LR": (None, 1, 1),
    "last block whole, 2 LR": (None, 1, 2),
    "LoRA 1, last block, 4 LR": (LoRAConfig(rank=1, alpha=1, n_last_blocks=1), 0, 4),
    "LoRA 4, last block, 4 LR": (LoRAConfig(rank=4, alpha=4, n_last_blocks=1), 0, 4),
    "LoRA 16, last block, 4 LR": (LoRAConfig(rank=16, alpha=16, n_last_blocks=1), 0, 4),
    "LoRA 4, every block, 4 LR": (LoRAConfig(rank=4, alpha=4), 0, 4),
}
store = FeatureStore()  # keeps the frozen blocks' output for the next way
for name, (lora, blocks, times) in ways.items():
    began = time.perf_counter()
    way = Classifier.on_base(MODEL, labels, lora=lora, store=store)
    config = TrainConfig(n_last_blocks=blocks, lr=times * LR, epochs=3)
    history = finetune(way, split, config, run := Path(folder.name))
    ways[name] = way, history[-1].train_loss, (run / "best.safetensors").stat().st_size / 1000
    print(f"{name:<26}{time.perf_counter() - began:6.1f} s")

# %%
trained, bars, ends = {}, {}, {}
print(
    "parameters, file in kB, blocks computed per step, last training loss, test accuracy, interval"
)
for name, (way, loss, size) in ways.items():
    count = trained[name] = sum(p.numel() for p in way.model.parameters() if p.requires_grad)
    test = evaluate_classifier(way, split.test)
    low, high = ends[name] = [100 * end for end in test.interval]
    print(f"{name:<25}{count:>8,}{size:>7,.0f}{L - frozen_depth(way.model)[0]:>3}", end="")
    print(f"{loss:>6.2f}{100 * test.accuracy:>7.1f}%, {low:.0f} to {high:.0f}")
    bars[name[:-6]] = {"trained and saved": count / 1000}  # the same at each learning rate
picture(
    plot_seconds(bars, unit="thousand parameters", title="What is trained and saved"), "20-numbers"
)

# %% [markdown]
# All ways also train the 512 parameters of the final norm. In addition, the book's head trains
# 4,128 and the whole head 514. At the learning rate of the whole head, the book's head has hardly
# begun to learn (exercise 2). At four times that rate its loss is still higher than that of the whole
# head at the same rate. So the adapter of the head has more parameters than the head, and no advantage
# here.
#
# Do not rank the ways by this table. We chose the learning rates by hand, and the losses are
# training losses (compare the last block at 1 and at 2 LR). The interval of the whole block at 1 LR
# overlaps with nearly all others, and almost with that of the book's head at 1 LR.
#
# LoRA saves trainable parameters, AdamW's two running averages for each of them, and most of the file.
# It does not save time. In the last block it takes about as long as training the block whole. With
# adapters in every block no block is frozen, so the shortcut of chapter 14 is gone: a step runs 6
# blocks instead of 1, and keeps their outputs for the gradient.
#
# So use LoRA if you need many classifiers on one base, at 25 to 452 kilobytes each instead of
# 3,165. Or use it if the first blocks must change too and AdamW's averages for all their parameters
# do not fit into memory. Otherwise train the last block. Why can such narrow matrices be enough?
# Exercise 3 looks at how the last block changes when it is trained whole.

# %% check
assert ways["book's head, 1 LR"][1] > ways["head whole, 1 LR"][1] + 0.03, "has hardly begun"
assert ways["head whole, 4 LR"][1] < ways["book's head, 4 LR"][1] < ways["book's head, 1 LR"][1]
assert ways["last block whole, 2 LR"][1] < ways["last block whole, 1 LR"][1] - 0.03
low, high = ends["last block whole, 1 LR"]
apart = {name for name, (a, b) in ends.items() if b < low or high < a}
assert apart <= {"book's head, 1 LR"}, "the other intervals overlap with it"
assert [frozen_depth(way.model)[0] for way, *_ in ways.values()] == [L] * 4 + [L - 1] * 5 + [0]
assert all(0 < size - 0.004 * trained[name] < 20 for name, (_, _, size) in ways.items())
print(f"checked: files, depths, intervals; heads of {16 * (C + 2):,} and {2 * C + 2} parameters")

# %% [markdown]
# ## One matrix again
#
# `merge` adds the product to $W$, like `dense` above. The result is a plain GPT-2, to which all shortcuts
# apply again. A merged classifier can no longer be saved as a small file, so `save` refuses until you
# call `unmerge`.

# %% check
adapted = ways["LoRA 4, every block, 4 LR"][0]
before = adapted.logits(ids := adapted.encode([message.text for message in split.test])[0])
adapted.merge()
torch.testing.assert_close(adapted.logits(ids), before, atol=1e-3, rtol=0)
assert frozen_depth(adapted.model) == (L, ""), "all blocks are plain GPT-2 again"
adapted.unmerge()
adapted.save(run / "small.safetensors")
assert torch.allclose(Classifier.load(run / "small.safetensors").logits(ids), before, atol=1e-3)
print(f"checked: the same logits for {len(ids)} messages with adapters, merged, and from the file")

# %% [markdown]
# ## Exercises
#
# 1. $B$ begins as zero. What would happen if $A$ were zero too? And which of the two changes in the
#    first step?
# 2. Train rank 4 in the last block with the learning rate of the whole block. How far does the loss fall?
# 3. Train the last block whole. How much of the change of one of its matrices would fit into a
#    matrix of low rank?
#
# Solutions: [`solutions/20_lora.py`](solutions/20_lora.py).
