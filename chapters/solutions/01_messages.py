# %% [markdown]
# # Solutions to chapter 1

# %%
import csv
import io
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from gpt2_from_scratch import (
    DataConfig,
    GPT2Error,
    Message,
    load_messages,
    split_messages,
)
from gpt2_from_scratch.progress import log_to

messages = load_messages("sms")
LINES = [
    'ham,The sign said "closed, so I went home',
    'spam,"You are chosen! Reply YES to claim your voucher',
    "ham,See you at six",
    'ham,"Fine" was all she said',
    "spam,Last chance: reply before midnight",
]

# %% [markdown]
# ## 1. One text, two labels
#
# `split_messages` raises an error: whichever label it chose, it would be wrong for one of the two
# messages. With `on_error="skip"` it leaves out every copy of such a text and logs a warning. Without
# the check, the text would simply get its first label, and nobody would know.

# %%
both = [*messages, Message("Call me back", "ham"), Message("Call me back", "spam")]
try:
    split_messages(both)
    raise AssertionError("it should have stopped")
except GPT2Error as error:
    print(error)
log_to(logged := io.StringIO())
split = split_messages(both, on_error="skip")
kept = {message.text for part in (split.train, split.val, split.test) for message in part}
assert "Call me back" not in kept and "Call me back" in logged.getvalue()
assert len(kept) == len({message.text for message in messages})

# %% [markdown]
# ## 2. A quote left open in a .csv
#
# In a .csv file, quotation marks do have a meaning: a field that begins with one continues until the
# next one. The quotation in the second message (line 3 of the file) is not closed before the end of
# its field, so reading stops there. `on_error="skip"` does not help, because nobody can say how many
# rows belong to the faulty field. A quotation mark in the middle of a field, as in the first message,
# does no harm. A program that writes such files (`csv.writer`) doubles the quotation marks inside a
# field, and then every message is read back unchanged.

# %%
with TemporaryDirectory() as folder:
    path = Path(folder) / "messages.csv"
    path.write_text("\n".join(["label,text", *LINES, ""]), "utf-8")
    for on_error in ("stop", "skip"):
        try:
            load_messages(DataConfig(source=str(path), on_error=on_error))
            raise AssertionError("it should have stopped")
        except GPT2Error as error:
            assert "line 3" in str(error), error
            print(f"{on_error}: {str(error).replace(folder, '...')}")
    path.write_text("label,text\n" + LINES[0].replace("closed,", "closed") + "\n", "utf-8")
    assert load_messages(path)[0].text == 'The sign said "closed so I went home'
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["label", "text"], *(line.split(",", 1) for line in LINES)])
    assert [m.text for m in load_messages(path)] == [line.split(",", 1)[1] for line in LINES]

# %% [markdown]
# ## 3. How much leaks
#
# A test message that has a copy leaks if that copy is in the training set, which holds 70% of the
# rows. So the more messages have a copy, the more leak.

# %%
leaked = {}
texts = sorted({message.text for message in messages})
for one_in in (20, 5, 2):
    fractions = []
    for seed in range(10):
        random = np.random.RandomState(seed)
        again = random.permutation(len(texts))[: len(texts) // one_in]
        copied = [*texts, *(texts[n] for n in again)]
        order = random.permutation(len(copied))
        train = {copied[n] for n in order[: int(0.7 * len(copied))]}
        test = [copied[n] for n in order[int(0.8 * len(copied)) :]]
        fractions.append(sum(text in train for text in test) / len(test))
    leaked[one_in] = float(np.mean(fractions))
    print(f"one in {one_in:>2} duplicated: {leaked[one_in]:.1%} of the test messages leak")
assert leaked[20] < leaked[5] < leaked[2]
# 2n/k of the n (1 + 1/k) rows have a copy, which is in the training set with probability 0.7
for one_in, found in leaked.items():
    assert abs(found - 0.7 * (2 / one_in) / (1 + 1 / one_in)) < 0.05
