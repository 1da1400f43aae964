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
    Tokenizer,
    init_weights,
    load_messages,
    split_messages,
    train_bpe,
    write_bpe,
)
from gpt2_from_scratch.course import setting

MODEL, DATA = setting("mini")  # "124M": OpenAI's model. DATA: the SMS Spam Collection
split = split_messages(load_messages(DATA), balance=True)
texts = [message.text for message in split.train + split.val]
unseen = [message.text for message in split.test[:100]]

# %% [markdown]
# ## 1. gzip that has read something
#
# > Let gzip read the training text first (`zlib.compressobj(zdict=...)`). How much better does it get?
#
# gzip looks back 32 kilobytes, so we give it the end of the training text as its dictionary. Words and
# phrases that occur there take few bits, so it needs far fewer bits than before. But gzip can only copy what
# it has seen. It does not predict.

# %%
raw = "\n".join(unseen).encode()
dictionary = "\n".join(texts).encode()[-32768:]
packer = zlib.compressobj(9)
alone = 8 * len(packer.compress(raw) + packer.flush()) / len(raw)
packer = zlib.compressobj(9, zdict=dictionary)
prepared = 8 * len(packer.compress(raw) + packer.flush()) / len(raw)
print(f"gzip alone                    {alone:.2f} bits per byte")
print(f"gzip after the training text  {prepared:.2f} bits per byte")
assert prepared < alone - 0.1

# %% [markdown]
# ## 2. Fewer tokens
#
# > Use a vocabulary of 300 tokens. Is the loss lower? Are the bits per byte?
#
# We put the steps of the chapter into a function, with a network that is smaller still. The loss per token is
# lower with 300 tokens: there are fewer tokens to choose from, and each is a shorter piece of text. But the
# bits per byte are higher, because a text has more tokens, and the network sees less of it at a time. So
# compare bits per byte, not losses per token.


# %%
def joined(texts, tokenizer):
    ids = []
    for text in texts:
        ids += tokenizer.encode(text)
        ids.append(tokenizer.end_of_text_id)
    return torch.tensor(ids)


def losses_of(model, pieces):
    logits = model(pieces[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), pieces[:, 1:].flatten(), reduction="none")


def learned(texts, n_vocab, steps=60, n_ctx=64):
    """(mean training loss of the last ten steps, bits per byte of the unseen messages)."""
    with TemporaryDirectory() as folder:
        write_bpe(Path(folder), train_bpe(texts, n_vocab))
        tokenizer = Tokenizer(Path(folder))
    stream = joined(texts, tokenizer)
    model = GPT2(GPT2Config(n_vocab, n_ctx, n_embd=64, n_head=4, n_layer=2))
    init_weights(model, torch.Generator().manual_seed(123))
    matrices = [p for p in model.blocks.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim == 1] + [model.wte.weight, model.wpe.weight]
    muon = torch.optim.Muon(matrices, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(others, betas=(0.9, 0.95))
    torch.manual_seed(123)
    losses = []
    for step in range(steps):
        rate = 0.006 * min(1, (step + 1) / 10, 2 * (steps - step) / steps)
        starts = torch.randint(len(stream) - n_ctx, (8,)).tolist()
        pieces = torch.stack([stream[start : start + n_ctx + 1] for start in starts])
        for optimizer in (muon, adamw):
            optimizer.param_groups[0]["lr"] = rate
            optimizer.zero_grad()
        loss = losses_of(model, pieces).mean()
        loss.backward()
        muon.step()
        adamw.step()
        losses.append(loss.item())

    ids = joined(unseen, tokenizer)
    n_bytes = sum(len(text.encode()) + 1 for text in unseen)
    nats = 0.0
    with torch.no_grad():
        for start in range(0, len(ids) - 1, n_ctx):
            nats += losses_of(model, ids[None, start : start + n_ctx + 1]).sum().item()
    return sum(losses[-10:]) / 10, nats / math.log(2) / n_bytes


# %%
loss, bits = learned(texts, 400)
small_loss, small_bits = learned(texts, 300)
print(f"400 tokens   training loss {loss:.2f}, unseen {bits:.2f} bits per byte")
print(f"300 tokens   training loss {small_loss:.2f}, unseen {small_bits:.2f} bits per byte")
assert small_loss < loss - 0.1
assert small_bits > bits + 0.03, "lower loss, more bits"

# %% [markdown]
# ## 3. An eighth of the messages
#
# > Train on one in eight of the messages, for the same number of steps. What happens to the loss on the
# > training messages, and to the bits per byte of the unseen ones?
#
# The training loss is lower, because few messages are easier to memorise. The unseen messages need more bits.
# That is why a lot of text helps: the network need not see the same text again and again.

# %%
loss, bits = learned(texts, 400, steps=180)
few_loss, few_bits = learned(texts[::8], 400, steps=180)
print(f"all messages   training loss {loss:.2f}, unseen {bits:.2f} bits per byte")
print(f"one in eight   training loss {few_loss:.2f}, unseen {few_bits:.2f} bits per byte")
assert few_loss < loss - 0.1
assert few_bits > bits + 0.1
