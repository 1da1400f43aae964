# %% [markdown]
# # Solutions to chapter 17

# %%
import re
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from gpt2_from_scratch import (
    Classifier,
    HeadConfig,
    Message,
    Span,
    Split,
    TrainConfig,
    finetune,
    load_messages,
    split_messages,
)

PHONE = re.compile(
    r"""
    (?<![\d£$.])            # before it there is no digit and no sign of an amount of money
    (?:\+44|0)              # it begins with +44 or 0
    \d{2,5}                 # two to five digits follow
    (?:[ -]?\d{3,6}){1,2}   # one or two groups of digits, each perhaps after a space or a hyphen
    (?!\d)                  # and then there is no further digit
    """,
    re.VERBOSE,  # spaces and comments do not count
)
MONEY = re.compile(r"£ ?\d[\d,.]*\d|£ ?\d")  # a pound sign, perhaps a space, and a number
TAGS = ("O", "B-phone", "I-phone", "B-money", "I-money")
QUESTIONS = {"Which number should I call?\n": PHONE, "How much money?\n": MONEY}
whole = split_messages(load_messages("sms"), balance=True)


def spam_of(part):
    return [message.text for message in part if message.label == "spam"]


train, val, test = spam_of(whole.train), spam_of(whole.val), spam_of(whole.test)


def tagged(texts):
    messages = []
    for text in texts:
        words = []
        for word in re.finditer(r"\S+", text):
            tag = "O"
            for kind, pattern in (("phone", PHONE), ("money", MONEY)):
                for found in pattern.finditer(text):
                    if word.start() <= found.start() < word.end():
                        tag = f"B-{kind}"
                    elif found.start() < word.start() < found.end():
                        tag = f"I-{kind}"
            words.append(Span(word.start(), word.end(), tag))
        messages.append(Message(text, tuple(words)))
    return messages


def asked(texts):
    messages = []
    for text in texts:
        if PHONE.search(text) and MONEY.search(text):
            for question, pattern in QUESTIONS.items():
                found = pattern.search(question + text)
                messages.append(Message(question + text, Span(found.start(), found.end())))
    return messages


def train_head(head, split, epochs):
    classifier = Classifier.on_base("mini", heads=[head])
    config = TrainConfig(n_last_blocks=2, epochs=epochs, lr=1e-3)
    with TemporaryDirectory() as folder:
        finetune(classifier, split, config, Path(folder))
    return classifier


# %% [markdown]
# ## 1. Wrong tags
#
# > Which words of the test messages got a wrong tag? Print them with their correct tags.
#
# Look at the digits. Most wrong tags are at words with digits that are neither a phone number nor money, or
# at numbers that are written in an unusual way. Words without digits are hardly ever wrong.

# %% tags=["varies"]
split = Split(tagged(train[:120]), tagged(val[:20]), tagged(test[:60]))
tagger = train_head(HeadConfig(task="token-classification", labels=TAGS), split, epochs=3)
predictions = tagger.predict([message.text for message in split.test])
wrong = []
total = 0
for message, prediction in zip(split.test, predictions, strict=True):
    for said, correct in zip(prediction.answers["label"].words, message.label, strict=True):
        total += 1
        if said.label != correct.label:
            wrong.append((said.word, said.label, correct.label))
for word, said, correct in wrong[:12]:
    print(f"{word:<16} tagged {said:<8} correct {correct}")

# %%
with_digits = [word for word, _, _ in wrong if re.search(r"[\d£]", word)]
print(
    f"more than half of the wrong words contain a digit or £: {len(with_digits) > len(wrong) / 2}"
)
assert 0 < len(wrong) < 0.1 * total
assert len(with_digits) > len(wrong) / 2

# %% [markdown]
# ## 2. The question after the message
#
# > Put the question *after* the message. How much do the scores of the message's tokens depend on it?
#
# Not at all. The tokens of the message come before the question and cannot see it, so they have the same
# scores for every question. With the question in front, the scores differ.

# %%
splits = Split(asked(train), asked(val), asked(test))
answerer = train_head(HeadConfig(task="span"), splits, epochs=2)
text = "Call 09061701461 now to claim your £1,000 prize!"
n = len(answerer.tokenizer.encode(text))
number, money = [question.strip() for question in QUESTIONS]


def scores_of(whole_text):
    ids = answerer.tokenizer.encode(whole_text)
    with torch.no_grad():
        return answerer.model(torch.tensor([ids]))[0]


after = (scores_of(f"{text}\n{number}")[:n] - scores_of(f"{text}\n{money}")[:n]).abs().max()
before = (scores_of(f"{number}\n{text}")[-n:] - scores_of(f"{money}\n{text}")[-n:]).abs().max()
print(f"the question comes after the message: no difference: {after.item() < 1e-4}")
print(f"the question comes first: a difference of more than 1: {before.item() > 1}")
assert after < 1e-4 and before > 1

# %% [markdown]
# ## 3. Numbers with spaces
#
# > Teach the span head to find numbers with spaces in them, without new messages.
#
# We write half of the numbers in the training set with two spaces. Nothing else changes. On test messages
# whose numbers are written in the same way, the new head finds far more of them.


# %%
def with_spaces(texts):
    changed = []
    for text in texts:
        found = PHONE.search(text)
        number = found[0] if found else ""
        if number.isdigit() and len(number) == 11:
            spaced = f"{number[:4]} {number[4:7]} {number[7:]}"
            changed.append(text.replace(number, spaced))
    return changed


def found_exactly(classifier, messages):
    predictions = classifier.predict([message.text for message in messages])
    correct = 0
    for message, prediction in zip(messages, predictions, strict=True):
        found = prediction.answers["label"]
        correct += (found.start, found.end) == (message.label.start, message.label.end)
    return correct / len(messages)


half = train[::2] + with_spaces(train[1::2])
taught = train_head(HeadConfig(task="span"), Split(asked(half), asked(val), []), epochs=2)
spaced = [message for message in asked(with_spaces(test)) if message.text.startswith(number)]
old = found_exactly(answerer, spaced)
new = found_exactly(taught, spaced)
print(f"{len(spaced)} test numbers with spaces")
print(f"found exactly: {old:.0%} before, {new:.0%} with such numbers in the training set")
assert new > old + 0.2
