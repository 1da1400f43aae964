# %% [markdown]
# # Solutions to chapter 5

# %%
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from gpt2_from_scratch import (
    GPT2,
    PROMPT,
    GPT2Config,
    GPT2Error,
    Tokenizer,
    greedy_continuation,
    load_gpt2,
    load_messages,
    model_folder,
    save_gpt2,
    sha256_of,
)
from gpt2_from_scratch.course import setting

MODEL, DATA = setting("mini")  # "124M": OpenAI's model. DATA: the SMS Spam Collection
torch.set_grad_enabled(False)
model = load_gpt2(MODEL)
tokenizer = Tokenizer(model_folder(MODEL))
texts = [torch.tensor(tokenizer.encode(message.text)) for message in load_messages(DATA)[:20]]


def bits_per_token(network):
    bits = []
    for ids in texts:
        log_probabilities = network(ids[None])[0].log_softmax(dim=1)  # (T, V)
        next_tokens = ids[1:, None]
        bits.append(-log_probabilities[:-1].gather(1, next_tokens) / torch.log(torch.tensor(2.0)))
    return float(torch.cat(bits).mean())


right_bits = bits_per_token(model)
right_logits = model(texts[0][None])

# %% [markdown]
# ## 1. Two norms swapped
#
# > Swap `ln_1` and `ln_2` of the first block. Do the shapes reveal it? How many bits per token does it
# > cost?
#
# The shapes do not reveal it: both norms have C gains and C shifts. The biases of the two `c_proj`
# have this shape too. So six arrays of a block have the same shape as another one, and a wrong table
# of names could swap any of them without an error. But the network predicts messages much worse.

# %%
swapped = load_gpt2(MODEL)
block = swapped.blocks[0]
block.ln_1, block.ln_2 = block.ln_2, block.ln_1
shapes = [tuple(parameter.shape) for parameter in block.parameters()]
same_shape = [shape for shape in shapes if shapes.count(shape) > 1]
cost = bits_per_token(swapped) - right_bits
print(f"{right_bits:.2f} bits per token, {cost:.2f} more when swapped")
print(f"{len(same_shape)} of the {len(shapes)} arrays of a block share their shape")
assert [p.shape for p in swapped.parameters()] == [p.shape for p in model.parameters()]
assert len(same_shape) == 6 and cost > 0.1

# %% [markdown]
# ## 2. A single changed bit
#
# > Save a tiny model with `save_gpt2`, change one bit of its file, and load it. Is there an error? Is
# > there one if the folder has a file `SHA256SUMS`?
#
# Without that file there is no error: a changed bit in a weight gives another number, and every number
# could be right. With it, the checksum of the file is compared, and a single changed bit changes the
# checksum completely. OpenAI's checkpoint contains a checksum of each array. A safetensors file
# contains none, so the folder of the miniature has a file `SHA256SUMS`.

# %%
torch.manual_seed(123)
tiny = GPT2(GPT2Config(n_vocab=300, n_ctx=8, n_embd=8, n_head=2, n_layer=1))
refused = ""
with TemporaryDirectory() as name:
    folder = Path(name)
    save_gpt2(tiny, folder)
    path = folder / "model.safetensors"
    line = f"{sha256_of(path)}  {path.name}\n"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))  # ^ 1 changes the last bit
    changed = load_gpt2(folder)  # no error
    (folder / "SHA256SUMS").write_text(line)
    try:
        load_gpt2(folder)
    except GPT2Error as error:
        refused = str(error).replace(str(path), path.name)
differing = 0
for before, after in zip(tiny.parameters(), changed.parameters(), strict=True):
    differing += int((before != after).sum())
print(f"without the checksum: loaded; numbers that differ: {differing}")
print(f"with the checksum: {refused}")
assert differing == 1 and "the file was changed" in refused

# %% [markdown]
# ## 3. The transpose, block by block
#
# > Leave out the transpose of `attn.c_proj` in each block in turn. In which blocks would you not
# > notice it in the text?
#
# The mistake costs most in the first two blocks, because all later blocks build on them. In the other
# blocks the text reads like most texts of the miniature, and it needs only a few tenths of a bit more
# per token, so nobody would suspect a mistake. But in every case the logits of one message change far
# more than rounding could explain, and the oracle notices that.

# %%
costs = []
for n in range(model.config.n_layer):
    wrong = load_gpt2(MODEL)
    wrong.blocks[n].attn.c_proj.weight.copy_(model.blocks[n].attn.c_proj.weight.T)
    costs.append(bits_per_token(wrong) - right_bits)
    change = (wrong(texts[0][None]) - right_logits).abs().max()
    text = PROMPT + greedy_continuation(wrong, tokenizer, PROMPT, 15)
    print(f"block {n}: {costs[n]:+.2f} bits, logits change by {change:.1f}: {text!r}")
    assert change > 0.1
assert min(costs[:2]) > 0.5 > max(costs[2:]) or MODEL != "mini"
