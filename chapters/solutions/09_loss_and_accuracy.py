# %% [markdown]
# # Solutions to chapter 9

# %%
import math

import torch
import torch.nn.functional as F
from torch import nn

from gpt2_from_scratch import (
    LABELS,
    Tokenizer,
    encode_texts,
    load_gpt2,
    load_messages,
    model_folder,
    pad_batch,
    split_messages,
)

model = load_gpt2("mini")
tokenizer = Tokenizer(model_folder("mini"))
messages = split_messages(load_messages("sms"), balance=True).train[:120]
encoded, _ = encode_texts([message.text for message in messages], tokenizer, 40)
found = []
for first in range(0, 120, 20):
    ids, lengths = pad_batch(encoded[first : first + 20], tokenizer.end_of_text_id)
    with torch.no_grad():
        found.append(model.hidden(ids)[torch.arange(20), lengths - 1])
states = torch.cat(found)
labels = torch.tensor([LABELS.index(message.label) for message in messages])


def accuracy_of(logits):
    return (logits.argmax(dim=1) == labels).double().mean().item()


# %% [markdown]
# ## 1. Larger logits
#
# > Multiply the logits of a head by four and by sixteen. What happens to its accuracy, and what to its
# > loss?
#
# The larger logit is still the larger one, so no answer changes, and the accuracy stays exactly the
# same. But the answers become more confident. The wrong ones then cost more and more, and the loss
# grows.

# %%
torch.manual_seed(123)
head = nn.Linear(model.config.n_embd, 2)
logits = head(states).detach()
losses = []
for factor in (0, 1, 4, 16):
    loss = F.cross_entropy(factor * logits, labels).item()
    losses.append(loss)
    print(f"logits x {factor:>2}: accuracy {accuracy_of(factor * logits):.2%}, loss {loss:.3f}")
assert accuracy_of(4 * logits) == accuracy_of(16 * logits) == accuracy_of(logits)
assert math.isclose(losses[0], math.log(2), abs_tol=1e-6)
assert losses[3] > losses[2] > losses[0]

# %% [markdown]
# ## 2. A constant answer
#
# > In the collection, 87 of 100 messages are ham. A classifier answers `P(ham) = 0.87` for every
# > message. What are its accuracy and its loss? Would another number give a lower loss?
#
# Its answer is always ham, so its accuracy is 87%, and it has not read a single message. No other
# number gives a lower loss: it is lowest where P(ham) is the proportion of ham. There it is lower than
# ln 2. So do not compare with one half and ln 2 if the messages are not balanced.

# %%
constant_losses = {}
for p in (0.5, 0.7, 0.8, 0.87, 0.95, 0.99):
    constant_losses[p] = -0.87 * math.log(p) - 0.13 * math.log(1 - p)
    print(f"P(ham) = {p:.2f}: loss {constant_losses[p]:.3f}")
print(f"ln 2 = {math.log(2):.3f}")
# the same from torch, on 100 messages of which 87 are ham
one_hundred = torch.tensor([[0.87, 0.13]]).log().repeat(100, 1)
by_torch = F.cross_entropy(one_hundred, torch.tensor([0] * 87 + [1] * 13)).item()
assert math.isclose(by_torch, constant_losses[0.87], abs_tol=1e-6)
assert min(constant_losses.values()) == constant_losses[0.87] < math.log(2)

# %% [markdown]
# ## 3. Luck against slopes
#
# > Select the best of a thousand random heads. Then train one head for a hundred steps of gradient
# > descent on the same states. Which has the higher accuracy on them?
#
# The trained head is clearly better on these messages. (Chapter 12 is about new ones.) Each step
# follows the slope of the loss in all weights at once. A random guess learns nothing from the guesses
# before it.

# %%
best = 0.0
for seed in range(1000):
    torch.manual_seed(seed)
    accuracy = accuracy_of(nn.Linear(model.config.n_embd, 2)(states))
    best = max(best, accuracy)
torch.manual_seed(0)
head = nn.Linear(model.config.n_embd, 2)
for _ in range(100):
    head.zero_grad()
    loss = F.cross_entropy(head(states), labels)
    loss.backward()
    with torch.no_grad():
        head.weight -= 0.5 * head.weight.grad
        head.bias -= 0.5 * head.bias.grad
trained = accuracy_of(head(states))
print(f"best of 1,000 heads {best:.2%}, one head after 100 steps {trained:.2%}")
assert trained > best + 0.05
