# %% [markdown]
# # 5. Weights
#
# The network of chapter 4 is useless without its trained weights, and a loader can put them in the
# wrong place without any error. So we look at the weights, and prove that each is where it belongs.
#
# **At the end you will know** what is in a model's files, which mistake the shapes cannot reveal, and
# how an independent program, a known text and a checksum find mistakes. **Time:** a few seconds,
# offline.

# %%
import re
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from safetensors.numpy import load_file

from gpt2_from_scratch import (
    CONTINUATION,
    GPT2,
    PROMPT,
    GPT2Config,
    GPT2Error,
    Tokenizer,
    greedy_continuation,
    load_gpt2,
    load_messages,
    model_folder,
    names_on_disk,
    open_arrays,
    save_gpt2,
    sha256_of,
)
from gpt2_from_scratch.course import setting, show

MODEL, DATA = setting("mini")  # "124M": OpenAI's model. DATA: the SMS Spam Collection
_ = torch.set_grad_enabled(False)  # nothing is trained here

# %% [markdown]
# ## Names and shapes
#
# A model's folder contains `hparams.json` (the five sizes of the network), `vocab.bpe` and
# `encoder.json` (chapter 2), and the arrays. OpenAI stores the arrays in a TensorFlow checkpoint,
# `model.ckpt.*`. The miniature stores them in `model.safetensors`, under Hugging Face's names. The
# package reads both without TensorFlow. It does not use pickle either, because loading a pickle file
# can run any program.

# %%
folder, model = model_folder(MODEL), load_gpt2(MODEL).double()  # float64: small rounding errors
tokenizer, openai = Tokenizer(folder), not (folder / "model.safetensors").exists()
arrays = open_arrays(folder) if openai else load_file(folder / "model.safetensors")
names = {ours: pair[0 if openai else 1] for ours, pair in names_on_disk(model.config).items()}
for ours, theirs in names.items():
    if "blocks" not in ours or ".0." in ours:
        shape = tuple(model.get_parameter(ours).shape)
        print(f"{theirs:<24} {arrays[theirs].shape!s:<15} {ours} {shape}")

# %% [markdown]
# The matrices of a block are stored as (in, out), for a product `x @ w`. `nn.Linear` stores (out, in),
# so each of them must be transposed. No output head is stored, because it is the same table as `wte`.
# The loader raises an error if an array is missing, is not used, has another shape, or contains NaN or
# infinity.

# %%
show(load_gpt2)

# %% check
assert sorted(names.values()) == sorted(arrays), "each array is used exactly once"
assert {*names} == {*dict(model.named_parameters())} and model.head.weight is model.wte.weight
print(f"checked: {len(arrays)} arrays for {len(names)} parameters, one for each")

# %% [markdown]
# ## An oracle
#
# An oracle is a second program that computes the same thing and shares no code with the first. Ours
# is GPT-2 in numpy. It does not use torch, and it has its own names. It uses the matrices of the
# blocks as they are stored, for `x @ w`, so it cannot forget to transpose one. In each block, `e`
# holds the exponentials of the attention scores; `np.tri` sets those of later tokens to 0, and
# dividing each row by its sum completes the softmax.


# %%
def oracle(w, ids, n_layer, n_head):
    def norm(x, gain, shift):
        return gain * ((x.T - x.mean(axis=1)) / np.sqrt(x.var(axis=1) + 1e-5)).T + shift

    x = w["wte"][ids] + w["wpe"][: len(ids)]  # (T, C)
    for n in range(n_layer):
        h = {name.removeprefix(f"h{n}."): a for name, a in w.items() if name.startswith(f"h{n}.")}
        qkv = norm(x, h["ln_1"], h["ln_1.b"]) @ h["attn.c_attn"] + h["attn.c_attn.b"]  # (T, 3C)
        q, k, v = (np.stack(np.split(a, n_head, 1)) for a in np.split(qkv, 3, 1))  # (H, T, D)
        e = np.tri(len(ids)) * np.exp(q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[2]))  # (H, T, T)
        x = x + np.hstack([*(e / e.sum(2)[..., None] @ v)]) @ h["attn.c_proj"] + h["attn.c_proj.b"]
        m = norm(x, h["ln_2"], h["ln_2.b"]) @ h["mlp.c_fc"] + h["mlp.c_fc.b"]  # (T, 4C)
        m = m / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (m + 0.044715 * m**3)))
        x = x + m @ h["mlp.c_proj"] + h["mlp.c_proj.b"]
    return norm(x, w["ln_f"], w["ln_f.b"]) @ w["wte"].T  # (T, V)


w = {}  # "model/h0/ln_1/b" and "h.0.ln_1.bias" become "h0.ln_1.b"; "/g", "/w", ".weight" go
for name, array in arrays.items():
    name = re.sub(r"^model/|[./](weight|w|g)$", "", name).replace("/", ".").replace("h.", "h")
    w[name.replace("bias", "b")] = array.astype(np.float64).reshape(array.shape[-2:])
texts = [torch.tensor(tokenizer.encode(message.text)) for message in load_messages(DATA)[:20]]
expected = torch.from_numpy(oracle(w, texts[0], model.config.n_layer, model.config.n_head))
print(f"the oracle's logits {tuple(expected.shape)}, the largest {expected.abs().max():.0f}")

# %% check
assert (model(texts[0][None])[0] - expected).abs().max() < 1e-4
print("checked: all logits of a message equal the oracle's")

# %% [markdown]
# ## What the shapes cannot reveal
#
# `attn.c_proj` is square, so it has the same shape whether or not it is transposed. Here we leave out
# the transpose in the first block only. The generated text and the loss (in bits per token, on 20
# messages) become worse, but you would notice that only if you knew how good they should be. (For
# OpenAI's 124M the correct text is known, and `gpt2-classifier verify 124M` compares it.) The oracle
# knows the logits themselves.

# %%
planted = load_gpt2(MODEL).double()
planted.blocks[0].attn.c_proj.weight.copy_(model.blocks[0].attn.c_proj.weight.T)
found = []
for one in (model, planted):
    off = (one(texts[0][None])[0] - expected).abs().max()
    p = [one(ids[None])[0].softmax(dim=1)[range(len(ids) - 1), ids[1:]] for ids in texts]
    bits = -torch.cat(p).log2().mean()
    found.append((off, bits, greedy_continuation(one, tokenizer, PROMPT, 15)))
    print(f"off by {off:.0e}, {bits:.2f} bits per token: {PROMPT + found[-1][2]!r}")

# %% check
assert [p.shape for p in planted.parameters()] == [p.shape for p in model.parameters()]
(off, bits, text), (off_2, bits_2, text_2) = found
assert off < 1e-4 < 0.1 < off_2 and bits + 0.1 < bits_2 and text != text_2
assert MODEL != "124M" or text == CONTINUATION
print("checked: the shapes are equal; the oracle, the text and the loss reveal the mistake")

# %% [markdown]
# Files can also be damaged during a download or on a disk. OpenAI's checkpoint has an index file
# with a checksum of each array. A safetensors file contains none, so the miniature's folder has a
# file `SHA256SUMS`. A tiny model shows what happens if a single bit changes, first without that
# file and then with it.

# %% check
torch.manual_seed(123)
with TemporaryDirectory() as name:
    path = Path(name) / "model.safetensors"
    save_gpt2(GPT2(GPT2Config(n_vocab=300, n_ctx=8, n_embd=8, n_head=2, n_layer=1)), path.parent)
    raw, sums = path.read_bytes(), f"{sha256_of(path)}  {path.name}\n"
    path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    load_gpt2(path.parent)  # without a checksum there is no error
    (path.parent / "SHA256SUMS").write_text(sums)
    try:
        refused = f"not refused: {load_gpt2(path.parent)}"
    except GPT2Error as error:
        refused = str(error).replace(str(path), path.name)
assert "the file was changed" in refused
print(f"checked: one of {len(raw):,} bytes was changed: {refused}")

# %% [markdown]
# ## Exercises
#
# 1. Swap `ln_1` and `ln_2` of the first block. Do the shapes reveal it? How many bits per token does
#    it cost?
# 2. Leave out the transpose in each block in turn. In which blocks would you not see it in the text?
# 3. Save the model with `save_gpt2` as `torch.float16` and as `torch.bfloat16`. Which of the two comes
#    back unchanged?
#
# Solutions: [`solutions/05_weights.py`](solutions/05_weights.py).
