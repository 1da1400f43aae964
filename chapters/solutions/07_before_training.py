# %% [markdown]
# # Solutions to chapter 7

# %%
import math

import torch
import torch.nn.functional as F

from gpt2_from_scratch import (
    Classifier,
    load_messages,
    pool,
    set_trainable,
    split_messages,
)

train = split_messages(load_messages("demo")).train[:120]
answers = torch.tensor([message.label == "spam" for message in train]).long()
classifier = Classifier.on_base("mini", ["ham", "spam"])
set_trainable(classifier.model, n_last_blocks=0, final_norm=False)
texts = classifier.texts(classifier.encode([m.text for m in train])[0])
x, lengths = texts.batch(range(len(train)))
states = pool(classifier.model.ln_f(x), lengths, "last_token").detach()


def accuracy_of(logits):
    return (logits.argmax(dim=1) == answers).double().mean().item()


# %% [markdown]
# ## 1. Larger logits
#
# The larger logit stays the larger one, so no answer changes and accuracy stays the same to the
# message. The answers are only given with more certainty, and the loss grows: the wrong half costs
# more and more. At 16 times the size it is of the order of what the lecture prints.

# %%
logits = classifier.model.head(states).detach()
losses = {}
for factor in (0, 1, 4, 16):
    losses[factor] = F.cross_entropy(factor * logits, answers).item()
    share = accuracy_of(factor * logits)
    print(f"logits x {factor:>2}: accuracy {share:.2%}, loss {losses[factor]:.3f}")
assert accuracy_of(4 * logits) == accuracy_of(16 * logits) == accuracy_of(logits)
assert math.isclose(losses[0], math.log(2), abs_tol=1e-6) and losses[16] > losses[4] > losses[0]

# %% [markdown]
# ## 2. A constant answer
#
# It is always "ham": accuracy 87 %, without reading a message. The loss is lowest when P(ham) is the
# share of ham, and lower there than ln 2. So before training on messages that are not balanced,
# neither one half nor ln 2 is what to compare with.

# %%
found = {p: -0.87 * math.log(p) - 0.13 * math.log(1 - p) for p in (0.6, 0.7, 0.8, 0.87, 0.95, 0.99)}
for p, loss in found.items():
    print(f"P(ham) = {p:.2f}: accuracy 87 %, loss {loss:.3f}")
# the same from torch, on 100 messages of which 87 are ham
given = torch.tensor([[0.87, 0.13]]).log().repeat(100, 1)
share = F.cross_entropy(given, torch.tensor([0] * 87 + [1] * 13)).item()
assert math.isclose(share, found[0.87], abs_tol=1e-6)
assert min(found, key=lambda p: found[p]) == 0.87 and found[0.87] < math.log(2)

# %% [markdown]
# ## 3. Luck against slopes
#
# A thousand guesses do not come near what a hundred steps reach on these messages (how it is with
# new ones is chapter 9). Each step follows the loss's slope in all weights at once; a guess learns
# nothing from the guesses before it.

# %%
lucky = 0.0
for seed in range(1000):
    torch.manual_seed(seed)
    lucky = max(lucky, accuracy_of(torch.nn.Linear(states.shape[1], 2)(states)))
torch.manual_seed(0)
head = torch.nn.Linear(states.shape[1], 2)
for _ in range(100):
    loss = F.cross_entropy(head(states), answers)
    gradients = torch.autograd.grad(loss, [head.weight, head.bias])
    with torch.no_grad():
        for parameter, gradient in zip(head.parameters(), gradients, strict=True):
            parameter -= 0.5 * gradient
trained = accuracy_of(head(states))
print(f"best of 1,000 heads {lucky:.2%}, one head after 100 steps {trained:.2%}")
assert trained > lucky + 0.05
