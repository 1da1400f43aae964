# %% [markdown]
# # Solutions to chapter 16

# %%
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from gpt2_from_scratch import (
    LABELS,
    Classifier,
    FeatureStore,
    HeadConfig,
    Message,
    Split,
    TrainConfig,
    finetune,
    load_gpt2,
    load_messages,
    loss_and_scores,
    split_messages,
    to_labelled,
)
from gpt2_from_scratch.course import setting

MODEL, DATA = setting("mini")  # "124M": OpenAI's model. DATA: the SMS Spam Collection
C = load_gpt2(MODEL).config.n_embd
whole = split_messages(load_messages(DATA), balance=True)
small = Split(whole.train[:240], whole.val[:40], whole.test[:160])  # some, to save time
store = FeatureStore()


def train_head(head, split):
    classifier = Classifier.on_base(MODEL, heads=[head], store=store)
    config = TrainConfig(epochs=3, lr=1e-3)
    with TemporaryDirectory() as folder:
        finetune(classifier, split, config, Path(folder))
    return loss_and_scores(classifier, to_labelled(classifier, split.test))[1]["label"]


def counted(messages):
    return [Message(message.text, (float(len(message.text.split())),)) for message in messages]


# %% [markdown]
# ## 1. A center without a scale
#
# > Give the number head a `center`, but no `scale`. Is the center alone enough?
#
# It helps most. The outputs start at the mean, so R2 is no longer negative. But the head has to reach outputs
# of about ten words above or below the mean, and in so few steps it does not get as far as with a scale.

# %%
split = Split(counted(small.train), counted(small.val), counted(small.test))
words = torch.tensor([message.label[0] for message in split.train])
mean = words.mean().item()
deviation = words.std().item()
heads = {
    "neither": HeadConfig(task="regression", labels=("words",)),
    "center only": HeadConfig(task="regression", labels=("words",), center=(mean,)),
    "both": HeadConfig(task="regression", labels=("words",), center=(mean,), scale=(deviation,)),
}
r2 = {}
for name, head in heads.items():
    r2[name] = train_head(head, split).values[0].r2
    print(f"{name:<12} R2 {r2[name]:5.2f}")
assert r2["neither"] < 0 < r2["center only"] < r2["both"]

# %% [markdown]
# ## 2. Four forms
#
# > Train four heads to find spam: linear, two linear layers, tanh, and one output. Do their test accuracies
# > differ by more than their intervals?
#
# No. All intervals overlap, so these messages do not show that one form is better than another. The block
# below the head is trained too, and it can learn what a larger head would have learned.

# %%
forms = {
    "linear": HeadConfig(labels=tuple(LABELS)),
    "two linear": HeadConfig(labels=tuple(LABELS), hidden=(C,)),
    "tanh": HeadConfig(labels=tuple(LABELS), hidden=(C,), activation="tanh"),
    "one output": HeadConfig(labels=tuple(LABELS), one_output=True),
}
lows = []
highs = []
for name, head in forms.items():
    scores = train_head(head, small)
    low, high = scores.interval
    lows.append(low)
    highs.append(high)
    print(f"{name:<11} accuracy {scores.accuracy:.1%} ({low:.1%} to {high:.1%})")
assert max(lows) < min(highs), "all intervals overlap"

# %% [markdown]
# ## 3. After every block
#
# > A head may read any `layer`. From which layer can the number of words be read best? And spam?
#
# The number of words is read best after the first few blocks. Later blocks make it harder: the last ones
# prepare the prediction of the next token, which perhaps does not need it. (We have not shown the reason.) For
# spam, the layers after the first block differ little. Chapter 18 looks at this more closely.

# %%
n_layer = load_gpt2(MODEL).config.n_layer
readers = [
    HeadConfig(f"layer_{n}", "features", layer=n, final_norm=False, pooling="last_token")
    for n in range(n_layer + 1)
]
reader = Classifier.on_base(MODEL, heads=readers)
train_states = reader.predict([message.text for message in small.train])
test_states = reader.predict([message.text for message in small.test])
train_words = [message.label[0] for message in split.train]
test_words = [message.label[0] for message in split.test]
train_labels = [message.label for message in small.train]
test_labels = [message.label for message in small.test]
r2_at = []
for n in range(n_layer + 1):
    x = [prediction.answers[f"layer_{n}"].values for prediction in train_states]
    x_test = [prediction.answers[f"layer_{n}"].values for prediction in test_states]
    number = make_pipeline(StandardScaler(), Ridge(alpha=100)).fit(x, train_words)
    spam = make_pipeline(StandardScaler(), LogisticRegression(C=0.01)).fit(x, train_labels)
    r2_at.append(number.score(x_test, test_words))
    print(
        f"layer {n}: words R2 {r2_at[n]:.2f}, spam accuracy {spam.score(x_test, test_labels):.1%}"
    )
assert max(r2_at) > r2_at[-1] + 0.1, "some of it is lost on the way up"
