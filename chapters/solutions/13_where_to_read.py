# %% [markdown]
# # Solutions to chapter 13

# %%
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from gpt2_from_scratch import (
    LABELS,
    Classifier,
    Split,
    Tokenizer,
    TrainConfig,
    class_logits,
    finetune,
    load_messages,
    model_folder,
    pad_batch,
    split_messages,
)

tokenizer = Tokenizer(model_folder("mini"))
short = [m for m in load_messages("sms") if len(tokenizer.encode(m.text)) <= 40]
parts = split_messages(short, balance=True)
split = Split(parts.train[:128], parts.val[:20], parts.test[:60])

# %% [markdown]
# ## 1. The last tokens
#
# > In which tokens do the training messages end? Count the different ones, and print the most common.
#
# A full stop is the most common one, but there are many others. For most of them, the classifier has
# seen only one or two examples. No wonder that it does not know what to make of a space or a newline.

# %%
last_tokens = Counter()
for message in split.train:
    last_tokens[tokenizer.decode(tokenizer.encode(message.text)[-1:])] += 1
print(f"{len(split.train)} messages end in {len(last_tokens)} different tokens")
for token, count in last_tokens.most_common(8):
    print(f"{count:>3} times {token!r}")
assert len(last_tokens) > 20 and last_tokens["\n"] == 0

# %% [markdown]
# ## 2. The end token alone
#
# > Append the newline by hand, but do not remove anything: encode `text + " "`, add the id of the
# > newline, and read there. Does the space still change the answer?
#
# Yes. Both texts are read at the same token now, but this token attends to the space before it. So
# both are needed: a fixed token to read, and the same tokens before it. The classifier that reads the
# end token removes the space first. Then its logits are equal to the bit. (The head is random here,
# which is enough to see it.)

# %%
newline = tokenizer.encode("\n")
plain = tokenizer.encode("Claim your prize now")
with_space = tokenizer.encode("Claim your prize now ")
by_hand = Classifier.on_base("mini", LABELS, pooling="last_token")
appended = by_hand.logits([plain + newline, with_space + newline])
by_end = Classifier.on_base("mini", LABELS, pooling="end_token")
encoded, _ = by_end.encode(["Claim your prize now", "Claim your prize now "])
removed = by_end.logits(encoded)
print("appended by hand:        ", appended)
print("space removed, end token:", removed)
assert (appended[0] - appended[1]).abs().max() > 1e-3
assert torch.equal(removed[0], removed[1])

# %% [markdown]
# ## 3. The mean of all tokens
#
# > Another reading takes the mean of the states of all tokens, `pooling="mean"`. Train it. Does
# > padding change its answers? Does a newline? How many labels?
#
# Padding does not: only real tokens are counted. A newline does change the probability, because it is
# one more state in the mean. But it is one among many, so few labels change, if any. The price is
# time: the last block has to be computed for every token.

# %%
by_mean = Classifier.on_base("mini", LABELS, pooling="mean", seed=1)
with TemporaryDirectory() as folder:
    finetune(by_mean, split, TrainConfig(epochs=3, seed=1, lr=1e-3), Path(folder))
ids = tokenizer.encode(split.test[0].text)
with torch.no_grad():
    without = class_logits(by_mean.model, *pad_batch([ids], 0), "mean")
    padded = class_logits(by_mean.model, *pad_batch([ids], 0, len(ids) + 50), "mean")
print("logits without padding:", without, " with 50 tokens of padding:", padded)
usual = by_mean.predict([message.text for message in split.test])
changed = by_mean.predict([message.text + "\n" for message in split.test])
flips = 0
largest = 0.0
for before, after in zip(usual, changed, strict=True):
    flips += before.label != after.label
    difference = abs(before.probabilities["spam"] - after.probabilities["spam"])
    largest = max(largest, difference)
print(f"a newline changes {flips} of {len(usual)} labels, and P(spam) by at most {largest:.2f}")
assert torch.allclose(without, padded, atol=1e-4)
assert 0 < largest and flips < len(usual) / 10
