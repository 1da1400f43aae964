# %% [markdown]
# # 5. A new head
#
# GPT-2 answers one question: which token comes next? A classifier answers another: which class is
# this? The way there is to exchange one layer, the last.
#
# **At the end you will know** what the swap takes away and adds, why a text is read at its last
# token, and that two classes or three make no difference. **Time:** about ten seconds, offline.

# %%
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F

from gpt2_from_scratch import (
    Tokenizer,
    TrainConfig,
    draw_label_by_token,
    format_evaluation,
    load_gpt2,
    logits_of_new_head,
    model_folder,
    replace_head,
    train_classifier,
)
from gpt2_from_scratch.course import picture, setting, show

MODEL, DATA = setting("mini")  # "124M": OpenAI's model, and the SMS Spam Collection

# %% [markdown]
# ## From every token to a few classes
#
# The lecture's sentence, four tokens with OpenAI's vocabulary and with ours. Out come as many guesses
# as tokens went in: behind each token one logit for every token that could follow. The likeliest:

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
numbers = sum(parameter.numel() for parameter in model.parameters())
old_head, tied = model.head.weight, model.head.weight is model.wte.weight
torch.manual_seed(123)
replace_head(model, num_classes=2)
added = sum(parameter.numel() for parameter in model.head.parameters())
print(f"old head: {old_head.numel():>9,} numbers, {'all of them' if tied else 'not'} those of wte")
print(f"new head: {added:>9,} numbers, random: {tuple(model.head.weight.shape)} and a bias")
print(f"model:    {numbers:>9,} before, {sum(p.numel() for p in model.parameters()):,} after")
print(f"logits    {tuple(logits.shape)} before, {tuple(model(ids).shape)} after")

# %% [markdown]
# The file has no head: it is `wte` once more, and `wte` stays, since tokens are still read in with
# it. So the swap frees nothing on disk and adds a few numbers; what it saves is arithmetic. With
# OpenAI's weights and seed 123 the new logits of this sentence are published, and
# `gpt2-classifier verify 124M` compares them.

# %% check
assert tied and torch.allclose(logits, state @ model.wte.weight.T, atol=1e-3), "wte was the head"
weight, bias = model.head.parameters()
by_hand = F.linear(state[0], weight, bias)
assert torch.allclose(model(ids)[0], by_hand, atol=1e-3)
assert torch.allclose(by_hand, logits_of_new_head(model, ids[0], 2, seed=123), atol=1e-3)
assert added == 2 * model.config.n_embd + 2 and model.wte.weight is old_head
print("checked: both heads are one product with the last states; wte is still there")

# %% [markdown]
# ## Why the last token
#
# There are now T answers for one text, and one is wanted. Attention looks back only (chapter 3). So
# change the token in one place, and see behind which tokens the logits move at all:

# %%
T = ids.shape[1]
moved = torch.zeros(T, T, dtype=torch.bool)  # row: the position that is read; column: the change
for changed in range(T):
    other = ids.clone()
    other[0, changed] = (other[0, changed] + 1) % model.config.n_vocab
    with torch.no_grad():
        moved[:, changed] = (model(other) - model(ids))[0].abs().amax(dim=1) > 1e-5
tokens = [tokenizer.decode([n]) for n in ids[0].tolist()]
print("changed:      " + "".join(f"{token:>7}" for token in tokens))
for token, row in zip(tokens, moved.tolist(), strict=True):
    print(f"read at {token.strip():<6}" + "".join("  moves" if m else "      ·" for m in row))

# %% [markdown]
# Only behind the last token does every change show: it alone has read the whole text, and its logits
# are the answer. Those behind the others are answers for the text so far, and they are free. Here
# is what a trained classifier says after each token of a message:

# %%
config = TrainConfig(epochs=3, lr=0.256 / model.config.n_embd)  # few epochs, so a high rate
options = {"training": config, "cache": False}
with TemporaryDirectory() as folder:
    spam_filter = train_classifier(MODEL, DATA, run=f"{folder}/run", **options).classifier
encoded = tokenizer.encode("Congratulations, your number was drawn. Reply now to claim your prize")
with torch.no_grad():
    answers = spam_filter.model(torch.tensor([encoded]))[0].softmax(dim=1)[:, 1].tolist()
picture(draw_label_by_token([tokenizer.decode([n]) for n in encoded], answers, "spam"), "05-tokens")

# %% check
assert torch.equal(moved, torch.ones(T, T).tril().bool()), "a token moves what is read behind it"
begun = spam_filter.logits([encoded[: t + 1] for t in range(len(encoded))]).softmax(dim=1)[:, 1]
assert torch.allclose(begun, torch.tensor(answers), atol=1e-3)
print(f"checked: one pass gave the {len(answers)} answers that {len(answers)} texts cut short give")

# %% [markdown]
# ## Three classes
#
# The lecture's other example: technology, sports, medicine. `topics` holds short texts with these
# labels. The call is the one above but for the data's name; how many labels there are in the data
# decides how many rows the head has. (Chapter 9 explains the columns of the table.)

# %%
with TemporaryDirectory() as folder:
    run = train_classifier(MODEL, "topics", run=f"{folder}/run", **options)
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
assert scores.interval[0] > 1 / 3, "clearly better than a guess among three"
print(
    f"checked: three labels made a head of three; {scores.correct} of {scores.total} test texts right"
)

# %% [markdown]
# ## Exercises
#
# 1. Two outputs for two classes: would one be enough? Make one row of the new head's two, and get
#    the same probability from it.
# 2. Read at the first token instead (`Classifier.on_base(..., pooling="first_token")`). How many
#    different answers are there then for a hundred messages?
# 3. Call all texts of `topics` that are not medicine `other`, save them as a `.csv`, and train on it.
#    How many texts in a hundred would "always other" get right?
#
# Solutions: [`solutions/05_head.py`](solutions/05_head.py).
