# %% [markdown]
# # Solutions to chapter 8

# %%
import torch
import torch.nn.functional as F

from gpt2_from_scratch import (
    Tokenizer,
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
)

messages = split_messages(load_messages("sms"), balance=True).train[:16]
tokenizer = Tokenizer(model_folder("mini"))
encoded, _ = encode_texts([message.text for message in messages], tokenizer, 60)
ids, lengths = pad_batch(encoded, tokenizer.end_of_text_id)
rows = torch.arange(len(ids))
labels = torch.tensor([int(message.label == "spam") for message in messages])


def new_model():
    torch.manual_seed(123)
    model = load_gpt2("mini")
    replace_head(model, num_classes=2)
    return model


def loss_of(model):
    return F.cross_entropy(model(ids)[rows, lengths - 1], labels)


# %% [markdown]
# ## 1. The lecturer's experiments, counted
#
# > Try what the lecturer suggests: two blocks, and no final norm. Compute the number of trainable
# > parameters from the width C before you run it.
#
# Two blocks and the head have 2 (12 C² + 13 C) + 2 C + 2 parameters. The final norm would add 2 C, a
# gain and a shift for each of the C numbers.

# %%
model = new_model()
C = model.config.n_embd
computed = 2 * (12 * C**2 + 13 * C) + 2 * C + 2
set_trainable(model, n_last_blocks=2, final_norm=False)
print(f"computed: {computed:,}")
print(format_ledger(ledger(model)))
counted = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
assert counted == computed
set_trainable(model, n_last_blocks=2, final_norm=True)
with_norm = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
assert with_norm == computed + 2 * C

# %% [markdown]
# ## 2. The head, frozen by mistake
#
# > Replace the head first and then freeze everything. Then unfreeze the last block and the final norm.
# > What is trained? Does the loss fall?
#
# The block and the norm are trained, and the head keeps its random values. The loss still falls: the
# block learns to make states that the random head happens to classify correctly. So the loss does not
# reveal the mistake. The ledger does.

# %%
model = new_model()
model.requires_grad_(False)
model.blocks[-1].requires_grad_(True)
model.ln_f.requires_grad_(True)
print(format_ledger(ledger(model)))
head_before = model.head.weight.clone()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
losses = []
for _ in range(12):
    optimizer.zero_grad()
    loss = loss_of(model)
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
print(f"loss {losses[0]:.3f} at the first step, {losses[-1]:.3f} at the last")
assert [line.part for line in ledger(model) if line.trainable] == ["blocks.5", "ln_f"]
assert torch.equal(model.head.weight, head_before)
assert losses[-1] < 0.7 * losses[0]

# %% [markdown]
# ## 3. All parameters for the optimizer
#
# > The lecture gives all parameters to the optimizer. Its weight decay makes weights a little smaller
# > at each step. Does it also shrink the frozen ones? What if their gradient were zeros instead of
# > `None`?
#
# AdamW skips a parameter whose gradient is `None`, and its weight decay skips it too. So frozen
# parameters stay the same to the bit. A gradient of zeros is different: the step itself is 0, but the
# weight decay is applied. Whoever fills gradients with zeros by hand shrinks the "frozen" weights.

# %%
ratios = {}
for gradient in ("None", "zeros"):
    model = new_model()
    set_trainable(model, n_last_blocks=1, final_norm=True)
    before = model.wte.weight.detach().clone()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    loss_of(model).backward()
    if gradient == "zeros":
        model.wte.weight.grad = torch.zeros_like(model.wte.weight)
    optimizer.step()
    ratios[gradient] = (model.wte.weight / before).median().item()
    print(f"gradient {gradient:<5}: wte is {ratios[gradient]:.6f} times what it was")
    assert torch.equal(model.wte.weight, before) == (gradient == "None")
assert ratios["None"] == 1
assert abs(ratios["zeros"] - (1 - 1e-3 * 0.1)) < 1e-6  # one step of decay: 1 - lr * weight_decay
