"""Every head compared with Hugging Face: the same weights, outputs, losses and gradients.

B texts, T tokens of the longest, C = n_embd, K outputs of a head. Numbers count as close if they
differ by at most 1e-5, or by 1e-5 of the largest number in their tensor.
"""

import json
import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from said import listen
from tiny import TINY
from torch import Tensor, nn

from gpt2_from_scratch.classifier.classifier import Classifier
from gpt2_from_scratch.classifier.settings import HeadConfig
from gpt2_from_scratch.classifier.tasks import TASKS
from gpt2_from_scratch.classifier.tasks.task import Targets
from gpt2_from_scratch.data.messages import Message, Span
from gpt2_from_scratch.errors import CheckpointError
from gpt2_from_scratch.runs.exporting import export
from gpt2_from_scratch.speed.batching import pad_batch

transformers = pytest.importorskip("transformers")

C, PAD = TINY["n_embd"], TINY["n_vocab"] - 1
LABELS = ("ham", "other", "spam")
TEXTS = ["the cat is in the house", "win", "you and the other one at ten", "héllo 🎉 there and"]
# equal lengths after a cut to 8 tokens
ONE_LENGTH = [f"{text} and where is the mat" for text in TEXTS]


def close(found: Tensor, expected: Tensor) -> None:
    size = max(1.0, float(expected.detach().abs().max()))
    torch.testing.assert_close(found, expected, atol=1e-5 * size, rtol=0)


def close_on_tokens(found: Tensor, expected: Tensor, ids: Tensor) -> None:
    """Compare outputs (B, T, K) at real tokens; at padding they are not computed here."""
    real = ids != PAD  # (B, T)
    assert real.any(dim=1).all()
    close(found[real], expected[real])


def our_classifier(base: Path, head: HeadConfig, max_tokens: int = 32) -> Classifier:
    """The tiny model with one head; all weights have std 0.2."""
    ours = Classifier.on_base(base, heads=[head], max_tokens=max_tokens)
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for name, parameter in ours.model.named_parameters():
            if name.startswith("head."):
                parameter.normal_(0.0, 0.2, generator=generator)
    return ours


def their_parameter(theirs: nn.Module, name: str) -> nn.Parameter:
    inner = getattr(theirs, "transformer", theirs)
    return inner.get_parameter(name.replace("blocks.", "h."))


def as_theirs(name: str, tensor: Tensor) -> Tensor:
    """Their Conv1D stores (in, out), our nn.Linear (out, in)."""
    turned = name.endswith("weight") and any(
        part in name for part in (".c_attn", ".c_proj", ".c_fc")
    )
    return tensor.T if turned else tensor


def backbone(ours: Classifier) -> dict[str, nn.Parameter]:
    return {n: p for n, p in ours.model.named_parameters() if not n.startswith("head.")}


def their_model(kind: str, ours: Classifier, **settings: Any) -> nn.Module:
    """Hugging Face's model with our backbone's weights, and without dropout."""
    config = transformers.GPT2Config(
        vocab_size=TINY["n_vocab"],
        n_positions=TINY["n_ctx"],
        n_embd=C,
        n_head=TINY["n_head"],
        n_layer=TINY["n_layer"],
        resid_pdrop=0,
        embd_pdrop=0,
        attn_pdrop=0,
        bos_token_id=PAD,
        eos_token_id=PAD,
        pad_token_id=PAD,
        **settings,
    )
    theirs = getattr(transformers, kind)(config).eval()
    with torch.no_grad():
        for name, parameter in backbone(ours).items():
            their_parameter(theirs, name).copy_(as_theirs(name, parameter))
    return theirs


def copied(theirs: nn.Module, ours: nn.Module) -> None:
    """Copy our last layer; if theirs has no bias, set our bias to 0."""
    with torch.no_grad():
        theirs.weight.copy_(ours.weight)
        ours.bias.zero_() if theirs.bias is None else theirs.bias.copy_(ours.bias)


def our_loss(
    ours: Classifier, texts: Sequence[str], labels: Sequence[Any]
) -> tuple[Tensor, Tensor, Targets, Tensor]:
    """The head's outputs, their mean loss, the targets, and the padded ids."""
    messages = [Message(text, label) for text, label in zip(texts, labels, strict=True)]
    encoded, _ = ours.encode(texts)
    head = ours.description.head
    targets = TASKS[head.task].targets(head, messages, encoded, ours.tokenizer)
    everyone = list(range(len(texts)))
    outputs, lengths = ours.batch_outputs(ours.texts(encoded), everyone)
    total = TASKS[head.task].loss_sum(head, outputs[head.name], targets.batch(everyone), lengths)
    return outputs[head.name], total / targets.weights.sum(), targets, pad_batch(encoded, PAD)[0]


def same_gradients(ours: Classifier, loss: Tensor, theirs: nn.Module, their_loss: Tensor) -> None:
    """Compare all gradients of the backbone, and check where they are 0.

    They are 0 only for parameters that shift all tokens of a span equally.
    """
    loss.backward()
    their_loss.backward()
    for name, parameter in backbone(ours).items():
        expected = their_parameter(theirs, name).grad
        close(as_theirs(name, parameter.grad), expected)
        assert expected.abs().max() > 1e-3 or name == "ln_f.bias", name


# --- GPT2ForSequenceClassification ---

VALUES = (0.5, -1.0, 2.0, 0.1)
SEQUENCE: list[tuple[HeadConfig, str, list[Any], Callable[[list[Any]], Tensor]]] = [
    (
        HeadConfig(labels=LABELS),
        "single_label_classification",
        ["ham", "spam", "other", "ham"],
        lambda labels: torch.tensor([LABELS.index(label) for label in labels]),
    ),
    (
        HeadConfig(task="multi-label", labels=LABELS),
        "multi_label_classification",
        [("ham", "spam"), (), ("other",), LABELS],
        lambda labels: torch.tensor([[float(name in some) for name in LABELS] for some in labels]),
    ),
    (HeadConfig(task="regression", labels=("stars",)), "regression", [*VALUES], torch.tensor),
    (
        HeadConfig(task="regression", labels=("a", "b")),
        "regression",
        [(value, 1 - value) for value in VALUES],
        torch.tensor,
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize("head, problem, labels, numbers", SEQUENCE)
def test_sequence_classification(
    tiny_checkpoint: Path,
    head: HeadConfig,
    problem: str,
    labels: list[Any],
    numbers: Callable[[list[Any]], Tensor],
) -> None:
    """Our bias is 0, because theirs has none."""
    ours = our_classifier(tiny_checkpoint, head)
    theirs = their_model(
        "GPT2ForSequenceClassification", ours, num_labels=head.n_outputs, problem_type=problem
    )
    copied(theirs.score, ours.model.head)
    outputs, loss, _, ids = our_loss(ours, TEXTS, labels)
    expected = theirs(ids, labels=numbers(labels))
    close(outputs, expected.logits)
    close(loss, expected.loss)
    same_gradients(ours, loss, theirs, expected.loss)
    close(ours.model.head.weight.grad, theirs.score.weight.grad)


@pytest.mark.slow
def test_difference_our_head_has_a_bias(tiny_checkpoint: Path) -> None:
    ours = our_classifier(tiny_checkpoint, HeadConfig(labels=LABELS))
    theirs = their_model("GPT2ForSequenceClassification", ours, num_labels=3)
    assert theirs.score.bias is None
    with torch.no_grad():
        theirs.score.weight.copy_(ours.model.head.weight)
    outputs, _, _, ids = our_loss(ours, TEXTS, ["ham"] * 4)
    close(outputs, theirs(ids).logits + ours.model.head.bias)
    assert ours.model.head.bias.abs().min() > 0.01


@torch.no_grad()
def test_difference_a_text_may_end_in_the_pads_id(tiny_checkpoint: Path) -> None:
    """They read the rightmost token that is not the padding's id; we use the length."""
    ours = our_classifier(tiny_checkpoint, HeadConfig(labels=LABELS))
    theirs = their_model("GPT2ForSequenceClassification", ours, num_labels=3)
    copied(theirs.score, ours.model.head)
    plain, marked = [9, 8, 7], [9, 8, 7, PAD]
    found = ours.logits([plain, marked])
    expected = theirs(pad_batch([plain, marked], PAD)[0]).logits
    close(found[0], expected[0])
    close(expected[1], expected[0])  # they treat both as the same text
    assert (found[1] - found[0]).abs().max() > 0.1
    close(found[1], ours.model(torch.tensor([marked]))[0, -1])


# --- GPT2ForTokenClassification ---

TAGS = ("O", "B-x", "I-x")


def words_of(text: str) -> list[Span]:
    """The words of a text, with tags assigned in turn."""
    spans, start = [], 0
    for n, word in enumerate(text.split(" ")):
        spans.append(Span(start, start + len(word), TAGS[n % 3]))
        start += len(word) + 1
    return spans


def their_tags(ours: Classifier, texts: Sequence[str]) -> Tensor:
    """-100 except at the token with a word's first byte, found byte by byte: (B, T)."""
    rows = []
    for text, ids in zip(texts, ours.encode(texts)[0], strict=True):
        owner = [t for t, token in enumerate(ids) for _ in ours.tokenizer.token_bytes(token)]
        row = [-100] * len(ids)
        for word in words_of(text):
            place = len(text[: word.start].encode())
            if place < len(owner):
                row[owner[place]] = TAGS.index(word.label)
        rows.append(row)
    return pad_batch(rows, -100)[0]


@pytest.mark.slow
@pytest.mark.parametrize("max_tokens", [32, 6])
def test_token_classification(tiny_checkpoint: Path, max_tokens: int) -> None:
    """Words of several tokens, padding, and texts that are cut within a word."""
    ours = our_classifier(
        tiny_checkpoint, HeadConfig(task="token-classification", labels=TAGS), max_tokens
    )
    theirs = their_model("GPT2ForTokenClassification", ours, num_labels=3)
    copied(theirs.classifier, ours.model.head)
    outputs, loss, targets, ids = our_loss(ours, TEXTS, [words_of(text) for text in TEXTS])
    wanted = their_tags(ours, TEXTS)
    assert (wanted == -100).sum() > (wanted != -100).sum() > 3
    expected = theirs(ids, labels=wanted)
    close_on_tokens(outputs, expected.logits, ids)
    close(loss, expected.loss)
    assert float(targets.counts.sum()) == int((wanted != -100).sum())
    same_gradients(ours, loss, theirs, expected.loss)
    close(ours.model.head.weight.grad, theirs.classifier.weight.grad)
    close(ours.model.head.bias.grad, theirs.classifier.bias.grad)


# --- GPT2ForQuestionAnswering ---

ANSWERS = [Span(1, 3), Span(0, 3), Span(4, 5), Span(0, 1)]


def their_ends(ours: Classifier, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """The tokens with the first and the last byte of each answer."""
    starts, ends = [], []
    for text, ids, span in zip(texts, ours.encode(texts)[0], ANSWERS, strict=True):
        owner = [t for t, token in enumerate(ids) for _ in ours.tokenizer.token_bytes(token)]
        starts.append(owner[len(text[: span.start].encode())])
        ends.append(owner[len(text[: span.end].encode()) - 1])
    return torch.tensor(starts), torch.tensor(ends)


def test_question_answering(tiny_checkpoint: Path) -> None:
    """All texts have the same length, so there is no padding."""
    ours = our_classifier(tiny_checkpoint, HeadConfig(task="span"), max_tokens=8)
    theirs = their_model("GPT2ForQuestionAnswering", ours)
    copied(theirs.qa_outputs, ours.model.head)
    outputs, loss, _, ids = our_loss(ours, ONE_LENGTH, ANSWERS)
    assert PAD not in ids
    start, end = their_ends(ours, ONE_LENGTH)
    expected = theirs(ids, start_positions=start, end_positions=end)
    close(outputs, torch.stack([expected.start_logits, expected.end_logits], dim=2))
    close(loss, expected.loss)
    same_gradients(ours, loss, theirs, expected.loss)
    close(ours.model.head.weight.grad, theirs.qa_outputs.weight.grad)
    close(ours.model.head.bias.grad, theirs.qa_outputs.bias.grad)


def test_difference_padding_is_never_an_answer(tiny_checkpoint: Path) -> None:
    """Their model can choose padding, so a text's loss depends on the other texts in the batch."""
    ours = our_classifier(tiny_checkpoint, HeadConfig(task="span"))
    theirs = their_model("GPT2ForQuestionAnswering", ours)
    copied(theirs.qa_outputs, ours.model.head)
    outputs, loss, _, ids = our_loss(ours, TEXTS, ANSWERS)
    assert (ids == PAD).any()
    start, end = their_ends(ours, TEXTS)
    padded = theirs(ids, start_positions=start, end_positions=end)
    close_on_tokens(outputs, torch.stack([padded.start_logits, padded.end_logits], dim=2), ids)
    alone = [
        theirs(torch.tensor([row]), start_positions=a[None], end_positions=b[None]).loss
        for row, a, b in zip(ours.encode(TEXTS)[0], start, end, strict=True)
    ]
    close(loss, torch.stack(alone).mean())
    assert padded.loss.item() - loss.item() > 0.1


# --- RobertaClassificationHead ---


@pytest.mark.parametrize("training", [False, True])
def test_robertas_head(tiny_checkpoint: Path, training: bool) -> None:
    """Also in training with the same seed: dropout is drawn in the same order."""
    from transformers.models.roberta.modeling_roberta import RobertaClassificationHead

    layers = HeadConfig(labels=LABELS, hidden=(C,), activation="tanh", dropout=0.1)
    ours = our_classifier(tiny_checkpoint, layers)
    theirs = RobertaClassificationHead(
        transformers.RobertaConfig(hidden_size=C, num_labels=3, classifier_dropout=0.1)
    )
    copied(theirs.dense, ours.model.head.dense_0)
    copied(theirs.out_proj, ours.model.head.out)
    ours.model.train(training)
    theirs.train(training)
    torch.manual_seed(5)
    outputs, loss, _, ids = our_loss(ours, TEXTS, ["ham", "spam", "other", "ham"])
    theirs_too = their_model("GPT2Model", ours)
    ends = torch.tensor([len(row) - 1 for row in ours.encode(TEXTS)[0]])
    state = theirs_too(ids).last_hidden_state[torch.arange(4), ends]
    torch.manual_seed(5)
    expected = theirs(state[:, None])
    close(outputs, expected)
    their_loss = F.cross_entropy(expected, torch.tensor([0, 2, 1, 0]))
    close(loss, their_loss)
    same_gradients(ours, loss, theirs_too, their_loss)
    for layer, their_layer in (("dense_0", theirs.dense), ("out", theirs.out_proj)):
        mine = ours.model.head.get_submodule(layer)
        close(mine.weight.grad, their_layer.weight.grad)
        close(mine.bias.grad, their_layer.bias.grad)
    ours.model.eval()
    with torch.no_grad():
        apart = ours.logits(ours.encode(TEXTS)[0]) - outputs
    assert (apart.abs().max() > 0.01) == training  # dropout had an effect, but only in training


# --- GPT2LMHeadModel, and the language head of GPT2DoubleHeadsModel ---


@pytest.mark.parametrize("kind", ["GPT2LMHeadModel", "GPT2DoubleHeadsModel"])
def test_language(tiny_checkpoint: Path, kind: str) -> None:
    """The loss is the mean over all next tokens; the gradient of wte includes both its uses."""
    ours = our_classifier(tiny_checkpoint, HeadConfig(task="language"))
    theirs = their_model(kind, ours)
    assert ours.model.head.weight is ours.model.wte.weight
    assert theirs.lm_head.weight is theirs.transformer.wte.weight
    outputs, loss, targets, ids = our_loss(ours, TEXTS, [None] * 4)
    encoded, _ = ours.encode(TEXTS)
    wanted = pad_batch(encoded, -100)[0]
    expected = theirs(ids, labels=wanted)
    close_on_tokens(outputs, expected.logits, ids)
    close(loss, expected.loss)
    assert targets.weights.sum().item() == sum(len(row) - 1 for row in encoded)
    same_gradients(ours, loss, theirs, expected.loss)


def test_the_logit_lens(tiny_checkpoint: Path) -> None:
    """Their hidden states come before the final norm, except for the last."""
    lenses = [HeadConfig(f"layer_{n}", "language", layer=n) for n in range(TINY["n_layer"] + 1)]
    ours = Classifier.on_base(tiny_checkpoint, heads=lenses)
    theirs = their_model("GPT2LMHeadModel", ours)
    for text, prediction in zip(TEXTS, ours.predict(TEXTS), strict=True):
        ids = torch.tensor(ours.encode([text])[0])
        with torch.no_grad():
            *inner, last = theirs(ids, output_hidden_states=True).hidden_states
            states = [*map(theirs.transformer.ln_f, inner), last]
            logits = [theirs.lm_head(x)[0, :-1] for x in states]
        for lens, found in zip(lenses, logits, strict=True):
            nats = torch.nn.functional.cross_entropy(found, ids[0, 1:], reduction="sum")
            assert prediction.answers[lens.name].nats == pytest.approx(nats.item(), rel=1e-4)


# --- classifiers that transformers saved ---


def saved_by_transformers(
    folder: Path,
    base: Path,
    kind: str = "GPT2ForSequenceClassification",
    labels: Sequence[str] = LABELS,
    **settings: Any,
) -> nn.Module:
    """Save a classifier of transformers with the weights and the vocabulary of `base`."""
    ours = our_classifier(base, HeadConfig(labels=LABELS, pooling="last_token"))
    theirs = their_model(kind, ours, id2label=dict(enumerate(labels)), **settings)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if not name.startswith("transformer."):
                parameter.normal_(0.0, 0.2, generator=generator)
    theirs.save_pretrained(folder)
    for name in ("vocab.bpe", "encoder.json"):
        shutil.copyfile(base / name, folder / name)
    return theirs


@pytest.mark.slow
def test_a_saved_sequence_classifier_gives_the_same_probabilities(tiny_checkpoint, tmp_path):
    theirs = saved_by_transformers(tmp_path, tiny_checkpoint)
    ours = Classifier.load(tmp_path)
    predictions = list(ours.predict(TEXTS))
    encoded, _ = ours.encode(TEXTS)
    for text, ids, prediction in zip(TEXTS, encoded, predictions, strict=True):
        with torch.no_grad():
            expected = theirs(torch.tensor([ids])).logits[0].softmax(-1)
        assert prediction.label == LABELS[int(expected.argmax())], text
        for label, probability in zip(LABELS, expected.tolist(), strict=True):
            assert prediction.probabilities[label] == pytest.approx(probability, abs=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pad_token_id": 5}, "pad_token_id is 5"),
        ({"problem_type": "ranking"}, "problem_type is 'ranking'"),
        ({"id2label": {"0": "a"}, "problem_type": "single_label_classification"}, "1 outputs"),
        ({"id2label": {"0": "a", "2": "b"}}, "id2label"),
        ({"id2label": {"0": "a", "1": "b"}}, r"\(3, 32\)"),
    ],
)
def test_a_sequence_classifier_that_would_answer_otherwise(
    tiny_checkpoint, tmp_path, change, message
):
    saved_by_transformers(tmp_path, tiny_checkpoint)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=message):
        Classifier.load(tmp_path)


@pytest.mark.parametrize("kind", ["GPT2ForQuestionAnswering", "GPT2DoubleHeadsModel"])
def test_another_head_is_named(tiny_checkpoint, tmp_path, kind):
    saved_by_transformers(tmp_path, tiny_checkpoint)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"architectures": [kind]}))
    with pytest.raises(CheckpointError, match=f"{kind}.* --model"):
        Classifier.load(tmp_path)


def on_single_texts(theirs: nn.Module, encoded: Sequence[Sequence[int]]) -> list[Tensor]:
    """Their logits for each text: (K,) or (T, K)."""
    with torch.no_grad():
        return [theirs(torch.tensor([ids])).logits[0] for ids in encoded]


SAVED: list[tuple[str, Sequence[str], str | None, str]] = [  # class, labels, problem, our task
    ("GPT2ForSequenceClassification", LABELS, None, "classification"),
    ("GPT2ForSequenceClassification", LABELS, "single_label_classification", "classification"),
    ("GPT2ForSequenceClassification", LABELS, "multi_label_classification", "multi-label"),
    ("GPT2ForSequenceClassification", ["one"], "multi_label_classification", "multi-label"),
    ("GPT2ForSequenceClassification", ["stars"], None, "regression"),
    ("GPT2ForSequenceClassification", ["stars"], "regression", "regression"),
    ("GPT2ForSequenceClassification", ["a", "b"], "regression", "regression"),
    ("GPT2ForTokenClassification", TAGS, None, "token-classification"),
]


@pytest.mark.parametrize(("kind", "labels", "problem", "task"), SAVED)
def test_a_saved_classifier_gives_the_same_logits_there_and_back(
    tiny_checkpoint: Path,
    tmp_path: Path,
    kind: str,
    labels: Sequence[str],
    problem: str | None,
    task: str,
) -> None:
    """Saved by transformers, loaded here, exported, loaded by transformers, and loaded here."""
    settings = {"problem_type": problem} if problem else {}
    theirs = saved_by_transformers(tmp_path / "saved", tiny_checkpoint, kind, labels, **settings)
    warnings = listen(logging.WARNING)
    ours = Classifier.load(tmp_path / "saved")
    ours.changed_names()  # reads the base
    assert not warnings, "the head is used"
    assert ours.description.head.task == task
    assert ours.description.labels == [*labels]
    export(ours, tmp_path / "exported")
    again = getattr(transformers, kind).from_pretrained(tmp_path / "exported").eval()
    back = Classifier.load(tmp_path / "exported")
    assert back.description.heads == ours.description.heads
    encoded, _ = ours.encode(TEXTS)
    expected = on_single_texts(theirs, encoded)
    for logits in (on_single_texts(again, encoded), ours_on(ours, encoded), ours_on(back, encoded)):
        for found, wanted in zip(logits, expected, strict=True):
            torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)


def ours_on(ours: Classifier, encoded: Sequence[Sequence[int]]) -> list[Tensor]:
    """Our outputs for each text: (K,) or (T, K)."""
    rows: dict[int, Tensor] = {}
    for numbers, outputs, lengths in ours.outputs(encoded):
        for n, row, length in zip(numbers, outputs["label"], lengths, strict=True):
            rows[n] = row if row.dim() == 1 else row[:length]
    return [rows[n] for n in range(len(encoded))]


@pytest.mark.slow
@pytest.mark.parametrize(
    "head",
    [
        HeadConfig(labels=LABELS, temperature=1.5),
        HeadConfig(labels=("a", "b"), one_output=True),
        HeadConfig(task="multi-label", labels=LABELS),
        HeadConfig(task="regression", labels=("stars",), center=(3.0,), scale=(1.5,)),
        HeadConfig(labels=LABELS, pooling="last_token"),
    ],
)
def test_our_own_export_is_read_again(
    tiny_checkpoint: Path, tmp_path: Path, head: HeadConfig
) -> None:
    """Also with an end token, and after transformers saved model and tokenizer again."""
    ours = our_classifier(tiny_checkpoint, head)
    export(ours, tmp_path / "exported")
    texts = [*TEXTS, "cafe\u0301 \r\n\u200b", "and where is the mat " * 9]
    kind = transformers.AutoModelForSequenceClassification
    kind.from_pretrained(tmp_path / "exported").save_pretrained(tmp_path / "saved")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "exported")
    tokenizer.save_pretrained(tmp_path / "saved")
    for name in ("exported", "saved"):
        back = Classifier.load(tmp_path / name)
        assert back.description.head.pooling == head.pooling
        assert back.encode(texts) == ours.encode(texts)
        for found, expected in zip(back.predict(texts), ours.predict(texts), strict=True):
            ours_of, theirs_of = (
                getattr(each.answer, "probabilities", None) or each.answer.values
                for each in (expected, found)
            )
            assert theirs_of == pytest.approx(ours_of, abs=1e-5)


def test_another_template_is_still_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """A tokenizer that appends another token, or tidies otherwise, would give other answers."""
    export(our_classifier(tiny_checkpoint, HeadConfig(labels=LABELS)), tmp_path / "out")
    path = tmp_path / "out" / "tokenizer.json"
    contents = json.loads(path.read_text())
    other = contents | {"normalizer": None}
    path.write_text(json.dumps(other))
    with pytest.raises(CheckpointError, match="adds tokens"):
        Classifier.load(tmp_path / "out")
    path.write_text(json.dumps(contents | {"post_processor": None}))
    with pytest.raises(CheckpointError, match="normalizer"):
        Classifier.load(tmp_path / "out")
    contents["normalizer"]["normalizers"][0]["type"] = "NFKC"
    path.write_text(json.dumps(contents))
    with pytest.raises(CheckpointError, match="normalizer"):
        Classifier.load(tmp_path / "out")
