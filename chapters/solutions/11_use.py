# %% [markdown]
# # Solutions to chapter 11

# %%
import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from gpt2_from_scratch import (
    Classifier,
    GPT2Error,
    TrainConfig,
    load_gpt2,
    load_messages,
    model_folder,
    save_gpt2,
    set_trainable,
    train_classifier,
    write_messages,
)

TEMPORARY = TemporaryDirectory()  # gone when Python ends
folder = Path(TEMPORARY.name)
write_messages(folder / "messages.csv", load_messages("sms")[:1200])
config = TrainConfig(epochs=2, batch_size=8, lr=7e-4)
run = train_classifier("mini", folder / "messages.csv", config, run=folder / "run", cache=False)

# %% [markdown]
# ## 1. How large
#
# > Save a classifier in which only the head is trainable, and one with the last two blocks. How large
# > are the files? Compute it first.
#
# Each parameter takes four bytes. The rest of the file, the names and the description, is a kilobyte or
# two.

# %%
C, K = run.classifier.model.config.n_embd, 2
for n_last_blocks, final_norm in ((0, False), (2, True)):
    fresh = Classifier.on_base("mini", ["ham", "spam"])
    set_trainable(fresh.model, n_last_blocks, final_norm)
    fresh.save(folder / "fresh.safetensors")
    size = (folder / "fresh.safetensors").stat().st_size

    numbers = C * K + K + n_last_blocks * (12 * C * C + 13 * C)
    if final_norm:
        numbers += 2 * C
    print(f"{n_last_blocks} blocks: {numbers:>9,} parameters, {size:>9,} bytes")
    assert 4 * numbers < size < 4 * numbers + 4000

# %% [markdown]
# ## 2. Another base
#
# > Save the base with one weight changed by a thousandth (`save_gpt2`). Is it accepted as the base of
# > the run? Should it be?
#
# It is refused, because the hash of its weights is another one. The trained parameters fit the output
# of the frozen blocks with which they were trained. On a very different network the answers would be
# nonsense, and nobody would notice. Here the answers would be nearly the same. But a hash cannot say
# how large a difference is, so every difference is refused.

# %%
other = load_gpt2("mini")
with torch.no_grad():
    other.wpe.weight[0, 0] += 0.001
(folder / "other").mkdir()
save_gpt2(other, folder / "other")
for name in ("vocab.bpe", "encoder.json"):
    shutil.copy(model_folder("mini") / name, folder / "other")

refused = ""
try:
    Classifier.load(run.folder, folder / "other")
except GPT2Error as error:
    refused = str(error).replace(f"{folder}/", "")
print(refused)
assert refused, "it should have been refused"
Classifier.load(run.folder, "mini")

# %% [markdown]
# ## 3. What it costs
#
# > Reading a spam message costs one minute; losing a good message costs twenty. Which threshold is the
# > cheapest on the validation set? Is it the cheapest on the test set?
#
# On the validation set, the best threshold costs at most as much as one half, because one half was
# tried too. On the test set it need not be the best, and the best one there is not known when we
# choose. The validation set has few good messages, so it hardly shows mistakes that are rare and
# expensive.
#
# There is another way, without trying. If a message is spam with probability p, marking it costs
# twenty minutes with probability 1 - p, and keeping it costs one minute with probability p. Marking is
# cheaper if 20 (1 - p) < p, that is, if p > 20 / 21. This works as far as the probabilities can be
# trusted.


# %%
def cost(part, threshold):
    """Minutes that the messages of a part cost: spam that is read, and good messages that are lost."""
    minutes = 0
    for line in (run.folder / f"{part}-answers.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        is_marked = row["probabilities"]["spam"] > threshold
        if row["label"] == "spam" and not is_marked:
            minutes += 1  # somebody reads it
        if row["label"] == "ham" and is_marked:
            minutes += 20  # nobody reads it
    return minutes


tried = np.arange(0.5, 1.0, 0.01)
costs = {}
for part in ("val", "test"):
    costs[part] = [cost(part, threshold) for threshold in tried]
chosen, best = np.argmin(costs["val"]), np.argmin(costs["test"])
for name, n in (("one half", 0), ("best on validation", chosen), ("best on test", best)):
    val, test = costs["val"][n], costs["test"][n]
    print(f"{name:<19} {tried[n]:.2f}: {val:>3} minutes on validation, {test:>3} on test")
print(f"20 / 21 = {20 / 21:.2f}: {cost('val', 20 / 21)} and {cost('test', 20 / 21)} minutes")
assert costs["val"][chosen] <= costs["val"][0]
assert costs["test"][best] <= costs["test"][chosen]

TEMPORARY.cleanup()
