"""A classifier whose frozen blocks stay in their file equals one in memory."""

import copy
import logging
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from said import listen
from three_blocks import LABEL, LAYERS, TAGS, TEXTS, assert_same
from tiny import TINY_MERGES, random_classifier, write_checkpoint

from gpt2_from_scratch.classifier.classifier import Classifier
from gpt2_from_scratch.classifier.settings import HeadConfig, TrainConfig
from gpt2_from_scratch.classifier.train import finetune, freeze
from gpt2_from_scratch.data.messages import Message
from gpt2_from_scratch.data.split import Split
from gpt2_from_scratch.errors import UsageError
from gpt2_from_scratch.explain.gradients import gradient_times_input, integrated_gradients
from gpt2_from_scratch.explain.lenses import answer_by_layer
from gpt2_from_scratch.explain.tokens import Explanation
from gpt2_from_scratch.gpt2.config import LoRAConfig
from gpt2_from_scratch.gpt2.nf4 import packed_weights
from gpt2_from_scratch.gpt2.tokenizer import write_bpe
from gpt2_from_scratch.gpt2.weights import load_gpt2, save_gpt2
from gpt2_from_scratch.speed.feature_store import FeatureStore
from gpt2_from_scratch.speed.frozen_trunk import is_streamed
from gpt2_from_scratch.storage.files import sha256_of

SPLIT = Split(
    [Message(f"{'win' if n % 2 else 'see'} you at {n}", "ab"[n % 2]) for n in range(20)],
    [Message("win at ten", "b"), Message("see the house", "a")],
    [],
)
CONFIG = TrainConfig(epochs=2, batch_size=5, lr=0.01, patience=2)


@pytest.fixture(scope="module")
def base_bf16(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bf16")
    save_gpt2(load_gpt2(base), folder, torch.bfloat16)
    write_bpe(folder, TINY_MERGES)
    return folder


def streamed_blocks(classifier: Classifier) -> list[bool]:
    return [is_streamed(block) for block in classifier.model.blocks]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("folder", ["base", "base_bf16"])
def test_answers_are_the_same(
    folder: str, dtype: torch.dtype, request: pytest.FixtureRequest
) -> None:
    source = request.getfixturevalue(folder)
    plain, streamed = (
        random_classifier(source, LABEL, TAGS, dtype=dtype, stream=stream)
        for stream in (False, True)
    )
    assert streamed_blocks(streamed) == [True, True, False]
    assert streamed.predict(TEXTS) == plain.predict(TEXTS)
    assert list(streamed.predict_stream(TEXTS)) == list(plain.predict_stream(TEXTS))


@pytest.mark.parametrize("folder", ["base", "base_bf16"])
@pytest.mark.parametrize("n_last_blocks", [0, 1, 2])
def test_training_gives_the_same_file(
    folder: str, n_last_blocks: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    source, config = (
        request.getfixturevalue(folder),
        replace(CONFIG, n_last_blocks=n_last_blocks),
    )
    digests, answers = [], []
    for stream in (False, True):
        run, store = tmp_path / f"run-{stream}", FeatureStore(tmp_path / f"store-{stream}")
        classifier = Classifier.on_base(source, ["a", "b"], stream=stream, store=store)
        finetune(classifier, SPLIT, config, run)
        again = Classifier.load(run, source, stream=stream)
        blocks = streamed_blocks(classifier)
        if stream:
            assert blocks == [True] * min(2, 3 - n_last_blocks) + [False] * max(1, n_last_blocks)
            assert streamed_blocks(again) == blocks
        assert again.predict(TEXTS) == classifier.predict(TEXTS)
        digests.append([sha256_of(run / name) for name in ("best.safetensors", "metrics.jsonl")])
        answers.append(classifier.predict(TEXTS))
    assert digests[0] == digests[1]
    assert answers[0] == answers[1]
    spaces = [FeatureStore(tmp_path / f"store-{stream}").spaces() for stream in (False, True)]
    assert [row[:3] for row in spaces[0]] == [row[:3] for row in spaces[1]]


def test_answers_after_each_token_are_the_same(base: Path, base_bf16: Path) -> None:
    for source in (base, base_bf16):
        plain, streamed = (
            random_classifier(source, LABEL, stream=stream).predict_by_token("the cat is in")
            for stream in (False, True)
        )
        for (token, answer), (expected_token, expected) in zip(streamed, plain, strict=True):
            assert token == expected_token
            assert_same(answer["label"], expected["label"])


def test_a_file_in_openais_format_is_streamed(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, seed=7, n_layer=3)
    plain, streamed = (random_classifier(folder, LABEL, stream=stream) for stream in (False, True))
    assert streamed.predict(TEXTS) == plain.predict(TEXTS)


def test_blocks_that_the_heads_do_not_read_stay_in_the_file(base: Path) -> None:
    head = replace(LABEL, layer=2)
    plain, streamed = (random_classifier(base, head, stream=stream) for stream in (False, True))
    assert streamed_blocks(streamed) == [True, False, True]
    assert streamed.predict(TEXTS) == plain.predict(TEXTS)


def test_blocks_with_adapters_are_in_memory(base_bf16: Path, tmp_path: Path) -> None:
    lora = LoRAConfig(rank=2, n_last_blocks=1)
    plain, streamed = (
        random_classifier(base_bf16, LABEL, lora=lora, stream=stream) for stream in (False, True)
    )
    assert streamed_blocks(streamed) == [True, True, False]
    for classifier in (plain, streamed):
        classifier.merge()
    assert streamed.predict(TEXTS) == plain.predict(TEXTS)
    streamed.unmerge()
    streamed.save(tmp_path / "x.safetensors")
    assert {*streamed.changed_names()} <= {"ln_f.weight", "ln_f.bias"}


def test_quantised_blocks_are_read_one_by_one(base: Path) -> None:
    lora = LoRAConfig(rank=2, quantize="nf4")
    plain, streamed = (
        random_classifier(base, LABEL, lora=lora, stream=stream) for stream in (False, True)
    )
    assert len(packed_weights(streamed.model)) == 12
    assert not streamed.is_streamed  # nothing is left in the file
    assert streamed.predict(TEXTS) == plain.predict(TEXTS)


def test_a_copy_is_in_memory(base_bf16: Path) -> None:
    streamed = random_classifier(base_bf16, LABEL, stream=True)
    again = copy.deepcopy(streamed)
    assert not again.is_streamed
    assert again.predict(TEXTS) == streamed.predict(TEXTS)


@pytest.mark.parametrize(
    ("head", "lora", "reason"),
    [
        (LABEL, LoRAConfig(rank=2), "blocks.0 has LoRA adapters"),
        (LAYERS, None, "only the first one"),
        (replace(LABEL, pooling="last_position"), None, "other texts in the batch"),
    ],
)
def test_what_cannot_be_streamed_is_refused_with_the_reason(
    base: Path, head: HeadConfig, lora: LoRAConfig | None, reason: str
) -> None:
    with pytest.raises(UsageError, match=f"no block can be streamed: .*{reason}"):
        Classifier.on_base(base, heads=[head], lora=lora, stream=True)


@pytest.mark.parametrize(
    "config",
    [replace(CONFIG, n_last_blocks=3), replace(CONFIG, trainable="blocks.0.mlp.*,head.*")],
)
def test_training_the_first_block_is_refused_with_the_reason(
    base: Path, config: TrainConfig
) -> None:
    classifier = Classifier.on_base(base, ["a", "b"], stream=True)
    with pytest.raises(UsageError, match=r"no block can be streamed: blocks\.0 is trained"):
        freeze(classifier, config)


def test_the_planned_memory_is_logged(base: Path) -> None:
    lines = listen(logging.DEBUG)
    classifier = Classifier.on_base(base, ["a", "b"], stream=True)
    freeze(classifier, CONFIG)
    classifier.texts(classifier.encode(TEXTS)[0])
    assert any(line.startswith("planned memory: loading 0.00 GB") for line in lines)


def test_other_devices_are_refused(base: Path) -> None:
    classifier = Classifier.on_base(base, ["a", "b"], stream=True)
    with pytest.raises(UsageError, match="on the processor, not on meta"):
        classifier.to("meta")
    with pytest.raises(UsageError, match="on the processor, not on cuda"):
        Classifier.on_base(base, ["a", "b"], stream=True, device="cuda")


def test_a_changed_block_cannot_be_streamed(base: Path) -> None:
    classifier = random_classifier(base, LABEL, stream=True)
    classifier.model.blocks[0].register_forward_hook(lambda *_: None)
    with pytest.raises(UsageError, match=r"no block can be streamed: .*has hooks"):
        classifier.predict(["the cat"])


def test_a_base_may_be_replaced_while_it_is_streamed(base: Path, tmp_path: Path) -> None:
    """The old file stays readable if the new one has another inode, as atomic writing makes it."""
    shutil.copytree(base, tmp_path / "base")
    streamed = random_classifier(tmp_path / "base", LABEL, stream=True)
    expected = streamed.predict(TEXTS)
    other = load_gpt2(base)
    with torch.no_grad():
        other.wte.weight.add_(1)
    save_gpt2(other, tmp_path / "base")
    assert streamed.predict(TEXTS) == expected


def test_explanations_read_the_blocks_into_memory(base_bf16: Path) -> None:
    text = "win the house"

    def classifier(stream: bool) -> Classifier:
        return Classifier.on_base(base_bf16, ["ham", "spam"], stream=stream)

    def values(explanation: Explanation) -> list[float]:
        return [part.value for part in explanation.parts]

    plain, streamed = classifier(stream=False), classifier(stream=True)
    copied = pickle.loads(pickle.dumps(streamed))  # noqa: S301 (its own bytes)
    assert copied.predict([text]) == plain.predict([text])
    for explain in (integrated_gradients, gradient_times_input):
        streamed = classifier(stream=True)
        assert streamed.is_streamed
        assert values(explain(streamed, text)) == pytest.approx(values(explain(plain, text)))
        assert not streamed.is_streamed
    found = answer_by_layer(classifier(stream=True), text).by_token
    np.testing.assert_allclose(found, answer_by_layer(plain, text).by_token, atol=1e-6)
