# %% [markdown]
# # Solutions to chapter 12

# %%
import re
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from gpt2_from_scratch import (
    LABELS,
    Classifier,
    TrainConfig,
    evaluate_predictions,
    finetune,
    load_messages,
    split_messages,
    wilson_interval,
)

split = split_messages(load_messages("hard"), balance=True)

# %% [markdown]
# ## 1. A higher threshold
#
# > Call a message spam only if P(spam) is above `0.9`. What will happen to precision and recall?
#
# Fewer messages are called spam, so less of the spam is found: recall can only fall or stay the same.
# The messages that are still called spam are those about which the network is most certain, so
# precision usually rises. But it does not have to, because a confident answer can be wrong.

# %%
classifier = Classifier.on_base("mini", LABELS)
with TemporaryDirectory() as folder:
    finetune(classifier, split, TrainConfig(epochs=5), Path(folder))
answers = classifier.predict([message.text for message in split.test])
p_spam = np.array([answer.probabilities["spam"] for answer in answers])
true = np.array([LABELS.index(message.label) for message in split.test])

recalls = []
for threshold in (0.5, 0.7, 0.9):
    called = (p_spam > threshold).astype(int)
    spam = evaluate_predictions(true, called, LABELS).classes[1]
    recalls.append(spam.recall)
    print(f"P(spam) > {threshold}: {called.sum()} called spam, recall {spam.recall:.0%}, ", end="")
    print("precision", "undefined" if spam.precision is None else f"{spam.precision:.0%}")
assert recalls == sorted(recalls, reverse=True)
assert recalls[0] > recalls[-1]

# %% [markdown]
# ## 2. Words found by counting
#
# > Find words for a regular expression by counting in the training set. How well do they do there, and
# > how well on the test set?
#
# We take words that are frequent in spam and rare in ham. On the training set, on which they were
# selected, they do well. On the test set they do less well: part of the training score came from the
# selection itself.

# %%
in_ham, in_spam = Counter(), Counter()
for message in split.train:
    words_of_message = set(re.findall(r"[a-z]+", message.text.lower()))
    if message.label == "spam":
        in_spam.update(words_of_message)
    else:
        in_ham.update(words_of_message)


def difference(word):
    return in_spam[word] - 3 * in_ham[word]


words = sorted(sorted(in_spam), key=difference, reverse=True)[:40]
pattern = re.compile(rf"\b({'|'.join(words)})\b")
print(", ".join(words[:12]), "...")

accuracy = {}
for name, part in (("training", split.train), ("test", split.test)):
    right = 0
    for message in part:
        has_word = bool(pattern.search(message.text.lower()))
        right += has_word == (message.label == "spam")
    accuracy[name] = right / len(part)
    print(f"{name}: {right} of {len(part)} correct, {accuracy[name]:.1%}")
assert accuracy["training"] > accuracy["test"] > 0.5

# %% [markdown]
# ## 3. The best of twenty guesses
#
# > Twenty classifiers guess at random on 120 messages, and you keep the best one. What does its 95%
# > interval say? What should you have done?
#
# The best of twenty has an accuracy of nearly 60%, and its interval often excludes one half, although it
# only guesses. The interval is meant for a single classifier that was not selected by this score. So
# select on the validation set, and use the test set once, at the end.

# %%
random = np.random.RandomState(123)
correct = random.binomial(120, 0.5, size=(1000, 20))  # 1,000 repetitions, 20 classifiers each
best = correct.max(axis=1)
above = 0
for n_correct in best:
    low, _ = wilson_interval(int(n_correct), 120)
    above += low > 0.5
print(f"the best of twenty: {best.mean() / 120:.1%} on average")
print(f"its interval is above one half in {above} of 1,000 repetitions")
assert 0.55 < best.mean() / 120 < 0.65
assert above > 200, "for a single classifier it would be about 25"
