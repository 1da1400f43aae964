# %% [markdown]
# # 21. Explanations
#
# **You are here:** pretraining → heads → words and spans → probes → several heads → LoRA → **explanations**
#
# "Hello darling how are you today? I would love to have a chat": this message is spam, and a classifier
# that is right most of the time lets it through. Why? Many methods answer such a question. Their answers look
# convincing, and they do not agree. In this chapter we compute the most common ones, and test what they
# claim.
#
# **At the end you will know** which words matter to a classifier and in which sense, what attention does
# not show, what each block adds to an answer, and how to find out that an explanation is worthless.
#
# **Reading time:** 35 minutes. **Running time:** about ten seconds, offline.

# %%
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from scipy.stats import spearmanr

from gpt2_from_scratch import (
    LABELS,
    Classifier,
    Split,
    TrainConfig,
    answer_by_layer,
    attention_weights,
    contributions,
    draw_contributions,
    draw_label_by_token,
    draw_next_tokens,
    finetune,
    gradient_times_input,
    integrated_gradients,
    leave_one_out,
    load_messages,
    next_tokens,
    outputs_from,
    split_messages,
)
from gpt2_from_scratch.course import picture, setting

MODEL, DATA = setting("mini")  # "124M": OpenAI's model. DATA: the SMS Spam Collection

# %% [markdown]
# ## A classifier and its mistakes
#
# We finetune the last block on a few messages, as in chapter 10, and look at the messages of the test
# set that the classifier gets wrong.

# %% tags=["varies"]
whole = split_messages(load_messages(DATA), balance=True)
split = Split(whole.train[:240], whole.val[:60], whole.test)  # some, to save time
classifier = Classifier.on_base(MODEL, LABELS)
LR = 1e-3 * 256 / classifier.model.config.n_embd  # wider networks need a lower rate
with TemporaryDirectory() as folder:
    finetune(classifier, split, TrainConfig(epochs=5, lr=LR), Path(folder))

texts = [message.text for message in split.test]
answers = classifier.predict(texts)
wrong = []
for message, answer in zip(split.test, answers, strict=True):
    if answer.label != message.label:
        wrong.append(message)
        print(f"{message.label:<5} P(spam) {answer.probabilities['spam']:.3f}  {message.text[:60]}")
print(f"{len(wrong)} of {len(texts)} messages are wrong")

# %% [markdown]
# We will come back to three of them. First we try the methods on a message that the classifier gets
# right, because there we have an idea of what the answer should rest on.

# %%
CALL = "Please CALL 08712402902 immediately as there is an urgent message waiting for you."
print(f"P(spam) {classifier.predict([CALL])[0].probabilities['spam']:.3f}")

# %% [markdown]
# ## The answer after each token
#
# When does the classifier make up its mind? We can ask for its answer to every beginning of the message.
# At which token does it become spam? Guess first.

# %%
tokens = []
p_spam = []
for token, found in classifier.predict_by_token(CALL):
    tokens.append(token)
    p_spam.append(found["label"].probabilities["spam"])
picture(draw_label_by_token(tokens, p_spam, "spam"), "21-tokens")

# %% [markdown]
# One digit of the phone number is enough, and after a few more the answer hardly changes. These numbers
# are exact. But the words "immediately" and "urgent" change nothing. Is that because they do not matter,
# or because the classifier is already certain when they come? This method cannot say.

# %% [markdown]
# ## Leave a word out
#
# So we ask another question: what if a word were not there? We remove one, and look how far P(spam)
# falls.

# %%
p_whole = classifier.predict([CALL])[0].probabilities["spam"]
for word in ("08712402902", "immediately", "urgent", "message"):
    shorter = CALL.replace(f" {word}", "")
    p = classifier.predict([shorter])[0].probabilities["spam"]
    print(f"without {word:<12} P(spam) {p:.3f}, lower by {p_whole - p:.3f}")

# %% [markdown]
# Without the phone number it is not spam any more. The other words seem to matter little. But P(spam) is
# nearly 1 here, and near 1 it hardly moves, whatever we take away. So it is better to measure the
# *evidence*: the logit of spam minus the logit of ham. It has no upper limit. `leave_one_out` gives both
# for each word and each punctuation mark.

# %%
left_out = leave_one_out(classifier, CALL, "spam")
print(f"evidence for spam: {left_out.evidence:.2f}")
for part in left_out.parts:
    print(f"{part.text:<13} evidence {part.value:+.2f}   probability {part.probability:+.3f}")

# %% [markdown]
# Each number is exact: it is the difference between two answers. It is negative if the message looks
# even more like spam without the word.

# %% [markdown]
# ## Several reasons
#
# This message has three phone numbers. What happens if we leave out one of them? And all of them?

# %%
THREE = "88800 and 89034 are premium phone services call 08718711108"
variants = [
    THREE,
    "and 89034 are premium phone services call 08718711108",
    "88800 and are premium phone services call 08718711108",
    "88800 and 89034 are premium phone services call",
    "and are premium phone services call",
]
p_variants = [answer.probabilities["spam"] for answer in classifier.predict(variants)]
for p, variant in zip(p_variants, variants, strict=True):
    print(f"P(spam) {p:.3f}, evidence {np.log(p / (1 - p)):+.2f}  {variant}")

# %% [markdown]
# Any one of the numbers can go, and the message is still spam. Without all three there is far less
# evidence: less than if we subtract what each of them seemed to be worth alone. If a message has several
# reasons for its answer, leaving out one word at a time makes each of them look too small.

# %% [markdown]
# ## The gradient
#
# Leaving out words costs one answer per word. A gradient costs one backward pass for all of them. It
# says how the evidence changes if an embedding changes a little. Multiplied by the embedding, it says
# what the token would add if the network were linear. Then all values would add up to the difference
# between the evidence for the message and for a message of zeros. Do they?


# %%
def evidence_of(x):
    """Spam minus ham, from embeddings (1, T, C)."""
    lengths = torch.tensor([x.shape[1]])
    outputs = outputs_from(classifier.model, classifier.description.heads, 0, x, lengths)
    logits = outputs["label"][0]
    return logits[1] - logits[0]


classifier.model.eval()  # no dropout
ids = classifier.encode([CALL])[0][0]  # with the end token, which the head reads
n_tokens = len(ids) - 1
x = classifier.model.embed(torch.tensor([ids])).detach().requires_grad_()
evidence_of(x).backward()
embeddings = classifier.model.wte.weight[ids[:n_tokens]].detach()
by_token = (x.grad[0, :n_tokens] * embeddings).sum(dim=1)

zeros = x.detach().clone()
zeros[0, :n_tokens] -= embeddings  # only the positions are left
with torch.no_grad():
    difference = (evidence_of(x) - evidence_of(zeros)).item()
print(f"sum of gradient times input: {by_token.sum():.2f}")
print(f"difference in evidence:      {difference:.2f}")

# %% [markdown]
# They do not: even the sign is wrong. A gradient describes tiny changes, and a missing word is not a
# tiny change.

# %% [markdown]
# ## A sum that adds up
#
# *Integrated gradients* repair this. They go from a baseline to the message in small steps, and add up
# the gradients on the way. If you add up slope times step along a path, you get the total difference in
# height. So these values must add up, except for an error that gets smaller with more steps:

# %%
errors = {}
for steps in (1, 4, 16, 64):
    path = integrated_gradients(classifier, CALL, "spam", steps=steps)
    errors[steps] = abs(path.error)
    print(f"{steps:>3} steps: sum {path.total + path.error:6.3f}, should be {path.total:.3f}")

# %% [markdown]
# With enough steps the sum is correct. (Without `steps` the package doubles them until the error is below
# one percent.) But a correct sum does not make each value right. The values depend on the baseline, here
# a text in which every token is `<|endoftext|>`.

# %%
path = integrated_gradients(classifier, CALL, "spam")
slope = gradient_times_input(classifier, CALL, "spam")
print("              left out   integrated   gradient x input")
for one, two, three in zip(left_out.parts, path.parts, slope.parts, strict=True):
    print(f"{one.text:<14}{one.value:+8.2f}{two.value:+13.2f}{three.value:+19.2f}")

# %% [markdown]
# The first two methods agree that the phone number comes first. About "Please" and "urgent" they do not
# agree at all. They answer different questions, so always say which one you asked.

# %% [markdown]
# ## Looking is not deciding
#
# Chapter 3 drew what each head looks at. It is tempting to take this for an explanation. The classifier
# reads the state of the end token, so we take its attention weights, and their mean over all blocks and
# heads.

# %%
seen = attention_weights(classifier.model, ids)  # (blocks, heads, T, T)
print("shape:", seen.shape)
looks = seen[:, :, -1].mean(axis=(0, 1))  # (T,), from the end token to each token
by_word = {part.text: looks[slice(*part.tokens)].sum() for part in left_out.parts}
most_seen = sorted(left_out.parts, key=lambda part: -by_word[part.text])
print("             attention   left out")
for part in most_seen[:5]:
    print(f"{part.text:<13}{by_word[part.text]:>9.3f}{part.value:>+11.2f}")

# %% [markdown]
# The full stop gets more attention than nearly all words, but without it there is more evidence for
# spam, not less. A weight says how much of a token's value is taken, but not what the value is or what
# it is used for. And it is never negative, so it cannot say that something speaks *against* spam.

# %% [markdown]
# ## What each part adds
#
# Where in the network does the evidence come from? Each attention head and each MLP *adds* a vector to
# the residual stream (chapter 18). The classifier's head is linear, so we can give it each of these
# vectors by itself. The final norm is linear too, if we divide by the standard deviation of the whole
# state. By hand for the last MLP:

# %%
model = classifier.model
with torch.no_grad():
    x = model.embed(torch.tensor([ids]))
    for block in model.blocks[:-1]:
        x = block(x)
    last = model.blocks[-1]
    x = x + last.attn(last.ln_1(x))
    added = last.mlp(last.ln_2(x))[0, -1]  # what the MLP adds at the end token
    state = x[0, -1] + added  # what the final norm reads
    normed = (added - added.mean()) / state.std(correction=0) * model.ln_f.weight
    mlp_by_hand = (model.head.weight[1] - model.head.weight[0]) @ normed
print(f"evidence from the last MLP: {mlp_by_hand:+.3f}")

# %% [markdown]
# `contributions` does this for every part of the network:

# %%
parts = contributions(classifier, CALL, "spam", "ham")
by_part = parts.by_part()
largest = sorted(by_part, key=lambda name: abs(by_part[name]), reverse=True)
for name in largest[:6]:
    print(f"{name:<9}{by_part[name]:+.3f}")
print(f"{len(by_part)} parts, sum {sum(by_part.values()):.4f}, evidence {left_out.evidence:.4f}")

# %%
picture(draw_contributions(parts), "21-parts")

# %% [markdown]
# The parts add up to the evidence. More than half of it comes from the last MLP: we have trained only
# the last block. Do the other blocks do nothing? These are *direct* effects only. The last MLP computes
# its vector from what all earlier blocks have prepared, and gets all the credit (exercise 3).

# %% [markdown]
# ## The answer at each layer
#
# We can also stop earlier, and give the state after each block to the final norm and the head. This is
# called a *logit lens*. When does the message become spam?

# %%
layers = answer_by_layer(classifier, CALL)
for n, p in enumerate(layers.probabilities[:, 1]):
    name = "embeddings" if n == 0 else f"block {n - 1}"
    print(f"{name:<11} P(spam) {p:.3f}")

# %% [markdown]
# Only in the last block. (The first row is not an answer: before any block, the end token has seen only
# itself.) But a probe finds spam at earlier layers too (chapter 18). Both are right: the
# information is there early, but in a form that this head was not trained to read.

# %% [markdown]
# ## The next token at each layer
#
# GPT-2's own head is still there as well, since its weight is `wte`. So the lens can also show which
# next token each layer would predict. Look at the lowest row first. What does it predict, and why?

# %%
following = next_tokens(classifier.model, classifier.tokenizer, "Hello darling how are you today?")
picture(draw_next_tokens(following), "21-lens")

# %% [markdown]
# Without any block, the most probable token is the token itself: its embedding fits itself best, because
# the embedding and the head are the same matrix. The first block replaces it by guesses about the next
# token, and the later ones become more certain: see how often " you" follows " are".

# %% [markdown]
# ## A method must be able to fail
#
# Here is a test for any method. We take a second classifier that has *not* been trained, so its head is
# random. An explanation of its answers should look quite different. If it does not, it was never about
# spam. We compare the explanations of three short messages by their *rank correlation*: 1 means that the
# tokens are in the same order for both classifiers, and 0 means no relation. Which method will fail?


# %%
def by_attention(one, text):
    its_ids = one.encode([text])[0][0]
    return attention_weights(one.model, its_ids)[:, :, -1, :-1].mean(axis=(0, 1))


def by_leaving_out(one, text):
    return [part.value for part in leave_one_out(one, text, "spam", unit="token").parts]


def by_integrated_gradients(one, text):
    return [part.value for part in integrated_gradients(one, text, "spam", unit="token").parts]


untrained = Classifier.on_base(MODEL, LABELS)
spam = [message.text for message in split.test if message.label == "spam"]
short = [text for text in spam if len(text) < 100][:3]
correlations = {}
for method in (by_attention, by_leaving_out, by_integrated_gradients):
    values = []
    for text in short:
        values.append(spearmanr(method(classifier, text), method(untrained, text)).statistic)
    correlations[method.__name__] = np.array(values)
    print(f"{method.__name__:<24}", np.array(values).round(2))

# %% [markdown]
# Attention fails: it is nearly the same for a classifier that knows nothing. It could hardly have
# changed, since all blocks but the last are frozen. Leaving out tokens passes. Integrated gradients are
# in between: some of the order was there before anything was learned. Here only the head is random. If the
# last block and the final norm are made random too, they pass. (The test is from "Sanity Checks for
# Saliency Maps" by Adebayo and others.)

# %% [markdown]
# ## Three mistakes, explained
#
# Now back to the question of the beginning. For each of three mistakes we ask every method what speaks
# most for the answer that the classifier gave.


# %%
def strongest(explanation):
    ordered = sorted(explanation.parts, key=lambda part: part.value, reverse=True)
    return ", ".join(f"{part.text.strip()} {part.value:+.2f}" for part in ordered[:3])


# %% tags=["varies"]
mistakes = []
for start in ("Hello darling", "Tell your friends", "Do you realize"):
    mistakes += [message for message in split.test if message.text.startswith(start)]
for message in mistakes:
    text = message.text
    answer = classifier.predict([text])[0]
    given = answer.label
    removed = leave_one_out(classifier, text)
    most = max(abs(part.probability) for part in removed.parts)
    its_ids = classifier.encode([text])[0][0]
    order = np.argsort(by_attention(classifier, text))[::-1]
    attended = [classifier.tokenizer.decode([its_ids[n]]) for n in order[:3]]
    its_parts = contributions(classifier, text, given, message.label).by_part()
    first_part = max(its_parts, key=its_parts.get)
    print(text)
    print(f"    label {message.label}, answer {given}, P {answer.probabilities[given]:.3f}")
    print(f"    left out:   {strongest(removed)}; P changes by at most {most:.3f}")
    print(f"    integrated: {strongest(integrated_gradients(classifier, text))}")
    print(f"    attention:  {attended}")
    print(f"    parts:      {first_part} {its_parts[first_part]:+.2f}")
    print(f"    by layer:   {answer_by_layer(classifier, text).probabilities[:, 1].round(2)}")

# %% [markdown]
# An explanation like this is a guess about what would happen. So we change the messages and look:

# %%
pairs = [
    (mistakes[0].text, mistakes[0].text + " Text 80488"),
    (mistakes[1].text, "Tell your friends what you plan to do on Valentines day"),
    (mistakes[2].text, mistakes[2].text.replace("we'll", "they'll")),
]
changes = []
for before, after in pairs:
    two = [answer.probabilities["spam"] for answer in classifier.predict([before, after])]
    changes.append(two[1] - two[0])
    print(f"P(spam) {two[0]:.3f} -> {two[1]:.3f}  ...{after[-44:]}")

# %% [markdown]
# - **"Hello darling"**: no single word decides. Whichever one is left out, P(spam) changes by less than
#   one point. The message has no number, no price and no "call". With "Text" and a number
#   at its end it looks much more like spam.
# - **"Tell your friends"**: integrated gradients point at `URL`, which somebody put in place of an
#   address. Leaving out words points at "Tell" first. Without the address the message is ham.
# - **"Do you realize"**: leaving out words points at "we'll". But with "they'll" instead, little changes. So
#   the word itself says little, and part of its value comes from the gap that it left. Would you have called this
#   message spam? Methods explain the classifier, not the person who labelled the message.
# - **Parts and layers** say the same of all three: the last MLP, in the last block. They say where in the
#   network an answer is made, and not why.

# %% [markdown]
# ## What you know now
#
# - The answer after each token and the answer without a word are exact. They answer different questions.
# - If several words say the same, leaving out one of them may show nothing.
# - Gradient times input does not add up. Integrated gradients do, and they depend on a baseline.
# - Attention shows where a head looks, not what the answer rests on.
# - The contributions of heads and blocks add up to the logit. They are direct effects only.
# - An explanation is a guess about what would happen. Change the text and look.

# %% [markdown]
# ## Checks
#
# These cells check what the chapter said. They are folded in the notebook; an error here means that
# something is wrong.

# %% check
jumps = np.diff(p_spam)
assert tokens[jumps.argmax() + 1].strip().isdigit() or tokens[jumps.argmax() + 1] == "ALL"
assert max(p_spam[:2]) < 0.5 < min(p_spam[4:])
for n in (0, 3, len(tokens) - 1):
    ids_so_far = [*ids[: n + 1], ids[-1]]
    p = classifier.logits([ids_so_far]).softmax(dim=1)[0, 1].item()
    assert abs(p - p_spam[n]) < 1e-4
print("checked: the answer after each token is the answer to that beginning alone")

# %% check
parts_left_out = {part.text.strip(): part for part in left_out.parts}
tokens_of_number = parts_left_out["08712402902"].tokens
ids_without = ids[: tokens_of_number[0]] + ids[tokens_of_number[1] :]
two = classifier.logits([ids, ids_without])
fall = (two[0, 1] - two[0, 0]) - (two[1, 1] - two[1, 0])
assert abs(fall - parts_left_out["08712402902"].value) < 1e-4
assert max(left_out.parts, key=lambda part: part.value).text.strip() == "08712402902"
assert min(p_variants[:4]) > 0.5 > p_variants[4]
print("checked: leaving out a word is the difference of two answers; three numbers decide together")

# %% check
ours = [by_token[slice(*part.tokens)].sum().item() for part in slope.parts]
assert np.allclose(ours, [part.value for part in slope.parts], atol=1e-3)
assert abs(slope.total - difference) < 1e-3
assert by_token.sum() < 0 < difference
print("checked: the package's gradient times input equals ours; its sum has the wrong sign")

# %% check
assert errors[64] < errors[1] and errors[64] < 0.01 * abs(path.total)
assert abs(path.error) <= 0.01 * abs(path.total)
assert max(path.parts, key=lambda part: part.value).text.strip() == "08712402902"
print("checked: the values of integrated gradients add up, and the phone number comes first")

# %% check
assert abs(sum(by_part.values()) - left_out.evidence) < 1e-4
assert largest[0] == f"mlp {classifier.model.config.n_layer - 1}"
assert by_part[largest[0]] > left_out.evidence / 2
assert abs(by_part[largest[0]] - mlp_by_hand) < 1e-4
assert abs(layers.probabilities[-1, 1] - p_whole) < 1e-5
assert layers.probabilities[-1, 1] > 0.9 and layers.probabilities[1:-1, 1].max() < 0.6
assert following.predicted[0, :, 0].tolist() == following.tokens, "the token itself"
print("checked: contributions add up; the lens ends with the classifier's answer")

# %% check
assert np.allclose(seen.sum(axis=3), 1, atol=1e-5)
assert "." in [part.text for part in most_seen[:5]] and parts_left_out["."].value < 0
assert correlations["by_attention"].min() > 0.75
assert correlations["by_leaving_out"].max() < 0.5
assert correlations["by_integrated_gradients"].mean() < correlations["by_attention"].mean() - 0.2
frozen = attention_weights(untrained.model, ids)[:-1]
assert np.allclose(seen[:-1], frozen, atol=1e-5), "frozen blocks look at the same"
print("checked: attention hardly changes if the classifier knows nothing; the others do")

# %% check
labels = [message.label for message in mistakes]
assert labels == ["spam", "ham", "spam"]
assert all(message in wrong for message in mistakes)
for message in mistakes:
    other = "ham" if message.label == "spam" else "spam"
    its_parts = contributions(classifier, message.text, other, message.label).by_part()
    assert max(its_parts, key=its_parts.get) == largest[0], "the last MLP"
assert changes[0] > 0.1 and changes[1] < -0.2 and abs(changes[2]) < 0.05
assert (
    max(abs(part.probability) for part in leave_one_out(classifier, mistakes[0].text).parts) < 0.01
)
print("checked: three mistakes, and what happens to them if the text is changed")

# %% [markdown]
# ## Exercises
#
# 1. (easy) Leave out the single digits of the phone number in `CALL`. Does one of them matter as much as
#    the whole number?
#    <details><summary>Hint</summary>`leave_one_out` has a parameter `unit`.</details>
# 2. (medium) Integrated gradients need a baseline. Compare the two that the package has, on `CALL`. Which
#    words change their order?
#    <details><summary>Hint</summary>`baseline="zero"` replaces every embedding by zeros.</details>
# 3. (hard) Remove one head from the network, for each block in turn. By how much does the evidence fall,
#    and what was the contribution of that head?
#    <details><summary>Hint</summary>Set the head's columns of `attn.c_proj.weight` to zero in a copy of
#    the classifier (`copy.deepcopy`).</details>
#
# Solutions: [`solutions/21_explanations.py`](solutions/21_explanations.py).
