# %% [markdown]
# # Solutions to chapter 6

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
# One is enough. The softmax of two logits depends only on their difference: P(spam) =
# 1 / (1 + exp(ham - spam)). So a single row, the second minus the first, gives the same probability
# through the sigmoid function. The package keeps two rows because then three classes need no other
# code.

# %%
messages = load_messages("sms")
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
# The first token has seen only itself. So messages that begin with the same token get the same answer,
# whatever follows it and however the classifier was trained. There are at most as many different
# answers as there are different first tokens.

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
# The file has two labels, so the head has two rows; nothing else changes. A classifier that always
# answers `other` is correct for two texts in three, so the accuracy must be compared with two thirds
# and not with one half. With `balance=True`, only as many `other` texts are drawn as there are texts
# about medicine. Then guessing is correct half of the time again.

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
print(f"{counts}: 'always other' is correct for {always:.1%}")
print(f"trained, balanced: {scores.accuracy:.1%} ({low:.1%} to {high:.1%}); guessing: 50.0%")
assert always == 2 / 3 and tuple(trained.model.head.weight.shape) == (2, 256)
assert scores.accuracy > 0.55
