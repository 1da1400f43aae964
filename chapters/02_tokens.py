# %% [markdown]
# # 2. Tokens
#
# The network reads numbers. Text becomes numbers by a list of merges that was learned once and is
# kept with the model; then messages of different lengths are laid side by side in one rectangle.
#
# **At the end you will know** how byte-level BPE cuts a word, why no text is unknown to it, what a
# batch looks like, and what the pads in it change. **Time:** a few seconds, offline.

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

MODEL, DATA = setting("mini")  # "124M": OpenAI's model, and the SMS Spam Collection

# %% [markdown]
# ## Bytes and merges
#
# BPE (byte pair encoding) begins with the bytes of a text in UTF-8, of which there are 256: no text
# is unknown. In the model's files a printable character stands for each byte: `Ġ` for the space.

# %%
characters = bytes_to_characters()  # of all 256
for text in ("win", " win", "£5", "😀"):
    print(f"{text!r:<7} {list(text.encode())!s:<21} {' '.join(map(characters.get, text.encode()))}")

# %% [markdown]
# `vocab.bpe` lists pairs of neighbours in the order in which they were learned. A pair's place in
# the list is its rank. To cut a word, join the neighbours of the lowest rank, look again, and stop
# when no two neighbours are in the list. What is left are the tokens.

# %%
lines = (model_folder(MODEL) / "vocab.bpe").read_text("utf-8").splitlines()[1:]  # [0]: a version
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
# Words are merged one by one. A regular expression cuts them and leaves the space at the front of a
# word: the space belongs to the token, and `winner` at the beginning is another one than behind a
# space. An id is a place in the vocabulary: first the bytes, printable ones before others, then a
# token a merge, then the special token `<|endoftext|>`. Nothing that people type becomes that: its name in a message is plain text.

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
print("checked: merging by hand is Tokenizer.encode, and ids give every text back")

# %% [markdown]
# ## A batch
#
# The network computes several messages at once, as a tensor `ids` of B texts (rows) and T tokens
# (columns). Shorter messages are filled up on the right with pads; `lengths` counts real tokens.

# %%
model = load_gpt2(MODEL)
encoded, _ = encode_texts([m.text for m in messages], tokenizer, model.config.n_ctx)
few = sorted(encoded[:100], key=len)[:4]
ids, lengths = pad_batch(few, tokenizer.end_of_text_id)  # (B, T), (B,)
print(f"{ids}\nids {tuple(ids.shape)}, lengths {lengths.tolist()}")

# %% [markdown]
# A pad costs as much to compute as a word. The lecture pads to the longest training message. Padding
# to the longest of each batch leaves fewer, and fewer still where messages of one length come
# together (`by_length`). At the right of the picture: packed without pads, as in chapter 11.

# %%
counts = [len(text) for text in encoded]
picture(draw_batches(counts[:96], batch_size=8), "02-batches")

# %% check
ways = [range(len(counts))], torch.arange(len(counts)).split(8), by_length(encoded, 8)
cells = [sum(len(batch) * max(counts[n] for n in batch) for batch in way) for way in ways]
assert cells[0] > cells[1] > cells[2] >= sum(counts), "sorting saves pads"
same = torch.nn.utils.rnn.pad_sequence([*map(torch.tensor, few)], True, tokenizer.end_of_text_id)
assert torch.equal(ids, same), "torch's own function pads the same"
print(
    f"checked; pads: to the longest of all {1 - sum(counts) / cells[0]:.1%}, sorted {1 - sum(counts) / cells[2]:.1%}"
)

# %% [markdown]
# ## Why the pad matters
#
# GPT-2 has no token for padding; `<|endoftext|>` is taken, to the network a token like any other.
# But attention looks back only (chapter 3): what stands behind a token cannot change its logits, the
# scores of what could follow. So anything may stand in place of the pads, and no real token notices.

# %%
real = torch.arange(ids.shape[1]) < lengths[:, None]  # (B, T)
with torch.no_grad():
    logits, on_others = model(ids), model(torch.where(real, ids, ids[-1, 0]))  # (B, T, V)
change = (on_others - logits).abs().amax(dim=2)  # (B, T)
print(
    f"logits change by {change[real].max():.0e} at real tokens, at the last pad by {change[0, -1]:.1f}"
)

# %% [markdown]
# Read at its last real token, a message's answer depends on the message alone; read at the last
# *position*, as in the lecture, it is a pad's answer (chapter 10). Pads on the left are worse: real
# tokens see them and stand at other positions, so everything changes. `pad_right` mends it.

# %%
on_the_left = torch.stack(
    [row.roll(len(row) - len(text)) for row, text in zip(ids, few, strict=True)]
)
shifted = (model(on_the_left)[0, -1] - logits[0, lengths[0] - 1]).abs().max()
print(f"{on_the_left[0].tolist()}\nlogits of its last token change by {shifted:.1f}")

# %% check
assert all(map(torch.equal, pad_right(on_the_left, real.flip(1)), (ids, lengths)))
alone = model(torch.tensor(few[:1]))[0]
torch.testing.assert_close(logits[0, : len(alone)], alone, atol=1e-3, rtol=1e-4)
assert change[real].max() < 1e-3 < 0.1 < min(change[0, -1], shifted)
print("checked: with pads on the right, and only there, a text's logits are those it has alone")

# %% [markdown]
# ## Exercises
#
# 1. Write all messages in capitals. How many times as many tokens is that? Guess first; why?
# 2. Keep the first tenth of the merges (`write_bpe` writes both files into a folder). Does a
#    message still come back from its ids, and how much longer are the messages?
# 3. Cut a message to its first half, then to its second. In which do the tokens keep their logits?
#
# Solutions: [`solutions/02_tokens.py`](solutions/02_tokens.py).
