# %% [markdown]
# # 18. Probes
#
# **You are here:** pretraining → heads → words and spans → **probes** → several heads → LoRA → explanations
#
# A network of six blocks reads a message. After which block does it "know" that the message is spam?
# We can look: take the states after each block, and try to read the answer from them with the simplest
# classifier there is. The network itself is not trained. The result is a surprise.
#
# **At the end you will know** what the residual stream is, how to probe every layer, why the very first
# layer is enough to find this spam, where the next token becomes clear, and what a probe cannot show.
#
# **Reading time:** 30 minutes. **Running time:** about twenty seconds, offline.

# %%
import math
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from gpt2_from_scratch import (
    LABELS,
    Classifier,
    Split,
    Tokenizer,
    TrainConfig,
    Trunk,
    evaluate_classifier,
    finetune,
    format_next_tokens,
    format_probes,
    load_gpt2,
    load_messages,
    model_folder,
    plot_next_tokens,
    plot_probes,
    pooled_states,
    probe_layers,
    probe_next_tokens,
    split_messages,
    wilson_interval,
)
from gpt2_from_scratch.course import picture, setting

MODEL, DATA = setting("mini")  # "124M": OpenAI's model. DATA: the SMS Spam Collection

# %% [markdown]
# ## The residual stream
#
# A block does not replace its input. It *adds* something to it (chapter 4). So one vector per token runs
# from the embeddings to the end of the network, and every block changes it a little. This vector is
# called the *residual stream*. We call the embeddings layer 0, and the output of block n layer n.
#
# How much of the vector does each block change? Here is the last token of a spam message:

# %%
model = load_gpt2(MODEL)
tokenizer = Tokenizer(model_folder(MODEL))


@torch.no_grad()
def stream(text):
    x = model.embed(torch.tensor([tokenizer.encode(text)]))
    layers = [x[0]]
    for block in model.blocks:
        x = block(x)
        layers.append(x[0])
    return torch.stack(layers)  # (layers, tokens, n_embd)


layers = stream("You have won a prize! Call 09061701461 now")
for n in range(1, len(layers)):
    before = layers[n - 1, -1]
    after = layers[n, -1]
    cosine = torch.cosine_similarity(before, after, dim=0)
    print(f"layer {n}: length {after.norm():5.1f}, cosine with the layer before {cosine:.2f}")

# %% [markdown]
# A cosine of 1 would mean that the direction has not changed at all, and 0 that the new direction has
# nothing in common with the old one. The first block changes nearly everything. Each later block changes
# only a little.

# %% [markdown]
# ## One probe
#
# A *probe* takes the states at one place, and trains a linear classifier on them: logistic regression,
# which is a linear head with a softmax. Its loss has a single minimum, so there is no learning rate, no
# seed and no number of epochs to choose. If the probe can tell spam from ham, the information is there,
# and in a simple form.
#
# We take the state of the last token after half of the blocks:

# %%
whole = split_messages(load_messages(DATA), balance=True)
split = Split(whole.train[:240], whole.val[:60], whole.test[:200])  # some, to save time
HALF = model.config.n_layer // 2


def half_way(messages):
    return torch.stack([stream(message.text)[HALF, -1] for message in messages]).double().numpy()


def is_spam(messages):
    return [message.label == "spam" for message in messages]


# C is scikit-learn's name for the inverse of a penalty on large weights
probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01))
probe.fit(half_way(split.train), is_spam(split.train))
right = probe.score(half_way(split.test), is_spam(split.test))
print(f"probe at layer {HALF} of {model.config.n_layer}: test accuracy {right:.1%}")

# %% [markdown]
# ## Every layer
#
# Now the same for all layers. `probe_layers` needs one pass over the messages, since each pass visits
# every layer anyway. It reads each layer in two ways: the state of the *last token*, and the *mean* of the
# states of all tokens. It does this with the states as they are (*raw*) and after the final norm
# (*normed*). The validation set selects the penalty.
#
# At layer 0 no block has run. So guess: how good can a probe be there?

# %%
probes = probe_layers(
    model, tokenizer, split, poolings=("last_token", "mean"), penalties=(10.0, 1.0, 0.1)
)
print(format_probes(probes))

# %%
picture(plot_probes(probes), "18-probes")

# %% [markdown]
# At the **last token**, layer 0 is only the embedding of one token, often a full stop. The first blocks
# bring in the rest of the text by attention, and the accuracy rises. After the middle it falls a little. The
# last blocks probably prepare the prediction of the next token, which is another task.
#
# We have fitted a probe at the last token of layer 3 before, and its accuracy is not exactly the one in the
# table. The states and the messages are the same, but the penalty is not: we chose it ourselves, and in the
# table the validation set did. One message more or less is half a percent.
#
# The **mean** is the surprise. The best number of the whole table is in the first row: layer 0, where no
# block has run. The next best, the mean at layer 3, is right for three of the 200 messages fewer, which is
# too few to call either of them better. But no deeper layer and no last token has a higher accuracy. Do the
# six blocks of the network add nothing?

# %% [markdown]
# ## Why layer 0 is enough
#
# What is the mean at layer 0? Each state is the embedding of a token plus the embedding of its position.
# The mean does not know in which order the tokens come. We write a message backwards, token by token, and
# compare the means:

# %%
ids = tokenizer.encode("You have won a prize! Call 09061701461 now")
for name, order in (("forwards", ids), ("backwards", ids[::-1])):
    with torch.no_grad():
        x = model.embed(torch.tensor([order]))
        print(f"{name:<10} layer 0:", x[0].mean(dim=0)[:3], end="   ")
        for block in model.blocks:
            x = block(x)
        print("last layer:", x[0].mean(dim=0)[:3])

# %% [markdown]
# At layer 0 the two are equal. At the last layer they differ, since the blocks take the order into
# account. So the mean at layer 0 is a *bag of words*: it says which tokens a message has, and how long
# it is, but nothing about their order. The only difference from the bag of words of chapter 12 is that a
# word is a vector here instead of a column.
#
# Since everything is linear, each token adds its own part to the answer of the probe. We can compute this
# part for every token that occurs often enough, and look at the ends of the list:


# %%
@torch.no_grad()
def bags(messages):
    means = []
    for message in messages:
        x = model.embed(torch.tensor([tokenizer.encode(message.text)]))
        means.append(x[0].mean(dim=0))
    return torch.stack(means).double().numpy()


probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, tol=1e-8))
probe.fit(bags(split.train), is_spam(split.train))
scaler, logistic = probe[0], probe[1]
direction = torch.tensor(logistic.coef_[0] / scaler.scale_).float()  # n_embd numbers
with torch.no_grad():
    scores = model.wte.weight @ direction  # one score per token of the vocabulary

count = torch.zeros(len(scores))
for message in split.train:
    for token in set(tokenizer.encode(message.text)):
        count[token] += 1
common = torch.nonzero(count >= 15).flatten()
ordered = common[scores[common].argsort()].tolist()
names = {token: tokenizer.decode([token]) for token in ordered}
print("ham: ", [names[token] for token in ordered[:12]])
print("spam:", [names[token] for token in ordered[-12:]])

# %% [markdown]
# Digits! Spam is full of phone numbers and prices, and the tokenizer splits a long number into its digits
# (chapter 17 has an example). Digits alone already say a lot. For the picture we leave out all tokens
# that are not made of letters:

# %%
letters = [token for token in ordered if names[token].strip().isalpha()]
shown = letters[:12] + letters[-12:]
figure = Figure(figsize=(8, 3.4), layout="constrained")
axes = figure.subplots()
colours = ["#0072B2"] * 12 + ["#D55E00"] * 12
axes.bar(range(24), (scores[shown] - scores[common].mean()).numpy(), color=colours)
axes.set_xticks(range(24), [repr(names[token]) for token in shown], rotation=70)
axes.axhline(0, color="#404040", linewidth=1)
axes.set_ylabel("score, compared with\nthe mean token")
axes.set_title("Tokens that speak for ham (blue) and for spam (vermilion): the probe at layer 0")
picture(figure, "18-tokens")

# %% [markdown]
# This is the explanation. In this collection single tokens give spam away, and the embeddings know the
# tokens before the first block runs. Then a bag of words that uses no network at all should do about as
# well. We try two: one whose columns are words, as in chapter 12, and one whose columns are GPT-2's
# tokens. And we finetune the last block, as in chapter 10, on the same 240 messages:

# %%
texts = [message.text for message in split.train]
test_texts = [message.text for message in split.test]
words = make_pipeline(CountVectorizer(), LogisticRegression(max_iter=1000))
words.fit(texts, is_spam(split.train))
tokens = make_pipeline(
    CountVectorizer(analyzer=tokenizer.encode), LogisticRegression(max_iter=1000)
)
tokens.fit(texts, is_spam(split.train))

finetuned = Classifier.on_base(MODEL, LABELS)
LR = 1e-3 * 256 / model.config.n_embd  # 1e-3 for the miniature; wider networks need a lower rate
config = TrainConfig(epochs=5, lr=LR)
with TemporaryDirectory() as folder:
    finetune(finetuned, split, config, Path(folder))

# %%
mean_at_0 = [p.accuracy for p in probes if p.pooling == "mean" and p.layer == 0][0]
deeper = [p.accuracy for p in probes if p.pooling == "mean" and p.layer > 0]
last_token = [p.accuracy for p in probes if p.pooling == "last_token"]
results = {
    "probe: mean at layer 0": mean_at_0,
    "probe: mean at the best deeper layer": max(deeper),
    "probe: last token at the best layer": max(last_token),
    "bag of words, no network": words.score(test_texts, is_spam(split.test)),
    "bag of tokens, no network": tokens.score(test_texts, is_spam(split.test)),
    "finetuned: last block": evaluate_classifier(finetuned, split.test).accuracy,
}
for name, accuracy in results.items():
    low, high = wilson_interval(round(accuracy * len(split.test)), len(split.test))
    print(f"{name:<38}{accuracy:.1%}   {low:.1%} to {high:.1%}")

# %% [markdown]
# No deeper layer, no probe at the last token and no training of the last block gives a significantly
# better result than the mean at layer 0: all intervals overlap. The words alone do worst here, because a
# phone number that nobody has seen is a word that nobody has seen, while its digits are known.
#
# So on this question, with this many messages, the six blocks show no advantage over the embeddings.
# That says as much about the question as about the network. Where the order of the words matters ("good,
# not bad" and "bad, not good"), a bag must fail.

# %% [markdown]
# ## The next token at every layer
#
# The blocks were trained to predict the next token (chapter 15), not to find spam. So after which block is
# the next token clear? We take the state of the last token at each layer, and give it to the final norm and
# to GPT-2's own head, as if the network ended there. This is called the *logit lens*. What will it say at
# layer 0?

# %%
for text in ("How are", "Thank you very", "I will call you when I get"):
    guesses = []
    with torch.no_grad():
        for x in stream(text)[:, -1]:
            logits = model.wte.weight @ model.ln_f(x)
            guesses.append(tokenizer.decode([int(logits.argmax())]))
    print(f"{text}: {guesses}")

# %% [markdown]
# At layer 0 the head repeats the token that it has just read. The head is the matrix of the embeddings, so
# the embedding of a token fits this token best. The easy continuations are there after one or two blocks,
# and the harder one after half of the network.
#
# For all tokens of many messages we count bits per byte, as in chapter 15: the lower, the better. But the
# logit lens asks much of a state in the middle: it must already look like a state at the end. The *tuned
# lens* (Belrose and others) first changes the state by a matrix and a bias, and each layer has its own. They
# start at zero, so the tuned lens starts as the logit lens. Only they are trained, to predict the next
# token. `probe_next_tokens` does this for all layers in one pass:

# %%
small = Split(split.train[:96], split.val[:12], split.test[:40])  # some, to save time
next_tokens = probe_next_tokens(
    model, tokenizer, small, forms=("tied", "tuned lens"), learning_rates=(LR,), epochs=1
)
print(format_next_tokens(next_tokens))

# %%
picture(plot_next_tokens(next_tokens), "18-next-token")

# %% [markdown]
# From layer 1 on, every block makes the prediction of the next token better. That is not what we saw for
# spam, where the mean at layer 0 was as good as any probe.
#
# The tuned lens is better than the logit lens at each layer, even at the last one, where the state needs no
# change. So part of what it has learned is not about the layer: it has learned what messages look like,
# since GPT-2 was trained on other texts. Only what it gains beyond that shows that the state knew more than
# the logit lens could read.

# %% [markdown]
# ## What a probe cannot show
#
# A probe shows that something *can* be read from a layer. It does not show that the network uses it.
#
# And a probe can find what is not there. The states have 256 numbers, and there are only 240 messages.
# We give the messages random labels and fit two probes, one with a strong penalty and one with a weak
# one:

# %%
shuffled = torch.randperm(len(split.train), generator=torch.Generator().manual_seed(123))
truth = is_spam(split.train)
random_labels = [truth[n] for n in shuffled]
x = bags(split.train)
print("messages, numbers per message:", x.shape)
learned = {}
for C in (0.001, 10.0):  # a large C is a weak penalty
    noise = make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=5000))
    learned[C] = noise.fit(x, random_labels).score(x, random_labels)
    print(f"C = {C}: {learned[C]:.1%} of the random labels are predicted correctly")

# %% [markdown]
# With a weak penalty the probe has memorized labels that mean nothing. So only the accuracy on messages
# that the probe has not seen counts, as for any other classifier.

# %% [markdown]
# ## What you know now
#
# - The residual stream is one vector per token. Each block adds to it.
# - A probe is a linear classifier on the states of one layer. The network is not trained.
# - The mean of the embeddings is a bag of words: it does not depend on the order of the tokens.
# - On SMS spam no deeper layer and no finetuned network was more accurate here, probably because single
#   tokens, above all digits, give this spam away.
# - The logit lens reads the next token at any layer with the network's own head. The prediction gets better
#   with every block. A tuned lens reads more, but it also learns the kind of text.
# - A probe can memorize noise. Only its test accuracy counts.

# %% [markdown]
# ## Checks
#
# These cells check what the chapter said. They are folded in the notebook; an error here means that
# something is wrong.

# %% check
few = [tokenizer.encode(message.text) for message in split.test[:9]]
trunk = Trunk(model, model.config.n_layer)
states = pooled_states(trunk, model.ln_f, few, ["last_token", "mean"], 0, 1)
for n in range(9):
    alone = stream(split.test[n].text)
    assert torch.allclose(states["last_token", False][:, n], alone[:, -1], atol=1e-3)
    assert torch.allclose(states["mean", False][:, n], alone.mean(dim=1), atol=1e-3)
print("checked: one pass over all messages gives the same states as each message alone")

# %% check
x = torch.tensor(scaler.transform(bags(split.train)))
y = torch.tensor(truth).double()
weights = torch.tensor(logistic.coef_[0], requires_grad=True)
logits = x.double() @ weights + logistic.intercept_[0]
loss = (
    0.01 * F.binary_cross_entropy_with_logits(logits, y, reduction="sum") + (weights**2).sum() / 2
)
loss.backward()
assert weights.grad.abs().max() < 1e-3
print("checked: the gradient of the probe's loss is zero, so it is at its minimum")

# %% check
with torch.no_grad():
    forwards = model.embed(torch.tensor([ids]))[0].mean(dim=0)
    backwards = model.embed(torch.tensor([ids[::-1]]))[0].mean(dim=0)
    words = model.wte.weight[ids].mean(dim=0)
    places = model.wpe.weight[: len(ids)].mean(dim=0)
assert torch.allclose(forwards, backwards, atol=1e-6)
assert torch.allclose(forwards, words + places, atol=1e-6)
print("checked: the mean at layer 0 is the mean of token embeddings plus that of positions")

# %% check
first = [p for p in probes if p.pooling == "last_token" and p.layer == 0][0]
assert mean_at_0 > first.accuracy, "one token is less than all"
assert mean_at_0 > max(deeper) - 0.01 and mean_at_0 > max(last_token) - 0.01
ends = [wilson_interval(round(a * len(split.test)), len(split.test)) for a in results.values()]
assert max(low for low, _ in ends) < min(high for _, high in ends), "all intervals overlap"
digits = [token for token in ordered if names[token].strip().isdigit()]
assert all(scores[token] > scores[common].mean() for token in digits)
assert learned[10.0] > 0.9 > learned[0.001] > 0.5
print(f"checked: {len(probes)} probes; the mean at layer 0 is as good as the best other one")

# %% check
nats, n_bytes = 0.0, 0
for message in small.test:
    tokens_of = tokenizer.encode(message.text)
    with torch.no_grad():
        logits = model(torch.tensor([tokens_of]))[0, :-1]
    nats += F.cross_entropy(logits, torch.tensor(tokens_of[1:]), reduction="sum").item()
    n_bytes += sum(len(tokenizer.token_bytes(token)) for token in tokens_of[1:])
own = [p.bits_per_byte for p in next_tokens if p.form == "tied"]
tuned = [p.bits_per_byte for p in next_tokens if p.form == "tuned lens"]
assert math.isclose(own[-1], nats / math.log(2) / n_bytes, rel_tol=1e-4)
assert own == sorted(own, reverse=True) and tuned == sorted(tuned, reverse=True)
assert all(one < other for one, other in zip(tuned, own, strict=True))
print(
    "checked: the logit lens at the last layer is GPT-2 itself, and all lenses get better by layer"
)

# %% [markdown]
# ## Exercises
#
# 1. (easy) A block writes `layers[n] - layers[n - 1]` into the stream. Probe this difference instead of
#    the stream.
#    <details><summary>Hint</summary>Use `stream(text)` at the last token, as in `half_way`.</details>
# 2. (medium) What do positions add to the mean at layer 0? Probe the mean of `wte` alone, the mean of
#    `wpe` alone, and both.
#    <details><summary>Hint</summary>The mean of `wpe` depends only on the length of the
#    message.</details>
# 3. (hard) Fit the probes of the mean at layer 0 and at the last layer to 30, 100 and 240 messages. Which
#    of the two needs fewer?
#    <details><summary>Hint</summary>One sample of 30 messages says little: try several
#    samples.</details>
#
# Solutions: [`solutions/18_probes.py`](solutions/18_probes.py).
