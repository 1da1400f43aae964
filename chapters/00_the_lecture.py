# %% [markdown]
# # 0. The lecture
#
# **You are here:** **the lecture** · messages → tokens → attention → network → weights → head → last token → freezing → loss → finetuning → use
#
# The lecture explains how GPT-2 becomes a classifier. It follows chapter 6 of S. Raschka's book *Build
# a Large Language Model (From Scratch)*. This chapter does what the lecture does, in the same order:
# load GPT-2's weights, print the model, freeze it, give it a new head, make the last block trainable,
# and send a sentence through it. Then we train it, and try what the lecturer suggests at 29:59. (Times
# like this one are minutes and seconds of the lecture.) If something goes too fast here, keep reading:
# each of the later chapters takes one of these steps apart.
#
# **At the end you will know** every step of the lecture, and what each of them prints.
#
# **Reading time:** 25 minutes. **Running time:** about twenty seconds, offline.

# %%
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import nn

from gpt2_from_scratch import (
    LABELS,
    Tokenizer,
    load_gpt2,
    load_messages,
    model_folder,
    pad_batch,
    split_messages,
    wilson_interval,
)
from gpt2_from_scratch.course import draw_map, picture, setting

MODEL, DATA = setting("mini")  # "124M": OpenAI's model. DATA: the SMS Spam Collection

# %% [markdown]
# The cells run on the miniature, a small GPT-2 that ships with the package. To run them on OpenAI's
# weights, write `setting("124M")` in the cell above. Only the names of the parts differ from the
# lecture's: `blocks`, `ln_f` and `head` are its `trf_blocks`, `final_norm` and `out_head`.
#
# ## The map
#
# Here is the way from a message to an answer. Each box names a step and the chapter that explains it.
# Follow the blue boxes from the left: a message is cut into tokens, the network turns each token into a
# vector, and the head turns each vector into one score per class. The scores of the last token are the
# answer. The orange boxes are the training: the loss says how wrong the answer is, and finetuning
# changes the head and those parts of the network that are not frozen.

# %%
picture(draw_map(), "00-map")

# %% [markdown]
# ## The model
#
# We load the weights and the tokenizer that belongs to them, and print the model. Read the output from
# top to bottom: `wte` and `wpe` are two tables, which turn tokens and positions into vectors. Then
# come the transformer blocks, in which most of the computing is done, and after them the final norm,
# which keeps the numbers in range. The head is last. It has one output per entry of the vocabulary,
# because GPT-2 predicts the next token.

# %%
model = load_gpt2(MODEL)
tokenizer = Tokenizer(model_folder(MODEL))
config = model.config
print(model)

# %% [markdown]
# ## Freeze everything
#
# The *parameters* are the numbers that training can change. A parameter that is *frozen* stays as it
# is. At first all parameters are trainable. The lecture freezes all of them, and afterwards it makes a
# few trainable again (27:22).

# %%
for parameter in model.parameters():
    parameter.requires_grad = False

total = sum(parameter.numel() for parameter in model.parameters())
print(f"{total:,} parameters, all frozen")

# %% [markdown]
# ## A new head
#
# A new head takes the place of the old one (28:28). It has two outputs, one per class: ham, which is a
# good message, and spam. A new layer has `requires_grad=True` by default, so at this point the head
# alone would be trained (28:50).

# %%
num_classes = len(LABELS)
torch.manual_seed(123)
model.head = nn.Linear(in_features=config.n_embd, out_features=num_classes)
print(model.head)
print([name for name, parameter in model.named_parameters() if parameter.requires_grad])

# %% [markdown]
# What if there are three classes, such as technology, sports and medicine (26:04)? Then only the
# number of outputs is different. That is why the number of classes has a name in the code (25:47).

# %%
print(nn.Linear(in_features=config.n_embd, out_features=3))

# %% [markdown]
# ## Unfreeze the last block and the final norm
#
# The head computes its outputs from the vectors that come out of the final norm. If the head alone is
# trained, these vectors stay as GPT-2 made them for its own task. So the last block and the final norm
# are made trainable again (29:15).

# %%
for parameter in model.blocks[-1].parameters():
    parameter.requires_grad = True
for parameter in model.ln_f.parameters():
    parameter.requires_grad = True

total = sum(parameter.numel() for parameter in model.parameters())
trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
print(f"{trained:,} of {total:,} parameters are trainable ({trained / total:.1%})")

# %% [markdown]
# ## "Do you have time"
#
# A sentence of four tokens goes through the model (30:36). The output has one row per token and one
# column per class.

# %%
inputs = torch.tensor(tokenizer.encode("Do you have time")).unsqueeze(0)
print("inputs:", inputs, inputs.shape)

with torch.no_grad():
    outputs = model(inputs)
print("outputs:", outputs, outputs.shape, sep="\n")

# %% [markdown]
# The last row is the answer, because only the last token has seen all the others (31:46). Its two
# numbers are called *logits*: scores that can have any size. Softmax turns them into probabilities,
# which add up to 1, and argmax says which of them is larger.

# %%
last = outputs[:, -1, :]
probabilities = torch.softmax(last, dim=-1)
label = torch.argmax(probabilities, dim=-1).item()
print("last row:     ", last)
print("probabilities:", probabilities)
print("label:        ", label, LABELS[label])

# %% [markdown]
# The head is still random, so this answer means nothing yet. The larger logit always has the larger
# probability, so the label can also be read from the logits, without a softmax.
#
# With OpenAI's weights and this seed, the book prints the output below. The miniature has other
# weights, so its output is different.

# %%
PUBLISHED = [[-1.5854, 0.9904], [-3.7235, 7.4548], [-2.2661, 6.6049], [-3.5983, 3.9902]]
print("published for 124M:", torch.tensor([PUBLISHED]), sep="\n")

# %% [markdown]
# ## Loss and accuracy
#
# Now we need messages. Several of them go through the model together, as a *batch*, so they must have
# the same length: a longer one is cut, and a shorter one is filled up at the end with the special
# token `<|endoftext|>`. The answer is read at the last position. (To save time, we use 240 training
# messages and 32 tokens per message.)

# %%
LENGTH = 32
split = split_messages(load_messages(DATA), balance=True)
train = split.train[:240]
test = split.test


def to_tensors(messages):
    texts = [tokenizer.encode(message.text)[:LENGTH] for message in messages]
    ids, _ = pad_batch(texts, tokenizer.end_of_text_id, LENGTH)
    labels = [LABELS.index(message.label) for message in messages]
    return ids, torch.tensor(labels)


# %% [markdown]
# Training needs a *loss*: a number that says how wrong the answers are. Here it is the cross-entropy,
# which is low if the correct class has a high probability. People want to know the *accuracy*: the
# proportion of answers that are correct. The head is still random, so its accuracy before training is
# luck. (Chapter 9 shows why luck can be far from one half.)


# %%
def loss_of(network, messages):
    ids, labels = to_tensors(messages)
    logits = network(ids)[:, -1, :]
    return F.cross_entropy(logits, labels)


def count_correct(network, messages):
    correct = 0
    for first in range(0, len(messages), 32):
        ids, labels = to_tensors(messages[first : first + 32])
        with torch.no_grad():
            answers = network(ids)[:, -1, :].argmax(dim=-1)
        correct += (answers == labels).sum().item()
    return correct


before = count_correct(model, test)
print(f"loss of eight messages: {loss_of(model, train[:8]):.3f}")
print(f"test accuracy before training: {before / len(test):.1%}")

# %% [markdown]
# ## The loop
#
# The training loop is the usual one. For each batch: delete the old gradients, compute the loss,
# compute the gradients, and take a step. A *gradient* says how the loss would change if a parameter
# changed a little. The optimizer AdamW moves each parameter in the direction that lowers the loss; the
# *learning rate* says how far. Its *weight decay* also makes the weights a little smaller in each
# step, so that none of them becomes very large. (The learning rate and the weight decay are the
# lecture's, but the miniature needs ten times its learning rate.) An *epoch* is one pass over all
# training messages.

# %%
LR = 5e-4 if MODEL == "mini" else 5e-5


def train_epochs(network, messages, epochs=2):
    optimizer = torch.optim.AdamW(network.parameters(), lr=LR, weight_decay=0.1)
    torch.manual_seed(123)
    for epoch in range(epochs):
        losses = []
        for batch in torch.randperm(len(messages)).split(8):
            optimizer.zero_grad()
            loss = loss_of(network, [messages[n] for n in batch])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        print(f"epoch {epoch + 1}: mean loss {sum(losses) / len(losses):.3f}")


train_epochs(model, train)
after = count_correct(model, test)
print(f"test accuracy: {before / len(test):.1%} before, {after / len(test):.1%} after")

# %% [markdown]
# ## What the lecturer suggests to try
#
# Is the last block the right choice? At 29:59 the lecturer suggests others: train two blocks instead
# of one, or leave the final norm frozen. We also train the head alone. Each choice starts again from
# GPT-2's weights. Guess first: which will be the most accurate, and which the least?

# %%
CHOICES = {  # name: (number of last blocks, with the final norm)
    "head alone": (0, False),
    "last block, no final norm": (1, False),
    "last two blocks, final norm": (2, True),
}
correct = {"last block, final norm": after}  # trained above
for name, (blocks, norm) in CHOICES.items():
    print(name)
    network = load_gpt2(MODEL)
    network.requires_grad_(False)
    torch.manual_seed(123)
    network.head = nn.Linear(config.n_embd, 2)
    for block in network.blocks[config.n_layer - blocks :]:
        block.requires_grad_(True)
    if norm:
        network.ln_f.requires_grad_(True)
    train_epochs(network, train)
    correct[name] = count_correct(network, test)

# %% [markdown]
# An accuracy that is measured on a few hundred messages is not exact: with other test messages it
# would have been a little higher or lower. The 95% interval is the range in which the true accuracy
# probably lies. The last column of the table is what the book reports for 124M, with all training
# messages and five epochs. The numbers of the two columns need not agree, but you can compare their
# order.

# %%
BOOK = {  # test accuracy for 124M
    "head alone": "72.00%",
    "last block, final norm": "95.00%",
    "last two blocks, final norm": "98.33%",
}
order = [
    "head alone",
    "last block, no final norm",
    "last block, final norm",
    "last two blocks, final norm",
]
intervals = {name: wilson_interval(correct[name], len(test)) for name in order}

print(f"{'trained':<28} here    95% interval      the book, 124M")
for name in order:
    low, high = intervals[name]
    accuracy = correct[name] / len(test)
    print(f"{name:<28} {accuracy:.1%}   {low:.1%} to {high:.1%}   {BOOK.get(name, '-')}")

# %%
figure = Figure(figsize=(8, 2.6), layout="constrained")
axes = figure.subplots()
for name in reversed(order):
    low, high = intervals[name]
    percent = 100 * correct[name] / len(test)
    axes.plot([100 * low, 100 * high], [name, name], color="#0072B2", linewidth=3)
    axes.plot(percent, name, "o", color="#0072B2")
    axes.annotate(
        f"{percent:.1f}%", (percent, name), (0, 6), textcoords="offset points", ha="center"
    )
axes.set(title="Neighbouring intervals overlap: the test set is small", xlabel="test accuracy (%)")
axes.set_ylim(-0.5, 3.7)
picture(figure, "00-choices")

# %% [markdown]
# The head alone has the lowest accuracy, here as in the book, and two blocks have the highest. But
# each interval overlaps with its neighbours, so part of this order may be luck. A better way to
# compare two choices is to look at them message by message, as chapter 12 does.
#
# ## What you know now
#
# - First everything is frozen. A new head is trainable by default. Then the last block and the final
#   norm are made trainable again.
# - The output has one row per token and one column per class. The last row is the answer.
# - Training lowers the cross-entropy; people read the accuracy.
# - It matters which parts are trained. Look at the intervals before you say how much it matters.
#
# Chapter 7 shows what is wrong with reading at the last position, chapter 8 is about freezing, and
# chapter 12 is about intervals. [LECTURE.md](LECTURE.md) lists every minute of the lecture with the
# line that does the same here, and where the lecture is wrong.

# %% [markdown]
# ## Checks
#
# These cells check what the chapter said. They are folded in the notebook; an error here means that
# something is wrong.

# %% check
fresh = load_gpt2(MODEL)
assert len(fresh.blocks) == config.n_layer and fresh.head.out_features == config.n_vocab
assert fresh.head.weight is fresh.wte.weight, "the old head is the table of tokens"
print(f"checked: {config.n_layer} blocks, {config.n_vocab:,} outputs of the old head")

# %% check
trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
last_block = f"blocks.{config.n_layer - 1}."
assert all(name.startswith((last_block, "ln_f.", "head.")) for name in trainable)
assert MODEL != "124M" or (trained, total) == (7_090_946, 124_441_346), "as the book counts"
print(f"checked: {len(trainable)} tensors are trainable, all in the last block, ln_f or head")

# %% check
assert outputs.shape == (1, 4, 2) and last.argmax().item() == label
assert MODEL != "124M" or torch.allclose(outputs, torch.tensor([PUBLISHED]), atol=1e-3)
print("checked: one row per token, one column per class, and the same label from the logits")

# %% check
ids, labels = to_tensors(test[:4])
with torch.no_grad():
    log_probabilities = model(ids)[:, -1, :].log_softmax(dim=1)
    by_hand = -log_probabilities[torch.arange(4), labels].mean()
    assert torch.allclose(by_hand, loss_of(model, test[:4]), atol=1e-6)
print("checked: the loss is the mean of -log(probability of the right class)")

# %% check
assert after > before and after > 0.7 * len(test), "training has helped"
assert correct["head alone"] == min(correct.values())
print("checked: training has helped, and the head alone is the lowest")

# %% [markdown]
# ## Exercises
#
# 1. (easy) Give the sentence a fifth token. Which rows of the output change, and which stay the same?
#    <details><summary>Hint</summary>Compare `outputs` of "Do you have time" and of "Do you have time
#    now".</details>
# 2. (medium) Leave out the loop that freezes. Which parameters are trained then? Is the test accuracy better?
#    <details><summary>Hint</summary>Collect the names of the parameters with `requires_grad`, before and
#    after.</details>
# 3. (hard) Train with the labels in the opposite order, `["spam", "ham"]`. What changes, and what does not?
#    <details><summary>Hint</summary>Swap the two rows of the head's weight and bias too, before you
#    train.</details>
#
# Solutions: [`solutions/00_the_lecture.py`](solutions/00_the_lecture.py).
