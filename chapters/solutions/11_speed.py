# %% [markdown]
# # Solutions to chapter 11

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
messages = split_messages(load_messages("demo")).train[: 12 * B]
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
# A step's work is nearly in proportion to its positions, so the share of the pads is what can go.
# Sorted, nearly all of it goes; unsorted, every batch still has a longest message of its own. But a
# sorted epoch shows short messages first, and length may tell the label, so sorting suits
# evaluations better than training.

# %%
whole = max(lengths) * len(lengths)
pads = 1 - sum(lengths) / whole
gone = {}
for name, order in {"as they come": lengths, "sorted": sorted(lengths)}.items():
    rows = [order[first : first + B] for first in range(0, len(order), B)]
    gone[name] = 1 - sum(B * max(row) for row in rows) / whole
    print(f"{name:<13} {100 * gone[name]:.0f} % of the positions go, of {100 * pads:.0f} % pads")
assert gone["as they come"] < gone["sorted"] <= pads < gone["sorted"] + 0.05

# %% [markdown]
# ## 2. Two ways to a score
#
# By `q . b_k`, the same number for every position. Softmax divides each exponential by their sum, so
# a common factor `exp(q . b_k)` drops out.

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
print("they differ by ", *(f"{score:8.3f}" for score in apart[:6]))
assert (apart - q[-1] @ b_k).abs().max() < 1e-3
torch.testing.assert_close(by_keys.softmax(0), carried_back.softmax(0), atol=1e-4, rtol=0)

# %% [markdown]
# ## 3. The key bias
#
# Its gradient is zero: no answer depends on it. In the textbook loop the zero comes out as rounding,
# and AdamW divides each gradient by its usual size, so even rounding moves a weight. Ours has a true
# zero there and stays. As no answer depends on the key bias, the losses agree.

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
    print(
        f"{name:<9} query bias {moved[name][0]:.0e}, key {moved[name][1]:.0e}, value {moved[name][2]:.0e}"
    )
assert moved["ours"][1] == 0 < moved["textbook"][1] < moved["textbook"][0]
torch.testing.assert_close(losses["ours"], losses["textbook"], atol=1e-4, rtol=0)
