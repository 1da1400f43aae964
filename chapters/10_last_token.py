# %% [markdown]
# # 10. The last token
#
# GPT-2 gives an answer at every position, and one of them must be read. The lecture says it reads
# the last token, and reads `logits[:, -1, :]`. In a padded batch these are different places.
#
# **At the end you will know** what stands at the last position, what it costs to read it, and how
# to read a text so that its answer is its own. **Time:** about twenty seconds, offline.

# %%
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from gpt2_from_scratch import (
    Classifier,
    FeatureStore,
    TrainConfig,
    class_logits,
    draw_label_by_token,
    evaluate_classifier,
    finetune,
    load_messages,
    pad_batch,
    read_positions,
    split_messages,
)
from gpt2_from_scratch.course import picture, setting, show

MODEL, DATA = setting("mini")  # "124M": OpenAI's model, and the SMS Spam Collection

# %% [markdown]
# ## Two places
#
# Texts of a batch are padded on the right, with `<|endoftext|>`, until they are as long as the
# longest. So at the last position stands a pad, except for the longest.

# %%
LABELS = ["ham", "spam"]
split = split_messages(load_messages(DATA), balance=True)
base = Classifier.on_base(MODEL, LABELS)
pad_id = base.tokenizer.end_of_text_id
encoded, _ = base.encode([message.text for message in split.train])
longest = max(map(len, encoded))
padded = sum(len(ids) < longest for ids in encoded)
print(f"padded to {longest} tokens, {padded} of {len(encoded)} messages end in a pad")

# %% [markdown]
# In the lecture it is 1,044 of 1,045. Our `class_logits` is told how many real tokens each text
# has, and counts:

# %%
show(read_positions)

# %% check
ids, lengths = pad_batch(encoded[:4], pad_id)
every = base.model(ids)  # (B, T, K): an answer at every position
last = [every[n, len(encoded[n]) - 1] for n in range(4)]
for pooling, expected in (("last_position", every[:, -1, :]), ("last_token", torch.stack(last))):
    found = class_logits(base.model, ids, lengths, pooling)
    assert (found - expected).abs().max() < 1e-4
assert padded > 0.9 * len(encoded)
print("checked: `last_position` is logits[:, -1, :], `last_token` is each text's own end")

# %% [markdown]
# ## What it costs
#
# A pad does see the whole text: attention looks back, and the text is all before it. But it sees
# other pads too, and it starts from the embedding of `<|endoftext|>`, in pretraining the sign that
# something new begins, at a position far behind the text. Training must first mend that. The same
# split, rate and epochs, two seeds, everything padded to the longest training text as the lecture
# does it, or nothing padded:

# %%
made, right = {}, {}
with TemporaryDirectory() as folder:
    store = FeatureStore(Path(folder) / "features")
    for pooling in ("last_position", "last_token"):
        for seed in (1, 2):
            made[pooling, seed] = it = Classifier.on_base(MODEL, LABELS, pooling=pooling, seed=seed)
            if pooling == "last_position":
                it.description = replace(it.description, max_tokens=longest, pad_to=longest)
            config = TrainConfig(epochs=5, seed=seed, lr=5e-4 if MODEL == "mini" else 2e-4)
            it.store = store
            finetune(it, split, config, Path(folder))
            right[pooling, seed] = evaluate_classifier(it, split.test)
            print(f"{pooling:<13} seed {seed}: {100 * right[pooling, seed].accuracy:.1f} % right")

# %% [markdown]
# These are few messages and two seeds (chapter 9). The book's own comparison, with OpenAI's
# weights, gives 95.00 % for the last position and 98.33 % for the last token.

# %% check
assert all(scores.accuracy > 0.55 for scores in right.values()), "both ways something is learned"
print("checked: the same test messages for all four, and all are better than chance")

# %% [markdown]
# ## An answer of its own
#
# What a pad says depends on how many pads stand before it. The chance that one message is spam,
# padded further and further, in the last row as far as in training:

# %%
TEXT = "Claim your prize now, reply with your bank details"
ids = base.encode([TEXT])[0][0]
chances = {pooling: [] for pooling in ("last_position", "last_token")}
print("pads   last position   last token")
for pads in (0, 1, 5, 20, 50, longest - len(ids)):
    for pooling, row in chances.items():
        model, batch = made[pooling, 1].model, pad_batch([ids], pad_id, len(ids) + pads)
        with torch.no_grad():
            row.append(class_logits(model, *batch, pooling).softmax(dim=1)[0, 1].item())
    print(f"{pads:>4}   {chances['last_position'][-1]:13.4f}   {chances['last_token'][-1]:10.4f}")

# %% [markdown]
# A batch padded to its own longest text does the same: who stands beside a message decides about
# it. Alone, and beside a long one:

# %%
batches = {"alone": [ids], "beside a long one": [ids, max(encoded, key=len)]}
beside = {}
for name, texts in batches.items():
    for pooling in chances:
        with torch.no_grad():
            logits = class_logits(made[pooling, 1].model, *pad_batch(texts, pad_id), pooling)
        beside[name, pooling] = logits.softmax(dim=1)[0, 1].item()
        print(f"{name:<18} {pooling:<13} P(spam) {beside[name, pooling]:.4f}")

# %% [markdown]
# And the answer at every position of the classifier that reads the last token, with pads behind the
# message: read where the text ends, or somewhere behind, as the padding has it.

# %%
with torch.no_grad():
    row, _ = pad_batch([ids], pad_id, len(ids) + 15)
    after = made["last_token", 1].model(row).softmax(dim=2)[0, :, 1]
tokens = [base.tokenizer.decode([token]) for token in ids] + ["(pad)"] * 15
picture(draw_label_by_token(tokens, after.tolist(), "spam", pads=15), "10-pads")

# %% check
spread = {pooling: max(row) - min(row) for pooling, row in chances.items()}
assert spread["last_token"] < 1e-5 and spread["last_position"] > 1e-3
assert abs(beside["alone", "last_token"] - beside["beside a long one", "last_token"]) < 1e-5
assert abs(after[len(ids) - 1] - chances["last_token"][0]) < 1e-5
print("checked: read at its last token a message has one answer, whatever stands behind or beside")

# %% [markdown]
# ## Exercises
#
# 1. Pad a text on the left: the last position is its last token. Why is the answer still another?
#    What does `pad_right` do?
# 2. Other libraries take the first `<|endoftext|>` for the end. Which ids break that?
# 3. Predict what `first_token` answers for two messages that begin with the same token.
#
# Solutions: [`solutions/10_last_token.py`](solutions/10_last_token.py).
