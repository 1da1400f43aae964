# %% [markdown]
# # 3. Attention
#
# **You are here:** the lecture · messages → tokens → **attention** → network → weights → head → last token → freezing → loss → finetuning → use
#
# A word alone says little: what does `it` mean, or `bank`, or `free`? A token has to find out which
# tokens come before it. Attention is the only part of GPT-2 in which tokens exchange information. It
# is also the part that looks hardest, but it consists of six short steps. In this chapter we take them
# one at a time, with a sentence of four tokens and with real, trained weights.
#
# **At the end you will know** what queries, keys and values are, how the mask keeps tokens from
# looking ahead, why there are several heads, and that all of this fits into about ten lines.
#
# **Reading time:** 15 minutes. **Running time:** a few seconds, offline.

# %%
import math

import torch
import torch.nn.functional as F

from gpt2_from_scratch import (
    CausalSelfAttention,
    Tokenizer,
    draw_attention,
    load_gpt2,
    model_folder,
)
from gpt2_from_scratch.course import picture, setting, show

MODEL, DATA = setting("mini")  # "124M": OpenAI's model. DATA: the SMS Spam Collection

# %% [markdown]
# ## Before attention, every token is alone
#
# The network begins by replacing each token id with a vector: a row of C numbers. (Chapter 4 shows
# how. Until then, `vectors_of` is a black box.) We compare the vector of ` time` in two sentences, in
# both of which it is the fourth token. Do you expect the two vectors to be different?

# %%
torch.set_grad_enabled(False)  # nothing is trained in this chapter
torch.set_default_dtype(torch.float64)  # 64-bit numbers: differences are mistakes, not rounding
torch.set_printoptions(precision=2, sci_mode=False)
model = load_gpt2(MODEL).double()
tokenizer = Tokenizer(model_folder(MODEL))


def vectors_of(text):
    ids = torch.tensor([tokenizer.encode(text)])
    return model.blocks[0].ln_1(model.embed(ids))[0]  # (T, C)


x = vectors_of("Do you have time")
other = vectors_of("What is the time")
print("shape (T, C):", tuple(x.shape))
print("' time' in 'Do you have time':", x[3, :5])
print("' time' in 'What is the time':", other[3, :5])

# %% [markdown]
# They are equal. (The first five numbers are printed. A check at the end compares all of them.) At
# this point the vector says which token it is and at which position, but it says nothing about the
# words before it. Attention will change that.

# %% [markdown]
# ## Step 1: query, key and value
#
# Each token makes three vectors from its own: a *query* (what am I looking for?), a *key* (how can
# others find me?) and a *value* (what do I pass on?). Think of a library: you come with a question,
# you compare it with the titles on the shelf, and you take home what is in the books.
#
# In GPT-2 one matrix makes all three at once. It is called `c_attn`, and its result is three times as
# wide as its input. (A vector, the *bias*, is added to the product.)

# %%
attn = model.blocks[0].attn
T, C = x.shape
three = x @ attn.c_attn.weight.T + attn.c_attn.bias  # (T, C) -> (T, 3C)
queries, keys, values = three.split(C, dim=1)  # three times (T, C)
print("x", tuple(x.shape), "-> queries, keys and values", tuple(three.shape))

# %% [markdown]
# The columns are then divided among several *heads*. Each head works with its own D columns and does
# not see those of the others. We begin with the first head, head 0.

# %%
H = attn.n_head
D = C // H
q, k, v = queries[:, :D], keys[:, :D], values[:, :D]  # head 0: three times (T, D)
print(f"C = {C} columns are H = {H} heads of D = {D} columns")

# %% [markdown]
# ## Step 2: scores
#
# How well does a key fit a query? We multiply the two vectors number by number and add everything up.
# This is their dot product, and it is large if the two vectors point in the same direction. A matrix
# product computes it for all pairs of tokens at once. The more columns there are, the larger the sums
# become, so they are divided by the square root of D.

# %%
scores = q @ k.T / math.sqrt(D)  # (T, D) @ (D, T) -> (T, T)
print(scores)

# %% [markdown]
# A row belongs to the token that looks, and a column to the token that it looks at. Take the last row:
# ` time` gives its highest score to the third token, ` have`.

# %% [markdown]
# ## Step 3: the mask
#
# GPT-2 was trained to predict the next token. If a token could look ahead, it would simply see the
# answer. So all scores for later tokens are replaced by minus infinity: everything above the diagonal.

# %%
is_later = torch.ones(T, T).triu(diagonal=1).bool()
masked = scores.masked_fill(is_later, -torch.inf)
print(masked)

# %% [markdown]
# The diagonal stays. A token attends to itself and to the tokens before it. (At 24:09 the lecture says
# that the second token attends to the first one only. You see two numbers in the second row.)

# %% [markdown]
# ## Step 4: weights
#
# Scores can be any numbers, but we want proportions: how much of its attention does a token give to
# each token it may look at? Softmax turns the scores into such proportions. It takes the exponential
# of each score, which is never negative, and divides it by the sum of the row. The exponential of
# minus infinity is 0.

# %%
exponentials = masked.exp()
weights = exponentials / exponentials.sum(dim=1, keepdim=True)
print(weights)

# %% [markdown]
# Each row adds up to 1. The first token can only look at itself, so its weight is 1. Nearly all of the
# second token's attention goes to the first. And the last row says where ` time` gets its information
# from: about half of it comes from ` have`.

# %% [markdown]
# ## Step 5: a weighted sum of the values
#
# Now each token collects what the tokens pass on: it multiplies each of their values by its weight,
# and adds up the products. Here the first token gets back its own value, and ` time` gets a mixture of
# all four.

# %%
result = weights @ v  # (T, T) @ (T, D) -> (T, D)
print("value of the first token: ", v[0, :5])
print("result for the first token:", result[0, :5])
print("result for the last token: ", result[3, :5])

# %% [markdown]
# That is the whole idea. Written as a function, steps 2 to 5 are four lines:


# %%
def one_head(q, k, v):
    scores = q @ k.T / math.sqrt(q.shape[1])
    is_later = torch.ones_like(scores).triu(diagonal=1).bool()
    weights = scores.masked_fill(is_later, -torch.inf).softmax(dim=1)
    return weights @ v, weights


# %% [markdown]
# ## Step 6: several heads
#
# A head has only one row of weights per token, so it can look for only one thing at a time. GPT-2
# therefore has several heads, which do the same computation with different columns. Their results are
# placed next to each other, which gives C columns again, and a last matrix, `c_proj`, mixes them.


# %%
def attention_by_hand(x, attn):
    C = x.shape[1]
    D = C // attn.n_head
    queries, keys, values = attn.c_attn(x).split(C, dim=1)
    results = []
    all_weights = []
    for head in range(attn.n_head):
        columns = slice(head * D, (head + 1) * D)
        result, weights = one_head(queries[:, columns], keys[:, columns], values[:, columns])
        results.append(result)
        all_weights.append(weights)
    y = attn.c_proj(torch.cat(results, dim=1))  # the heads side by side: (T, C)
    return y, torch.stack(all_weights)  # (T, C), (H, T, T)


y, weights_of_heads = attention_by_hand(x, attn)
y_other, _ = attention_by_hand(other, attn)
print("' time' in 'Do you have time':", y[3, :5])
print("' time' in 'What is the time':", y_other[3, :5])

# %% [markdown]
# Now the two vectors differ. The same word at the same position has become something else, because
# different words come before it. This is what attention is for.

# %% [markdown]
# ## What do heads look at?
#
# We can watch them. The picture shows the weights of all heads for one sentence. A row is the token
# that looks. The darker a square, the more attention the token in this row gives to the token in this
# column. Can you say what each head does?

# %%
sentence = "The dog ran because the dog was afraid"
tokens = [tokenizer.decode([number]) for number in tokenizer.encode(sentence)]
_, weights_of_sentence = attention_by_hand(vectors_of(sentence), attn)
picture(draw_attention(weights_of_sentence, tokens), "03-attention")

# %% [markdown]
# In the miniature, head 0 has a clear job: most tokens look at the token directly before them. It lets
# the network read a word together with the one before it. Head 1 gives much of its attention to the
# first token. The other two spread their attention over many tokens. Nobody programmed any of this:
# the heads learned it in training.

# %% [markdown]
# ## The package's version
#
# This is how the package computes the same:

# %%
show(CausalSelfAttention.attend)

# %% [markdown]
# It adds two things. It works on a whole batch and on all heads at once: `view` and `transpose` turn
# the C columns into H heads of D columns, so there is no loop. And steps 2 to 5 are one function of
# PyTorch, `scaled_dot_product_attention`, which is faster. The `seen` argument is for special cases
# (chapter 14). The result is the same as ours:

# %%
by_package = attn(x[None])[0]  # the package expects a batch: (1, T, C)
print(f"largest difference: {(y - by_package).abs().max():.0e}")

# %% [markdown]
# ## What you know now
#
# - Each token makes a query, a key and a value from its vector. One matrix, `c_attn`, makes all three.
# - A score is the dot product of a query and a key, divided by the square root of D.
# - The mask removes the scores of later tokens. A token attends to itself and to the tokens before it.
# - Softmax turns the scores of a row into weights that add up to 1. The result is the weighted sum of
#   the values.
# - Several heads do this next to each other, and `c_proj` mixes their results.
# - After attention, the vector of a token also depends on the tokens before it.

# %% [markdown]
# ## Checks
#
# These cells check what the chapter said. They are folded in the notebook; an error here means that
# something is wrong.

# %% check
assert tokenizer.encode("Do you have time")[3] == tokenizer.encode("What is the time")[3]
assert torch.equal(x[3], other[3]), "equal before attention"
assert (y[3] - y_other[3]).abs().max() > 0.1, "different after attention"
print("checked: the vector of ' time' is the same before attention, and different after it")

# %% check
for t in range(T):
    products = [float(q[t] @ k[s]) / D**0.5 for s in range(t + 1)]  # itself and earlier tokens
    total = sum(math.exp(product) for product in products)
    expected = torch.zeros(D, dtype=torch.float64)
    for s, product in enumerate(products):
        assert abs(weights[t, s] - math.exp(product) / total) < 1e-9
        expected += math.exp(product) / total * v[s]
    assert (result[t] - expected).abs().max() < 1e-9
print("checked: a loop over single tokens gives the same weights and results")

# %% check
assert (weights.sum(dim=1) - 1).abs().max() < 1e-9, "rows add up to 1"
assert not weights.triu(diagonal=1).any(), "no token looks ahead"
assert weights.tril().count_nonzero() == T * (T + 1) / 2, "a token looks at itself and all before"
assert weights[3].argmax() == 2 or MODEL != "mini"
print("checked: rows add up to 1, and a token attends to itself and to all tokens before it")

# %% check
by_torch = F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True)[0]
assert (result - by_torch).abs().max() < 1e-9
assert (one_head(q, k, v)[0] - by_torch).abs().max() < 1e-9
assert (y - by_package).abs().max() < 1e-9
assert (weights_of_heads[0] - weights).abs().max() < 1e-9
print("checked: one head equals torch's function, and all heads equal the package's attention")

# %% check
mean_before = weights_of_sentence.diagonal(-1, 1, 2)[:, 1:].mean(dim=1)  # (H,)
mean_first = weights_of_sentence[:, 2:, 0].mean(dim=1)
assert MODEL != "mini" or mean_before.argmax() == 0 and mean_first.argmax() == 1
print(
    "checked: head 0 looks at the token before, and head 1 at the first token, more than others do"
)

# %% [markdown]
# ## Exercises
#
# 1. (easy) Leave out the division by the square root of D. What happens to the largest weight of each
#    row?
#    <details><summary>Hint</summary>Softmax of larger scores is more decided.</details>
# 2. (medium) Leave out the mask, and replace the last token of the sentence with another one. Which rows
#    of the result change, and which rows change with the mask?
#    <details><summary>Hint</summary>Compare `"Do you have time"` and `"Do you have money"`.</details>
# 3. (hard) The network has several blocks, each with its own attention. Which head of all blocks looks
#    most at the token directly before? Take the mean over twenty messages.
#    <details><summary>Hint</summary>Start with `x = model.embed(ids)`. The attention of a block reads
#    `block.ln_1(x)`, and `x = block(x)` goes on to the next block.</details>
#
# Solutions: [`solutions/03_attention.py`](solutions/03_attention.py).
