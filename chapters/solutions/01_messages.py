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

messages = load_messages("demo")
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
# `split_messages` refuses: whichever label it took, half of such messages would be wrong. Told to go
# on, it leaves all copies of that text out. Without the check the copies would be dealt out with the
# first label, and nobody would know.

# %%
both = [*messages, Message("Call me back", "ham"), Message("Call me back", "spam")]
try:
    split_messages(both)
    raise AssertionError("it should have stopped")
except GPT2Error as error:
    print(error)
log_to(told := io.StringIO())
split = split_messages(both, on_error="skip")
kept = {message.text for part in (split.train, split.val, split.test) for message in part}
assert "Call me back" not in kept and "Call me back" in told.getvalue()
assert len(kept) == len({message.text for message in messages})

# %% [markdown]
# ## 2. A quote left open in a .csv
#
# In a .csv quotes do mean something: a field that begins with one goes on to the next. The second
# line's is never closed as it should be, so reading stops there, and `on_error="skip"` does not help:
# nobody can say how many rows it would leave out. A quote in the middle of a field, as in the first
# line, is harmless. What writes such files (`csv.writer`) doubles quotes, and all of them come back.

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
# A copy leaks when its twin falls into training: in 70 of 100 cases. What is copied of the test part
# leaks in proportion to the number of copies.

# %%
leaked = {}
for one_in in (20, 5, 2):
    shares = []
    for seed in range(10):
        random = np.random.RandomState(seed)
        again = random.permutation(len(messages))[: len(messages) // one_in]
        copied = [*messages, *(messages[n] for n in again)]
        order = random.permutation(len(copied))
        train = {copied[n].text for n in order[: int(0.7 * len(copied))]}
        test = [copied[n].text for n in order[int(0.8 * len(copied)) :]]
        shares.append(sum(text in train for text in test) / len(test))
    leaked[one_in] = float(np.mean(shares))
    print(f"one in {one_in:>2} copied: {100 * leaked[one_in]:.1f} % of the test messages leak")
assert leaked[20] < leaked[5] < leaked[2]
# of n (1 + 1/k) rows 2n/k have a twin, which is in training 7 times of 10
for one_in, share in leaked.items():
    assert abs(share - 0.7 * (2 / one_in) / (1 + 1 / one_in)) < 0.05
