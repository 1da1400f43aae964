# %% [markdown]
# # 4. The network
#
# **You are here:** the lecture · messages → tokens → attention → **network** → weights → head → last token → freezing → loss → finetuning → use
#
# In chapter 3 we built attention. What else is in GPT-2? Surprisingly little: two tables, a step that
# keeps the numbers in range, and a small network that is applied to each token. In this chapter we
# write these parts ourselves, put them together, and let the whole network finish a sentence.
#
# **At the end you will know** what each line of `print(model)` means, what a block computes, and how
# the network turns a text into its guess of the next token.
#
# **Reading time:** 20 minutes. **Running time:** a few seconds, offline.

# %%
import math

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from gpt2_from_scratch import (
    GPT2,
    Tokenizer,
    TransformerBlock,
    draw_architecture,
    load_gpt2,
    model_folder,
)
from gpt2_from_scratch.course import picture, setting, show

MODEL, DATA = setting("mini")  # "124M": OpenAI's model. DATA: the SMS Spam Collection

# %% [markdown]
# ## The network, printed
#
# The shortest way to see what a network consists of is to print it. The lecture does the same with the
# 124M model. Do not worry about the details yet.

# %%
torch.set_grad_enabled(False)
torch.set_default_dtype(torch.float64)  # 64-bit numbers: differences are mistakes, not rounding
torch.set_printoptions(precision=2, sci_mode=False)
model = load_gpt2(MODEL).double().requires_grad_(False)  # nothing is trained in this chapter
print(model)

# %% [markdown]
# Each line is a part of the network, and indented lines are parts of a part:
#
# - `wte` and `wpe` are tables. `wte` has one row per token of the vocabulary, and `wpe` has one row
#   per position. `Embedding(4096, 256)` means 4096 rows of 256 numbers. We call this width C, so C =
#   256.
# - A `Linear` is a matrix and a *bias*, which is added to the product. `Linear(in_features=256,
#   out_features=768, bias=True)` turns 256 numbers into 768.
# - `blocks` is a list of blocks. `(0-5): 6 x` means that there are six, numbered from 0 to 5. All of
#   them have the same parts, and each has its own numbers in these parts. OpenAI's 124M has twelve
#   blocks.
# - In a block, `attn` is the attention of chapter 3, with its two matrices `c_attn` and `c_proj`.
#   `mlp` is a small network with two matrices. Before each of the two there is a norm, `ln_1` and
#   `ln_2`.
# - After the last block there is one more norm, `ln_f`, and the output layer, `head`. It has one
#   output per token of the vocabulary. It has nothing to do with the heads of attention. The same word
#   is used for both.
#
# The lecture has longer names for these: `tok_emb`, `pos_emb`, `trf_blocks`, `final_norm`, `out_head`.
# Most of ours are the ones in OpenAI's files.
#
# `print(model)` does not show how the parts are connected. The picture does. Read it from the bottom
# up. The right side shows one block in detail. The number in a box counts its *parameters*: the
# numbers in its tables, matrices and biases, which training has found. Below we build the parts in
# this order.

# %%
picture(draw_architecture(model.config), "04-architecture")

# %% [markdown]
# ## Embeddings: from ids to vectors
#
# How does a token id become a vector? It is a row number. Token 758 gets row 758 of `wte`. But then
# `Do` would have the same vector at the beginning of a sentence and at its end, and word order
# matters. So the row of `wpe` for the token's position is added. The numbers in both tables were
# learned from a large amount of text, before we got the model. This is called *pretraining*
# (chapter 15).

# %%
tokenizer = Tokenizer(model_folder(MODEL))
ids = torch.tensor([tokenizer.encode("Do you have time")])  # (B, T), here B = 1 and T = 4
T = ids.shape[1]
x = model.wte.weight[ids] + model.wpe.weight[:T]  # (B, T, C)
print("ids:", ids)
print("row of the first token:   ", model.wte.weight[ids[0, 0], :5])
print("row of the first position:", model.wpe.weight[0, :5])
print("their sum:                ", x[0, 0, :5])
print("shape (B, T, C):", tuple(x.shape))

# %% [markdown]
# `x` is called the *residual stream*. It runs through the whole network and always keeps this shape.
# Attention and the MLP read it and add something to it.

# %% [markdown]
# ## LayerNorm: numbers in range
#
# If parts keep adding to the stream, its numbers grow, and later parts would get larger and larger
# inputs. So each part first normalises what it reads: for every token it subtracts the mean of the C
# numbers and divides by their standard deviation. Then it multiplies by a learned number per column,
# the *gain*, and adds another one, the *shift*.


# %%
def norm_by_hand(x: Tensor, ln: nn.LayerNorm) -> Tensor:
    mean = x.mean(dim=-1, keepdim=True)  # (B, T, C) -> (B, T, 1)
    variance = ((x - mean) ** 2).mean(dim=-1, keepdim=True)  # (B, T, 1)
    return ln.weight * (x - mean) / (variance + 1e-5).sqrt() + ln.bias  # (B, T, C)


block = model.blocks[0]
without_gain = nn.LayerNorm(model.config.n_embd)  # a new norm has gain 1 and shift 0
normalised = norm_by_hand(x, without_gain)
print("standard deviation of each token before:", x[0].std(dim=1))
print("standard deviation of each token after: ", normalised[0].std(dim=1))
print("with the learned gain and shift:        ", norm_by_hand(x, block.ln_1)[0].std(dim=1))

# %% [markdown]
# After the norm, the standard deviation of every token is 1. (Here the learned gain then makes the
# numbers smaller.) The tiny `1e-5` prevents a division by zero. Each norm has its own gain and shift,
# with which it makes some columns count more than others.

# %% [markdown]
# ## MLP: each token by itself
#
# Attention has collected information from other tokens. What happens with it? The MLP (*multi-layer
# perceptron*) processes each token alone, without looking at the others. Its first matrix, `c_fc`,
# makes the vector four times as wide. Then a function called GELU is applied to each number. The
# second matrix, `c_proj`, makes the vector as narrow as before.


# %%
def gelu_by_hand(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def mlp_by_hand(x: Tensor, mlp: nn.Module) -> Tensor:
    wide = mlp.c_fc(x)  # (B, T, C) -> (B, T, 4C)
    return mlp.c_proj(gelu_by_hand(wide))  # (B, T, 4C) -> (B, T, C)


print("numbers:   ", torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0]))
print("after GELU:", gelu_by_hand(torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0])))

# %%
figure = Figure(figsize=(6, 2.8), layout="constrained")
axes = figure.subplots()
inputs = torch.linspace(-4, 4, 200)
axes.plot(inputs, inputs, color="#404040", linestyle="--", linewidth=1)
axes.plot(inputs, gelu_by_hand(inputs), color="#0072B2", linewidth=2.5)
axes.text(-1.4, -1.7, "a straight line", color="#404040")
axes.text(2.2, 1.3, "GELU", color="#0072B2", weight="bold")
axes.set(title="GELU lets positive numbers through", xlabel="number", ylabel="result", ylim=(-2, 4))
axes.grid(alpha=0.3)
picture(figure, "04-gelu")

# %% [markdown]
# GELU keeps large positive numbers and turns negative ones into almost 0. Each of the wide numbers
# thus works like a switch that is on for some tokens and off for others. Without such a function
# between them, two matrices in a row could do no more than one (chapter 16 shows why). (There is an
# exact GELU and an approximation of it with `tanh`. OpenAI trained GPT-2 with the approximation, so we
# use it too. Exercise 3 shows what the other one costs.)

# %% [markdown]
# ## A block: read, compute, add
#
# Now we can put a block together. It is only two lines: attention reads the stream and adds its result
# to it, and then the MLP does the same.


# %%
def block_by_hand(x: Tensor, block: TransformerBlock) -> Tensor:
    x = x + block.attn(norm_by_hand(x, block.ln_1))  # tokens exchange information
    x = x + mlp_by_hand(norm_by_hand(x, block.ln_2), block.mlp)  # each token by itself
    return x


after_block = block_by_hand(x, block)
print("before the block:", x[0, 3, :5], f"standard deviation {x[0, 3].std():.2f}")
print(
    "after the block: ", after_block[0, 3, :5], f"standard deviation {after_block[0, 3].std():.2f}"
)

# %% [markdown]
# The most important sign in these two lines is the plus. A block does not replace the stream, it adds
# to it. So what an early block has found out is still there for the later ones. The output also shows
# how fast the numbers grow, which is why the norms are needed. This is the package's block:

# %%
show(TransformerBlock)

# %% [markdown]
# Its `forward` has the same two lines. The rest creates the four parts.

# %% [markdown]
# ## The whole network
#
# The network is the embeddings, one block after the other, and one last norm. Then comes the head. It
# compares the final vector of each token with every row of `wte`, by a dot product, and a row that
# fits well gets a high score. Such a score is called a *logit*. So `wte` is used twice: at the
# beginning to turn ids into vectors, and at the end to turn vectors into one score per token.


# %%
def logits_by_hand(model: GPT2, ids: Tensor) -> Tensor:
    x = model.wte.weight[ids] + model.wpe.weight[: ids.shape[1]]  # (B, T) -> (B, T, C)
    for block in model.blocks:
        x = block_by_hand(x, block)
    x = norm_by_hand(x, model.ln_f)
    return x @ model.wte.weight.T  # (B, T, C) -> (B, T, V)


logits = logits_by_hand(model, ids)
print("logits (B, T, V):", tuple(logits.shape))
print("largest difference from the package:", f"{(logits - model(ids)).abs().max():.0e}")

# %% [markdown]
# Our network and the package's agree, except for rounding in the last digits. V is the size of the
# vocabulary. So at each of the four positions there is one logit for each token that could come next.

# %% [markdown]
# ## From logits to the next token
#
# Softmax turns logits into probabilities, just as it turned scores into weights in chapter 3. What
# does the network think comes after `Do you have time`? Take the last position, because it has seen
# the whole text.

# %%
probabilities = logits[0, -1].softmax(dim=0)  # (V,)
best = probabilities.topk(5)
for probability, token in zip(best.values.tolist(), best.indices.tolist(), strict=True):
    print(f"{probability:6.1%}  {tokenizer.decode([token])!r}")

# %% [markdown]
# To write text, we append the most probable token and ask again. This is how a language model writes:

# %%
written = ids
for _step in range(8):
    next_token = logits_by_hand(model, written)[0, -1].argmax()
    written = torch.cat([written, next_token.view(1, 1)], dim=1)
    print(repr(tokenizer.decode(written[0].tolist())))

# %% [markdown]
# The miniature is small, so do not expect long stories from it. But it has finished the question and
# begun an answer, and you have written every part of it. In chapter 6 it gets a new head and another
# task.

# %% [markdown]
# ## What you know now
#
# - `wte` and `wpe` turn each token and its position into a vector of C numbers. Their sum is the
#   residual stream, (B, T, C).
# - A block adds the result of attention to the stream, and then the result of the MLP. Both read the
#   stream through a norm.
# - Attention mixes tokens. The MLP and the norms treat each token by itself.
# - After the last block, `ln_f` and the head turn each vector into one logit per token of the
#   vocabulary.
# - The logits at the last position say which token probably comes next.

# %% [markdown]
# ## Checks
#
# These cells check what the chapter said. They are folded in the notebook; an error here means that
# something is wrong.

# %% check
assert torch.equal(x, model.embed(ids))
assert torch.equal(x[0, 0], model.wte.weight[ids[0, 0]] + model.wpe.weight[0])
assert model.config.n_layer == len(model.blocks) and model.head.weight is model.wte.weight
print("checked: the embeddings equal the package's, and the head is the table wte")

# %% check
C = model.config.n_embd
for ln in (block.ln_1, block.ln_2, model.ln_f):
    expected = F.layer_norm(x, (C,), ln.weight, ln.bias, 1e-5)
    assert (norm_by_hand(x, ln) - expected).abs().max() < 1e-9
assert normalised.mean(dim=2).abs().max() < 1e-9
assert (normalised.var(dim=2, correction=0) - 1).abs().max() < 0.01
print("checked: our LayerNorm equals torch's; it gives mean 0 and variance 1")

# %% check
numbers = torch.linspace(-6, 6, 1001)
assert (gelu_by_hand(numbers) - F.gelu(numbers, approximate="tanh")).abs().max() < 1e-9
exact = (gelu_by_hand(numbers) - F.gelu(numbers)).abs().max()
assert 1e-4 < exact < 1e-3, "close to the exact GELU, but not equal"
fc, proj = block.mlp.c_fc, block.mlp.c_proj
by_torch = F.linear(F.gelu(F.linear(x, fc.weight, fc.bias), approximate="tanh"), proj.weight)
assert (mlp_by_hand(x, block.mlp) - by_torch - proj.bias).abs().max() < 1e-9
print("checked: GELU and MLP equal torch's; the exact GELU is another function")

# %% check
alone = mlp_by_hand(x[:, 2:3], block.mlp)
assert (mlp_by_hand(x, block.mlp)[:, 2:3] - alone).abs().max() < 1e-9
print("checked: the MLP gives a token the same result without the other tokens")

# %% check
assert (after_block - block(x)).abs().max() < 1e-9
assert (logits - model(ids)).abs().max() < 1e-4 and logits.shape[2] == model.config.n_vocab
print(f"checked: one block, and the logits after all {model.config.n_layer} blocks")

# %% check
assert abs(probabilities.sum() - 1) < 1e-9 and written.shape[1] == T + 8
repeated = model(written[:, :-1])[0, T - 1 :].argmax(dim=1)
assert torch.equal(repeated, written[0, T:]), (
    "one pass over the written text makes the same choices"
)
print("checked: every written token is the most probable one after the text before it")

# %% [markdown]
# ## Exercises
#
# 1. (easy) Multiply the stream by ten and add three, just before the final norm. What happens to the
#    logits? Guess first.
#    <details><summary>Hint</summary>The norm subtracts the mean and divides by the deviation.</details>
# 2. (medium) Set `wpe` to zero and shuffle all tokens except the last. Does the last token's vector
#    change after one block? After two?
#    <details><summary>Hint</summary>A sum does not depend on the order, but every token has a mask.</details>
# 3. (hard) Make these mistakes on purpose: the exact GELU, C - 1 instead of C in the variance, no square
#    root of D in attention, a transposed `attn.c_proj`. How far do the logits move with the real weights,
#    and with untrained ones?
#    <details><summary>Hint</summary>`init_weights` makes untrained weights. Multiplying the queries by
#    the square root of D cancels the division.</details>
#
# Solutions: [`solutions/04_network.py`](solutions/04_network.py).
