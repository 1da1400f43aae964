# %% [markdown]
# # Solutions to chapter 15

# %%
import math
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F

from gpt2_from_scratch import (
    GPT2,
    GPT2Config,
    PretrainConfig,
    Tokenizer,
    init_weights,
    load_messages,
    split_messages,
    write_bpe,
)
from gpt2_from_scratch.gpt2 import corpus, pretrain

split = split_messages(load_messages("sms"), balance=True)
texts, unseen = ([m.text for m in part] for part in (split.train + split.val, split.test[:100]))
SMALL = {"n_ctx": 64, "n_embd": 64, "n_head": 4, "n_layer": 2, "row": 64, "tokens": 512}


# %%
def learned(texts: list[str], n_vocab: int, steps: int) -> tuple[float, float]:
    """(training loss over the last ten steps, bits per byte of the unseen messages)."""
    config = PretrainConfig(n_vocab=n_vocab, steps=steps, warmup=10, decay=0.5, **SMALL)
    with TemporaryDirectory() as folder:
        write_bpe(Path(folder), corpus.train_bpe(texts, n_vocab))
        tokenizer = Tokenizer(Path(folder))
    source = corpus.encode_source("ours", texts, tokenizer, 1.0)
    aside = corpus.encode_source("unseen", unseen, tokenizer, 1.0)
    model = GPT2(GPT2Config(n_vocab, config.n_ctx, config.n_embd, config.n_head, config.n_layer))
    init_weights(model, torch.Generator().manual_seed(config.seed))
    optimizers, losses = pretrain.make_optimizers(model, config), []
    for step in range(steps):
        rows = pretrain.draw_rows([source], config, step)
        loss = F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
        loss.backward()
        losses.append(loss.item())
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = config.lr * pretrain.learning_rate_factor(step, config)
            optimizer.step()
            optimizer.zero_grad()
    bits = pretrain.bits_per_byte(model, [aside], corpus.n_bytes(aside, tokenizer))
    return sum(losses[-10:]) / 10, bits


# %% [markdown]
# ## 1. An eighth of the messages
#
# The training loss is lower, because few messages are easier to memorize. The held-out messages need
# more bits. That is why a lot of text helps: the network need not see the same text again and again.

# %%
loss, bits = learned(texts, 400, 60)
few_loss, few_bits = learned(texts[::8], 400, 60)
print(f"all messages   training loss {loss:.2f}, held out {bits:.2f} bits per byte")
print(f"one in eight   training loss {few_loss:.2f}, held out {few_bits:.2f} bits per byte")
assert few_loss < loss - 0.1 and few_bits > bits + 0.1

# %% [markdown]
# ## 2. Fewer tokens
#
# The loss per token is lower: there are fewer tokens to choose from, and each is a shorter piece of text.
# But the bits per byte are higher: a text has more tokens, and the network sees less of it at a time.
# So compare bits per byte, not losses per token.

# %%
small_loss, small_bits = learned(texts, 300, 60)
print(f"300 tokens   training loss {small_loss:.2f}, held out {small_bits:.2f} bits per byte")
print(f"400 tokens   training loss {loss:.2f}, held out {bits:.2f} bits per byte")
assert small_loss < loss - 0.1 and math.log(300) < math.log(400)
assert small_bits > bits + 0.05, "lower loss, more bits"

# %% [markdown]
# ## 3. gzip that has read something
#
# gzip looks back 32 KB, so we give it the end of the training text as its dictionary. Words and phrases
# that occur there cost it little, and it needs far fewer bits. But all it can do is copy what it has
# seen; it does not predict.

# %%
raw, before = "\n".join(unseen).encode(), "\n".join(texts).encode()[-32768:]
sizes = {}
for name, dictionary in {"alone": b"", "after the training text": before}.items():
    packer = zlib.compressobj(9, zdict=dictionary) if dictionary else zlib.compressobj(9)
    sizes[name] = 8 * len(packer.compress(raw) + packer.flush()) / len(raw)
    print(f"{name:<24} {sizes[name]:.2f} bits per byte")
assert sizes["after the training text"] < sizes["alone"] - 0.1
