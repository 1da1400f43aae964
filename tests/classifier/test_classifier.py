"""Answers equal those of a plain loop, in order, whatever the other texts; streams too."""

import copy
import json
import os
import random
import subprocess
import sys
import tracemalloc
from dataclasses import fields, replace
from operator import length_hint
from pathlib import Path

import numpy as np
import pytest
import torch
from pytest import MonkeyPatch
from three_blocks import (
    ANSWER,
    AT_THE_END,
    BOTTOM,
    HEADS,
    LABEL,
    LANGUAGE,
    N_LAYER,
    STARS,
    STATE,
    TAGS,
    TOPICS,
    assert_answers_of_the_loop,
    classifier_with,
)
from three_blocks import TEXTS as ODD_TEXTS
from torch import Tensor

from gpt2_from_scratch.classifier import classifier as module
from gpt2_from_scratch.classifier import streaming
from gpt2_from_scratch.classifier.classifier import Classifier, Prediction
from gpt2_from_scratch.classifier.freezing import plain_depth
from gpt2_from_scratch.classifier.settings import RESERVED_NAMES, HeadConfig
from gpt2_from_scratch.classifier.tasks.classification import Choice
from gpt2_from_scratch.errors import CheckpointError, DataError, UsageError
from gpt2_from_scratch.gpt2.config import LoRAConfig
from gpt2_from_scratch.gpt2.lora import lora_names
from gpt2_from_scratch.speed.feature_cache import Features
from gpt2_from_scratch.speed.feature_store import FeatureStore
from gpt2_from_scratch.speed.partial_blocks import is_plain
from gpt2_from_scratch.storage.files import no_number

TEXTS = ["the cat is in the house", "win", "", "you and the other one " * 20, "héllo 🎉 at ten"]


Asked = list[list[str]]


# --- predict ---


@pytest.mark.parametrize("pooling", ["end_token", "last_token"])
def test_predictions_are_softmax_of_the_last_state(classifier: Classifier, pooling: str) -> None:
    """By default that is the state of a newline, which is appended even to a text that is cut."""
    tokenizer, head = classifier.tokenizer, classifier.description.head
    if pooling == "last_token":
        heads = (replace(head, pooling=pooling),)
        classifier.description = replace(classifier.description, heads=heads)
    newline = next(n for n in range(277) if tokenizer.token_bytes(n) == b"\n")
    predictions = classifier.predict(TEXTS)
    for text, prediction in zip(TEXTS, predictions, strict=True):
        if pooling == "end_token":
            ids = [*tokenizer.encode(text)[:31], newline]
        else:
            ids = tokenizer.encode(text)[:32] or [tokenizer.end_of_text_id]
        with torch.no_grad():
            expected = classifier.model(torch.tensor([ids]))[0, -1].softmax(dim=0)
        assert list(prediction.probabilities) == ["ham", "other", "spam"]
        np.testing.assert_allclose(list(prediction.probabilities.values()), expected, atol=1e-5)
        assert prediction.label == ["ham", "other", "spam"][int(expected.argmax())]
        assert sum(prediction.probabilities.values()) == pytest.approx(1, abs=1e-12)
        assert prediction.n_tokens == len(ids)
    assert [p.truncated for p in predictions] == [False, False, False, True, False]


def test_answers_do_not_depend_on_the_other_texts(classifier: Classifier) -> None:
    together = classifier.predict(TEXTS)
    alone = [classifier.predict([text])[0] for text in TEXTS]
    backwards = classifier.predict(TEXTS[::-1])[::-1]
    for a, b, c in zip(together, alone, backwards, strict=True):
        assert a.label == b.label == c.label
        for label in a.probabilities:
            assert a.probabilities[label] == pytest.approx(b.probabilities[label], abs=1e-5)
            assert a.probabilities[label] == pytest.approx(c.probabilities[label], abs=1e-5)


@pytest.mark.parametrize("head", [*HEADS, BOTTOM, *AT_THE_END], ids=lambda head: head.name)
def test_each_task_answers_like_the_loop(base: Path, head: HeadConfig) -> None:
    """Duplicate texts, texts with equal beginnings, empty texts, and one that is cut."""
    assert_answers_of_the_loop(classifier_with(base, head), ODD_TEXTS)


@pytest.mark.parametrize("max_tokens", [1, 7, 32])
def test_all_tasks_at_once_answer_like_the_loop(base: Path, max_tokens: int) -> None:
    classifier = classifier_with(base, *HEADS, max_tokens=max_tokens)
    assert_answers_of_the_loop(classifier, ODD_TEXTS)
    assert classifier._made and classifier._made[1].depth == 1  # the first block ran packed
    assert_answers_of_the_loop(classifier_with(base, *AT_THE_END, max_tokens=max_tokens), ODD_TEXTS)


def test_no_block_is_packed_above_a_head(base: Path) -> None:
    classifier = classifier_with(base, *HEADS, BOTTOM)
    assert_answers_of_the_loop(classifier, ODD_TEXTS)
    assert classifier._made is None


@pytest.mark.parametrize("final_norm", [True, False])
def test_states_of_every_layer(base: Path, final_norm: bool) -> None:
    heads = [
        HeadConfig(f"at_{n}", task="features", layer=n, final_norm=final_norm)
        for n in range(N_LAYER + 1)
    ]
    assert_answers_of_the_loop(classifier_with(base, *heads), ODD_TEXTS)
    assert_answers_of_the_loop(classifier_with(base, heads[2]), ODD_TEXTS)  # a single head as well


def test_no_texts_no_answers(base: Path) -> None:
    classifier = classifier_with(base, *HEADS)
    assert classifier.predict([]) == []
    assert classifier.logits([]).shape == (0, 3)
    assert classifier_with(base, STATE).logits([]).shape == (0, 32)


@pytest.mark.parametrize("head", [TAGS, ANSWER, LANGUAGE])
def test_logits_are_one_row_per_text(base: Path, head: HeadConfig) -> None:
    classifier = classifier_with(base, head, LABEL)
    encoded = [[1, 2], [3]]
    for texts in (encoded, classifier.texts(encoded)):
        with pytest.raises(UsageError, match=f"{head.name!r}"):
            classifier.logits(texts)


def test_outputs_of_ids_and_of_prepared_texts_are_the_same(base: Path) -> None:
    """Every text occurs once, and no gradients are computed."""
    classifier = classifier_with(base, *HEADS)
    classifier.model.requires_grad_(True)
    encoded, _ = classifier.encode(ODD_TEXTS)
    found: list[dict[int, dict[str, Tensor]]] = []
    for texts in (encoded, classifier.texts(encoded)):
        by_text: dict[int, dict[str, Tensor]] = {}
        for numbers, outputs, lengths in classifier.outputs(texts):
            for row, n in enumerate(numbers):
                assert n not in by_text and int(lengths[row]) == len(encoded[n])
                rows = {name: out[row] for name, out in outputs.items()}
                assert not any(out.requires_grad for out in rows.values())
                real = slice(int(lengths[row]))
                by_text[n] = {k: out[real] if out.dim() == 2 else out for k, out in rows.items()}
        assert sorted(by_text) == list(range(len(ODD_TEXTS)))
        found.append(by_text)
    for n, outputs in found[0].items():
        for name, out in outputs.items():
            torch.testing.assert_close(out, found[1][n][name], atol=1e-3, rtol=1e-4)


def test_equal_texts_are_computed_once(base: Path, monkeypatch: MonkeyPatch) -> None:
    classifier, rows = classifier_with(base, LABEL), []
    plain = module.outputs_from

    def counted(model, heads, depth, x, lengths):
        rows.append(len(x))
        return plain(model, heads, depth, x, lengths)

    monkeypatch.setattr(module, "outputs_from", counted)
    answers = classifier.predict(["the cat", "win", "the cat"] * 5)
    assert sum(rows) == 2 and answers[0] == answers[14] != answers[1]


def test_one_string_is_not_a_list_of_texts(classifier: Classifier) -> None:
    with pytest.raises(DataError, match="not one string"):
        classifier.predict("hello")


@pytest.mark.parametrize("wrong", [None, 3, b"bytes", float("nan"), ["a"]])
def test_something_else_than_text_is_refused_by_its_index(classifier: Classifier, wrong) -> None:
    message = f"text 1, counted from 0, must be a string, not {type(wrong).__name__}"
    for on_error in ({}, {"on_error": "stop"}):
        with pytest.raises(DataError, match=message):
            classifier.predict(["fine", wrong], **on_error)


def test_something_else_than_text_is_skipped(classifier: Classifier) -> None:
    texts = [None, "the cat", 3, b"win", float("nan"), "win", ""]
    expected = classifier.predict(["the cat", "win", ""])
    found = classifier.predict(texts, on_error="skip")
    assert [found[n] for n in (1, 5, 6)] == expected
    assert [found[n] for n in (0, 2, 3, 4)] == [None] * 4
    assert classifier.predict([None], on_error="skip") == [None]
    with pytest.raises(DataError, match="not one string"):
        classifier.predict("hello", on_error="skip")
    with pytest.raises(UsageError, match="on_error"):
        classifier.predict(["hello"], on_error="perhaps")


def test_truncated_and_repaired_texts_are_marked(classifier: Classifier) -> None:
    texts = ["fine", "", " \n", "half \ud83d", "whole \ud83d\ude00", "the " * 99 + "\udcff"]
    found = classifier.predict(texts)
    assert [p.empty for p in found] == [False, True, True, False, False, False]
    assert [p.replaced for p in found] == [False, False, False, True, False, True]
    assert [p.truncated for p in found] == [False] * 5 + [True]
    assert [p.n_tokens for p in found[1:3]] == [1, 1]
    assert found[1].probabilities == pytest.approx(found[2].probabilities, abs=1e-6)
    (other,) = classifier.predict(["half \ufffd"])
    assert other.probabilities == pytest.approx(found[3].probabilities, abs=1e-6)


def test_enormous_and_odd_texts_get_an_answer(classifier: Classifier) -> None:
    """Time is not measured here; test_batches.py counts the calls of the tokenizer."""
    texts = [" " * 10**6 + "x", "a" * 10**6, "😀" * 10**6, "\u200d" * 10**6 + "x"]
    assert all(p.truncated for p in classifier.predict(texts))
    empty, invisible = classifier.predict(["", "\u200d" * 10**6])
    assert invisible.probabilities == pytest.approx(empty.probabilities, abs=1e-6)
    assert (invisible.n_tokens, invisible.truncated) == (1, False)
    odd = ["a\x00b", "\x1b[31m", "<|endoftext|>", "say <|endoftext|> now"]
    assert not any(p.truncated or p.empty or p.replaced for p in classifier.predict(odd))


def test_texts_may_come_from_a_generator(classifier: Classifier) -> None:
    texts = ["see you", "win now"]
    assert classifier.predict(text for text in texts) == classifier.predict(texts)


def test_the_head_is_drawn_by_the_seed_alone(tiny_checkpoint: Path) -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = Classifier.on_base(tiny_checkpoint, ["a", "b"], seed=7).model.head.weight
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(3)
    assert torch.equal(
        Classifier.on_base(tiny_checkpoint, ["a", "b"], seed=7).model.head.weight, first
    )
    assert not torch.equal(
        Classifier.on_base(tiny_checkpoint, ["a", "b"], seed=8).model.head.weight, first
    )


def test_a_prediction_as_json_and_in_words() -> None:
    """A head's name is never one of the other keys."""
    one = Choice("a", {"a": 1.0, "b": 0.0})
    alone = Prediction({"kind": one}, 3, truncated=True, empty=False, replaced=True)
    assert json.loads(alone.as_json(7)) == {
        "number": 7,
        "label": "a",
        "probabilities": {"a": 1.0, "b": 0.0},
        "n_tokens": 3,
        "truncated": True,
        "empty": False,
        "replaced": True,
    }
    assert alone.in_words("x\ny") == "a  (a 1.000, b 0.000)  (cut) (replaced) x y"
    both = replace(alone, answers={"kind": one, "other": one})
    assert json.loads(both.as_json(1)).keys() == {*RESERVED_NAMES, "kind", "other"}
    assert both.in_words("x").startswith("kind: a  (a 1.000, b 0.000); other: a")
    assert {"number"} | {f.name for f in fields(Prediction)} - {"answers"} == {*RESERVED_NAMES}


@pytest.mark.parametrize("name", RESERVED_NAMES)
def test_no_head_has_the_name_of_another_key(name: str) -> None:
    with pytest.raises(UsageError, match=f"'{name}'"):
        HeadConfig(name, labels=("a", "b"))


# --- merged ---


def test_a_merged_model_is_plain_and_answers_the_same(base: Path) -> None:
    adapted = classifier_with(base, LABEL, lora=LoRAConfig(rank=2))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapted.model.named_parameters():
            if "lora" in name:
                parameter.normal_(0, 0.2, generator=generator)
    encoded, _ = adapted.encode(TEXTS)
    apart, found = adapted.predict(TEXTS), adapted.logits(encoded)
    plain = classifier_with(base, LABEL).logits(encoded)
    assert plain_depth(adapted.model)[0] == 0 and (found - plain).abs().max() > 0.1
    adapted.merge()
    assert all(is_plain(block) for block in adapted.model.blocks)
    assert plain_depth(adapted.model) == (N_LAYER, "")
    assert isinstance(adapted.texts(encoded), Features)
    torch.testing.assert_close(adapted.logits(encoded), found, atol=1e-5, rtol=0)
    for one, other in zip(adapted.predict(TEXTS), apart, strict=True):
        assert one.label == other.label
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)


# --- a stream ---


@pytest.fixture
def kinds(tiny_checkpoint: Path) -> Classifier:
    return Classifier.on_base(tiny_checkpoint, ["ham", "spam", "eggs"])


@pytest.fixture
def asked(kinds: Classifier, monkeypatch: MonkeyPatch) -> Asked:
    """The texts passed to each call of `predict`."""
    calls, predict = Asked(), kinds.predict
    monkeypatch.setattr(kinds, "predict", lambda texts: calls.append(texts) or predict(texts))
    return calls


@pytest.mark.slow
def test_answers_are_those_of_predict_in_order(kinds: Classifier) -> None:
    """One by one for some texts, including lone surrogates and the empty text; many at once."""
    odd = ["", " ", "half \ud83d", "half ?", "Grüße 😀", "a\x00b", "you " * 100, "the", "the"]
    expected = {text: kinds.predict([text])[0] for text in odd}
    draw, words = random.Random(5), "the you win é 77 in house see another".split()
    many = [" ".join(draw.choices(words, k=draw.randrange(5))) for _ in range(6000)]
    once = sorted(set(many) - set(odd))
    assert 500 < len(once) < 3000
    expected |= dict(zip(once, kinds.predict(once), strict=True))
    for texts in (odd, many):
        found = list(kinds.predict_stream(iter(texts)))
        assert [text for text, _ in found] == texts
        for text, answer in found:
            expected_probabilities = pytest.approx(expected[text].probabilities, abs=1e-5)
            assert answer.probabilities == expected_probabilities
            assert replace(answer, answers={}) == replace(expected[text], answers={})
            assert answer.label == expected[text].label


def test_a_stream_asks_for_each_text_once(kinds: Classifier, asked: Asked) -> None:
    texts = [f"{n % 90} of {n % 7}" for n in range(3000)]
    assert [text for text, _ in kinds.predict_stream(texts)] == texts
    assert sorted(sum(asked, [])) == sorted(set(texts))
    assert list(kinds.predict_stream([])) == []


def test_windows_grow(kinds: Classifier) -> None:
    texts = iter(["the"] * 17_000)
    # number of texts read at each answer
    seen = [17_000 - length_hint(texts) for _ in kinds.predict_stream(texts)]
    ends = [64, 192, 448, 960, 1984, 4032, 8128, 12_224, 16_320, 17_000]
    assert list(dict.fromkeys(seen)) == ends
    # all are answered before the next window is read
    assert [seen.index(end) for end in ends] == [0, *ends[:-1]]


def test_long_texts(kinds: Classifier, asked: Asked, monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "CHARACTERS", 1000)
    texts = [f"{n:100}" for n in range(35)] + ["x" * 5000, "y"]
    assert [text for text, _ in kinds.predict_stream(texts)] == texts
    assert [len(call) for call in asked] == [10, 10, 10, 6, 1]


def test_recent_answers_are_remembered(
    kinds: Classifier, asked: Asked, monkeypatch: MonkeyPatch
) -> None:
    for name, value in {"FIRST": 4, "LARGEST": 4, "REMEMBERED": 10}.items():
        monkeypatch.setattr(streaming, name, value)
    texts = [text for n in range(20) for text in ("often", *(f"{n} {m}" for m in range(3)))]
    texts += ["19 0", "17 0", "16 2", "0 0"]  # besides "often", 17 0 to 19 2 were seen last
    assert [text for text, _ in kinds.predict_stream(texts)] == texts
    assert [len(call) for call in asked] == [4, *[3] * 19, 2]
    assert sorted(asked[-1]) == ["0 0", "16 2"]


@pytest.mark.slow
def test_memory_is_flat_over_many_lines(kinds: Classifier) -> None:
    lines = (f"line number {n % 50}" for n in range(200_000))
    tracemalloc.start()
    count = sum(1 for _ in kinds.predict_stream(lines))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 200_000 and peak < 3e6  # the lines themselves take 14 MB


@pytest.mark.parametrize("wrong", [None, 7, 1.5, b"bytes", ["a list"]])
def test_items_that_are_not_strings_are_refused(kinds: Classifier, wrong: object) -> None:
    with pytest.raises(DataError, match=f"text 101.*{type(wrong).__name__}"):
        list(kinds.predict_stream(["a"] * 101 + [wrong]))


def test_items_that_are_not_strings_are_skipped(kinds: Classifier, asked: Asked) -> None:
    texts = [None, "the", 7, b"bytes", ["a"], "you", float("nan")] * 30
    found = list(kinds.predict_stream(texts, on_error="skip"))
    expected = {text: kinds.predict([text])[0].label for text in ("the", "you")}
    assert len(found) == len(texts) and all(a is b for (a, _), b in zip(found, texts, strict=True))
    for text, answer in found:
        assert (answer.label if isinstance(text, str) else answer) == (
            expected[text] if isinstance(text, str) else None
        )
    assert asked[0] == ["the", "you"]
    with pytest.raises(UsageError, match="on_error"):
        list(kinds.predict_stream([], on_error="perhaps"))


# --- weights of any size ---


@pytest.mark.parametrize(
    ("head", "name", "value"),
    [
        (LABEL, "head.weight", 3e38),
        (LABEL, "head.bias", float("inf")),
        (LABEL, "ln_f.weight", float("nan")),
        (LABEL, "blocks.2.mlp.c_proj.weight", 3e38),
        (TOPICS, "head.weight", 3e38),
        (STARS, "head.weight", -3e38),
        (TAGS, "head.weight", 3e38),
        (ANSWER, "head.weight", 3e38),
        (LANGUAGE, "wte.weight", 3e38),
        (STATE, "blocks.0.mlp.c_proj.weight", 3e38),
        (replace(LABEL, temperature=1e-44), "head.bias", 1.0),
        (replace(STARS, scale=(1e250, 1.0)), "head.bias", 3e38),
    ],
)
def test_answers_are_finite_or_refused(base: Path, head: HeadConfig, name: str, value) -> None:
    classifier = classifier_with(base, head)
    classifier.model.get_parameter(name).data.fill_(value)
    try:
        (prediction,) = classifier.predict(["the cat is in the house"])
    except CheckpointError as error:
        assert head.name in str(error)
    else:
        json.loads(prediction.as_json(1), parse_constant=no_number)


def test_adapters_too_large_are_refused(base: Path) -> None:
    classifier = classifier_with(base, LABEL, lora=LoRAConfig(rank=2))
    for name in lora_names(classifier.model):
        classifier.model.get_parameter(name).data.fill_(3e38)
    for _ in range(2):
        with pytest.raises(CheckpointError, match="NaN or infinite"):
            classifier.predict(["the cat"])
        with pytest.raises(CheckpointError, match="NaN or infinite"):
            classifier.logits([[1, 2]])
        classifier.merge()


def test_large_but_finite_outputs_are_answered(base: Path) -> None:
    classifier = classifier_with(base, LABEL)
    classifier.model.head.bias.data.copy_(torch.tensor([3e38, -3e38, 0]))
    assert classifier.predict(["the cat"])[0].probabilities == {"ham": 1, "other": 0, "spam": 0}


# --- copies, and other processes ---


def test_a_copy_is_independent(base: Path, tmp_path: Path) -> None:
    classifier = classifier_with(base, LABEL, LANGUAGE, lora=LoRAConfig(rank=2))
    classifier.store = FeatureStore(tmp_path / "cache")
    texts = ["the cat", "you"]
    expected = classifier.predict(texts)
    copied = copy.deepcopy(classifier)
    assert copied.predict(texts) == expected
    assert copied.model.head["lm"].weight is copied.model.wte.weight, "tied in the copy too"
    copied.model.ln_f.weight.data *= 2
    assert copied.predict(texts) != expected and classifier.predict(texts) == expected
    for name, each in (("copied", copied), ("first", classifier)):
        each.save(tmp_path / f"{name}.safetensors")
        again = Classifier.load(tmp_path / f"{name}.safetensors", base)
        assert again.predict(texts) == each.predict(texts)


FORKED = """
import os, sys, torch
from gpt2_from_scratch.classifier.classifier import Classifier
torch.set_num_threads(2)
classifier = Classifier.on_base("mini", ["ham", "spam"])
texts = ["hello there you", "win a prize now"] * 20
before = classifier.predict(texts)
if child := os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
found = classifier.predict(texts)
os._exit(0 if [a.label for a in found] == [b.label for b in before] else 9)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no fork")
def test_it_works_after_a_fork(tmp_path: Path) -> None:
    """Without precautions the child process would wait forever for its parent's threads."""
    words = [sys.executable, "-W", "ignore", "-c", FORKED]
    assert (
        subprocess.run(words, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "2"}).returncode
        == 0
    )
