# %% [markdown]
# # Solutions to chapter 1

# %%
import csv
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from gpt2_from_scratch import DataConfig, GPT2Error, Message, load_messages, split_messages
from gpt2_from_scratch.course import setting

MODEL, DATA = setting("mini")  # "124M": OpenAI's model. DATA: the SMS Spam Collection
messages = load_messages(DATA)

# %% [markdown]
# ## 1. One text, two labels
#
# > One message occurs twice in your file: once as `ham` and, word for word, once as `spam`. What does
# > `split_messages` do with it? What would happen if it did not check?
#
# `split_messages` raises an error: whichever label it chose, it would be wrong for one of the two
# messages.

# %%
with_both = [*messages, Message("Call me back", "ham"), Message("Call me back", "spam")]
refused = ""
try:
    split_messages(with_both)
except GPT2Error as error:
    refused = str(error)
print(refused)
assert "Call me back" in refused

# %% [markdown]
# With `on_error="skip"` it leaves out every copy of such a text, and logs a warning. Without the
# check, the text would keep the label of its first copy, and nobody would know.

# %%
split = split_messages(with_both, on_error="skip")
kept = {message.text for message in [*split.train, *split.val, *split.test]}
print(f"{len(kept):,} texts are left; 'Call me back' is one of them: {'Call me back' in kept}")
assert kept == {message.text for message in messages}

# %% [markdown]
# ## 2. A quotation that is left open in a .csv file
#
# > Save `LINES` as a `.csv` file with the header `label,text` and commas instead of tabs. Where does
# > `load_messages` stop, and does `on_error="skip"` help?
#
# In a .csv file quotation marks do have a meaning: a field that begins with one continues until the
# next one. The second message opens a quotation, and the file's next quotation mark is in the fourth
# message. It is not the end of a field, so the reader stops there and names line 3, where the
# quotation began. `on_error="skip"` does not help, because nobody can say how many rows belong to the
# faulty field.

# %%
LINES = [
    'ham,The sign said "closed, so I went home',
    'spam,"You are chosen! Reply YES to claim your voucher',
    "ham,See you at six",
    'ham,"Fine" was all she said',
    "spam,Last chance: reply before midnight",
]
with TemporaryDirectory() as folder:
    path = Path(folder) / "messages.csv"
    path.write_text("\n".join(["label,text", *LINES, ""]), encoding="utf-8")
    for on_error in ("stop", "skip"):
        refused = ""
        try:
            load_messages(DataConfig(source=str(path), on_error=on_error))
        except GPT2Error as error:
            refused = str(error).replace(folder, "...")
        print(f"{on_error}: {refused}")
        assert "line 3" in refused

# %% [markdown]
# A program that writes such files correctly, such as Python's `csv.writer`, puts quotation marks
# around such a field and doubles the ones inside it. Then every message is read back unchanged.

# %%
rows = [line.split(",", 1) for line in LINES]
with TemporaryDirectory() as folder:
    path = Path(folder) / "messages.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["label", "text"], *rows])
    print(path.read_text(encoding="utf-8"))
    read_back = load_messages(path)
assert [[message.label, message.text] for message in read_back] == rows

# %% [markdown]
# ## 3. How much leaks
#
# > Take the different texts and duplicate one in twenty of them, then one in five, then one in two.
# > Split the rows at random. How many test messages leak each time?
#
# The more messages have a copy, the more leak. A test message that has a copy leaks if the copy is in
# the training set, which has 70% of the rows. If one in k of the n texts is duplicated, then there are
# n + n/k rows, and 2n/k of them have a copy. The last column is the proportion that follows from this.

# %%
texts = sorted({message.text for message in messages})


def leak_of_one_split(one_in, seed):
    random = np.random.RandomState(seed)
    chosen = random.permutation(len(texts))[: len(texts) // one_in]
    copied = texts + [texts[n] for n in chosen]
    random.shuffle(copied)
    train = set(copied[: int(0.7 * len(copied))])
    test = copied[int(0.8 * len(copied)) :]
    return sum(text in train for text in test) / len(test)


measured = {}
for one_in in (20, 5, 2):
    measured[one_in] = np.mean([leak_of_one_split(one_in, seed) for seed in range(10)])
    expected = 0.7 * (2 / one_in) / (1 + 1 / one_in)
    print(f"one in {one_in:>2} duplicated: {measured[one_in]:.1%} leak, expected {expected:.1%}")
    assert abs(measured[one_in] - expected) < 0.02
assert measured[20] < measured[5] < measured[2]
