# %% [markdown]
# # 1. Messages
#
# A classifier learns from messages that people have labelled. So the first steps are to read the
# messages correctly, to look at them, and to set some of them aside for testing.
#
# **At the end you will know** how a quotation mark can swallow a message, why duplicates make a test
# score too high, what *balanced* means, and how messages are split into three parts. **Time:** a few
# seconds, offline.

# %%
import csv
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas

from gpt2_from_scratch import (
    check_data,
    count_labels,
    data_file,
    lecture_split,
    load_messages,
    split_messages,
    tab_separated,
)
from gpt2_from_scratch.course import setting, show

MODEL, DATA = setting("mini")  # "124M": OpenAI's model. DATA: the SMS Spam Collection

# %% [markdown]
# ## Reading them correctly
#
# The SMS Spam Collection has one message per line: a label, a tab and the text. A quotation mark is
# an ordinary character in this file. Here are five lines in the same form. Two of them open a
# quotation and do not close it.

# %%
LINES = [
    'ham\tThe sign said "closed, so I went home',
    'spam\t"You are chosen! Reply YES to claim your voucher',
    "ham\tSee you at six",
    'ham\t"Fine" was all she said',
    "spam\tLast chance: reply before midnight",
]
with TemporaryDirectory() as folder:
    path = Path(folder) / "messages"
    path.write_text("\n".join(LINES) + "\n", encoding="utf-8")
    by_default = pandas.read_csv(path, sep="\t", header=None, names=["label", "text"])
    unquoted = pandas.read_csv(path, sep="\t", header=None, quoting=csv.QUOTE_NONE)
    ours = [row.values for row in tab_separated(path)]
print(by_default.to_string())

# %% [markdown]
# If a field begins with a quotation mark, pandas reads on to the next quotation mark, even across
# the ends of lines. So five messages became three. One of them contains two others, labels included,
# and pandas reported nothing. With `quoting=csv.QUOTE_NONE` it treats quotation marks as ordinary
# characters and reads every message. The package does the same. The lecture uses the default. This
# is what the default does to the whole collection:

# %%
theirs = pandas.read_csv(data_file(DATA), sep="\t", header=None).values.tolist()
rows = [row.values for row in tab_separated(data_file(DATA))]
altered = Counter(map(tuple, theirs)) - Counter(map(tuple, rows))
print(f"{len(rows):,} rows; the default reads {len(theirs):,}, {altered.total()} of them altered")

# %% check
assert len(by_default) == 3, "the default reads three messages instead of five"
assert unquoted.values.tolist() == list(map(list, ours)) == [line.split("\t") for line in LINES]
assert len(rows) == data_file(DATA).read_bytes().count(b"\n") and len(theirs) == len(rows) - 2
print(
    f"checked: {len(LINES)} lines, {len(by_default)} read by default, {len(ours)} without quoting"
)

# %% [markdown]
# ## Looking at them
#
# `load_messages` takes the name of a data set, or the path of your own `.csv`, `.tsv` or `.jsonl`
# file. It stops at the first row that it cannot read, and never repairs a row silently.

# %%
messages = load_messages(DATA)
for message in messages[:4]:
    print(f"{message.label:<5} {message.text}")

# %% [markdown]
# `check_data` (`gpt2-classifier check` in the shell) reads all rows and reports what it finds:
# labels, duplicates, near duplicates (texts that are almost the same, for example except for a
# number), texts with two labels, and lengths in tokens (chapter 2).

# %%
report = check_data(DATA, model=MODEL)
print(f"{report.rows:,} rows, {sum(f.rows for f in report.faults.values())} of them with faults")
print(f"labels           {count_labels(messages)}")
for name, found in {"": report.duplicates, "near ": report.near_duplicates}.items():
    print(f"{name + 'duplicates':<16} {found.rows} rows in {found.groups} groups")
print(f"tokens           {report.tokens.shortest} to {report.tokens.longest}")

# %% check
distinct = {message.text for message in messages}
assert report.rows == len(messages) == len(rows) and not report.faults
assert len(messages) - len(distinct) == report.duplicates.rows - report.duplicates.groups
print(f"checked: every row has a text and a label; {len(distinct):,} texts are distinct")

# %% [markdown]
# ## Three parts, and no text in two of them
#
# We train on one part, the training set. With a second part, the validation set, we decide after
# which epoch (pass over the training set) the classifier was best (chapter 10). We report results on
# the third, the test set, and they mean something only if training has not seen its messages. But
# people forward messages, and adverts go out many times. This is what happens when the rows are
# divided at random, first in the whole collection and then in the lecture's split (which is
# balanced, see below):

# %%
order = np.random.RandomState(123).permutation(len(messages))
train = {messages[n].text for n in order[: int(0.7 * len(order))]}
test = [messages[n].text for n in order[int(0.8 * len(order)) :]]
seen = sum(text in train for text in test)
print(f"{seen} of {len(test):,} test messages are also training messages ({seen / len(test):.1%})")

lectures = lecture_split(data_file(DATA))
train = {message.text for message in lectures.train}
repeated = sum(message.text in train for message in lectures.test)
print(f"lecture: {repeated} of {len(lectures.test)} ({repeated / len(lectures.test):.1%})")

# %% [markdown]
# A network can answer these messages from memory. The package therefore keeps only one copy of each
# text, and then splits the texts of each label, so that no text can be in two parts:

# %%
show(split_messages)

# %%
split = split_messages(messages)
print(f"train {len(split.train):,}, val {len(split.val)}, test {len(split.test):,} messages")

# %% check
parts = [{message.text for message in part} for part in (split.train, split.val, split.test)]
assert seen > 0, "row by row, copies leak"
assert [len(part) for part in vars(lectures).values()] == [1045, 149, 300] and repeated == 37
assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]
assert set.union(*parts) == distinct and sum(map(len, parts)) == len(distinct)
print("checked: no text is in two parts, and every text is in one")

# %% [markdown]
# ## Balance
#
# In the collection, 87% of the messages are ham. So a classifier that always answers ham is correct
# for 87% of them and finds no spam at all. The lecture therefore draws as many ham messages as
# there are spam messages. We do the same with the distinct texts. Guessing is then correct half of
# the time, so accuracy is easy to interpret. The price is that most of the ham is left out. That is
# a choice for teaching: a filter for real use would be trained on all of it.

# %%
always_ham = count_labels(messages)["ham"] / len(messages)
balanced = split_messages(messages, balance=True)
print(f"as they are {count_labels(messages)}: {always_ham:.0%} are ham")
print("balanced   ", count_labels([*balanced.train, *balanced.val, *balanced.test]))

# %% check
assert len(set(count_labels(balanced.train).values())) == 1, "as many of each"
assert sum(m.label == "spam" for part in vars(balanced).values() for m in part) == len(
    {m.text for m in messages if m.label == "spam"}
), "all spam is kept, each text once"
assert split_messages(messages, balance=True) == balanced, "the same seed, the same split"
assert split_messages(messages, balance=True, seed=7) != balanced
print("checked: balanced, and the same seed gives the same split")

# %% [markdown]
# ## Exercises
#
# 1. One message occurs twice in your file: once as `ham` and, word for word, once as `spam`. What
#    does `split_messages` do with it? What would happen if it did not check?
# 2. Save `LINES` as a `.csv` file with the header `label,text` and commas instead of tabs. Where does
#    `load_messages` stop, and does `on_error="skip"` help?
# 3. A test message *leaks* if it is also in the training set. Take the distinct texts and duplicate
#    one in twenty of them, then one in five, then one in two. How many test messages leak each
#    time? Draw ten splits for each.
#
# Solutions: [`solutions/01_messages.py`](solutions/01_messages.py).
