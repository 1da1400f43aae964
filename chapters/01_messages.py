# %% [markdown]
# # 1. Messages
#
# A classifier learns its labels from the messages it is shown. So first of all: read them right, look
# at them, and put some aside that training never sees.
#
# **At the end you will know** how a quote can swallow a message, why copies make a score a lie, what
# *balanced* means, and how messages are split into three parts. **Time:** a second, offline.

# %%
import csv
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas

from gpt2_from_scratch import (
    check_data,
    count_labels,
    load_messages,
    split_messages,
    tab_separated,
)
from gpt2_from_scratch.course import setting, show

MODEL, DATA = setting("mini")  # "124M": OpenAI's model, and the SMS Spam Collection

# %% [markdown]
# ## Reading them right
#
# The SMS Spam Collection has one message a line: label, tab, text. A quote is a character like any
# other in it. Here are five lines as people type them; two of them open a quote and never close it.

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
# pandas takes a quote that begins a field for the start of a quoted one, and reads on to the next
# quote, through the ends of lines. Five messages became three, one holding two others, labels and
# all, and nobody was told. The lecture reads its file like this: of the 5,574 messages of the SMS
# Spam Collection two vanish and 53 are altered. Told that quotes mean nothing
# (`quoting=csv.QUOTE_NONE`), pandas reads all of them; so do we.

# %% check
assert len(by_default) == 3, "the fault this part is about"
assert (
    unquoted.values.tolist() == [list(row) for row in ours] == [line.split("\t") for line in LINES]
)
print(f"{len(LINES)} lines: {len(by_default)} read by default, {len(ours)} without quoting")

# %% [markdown]
# ## Looking at them
#
# `load_messages` reads a `.csv`, `.tsv` or `.jsonl` of yours too, and stops at the first row it
# cannot read rather than repair it behind your back.

# %%
messages = load_messages(DATA)
for message in messages[:4]:
    print(f"{message.label:<5} {message.text}")

# %% [markdown]
# `check_data` (`gpt2-classifier check` in the shell) reads on and says what is there: labels, copies,
# near copies (equal but for digits and punctuation), one text with two labels, lengths.

# %%
report = check_data(DATA, model=MODEL)
print(f"{report.rows} rows, {sum(f.rows for f in report.faults.values())} of them with faults")
print(f"labels           {count_labels(messages)}")
print(f"copies           {report.duplicates.rows} rows, near copies {report.near_duplicates.rows}")
print(f"tokens           {report.tokens.shortest} to {report.tokens.longest}")

# %% check
assert report.rows == len(messages) and not report.faults
print("checked: every row is a message with a text and a label")

# %% [markdown]
# ## Three parts, and no text in two of them
#
# We train on one part, choose by a second, and report on a third, which is worth something only if
# training has not seen it. Real messages come in copies: adverts, chain letters, "ok". Let one in
# five of ours stand there twice, and split row by row, as the lecture does.

# %%
random = np.random.RandomState(123)
copied = messages + [messages[n] for n in random.permutation(len(messages))[: len(messages) // 5]]
order = random.permutation(len(copied))
train = {copied[n].text for n in order[: int(0.7 * len(copied))]}
test = [copied[n].text for n in order[int(0.8 * len(copied)) :]]
seen = sum(text in train for text in test)
print(f"{seen} of {len(test)} test messages were trained on ({100 * seen / len(test):.0f} %)")

# %% [markdown]
# On these a network scores by memory. In the lecture's split it is 37 of 300 test messages. Ours
# deals out distinct texts, label by label, so that none can stand on both sides:

# %%
show(split_messages)

# %%
split = split_messages(copied)
print(f"train {len(split.train)}, val {len(split.val)}, test {len(split.test)} messages")

# %% check
parts = [{message.text for message in part} for part in (split.train, split.val, split.test)]
assert seen > 0, "row by row, copies leak"
assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]
assert set.union(*parts) == {message.text for message in messages}, "and nothing was lost"
print("checked: no text in two parts, none lost")

# %% [markdown]
# ## Balance
#
# Where 87 of 100 messages are ham, as in the SMS Spam Collection, "always ham" is right 87 times of
# 100 and catches no spam. The lecture draws as many ham as there are spam: guessing then gives one
# half and accuracy is easy to read, at the price of most of the ham. A choice for teaching.

# %%
few = [m for m in messages if m.label == "spam"][:60] + [m for m in messages if m.label == "ham"]
print("as they are", count_labels(few))
balanced = split_messages(few, balance=True)
print("balanced   ", count_labels([*balanced.train, *balanced.val, *balanced.test]))

# %% check
assert len(set(count_labels(balanced.train).values())) == 1, "as many of each"
assert split_messages(few, balance=True) == balanced, "the seed decides: the same split every time"
assert split_messages(few, balance=True, seed=7) != balanced
print("checked: balanced, and the same split for the same seed")

# %% [markdown]
# ## Exercises
#
# 1. One message stands in your file as `ham` and, word for word, as `spam`. What does
#    `split_messages` do with it, and what would have happened without that?
# 2. Save `LINES` as a `.csv` with a header `label,text`, commas for tabs. Where does `load_messages`
#    stop, and does `on_error="skip"` help?
# 3. How many test messages leak when one in twenty stands there twice, and when one in two does?
#    Draw the split ten times each.
#
# Solutions: [`solutions/01_messages.py`](solutions/01_messages.py).
