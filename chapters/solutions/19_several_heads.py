# %% [markdown]
# # Solutions to chapter 19

# %%
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from gpt2_from_scratch import (
    Classifier,
    HeadConfig,
    Message,
    Split,
    TrainConfig,
    finetune,
    load_messages,
    loss_and_scores,
    outputs_from,
    split_messages,
    to_labelled,
)

parts = vars(split_messages(load_messages("sms"), balance=True)).values()
split = Split(
    *(
        [Message(m.text, {"label": m.label, "length": (len(m.text) / 100,)}) for m in part]
        for part in parts
    )
)
LABEL = HeadConfig("label", labels=("ham", "spam"), pooling="last_token")
LENGTH = HeadConfig("length", "regression", ("hundreds",), pooling="last_token")

# %% [markdown]
# ## 1. One pass or two
#
# > Count the multiply-adds of one pass for `label` and `length`, and of two passes, one for each.
#
# The heads have a few hundred parameters each, and the network has millions. So one pass for both heads
# costs about as much as a pass for one of them, and two passes cost twice as much.


# %%
def work(*heads):
    made = Classifier.on_base("mini", heads=heads).model
    ids, lengths = torch.arange(40)[None], torch.tensor([40])
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        outputs_from(made, heads, 0, made.embed(ids), lengths)
    return counter.get_total_flops() // 2


together, apart = work(LABEL, LENGTH), work(LABEL) + work(LENGTH)
print(f"one pass {together / 1e6:.1f}, two passes {apart / 1e6:.1f} million multiply-adds")
assert 1.99 < apart / together < 2.01

# %% [markdown]
# ## 2. Half the labels
#
# > Leave out `label` for half of the training messages. How many does each head then learn from?
#
# Each head learns from the messages that have an answer for it: `label` from half of them, `length` from
# all. A head's loss on a batch is the mean over the messages that have an answer. So a batch in which
# two messages are labelled has the same weight as one in which ten are.

# %%
half = [
    Message(m.text, m.label if n % 2 else {"length": m.label["length"]})
    for n, m in enumerate(split.train)
]
both = Classifier.on_base("mini", heads=[LABEL, LENGTH])
targets = to_labelled(both, half).targets
counted = {name: int(found.counts.sum()) for name, found in targets.items()}
print(f"{len(half)} messages: {counted}")
assert counted == {"label": len(half) // 2, "length": len(half)}
assert targets["label"].weights.sum() == len(half) // 2

# %% [markdown]
# ## 3. Let `next` train the block too
#
# > Let `next` train the block too (`gradient=True`). What happens to its predictions, and to `label`?
#
# Then the block also learns to predict the next token of messages like these, and gets better at it than
# the pretrained network. `label` now shares the block with a head whose loss is several times as
# large; on 60 messages we cannot see whether that costs accuracy. A lower `loss_weight` for `next` gives
# `label` more influence. GPT-1 was finetuned like this, with half of the language model's loss added.

# %%
small = Split(split.train[:140], split.val[:20], split.test[:60])
config, guessed = TrainConfig(epochs=2, lr=1e-3), {}
for gradient in (False, True):
    heads = [LABEL, HeadConfig("next", "language", gradient=gradient)]
    made = Classifier.on_base("mini", heads=heads)
    with TemporaryDirectory() as run:
        finetune(made, small, config, Path(run))
        made = Classifier.load(Path(run) / "last.safetensors")
    scores = loss_and_scores(made, to_labelled(made, small.test))[1]
    guessed[gradient] = scores["next"].nats_per_token
    print(
        f"gradient={gradient!s:<5}  {guessed[gradient]:.3f} nats per token, "
        f"label {scores['label'].accuracy:.1%} of {scores['label'].total}"
    )
assert guessed[True] < guessed[False] - 0.05
