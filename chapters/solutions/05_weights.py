# %% [markdown]
# # Solutions to chapter 5

# %%
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from gpt2_from_scratch import (
    PROMPT,
    Tokenizer,
    greedy_continuation,
    load_gpt2,
    load_messages,
    model_folder,
    save_gpt2,
)

torch.set_grad_enabled(False)
tokenizer = Tokenizer(model_folder("mini"))
texts = [torch.tensor(tokenizer.encode(m.text)) for m in load_messages("sms")[:20]]


def bits_per_token(model):
    p = [model(ids[None])[0].softmax(dim=1)[range(len(ids) - 1), ids[1:]] for ids in texts]
    return float(-torch.cat(p).log2().mean())


right = load_gpt2("mini")
bits = bits_per_token(right)

# %% [markdown]
# ## 1. Two norms swapped
#
# The shapes do not reveal it: both norms have C gains and C shifts. The biases of the two `c_proj` have
# this shape too. So six arrays of a block have the same shape as another one, and a wrong table of
# names could swap any of them without an error.

# %%
swapped = load_gpt2("mini")
block = swapped.blocks[0]
block.ln_1, block.ln_2 = block.ln_2, block.ln_1
shapes = [tuple(parameter.shape) for parameter in block.parameters()]
twins = sum(shapes.count(shape) > 1 for shape in shapes)
cost = bits_per_token(swapped) - bits
print(f"{bits:.2f} bits per token, {cost:.2f} more when swapped; {twins} arrays share a shape")
assert [p.shape for p in swapped.parameters()] == [p.shape for p in right.parameters()]
assert twins == 6 and cost > 0.1

# %% [markdown]
# ## 2. The transpose, block by block
#
# The mistake costs most in the first two blocks, because all later blocks build on them. In the other
# blocks the text still reads like most texts of the miniature, and the loss is only a little worse, so
# nobody would suspect a mistake. But in every case the logits of one message change far more than
# rounding could explain, and the oracle detects that.

# %%
costs, logits = [], right(texts[0][None])
for n in range(right.config.n_layer):
    planted = load_gpt2("mini")
    planted.blocks[n].attn.c_proj.weight.copy_(right.blocks[n].attn.c_proj.weight.T)
    costs.append(bits_per_token(planted) - bits)
    off = (planted(texts[0][None]) - logits).abs().max()
    text = greedy_continuation(planted, tokenizer, PROMPT, 15)
    print(f"block {n}: {costs[-1]:+.2f} bits, logits off by {off:.1f}: {PROMPT + text!r}")
    assert off > 0.1
assert min(costs[:2]) > 0.5 > max(costs[2:])

# %% [markdown]
# ## 3. Half the bits
#
# The float16 copy comes back unchanged, because the miniature's file is in float16 already, so float16
# can represent each of its numbers. bfloat16 keeps 8 significant bits of each number and float16 keeps
# 11. So most numbers change in bfloat16, and the logits change with them.

# %%
moved = {}
for dtype in (torch.float16, torch.bfloat16):
    with TemporaryDirectory() as folder:
        save_gpt2(right, Path(folder), dtype)
        moved[dtype] = float((load_gpt2(folder)(texts[0][None]) - logits).abs().max())
    print(f"{dtype}: the logits change by {moved[dtype]:.1e}")
assert moved[torch.float16] == 0 and moved[torch.bfloat16] > 1e-3
