# %% [markdown]
# # 6. What trains, and what stays
#
# Finetuning changes some of the network's numbers. Which ones you decide; PyTorch does not.
#
# **At the end you will know** how parameters are frozen and how to see that they are, which parts
# are new before training, and how to tell frozen features from a finetuned model. **Time:** a few
# seconds, offline.

# %%
import torch
import torch.nn.functional as F

from gpt2_from_scratch import (
    Classifier,
    class_logits,
    draw_ledger,
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

MODEL, DATA = setting("mini")  # "124M": OpenAI's model, and the SMS Spam Collection

# %% [markdown]
# ## Nothing is frozen unless you freeze it
#
# Each parameter, a tensor of weights, has a switch: `requires_grad`, whether `backward()` computes a
# gradient for it. The optimizer leaves alone what has no gradient; that is all that *frozen* means.
# In a loaded model every switch is on, and the new head of chapter 5 turns none of them off.

# %%
model = load_gpt2(MODEL)
print(len(trainable_names(model)), "of", len([*model.parameters()]), "tensors train")
replace_head(model, num_classes=2)
print(len(trainable_names(model)), "of", (total := len([*model.parameters()])), "with a new head")

# %% [markdown]
# Mind the s: Python lets anyone give an object another attribute, so this loop runs and freezes
# nothing. The method `requires_grad_` does the work in one call and cannot be misspelt in silence.

# %%
for parameter in model.parameters():
    parameter.require_grad = False
print(f"misspelt attribute: {len(trainable_names(model))} of {total} train")
try:
    model.require_grad_(False)
except AttributeError as error:
    print(f"misspelt method:    {error}")

# %% check
model(torch.tensor([[1, 2, 3]])).sum().backward()
assert all(parameter.grad is not None for parameter in model.parameters()), "nothing was frozen"
model.requires_grad_(False)
assert not trainable_names(model)
print("checked: the misspelt attribute froze nothing, the method froze all")

# %% [markdown]
# ## What the lecture trains
#
# The head, the last block and the final norm. All is frozen first, then these three are let go:

# %%
show(set_trainable)

# %%
set_trainable(model, n_last_blocks=1)
print(format_ledger(ledger(model)))

# %%
picture(draw_ledger(ledger(model)), "06-ledger")

# %% check
C, last_block = model.config.n_embd, f"blocks.{model.config.n_layer - 1}"
lecture_trains = {last_block, "ln_f", "head"}
assert {line.part for line in ledger(model) if line.trainable} == lecture_trains
# a block: 12 C² weights in its matrices, 13 C other numbers; the norm 2 C; the head 2 C + 2
trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
assert trainable == (12 * C**2 + 13 * C) + 2 * C + (2 * C + 2)
print(f"checked: {trainable:,} numbers train, which follows from the width C = {C} alone")

# %% [markdown]
# ## Which part is new
#
# Freezing says which numbers may change, not where they come from. The lecture calls the last block
# and the final norm "still random" before training. They are not: they hold what pretraining left in
# them, like the blocks below. Two classifiers, drawn with different seeds, beside GPT-2 as loaded:

# %%
labels = sorted({message.label for message in load_messages(DATA)})
one, two = (Classifier.on_base(MODEL, labels, seed=seed).model for seed in (1, 2))
pretrained = dict(load_gpt2(MODEL).named_parameters())
for name in ("wte.weight", f"{last_block}.ln_1.weight", "ln_f.weight", "head.weight"):
    alike = "equal" if torch.equal(one.get_parameter(name), two.get_parameter(name)) else "differ"
    print(f"{name:<20} {'pretrained' if name in pretrained else 'new':<11} two seeds: {alike}")

# %% check
for name, parameter in one.named_parameters():  # the lecture says it at 31:21
    is_new = name in ("head.weight", "head.bias")
    assert is_new or torch.equal(parameter, pretrained[name]), name
    assert torch.equal(parameter, two.get_parameter(name)) != is_new
print(f"checked: of {total} tensors head.weight and head.bias are random, the others pretrained")

# %% [markdown]
# ## Two methods that are often confused
#
# **(a) Frozen features.** GPT-2 stays as it is and turns each message into a list of numbers; only a
# new head learns to read them. **(b) Finetuning.** The last block and the final norm change as well,
# and with them the numbers that the head reads. Both are called "GPT-2 with a new head". A hash of
# each part, which differs as soon as one bit does, tells them apart before and after five steps.

# %%
batch = split_messages(load_messages(DATA), balance=True).train[:8]
answers = torch.tensor([labels.index(message.label) for message in batch])
models = {"before": one}
for method, n_last_blocks, final_norm in (("(a)", 0, False), ("(b)", 1, True)):
    classifier = Classifier.on_base(MODEL, labels, seed=1)  # begins as `one` does
    ids, lengths = pad_batch(classifier.encode([m.text for m in batch])[0], pad_id=0)  # any will do
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
print("checked: each changed what it trains and no more; what is frozen has no gradient")

# %% [markdown]
# ## Exercises
#
# 1. The lecture hands the optimizer all parameters. Its weight decay makes weights a little smaller
#    at each step: frozen ones too? And if a frozen one's gradient were zeros instead of `None`?
# 2. The lecture freezes, then puts the new head in. Swap the two: what trains? Does the loss fall?
# 3. Let only `blocks.0` train. Which parts have a gradient after `backward()`? Why any at all?
#
# Solutions: [`solutions/06_freezing.py`](solutions/06_freezing.py).
