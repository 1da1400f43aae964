# %% [markdown]
# # Solutions to chapter 16

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

parts = vars(split_messages(load_messages("demo"))).values()
split = Split(
    *(
        [Message(m.text, {"label": m.label, "length": (len(m.text) / 100,)}) for m in part]
        for part in parts
    )
)
LABEL = HeadConfig("label", labels=("ham", "spam"))
LENGTH = HeadConfig("length", "regression", ("hundreds",))

# %% [markdown]
# ## 1. Half the labels
#
# Each head learns from the messages that have a label for it: `label` from half of them, `length` from
# all. A batch's loss of a head is the mean over those of its messages that count, so a batch with two
# labelled messages asks as loudly as one with ten.

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
# ## 2. Let `next` pull too
#
# Then the block is asked to stay good at the next token, and gets better at it on messages like these
# than GPT-2 was. `label` shares the block with a loss several times its own; with a lower
# `loss_weight` it has more of it. GPT-1 was finetuned like this, with half of the language model's
# loss added.

# %%
small = Split(split.train[::3], split.val[:20], split.test[:60])
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
        f"next pulls: {gradient!s:<5}  {guessed[gradient]:.3f} nats a token, "
        f"label {scores['label'].accuracy:.1%} of {scores['label'].total}"
    )
assert guessed[True] < guessed[False] - 0.05

# %% [markdown]
# ## 3. One pass or two
#
# The heads have a few hundred numbers each, the network millions: a pass for both costs what a pass
# for one does, so two passes cost twice that.


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
