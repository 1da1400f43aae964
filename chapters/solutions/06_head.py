# %% [markdown]
# # Solutions to chapter 6

# %%
import torch
from torch import nn

from gpt2_from_scratch import Tokenizer, load_gpt2, load_messages, model_folder

model = load_gpt2("mini")
tokenizer = Tokenizer(model_folder("mini"))

# %% [markdown]
# ## 1. The work of the two heads
#
# > For one token, how many multiplications does the old head need, and how many the new one?
#
# Each weight of a linear layer is multiplied once per token. So the old head needs one multiplication
# for each of its weights, and the new head needs 2 C. In between lies the size of the vocabulary,
# divided by the number of classes.

# %%
V = model.config.n_vocab
C = model.config.n_embd
print(f"the old head: {V * C:,} multiplications per token")
print(f"the new head: {2 * C:,} multiplications per token, {V // 2:,} times fewer")
assert model.head.weight.numel() == V * C
assert nn.Linear(C, 2).weight.numel() == 2 * C

# %% [markdown]
# ## 2. Forty questions
#
# > Ask GPT-2 about 20 spam and 20 ham messages, and call a message spam if ` yes` is more probable
# > than ` no`. How many answers are correct? Compare with a coin.
#
# The miniature is no better than a coin, which is correct about 20 times. The question is the same in
# all prompts. Most of what decides between ` yes` and ` no` has nothing to do with spam.

# %%
yes = tokenizer.encode(" yes")[0]
no = tokenizer.encode(" no")[0]
messages = load_messages("sms")
spam = [message for message in messages if message.label == "spam"][:20]
ham = [message for message in messages if message.label == "ham"][:20]
correct = 0
said_yes = 0
for message in spam + ham:
    prompt = f"Is the following text 'spam'? Answer with 'yes' or 'no': '{message.text}'\nAnswer:"
    with torch.no_grad():
        logits = model(torch.tensor([tokenizer.encode(prompt)]))[0, -1]
    answer = "spam" if logits[yes] > logits[no] else "ham"
    correct += answer == message.label
    said_yes += answer == "spam"
print(f"{correct} of 40 answers are correct; {said_yes} answers are yes")
assert 10 <= correct <= 30, "between these numbers, a coin is a good explanation"

# %% [markdown]
# ## 3. Two outputs for three classes
#
# > For two classes, one output is enough. Are two outputs enough for three classes?
#
# Yes. Softmax does not change if the same number is subtracted from all logits. So we subtract the
# first logit from all three. The first one is then always 0 and needs no output. In general, K classes
# need K - 1 outputs. K outputs are simpler, because all classes are treated alike.

# %%
torch.manual_seed(123)
three = nn.Linear(C, 3)
states = torch.randn(5, C)
with torch.no_grad():
    expected = three(states).softmax(dim=1)
    weight = three.weight[1:] - three.weight[0]  # (2, C)
    bias = three.bias[1:] - three.bias[0]
    two = states @ weight.T + bias  # (5, 2)
    logits = torch.cat([torch.zeros(5, 1), two], dim=1)  # (5, 3)
    found = logits.softmax(dim=1)
print("probabilities from three outputs:", expected[0])
print("probabilities from two outputs:  ", found[0])
assert torch.allclose(found, expected, atol=1e-5)
