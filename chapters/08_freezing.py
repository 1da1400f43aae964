# %% [markdown]
# # 8. What is trained, and what stays
#
# **You are here:** the lecture · messages → tokens → attention → network → weights → head → last token → **freezing** → loss → finetuning → use
#
# GPT-2 has learned a lot about language. Finetuning should keep most of that, and change only what the
# new task needs. So we freeze most parameters and train the others. Which ones is your decision.
# PyTorch does not make it for you, and it does not warn you if you make a mistake.
#
# **At the end you will know** how to freeze parameters, how a single missing letter can prevent it,
# what the lecture trains, which weights are really random before training, and how to prove that
# frozen weights have not changed.
#
# **Reading time:** 20 minutes. **Running time:** a few seconds, offline.

# %%
import torch
import torch.nn.functional as F
from torch import nn

from gpt2_from_scratch import (
    GPT2Error,
    Tokenizer,
    draw_ledgers,
    encode_texts,
    format_ledger,
    ledger,
    load_gpt2,
    load_messages,
    model_folder,
    pad_batch,
    replace_head,
    set_trainable,
    split_messages,
    tensors_sha256,
    trainable_names,
)
from gpt2_from_scratch.course import picture, setting

MODEL, DATA = setting("mini")  # "124M": OpenAI's model. DATA: the SMS Spam Collection

# %% [markdown]
# ## Freeze everything
#
# A model's parameters are stored in tensors: a weight and a bias for most layers. Each of these
# tensors has a switch, `requires_grad`. It says whether `backward()` computes a gradient for the
# tensor. (A gradient says how the loss, the measure of how wrong the answers are, would change if the
# tensor changed.) The optimizer, which changes the tensors in training, leaves a tensor without a
# gradient as it is. That is all that *frozen* means. In a loaded model, how many of the switches are
# on? Guess first.

# %%
model = load_gpt2(MODEL)
total = len(list(model.parameters()))
trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
print(f"{len(trainable)} of {total} tensors are trainable, for example {trainable[:3]}")

# %% [markdown]
# All of them. So the lecture begins by switching all of them off (27:22), in a loop like the next one.
# Read it closely, and then look at the count that it prints:

# %%
for parameter in model.parameters():
    parameter.require_grad = False
count = sum(parameter.requires_grad for parameter in model.parameters())
print(f"{count} of {total} tensors are trainable")

# %% [markdown]
# Nothing was frozen, because an "s" is missing: `require_grad` is not `requires_grad`. Python lets us
# put any new attribute on a tensor, so there is no error. The method `requires_grad_` is safer. One
# call freezes the whole model, and a misspelt method raises an error.

# %%
try:
    model.require_grad_(False)
except AttributeError as error:
    print("misspelt method:", error)
model.requires_grad_(False)
count = sum(parameter.requires_grad for parameter in model.parameters())
print(f"{count} of {total} tensors are trainable")

# %% [markdown]
# ## A new head can be trained
#
# Now the new head of chapter 6 replaces the old one. A new layer has `requires_grad=True` by default
# (28:50). So at this point the head is the only part that would be trained.

# %%
torch.manual_seed(123)
num_classes = 2
model.head = nn.Linear(model.config.n_embd, num_classes)
trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
print("trainable:", trainable)

# %% [markdown]
# The order matters. If the head is replaced first and everything is frozen afterwards, the head is
# frozen too, and it stays random during the whole training. Exercise 2 shows what happens then.

# %% [markdown]
# ## The last block and the final norm
#
# Why not train everything? The embeddings and the lower blocks have learned what all texts have in
# common, and a classifier needs that too (20:42). Each block that is trained also costs time and
# memory (22:27). So the lecture trains only the parts that are nearest to the answer: the head, the
# last block and the final norm (29:15). The head is trainable already, so we switch on the other two:

# %%
model.blocks[-1].requires_grad_(True)
model.ln_f.requires_grad_(True)
trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
print(len(trainable), "tensors are trainable:")
print("\n".join(trainable))

# %% [markdown]
# The package has one function for all of this, `set_trainable`. It freezes everything, and then
# unfreezes the head, the last blocks and the final norm. The function `ledger` counts the parameters
# of each part and says which are trainable. Read its table before you train. It would have shown at
# once that the misspelt loop froze nothing.

# %%
set_trainable(model, n_last_blocks=1, final_norm=True)
print(format_ledger(ledger(model)))

# %% [markdown]
# What would happen if we unfroze the old head? It is the table `wte` itself (chapter 6). That would
# also unfreeze the token embeddings, at the other end of the network. So `set_trainable` refuses:

# %%
try:
    set_trainable(load_gpt2(MODEL), n_last_blocks=1, final_norm=True)
except GPT2Error as error:
    print(error)

# %% [markdown]
# ## The lecturer's experiments
#
# The lecturer suggests trying other choices (29:59): train the last two blocks, or leave the final
# norm frozen. Training comes later, but we can already count. Guess: how many of all parameters does
# the final norm add, and how many does a second block add?

# %%
ledgers = {}
set_trainable(model, n_last_blocks=0, final_norm=False)
ledgers["head alone"] = ledger(model)
set_trainable(model, n_last_blocks=1, final_norm=False)
ledgers["no final norm"] = ledger(model)
set_trainable(model, n_last_blocks=1, final_norm=True)
ledgers["the lecture"] = ledger(model)
set_trainable(model, n_last_blocks=2, final_norm=True)
ledgers["two blocks"] = ledger(model)
model.requires_grad_(True)
ledgers["everything"] = ledger(model)
picture(draw_ledgers(ledgers), "08-ledgers")

# %% [markdown]
# The final norm has so few parameters that it does not change the percentage. A second block doubles
# the count. The arrows show something that the counts do not. `backward()` starts at the loss and goes
# down through the network, and it can stop at the lowest trainable part. That is why training the last
# block takes less time than training everything (chapter 14). Chapter 0 has trained some of these, and
# shows how accurate they became.

# %% [markdown]
# ## Which weights are random?
#
# Freezing says which parameters may change. It says nothing about their values. The lecturer says that
# before training, the last block and the final norm are "still random", like the head (31:21). Is that
# so? We make two models with different seeds. Everything that is random must differ between them.

# %%
torch.manual_seed(1)
one = load_gpt2(MODEL)
replace_head(one, num_classes=2)
torch.manual_seed(2)
two = load_gpt2(MODEL)
replace_head(two, num_classes=2)
last_block = f"blocks.{model.config.n_layer - 1}"
for name in ("wte.weight", f"{last_block}.attn.c_attn.weight", "ln_f.weight", "head.weight"):
    a = one.get_parameter(name)
    b = two.get_parameter(name)
    print(f"{name:<28} {'equal' if torch.equal(a, b) else 'different'}")

# %% [markdown]
# Only the head is random. The last block and the final norm contain GPT-2's pretrained weights,
# whether they are frozen or not. This is important: the last block does not learn from scratch.
# Training adjusts a block that already works.

# %% [markdown]
# ## What does a training step change?
#
# We want to see that frozen really means unchanged. For this we compare two methods that are easily
# confused, because both are called "GPT-2 with a new head". With **frozen features**, only the head is
# trained. With **finetuning**, the last block and the final norm are trained too. We take five
# training steps with each, on eight messages. (Chapters 9 and 10 explain the loss and the steps.)

# %%
tokenizer = Tokenizer(model_folder(MODEL))
messages = split_messages(load_messages(DATA), balance=True).train[:8]
encoded, _ = encode_texts([m.text for m in messages], tokenizer, model.config.n_ctx)
ids, lengths = pad_batch(encoded, tokenizer.end_of_text_id)
rows = torch.arange(len(ids))
labels = torch.tensor([int(message.label == "spam") for message in messages])


def take_five_steps(network):
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    for _ in range(5):
        optimizer.zero_grad()
        loss = F.cross_entropy(network(ids)[rows, lengths - 1], labels)
        loss.backward()
        optimizer.step()


# %% [markdown]
# How do we see whether millions of numbers are unchanged? We compute a *hash* of each part: a short
# fingerprint of all its bits. If one bit differs, the hash is another one.

# %%
parts = [line.part for line in ledger(one)]


def fingerprints(network):
    return [tensors_sha256(network.get_submodule(part).state_dict())[:8] for part in parts]


features = load_gpt2(MODEL)
features.head = nn.Linear(model.config.n_embd, 2)
features.load_state_dict(one.state_dict())  # both begin with the weights of `one`
finetuned = load_gpt2(MODEL)
finetuned.head = nn.Linear(model.config.n_embd, 2)
finetuned.load_state_dict(one.state_dict())

set_trainable(features, n_last_blocks=0, final_norm=False)
take_five_steps(features)
set_trainable(finetuned, n_last_blocks=1, final_norm=True)
take_five_steps(finetuned)

# %% tags=["varies"]
before = fingerprints(one)
after_features = fingerprints(features)
after_finetuning = fingerprints(finetuned)
print("part       before     frozen features     finetuning")
for number, part in enumerate(parts):
    a = "same   " if after_features[number] == before[number] else "changed"
    b = "same   " if after_finetuning[number] == before[number] else "changed"
    print(f"{part:<10} {before[number]}   {a} {after_features[number]}    ", end="")
    print(f"{b} {after_finetuning[number]}")

# %% [markdown]
# Each method has changed exactly what it trains, and not a bit of anything else. With frozen features,
# the states that the head reads stay the same during the whole training. With finetuning, they change,
# because the last block and the norm change.

# %% [markdown]
# ## What you know now
#
# - All parameters of a loaded model are trainable. You have to freeze them.
# - `require_grad = False` freezes nothing and raises no error. `requires_grad_(False)` freezes
#   everything.
# - A new head is trainable by default. Freeze first, then replace the head.
# - The lecture trains the head, the last block and the final norm.
# - Before training, only the head is random.
# - Hashes prove that frozen parts stay the same, to the bit.

# %% [markdown]
# ## Checks
#
# These cells check what the chapter said. They are folded in the notebook; an error here means that
# something is wrong.

# %% check
misspelt = load_gpt2(MODEL)
for parameter in misspelt.parameters():
    parameter.require_grad = False
misspelt(ids[:1]).sum().backward()
assert all(parameter.grad is not None for parameter in misspelt.parameters())
misspelt.requires_grad_(False)
assert trainable_names(misspelt) == []
print("checked: the misspelt attribute froze nothing, the method froze everything")

# %% check
C = model.config.n_embd
a_block = 12 * C**2 + 13 * C  # 12 C² in its matrices, 13 C in its biases and norms
norm = 2 * C
head = 2 * C + 2
count = {name: sum(line.trainable for line in lines) for name, lines in ledgers.items()}
assert count["head alone"] == head
assert count["no final norm"] == a_block + head
assert count["the lecture"] == a_block + norm + head
assert count["two blocks"] == 2 * a_block + norm + head
assert count["everything"] == sum(parameter.numel() for parameter in model.parameters())
assert MODEL != "124M" or (count["the lecture"], count["everything"]) == (7_090_946, 124_441_346)
trained_parts = [line.part for line in ledgers["the lecture"] if line.trainable]
assert trained_parts == [last_block, "ln_f", "head"]
assert all(name.startswith((f"{last_block}.", "ln_f.", "head.")) for name in trainable)
print("checked: the counts follow from the width C alone, and the parts are the lecture's")

# %% check
pretrained = dict(load_gpt2(MODEL).named_parameters())
for name, parameter in one.named_parameters():
    is_head = name in ("head.weight", "head.bias")
    assert is_head or torch.equal(parameter, pretrained[name]), name
    assert torch.equal(parameter, two.get_parameter(name)) != is_head, name
print(f"checked: of {total + 2} tensors, only head.weight and head.bias are random")

# %% check
for network, trained in ((features, {"head"}), (finetuned, {last_block, "ln_f", "head"})):
    changed = set()
    for name, parameter in network.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        if not torch.equal(parameter, one.get_parameter(name)):
            part = last_block if name.startswith(last_block) else name.split(".")[0]
            changed.add(part)
    assert changed == trained
by_hash = [part for part, a, b in zip(parts, before, after_finetuning, strict=True) if a != b]
assert by_hash == [last_block, "ln_f", "head"]
print(
    "checked: tensor by tensor, each method changed what it trains; frozen tensors have no gradient"
)

# %% [markdown]
# ## Exercises
#
# 1. (easy) Try what the lecturer suggests: two blocks, and no final norm. Compute the number of
#    trainable parameters from the width C before you run it.
#    <details><summary>Hint</summary>A block has 12 C² + 13 C parameters, the head 2 C + 2.</details>
# 2. (medium) Replace the head first and then freeze everything. Then unfreeze the last block and the
#    final norm. What is trained? Does the loss fall?
#    <details><summary>Hint</summary>Look at the ledger, and then take twelve steps.</details>
# 3. (hard) The lecture gives all parameters to the optimizer. Its weight decay makes weights a little
#    smaller at each step. Does it also shrink the frozen ones? What if their gradient were zeros
#    instead of `None`?
#    <details><summary>Hint</summary>Set `parameter.grad` to zeros by hand, and compare `wte`.</details>
#
# Solutions: [`solutions/08_freezing.py`](solutions/08_freezing.py).
