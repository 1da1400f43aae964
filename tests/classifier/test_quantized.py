"""A classifier on quantised blocks equals one on a plain GPT-2 with the dequantised weights."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from three_blocks import LABEL, TAGS, TEXTS
from tiny import TINY_MERGES, random_classifier

from gpt2_from_scratch.classifier.adaptation import adapt
from gpt2_from_scratch.classifier.classifier import Classifier
from gpt2_from_scratch.classifier.freezing import (
    frozen_depth,
    ledger,
    plain_depth,
    set_trainable,
    trainable_names,
)
from gpt2_from_scratch.classifier.hugging_face import merged_parameters, to_peft, to_transformers
from gpt2_from_scratch.classifier.saving import read_classifier, write_classifier
from gpt2_from_scratch.classifier.settings import HeadConfig, HeadSettings, TrainConfig
from gpt2_from_scratch.classifier.train import finetune
from gpt2_from_scratch.data.messages import Message
from gpt2_from_scratch.data.split import Split
from gpt2_from_scratch.errors import CheckpointError, UsageError
from gpt2_from_scratch.gpt2.changes import parameters_by_name
from gpt2_from_scratch.gpt2.config import LoRAConfig
from gpt2_from_scratch.gpt2.nf4 import NF4Linear, packed_weights, quantize_blocks
from gpt2_from_scratch.gpt2.tokenizer import write_bpe
from gpt2_from_scratch.gpt2.weights import load_gpt2, save_gpt2
from gpt2_from_scratch.speed.feature_cache import Features, space_name
from gpt2_from_scratch.speed.feature_store import FeatureStore
from gpt2_from_scratch.speed.frozen_trunk import Trunk

PLAIN = LoRAConfig(rank=2, alpha=4.0)
NF4 = replace(PLAIN, quantize="nf4")
LAST = {"n_last_blocks": 1}  # of three; the first two have no adapters


@pytest.fixture(scope="module")
def dequantised(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain GPT-2 with the weights of the quantised base."""
    folder, model = tmp_path_factory.mktemp("dequantised"), load_gpt2(base)
    packed = copy.deepcopy(model)
    quantize_blocks(packed)
    with torch.no_grad():
        for name, weight in packed_weights(packed).items():
            model.get_parameter(name).copy_(weight())
    save_gpt2(model, folder)
    write_bpe(folder, TINY_MERGES)
    return folder


def both(base: Path, dequantised: Path, *heads: HeadConfig, **lora: Any) -> list[Classifier]:
    """Two classifiers with the same random adapters and heads: on NF4, and on a plain GPT-2."""
    return [
        random_classifier(base, *heads, lora=replace(NF4, **lora)),
        random_classifier(dequantised, *heads, lora=replace(PLAIN, **lora)),
    ]


def outputs(classifier: Classifier, name: str, texts: list[str] = TEXTS) -> list[torch.Tensor]:
    """The outputs for each text, in the order of the texts."""
    encoded, _ = classifier.encode(texts)
    rows: dict[int, torch.Tensor] = {}
    for numbers, found, lengths in classifier.outputs(encoded):
        for n, out, length in zip(numbers, found[name], lengths, strict=True):
            rows[n] = out if out.dim() == 1 else out[:length]
    return [rows[n] for n in range(len(texts))]


# --- answers ---


@pytest.mark.parametrize("lora", [{}, LAST])
@pytest.mark.parametrize("head", [LABEL, TAGS], ids=["label", "tags"])
def test_answers_are_those_of_the_dequantised_gpt2(
    base: Path, dequantised: Path, head: HeadConfig, lora: dict
) -> None:
    """Packed rows, one position in the last block, and tokens without padding are all used."""
    ours, plain = both(base, dequantised, head, **lora)
    for found, expected in zip(outputs(ours, head.name), outputs(plain, head.name), strict=True):
        assert torch.equal(found, expected)
    text = "the cat is in the house"
    if head is LABEL:
        for found, expected in zip(
            ours.predict_by_token(text), plain.predict_by_token(text), strict=True
        ):
            assert found == expected


@pytest.mark.slow
def test_answers_are_those_of_the_model_on_one_text(base: Path) -> None:
    """All shortcuts against the layers of the model itself."""
    ours = random_classifier(base, LABEL, lora=replace(NF4, **LAST))
    model = ours.model.eval()
    for text, found in zip(TEXTS, outputs(ours, "label"), strict=True):
        ids = torch.tensor(ours.encode([text])[0])
        with torch.no_grad():
            expected = model(ids)[0, -1]
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_answers_in_bfloat16_are_those_of_rounded_dequantised_weights(
    base: Path, dequantised: Path
) -> None:
    texts = [torch.arange(3, 20).tolist(), [5, 6, 7]]
    ours, plain = (
        Trunk(classifier.model, 2, torch.bfloat16)
        for classifier in both(base, dequantised, LABEL, **LAST)
    )
    packed = ours.pack(texts)
    found, expected = ours(packed), plain(packed)
    assert torch.equal(found, expected)
    ours.follow_weights()
    assert torch.equal(ours(packed), expected)


# --- what is recognised as a change ---


def test_quantised_blocks_count_as_unchanged(base: Path) -> None:
    model = random_classifier(base, LABEL, lora=replace(NF4, **LAST)).model
    model.requires_grad_(False)
    assert plain_depth(model) == (2, "blocks.2 has LoRA adapters")
    set_trainable(model, 0)
    assert frozen_depth(model) == (2, "")


def test_a_hook_on_a_quantised_layer_counts_as_a_change(base: Path) -> None:
    model = random_classifier(base, LABEL, lora=replace(NF4, **LAST)).model
    model.blocks[1].mlp.c_fc.register_forward_hook(lambda *_: None)
    depth, reason = plain_depth(model)
    assert depth == 1 and "mlp.c_fc has hooks" in reason


def test_features_of_quantised_and_plain_blocks_are_kept_apart(
    base: Path, dequantised: Path, tmp_path: Path
) -> None:
    store, encoded = FeatureStore(tmp_path), [[5, 6, 7], [8, 9]]
    quantised = random_classifier(base, LABEL, lora=replace(NF4, **LAST))
    plain = random_classifier(base, LABEL, lora=replace(PLAIN, **LAST))
    names, states = set(), []
    for classifier in (plain, quantised, random_classifier(dequantised, LABEL, lora=PLAIN)):
        trunk = Trunk(classifier.model, 0 if classifier not in (plain, quantised) else 2)
        names.add(space_name(trunk, torch.float32))
        states.append(Features(trunk, encoded, store=store).batch([0])[0])
    assert len(names) == 3 and not torch.equal(states[0], states[1])
    trunk = Trunk(quantised.model, 2)
    again = Features(trunk, encoded, store=store)
    assert torch.equal(again.batch([0])[0], states[1])
    quantised.model.blocks[0].mlp.c_fc.packed.codes[0] ^= 1
    assert space_name(Trunk(quantised.model, 2), torch.float32) not in names


# --- training ---


@pytest.mark.slow
def test_training_is_that_on_the_dequantised_gpt2(
    base: Path, dequantised: Path, tmp_path: Path
) -> None:
    """Losses, scores, adapters, head and final norm are equal to the bit."""
    things = ["house", "river", "tree", "street", "garden", "window"]
    every = [
        Message(f"{word} the {thing} {n}", label)
        for n, thing in enumerate(things)
        for word, label in (("win", "spam"), ("see", "ham"))
    ]
    split = Split(every[:8], every[8:], [])
    config = TrainConfig(epochs=3, batch_size=3, lr=0.01, n_last_blocks=0, patience=3)
    found = []
    for folder, lora in ((base, NF4), (dequantised, PLAIN)):
        for n_last_blocks in (None, 1):
            classifier = Classifier.on_base(
                folder, ["ham", "spam"], lora=replace(lora, n_last_blocks=n_last_blocks)
            )
            set_trainable(classifier.model, 0)
            out = tmp_path / f"{lora.quantize}-{n_last_blocks}"
            out.mkdir()
            history = finetune(classifier, split, config, out)
            parameters = parameters_by_name(classifier.model)
            found.append((history, {n: p for n, p in parameters.items() if p.requires_grad}))
    for (ours, trained), (expected, parameters) in zip(found[:2], found[2:], strict=True):
        assert [e.train_loss for e in ours] == [e.train_loss for e in expected]
        assert [e.val_loss for e in ours] == [e.val_loss for e in expected]
        assert ours[-1].train_loss < ours[0].train_loss
        assert trained.keys() == parameters.keys()
        assert all(torch.equal(trained[name], parameters[name]) for name in trained)


def test_a_quantised_weight_cannot_be_trained(base: Path) -> None:
    model = Classifier.on_base(base, heads=[LABEL], lora=NF4).model
    for settings in ({"n_last_blocks": 1}, {"pattern": "head.*, blocks.2.mlp.*"}):
        with pytest.raises(UsageError, match=r"blocks\.2\..*NF4"):
            set_trainable(model, **settings)
    set_trainable(model, 0, pattern="head.*,*.bias")
    assert "blocks.0.mlp.c_fc.bias" in trainable_names(model)
    set_trainable(model, 0)
    assert all("lora" in n or n.startswith(("head.", "ln_f.")) for n in trainable_names(model))


def test_the_ledger_counts_quantised_weights(base: Path) -> None:
    lines = [
        ledger(Classifier.on_base(base, heads=[LABEL], lora=lora).model) for lora in (PLAIN, NF4)
    ]
    assert [(x.part, x.parameters) for x in lines[0]] == [(x.part, x.parameters) for x in lines[1]]


def test_gpt2_cannot_be_adapted_if_it_is_quantised(base: Path, tmp_path: Path) -> None:
    classifier = Classifier.on_base(base, heads=[LABEL], lora=NF4)
    split = Split([Message("win", "ham")], [Message("the", "spam")], [])
    with pytest.raises(UsageError, match="NF4"):
        adapt(classifier, split, [], TrainConfig(adapt=1), tmp_path / "stage")


def test_quantising_needs_lora() -> None:
    with pytest.raises(UsageError, match="lora 8"):
        HeadSettings(quantize="nf4")
    with pytest.raises(UsageError, match="int3"):
        HeadSettings(lora=2, quantize="int3")
    assert HeadSettings(lora=2, quantize="nf4").lora_config() == LoRAConfig(
        rank=2, alpha=2, quantize="nf4"
    )


# --- saving ---


def test_a_saved_classifier_quantises_its_base_again(base: Path, tmp_path: Path) -> None:
    ours = random_classifier(base, LABEL, lora=NF4)
    set_trainable(ours.model, 0)
    ours.save(tmp_path / "one.safetensors")
    description, tensors, _ = read_classifier(tmp_path / "one.safetensors")
    assert all("lora_" in n or n.startswith(("head.", "ln_f.")) for n in tensors)
    assert len(description.packed_sha256) == 64
    again = Classifier.load(tmp_path / "one.safetensors", base)
    assert isinstance(again.model.blocks[0].mlp.c_fc.packed, torch.nn.Module)
    for found, expected in zip(outputs(again, "label"), outputs(ours, "label"), strict=True):
        assert torch.equal(found, expected)
    again.save(tmp_path / "two.safetensors")
    assert (tmp_path / "one.safetensors").read_bytes() == (
        tmp_path / "two.safetensors"
    ).read_bytes()


def test_other_quantised_weights_are_refused(base: Path, tmp_path: Path) -> None:
    ours = random_classifier(base, LABEL, lora=NF4)
    set_trainable(ours.model, 0)
    path = tmp_path / "one.safetensors"
    ours.save(path)
    description, tensors, _ = read_classifier(path)
    for wrong in ("0" * 64, ""):
        write_classifier(path, replace(description, packed_sha256=wrong), tensors)
        with pytest.raises(CheckpointError, match="NF4"):
            Classifier.load(path, base)
    plain = replace(description, lora=replace(description.lora, quantize="none"))
    write_classifier(path, plain, tensors)
    with pytest.raises(CheckpointError, match="NF4"):
        Classifier.load(path, base)
    ours.model.blocks[0].mlp.c_fc.packed.codes[0] ^= 1
    with pytest.raises(UsageError, match="NF4"):
        ours.save(path)


def test_a_plain_file_does_not_mention_quantisation(base: Path, tmp_path: Path) -> None:
    """Files of unquantised classifiers are those that earlier versions wrote and can read."""
    path = tmp_path / "plain.safetensors"
    for lora in (None, PLAIN):
        random_classifier(base, LABEL, lora=lora).save(path)
        assert b"quantize" not in path.read_bytes() and b"packed" not in path.read_bytes()
        assert read_classifier(path)[0].lora == lora


def test_a_copy_and_a_compiled_prefix_keep_the_packed_weights(base: Path) -> None:
    ours = random_classifier(base, LABEL, lora=NF4)
    twin = copy.deepcopy(ours)
    twin.model.blocks[0].mlp.c_fc.packed.codes[0] ^= 1
    assert not torch.equal(outputs(twin, "label")[0], outputs(ours, "label")[0])
    assert sorted(packed_weights(ours.model)) == sorted(
        f"blocks.{n}.{name}.weight"
        for n in range(3)
        for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    )
    assert not any(isinstance(part, NF4Linear) for part in ours.model.modules())  # all adapted


# --- merging and exporting ---


def test_merging_is_refused_and_an_export_is_exact(base: Path, dequantised: Path) -> None:
    ours, plain = both(base, dequantised, LABEL)
    with pytest.raises(UsageError, match="NF4"):
        ours.merge()
    found, expected = merged_parameters(ours.model), merged_parameters(plain.model)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    theirs, exported = to_transformers(plain).tensors, to_transformers(ours).tensors
    assert theirs.keys() == exported.keys()
    assert all(torch.equal(exported[name], theirs[name]) for name in theirs)
    with pytest.raises(UsageError, match="NF4"):
        to_peft(ours)


def test_int8_computes_quantised_blocks_in_float32(base: Path) -> None:
    """Rounding weights that NF4 has rounded already would only add errors."""
    model = random_classifier(base, LABEL, lora=replace(NF4, **LAST)).model
    exact, rounded = Trunk(model, 2), Trunk(model, 2, torch.int8)
    packed = exact.pack([[5, 6, 7], [8, 9]])
    rounded.follow_weights()
    assert torch.equal(exact(packed), rounded(packed))
