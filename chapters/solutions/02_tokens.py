# %% [markdown]
# # Solutions to chapter 2

# %%
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from gpt2_from_scratch import (
    Tokenizer,
    load_gpt2,
    load_messages,
    model_folder,
    write_bpe,
)

folder = model_folder("mini")
tokenizer = Tokenizer(folder)
texts = [message.text for message in load_messages("sms")]
tokens = sum(len(tokenizer.encode(text)) for text in texts)

# %% [markdown]
# ## 1. Capitals
#
# Merges are learned from what is frequent, and whole words in capital letters are rare in most texts.
# `PRIZE` consists of other bytes than `prize`, and few merges contain those bytes. So such words are
# cut into pieces of one or two letters. Spam uses many capitals, and they make it longer in tokens.

# %%
capitals = sum(len(tokenizer.encode(text.upper())) for text in texts)
print(f"{tokens:,} tokens, in capitals {capitals:,}: {capitals / tokens:.2f} times as many")
for word in (" prize", " PRIZE"):
    print(f"{word!r} {[tokenizer.decode([n]) for n in tokenizer.encode(word)]}")
assert capitals > 1.3 * tokens

# %% [markdown]
# ## 2. A tenth of the merges
#
# Yes, decoding still returns every message; the bytes alone would be enough for that. Merges only make
# texts shorter. But the network would be useless with this tokenizer, because it was trained on the
# tokens of the full list and expects text that is cut in that way.

# %%
lines = (folder / "vocab.bpe").read_text("utf-8").splitlines()[1:]
tenth = len(lines) // 10
with TemporaryDirectory() as small:
    write_bpe(Path(small), [tuple(line.split(" ")) for line in lines[:tenth]])
    fewer = Tokenizer(Path(small))
longer = sum(len(fewer.encode(text)) for text in texts)
print(f"{len(lines)} merges: {tokens:,} tokens; {tenth} merges: {longer:,} tokens")
assert all(fewer.decode(fewer.encode(text)) == text for text in texts)
assert fewer.n_vocab == 256 + tenth + 1 and tokens < longer < sum(len(t.encode()) for t in texts)

# %% [markdown]
# ## 3. Which half to keep
#
# The first half keeps its logits: no token looks ahead, so none of them ever used what was cut off.
# The second half does not: its tokens have lost the text before them, and they are at other positions.

# %%
model = load_gpt2("mini")
ids = torch.tensor([tokenizer.encode(max(texts, key=len))])
half = ids.shape[1] // 2
with torch.no_grad():
    whole = model(ids)
    first = (model(ids[:, :half]) - whole[:, :half]).abs().max()
    second = (model(ids[:, half:]) - whole[:, half:]).abs().max()
print(f"logits change by {first:.0e} in the first half, by {second:.1f} in the second")
assert first < 1e-3 < 0.1 < second
