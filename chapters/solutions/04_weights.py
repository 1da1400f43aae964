# %% [markdown]
# # Solutions to chapter 4

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
texts = [torch.tensor(tokenizer.encode(m.text)) for m in load_messages("demo")[:20]]


def bits_per_token(model):
    p = [model(ids[None])[0].softmax(dim=1)[range(len(ids) - 1), ids[1:]] for ids in texts]
    return float(-torch.cat(p).log2().mean())


right = load_gpt2("mini")
bits = bits_per_token(right)

# %% [markdown]
# ## 1. Two norms swapped
#
# No shape tells: both norms have C gains and C shifts. So do the biases of both `c_proj`: six
# arrays of a block have a twin, any of which a wrong name map could swap unseen.

# %%
swapped = load_gpt2("mini")
block = swapped.blocks[0]
block.ln_1, block.ln_2 = block.ln_2, block.ln_1
shapes = [tuple(parameter.shape) for parameter in block.parameters()]
twins = sum(shapes.count(shape) > 1 for shape in shapes)
cost = bits_per_token(swapped) - bits
print(f"{bits:.2f} bits a token, {cost:.2f} more when swapped; {twins} arrays with a twin")
assert [p.shape for p in swapped.parameters()] == [p.shape for p in right.parameters()]
assert twins == 6 and cost > 0.1

# %% [markdown]
# ## 2. The transpose, block by block
#
# The first block costs most: all others build on it. In the last ones the text still reads like any
# text of the miniature, and the loss is little worse: nobody would suspect anything. The logits of one
# message differ far more than rounding does in every case, which the oracle sees.

# %%
costs, logits = [], right(texts[0][None])
for n in range(right.config.n_layer):
    planted = load_gpt2("mini")
    planted.blocks[n].attn.c_proj.weight.copy_(right.blocks[n].attn.c_proj.weight.T)
    costs.append(bits_per_token(planted) - bits)
    off = (planted(texts[0][None]) - logits).abs().max()
    text = greedy_continuation(planted, tokenizer, PROMPT, 15)
    print(f"block {n}: {costs[-1]:+.2f} bits, logits off by {off:.1f}, {PROMPT + text!r}")
    assert off > 0.1
assert costs[0] == max(costs) > 0.5 and costs[-1] < 0.3

# %% [markdown]
# ## 3. Half the bits
#
# float16 comes back unchanged, because the miniature is stored as float16: each of its numbers is
# one that float16 has. bfloat16 keeps 8 bits of each number where float16 keeps 11, so all but a
# few change, and the logits with them.

# %%
moved = {}
for dtype in (torch.float16, torch.bfloat16):
    with TemporaryDirectory() as folder:
        save_gpt2(right, Path(folder), dtype)
        moved[dtype] = float((load_gpt2(folder)(texts[0][None]) - logits).abs().max())
    print(f"{dtype}: the logits move by {moved[dtype]:.1e}")
assert moved[torch.float16] == 0 and moved[torch.bfloat16] > 1e-3
