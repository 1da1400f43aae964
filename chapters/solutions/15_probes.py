# %% [markdown]
# # Solutions to chapter 15

# %%
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from gpt2_from_scratch import (
    Classifier,
    Trunk,
    load_messages,
    pooled_states,
    split_messages,
)

split = split_messages(load_messages("demo"), balance=True)
texts = split.train + split.test
labels = torch.tensor([message.label == "spam" for message in texts]).long()
base = Classifier.on_base("mini", ["ham", "spam"])
model, N = base.model, len(split.train)
encoded, _ = base.encode([message.text for message in texts])
trunk = Trunk(model, model.config.n_layer)
states = pooled_states(trunk, model.ln_f, encoded, ["last_token", "mean"], 0, 1)


def probe(x, count=N, l2=1.0):
    """Right test answers, %, of probes of x (P, texts, C), fitted to the first `count` texts."""
    found = []
    for states in x.double():
        logistic = LogisticRegression(C=2 / (l2 * count), max_iter=10_000)
        fitted = make_pipeline(StandardScaler(), logistic).fit(states[:count], labels[:count])
        found.append(100 * fitted.score(states[N:], labels[N:]))
    return found


# %% [markdown]
# ## 1. Without positions
#
# What `wpe` adds to a mean depends on the length of the text alone. So the two differ by how long
# the message is, which the mean of the tokens does not say.

# %%
with torch.no_grad():
    bags = torch.stack([model.wte.weight[ids].mean(dim=0) for ids in encoded])
    places = torch.stack([model.wpe.weight[: len(ids)].mean(dim=0) for ids in encoded])
without, only, both = probe(torch.stack([bags, places, states["mean", False][0]]))
print(f"tokens {without:.1f} %, positions alone {only:.1f} %, both {both:.1f} %")
torch.testing.assert_close(bags + places, states["mean", False][0], atol=1e-4, rtol=0)
assert min(without, both) > 60

# %% [markdown]
# ## 2. What a block writes
#
# The difference holds what this block found and nothing of what was there before. It is another
# question, and often nearly as good an answer: blocks repeat in other words what they read.

# %%
stream = states["last_token", False]
written = stream[1:] - stream[:-1]
for block, (wrote, after) in enumerate(zip(probe(written), probe(stream[1:]), strict=True)):
    print(f"block {block}: what it wrote {wrote:.1f} %, the stream behind it {after:.1f} %")
torch.testing.assert_close(stream[0] + written.sum(dim=0), stream[-1], atol=1e-3, rtol=1e-4)
assert max(probe(written)) > 60

# %% [markdown]
# ## 3. Fewer messages
#
# Training messages come in random order, so the first ones are a sample. With few of them every
# probe falls towards chance, and which falls last is within the intervals.

# %%
few = {}
for count in (30, 100, N):
    few[count] = [probe(states[pooling, True][-1:], count)[0] for pooling in ("last_token", "mean")]
    print(f"{count:>3} messages: last token {few[count][0]:.1f} %, mean {few[count][1]:.1f} %")
assert max(few[N]) > 60 and sum(few[N]) > sum(few[30])
