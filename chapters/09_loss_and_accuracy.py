# %% [markdown]
# # 9. Loss and accuracy
#
# **You are here:** the lecture · messages → tokens → attention → network → weights → head → last token → freezing → **loss** → finetuning → use
#
# The new head is random, so its answers are guesses. How good are guesses? We have to know that before
# we can say what training has added. We also need a number that training can improve step by step, and
# accuracy is not that number.
#
# **At the end you will know** how accurate a random head is and why, what cross-entropy measures, why
# a classifier that knows nothing should have a loss of ln 2, and why training follows the loss and not
# the accuracy.
#
# **Reading time:** 20 minutes. **Running time:** a few seconds, offline.

# %%
import math

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import nn

from gpt2_from_scratch import (
    LABELS,
    Classifier,
    Tokenizer,
    encode_texts,
    load_gpt2,
    load_messages,
    model_folder,
    pad_batch,
    split_messages,
    wilson_interval,
)
from gpt2_from_scratch.course import picture, setting

MODEL, DATA = setting("mini")  # "124M": OpenAI's model. DATA: the SMS Spam Collection

# %% [markdown]
# ## A new head is a guess
#
# The head reads the state of a message's last token: C numbers, which GPT-2 computes. In this chapter
# all of GPT-2 is frozen. Then these states never change, and we need to compute them only once. We
# take 200 training messages, about half of them spam, and keep at most 40 tokens of each to save time.

# %%
model = load_gpt2(MODEL)
tokenizer = Tokenizer(model_folder(MODEL))
messages = split_messages(load_messages(DATA), balance=True).train[:200]
encoded, _ = encode_texts([message.text for message in messages], tokenizer, 40)
found = []
for first in range(0, 200, 20):
    ids, lengths = pad_batch(encoded[first : first + 20], tokenizer.end_of_text_id)
    with torch.no_grad():
        found.append(model.hidden(ids)[torch.arange(20), lengths - 1])  # (20, C)
states = torch.cat(found).double()  # float64, because we will need small differences
labels = torch.tensor([LABELS.index(message.label) for message in messages])
print("states", tuple(states.shape), " labels", labels[:10].tolist(), "...")

# %% [markdown]
# *Accuracy* is the proportion of correct answers. What accuracy do you expect from a random head? We
# try twenty, each with its own seed. They all read the same states.

# %%
heads = []
accuracies = []
for seed in range(20):
    torch.manual_seed(seed)
    head = nn.Linear(model.config.n_embd, 2).double()
    answers = head(states).argmax(dim=1)
    accuracy = (answers == labels).double().mean().item()
    heads.append(head)
    accuracies.append(accuracy)
    print(f"{accuracy:.1%}", end="  " if seed % 10 < 9 else "\n")
mean = sum(accuracies) / len(accuracies)
print(f"lowest {min(accuracies):.1%}, mean {mean:.1%}, highest {max(accuracies):.1%}")

# %% [markdown]
# The mean is near one half. But single heads can be far away from it, as the lowest one is. None of
# them has learned anything. How can a random head be much worse than guessing?
#
# A head divides the messages into two groups, and messages with similar states end up in the same
# group. So a random head may happen to put most of the spam into one group. But it is chance which of
# the two groups it calls spam. Each head has a mirror image: if you change the sign of every weight
# and every bias, every answer becomes the opposite.

# %%
print("seed   accuracy   mirror image   sum")
for seed in range(4):
    mirrored = (-heads[seed](states)).argmax(dim=1)
    mirror_accuracy = (mirrored == labels).double().mean().item()
    total = accuracies[seed] + mirror_accuracy
    print(f"{seed:>4} {accuracies[seed]:>10.1%} {mirror_accuracy:>14.1%} {total:>5.0%}")

# %% [markdown]
# A head and its mirror image are equally probable, and their accuracies add up to 100%. So the average
# accuracy of all possible random heads is one half, even if most messages are ham.

# %% [markdown]
# ## The loss
#
# Accuracy looks only at which logit is larger. Two heads with the same answers may differ in how sure
# they are. The *loss* takes that into account. Softmax turns the logits into probabilities. The loss
# of a message is minus the logarithm of the probability of its correct class. It is called
# *cross-entropy*.

# %%
ham, spam = heads[0](states)[0].tolist()
p_spam = math.exp(spam) / (math.exp(ham) + math.exp(spam))
p_correct = p_spam if messages[0].label == "spam" else 1 - p_spam
print(f"{messages[0].text[:60]!r} is {messages[0].label}")
print(f"logits {ham:.4f} and {spam:.4f}: P(spam) = {p_spam:.4f}")
print(f"P(correct class) = {p_correct:.4f}, loss = {-math.log(p_correct):.4f}")
print(f"torch: {F.cross_entropy(heads[0](states)[:1], labels[:1]).item():.4f}")

# %% [markdown]
# If the correct class has a probability of 1, the loss is 0. The smaller that probability, the larger
# the loss. The loss of several messages is the mean.
#
# Suppose a classifier knows nothing. It can admit that and always say one half. Or it can pretend to
# be sure, and then it is wrong half of the time. Which costs less? Guess, and then read the last
# column:

# %%
print("P(its answer)   loss if correct   loss if wrong   mean")
for p in (0.5, 0.6, 0.9, 0.99):
    correct = -math.log(p)
    wrong = -math.log(1 - p)
    print(f"{p:>13.2f} {correct:>17.3f} {wrong:>15.3f} {(correct + wrong) / 2:>6.3f}")
print(f"ln 2 = {math.log(2):.3f}")

# %% [markdown]
# The lowest mean belongs to the classifier that admits that it knows nothing. A confident wrong answer
# costs more than a confident correct answer saves. So for two classes, a loss of ln 2 is what a
# classifier has that knows nothing and says so. Remember this number: on balanced messages, a loss
# above it means that the classifier is more confident than it should be. Our random heads, without
# training:

# %%
losses = [F.cross_entropy(head(states), labels).item() for head in heads]
print(f"lowest {min(losses):.3f}, mean {sum(losses) / len(losses):.3f}, highest {max(losses):.3f}")

# %% [markdown]
# ## Why training follows the loss
#
# Training changes each weight a little, in the direction in which the result gets better. That works
# only if a small change makes a difference. To see whether it does, we go from one random head to
# another in 400 small steps. At each step we compute the loss and the accuracy on 40 messages.

# %%
start, goal = heads[0](states[:40]), heads[3](states[:40])
steps = torch.linspace(0, 1, 401).double()
loss_on_the_way = []
accuracy_on_the_way = []
for step in steps:
    logits = (1 - step) * start + step * goal  # the logits of the head that lies in between
    loss_on_the_way.append(F.cross_entropy(logits, labels[:40]).item())
    accuracy_on_the_way.append(100 * (logits.argmax(dim=1) == labels[:40]).double().mean().item())

# %%
figure = Figure(figsize=(8, 4), layout="constrained")
upper, lower = figure.subplots(2, 1, sharex=True)
upper.plot(steps, loss_on_the_way, color="#0072B2")
upper.set(ylabel="loss", title="The loss is a slope: it says at every point where down is")
lower.plot(steps, accuracy_on_the_way, color="#D55E00", drawstyle="steps-mid")
lower.set(ylabel="accuracy (%)", title="The accuracy is a staircase: flat nearly everywhere")
lower.set_xlabel("way from one random head (0) to another (1)")
for panel in (upper, lower):
    panel.grid(alpha=0.3)
picture(figure, "09-slope-and-stairs")

# %% [markdown]
# The accuracy changes only when a message crosses from one answer to the other. Between two crossings
# it is flat, and a flat line does not say which way is better. The loss changes with every step.
#
# Now we look closer, at a single weight of the head and all 200 messages. We change the weight by a
# lot, and then by less and less. The third column is the change in loss divided by the change of the
# weight.

# %%
head = heads[0]
loss = F.cross_entropy(head(states), labels)
loss.backward()
number = head.weight.grad.abs().argmax().item()  # the weight with the largest gradient
gradient = head.weight.grad.flatten()[number].item()
before = (head(states).argmax(dim=1) == labels).sum().item()
slopes = []
flips = []
print("  change   change in loss   per unit   change in correct answers")
for change in (1.0, 0.1, 0.01, 0.0001, 0.000001):
    weight = head.weight.detach().clone()
    weight.view(-1)[number] += change
    logits = F.linear(states, weight, head.bias)
    difference = (F.cross_entropy(logits, labels) - loss).item()
    slopes.append(difference / change)
    flips.append((logits.argmax(dim=1) == labels).sum().item() - before)
    print(f"{change:>8g} {difference:>16.8f} {slopes[-1]:>10.6f} {flips[-1]:>11}")
print(f"the gradient from backward(): {gradient:.6f}")

# %% [markdown]
# The smaller the change, the closer the third column comes to a fixed number. This number is the slope
# of the loss, and it is exactly what `backward()` has computed as the gradient. The accuracy has no
# slope: if the change is small enough, not one answer changes. So training follows the loss. We report
# the accuracy, because it is easier to understand.

# %% [markdown]
# ## What the book prints before training
#
# With OpenAI's weights, the book's notebook prints accuracy and loss at this point. It takes 80
# messages of each part for the accuracy. Are these accuracies different from guessing? With so few
# messages, a percentage is uncertain. The 95% interval shows how uncertain (chapter 12): the true
# accuracy probably lies between its two ends.

# %%
PUBLISHED = {"training": (46.25, 2.453), "validation": (45.00, 2.583), "test": (48.75, 2.322)}
for part, (percent, published_loss) in PUBLISHED.items():
    correct = round(0.8 * percent)
    low, high = wilson_interval(correct, 80)
    print(f"{part:<10} {percent:.2f}% = {correct} of 80, interval {low:.1%} to {high:.1%}", end="")
    print(f", loss {published_loss}")

# %% [markdown]
# One half lies in all three intervals, so none of the accuracies is significantly different from
# guessing. The losses are far above ln 2. So this untrained head is wrong with great confidence. The
# states of the large model are large numbers, which make large logits (exercise 1 shows what that does
# to a loss).

# %% [markdown]
# ## What you know now
#
# - A random head has an accuracy of one half on average. A single one can be far above or below.
# - Cross-entropy is minus the logarithm of the probability of the correct class.
# - A two-class classifier that knows nothing and says so has a loss of ln 2. False confidence costs
#   more.
# - The loss has a slope, which `backward()` computes. The accuracy is a staircase and has none.
# - On 80 messages, the accuracies that the book prints before training cannot be distinguished from guessing.

# %% [markdown]
# ## Checks
#
# These cells check what the chapter said. They are folded in the notebook; an error here means that
# something is wrong.

# %% check
classifier = Classifier.on_base(MODEL, LABELS, pooling="last_token")
classifier.model.head.load_state_dict(heads[5].state_dict())
packed = classifier.logits(encoded[:20])  # the package's own way to compute the same logits
assert torch.allclose(packed, heads[5](states[:20]).float(), atol=1e-3)
print("checked: the states are those that the package's classifier reads")

# %% check
for head, accuracy in zip(heads, accuracies, strict=True):
    mirror = nn.Linear(model.config.n_embd, 2).double()
    mirror.weight.data = -head.weight.data
    mirror.bias.data = -head.bias.data
    mirrored = (mirror(states).argmax(dim=1) == labels).double().mean().item()
    assert math.isclose(accuracy + mirrored, 1)
assert min(accuracies) < 0.5 < max(accuracies) and abs(mean - 0.5) < 0.1
print("checked: a head and its mirror image are correct on opposite messages")

# %% check
log_probabilities = heads[0](states).log_softmax(dim=1)
by_hand = -log_probabilities[torch.arange(200), labels].mean().item()
assert math.isclose(by_hand, losses[0], abs_tol=1e-9)
assert math.isclose(F.cross_entropy(heads[0](states)[:1], labels[:1]).item(), -math.log(p_correct))
assert math.isclose(F.cross_entropy(0 * states[:, :2], labels).item(), math.log(2))
for head, loss_of_head in zip(heads, losses, strict=True):
    mirrored_loss = F.cross_entropy(-head(states), labels).item()
    assert (loss_of_head + mirrored_loss) / 2 > math.log(2)
print("checked: one half each gives ln 2; a head and its mirror image, on average, more")

# %% check
between = 0.25 * heads[3].weight + 0.75 * heads[0].weight
shift = 0.25 * heads[3].bias + 0.75 * heads[0].bias
on_the_way = F.cross_entropy(F.linear(states[:40], between, shift), labels[:40]).item()
assert math.isclose(on_the_way, loss_on_the_way[100], abs_tol=1e-9)
flat = sum(a == b for a, b in zip(accuracy_on_the_way, accuracy_on_the_way[1:], strict=False))
moving = sum(a != b for a, b in zip(loss_on_the_way, loss_on_the_way[1:], strict=False))
assert flat > 350 and moving == 400
print(f"checked: in {flat} of 400 steps the accuracy stays the same; the loss changes in all")

# %% check
assert math.isclose(slopes[-1], gradient, rel_tol=1e-4) and abs(gradient) > 1e-3
assert flips[-1] == 0
print("checked: the slope of the loss is the gradient; the slope of the accuracy is 0")

# %% check
for percent, published_loss in PUBLISHED.values():
    low, high = wilson_interval(round(0.8 * percent), 80)
    assert (0.8 * percent).is_integer() and low < 0.5 < high and published_loss > math.log(2)
hits = (heads[0](states).argmax(dim=1) == labels).long()
torch.manual_seed(123)
contained = 0
for _ in range(500):  # draw 80 of the 200 messages, and see whether the interval is right
    low, high = wilson_interval(hits[torch.randint(200, (80,))].sum().item(), 80)
    contained += low < accuracies[0] < high
assert 0.9 < contained / 500 < 0.99
print(f"checked: {contained} of 500 intervals, each of 80 messages, contain the true accuracy")

# %% [markdown]
# ## Exercises
#
# 1. (easy) Multiply the logits of a head by four and by sixteen. What happens to its accuracy, and
#    what to its loss?
#    <details><summary>Hint</summary>Which logit is the larger one afterwards?</details>
# 2. (medium) In the collection, 87 of 100 messages are ham. A classifier answers `P(ham) = 0.87` for
#    every message. What are its accuracy and its loss? Would another number give a lower loss?
#    <details><summary>Hint</summary>Ham has one loss and spam another. Take the weighted mean.</details>
# 3. (hard) Select the best of a thousand random heads. Then train one head for a hundred steps of
#    gradient descent on the same states. Which has the higher accuracy on them?
#    <details><summary>Hint</summary>A step subtracts 0.5 times the gradient from each weight.</details>
#
# Solutions: [`solutions/09_loss_and_accuracy.py`](solutions/09_loss_and_accuracy.py).
