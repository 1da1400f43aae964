"""A saved classifier holds what was trained, refuses another base, and answers bit for bit as
before.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import TINY_MERGES
from write_bundle import write_random_gpt2

from gpt2_from_scratch.classifier.classifier import Classifier
from gpt2_from_scratch.classifier.freezing import set_trainable
from gpt2_from_scratch.errors import CheckpointError, DataError, UsageError
from gpt2_from_scratch.gpt2.tokenizer import write_bpe
from gpt2_from_scratch.gpt2.weights import load_gpt2, save_gpt2, weights_sha256
from gpt2_from_scratch.storage.tensors import write_tensors

TEXTS = ["the cat is in the house", "win", "", "you and the other one " * 20, "héllo 🎉 at ten"]


def change(metadata: dict[str, str], **values) -> None:
    metadata["description"] = json.dumps(json.loads(metadata["description"]) | values)


@pytest.fixture
def classifier(tiny_checkpoint: Path) -> Classifier:
    """Untrained, but with everything that trains moved away from where it started."""
    classifier = Classifier.on_base(tiny_checkpoint, ["ham", "other", "spam"], seed=5)
    set_trainable(classifier.model, 1)
    with torch.no_grad():
        for parameter in classifier.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    return classifier


def test_predictions_are_softmax_of_the_last_real_token(classifier: Classifier) -> None:
    predictions = classifier.predict(TEXTS)
    for text, prediction in zip(TEXTS, predictions, strict=True):
        ids = classifier.tokenizer.encode(text)[:32] or [classifier.tokenizer.end_of_text_id]
        with torch.no_grad():
            expected = classifier.model(torch.tensor([ids]))[0, -1].softmax(dim=0)
        assert list(prediction.probabilities) == ["ham", "other", "spam"]
        np.testing.assert_allclose(list(prediction.probabilities.values()), expected, atol=1e-5)
        assert prediction.label == ["ham", "other", "spam"][int(expected.argmax())]
        assert sum(prediction.probabilities.values()) == pytest.approx(1, abs=1e-12)
        assert prediction.n_tokens == len(ids)
    assert [p.truncated for p in predictions] == [False, False, False, True, False]


def test_answers_do_not_depend_on_the_texts_beside(classifier: Classifier) -> None:
    together = classifier.predict(TEXTS)
    alone = [classifier.predict([text])[0] for text in TEXTS]
    backwards = classifier.predict(TEXTS[::-1])[::-1]
    for a, b, c in zip(together, alone, backwards, strict=True):
        assert a.label == b.label == c.label
        for label in a.probabilities:
            assert a.probabilities[label] == pytest.approx(b.probabilities[label], abs=1e-5)
            assert a.probabilities[label] == pytest.approx(c.probabilities[label], abs=1e-5)


def test_saved_and_loaded_gives_the_same_bits(
    classifier: Classifier, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    classifier.save(tmp_path / "best.safetensors")
    again = Classifier.load(tmp_path, tiny_checkpoint)
    assert again.description == classifier.description
    encoded, _ = classifier.encode(TEXTS)
    assert torch.equal(again.logits(encoded), classifier.logits(encoded))
    trainable = [n for n, p in again.model.named_parameters() if p.requires_grad]
    assert trainable == [n for n, p in classifier.model.named_parameters() if p.requires_grad]


def test_only_what_was_trained_is_saved(classifier: Classifier, tmp_path: Path) -> None:
    classifier.save(tmp_path / "c.safetensors")
    tensors = load_file(tmp_path / "c.safetensors")
    assert all(name.startswith(("head.", "ln_f.", "blocks.1.")) for name in tensors)
    assert sum(t.numel() for t in tensors.values()) == sum(
        p.numel() for p in classifier.model.parameters() if p.requires_grad
    )


def test_another_base_is_refused(classifier: Classifier, tmp_path: Path) -> None:
    classifier.save(tmp_path / "c.safetensors")
    other = tmp_path / "other"
    write_random_gpt2(other, vars(classifier.model.config), seed=99)
    base = Path(classifier.description.base)
    for name in ("vocab.bpe", "encoder.json"):
        (other / name).write_bytes((base / name).read_bytes())
    with pytest.raises(CheckpointError, match="another base"):
        Classifier.load(tmp_path / "c.safetensors", other)


def test_a_base_without_a_known_name_must_be_named(classifier: Classifier, tmp_path: Path) -> None:
    classifier.save(tmp_path / "c.safetensors")
    with pytest.raises(CheckpointError, match="--model"):
        Classifier.load(tmp_path / "c.safetensors")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t, m: t.pop("head.weight"), "head.weight"),
        (lambda t, m: t.update({"blocks.7.ln_1.bias": torch.zeros(32)}), "blocks.7.ln_1.bias"),
        (lambda t, m: t.update({"head.bias": torch.zeros(2)}), "head.bias"),
        (lambda t, m: t["head.bias"].fill_(float("nan")), "NaN"),
        (lambda t, m: m.pop("format"), "format"),
        (lambda t, m: m.update(description="{"), "description"),
        (lambda t, m: m.update(description=json.dumps({"base": "mini", "x": 1})), "unknown keys"),
        (lambda t, m: m.update(description=json.dumps({"base": "mini"})), "description"),
        (lambda t, m: change(m, labels="ab"), "labels"),
        (lambda t, m: change(m, labels=[1, 2, 3]), "labels"),
        (lambda t, m: change(m, max_tokens="5"), "max_tokens"),
        (lambda t, m: change(m, max_tokens=None), "max_tokens"),
    ],
)
def test_a_spoilt_file_is_refused(
    classifier: Classifier, tiny_checkpoint: Path, tmp_path: Path, spoil, message: str
) -> None:
    from safetensors import safe_open

    path = tmp_path / "c.safetensors"
    classifier.save(path)
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        metadata = json.loads(file.metadata()["gpt2_from_scratch"])
    del metadata["sha256"]
    spoil(tensors, metadata)
    write_tensors(path, tensors, metadata)  # with its checksum, as if it had been saved so
    with pytest.raises(CheckpointError, match=message):
        Classifier.load(path, tiny_checkpoint)


def test_every_flipped_bit_is_told(
    classifier: Classifier, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    path = tmp_path / "c.safetensors"
    classifier.save(path)
    whole = path.read_bytes()
    for place in range(0, len(whole), len(whole) // 300):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            again = Classifier.load(path, tiny_checkpoint)
        except CheckpointError:
            continue
        assert again.description == classifier.description  # white space of the header changed
        encoded, _ = classifier.encode(TEXTS)
        assert torch.equal(again.logits(encoded), classifier.logits(encoded))


def test_what_trained_once_is_kept_when_it_is_frozen_again(
    classifier: Classifier, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    classifier.save(tmp_path / "first.safetensors")
    for stage in (
        "second",
        "third",
    ):  # a later stage trains less; loading between them loses nothing
        set_trainable(classifier.model, 0, final_norm=False)
        classifier.save(tmp_path / f"{stage}.safetensors")
        again = Classifier.load(tmp_path / f"{stage}.safetensors", tiny_checkpoint)
        encoded, _ = classifier.encode(TEXTS)
        assert torch.equal(again.logits(encoded), classifier.logits(encoded))
        classifier = again


def test_a_base_with_another_vocabulary_is_refused(
    classifier: Classifier, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    classifier.save(tmp_path / "c.safetensors")
    other = tmp_path / "other"
    shutil.copytree(tiny_checkpoint, other)
    write_bpe(other, [*TINY_MERGES[:-2], TINY_MERGES[-1], TINY_MERGES[-2]])
    with pytest.raises(CheckpointError, match="another base"):
        Classifier.load(tmp_path / "c.safetensors", other)


def test_one_string_is_no_list_of_texts(classifier: Classifier) -> None:
    with pytest.raises(DataError, match="not one string"):
        classifier.predict("hello")


def test_a_cut_file_and_a_missing_one_are_refused(
    classifier: Classifier, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    path = tmp_path / "c.safetensors"
    with pytest.raises(CheckpointError, match="missing"):
        Classifier.load(path, tiny_checkpoint)
    classifier.save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        Classifier.load(path, tiny_checkpoint)


def test_identity_is_of_the_numbers_not_of_the_file(tiny_checkpoint: Path, tmp_path: Path) -> None:
    gpt2 = load_gpt2(tiny_checkpoint)
    save_gpt2(gpt2, tmp_path)
    assert weights_sha256(load_gpt2(tmp_path)) == weights_sha256(gpt2)
    with torch.no_grad():
        gpt2.wpe.weight[3, 3] += 1e-6
    assert weights_sha256(load_gpt2(tmp_path)) != weights_sha256(gpt2)


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


@pytest.mark.parametrize(
    "wrong",
    [
        {"labels": ["one"]},
        {"labels": ["a", "a"]},
        {"pooling": "middle"},
        {"max_tokens": 33},
        {"max_tokens": 0},
    ],
)
def test_senseless_descriptions_are_refused(tiny_checkpoint: Path, wrong: dict) -> None:
    with pytest.raises(UsageError):
        Classifier.on_base(tiny_checkpoint, **({"labels": ["a", "b"]} | wrong))


@pytest.mark.parametrize("wrong", [None, 3, b"bytes", float("nan"), ["a"]])
def test_something_else_than_text_is_refused_by_its_index(classifier: Classifier, wrong) -> None:
    message = f"text 1, counted from 0, must be a string, not {type(wrong).__name__}"
    for on_error in ({}, {"on_error": "stop"}):
        with pytest.raises(DataError, match=message):
            classifier.predict(["fine", wrong], **on_error)


def test_something_else_than_text_is_passed_over(classifier: Classifier) -> None:
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


def test_what_was_read_otherwise_is_marked(classifier: Classifier) -> None:
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
    """Not timed; what is handed to the tokenizer is counted in test_batches.py."""
    texts = [" " * 10**6 + "x", "a" * 10**6, "😀" * 10**6, "\u200d" * 10**6]
    assert all(p.truncated for p in classifier.predict(texts))
    odd = ["a\x00b", "\x1b[31m", "<|endoftext|>", "say <|endoftext|> now"]
    assert not any(p.truncated or p.empty or p.replaced for p in classifier.predict(odd))


def test_pads_are_for_a_head_that_reads_them(classifier: Classifier) -> None:
    with pytest.raises(UsageError, match="last_position or mean_position"):
        replace(classifier.description, pad_to=32)


def test_texts_may_come_from_a_generator(classifier: Classifier) -> None:
    texts = ["see you", "win now"]
    assert classifier.predict(text for text in texts) == classifier.predict(texts)
