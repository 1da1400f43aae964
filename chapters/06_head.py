# %% [markdown]
# # 6. A new head
#
# GPT-2 answers one question: which token comes next? A classifier answers another one: which class does
# this text belong to? To turn one into the other, we replace a single layer: the last one.
#
# **At the end you will know** what the replacement removes and adds, why a text is read at its last
# token, and why three classes need the same code as two. **Time:** about ten seconds, offline.

# %%
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F

from gpt2_from_scratch import (
    LABELS,
    Classifier,
    Tokenizer,
    TrainConfig,
    draw_label_by_token,
    finetune,
    format_evaluation,
    load_gpt2,
    load_messages,
    logits_of_new_head,
    model_folder,
    replace_head,
    split_messages,
    train_classifier,
)
from gpt2_from_scratch.course import picture, setting, show

MODEL, DATA = setting("mini")  # "124M": OpenAI's model. DATA: the SMS Spam Collection

# %% [markdown]
# ## From every token to a few classes
#
# The lecture uses the sentence "Do you have time", which has four tokens in OpenAI's vocabulary and
# also in the miniature's. For each of these positions the network returns one logit per vocabulary
# entry: the score of every token that could come next. First we print the most probable ones. Then
# you see `replace_head`, and what it changes:

# %%
model, tokenizer = load_gpt2(MODEL), Tokenizer(model_folder(MODEL))
ids = torch.tensor([tokenizer.encode("Do you have time")])  # (1, T)
with torch.no_grad():
    state, logits = model.hidden(ids), model(ids)
print(f"ids {ids.tolist()}: {tuple(ids.shape)} -> logits {tuple(logits.shape)}")
for t, guess in enumerate(logits[0].argmax(dim=1).tolist()):
    print(f"{tokenizer.decode(ids[0, : t + 1].tolist())!r:<20} then {tokenizer.decode([guess])!r}")

# %%
show(replace_head)

# %%
parameters = sum(parameter.numel() for parameter in model.parameters())
old_head, tied = model.head.weight, model.head.weight is model.wte.weight
torch.manual_seed(123)
replace_head(model, num_classes=2)
added = sum(parameter.numel() for parameter in model.head.parameters())
print(f"old head {old_head.numel():>10,} parameters, {'shared' if tied else 'not shared'} with wte")
print(f"new head {added:>10,} parameters, random: {tuple(model.head.weight.shape)} and a bias")
print(f"model    {parameters:>10,} before, {sum(p.numel() for p in model.parameters()):,} after")
print(f"logits    {tuple(logits.shape)} before, {tuple(model(ids).shape)} after")

# %% [markdown]
# The old head is not stored in the model's file, because it is the same table as `wte`. And `wte`
# stays in the model, because it still turns token ids into vectors. So the new head does not make
# the model smaller: it adds a few parameters. But it saves computation, since there are now two
# logits per token instead of one per vocabulary entry. The book prints the logits of this sentence
# from the new head, for OpenAI's weights and seed 123. `gpt2-classifier verify 124M` compares ours
# with them.

# %% check
assert tied and torch.allclose(logits, state @ model.wte.weight.T, atol=1e-3), "wte was the head"
weight, bias = model.head.parameters()
by_hand = F.linear(state[0], weight, bias)
assert torch.allclose(model(ids)[0], by_hand, atol=1e-3)
assert torch.allclose(by_hand, logits_of_new_head(model, ids[0], 2, seed=123), atol=1e-3)
assert added == 2 * model.config.n_embd + 2 and model.wte.weight is old_head
print("checked: each head is one product with the final states; wte is still in the model")

# %% [markdown]
# ## Why the last token
#
# The network now gives T answers for one text, one per token, and we want a single one. Attention only
# looks back (chapter 4). To see what this means, we change one token at a time and note at which
# positions the logits change at all:

# %%
T = ids.shape[1]
moved = torch.zeros(T, T, dtype=torch.bool)  # row: position that is read; column: token changed
for changed in range(T):
    other = ids.clone()
    other[0, changed] = (other[0, changed] + 1) % model.config.n_vocab
    with torch.no_grad():
        moved[:, changed] = (model(other) - model(ids))[0].abs().amax(dim=1) > 1e-5
tokens = [tokenizer.decode([n]) for n in ids[0].tolist()]
print("changed:      " + "".join(f"{token:>7}" for token in tokens))
for token, row in zip(tokens, moved.tolist(), strict=True):
    print(f"read at {token.strip():<6}" + "".join("    yes" if m else "      ·" for m in row))

# %% [markdown]
# Only the last row has a "yes" in every column. So the last token is the only one that has seen the
# whole text, and we take its logits as the answer. The logits at another token are an answer for
# the text up to that token, and they cost nothing extra. We train a classifier on some of the
# messages (chapter 10 explains how). Then we look at its answers after each token of a message from
# the book that the lecture follows:

# %%
config = TrainConfig(epochs=5, lr=0.256 / model.config.n_embd)  # high, as training is short
split = split_messages(load_messages(DATA)[:1500], balance=True)
# by default a classifier appends a token to each text and reads that one; chapter 7 explains why
spam_filter = Classifier.on_base(MODEL, LABELS, pooling="last_token")
with TemporaryDirectory() as folder:
    finetune(spam_filter, split, config, Path(folder))
WINNER = "You are a winner you have been specially selected to receive $1000 cash or a $2000 award."
encoded = tokenizer.encode(WINNER)
with torch.no_grad():
    answers = spam_filter.model(torch.tensor([encoded]))[0].softmax(dim=1)[:, 1].tolist()
picture(draw_label_by_token([tokenizer.decode([n]) for n in encoded], answers, "spam"), "06-tokens")

# %% check
assert torch.equal(moved, torch.ones(T, T).tril().bool()), "a token changes itself and later ones"
begun = spam_filter.logits([encoded[: t + 1] for t in range(len(encoded))]).softmax(dim=1)[:, 1]
assert torch.allclose(begun, torch.tensor(answers), atol=1e-3)
print(f"checked: one pass over the text gives the answers for all its {len(answers)} beginnings")

# %% [markdown]
# ## Three classes
#
# The lecture mentions another example with three classes: technology, sports and medicine. The data
# set `topics` has short texts with these labels. `train_classifier` reads and splits a data set, trains
# on it as above, and evaluates the result on the test set. The head gets one row for each label in the
# data. (Chapter 12 explains the columns of the table.)

# %%
with TemporaryDirectory() as folder:
    run = train_classifier(MODEL, "topics", config, run=f"{folder}/run", cache=False)
sorter, scores = run.classifier, run.scores
print(format_evaluation(scores))

# %% tags=["varies"]
for text in (
    "The new phone updates itself overnight and forgets my password",
    "She scored twice and the team won the cup",
    "The nurse took my blood pressure twice",
):
    answer = sorter.predict([text])[0]
    print(f"{answer.label:<11} {max(answer.probabilities.values()):.2f}  {text}")

# %% check
labels = sorter.description.labels
assert labels == ["medicine", "sports", "technology"] and len(scores.classes) == len(labels) == 3
assert tuple(sorter.model.head.weight.shape) == (3, model.config.n_embd)
assert scores.interval[0] > 1 / 3, "significantly better than guessing among three classes"
print(f"checked: three labels, three rows; {scores.correct} of {scores.total} test texts correct")

# %% [markdown]
# ## Exercises
#
# 1. The head has two outputs for two classes. Would one be enough? Combine the two rows of the new
#    head into one, and compute the same probability from it.
# 2. Read at the first token instead (`Classifier.on_base(..., pooling="first_token")`). How many
#    different answers does the classifier then give for a hundred messages?
# 3. Label all texts of `topics` that are not about medicine `other`, save them as a `.csv` file, and
#    train on it. What is the accuracy of a classifier that always answers `other`?
#
# Solutions: [`solutions/06_head.py`](solutions/06_head.py).
