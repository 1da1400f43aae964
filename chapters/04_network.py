# %% [markdown]
# # 4. The network
#
# GPT-2 is a short program and a large table of numbers. In this chapter we write the program
# ourselves, run it on the real weights and a real message, and compare each part with the
# package's.
#
# **At the end you will know** what embeddings, LayerNorm, attention, the MLP and the residual stream
# compute, what shapes they have, and how close two results must be to count as equal. **Time:** a few
# seconds, offline.

# %%
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from gpt2_from_scratch import (
    GPT2,
    CausalSelfAttention,
    Tokenizer,
    TransformerBlock,
    draw_architecture,
    draw_attention,
    load_gpt2,
    load_messages,
    model_folder,
)
from gpt2_from_scratch.course import picture, setting, show

MODEL, DATA = setting("mini")  # "124M": OpenAI's model. DATA: the SMS Spam Collection
NEAR = {"atol": 1e-4, "rtol": 0.0}
_ = torch.set_grad_enabled(False)  # nothing is trained here

# %% [markdown]
# ## Embeddings and LayerNorm
#
# The shapes use these letters: there are B texts of T tokens, each token is represented by C =
# `n_embd` numbers, there are H heads of size D = C / H, and the vocabulary has V tokens. The table
# `wte` has a row for each token of the vocabulary, and the table `wpe` has a row for each position.
# Each token id selects a row of `wte`. Attention has no other way to know where a token is (except
# for its mask, see below), so the row of `wpe` for the token's position is added. The sum is the
# residual stream (B, T, C). Every later part reads the stream and adds its result to it. Read the
# picture from the bottom up.

# %%
model = load_gpt2(MODEL).double()  # float64, so differences are mistakes, not rounding
picture(draw_architecture(model.config), "04-architecture")

# %%
tokenizer = Tokenizer(model_folder(MODEL))
encoded = [tokenizer.encode(message.text) for message in load_messages(DATA)]
ids = torch.tensor([next(text for text in encoded if 10 <= len(text) <= 15)])  # (B, T)
tokens = [tokenizer.decode([token]) for token in ids[0]]
x = model.wte.weight[ids] + model.wpe.weight[: len(tokens)]  # (B, T) -> (B, T, C)
print(f"{tokens}\nids {tuple(ids.shape)} -> x {tuple(x.shape)}")

# %% [markdown]
# Each part first normalises what it reads. The C numbers of each token are shifted and scaled to
# mean 0 and variance 1, then multiplied by a learned gain, and a learned shift is added. The
# variance is a sum of squares divided by C, not by C - 1. Before the square root is taken, 1e-5 is
# added to it.


# %%
def norm_by_hand(x: Tensor, ln: nn.LayerNorm) -> Tensor:
    mean = x.mean(dim=2, keepdim=True)  # (B, T, C) -> (B, T, 1)
    variance = ((x - mean) ** 2).mean(dim=2, keepdim=True)  # (B, T, C) -> (B, T, 1)
    return ln.weight * (x - mean) / (variance + 1e-5).sqrt() + ln.bias  # (B, T, C)


block = model.blocks[0]
a = norm_by_hand(x, block.ln_1)
plain = norm_by_hand(x, nn.LayerNorm(x.shape[2]))  # gain 1, shift 0
print(f"std of the first token's numbers: {x[0, 0].std():.2f}; normalised: {plain[0, 0].std():.2f}")

# %% check
assert torch.equal(x, model.embed(ids))
assert_close(a, F.layer_norm(x, x.shape[2:], block.ln_1.weight, block.ln_1.bias, 1e-5), **NEAR)
print("checked: the embeddings equal the package's, LayerNorm equals torch's")

# %% [markdown]
# ## Attention
#
# In attention, tokens look at each other. `c_attn` computes three vectors from each token: a query
# (what it looks for), a key (what it is found by) and a value (what it passes on). The score of
# token t for token s is the dot product of t's query and s's key. It is divided by sqrt(D), because
# the product would otherwise grow with the size of the head. A mask sets the scores of later tokens
# to minus infinity. Softmax turns the scores into weights that add up to 1 and are 0 for the later
# tokens. The result is the weighted sum of the values. H heads do this in parallel, each with its
# own queries, keys and values, and `c_proj` combines their results. After our version and its
# picture you see the package's, which leaves scores, mask and softmax to one function of PyTorch:


# %%
def attend_by_hand(a: Tensor, attn: CausalSelfAttention) -> tuple[Tensor, Tensor]:
    (B, T, C), H, D = a.shape, attn.n_head, a.shape[2] // attn.n_head
    qkv = a @ attn.c_attn.weight.T + attn.c_attn.bias  # (B, T, C) -> (B, T, 3C)
    q, k, v = (part.view(B, T, H, D).transpose(1, 2) for part in qkv.split(C, 2))  # (B, H, T, D)
    scores = q @ k.transpose(2, 3) / D**0.5  # (B, H, T, T)
    weights = scores.masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf).softmax(dim=3)
    y = (weights @ v).transpose(1, 2).reshape(B, T, C)  # (B, H, T, D) -> (B, T, C), heads joined
    return attn.c_proj(y), weights  # c_proj(y) is y @ c_proj.weight.T + c_proj.bias


y, weights = attend_by_hand(a, block.attn)
picture(draw_attention(weights[0], tokens), "04-attention")

# %%
show(CausalSelfAttention.attend)

# %% check
assert_close(y, block.attn(a), **NEAR)
assert_close(weights.sum(dim=3), torch.ones_like(weights[..., 0]), **NEAR)
assert not weights.triu(diagonal=1).any() and weights.shape[1] == model.config.n_head
print("checked: attention equals the package's; weights add up to 1, and no token looks ahead")

# %% [markdown]
# ## MLP, block, network
#
# The MLP processes each token by itself: it makes the vector four times wider, applies GELU, and maps
# it back to C numbers. GELU keeps large positive numbers and turns very negative ones into almost 0.
# OpenAI trained GPT-2 with the tanh approximation of it. A block adds the result of attention to the
# stream, and then the result of the MLP. After the last block there is one more norm. Finally the
# product with `wte`, the same table as at the beginning, gives the logits.


# %%
def tanh_gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))


def block_by_hand(x: Tensor, block: TransformerBlock, gelu=tanh_gelu) -> Tensor:
    x = x + attend_by_hand(norm_by_hand(x, block.ln_1), block.attn)[0]  # (B, T, C)
    wide = gelu(block.mlp.c_fc(norm_by_hand(x, block.ln_2)))  # (B, T, C) -> (B, T, 4C)
    return x + block.mlp.c_proj(wide)  # (B, T, 4C) -> (B, T, C)


def logits_by_hand(model: GPT2, ids: Tensor, gelu=tanh_gelu) -> Tensor:
    x = model.wte.weight[ids] + model.wpe.weight[: ids.shape[1]]  # (B, T) -> (B, T, C)
    for block in model.blocks:
        x = block_by_hand(x, block, gelu)
    return norm_by_hand(x, model.ln_f) @ model.wte.weight.T  # (B, T, C) -> (B, T, V)


moved = (logits_by_hand(model, ids, F.gelu) - model(ids)).abs().max()
print(f"with the exact GELU the logits change by {moved:.4f}")

# %% [markdown]
# The wrong GELU is a small mistake. A test with a tolerance of `1e-2` may miss it; ours has `1e-4`
# and does not. A test also needs large weights. The weights of a network that has not been trained
# are close to 0, and with them the same mistakes change the logits far less (exercise 1).

# %% check
assert_close(tanh_gelu(x), F.gelu(x, approximate="tanh"), **NEAR)
assert_close(block_by_hand(x, block), block(x), **NEAR)
assert_close(logits_by_hand(model, ids), model(ids), **NEAR)
assert moved > NEAR["atol"], "the tolerance is small enough to notice the other GELU"
print(f"checked: GELU, one block, and the logits after all {model.config.n_layer} blocks")

# %% [markdown]
# ## Exercises
#
# 1. Make these mistakes on purpose: the exact GELU, C - 1 in the norm, no sqrt(D), a transposed
#    `attn.c_proj`. How far do the logits move with the real weights, and with untrained ones
#    (`init_weights`)? Which mistakes would a tolerance of `1e-2` miss?
# 2. Set `wpe` to zero and shuffle all tokens except the last. Does the last token's state change after
#    one block? After two?
# 3. Multiply the stream by ten and add three, just before the final norm. What happens to the logits?
#
# Solutions: [`solutions/04_network.py`](solutions/04_network.py).
