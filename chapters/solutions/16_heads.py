# %% [markdown]
# # Solutions to chapter 16

# %%
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from gpt2_from_scratch import (
    Classifier,
    FeatureStore,
    HeadConfig,
    Split,
    TrainConfig,
    evaluate_classifier,
    finetune,
    load_messages,
    outputs_from,
    split_messages,
)

split = split_messages(load_messages("sms"), balance=True)
del split.train[320:]  # to save time

# %% [markdown]
# ## 1. Fewer messages
#
# No. A linear head trained on an eighth of the messages, for the same number of steps, loses about one
# point on average. In the chapter, accuracy differs by about as much between the forms of a head and
# between seeds. Spam of this kind is easy to learn. On questions of six types, 80 texts instead of all
# of them cost a quarter of the accuracy (the page *Where a text is read* of the documentation).

# %%
right, store = {}, FeatureStore()
for offset in (None, 0, 2, 4, 6):
    classifier = Classifier.on_base("mini", ["ham", "spam"], store=store)
    train = split.train if offset is None else split.train[offset::8]
    config = TrainConfig(epochs=3 if offset is None else 24, patience=24, lr=1e-3)
    with TemporaryDirectory() as run:
        part = Split(train, split.val, split.test)
        finetune(classifier, part, config, Path(run))
    right[offset] = evaluate_classifier(classifier, split.test).accuracy
    print(f"{len(train)} messages: test accuracy {right[offset]:.1%}")
fewer = [right[offset] for offset in (0, 2, 4, 6)]
assert 0 <= right[None] - np.mean(fewer) < 0.04 and min(fewer) > 0.9

# %% [markdown]
# ## 2. The question after the sentence
#
# It knows nothing of the question. The tokens of the sentence come first, so their states, and the two
# scores of each token, are the same for every question, however the head is trained. If the question
# comes first, it changes all of them.

# %%
reader = Classifier.on_base("mini", heads=[HeadConfig(task="span")])
SENTENCE = "Martin was in Prague"


def scores_of(text):
    ids, _ = reader.encode([text])
    x, lengths = reader.model.embed(torch.tensor(ids)), torch.tensor([len(ids[0])])
    with torch.no_grad():
        return outputs_from(reader.model, reader.description.heads, 0, x, lengths)["label"][0]


n = len(reader.encode([SENTENCE])[0][0])
after = [scores_of(f"{SENTENCE}\n{question}?")[:n] for question in ("Who", "Where")]
before = [scores_of(f"{question}?\n{SENTENCE}")[-n:] for question in ("Who", "Where")]
moved = [float((one - other).abs().max()) for one, other in (after, before)]
print(f"question after: scores differ by {moved[0]:.0e}; question before: by {moved[1]:.1f}")
assert moved[0] < 1e-4 and moved[1] > 0.01

# %% [markdown]
# ## 3. After every block
#
# The number of words is read best after two or three blocks, and so is spam. It can already be read
# from the embeddings, because they include the position of the last token, which says how long the
# text is. At the end more than half of that is lost. Perhaps the prediction of the next token does
# not need it; we have not shown that. For spam the differences between layers are small. The final
# norm changes very little here, because the columns are standardized anyway.

# %%
readers = {
    f"{kind}_{n}": HeadConfig(
        f"{kind}_{n}", "features", layer=n, final_norm=kind == "normed", pooling="last_token"
    )
    for n in range(7)
    for kind in ("raw", "normed")
}
probe, parts = Classifier.on_base("mini", heads=[*readers.values()]), (split.train, split.test)
states = [probe.predict([message.text for message in part]) for part in parts]
wanted, truth = (
    np.array([(len(m.text.split()), 1.0 if m.label == "spam" else -1.0) for m in part])
    for part in parts
)
r2, spam = {}, {}
for name in readers:
    X, Z = (np.array([each.answers[name].values for each in part]) for part in states)
    X, Z = (X - X.mean(0)) / X.std(0), (Z - X.mean(0)) / X.std(0)
    ridge = X.T @ X + 100 * np.eye(X.shape[1])
    said = Z @ np.linalg.solve(ridge, X.T @ (wanted - wanted.mean(0))) + wanted.mean(0)
    r2[name] = 1 - ((said - truth)[:, 0] ** 2).mean() / truth[:, 0].var()
    spam[name] = float((said[:, 1] * truth[:, 1] > 0).mean())
    print(f"{name:<9} number of words: R2 {r2[name]:.2f}   ham or spam: accuracy {spam[name]:.1%}")
for kind in ("raw", "normed"):
    assert r2[f"{kind}_2"] > r2[f"{kind}_6"] + 0.3, "the words are forgotten on the way up"
    assert spam[f"{kind}_6"] > 0.8
assert all(abs(r2[f"raw_{n}"] - r2[f"normed_{n}"]) < 0.1 for n in range(7))
