# %% [markdown]
# # Solutions to chapter 10

# %%
import numpy as np
import torch
import torch.nn.functional as F

from gpt2_from_scratch import (
    LABELS,
    Classifier,
    TrainConfig,
    load_messages,
    set_trainable,
    split_messages,
)

split = split_messages(load_messages("sms")[:2000], balance=True)
LR = TrainConfig().lr

# %% [markdown]
# ## 1. Without zero_grad
#
# Each step then follows the sum of all gradients since the beginning, and the gradient of the first
# batch counts as much as the last one's. As long as the gradients agree, this does no harm. But when
# the direction should change, the old sum still points the old way. At four times our learning rate
# this is visible within sixty steps. With `zero_grad` the loss falls to almost 0. Without it, the loss
# jumps up and down and ends far higher. (We use half of the messages, and compute the frozen blocks
# once, so that the steps are fast.)

# %%
part = split.train[::2]
labels = torch.tensor([LABELS.index(message.label) for message in part])
frozen, means = Classifier.on_base("mini", LABELS), {}
set_trainable(frozen.model)
texts = frozen.texts(frozen.encode([m.text for m in part])[0])
for forget in (False, True):
    classifier = Classifier.on_base("mini", LABELS)
    set_trainable(classifier.model)
    trainable = [p for p in classifier.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=4 * LR, weight_decay=0.1)
    random, losses = np.random.RandomState(1), []
    for _ in range(60):
        batch = random.permutation(len(part))[:16]
        if forget:
            optimizer.zero_grad()
        loss = F.cross_entropy(classifier.batch_logits(texts, batch), labels[batch])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    means[forget] = np.reshape(losses, (6, 10)).mean(axis=1)  # of ten steps each
    print("with zero_grad   " if forget else "without zero_grad", *means[forget].round(2))
assert abs(means[True][0] - means[False][0]) < 0.2, "at first they agree"
assert means[True][-1] < means[True][0] / 2 and means[False][-1] > means[True][-1] + 0.2

# %% [markdown]
# ## 2. AdamW's first step
#
# Both move by the same distance: one learning rate, whether the gradient is large or small. AdamW
# divides the mean of the gradients by the square root of the mean of their squares. For a single
# gradient this ratio is 1 or -1, unless the gradient is as small as AdamW's eps of 1e-8, which is added
# to the denominator. (Weight decay, which is off here, would add a small step towards zero.)

# %%
fresh = Classifier.on_base("mini", LABELS)
weight = fresh.model.head.weight
before = weight.detach().clone()
optimizer = torch.optim.AdamW([weight], lr=LR, weight_decay=0.0)
F.cross_entropy(fresh.batch_logits(texts, range(16)), labels[:16]).backward()
optimizer.step()
size, moved = weight.grad.abs(), (weight.detach() - before) / LR
print(f"gradients of size {size.min():.0e} to {size.max():.0e}")
print(f"steps of {moved.abs().min():.3f} to {moved.abs().max():.3f} times the learning rate")
assert size.max() > 50 * size.min()
assert (moved + weight.grad.sign()).abs().max() < 0.01, "one learning rate, against the gradient"

# %% [markdown]
# ## 3. Forty messages
#
# They differ by several points, although the classifier is always the same one. So if the lecture's
# curve of accuracies goes up or down by a few points, that may be learning, or it may only be a
# different draw of messages.

# %%
encoded, _ = classifier.encode([message.text for message in split.test])
truth = np.array([LABELS.index(message.label) for message in split.test])
right = classifier.logits(encoded).argmax(dim=1).numpy() == truth
random = np.random.RandomState(0)
looks = [right[random.permutation(len(right))[:40]].mean() for _ in range(200)]
print(f"all {len(right)}: {right.mean():.1%}; forty of them, two hundred times: ", end="")
print(f"{min(looks):.1%} to {max(looks):.1%}")
assert max(looks) - min(looks) > 0.07 and abs(np.mean(looks) - right.mean()) < 0.02
