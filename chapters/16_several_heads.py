# %% [markdown]
# # 16. Several heads at once
#
# A head is one small layer; the network below it is nearly all of the work. So ask more than one
# question of the same states. What do heads that train together do to each other?
#
# **At the end you will know** how one pass answers four questions, why the units of a loss matter,
# how to keep a head from moving the network, and what sharing costs. **Time:** under a minute.

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

MODEL, DATA = setting("mini")  # "124M": OpenAI's model, and the SMS Spam Collection

# %% [markdown]
# ## One pass, four questions
#
# Is it spam? How many characters has it? Which words begin with a capital? And GPT-2's own: which
# token is next? People gave `label` here; the others follow from the text by rule.


# %%
def by_rule(m):
    words = [Span(*w.span(), KINDS[w[0][0].isupper()]) for w in re.finditer(r"\S+", m.text)]
    return Message(m.text, {"label": m.label, "length": (float(len(m.text)),), "words": words})


model = Classifier.on_base(MODEL, ["ham", "spam"]).model
C, top, KINDS = model.config.n_embd, model.config.n_layer, ("other", "capital")
parts = vars(split_messages(load_messages(DATA), balance=True)).values()
split = Split(*([by_rule(message) for message in part] for part in parts))
store = FeatureStore()  # what frozen blocks make of a text, for the next head
LABEL = HeadConfig("label", labels=("ham", "spam"))
LENGTH = HeadConfig("length", "regression", ("characters",))
WORDS = HeadConfig("words", "token-classification", KINDS, top - 1, hidden=(C,), activation="gelu")
NEXT = HeadConfig("next", "language", gradient=False)  # GPT-2's own head, kept
four = Classifier.on_base(MODEL, heads=[LABEL, LENGTH, WORDS, NEXT])
encoded, _ = four.encode([message.text for message in split.test[:8]])
outputs, _ = four.batch_outputs(four.texts(encoded), range(8))
for h in four.description.heads:
    print(f"{h.name:<7}{h.task:<21}behind block {h.layer}: {tuple(outputs[h.name].shape)}")
show(outputs_from)

# %% check
for n, ids in enumerate(encoded):  # one text at a time, through the whole network
    states, own = four.model.hidden(torch.tensor([ids]))[0], four.model.head  # (T, C)
    assert torch.allclose(outputs["label"][n], own["label"](states[-1]), atol=1e-3)
    assert torch.allclose(outputs["next"][n, : len(ids)], own["next"](states), atol=1e-3)
print("checked: one pass gave what each head makes of the states it reads")

# %% [markdown]
# ## A sum of losses
#
# Training takes the sum of the heads' losses, each times its `loss_weight`. That of `label` is in
# nats, that of `length` in squared characters, unless `center` and `scale` set its unit. What that
# does, told by accuracy and R2 on messages trained on: `balance_losses` divides each loss by its
# running mean, so that none is louder; but far from 0 numbers are reached slowly all the same.


# %%
def trained(*heads, **changes):
    config = TrainConfig(epochs=3, lr=0.256 / C, **changes)  # few epochs, so a high rate
    made = Classifier.on_base(MODEL, heads=heads, store=store)
    with TemporaryDirectory() as run:
        finetune(made, split, config, Path(run))
        made = Classifier.load(
            Path(run) / "last.safetensors", store=store
        )  # the last epoch, chosen by nothing
    labelled = [to_labelled(made, part) for part in (split.train, split.test)]
    scores = [loss_and_scores(made, part)[1].items() for part in labelled]
    return made, *({name: score.main for name, score in part} for part in scores)


sizes, losses = torch.tensor([message.label["length"] for message in split.train]), []
SCALED = replace(LENGTH, center=(sizes.mean().item(),), scale=(sizes.std().item(),))
for head in (LABEL, LENGTH, SCALED):
    one = Classifier.on_base(MODEL, heads=[head])
    losses.append(loss_and_scores(one, to_labelled(one, split.train[:32]))[0])
    print(f"{head.name:<7} loss before training {losses[-1]:>9.2f}")
alone, drowned = trained(LABEL), trained(LABEL, LENGTH)
balanced = trained(LABEL, LENGTH, balance_losses=True)
for what, (_, on, _) in {"alone": alone, "sum": drowned, "balanced": balanced}.items():
    print(f"{what:<9}", "  ".join(f"{name} {score:.3f}" for name, score in on.items()))

# %% check
assert losses[1] > 100 * max(losses[0], losses[2])
assert drowned[1]["label"] < min(alone[1]["label"], balanced[1]["label"]) - 0.03
print("checked: in raw units the louder head wins; balanced, it does not")

# %% [markdown]
# ## Together or alone
#
# With `gradient=False` a head learns, but nothing flows on from it: `label` ends as if alone. Now
# all four, against one classifier a question: one file and one pass instead of four, but no gift to
# the answers. `label` and `length` want different things of the block they share; `next` was not
# asked; `words` reads below. A few hundredths are chance on so few messages.

# %%
looking = trained(LABEL, replace(SCALED, gradient=False))
together, words, length = trained(LABEL, SCALED, WORDS, NEXT), trained(WORDS)[2], trained(SCALED)[2]
own = loss_and_scores(four, to_labelled(four, split.test))[1]["next"].main
for name, score in {**alone[2], **length, **words, "next": own}.items():
    print(f"{name:<7}alone {score:.3f}   together {together[2][name]:.3f}")

# %% check
assert torch.allclose(looking[0].logits(encoded), alone[0].logits(encoded), atol=1e-2)
assert looking[2]["length"] > drowned[2]["length"] and together[2]["next"] < own
assert abs(together[2]["words"] - words["words"]) < 0.03, "its first numbers were drawn anew"
print("checked: a head that only looks leaves label as it was; words lost nothing")

# %% [markdown]
# ## A text, and what the heads say of it
#
# `next` generates, and the pass that chooses a token asks the other heads too. Attention looks back
# only: what they say there, they would say if the text ended there.

# %%
PROMPT = "Congratulations! You have won"
told = generate_with_heads(together[0], PROMPT, 30, temperature=0.7, seed=1)
spam = [answer.probabilities["spam"] for answer in told.answers["label"]]
kinds = {"kind of word": [answer.label for answer in told.answers["words"]]}
curves = {"P(spam)": spam, "length": [a.values["characters"] for a in told.answers["length"]]}
picture(draw_heads_by_token(told.tokens, curves, kinds, n_prompt=told.n_prompt), "16-told")

# %% check
ids = four.tokenizer.encode(PROMPT)
begun = together[0].logits([ids[: t + 1] for t in range(len(ids))]).softmax(dim=1)[:, 1]
assert torch.allclose(torch.tensor(spam[: len(ids)]), begun, atol=1e-3)
print("checked: after each token of the prompt, the answer for the text cut there")

# %% [markdown]
# ## Exercises
#
# 1. Leave `label` out of half the training messages. From how many does each head learn then?
# 2. Let `next` pull too (`gradient=True`). What becomes of its guesses, and what of `label`?
# 3. Count the multiply-adds of a pass for `label` and `length`, and of two passes, one for each.
#
# Solutions: [`solutions/16_several_heads.py`](solutions/16_several_heads.py).
