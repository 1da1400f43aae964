# %% [markdown]
# # 1. Messages
#
# **You are here:** the lecture · **messages** → tokens → attention → network → weights → head → last token → freezing → loss → finetuning → use
#
# A classifier learns from messages that people have labelled. Before a network sees any of them, we
# have to read them correctly, look at them, and set some aside for testing. Each of these three steps
# can go wrong without an error message. Then every number that we compute later is wrong too.
#
# **At the end you will know** how a quotation mark can swallow a message, what ham and spam look like,
# why duplicates make a test score too high, and how messages are split into three sets.
#
# **Reading time:** 20 minutes. **Running time:** a few seconds, offline.

# %%
import csv
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas
from matplotlib.figure import Figure

from gpt2_from_scratch import (
    count_labels,
    data_file,
    lecture_split,
    load_messages,
    split_messages,
)
from gpt2_from_scratch.course import picture, setting

MODEL, DATA = setting("mini")  # "124M": OpenAI's model. DATA: the SMS Spam Collection

# %% [markdown]
# ## How many messages are in this file?
#
# Our messages come from the SMS Spam Collection: text messages that people labelled as *spam*
# (unwanted advertising and fraud) or *ham* (everything else). The file has one message per line. Each
# line contains a label, a tab and the text. Here are five made-up lines of the same form, which we
# write to a file and read with pandas. Before you run the cell, guess how many messages pandas finds
# in them.

# %%
LINES = [
    'ham\tThe sign said "closed, so I went home',
    'spam\t"You are chosen! Reply YES to claim your voucher',
    "ham\tSee you at six",
    'ham\t"Fine" was all she said',
    "spam\tLast chance: reply before midnight",
]
with TemporaryDirectory() as folder:
    path = Path(folder) / "messages.tsv"
    path.write_text("\n".join(LINES) + "\n", encoding="utf-8")
    by_default = pandas.read_csv(path, sep="\t", names=["label", "text"])
    unquoted = pandas.read_csv(path, sep="\t", names=["label", "text"], quoting=csv.QUOTE_NONE)
    ours = load_messages(path)
print(by_default.to_string())

# %% [markdown]
# Pandas finds three messages, and it reports no problem. The reason is the second line. If a field
# begins with a quotation mark, pandas reads on until the next quotation mark, even across the ends of
# lines. So the second message has swallowed the third and the fourth, together with their labels. The
# first line does no harm, because its quotation mark is in the middle of the field.
#
# In this collection a quotation mark is an ordinary character. If we tell pandas so, with
# `quoting=csv.QUOTE_NONE`, it finds all five messages. `load_messages`, the function of this package,
# finds five too.

# %%
print(f"by default {len(by_default)}, without quoting {len(unquoted)}, load_messages {len(ours)}")

# %% [markdown]
# Does this matter in the real collection? The lecture reads it with the default. We read it both ways
# and compare.

# %%
whole_by_default = pandas.read_csv(data_file(DATA), sep="\t", names=["label", "text"])
table = pandas.read_csv(data_file(DATA), sep="\t", names=["label", "text"], quoting=csv.QUOTE_NONE)
real_texts = set(table["text"])
altered = [text for text in whole_by_default["text"] if text not in real_texts]
print(f"{len(table):,} lines, {len(whole_by_default):,} messages by default")
print(f"{len(altered)} of them are not the text of any line")

# %% [markdown]
# Two messages are missing, because another one has swallowed them. And 53 texts are not what the
# sender wrote: most of them have lost their quotation marks. That is a small loss in this file. In
# your own file it may be a large one, and you would not notice. So count the lines, and count the
# messages. `load_messages` stops with an error at the first row that it cannot read, and it never
# repairs a row silently. `gpt2-classifier check FILE` in the shell reads all rows of your own file and
# reports what it finds.

# %% [markdown]
# ## What do the messages look like?
#
# Always look at your data before you train on them. Here are the first five messages, and how many
# there are of each label.

# %%
messages = load_messages(DATA)
for message in messages[:5]:
    print(f"{message.label:<5} {message.text[:90]}")

# %%
counts = count_labels(messages)
for label, count in counts.items():
    print(f"{label:<5} {count:>5,} messages, {count / len(messages):.1%}")

# %% [markdown]
# `messages` is a plain list. Each item has a `label` and a `text`. There is far more ham than spam:
# most text messages are from friends. Remember the first percentage. A program that answers *ham* to
# everything is correct for 86.6% of these messages, and it finds no spam at all.
#
# Which kind of message is longer, do you think? The next cell draws how many of each kind there are
# (left), and how many characters they have (right).

# %%
figure = Figure(figsize=(9, 3.2), layout="constrained")
left, right = figure.subplots(1, 2, width_ratios=(1, 2.2))
left.bar(list(counts), list(counts.values()), color=["#0072B2", "#D55E00"])
left.set(title="Seven of eight messages are ham", ylabel="messages")
for label, colour, x, y in (("ham", "#0072B2", 62, 9), ("spam", "#D55E00", 172, 32)):
    lengths = [len(message.text) for message in messages if message.label == label]
    percent = np.full(len(lengths), 100 / len(lengths))
    right.hist(lengths, bins=range(0, 310, 10), weights=percent, color=colour, alpha=0.65)
    right.text(x, y, label, color=colour, weight="bold", fontsize=12)
right.axvline(160, color="#404040", linestyle="--")
right.text(165, 20, "160: the limit of one SMS", color="#404040")
right.set(title="Spam fills the SMS; ham is short", xlabel="characters", ylabel="% of this label")
picture(figure, "01-messages")

# %% [markdown]
# One SMS has room for 160 characters. Senders of spam pay for each message, and they seem to use all
# the room they paid for: most spam is just below the limit. Most ham is much shorter. So you could
# guess the label from the length alone, without reading a word, and you would often be correct. A
# network can use such a shortcut too. Chapter 12 compares the network with methods that are as simple
# as this.

# %% [markdown]
# ## Is the test set really new?
#
# We want to know how well a classifier does on messages that it has never seen. So we set some
# messages aside, the test set, and train only on others. But people forward messages, and
# advertisements are sent many times. Some texts are in the collection more than once:

# %%
copies = Counter(message.text for message in messages)
for text, count in copies.most_common(4):
    print(f"{count:>3} times: {text[:75]}")
print(f"{len(messages):,} messages, but only {len(copies):,} different texts")

# %% [markdown]
# What happens if we shuffle all rows, and use the first seven tenths for training and the last two
# tenths for testing? (The tenth between them is explained below.) Guess how many of the test messages
# are also in the training set.

# %%
order = np.random.RandomState(123).permutation(len(messages))
shuffled = [messages[n].text for n in order]
train_texts = set(shuffled[: int(0.7 * len(shuffled))])
test_texts = shuffled[int(0.8 * len(shuffled)) :]
seen = sum(text in train_texts for text in test_texts)
print(
    f"{seen} of {len(test_texts):,} test messages are also in training ({seen / len(test_texts):.1%})"
)

# %% [markdown]
# The lecture splits its rows at random as well. (It uses fewer of them: see the section on balance.)
# `lecture_split` repeats its split exactly, so we can count there too.

# %%
lectures = lecture_split(data_file(DATA))
lecture_texts = {message.text for message in lectures.train}
repeated = sum(message.text in lecture_texts for message in lectures.test)
proportion = repeated / len(lectures.test)
print(
    f"lecture: {repeated} of {len(lectures.test)} test messages are in training ({proportion:.1%})"
)

# %% [markdown]
# A network can answer these 37 messages from memory. The test score then says that the network is
# good, although it may only have a good memory. This mistake is called *leakage*: part of the test set
# has leaked into the training set. Again, there is no error message.

# %% [markdown]
# ## Three sets that share no text
#
# The solution is to split the different *texts*, not the rows. Four lines are enough: keep each text
# once, shuffle the texts, and cut the list in two places.

# %%
texts = sorted({message.text for message in messages})
np.random.RandomState(123).shuffle(texts)
first_cut, second_cut = int(0.7 * len(texts)), int(0.8 * len(texts))
train, val, test = texts[:first_cut], texts[first_cut:second_cut], texts[second_cut:]
print(f"training {len(train):,}, validation {len(val)}, test {len(test):,} texts")
print(f"in training and in test: {len(set(train) & set(test))}")

# %% [markdown]
# Why are there three sets, and not two?
#
# - The **training set** is what the network learns from.
# - With the **validation set** we make choices during training. For example, after each pass over the
#   training set we measure whether the classifier has become better, and at the end we keep the best
#   version (chapter 10).
# - The **test set** is used once, at the very end, for the number that we report. If we also used it
#   to make choices, its messages would no longer be new.
#
# The package's function is `split_messages`. It adds two things to our four lines. It cuts the ham and
# the spam separately, so that each set contains the same proportion of spam. And it raises an error if
# the same text is labelled both ham and spam. Its `seed` is the 123 of our own split: with the same
# seed you get the same split again. (It can also put texts into the same set that are nearly the same,
# for example if only a phone number differs.)

# %%
split = split_messages(messages, seed=123)
for name, part in (("training", split.train), ("validation", split.val), ("test", split.test)):
    found = count_labels(part)
    print(f"{name:<11} {len(part):>5,} messages, {found['spam'] / len(part):.1%} spam")

# %% [markdown]
# ## Balance
#
# The lecture does one more thing before it splits: it draws as many ham messages as there are spam
# messages. This is called *balancing*. Now a program that always gives the same answer is correct for
# half of the messages, so you see at once whether a classifier has learned something. We do the same,
# but use each text only once:

# %%
balanced = split_messages(messages, balance=True)
kept = count_labels([*balanced.train, *balanced.val, *balanced.test])
print("all messages", counts)
print("balanced    ", kept)

# %% [markdown]
# There are fewer than 747 spam messages now, because the copies are left out. Balance has a price:
# most of the ham is left out too. For learning that is a good choice, and it makes training faster. If
# you build a filter for real use, train it on all messages.

# %% [markdown]
# ## What you know now
#
# - With its default settings, pandas treats quotation marks as special. It loses two messages of this
#   collection and says nothing.
# - 86.6% of the messages are ham. Spam is longer than ham, and most of it nearly fills one SMS.
# - Some texts occur many times. If rows are split at random, 37 of the lecture's 300 test messages are
#   also in its training set.
# - If different texts are split instead of rows, no text is in two sets.
# - A balanced set has as many ham messages as spam messages. Then always giving the same answer is
#   correct for half of them.

# %% [markdown]
# ## Checks
#
# These cells check what the chapter said. They are folded in the notebook; an error here means that
# something is wrong.

# %% check
assert len(by_default) == 3, "the default reads three messages instead of five"
by_hand = [line.split("\t") for line in LINES]
assert unquoted.values.tolist() == by_hand
assert [[message.label, message.text] for message in ours] == by_hand
print(f"checked: {len(LINES)} lines, {len(by_default)} read by default, {len(ours)} by us")

# %% check
n_lines = data_file(DATA).read_bytes().count(b"\n")
assert len(messages) == len(table) == n_lines == len(whole_by_default) + 2
assert [message.text for message in messages] == table["text"].tolist()
assert [message.label for message in messages] == table["label"].tolist()
assert all(message.text and message.label in ("ham", "spam") for message in messages)
print(f"checked: {n_lines:,} lines, {len(messages):,} messages, each with a label and a text")

# %% check
medians = table["text"].str.len().groupby(table["label"]).median()
assert medians["ham"] < 60 < 140 < medians["spam"] < 160
spam_lengths = table["text"].str.len()[table["label"] == "spam"]
assert ((spam_lengths > 120) & (spam_lengths <= 160)).mean() > 0.5
print(f"checked: half of the ham has at most {medians['ham']:.0f} characters, and half of the spam")
print(f"at least {medians['spam']:.0f}; most spam is just below the limit")

# %% check
assert seen > 0, "copies leak when rows are split"
assert [len(part) for part in vars(lectures).values()] == [1045, 149, 300] and repeated == 37
print(f"checked: the lecture's split has 1,045, 149 and 300 messages; {repeated} of them leak")

# %% check
in_train = {message.text for message in split.train}
in_val = {message.text for message in split.val}
in_test = {message.text for message in split.test}
assert not in_train & in_val and not in_train & in_test and not in_val & in_test
assert in_train | in_val | in_test == set(copies) == {*train, *val, *test}
n_rows = len(split.train) + len(split.val) + len(split.test)
assert n_rows == len(train) + len(val) + len(test) == len(copies)
print("checked: no text is in two sets, and every text is in one")

# %% check
different_spam = {message.text for message in messages if message.label == "spam"}
assert kept == {"ham": len(different_spam), "spam": len(different_spam)}
for part in (balanced.train, balanced.val, balanced.test):
    found = count_labels(part)
    assert found["ham"] == found["spam"]
assert split_messages(messages, balance=True) == balanced, "the same seed, the same split"
assert split_messages(messages, balance=True, seed=7) != balanced
print("checked: balanced in each set, and the same seed gives the same split")

# %% [markdown]
# ## Exercises
#
# 1. (easy) One message occurs twice in your file: once as `ham` and, word for word, once as `spam`. What
#    does `split_messages` do with it? What would happen if it did not check?
#    <details><summary>Hint</summary>Append two such `Message`s to the list, and look at `on_error`.</details>
# 2. (medium) Save `LINES` as a `.csv` file with the header `label,text` and commas instead of tabs.
#    Where does `load_messages` stop, and does `on_error="skip"` help?
#    <details><summary>Hint</summary>In a `.csv` file a quotation mark does have a meaning.</details>
# 3. (hard) Take the different texts and duplicate one in twenty of them, then one in five, then one in
#    two. Split the rows at random. How many test messages leak each time?
#    <details><summary>Hint</summary>Average over ten splits. A copy is in training with probability 0.7.</details>
#
# Solutions: [`solutions/01_messages.py`](solutions/01_messages.py).
