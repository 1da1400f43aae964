# %% [markdown]
# # Solutions to chapter 2

# %%
from tempfile import TemporaryDirectory

import torch

from gpt2_from_scratch import Tokenizer, load_gpt2, load_messages, model_folder, write_bpe
from gpt2_from_scratch.course import setting

MODEL, DATA = setting("mini")  # "124M": OpenAI's model. DATA: the SMS Spam Collection
tokenizer = Tokenizer(model_folder(MODEL))
texts = [message.text for message in load_messages(DATA)]
tokens = sum(len(tokenizer.encode(text)) for text in texts)

# %% [markdown]
# ## 1. Capitals
#
# > Write all messages in capital letters. By what factor does the number of tokens grow, and why?
# > Guess first.
#
# Merges are learned from what is frequent, and whole words in capital letters are rare in most texts.
# `PRIZE` consists of other bytes than `prize`, and few merges contain those bytes. So such words are
# cut into pieces of one or two letters.

# %%
capitals = sum(len(tokenizer.encode(text.upper())) for text in texts)
print(f"{tokens:,} tokens, in capitals {capitals:,}: {capitals / tokens:.2f} times as many")
for word in (" prize", " PRIZE"):
    print(repr(word), [tokenizer.decode([number]) for number in tokenizer.encode(word)])
assert capitals > 1.3 * tokens

# %% [markdown]
# ## 2. A tenth of the merges
#
# > Keep only the first tenth of the merges. Does decoding still return every message, and how much
# > longer do the messages become?
#
# Yes, decoding still returns every message; the bytes alone would be enough for that. Merges only make
# texts shorter. But the network would be useless with this tokenizer: it was trained on the tokens of
# the full list, and it expects text that is cut in that way.

# %%
lines = (model_folder(MODEL) / "vocab.bpe").read_text("utf-8").splitlines()
merges = [tuple(line.split(" ")) for line in lines[1:]]
tenth = merges[: len(merges) // 10]
with TemporaryDirectory() as folder:
    write_bpe(folder, tenth)
    small_tokenizer = Tokenizer(folder)
encoded = [small_tokenizer.encode(text) for text in texts]
longer = sum(len(ids) for ids in encoded)
n_bytes = sum(len(text.encode("utf-8")) for text in texts)
print(f"{len(merges):,} merges: {tokens:,} tokens")
print(f"{len(tenth):,} merges: {longer:,} tokens; no merges: {n_bytes:,}, one per byte")
assert [small_tokenizer.decode(ids) for ids in encoded] == texts
assert small_tokenizer.n_vocab == 256 + len(tenth) + 1
assert tokens < longer < n_bytes

# %% [markdown]
# ## 3. Which half keeps its numbers
#
# > Take the longest message. Give the network only its first half, then only its second half. In which
# > half do the network's numbers stay the same as in the whole message?
#
# In the first half, except for rounding. No position looks ahead, so none of these tokens ever used
# what was cut off. The second half has lost the text before it, and its tokens are now at other
# positions.

# %%
model = load_gpt2(MODEL)
ids = torch.tensor([tokenizer.encode(max(texts, key=len))])
half = ids.shape[1] // 2
with torch.no_grad():
    whole = model(ids)
    change_of_first = (model(ids[:, :half]) - whole[:, :half]).abs().max()
    change_of_second = (model(ids[:, half:]) - whole[:, half:]).abs().max()
print(f"first half: change of at most {change_of_first:.4f}")
print(f"second half: change of up to {change_of_second:.4f}")
assert change_of_first < 1e-3 < 0.1 < change_of_second
