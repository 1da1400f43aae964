# %% [markdown]
# # Solutions to chapter 8

# %%
import torch
import torch.nn.functional as F

from gpt2_from_scratch import (
    Tokenizer,
    class_logits,
    encode_texts,
    ledger,
    load_gpt2,
    load_messages,
    model_folder,
    pad_batch,
    replace_head,
    set_trainable,
    split_messages,
)

batch = split_messages(load_messages("sms"), balance=True).train[:16]
encoded, _ = encode_texts([message.text for message in batch], Tokenizer(model_folder("mini")), 384)
ids, lengths = pad_batch(encoded, pad_id=0)
answers = torch.tensor([message.label == "spam" for message in batch]).long()


def loss_of(model):
    return F.cross_entropy(class_logits(model, ids, lengths, "last_token"), answers)


# %% [markdown]
# ## 1. All parameters for the optimizer
#
# AdamW skips a parameter whose gradient is `None`, and does not apply weight decay to it either. So
# frozen parameters stay the same to the last bit. A gradient of zeros is different: the step itself is
# then 0, but weight decay is still applied. If you fill gradients with zeros by hand, the "frozen"
# weights shrink.

# %%
changed = {}
for gradient in ("None", "zeros"):
    torch.manual_seed(123)
    model = load_gpt2("mini")
    replace_head(model, num_classes=2)
    set_trainable(model)
    before = model.wte.weight.detach().clone()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    loss_of(model).backward()
    for parameter in model.parameters():
        if gradient == "zeros" and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    changed[gradient] = (model.wte.weight / before).median().item()
    print(f"gradient {gradient:<5}: wte is {changed[gradient]:.6f} times what it was")
    assert torch.equal(model.wte.weight, before) == (gradient == "None")
assert changed["None"] == 1
assert abs(changed["zeros"] - (1 - 1e-3 * 0.1)) < 1e-6, "one step of decay: 1 - lr * weight_decay"

# %% [markdown]
# ## 2. The head, frozen by mistake
#
# The block and the norm are trained, because they are unfrozen afterwards. The head keeps its random
# values. The loss still falls, because the block learns to produce states that the random head
# classifies correctly. You notice the mistake only if you look at the list of trainable parts, or at
# the head itself. `set_trainable` avoids it: it unfreezes all three after it has frozen everything.

# %%
torch.manual_seed(123)
model = load_gpt2("mini")
replace_head(model, num_classes=2)
model.requires_grad_(False)
model.blocks[-1].requires_grad_(True)
model.ln_f.requires_grad_(True)
print("trainable:", [line.part for line in ledger(model) if line.trainable])
head = model.head.weight.clone()
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
losses = []
for _ in range(12):
    optimizer.zero_grad()
    losses.append(loss_of(model))
    losses[-1].backward()
    optimizer.step()
print(f"loss {losses[0]:.3f} at the first step, {losses[-1]:.3f} at the last")
assert [line.part for line in ledger(model) if line.trainable] == ["blocks.5", "ln_f"]
assert torch.equal(model.head.weight, head) and losses[-1] < 0.7 * losses[0]

# %% [markdown]
# ## 3. A gradient through frozen blocks
#
# Only `blocks.0` has a gradient. If a block is frozen, no gradient is computed for its own weights.
# But the gradient with respect to its input is still computed, because it is needed to get from the
# loss back to `blocks.0`. So freezing the later blocks saves only about a quarter of the work of
# training all of them. If only the last part is trainable, freezing the rest saves more than half.

# %%
model.requires_grad_(False)
model.zero_grad()
model.blocks[0].requires_grad_(True)
loss_of(model).backward()
parts = {line.part: model.get_submodule(line.part) for line in ledger(model)}
found = [name for name, part in parts.items() if any(p.grad is not None for p in part.parameters())]
print("a gradient:", found)
assert found == ["blocks.0"]
assert model.blocks[0].attn.c_attn.weight.grad.abs().max() > 0
