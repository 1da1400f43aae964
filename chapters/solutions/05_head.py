# %% [markdown]
# # Solutions to chapter 5

# %%
import csv
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from gpt2_from_scratch import (
    Classifier,
    DataConfig,
    TrainConfig,
    count_labels,
    load_messages,
    train_classifier,
)

# %% [markdown]
# ## 1. One output for two classes
#
# Softmax of two logits depends on their difference only: P(spam) = 1 / (1 + exp(ham - spam)). So one
# row, the second minus the first, says as much, read through the sigmoid. Two rows are kept because
# then three classes need no other code.

# %%
messages = load_messages("demo")
classifier = Classifier.on_base("mini", ["ham", "spam"])
head = classifier.model.head
encoded, _ = classifier.encode([message.text for message in messages[:20]])
two = classifier.logits(encoded).softmax(dim=1)[:, 1]
with torch.no_grad():
    row, bias = head.weight[1] - head.weight[0], head.bias[1] - head.bias[0]
    states = [classifier.model.hidden(torch.tensor([ids]))[0, -1] for ids in encoded]
    one = torch.sigmoid(torch.stack(states) @ row + bias)
print(f"P(spam) of 20 messages: the largest difference is {(one - two).abs().max():.0e}")
assert torch.allclose(one, two, atol=1e-5)

# %% [markdown]
# ## 2. Read at the first token
#
# The first token has seen itself only. Messages that begin with the same token get the same answer,
# whatever follows and whatever was trained: there are as many answers as first tokens.

# %%
first = Classifier.on_base("mini", ["ham", "spam"], pooling="first_token")
encoded, _ = first.encode([message.text for message in messages[:100]])
answer_of: dict[int, torch.Tensor] = {}
for ids, logits in zip(encoded, first.logits(encoded), strict=True):
    assert torch.allclose(answer_of.setdefault(ids[0], logits), logits, atol=1e-4)
distinct = torch.stack([*answer_of.values()]).round(decimals=3).unique(dim=0)
print(f"{len(encoded)} messages, {len(answer_of)} first tokens, {len(distinct)} answers")
assert len(distinct) <= len(answer_of) < len(encoded)

# %% [markdown]
# ## 3. Medicine or not
#
# Two labels in the file make a head of two rows; nothing else changes. "Always other" is right for
# two texts in three, so that is what the accuracy has to be compared with, not one half. With
# `balance=True` as many `other` are drawn as there are texts on medicine, and one half it is again.

# %%
topics = load_messages("topics")
rows = [(m.text, m.label if m.label == "medicine" else "other") for m in topics]
with TemporaryDirectory() as folder:
    path = Path(folder) / "medicine.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    counts = count_labels(load_messages(path))
    run = train_classifier(
        "mini",
        DataConfig(source=str(path), balance=True),
        TrainConfig(epochs=2, lr=1e-3),
        run=Path(folder) / "run",
        cache=False,
    )
    trained, scores = run.classifier, run.scores
always = counts["other"] / sum(counts.values())
low, high = scores.interval
print(f"{counts}: 'always other' is right for {always:.1%}")
print(f"balanced, trained: {scores.accuracy:.1%} ({low:.1%} to {high:.1%}) where a guess has 50.0%")
assert always == 2 / 3 and tuple(trained.model.head.weight.shape) == (2, 256)
assert scores.accuracy > 0.55
