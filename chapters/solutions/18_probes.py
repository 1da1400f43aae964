# %% [markdown]
# # Solutions to chapter 18

# %%
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from gpt2_from_scratch import Tokenizer, load_gpt2, load_messages, model_folder, split_messages
from gpt2_from_scratch.course import setting

MODEL, DATA = setting("mini")  # "124M": OpenAI's model. DATA: the SMS Spam Collection
model = load_gpt2(MODEL)
tokenizer = Tokenizer(model_folder(MODEL))
L = model.config.n_layer
whole = split_messages(load_messages(DATA), balance=True)
train = whole.train[:240]  # some, to save time
test = whole.test[:200]
N = len(train)
texts = [message.text for message in train + test]
spam = [message.label == "spam" for message in train + test]


# %%
@torch.no_grad()
def stream(text):
    x = model.embed(torch.tensor([tokenizer.encode(text)]))
    layers = [x[0]]
    for block in model.blocks:
        x = block(x)
        layers.append(x[0])
    return torch.stack(layers)  # (layers, T, C)


def accuracy(x, numbers=range(N)):
    """Test accuracy of a probe fitted to the training messages with these numbers."""
    x = x.double().numpy()
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
    probe.fit(x[list(numbers)], [spam[n] for n in numbers])
    return probe.score(x[N:], spam[N:])


streams = [stream(text) for text in texts]
last = torch.stack([layers[:, -1] for layers in streams])  # (texts, layers, C)
means = torch.stack([layers.mean(dim=1) for layers in streams])

# %% [markdown]
# ## 1. What a block writes
#
# > A block writes `layers[n] - layers[n - 1]` into the stream. Probe this difference instead of the stream.
#
# The difference contains what this block has computed, and nothing of what was in the stream before. A probe
# of it is nearly as good as a probe of the stream. So every block seems to write something about spam, also
# the last ones.

# %%
written = last[:, 1:] - last[:, :-1]
found = []
for n in range(L):
    found.append(accuracy(written[:, n]))
    print(
        f"block {n}: what it wrote {found[n]:.1%}, the stream after it {accuracy(last[:, n + 1]):.1%}"
    )
assert torch.allclose(last[:, 0] + written.sum(dim=1), last[:, -1], atol=1e-2)
assert min(found) > 0.6

# %% [markdown]
# ## 2. Without positions
#
# > What do positions add to the mean at layer 0? Probe the mean of `wte` alone, the mean of `wpe` alone, and
# > both.
#
# What `wpe` adds to the mean depends only on the length of the message. Length alone is a good sign of spam in
# this collection, since spam messages tend to be long. The tokens alone are better, and length adds little to
# them: the last two differ by less than the intervals.

# %%
tokens = []
places = []
with torch.no_grad():
    for text in texts:
        ids = tokenizer.encode(text)
        tokens.append(model.wte.weight[ids].mean(dim=0))
        places.append(model.wpe.weight[: len(ids)].mean(dim=0))
tokens = torch.stack(tokens)
places = torch.stack(places)
only_places = accuracy(places)
only_tokens = accuracy(tokens)
print(
    f"positions {only_places:.1%}, tokens {only_tokens:.1%}, both {accuracy(tokens + places):.1%}"
)
assert torch.allclose(tokens + places, means[:, 0], atol=1e-4)
assert only_tokens > only_places > 0.6

# %% [markdown]
# ## 3. Fewer messages
#
# > Fit the probes of the mean at layer 0 and at the last layer to 30, 100 and 240 messages. Which of the two
# > needs fewer?
#
# Neither. With more messages both get better, and at each number of messages the two differ by a few points at
# most. Even 30 messages are enough for most of the accuracy.

# %%
generator = torch.Generator().manual_seed(123)
found = {}
for count in (30, 100, N):
    first = 0.0
    top = 0.0
    for _ in range(5):
        sample = torch.randperm(N, generator=generator)[:count].tolist()
        first += accuracy(means[:, 0], sample) / 5
        top += accuracy(means[:, -1], sample) / 5
    found[count] = (first, top)
    print(f"{count:>3} messages: layer 0 {first:.1%}, last layer {top:.1%}  (mean of 5 samples)")
assert found[N][0] > found[30][0] and found[N][1] > found[30][1] > 0.7
