# %% [markdown]
# # Solutions to chapter 3

# %%
import torch

from gpt2_from_scratch import Tokenizer, load_gpt2, load_messages, model_folder
from gpt2_from_scratch.course import setting

MODEL, DATA = setting("mini")  # "124M": OpenAI's model. DATA: the SMS Spam Collection
torch.set_grad_enabled(False)
model = load_gpt2(MODEL)
tokenizer = Tokenizer(model_folder(MODEL))


def ids_of(text):
    return torch.tensor([tokenizer.encode(text)])  # (1, T)


def attend(x, attn, scale=True, mask=True):
    """The weights (H, T, T) and the result (T, C) of all heads."""
    C = x.shape[1]
    D = C // attn.n_head
    queries, keys, values = attn.c_attn(x).split(C, dim=1)
    results = []
    all_weights = []
    for head in range(attn.n_head):
        columns = slice(head * D, (head + 1) * D)
        scores = queries[:, columns] @ keys[:, columns].T
        if scale:
            scores = scores / D**0.5
        if mask:
            is_later = torch.ones_like(scores).triu(diagonal=1).bool()
            scores = scores.masked_fill(is_later, -torch.inf)
        weights = scores.softmax(dim=1)
        results.append(weights @ values[:, columns])
        all_weights.append(weights)
    return torch.stack(all_weights), attn.c_proj(torch.cat(results, dim=1))


block = model.blocks[0]
x = block.ln_1(model.embed(ids_of("Do you have time")))[0]

# %% [markdown]
# ## 1. Without the square root
#
# > Leave out the division by the square root of D. What happens to the largest weight of each row?
#
# It becomes larger, often nearly 1: the scores are larger, so softmax decides almost completely for
# one token. Such a head passes on the value of one token only. The first row is always 1.

# %%
divided, _ = attend(x, block.attn)
not_divided, _ = attend(x, block.attn, scale=False)
print("largest weight of each row, head 0")
print("divided:    ", [f"{weight:.2f}" for weight in divided[0].amax(dim=1).tolist()])
print("not divided:", [f"{weight:.2f}" for weight in not_divided[0].amax(dim=1).tolist()])
assert (not_divided.amax(dim=2)[:, 1:] >= divided.amax(dim=2)[:, 1:]).all()

# %% [markdown]
# ## 2. Without the mask
#
# > Leave out the mask, and replace the last token of the sentence with another one. Which rows of the
# > result change, and which rows change with the mask?
#
# With the mask only the last row changes: no other token can see the last one. Without the mask all
# rows change. A network without a mask could look at the token that it is asked to predict.

# %%
changed = block.ln_1(model.embed(ids_of("Do you have money")))[0]
for mask in (True, False):
    _, before = attend(x, block.attn, mask=mask)
    _, after = attend(changed, block.attn, mask=mask)
    change = (after - before).abs().amax(dim=1)
    print(f"mask: {mask!s:<5} change of each row: {[f'{row:.2f}' for row in change.tolist()]}")
    assert change[-1] > 0.1
    assert (change[:-1] < 1e-5).all() if mask else (change[:-1] > 1e-3).all()

# %% [markdown]
# ## 3. A head that looks at the token before
#
# > The network has several blocks, each with its own attention. Which head of all blocks looks most at
# > the token directly before? Take the mean over twenty messages.
#
# In the miniature it is head 0 of block 0, the one in the picture. On average more than half of its
# attention goes to the token before. Heads like this one are found in many language models.

# %%
n_messages = 20
to_previous = torch.zeros(model.config.n_layer, model.config.n_head)
for message in load_messages(DATA)[:n_messages]:
    stream = model.embed(ids_of(message.text))
    for n, block in enumerate(model.blocks):
        weights, result = attend(block.ln_1(stream)[0], block.attn)
        below_diagonal = weights.diagonal(-1, 1, 2)  # (H, T - 1): token t looks at token t - 1
        to_previous[n] += below_diagonal.mean(dim=1) / n_messages
        assert torch.allclose(result, block.attn(block.ln_1(stream))[0], atol=1e-3)
        stream = block(stream)
for n, row in enumerate(to_previous.tolist()):
    print(f"block {n}:", "  ".join(f"{weight:.2f}" for weight in row))
best_block, best_head = divmod(int(to_previous.argmax()), model.config.n_head)
print(f"the most: head {best_head} of block {best_block}")
assert to_previous.max() > 0.3
assert MODEL != "mini" or (best_block, best_head) == (0, 0)
