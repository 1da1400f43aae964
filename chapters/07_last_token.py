# %% [markdown]
# # 7. The last token
#
# **You are here:** the lecture · messages → tokens → attention → network → weights → head → **last token** → freezing → loss → finetuning → use
#
# The new head gives an answer at every token, and we want one answer per text. The lecture reads the
# last token. In this chapter we see why that is a good idea. Then we see that the lecture's code does
# something else as soon as a batch contains texts of different lengths.
#
# **At the end you will know** what each token has seen, what is at the last position of a padded
# batch, how to read each text at its own last token, and why padding on the left does not help.
#
# **Reading time:** 20 minutes. **Running time:** a few seconds, offline.

# %%
import torch
from matplotlib.figure import Figure

from gpt2_from_scratch import (
    Tokenizer,
    class_logits,
    encode_texts,
    load_gpt2,
    load_messages,
    model_folder,
    pad_batch,
    pad_right,
    read_positions,
    replace_head,
    split_messages,
)
from gpt2_from_scratch.course import picture, setting, show

MODEL, DATA = setting("mini")  # "124M": OpenAI's model. DATA: the SMS Spam Collection

# %% [markdown]
# ## What has each token seen?
#
# Attention only looks back (chapter 3). So the answer at a token can depend on this token and on the
# ones before it, and on nothing else. We can watch this happen. We change one token of "Do you have
# time" at a time, and note where the two logits change. Guess first: if we change ` have`, at which
# tokens do they change?

# %%
model = load_gpt2(MODEL)
tokenizer = Tokenizer(model_folder(MODEL))
torch.manual_seed(123)
replace_head(model, num_classes=2)
ids = tokenizer.encode("Do you have time")
T = len(ids)
with torch.no_grad():
    outputs = model(torch.tensor([ids]))

# %%
moved = torch.zeros(T, T, dtype=torch.bool)  # row: where we read; column: which token was changed
for changed in range(T):
    other = list(ids)
    other[changed] = tokenizer.encode(" we")[0]
    with torch.no_grad():
        difference = (model(torch.tensor([other])) - outputs)[0].abs().amax(dim=1)
    moved[:, changed] = difference > 1e-5

print("changed:        " + "".join(f"{tokenizer.decode([token]):>7}" for token in ids))
for position in range(T):
    cells = "".join("    yes" if cell else "      ·" for cell in moved[position])
    print(f"read at {tokenizer.decode([ids[position]]):<8}{cells}")

# %% [markdown]
# Only the last row has a "yes" in every column. The last token is the only one that has seen the whole
# text, so we read there. The lecturer says that the second token attends to the first (24:09). It also
# attends to itself: the row of ` you` has two entries, not one.
#
# The answers at the other tokens are not wrong. Each is the answer for the text up to that token.

# %% [markdown]
# ## What is at the last position of a batch?
#
# For one text, the last token is at the last position, and `outputs[:, -1, :]` reads it. But we train
# with several texts at once. Short texts are filled up with padding until all are as long as the
# longest (chapter 2). What does `outputs[:, -1, :]` read then? Here are three messages in one batch:

# %%
texts = ["See you at six", "OK", "Call me when you get home, I have news"]
encoded, _ = encode_texts(texts, tokenizer, model.config.n_ctx)
pad_id = tokenizer.end_of_text_id
batch, lengths = pad_batch(encoded, pad_id)
print(batch)
print("lengths:", lengths)
print("read at the last position:", [tokenizer.decode([token]) for token in batch[:, -1]])

# %% [markdown]
# Two of the three messages are read at `<|endoftext|>`, which is padding. The lecture pads every
# message to the length of the longest training message. How many of our training messages does it then
# read at their last token? Guess, and count:

# %%
train = split_messages(load_messages(DATA), balance=True).train
encoded_train, _ = encode_texts([m.text for m in train], tokenizer, model.config.n_ctx)
longest = max(len(message) for message in encoded_train)
padded = sum(len(message) < longest for message in encoded_train)
print(f"longest message: {longest} tokens")
print(f"{padded} of {len(train)} messages are read at padding")

# %% [markdown]
# In the lecture's own training set, it is 1,044 of 1,045 messages. So the lecture says "the last
# token", and its code reads the last *position*, which is nearly always padding. The picture shows
# both places for eight messages.

# %%
few, few_lengths = pad_batch(encoded_train[:8], pad_id)
real = torch.arange(few.shape[1]) < few_lengths[:, None]
figure = Figure(figsize=(9, 3.4), layout="constrained")
axes = figure.subplots()
axes.imshow(real.numpy(), cmap="tab20c_r", vmin=-0.1, vmax=1.1, aspect="auto", alpha=0.4)
axes.text(1, 7, "tokens of the text", va="center")
axes.text(few.shape[1] - 4, 7, "padding", va="center", ha="right")
rows = range(len(few))
last_column = [few.shape[1] - 1] * len(few)
axes.scatter(
    (few_lengths - 1).numpy(), rows, color="#009E73", label="last token of the text", zorder=2
)
axes.scatter(last_column, rows, color="#D55E00", marker="x", label="last position", zorder=3)
axes.set(xlabel="position", ylabel="message", title="Where eight messages are read")
figure.legend(loc="outside lower center", ncols=2)
picture(figure, "07-places")

# %% [markdown]
# ## Read each text at its own last token
#
# The number of real tokens of each text is in `lengths`. The last real token of a text is therefore at
# position `lengths - 1`. We pick it for each row:

# %%
with torch.no_grad():
    outputs = model(batch)
rows = torch.arange(len(batch))
at_last_position = outputs[:, -1, :]
at_last_token = outputs[rows, lengths - 1]
print("last position:")
print(at_last_position)
print("last token:")
print(at_last_token)

# %% [markdown]
# The third text is the longest, so both ways read the same token, and its logits agree. The other two
# differ. In the package, the function `class_logits` does this. It can read a text in several places,
# and it calls `read_positions` to find the chosen place in each text. (Making one vector or answer out
# of those of all tokens is called *pooling*. So the argument that names the place is called
# `pooling`.)

# %%
show(read_positions)

# %%
with torch.no_grad():
    print(class_logits(model, batch, lengths, "last_token"))

# %% [markdown]
# ## More padding, another answer
#
# Does it matter where we read, as long as we always do the same? The last position does see the whole
# text, because the text comes before it. But it also sees the padding. We take one message, put more
# and more padding after it, and read both places:

# %%
message = "Ringtone Club: Gr8 new polys direct to your mobile every week !"
message_ids = tokenizer.encode(message)
position_answers = []
token_answers = []
print("pads   last position   last token      P(spam)")
for pads in (0, 1, 2, 5, 20, 50):
    padded_ids = torch.tensor([message_ids + [pad_id] * pads])
    with torch.no_grad():
        p_spam = model(padded_ids).softmax(dim=-1)[0, :, 1]
    position_answers.append(p_spam[-1].item())
    token_answers.append(p_spam[len(message_ids) - 1].item())
    print(f"{pads:>4} {position_answers[-1]:>15.4f} {token_answers[-1]:>12.4f}")

# %% [markdown]
# The message has not changed, and the answer at the last position changes with every row. The answer
# at the last token stays the same, because that token comes before the padding and cannot see it. So
# with the last position, the answer for a message depends on how long the other messages in its batch
# are. The head is random here. Chapter 13 shows the same with classifiers that have been trained.
#
# What does GPT-2 itself make of the padding? We put its own head back and look at the tokens that it
# expects after "Do you have time", first without padding and then after one `<|endoftext|>`.

# %%
gpt2 = load_gpt2(MODEL)
with torch.no_grad():
    without = gpt2(torch.tensor([ids]))[0, -1].softmax(dim=0).topk(6)
    with_pad = gpt2(torch.tensor([ids + [pad_id]]))[0, -1].softmax(dim=0).topk(6)
figure = Figure(figsize=(8, 2.8), layout="constrained")
left, right = figure.subplots(1, 2, sharex=True)
names = [repr(tokenizer.decode([token])) for token in without.indices]
left.barh(names[::-1], 100 * without.values.flip(0).numpy(), color="#009E73")
left.set(title="after the last token, ' time'", xlabel="probability (%)")
names = [repr(tokenizer.decode([token])) for token in with_pad.indices]
right.barh(names[::-1], 100 * with_pad.values.flip(0).numpy(), color="#D55E00")
right.set(title="after one <|endoftext|> more", xlabel="probability (%)")
figure.suptitle("What GPT-2 expects after 'Do you have time'")
picture(figure, "07-next")

# %% [markdown]
# After the last token, GPT-2 expects the sentence to go on. After one padding token, it expects the
# beginning of a new text: in its training data, `<|endoftext|>` separated one document from the next.
# So at a padding position GPT-2 has already turned to the next document. That is a strange place to
# ask about the previous one. Training can teach it to answer there, as the lecture shows. But first it
# has to undo part of what GPT-2 has learned.

# %% [markdown]
# ## Is padding on the left better?
#
# If the padding comes first, the last token of every text is at the last position, and
# `outputs[:, -1, :]` reads it. That looks like a simple solution. Guess: does the answer stay the
# same?

# %%
print("pads on the left   P(spam)")
left_answers = []
for pads in (0, 1, 2, 5, 20, 50):
    left_padded = torch.tensor([[pad_id] * pads + message_ids])
    with torch.no_grad():
        p_spam = model(left_padded)[:, -1, :].softmax(dim=-1)[0, 1]
    left_answers.append(p_spam.item())
    print(f"{pads:>16} {left_answers[-1]:>9.4f}")

# %% [markdown]
# It does not, for two reasons. Every real token now looks back at the padding. And each token has
# moved to a later position, so GPT-2 adds another row of `wpe` to it. If a batch comes from somewhere
# else with padding on the left, `pad_right` moves the real tokens to the front:

# %%
left_padded = torch.tensor([[pad_id] * 5 + message_ids])
moved_ids, moved_lengths = pad_right(left_padded, left_padded != pad_id)
with torch.no_grad():
    repaired = class_logits(model, moved_ids, moved_lengths, "last_token").softmax(dim=-1)
print(f"after pad_right: {repaired[0, 1].item():.4f}; without padding: {token_answers[0]:.4f}")

# %% [markdown]
# So we pad on the right and read at the last token. Then a text has one answer, with any padding and
# in any batch.

# %% [markdown]
# ## What you know now
#
# - The answer at a token depends on that token and the ones before it. Only the last token has seen
#   everything.
# - In a padded batch, `outputs[:, -1, :]` reads padding for all texts except the longest.
# - `outputs[rows, lengths - 1]` reads each text at its own last token.
# - The answer at the last position changes with the amount of padding. The answer at the last token
#   does not.
# - At padding, GPT-2 expects a new text.
# - Padding on the left changes the answer at every token.

# %% [markdown]
# ## Checks
#
# These cells check what the chapter said. They are folded in the notebook; an error here means that
# something is wrong.

# %% check
assert torch.equal(moved, torch.ones(T, T).tril().bool())
print(
    "checked: changing a token changes the answer at this token and at all later ones, nowhere else"
)

# %% check
for row, text_ids in enumerate(encoded):
    with torch.no_grad():
        alone = model(torch.tensor([text_ids]))[0, -1]
    assert torch.allclose(at_last_token[row], alone, atol=1e-4)
assert padded == sum(len(tokenizer.encode(m.text)) != longest for m in train)
assert (batch[:2, -1] == pad_id).all() and padded > 0.9 * len(train)
print("checked: at its last token, a text in a batch has the logits that it has alone")

# %% check
with torch.no_grad():
    found_token = class_logits(model, batch, lengths, "last_token")
    found_position = class_logits(model, batch, lengths, "last_position")
assert torch.allclose(found_token, at_last_token, atol=1e-4)
assert torch.allclose(found_position, at_last_position, atol=1e-4)
print("checked: class_logits reads the same places as our own lines")

# %% check
assert max(token_answers) - min(token_answers) < 1e-5
assert max(position_answers) - min(position_answers) > 1e-3
print("checked: padding changes the answer at the last position, and not at the last token")

# %% check
assert without.indices[0] != with_pad.indices[0]
begins_a_word = [tokenizer.decode([token]).startswith(" ") for token in with_pad.indices]
assert MODEL != "mini" or not any(begins_a_word)  # a text does not begin with a space
print("checked: after padding, GPT-2 expects other tokens, which begin a text")

# %% check
assert max(left_answers) - min(left_answers) > 1e-3
assert moved_ids[0, : len(message_ids)].tolist() == message_ids
assert moved_lengths.tolist() == [len(message_ids)]
assert abs(repaired[0, 1].item() - token_answers[0]) < 1e-5
print("checked: padding on the left changes the answer, and pad_right repairs it")

# %% [markdown]
# ## Exercises
#
# 1. (easy) Read 100 messages at their first token. How many different answers are there, and why?
#    <details><summary>Hint</summary>Look at the first row of the table with "yes" in it.</details>
# 2. (medium) Other libraries take the first `<|endoftext|>` of a row as the end of its text. For which
#    texts does that fail?
#    <details><summary>Hint</summary>Two documents that somebody has joined.</details>
# 3. (hard) Padding on the left does harm for two reasons. Give each token its right position, but let
#    it see the padding. Then hide the padding as well. When is the answer the same as without padding?
#    <details><summary>Hint</summary>`block.attn.attend` takes a table of who may see whom.</details>
#
# Solutions: [`solutions/07_last_token.py`](solutions/07_last_token.py).
