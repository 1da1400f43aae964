# %% [markdown]
# # 2. Tokens
#
# The network reads numbers, so text must become numbers first. A tokenizer cuts a text into tokens,
# and each token has a number. The rules for cutting were learned once and are stored with the
# model. Then messages of different lengths are put into one rectangular tensor.
#
# **At the end you will know** how byte-level BPE cuts a word, why it can encode any text, what a
# batch looks like, and what the padding in it changes. **Time:** a few seconds, offline.

# %%
from itertools import pairwise

import regex
import torch

from gpt2_from_scratch import (
    END_OF_TEXT,
    SPLIT_PATTERN,
    Tokenizer,
    by_length,
    bytes_to_characters,
    draw_batches,
    encode_texts,
    load_gpt2,
    load_messages,
    model_folder,
    pad_batch,
    pad_right,
)
from gpt2_from_scratch.course import picture, setting

MODEL, DATA = setting("mini")  # "124M": OpenAI's model. DATA: the SMS Spam Collection

# %% [markdown]
# ## Bytes and merges
#
# BPE (byte pair encoding) begins with the bytes of a text in UTF-8. There are only 256 different
# bytes, so every text can be encoded. In the model's files each byte is written as a printable
# character; the space, for example, is `Ġ`.

# %%
characters = bytes_to_characters()  # of all 256 bytes
for text in ("win", " win", "£5", "😀"):
    print(f"{text!r:<7} {list(text.encode())!s:<21} {' '.join(map(characters.get, text.encode()))}")

# %% [markdown]
# `vocab.bpe` lists *merges*: pairs of neighbouring pieces, in the order in which they were learned.
# The position of a pair in the list is its rank. To cut a word, begin with its bytes as the pieces.
# Find the pair of neighbours with the lowest rank and join it to one piece. Repeat this until no
# pair of neighbours is in the list. The pieces that are left are the tokens.

# %%
lines = (
    (model_folder(MODEL) / "vocab.bpe").read_text("utf-8").splitlines()[1:]
)  # without the version
ranks = {tuple(line.split(" ")): rank for rank, line in enumerate(lines)}


def merge_by_rank(word: str, steps: list[str]) -> list[str]:
    parts = [characters[byte] for byte in word.encode()]
    while pairs := [pair for pair in pairwise(parts) if pair in ranks]:
        first = min(pairs, key=ranks.__getitem__)
        n = [*pairwise(parts)].index(first)
        parts[n : n + 2] = ["".join(first)]
        steps.append(f"rank {ranks[first]:>5}: {' '.join(parts)}")
    return parts


merge_by_rank(" winner", steps := [f"{len(ranks)} merges, the first ones {lines[:4]}"])
print("\n".join(steps))

# %% [markdown]
# Each word is merged separately. A regular expression finds the words, and it keeps the space before
# a word as part of that word. So `winner` at the beginning of a text and ` winner` after a space are
# different tokens. A token's id is its position in the vocabulary: first come the bytes (the printable
# ones before the others), then one token per merge, then the special token `<|endoftext|>`. No message
# can contain this special token: if someone types its name, it is encoded as ordinary text.

# %%
tokenizer, messages = Tokenizer(model_folder(MODEL)), load_messages(DATA)
for text in (messages[1].text, "winner", " winner", END_OF_TEXT):
    tokens = [merge_by_rank(word, []) for word in regex.findall(SPLIT_PATTERN, text)]
    print(" | ".join(sum(tokens, [])), tokenizer.encode(text), sep="\n")

# %% check
vocabulary = [*characters.values(), *("".join(pair) for pair in ranks), END_OF_TEXT]
for text in [*(message.text for message in messages[:600]), "😀 Ω 日本", " \n\t", END_OF_TEXT]:
    found = tokenizer.encode(text)
    by_hand = [merge_by_rank(word, []) for word in regex.findall(SPLIT_PATTERN, text)]
    assert [vocabulary[n] for n in found] == sum(by_hand, []), text
    assert tokenizer.decode(found) == text and tokenizer.end_of_text_id not in found
assert tokenizer.encode("winner") != tokenizer.encode(" winner")
print("checked: merging by hand equals Tokenizer.encode, and decoding returns every text")

# %% [markdown]
# ## A batch
#
# The network processes several messages at once, as a tensor `ids` with one row for each of B texts
# and one column for each of T tokens. Shorter messages are filled up with padding on the right, and
# `lengths` holds the number of real tokens of each text.

# %%
model = load_gpt2(MODEL)
encoded, _ = encode_texts([m.text for m in messages], tokenizer, model.config.n_ctx)
few = sorted(encoded[:100], key=len)[:4]
ids, lengths = pad_batch(few, tokenizer.end_of_text_id)  # (B, T), (B,)
print(f"{ids}\nids {tuple(ids.shape)}, lengths {lengths.tolist()}")

# %% [markdown]
# A padding token costs as much computation as a real one. The lecture pads every message to the length
# of the longest training message. Padding each batch only to its own longest message needs less
# padding, and sorting the messages by length first (`by_length`) reduces it further. On the right of the
# picture, texts are packed one after another without padding, as in chapter 14.

# %%
counts = [len(text) for text in encoded]
picture(draw_batches(counts[:96], batch_size=8), "02-batches")

# %% check
ways = [range(len(counts))], torch.arange(len(counts)).split(8), by_length(encoded, 8)
cells = [sum(len(batch) * max(counts[n] for n in batch) for batch in way) for way in ways]
assert cells[0] > cells[1] > cells[2] >= sum(counts), "sorting saves padding"
same = torch.nn.utils.rnn.pad_sequence([*map(torch.tensor, few)], True, tokenizer.end_of_text_id)
assert torch.equal(ids, same), "torch's own function pads in the same way"
padding = [f"{1 - sum(counts) / n:.1%}" for n in cells]
print(
    f"checked; padding: one length for all {padding[0]}, per batch {padding[1]}, sorted {padding[2]}"
)

# %% [markdown]
# ## Why padding matters
#
# GPT-2 has no token for padding, so `<|endoftext|>` is used. To the network it is a token like any
# other. But attention only looks back (chapter 4): what comes after a token cannot change that
# token's logits, which are the scores of all possible next tokens. So we can replace the padding
# with any other token, and the logits of the real tokens stay the same.

# %%
real = torch.arange(ids.shape[1]) < lengths[:, None]  # (B, T)
with torch.no_grad():
    logits, on_others = model(ids), model(torch.where(real, ids, ids[-1, 0]))  # (B, T, V)
change = (on_others - logits).abs().amax(dim=2)  # (B, T)
at_real, at_padding = change[real].max(), change[0, -1]
print(
    f"logits change by {at_real:.0e} at real tokens, by {at_padding:.1f} at the last padding token"
)

# %% [markdown]
# If we read a message at its last real token, the answer depends on the message alone. The lecture
# reads it at the last *position*, which is usually padding (chapter 7). Padding on the left is worse:
# the real tokens attend to it, and they move to other positions, so all their logits change.
# `pad_right` moves such padding to the right.

# %%
on_the_left = torch.stack(
    [row.roll(len(row) - len(text)) for row, text in zip(ids, few, strict=True)]
)
shifted = (model(on_the_left)[0, -1] - logits[0, lengths[0] - 1]).abs().max()
print(f"{on_the_left[0].tolist()}\nthe logits of its last token change by {shifted:.1f}")

# %% check
assert all(map(torch.equal, pad_right(on_the_left, real.flip(1)), (ids, lengths)))
alone = model(torch.tensor(few[:1]))[0]
torch.testing.assert_close(logits[0, : len(alone)], alone, atol=1e-3, rtol=1e-4)
assert at_real < 1e-3 < 0.1 < min(at_padding, shifted)
print(
    "checked: padding on the right does not change the logits of a text; padding on the left does"
)

# %% [markdown]
# ## Exercises
#
# 1. Write all messages in capital letters. By what factor does the number of tokens grow, and why?
#    Guess first.
# 2. Keep only the first tenth of the merges (`write_bpe` writes a tokenizer's files into a folder).
#    Does decoding still return every message, and how much longer do the messages become?
# 3. Keep only the first half of a message, then only its second half. In which half do the tokens keep
#    their logits?
#
# Solutions: [`solutions/02_tokens.py`](solutions/02_tokens.py).
