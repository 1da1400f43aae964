# %% [markdown]
# # 15. Pretraining
#
# **You are here:** **pretraining** → heads → words and spans → probes → several heads → LoRA → explanations
#
# All chapters so far began with weights that somebody else had trained. Where do such weights come from?
# Here we begin with nothing but some text. We learn a vocabulary from it, fill a network with random
# numbers, and let it predict the next token.
#
# **At the end you will know** how pretraining works, in which unit models with different tokens can be
# compared, and how far you get with a thousand messages.
#
# **Reading time:** 15 minutes. **Running time:** about fifteen seconds, offline.

# %%
import gzip
import math
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F

from gpt2_from_scratch import (
    GPT2,
    GPT2Config,
    Tokenizer,
    bits_per_byte,
    encode_source,
    generate,
    init_weights,
    load_gpt2,
    load_messages,
    model_folder,
    plot_pretraining,
    save_gpt2,
    split_messages,
    train_bpe,
    write_bpe,
)
from gpt2_from_scratch.course import picture, setting

MODEL, DATA = setting("mini")  # "124M": OpenAI's model. DATA: the SMS Spam Collection

# %% [markdown]
# ## The text
#
# OpenAI trained GPT-2 on forty gigabytes of web pages. Offline we have about a thousand messages. That is
# far too little to learn English from, but every step is the same. We keep a hundred messages apart. The
# network never sees them, and they will show what it has really learned.

# %%
split = split_messages(load_messages(DATA), balance=True)  # half of them spam
texts = [message.text for message in split.train + split.val]
unseen = [message.text for message in split.test[:100]]
n_bytes = sum(len(text.encode()) + 1 for text in unseen)  # one byte more for the end of each
print(len(texts), "messages to learn from,", len(unseen), "to test on")
print("bytes:", sum(len(text.encode()) for text in texts), "and", n_bytes)

# %% [markdown]
# ## The vocabulary
#
# A vocabulary is learned too, from the same text (chapter 2). It begins with the single bytes. Then the most
# frequent pair of neighbouring tokens becomes a new token, and this is repeated until there are enough. GPT-2
# has about fifty thousand tokens. For so little text we take 512:

# %%
V = 512
TEMPORARY = TemporaryDirectory()  # gone when Python ends
folder = Path(TEMPORARY.name)
write_bpe(folder, train_bpe(texts, V))
tokenizer = Tokenizer(folder)
print(*(tokenizer.decode([token]) for token in tokenizer.encode(unseen[0])), sep="|")


def encode_all(texts, tokenizer):
    ids = []
    for text in texts:
        ids += tokenizer.encode(text)
        ids.append(tokenizer.end_of_text_id)  # a message ends here
    return torch.tensor(ids)


stream = encode_all(texts, tokenizer)
unseen_ids = encode_all(unseen, tokenizer)
print(f"{len(stream):,} tokens to learn from, {len(unseen_ids):,} tokens to test on")
print(f"one token stands for {n_bytes / len(unseen_ids):.2f} bytes")

# %% [markdown]
# ## A network that knows nothing
#
# The network has the form of GPT-2, but it is tiny: three blocks with 96 numbers per token. Its weights are
# random. The training text is one long row of tokens. We cut pieces out of it, and the *targets* are the same
# tokens, moved by one place. So nobody has to label anything.

# %%
config = GPT2Config(n_vocab=V, n_ctx=64, n_embd=96, n_head=4, n_layer=3)
model = GPT2(config)
init_weights(model, torch.Generator().manual_seed(123))


def draw_pieces(n):
    starts = torch.randint(len(stream) - config.n_ctx, (n,)).tolist()
    return torch.stack([stream[start : start + config.n_ctx + 1] for start in starts])


def next_token_losses(model, pieces):
    logits = model(pieces[:, :-1])  # (B, T, V)
    return F.cross_entropy(logits.flatten(0, 1), pieces[:, 1:].flatten(), reduction="none")


torch.manual_seed(123)
pieces = draw_pieces(16)
inputs = pieces[0, :-1]
targets = pieces[0, 1:]
for name, ids in (("input ", inputs), ("target", targets)):
    print(name, *(tokenizer.decode([token]) for token in ids[:10].tolist()), sep="|")
with torch.no_grad():
    first = next_token_losses(model, pieces).mean().item()
print(f"loss {first:.3f}, ln(512) = {math.log(V):.3f}")

# %% [markdown]
# A network that knows nothing gives each of the 512 tokens about the same probability, 1/512. So its loss is
# close to ln 512.
#
# ## Bits per byte
#
# Losses per token cannot be compared between models with different vocabularies: longer tokens are
# harder to guess, but a text has fewer of them. *Bits per byte* can be compared. Take the loss of a
# whole text. Its unit is called *nat*, because it is computed with the natural logarithm. One bit is
# ln 2 nats, so divide by ln 2 to get bits, and then divide by the number of bytes of the text.
#
# This is the unit of file sizes. A file takes 8 bits per byte, and 4 if it is compressed to half its
# size. So guess: how many bits per byte does our network need, before it has learned anything?


# %%
@torch.no_grad()
def bits_of(model, ids):
    nats = 0.0
    for start in range(0, len(ids) - 1, config.n_ctx):
        piece = ids[start : start + config.n_ctx + 1]
        nats += next_token_losses(model, piece[None]).sum().item()
    return nats / math.log(2) / n_bytes


bits = [bits_of(model, unseen_ids)]
packed = 8 * len(gzip.compress("\n".join(unseen).encode(), 9)) / n_bytes
print(f"untrained network {bits[0]:.2f} bits per byte")
print(f"gzip              {packed:.2f} bits per byte")
bytes_per_token = n_bytes / len(unseen_ids)
print(f"log2(512) / bytes per token = {math.log2(V):.0f} / {bytes_per_token:.2f}", end=" ")
print(f"= {math.log2(V) / bytes_per_token:.2f}")

# %% [markdown]
# Not 8! A guess among 512 tokens costs 9 bits, but it pays for a whole token, which stands for nearly two
# bytes. The network has learned nothing yet, but the vocabulary has: frequent pairs of bytes became tokens. `gzip` still needs fewer bits, although it has seen nothing but these hundred messages.
#
# ## Learning
#
# The loop is the one of chapter 10, with one target per token instead of one label per message. There
# are two optimizers. AdamW changes the tables, the biases and the norms, and decides about each number
# separately. Muon, a newer optimizer, changes the matrices of the blocks, and treats each matrix as a
# whole. The learning rate rises at first, and falls to zero at the end. Before and after, we let the
# network write a message: `generate` draws one token after the other. It prefers probable tokens a
# little more than the network does (`temperature=0.7`).

# %% tags=["varies"]
STEPS = 120
start = torch.tensor([tokenizer.end_of_text_id])  # a new message begins after it
before = generate(model, start, 40, temperature=0.7, seed=2)[1:]
matrices = [p for p in model.blocks.parameters() if p.ndim == 2]
vectors = [p for p in model.parameters() if p.ndim == 1]
muon = torch.optim.Muon(matrices, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
adamw = torch.optim.AdamW([model.wte.weight, model.wpe.weight, *vectors], betas=(0.9, 0.95))

for step in range(STEPS):
    rate = 0.006 * min(1, (step + 1) / 20, 2 * (STEPS - step) / STEPS)
    for optimizer in (muon, adamw):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
    loss = next_token_losses(model, draw_pieces(16)).mean()
    loss.backward()
    muon.step()
    adamw.step()
    if (step + 1) % 20 == 0:
        bits.append(bits_of(model, unseen_ids))
        print(
            f"step {step + 1:>3}: training loss {loss.item():.2f}, unseen {bits[-1]:.2f} bits per byte"
        )
after = generate(model, start, 40, temperature=0.7, seed=2)[1:]
print("before:", repr(tokenizer.decode(before.tolist())))
print("after: ", repr(tokenizer.decode(after.tolist())))

# %%
tokens_seen = range(0, STEPS * 16 * config.n_ctx + 1, 20 * 16 * config.n_ctx)
figure = plot_pretraining(tokens_seen, bits, {"gzip of these messages": packed})
figure.axes[0].set_title("Unseen messages: after twenty steps, fewer bits than gzip")
picture(figure, "15-bits-per-byte")

# %% [markdown]
# After twenty steps the network already needs fewer bits than gzip. It has learned what the training messages have in
# common with the unseen ones: words, endings, phone numbers. What it writes looks a little like a message, and
# it means nothing. It has read far too little text for more.
#
# ## What is missing
#
# Mostly size. The miniature of this project was trained in the same way. It is larger, and it was trained on
# 119.5 MB of text: the steps processed 49 million tokens. At the end it needed 1.488 bits per byte on unseen
# text of the same kinds (`weights/mini/README.md`). The command for that is
# `gpt2-classifier pretrain --corpus FOLDER --out FOLDER`. It can be
# interrupted and resumed.
#
# Here are both networks on our unseen messages. They have different vocabularies, but bits per byte can be
# compared:

# %%
theirs = Tokenizer(model_folder(MODEL))
their_bits = bits_of(load_gpt2(MODEL), encode_all(unseen, theirs))
print(f"ours {bits[-1]:.2f} bits per byte, {MODEL} {their_bits:.2f}")

# %% [markdown]
# The miniature is better, although it was not trained on text messages. It needs twice as many bits as on its
# own kind of text: here it reads short messages in a style that is new to it. What a network has read matters
# as much as how large it is.

# %% [markdown]
# ## What you know now
#
# - Pretraining is the prediction of the next token. The targets are the text itself, moved by one place.
# - A network that knows nothing has a loss of ln V.
# - Bits per byte can be compared between vocabularies, and with compressed files.
# - An untrained network needs log2(V) bits per token, and fewer than 8 per byte, because a token stands for
#   more than one byte.
# - A thousand messages are enough to beat gzip, but not to write one sentence that makes sense.

# %% [markdown]
# ## Checks
#
# These cells check what the chapter said. They are folded in the notebook; an error here means that
# something is wrong.

# %% check
assert all(tokenizer.decode(tokenizer.encode(text)) == text for text in unseen), "nothing is lost"
assert tokenizer.n_vocab == V and not set(texts) & set(unseen)
print(f"checked: {V} tokens, with which any text can be written; no unseen message was trained on")

# %% check
untrained = GPT2(config)
init_weights(untrained, torch.Generator().manual_seed(123))
logits = untrained(pieces[:, :-1])
by_hand = -logits.log_softmax(dim=2).gather(2, pieces[:, 1:, None]).mean()
assert abs(by_hand.item() - first) < 1e-4
assert abs(first - math.log(V)) < 0.1
assert abs(bits[0] - math.log2(V) / bytes_per_token) < 0.1
print("checked: the loss by hand; it is close to that of guessing, in nats and in bits per byte")

# %% check
source = encode_source("unseen", unseen, tokenizer, 1.0)
assert torch.equal(torch.tensor(source.tokens.astype(int)), unseen_ids)
assert abs(bits_per_byte(model, [source], n_bytes) - bits[-1]) < 0.02
assert bits[-1] < packed < bits[0] < 8
print(
    "checked: bits per byte by the package; gzip lies between the untrained and the trained network"
)

# %% check
save_gpt2(model, folder)
loaded = load_gpt2(folder)
assert torch.equal(loaded(pieces[:, :-1]), model(pieces[:, :-1])), (
    "the same when loaded, to the bit"
)
assert their_bits < bits[-1] - 0.05
print(f"checked: {MODEL} needs fewer bits per byte; a saved network is the same when loaded")

# %% [markdown]
# ## Exercises
#
# 1. (easy) Let gzip read the training text first (`zlib.compressobj(zdict=...)`). How much better does it get?
#    <details><summary>Hint</summary>It looks back 32 kilobytes, so give it the end of the text.</details>
# 2. (medium) Use a vocabulary of 300 tokens. Is the loss lower? Are the bits per byte?
#    <details><summary>Hint</summary>Put the steps of this chapter into one function of the texts and the size
#    of the vocabulary.</details>
# 3. (hard) Train on one in eight of the messages, for the same number of steps. What happens to the loss on the
#    training messages, and to the bits per byte of the unseen ones?
#    <details><summary>Hint</summary>`texts[::8]`, with the function of exercise 2.</details>
#
# Solutions: [`solutions/15_pretraining.py`](solutions/15_pretraining.py).
