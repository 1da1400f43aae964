# %% [markdown]
# # 19. Several heads at once
#
# A head is one small layer, and nearly all of the work is in the network below it. So it is cheap to
# answer several questions from the same states. But what do heads do to each other when they are
# trained together?
#
# **At the end you will know** how one pass answers four questions, why the units of a loss matter, how
# to keep a head from changing the network, and what sharing costs. **Time:** about half a minute,
# offline.

# %%
import re
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from gpt2_from_scratch import (
    Classifier,
    FeatureStore,
    HeadConfig,
    Message,
    Span,
    Split,
    TrainConfig,
    draw_heads_by_token,
    finetune,
    generate_with_heads,
    load_messages,
    loss_and_scores,
    outputs_from,
    split_messages,
    to_labelled,
)
from gpt2_from_scratch.course import picture, setting, show

MODEL, DATA = setting("mini")  # "124M": OpenAI's model. DATA: the SMS Spam Collection

# %% [markdown]
# ## One pass, four questions
#
# Is the message spam? How many characters does it have? Which of its words begin with a capital letter?
# And GPT-2's own question: which token comes next? People answered the first one. A rule gives the
# answers to the others, so we need not label anything.


# %%
def by_rule(m):
    words = [Span(*w.span(), KINDS[w[0][0].isupper()]) for w in re.finditer(r"\S+", m.text)]
    return Message(m.text, {"label": m.label, "length": (float(len(m.text)),), "words": words})


model = Classifier.on_base(MODEL, ["ham", "spam"]).model
C, top, KINDS = model.config.n_embd, model.config.n_layer, ("other", "capital")
whole = split_messages(load_messages(DATA), balance=True)
parts = whole.train[:200], whole.val[:40], whole.test[:160]  # to save time
split = Split(*([by_rule(message) for message in part] for part in parts))
store = FeatureStore()  # keeps the frozen blocks' output for the next head
# heads that share a text with tags or the next token cannot have an end token (chapter 7)
LABEL = HeadConfig("label", labels=("ham", "spam"), pooling="last_token")
LENGTH = HeadConfig("length", "regression", ("characters",), pooling="last_token")
WORDS = HeadConfig("words", "token-classification", KINDS, top - 1, hidden=(C,), activation="gelu")
NEXT = HeadConfig("next", "language", trainable=False, gradient=False)  # GPT-2's own head
four = Classifier.on_base(MODEL, heads=[LABEL, LENGTH, WORDS, NEXT])
encoded, _ = four.encode([message.text for message in split.test[:8]])
outputs, _ = four.batch_outputs(four.texts(encoded), range(8))
for h in four.description.heads:
    print(f"{h.name:<7}{h.task:<21}after block {h.layer}: {tuple(outputs[h.name].shape)}")
show(outputs_from)

# %% check
for n, ids in enumerate(encoded):  # one text at a time, through the whole network
    states, own = four.model.hidden(torch.tensor([ids]))[0], four.model.head  # (T, C)
    assert torch.allclose(outputs["label"][n], own["label"](states[-1]), atol=1e-3)
    assert torch.allclose(outputs["next"][n, : len(ids)], own["next"](states), atol=1e-3)
print("checked: one pass gives the same outputs as each head on its own")

# %% [markdown]
# ## A sum of losses
#
# Training minimizes the sum of the heads' losses, each multiplied by its `loss_weight`. The loss of
# `label` is in nats. The loss of `length` is in squared characters and tens of thousands of times
# as large, so nearly all of the gradient comes from `length`. There are two remedies.
# `balance_losses` divides each loss by its running mean. `center` and `scale` let the head predict
# in a unit of its own: here in standard deviations from the mean length.


# %%
def trained(*heads, **changes):
    config = TrainConfig(epochs=3, lr=0.256 / C, **changes)  # few epochs: a high rate
    made = Classifier.on_base(MODEL, heads=heads, store=store)
    with TemporaryDirectory() as run:
        finetune(made, split, config, Path(run))
        made = Classifier.load(Path(run) / "last.safetensors", store=store)  # of the last epoch
    scores = loss_and_scores(made, to_labelled(made, split.test))[1]
    return made, {name: its.main for name, its in scores.items()}


sizes, losses = torch.tensor([message.label["length"] for message in split.train]), []
SCALED = replace(LENGTH, center=(sizes.mean().item(),), scale=(sizes.std().item(),))
for head in (LABEL, LENGTH, SCALED):
    one = Classifier.on_base(MODEL, heads=[head])
    losses.append(loss_and_scores(one, to_labelled(one, split.train[:32]))[0])
    print(f"{head.name:<7} loss before training {losses[-1]:>9.2f}")
alone, drowned, scaled = trained(LABEL), trained(LABEL, LENGTH), trained(LABEL, SCALED)
balanced = trained(LABEL, LENGTH, balance_losses=True)
found = {"label alone": alone, "sum": drowned, "balanced": balanced, "scaled": scaled}
print("test set: accuracy of label, R2 of length")
for what, (_, scores) in found.items():
    print(f"  {what:<12}", "  ".join(f"{name} {score:.3f}" for name, score in scores.items()))

# %% [markdown]
# In the plain sum, `label` suffers. Balancing helps `label`, but does nothing for `length`: an R2
# below 0 is worse than always predicting the mean length. The output of that head begins near 0,
# and it would have to reach about a hundred characters. But AdamW moves each weight by about one
# learning rate per step, however the loss is weighted. That is too slow for such a distance. Only
# the right unit helps both heads.

# %% check
assert losses[1] > 1000 * max(losses[0], losses[2])
assert drowned[1]["label"] < min(alone[1]["label"], balanced[1]["label"], scaled[1]["label"]) - 0.03
assert max(drowned[1]["length"], balanced[1]["length"]) < 0 < 0.3 < scaled[1]["length"]
print("checked: balancing rescues label, not length; the right unit rescues both")

# %% [markdown]
# ## Together or alone
#
# Now we train all four heads together, and compare them with one classifier per question. Together
# they need one file and one pass instead of four. How much do their answers suffer?

# %%
looking = trained(LABEL, replace(SCALED, gradient=False))
together, words, length = trained(LABEL, SCALED, WORDS, NEXT), trained(WORDS), trained(SCALED)
own = loss_and_scores(four, to_labelled(four, split.test))[1]["next"].main
for name, score in {**alone[1], **length[1], **words[1], "next": own}.items():
    print(f"{name:<7}alone {score:.3f}   together {together[1][name]:.3f}")

# %% [markdown]
# `label` and `length` share the last block and still do about as well: for `label`, a difference of
# one or two messages out of 160 is not significant. `next` is not trained. The block below it has
# changed, but the accuracy of `next` hardly has. `words` does lose something. It reads the output
# of the block before the last. In its own classifier that block is trained for it. Together with
# the other heads only the last block is trained, and `words` does not read that one.
#
# If one head must not change the network for another, give it `gradient=False`. It still learns,
# but sends no gradient into the blocks. When `length` has this setting, `label` ends up as if it
# had been trained alone.

# %% check
assert torch.allclose(looking[0].logits(encoded), alone[0].logits(encoded), atol=1e-2)
assert looking[1]["length"] > drowned[1]["length"] and abs(together[1]["next"] - own) < 0.05
trains = [
    {n for n in range(top) if made.model.blocks[n].ln_1.weight.requires_grad}
    for made in (words[0], together[0])
]
assert trains == [{top - 2}, {top - 1}] and together[1]["words"] < words[1]["words"]
print("checked: which block is trained; with gradient=False, length does not change label")

# %% [markdown]
# ## The heads while a text is written
#
# `next` generates a text, and the pass that chooses a token also asks the other heads. Attention looks
# back only, so what they say after a token is what they would say if the text ended there.

# %%
PROMPT = "Congratulations! You have won"
text = generate_with_heads(together[0], PROMPT, 30, temperature=0.7, seed=1)
spam = [answer.probabilities["spam"] for answer in text.answers["label"]]
kinds = {"kind of word": [answer.label for answer in text.answers["words"]]}
curves = {"P(spam)": spam, "length": [a.values["characters"] for a in text.answers["length"]]}
figure = draw_heads_by_token(text.tokens, curves, kinds, n_prompt=text.n_prompt)
figure.axes[0].set_ylim(0, 1)
figure.suptitle("What three heads say after each token")
picture(figure, "19-generated")

# %% [markdown]
# `words` was trained on the first token of each word only. What it says at a later token, such as an
# exclamation mark after a word, means nothing. At first tokens it is sometimes wrong. And `next` is a
# general language model that was not trained to write spam, so P(spam) need not rise.

# %% check
ids = four.tokenizer.encode(PROMPT)
begun = together[0].logits([ids[: t + 1] for t in range(len(ids))]).softmax(dim=1)[:, 1]
assert torch.allclose(torch.tensor(spam[: len(ids)]), begun, atol=1e-3)
print("checked: after each token of the prompt, the answer is that for the text cut there")

# %% [markdown]
# ## Exercises
#
# 1. Leave out `label` for half of the training messages. How many does each head then learn from?
# 2. Let `next` train the block too (`gradient=True`). What happens to its predictions, and to `label`?
# 3. Count the multiply-adds of one pass for `label` and `length`, and of two passes, one for each.
#
# Solutions: [`solutions/19_several_heads.py`](solutions/19_several_heads.py).
