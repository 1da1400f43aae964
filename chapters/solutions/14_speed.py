# %% [markdown]
# # Solutions to chapter 14

# %%
import torch
import torch.nn.functional as F

from gpt2_from_scratch import (
    Classifier,
    load_messages,
    pad_batch,
    set_trainable,
    split_messages,
)

B = 8
messages = split_messages(load_messages("sms"), balance=True).train[: 12 * B]
labels = torch.tensor([message.label == "spam" for message in messages]).long()
plain, ours = (Classifier.on_base("mini", ["ham", "spam"]) for _ in range(2))
set_trainable(plain.model)
set_trainable(ours.model)
encoded, _ = plain.encode([message.text for message in messages])
lengths = [len(ids) for ids in encoded]
C, H = plain.model.config.n_embd, plain.model.config.n_head

# %% [markdown]
# ## 1. Padding to each batch
#
# > Sort the messages by length and pad each batch only to its own longest message. What proportion of
# > the positions does that save?
#
# The work of a step is nearly proportional to its number of positions, so the proportion of padding is
# what can be saved. With sorted messages nearly all of it is saved. Without sorting, each batch still
# has a longest message, and the others are padded to it. But a sorted epoch begins with all the short
# messages, and spam messages tend to be long, so sorting is better for evaluation than for training.

# %%
whole = max(lengths) * len(lengths)
pads = 1 - sum(lengths) / whole
gone = {}
for name, order in {"as they come": lengths, "sorted": sorted(lengths)}.items():
    rows = [order[first : first + B] for first in range(0, len(order), B)]
    gone[name] = 1 - sum(B * max(row) for row in rows) / whole
    print(f"{name:<12} {gone[name]:.0%} of the positions saved; {pads:.0%} are padding")
assert gone["as they come"] < gone["sorted"] <= pads < gone["sorted"] + 0.05

# %% [markdown]
# ## 2. Two ways to a score
#
# > Is it always cheaper to do without keys and values? Compute the multiply-adds of both ways for
# > texts of 1, 2, 10, 100 and 1000 tokens.
#
# They differ by `q . b_k`, which is the same number for every position. Softmax divides each exponential
# by their sum, so the common factor `exp(q . b_k)` cancels.

# %%
block, D = ours.model.blocks[-1], C // H
with torch.no_grad():
    a = block.ln_1(ours.texts(encoded[:1]).batch([0])[0][0])  # (T, C)
    q, keys, _ = (part[:, :D] for part in block.attn.c_attn(a).split(C, dim=1))  # the first head
    W_k, b_k = block.attn.c_attn.weight[C : C + D], block.attn.c_attn.bias[C : C + D]
    by_keys, carried_back = keys @ q[-1], a @ (W_k.T @ q[-1])  # (T,)
    apart = by_keys - carried_back
print("q . k_t        ", *(f"{score:8.3f}" for score in by_keys[:6]))
print("(W_k^T q) . a_t", *(f"{score:8.3f}" for score in carried_back[:6]))
print("difference     ", *(f"{score:8.3f}" for score in apart[:6]))
assert (apart - q[-1] @ b_k).abs().max() < 1e-3
torch.testing.assert_close(by_keys.softmax(0), carried_back.softmax(0), atol=1e-4, rtol=0)

# %% [markdown]
# ## 3. The key bias
#
# > Train both loops without weight decay. Part of one bias changes in only one of them. Which part,
# > and why?
#
# The true gradient of the key bias is zero, because no answer depends on it. In the textbook loop, the
# computed gradient is a tiny rounding error instead. AdamW divides each gradient by its usual size, so
# even a rounding error changes the weight. Our gradient is exactly zero, so our key bias does not
# change. The losses still agree, because no answer depends on it.

# %%
kept = ours.texts(encoded)
start = ours.model.blocks[-1].attn.c_attn.bias.detach().clone()
losses: dict[str, list[float]] = {"textbook": [], "ours": []}
moved = {}
for classifier, (name, found) in zip((plain, ours), losses.items(), strict=True):
    optimizer = torch.optim.AdamW(classifier.model.parameters(), lr=2e-4, weight_decay=0.0)
    for n in torch.arange(len(messages)).split(B):
        if name == "textbook":
            ids, ends = pad_batch([encoded[m] for m in n], plain.tokenizer.end_of_text_id)
            logits = plain.model(ids)[range(len(n)), ends - 1]
        else:
            logits = ours.batch_logits(kept, n)
        optimizer.zero_grad()
        loss = F.cross_entropy(logits, labels[n])
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    change = (classifier.model.blocks[-1].attn.c_attn.bias.detach() - start).abs()
    moved[name] = [part.max().item() for part in change.split(C)]
    query, key, value = moved[name]
    print(f"{name:<9} largest change of query bias {query:.0e}, key {key:.0e}, value {value:.0e}")
assert moved["ours"][1] == 0 < moved["textbook"][1] < moved["textbook"][0]
torch.testing.assert_close(losses["ours"], losses["textbook"], atol=1e-4, rtol=0)
