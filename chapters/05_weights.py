# %% [markdown]
# # 5. Weights
#
# **You are here:** the lecture · messages → tokens → attention → network → **weights** → head → last token → freezing → loss → finetuning → use
#
# The network of chapter 4 can write English only because of its weights: the numbers in its tables and
# matrices, which were learned from a large amount of text. Loading them seems easy: they only have to
# be copied from a file. But a loader can put in a matrix the wrong way round. Then there is no error,
# and the network still writes sentences. How would you notice?
#
# **At the end you will know** what is in a model's files, how to load them, which mistake the shapes
# cannot reveal, and how a second, independent program reveals it.
#
# **Reading time:** 25 minutes. **Running time:** a few seconds, offline.

# %%
import math

import numpy as np
import torch
from matplotlib.figure import Figure
from safetensors.numpy import load_file

from gpt2_from_scratch import (
    CONTINUATION,
    GPT2,
    PROMPT,
    Tokenizer,
    greedy_continuation,
    load_gpt2,
    load_messages,
    model_folder,
    names_on_disk,
    open_arrays,
)
from gpt2_from_scratch.course import picture, setting, show

MODEL, DATA = setting("mini")  # "124M": OpenAI's model. DATA: the SMS Spam Collection

# %% [markdown]
# ## What is in the files?
#
# A model's folder contains the sizes of the network, the files of the tokenizer (chapter 2), and the
# weights: a few dozen arrays of numbers, each with a name. OpenAI stores the arrays in a TensorFlow
# checkpoint. Hugging Face, a company from whose site people download models, stores them in one file,
# `model.safetensors`. Neither format can contain a program. (Many older model files are Python
# pickles, and opening a pickle can run any program. This package never opens one.)
#
# The next cell reads the arrays. If they come from OpenAI's files, it gives them Hugging Face's names,
# so that the rest of the chapter is the same for both.

# %%
torch.set_grad_enabled(False)  # nothing is trained in this chapter
torch.set_default_dtype(torch.float64)  # 64-bit numbers: differences are mistakes, not rounding
folder = model_folder(MODEL)
model = load_gpt2(MODEL).double()
if (folder / "model.safetensors").exists():
    arrays = load_file(folder / "model.safetensors")
else:  # OpenAI writes model/h0/ln_1/g for h.0.ln_1.weight
    opened = open_arrays(folder)
    arrays = {}
    for openai_name, name in names_on_disk(model.config).values():
        arrays[name] = opened[openai_name].reshape(opened[openai_name].shape[-2:])
print(f"{len(arrays)} arrays with {sum(array.size for array in arrays.values()):,} numbers")

# %% [markdown]
# Now we compare the names and shapes in the file with those of our network. `names_on_disk` is the
# package's table of names. We print the first block only, because all blocks have the same arrays.

# %%
stored_name = {ours: names[1] for ours, names in names_on_disk(model.config).items()}
for ours, name in stored_name.items():
    if not ours.startswith("blocks.") or ours.startswith("blocks.0."):
        shape = tuple(model.get_parameter(ours).shape)
        print(f"{name:<22} {arrays[name].shape!s:<12} -> {ours:<28} {shape}")

# %% [markdown]
# The names are easy to match. But look at the shapes: do you see what is different?

# %% [markdown]
# ## Matrices are stored the other way round
#
# The four matrices of each block have their two sizes swapped: `c_attn` is (256, 768) in the file and
# (768, 256) in the network. OpenAI's code computes `x @ w`, so its matrices are (in, out). PyTorch's
# `nn.Linear` computes `x @ w.T`, so its matrices are (out, in). Each of the four has to be transposed.
#
# No array is called `head`. It is not needed, because the head is the table `wte` (chapter 4).

# %%
stored = torch.from_numpy(arrays["h.0.attn.c_attn.weight"])
loaded = model.blocks[0].attn.c_attn.weight
print("stored:           ", [f"{number:.3f}" for number in stored[0, :4].tolist()])
print("loaded, first row:", [f"{number:.3f}" for number in loaded[0, :4].tolist()])
print("loaded, column:   ", [f"{number:.3f}" for number in loaded[:4, 0].tolist()])

# %% [markdown]
# The first row in the file has become the first column in the network.

# %% [markdown]
# ## A loader
#
# This is all that a loader has to do: go through the parameters of a new network, take the array with
# the right name, transpose it if it is one of these matrices, and copy it. We also keep a list of the
# arrays, and remove each one that was used. At the end the list should be empty.

# %%
network = GPT2(model.config)  # with random weights
unused = set(arrays)
for ours, parameter in network.named_parameters():
    value = torch.from_numpy(arrays[stored_name[ours]])
    if ours.startswith("blocks.") and value.dim() == 2:
        value = value.T  # (in, out) -> (out, in)
    if value.shape != parameter.shape:
        raise ValueError(f"{ours} has another shape")
    parameter.copy_(value)
    unused.remove(stored_name[ours])
print("arrays that were not used:", unused or "none")

# %%
tokenizer = Tokenizer(folder)
texts = [tokenizer.encode(message.text) for message in load_messages(DATA)[:20]]
ids = torch.tensor([texts[0]])  # (1, T)
print("largest difference from load_gpt2:", float((network(ids) - model(ids)).abs().max()))

# %% [markdown]
# Our loader and the package's give the same logits. This is the package's:

# %%
show(load_gpt2)

# %% [markdown]
# It adds more reasons to stop. It raises an error if an array is missing, is not used, has another
# shape, or contains a number that is not finite. It also compares checksums, because a file can be
# damaged during a download. And it does not spend time on random weights that are replaced at once.

# %% [markdown]
# ## A mistake that raises no error
#
# Shapes protect us from most mistakes. If you forget to transpose `c_attn`, the shapes do not match
# and the loader stops. But `attn.c_proj` is square: it has C rows and C columns, and so has its
# transpose. Let us forget to transpose this matrix in the last block, and see what happens. One of the
# two texts below is from the right network. Which one would you choose?

# %%
wrong = load_gpt2(MODEL).double()
matrix = model.blocks[-1].attn.c_proj.weight
wrong.blocks[-1].attn.c_proj.weight.copy_(matrix.T)
print("shapes:", tuple(matrix.shape), tuple(matrix.T.shape))
for one in (wrong, model):
    print(repr(PROMPT + greedy_continuation(one, tokenizer, PROMPT, 15)))

# %% [markdown]
# The first text is from the wrong network. There was no error, and the text looks as good as the other
# one. (For OpenAI's 124M the right text is known, and `gpt2-classifier verify 124M` compares it.)
#
# An impression is not enough, so we measure. How well does each network predict real messages? For
# each token, take the probability that the network gave to the token that really came next. If it is
# one half, we say that the network needed 1 bit for this token. For one quarter it needed 2 bits, for
# one eighth 3 bits. Fewer bits are better.


# %%
def bits_per_token(network):
    bits = []
    for text in texts:
        probabilities = network(torch.tensor([text]))[0].softmax(dim=1)  # (T, V)
        for position in range(len(text) - 1):
            next_token = text[position + 1]
            bits.append(-math.log2(probabilities[position, next_token]))
    return sum(bits) / len(bits)


right_bits = bits_per_token(model)
wrong_bits = bits_per_token(wrong)
print(f"right: {right_bits:.2f} bits per token, wrong: {wrong_bits:.2f}")

# %% [markdown]
# The wrong network needs more bits. But that helps only if you know how many bits the right network
# needs. If you had only the wrong network, would its number worry you?

# %% [markdown]
# ## A witness that shares no code
#
# So we need a witness that knows the right logits. We write GPT-2 a second time, in numpy: with no
# torch, and none of the code of chapter 4. Programmers call such a second program an *oracle*. Two
# programs that share no code rarely make the same mistake. If both give the same logits, both are
# probably correct.
#
# The oracle uses the arrays exactly as they are stored, for `x @ w`. So there is no matrix that it
# could forget to transpose.


# %%
w = {name: array.astype(np.float64) for name, array in arrays.items()}


def linear(x, name):
    return x @ w[f"{name}.weight"] + w[f"{name}.bias"]


def norm(x, name):
    mean = x.mean(axis=1, keepdims=True)
    deviation = np.sqrt(x.var(axis=1, keepdims=True) + 1e-5)
    return w[f"{name}.weight"] * (x - mean) / deviation + w[f"{name}.bias"]


def softmax(x):
    exponentials = np.exp(x)
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


# %% [markdown]
# These are the four small tools. Attention follows the steps of chapter 3, one head after the other:


# %%
def attend(x, n):
    T, C = x.shape
    D = C // model.config.n_head
    is_later = np.triu(np.ones((T, T)), 1) == 1
    queries, keys, values = np.split(linear(x, f"h.{n}.attn.c_attn"), 3, axis=1)
    results = []
    for head in range(model.config.n_head):
        columns = slice(head * D, (head + 1) * D)
        scores = queries[:, columns] @ keys[:, columns].T / np.sqrt(D)
        scores[is_later] = -np.inf
        results.append(softmax(scores) @ values[:, columns])
    return linear(np.concatenate(results, axis=1), f"h.{n}.attn.c_proj")


# %% [markdown]
# And the network puts the parts together: embeddings, blocks, a last norm, and `wte` once more.


# %%
def oracle(token_ids):
    x = w["wte.weight"][token_ids] + w["wpe.weight"][: len(token_ids)]  # (T, C)
    for n in range(model.config.n_layer):
        x = x + attend(norm(x, f"h.{n}.ln_1"), n)
        wide = gelu(linear(norm(x, f"h.{n}.ln_2"), f"h.{n}.mlp.c_fc"))  # (T, 4C)
        x = x + linear(wide, f"h.{n}.mlp.c_proj")
    return norm(x, "ln_f") @ w["wte.weight"].T  # (T, V)


expected = torch.from_numpy(oracle(texts[0]))
right_logits = model(ids)[0]
wrong_logits = wrong(ids)[0]
print(f"right network: differs from the oracle by {(right_logits - expected).abs().max():.0e}")
print(f"wrong network: differs from the oracle by {(wrong_logits - expected).abs().max():.0e}")

# %% [markdown]
# Now we no longer have to guess. The right network agrees with the oracle, except for rounding in the
# last digits. The wrong one does not. The picture shows the logits at the last position of the
# message. Each point is a token of the vocabulary.

# %%
figure = Figure(figsize=(8, 3.9), layout="constrained")
left, right = figure.subplots(1, 2, sharex=True, sharey=True)
left.scatter(expected[-1], right_logits[-1], s=3, color="#0072B2")
left.set(title="Right: all points are on the line", ylabel="logit of the network")
right.scatter(expected[-1], wrong_logits[-1], s=3, color="#D55E00")
right.set(title="One matrix transposed: a cloud")
for axes in (left, right):
    axes.axline((0, 0), slope=1, color="#404040", linewidth=0.8)
    axes.set_xlabel("logit of the oracle")
picture(figure, "05-logits")

# %% [markdown]
# The cloud follows the line: a token with a high logit often has a high one in the wrong network too.
# This is why the wrong network still writes English, and why it is not enough to look at its text.

# %% [markdown]
# ## What you know now
#
# - A model's file contains arrays with names. Each of them belongs to one parameter of the network.
# - OpenAI's matrices are stored as (in, out), and those of `nn.Linear` are (out, in). So they must be
#   transposed.
# - Shapes reveal most mistakes, but not the transpose of a square matrix.
# - A wrong network can still write plausible text. It predicts real messages worse, but to notice this
#   you must know how well the right one does.
# - An oracle, a second program that shares no code, knows the right logits.

# %% [markdown]
# ## Checks
#
# These cells check what the chapter said. They are folded in the notebook; an error here means that
# something is wrong.

# %% check
assert sorted(stored_name.values()) == sorted(arrays), "each array is used exactly once"
parameters = dict(model.named_parameters())
assert set(stored_name) == set(parameters) and model.head.weight is model.wte.weight
assert sum(parameter.numel() for parameter in parameters.values()) == sum(
    array.size for array in arrays.values()
)
print(f"checked: {len(arrays)} arrays for {len(parameters)} parameters, one for each")

# %% check
transposed = 0
for ours, parameter in parameters.items():
    array = arrays[stored_name[ours]].astype(np.float64)
    is_matrix_of_block = ours.startswith("blocks.") and array.ndim == 2
    assert np.array_equal(parameter.numpy(), array.T if is_matrix_of_block else array)
    transposed += is_matrix_of_block
assert transposed == 4 * model.config.n_layer and not unused
print(f"checked: {transposed} matrices are transposed, four per block, and nothing else")

# %% check
for text in texts:
    assert np.abs(oracle(text) - model(torch.tensor([text]))[0].numpy()).max() < 1e-4
assert torch.equal(network(ids), model(ids))
print(f"checked: all logits of {len(texts)} messages equal the oracle's")

# %% check
right_shapes = [parameter.shape for parameter in model.parameters()]
assert [parameter.shape for parameter in wrong.parameters()] == right_shapes
assert (wrong_logits - expected).abs().max() > 0.1, "the oracle notices"
assert wrong_bits > right_bits, "the bits per token notice"
text_of_right = greedy_continuation(model, tokenizer, PROMPT, 15)
text_of_wrong = greedy_continuation(wrong, tokenizer, PROMPT, 15)
assert MODEL != "mini" or text_of_wrong != text_of_right, "the texts differ"
assert MODEL != "124M" or text_of_right == CONTINUATION
print("checked: the shapes are equal; the oracle, the bits and the text differ")

# %% check
leans = torch.corrcoef(torch.stack([expected[-1], wrong_logits[-1]]))[0, 1]
assert 0.1 < leans < 0.999
print("checked: the wrong logits are related to the right ones, but far from equal")

# %% [markdown]
# ## Exercises
#
# 1. (easy) Swap `ln_1` and `ln_2` of the first block. Do the shapes reveal it? How many bits per token does
#    it cost?
#    <details><summary>Hint</summary>`block.ln_1, block.ln_2 = block.ln_2, block.ln_1`</details>
# 2. (medium) Save a tiny model with `save_gpt2`, change one bit of its file, and load it. Is there an
#    error? Is there one if the folder has a file `SHA256SUMS`?
#    <details><summary>Hint</summary>A line of that file is `sha256_of(path)`, two spaces, the name.</details>
# 3. (hard) Leave out the transpose of `attn.c_proj` in each block in turn. In which blocks would you not
#    notice it in the text?
#    <details><summary>Hint</summary>Print the text, the bits per token and the change of the logits.</details>
#
# Solutions: [`solutions/05_weights.py`](solutions/05_weights.py).
