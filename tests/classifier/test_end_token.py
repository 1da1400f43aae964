"""Heads that read an end token: what a reader cannot see changes no answer, to the last bit."""

import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gpt2_from_scratch.classifier.classifier import Classifier
from gpt2_from_scratch.classifier.settings import HeadConfig, TrainConfig
from gpt2_from_scratch.classifier.train import finetune, to_labelled
from gpt2_from_scratch.data.messages import Message, Span, other_ending
from gpt2_from_scratch.data.split import Split
from gpt2_from_scratch.errors import UsageError
from gpt2_from_scratch.gpt2.config import LoRAConfig
from gpt2_from_scratch.speed.batching import encode_texts, end_tokens, tidied

TEXTS = ["the cat is in the house", "win", "héllo 🎉 at ten", "one\ntwo", "you and the other " * 20]
INVISIBLE = [" ", "\n", "\r\n", "\t ", "\u00a0", "\u3000", "\ufeff", "\u200b", "\u200d", "\u2060"]
INVISIBLE += [
    "\u00ad",
    "\u180e",
    "\u034f",
    "\u3164",
    "\ufe0f",
    "\x00",
    "\u2028",
    " \ufeff\n\u200b ",
]


@pytest.fixture
def reader(tiny_checkpoint: Path) -> Classifier:
    """A classifier of two classes that reads an end token."""
    return Classifier.on_base(tiny_checkpoint, ["ham", "spam"], pooling="end_token")


def probabilities(classifier: Classifier, texts: list[str]) -> np.ndarray:
    return np.array([[*found.probabilities.values()] for found in classifier.predict(texts)])


# --- stability ---


@pytest.mark.parametrize("mark", INVISIBLE, ids=ascii)
def test_what_is_invisible_at_the_end_changes_nothing(reader: Classifier, mark: str) -> None:
    changed = [text + mark for text in TEXTS]
    np.testing.assert_array_equal(probabilities(reader, changed), probabilities(reader, TEXTS))


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace("\n", "\r"),
        lambda text: unicodedata.normalize("NFD", text),
    ],
    ids=["CRLF", "CR", "NFD"],
)
def test_another_way_to_write_the_same_changes_nothing(reader: Classifier, change) -> None:
    changed = [change(text) for text in TEXTS]
    assert changed != TEXTS
    np.testing.assert_array_equal(probabilities(reader, changed), probabilities(reader, TEXTS))


def test_a_full_stop_does_change_an_answer(reader: Classifier) -> None:
    """The tests above would pass for a classifier that reads nothing."""
    changed = probabilities(reader, [text + "." for text in TEXTS[:4]])
    assert (changed != probabilities(reader, TEXTS[:4])).any(axis=1).all()


def test_the_last_token_is_not_stable(tiny_checkpoint: Path) -> None:
    reader = Classifier.on_base(tiny_checkpoint, ["ham", "spam"], pooling="last_token")
    changed = probabilities(reader, [text + "\n" for text in TEXTS[:4]])
    assert (changed != probabilities(reader, TEXTS[:4])).any(axis=1).all()


def test_only_the_end_is_removed() -> None:
    assert tidied(" \ufeffa \u200b b\n c \n") == " \ufeffa \u200b b\n c"
    assert tidied("") == tidied(" \n\ufeff") == ""
    assert tidied("a\u0301 \u2764\ufe0f!") == "á \u2764\ufe0f!"


# --- the tokens ---


def test_it_is_read_by_default(reader: Classifier, tiny_checkpoint: Path) -> None:
    by_default = Classifier.on_base(tiny_checkpoint, ["ham", "spam"])
    assert by_default.description == reader.description
    assert by_default.encode(TEXTS) == reader.encode(TEXTS)


@pytest.mark.parametrize("task", ["token-classification", "span", "language"])
def test_heads_for_every_token_read_none(tiny_checkpoint: Path, task: str) -> None:
    """By default as well: a text keeps its end, and nothing is appended."""
    labels = ("O", "B-x") if task == "token-classification" else ()
    head = HeadConfig("x", task, labels)
    kind = HeadConfig("kind", labels=("a", "b"), pooling="last_token")
    for heads in ([head], [kind, head]):
        classifier = Classifier.on_base(tiny_checkpoint, heads=heads)
        assert classifier.encode(["the cat \n"])[0] == [classifier.tokenizer.encode("the cat \n")]


def test_every_text_ends_with_the_end_tokens(reader: Classifier) -> None:
    end, tokenizer = end_tokens(reader.tokenizer), reader.tokenizer
    encoded, cut = reader.encode([*TEXTS, "", " \n"])
    assert encoded[0] == [*tokenizer.encode(TEXTS[0]), *end]
    assert encoded[4] == [*tokenizer.encode(TEXTS[4])[: 32 - len(end)], *end], "a cut text too"
    assert encoded[5] == encoded[6] == end
    assert cut == [False, False, False, False, True, False, False]


def test_training_reads_the_same_tokens_as_prediction(reader: Classifier) -> None:
    texts = [*TEXTS, "win \ufeff"]
    labelled = to_labelled(reader, [Message(text, "ham") for text in texts])
    assert [*labelled.texts.encoded] == reader.encode(texts)[0]


def test_a_text_that_just_fits_is_not_cut(reader: Classifier) -> None:
    end, text = end_tokens(reader.tokenizer), "a b c d"
    n = len(reader.tokenizer.encode(text)) + len(end)
    for limit, is_cut in ((n, False), (n - 1, True)):
        (ids,), cut = encode_texts([text + " \n"], reader.tokenizer, limit, end=end)
        assert len(ids) == limit and cut == [is_cut]


# --- the same by every route ---


@torch.no_grad()
def by_hand(classifier: Classifier, ids: list[int]) -> torch.Tensor:
    """The logits of one text, all positions computed, the last one read."""
    return classifier.model(torch.tensor([ids]))[0, -1]


def test_shortcuts_and_the_whole_model_agree(reader: Classifier) -> None:
    encoded = reader.encode(TEXTS)[0]
    expected = torch.stack([by_hand(reader, ids) for ids in encoded])
    torch.testing.assert_close(reader.logits(encoded), expected, atol=1e-4, rtol=0)
    prepared = reader.texts(encoded)
    torch.testing.assert_close(reader.logits(prepared), expected, atol=1e-4, rtol=0)


def test_the_answer_after_each_token_is_that_of_a_loop(reader: Classifier) -> None:
    text = TEXTS[0] + " \u200b"
    tokens = reader.tokenizer.encode(TEXTS[0])
    found = reader.predict_by_token(text)
    assert [token for token, _ in found] == [reader.tokenizer.decode([n]) for n in tokens]
    for t, (_, answers) in enumerate(found):
        expected = by_hand(reader, [*tokens[: t + 1], *end_tokens(reader.tokenizer)]).softmax(0)
        got = [*answers["label"].probabilities.values()]
        np.testing.assert_allclose(got, expected.numpy(), atol=1e-5)
    whole = probabilities(reader, [text])[0]
    np.testing.assert_allclose([*found[-1][1]["label"].probabilities.values()], whole, atol=1e-6)
    assert reader.predict_by_token("") == []


def test_the_answers_of_several_heads_and_adapters_are_those_of_a_loop(
    tiny_checkpoint: Path,
) -> None:
    """At three layers, with LoRA, to a text that fills the context."""
    heads = [
        HeadConfig("kind", labels=("a", "b", "c"), hidden=(8,), activation="tanh"),
        HeadConfig("early", labels=("a", "b"), layer=1, final_norm=False),
        HeadConfig("size", "regression", ("words",), layer=0),
    ]
    reader = Classifier.on_base(tiny_checkpoint, heads=heads, lora=LoRAConfig(rank=2, alpha=2))
    with torch.no_grad():
        for name, parameter in reader.model.named_parameters():
            if name.endswith("lora_B"):
                parameter.normal_(std=0.2)
    tokens = reader.tokenizer.encode(TEXTS[4])[:31]
    assert len(tokens) + len(end_tokens(reader.tokenizer)) == reader.model.config.n_ctx
    found = reader.predict_by_token(TEXTS[4])
    for t in (0, 1, 15, 30):
        ids = [*tokens[: t + 1], *end_tokens(reader.tokenizer)]
        (_, outputs, _), *_ = reader.outputs([ids])
        kind, early, size = (outputs[head.name][0] for head in heads)
        answers = found[t][1]
        for name, logits in (("kind", kind), ("early", early)):
            got = torch.tensor([*answers[name].probabilities.values()])
            torch.testing.assert_close(got, logits.softmax(0), atol=1e-5, rtol=0)
        torch.testing.assert_close(answers["size"].values["words"], size.item(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("change", ["bfloat16", "no causal mask", "a hook", "mean"])
def test_what_one_pass_cannot_compute_is_computed_text_by_text(
    tiny_checkpoint: Path, change: str
) -> None:
    reader = Classifier.on_base(
        tiny_checkpoint,
        ["ham", "spam"],
        pooling="mean" if change == "mean" else "end_token",
        causal_mask=change != "no causal mask",
        dtype=torch.bfloat16 if change == "bfloat16" else torch.float32,
    )
    if change == "a hook":
        reader.model.blocks[1].register_forward_hook(lambda _, __, x: x * 1.5)
    ids = reader.encode([TEXTS[0]])[0][0]
    tokens, end = (ids, []) if change == "mean" else (ids[:-1], ids[-1:])
    encoded = [[*tokens[: t + 1], *end] for t in range(len(tokens))]
    expected = reader.logits(encoded).softmax(dim=1)
    found = reader.predict_by_token(TEXTS[0])
    got = [[*answers["label"].probabilities.values()] for _, answers in found]
    np.testing.assert_allclose(got, expected.numpy(), atol=1e-5)


def test_of_the_last_token_the_answers_are_those_to_the_beginnings(tiny_checkpoint: Path) -> None:
    reader = Classifier.on_base(tiny_checkpoint, ["ham", "spam"], pooling="last_token")
    ids = reader.tokenizer.encode(TEXTS[0])
    expected = reader.model(torch.tensor([ids]))[0].softmax(dim=1).detach().numpy()
    found = reader.predict_by_token(TEXTS[0])
    got = [[*answers["label"].probabilities.values()] for _, answers in found]
    np.testing.assert_allclose(got, expected, atol=1e-5)


# --- what it is recorded with, and refused with ---


def test_a_saved_classifier_reads_as_it_was_trained(reader: Classifier, tmp_path: Path) -> None:
    reader.save(tmp_path / "c.safetensors")
    again = Classifier.load(tmp_path / "c.safetensors", reader.description.base)
    assert again.description == reader.description and again.description.reads_end_token
    np.testing.assert_array_equal(probabilities(again, TEXTS), probabilities(reader, TEXTS))


def test_heads_that_read_other_tokens_do_not_share_a_text(tiny_checkpoint: Path) -> None:
    end = HeadConfig("kind", labels=("a", "b"), pooling="end_token")
    tags = HeadConfig("tags", "token-classification", labels=("O", "B-x"))
    mean = HeadConfig("mean", labels=("a", "b"), pooling="mean")
    for others in ([tags], [mean], [mean, tags]):
        with pytest.raises(UsageError, match="end_token"):
            Classifier.on_base(tiny_checkpoint, heads=[end, *others])
        with pytest.raises(UsageError, match="end_token"):
            Classifier.on_base(tiny_checkpoint, heads=[*others, end])


def test_without_the_causal_mask_it_may_be_read(tiny_checkpoint: Path) -> None:
    reader = Classifier.on_base(tiny_checkpoint, ["a", "b"], pooling="end_token", causal_mask=False)
    assert len(reader.predict(TEXTS)) == len(TEXTS)


# --- training on two endings of each text ---


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("Win a prize!", "Win a prize"),
        ("Win a prize", "Win a prize."),
        ("Really? \n", "Really"),
        ("本当ですか？", "本当ですか"),
        (".", ".."),
        ("", "."),
    ],
)
def test_another_ending(text: str, other: str) -> None:
    assert other_ending(text) == other


def test_training_on_two_endings_is_training_on_twice_the_messages(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    texts = [("win!", "spam"), ("the cat", "ham"), ("at ten.", "ham"), ("win a prize", "spam")]
    messages = [Message(text, label) for text, label in texts]
    twice = [m for text, label in texts for m in (Message(text, label), Message("", label))]
    for n, other in enumerate(("win", "the cat.", "at ten", "win a prize.")):
        twice[2 * n + 1] = Message(other, texts[n][1])
    config = TrainConfig(epochs=3, batch_size=3, lr=0.01)
    histories, logits = [], []
    for train, vary in ((messages, True), (twice, False)):
        reader = Classifier.on_base(tiny_checkpoint, ["ham", "spam"])
        split, folder = Split(train, messages, []), tmp_path / str(vary)
        histories.append(finetune(reader, split, replace(config, vary_endings=vary), folder))
        logits.append(reader.logits(reader.encode(TEXTS)[0]))
    assert histories[0] == histories[1]
    assert torch.equal(*logits)
    by_default = replace(config, epochs=0, vary_endings=True)
    assert by_default.for_texts(40).epochs == 19, "27 steps per epoch, and 500 are wanted"


def test_labels_of_words_do_not_fit_another_ending(tiny_checkpoint: Path, tmp_path: Path) -> None:
    heads = [HeadConfig("tags", "token-classification", ("O", "B-x"))]
    reader = Classifier.on_base(tiny_checkpoint, heads=heads)
    messages = [Message("the cat", [Span(0, 3, "O"), Span(4, 7, "B-x")])]
    with pytest.raises(UsageError, match="vary_endings.*'tags'"):
        finetune(reader, Split(messages, messages, []), TrainConfig(vary_endings=True), tmp_path)
