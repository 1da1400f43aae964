# %% [markdown]
# # 10. Finetuning
#
# **You are here:** the lecture · messages → tokens → attention → network → weights → head → last token → freezing → loss → **finetuning** → use
#
# Everything is in place: messages, a network with a new head, a decision about what may change, and a
# loss that says how wrong the answers are. Now we train. The loop that does it is short, and in this
# chapter you run it yourself, from the first batch to the accuracy on the test set.
#
# **At the end you will know** what each line of a training loop does, how to read its curves, and
# what a library adds to it without changing its results.
#
# **Reading time:** 30 minutes. **Running time:** about twenty seconds, offline.

# %%
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure

from gpt2_from_scratch import (
    LABELS,
    Classifier,
    FeatureStore,
    TrainConfig,
    best_epoch,
    count_labels,
    evaluate_classifier,
    finetune,
    load_messages,
    pad_batch,
    rate_factor,
    set_trainable,
    split_messages,
)
from gpt2_from_scratch.course import picture, setting, show

MODEL, DATA = setting("mini")  # "124M": OpenAI's model. DATA: the SMS Spam Collection

# %% [markdown]
# ## The messages
#
# We split the real SMS collection as in chapter 1: as many ham as spam messages, and no text in two
# parts. To keep the running time short, we make two cuts. We use only the first 400 training
# messages, and we read only the first 40 tokens of each message. All validation and test messages
# stay. On your own machine you can delete the line that begins with `del` and wait a little longer.

# %%
split = split_messages(load_messages(DATA), balance=True)
print(len(split.train), "training messages, of which we use the first 400")
del split.train[400:]
for name in ("train", "val", "test"):
    print(f"{name:<6}", count_labels(getattr(split, name)))

# %% [markdown]
# ## The classifier
#
# This is the classifier of the previous chapters: the pretrained network with a new head that has two
# outputs. The last block, the final norm and the head are trainable. The rest is frozen. The package
# puts one more token at the end of every text, always the same one, and reads the answer there
# (chapter 13 shows why).

# %%
TOKENS = 40


def new_classifier():
    return Classifier.on_base(MODEL, LABELS, max_tokens=TOKENS, seed=123)


by_hand = new_classifier()
model = by_hand.model
set_trainable(model)
trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
print(f"{len(trainable)} of {len(list(model.parameters()))} tensors are trainable")


# %% [markdown]
# Training needs each message as token ids, and each label as a number: 0 for ham and 1 for spam. The
# function below does this for any list of messages.


# %%
def prepare(messages):
    ids, _ = by_hand.encode([message.text for message in messages])
    labels = [LABELS.index(message.label) for message in messages]
    return ids, torch.tensor(labels)


train_ids, train_labels = prepare(split.train)
val_ids, val_labels = prepare(split.val)
print(split.train[4])
print("token ids:", train_ids[4])
print("label:", train_labels[4])

# %% [markdown]
# ## How wrong are the answers?
#
# We begin with a single batch of eight messages. The shorter ones are padded on the right. The network
# returns two numbers at every position, so its output has the shape (8, T, 2). From each row we take
# the numbers at the last token of the text. These are the logits, and cross-entropy turns them into
# one number: the loss (chapter 9).
#
# A guess before you look: the head is new and random. What will the loss be, roughly?
# (Chapter 9 has the answer for a head that knows nothing.)


# %%
def logits_of(texts):
    ids, lengths = pad_batch(texts, by_hand.tokenizer.end_of_text_id)  # (B, T), (B,)
    outputs = model(ids)  # (B, T, 2)
    rows = torch.arange(len(texts))
    return outputs[rows, lengths - 1]  # (B, 2)


logits = logits_of(train_ids[:8])
loss = F.cross_entropy(logits, train_labels[:8])
print(logits.detach())
print("labels:", train_labels[:8].tolist())
print("answers:", logits.argmax(dim=1).tolist())
print(f"loss: {loss.item():.3f}")

# %% [markdown]
# ## One step
#
# A step changes the trainable parameters so that the loss on this batch gets smaller. It takes four
# lines:
#
# - `optimizer.zero_grad()` deletes the gradients of the step before. PyTorch adds new gradients to
#   the old ones, so without this line each step would also follow all earlier batches.
# - `loss = F.cross_entropy(...)` measures how wrong the answers are.
# - `loss.backward()` computes the gradients. For each trainable parameter, the gradient says how fast
#   the loss would rise if this parameter grew. It is stored in `.grad`. The parameters themselves do
#   not change yet.
# - `optimizer.step()` changes the parameters. The optimizer here is AdamW, the one that the lecture
#   uses. It moves each parameter against its gradient, and the *learning rate* says how far. AdamW can
#   also make each weight a little smaller in every step. That is its *weight decay*, which we switch
#   off here, to keep the step simple.

# %%
LR = 5e-4 if MODEL == "mini" else 5e-5  # wider networks need a lower rate
optimizer = torch.optim.AdamW(trainable, lr=LR, weight_decay=0.0)
bias = model.head.bias
print("before backward: gradient", bias.grad)

optimizer.zero_grad()
loss = F.cross_entropy(logits_of(train_ids[:8]), train_labels[:8])
loss.backward()
print("after backward:  gradient", bias.grad, "bias", bias.data)

optimizer.step()
print("after step:      gradient", bias.grad, "bias", bias.data)
after = F.cross_entropy(logits_of(train_ids[:8]), train_labels[:8])
print(f"loss of this batch: {loss.item():.3f} before the step, {after.item():.3f} after it")

# %% [markdown]
# One gradient is positive and the other negative, and each bias has moved the opposite way. The loss
# on these eight messages is lower. That is all that training does. The rest of the chapter repeats
# it, with other messages each time.

# %% [markdown]
# ## The loop
#
# One pass over all training messages is an *epoch*. At its start the messages are shuffled, so that
# each epoch has other batches. In the lecture a `DataLoader` does that (chapter 2). Here we draw the
# order ourselves, and in the same way as the package, so that we can compare the losses later: the
# random numbers of an epoch depend on a seed and on the number of the epoch. After each epoch we
# measure loss and accuracy on the validation set. No gradients are needed for that, so
# `torch.no_grad()` switches them off.


# %%
@torch.no_grad()
def evaluate(ids, labels):
    logits = logits_of(ids)
    loss = F.cross_entropy(logits, labels).item()
    accuracy = (logits.argmax(dim=1) == labels).float().mean().item()
    return loss, accuracy


# %% [markdown]
# We start again with new weights, so that the step above does not count. The loop prints the mean
# loss of every 50 steps, and the accuracy after each epoch.

# %%
by_hand = new_classifier()
model = by_hand.model
set_trainable(model)
trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
optimizer = torch.optim.AdamW(trainable, lr=LR, weight_decay=0.0)

SEED = 123
BATCH, EPOCHS = 8, 3
losses = []  # one per step
epochs = []  # of each epoch: training loss and accuracy, validation loss and accuracy
began = time.perf_counter()

for epoch in range(1, EPOCHS + 1):
    random = np.random.RandomState([SEED, epoch])  # seeded with two numbers
    order = random.permutation(len(train_ids))
    losses_of_epoch = []
    n_correct = 0
    for first in range(0, len(order), BATCH):
        batch = order[first : first + BATCH]
        optimizer.zero_grad()
        logits = logits_of([train_ids[n] for n in batch])
        loss = F.cross_entropy(logits, train_labels[batch])
        loss.backward()
        optimizer.step()

        losses.append(loss.item())
        losses_of_epoch.append(loss.item())
        n_correct += (logits.argmax(dim=1) == train_labels[batch]).sum().item()
        if len(losses) % 50 == 0:
            print(f"step {len(losses):>3}: mean loss of 50 steps {np.mean(losses[-50:]):.3f}")
    train_loss = np.mean(losses_of_epoch)
    val_loss, val_accuracy = evaluate(val_ids, val_labels)
    epochs.append((train_loss, n_correct / len(order), val_loss, val_accuracy))
    print(f"epoch {epoch}: training accuracy {n_correct / len(order):.1%}, ", end="")
    print(f"validation accuracy {val_accuracy:.1%}")

seconds_by_hand = time.perf_counter() - began

# %% [markdown]
# ## The curves
#
# On the left, each dot is the training loss of one step. The dots jump, because each batch has only
# eight messages and some messages are harder than others. The line is the mean of twenty steps, and
# the squares are the validation losses after each epoch. On the right are the accuracies of each
# epoch.

# %%
figure = Figure(figsize=(9, 3.4), layout="constrained")
left, right = figure.subplots(1, 2)
smooth = np.convolve(losses, np.ones(20) / 20, mode="valid")
left.plot(range(1, len(losses) + 1), losses, ".", color="#0072B2", alpha=0.35)
left.plot(range(10, 10 + len(smooth)), smooth, color="#0072B2")
ends = [len(losses) // EPOCHS * epoch for epoch in range(1, EPOCHS + 1)]
left.plot(ends, [row[2] for row in epochs], "s", color="#D55E00")
left.text(20, 0.79, "training: steps and their mean", color="#0072B2")
left.text(20, 0.72, "validation", color="#D55E00")
left.set(title="The loss falls, though not in every step", xlabel="step", ylabel="loss")

for column, mark, colour, name in (
    (1, "o-", "#0072B2", "training"),
    (3, "s-", "#D55E00", "validation"),
):
    percent = [100 * row[column] for row in epochs]
    right.plot([1, 2, 3], percent, mark, color=colour)
    right.text(1.05, percent[0] - 0.8, name, color=colour, va="top")
right.set(title="Accuracy in each epoch", xlabel="epoch", ylabel="accuracy (%)", xticks=[1, 2, 3])
right.set_ylim(75, 100)
picture(figure, "10-curves")

# %% [markdown]
# At first the training accuracy is lower than the validation accuracy. That is not a mistake. The
# training accuracy is counted during the epoch, while the classifier is still learning. The validation
# accuracy is measured at the end of the epoch, when it has learned more.

# %% [markdown]
# ## The test set, once
#
# The validation set has shown us how training went, and we may have decided things by it: how many
# epochs, which learning rate. So it can no longer judge the result fairly. The test set can. We use it
# once, at the end, and change nothing afterwards.

# %%
test_ids, test_labels = prepare(split.test)
test_loss, test_accuracy = evaluate(test_ids, test_labels)
n_test = len(test_labels)
print(f"test accuracy {test_accuracy:.1%}: {round(test_accuracy * n_test)} of {n_test} correct")

# %% [markdown]
# And what does the classifier say to a message that is in no part of the collection? The lecture's
# book tries these two:

# %%
WINNER = "You are a winner you have been specially selected to receive $1000 cash or a $2000 award."
DINNER = "Hey, just wanted to check if we're still on for dinner tonight? Let me know!"


def classify(text):
    ids, _ = by_hand.encode([text])
    with torch.no_grad():
        probabilities = logits_of(ids).softmax(dim=1)[0]
    return LABELS[probabilities.argmax()], probabilities[1].item()


for text in (WINNER, DINNER):
    label, p_spam = classify(text)
    print(f"{label}, P(spam) = {p_spam:.3f}: {text}")

# %% [markdown]
# ## The same numbers from the package
#
# `finetune` is the package's loop. It has the same lines as ours, and more settings. We choose them as
# in our loop: three epochs of batches of eight, the same learning rate in every step, no weight decay,
# and the same seed. The seed decides the random weights of the head and the order of the messages. A
# `FeatureStore` keeps what the frozen blocks compute in a folder, so that the second training below
# need not compute it again.

# %%
config = TrainConfig(
    epochs=EPOCHS,
    batch_size=BATCH,
    lr=LR,
    warmup=0.0,
    schedule="constant",
    weight_decay=0.0,
    seed=SEED,
)
TEMPORARY = TemporaryDirectory()  # gone when Python ends
folder = Path(TEMPORARY.name)
packaged = new_classifier()
packaged.store = FeatureStore(folder / "features")

began = time.perf_counter()
history = finetune(packaged, split, config, folder / "constant")
seconds_of_package = time.perf_counter() - began

print("          training loss        validation loss      validation accuracy")
print("epoch   by hand   package     by hand   package      by hand   package")
for row, found in zip(epochs, history, strict=True):
    print(f"{found.epoch:>5}{row[0]:>10.5f}{found.train_loss:>10.5f}", end="")
    print(f"{row[2]:>12.5f}{found.val_loss:>10.5f}{row[3]:>13.1%}{found.val_score:>10.1%}")

# %% [markdown]
# The losses agree in all five decimals. Further decimals may differ, because the package adds the same
# numbers in another order, and each sum is rounded.

# %% [markdown]
# ## What the package adds
#
# **It computes the frozen blocks only once.** A frozen block gives the same output for a message in
# every epoch. Our loop computed it again each time. The package computes it once and keeps it.
# Chapter 14 is about this. (The seconds depend on the machine, so the notebook does not show them.)

# %% tags=["clock"]
print(f"by hand {seconds_by_hand:.1f} s, package {seconds_of_package:.1f} s")

# %% [markdown]
# **It changes the learning rate during training.** At first the head is random, and the gradients are
# unreliable, so the first steps should be short. Near the end there is little left to learn, and long
# steps would only jump back and forth around the best values. So by default the rate rises during the
# first tenth of all steps (*warm-up*) and then falls to zero along half a cosine (*decay*).

# %%
show(rate_factor)

# %%
n_steps = len(losses)
print("step   factor of the learning rate")
for step in (0, 7, 15, 50, 100, n_steps - 1):
    print(f"{step:>4}   {rate_factor(step, n_steps, warmup=0.1):.3f}")
usual = new_classifier()
usual.store = packaged.store
falling = finetune(usual, split, replace(config, warmup=0.1, schedule="cosine"), folder / "cosine")
factors = [rate_factor(step, n_steps, warmup=0.1) for step in range(n_steps)]
print(f"mean   {np.mean(factors):.3f}")
for name, rows in (("constant", history), ("warm-up and decay", falling)):
    print(f"{name:<18} validation loss", *(f"{row.val_loss:.3f}" for row in rows))

# %% [markdown]
# In a training as short as this one, the constant rate even reaches the lower validation loss. That is
# no contradiction: with warm-up and decay the rate is only about half as high on average, so the
# weights have moved less far.
#
# **It keeps the best epoch.** More epochs are not always better. In a long training the classifier may
# begin to memorise its training messages: their loss goes on falling, while that of new messages does
# not. This is called *overfitting*. So after each epoch the package measures the accuracy on the
# validation set. At the end it returns to the weights of the best epoch.

# %%
show(best_epoch)

# %%
kept = best_epoch(history)
print(f"epoch {kept.epoch} is kept, with a validation accuracy of {kept.val_score:.1%}")

# %% [markdown]
# ## What you know now
#
# - A training step has four lines: delete the old gradients, compute the loss, compute the gradients,
#   change the parameters.
# - An epoch is one pass over the training messages, in a new order.
# - The loss of single batches jumps; the mean over many batches falls.
# - The validation set is for decisions during training. The test set is used once, at the end.
# - `finetune` is the same loop, with the same losses. It saves time, changes the learning rate during
#   training, and keeps the best epoch.

# %% [markdown]
# ## Checks
#
# These cells check what the chapter said. They are folded in the notebook; an error here means that
# something is wrong.

# %% check
with torch.no_grad():
    logits = logits_of(test_ids[:8])
rows = torch.arange(8)
formula = -logits.softmax(dim=1)[rows, test_labels[:8]].log().mean()
assert torch.allclose(formula, F.cross_entropy(logits, test_labels[:8]), atol=1e-6)
print("checked: the loss is the mean of -log(probability of the correct label)")

# %% check
for row, found in zip(epochs, history, strict=True):
    assert abs(row[0] - found.train_loss) < 5e-4 and abs(row[2] - found.val_loss) < 5e-4
    assert abs(row[1] - found.train_score) * len(split.train) < 1.5, "at most one answer differs"
    assert abs(row[3] - found.val_score) * len(split.val) < 1.5, "at most one answer differs"
print("checked: the loop by hand and finetune have the same losses and accuracies")

# %% check
pretrained = new_classifier().model
for (name, now), before in zip(model.named_parameters(), pretrained.parameters(), strict=True):
    assert torch.equal(now, before) != now.requires_grad, name
print("checked: the loop changed every trainable tensor and no other")

# %% check
weight = model.head.weight
weight.grad = None
F.cross_entropy(logits_of(train_ids[:8]), train_labels[:8]).backward()
once = weight.grad.clone()
F.cross_entropy(logits_of(train_ids[:8]), train_labels[:8]).backward()
assert torch.allclose(weight.grad, 2 * once, rtol=1e-3, atol=1e-6)
print("checked: without zero_grad, a second backward adds its gradient to the first")

# %% check
assert np.mean(losses[-20:]) < np.mean(losses[:20]) / 2
again = evaluate_classifier(packaged, split.val)
assert abs(again.accuracy - kept.val_score) * again.total < 1.5
assert kept.val_score == max(row.val_score for row in history)
assert test_accuracy > 0.85
print("checked: the loss fell, and finetune left the weights of the best epoch")

# %% [markdown]
# ## Exercises
#
# 1. (easy) Leave `zero_grad` out of the loop, and use four times our learning rate. Which gradient does
#    each step follow then? What does the loss do?
#    <details><summary>Hint</summary>The last check shows what a second `backward` does to `.grad`.</details>
# 2. (medium) At 29:59 the lecturer suggests to train the last two blocks, or to leave out the final
#    norm. Try both. Is one of them better than what we did?
#    <details><summary>Hint</summary>`TrainConfig` has the settings `n_last_blocks` and `final_norm`;
#    `wilson_interval` says how certain an accuracy is.</details>
# 3. (hard) The lecture draws its batches with PyTorch's `DataLoader`, and now and then computes the loss
#    on some of the training batches. Why does one more computation of the loss change all later
#    batches? How would you prevent it?
#    <details><summary>Hint</summary>A loader that shuffles draws a new order from torch's global
#    random generator in every pass.</details>
#
# Solutions: [`solutions/10_finetuning.py`](solutions/10_finetuning.py).
