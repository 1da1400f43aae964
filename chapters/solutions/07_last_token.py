# %% [markdown]
# # Solutions to chapter 7

# %%
import torch

from gpt2_from_scratch import (
    Classifier,
    class_logits,
    pad_batch,
    pad_right,
)

# its head is random, which is enough here
base = Classifier.on_base("mini", ["ham", "spam"], pooling="last_token")
pad_id = base.tokenizer.end_of_text_id
(ids, other), _ = base.encode(["Claim your prize now", "Claim what you spent at the office"])
plain = class_logits(base.model, *pad_batch([ids], pad_id), "last_token").detach()

# %% [markdown]
# ## 1. Padding on the left
#
# Attention looks back, and now the padding comes first: every token sees it. And GPT-2 counts
# positions from the first column, so each token gets a position that is six too high. `pad_right`
# moves the real tokens to the front, and the answer is again the same as without padding.

# %%
left = torch.tensor([[pad_id] * 6 + ids])
wrong = base.model(left)[:, -1].detach()
moved, lengths = pad_right(left, left != pad_id)
fixed = class_logits(base.model, moved, lengths, "last_token").detach()
print(f"padding on the left changes the logits by {(wrong - plain).abs().max():.3f}, ", end="")
print(f"after pad_right they differ by {(fixed - plain).abs().max():.0e}")
assert (wrong - plain).abs().max() > 1e-3 and (fixed - plain).abs().max() < 1e-5

# %% [markdown]
# ## 2. Finding the end by the padding id
#
# A text may contain the id of `<|endoftext|>`, for instance because somebody has joined two
# documents. The first one is then taken as the end, and nothing after it is read, so it does not
# matter what comes there. This does not happen if the lengths are counted before padding. (Our
# tokenizer never makes that id from text.)

# %%
joined = [ids + [pad_id] + other, ids + [pad_id] + other[::-1]]
batch, lengths = pad_batch(joined, pad_id)
by_id = (batch == pad_id).int().argmax(dim=1)  # number of tokens before the first padding
cut = class_logits(base.model, batch, by_id, "last_token").detach()
counted = class_logits(base.model, batch, lengths, "last_token").detach()
print(f"{lengths.tolist()} tokens, according to the padding id: {by_id.tolist()}")
assert by_id.tolist() == [len(ids)] * 2 and lengths[0] == len(ids) + 1 + len(other)
assert (cut - plain).abs().max() < 1e-5, "the rest was not read"
assert (counted[0] - counted[1]).abs().max() > 1e-3, "read to the end, the two differ"

# %% [markdown]
# ## 3. The end token alone
#
# Yes. The answer is now read at the same token for both texts, but this token attends to the space
# before it, and the logits change. So both are needed: a fixed token to read, and the same tokens before
# it. The classifier that reads the end token removes the space first, and its logits are equal to the
# last bit.

# %%
encode, newline = base.tokenizer.encode, base.tokenizer.encode("\n")
texts = ["Claim your prize now", "Claim your prize now "]
appended = base.logits([encode(text) + newline for text in texts])
reader = Classifier.on_base("mini", ["ham", "spam"])  # by default it reads the end token
removed = reader.logits(reader.encode(texts)[0])
print(f"one space changes the logits by {(appended[0] - appended[1]).abs().max():.3f}; ", end="")
print(f"if it is removed, by {(removed[0] - removed[1]).abs().max():.0f}")
assert (appended[0] - appended[1]).abs().max() > 1e-3 and torch.equal(removed[0], removed[1])
