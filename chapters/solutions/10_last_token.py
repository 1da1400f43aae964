# %% [markdown]
# # Solutions to chapter 10

# %%
import torch

from gpt2_from_scratch import (
    Classifier,
    class_logits,
    pad_batch,
    pad_right,
)

base = Classifier.on_base(
    "mini", ["ham", "spam"]
)  # its head is random: it still tells same from other
pad_id = base.tokenizer.end_of_text_id
(ids, other), _ = base.encode(["Claim your prize now", "Claim what you spent at the office"])
plain = class_logits(base.model, *pad_batch([ids], pad_id), "last_token").detach()

# %% [markdown]
# ## 1. Pads on the left
#
# Attention looks back, and now the pads stand there: every token sees them. And GPT-2 counts
# positions from the first column, so each word stands six places too far. `pad_right` moves the
# real tokens to the front, and the answer is the text's own again.

# %%
left = torch.tensor([[pad_id] * 6 + ids])
wrong = base.model(left)[:, -1].detach()
moved, lengths = pad_right(left, left != pad_id)
mended = class_logits(base.model, moved, lengths, "last_token").detach()
print(f"left pads move the logits by {(wrong - plain).abs().max():.3f}, ", end="")
print(f"behind pad_right they differ by {(mended - plain).abs().max():.0e}")
assert (wrong - plain).abs().max() > 1e-3 and (mended - plain).abs().max() < 1e-5

# %% [markdown]
# ## 2. The end by the pad's id
#
# A text may hold `<|endoftext|>`: two documents joined, or ids that somebody else made. The first
# one is then taken for the end, and what comes behind it is not read: whatever follows, the answer
# stays. Lengths that are counted do not care. (Our tokenizer never makes that id from text.)

# %%
joined = [ids + [pad_id] + other, ids + [pad_id] + other[::-1]]
batch, lengths = pad_batch(joined, pad_id)
by_id = (batch == pad_id).int().argmax(dim=1)  # how many tokens stand before the first pad
cut = class_logits(base.model, batch, by_id, "last_token").detach()
counted = class_logits(base.model, batch, lengths, "last_token").detach()
print(f"{lengths.tolist()} tokens, found by the pad's id: {by_id.tolist()}")
assert by_id.tolist() == [len(ids)] * 2 and lengths[0] == len(ids) + 1 + len(other)
assert (cut - plain).abs().max() < 1e-5, "the rest was not read"
assert (counted[0] - counted[1]).abs().max() > 1e-3, "read to the end, the two differ"

# %% [markdown]
# ## 3. The first token
#
# The same, to the last bits: it sees nothing behind itself. All messages that begin with one token
# get one answer, whatever they go on to say.

# %%
batch, lengths = pad_batch([ids, other], pad_id)
first = class_logits(base.model, batch, lengths, "first_token").detach()
last = class_logits(base.model, batch, lengths, "last_token").detach()
print(f"first token: {first.tolist()}")
assert ids[0] == other[0] and ids != other
assert (first[0] - first[1]).abs().max() < 1e-5 and (last[0] - last[1]).abs().max() > 1e-3
