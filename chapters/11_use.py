# %% [markdown]
# # 11. Use
#
# **You are here:** the lecture · messages → tokens → attention → network → weights → head → last token → freezing → loss → finetuning → **use**
#
# A classifier is trained once and then used for a long time, often by people who did not train it. What
# do they need, and what can go wrong? In this chapter we save a classifier, damage its file, give it
# messages that nobody expected, and decide how sure it must be before a message is thrown away.
#
# **At the end you will know** what a run saves, how to choose a threshold that keeps good messages,
# and what to look at before you train on your own table.
#
# **Reading time:** 25 minutes. **Running time:** about twenty seconds, offline.

# %%
import csv
import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from matplotlib.figure import Figure

from gpt2_from_scratch import (
    Classifier,
    DataConfig,
    GPT2Error,
    TrainConfig,
    check_data,
    count_labels,
    load_messages,
    train_classifier,
    wilson_interval,
    write_messages,
)
from gpt2_from_scratch.course import picture, setting

MODEL, DATA = setting("mini")  # "124M": OpenAI's model. DATA: the SMS Spam Collection

# %% [markdown]
# ## A run
#
# Chapter 10 split the messages, trained, and tested in separate steps. `train_classifier` does all of
# it in one call, and writes what it did into a folder. To save time we give it only the first 1,800
# messages of the collection, as a file. This time we do not balance them, because in a real inbox
# most messages are good ones.

# %%
TEMPORARY = TemporaryDirectory()  # gone when Python ends
folder = Path(TEMPORARY.name)
some = load_messages(DATA)[:1800]
write_messages(folder / "messages.csv", some)
print(count_labels(some))

LR = 7e-4 if MODEL == "mini" else 2e-4  # wider networks need a lower rate
config = TrainConfig(epochs=4, batch_size=8, lr=LR)
run = train_classifier(MODEL, folder / "messages.csv", config, run=folder / "run", cache=False)
scores = run.scores
print(f"test accuracy {scores.accuracy:.1%} of {scores.total} messages")

# %% [markdown]
# That is a good score. But most messages are ham, so a classifier that always says ham would look good
# too. Chapter 12 is about this. Here we look at what the run has saved:

# %%
for path in sorted(run.folder.iterdir()):
    print(f"{path.stat().st_size / 1e6:6.2f} MB  {path.name}")

# %% [markdown]
# `best.safetensors` is the classifier. The `.json` files say with which settings, data and versions it
# was made. `test-answers.jsonl` has its answer to every test message, and `MANIFEST.json` has a hash
# of every file. If you call `run.write_report()`, there will also be a page `report.html` with all of
# this in readable form.

# %% [markdown]
# ## Load it again
#
# On another day, `Classifier.load` reads the classifier back. The file is small, because it holds only
# what training has changed: the last block, the final norm and the head. The rest is the pretrained
# model, the *base*, which you already have.

# %%
classifier = Classifier.load(run.folder)
n_all = n_saved = 0
for name, parameter in run.classifier.model.named_parameters():
    n_all += parameter.numel()
    if name.startswith((f"blocks.{run.classifier.model.config.n_layer - 1}.", "ln_f.", "head.")):
        n_saved += parameter.numel()
size = (run.folder / "best.safetensors").stat().st_size
print(f"{n_saved:,} of {n_all:,} parameters, 4 bytes each: {4 * n_saved:,} bytes")
print(f"size of best.safetensors:                     {size:,} bytes")

# %% [markdown]
# Files get damaged: by a bad disk, or by a copy that stopped half-way. A changed weight would give
# changed answers, and nobody would notice. We change a single bit in the middle of a copy. What
# should happen?

# %%
content = bytearray((run.folder / "best.safetensors").read_bytes())
content[len(content) // 2] ^= 1  # flips the last bit of one byte
(folder / "copy.safetensors").write_bytes(content)
try:
    Classifier.load(folder / "copy.safetensors")
except GPT2Error as error:
    refused = str(error).replace(f"{folder}/", "")
    print("refused:", refused)

# %% [markdown]
# The file is refused. It contains a hash of its own weights, and the hash of the base as well. So a
# classifier is also refused if you load it on a base that is not exactly the one it was trained on
# (exercise 2).

# %% [markdown]
# ## New messages
#
# `predict` takes a list of texts and returns one answer per text. The first two texts are from the
# lecture's book. The others are of the kind that every inbox has sooner or later: an empty one, one
# without words, one that is much too long, and one that contains the name of a special token.

# %% tags=["varies"]
WINNER = "You are a winner you have been specially selected to receive $1000 cash or a $2000 award."
DINNER = "Hey, just wanted to check if we're still on for dinner tonight? Let me know!"
texts = [WINNER, DINNER, "", "🎉🎉🎉", "call me " * 5000, "<|endoftext|>"]
answers = classifier.predict(texts)
print("label  P(spam)  tokens  remark")
for text, answer in zip(texts, answers, strict=True):
    remark = ""
    if answer.truncated:
        remark = "cut"
    if answer.empty:
        remark = "empty"
    p_spam = answer.probabilities["spam"]
    print(f"{answer.label:<6}{p_spam:>8.3f}{answer.n_tokens:>8}  {remark:<8}{text[:44]}")

# %% [markdown]
# None of these texts makes `predict` fail. It marks the text that had to be cut and the one that is empty. The
# label of an empty text means nothing, so look at these marks before you use a label. The emoji have
# a label too, but no training message was like them.

# %% [markdown]
# ## Where to draw the line
#
# The label is the more probable of the two, so a message is called spam if P(spam) is above one half.
# Is that the best place for the line? A spam message in the inbox costs you a second. A good message
# that is thrown away may cost you a job. So a filter should be sure before it throws something away:
# it should use a higher *threshold*.
#
# How high? We look at the validation set, which training has not used. The run has saved its answers,
# so nothing has to be computed again. These are the good messages that look most like spam:


# %%
def saved_answers(part):
    """P(spam) and whether the message is spam, for each message of a part."""
    lines = (run.folder / f"{part}-answers.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    p_spam = np.array([row["probabilities"]["spam"] for row in rows])
    is_spam = np.array([row["label"] == "spam" for row in rows])
    return p_spam, is_spam


p_val, is_spam_val = saved_answers("val")
good = np.sort(p_val[~is_spam_val])
print(f"{len(good)} good messages; the highest values of P(spam):", good[-5:].round(3))

# %% [markdown]
# We take the highest of these numbers as the threshold, but at least one half. Then no good message of
# the validation set is lost. What does it cost? We count on the validation set, on which the threshold
# was chosen, and on the test set, which is new to it. Guess first: will it lose no good message there
# either?

# %%
chosen = max(0.5, good[-1])
p_test, is_spam_test = saved_answers("test")
for part, p, is_spam in (("val", p_val, is_spam_val), ("test", p_test, is_spam_test)):
    for threshold in (0.1, 0.5, chosen):
        marked = p > threshold
        found = (marked & is_spam).sum()
        lost = (marked & ~is_spam).sum()
        print(f"{part:<5} above {threshold:.3f}: ", end="")
        print(f"finds {found} of {is_spam.sum()} spam, loses {lost} of {(~is_spam).sum()} good")

test = load_messages(run.folder / "test.csv")
worst = np.argmax(np.where(is_spam_test, 0, p_test))
print(f"P(spam) {p_test[worst]:.3f} for a good message: {test[worst].text}")

# %% [markdown]
# On the validation set the chosen threshold loses no good message, because we chose it that way. On
# the test set it loses one, just as the threshold of one half does, and it still finds nearly all
# spam. What a threshold achieves on the messages on which it was chosen, it need not achieve on new
# ones. The last line shows the lost message: it is full of numbers. To save it, the threshold would
# have to be so high that much of the spam gets through. The picture shows, for every possible
# threshold, how much spam it finds on the test set and how many good messages it loses. The best place
# would be the upper left corner.

# %%
thresholds = np.sort(np.append(p_test, [0.0, 1.0]))
lost = [(p_test[~is_spam_test] > threshold).sum() for threshold in thresholds]
found = [100 * (p_test[is_spam_test] > threshold).mean() for threshold in thresholds]
figure = Figure(figsize=(7, 3.6), layout="constrained")
axes = figure.subplots()
axes.plot(lost, found, color="#0072B2", drawstyle="steps-pre")
points = ((0.1, "#009E73", 75), (chosen, "#D55E00", 50), (0.98, "#E69F00", 25))
for threshold, colour, height in points:
    x = (p_test[~is_spam_test] > threshold).sum()
    y = 100 * (p_test[is_spam_test] > threshold).mean()
    name = f"threshold {threshold:.2f}: {y:.0f}% found, {x} lost"
    line = {"arrowstyle": "-", "color": colour}
    axes.plot(x, y, "o", color=colour)
    axes.annotate(name, (x, y), (4, height), color=colour, arrowprops=line)
axes.set(title="A lower threshold finds more spam and loses more good messages")
axes.set(xlabel=f"good messages lost (of {(~is_spam_test).sum()})", ylabel="spam found (%)")
axes.set(xlim=(-0.5, 16), ylim=(0, 103))
picture(figure, "11-trade")

# %% [markdown]
# A threshold that loses no good message here may still lose one later. If it loses one good message in
# a hundred, a set of this size may contain none of these by chance. The interval says how many it
# could be:

# %%
n_good = len(good)
low, high = wilson_interval(0, n_good)
print(f"0 of {n_good} good messages lost: up to {high:.1%} of them may be, in the long run")

# %% [markdown]
# So for a threshold that you rely on, use many good messages. `gpt2-classifier evaluate RUN` computes
# thresholds for several limits and says how sure they are.

# %% [markdown]
# ## From the shell
#
# All of this works without Python too. This command reads one message per line from a file. With
# `--json` it prints one line of JSON per message, so that another program can read the answers.

# %% tags=["varies"]
inbox = ["Are you home yet?", "URGENT! You have won a 1 week FREE membership. Txt CLAIM to 81010"]
(folder / "inbox.txt").write_text("\n".join(inbox) + "\n", encoding="utf-8")
command = "predict run --file inbox.txt --json --threads 1"
done = subprocess.run(
    [sys.executable, "-m", "gpt2_from_scratch", *command.split()],
    cwd=folder,
    capture_output=True,
    encoding="utf-8",
)
print("$ gpt2-classifier", command)
print(done.stdout)

# %% [markdown]
# ## Your own table
#
# Now it is your turn. You need a table with one column of texts and one of labels. Tables that people
# have filled in by hand are never clean, so look before you train. Our example has 300 short texts,
# as if they were tickets for three teams, and three mistakes that we have put in.

# %%
rows = [[message.text, message.label] for message in load_messages("topics")]
rows[3][1] = "Sports"  # a capital letter
rows[7][0] = ""  # somebody forgot the text
rows.append([rows[20][0], "sports"])  # the same text with another label
with (folder / "tickets.csv").open("w", encoding="utf-8", newline="") as file:
    csv.writer(file).writerows([["ticket", "team"], *rows])

tickets = DataConfig(source=str(folder / "tickets.csv"), text_column="ticket", label_column="team")
report = check_data(tickets)
print(f"{report.rows} rows, labels: {', '.join(report.labels)}")
for obstacle in report.obstacles:
    print("-", obstacle)
print("lines of the empty text:", report.faults["empty texts"].lines)

# %% [markdown]
# All three are found. If we trained anyway, "Sports" and "sports" would become two classes, and one
# text would teach two opposite answers. We repair the table and train on it. (In the shell:
# `gpt2-classifier check tickets.csv`, and then `train --data tickets.csv`.)

# %%
rows[3][1] = "sports"
del rows[-1], rows[7]
with (folder / "tickets.csv").open("w", encoding="utf-8", newline="") as file:
    csv.writer(file).writerows([["ticket", "team"], *rows])
print("obstacles:", check_data(tickets).obstacles)

config = TrainConfig(epochs=6, lr=LR)
teams = train_classifier(MODEL, tickets, config, run=folder / "teams", cache=False)
low, high = teams.scores.interval
print(f"{teams.scores.correct} of {teams.scores.total} test texts are correct, ", end="")
print(f"95% interval {low:.0%} to {high:.0%}")

# %% [markdown]
# The classifier is far better than guessing among three teams. We cannot say more than that, because
# there are so few test texts that the interval is wide. Be most careful with a small test set when the
# result is perfect. With four test texts, four correct answers look like 100%:

# %%
for n in (4, 40, 400):
    low, _ = wilson_interval(n, n)
    print(f"{n:>3} of {n:>3} correct: the true accuracy may be as low as {low:.0%}")

# %% [markdown]
# ## What you know now
#
# - A run's folder has the classifier, its settings, its answers, and a hash of every file.
# - The classifier's file holds what training has changed. A file with a single wrong bit is refused.
# - Every text gets an answer. Marks say if it was cut or empty.
# - A higher threshold loses fewer good messages and finds less spam. It is chosen on the validation
#   set.
# - Check a table before training. And a perfect score on a few texts means little.

# %% [markdown]
# ## Checks
#
# These cells check what the chapter said. They are folded in the notebook; an error here means that
# something is wrong.

# %% check
test_texts = [message.text for message in test]
encoded, _ = classifier.encode(test_texts[:40])
assert classifier.logits(encoded).equal(run.classifier.logits(encoded))
assert 0 < size - 4 * n_saved < 10_000 and n_saved < n_all
print(
    "checked: the loaded classifier has the same logits to the bit, and its file is as small as said"
)

# %% check
copy = folder / "undamaged.safetensors"
copy.write_bytes((run.folder / "best.safetensors").read_bytes())
Classifier.load(copy)
assert "copy.safetensors" in refused
print("checked: an exact copy is accepted, so it was the changed bit that was refused")

# %% check
assert [answer.label for answer in answers[:2]] == ["spam", "ham"], "as in the book"
assert [answer.empty for answer in answers] == [False, False, True, False, False, False]
assert [answer.truncated for answer in answers] == [False, False, False, False, True, False]
assert answers[5].n_tokens > 2, "the name of the special token is ordinary text"
for text, answer in zip(texts, answers, strict=True):
    alone = classifier.predict([text])[0]
    assert abs(alone.probabilities["spam"] - answer.probabilities["spam"]) < 1e-4
print("checked: every text has an answer, the same alone as together with others")

# %% check
for p, answer in zip(p_test, classifier.predict(test_texts), strict=True):
    assert abs(p - answer.probabilities["spam"]) < 1e-4
    assert (answer.label == "spam") == (answer.probabilities["spam"] > 0.5)
assert not (p_val[~is_spam_val] > chosen).any() and (p_val[~is_spam_val] >= good[-1]).sum() == 1
assert (p_test[~is_spam_test] > chosen).mean() < 0.03, "good messages are kept"
assert (p_test[is_spam_test] > chosen).mean() > 0.6, "most spam is found"
print("checked: the saved answers are the classifier's; the chosen threshold keeps good messages")

# %% check
for line, answer in zip(done.stdout.splitlines(), classifier.predict(inbox), strict=True):
    from_shell = json.loads(line)
    assert from_shell["label"] == answer.label
    assert abs(from_shell["probabilities"]["spam"] - answer.probabilities["spam"]) < 1e-4
print("checked: the shell and Python give the same answers")

# %% check
assert len(report.obstacles) == 3 and report.labels_alike == [["Sports", "sports"]]
assert report.faults["empty texts"].lines == [9], "a header, and seven rows before it"
assert report.contradictions.examples[0].text == rows[19][0], "one row before it was deleted"
assert teams.scores.interval[0] > 1 / 3
print("checked: exactly the three mistakes were found; the classifier is better than guessing")

# %% [markdown]
# ## Exercises
#
# 1. (easy) Save a classifier in which only the head is trainable, and one with the last two blocks. How
#    large are the files? Compute it first.
#    <details><summary>Hint</summary>A block has 12 C² + 13 C parameters, the final norm 2 C, and a
#    head with K outputs C K + K.</details>
# 2. (medium) Save the base with one weight changed by a thousandth (`save_gpt2`). Is it accepted as the
#    base of the run? Should it be?
#    <details><summary>Hint</summary>`Classifier.load(run, folder)` takes the base from a folder. It
#    needs the tokenizer's files too.</details>
# 3. (hard) Reading a spam message costs one minute; losing a good message costs twenty. Which threshold
#    is the cheapest on the validation set? Is it the cheapest on the test set?
#    <details><summary>Hint</summary>Only the probabilities of the validation messages, and one half,
#    need to be tried.</details>
#
# Solutions: [`solutions/11_use.py`](solutions/11_use.py).
