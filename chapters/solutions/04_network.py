# %% [markdown]
# # Solutions to chapter 4

# %%
import copy

import torch
import torch.nn.functional as F

from gpt2_from_scratch import GPT2, Tokenizer, init_weights, load_gpt2, model_folder
from gpt2_from_scratch.course import setting

MODEL, DATA = setting("mini")  # "124M": OpenAI's model. DATA: the SMS Spam Collection
torch.set_grad_enabled(False)
model = load_gpt2(MODEL).double()
tokenizer = Tokenizer(model_folder(MODEL))
ids = torch.tensor([tokenizer.encode("Claim your prize before midnight")])

# %% [markdown]
# ## 1. What the norm takes away
#
# > Multiply the stream by ten and add three, just before the final norm. What happens to the logits?
# > Guess first.
#
# Almost nothing. The norm subtracts the three together with the mean, and it divides by a standard
# deviation that is also ten times as large. Only the 1e-5 that is added to the variance counts for
# less now, and that moves the logits by far less than a thousandth.

# %%
x = model.embed(ids)
for block in model.blocks:
    x = block(x)
logits = model.head(model.ln_f(x))
moved = model.head(model.ln_f(10 * x + 3))
print(f"the logits change by {(moved - logits).abs().max():.0e}")
assert torch.equal(logits, model(ids))
assert 0 < (moved - logits).abs().max() < 1e-3

# %% [markdown]
# ## 2. Order without positions
#
# > Set `wpe` to zero and shuffle all tokens except the last. Does the last token's vector change after
# > one block? After two?
#
# After one block nothing has changed. Without `wpe` the last token sees a bag of tokens, and a sum
# does not depend on their order. After two blocks it has changed. Each of the *other* tokens sees only
# those before it, so what it collected in the first block depends on its place. The mask alone
# therefore gives the network some information about the order.

# %%
without_positions = copy.deepcopy(model)
without_positions.wpe.weight.zero_()
order = torch.randperm(ids.shape[1] - 1, generator=torch.Generator().manual_seed(1)).tolist()
shuffled = ids[:, [*order, ids.shape[1] - 1]]
print(tokenizer.decode(shuffled[0].tolist()))
assert not torch.equal(ids, shuffled) and ids[0, -1] == shuffled[0, -1]
changes = []
x = without_positions.embed(ids)
y = without_positions.embed(shuffled)
for n, block in enumerate(without_positions.blocks):
    x = block(x)
    y = block(y)
    changes.append(float((x - y)[0, -1].abs().max()))
    print(f"after block {n} the last token's vector differs by {changes[n]:.0e}")
assert changes[0] < 1e-9 and changes[1] > 1e-3

# %% [markdown]
# ## 3. Which mistakes a test sees
#
# > Make these mistakes on purpose: the exact GELU, C - 1 instead of C in the variance, no square root
# > of D in attention, a transposed `attn.c_proj`. How far do the logits move with the real weights,
# > and with untrained ones?
#
# Untrained weights ("untrained" below) have a standard deviation of 0.02 or less. With them, attention
# gives all tokens about the same weight, and GELU is nearly a straight line. So a test that allows a
# difference of 0.01 misses two of the four mistakes. With the real weights each mistake moves the
# logits at least five times as far. The wrong GELU is still the smallest mistake, at about 0.01. This
# is why the tests of this project use real or large weights, and allow a difference of 0.0001.


# %%
def logits_with(model, gelu="tanh", correction=0, divide=True, transpose=False):
    def norm(x, ln):
        variance = x.var(dim=-1, keepdim=True, correction=correction)
        return ln.weight * (x - x.mean(dim=-1, keepdim=True)) / (variance + 1e-5).sqrt() + ln.bias

    x = model.embed(ids)
    for n, block in enumerate(model.blocks):
        q, k, v = block.attn.c_attn(norm(x, block.ln_1)).split(x.shape[2], dim=2)
        if not divide:
            q = q * (x.shape[2] // block.attn.n_head) ** 0.5
        heads = block.attn.attend(torch.cat([q, k, v], dim=2))
        c_proj = block.attn.c_proj
        matrix = c_proj.weight if transpose and n == 0 else c_proj.weight.T
        x = x + heads @ matrix + c_proj.bias
        wide = F.gelu(block.mlp.c_fc(norm(x, block.ln_2)), approximate=gelu)
        x = x + block.mlp.c_proj(wide)
    return norm(x, model.ln_f) @ model.wte.weight.T


untrained = GPT2(model.config).double()
init_weights(untrained, torch.Generator().manual_seed(123))
for network in (model, untrained):
    assert (logits_with(network) - network(ids)).abs().max() < 1e-9, "right without a mistake"

# %%
mistakes = {
    "exact GELU": {"gelu": "none"},
    "C - 1": {"correction": 1},
    "no square root": {"divide": False},
    "transposed": {"transpose": True},
}
real_change = {}
untrained_change = {}
for name, mistake in mistakes.items():
    real_change[name] = (logits_with(model, **mistake) - model(ids)).abs().max()
    untrained_change[name] = (logits_with(untrained, **mistake) - untrained(ids)).abs().max()
    print(f"{name:<15} real {real_change[name]:.0e}   untrained {untrained_change[name]:.0e}")
    assert real_change[name] > 5 * untrained_change[name]
assert untrained_change["exact GELU"] < 1e-3 and untrained_change["C - 1"] < 1e-2
assert 1e-3 < real_change["exact GELU"] < 1e-1
