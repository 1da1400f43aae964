# %% [markdown]
# # Solutions to chapter 21

# %%
import copy
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from gpt2_from_scratch import (
    LABELS,
    Classifier,
    Split,
    TrainConfig,
    contributions,
    finetune,
    integrated_gradients,
    leave_one_out,
    load_messages,
    split_messages,
)
from gpt2_from_scratch.course import setting

MODEL, DATA = setting("mini")  # "124M": OpenAI's model. DATA: the SMS Spam Collection

whole = split_messages(load_messages(DATA), balance=True)
split = Split(whole.train[:240], whole.val[:60], whole.test[:60])
classifier = Classifier.on_base(MODEL, LABELS)
LR = 1e-3 * 256 / classifier.model.config.n_embd
with TemporaryDirectory() as folder:
    finetune(classifier, split, TrainConfig(epochs=5, lr=LR), Path(folder))

CALL = "Please CALL 08712402902 immediately as there is an urgent message waiting for you."

# %% [markdown]
# ## 1. Single digits
#
# > Leave out the single digits of the phone number in `CALL`. Does one of them matter as much as the whole
# > number?
#
# No. Without one digit it still looks like a phone number. So each digit matters little, although all of them
# together decide. It is the same trap as with three phone numbers: what is left out must be as large as the
# reason.

# %%
by_word = leave_one_out(classifier, CALL, "spam")
number = max(by_word.parts, key=lambda part: part.value)
print(f"the whole number:{number.value:+7.2f}")
by_token = leave_one_out(classifier, CALL, "spam", unit="token")
first, end = number.tokens
digits = by_token.parts[first:end]
for part in digits:
    print(f"{part.text:<17}{part.value:+7.2f}")
assert number.text.strip() == "08712402902"
assert max(part.value for part in digits) < number.value / 2
assert "".join(part.text for part in digits) == number.text

# %% [markdown]
# ## 2. Another baseline
#
# > Integrated gradients need a baseline. Compare the two that the package has, on `CALL`. Which words change
# > their order?
#
# Both sums are right, and they are not the same: the evidence in the two baselines differs. The phone number
# comes first with both. Further down the order changes. "urgent" comes second with one baseline, and speaks
# against spam with the other. So a statement such as "this is the second most important word" depends on a
# baseline that somebody chose.

# %% tags=["varies"]
orders = {}
for baseline in ("end_of_text", "zero"):
    path = integrated_gradients(classifier, CALL, "spam", baseline=baseline)
    ordered = sorted(path.parts, key=lambda part: -part.value)
    orders[baseline] = [part.text.strip() for part in ordered]
    print(f"{baseline}: total {path.total:.2f}, error {path.error:+.3f}")
    print("   ", ", ".join(f"{part.text.strip()} {part.value:+.2f}" for part in ordered))
    assert abs(path.error) < 0.01 * abs(path.total)
assert orders["end_of_text"][0] == orders["zero"][0] == "08712402902"
assert orders["end_of_text"].index("urgent") + 5 < orders["zero"].index("urgent")
assert sorted(orders["end_of_text"]) == sorted(orders["zero"])

# %% [markdown]
# ## 3. Remove a head
#
# > Remove one head from the network, for each block in turn. By how much does the evidence fall, and what was
# > the contribution of that head?
#
# The two numbers are different things. A contribution is what a head adds to the logit directly. If the head
# is removed, all that later parts have made of its vector is missing too. In the first blocks a head
# contributes next to nothing directly, but the evidence can change a lot without it. In the last block only
# the last MLP and the final norm come after it.

# %%
parts = contributions(classifier, CALL, "spam", "ham")
D = classifier.model.config.n_embd // classifier.model.config.n_head
HEAD = 1
columns = slice(HEAD * D, (HEAD + 1) * D)
falls = []
print(f"evidence {parts.logit:.3f}")
for n in range(len(classifier.model.blocks)):
    smaller = copy.deepcopy(classifier)
    with torch.no_grad():
        smaller.model.blocks[n].attn.c_proj.weight[:, columns] = 0
    without = contributions(smaller, CALL, "spam", "ham")
    falls.append(parts.logit - without.logit)
    print(f"head {n}.{HEAD}: contribution {parts.heads[n, HEAD]:+.3f}, falls by {falls[-1]:+.3f}")
    assert without.heads[n, HEAD] == 0, "it adds nothing any more"
early = len(falls) // 2
assert max(abs(fall) for fall in falls[:early]) > 2 * abs(parts.heads[:early, HEAD]).max()
