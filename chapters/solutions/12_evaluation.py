# %% [markdown]
# # Solutions to chapter 12

# %%
import re
from collections import Counter
from tempfile import TemporaryDirectory

import numpy as np

from gpt2_from_scratch import (
    DataConfig,
    TrainConfig,
    evaluate_predictions,
    load_messages,
    split_messages,
    train_classifier,
    wilson_interval,
)

split = split_messages(load_messages("hard"), balance=True)

# %% [markdown]
# ## 1. A higher threshold
#
# Fewer messages are called spam, so less of the spam is found: recall can only fall or stay the same.
# The messages that are still called spam are those with the most confident answers, so precision
# usually rises. But it does not have to, because a confident answer can be wrong.

# %%
with TemporaryDirectory() as folder:
    balanced = DataConfig(source="hard", balance=True)
    run = train_classifier(
        "mini", balanced, TrainConfig(epochs=4), run=f"{folder}/run", cache=False
    )
    classifier = run.classifier
answers = classifier.predict([message.text for message in split.test])
p_spam = np.array([answer.probabilities["spam"] for answer in answers])
truth = np.array([message.label == "spam" for message in split.test]).astype(int)
recalls = []
for threshold in (0.5, 0.7, 0.9):
    called = (p_spam > threshold).astype(int)
    spam = evaluate_predictions(truth, called, ["ham", "spam"]).classes[1]
    precision = f"{spam.precision:.0%}" if spam.precision is not None else "undefined"
    print(f"P(spam) > {threshold}: recall {spam.recall:.0%}, precision {precision}")
    recalls.append(spam.recall)
assert recalls == sorted(recalls, reverse=True) and recalls[0] > recalls[-1]

# %% [markdown]
# ## 2. The best of twenty guesses
#
# The best of twenty has an accuracy of nearly 60%, and its interval often excludes one half, although
# it only guesses. The interval is meant for a single classifier that was not selected by its score. So
# select on the validation set, and use the test set once, at the end.

# %%
random = np.random.RandomState(123)
best = random.binomial(120, 0.5, size=(1000, 20)).max(axis=1)
misses = np.mean([wilson_interval(int(correct), 120)[0] > 0.5 for correct in best])
print(f"the best of twenty: {best.mean() / 120:.1%} on average; ", end="")
print(f"its interval is above one half in {misses:.0%} of the repetitions")
assert 0.55 < best.mean() / 120 < 0.65 and misses > 0.2, "for a single guesser, about 2.5%"

# %% [markdown]
# ## 3. Words found by counting
#
# We take words that occur in spam far more often than in ham. On the training set, on which they were
# selected, they do well. On the test set they do less well. Part of the training score came from the
# selection itself.

# %%
found = {"ham": Counter(), "spam": Counter()}
for message in split.train:
    found[message.label].update(set(re.findall(r"[a-z]+", message.text.lower())))
score = {word: found["spam"][word] - 3 * found["ham"][word] for word in sorted(found["spam"])}
words = sorted(score, key=lambda word: -score[word])[:40]
pattern = re.compile(rf"\b({'|'.join(words)})\b")
print(", ".join(words[:12]), "...")
right = {
    name: np.mean([bool(pattern.search(m.text.lower())) == (m.label == "spam") for m in part])
    for name, part in (("training", split.train), ("test", split.test))
}
print(", ".join(f"{name} {accuracy:.1%}" for name, accuracy in right.items()))
assert right["training"] > right["test"] > 0.5
