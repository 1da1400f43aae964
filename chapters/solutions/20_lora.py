# %% [markdown]
# # Solutions to chapter 20

# %%
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F

from gpt2_from_scratch import (
    Classifier,
    LoRAConfig,
    TrainConfig,
    finetune,
    load_messages,
    set_trainable,
    split_messages,
)

LABELS = ["ham", "spam"]
split = split_messages(load_messages("sms"), balance=True)
del split.train[240:], split.val[40:]  # to save time
LR = 1e-3

# %% [markdown]
# ## 1. Where it begins
#
# > $B$ begins as zero. What would happen if $A$ were zero too? And which of the two changes in the
# > first step?
#
# The gradient of $B$ contains $A$ as a factor, and the gradient of $A$ contains $B$. If both were zero,
# both gradients would be zero at every step, and nothing would ever be learned. As it is, $A$ is random
# and $B$ is zero. So in the first step only $B$ has a gradient and changes; after that both do.


# %%
def gradients(classifier):
    """The largest gradient of A, and of B, over all adapters."""
    labels = torch.tensor([LABELS.index(message.label) for message in split.train[:16]])
    set_trainable(classifier.model, n_last_blocks=0)
    texts = classifier.texts(classifier.encode([m.text for m in split.train[:16]])[0])
    F.cross_entropy(classifier.batch_logits(texts, range(16)), labels).backward()
    named = [*classifier.model.named_parameters()]
    return [max(p.grad.abs().max().item() for n, p in named if n.endswith(k)) for k in ("_A", "_B")]


lora = LoRAConfig(rank=4, alpha=4, n_last_blocks=1)
as_it_is, both_zero = (Classifier.on_base("mini", LABELS, lora=lora) for _ in range(2))
with torch.no_grad():
    for name, parameter in both_zero.model.named_parameters():
        if name.endswith("lora_A"):
            parameter.zero_()
found = {"as it is": gradients(as_it_is), "both zero": gradients(both_zero)}
for name, (of_A, of_B) in found.items():
    print(f"{name:<10} largest gradient of A {of_A:.0e}, of B {of_B:.0e}")
assert found["as it is"][0] == 0 < found["as it is"][1]
assert found["both zero"] == [0, 0]

# %% [markdown]
# ## 2. The learning rate
#
# > Train rank 8 in the last block with the learning rate of the whole block. How far does the loss
# > fall?
#
# It falls less. AdamW changes each entry of $B$ by about one learning rate per step. What is added to $W$
# is that change multiplied by entries of $A$, which are small. So the same number of steps changes $W$
# less, and a higher learning rate makes up for it.


# %%
def train(lora, n_last_blocks, lr):
    classifier = Classifier.on_base("mini", LABELS, lora=lora)
    config = TrainConfig(n_last_blocks, lr=lr, epochs=3)
    with TemporaryDirectory() as folder:
        history = finetune(classifier, split, config, Path(folder))
    return classifier, history[-1].train_loss


losses = {"LoRA, the block's rate": train(lora, 0, LR)[1]}
losses["LoRA, four times that"] = train(lora, 0, 4 * LR)[1]
whole, losses["the block whole"] = train(None, 1, LR)
for name, loss in losses.items():
    print(f"{name:<23} training loss {loss:.3f}")
assert losses["LoRA, four times that"] + 0.05 < losses["LoRA, the block's rate"]
assert losses["the block whole"] + 0.05 < losses["LoRA, the block's rate"]

# %% [markdown]
# ## 3. The rank of a change
#
# > Replace the change of every matrix of the last block by the best matrix of rank 8. Does the
# > classifier still give the same answers?
#
# Nearly all answers stay the same. The singular values say why: the sum of their squares is the sum of
# the squares of all entries, and a few directions account for most of it. In a random matrix of the same
# shape they would not. LoRA relies on this. It is not exact: the rest is spread over many small singular
# values.

# %%
RANK = 8
pretrained = Classifier.on_base("mini", LABELS).model.blocks[-1]
texts = [message.text for message in split.test]
before = [answer.label for answer in whole.predict(texts)]
with torch.no_grad():
    for name, weight in whole.model.blocks[-1].named_parameters():
        if weight.ndim == 2:
            start = pretrained.get_parameter(name)
            u, s, v = torch.linalg.svd(weight - start, full_matrices=False)
            held = s[:RANK].square().sum() / s.square().sum()
            print(f"{name:<18} rank {RANK} holds {held:.0%} of the squared change")
            weight.copy_(start + u[:, :RANK] * s[:RANK] @ v[:RANK])
after = [answer.label for answer in whole.predict(texts)]
same = sum(a == b for a, b in zip(before, after, strict=True))
print(f"{same} of {len(texts)} answers are the same")

random_values = torch.linalg.svdvals(torch.randn(pretrained.mlp.c_fc.weight.shape)).square()
held_at_random = random_values[:RANK].sum() / random_values.sum()
print(f"in a random matrix, rank {RANK} holds {held_at_random:.0%}")
assert same > 0.95 * len(texts)
assert held > 3 * held_at_random
