# %% [markdown]
# # 9. Before training
#
# How well does a classifier do before it has learned anything? You need to know this in order to see
# what training adds.
#
# **At the end you will know** what accuracy and loss an untrained head has and why, what
# cross-entropy is, why training follows the loss and not the accuracy, and how little a score on a
# few messages says. **Time:** a few seconds, offline.

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

MODEL, DATA = setting("mini")  # "124M": OpenAI's model. DATA: the SMS Spam Collection

# %% [markdown]
# ## A new head is a guess
#
# The head reads the state of a message's last token: C numbers that GPT-2 computes from the
# message. If all of GPT-2 is frozen (chapter 8), these numbers never change, so we compute them
# once, for 200 training messages. Then we create twenty heads with twenty different seeds. Each has
# its own random weights, and all of them read the same states. The accuracy of a single head can be
# far above or below one half, because by chance it may separate ham from spam, or do the opposite.

# %%
train = split_messages(load_messages(DATA), balance=True).train[:200]
labels = sorted({message.label for message in train})
answers = torch.tensor([labels.index(message.label) for message in train])
classifier = Classifier.on_base(MODEL, labels)
set_trainable(classifier.model, n_last_blocks=0, final_norm=False)
texts = classifier.texts(classifier.encode([m.text for m in train])[0])
x, lengths = texts.batch(range(len(train)))  # the output of the last block: (N, T, C)
states = pool(classifier.model.ln_f(x), lengths, "last_token").detach()  # (N, C)
logits = []  # of each head: (N, 2)
for seed in range(20):
    torch.manual_seed(seed)
    replace_head(classifier.model, len(labels))
    logits.append(classifier.model.head(states).detach())
right = torch.tensor([(found.argmax(dim=1) == answers).double().mean() for found in logits])
print(f"accuracy: lowest {right.min():.2%}, mean {right.mean():.2%}, highest {right.max():.2%}")

# %% check
assert torch.allclose(logits[-1], classifier.logits(texts), atol=1e-3), "the package's logits"
# a head with all signs flipped is equally probable, and it is correct where the first one is wrong
mirrored = torch.tensor([((-found).argmax(dim=1) == answers).double().mean() for found in logits])
assert torch.allclose(right + mirrored, torch.ones(20).double())
assert right.min() < 0.5 < right.max() and abs(right.mean() - 0.5) < 0.1
print("checked: a head and its mirror image are equally probable; their mean accuracy is one half")

# %% [markdown]
# ## The loss
#
# Accuracy only looks at which logit is larger. The loss also looks at how confident the answer was.
# Softmax turns the logits into probabilities. The loss, which is called *cross-entropy*, is minus the
# logarithm of the probability of the correct class.

# %%
ham, spam = logits[0][0].tolist()
p = math.exp(spam) / (math.exp(ham) + math.exp(spam))
by_hand = -math.log(p if labels[answers[0]] == "spam" else 1 - p)
print(f"{train[0].text!r} is {train[0].label}")
print(f"logits {ham:.4f}, {spam:.4f}: P(spam) {p:.4f}, loss {by_hand:.4f}")

# %% [markdown]
# A classifier that knows nothing, and says so, gives each class a probability of one half, and its
# loss is ln 2. A classifier that knows nothing but is confident is wrong half of the time too. But
# its mean loss is higher, because it pays more for a wrong answer than it saves with a correct one:

# %%
print("P(its answer)   loss if correct   loss if wrong   on average")
for p in (0.5, 0.6, 0.9, 0.99):
    correct, wrong = -math.log(p), -math.log(1 - p)
    print(f"{p:>13.2f} {correct:>17.3f} {wrong:>15.3f} {(correct + wrong) / 2:>12.3f}")
losses = torch.stack([F.cross_entropy(found, answers) for found in logits])
print(f"our heads: lowest {losses.min():.3f}, mean {losses.mean():.3f}, highest {losses.max():.3f}")

# %% check
assert math.isclose(by_hand, F.cross_entropy(logits[0][:1], answers[:1]).item(), abs_tol=1e-5)
assert math.isclose(F.cross_entropy(0 * logits[0], answers).item(), math.log(2), abs_tol=1e-6)
other = torch.stack([F.cross_entropy(-found, answers) for found in logits])
assert losses.mean() > math.log(2) and ((losses + other) / 2 > math.log(2)).all()
print(f"checked: one half each gives ln 2 = {math.log(2):.4f}; random heads, on average, more")

# %% [markdown]
# ## Why training follows the loss
#
# Training changes each weight a little, in the direction in which the result gets better. This
# works only if a small change makes a difference. But accuracy changes only when a message crosses
# from one answer to the other. Here we change one weight of the head, first by a lot and then by
# less and less. The smaller the change, the closer the loss per unit comes to a fixed slope:

# %%
head, states = classifier.model.head.double(), states.double()  # float32 is too coarse for this
before = head(states)
loss = F.cross_entropy(before, answers)
loss.backward()
row, column = divmod(int(head.weight.grad.abs().argmax()), states.shape[1])  # largest gradient
gradient, slopes, flips = head.weight.grad[row, column].item(), {}, {}
print("  change   change in loss     per unit   change in correct answers")
for step in (1.0, 1e-1, 1e-2, 1e-4, 1e-6):
    weight = head.weight.detach().clone()
    weight[row, column] += step
    after = F.linear(states, weight, head.bias)
    slopes[step] = (F.cross_entropy(after, answers) - loss).item() / step
    flips[step] = int((after.argmax(1) == answers).sum() - (before.argmax(1) == answers).sum())
    print(f"{step:>8g} {slopes[step] * step:>15.8f} {slopes[step]:>13.6f} {flips[step]:>10}")

# %% check
assert math.isclose(slopes[1e-6], gradient, rel_tol=1e-4) and abs(gradient) > 1e-3
assert flips[1e-6] == 0, "as many correct answers as before"
print(f"checked: backward() computes the slope of the loss, {gradient:.6f}; that of accuracy is 0")

# %% [markdown]
# ## What the lecture prints here
#
# With OpenAI's weights, the lecture prints the accuracy on ten batches of eight messages from each
# part, and the loss on five batches. The fewer messages there are, the less certain a percentage
# is. The 95% interval (Wilson's, see chapter 12) shows how uncertain it is. One half lies inside all
# three intervals, so none of these accuracies differs significantly from guessing. The losses are
# far above ln 2, because the large model's states give large logits (exercise 1).

# %%
LECTURE = {"training": (46.25, 2.453), "validation": (45.00, 2.583), "test": (48.75, 2.322)}
for part, (percent, loss) in LECTURE.items():  # as published; `--recipe lecture` prints them too
    interval = "{:.1%} to {:.1%}".format(*wilson_interval(round(0.8 * percent), 80))
    print(f"{part:<10} {percent:.2f}% of 80: {interval}; loss {loss} = -ln {math.exp(-loss):.3f}")

# %% check
for percent, loss in LECTURE.values():
    low, high = wilson_interval(round(0.8 * percent), 80)
    assert (0.8 * percent).is_integer() and low < 0.5 < high and loss > math.log(2)
torch.manual_seed(123)
hits = (logits[0].argmax(dim=1) == answers).double()  # of one head, whose accuracy is right[0]
drawn = [wilson_interval(int(hits[torch.randint(len(hits), (80,))].sum()), 80) for _ in range(500)]
held = sum(low < right[0] < high for low, high in drawn)
assert 0.9 < held / len(drawn) < 0.99
print(f"checked: {held} of {len(drawn)} intervals, each of 80 messages, contain the true accuracy")

# %% [markdown]
# ## Exercises
#
# 1. Multiply the logits of a head by four and by sixteen. What happens to its accuracy and its loss?
# 2. In the collection, 87 of 100 messages are ham. A classifier answers `P(ham) = 0.87` for every
#    message. What are its accuracy and its loss? Would another number give a lower loss?
# 3. Select the best of a thousand random heads. Then train one head for a hundred steps of gradient
#    descent on the same states. Which of the two has the higher accuracy?
#
# Solutions: [`solutions/09_loss_and_accuracy.py`](solutions/09_loss_and_accuracy.py).
