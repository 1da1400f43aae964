"""A saved classifier contains what was trained, answers identically, and refuses other bases."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from said import listen
from three_blocks import (
    BOTTOM,
    HEADS,
    LABEL,
    LANGUAGE,
    LAYERS,
    STARS,
    STATE,
    TAGS,
    TOPICS,
    assert_same,
    classifier_with,
)
from three_blocks import TEXTS as ODD_TEXTS
from tiny import TINY_MERGES, write_checkpoint
from torch import Tensor
from write_bundle import write_random_gpt2

from gpt2_from_scratch.classifier.classifier import Classifier
from gpt2_from_scratch.classifier.freezing import set_trainable, trainable_names
from gpt2_from_scratch.classifier.heads import replace_head
from gpt2_from_scratch.classifier.saving import (
    Description,
    assemble,
    read_classifier,
    write_classifier,
)
from gpt2_from_scratch.classifier.settings import HeadConfig
from gpt2_from_scratch.errors import CheckpointError, UsageError
from gpt2_from_scratch.gpt2.config import GPT2Config, LoRAConfig
from gpt2_from_scratch.gpt2.lora import lora_names, merge_lora
from gpt2_from_scratch.gpt2.model import GPT2
from gpt2_from_scratch.gpt2.tokenizer import Tokenizer, write_bpe
from gpt2_from_scratch.gpt2.weights import base_sha256, load_gpt2, parameters_sha256, save_gpt2
from gpt2_from_scratch.storage.tensors import read_tensors, write_tensors

TEXTS = ["the cat is in the house", "win", "", "you and the other one " * 20, "héllo 🎉 at ten"]
LORA = LoRAConfig(rank=4, alpha=6.0)
HEAD_AND_NORM = {"head.weight", "head.bias", "ln_f.weight", "ln_f.bias"}


def change(metadata: dict[str, str], **values) -> None:
    metadata["description"] = json.dumps(json.loads(metadata["description"]) | values)


# --- what is saved ---


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


def test_trained_parameters_are_saved_after_freezing(
    classifier: Classifier, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    classifier.save(tmp_path / "first.safetensors")
    for stage in (
        "second",
        "third",
    ):  # a later stage trains fewer parameters; loading in between loses nothing
        set_trainable(classifier.model, 0, final_norm=False)
        classifier.save(tmp_path / f"{stage}.safetensors")
        again = Classifier.load(tmp_path / f"{stage}.safetensors", tiny_checkpoint)
        encoded, _ = classifier.encode(TEXTS)
        assert torch.equal(again.logits(encoded), classifier.logits(encoded))
        classifier = again


COMBINATIONS = [
    ((LABEL,), None, {"n_last_blocks": 0, "final_norm": False}),
    ((LABEL, TAGS), LoRAConfig(rank=2, n_last_blocks=1), {"n_last_blocks": 1}),
    ((LABEL, LANGUAGE), LoRAConfig(rank=3, matrices=("query", "mlp.c_fc")), {"n_last_blocks": 3}),
    (HEADS, None, {"n_last_blocks": 2}),
    (HEADS, LoRAConfig(rank=2, head=True), {"n_last_blocks": 0}),
    ((LAYERS,), LoRAConfig(rank=2, matrices=(), head=True), {"n_last_blocks": 0}),
    ((LANGUAGE,), LoRAConfig(rank=2), {"n_last_blocks": 0, "final_norm": False}),
    ((LANGUAGE, LABEL), None, {"pattern": "wte.*,blocks.0.ln_1.*,head.label.*"}),
    ((STATE,), None, {"n_last_blocks": 0, "final_norm": False}),
]


@pytest.fixture(params=COMBINATIONS)
def trained(request: pytest.FixtureRequest, base: Path) -> Iterator[Classifier]:
    """Heads, LoRA and blocks, with all trainable parameters changed."""
    heads, lora, what = request.param
    classifier = classifier_with(base, *heads, lora=lora)
    set_trainable(classifier.model, heads=heads, **what)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in classifier.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    yield classifier


def outputs_of(classifier: Classifier) -> dict[str, Tensor]:
    encoded, _ = classifier.encode(ODD_TEXTS)
    classifier.model.eval()
    with torch.no_grad():
        texts = classifier.texts(encoded)
        return classifier.batch_outputs(texts, range(len(ODD_TEXTS)))[0]


def test_any_combination_is_saved_and_loaded_to_the_bit(
    trained: Classifier, base: Path, tmp_path: Path
) -> None:
    trained.save(tmp_path / "best.safetensors")
    again = Classifier.load(tmp_path, base)
    assert again.description == trained.description
    expected = dict(trained.model.named_parameters())
    assert [name for name, _ in again.model.named_parameters()] == list(expected)
    for name, parameter in again.model.named_parameters():
        assert torch.equal(parameter, expected[name]), name
    for each in (again, trained):  # both start from the embeddings
        set_trainable(each.model, pattern="*", heads=each.description.heads)
    for name, outputs in outputs_of(again).items():
        assert torch.equal(outputs, outputs_of(trained)[name]), name
    assert again.predict(ODD_TEXTS) == trained.predict(ODD_TEXTS)


def test_a_file_contains_little_more_than_what_was_trained(
    trained: Classifier, tmp_path: Path
) -> None:
    """Each trained number takes four bytes. Heads are frozen where LoRA adapts them."""
    path = tmp_path / "best.safetensors"
    trained.save(path)
    saved = [
        p.numel()
        for name, p in trained.model.named_parameters()
        if p.requires_grad or name.startswith("head.")
    ]
    assert 4 * sum(saved) < path.stat().st_size < 4 * sum(saved) + 6000 + 120 * len(saved)


def test_a_head_of_two_classes_takes_kilobytes(tmp_path: Path) -> None:
    classifier = Classifier.on_base("mini", ["ham", "spam"])
    set_trainable(classifier.model, 0, final_norm=False)
    classifier.save(tmp_path / "head.safetensors")
    assert 2 * 257 * 4 < (tmp_path / "head.safetensors").stat().st_size < 10_000


def test_a_lora_file_contains_only_what_was_trained(tiny_checkpoint: Path, tmp_path: Path) -> None:
    adapted = Classifier.on_base(tiny_checkpoint, ["ham", "spam"], lora=LORA)
    set_trainable(adapted.model, 0)
    adapted.save(tmp_path / "best.safetensors")
    metadata, tensors = read_tensors(tmp_path / "best.safetensors", "gpt2-classifier 3")
    assert tensors.keys() == set(lora_names(adapted.model)) | HEAD_AND_NORM
    # per block of width 32: 3 of 32 + 32, and 32 + 32, 32 + 128, 128 + 32; norm 64; head 2 * 32 + 2
    count = 2 * 4 * (3 * 64 + 64 + 160 + 160) + 64 + 66
    assert sum(tensor.numel() for tensor in tensors.values()) == count
    lora = json.loads(metadata["description"])["lora"]
    assert (lora["rank"], lora["alpha"], lora["head"]) == (4, 6.0, False)


def test_a_model_is_saved_only_if_it_is_not_merged(tiny_checkpoint: Path, tmp_path: Path) -> None:
    adapted = Classifier.on_base(tiny_checkpoint, ["ham", "spam"], lora=LORA)
    set_trainable(adapted.model, 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name in lora_names(adapted.model):
            adapted.model.get_parameter(name).normal_(0, 0.2, generator=generator)
    encoded, _ = adapted.encode(TEXTS)
    expected = adapted.logits(encoded)
    before = {name: p.detach().clone() for name, p in adapted.model.named_parameters()}
    adapted.merge()
    adapted.merge()  # merging twice changes nothing
    with pytest.raises(UsageError, match=r"unmerge\(\)"):
        adapted.save(tmp_path / "merged.safetensors")
    assert not (tmp_path / "merged.safetensors").exists()
    adapted.unmerge()
    adapted.save(tmp_path / "apart.safetensors")
    _, tensors = read_tensors(tmp_path / "apart.safetensors", "gpt2-classifier 3")
    assert tensors.keys() == set(lora_names(adapted.model)) | HEAD_AND_NORM
    assert all(torch.equal(value, before[name]) for name, value in tensors.items())
    loaded = Classifier.load(tmp_path / "apart.safetensors", tiny_checkpoint)
    # the base's weights were restored without rounding
    assert torch.equal(loaded.logits(encoded), expected)
    torch.testing.assert_close(adapted.logits(encoded), expected, atol=1e-5, rtol=0)


def train_by_hand(classifier: Classifier) -> None:
    """A hand-written loop: two steps on all trainable parameters."""
    parameters = [p for p in classifier.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.05)
    for _ in range(2):
        classifier.batch_logits(classifier.texts([[5, 6, 7], [8, 9]]), [0, 1]).sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def by_data(classifier: Classifier) -> None:
    classifier.model.blocks[0].mlp.c_fc.bias.data += 1  # no version counter notices this


def by_state_dict(classifier: Classifier) -> None:
    state = {name: 1.5 * value for name, value in classifier.model.state_dict().items()}
    classifier.model.load_state_dict(state | {"wte.weight": state["wte.weight"] / 1.5})


def by_assigned_state_dict(classifier: Classifier) -> None:
    state = {name: value + 0.1 for name, value in classifier.model.state_dict().items()}
    classifier.model.load_state_dict(state, assign=True)


def by_training_other_blocks(classifier: Classifier) -> None:
    for n in (0, 1):
        set_trainable(classifier.model, pattern=f"blocks.{n}.attn.*")
        train_by_hand(classifier)


def by_another_part(classifier: Classifier) -> None:
    classifier.model.ln_f = torch.nn.LayerNorm(32)


def by_half(classifier: Classifier) -> None:
    classifier.model.half().float()


HANDS = [
    train_by_hand,
    by_data,
    by_state_dict,
    by_assigned_state_dict,
    by_training_other_blocks,
    by_another_part,
    by_half,
]


@pytest.mark.parametrize("change_it", HANDS)
def test_all_changed_weights_are_saved_even_if_frozen(
    classifier: Classifier, tiny_checkpoint: Path, tmp_path: Path, change_it
) -> None:
    """For every way to change weights, even if everything is frozen by then."""
    change_it(classifier)
    classifier.model.requires_grad_(False)
    classifier.save(tmp_path / "c.safetensors")
    again = Classifier.load(tmp_path / "c.safetensors", tiny_checkpoint)
    expected = dict(classifier.model.named_parameters())
    for name, parameter in again.model.named_parameters():
        assert torch.equal(parameter, expected[name]), name
    base = load_gpt2(tiny_checkpoint).state_dict()
    differ = {n for n, p in expected.items() if n[:5] == "head." or not torch.equal(p, base[n])}
    assert load_file(tmp_path / "c.safetensors").keys() == differ
    assert again.predict(TEXTS) == classifier.predict(TEXTS)


def test_half_precision_weights_are_saved_unchanged(
    classifier: Classifier, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    classifier.model.requires_grad_(False).bfloat16()
    classifier.save(tmp_path / "c.safetensors")
    again = Classifier.load(tmp_path / "c.safetensors", tiny_checkpoint)
    expected = dict(classifier.model.named_parameters())
    for name, parameter in again.model.named_parameters():
        assert torch.equal(parameter, expected[name].float()), name


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # raised by an import of torch.compile
def test_a_compiled_model_is_saved_as_the_model(
    classifier: Classifier, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    classifier.save(tmp_path / "plain.safetensors")
    # never called, so never compiled
    classifier.model.blocks[1] = torch.compile(classifier.model.blocks[1])
    classifier.model = torch.compile(classifier.model)
    set_trainable(classifier.model, 1)
    classifier.save(tmp_path / "compiled.safetensors")
    plain, compiled = (tmp_path / f"{name}.safetensors" for name in ("plain", "compiled"))
    assert plain.read_bytes() == compiled.read_bytes()


def test_permanently_merged_adapters_are_saved_as_weights(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    adapted = Classifier.on_base(tiny_checkpoint, ["ham", "spam"], lora=LORA)
    with torch.no_grad():
        for name in lora_names(adapted.model):
            adapted.model.get_parameter(name).normal_(0, 0.2)
    merge_lora(adapted.model)
    adapted.model.requires_grad_(False)
    adapted.save(tmp_path / "best.safetensors")
    again = Classifier.load(tmp_path, tiny_checkpoint)
    assert again.description.lora is None
    assert again.predict(TEXTS) == adapted.predict(TEXTS)


def test_weights_trained_while_merged_are_saved(tiny_checkpoint: Path, tmp_path: Path) -> None:
    adapted = Classifier.on_base(tiny_checkpoint, ["ham", "spam"], lora=LORA)
    adapted.model.requires_grad_(False)
    with torch.no_grad():
        for name in lora_names(adapted.model):
            adapted.model.get_parameter(name).normal_(0, 0.2)
    adapted.merge()
    adapted.model.blocks[0].mlp.c_fc.weight.data[3, 4] += 0.01
    adapted.unmerge()
    adapted.save(tmp_path / "best.safetensors")
    _, tensors, _ = read_classifier(tmp_path / "best.safetensors")
    others = tensors.keys() - {*lora_names(adapted.model)}
    assert others == {"head.weight", "head.bias", "blocks.0.mlp.c_fc.weight"}


# --- a model that was trained before it became a classifier ---


def own_classifier(folder: Path, base: str, sha256: str = "") -> Classifier:
    model, tokenizer = load_gpt2(folder), Tokenizer(folder)
    sha256 = sha256 or base_sha256(model, tokenizer)
    replace_head(model, 2)
    model.requires_grad_(False)
    with torch.no_grad():
        model.blocks[0].ln_1.bias += 1  # simulates training
    description = Description(base, sha256, (HeadConfig(labels=("a", "b")),), 32)
    return Classifier(model, tokenizer, description)


def test_weights_trained_earlier_are_saved(tiny_checkpoint: Path, tmp_path: Path) -> None:
    classifier = own_classifier(tiny_checkpoint, str(tiny_checkpoint))
    classifier.save(tmp_path / "c.safetensors")
    tensors = load_file(tmp_path / "c.safetensors")
    assert tensors.keys() == {"head.weight", "head.bias", "blocks.0.ln_1.bias"}
    again = Classifier.load(tmp_path / "c.safetensors", tiny_checkpoint)
    assert again.predict(TEXTS) == classifier.predict(TEXTS)


def test_everything_is_saved_where_the_base_is_not_found(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    said = listen()
    classifier = own_classifier(tiny_checkpoint, str(tmp_path / "gone"))
    classifier.save(tmp_path / "c.safetensors")
    assert "gone" in said[0] and "all weights" in said[0]
    again = Classifier.load(tmp_path / "c.safetensors", tiny_checkpoint)
    assert again.predict(TEXTS) == classifier.predict(TEXTS)


def test_the_identity_of_trained_weights_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    classifier = own_classifier(tiny_checkpoint, str(tiny_checkpoint), sha256="0" * 64)
    with pytest.raises(UsageError, match="base_sha256"):
        classifier.save(tmp_path / "c.safetensors")


def test_no_file_is_written_that_could_not_be_loaded(
    classifier: Classifier, tmp_path: Path
) -> None:
    path = tmp_path / "c.safetensors"
    classifier.model.blocks[0].gate = torch.nn.Linear(2, 2)
    with pytest.raises(UsageError, match=r"blocks\.0\.gate\.weight"):
        classifier.save(path)
    del classifier.model.blocks[0].gate
    torch.nn.utils.parametrizations.weight_norm(classifier.model.blocks[1].mlp.c_fc)
    with pytest.raises(UsageError, match=r"blocks\.1\.mlp\.c_fc"):
        classifier.save(path)
    torch.nn.utils.parametrize.remove_parametrizations(
        classifier.model.blocks[1].mlp.c_fc, "weight"
    )
    classifier.model.head.weight.data[0, 0] = torch.inf
    with pytest.raises(CheckpointError, match="NaN or infinite"):
        classifier.save(path)
    assert not path.exists()


# --- what is refused ---


def test_another_base_is_refused(classifier: Classifier, tmp_path: Path) -> None:
    classifier.save(tmp_path / "c.safetensors")
    other = tmp_path / "other"
    write_random_gpt2(other, vars(classifier.model.config), seed=99)
    for name in ("vocab.bpe", "encoder.json"):
        (other / name).write_bytes((Path(classifier.description.base) / name).read_bytes())
    deep = write_checkpoint(tmp_path / "deep", seed=5, n_layer=4)
    for base in (other, deep):
        with pytest.raises(CheckpointError, match="another base"):
            Classifier.load(tmp_path / "c.safetensors", base)


def test_a_base_with_another_vocabulary_is_refused(
    classifier: Classifier, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    classifier.save(tmp_path / "c.safetensors")
    other = tmp_path / "other"
    shutil.copytree(tiny_checkpoint, other)
    write_bpe(other, [*TINY_MERGES[:-2], TINY_MERGES[-1], TINY_MERGES[-2]])
    with pytest.raises(CheckpointError, match="another base"):
        Classifier.load(tmp_path / "c.safetensors", other)


def test_a_base_in_a_folder_must_be_given(classifier: Classifier, tmp_path: Path) -> None:
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
        (lambda t, m: change(m, max_tokens=0), "max_tokens = 0"),
        (lambda t, m: change(m, pad_to=-1), "pad_to = -1"),
        (lambda t, m: change(m, causal_mask=1), "causal_mask = 1"),
    ],
)
def test_a_damaged_file_is_refused(
    classifier: Classifier, tiny_checkpoint: Path, tmp_path: Path, spoil, message: str
) -> None:
    path = tmp_path / "c.safetensors"
    classifier.save(path)
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        metadata = json.loads(file.metadata()["gpt2_from_scratch"])
    del metadata["sha256"]
    spoil(tensors, metadata)
    write_tensors(path, tensors, metadata)  # with a valid checksum
    with pytest.raises(CheckpointError, match=message):
        Classifier.load(path, tiny_checkpoint)


def change_head(metadata: dict[str, str], **values) -> None:
    description = json.loads(metadata["description"])
    description["heads"][0] |= values
    metadata["description"] = json.dumps(description)


def test_files_without_thresholds_keep_a_half(base: Path, tmp_path: Path) -> None:
    """Earlier versions had no thresholds."""
    plain = classifier_with(base, TOPICS)
    odds = {label: [p.probabilities[label] for p in plain.predict(TEXTS)] for label in "xyz"}
    thresholds = tuple(float(np.median(odds[label])) for label in "xyz")
    classifier = classifier_with(base, replace(TOPICS, thresholds=thresholds))
    classifier.save(tmp_path / "new.safetensors")
    again = Classifier.load(tmp_path / "new.safetensors", base)
    assert again.description.head.thresholds == thresholds
    for n, prediction in enumerate(again.predict(TEXTS)):
        above = [label for label, t in zip("xyz", thresholds, strict=True) if odds[label][n] > t]
        assert prediction.answer.labels == above
    metadata, tensors = read_tensors(tmp_path / "new.safetensors", "gpt2-classifier 3")
    description = json.loads(metadata["description"])
    del description["heads"][0]["thresholds"]
    metadata["description"] = json.dumps(description)
    write_tensors(tmp_path / "old.safetensors", tensors, metadata)
    old = Classifier.load(tmp_path / "old.safetensors", base)
    assert old.predict(TEXTS) == plain.predict(TEXTS) != again.predict(TEXTS)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t, m: change_head(m, hidden=[10**12]), "1000000000000"),
        (lambda t, m: change_head(m, hidden=[1] * 100_000), "widths"),
        (
            lambda t, m: (
                t.update({"head.dense_0.bias": torch.zeros(300_000)}),
                change_head(m, hidden=[300_000, 300_000]),  # 360 GB
            ),
            "head.dense_0.weight",
        ),
        (
            lambda t, m: (
                t.update({"head.dense_0.bias": torch.zeros(2**40, 0)}),
                change_head(m, hidden=[2**40, 2**40]),
            ),
            "is empty",
        ),
        (lambda t, m: change(m, lora={"rank": 10**9}), "widths"),
        (lambda t, m: change(m, pad_to=10**12), "pad_to"),
        (lambda t, m: change(m, max_tokens=10**19), "64 bits"),
        (lambda t, m: change_head(m, layer=10**9), "layer"),
        (lambda t, m: change_head(m, labels=[str(n) for n in range(20_000)]), "does not fit"),
        (lambda t, m: change(m, base_sha256=7), "base_sha256"),
        (lambda t, m: change(m, base=["x"]), "base"),
        (lambda t, m: change_head(m, class_weights=[10**400] * 3), "64 bits"),
        (lambda t, m: m.update(description="[" * 990 + "]" * 990), "50 levels"),
        (lambda t, m: m.pop("description"), "description"),
        (lambda t, m: t.update({"head.bias": torch.zeros(3, dtype=torch.int64)}), "head.bias"),
        (lambda t, m: t.update({"head.bias": torch.zeros(3).to(torch.float8_e5m2)}), "float8"),
    ],
)
@pytest.mark.parametrize("way", ["load", "attach"])
def test_a_crafted_file_is_refused_before_anything_large_is_made(
    base: Path, tmp_path: Path, spoil, message: str, way: str
) -> None:
    path = tmp_path / "c.safetensors"
    classifier_with(base, LABEL).save(path)
    metadata, tensors = read_tensors(path, "gpt2-classifier 3")
    spoil(tensors, metadata)
    write_tensors(path, tensors, metadata)
    with pytest.raises(CheckpointError) as caught:
        if way == "load":
            Classifier.load(path, base)
        else:
            classifier_with(base, STARS).attach(path)
    assert len(str(caught.value)) < 1000
    if way == "load":
        assert message in str(caught.value)


def test_a_file_without_one_of_its_adapters_is_refused(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    Classifier.on_base(tiny_checkpoint, ["ham", "spam"], lora=LORA).save(
        tmp_path / "best.safetensors"
    )
    description, tensors, _ = read_classifier(tmp_path / "best.safetensors")
    del tensors["blocks.1.mlp.c_fc.lora_B"]
    write_classifier(tmp_path / "best.safetensors", description, tensors)
    with pytest.raises(CheckpointError, match=r"missing \['blocks.1.mlp.c_fc.lora_B'\]"):
        Classifier.load(tmp_path, tiny_checkpoint)


@pytest.mark.slow
def test_every_flipped_bit_is_detected(
    classifier: Classifier, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    path = tmp_path / "c.safetensors"
    classifier.save(path)
    whole = path.read_bytes()
    for place in range(0, len(whole), len(whole) // 100):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            again = Classifier.load(path, tiny_checkpoint)
        except CheckpointError:
            continue
        # the flipped bit is in white space of the header
        assert again.description == classifier.description
        encoded, _ = classifier.encode(TEXTS)
        assert torch.equal(again.logits(encoded), classifier.logits(encoded))


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
def test_invalid_descriptions_are_refused(tiny_checkpoint: Path, wrong: dict) -> None:
    with pytest.raises(UsageError):
        Classifier.on_base(tiny_checkpoint, **({"labels": ["a", "b"]} | wrong))


def test_pad_to_needs_a_head_that_reads_padding(classifier: Classifier) -> None:
    with pytest.raises(UsageError, match="last_position"):
        replace(classifier.description, pad_to=32)


def test_removing_the_mask_needs_the_last_token(classifier: Classifier) -> None:
    mean = replace(classifier.description.head, pooling="mean")
    with pytest.raises(UsageError, match="last_token"):
        replace(classifier.description, causal_mask=False, heads=(mean,))
    assert not replace(classifier.description, causal_mask=False).causal_mask


def test_the_hash_depends_on_the_weights_not_on_the_file(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    gpt2 = load_gpt2(tiny_checkpoint)
    save_gpt2(gpt2, tmp_path)
    assert parameters_sha256(load_gpt2(tmp_path)) == parameters_sha256(gpt2)
    with torch.no_grad():
        gpt2.wpe.weight[3, 3] += 1e-6
    assert parameters_sha256(load_gpt2(tmp_path)) != parameters_sha256(gpt2)


# --- attached heads ---


@pytest.mark.parametrize("head", [LABEL, LAYERS, TAGS, LANGUAGE, BOTTOM], ids=lambda h: h.name)
def test_an_attached_head_answers_as_before(base: Path, tmp_path: Path, head: HeadConfig) -> None:
    other = replace(STARS, name="other")
    there, here = classifier_with(base, head), classifier_with(base, other)
    there.save(tmp_path / "there.safetensors")
    before = torch.random.get_rng_state()
    here.attach(tmp_path / "there.safetensors")
    assert torch.equal(torch.random.get_rng_state(), before)
    expected = there.predict(ODD_TEXTS), classifier_with(base, other).predict(ODD_TEXTS)
    for found, *said in zip(here.predict(ODD_TEXTS), *expected, strict=True):
        assert list(found.answers) == ["other", head.name]
        assert_same(found.answers[head.name], said[0].answer)
        assert_same(found.answers["other"], said[1].answer)
    here.save(tmp_path / "here.safetensors")
    again = Classifier.load(tmp_path / "here.safetensors", base)
    assert again.predict(ODD_TEXTS) == here.predict(ODD_TEXTS)
    with pytest.raises(UsageError, match="different names"):
        again.attach(tmp_path / "there.safetensors")
    assert again.predict(ODD_TEXTS) == here.predict(ODD_TEXTS)


@pytest.mark.parametrize(
    "lora", [LoRAConfig(rank=2), LoRAConfig(rank=2, matrices=(), head=True)], ids=["all", "head"]
)
def test_no_head_is_attached_to_a_model_with_adapters(
    base: Path, tmp_path: Path, lora: LoRAConfig
) -> None:
    """Adapters of blocks change what it reads; adapters of heads would be expected in it."""
    classifier_with(base, STARS).save(tmp_path / "stars.safetensors")
    adapted = classifier_with(base, LABEL, lora=lora)
    with pytest.raises(CheckpointError, match="lora_A was trained here"):
        adapted.attach(tmp_path / "stars.safetensors")
    adapted.save(tmp_path / "adapted.safetensors")
    with pytest.raises(CheckpointError, match="lora_A"):
        classifier_with(base, STARS).attach(tmp_path / "adapted.safetensors")
    adapted.merge()
    with pytest.raises(CheckpointError, match="lora_A was trained here"):
        adapted.attach(tmp_path / "stars.safetensors")


def test_attached_heads_must_read_texts_in_the_same_way(base: Path, tmp_path: Path) -> None:
    classifier_with(base, LABEL, max_tokens=5).save(tmp_path / "cut.safetensors")
    with pytest.raises(CheckpointError, match="max_tokens = 5, .* 32"):
        classifier_with(base, STARS).attach(tmp_path / "cut.safetensors")
    padded = classifier_with(base, replace(LABEL, pooling="last_position"))
    padded.description = replace(padded.description, pad_to=32)
    padded.save(tmp_path / "padded.safetensors")
    with pytest.raises(CheckpointError, match="pad_to = 32, .* None"):
        classifier_with(base, STARS).attach(tmp_path / "padded.safetensors")


# --- parts added to a base ---


def test_appendix_e_on_124m_has_2_666_528_trainable_parameters() -> None:
    """Adapters of rank 16 on every linear layer, including the head, and nothing else."""
    with torch.device("meta"):
        model = GPT2(GPT2Config())
    lora = LoRAConfig(rank=16, alpha=16, head=True)
    description = Description("124M", "0" * 64, (HeadConfig(labels=("ham", "spam")),), lora=lora)
    assemble(description, model, SimpleNamespace(fits=lambda n_vocab: n_vocab == 50257), seed=123)  # type: ignore[arg-type]
    set_trainable(model, 0, final_norm=False, heads=description.heads)
    assert trainable_names(model) == lora_names(model)
    by_block = [16 * (768 + out) for out in 3 * [768]]  # query, key, value
    by_block += [16 * (768 + 768), 16 * (768 + 3072), 16 * (3072 + 768)]
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert count == 12 * sum(by_block) + 16 * (768 + 2) == 2_666_528
