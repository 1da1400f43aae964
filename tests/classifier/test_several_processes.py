"""Several processes give the weights and answers of one, and lose nothing when they stop."""

import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from several import in_processes

from gpt2_from_scratch.classifier import streaming
from gpt2_from_scratch.classifier.classifier import Classifier
from gpt2_from_scratch.classifier.settings import HeadConfig, TrainConfig
from gpt2_from_scratch.classifier.streaming import write_rows
from gpt2_from_scratch.classifier.train import TrainingRun, finetune
from gpt2_from_scratch.data.messages import Message
from gpt2_from_scratch.data.split import Split
from gpt2_from_scratch.errors import Interrupted
from gpt2_from_scratch.gpt2.config import LoRAConfig
from gpt2_from_scratch.gpt2.model import GPT2
from gpt2_from_scratch.speed.feature_store import FeatureStore
from gpt2_from_scratch.speed.frozen_trunk import Trunk
from gpt2_from_scratch.storage.files import sha256_of
from gpt2_from_scratch.storage.processes import OtherProcessEnded, part_of, rank

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs forks")

# 10 texts in batches of 4: the last batch has fewer texts than there are processes
CONFIG = TrainConfig(epochs=3, batch_size=4, lr=0.01, patience=3, seed=3)
THINGS = ["house", "river", "tree", "street", "garden", "window", "letter", "road"]


@pytest.fixture
def split() -> Split:
    """Two kinds of texts that differ in one word."""
    messages = [
        Message(f"{word} the {thing} {n}", label)
        for n, thing in enumerate(THINGS)
        for word, label in (("win", "spam"), ("see", "ham"))
    ]
    return Split(messages[:10], messages[10:13], messages[13:])


def weights(classifier: Classifier) -> dict[str, np.ndarray]:
    """The trained weights."""
    named = classifier.model.named_parameters()
    found = {name: p.detach().numpy().copy() for name, p in named if p.requires_grad}
    for name, value in found.items():
        if name.endswith("c_attn.bias"):
            # the softmax does not depend on the keys' bias, so its gradient is only rounding
            value[len(value) // 3 : 2 * len(value) // 3] = 0
    return found


def new_classifier(base: Path, **settings: Any) -> Classifier:
    return Classifier.on_base(base, ["ham", "spam"], seed=CONFIG.seed, **settings)


SETTINGS: dict[str, tuple[dict[str, Any], TrainConfig]] = {
    "last block": ({}, CONFIG),
    "all blocks": ({}, replace(CONFIG, n_last_blocks=2, clip=0.5, micro_batch=1)),
    "LoRA": ({"lora": LoRAConfig(2)}, replace(CONFIG, n_last_blocks=0, lr=0.002)),
    "unfreezing": ({}, replace(CONFIG, n_last_blocks=2, unfreeze_every=1)),
    "balanced heads": (
        {
            "heads": [
                HeadConfig("kind", labels=("ham", "spam"), pooling="last_token"),
                HeadConfig("next", "language", loss_weight=0.5),
            ]
        },
        replace(CONFIG, balance_losses=True, epochs=2),
    ),
}


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("name", SETTINGS)
def test_the_weights_are_those_of_one_process(
    tmp_path: Path, tiny_checkpoint: Path, split: Split, name: str, count: int
) -> None:
    settings, config = SETTINGS[name]

    def train(folder: Path) -> tuple[dict[str, np.ndarray], list[Any]]:
        store = FeatureStore(folder / "features")
        classifier = new_classifier(tiny_checkpoint, store=store, **settings)
        history = finetune(classifier, split, config, folder / "run")
        return weights(classifier), history

    expected, history = train(tmp_path / "one")
    found = in_processes(count, lambda _: train(tmp_path / "several"), tmp_path)
    for some, some_history in found:
        assert some.keys() == expected.keys()
        for key, value in expected.items():
            np.testing.assert_allclose(some[key], value, atol=1e-5, err_msg=key)
            np.testing.assert_array_equal(some[key], found[0][0][key])  # bit by bit
        for one, several in zip(history, some_history, strict=True):
            assert several.train_loss == pytest.approx(one.train_loss, abs=1e-5)
            assert several.val_loss == pytest.approx(one.val_loss, abs=1e-5)
            assert (several.train_score, several.val_score) == (one.train_score, one.val_score)
    names = {path.name for path in (tmp_path / "several" / "run").iterdir()}
    assert names == {"metrics.jsonl", "best.safetensors", "last.safetensors"}


def test_dropout_differs_between_processes(
    tmp_path: Path, tiny_checkpoint: Path, split: Split
) -> None:
    heads = [HeadConfig(labels=("ham", "spam"), dropout=0.5)]

    def masks(_: int) -> list[bool]:
        classifier = Classifier.on_base(tiny_checkpoint, heads=heads, seed=3)
        run = TrainingRun(classifier, split, ..., CONFIG, tmp_path)  # type: ignore[arg-type]
        with run._seeded_dropout(rank()):
            return (torch.rand(50) < 0.5).tolist()

    first, second = in_processes(2, masks, tmp_path)
    assert first != second


def test_each_process_computes_a_part_of_the_features(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # many small batches, one text each
    monkeypatch.setattr(Trunk, "tokens", property(lambda self: 8))
    texts = [f"win the {thing} {n}" for n in range(4) for thing in THINGS]

    def compute(_: int) -> tuple[set[int], np.ndarray]:
        computed = set[int]()
        pack = Trunk.pack

        def counted(self: Trunk, some: Sequence[Sequence[int]], **options: Any) -> Any:
            computed.update(encoded.index([*ids]) for ids in some)
            return pack(self, some, **options)

        store = FeatureStore(tmp_path / "features")
        classifier = new_classifier(tiny_checkpoint, store=store)
        classifier.model.blocks[:1].requires_grad_(False)
        classifier.model.wte.requires_grad_(False)
        classifier.model.wpe.requires_grad_(False)
        encoded = classifier.encode(texts)[0]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Trunk, "pack", counted)
            found = classifier.texts(encoded)
        return computed, found.batch(range(len(texts)))[0].detach().numpy()

    first, second, third = in_processes(3, compute, tmp_path)
    parts = [one[0] for one in (first, second, third)]
    assert all(8 <= len(part) <= 14 for part in parts)
    assert sum(map(len, parts)) == len(texts) and set.union(*parts) == set(range(len(texts)))
    (alone, expected) = compute(0)  # everything is in the store now
    assert not alone
    for _, states in (first, second, third):
        np.testing.assert_array_equal(states, expected)


def test_a_process_that_ends_loses_only_its_own_features(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trunk, "tokens", property(lambda self: 8))
    texts = [f"win the {thing} {n}" for n in range(4) for thing in THINGS]

    def compute(number: int) -> int:
        classifier = new_classifier(tiny_checkpoint, store=FeatureStore(tmp_path / "features"))
        classifier.model.requires_grad_(False)
        computed, pack = [], Trunk.pack

        def counted(self: Trunk, some: Sequence[Sequence[int]], **options: Any) -> Any:
            computed.append(some)
            if number == 1 and len(computed) == 3:
                os._exit(1)
            return pack(self, some, **options)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Trunk, "pack", counted)
            classifier.texts(classifier.encode(texts)[0])
        return len(computed)

    first, second = in_processes(2, compute, tmp_path)
    assert isinstance(first, OtherProcessEnded) and second is None
    assert compute(0) == len(texts) // 2  # the other half is in the store


def interrupted(classifier: Classifier, split: Split, run: Path, step: int, who: int) -> int:
    """Train until process `who` receives SIGTERM in a step; return the step it was saved in."""
    original = TrainingRun.step

    def counted(self: TrainingRun, *args: Any) -> float:
        loss = original(self, *args)
        if self.at.step == step and rank() == who:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingRun, "step", counted)
        with pytest.raises(Interrupted, match=f"after step {step} of"):
            finetune(classifier, split, CONFIG, run)
    return step


def test_a_signal_to_one_stops_all_and_the_run_resumes(
    tmp_path: Path, tiny_checkpoint: Path, split: Split
) -> None:
    def whole(_: int) -> dict[str, np.ndarray]:
        classifier = new_classifier(tiny_checkpoint, store=FeatureStore(tmp_path / "features"))
        finetune(classifier, split, CONFIG, tmp_path / "whole")
        return weights(classifier)

    def stopped(run: Path) -> Any:
        store = FeatureStore(tmp_path / "features")
        return lambda _: interrupted(new_classifier(tiny_checkpoint, store=store), split, run, 4, 1)

    def resumed(run: Path) -> dict[str, np.ndarray]:
        classifier = new_classifier(tiny_checkpoint, store=FeatureStore(tmp_path / "features"))
        finetune(classifier, split, CONFIG, run, resume=True)
        return weights(classifier)

    expected = in_processes(2, whole, tmp_path)[0]
    for name in ("two", "one"):
        assert in_processes(2, stopped(tmp_path / name), tmp_path) == [4, 4]
        assert [*(tmp_path / name).glob("state-*4.safetensors")]
    for found in in_processes(2, lambda _: resumed(tmp_path / "two"), tmp_path):
        for key, value in expected.items():
            np.testing.assert_array_equal(found[key], value)
    alone = resumed(tmp_path / "one")  # two processes started it, and one finishes it
    for key, value in expected.items():
        np.testing.assert_allclose(alone[key], value, atol=1e-5)
    best = [load_file(tmp_path / name / "best.safetensors") for name in ("whole", "two")]
    for key, tensor in best[0].items():
        assert torch.equal(tensor, best[1][key])


def test_a_stream_is_shared_and_answered_as_by_one_process(
    tmp_path: Path, tiny_gpt2: GPT2, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"FIRST": 4, "LARGEST": 8, "REMEMBERED": 10}.items():
        monkeypatch.setattr(streaming, name, value)
    texts: list[Any] = [f"{word} the {THINGS[n % 7]}" for n in range(40) for word in ("win", "see")]
    texts[33] = None
    classifier = new_classifier(tiny_checkpoint)
    alone = [*classifier.predict_stream(texts, on_error="skip")]
    assert [text for text, _ in alone] == texts and alone[33][1] is None

    def answer(_: int) -> tuple[list[Any], int]:
        asked: list[str] = []
        predict = classifier.predict
        monkeypatch.setattr(classifier, "predict", lambda some: asked.extend(some) or predict(some))
        return [*classifier.predict_stream(texts, on_error="skip")], len(asked)

    (_, alone_asked) = answer(0)
    for count in (2, 3):
        found = in_processes(count, answer, tmp_path)
        assert found[0][0] == alone  # equal bits, because the windows are the same
        assert all(some == [] for some, _ in found[1:])
        assert sum(n for _, n in found) == alone_asked
        assert max(n for _, n in found) < alone_asked


def test_rows_in_a_file_are_those_of_all_texts_at_once(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "FIRST", 4)
    monkeypatch.setattr(streaming, "LARGEST", 8)
    classifier = new_classifier(tiny_checkpoint)
    texts = [f"win the {thing} {n}" for n in range(5) for thing in THINGS]
    expected = classifier.logits(classifier.encode(texts)[0]).numpy()

    def compute(some: list[str]) -> np.ndarray:
        return classifier.logits(classifier.encode(some)[0]).numpy()

    def write(_: int) -> None:
        write_rows(compute, 2, texts, tmp_path / "several.npy")

    write_rows(compute, 2, texts, tmp_path / "one.npy")
    in_processes(3, write, tmp_path)
    np.testing.assert_allclose(np.load(tmp_path / "one.npy"), expected, atol=1e-6)
    assert sha256_of(tmp_path / "one.npy") == sha256_of(tmp_path / "several.npy")
    write_rows(compute, 2, [], tmp_path / "none.npy")
    assert np.load(tmp_path / "none.npy").shape == (0, 2)
    assert [*part_of(range(2))] == [0, 1]
