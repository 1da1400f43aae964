# %% [markdown]
# # 15. Pretraining
#
# The other chapters began with weights that somebody else had trained. Here we begin with nothing
# but some text. We learn a vocabulary from it, and then a network with random weights learns to
# predict the next token.
#
# **At the end you will know** how pretraining works, in which unit models with different tokens can
# be compared, and how far you get with a thousand messages. **Time:** about twenty seconds,
# offline.

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

MODEL, DATA = setting("mini")  # "124M": OpenAI's model. DATA: the SMS Spam Collection
split = split_messages(load_messages(DATA), balance=True)  # half of them spam
texts, unseen = ([m.text for m in part] for part in (split.train + split.val, split.test[:100]))
TEMPORARY = TemporaryDirectory()  # gone when Python ends
folder = Path(TEMPORARY.name)

# %% [markdown]
# ## Text and tokens
#
# OpenAI had forty gigabytes of web pages. Offline we have about a thousand messages. That is far
# too little to learn English from, but every step is the same. The vocabulary comes first. It
# begins with the single bytes. Then the most frequent pair of neighbouring tokens becomes one new
# token, and this is repeated until there are enough tokens (chapter 2).

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
write_bpe(folder, corpus.train_bpe(texts, config.n_vocab))
tokenizer = Tokenizer(folder)
source, held_out = (corpus.encode_source("messages", t, tokenizer, 1.0) for t in (texts, unseen))
size = corpus.n_bytes(held_out, tokenizer)
print(f"{corpus.n_bytes(source, tokenizer):,} bytes of text become {len(source.tokens):,} tokens")
print(*(tokenizer.decode([token]) for token in tokenizer.encode(unseen[0])), sep="|")

# %% check
assert all(tokenizer.decode(tokenizer.encode(text)) == text for text in unseen), "nothing is lost"
assert tokenizer.n_vocab == config.n_vocab and not {*texts} & {*unseen}
print(f"checked: {config.n_vocab} tokens, with which any text can be written")

# %% [markdown]
# ## A network that knows nothing
#
# The weights of a new network are random. Its task is to predict the next token at each position.
# The targets are the same tokens, moved by one place, so nobody has to label anything. The loss is
# the cross-entropy (in float32 here; `pretrain` uses bfloat16). A model that guesses uniformly has
# a loss of $\ln V$, where $V$ is the number of tokens.


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
print("checked: the loss by hand; it is close to that of uniform guessing")

# %% [markdown]
# ## Learning
#
# The loss uses the natural logarithm, so its unit is the *nat*. Losses per token cannot be compared
# between models that have different tokens. *Bits per byte* can: take the loss of a whole text,
# convert it to bits, and divide by the number of bytes. A file takes 8 bits per byte, and 4 if it
# is compressed to half its size. So we can compare our model with `gzip`, although gzip has seen
# nothing but the messages it compresses.

# %% tags=["varies"]
start = torch.tensor([tokenizer.end_of_text_id])  # a new message begins after it
before = generate(model, start, 40, temperature=0.7, seed=2)[1:]
optimizers = pretrain.make_optimizers(model, config)  # Muon for the matrices, AdamW for the rest
bits = [pretrain.bits_per_byte(model, [held_out], size)]
for step in range(config.steps):
    loss = in_float32(pretrain.draw_rows([source], config, step))
    loss.backward()
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = config.lr * pretrain.learning_rate_factor(step, config)
        optimizer.step()
        optimizer.zero_grad()
    if (step + 1) % 20 == 0:
        bits.append(pretrain.bits_per_byte(model, [held_out], size))
print(f"loss before {first:.2f}, after {loss.item():.2f} nats per token")
for ids in (before, generate(model, start, 40, temperature=0.7, seed=2)[1:]):
    print(repr(tokenizer.decode(ids.tolist())))

# %%
packed = 8 * len(gzip.compress("\n".join(unseen).encode(), 9)) / size
seen = range(0, config.steps * config.tokens + 1, 20 * config.tokens)
picture(plot_pretraining(seen, bits, {"gzip of these messages": packed}), "15-bits-per-byte")

# %% check
ids, n = torch.tensor(held_out.tokens.astype(int))[None], config.n_ctx
rows = [ids[:, start : start + n + 1] for start in range(0, ids.shape[1] - 1, n)]
nats = sum(in_float32(row).item() * (row.shape[1] - 1) for row in rows)
assert abs(nats / math.log(2) / size - bits[-1]) < 0.02, "bits per byte by hand"
assert bits[-1] < bits[0] - 0.5 and bits[0] < 8
print(f"checked: bits per byte {bits[0]:.2f} untrained, {bits[-1]:.2f} trained, gzip {packed:.2f}")

# %% [markdown]
# ## What is missing
#
# The untrained network needed fewer than 8 bits per byte, although it only guesses. Each guess
# among 512 tokens takes 9 bits, but one token stands for nearly two bytes of text. The trained
# network writes something that looks like a message and means nothing. It has read far too little
# text for more.
#
# The miniature of this project was trained by the same loop. It is larger, and it was trained on
# 119.5 MB of text: the steps processed 49 million tokens. At the end it needed 1.488 bits per byte
# on unseen text of the same kinds (`weights/mini/README.md`). The command for that is
# `gpt2-classifier pretrain --corpus FOLDER --out FOLDER`. Here are our small network and the
# miniature, both on our held-out messages:

# %%
save_gpt2(model, folder)
theirs = Tokenizer(model_folder(MODEL))
their_text = corpus.encode_source("messages", unseen, theirs, 1.0)
their_bits = pretrain.bits_per_byte(load_gpt2(MODEL), [their_text], size)
print(f"bits per byte: ours {bits[-1]:.2f}, {MODEL} {their_bits:.2f}")

# %% check
assert load_gpt2(folder)(ids[:, :n]).equal(model(ids[:, :n])), "the same when loaded, to the bit"
assert corpus.n_bytes(their_text, theirs) == size and their_bits < bits[-1] - 0.3
assert math.log2(config.n_vocab) == 9 and 1.5 < size / len(held_out.tokens) < 2.5
print(
    f"checked: {size / len(held_out.tokens):.2f} bytes per token; {MODEL} needs fewer bits per byte"
)

# %% [markdown]
# ## Exercises
#
# 1. Train on one in eight of the messages, for the same number of steps. What happens to the loss on
#    the training messages, and on the held-out ones?
# 2. Use `n_vocab=300`. Is the loss lower? Are the bits per byte?
# 3. Let gzip read the training text first (`zlib.compressobj(zdict=...)`). How much better does it get?
#
# Solutions: [`solutions/15_pretraining.py`](solutions/15_pretraining.py).
