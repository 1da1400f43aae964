# %% [markdown]
# # Solutions to chapter 0

# %%
import torch
import torch.nn.functional as F
from torch import nn

from gpt2_from_scratch import (
    Tokenizer,
    load_gpt2,
    load_messages,
    model_folder,
    pad_batch,
    split_messages,
)

tokenizer, split = (
    Tokenizer(model_folder("mini")),
    split_messages(load_messages("sms"), balance=True),
)
train, test = split.train[:160], split.test[:120]


def new_network(*, frozen):
    network = load_gpt2("mini")
    network.requires_grad_(not frozen)
    torch.manual_seed(123)
    network.head = nn.Linear(network.config.n_embd, 2)
    if frozen:
        network.blocks[-1].requires_grad_(True)
        network.ln_f.requires_grad_(True)
    return network


def logits_of(network, messages):
    texts = [tokenizer.encode(message.text)[:40] for message in messages]
    return network(pad_batch(texts, tokenizer.end_of_text_id, 40)[0])[:, -1, :]


def share_correct(network, names):
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-4, weight_decay=0.1)
    torch.manual_seed(123)
    for batch in [part for _ in range(2) for part in torch.randperm(len(train)).split(8)]:
        some = [train[n] for n in batch]
        optimizer.zero_grad()
        wanted = torch.tensor([names.index(message.label) for message in some])
        F.cross_entropy(logits_of(network, some), wanted).backward()
        optimizer.step()
    with torch.no_grad():
        found = logits_of(network, test).argmax(dim=1).tolist()
    return sum(names[n] == m.label for n, m in zip(found, test, strict=True)) / len(test)


# %% [markdown]
# ## 1. Nothing is frozen
#
# All parameters are trained, because a parameter is trainable unless something freezes it. The accuracy
# differs by less than the interval of 120 messages, which is several points wide on each side. Each step
# takes longer, because gradients are computed for every block.

# %%
ours, everything = new_network(frozen=True), new_network(frozen=False)
assert all(parameter.requires_grad for parameter in everything.parameters())
found = share_correct(ours, ["ham", "spam"]), share_correct(everything, ["ham", "spam"])
print(f"last block {found[0]:.1%}, everything {found[1]:.1%}")
assert min(found) > 0.7

# %% [markdown]
# ## 2. A fifth token
#
# One row is added, and the first four stay the same, apart from rounding: a token attends only to itself
# and to the tokens before it.

# %%
with torch.no_grad():
    four, five = (
        ours(torch.tensor([tokenizer.encode(text)]))
        for text in ("Do you have time", "Do you have time now")
    )
print(f"{tuple(four.shape)} and {tuple(five.shape)}")
assert five.shape[1] == 5 and torch.allclose(four[0], five[0, :4], atol=1e-4)

# %% [markdown]
# ## 3. The other order
#
# The first output now means spam. The head learns that, and the accuracy is about the same. It is not
# equal, because the head's random weights stay where they are, so each class starts with the weights of
# the other one. What the numbers of the classes mean is only in the list of labels, so a classifier has
# to be saved together with it.

# %%
other = share_correct(new_network(frozen=True), ["spam", "ham"])
print(f"ham first {found[0]:.1%}, spam first {other:.1%}")
assert abs(other - found[0]) < 0.1
