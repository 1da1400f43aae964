# %% [markdown]
# # 17. Words and spans
#
# **You are here:** pretraining → heads → **words and spans** → probes → several heads → LoRA → explanations
#
# So far a text got one answer. But sometimes the answer is *in* the text. Which words of a message are
# a phone number? How much money does it promise? For such questions the head answers at every token,
# not only at the last one. This is also where GPT-2's habit of looking only back becomes a handicap.
#
# **At the end you will know** how words get tags, how a piece of the text is found, what a network that
# only looks back cannot know, and how much depends on the training data.
#
# **Reading time:** 35 minutes. **Running time:** about twenty seconds, offline.

# %%
import re
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure

from gpt2_from_scratch import (
    TASKS,
    Classifier,
    HeadConfig,
    Message,
    Span,
    Split,
    TrainConfig,
    finetune,
    load_messages,
    loss_and_scores,
    split_messages,
    to_labelled,
)
from gpt2_from_scratch.course import picture, setting, show

MODEL, DATA = setting("mini")  # "124M": OpenAI's model. DATA: the SMS Spam Collection

# %% [markdown]
# ## A tag for each word
#
# Spam wants you to call a number, and it promises money. Let us find both. We need messages in which
# these words are marked. Two regular expressions can mark them: a phone number begins with 0 or +44
# and has many digits, and an amount of money begins with a pound sign. With such simple rules you can
# check each answer yourself.

# %%
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
whole = split_messages(load_messages(DATA), balance=True)
TEXT = "Call 0800 542 0578 now to claim your £1,000 prize!"
print("phone:", PHONE.findall(TEXT), "money:", MONEY.findall(TEXT))

# %% [markdown]
# This phone number consists of three words. Tags have to say that they belong together. The usual way
# is called *BIO*. The first word of something gets a tag that begins with B (begin), its other words get
# one that begins with I (inside), and all words outside get the tag O. A `Span` holds where a word starts
# and ends in the text, and its tag:


# %%
def tagged_words(text):
    tags = []
    for word in re.finditer(r"\S+", text):
        tag = "O"
        for kind, pattern in (("phone", PHONE), ("money", MONEY)):
            for found in pattern.finditer(text):
                if word.start() <= found.start() < word.end():
                    tag = f"B-{kind}"
                elif found.start() < word.start() < found.end():
                    tag = f"I-{kind}"
        tags.append(Span(word.start(), word.end(), tag))
    return tuple(tags)


for start, end, tag in tagged_words(TEXT):
    print(f"{TEXT[start:end]:<8}{tag}")

# %% [markdown]
# ## Words are not tokens
#
# The network does not see words but tokens (chapter 2), and "0800" is several tokens. Which of them
# should answer for the word? The usual choice is its first token. The other tokens get the number -100
# instead of a tag, which is PyTorch's sign for "no loss here":

# %%
TAGS = ("O", "B-phone", "I-phone", "B-money", "I-money")
head = HeadConfig(task="token-classification", labels=TAGS)
tagger = Classifier.on_base(MODEL, heads=[head])
encoded, _ = tagger.encode([TEXT])
example = [Message(TEXT, tagged_words(TEXT))]
targets = TASKS["token-classification"].targets(head, example, encoded, tagger.tokenizer).values[0]
for token, target in zip(encoded[0][:16], targets[:16].tolist(), strict=True):
    piece = repr(tagger.tokenizer.decode([token]))
    tag = TAGS[target] if target >= 0 else ""
    print(f"{piece:<9}{target:>5}  {tag}")

# %% [markdown]
# Now the loss is nothing new. At each token with a tag, the head chooses among five classes, and the
# loss is the cross-entropy of chapter 9. So one message gives as many examples as it has words.

# %%
with torch.no_grad():
    logits = tagger.model(torch.tensor(encoded))[0]  # (T, 5)
tagged = targets != -100
by_hand = -torch.log_softmax(logits[tagged], dim=1)[range(int(tagged.sum())), targets[tagged]]
print(f"{len(targets)} tokens, {int(tagged.sum())} of them with a tag")
print(f"loss by hand {by_hand.mean():.4f}, by torch {F.cross_entropy(logits, targets):.4f}")

# %% [markdown]
# ## Training it
#
# We train on spam only, since ham contains hardly any phone numbers. The last two blocks, the final norm
# and the head are trained.


# %%
def spam_of(part):
    return [message.text for message in part if message.label == "spam"]


# 1e-3 for the miniature; wider networks need a lower rate
LR = 1e-3 * 256 / tagger.model.config.n_embd


def train_head(head, split, epochs):
    classifier = Classifier.on_base(MODEL, heads=[head])
    config = TrainConfig(n_last_blocks=2, epochs=epochs, lr=LR)
    with TemporaryDirectory() as folder:
        finetune(classifier, split, config, Path(folder))
    return classifier, loss_and_scores(classifier, to_labelled(classifier, split.test))[1]["label"]


def with_tags(texts):
    return [Message(text, tagged_words(text)) for text in texts]


train, val, test = spam_of(whole.train), spam_of(whole.val), spam_of(whole.test)
split = Split(with_tags(train[:200]), with_tags(val[:30]), with_tags(test))  # some, to save time
tagger, tag_scores = train_head(head, split, epochs=3)
print(tag_scores.as_table())

# %% [markdown]
# Be careful with the word accuracy. Most words have the tag O, so a head that always says O would be
# right almost as often. *Entity F1* counts only phone numbers and amounts, and each counts as found only
# if its first word, its last word and its kind are all right.
#
# Here are test messages with the tags that the head gave them: phone numbers in vermilion, amounts of
# money in green. Words that have such a tag by our rules are on a grey background, so dark letters on
# grey are words that the head has missed.

# %%
COLOURS = {"O": "#404040", "B-phone": "#D55E00", "B-money": "#009E73"}
COLOURS |= {"I-phone": "#D55E00", "I-money": "#009E73"}
drawn = [text for text in test if MONEY.search(text) and text.replace("£", "").isascii()][2:7]
figure = Figure(figsize=(8.5, 3.6), layout="constrained")
axes = figure.subplots()
line = 0
for text in drawn:
    column = 0
    words = tagger.predict([text])[0].answers["label"].words
    for word, correct in zip(words, tagged_words(text), strict=True):
        if column + len(word.word) > 105:
            line, column = line + 1, 0
        style = {"color": COLOURS[word.label], "family": "monospace", "fontsize": 8.5}
        if correct.label != "O":
            style["bbox"] = {"facecolor": "#E4E4E4", "edgecolor": "none", "pad": 1.5}
        axes.text(column, -line, word.word, **style)
        column += len(word.word) + 1
    line += 1.8
axes.set(xlim=(0, 110), ylim=(-line, 1))
axes.axis("off")
axes.set_title("On grey: what should be found. In colour: what the head has found")
picture(figure, "17-tags")

# %% [markdown]
# ## A token sees only what comes before it
#
# In "Jordan is asleep", Jordan is a person. In "Jordan is hot in May" it is a country. A person decides
# that by reading on. GPT-2 cannot: when it reads the first word, it has not seen the second. Our tags have
# the same problem. Here "0906" begins a phone number once, and once it does not. What does the head say?

# %%
for text in ("Call 0906 170 1461 now", "Call 0906 people who know you"):
    word = tagger.predict([text])[0].answers["label"].words[1]
    print(f"{text:<31}{word.word}: {word.label}, probability {word.probability:.4f}")

# %% [markdown]
# It says the same both times, so it is wrong once, and no training could change that. The tag is read
# at the word's first token, and the causal mask hides the rest of the text from it, even the rest of
# the word (chapter 3). This may also be why many phone numbers are missed, as the table above shows.
# For GPT-2 itself this is necessary, because it has to predict that rest. BERT, another transformer,
# has no such mask: each of its tokens sees the whole text. That is why taggers are usually built on
# models like BERT.

# %% [markdown]
# ## A number after each token
#
# For some answers it is correct to look only at earlier tokens. In reinforcement learning, a *value function* says after
# each step how much reward is still to come. Here is a toy reward: 1 for each digit of the message. A
# digit that is further away counts less, by a factor of 0.9 per character. So we compute the values from
# the end of the message to its beginning:


# %%
def rewards_to_come(text):
    values = []
    value = 0.0
    for character in reversed(text):
        values.append(value)  # what comes after this character
        value = character.isdigit() + 0.9 * value
    values.reverse()
    return values


for character, value in zip("call 0800 now", rewards_to_come("call 0800 now"), strict=True):
    print(f"{character!r}  {value:.2f}")

# %% [markdown]
# The task `token-regression` predicts one number after each token. The loss is the squared error, and
# positions without a target have none. A label says which value holds after how many characters:


# %%
def with_values(texts):
    return [Message(text, tuple(enumerate(rewards_to_come(text), start=1))) for text in texts]


value_head = HeadConfig(task="token-regression", labels=("reward",), center=(2.0,), scale=(2.0,))
few = Split(with_values(train[:70]), with_values(val[:10]), with_values(test[:30]))
value_model, value_scores = train_head(value_head, few, epochs=3)
print(value_scores.as_table())

# %% [markdown]
# The blue line is what the head says after each token of a test message. The dashed line is the truth,
# which the head cannot know, because it has not read the rest. Guess first: after which words does it
# expect digits?

# %%
shown = few.test[1]
predicted = value_model.predict([shown.text])[0].answers["label"].tokens
ends = [token.end for token in predicted]
figure = Figure(figsize=(8.5, 3.4), layout="constrained")
axes = figure.subplots()
axes.step(ends, [token.value for token in predicted], where="post", color="#0072B2")
axes.plot(range(1, len(shown.text) + 1), rewards_to_come(shown.text), "--", color="#404040")
axes.set_xticks([position + 0.5 for position in range(len(shown.text))])
axes.set_xticklabels(shown.text, fontsize=6, family="monospace")
axes.tick_params(axis="x", length=0)
axes.set(xlabel="the message, character by character", ylabel="reward to come")
axes.set_title("After each token, the head predicts the reward that is still to come")
picture(figure, "17-values")

# %% [markdown]
# The head does not foresee the phone number. Its line jumps when the first digits have been read, because
# more digits usually follow, and it falls while they pass. The truth rises earlier, since it is computed
# from the end.

# %% [markdown]
# ## A piece of the text
#
# There is another way to ask for a phone number: with a question. The answer is a piece of the text, a
# *span*. The head gives each token two scores, one for "the answer starts here" and one for "it ends
# here". A softmax over the *tokens* turns the first scores into probabilities, and another one does the
# same for the second. The loss is the mean of two cross-entropies:

# %%
torch.manual_seed(123)
scores = torch.randn(6, 2)  # six tokens: a score for the start, a score for the end
start, end = 2, 4  # the answer is tokens 2 to 4
loss_of_start = -torch.log_softmax(scores[:, 0], dim=0)[start]
loss_of_end = -torch.log_softmax(scores[:, 1], dim=0)[end]
print("P(starts here)", torch.softmax(scores[:, 0], dim=0))
print("P(ends here)  ", torch.softmax(scores[:, 1], dim=0))
print(f"loss {(loss_of_start + loss_of_end) / 2:.4f}")

# %% [markdown]
# The question is put on the first line, *before* the message. Since tokens look only back, this is the
# only way to let the message's tokens know what is asked. We take the spam messages that have both a
# phone number and an amount of money, and ask two questions about each:

# %%
QUESTIONS = {"Which number should I call?\n": PHONE, "How much money?\n": MONEY}


def with_questions(texts):
    asked = []
    for text in texts:
        if PHONE.search(text) and MONEY.search(text):
            for question, pattern in QUESTIONS.items():
                found = pattern.search(question + text)
                asked.append(Message(question + text, Span(found.start(), found.end())))
    return asked


questions = Split(with_questions(train), with_questions(val), with_questions(test))
print(len(questions.train), "questions for training,", len(questions.test), "for the test")
answerer, span_scores = train_head(HeadConfig(task="span"), questions, epochs=4)
print(span_scores.as_table())

# %% tags=["varies"]
for message in questions.test[4:10]:
    found = answerer.predict([message.text])[0].answers["label"]
    print(message.text[:110].replace("\n", " | "))
    print(f"    answer {found.text!r}, probability {found.probability:.2f}")

# %% [markdown]
# The same message gets two different answers, so the head really uses the question. What the package adds
# to the loss above is care for padding, which must not be chosen as an answer:

# %%
show(TASKS["span"].loss_sum)

# %% [markdown]
# ## The data decides
#
# Now five questions about texts that are not like the training data. Guess which ones work.

# %% tags=["varies"]
STRANGE = [
    "How much money?\nI still owe you £5 for the lunch",
    "How much money?\nI still owe you five pounds for the lunch",
    "Which number should I call?\nYou have won a prize! Call 09061701461 now",
    "Which number should I call?\nYou have won a prize! Call 0906 170 1461 now",
    "Who has won?\nMartin has won a prize of £200! Call 09061701461",
]
for text in STRANGE:
    found = answerer.predict([text])[0].answers["label"]
    print(text.replace("\n", " | "))
    print(f"    answer {found.text!r}, probability {found.probability:.2f}")

# %%
spaced = [m for m in questions.train if " " in m.text[m.label.start : m.label.end]]
print(len(spaced), "of", len(questions.train), "answers in the training set contain a space")

# %% [markdown]
# The first one is not spam, yet the answer is right: a pound sign was enough. In the second there is no
# pound sign, and our rule never called a word money that had none, so the answer is not exact. It is less sure
# of the number with spaces than of the one without, since few answers in the training set contain a
# space. And it knows only two questions. It answers a third one anyway, because it always has to choose
# some piece of the text.
#
# More varied training texts would help with this (exercise 3 tries it). The head decides what *form* an
# answer has; the data decides what is learned.

# %% [markdown]
# ## What you know now
#
# - A tagging head answers at every token. The first token of a word answers for the word, and the others
#   have no loss.
# - BIO tags say which words belong together.
# - A head can also give each token a number, such as the reward that is still to come.
# - A span head gives each token a score for the start and one for the end of the answer.
# - A token sees only what comes before it. So a tag cannot depend on later words, and a question has to
#   come before the text.
# - What a head learns is what its training data shows.

# %% [markdown]
# ## Checks
#
# These cells check what the chapter said. They are folded in the notebook; an error here means that
# something is wrong.

# %% check
words = tagged_words(TEXT)
assert [word.label for word in words[1:4]] == ["B-phone", "I-phone", "I-phone"]
assert int(tagged.sum()) == len(words) == len(TEXT.split())
assert targets[tagged].tolist() == [TAGS.index(word.label) for word in words]
assert torch.isclose(by_hand.mean(), F.cross_entropy(logits, targets))
print("checked: one tag per word, and the loss by hand equals torch's")

# %% check
right = 0
total = 0
outside = 0
predictions = tagger.predict([message.text for message in split.test])
for message, prediction in zip(split.test, predictions, strict=True):
    for said, word in zip(prediction.answers["label"].words, message.label, strict=True):
        right += said.label == word.label
        total += 1
        outside += word.label == "O"
assert total == tag_scores.total and abs(right - tag_scores.correct) <= 2, (
    "rounding may flip a word"
)
assert right > outside > 0.9 * total
print(f"checked: {right} of {total} words right; always saying O would be right for {outside}")

# %% check
first = tagger.predict(["Call 0906 170 1461 now"])[0].answers["label"].words[1]
second = tagger.predict(["Call 0906 people who know you"])[0].answers["label"].words[1]
assert first.label == second.label and abs(first.probability - second.probability) < 1e-4
print("checked: later words do not change a tag")

# %% check
digits = [n for n, character in enumerate(TEXT) if character.isdigit()]
for n, value in enumerate(rewards_to_come(TEXT)):
    by_formula = sum(0.9 ** (digit - n - 1) for digit in digits if digit > n)
    assert abs(value - by_formula) < 1e-9
encoded, _ = value_model.encode([shown.text])
with torch.no_grad():
    outputs = value_model.model(torch.tensor(encoded))[0, :, 0]  # (T,)
said = torch.tensor([token.value for token in predicted])
torch.testing.assert_close(said, 2.0 * outputs + 2.0, atol=1e-3, rtol=0)
assert value_scores.main > 0.1, "better than always saying the mean"
print("checked: the values by a formula, and the head's answers from its outputs")

# %% check
span_head = HeadConfig(task="span")
by_package = TASKS["span"].loss_sum(
    span_head, scores[None], torch.tensor([[start, end]]), torch.tensor([6])
)
assert torch.isclose(by_package, (loss_of_start + loss_of_end) / 2)
both = 0
predictions = answerer.predict([message.text for message in questions.test])
for message, prediction in zip(questions.test, predictions, strict=True):
    found = prediction.answers["label"]
    both += (found.start, found.end) == (message.label.start, message.label.end)
found = [p.answers["label"].probability for p in answerer.predict(STRANGE[2:4])]
assert found[1] < found[0], "less sure of the number with spaces"
assert both / len(questions.test) > 0.7 and abs(both - span_scores.exact) <= 3
print(f"checked: the loss by hand; {both} of {len(questions.test)} answers are exactly right")

# %% [markdown]
# ## Exercises
#
# 1. (easy) Which words of the test messages got a wrong tag? Print them with their correct tags.
#    <details><summary>Hint</summary>The check that counts the right words has the loop.</details>
# 2. (medium) Put the question *after* the message. How much do the scores of the message's tokens depend
#    on it?
#    <details><summary>Hint</summary>`answerer.model(ids)` returns two scores per token. Compare those of
#    two questions.</details>
# 3. (hard) Teach the span head to find numbers with spaces in them, without new messages.
#    <details><summary>Hint</summary>Write some of the training numbers with spaces, and train
#    again.</details>
#
# Solutions: [`solutions/17_words_and_spans.py`](solutions/17_words_and_spans.py).
