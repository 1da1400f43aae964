# %% [markdown]
# # Solutions to chapter 11

# %%
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from gpt2_from_scratch import (
    Classifier,
    DataConfig,
    GPT2Error,
    TrainConfig,
    load_gpt2,
    load_messages,
    model_folder,
    save_gpt2,
    set_trainable,
    split_messages,
    train_classifier,
)

TEMPORARY = TemporaryDirectory()
folder = Path(TEMPORARY.name)
data, config = DataConfig(source="sms", balance=True), TrainConfig(epochs=1, seed=1)
done = train_classifier("mini", data, config, run=folder / "run", cache=False)
done.write_report()
run, classifier = done.folder, done.classifier

# %% [markdown]
# ## 1. How large
#
# Each parameter takes four bytes. The head has C K + K of them, a block 12 C² + 13 C, and the final norm
# 2 C. The rest of the file, the names and the description, is a kilobyte or two.

# %%
C, K = classifier.model.config.n_embd, 2
for n_last_blocks, final_norm in ((0, False), (2, True)):
    fresh = Classifier.on_base("mini", ["ham", "spam"])
    set_trainable(fresh.model, n_last_blocks, final_norm)
    fresh.save(folder / "fresh.safetensors")
    numbers = C * K + K + n_last_blocks * (12 * C * C + 13 * C) + final_norm * 2 * C
    size = (folder / "fresh.safetensors").stat().st_size
    print(f"{n_last_blocks} blocks: {numbers:>9,} parameters, {size:>9,} bytes")
    assert 4 * numbers < size < 4 * numbers + 4000

# %% [markdown]
# ## 2. Another base
#
# It is refused, because the hash of its weights is a different one. The trained parameters fit the
# output of the frozen blocks with which they were trained. On a very different network the answers
# would be nonsense, and nobody would notice. Here only one weight differs, by a thousandth, and the
# answers would be nearly the same. But a hash cannot say how large a difference is.

# %%
other = load_gpt2("mini")
with torch.no_grad():
    other.wpe.weight[0, 0] += 0.001
(folder / "other").mkdir()
save_gpt2(other, folder / "other")
for name in ("vocab.bpe", "encoder.json"):
    shutil.copy(model_folder("mini") / name, folder / "other")
try:
    Classifier.load(run, folder / "other")
    raise AssertionError("should have been refused")
except GPT2Error as error:
    print(str(error).replace(f"{folder}/", ""))
Classifier.load(run, "mini")

# %% [markdown]
# ## 3. What it costs
#
# We try every threshold that changes anything: the probabilities of the validation messages. On the
# validation set, the best of them costs at most as much as the threshold one half, by construction.
# On the test set it need not be the best, and the best one there is not known when we choose. If a
# lost good message costs twenty minutes, a high threshold is cheap as long as it still finds most
# of the spam.

# %%
split = split_messages(load_messages("sms"), seed=1, balance=True)
parts = {"val": split.val, "test": split.test}
answers = {name: classifier.predict([m.text for m in part]) for name, part in parts.items()}
thresholds = sorted({0.5, *(answer.probabilities["spam"] for answer in answers["val"])})
cost = {}
for name, part in parts.items():
    p_spam = [answer.probabilities["spam"] for answer in answers[name]]
    for threshold in thresholds:
        marked = [p > threshold for p in p_spam]
        read = sum(m.label == "spam" and not spam for m, spam in zip(part, marked, strict=True))
        lost = sum(m.label == "ham" and spam for m, spam in zip(part, marked, strict=True))
        cost[name, threshold] = read + 20 * lost
cheapest = {
    name: min((c, t) for (n, t), c in cost.items() if n == name) for name in ("val", "test")
}
chosen = cheapest["val"][1]
for threshold in (0.5, chosen):
    val, test = cost["val", threshold], cost["test", threshold]
    print(f"above {threshold:.3f}: {val} minutes on the validation set, {test} on the test set")
print(f"best on the test set: {cheapest['test'][0]} minutes, above {cheapest['test'][1]:.3f}")
assert cost["val", chosen] <= cost["val", 0.5] and chosen > 0.5
assert cheapest["test"][0] <= cost["test", chosen] < cost["test", 0.5]

TEMPORARY.cleanup()
