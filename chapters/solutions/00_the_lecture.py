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

tokenizer = Tokenizer(model_folder("mini"))
split = split_messages(load_messages("sms"), balance=True)
train = split.train[:160]
test = split.test[:120]


def new_network(frozen):
    network = load_gpt2("mini")
    network.requires_grad_(not frozen)
    torch.manual_seed(123)
    network.head = nn.Linear(network.config.n_embd, 2)
    if frozen:
        network.blocks[-1].requires_grad_(True)
        network.ln_f.requires_grad_(True)
    return network


def logits_of(network, messages):
    texts = [tokenizer.encode(message.text)[:32] for message in messages]
    ids, _ = pad_batch(texts, tokenizer.end_of_text_id, 32)
    return network(ids)[:, -1, :]


def train_epochs(network, names, epochs=2):
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-4, weight_decay=0.1)
    torch.manual_seed(123)
    for _ in range(epochs):
        for batch in torch.randperm(len(train)).split(8):
            messages = [train[n] for n in batch]
            labels = torch.tensor([names.index(message.label) for message in messages])
            optimizer.zero_grad()
            F.cross_entropy(logits_of(network, messages), labels).backward()
            optimizer.step()


def accuracy_of(network, names):
    with torch.no_grad():
        answers = logits_of(network, test).argmax(dim=1).tolist()
    correct = 0
    for answer, message in zip(answers, test, strict=True):
        correct += names[answer] == message.label
    return correct / len(test)


# %% [markdown]
# ## 1. A fifth token
#
# > Give the sentence a fifth token. Which rows of the output change, and which stay the same?
#
# One row is added. The first four stay the same, apart from rounding: a token attends only to itself and
# to the tokens before it.

# %%
ours = new_network(frozen=True)
with torch.no_grad():
    four = ours(torch.tensor([tokenizer.encode("Do you have time")]))
    five = ours(torch.tensor([tokenizer.encode("Do you have time now")]))
print("four tokens:", four, "five tokens:", five, sep="\n")
assert five.shape == (1, 5, 2)
assert torch.allclose(four[0], five[0, :4], atol=1e-4)

# %% [markdown]
# ## 2. Nothing is frozen
#
# > Leave out the loop that freezes. Which parameters are trained then? Is the test accuracy better?
#
# All parameters are trained, because a parameter is trainable unless something freezes it. The accuracy
# differs by less than the interval of 120 messages, which is several points wide on each side. Each step
# takes longer, because gradients are computed for every block.

# %%
names = ["ham", "spam"]
train_epochs(ours, names)
everything = new_network(frozen=False)
train_epochs(everything, names)
last_block = accuracy_of(ours, names)
all_blocks = accuracy_of(everything, names)
print(f"the last block is trained: {last_block:.1%}; everything: {all_blocks:.1%}")
assert all(parameter.requires_grad for parameter in everything.parameters())
assert min(last_block, all_blocks) > 0.7

# %% [markdown]
# ## 3. The other order
#
# > Train with the labels in the opposite order, `["spam", "ham"]`. What changes, and what does not?
#
# The first output now means spam. The head learns that, and the accuracy is about the same. It is not
# equal, because the head's random weights stay where they are, so each class starts with the weights of
# the other one. If you swap the two random rows too, the two trainings are the same, apart from rounding.
# What the numbers of the classes mean is only in the list of labels, so a classifier has to be saved
# together with it.

# %%
other = new_network(frozen=True)
train_epochs(other, ["spam", "ham"])

swapped = new_network(frozen=True)
with torch.no_grad():
    swapped.head.weight.copy_(swapped.head.weight.flip(0))
    swapped.head.bias.copy_(swapped.head.bias.flip(0))
train_epochs(swapped, ["spam", "ham"])

print(f"ham first {last_block:.1%}, spam first {accuracy_of(other, ['spam', 'ham']):.1%}")
print(f"spam first, with swapped rows: {accuracy_of(swapped, ['spam', 'ham']):.1%}")
assert abs(accuracy_of(other, ["spam", "ham"]) - last_block) < 0.1
assert torch.allclose(swapped.head.weight.flip(0), ours.head.weight, atol=1e-2)
