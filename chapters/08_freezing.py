# %% [markdown]
# # 8. What is trained, and what stays
#
# Finetuning changes some of the network's parameters and leaves the others as they are. You have to
# decide which; PyTorch does not do it for you.
#
# **At the end you will know** how to freeze parameters and how to check that they are frozen, which
# parts are new before training, and how frozen features differ from a finetuned model. **Time:** a
# few seconds, offline.

# %%
import torch
import torch.nn.functional as F

from gpt2_from_scratch import (
    Classifier,
    class_logits,
    draw_ledgers,
    format_ledger,
    ledger,
    load_gpt2,
    load_messages,
    pad_batch,
    replace_head,
    set_trainable,
    split_messages,
    tensors_sha256,
    trainable_names,
)
from gpt2_from_scratch.course import picture, setting, show

MODEL, DATA = setting("mini")  # "124M": OpenAI's model. DATA: the SMS Spam Collection

# %% [markdown]
# ## Nothing is frozen unless you freeze it
#
# Each parameter tensor has a switch, `requires_grad`. It decides whether `backward()` computes a
# gradient for this tensor. The optimizer does not change a tensor that has no gradient, and that is all
# that *frozen* means. In a loaded model every switch is on. The new head of chapter 6 does not turn
# any of them off, and its own two tensors are trainable as well.

# %%
model = load_gpt2(MODEL)
print(f"{len(trainable_names(model))} of {len([*model.parameters()])} tensors are trainable")
replace_head(model, num_classes=2)
total = len([*model.parameters()])
print(f"{len(trainable_names(model))} of {total} with a new head")

# %% [markdown]
# Be careful with the spelling. The loop below has no "s" in `require_grad`. Python lets you set any
# attribute on an object, so the loop runs without an error and freezes nothing. The method
# `requires_grad_` freezes everything in one call, and misspelling it raises an error.

# %%
for parameter in model.parameters():
    parameter.require_grad = False
print(f"misspelt attribute: {len(trainable_names(model))} of {total} are still trainable")
try:
    model.require_grad_(False)
except AttributeError as error:
    print(f"misspelt method:    {error}")

# %% check
model(torch.tensor([[1, 2, 3]])).sum().backward()
assert all(parameter.grad is not None for parameter in model.parameters()), "nothing was frozen"
model.requires_grad_(False)
assert not trainable_names(model)
print("checked: the misspelt attribute froze nothing, the method froze everything")

# %% [markdown]
# ## What the lecture trains
#
# The lecture trains the head, the last block and the final norm. `set_trainable` first freezes
# everything and then unfreezes these three:

# %%
show(set_trainable)

# %%
set_trainable(model, n_last_blocks=1)
print(format_ledger(ledger(model)))

# %%
picture(draw_ledgers({"the lecture": ledger(model)}), "08-ledger")

# %% check
C, last_block = model.config.n_embd, f"blocks.{model.config.n_layer - 1}"
lecture_trains = {last_block, "ln_f", "head"}
assert {line.part for line in ledger(model) if line.trainable} == lecture_trains
# a block: 12 C² in its matrices, 13 C in its biases and norms; the final norm 2 C; the head 2 C + 2
trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
assert trainable == (12 * C**2 + 13 * C) + 2 * C + (2 * C + 2)
print(f"checked: {trainable:,} trainable parameters, as computed from the width C = {C} alone")

# %% [markdown]
# ## Which part is new
#
# Freezing decides which parameters may change. It says nothing about their values. The lecture says
# that the last block and the final norm are "still random" before training. They are not: they
# contain their pretrained weights, like the rest of GPT-2. Here we create two classifiers with
# different random seeds, and compare them with each other and with GPT-2 as it was loaded:

# %%
messages = load_messages(DATA)
labels = sorted({message.label for message in messages})
one, two = (Classifier.on_base(MODEL, labels, seed=seed).model for seed in (1, 2))
pretrained = dict(load_gpt2(MODEL).named_parameters())
for name in ("wte.weight", f"{last_block}.ln_1.weight", "ln_f.weight", "head.weight"):
    alike = (
        "equal" if torch.equal(one.get_parameter(name), two.get_parameter(name)) else "different"
    )
    print(f"{name:<20} {'pretrained' if name in pretrained else 'new':<11} two seeds: {alike}")

# %% check
for name, parameter in one.named_parameters():  # 31:21 in the lecture
    is_new = name in ("head.weight", "head.bias")
    assert is_new or torch.equal(parameter, pretrained[name]), name
    assert torch.equal(parameter, two.get_parameter(name)) != is_new
print(
    f"checked: of {total} tensors only head.weight and head.bias are random; the rest is pretrained"
)

# %% [markdown]
# ## Two methods that are often confused
#
# **(a) Frozen features.** GPT-2 stays as it is and turns each message into a vector. Only the new head
# is trained, on these vectors. **(b) Finetuning.** The last block and the final norm are trained as
# well, so the vectors that the head reads change too. Both are called "GPT-2 with a new head". To tell
# them apart, we take five training steps with each, and compare a hash of each part with its hash
# before training. A hash differs as soon as a single bit differs.

# %%
batch = split_messages(messages, balance=True).train[:8]
answers = torch.tensor([labels.index(message.label) for message in batch])
models = {"before": one}
for method, n_last_blocks, final_norm in (("(a)", 0, False), ("(b)", 1, True)):
    classifier = Classifier.on_base(MODEL, labels, seed=1)  # the same initial weights as `one`
    ids, lengths = pad_batch(
        classifier.encode([m.text for m in batch])[0], pad_id=0
    )  # any id works
    model = models[method] = classifier.model
    set_trainable(model, n_last_blocks, final_norm)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    for _ in range(5):
        optimizer.zero_grad()
        F.cross_entropy(class_logits(model, ids, lengths, "last_token"), answers).backward()
        optimizer.step()

# %%
hashes = {}
for method, model in models.items():
    parts = {line.part: model.get_submodule(line.part) for line in ledger(model)}
    hashes[method] = {name: tensors_sha256(part.state_dict()) for name, part in parts.items()}
changed = {m: {part for part in parts if hashes[m][part] != hashes["before"][part]} for m in hashes}
for part in parts:
    a, b = ("changed" if part in changed[method] else "same" for method in ("(a)", "(b)"))
    print(f"{part:<10} (a) {a:<8} (b) {b}")

# %% check
assert changed == {"before": set(), "(a)": {"head"}, "(b)": lecture_trains}
for method in ("(a)", "(b)"):
    assert all((p.grad is None) != p.requires_grad for p in models[method].parameters())
print("checked: each method changed exactly what it trains; frozen tensors have no gradient")

# %% [markdown]
# ## Exercises
#
# 1. The lecture gives all parameters to the optimizer, whose weight decay makes weights a little
#    smaller at each step. Does it also shrink the frozen ones? What if the gradient of a frozen
#    parameter were zeros instead of `None`?
# 2. The lecture first freezes the model and then replaces the head. Do it in the other order, and then
#    unfreeze the last block and the final norm. What is trained? Does the loss fall?
# 3. Make only `blocks.0` trainable. Which parts have a gradient after `backward()`? How can the
#    gradient get there through frozen blocks?
#
# Solutions: [`solutions/08_freezing.py`](solutions/08_freezing.py).
