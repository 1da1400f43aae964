# %% [markdown]
# # Solutions to chapter 7

# %%
import torch

from gpt2_from_scratch import (
    Tokenizer,
    class_logits,
    encode_texts,
    load_gpt2,
    load_messages,
    model_folder,
    pad_batch,
    replace_head,
)

model = load_gpt2("mini")
tokenizer = Tokenizer(model_folder("mini"))
pad_id = tokenizer.end_of_text_id
torch.manual_seed(123)
replace_head(model, num_classes=2)  # its weights are random, which is enough here

# %% [markdown]
# ## 1. Read at the first token
#
# > Read 100 messages at their first token. How many different answers are there, and why?
#
# The first token has seen only itself. So all messages that begin with the same token get the same
# answer, whatever follows it. There are exactly as many answers as there are different first tokens.

# %%
messages = load_messages("sms")[:100]
encoded, _ = encode_texts([message.text for message in messages], tokenizer, 384)
batch, lengths = pad_batch(encoded, pad_id)
with torch.no_grad():
    answers = class_logits(model, batch, lengths, "first_token")
different = answers.round(decimals=3).unique(dim=0)
first_tokens = batch[:, 0].unique()
print(f"{len(messages)} messages, {len(first_tokens)} first tokens, {len(different)} answers")
assert len(different) == len(first_tokens) < len(messages)

# %% [markdown]
# ## 2. The end of a text
#
# > Other libraries take the first `<|endoftext|>` of a row as the end of its text. For which texts
# > does that fail?
#
# It fails for a text that contains this token itself, for instance because somebody has joined two
# documents. The first one is then taken as the whole text, and nothing after it is read. Here are two
# such texts with the same first document and different second ones. They get the same answer. This
# does not happen if the lengths are counted before padding. (Our tokenizer never makes this token from
# a text.)

# %%
first = tokenizer.encode("Claim your prize now")
second = tokenizer.encode("Claim what you spent at the office")
third = tokenizer.encode("See you at six")
joined = [first + [pad_id] + second, first + [pad_id] + third]
batch, lengths = pad_batch(joined, pad_id)
by_padding = (batch == pad_id).int().argmax(dim=1)  # the number of tokens before the first padding
with torch.no_grad():
    cut = class_logits(model, batch, by_padding, "last_token")
    whole = class_logits(model, batch, lengths, "last_token")
    alone = model(torch.tensor([first]))[0, -1]
print("lengths:", lengths.tolist(), "according to the padding:", by_padding.tolist())
print("read at the first <|endoftext|>:")
print(cut)
print("read at the end:")
print(whole)
assert by_padding.tolist() == [len(first), len(first)]
assert torch.allclose(cut[0], alone, atol=1e-4) and torch.allclose(cut[1], alone, atol=1e-4)
assert (whole[0] - whole[1]).abs().max() > 1e-3

# %% [markdown]
# ## 3. Two reasons
#
# > Padding on the left does harm for two reasons. Give each token its right position, but let it see
# > the padding. Then hide the padding as well. When is the answer the same as without padding?
#
# Only if both are repaired. With the right positions alone, the tokens still look back at the padding.
# With the padding hidden, but the wrong positions, GPT-2 adds the wrong rows of `wpe`. Libraries that
# pad on the left therefore pass both on to the network: a mask, and the number of each position.

# %%
PADS = 5
ids = torch.tensor([[pad_id] * PADS + first])
T = ids.shape[1]
shifted = (torch.arange(T) - PADS).clamp(min=0)  # the first real token has position 0
sees = torch.ones(T, T).tril().bool()
hides = sees.clone()
hides[:, :PADS] = False
hides = hides | torch.eye(T).bool()  # a padding token still sees itself


def logits_of(positions, seen):
    x = model.wte(ids) + model.wpe(positions)
    for block in model.blocks:
        x = x + block.attn.c_proj(block.attn.attend(block.attn.c_attn(block.ln_1(x)), seen))
        x = x + block.mlp(block.ln_2(x))
    return model.head(model.ln_f(x))[0, -1]


with torch.no_grad():
    neither = logits_of(torch.arange(T), sees)
    right_positions = logits_of(shifted, sees)
    hidden_padding = logits_of(torch.arange(T), hides)
    both = logits_of(shifted, hides)
print("without padding:   ", alone)
print("padding on the left:", neither)
print("right positions:   ", right_positions)
print("hidden padding:    ", hidden_padding)
print("both:              ", both)
for wrong in (neither, right_positions, hidden_padding):
    assert (wrong - alone).abs().max() > 1e-3
assert torch.allclose(both, alone, atol=1e-4)
