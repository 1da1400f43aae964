# %% [markdown]
# # 13. Where to read
#
# **You are here:** evaluation → **where to read** → speed
#
# Chapter 7 showed that the lecture's code reads most messages at padding. But there the head was
# random. Does it matter once the classifier has been trained? In this chapter we train classifiers
# that read in different places, and try to mislead them with things that nobody can see.
#
# **At the end you will know** how padding and other messages can change an answer, how an invisible
# character can do the same, and how one more token at the end of every text prevents both.
#
# **Reading time:** 20 minutes. **Running time:** about twenty seconds, offline.

# %%
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from matplotlib.figure import Figure

from gpt2_from_scratch import (
    LABELS,
    Classifier,
    FeatureStore,
    Split,
    Tokenizer,
    TrainConfig,
    class_logits,
    evaluate_classifier,
    finetune,
    load_messages,
    model_folder,
    pad_batch,
    split_messages,
)
from gpt2_from_scratch.course import picture, setting

MODEL, DATA = setting("mini")  # "124M": OpenAI's model. DATA: the SMS Spam Collection

# %% [markdown]
# ## Last position against last token
#
# We train with 256 messages of at most 56 tokens, to save time. One classifier reads the last
# position, as the lecture does: every message is padded to 56 tokens. The other one reads each message
# at its last token. In the package, the argument `pooling` names the place that is read. We train each
# of them twice, with two seeds. A `FeatureStore` keeps what the frozen blocks compute, so that the
# second seed need not compute it again (chapter 14).

# %%
LONGEST = 56
LR = 1e-3 if MODEL == "mini" else 2e-4
tokenizer = Tokenizer(model_folder(MODEL))
short = [m for m in load_messages(DATA) if len(tokenizer.encode(m.text)) <= LONGEST]
parts = split_messages(short, balance=True)
split = Split(parts.train[:256], parts.val[:40], parts.test)
folder = TemporaryDirectory()
store = FeatureStore(Path(folder.name) / "features")
print(f"{len(split.train)} training, {len(split.val)} validation, {len(split.test)} test messages")


# %%
def train_reader(pooling, seed):
    classifier = Classifier.on_base(MODEL, LABELS, pooling=pooling, seed=seed)
    if pooling == "last_position":
        padded = replace(classifier.description, max_tokens=LONGEST, pad_to=LONGEST)
        classifier.description = padded
    classifier.store = store
    config = TrainConfig(epochs=3, seed=seed, lr=LR)
    finetune(classifier, split, config, Path(folder.name) / f"{pooling}-{seed}")
    return classifier


def print_accuracy(name, classifier):
    scores = evaluate_classifier(classifier, split.test)
    low, high = scores.interval
    print(f"{name:<22} {scores.accuracy:.1%}   95% interval {low:.1%} to {high:.1%}")
    return scores


# %%
by_position = train_reader("last_position", seed=1)
by_position_2 = train_reader("last_position", seed=2)
by_token = train_reader("last_token", seed=1)
by_token_2 = train_reader("last_token", seed=2)

# %%
position_scores = print_accuracy("last position, seed 1", by_position)
position_scores_2 = print_accuracy("last position, seed 2", by_position_2)
token_scores = print_accuracy("last token, seed 1", by_token)
token_scores_2 = print_accuracy("last token, seed 2", by_token_2)

# %% [markdown]
# Which reading is better? We cannot tell. With so few test messages the intervals are wide, and they
# overlap. Even two seeds of the same reading can differ by several points. (The book reports 95.00%
# for the last position and 98.33% for the last token, with one seed each.) So we leave the accuracy
# aside, and look at single answers.

# %% [markdown]
# ## The answer depends on the padding
#
# Here is a spam message of the test set. We put more and more padding after it, and ask all four
# classifiers. What do you expect? (One pass over the message with 60 tokens of padding is enough: no
# position can see the padding that comes after it.) We chose this message because it shows the effect
# clearly. With other messages the answer changes less.

# %%
TEXT = "85233 FREE>Ringtone!Reply REAL"
ids = tokenizer.encode(TEXT)
pad_id = tokenizer.end_of_text_id
PADS = 60
padded = torch.tensor([ids + [pad_id] * PADS])


# %%
def answers_after_padding(classifier):
    with torch.no_grad():
        p_spam = classifier.model(padded).softmax(dim=-1)[0, :, 1]
    return p_spam[len(ids) - 1 :].tolist()  # after 0, 1, 2, ... tokens of padding


position_curve = answers_after_padding(by_position)
position_curve_2 = answers_after_padding(by_position_2)
token_answer = answers_after_padding(by_token)[0]  # read at the last token: never at padding
token_answer_2 = answers_after_padding(by_token_2)[0]
print("pads   last position, seed 1   seed 2")
for pads in (0, 1, 5, 20, 37, 50, 60):
    print(f"{pads:>4} {position_curve[pads]:>23.2f} {position_curve_2[pads]:>8.2f}")

# %%
figure = Figure(figsize=(8, 3.8), layout="constrained")
axes = figure.subplots()
axes.axhspan(0, 50, color="#0072B2", alpha=0.08)
axes.plot([100 * p for p in position_curve], color="#D55E00", label="last position, seed 1")
axes.plot([100 * p for p in position_curve_2], "--", color="#D55E00", label="last position, seed 2")
axes.axhline(100 * token_answer, color="#009E73", label="last token, seed 1")
axes.axhline(100 * token_answer_2, ls="--", color="#009E73", label="last token, seed 2")
axes.axvline(LONGEST - len(ids), color="#404040", lw=1, ls=":")
axes.text(LONGEST - len(ids) + 0.5, 62, "padded as in training")
axes.text(1, 43, "below 50%: ham")
axes.set(xlabel="tokens of padding after the message", ylabel="P(spam) (%)", ylim=(0, 102))
axes.set_title(f"One message, more and more padding: {TEXT}")
axes.legend(loc="lower left", fontsize=8)
picture(figure, "13-padding")

# %% [markdown]
# The message never changes. Yet at the last position its probability of spam rises and then falls, and
# with enough padding both classifiers call it ham. At the last token the answer stays the same,
# because that token cannot see the padding after it.
#
# The dotted line is where the message has been padded to 56 tokens, like every training message. The
# lecture always pads to the same length, so its answers stay as they are. But that length is then part
# of the model. Everybody who uses the model has to pad to the same length.

# %% [markdown]
# ## The answer depends on the other messages
#
# Perhaps we could pad each batch only to its own longest message? Then the other messages in the batch
# decide how much padding there is. We classify the message alone, and then together with a long one:

# %%
for message in load_messages(DATA):
    long_ids = tokenizer.encode(message.text)
    if len(long_ids) >= 80:
        break
alone = pad_batch([ids], pad_id)
together = pad_batch([ids, long_ids], pad_id)
print(f"{len(ids)} tokens alone; in a batch with {len(long_ids)} tokens")
answers = {}
with torch.no_grad():
    for name, batch in (("alone", alone), ("together", together)):
        at_position = class_logits(by_position_2.model, *batch, "last_position").softmax(dim=1)
        at_token = class_logits(by_token_2.model, *batch, "last_token").softmax(dim=1)
        answers[name] = (at_position[0, 1].item(), at_token[0, 1].item())
        print(f"{name:<9} last position {answers[name][0]:.4f}   last token {answers[name][1]:.4f}")

# %% [markdown]
# At the last position, somebody else's message changes the answer for this one. (The long message
# brings more padding than the classifier has seen in training.) At the last token it changes nothing.

# %% [markdown]
# ## What nobody can see
#
# Should we read the last token, then? It has a weakness of its own. The last token differs from text
# to text: it is a full stop, a word or half a word. The classifier has learned what to expect from
# each of them. Now somebody copies a message, and an invisible character is copied with it: a newline,
# a space, or the mark U+FEFF, which some programs put into files.

# %%
ENDS = {"nothing": "", "a newline": "\n", "a space": " ", "a mark U+FEFF": "\ufeff"}
print("added at the end   last position   last token   the last three tokens")
for name, end in ENDS.items():
    at_position = by_position.predict([TEXT + end])[0].probabilities["spam"]
    at_token = by_token.predict([TEXT + end])[0].probabilities["spam"]
    print(f"{name:<18} {at_position:>13.2f} {at_token:>12.2f}   ", end="")
    print(tokenizer.encode(TEXT + end)[-3:])

# %% [markdown]
# On a screen, these four texts look the same. At the last token they have different answers. The last
# position is hardly affected, and nobody planned that: almost every message is read at the same token
# there, `<|endoftext|>`. Its only fault is that the number of these tokens varies.

# %% [markdown]
# ## One more token for every text
#
# That suggests a reading with both advantages. Remove white space and invisible characters from the
# end of the text. Then append one token, the same for every text, and read there. This is
# `pooling="end_token"`, the default of the package. The token is a newline, which GPT-2 often saw
# after a text when it was pretrained.

# %%
by_end = train_reader("end_token", seed=1)
end_scores = print_accuracy("end token, seed 1", by_end)
for name, end in ENDS.items():
    encoded, _ = by_end.encode([TEXT + end])
    print(f"{name:<15} last tokens {encoded[0][-3:]}")

# %% [markdown]
# All four texts have become the same tokens, so they must get the same answer. Now we count. We put
# each ending after 40 test messages. How many labels change? For comparison we also add or remove a
# full stop, which one can see.

# %%
texts = [message.text for message in split.test[:40]]
full_stop = []
for text in texts:
    full_stop.append(text[:-1] if text.endswith(".") else text + ".")

# %%
readers = {"last position": by_position, "last token": by_token, "end token": by_end}
flips = {}
print("of 40 labels change:    newline   space   U+FEFF   full stop")
for name, classifier in readers.items():
    usual = [answer.label for answer in classifier.predict(texts)]
    counts = []
    for changed in (
        [text + "\n" for text in texts],
        [text + " " for text in texts],
        [text + "\ufeff" for text in texts],
        full_stop,
    ):
        labels = [answer.label for answer in classifier.predict(changed)]
        counts.append(sum(a != b for a, b in zip(labels, usual, strict=True)))
    flips[name] = counts
    print(f"{name:<20} {counts[0]:>10} {counts[1]:>7} {counts[2]:>8} {counts[3]:>11}")

# %% [markdown]
# With the last token, some labels change although nobody can see a difference. With the end token none
# does, and that is not luck: the tokens are the same. At the last position none changes here, because the
# amount of padding is fixed. A full stop can be seen, and it may still change
# an answer. If you do not want that, show every text with both endings during training:
# `TrainConfig(vary_endings=True)`.
#
# Our training was short, which makes the last token look worse than it has to. After training with all
# messages, only a few labels in a hundred change with an invisible ending. On questions and on film
# reviews about a third of the labels change, even after a full training. The page *Where a text is read* of the documentation has the
# numbers.

# %% [markdown]
# ## What it costs
#
# The end token costs one more token per text. Padding costs more: every padding token goes through the
# blocks like a real one.

# %%
real_tokens = sum(len(tokenizer.encode(message.text)) for message in split.train)
padded_tokens = LONGEST * len(split.train)
end_tokens = real_tokens + len(split.train)
print(f"last token:    {real_tokens:>6,} tokens of the training messages go through the blocks")
print(f"end token:     {end_tokens:>6,} ({end_tokens / real_tokens - 1:.0%} more)")
print(f"last position: {padded_tokens:>6,} ({padded_tokens / real_tokens - 1:.0%} more)")

# %% [markdown]
# In return for these few tokens, a text has one answer: with any padding, in any batch, and with any
# invisible characters at its end. Is the accuracy better too? Our few messages cannot answer that. The
# same page of the documentation compares the readings on four data sets, with five seeds. There the
# end token is sometimes better and sometimes worse than the last token.

# %% [markdown]
# ## What you know now
#
# - At the last position, the answer depends on the amount of padding, and so on other messages or on a
#   number that somebody has to remember.
# - At the last token, the answer depends on the message alone, but also on invisible characters at its
#   end.
# - The end token is the same for every text. Read there, the answer depends neither on padding nor on
#   invisible characters.
# - A few dozen test messages and two seeds cannot show which reading is more accurate.
# - The end token costs one token per text. Padding costs more.

# %% [markdown]
# ## Checks
#
# These cells check what the chapter said. They are folded in the notebook; an error here means that
# something is wrong.

# %% check
all_scores = [position_scores, position_scores_2, token_scores, token_scores_2]
all_scores.append(end_scores)
assert all(scores.interval[0] > 0.5 for scores in all_scores)
assert {scores.total for scores in all_scores} == {len(split.test)}
print("checked: all five are significantly better than guessing")

# %% check
for pads in (0, 1, 20, 60):  # one pass gave all answers; here each has a pass of its own
    batch = pad_batch([ids], pad_id, len(ids) + pads)
    with torch.no_grad():
        one = class_logits(by_position_2.model, *batch, "last_position").softmax(dim=1)[0, 1]
        other = class_logits(by_token_2.model, *batch, "last_token").softmax(dim=1)[0, 1]
    assert abs(one - position_curve_2[pads]) < 1e-4 and abs(other - token_answer_2) < 1e-4
assert max(position_curve_2) - min(position_curve_2) > 0.1
assert MODEL != "mini" or min(position_curve_2) < 0.5 < position_curve_2[0]
print("checked: padding moves the answer at the last position and not at the last token")

# %% check
extra = len(long_ids) - len(ids)
assert abs(answers["together"][0] - answers["alone"][0]) > 0.01
assert abs(answers["together"][1] - answers["alone"][1]) < 1e-4
assert extra > PADS or abs(answers["together"][0] - position_curve_2[extra]) < 1e-4
print("checked: another message changes the answer at the last position and not at the last token")

# %% check
end_ids = [tuple(by_end.encode([TEXT + end])[0][0]) for end in ENDS.values()]
assert len(set(end_ids)) == 1 and list(end_ids[0]) == ids + tokenizer.encode("\n")
assert flips["end token"][:3] == [0, 0, 0]
assert sum(flips["last token"][:3]) > 0
found = {by_end.predict([TEXT + end])[0].probabilities["spam"] for end in ENDS.values()}
assert len(found) == 1
print("checked: invisible endings change labels at the last token, and not a bit at the end token")

# %% [markdown]
# ## Exercises
#
# 1. (easy) In which tokens do the training messages end? Count the different ones, and print the most
#    common.
#    <details><summary>Hint</summary>`collections.Counter` counts them.</details>
# 2. (medium) Append the newline by hand, but do not remove anything: encode `text + " "`, add the id
#    of the newline, and read there. Does the space still change the answer?
#    <details><summary>Hint</summary>The newline attends to the space.</details>
# 3. (hard) Another reading takes the mean of the states of all tokens, `pooling="mean"`. Train it.
#    Does padding change its answers? Does a newline? How many labels?
#    <details><summary>Hint</summary>Train as in this chapter, and count as in its table.</details>
#
# Solutions: [`solutions/13_where_to_read.py`](solutions/13_where_to_read.py).
