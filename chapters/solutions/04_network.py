# %% [markdown]
# # Solutions to chapter 4

# %%
import copy

import torch
import torch.nn.functional as F

from gpt2_from_scratch import (
    GPT2,
    Tokenizer,
    init_weights,
    load_gpt2,
    model_folder,
)

torch.set_grad_enabled(False)
real = load_gpt2("mini").double()
ids = torch.tensor([Tokenizer(model_folder("mini")).encode("Claim your prize before midnight")])

# %% [markdown]
# ## 1. Which mistakes a test sees
#
# Untrained weights ("fresh" below) have a standard deviation of 0.02 or less. With them, attention
# gives all tokens about the same weight, and GELU is nearly a straight line. So a test with a
# tolerance of 0.01 misses two of the four mistakes. With the real weights each mistake moves the
# logits at least five times as far. The wrong GELU is still the smallest mistake, at about 0.01, so
# whether that tolerance catches it depends on the message. This is why tests should use real or
# large weights, and a tolerance of 0.0001.


# %%
def logits_with(model, gelu="tanh", c_minus_1=False, no_root=False):
    def norm(x, ln):
        variance = x.var(dim=2, keepdim=True, correction=int(c_minus_1))
        return ln.weight * (x - x.mean(dim=2, keepdim=True)) / (variance + 1e-5).sqrt() + ln.bias

    x = model.embed(ids)
    for block in model.blocks:
        q, k, v = block.attn.c_attn(norm(x, block.ln_1)).split(x.shape[2], dim=2)
        D = x.shape[2] // block.attn.n_head
        q = q * D**0.5 if no_root else q  # cancels the division
        x = x + block.attn.c_proj(block.attn.attend(torch.cat([q, k, v], dim=2)))
        x = x + block.mlp.c_proj(F.gelu(block.mlp.c_fc(norm(x, block.ln_2)), approximate=gelu))
    return norm(x, model.ln_f) @ model.wte.weight.T


fresh = GPT2(real.config).double()
init_weights(fresh, torch.Generator().manual_seed(123))
moved = {}
for name, model in (("real", real), ("fresh", fresh)):
    right = model(ids)
    turned = copy.deepcopy(model)
    weight = turned.blocks[0].attn.c_proj.weight
    weight.copy_(weight.T.clone())
    moved[name] = {
        mistake: (logits - right).abs().max().item()
        for mistake, logits in {
            "none": logits_with(model),
            "exact GELU": logits_with(model, gelu="none"),
            "C - 1": logits_with(model, c_minus_1=True),
            "no sqrt(D)": logits_with(model, no_root=True),
            "transposed": turned(ids),
        }.items()
    }
    print(f"{name:<6}", {mistake: f"{far:.0e}" for mistake, far in moved[name].items()})
assert moved["real"].pop("none") < 1e-9 and moved["fresh"].pop("none") < 1e-9
assert all(moved["real"][mistake] > 5 * far for mistake, far in moved["fresh"].items())
assert moved["fresh"]["exact GELU"] < 1e-3 and moved["fresh"]["C - 1"] < 1e-2
assert 1e-3 < moved["real"]["exact GELU"] < 1e-1

# %% [markdown]
# ## 2. Order without positions
#
# After one block nothing has changed: without `wpe` the last token sees a bag of tokens, and a sum does
# not depend on their order. After two blocks it has changed: each of the *other* tokens sees only those
# before it, so what it saw in the first block depends on its position. The mask alone therefore gives
# the network some information about the order.

# %%
without = copy.deepcopy(real)
without.wpe.weight.zero_()
order = [*torch.randperm(ids.shape[1] - 1, generator=torch.Generator().manual_seed(1)), -1]
shuffled = ids[:, order]
assert not torch.equal(ids, shuffled)
x, y = without.embed(ids), without.embed(shuffled)
change = []
for block in without.blocks:
    x, y = block(x), block(y)
    change.append((x - y)[0, -1].abs().max().item())
print("the last token's state changes by", [f"{far:.0e}" for far in change])
assert change[0] < 1e-9 and change[1] > 1e-3

# %% [markdown]
# ## 3. What the norm takes away
#
# Almost nothing. The norm subtracts the three together with the mean, and divides the ten out with the
# standard deviation. Only the 1e-5 that is added to the variance is now smaller relative to it, which
# moves the logits by less than a thousandth.

# %%
x = real.embed(ids)
for block in real.blocks:
    x = block(x)
change = (real.head(real.ln_f(10 * x + 3)) - real(ids)).abs().max()
print(f"the logits change by {change:.0e}")
assert 0 < change < 1e-3
