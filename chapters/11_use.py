# %% [markdown]
# # 11. Use
#
# A classifier is trained once and then used for a long time, often by people who did not train it.
# In this chapter we save one and load it again, see which files are refused, and classify new
# messages, first from Python and then from the shell.
#
# **At the end you will know** what a run saves, what happens to unusual texts, and how to choose the
# threshold above which a message is called spam. **Time:** about twenty seconds, offline.

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
    train_classifier,
    write_messages,
)
from gpt2_from_scratch.cli.main import main
from gpt2_from_scratch.course import setting

MODEL, DATA = setting("mini")  # "124M": OpenAI's model. DATA: the SMS Spam Collection
TEMPORARY = TemporaryDirectory()  # gone when Python ends
LR = 5e-4 if MODEL == "mini" else 2e-4  # learning rate: wider models need a lower one
folder, balanced = Path(TEMPORARY.name), DataConfig(source=DATA, balance=True)

# %% [markdown]
# ## What a run saves
#
# `train_classifier` splits the messages, trains, keeps the epoch with the best validation accuracy,
# and evaluates the classifier on the test set. It writes everything into one folder, and
# `write_report` adds a report that you can open in a browser:

# %%
config = TrainConfig(epochs=2, lr=LR)
done = train_classifier(MODEL, balanced, config, run=folder / "run", cache=False)
done.write_report()
run, trained = done.folder, done.classifier
for path in sorted(run.iterdir()):
    print(f"{path.stat().st_size / 1e6:6.1f} MB  {path.name}")

# %% [markdown]
# `best.safetensors` is the classifier. It contains the trained parameters, the labels, and a hash
# of the *base*, the pretrained model, which is not in the file. If you load the file with a
# different base, it is refused (exercise 2). It is also refused if a single bit has changed:

# %%
classifier = Classifier.load(run)
raw = bytearray((run / "best.safetensors").read_bytes())
raw[len(raw) // 2] ^= 1
(folder / "copy").write_bytes(raw)
try:
    refused = str(Classifier.load(folder / "copy"))
except GPT2Error as error:
    refused = f"refused: {error}".replace(f"{folder}/", "")
print(refused)

# %% check
test = [message.text for message in load_messages(run / "test.csv")]
encoded, _ = classifier.encode(test[:40])
assert classifier.logits(encoded).equal(trained.logits(encoded)), "to the bit"
trainable = sum(p.numel() for p in trained.model.parameters() if p.requires_grad)
assert 0 < len(raw) - 4 * trainable < 10_000 and refused.startswith("refused")
print(f"checked: {trainable:,} parameters of 4 bytes and little else; the same logits to the bit")

# %% [markdown]
# ## New messages
#
# `predict` takes any texts and gives each one a label and a probability for every label. We begin with
# the two messages that the lecture's book tries at the end. Then come texts of the kind that every
# inbox has: empty, much too long, without any words. `predict` answers for those too, and marks the
# ones that it had to cut or that are empty.

# %% tags=["varies"]
WINNER = "You are a winner you have been specially selected to receive $1000 cash or a $2000 award."
DINNER = "Hey, just wanted to check if we're still on for dinner tonight? Let me know!"
texts = [WINNER, DINNER, "", "🎉🎉🎉", "call me " * 5000, "<|endoftext|>"]
answers = classifier.predict(texts)
for text, answer in zip(texts, answers, strict=True):
    mark = "cut" if answer.truncated else "empty" if answer.empty else ""
    print(
        f"{answer.label:<5}{max(answer.probabilities.values()):6.1%}{answer.n_tokens:4d} tokens  {mark:<6}{text[:50]}"
    )

# %% [markdown]
# The book's messages get the right labels. The label of an empty text means nothing, so check
# whether a text is marked before you use its label. A high probability for an emoji means little
# too, because no training message was like that.

# %% check
assert [answer.label for answer in answers[:2]] == ["spam", "ham"], "as in the book"
assert [answer.empty for answer in answers] == [False, False, True, False, False, False]
assert [answer.truncated for answer in answers] == [False, False, False, False, True, False]
assert answers[5].n_tokens > 1, "what looks like the special token is ordinary text"
assert [classifier.predict([text])[0].label for text in texts] == [a.label for a in answers], (
    "alone"
)
print("checked: every text has an answer, the same alone as together with others")

# %% [markdown]
# ## Where to draw the line
#
# The label is the more probable of the two. But marking a good message as spam may do more harm
# than letting a spam message through. In that case we call a message spam only if its probability
# is above a *threshold* that is higher than one half. That finds less spam, but marks fewer good
# messages. We choose the threshold on the validation set: it is the second highest probability of
# spam that a good message has there, so exactly one good message is above it. The last line applies
# the same threshold to the test set. The run has saved its answers for both sets, so we need not
# classify again.

# %%
saved = {}
for name in ("val", "test"):
    lines = (run / f"{name}-answers.jsonl").read_text("utf-8").splitlines()
    saved[name] = [json.loads(line) for line in lines]
good = sorted(row["probabilities"]["spam"] for row in saved["val"] if row["label"] == "ham")
chosen = good[-2]
for name, threshold in (("val", 0.1), ("val", 0.5), ("val", chosen), ("test", chosen)):
    marked = [r["label"] for r in saved[name] if r["probabilities"]["spam"] > threshold]
    spam, ham, n = marked.count("spam"), marked.count("ham"), len(saved[name]) // 2
    print(f"{name:<5} above {threshold:.3f}: found {spam} of {n} spam messages; ", end="")
    print(f"marked {ham} of {n} good messages as spam")

# %% [markdown]
# On the test set the proportion of marked good messages may be different. One message out of so few
# is a very rough estimate. For a threshold that you rely on, use many more good messages.

# %% check
assert sum(p > chosen for p in good) == 1
assert [row["text"] for row in saved["test"][:40]] == test[:40], "the run's own test set"
for row, answer in zip(saved["test"], classifier.predict(test[:40]), strict=False):
    assert abs(row["probabilities"]["spam"] - answer.probabilities["spam"]) < 1e-4
    assert (row["probabilities"]["spam"] > 0.5) == (answer.label == "spam")
print("checked: the label is spam above one half; the saved answers are the classifier's")

# %% [markdown]
# ## From the shell
#
# You can do the same with your own messages and labels. You need a `.csv` file with the columns
# `text` and `label`, and at least ten messages per label. Our example asks whether a message needs
# a reply. Here every message that needs one ends in a question mark, so a few messages are enough
# to learn it. Real data is not that easy.


# %%
def shell(command):
    words = [sys.executable, "-m", "gpt2_from_scratch", *command.split()]
    done = subprocess.run(words, cwd=folder, capture_output=True, encoding="utf-8")
    print(f"$ gpt2-classifier {command}\n{done.stdout}")
    return done.stdout


ASK = """who takes the minutes?;can you pick up the kids?;is the server down?;shall we see a film?;\
did mum ring?;are you at work?;when is dinner?;is the report done?;have we any milk?;will you sign?"""
TELL = """the slides are attached;dinner is at six;I swapped my shift;the cat is sick;the tap leaks;\
your invoice was paid;water the plants;the board meets at two;I am on my way;we bought a printer"""
mine = [(text, "reply") for text in ASK.split(";")] + [(text, "read") for text in TELL.split(";")]
write_messages(folder / "mine.csv", [Message(*row) for row in mine])
_ = shell("check mine.csv")

# %%
options = "--no-cache --threads 1"  # for this notebook only; you can leave them out
_ = shell(f"train --model {MODEL} --data mine.csv --lr {LR} --out mine {options}")

# %% tags=["varies"]
inbox = ["The client rang at six", "Is the cat out?", "ok 👍"]
(folder / "inbox.txt").write_text("\n".join(inbox) + "\n", encoding="utf-8")
lines = shell("predict mine --file inbox.txt --json --threads 1").splitlines()

# %% check
assert main(f"evaluate {folder / 'mine'} {options}".split()) == 0, "the same command, as a function"
for line, answer in zip(lines, Classifier.load(folder / "mine").predict(inbox), strict=True):
    assert json.loads(line)["label"] == answer.label
    assert abs(json.loads(line)["probabilities"]["reply"] - answer.probabilities["reply"]) < 1e-5
print("checked: the shell and Python give the same answers")

# %% [markdown]
# ## Exercises
#
# 1. Train only the head, or the last two blocks. How large is the saved file? Save one of each.
# 2. Save the base with one weight changed (`save_gpt2`). Is it accepted as the base that the run needs?
# 3. Reading a spam message costs one minute; losing a good message costs twenty. Which threshold is
#    the cheapest?
#
# Solutions: [`solutions/11_use.py`](solutions/11_use.py).
