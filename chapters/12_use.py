# %% [markdown]
# # 12. Use
#
# A classifier is trained once and asked for a long time, by people who did not train it. So it is
# saved, found again or refused, and asked: from Python and from the shell.
#
# **At the end you will know** what a run leaves behind, what is said of odd texts, and how to choose
# what is called spam. **Time:** about twenty seconds, offline.

# %%
import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from gpt2_from_scratch import (
    Classifier,
    DataConfig,
    GPT2Error,
    Message,
    TrainConfig,
    load_messages,
    split_messages,
    train_classifier,
    write_messages,
)
from gpt2_from_scratch.cli.main import main
from gpt2_from_scratch.course import setting

MODEL, DATA = setting("mini")  # "124M": OpenAI's model, and the SMS Spam Collection
ROOM = TemporaryDirectory()  # gone when Python ends
LR = 5e-4 if MODEL == "mini" else 2e-4  # the learning rate: wider models want a lower one
room, balanced = Path(ROOM.name), DataConfig(source=DATA, balance=True)

# %% [markdown]
# ## What a run leaves behind
#
# `train_classifier` splits, trains, keeps the best epoch, scores the test part, and writes a folder:

# %%
config = TrainConfig(epochs=3, lr=LR)
done = train_classifier(MODEL, balanced, config, run=room / "run", cache=False)
done.write_report()
run, trained = done.folder, done.classifier
for path in sorted(run.iterdir()):
    print(f"{path.stat().st_size / 1e6:6.1f} MB  {path.name}")

# %% [markdown]
# `best.safetensors` is the classifier: what trained, the labels, and a hash of the base, the pretrained
# model, which is not in it. On another base it is refused (exercise 2), and with one bit changed:

# %%
classifier = Classifier.load(run)
raw = bytearray((run / "best.safetensors").read_bytes())
raw[len(raw) // 2] ^= 1
(room / "copy").write_bytes(raw)
try:
    refused = str(Classifier.load(room / "copy"))
except GPT2Error as error:
    refused = f"refused: {error}".replace(f"{room}/", "")
print(refused)

# %% check
test = [message.text for message in load_messages(run / "test.csv")]
encoded, _ = classifier.encode(test)
assert classifier.logits(encoded).equal(trained.logits(encoded)), "to the bit"
numbers = sum(p.numel() for p in trained.model.parameters() if p.requires_grad)
assert 0 < len(raw) - 4 * numbers < 10_000 and refused.startswith("refused")
print(f"checked: {numbers:,} numbers of 4 bytes and little else; the same logits to the bit")

# %% [markdown]
# ## Odd texts
#
# `predict` takes any texts and gives each a label, and a probability for every label. Where a text
# was cut or empty it says so and goes on: an inbox holds such things.

# %% tags=["varies"]
odd = ["", "🎉🎉🎉", "call me " * 5000, "<|endoftext|>", test[0]]
answers = classifier.predict(odd)
for text, answer in zip(odd, answers, strict=True):
    mark = "cut" if answer.truncated else "empty" if answer.empty else ""
    print(f"{answer.label:<5} {answer.n_tokens:4d} tokens  {mark:<6} {text[:50]}")

# %% check
assert [answer.empty for answer in answers] == [True, False, False, False, False]
assert [answer.truncated for answer in answers] == [False, False, True, False, False]
assert answers[3].n_tokens > 1, "what looks like the special token is ordinary text"
assert [classifier.predict([text])[0].label for text in odd] == [a.label for a in answers], "alone"
print("checked: every text has an answer, cut or empty ones too")

# %% [markdown]
# ## What to call spam
#
# The label is the likelier of the two. But a good message lost may cost more than a spam read. Then
# call spam only what is above a *threshold*: recall falls, precision mostly rises (chapter 9). To
# lose one good message of the validation part, take what the second most suspicious of them has.
# Below one half more spam is found, and more good messages are lost. The last line is the test part.

# %%
split = split_messages(load_messages(DATA), balance=True)
answers = classifier.predict(texts := [message.text for message in split.val + split.test])
share = {t: answer.probabilities["spam"] for t, answer in zip(texts, answers, strict=True)}
good = sorted(share[message.text] for message in split.val if message.label == "ham")
for part, least in zip([split.val] * 3 + [split.test], [0.3, 0.5, good[-2], good[-2]], strict=True):
    hits = [message.label for message in part if share[message.text] > least]
    spam, ham, of = hits.count("spam"), hits.count("ham"), f"of {len(part) // 2:3d}"
    print(f"above {least:.3f}: {spam:3d} {of} spam called, {ham:3d} {of} good messages lost")

# %% check
assert sum(s > good[-2] for s in good) == 1 and share.keys() >= {*test}, "the run's own test part"
assert [share[t] > 0.5 for t in texts] == [answer.label == "spam" for answer in answers]
print("checked: above one half is the label; above the threshold one good message is lost")

# %% [markdown]
# ## From the shell
#
# With messages and labels of your own, ten of each at least, as a `.csv` with the columns `text` and
# `label`. Does a message want a reply? The last character tells, so a few are enough to learn it.


# %%
def shell(command):
    words = [sys.executable, "-m", "gpt2_from_scratch", *command.split()]
    done = subprocess.run(words, cwd=room, capture_output=True, encoding="utf-8")
    print(f"$ gpt2-classifier {command}\n{done.stdout}")
    return done.stdout


ASK = """who takes the minutes?;can you pick up the kids?;is the server down?;shall we see a film?;\
did mum ring?;are you at work?;when is dinner?;is the report done?;have we any milk?;will you sign?"""
TELL = """the slides are attached;dinner is at six;I swapped my shift;the cat is sick;the tap leaks;\
your invoice was paid;water the plants;the board meets at two;I am on my way;we bought a printer"""
mine = [(text, "reply") for text in ASK.split(";")] + [(text, "read") for text in TELL.split(";")]
write_messages(room / "mine.csv", [Message(*row) for row in mine])
_ = shell("check mine.csv")

# %%
options = "--no-cache --threads 1"  # for this notebook; leave them out
_ = shell(f"train --model {MODEL} --data mine.csv --lr {LR} --out mine {options}")

# %% tags=["varies"]
inbox = ["The client rang at six", "Is the cat out?", "ok 👍"]
(room / "inbox.txt").write_text("\n".join(inbox) + "\n", encoding="utf-8")
lines = shell("predict mine --file inbox.txt --json --threads 1").splitlines()

# %% check
assert main(f"evaluate {room / 'mine'} {options}".split()) == 0, "the command as a function"
for line, answer in zip(lines, Classifier.load(room / "mine").predict(inbox), strict=True):
    assert json.loads(line)["label"] == answer.label
    assert abs(json.loads(line)["probabilities"]["reply"] - answer.probabilities["reply"]) < 1e-5
print("checked: the shell and Python give the same answers")

# %% [markdown]
# ## Exercises
#
# 1. Only the head trains, or the last two blocks do: how large is the saved file? Save one of each.
# 2. Save the base with one number changed (`save_gpt2`). Is it taken for the base the run needs?
# 3. A spam read costs a minute, a good message lost twenty. Which threshold costs least?
#
# Solutions: [`solutions/12_use.py`](solutions/12_use.py).
