# %% [markdown]
# # 3. The network
#
# GPT-2 is a short program and a large table of numbers. Here the program is written once more, run on
# the real weights and a real message, and compared with the package's, part by part.
#
# **At the end you will know** what embeddings, LayerNorm, attention, MLP and the residual stream
# compute, with every shape, and how near is near enough. **Time:** a few seconds, offline.

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

MODEL, DATA = setting("mini")  # "124M": OpenAI's model, and the SMS Spam Collection
NEAR = {"atol": 1e-4, "rtol": 0.0}
_ = torch.set_grad_enabled(False)  # nothing is trained here

# %% [markdown]
# ## Embeddings and LayerNorm
#
# Letters for shapes: B texts of T tokens, C = `n_embd` numbers a token, H heads of D = C / H each,
# V tokens in the vocabulary. A token becomes a row of `wte`. Attention has no order but for its
# mask, so the row of `wpe` for its position is added. The sum is the residual stream (B, T, C):
# what follows reads it and adds to it. The picture reads from the bottom up.

# %%
model = load_gpt2(MODEL).double()  # float64: what differs is a mistake then, and no rounding
picture(draw_architecture(model.config), "03-architecture")

# %%
tokenizer = Tokenizer(model_folder(MODEL))
encoded = [tokenizer.encode(message.text) for message in load_messages(DATA)]
ids = torch.tensor([next(text for text in encoded if 10 <= len(text) <= 15)])  # (B, T)
tokens = [tokenizer.decode([token]) for token in ids[0]]
x = model.wte.weight[ids] + model.wpe.weight[: len(tokens)]  # (B, T) -> (B, T, C)
print(f"{tokens}\nids {tuple(ids.shape)} -> x {tuple(x.shape)}")

# %% [markdown]
# Each part normalises what it reads: a token's C numbers get mean 0 and variance 1, then a learned
# gain and shift. The variance is divided by C, not C - 1, and 1e-5 is added *inside* the root.


# %%
def norm_by_hand(x: Tensor, ln: nn.LayerNorm) -> Tensor:
    mean = x.mean(dim=2, keepdim=True)  # (B, T, C) -> (B, T, 1)
    variance = ((x - mean) ** 2).mean(dim=2, keepdim=True)  # (B, T, C) -> (B, T, 1)
    return ln.weight * (x - mean) / (variance + 1e-5).sqrt() + ln.bias  # (B, T, C)


block = model.blocks[0]
a = norm_by_hand(x, block.ln_1)
plain = norm_by_hand(x, nn.LayerNorm(x.shape[2]))  # gain 1, shift 0
print(f"std of the first token's numbers: {x[0, 0].std():.2f}, normalised {plain[0, 0].std():.2f}")

# %% check
assert torch.equal(x, model.embed(ids))
assert_close(a, F.layer_norm(x, x.shape[2:], block.ln_1.weight, block.ln_1.bias, 1e-5), **NEAR)
print("checked: the embeddings are the package's, LayerNorm is torch's")

# %% [markdown]
# ## Attention
#
# Here tokens look at each other. `c_attn` makes of each a query (what it looks for), a key (what it
# is found by) and a value (what it passes on). How much token t looks at token s is the product of
# t's query and s's key over sqrt(D), so as not to grow with the width. Later tokens are masked, and
# softmax turns the rest into weights that add up to 1, by which the values are added up. H heads do
# so side by side, each looking elsewhere; `c_proj` mixes what they found. The package is shorter:


# %%
def attend_by_hand(a: Tensor, attn: CausalSelfAttention) -> tuple[Tensor, Tensor]:
    (B, T, C), H, D = a.shape, attn.n_head, a.shape[2] // attn.n_head
    qkv = a @ attn.c_attn.weight.T + attn.c_attn.bias  # (B, T, C) -> (B, T, 3C)
    q, k, v = (part.view(B, T, H, D).transpose(1, 2) for part in qkv.split(C, 2))  # (B, H, T, D)
    scores = q @ k.transpose(2, 3) / D**0.5  # (B, H, T, T)
    weights = scores.masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf).softmax(dim=3)
    y = (weights @ v).transpose(1, 2).reshape(B, T, C)  # (B, H, T, D) -> heads side by side
    return attn.c_proj(y), weights  # c_proj(y) is y @ c_proj.weight.T + c_proj.bias


y, weights = attend_by_hand(a, block.attn)
picture(draw_attention(weights[0], tokens), "03-attention")

# %%
show(CausalSelfAttention.attend)

# %% check
assert_close(y, block.attn(a), **NEAR)
assert_close(weights.sum(dim=3), torch.ones_like(weights[..., 0]), **NEAR)
assert not weights.triu(diagonal=1).any() and weights.shape[1] == model.config.n_head
print("checked: attention is the package's; weights add up to 1, and none looks ahead")

# %% [markdown]
# ## MLP, block, network
#
# The MLP reads each token by itself: four times wider, GELU, back. GELU keeps large numbers and makes
# very negative ones nearly 0; OpenAI trained with the form that has tanh. A block adds attention to the
# stream, then the MLP. Behind the last block come a norm and, for the logits, `wte` once more.


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
print(f"with the exact GELU the logits move by {moved:.4f}")

# %% [markdown]
# A small mistake: a tolerance of `1e-2` may let it pass, ours of `1e-4` does not. A test wants
# large weights too: on fresh ones, near 0, mistakes move the logits far less (exercise 1).

# %% check
assert_close(tanh_gelu(x), F.gelu(x, approximate="tanh"), **NEAR)
assert_close(block_by_hand(x, block), block(x), **NEAR)
assert_close(logits_by_hand(model, ids), model(ids), **NEAR)
assert moved > NEAR["atol"], "the other GELU is seen"
print(f"checked: GELU, a block, and the logits of all {model.config.n_layer} blocks")

# %% [markdown]
# ## Exercises
#
# 1. Plant mistakes: the exact GELU, C - 1 in the norm, no sqrt(D), a transposed `attn.c_proj`. How
#    far do logits move, also on fresh weights (`init_weights`)? Which would `1e-2` miss?
# 2. Without `wpe`, shuffle all tokens but the last. Does its state change after one block? Two?
# 3. Before the final norm, multiply the stream by ten and add three. What happens to the logits?
#
# Solutions: [`solutions/03_network.py`](solutions/03_network.py).
