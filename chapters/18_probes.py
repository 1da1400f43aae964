# %% [markdown]
# # 18. Probes
#
# After half of its blocks, does a network already know whether a message is spam? After which block
# is this easiest to see? A probe answers such questions without training the network.
#
# **At the end you will know** what the residual stream is, how to probe every layer in one pass, what
# the network still knows at a padding position, and what a probe cannot show. **Time:** about half a
# minute, offline.

# %%
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from gpt2_from_scratch import (
    Classifier,
    Trunk,
    format_probes,
    load_messages,
    plot_probes,
    pooled_states,
    probe_layers,
    split_messages,
)
from gpt2_from_scratch.course import picture, setting

MODEL, DATA = setting("mini")  # "124M": OpenAI's model. DATA: the SMS Spam Collection
split = split_messages(load_messages(DATA), balance=True)
del split.train[240:], split.val[60:], split.test[180:]  # to save time
texts = split.train + split.val + split.test
labels = torch.tensor([message.label == "spam" for message in texts]).long()
base = Classifier.on_base(MODEL, ["ham", "spam"], pooling="last_token")
model, L, N = base.model, base.model.config.n_layer, len(split.train)
encoded, _ = base.encode([message.text for message in texts])
pad_id, longest = base.tokenizer.end_of_text_id, max(map(len, encoded[:N]))

# %% [markdown]
# ## One probe
#
# Every block *adds* its output to its input. So one vector per token runs from the embeddings to the
# end of the network, and every block changes it a little: the *residual stream*. A *probe* takes this
# vector after some layer and gives it to a linear classifier. Only the classifier is trained, not the
# network. Its loss has a single minimum, so there is no learning rate, no seed and no number of epochs
# to choose.


# %%
@torch.no_grad()
def stream(ids):
    x = model.embed(torch.tensor([ids]))
    return [x] + [x := block(x) for block in model.blocks]  # n_layer + 1 tensors (1, T, C)


def standardized(x):  # each input: mean 0, standard deviation 1 on the training set
    return torch.tensor(StandardScaler().fit(x[:N]).transform(x))


def fit(x, labels, l2):  # scikit-learn's C is the inverse of the penalty
    probe = LogisticRegression(C=2 / (l2 * N), tol=1e-8, max_iter=10_000)
    return probe.fit(x[:N], labels[:N])


half = torch.stack([stream(ids)[L // 2][0, -1] for ids in encoded])  # (N, C), the last token's
x = standardized(half.double())
probe = fit(x, labels, l2=1.0)
right = (torch.tensor(probe.predict(x)) == labels)[-len(split.test) :]
print(f"probe at layer {L // 2} of {L}: test accuracy {right.float().mean():.1%}")

# %% check
weights = torch.tensor(probe.coef_, requires_grad=True)  # (1, C)
logits = (x[:N] @ weights.T)[:, 0] + probe.intercept_[0]
loss = F.binary_cross_entropy_with_logits(logits, labels[:N].double())
(slope,) = torch.autograd.grad(loss + (weights**2).sum() / 4, weights)
assert slope.abs().max() < 1e-4 and right.float().mean() > 0.5
print("checked: the gradient is zero at the minimum, and the probe is better than chance")

# %% [markdown]
# ## Every layer, from one pass
#
# One pass over the texts visits all layers. At each layer we keep the stream as it is (*raw*) and
# after the final norm (*normed*, as the head sees it). We read it in four ways (*poolings*): at the
# last real token, at the last position of the padded text, at the first token, and as the mean over
# all tokens. The validation set selects the strength of the penalty on large weights.

# %%
LAST = ("last_token", "last_position")
probes = probe_layers(model, base.tokenizer, split, poolings=(*LAST, "first_token", "mean"))
print(format_probes(probes))
picture(plot_probes(probes), "18-probes")

# %% [markdown]
# **Mean:** at layer 0 no block has run. The state of a token is its embedding plus that of its position,
# so the mean is a bag of words, in which each word is a vector. It is already about as good as any
# deeper layer, and as the finetuned classifiers of chapter 7. So for an accuracy like this it is enough
# to know which words occur. An ordinary bag of words also does well on this collection (chapter 12).
#
# **Last token:** at layer 0 it is a single token. The first blocks bring in the rest of the text by
# attention, and accuracy rises. The last blocks prepare the prediction of the next token, which is
# another task, so there is no reason for it to rise further. **Last position:** at layer 0 it is the
# same padding for almost every text. One layer later, attention has brought the text there.
# **First token:** it never sees the rest of the text. Differences of a few points are within the
# intervals.

# %% check
states = pooled_states(Trunk(model, L), model.ln_f, encoded, LAST, pad_id, longest)
for n, ids in enumerate(encoded[:9]):
    for name, row in zip(LAST, (ids, ids + [pad_id] * (longest - len(ids))), strict=True):
        alone = torch.cat([layer[:, -1] for layer in stream(row)])  # (n_layer + 1, C)
        assert (states[name, False][:, n] - alone).abs().max() < 1e-3
score = {(p.pooling, p.final_norm, p.layer): p.accuracy for p in probes}
assert score["last_position", False, 0] < 0.6 < score["last_position", False, 1]
assert score["mean", False, 0] > max(score["last_token", False, 0], score["first_token", False, 0])
assert score["mean", False, 0] > max(score["mean", False, n] for n in range(1, L + 1)) - 0.03
print(
    f"checked: {len(probes)} probes, on states equal to those of single texts; layer 0 as described"
)

# %% [markdown]
# ## Why the last block
#
# So even at a padding position the last layer knows whether the text is spam. Yet in Raschka's book
# (chapter 8, table of additional experiments, rows 3 and 1), a 124M model reaches 72.00% on the test
# set if only the head is trained, and 95.00% with the last block. Both rows read the last *position*,
# which is padding in 1,044 of 1,045 training messages (chapter 7). Why does the head not find what
# is there?
#
# We train such a head here, on the output of the last layer, with the lecture's AdamW, batch size and
# number of epochs. We try its learning rate and a hundred times that, with three seeds, on the states as
# they are and on standardized states (which is what a probe gets).


# %%
def learn(x, rate, seed):
    torch.manual_seed(seed)
    head = torch.nn.Linear(x.shape[1], 2)
    optimizer = torch.optim.AdamW(head.parameters(), rate, weight_decay=0.1)
    for batch in [batch for _ in range(5) for batch in torch.randperm(N).split(8)]:
        optimizer.zero_grad()
        F.cross_entropy(head(x[batch]), labels[batch]).backward()
        optimizer.step()
    right = (head(x).argmax(dim=1) == labels)[-len(split.test) :].float().mean()
    return F.cross_entropy(head(x)[:N], labels[:N]).item(), right.item()


loss = []
for pooling in LAST:
    z = states[pooling, True][-1]  # (N, C): the last layer's, final-normed
    apart = (z[:N] - z[:N].mean(dim=0)).norm(dim=1).mean() / z[:N].norm(dim=1).mean()
    print(f"{pooling}: distance from the mean {apart:.2f} of a state's length, ", end="")
    print(f"accuracy of the probe {score[pooling, True, L]:.1%}")
    for kind, x in (("as is", z), ("standardized", standardized(z).float())):
        for rate in (5e-5, 5e-3):
            losses, right = zip(*[learn(x, rate, seed) for seed in (123, 7, 1)], strict=True)
            loss.append(sum(losses) / 3)
            print(f"  {kind:12} rate {rate:.0e}  training loss {loss[-1]:.3f}  accuracy", end=" ")
            print(*map("{:.1%}".format, right))

# %% [markdown]
# At the low rate no head comes close to its probe. With the states as they are, the loss stays near
# $\ln 2$, the loss of guessing. At the high rate, the head on the last token comes close. The head on
# the last position needs standardized states for that.
#
# So on the miniature, with these few messages, the padding position does know the answer. But its
# states differ little from one message to the next: look at their distance from the mean. A few small
# steps do not turn such small differences into large logits; standardizing makes them larger. A
# trainable last block may do the same in the book's experiment. We have not shown that.

# %% check
_, token, _, _, low, pad, scaled, _ = loss
assert token < pad < low and scaled < low
print("checked: the same steps get further at the last token, and on standardized states")

# %% [markdown]
# ## What a probe cannot show
#
# A probe shows that something *can* be read from a layer. It does not show that the network uses it.
# And with as many inputs as there are messages, a probe can fit what is not there at all. Here the
# labels are shuffled, and we look at the training set:

# %%
fitted, drawn = {}, labels[:N][torch.randperm(N, generator=torch.Generator().manual_seed(123))]
z = standardized(states["last_token", True][-1].double())
for l2 in (1.0, 0.001):
    fitted[l2] = fit(z, drawn, l2).score(z[:N], drawn)
    print(f"penalty {l2}: {fitted[l2]:.1%} of the shuffled labels predicted correctly")

# %% check
assert fitted[0.001] > fitted[1.0] > 0.5
print("checked: a probe memorizes noise, so only its accuracy on the test set counts")

# %% [markdown]
# ## Exercises
#
# 1. Probe the mean at layer 0 without positions: average `wte` alone. What do positions add?
# 2. A block writes `x_after - x_before` into the stream. Probe that difference instead of the stream.
# 3. Fit the last layer's probe to fewer and fewer training messages. Which pooling needs the fewest?
#
# Solutions: [`solutions/18_probes.py`](solutions/18_probes.py).
