# %% [markdown]
# # Solutions to chapter 9

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

train = split_messages(load_messages("sms"), balance=True).train[:120]
answers = torch.tensor([message.label == "spam" for message in train]).long()
classifier = Classifier.on_base("mini", ["ham", "spam"], pooling="last_token")
set_trainable(classifier.model, n_last_blocks=0, final_norm=False)
texts = classifier.texts(classifier.encode([m.text for m in train])[0])
x, lengths = texts.batch(range(len(train)))
states = pool(classifier.model.ln_f(x), lengths, "last_token").detach()


def accuracy_of(logits):
    return (logits.argmax(dim=1) == answers).double().mean().item()


# %% [markdown]
# ## 1. Larger logits
#
# The larger logit is still the larger one, so no answer changes and the accuracy stays exactly the same.
# But the answers become more confident, and the loss grows, because the wrong answers cost more and
# more. With logits 16 times as large, the loss is about as high as the losses that the lecture prints.

# %%
logits = classifier.model.head(states).detach()
losses = {}
for factor in (0, 1, 4, 16):
    losses[factor] = F.cross_entropy(factor * logits, answers).item()
    accuracy = accuracy_of(factor * logits)
    print(f"logits x {factor:>2}: accuracy {accuracy:.2%}, loss {losses[factor]:.3f}")
assert accuracy_of(4 * logits) == accuracy_of(16 * logits) == accuracy_of(logits)
assert math.isclose(losses[0], math.log(2), abs_tol=1e-6) and losses[16] > losses[4] > losses[0]

# %% [markdown]
# ## 2. A constant answer
#
# Its answer is always ham, so its accuracy is 87%, and it has not read a single message. Its loss is
# lowest if P(ham) equals the proportion of ham, and there it is lower than ln 2. So if the messages are
# not balanced, do not compare with one half and ln 2.

# %%
found = {p: -0.87 * math.log(p) - 0.13 * math.log(1 - p) for p in (0.6, 0.7, 0.8, 0.87, 0.95, 0.99)}
for p, loss in found.items():
    print(f"P(ham) = {p:.2f}: accuracy 87%, loss {loss:.3f}")
# the same from torch, on 100 messages of which 87 are ham
given = torch.tensor([[0.87, 0.13]]).log().repeat(100, 1)
by_torch = F.cross_entropy(given, torch.tensor([0] * 87 + [1] * 13)).item()
assert math.isclose(by_torch, found[0.87], abs_tol=1e-6)
assert min(found, key=lambda p: found[p]) == 0.87 and found[0.87] < math.log(2)

# %% [markdown]
# ## 3. Luck against slopes
#
# The trained head is clearly better, on these messages (chapter 12 is about new ones). Each step follows
# the slope of the loss in all weights at once. A random guess learns nothing from the guesses before
# it.

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
