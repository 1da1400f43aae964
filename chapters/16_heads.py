# %% [markdown]
# # 16. Heads
#
# **You are here:** pretraining → **heads** → words and spans → probes → several heads → LoRA → explanations
#
# The lecture's head is one linear layer that chooses between two classes. But the network below it
# computes 256 numbers about a text, and other questions can be asked of the same numbers. Which topics
# does a text have? How long is it? For each kind of question, the last layer and the loss are a little
# different. Everything else stays as it was.
#
# **At the end you will know** what a head can be made of, why two classes need only one output, how a
# head gives several labels at once, and how it gives a number.
#
# **Reading time:** 30 minutes. **Running time:** about twenty seconds, offline.

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
    FeatureStore,
    HeadConfig,
    Message,
    Split,
    Tokenizer,
    TrainConfig,
    finetune,
    head_layers,
    load_gpt2,
    load_messages,
    loss_and_scores,
    model_folder,
    split_messages,
    to_labelled,
)
from gpt2_from_scratch.course import picture, setting, show

MODEL, DATA = setting("mini")  # "124M": OpenAI's model. DATA: the SMS Spam Collection

# %% [markdown]
# ## What a head is made of
#
# Why is the head a single layer? Would two be better? We take the final states of the four tokens in
# "Do you have time" and try three heads with random weights. A linear layer multiplies by a matrix. (It
# also adds a bias, which we leave out here.)

# %%
model = load_gpt2(MODEL)
tokenizer = Tokenizer(model_folder(MODEL))
C = model.config.n_embd  # numbers per state: 256 for the miniature
ids = torch.tensor([tokenizer.encode("Do you have time")])
with torch.no_grad():
    states = model.hidden(ids)[0]  # (4, C)

torch.manual_seed(123)
W1 = torch.randn(C, C) / 16
W2 = torch.randn(2, C) / 16
one_layer = states @ W2.T  # (4, 2)
two_layers = states @ W1.T @ W2.T
with_tanh = torch.tanh(states @ W1.T) @ W2.T
print("one linear layer, at the last token ", one_layer[-1])
print("two linear layers                   ", two_layers[-1])
print("two linear layers, tanh between them", with_tanh[-1])

# %% [markdown]
# All three give two logits per token. But do two linear layers compute something that one layer cannot?
# Guess first. Then multiply the two matrices, and use the product as a single layer:

# %%
product = W2 @ W1  # (2, C)
print("their product as one layer          ", (states @ product.T)[-1])
print("error for two linear layers:", f"{(states @ product.T - two_layers).abs().max():.4f}")
print("error with the tanh        :", f"{(states @ product.T - with_tanh).abs().max():.4f}")

# %% [markdown]
# Two linear layers are one linear layer, because $W_2 (W_1 x) = (W_2 W_1) x$. The second matrix adds
# parameters, but no new function. A *non-linearity* between them, such as tanh, changes that: no
# single matrix gives the same result. RoBERTa, a network on which many classifiers are built, has a
# head of this form. Such a head can compute more, but it also has more to learn, and the network below
# is already full of non-linearities. So one linear layer is the usual head.
#
# In the package, `HeadConfig` describes a head, and `head_layers` builds it. It adds two things to the
# lines above: the biases, and dropout. (*Dropout* sets some randomly chosen numbers to zero during
# training, which can prevent overfitting. It is off by default.)

# %%
print(head_layers(HeadConfig(labels=("ham", "spam")), model))
print(head_layers(HeadConfig(labels=("ham", "spam"), hidden=(C,), activation="tanh"), model))
show(head_layers)

# %% [markdown]
# ## One output for two classes
#
# The lecture's head has two outputs, and says at 25:30 that one would do. How can one number choose
# between two classes?
#
# Softmax looks only at the *difference* of two logits. So we can fix the logit of ham at 0, and let the
# network compute only the logit of spam, $z$. The softmax of 0 and $z$ has a name of its own: it is the
# *sigmoid* of $z$.

# %%
for z in (-3.0, -1.0, 0.0, 1.0, 3.0):
    both = torch.softmax(torch.tensor([0.0, z]), dim=0)
    sigmoid = 1 / (1 + torch.exp(torch.tensor(-z)))
    print(f"z = {z:4.1f}   softmax of (0, z): {both[1]:.4f}   sigmoid of z: {sigmoid:.4f}")

# %% [markdown]
# The two columns agree. A positive $z$ means spam, a negative one means ham, and 0 means that the
# classifier cannot decide. So a head with one output has half the parameters and gives the same kind of
# answer. In the package it is `HeadConfig(labels=("ham", "spam"), one_output=True)`. Whether it also
# learns as well is a question for an experiment (exercise 2).

# %% [markdown]
# ## Several labels at once
#
# A message is either ham or spam. But it can contain a digit, and also ask a question, and also say
# "you". Softmax is wrong for such labels. Its probabilities add up to 1, so one label could only gain
# what another one loses. Instead each label gets its own output and its own sigmoid: it becomes a
# yes-or-no question. This is called *multi-label* classification.
#
# The loss asks each question separately. If the correct answer is yes, it is -log(p). If the answer is
# no, it is -log(1 - p). The mean over the labels is the *binary cross-entropy*:

# %%
outputs = torch.tensor([2.0, -1.0, 0.5])  # for: digit, question, you
correct = torch.tensor([1.0, 0.0, 1.0])  # "Call 0800 now, you won": a digit, no question, "you"
p = torch.sigmoid(outputs)
yes_or_no = -(correct * torch.log(p) + (1 - correct) * torch.log(1 - p))
print("probabilities", p)
print("their sum    ", p.sum())
print("losses       ", yes_or_no)
print("mean         ", yes_or_no.mean())

# %% [markdown]
# Now we train such a head. We need messages with several labels. Nobody has labelled ours, so we let
# three simple rules do it. That has an advantage: you can check every answer yourself.

# %%
YOU = {"you", "u", "your", "ur"}


def labels_of(text):
    found = []
    if any(character.isdigit() for character in text):
        found.append("digit")
    if "?" in text:
        found.append("question")
    if YOU & set(re.findall(r"\w+", text.lower())):
        found.append("you")
    return tuple(found)


def labelled(messages):
    return [Message(message.text, labels_of(message.text)) for message in messages]


whole = split_messages(load_messages(DATA), balance=True)
train, val, test = whole.train[:400], whole.val[:50], whole.test[:200]  # some, to save time
for message in labelled(test)[:4]:
    print(message.label, message.text[:60])

# %%
store = FeatureStore()  # keeps what the frozen blocks compute, for the next training
LR = 1e-3 * 256 / C  # 1e-3 for the miniature; wider networks need a lower rate


def train_head(head, split, blocks, epochs):
    classifier = Classifier.on_base(MODEL, heads=[head], store=store)
    config = TrainConfig(n_last_blocks=blocks, epochs=epochs, lr=LR)
    with TemporaryDirectory() as folder:
        finetune(classifier, split, config, Path(folder))
    scores = loss_and_scores(classifier, to_labelled(classifier, split.test))[1]
    return classifier, scores["label"]


several = HeadConfig(task="multi-label", labels=("digit", "question", "you"))
split = Split(labelled(train), labelled(val), labelled(test))
labeller, label_scores = train_head(several, split, blocks=2, epochs=5)
print(label_scores.as_table())

# %% [markdown]
# Each label has its own row, because each is a question of its own. *Precision* is the proportion of
# the messages given this label that really have it, *recall* the proportion of the messages with this
# label that are found, and F1 combines the two (chapter 12). *Macro F1* is the mean of the three F1
# values. *Micro F1* is computed once, from the answers for all labels together, so frequent labels
# count more. *Exact match* is harder: all three answers must be correct. The rarest label, `question`,
# has the lowest F1.
#
# Here are messages that the classifier has never seen. The probabilities of one message need not add up
# to 1.

# %% tags=["varies"]
NEW = [
    "Are you coming to the cinema on Saturday?",
    "Your free prize is waiting. Call 09061701461 to claim it",
    "I am on my way home",
]
for text in NEW:
    answer = labeller.predict([text])[0].answers["label"]
    print(text)
    for label, probability in answer.probabilities.items():
        print(f"    {label:<9}{probability:.2f}{'  yes' if label in answer.labels else ''}")

# %% [markdown]
# The package's loss is the line from above. It adds three things: a message without any answer is left
# out, labels can have weights, and the correct answers 0 and 1 can be moved a little towards one half,
# so that the head does not become too sure.

# %%
show(TASKS["multi-label"].loss_sum)

# %% [markdown]
# ## A number
#
# How many words does a message have? Now the answer is not a class but a number. The head has one
# output, without softmax or sigmoid, and the loss is the *squared error*: (output - correct number)².
# This is called *regression*.
#
# One more thing is needed. The outputs of a new head are close to 0, but messages have about twenty words.
# What does that do to the loss?


# %%
def counted(messages):
    return [Message(message.text, (float(len(message.text.split())),)) for message in messages]


words = torch.tensor([message.label[0] for message in counted(train)])
mean = words.mean().item()
deviation = words.std().item()
print(f"words per message: mean {mean:.1f}, standard deviation {deviation:.1f}")
print(f"loss of a head that says 0                      : {(words**2).mean():.1f}")
print(
    f"the same loss, in standard deviations from the mean: {((words - mean) ** 2).mean() / deviation**2:.1f}"
)

# %% [markdown]
# The first loss is hundreds of times the second. And the weights would have to grow until the output
# reaches twenty. But AdamW moves each weight by about one learning rate per step (exercise 2 of chapter 20).
# So we let the head predict in a unit of its own. `center` is what an output of 0 means, and `scale` is how much an
# output of 1 adds. We train the same head with and without them:

# %%
split = Split(counted(train), counted(val), counted(test))
plain = HeadConfig(task="regression", labels=("words",))
scaled = HeadConfig(task="regression", labels=("words",), center=(mean,), scale=(deviation,))
without_unit, plain_scores = train_head(plain, split, blocks=1, epochs=3)
with_unit, scaled_scores = train_head(scaled, split, blocks=1, epochs=3)
for name, scores in (("without", plain_scores), ("with", scaled_scores)):
    one = scores.values[0]
    print(f"{name:<8} center and scale: R2 {one.r2:5.2f}, mean absolute error {one.mae:.1f} words")

# %% [markdown]
# *R2* compares the squared errors with those of always answering the mean of the test messages. It is 1
# if every answer is right, 0 if the answers are as good as the mean, and negative if they are worse.
# Without a unit the head is worse than a constant. With it, the same network
# counts words with an error of a few words. The picture shows each test message:

# %%
figure = Figure(figsize=(8, 3.6), layout="constrained")
panels = figure.subplots(1, 2, sharex=True, sharey=True)
true = [message.label[0] for message in split.test]
texts = [message.text for message in split.test]
titles = ("without center and scale", "with center and scale")
for axes, classifier, title in zip(panels, (without_unit, with_unit), titles, strict=True):
    said = [p.answers["label"].values["words"] for p in classifier.predict(texts)]
    axes.scatter(true, said, s=12, color="#0072B2", alpha=0.6)
    axes.axline((0, 0), slope=1, color="#404040", linewidth=1)
    axes.set_title(title)
    axes.set_xlabel("words in the message")
panels[0].set_ylabel("predicted number of words")
panels[0].text(23, 33, "correct", color="#404040")
panels[0].set_ylim(0, 42)
picture(figure, "16-words")

# %% [markdown]
# In the left panel the head says nearly the same number for every message. During the whole training
# it was on its way from 0 to the mean, and it did not get there. In the right panel it starts at the
# mean, so it can learn what makes one message longer than another, and the points follow the line.

# %% [markdown]
# ## What you know now
#
# - A head is usually one linear layer. Two linear layers compute nothing more, unless there is a
#   non-linearity between them.
# - Two classes need only one output, because the sigmoid of $z$ is the softmax of 0 and $z$.
# - For several labels at once, each label has its own sigmoid, and the loss is the binary cross-entropy.
# - For a number, the loss is the squared error. The head should predict it in a suitable unit.
# - The network, the freezing and the training loop are the same for all of them.

# %% [markdown]
# ## Checks
#
# These cells check what the chapter said. They are folded in the notebook; an error here means that
# something is wrong.

# %% check
two_linear = head_layers(HeadConfig(labels=("ham", "spam"), hidden=(C,)), model)
first, last = two_linear
x = torch.randn(9, C)
as_one = x @ (last.weight @ first.weight).T + (last.weight @ first.bias + last.bias)
assert torch.allclose(two_linear(x), as_one, atol=1e-4)
tanh_head = head_layers(HeadConfig(labels=("ham", "spam"), hidden=(C,), activation="tanh"), model)
assert not torch.allclose(
    tanh_head(2 * x) - tanh_head(x), tanh_head(3 * x) - tanh_head(2 * x), atol=1e-2
)
print("checked: two linear layers equal one, also with biases; with tanh they are not linear")

# %% check
z = torch.randn(100)
pairs = torch.stack([torch.zeros(100), z], dim=1)
assert torch.allclose(pairs.softmax(dim=1)[:, 1], torch.sigmoid(z), atol=1e-6)
assert (
    sum(
        p.numel()
        for p in head_layers(HeadConfig(labels=("a", "b"), one_output=True), model).parameters()
    )
    == C + 1
)
print("checked: the sigmoid is a softmax; one output has half the parameters of two")

# %% check
by_torch = F.binary_cross_entropy_with_logits(outputs, correct)
by_package = TASKS["multi-label"].loss_sum(several, outputs[None], correct[None], torch.tensor([1]))
assert torch.isclose(yes_or_no.mean(), by_torch) and torch.isclose(by_package, by_torch)
assert p.sum() > 1, "no softmax"
print("checked: the loss by hand, by torch and by the package")

# %% check
hits = 0
wanted = 0
given = 0
predictions = labeller.predict([message.text for message in test])
for message, prediction in zip(labelled(test), predictions, strict=True):
    chosen = prediction.answers["label"].labels
    hits += len(set(chosen) & set(message.label))
    wanted += len(message.label)
    given += len(chosen)
assert abs(2 * hits / (wanted + given) - label_scores.micro_f1) < 0.01
assert label_scores.micro_f1 > 0.85
print(f"checked: F1 over all labels, counted by hand: {2 * hits / (wanted + given):.3f}")

# %% check
for classifier, scores in ((without_unit, plain_scores), (with_unit, scaled_scores)):
    said = torch.tensor([p.answers["label"].values["words"] for p in classifier.predict(texts)])
    truth = torch.tensor(true)
    r2 = 1 - ((said - truth) ** 2).sum() / ((truth - truth.mean()) ** 2).sum()
    assert abs(r2 - scores.values[0].r2) < 0.01
assert plain_scores.values[0].r2 < 0 and scaled_scores.values[0].r2 > 0.5
print("checked: R2 by hand; only the head with a unit has learned to count")

# %% [markdown]
# ## Exercises
#
# 1. (easy) Give the number head a `center`, but no `scale`. Is the center alone enough?
#    <details><summary>Hint</summary>Change one argument of `scaled`, and train it as in the
#    chapter.</details>
# 2. (medium) Train four heads to find spam: linear, two linear layers, tanh, and one output. Do their
#    test accuracies differ by more than their intervals?
#    <details><summary>Hint</summary>The scores of a classification head have `accuracy` and
#    `interval`.</details>
# 3. (hard) A head may read any `layer`. From which layer can the number of words be read best? And spam?
#    <details><summary>Hint</summary>A head with the task "features" returns the state itself. Fit
#    scikit-learn's `Ridge` to the states of each layer.</details>
#
# Solutions: [`solutions/16_heads.py`](solutions/16_heads.py).
