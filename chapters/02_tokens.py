# %% [markdown]
# # 2. Tokens
#
# **You are here:** the lecture · messages → **tokens** → attention → network → weights → head → last token → freezing → loss → finetuning → use
#
# A network computes with numbers, so a message must become numbers before the network can read it. A
# tokenizer does this: it cuts the text into tokens, and each token has a number. Then messages of
# different lengths have to fit into one rectangular tensor.
#
# **At the end you will know** how GPT-2 cuts a word into tokens, why it can encode any text at all,
# what a batch looks like, what PyTorch's `Dataset` and `DataLoader` do, and whether padding does any
# harm.
#
# **Reading time:** 25 minutes. **Running time:** a few seconds, offline.

# %%
from itertools import pairwise

import numpy as np
import regex
import torch
from torch.utils.data import DataLoader, Dataset

from gpt2_from_scratch import (
    END_OF_TEXT,
    LABELS,
    SPLIT_PATTERN,
    Tokenizer,
    by_length,
    bytes_to_characters,
    data_file,
    draw_batches,
    lecture_split,
    load_gpt2,
    load_messages,
    model_folder,
    pad_batch,
)
from gpt2_from_scratch.course import picture, setting

MODEL, DATA = setting("mini")  # "124M": OpenAI's model. DATA: the SMS Spam Collection

# %% [markdown]
# ## What is a token?
#
# Is a token a word, a letter, or something between the two? Let us ask the tokenizer. The next cell
# encodes three texts, and prints each token as text and as its number, which is called the token's
# *id*.

# %%
tokenizer = Tokenizer(model_folder(MODEL))
for text in ("Do you have time", "You are a winner!", "unbelievable"):
    ids_of_text = tokenizer.encode(text)
    print([tokenizer.decode([number]) for number in ids_of_text])
    print(ids_of_text)

# %% [markdown]
# Frequent words are one token each, together with the space before them. Rarer words are cut into
# several pieces. Nobody wrote the rules for this: they were learned by counting, from a large
# collection of texts, and they are stored with the model. The method is called *byte pair encoding*,
# BPE for short. The next three sections explain these three words, one each.

# %% [markdown]
# ## Bytes: where every text begins
#
# Which alphabet should a tokenizer start from? Letters are not enough: people also write `£`, `é` and
# emoji. GPT-2 starts from *bytes*. A computer stores every text as a sequence of bytes, usually in the
# encoding UTF-8, and a byte has only 256 different values. So 256 tokens are enough to write down any
# text in any language. Here are a few texts as bytes:

# %%
characters = bytes_to_characters()  # {byte: a printable character for it}
print(f"{len(characters)} different bytes")
for text in ("win", " win", "£5", "😀"):
    as_bytes = list(text.encode("utf-8"))
    print(f"{text!r:<7} {as_bytes!s:<21} {' '.join(characters[byte] for byte in as_bytes)}")

# %% [markdown]
# An English letter is one byte, `£` is two and the emoji is four. The last column is how bytes appear
# in the model's files. Some bytes cannot be printed, so each of them is replaced by a character that
# can. You will meet one of these often: `Ġ` is the space.

# %% [markdown]
# ## Merges: pairs become pieces
#
# Bytes alone would work, but even a short message would be long. So frequent pairs of neighbours are
# joined. The file `vocab.bpe` lists these *merges* in the order in which they were learned, so the
# most frequent pairs come first. A merge's place in the list is its *rank*.

# %%
lines = (model_folder(MODEL) / "vocab.bpe").read_text("utf-8").splitlines()
merges = [tuple(line.split(" ")) for line in lines[1:]]  # the first line is a version number
ranks = {pair: rank for rank, pair in enumerate(merges)}
print(f"{len(merges):,} merges; the first four are {merges[:4]}")

# %% [markdown]
# To cut a word, begin with its bytes. Among all pairs of neighbours, find the one with the lowest
# rank, and join its two pieces. Repeat this until no pair of neighbours is in the list. The pieces
# that are left are the tokens.


# %%
def rank_of(pair):
    return ranks.get(pair, len(ranks))  # a pair that is not in the list comes last


def merge_by_rank(word, verbose=False):
    pieces = [characters[byte] for byte in word.encode("utf-8")]
    if verbose:
        print(f"the bytes:  {' '.join(pieces)}")
    while len(pieces) > 1:
        pairs = list(pairwise(pieces))
        best = min(pairs, key=rank_of)
        if best not in ranks:
            break
        place = pairs.index(best)
        pieces[place : place + 2] = [best[0] + best[1]]
        if verbose:
            print(f"rank {ranks[best]:>5}: {' '.join(pieces)}")
    return pieces


tokens = merge_by_rank(" winner", verbose=True)
print("the tokens:", tokens)

# %% [markdown]
# The first line shows the bytes, and each line after it is one merge. The first merge joins `i` and
# `n`, one of the most frequent pairs of letters in English. The second joins the space and the `w`,
# because many words begin with `w`. In the end `Ġwin` and `ner` are left. This pair is not in the
# list, so `winner` becomes two tokens.

# %% [markdown]
# ## From a text to ids, and back
#
# Each word of a text is merged separately. A regular expression, `SPLIT_PATTERN`, finds the words. It
# keeps the space before a word as part of the word. What does that mean for `winner` at the beginning
# of a text?

# %%
for text in ("winner", " winner", "You are a winner!"):
    words = regex.findall(SPLIT_PATTERN, text)
    print(words, [merge_by_rank(word) for word in words])

# %% [markdown]
# The same word is cut differently when there is no space before it, and for the network these are
# different tokens. What is left is to number the tokens. An id is a position in the *vocabulary*,
# which lists all tokens: first the bytes, then one token per merge, and last one special token,
# `<|endoftext|>`. When OpenAI trained GPT-2, this token was put between two documents.

# %%
vocabulary = list(characters.values())
for first, second in merges:
    vocabulary.append(first + second)
vocabulary.append(END_OF_TEXT)
print(f"256 bytes + {len(merges):,} merges + 1 special token = {len(vocabulary):,} tokens")
print(f"OpenAI's tokenizer: 256 + 50,000 + 1 = {256 + 50_000 + 1:,} tokens")

# %%
messages = load_messages(DATA)
text = messages[1].text
by_hand = []
for word in regex.findall(SPLIT_PATTERN, text):
    for piece in merge_by_rank(word):
        by_hand.append(vocabulary.index(piece))
print("by hand  ", by_hand)
print("tokenizer", tokenizer.encode(text))
print("decoded  ", tokenizer.decode(by_hand))

# %% [markdown]
# Our ids are those of the package's `Tokenizer`, which leaves the merging to the fast library
# `tiktoken`. Decoding looks each id up and puts the bytes together again, so it always returns exactly
# the text that was encoded.
#
# Can the sender of a message put the special token into it, by typing its name? No. The name is
# encoded as ordinary text:

# %%
print(f"the special token: {tokenizer.end_of_text_id}")
print(f"its name, typed:   {tokenizer.encode(END_OF_TEXT)}")

# %% [markdown]
# ## A batch
#
# It is faster to process several messages together than one after the other. Together they are called
# a *batch*. The network's input is a tensor `ids` with one row for each of B messages and one column
# for each of T tokens. (The course uses these two letters throughout.) But messages have different
# lengths, and the rows of a tensor do not. So shorter messages are filled up at the end. This is
# called *padding*.

# %%
encoded = [tokenizer.encode(message.text) for message in messages]
few = sorted(encoded[:100], key=len)[:4]  # four short messages
T = max(len(row) for row in few)
padded = [row + [tokenizer.end_of_text_id] * (T - len(row)) for row in few]
print(torch.tensor(padded))

# %% [markdown]
# The package's `pad_batch` returns the same tensor. It also returns `lengths`, the number of real
# tokens in each row. Later chapters need it to find the end of a message.

# %%
ids, lengths = pad_batch(few, tokenizer.end_of_text_id)  # (B, T), (B,)
print(
    f"ids {tuple(ids.shape)}, lengths {lengths.tolist()}, the same as by hand: {ids.tolist() == padded}"
)

# %% [markdown]
# ## Dataset and DataLoader
#
# The lecture's book does not build its batches by hand. It uses two classes of PyTorch, and so do most
# programs that you will read. A `Dataset` answers two questions: how many examples are there, and what
# is example number n? Here an example is a pair: the ids of a message, padded to a fixed length, and its
# label as a number, 0 for ham and 1 for spam. As in the book, that length is the length of the longest
# training message.


# %%
class MessageDataset(Dataset):
    def __init__(self, messages, length):
        self.messages = messages
        self.length = length

    def __len__(self):
        return len(self.messages)

    def __getitem__(self, n):
        message = self.messages[n]
        row = tokenizer.encode(message.text)[: self.length]
        padding = [tokenizer.end_of_text_id] * (self.length - len(row))
        return torch.tensor(row + padding), LABELS.index(message.label)


train = lecture_split(data_file(DATA)).train
train_encoded = [tokenizer.encode(message.text) for message in train]
longest = max(len(row) for row in train_encoded)
dataset = MessageDataset(train, longest)
row, label = dataset[0]
print(f"{len(dataset):,} examples; the first has {len(row)} ids, and its label is {label}")

# %% [markdown]
# A `DataLoader` takes examples out of a dataset and stacks them into batches. The book's settings are
# batches of eight, a new random order in each pass (`shuffle=True`), and no smaller batch at the end
# (`drop_last=True`). How many batches does the lecture's training set give?

# %%
torch.manual_seed(123)
loader = DataLoader(dataset, batch_size=8, shuffle=True, drop_last=True)
print(f"{len(loader)} batches; {len(dataset) - 8 * len(loader)} messages are left out of each pass")
for batch_ids, batch_labels in loader:
    print("ids", tuple(batch_ids.shape), " labels", batch_labels.tolist())
    break  # the first batch is enough

# %% [markdown]
# So a loader does three things: it draws an order, it cuts the order into batches, and it stacks the
# rows of each batch. We can do the same with `pad_batch`. To compare, both use the messages in the order
# of the list:

# %%
loader_in_order = DataLoader(dataset, batch_size=8)
first_ids, _ = next(iter(loader_in_order))
by_package, _ = pad_batch(train_encoded[:8], tokenizer.end_of_text_id, longest)
print("the same batch from both:", torch.equal(first_ids, by_package))

# %% [markdown]
# From here on we use `pad_batch`, because it also returns the lengths, and because it need not pad to one
# length for all. The next section shows why that matters.
#
# ## What padding costs
#
# The network computes as much for a padding token as for a real one. The lecture pads every message to
# the length of the longest training message. How much of its work is padding, would you guess? Each
# row of the picture is one of the first 96 messages, and each orange cell is wasted work.

# %%
counts = [len(row) for row in encoded]
picture(draw_batches(counts[:96], batch_size=8), "02-batches")

# %% [markdown]
# On the left, all messages are padded to the length of the longest. In the middle, each batch of eight
# is only as long as its own longest message. On the right, messages follow each other without padding
# (chapter 14 shows how). There is one more way: sort the messages by length first, so that the
# messages of a batch have about the same length. This is what each way costs in the whole collection:


# %%
def cells_of(batches):
    total = 0
    for batch in batches:
        longest = max(counts[n] for n in batch)
        total += len(batch) * longest
    return total


N = len(counts)
in_order = [range(first, min(first + 8, N)) for first in range(0, N, 8)]
ways = {"one length for all": [range(N)], "one length per batch": in_order}
ways["sorted by length"] = list(by_length(encoded, 8))
padding = {name: 1 - sum(counts) / cells_of(batches) for name, batches in ways.items()}
for name, proportion in padding.items():
    print(f"{name:<21} {proportion:>6.1%} of all cells are padding")

# %% [markdown]
# ## Which token fills up the rows?
#
# GPT-2 has no token for padding, because it was never trained with any. So people use `<|endoftext|>`.
# To the network this is a token like any other: it does not know that it is padding. Does it harm the
# message?
#
# We can try it without knowing how the network works. `model(ids)` returns many numbers for each
# position (chapter 4 explains which). We replace the padding with another token, and look at which
# positions any of these numbers change.

# %%
model = load_gpt2(MODEL)
other_padding = torch.where(ids == tokenizer.end_of_text_id, few[0][0], ids)
with torch.no_grad():
    change = (model(other_padding) - model(ids)).abs().amax(dim=2)  # (B, T)
print("first message, padded in two ways:", ids[0].tolist(), other_padding[0].tolist())
print("change at each position:", [f"{number:.1f}" for number in change[0].tolist()])

# %% [markdown]
# Only the padding position has changed. The numbers at the real tokens are the same as before, so
# padding at the end cannot harm a message. Why is that so? A position of GPT-2 looks at itself and at
# the positions before it, and never at those after it. The next chapter shows how this works.
#
# But be careful: this is true for real tokens only. If you read the network's answer at the *last
# position*, as the lecture's code does, you usually read it at padding. That is the subject of
# chapter 7.

# %% [markdown]
# ## What you know now
#
# - A tokenizer starts from bytes, so it can encode every text. It joins pairs of neighbouring pieces,
#   the pair with the lowest rank first.
# - An id is a position in the vocabulary: 256 bytes, then one token per merge, then `<|endoftext|>`.
# - A word with a space before it and the same word without one have different ids.
# - A batch is a tensor of ids with B rows and T columns. Short messages are padded at the end. A
#   `DataLoader` makes batches out of the examples of a `Dataset`.
# - Padding to one length for all wastes most of the work. Sorting by length saves nearly all of it.
# - Padding after a message does not change what the network computes for the message itself.

# %% [markdown]
# ## Checks
#
# These cells check what the chapter said. They are folded in the notebook; an error here means that
# something is wrong.

# %% check
samples = [message.text for message in messages[:600]]
for sample in [*samples, "😀 Ω 日本", " \n\t", END_OF_TEXT]:
    pieces = []
    for word in regex.findall(SPLIT_PATTERN, sample):
        pieces.extend(merge_by_rank(word))
    found = tokenizer.encode(sample)
    assert [vocabulary[number] for number in found] == pieces, sample
    assert tokenizer.decode(found) == sample and tokenizer.end_of_text_id not in found
assert tokenizer.encode("winner") != tokenizer.encode(" winner")
print("checked: merging by hand equals Tokenizer.encode, and decoding returns every text")

# %% check
assert len(vocabulary) == len(set(vocabulary)) == tokenizer.n_vocab
assert vocabulary.index(END_OF_TEXT) == tokenizer.end_of_text_id
assert by_hand == tokenizer.encode(text)
print(f"checked: {len(vocabulary):,} different tokens, and ids are positions in the list")

# %% check
as_tensors = [torch.tensor(row) for row in few]
by_torch = torch.nn.utils.rnn.pad_sequence(as_tensors, True, tokenizer.end_of_text_id)
assert torch.equal(ids, by_torch) and ids.tolist() == padded
assert lengths.tolist() == [len(row) for row in few]
print("checked: torch's own function pads in the same way")

# %% check
assert (len(dataset), len(loader)) == (1045, 130), "as in the book"
assert MODEL != "124M" or longest == 120, "as in the book"
order = np.random.RandomState(123).permutation(len(train)).tolist()
loader_of_order = DataLoader(dataset, batch_size=8, sampler=order, drop_last=True)
first = 0
for loader_ids, loader_labels in loader_of_order:
    numbers = order[first : first + 8]
    expected, _ = pad_batch([train_encoded[n] for n in numbers], tokenizer.end_of_text_id, longest)
    assert torch.equal(loader_ids, expected)
    assert [LABELS[label] for label in loader_labels] == [train[n].label for n in numbers]
    first += 8
assert first == 1040
print("checked: in a random order too, a DataLoader and pad_batch give the same 130 batches")

# %% check
batched = []
for batch in ways["sorted by length"]:
    batched.extend(batch)
assert sorted(batched) == list(range(N)), "each message is in one batch"
assert padding["one length for all"] > padding["one length per batch"] > 0.5
assert 0 <= padding["sorted by length"] < 0.05
print("checked: most cells are padding, and sorting saves nearly all of it")

# %% check
is_real = torch.arange(T) < lengths[:, None]  # (B, T)
assert change[is_real].max() < 1e-3 < 0.1 < change[~is_real].min()
with torch.no_grad():
    alone = model(torch.tensor(few[:1]))[0]
    together = model(ids)[0, : len(few[0])]
torch.testing.assert_close(together, alone, atol=1e-3, rtol=1e-4)
print("checked: real tokens get the same numbers, whatever the padding, and without any")

# %% [markdown]
# ## Exercises
#
# 1. (easy) Write all messages in capital letters. By what factor does the number of tokens grow, and why?
#    Guess first.
#    <details><summary>Hint</summary>Merges are learned from what is frequent.</details>
# 2. (medium) Keep only the first tenth of the merges. Does decoding still return every message, and how
#    much longer do the messages become?
#    <details><summary>Hint</summary>`write_bpe(folder, merges)` writes a tokenizer's files.</details>
# 3. (hard) Take the longest message. Give the network only its first half, then only its second half. In
#    which half do the network's numbers stay the same as in the whole message?
#    <details><summary>Hint</summary>Compare `model(ids[:, :half])` with `model(ids)[:, :half]`.</details>
#
# Solutions: [`solutions/02_tokens.py`](solutions/02_tokens.py).
