# %% [markdown]
# # 6. A new head
#
# **You are here:** the lecture · messages → tokens → attention → network → weights → **head** → last token → freezing → loss → finetuning → use
#
# GPT-2 answers one question: which token comes next? We have another question: is this message spam?
# In this chapter we first ask GPT-2 in words. Then we replace its last layer, and follow one sentence
# all the way from its tokens to a label.
#
# **At the end you will know** why we cannot simply ask GPT-2, what changes when the last layer is
# replaced, how a tensor of numbers becomes a label, and how little changes for three classes.
#
# **Reading time:** 25 minutes. **Running time:** a few seconds, offline.

# %%
import math

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import nn

from gpt2_from_scratch import (
    LABELS,
    Tokenizer,
    draw_outputs,
    greedy_continuation,
    load_gpt2,
    logits_of_new_head,
    model_folder,
    replace_head,
)
from gpt2_from_scratch.course import picture, setting, show

MODEL, DATA = setting("mini")  # "124M": OpenAI's model. DATA: the SMS Spam Collection

# %% [markdown]
# ## Can we simply ask GPT-2?
#
# People ask chatbots questions in plain words. If that works with GPT-2, we need not train anything.
# Here are two messages from the book that the lecture follows. The first is spam. We put each into a
# question, and GPT-2 continues the text, always with the most probable token. Guess before you look:
# will it say yes or no?

# %%
model = load_gpt2(MODEL)
tokenizer = Tokenizer(model_folder(MODEL))
WINNER = "You are a winner you have been specially selected to receive $1000 cash or a $2000 award."
DINNER = "Hey, just wanted to check if we're still on for dinner tonight? Let me know!"


def question(message):
    return f"Is the following text 'spam'? Answer with 'yes' or 'no': '{message}'\nAnswer:"


print(question(WINNER))
for message in (WINNER, DINNER):
    print()
    print(message[:40], "...")
    print("GPT-2 continues:", greedy_continuation(model, tokenizer, question(message), 20))

# %% [markdown]
# It says neither. GPT-2 was trained on one task, to continue texts, and that is what it does here.
# Nobody trained it to follow an instruction. Chatbots have had that training, and they are much
# larger. The book asks OpenAI's 124M model in the same way, and gets no useful answer either.
#
# Perhaps GPT-2 knows the answer, but other words are more probable. So we look only at two tokens, `
# yes` and ` no`. Which of the two is more probable as the next token?

# %%
yes = tokenizer.encode(" yes")[0]
no = tokenizer.encode(" no")[0]
for message in (WINNER, DINNER):
    ids = torch.tensor([tokenizer.encode(question(message))])
    with torch.no_grad():
        next_token = model(ids)[0, -1].softmax(dim=0)
    print(f"P(yes) {next_token[yes]:.4f}   P(no) {next_token[no]:.4f}   {message[:40]} ...")

# %% [markdown]
# All four probabilities are tiny. And with the miniature, the larger one is wrong for both messages.
# (Exercise 2 tries forty messages.) But GPT-2 has read a lot of text. The numbers that it computes
# inside may well contain what we need. We only have to get it out in another way.

# %% [markdown]
# ## What the last layer does
#
# The last layer is called the *head*. Before the head, the blocks turn each token of a text into a
# *state*, which consists of C numbers. The head turns each state into *logits*, one score for every
# entry of the vocabulary. The token with the highest score is the most probable next token. The
# lecture uses the sentence "Do you have time", which has four tokens in OpenAI's vocabulary and in the
# miniature's.

# %%
ids = torch.tensor([tokenizer.encode("Do you have time")])
tokens = [tokenizer.decode([number]) for number in ids[0]]
with torch.no_grad():
    states = model.hidden(ids)
    next_logits = model.head(states)
print("ids   ", ids)
print("states", tuple(states.shape), "  one row of C numbers per token")
print(
    "logits",
    tuple(next_logits.shape),
    " one row of scores per token, one for each vocabulary entry",
)
for position in range(len(tokens)):
    best = next_logits[0, position].argmax().item()
    print(f"after {''.join(tokens[: position + 1])!r:<20} comes {tokenizer.decode([best])!r}")

# %% [markdown]
# ## Two outputs instead of a vocabulary
#
# For spam we do not need a score for every token. We need two scores: one for ham, one for spam. So we
# take a linear layer with two outputs. Like every new layer of PyTorch, it begins with random weights.

# %%
old_head = model.head
num_classes = len(LABELS)  # not 2: the lecturer advises against writing the number itself (25:47)
torch.manual_seed(123)
model.head = nn.Linear(model.config.n_embd, num_classes)
print("old head:", old_head)  # in OpenAI's models: out_features=50257
print("new head:", model.head)
print("the first four weights of each output:")
print(model.head.weight[:, :4].detach())

# %% [markdown]
# That is the whole replacement (25:04 in the lecture). The function `replace_head` of the package
# contains the same line. It also refuses to make fewer than two outputs, and it puts the new layer on
# the same device as the model, which may be a GPU.

# %%
show(replace_head)

# %% [markdown]
# Thousands of outputs are gone. Has the model become smaller? Guess, and then look:

# %%
plain = load_gpt2(MODEL)
before = sum(parameter.numel() for parameter in plain.parameters())
after = sum(parameter.numel() for parameter in model.parameters())
print(f"the old head has       {old_head.weight.numel():>11,} weights")
print(
    f"the new head has       {model.head.weight.numel() + 2:>11,} parameters, 2 of them in its bias"
)
print(f"the model had          {before:>11,} parameters")
print(f"the model now has      {after:>11,} parameters")
print("old head is the table wte:", old_head.weight is model.wte.weight)

# %% [markdown]
# It has become a little larger. The old head had no weights of its own: it used the token table `wte`
# again, as chapter 4 showed. The table stays, because the model still needs it to look up its tokens,
# and the new head adds its own parameters. What we save is computation: two scores per token instead
# of thousands.
#
# The picture shows what the two heads compute from the same state, that of the last token.

# %%
with torch.no_grad():
    next_probabilities = old_head(states)[0, -1].softmax(dim=0)
    class_probabilities = model.head(states)[0, -1].softmax(dim=0)
top = next_probabilities.topk(8)
names = [repr(tokenizer.decode([number])) for number in top.indices]
figure = Figure(figsize=(8, 3), layout="constrained")
left, right = figure.subplots(1, 2, sharex=True)
left.barh(names[::-1], 100 * top.values.flip(0).numpy(), color="#404040")
left.set_title(f"Old head: which of {len(next_probabilities):,} tokens comes next?", fontsize=10)
right.barh(LABELS, 100 * class_probabilities.numpy(), color=["#0072B2", "#D55E00"], height=0.5)
right.set_title("New head, still random: which of 2 classes?", fontsize=10)
for panel in (left, right):
    panel.set_xlabel("probability (%)")
figure.suptitle("Two heads read the last state of 'Do you have time'")
picture(figure, "06-two-heads")

# %% [markdown]
# ## Four tokens, two logits each
#
# Now we send the sentence through the model with its new head (30:36 in the lecture).

# %%
with torch.no_grad():
    outputs = model(ids)
print("outputs:")
print(outputs)
print("shape:", tuple(outputs.shape))

# %% [markdown]
# Read the shape from left to right: one text, four tokens, two classes. Each row belongs to a token.
# Each row has two numbers: the logit of ham and the logit of spam. The lecture calls these "two output
# tokens" (23:31 and 30:53). They are not tokens. They are two logits of the same token.

# %% [markdown]
# ## From logits to a label
#
# We want one answer for the text, not four. The lecture takes the last row, because the last token is
# the only one that has seen the whole sentence. Chapter 7 shows that this is so. The dimension of the
# tokens is the second of three, so the `-1` comes second (32:29). Softmax turns the two logits into
# probabilities, which add up to 1. `argmax` returns the position of the larger one, and the name of
# the class is at that position in the list `LABELS`.

# %%
last = outputs[:, -1, :]
probabilities = last.softmax(dim=-1)
winner = probabilities.argmax(dim=-1).item()
print("last row:     ", last)
print("probabilities:", probabilities)
print("argmax:       ", winner)
print("label:        ", LABELS[winner])
print("argmax of the logits:", last.argmax(dim=-1).item())

# %%
picture(draw_outputs(outputs[0], tokens, LABELS), "06-outputs")

# %% [markdown]
# The last line skips the softmax and finds the same class. Softmax never changes which number is the
# largest. So we need it for a probability, but not for a label.
#
# Does this answer mean anything? We draw other random weights for the head and ask again. GPT-2 itself
# and the sentence stay the same.

# %%
for seed in range(5):
    torch.manual_seed(seed)
    random_head = nn.Linear(model.config.n_embd, 2)
    with torch.no_grad():
        answer = random_head(states)[:, -1, :].argmax(dim=-1).item()
    print(f"seed {seed}: {LABELS[answer]}")

# %% [markdown]
# The label depends on the head's random weights, so it says nothing about the sentence. The head has
# to be trained. Chapters 8 to 10 show how.

# %% [markdown]
# ## One output or two?
#
# The answer is either ham or spam. The lecturer mentions that one output would be enough (25:30). We
# can check this. We subtract the row of ham from the row of spam, and get a head with a single output.
# The sigmoid function turns that output into a probability.

# %%
row = model.head.weight[1] - model.head.weight[0]
shift = model.head.bias[1] - model.head.bias[0]
one_output = states[0, -1] @ row + shift
print(f"one output:  {one_output.item():.4f} -> P(spam) {torch.sigmoid(one_output).item():.4f}")
print(f"two outputs: {last[0].tolist()} -> P(spam) {probabilities[0, 1].item():.4f}")

# %% [markdown]
# The probability is the same. Softmax looks only at the difference between the two logits, and the
# single output is that difference. Still, the lecture and this package use one output per class. Then
# the same code also works for three classes or more.

# %% [markdown]
# ## Three classes
#
# The lecturer's example is technology, sports and medicine (26:04). One number in the code changes:

# %%
TOPICS = ["technology", "sports", "medicine"]
torch.manual_seed(123)
topic_head = nn.Linear(model.config.n_embd, 3)
with torch.no_grad():
    topic_outputs = topic_head(states)
topic_probabilities = topic_outputs[:, -1, :].softmax(dim=-1)
print("shape:", tuple(topic_outputs.shape))
print("last row:     ", topic_outputs[:, -1, :])
print("probabilities:", topic_probabilities)
print("label:        ", TOPICS[topic_probabilities.argmax(dim=-1).item()])

# %% [markdown]
# Everything else is as before: the last row, softmax, argmax, label. And this answer is random too.

# %% [markdown]
# ## What you know now
#
# - GPT-2 continues a text. Asked whether a message is spam, it does not answer.
# - The head turns the state of each token into logits. GPT-2's own head has one output per vocabulary
#   entry. Ours has one output per class.
# - The output for "Do you have time" has the shape (1, 4, 2): one text, four tokens, two classes.
# - `outputs[:, -1, :]` is the row of the last token. Softmax turns it into probabilities, and argmax
#   finds the class, with or without softmax.
# - Before training, the label depends on the random weights of the head.
# - For three classes, only the number of outputs changes.

# %% [markdown]
# ## Checks
#
# These cells check what the chapter said. They are folded in the notebook; an error here means that
# something is wrong.

# %% check
by_table = states @ plain.wte.weight.detach().T
assert plain.head.weight is plain.wte.weight and old_head.weight is model.wte.weight
assert torch.allclose(next_logits, by_table, atol=1e-3)
assert after - before == 2 * model.config.n_embd + 2
print("checked: the old head is the table wte, which stays; the new head adds 2 C + 2 parameters")

# %% check
weight, bias = model.head.weight, model.head.bias
by_hand = F.linear(states[0], weight, bias).detach()
assert outputs.shape == (1, 4, 2) and torch.allclose(outputs[0], by_hand, atol=1e-3)
replace_head(plain, num_classes=2)
assert plain.head.weight.shape == weight.shape and plain.head.bias.shape == bias.shape
assert torch.allclose(by_hand, logits_of_new_head(plain, ids[0], 2, seed=123), atol=1e-3)
PUBLISHED = [[-1.5854, 0.9904], [-3.7235, 7.4548], [-2.2661, 6.6049], [-3.5983, 3.9902]]
assert MODEL != "124M" or torch.allclose(outputs[0], torch.tensor(PUBLISHED), atol=1e-3)
print(
    "checked: the outputs are one product with the states; with OpenAI's weights, the book's numbers"
)

# %% check
ham, spam = last[0].tolist()
p_spam = math.exp(spam) / (math.exp(ham) + math.exp(spam))
assert math.isclose(p_spam, probabilities[0, 1].item(), abs_tol=1e-5)
assert winner == int(spam > ham) == last.argmax(dim=-1).item()
print("checked: softmax equals its formula, and the larger logit has the larger probability")

# %% check
assert math.isclose(torch.sigmoid(one_output).item(), p_spam, abs_tol=1e-5)
print("checked: one output, the difference of the two, gives the same probability")

# %% check
assert topic_outputs.shape == (1, 4, 3) and math.isclose(topic_probabilities.sum(), 1, abs_tol=1e-5)
print("checked: three outputs give three probabilities, which add up to 1")

# %% [markdown]
# ## Exercises
#
# 1. (easy) For one token, how many multiplications does the old head need, and how many the new one?
#    <details><summary>Hint</summary>Each weight of a linear layer is used once per token.</details>
# 2. (medium) Ask GPT-2 about 20 spam and 20 ham messages, and call a message spam if ` yes` is more
#    probable than ` no`. How many answers are correct? Compare with a coin.
#    <details><summary>Hint</summary>The function `question` of this chapter makes the prompt.</details>
# 3. (hard) For two classes, one output is enough. Are two outputs enough for three classes?
#    <details><summary>Hint</summary>Subtract the first row of the head from all its rows.</details>
#
# Solutions: [`solutions/06_head.py`](solutions/06_head.py).
