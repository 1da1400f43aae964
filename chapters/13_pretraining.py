# %% [markdown]
# # 13. Pretraining
#
# The other chapters began with weights that somebody had trained. Here are some from nothing: text, a
# vocabulary learned from it, and a network of random numbers that learns to tell the next token.
#
# **At the end you will know** how pretraining goes, in which unit models with different tokens can
# be compared, and what much more text buys. **Time:** about twenty seconds, offline.

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
    PretrainConfig,
    Tokenizer,
    generate,
    init_weights,
    load_gpt2,
    load_messages,
    model_folder,
    plot_pretraining,
    save_gpt2,
    split_messages,
    write_bpe,
)
from gpt2_from_scratch.course import picture, setting
from gpt2_from_scratch.gpt2 import corpus, pretrain

MODEL, DATA = setting("mini")  # "124M": OpenAI's model, and the SMS Spam Collection
split = split_messages(load_messages(DATA))
texts, unseen = ([m.text for m in part] for part in (split.train + split.val, split.test[:100]))
ROOM = TemporaryDirectory()  # gone when Python ends
room = Path(ROOM.name)

# %% [markdown]
# ## Text and tokens
#
# OpenAI had forty gigabytes of web pages; offline we have the messages. From so little nobody learns
# English, but every step is the real one. First the tokens: all bytes, then again and again the most
# frequent pair of neighbours becomes one (chapter 2).

# %%
config = PretrainConfig(
    n_vocab=512,
    n_ctx=64,
    n_embd=96,
    n_head=4,
    n_layer=3,
    row=64,
    tokens=1024,
    steps=120,
    warmup=20,
    decay=0.5,
)
write_bpe(room, corpus.train_bpe(texts, config.n_vocab))
tokenizer = Tokenizer(room)
source, aside = (corpus.encode_source("ours", part, tokenizer, 1.0) for part in (texts, unseen))
size = corpus.n_bytes(aside, tokenizer)
print(f"{corpus.n_bytes(source, tokenizer):,} bytes are {len(source.tokens):,} tokens")
print(*(tokenizer.decode([token]) for token in tokenizer.encode(unseen[0])), sep="|")

# %% check
assert all(tokenizer.decode(tokenizer.encode(text)) == text for text in unseen), "nothing is lost"
assert tokenizer.n_vocab == config.n_vocab and not {*texts} & {*unseen}
print(f"checked: {config.n_vocab} tokens, which write any text")

# %% [markdown]
# ## A network that knows nothing
#
# Its weights are random. Its task: at each position, the next token. The targets are the tokens one
# place further on, so nobody has to label anything. The loss is cross-entropy (in float32; `pretrain`
# takes bfloat16). Who knows nothing and guesses has a loss of $\ln$ of the number of tokens.


# %%
def in_float32(rows):
    return F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())


model = GPT2(GPT2Config(config.n_vocab, config.n_ctx, config.n_embd, config.n_head, config.n_layer))
init_weights(model, torch.Generator().manual_seed(config.seed))
rows = pretrain.draw_rows([source], config, step=0)  # (B, T + 1)
first = in_float32(rows).item()
for name, ids in {"input ": rows[0, :10], "target": rows[0, 1:11]}.items():
    print(name, *(tokenizer.decode([token]) for token in ids), sep="|")
print(f"loss {first:.3f}, ln({config.n_vocab}) = {math.log(config.n_vocab):.3f}")

# %% check
by_hand = -model(rows[:, :-1]).log_softmax(2).gather(2, rows[:, 1:, None]).mean()
assert abs(by_hand - first) < 1e-4 and abs(pretrain.next_token_loss(model, rows) - first) < 0.02
assert abs(first - math.log(config.n_vocab)) < 0.1
print("checked: the loss by hand, and it is that of guessing")

# %% [markdown]
# ## Learning
#
# A loss in nats a token cannot be compared between models whose tokens differ. *Bits per byte* can:
# the loss of a whole text, in bits, by its bytes. A byte nobody can predict takes 8 bits; a file
# packed to half its size took 4. So `gzip` is a rival, though one that reads these messages alone.

# %% tags=["varies"]
start = torch.tensor([tokenizer.end_of_text_id])  # what comes after the end of a message?
before = generate(model, start, 40, temperature=0.7, seed=2)[1:]
optimizers = pretrain.make_optimizers(model, config)  # Muon for the matrices, AdamW for the rest
bits = [pretrain.bits_per_byte(model, [aside], size)]
for step in range(config.steps):
    loss = in_float32(pretrain.draw_rows([source], config, step))
    loss.backward()
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = config.lr * pretrain.learning_rate_factor(step, config)
        optimizer.step()
        optimizer.zero_grad()
    if (step + 1) % 20 == 0:
        bits.append(pretrain.bits_per_byte(model, [aside], size))
print(f"loss {first:.2f}, then {loss.item():.2f}")
for ids in (before, generate(model, start, 40, temperature=0.7, seed=2)[1:]):
    print(repr(tokenizer.decode(ids.tolist())))

# %%
packed = 8 * len(gzip.compress("\n".join(unseen).encode(), 9)) / size
seen = range(0, config.steps * config.tokens + 1, 20 * config.tokens)
picture(plot_pretraining(seen, bits, {"gzip of these messages": packed}), "13-bits-per-byte")

# %% check
ids, n = torch.tensor(aside.tokens.astype(int))[None], config.n_ctx
rows = [ids[:, start : start + n + 1] for start in range(0, ids.shape[1] - 1, n)]
nats = sum(in_float32(row).item() * (row.shape[1] - 1) for row in rows)
assert abs(nats / math.log(2) / size - bits[-1]) < 0.02, "bits per byte by hand"
assert bits[-1] < bits[0] - 0.5 and bits[0] < 8
print(f"checked: {bits[0]:.2f} bits a byte untrained, {bits[-1]:.2f} trained, gzip {packed:.2f}")

# %% [markdown]
# ## What is missing
#
# Text. The shipped miniature was made by the same loop from 119.5 MB of it: 49 million tokens, until
# unseen text of those kinds took 1.488 bits a byte (`weights/mini/README.md`). The command for that is
# `gpt2-classifier pretrain --corpus FOLDER --out FOLDER`. Both on our unseen messages:

# %%
save_gpt2(model, room)
theirs = Tokenizer(model_folder(MODEL))
their_aside = corpus.encode_source("messages", unseen, theirs, 1.0)
their_bits = pretrain.bits_per_byte(load_gpt2(MODEL), [their_aside], size)
print(f"ours {bits[-1]:.2f} bits a byte, {MODEL} {their_bits:.2f}")

# %% check
assert load_gpt2(room)(ids[:, :n]).equal(model(ids[:, :n])), "loaded, to the bit"
assert corpus.n_bytes(their_aside, theirs) == size and their_bits < bits[-1] - 0.3
print("checked: the same after loading; more text, fewer bits")

# %% [markdown]
# ## Exercises
#
# 1. Learn from one in eight of the messages, in as many steps. What do the two losses do?
# 2. Take `n_vocab=300`. Is the loss lower? Are the bits per byte?
# 3. Let gzip read the training text first (`zlib.compressobj(zdict=...)`). Is it a better rival?
#
# Solutions: [`solutions/13_pretraining.py`](solutions/13_pretraining.py).
