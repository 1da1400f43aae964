# %% [markdown]
# # 7. Before training
#
# What does a classifier score that has learned nothing? Training is worth what it adds to that.
#
# **At the end you will know** what accuracy and loss an untrained head has and why, what
# cross-entropy is, why training follows the loss and not the accuracy, and how little a score on
# few messages can say. **Time:** a few seconds, offline.

# %%
import math

import torch
import torch.nn.functional as F

from gpt2_from_scratch import (
    Classifier,
    load_messages,
    pool,
    replace_head,
    set_trainable,
    split_messages,
    wilson_interval,
)
from gpt2_from_scratch.course import setting

MODEL, DATA = setting("mini")  # "124M": OpenAI's model, and the SMS Spam Collection

# %% [markdown]
# ## A new head is a guess
#
# The head reads a message's last state, C numbers that GPT-2 made of it. With all of GPT-2 frozen
# (chapter 6) they never change, so each message goes through the network once. Twenty heads, drawn
# with twenty seeds, then read the same states, each weighing the C numbers at random:

# %%
train = split_messages(load_messages(DATA), balance=True).train[:200]
labels = sorted({message.label for message in train})
answers = torch.tensor([labels.index(message.label) for message in train])
classifier = Classifier.on_base(MODEL, labels)
set_trainable(classifier.model, n_last_blocks=0, final_norm=False)
texts = classifier.texts(classifier.encode([m.text for m in train])[0])
x, lengths = texts.batch(range(len(train)))  # behind the last block: (N, T, C)
states = pool(classifier.model.ln_f(x), lengths, "last_token").detach()  # (N, C)
logits = []  # of each head: (N, 2)
for seed in range(20):
    torch.manual_seed(seed)
    replace_head(classifier.model, len(labels))
    logits.append(classifier.model.head(states).detach())
right = torch.tensor([(found.argmax(dim=1) == answers).double().mean() for found in logits])
print(f"accuracy: lowest {right.min():.2%}, mean {right.mean():.2%}, highest {right.max():.2%}")

# %% check
assert torch.allclose(logits[-1], classifier.logits(texts), atol=1e-3), "as the package reads"
# a head with all signs turned is as likely to be drawn, and right where the first is wrong
mirrored = torch.tensor([((-found).argmax(dim=1) == answers).double().mean() for found in logits])
assert torch.allclose(right + mirrored, torch.ones(20).double())
assert right.min() < 0.5 < right.max() and abs(right.mean() - 0.5) < 0.1
print("checked: a head and its mirror image, equally likely, are right half of the time")

# %% [markdown]
# ## The loss
#
# Accuracy asks which logit is larger, the loss how sure the answer was. Softmax makes probabilities
# of the logits; the loss, *cross-entropy*, is minus the logarithm of what the right class got.

# %%
ham, spam = logits[0][0].tolist()
p = math.exp(spam) / (math.exp(ham) + math.exp(spam))
by_hand = -math.log(p if labels[answers[0]] == "spam" else 1 - p)
print(f"{train[0].text!r} is {train[0].label}")
print(f"logits {ham:.4f}, {spam:.4f}: P(spam) {p:.4f}, loss {by_hand:.4f}")

# %% [markdown]
# A classifier that knows nothing, and says so, gives each class one half and pays ln 2. One that is
# sure is wrong half of the time too, and pays more for that than it saves when it is right:

# %%
print("P(its answer)  if right  if wrong  on average")
for p in (0.5, 0.6, 0.9, 0.99):
    pays = -math.log(p), -math.log(1 - p)
    print(f"{p:>13.2f} {pays[0]:>9.3f} {pays[1]:>9.3f} {sum(pays) / 2:>11.3f}")
losses = torch.stack([F.cross_entropy(found, answers) for found in logits])
print(f"heads: lowest {losses.min():.3f}, mean {losses.mean():.3f}, highest {losses.max():.3f}")

# %% check
assert math.isclose(by_hand, F.cross_entropy(logits[0][:1], answers[:1]).item(), abs_tol=1e-5)
assert math.isclose(F.cross_entropy(0 * logits[0], answers).item(), math.log(2), abs_tol=1e-6)
other = torch.stack([F.cross_entropy(-found, answers) for found in logits])
assert losses.mean() > math.log(2) and ((losses + other) / 2 > math.log(2)).all()
print(f"checked: an honest guess costs ln 2 = {math.log(2):.4f}; heads, on average, more")

# %% [markdown]
# ## Why the loss is what training follows
#
# Training moves each weight a little, to where things get better, so a little has to make a
# difference. Accuracy changes only where a message crosses from one answer to the other. Here one
# weight of the head is moved, at first so far that some answers get very wrong, then less and less:

# %%
head, states = classifier.model.head.double(), states.double()  # float32 rounds small steps away
before = head(states)
loss = F.cross_entropy(before, answers)
loss.backward()
row, column = divmod(int(head.weight.grad.abs().argmax()), states.shape[1])  # the steepest
gradient, slopes, flips = head.weight.grad[row, column].item(), {}, {}
print("    step   loss moves by      per step   right answers move by")
for step in (1.0, 1e-1, 1e-2, 1e-4, 1e-6):
    weight = head.weight.detach().clone()
    weight[row, column] += step
    after = F.linear(states, weight, head.bias)
    slopes[step] = (F.cross_entropy(after, answers) - loss).item() / step
    flips[step] = int((after.argmax(1) == answers).sum() - (before.argmax(1) == answers).sum())
    print(f"{step:>8g} {slopes[step] * step:>15.8f} {slopes[step]:>13.6f} {flips[step]:>10}")

# %% check
assert math.isclose(slopes[1e-6], gradient, rel_tol=1e-4) and abs(gradient) > 1e-3
assert flips[1e-6] == 0, "no message changed sides"
print(f"checked: the loss has the slope that backward() finds, {gradient:.6f}; accuracy has none")

# %% [markdown]
# ## What the lecture prints here
#
# On OpenAI's weights it prints the accuracy over ten batches of eight messages from each part, and
# the loss over five. The fewer messages are counted, the less a percentage says: its 95 % interval
# (Wilson's, chapter 9) tells how little. All three are what a coin could have given. The losses are
# far above ln 2, because the large model's states make large logits (exercise 1).

# %%
LECTURE = {"training": (46.25, 2.453), "validation": (45.00, 2.583), "test": (48.75, 2.322)}
for part, (percent, loss) in LECTURE.items():  # as published; `--recipe lecture` prints them too
    interval = "{:.1%} to {:.1%}".format(*wilson_interval(round(0.8 * percent), 80))
    print(f"{part:<10} {percent:.2f} % of 80: {interval}; loss {loss} = -ln {math.exp(-loss):.3f}")

# %% check
for percent, loss in LECTURE.values():
    low, high = wilson_interval(round(0.8 * percent), 80)
    assert (0.8 * percent).is_integer() and low < 0.5 < high and loss > math.log(2)
torch.manual_seed(123)
hits = (logits[0].argmax(dim=1) == answers).double()  # of one head; right[0] is their share
drawn = [wilson_interval(int(hits[torch.randint(len(hits), (80,))].sum()), 80) for _ in range(500)]
held = sum(low < right[0] < high for low, high in drawn)
assert 0.9 < held / len(drawn) < 0.99
print(f"checked: 80 of our messages drawn, {held} of {len(drawn)} 95 % intervals hold their share")

# %% [markdown]
# ## Exercises
#
# 1. Multiply a head's logits by four and by sixteen. What happens to its accuracy and its loss?
# 2. Of the collection's messages 87 in 100 are ham. What accuracy and loss has a classifier that
#    says `P(ham) = 0.87` of all of them, and would another number have a lower loss?
# 3. Keep the best of a thousand random heads, then train one for a hundred steps of gradient
#    descent on the same states. Which has the higher accuracy?
#
# Solutions: [`solutions/07_before_training.py`](solutions/07_before_training.py).
