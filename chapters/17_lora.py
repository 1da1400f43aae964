# %% [markdown]
# # 17. LoRA
#
# LoRA ([Hu et al.](https://arxiv.org/abs/2106.09685)) leaves matrices as they are and trains two narrow ones beside each. Their
# product is what the wide one should change by. **At the end you will know** what they compute, what
# trains and is saved, why it is no quicker here. **Time:** about thirty seconds, offline.

# %%
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from gpt2_from_scratch import Classifier, TrainConfig, load_gpt2, load_messages, split_messages
from gpt2_from_scratch.course import picture, setting, show
from gpt2_from_scratch.finetuning import format_ledger, frozen_depth, ledger, set_trainable
from gpt2_from_scratch.lora import LoRAConfig, LoRALinear, add_lora
from gpt2_from_scratch.plots import plot_seconds
from gpt2_from_scratch.recipes import evaluate_classifier, finetune

MODEL, DATA = setting("mini")  # "124M": OpenAI's model, and the SMS Spam Collection

# %% [markdown]
# ## Two narrow matrices beside a wide one
#
# A layer computes $Wx + b$. LoRA adds $\frac{\alpha}{r} B A x$: $A$ takes $x$ down to $r$ numbers, $r$
# being the *rank*, and $B$ takes these up to the layer's width. By hand, for the first layer of an MLP;
# then the package's, which stands in the layer's place. Query, key and value lie in one matrix, and each
# gets an A and a B of its own: hence the loop. A begins random and B zero.

# %%
model, rank, alpha, folder = load_gpt2(MODEL), 4, 8.0, TemporaryDirectory()
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
# and in the head, and counts 2,666,528. By arithmetic, and by the ledger for this chapter's model:

# %%
print(f"124M: {16 * 18 * 768 * 12:,} in the blocks and {16 * (768 + 2):,} in the head")
labels, book = ["ham", "spam"], LoRAConfig(rank=16, alpha=16, head=True)
model = Classifier.on_base(MODEL, labels, lora=book).model
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
# Look at the head in the ledger. Its weight was just drawn at random, and the book freezes it: only
# an adapter trains, which has more numbers than the head. A pretrained matrix is worth keeping, a random
# one is not. So here the head trains whole, unless `head=True` asks for the book's way. Both alone;
# then blocks, by LoRA, which wants a higher rate, or whole. The seconds are your machine's:

# %% tags=["clock"]
LR, said = 1e-3 * 256 / C, []  # said: what functions tell on their way
split = split_messages([m for m in load_messages(DATA) if len(m.text) <= 120], say=said.append)
del split.train[160:]  # to save time
ways = {"book's head": (LoRAConfig(rank=16, alpha=16, matrices=(), head=True), 0, LR)}
ways |= {"head whole": (None, 0, LR), "last block whole": (None, 1, LR)}
for r in (1, 4, 16):
    ways[f"LoRA {r}, last block"] = LoRAConfig(rank=r, alpha=r, n_last_blocks=1), 0, 4 * LR
ways["LoRA 4, every block"] = LoRAConfig(rank=4, alpha=4), 0, 4 * LR
for name, (lora, blocks, lr) in ways.items():
    began, way = time.perf_counter(), Classifier.on_base(MODEL, labels, lora=lora)
    config, run = TrainConfig(n_last_blocks=blocks, lr=lr, epochs=3), Path(folder.name)
    history = finetune(way, split, config, run, quiet=True, say=said.append)
    ways[name] = way, history[-1].train_loss, (run / "best.safetensors").stat().st_size
    print(f"{name:<21}{time.perf_counter() - began:6.1f} s")

# %%
numbers, scores = {}, {}
print("                        train   kilobytes   loss   accuracy, 95 % interval")
for name, (way, loss, size) in ways.items():
    numbers[name] = sum(p.numel() for p in way.model.parameters() if p.requires_grad)
    test = scores[name] = evaluate_classifier(way, split.test, say=said.append)
    print(f"{name:<21}{numbers[name]:>8,}{size / 1000:>12,.0f}{loss:>7.2f}", end="")
    print(f"{100 * test.accuracy:>8.1f} %,", *(f"{100 * end:.0f}" for end in test.interval))
bars = {name: {"trained and saved": count} for name, count in numbers.items()}
picture(plot_seconds(bars, unit="numbers", title="What is trained and saved"), "17-numbers")

# %% [markdown]
# The book's head learns more slowly: its B begins at zero and works through a small A. As for blocks,
# these few test messages cannot tell the ways apart, but the files differ. A frozen matrix is still
# computed, and gradients pass through it: LoRA in every block leaves nothing to compute once (chapter
# 11) and is slowest by far. In the last block all in front is computed once, and it takes about as long
# as the block whole. LoRA saves memory and files, not time.

# %% check
whole, head = scores["last block whole"].interval, ways["book's head"][0].model.head
assert torch.equal(head.weight, Classifier.on_base(MODEL, labels).model.head.weight), "as drawn"
assert ways["book's head"][1] > ways["head whole"][1], "the loss at the end, at one rate"
assert ways["LoRA 1, last block"][1] > ways["LoRA 16, last block"][1], "a higher rank fits better"
for name, (way, _, size) in ways.items():
    depth = L if "head" in name else 0 if "every" in name else L - 1
    low, high = scores[name].interval
    assert frozen_depth(way.model)[0] == depth and 0 < size - 4 * numbers[name] < 20_000
    assert "head" in name or (low < whole[1] and whole[0] < high), name
print("checked: what is computed once, what is saved, that the intervals overlap")

# %% [markdown]
# ## One matrix again
#
# `merge` adds the product to W: the `dense` matrix of the first part. That is a plain GPT-2, with all
# its short cuts. What is saved should stay small, so `save` refuses until `unmerge`.

# %% check
adapted = ways["LoRA 4, every block"][0]
ids, _ = adapted.encode([message.text for message in split.test])
apart = adapted.logits(ids)
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
