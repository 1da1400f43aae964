# %% [markdown]
# # 19. Several heads at once
#
# **You are here:** pretraining → heads → words and spans → probes → **several heads** → LoRA → explanations
#
# A head is one small layer, and nearly all of the work is done by the network below it. So it is cheap
# to answer several questions from the same states. But can they be *trained* together? They share the
# last block, and each of them wants to change it.
#
# **At the end you will know** how one pass answers several questions, how the unit of one loss can ruin
# the training of another head, what sharing costs, and how a head can learn without changing the
# network.
#
# **Reading time:** 25 minutes. **Running time:** about half a minute, offline.

# %%
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure

from gpt2_from_scratch import (
    LABELS,
    Classifier,
    FeatureStore,
    HeadConfig,
    Message,
    Split,
    TrainConfig,
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
# ## One pass, three questions
#
# Is the message spam? How many characters does it have? And GPT-2's own question: which token comes next?
# People answered the first one, and the other two can be counted, so nobody has to label anything. A
# message now has one answer per head:


# %%
def with_answers(messages):
    found = []
    for message in messages:
        length = (float(len(message.text)),)
        found.append(Message(message.text, {"label": message.label, "length": length}))
    return found


whole = split_messages(load_messages(DATA), balance=True)
split = Split(  # some, to save time
    with_answers(whole.train[:240]), with_answers(whole.val[:30]), with_answers(whole.test[:160])
)
print(split.test[0].text[:50], split.test[0].label)

# %% [markdown]
# Each head gets a name. All three read the last token. (They cannot use an end token, because `next`
# reads the same text, and after an end token there is no next one.) The head `next` is GPT-2's own, and
# we do not train it.

# %%
LABEL = HeadConfig("label", labels=tuple(LABELS), pooling="last_token")
LENGTH = HeadConfig("length", "regression", ("characters",), pooling="last_token")
NEXT = HeadConfig("next", "language", trainable=False, gradient=False)
three = Classifier.on_base(MODEL, heads=[LABEL, LENGTH, NEXT])
encoded, _ = three.encode([message.text for message in split.test])
with torch.no_grad():
    states = three.model.hidden(torch.tensor([encoded[0]]))[0]  # (T, C): the network, once
    spam_or_ham = three.model.head["label"](states[-1])
    length = three.model.head["length"](states[-1])
    next_tokens = three.model.head["next"](states)
print("states of the network", tuple(states.shape))
print("label ", tuple(spam_or_ham.shape), spam_or_ham)
print("length", tuple(length.shape), length)
print("next  ", tuple(next_tokens.shape))
for name, part in (("label", three.model.head["label"]), ("length", three.model.head["length"])):
    print(f"parameters of {name}:", sum(p.numel() for p in part.parameters()))
print("parameters of the network:", f"{sum(p.numel() for p in three.model.blocks.parameters()):,}")

# %% [markdown]
# The network ran once, and three heads read its states. The two new heads have a few hundred parameters
# each, the blocks have millions. So the second and the third answer cost almost nothing. The package does
# the same for whole batches. It also lets heads read different layers, and computes only what some head
# reads:

# %%
show(outputs_from)

# %% [markdown]
# ## A sum of losses
#
# To train several heads, we add up their losses and take the gradient of the sum. The loss of `label` is a
# cross-entropy. The loss of `length` is a squared error (chapter 16). Here are both before training, and
# the size of the gradient that each of them sends into the last block:


# %%
def loss_and_gradient(name, head, messages):
    made = Classifier.on_base(MODEL, heads=[head])
    block = made.model.blocks[-1]
    losses = []
    for message in messages:
        ids = torch.tensor(made.encode([message.text])[0])
        output = made.model.head(made.model.hidden(ids)[:, -1])
        if name == "label":
            losses.append(
                F.cross_entropy(output, torch.tensor([LABELS.index(message.label[name])]))
            )
        else:
            target = message.label[name][0]
            if head.scale:
                target = (target - head.center[0]) / head.scale[0]
            losses.append((output[0, 0] - target) ** 2)
    loss = torch.stack(losses).mean()
    loss.backward()
    squares = sum((p.grad**2).sum() for p in block.parameters())
    return loss.item(), squares.sqrt().item()


sizes = {}
for name, head in (("label", LABEL), ("length", LENGTH)):
    sizes[name] = loss_and_gradient(name, head, split.train[:16])
    print(f"{name:<7} loss {sizes[name][0]:9.2f}   length of its gradient {sizes[name][1]:9.2f}")

# %% [markdown]
# A message has about a hundred characters, so a head that says 0 has an error of a hundred, and its square is
# more than ten thousand on average. The gradient of `length` is far larger than that of `label`. What will happen if both
# losses are added? Guess, then train `label` alone and both together:

# %%
store = FeatureStore()  # keeps what the frozen blocks compute, for the next training


def train_heads(heads, **changes):
    made = Classifier.on_base(MODEL, heads=heads, store=store)
    lr = 1e-3 * 256 / made.model.config.n_embd  # wider networks need a lower rate
    config = TrainConfig(epochs=4, lr=lr, **changes)
    with TemporaryDirectory() as folder:
        finetune(made, split, config, Path(folder))
        made = Classifier.load(Path(folder) / "last.safetensors")  # the weights after all epochs
    return made, loss_and_scores(made, to_labelled(made, split.test))[1]


def print_scores(what, scores):
    parts = [what.ljust(24)]
    if "label" in scores:
        low, high = scores["label"].interval
        parts.append(f"label: accuracy {scores['label'].accuracy:.1%} ({low:.1%} to {high:.1%})")
    if "length" in scores:
        parts.append(f"length: R2 {scores['length'].values[0].r2:.2f}")
    print("  ".join(parts))


label_alone, label_scores = train_heads([LABEL])
failed, failed_scores = train_heads([LABEL, LENGTH])
print_scores("label alone", label_scores)
print_scores("label and length", failed_scores)

# %% [markdown]
# Training has failed, for both heads. `label` has lost much of its accuracy, because nearly all of the
# gradient came from the other loss. And `length` has gained nothing from that: its R2 is negative, so it
# is worse than always answering the mean length. Its output would have to reach a hundred, and AdamW's
# small steps do not get there (chapter 16).
#
# The remedy is the one of chapter 16: the right unit. With `center` and `scale`, the head predicts standard
# deviations from the mean length. Then its loss starts near 1, like that of `label`:

# %%
lengths = torch.tensor([message.label["length"][0] for message in split.train])
SCALED = HeadConfig(
    "length",
    "regression",
    ("characters",),
    pooling="last_token",
    center=(lengths.mean().item(),),
    scale=(lengths.std().item(),),
)
sizes["scaled"] = loss_and_gradient("length", SCALED, split.train[:16])
print(f"length, scaled: loss {sizes['scaled'][0]:.2f}, its gradient {sizes['scaled'][1]:.2f}")
together, together_scores = train_heads([LABEL, SCALED, NEXT])
length_alone, length_scores = train_heads([SCALED])

# %% [markdown]
# ## Together or alone
#
# Now we can ask the real question. Two classifiers, each with a last block of its own, or one classifier
# with two heads that share the block: what does sharing cost?

# %%
print_scores("label alone", label_scores)
print_scores("length alone", length_scores)
print_scores("together, scaled", together_scores)
print_scores("together, not scaled", failed_scores)
before = loss_and_scores(three, to_labelled(three, split.test))[1]["next"].main
after = together_scores["next"].main
print(f"next token predicted correctly: {before:.1%} before training, {after:.1%} after")

# %% [markdown]
# Together the two heads do about as well as each of them alone: for `label` the intervals overlap, so the
# difference is not significant. `next` was not trained at all. The block below it has changed, and it
# predicts about as well as before. So one classifier answers three questions with one pass and one
# file.
#
# If losses are still of different size, `balance_losses=True` divides each of them by its running mean,
# and `loss_weight` gives a head more or less influence.

# %% [markdown]
# ## A head that does not change the network
#
# Sometimes the answers of one head must not change because another one is added. With `gradient=False` a head
# learns, but its gradient stops before it reaches the block. So `label` stays as it would be alone, and the
# other head has to make do with the states that `label` wants.

# %%
QUIET = HeadConfig(
    "length",
    "regression",
    ("characters",),
    pooling="last_token",
    center=SCALED.center,
    scale=SCALED.scale,
    gradient=False,
)
quiet, quiet_scores = train_heads([LABEL, QUIET])
print_scores("with gradient=False", quiet_scores)
print("logits of label alone      ", label_alone.logits(encoded[:1]))
print("logits with a quiet second ", quiet.logits(encoded[:1]))

# %% [markdown]
# The logits of `label` are those of the classifier that was trained alone. `length` learns less than with
# a block of its own, since only its own few hundred parameters are trained for it.

# %% [markdown]
# ## The heads while a text is written
#
# `next` can generate a text, and the pass that chooses a token also asks the other heads. Attention looks
# only back, so what they say after a token is what they would say if the message ended there. We give the
# beginning of a spam message, let `next` continue it, and look at both answers after each token:

# %%
PROMPT = "URGENT! You have won a prize of 1000 pounds. To claim it call 09061701461"
text = generate_with_heads(together, PROMPT, 20, temperature=0.7, seed=1)
print("".join(text.tokens))
spam = [answer.probabilities["spam"] for answer in text.answers["label"]]
said = [answer.values["characters"] for answer in text.answers["length"]]
true = [len("".join(text.tokens[: n + 1])) for n in range(len(text.tokens))]
figure = Figure(figsize=(8.5, 4.6), layout="constrained")
upper, lower = figure.subplots(2, 1, sharex=True)
upper.plot(spam, color="#D55E00", marker="o", markersize=3)
upper.set(
    ylabel="P(spam)",
    ylim=(0, 1),
    title="Two heads after each token; right of the line, GPT-2 writes",
)
lower.plot(true, color="#404040", linestyle="--")
lower.plot(said, color="#0072B2", marker="o", markersize=3)
lower.set(ylabel="characters", ylim=(0, 145))
lower.text(24, 125, "predicted", color="#0072B2")
lower.text(17, 35, "true, so far", color="#404040")
for axes in (upper, lower):
    axes.axvline(text.n_prompt - 0.5, color="#E69F00")
names = [token.replace("\n", "\\n") for token in text.tokens]
lower.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
picture(figure, "19-generated")

# %% [markdown]
# P(spam) jumps when the phone number begins: chapter 18 found that digits give spam away. `length` tends to
# grow with the text, but it is too high for most of the prompt. It was trained on whole messages only, and
# here it has to judge messages that stop in the middle of a sentence. And what `next` writes need not be
# spam: it is a general language model that continues the text.

# %% [markdown]
# ## What you know now
#
# - Several heads can read the states of one pass, so more answers cost almost nothing.
# - Heads are trained on the sum of their losses. A loss in a large unit ruins this: the training of both
#   heads fails.
# - In suitable units, two heads that share a block do about as well as two classifiers.
# - With `gradient=False` a head learns without changing the network.
# - After each token, every head gives the answer for the text up to there.

# %% [markdown]
# ## Checks
#
# These cells check what the chapter said. They are folded in the notebook; an error here means that
# something is wrong.

# %% check
with torch.no_grad():
    outputs, _ = three.batch_outputs(three.texts(encoded[:8]), range(8))
    for n in range(8):  # one text at a time, through the whole network
        alone = three.model.hidden(torch.tensor([encoded[n]]))[0]
        T = len(encoded[n])
        assert torch.allclose(outputs["label"][n], three.model.head["label"](alone[-1]), atol=1e-3)
        assert torch.allclose(outputs["next"][n, :T], three.model.head["next"](alone), atol=1e-3)
print("checked: one pass over a batch gives the same outputs as each head on each text")

# %% check
loss = loss_and_scores(three, to_labelled(three, split.train[:16]))[0]
only_next = Classifier.on_base(MODEL, heads=[NEXT])
rest = loss_and_scores(only_next, to_labelled(only_next, split.train[:16]))[0]
assert sizes["length"][0] > 1000 * max(sizes["label"][0], sizes["scaled"][0])
assert sizes["length"][1] > 100 * sizes["label"][1]
assert abs(loss - rest - sizes["length"][0]) < 0.05 * sizes["length"][0], "the losses are added"
print("checked: the loss of several heads is the sum; in characters, length is nearly all of it")

# %% check
alone, both, bad = label_scores["label"], together_scores["label"], failed_scores["label"]
assert bad.accuracy < min(alone.interval[0], both.interval[0]), "a significant loss"
assert max(alone.interval[0], both.interval[0]) < min(alone.interval[1], both.interval[1])
assert failed_scores["length"].values[0].r2 < 0
assert min(length_scores["length"].values[0].r2, together_scores["length"].values[0].r2) > 0.4
assert abs(after - before) < 0.05
print("checked: without a unit both heads fail; with it, together is about as good as alone")

# %% check
assert torch.allclose(quiet.logits(encoded), label_alone.logits(encoded), atol=1e-2)
assert not torch.allclose(together.logits(encoded), label_alone.logits(encoded), atol=1e-2)
print("checked: with gradient=False, length does not change label")

# %% check
ids = three.tokenizer.encode(PROMPT)
for t in (1, len(ids) // 2, len(ids)):
    begun = together.logits([ids[:t]]).softmax(dim=1)[0, 1].item()
    assert abs(spam[t - 1] - begun) < 1e-3
assert spam[len(ids) - 1] > max(spam[:5]), "the phone number raises P(spam)"
print("checked: the answer after a token is that for the text cut there")

# %% [markdown]
# ## Exercises
#
# 1. (easy) Count the multiply-adds of one pass for `label` and `length`, and of two passes, one for each.
#    <details><summary>Hint</summary>`torch.utils.flop_counter.FlopCounterMode` counts two operations per
#    multiply-add.</details>
# 2. (medium) Leave out `label` for half of the training messages. How many does each head then learn
#    from?
#    <details><summary>Hint</summary>`to_labelled(classifier, messages).targets` has a `counts` for each
#    head.</details>
# 3. (hard) Let `next` train the block too (`gradient=True`). What happens to its predictions, and to
#    `label`?
#    <details><summary>Hint</summary>The scores of `next` have `nats_per_token`.</details>
#
# Solutions: [`solutions/19_several_heads.py`](solutions/19_several_heads.py).
