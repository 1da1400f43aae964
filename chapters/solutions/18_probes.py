# %% [markdown]
# # Solutions to chapter 18

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

split = split_messages(load_messages("sms"), balance=True)
del split.train[300:]  # to save time
texts = split.train + split.test
labels = torch.tensor([message.label == "spam" for message in texts]).long()
base = Classifier.on_base("mini", ["ham", "spam"], pooling="last_token")
model, N = base.model, len(split.train)
encoded, _ = base.encode([message.text for message in texts])
trunk = Trunk(model, model.config.n_layer)
states = pooled_states(trunk, model.ln_f, encoded, ["last_token", "mean"], 0, 1)


def probe(x, count=N, l2=1.0):
    """Test accuracy, %, of probes of x (P, texts, C) fitted to the first `count` texts."""
    found = []
    for states in x.double():
        logistic = LogisticRegression(C=2 / (l2 * count), max_iter=10_000)
        fitted = make_pipeline(StandardScaler(), logistic).fit(states[:count], labels[:count])
        found.append(100 * fitted.score(states[N:], labels[N:]))
    return found


# %% [markdown]
# ## 1. Without positions
#
# What `wpe` adds to the mean depends only on the length of the text, which the mean of the tokens does
# not contain. Length alone is a surprisingly good sign of spam in this collection: spam messages tend
# to be long. But the tokens say nearly as much without it.

# %%
with torch.no_grad():
    bags = torch.stack([model.wte.weight[ids].mean(dim=0) for ids in encoded])
    places = torch.stack([model.wpe.weight[: len(ids)].mean(dim=0) for ids in encoded])
without, only, both = probe(torch.stack([bags, places, states["mean", False][0]]))
print(f"tokens {without:.1f}%, positions alone {only:.1f}%, both {both:.1f}%")
torch.testing.assert_close(bags + places, states["mean", False][0], atol=1e-4, rtol=0)
assert min(without, both) > 60

# %% [markdown]
# ## 2. What a block writes
#
# The difference contains what this block has computed, and nothing of what was in the stream before.
# That is often nearly as good: blocks seem to write again, in another form, what they have read.

# %%
stream = states["last_token", False]
written = stream[1:] - stream[:-1]
for block, (wrote, after) in enumerate(zip(probe(written), probe(stream[1:]), strict=True)):
    print(f"block {block}: what it wrote {wrote:.1f}%, the stream after it {after:.1f}%")
torch.testing.assert_close(stream[0] + written.sum(dim=0), stream[-1], atol=1e-3, rtol=1e-4)
assert max(probe(written)) > 60

# %% [markdown]
# ## 3. Fewer messages
#
# The training messages are in random order, so the first ones are a random sample. With fewer messages
# both probes get worse, but even 30 messages are enough for most of the accuracy. The differences
# between the poolings are within the intervals.

# %%
few = {}
for count in (30, 100, N):
    few[count] = [probe(states[pooling, True][-1:], count)[0] for pooling in ("last_token", "mean")]
    print(f"{count:>3} messages: last token {few[count][0]:.1f}%, mean {few[count][1]:.1f}%")
assert max(few[N]) > 60 and sum(few[N]) > sum(few[30])
