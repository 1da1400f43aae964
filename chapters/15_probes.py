# %% [markdown]
# # 15. Probes
#
# What would a head alone have to work with? Probes ask each layer of the frozen network, in seconds.
#
# **At the end you will know** what the residual stream is, how to probe every layer in one pass,
# what a pad still knows, and what a probe cannot tell. **Time:** about half a minute, offline.

# %%
import torch
import torch.nn.functional as F

from gpt2_from_scratch import Classifier, load_messages, split_messages
from gpt2_from_scratch.config import POOLINGS
from gpt2_from_scratch.course import picture, setting
from gpt2_from_scratch.logistic_regression import fit_logistic, standardize, with_ones
from gpt2_from_scratch.plots import plot_probes
from gpt2_from_scratch.probe_report import format_probes
from gpt2_from_scratch.probes import pooled_states, probe_layers
from gpt2_from_scratch.trunk import Trunk

MODEL, DATA = setting("mini")  # "124M": OpenAI's model, and the SMS Spam Collection
split = split_messages(load_messages(DATA), balance=True)
texts = split.train + split.val + split.test
labels = torch.tensor([message.label == "spam" for message in texts]).long()
base = Classifier.on_base(MODEL, ["ham", "spam"])
model, L, N = base.model, base.model.config.n_layer, len(split.train)
encoded, _ = base.encode([message.text for message in texts])
pad_id, longest = base.tokenizer.end_of_text_id, max(map(len, encoded[:N]))

# %% [markdown]
# ## One probe
#
# Every block *adds* to what came in: one vector a token runs from the embeddings to the end, the
# *residual stream*. A *probe* takes it out half way and gives it to a linear classifier; nothing in
# the network trains. Its loss has one minimum: no learning rate, no seed, no number of epochs.


# %%
@torch.no_grad()
def stream(ids):
    x = model.embed(torch.tensor([ids]))
    return [x] + [x := block(x) for block in model.blocks]  # n_layer + 1 times (1, T, C)


half = torch.stack([stream(ids)[L // 2][0, -1] for ids in encoded])  # (N, C), the last token's
x = standardize(half[None], N)  # each input: mean 0 and spread 1 over the training texts
weights = fit_logistic(x[:, :N], labels[:N], 2, l2=1.0).requires_grad_()  # (1, C + 1, 2)
right = ((with_ones(x) @ weights)[0].argmax(dim=1) == labels)[-len(split.test) :]
print(f"layer {L // 2} of {L}: {100 * right.float().mean():.1f} % of the test messages right")

# %% check
loss = F.cross_entropy((with_ones(x[:, :N]) @ weights)[0], labels[:N])
(slope,) = torch.autograd.grad(loss + (weights[:, :-1] ** 2).sum() / 2, weights)
assert slope.abs().max() < 1e-4 and right.float().mean() > 0.5
print("checked: the slope is zero there, and the probe knows more than chance")

# %% [markdown]
# ## Every layer, from one pass
#
# One pass over the texts goes by all layers. At each we keep the stream as it is (*raw*) and through
# the final norm (*final-normed*, as the head sees it), read in four ways. Pads need no second pass:
# no token sees what comes behind. The penalty on large weights is chosen on the validation part.

# %%
probes = probe_layers(model, base.tokenizer, split, poolings=POOLINGS)
print(format_probes(probes))
picture(plot_probes(probes), "15-probes")

# %% [markdown]
# Most neighbours cannot be told apart by so few messages. But the last position knows nothing at
# layer 0, where all pads are alike, and much one block later: attention has carried the text there.
# The mean does well from the start. The final norm changes little: a probe standardizes anyway.

# %% check
states = pooled_states(Trunk(model, L), model.ln_f, encoded, POOLINGS[:2], pad_id, longest)
for n, ids in enumerate(encoded[:9]):
    for name, row in (
        ("last_token", ids),
        ("last_position", ids + [pad_id] * (longest - len(ids))),
    ):
        alone = torch.cat([layer[:, -1] for layer in stream(row)])  # (n_layer + 1, C)
        assert (states[name, False][:, n] - alone).abs().max() < 1e-3
score = {(p.pooling, p.final_norm, p.layer): p.accuracy for p in probes}
assert score["last_position", False, 0] == probes[0].majority < score["last_position", False, 1]
print(f"checked: {len(probes)} probes; their states are those of each text alone")

# %% [markdown]
# ## Why the last block
#
# So the last layer knows, even at a pad. Why then does the book's head alone, read there, reach so
# much less than with the last block? Look how far apart the states of messages are, and what a new
# head makes of them by the lecture's AdamW, batches and epochs, at its rate and a hundred times it.

# %%
losses, chance = {}, {}
for pooling in POOLINGS[:2]:
    z = states[pooling, True][-1]  # (N, C): the last layer's, final-normed
    apart = (z[:N] - z[:N].mean(dim=0)).norm(dim=1).mean() / z[:N].norm(dim=1).mean()
    print(f"{pooling:<13} states are {apart:.2f} of their length apart")
    for rate in (5e-5, 5e-3):
        torch.manual_seed(123)
        head = torch.nn.Linear(z.shape[1], 2)
        optimizer = torch.optim.AdamW(head.parameters(), rate, weight_decay=0.1)
        for _ in range(5):
            for batch in torch.randperm(N).split(8):
                optimizer.zero_grad()
                F.cross_entropy(head(z[batch]), labels[batch]).backward()
                optimizer.step()
        logits = head(z)
        loss = losses[pooling, rate] = F.cross_entropy(logits[:N], labels[:N]).item()
        new = (logits.argmax(dim=1) == labels)[-len(split.test) :].float().mean()
        print(f"    head, rate {rate:.0e}: training loss {loss:.3f}, test {100 * new:.1f} %")
    print(f"    probe: test {100 * score[pooling, True, L]:.1f} %")

# %% [markdown]
# At the pads all messages look much alike: what tells them apart is there, but small beside what
# they share. The probe scales it up; a few small steps of a head do not get that far. A block that
# trains can write it larger. So more than missing knowledge it is reading that unfreezing helps.

# %% check
assert losses["last_token", 5e-3] < losses["last_position", 5e-3] < losses["last_position", 5e-5]
print("checked: the same steps get further at the last token than at a pad")

# %% [markdown]
# ## What a probe does not tell
#
# That something *can* be read off a layer does not mean that the network reads it there. And with so
# many inputs a probe finds what is not there at all: labels drawn at random, and a weak penalty.

# %%
drawn = labels[:N][torch.randperm(N, generator=torch.Generator().manual_seed(123))]
z = standardize(states["last_token", True][-1:], N)
for l2 in (1.0, 0.001):
    logits = (with_ones(z) @ fit_logistic(z[:, :N], drawn, 2, l2))[0].argmax(dim=1)
    chance[l2] = (logits[:N] == drawn).float().mean().item()
    print(f"l2 {l2}: {100 * chance[l2]:.1f} % of the random labels right")

# %% check
assert chance[0.001] > chance[1.0] > 0.5
print("checked: noise is learned by heart, so only messages never seen count")

# %% [markdown]
# ## Exercises
#
# 1. Probe the mean at layer 0 without positions: average `wte` alone. What do positions add?
# 2. A block writes `x_after - x_before`. Probe that difference in place of the stream.
# 3. Fit the last layer's probe to fewer and fewer training messages. Which pooling needs fewest?
#
# Solutions: [`solutions/15_probes.py`](solutions/15_probes.py).
