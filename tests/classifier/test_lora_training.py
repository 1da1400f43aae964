"""LoRA from settings to a finished run: what changes, what is saved, what is quick, what is refused."""

import csv
import json
import math
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from said import listen
from tiny import write_checkpoint
from torch import Tensor
from torch.func import functional_call

from gpt2_from_scratch.classifier.classifier import Classifier
from gpt2_from_scratch.classifier.freezing import (
    frozen_depth,
    plain_depth,
    set_trainable,
    trainable_names,
)
from gpt2_from_scratch.classifier.heads import class_logits
from gpt2_from_scratch.classifier.saving import (
    Description,
    assemble,
    read_classifier,
    write_classifier,
)
from gpt2_from_scratch.classifier.settings import HeadConfig, HeadSettings, TrainConfig
from gpt2_from_scratch.classifier.train import TrainingRun, epoch_order, finetune
from gpt2_from_scratch.cli import main as cli
from gpt2_from_scratch.data.messages import Message
from gpt2_from_scratch.data.split import Split
from gpt2_from_scratch.errors import CheckpointError, Interrupted, UsageError
from gpt2_from_scratch.gpt2.config import GPT2Config, LoRAConfig
from gpt2_from_scratch.gpt2.lora import lora_names
from gpt2_from_scratch.gpt2.model import GPT2
from gpt2_from_scratch.runs.recipes import evaluate_classifier, resume_training, train_classifier
from gpt2_from_scratch.speed.feature_cache import Embedded, Features
from gpt2_from_scratch.speed.feature_store import FeatureStore
from gpt2_from_scratch.speed.partial_blocks import is_plain
from gpt2_from_scratch.storage.files import sha256_of
from gpt2_from_scratch.storage.tensors import read_tensors

LABELS = ["ham", "spam"]
CONFIG = TrainConfig(n_last_blocks=0, epochs=2, batch_size=4, lr=0.01, seed=3)
LORA = LoRAConfig(rank=4, alpha=6.0)
HEAD_AND_NORM = {"head.weight", "head.bias", "ln_f.weight", "ln_f.bias"}
LASTING = ("best.safetensors", "last.safetensors", "metrics.jsonl", "evaluation.json", "test.csv")
TEXTS = ["win the house", "see", "", "the river and you", "win"]


@pytest.fixture
def split() -> Split:
    """Two kinds of texts that differ in one word; every text another."""
    things = ["house", "river", "tree", "street", "garden", "window", "letter", "road"]
    messages = [
        Message(f"{word} the {thing} {n}", label)
        for n, thing in enumerate(things)
        for word, label in (("win", "spam"), ("see", "ham"))
    ]
    return Split(messages[:10], messages[10:13], messages[13:])


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty labelled messages as a file."""
    path = tmp_path_factory.mktemp("data") / "kinds.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = [[f"{'the goal' if n % 2 else 'a pill'} {n}", "ab"[n % 2]] for n in range(40)]
        csv.writer(file).writerows([["text", "label"], *rows])
    return path


@pytest.fixture(scope="module")
def deep_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four blocks."""
    return write_checkpoint(tmp_path_factory.mktemp("deep"), seed=5, n_layer=4)


def trained(base: Path, split: Split, out: Path, config: TrainConfig = CONFIG, **settings):
    """(a classifier, its history) of a run in `out`."""
    settings = {"lora": LORA} | settings
    classifier = Classifier.on_base(base, LABELS, seed=config.seed, **settings)
    return classifier, go_on(classifier, split, out, config)


def go_on(classifier: Classifier, split: Split, out: Path, config: TrainConfig = CONFIG, **more):
    out.mkdir()
    return finetune(classifier, split, config, out, **more)


def parameters(classifier: Classifier) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in classifier.model.named_parameters()}


def changed(before: dict[str, Tensor], classifier: Classifier) -> set[str]:
    return {n for n, p in classifier.model.named_parameters() if not torch.equal(p, before[n])}


def logits(classifier: Classifier) -> Tensor:
    return classifier.logits(classifier.encode(TEXTS)[0])


# --- what training changes ---


def test_adapters_head_and_norm_change_and_nothing_else(
    tiny_checkpoint: Path, split: Split, tmp_path: Path
) -> None:
    before = parameters(Classifier.on_base(tiny_checkpoint, LABELS, lora=LORA, seed=3))
    classifier, history = trained(tiny_checkpoint, split, tmp_path / "run")
    adapters = set(lora_names(classifier.model))
    assert len(adapters) == 2 * 2 * 4  # A and B of four layers in two blocks
    assert changed(before, classifier) == adapters | HEAD_AND_NORM
    assert history[-1].train_loss < history[0].train_loss


def test_training_equals_a_dense_loop(tiny_checkpoint: Path, split: Split, tmp_path: Path) -> None:
    """W + BA written out and put into a plain GPT-2, one text at a time, rates by their formula."""
    _, history = trained(tiny_checkpoint, split, tmp_path / "run")
    plain = Classifier.on_base(tiny_checkpoint, LABELS, seed=3)
    adapted = Classifier.on_base(tiny_checkpoint, LABELS, lora=LORA, seed=3).model
    own = parameters(plain)
    trains = {name: own[name] for name in HEAD_AND_NORM}
    trains |= {name: adapted.get_parameter(name).detach().clone() for name in lora_names(adapted)}
    for value in trains.values():
        value.requires_grad_(True)
    decaying = [value for value in trains.values() if value.dim() > 1]
    others = [value for value in trains.values() if value.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decaying}, {"params": others, "weight_decay": 0.0}], weight_decay=0.1
    )

    def answer(text: str) -> Tensor:
        weights = own | {name: trains[name] for name in HEAD_AND_NORM}
        for name in (name for name in trains if name.endswith("lora_A")):
            layer = name.removesuffix(".lora_A")
            pairs = zip(trains[f"{layer}.lora_B"], trains[name], strict=True)
            product = torch.cat(
                [B @ A for B, A in pairs]
            )  # of query, key, value: one below another
            weights[f"{layer}.weight"] = own[f"{layer}.weight"] + 6.0 / 4 * product
        return functional_call(plain.model, weights, torch.tensor([plain.tokenizer.encode(text)]))[
            0, -1
        ]

    steps, step = 2 * math.ceil(len(split.train) / 4), 0
    for epoch in (1, 2):
        order, losses = epoch_order(len(split.train), 3, epoch), []
        for first in range(0, len(order), 4):
            batch = [split.train[n] for n in order[first : first + 4]]
            labels = torch.tensor([LABELS.index(str(m.label)) for m in batch])
            loss = F.cross_entropy(torch.stack([answer(m.text) for m in batch]), labels)
            losses += [loss.item()] * len(batch)
            rise = max(1, round(0.1 * steps))
            fall = (1 + math.cos(math.pi * (step - rise) / (steps - rise))) / 2
            for group in optimizer.param_groups:
                group["lr"] = 0.01 * ((step + 1) / rise if step < rise else fall)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
        assert history[epoch - 1].train_loss == pytest.approx(sum(losses) / len(losses), abs=1e-5)
    last = Classifier.load(tmp_path / "run" / "last.safetensors", tiny_checkpoint)
    with torch.no_grad():
        expected = torch.stack([answer(m.text) for m in split.test])
    found = last.logits(last.encode([m.text for m in split.test])[0])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_blocks_and_adapters_train_together(
    tiny_checkpoint: Path, split: Split, tmp_path: Path
) -> None:
    config = replace(CONFIG, n_last_blocks=1)
    before = parameters(Classifier.on_base(tiny_checkpoint, LABELS, lora=LORA, seed=3))
    classifier, _ = trained(tiny_checkpoint, split, tmp_path / "run", config)
    last = {name for name in before if name.startswith("blocks.1.")}
    assert changed(before, classifier) == last | set(lora_names(classifier.model)) | HEAD_AND_NORM
    loaded = Classifier.load(tmp_path / "run", tiny_checkpoint)
    assert torch.equal(logits(loaded), logits(classifier))


def test_dropout_draws_in_training_alone(
    tiny_checkpoint: Path, split: Split, tmp_path: Path
) -> None:
    half = replace(LORA, dropout=0.5)
    _, without = trained(tiny_checkpoint, split, tmp_path / "without")
    torch.manual_seed(5)
    classifier, history = trained(tiny_checkpoint, split, tmp_path / "with", lora=half)
    after = torch.rand(3)
    _, again = trained(tiny_checkpoint, split, tmp_path / "again", lora=half)
    assert history == again and history[-1].train_loss != without[-1].train_loss
    assert torch.equal(logits(classifier), logits(classifier))
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), after)  # whoever else draws does not notice


def test_heads_at_other_layers(tiny_checkpoint: Path, split: Split, tmp_path: Path) -> None:
    """Two heads, behind one block and behind both: what each says, by hand from dense weights."""
    heads = [
        HeadConfig("early", labels=("ham", "spam"), layer=1),
        HeadConfig(labels=("ham", "spam")),
    ]
    both = Split(
        *(
            [replace(m, label={"early": m.label, "label": m.label}) for m in part]
            for part in vars(split).values()
        )
    )
    classifier = Classifier.on_base(tiny_checkpoint, heads=heads, lora=LORA, seed=3)
    history = go_on(classifier, both, tmp_path / "run")
    assert history[-1].train_loss < history[0].train_loss and set(history[-1].heads) == {
        "early",
        "label",
    }
    found = classifier.predict([m.text for m in split.test])
    classifier.merge()
    model = classifier.model
    for prediction, message in zip(found, split.test, strict=True):
        with torch.no_grad():
            x = model.embed(torch.tensor([classifier.tokenizer.encode(message.text)]))
            for name, block in zip(("early", "label"), model.blocks, strict=True):
                x = block(x)
                share = model.head[name](model.ln_f(x[0, -1])).softmax(dim=0)
                told = prediction.answers[name].probabilities
                assert list(told.values()) == pytest.approx(share.tolist(), abs=1e-5)


def test_adapters_above_what_is_read_stay_as_they_were(
    tiny_checkpoint: Path, split: Split, tmp_path: Path
) -> None:
    heads = [HeadConfig(labels=("ham", "spam"), layer=1)]
    classifier = Classifier.on_base(tiny_checkpoint, heads=heads, lora=LORA, seed=3)
    before = parameters(classifier)
    go_on(classifier, split, tmp_path / "run")
    below = {name for name in lora_names(classifier.model) if name.startswith("blocks.0.")}
    assert changed(before, classifier) == below | HEAD_AND_NORM


# --- appendix E of the lecture's book ---


def test_appendix_e_on_124m_trains_2_666_528() -> None:
    """Adapters of rank 16 beside every linear layer, the head among them, and nothing else."""
    with torch.device("meta"):
        model = GPT2(GPT2Config())
    lora = LoRAConfig(rank=16, alpha=16, head=True)
    description = Description("124M", "0" * 64, (HeadConfig(labels=("ham", "spam")),), lora=lora)
    assemble(description, model, SimpleNamespace(n_vocab=50257), seed=123)  # type: ignore[arg-type]
    set_trainable(model, 0, final_norm=False, heads=description.heads)
    assert trainable_names(model) == lora_names(model)
    by_block = [16 * (768 + out) for out in 3 * [768]]  # query, key, value
    by_block += [16 * (768 + 768), 16 * (768 + 3072), 16 * (3072 + 768)]
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert count == 12 * sum(by_block) + 16 * (768 + 2) == 2_666_528


def test_with_an_adapted_head_the_drawn_one_keeps_its_bits(
    tiny_checkpoint: Path, split: Split, tmp_path: Path
) -> None:
    """Through a file and further training too."""
    config = replace(CONFIG, final_norm=False)
    settings = {"lora": replace(LORA, head=True)}
    before = parameters(Classifier.on_base(tiny_checkpoint, LABELS, seed=3, **settings))
    classifier, _ = trained(tiny_checkpoint, split, tmp_path / "run", config, **settings)
    assert changed(before, classifier) == set(lora_names(classifier.model))
    assert {"head.lora_A", "head.lora_B"} <= changed(before, classifier)
    loaded = Classifier.load(tmp_path / "run", tiny_checkpoint)
    assert torch.equal(logits(loaded), logits(classifier))
    go_on(loaded, split, tmp_path / "more", config)
    assert changed(before, loaded) == set(lora_names(loaded.model))


# --- what is saved ---


def test_the_file_holds_what_trained_and_no_more(
    tiny_checkpoint: Path, split: Split, tmp_path: Path
) -> None:
    classifier, _ = trained(tiny_checkpoint, split, tmp_path / "run")
    path = tmp_path / "run" / "best.safetensors"
    metadata, tensors = read_tensors(path, "gpt2-classifier 3")
    assert tensors.keys() == set(lora_names(classifier.model)) | HEAD_AND_NORM
    # of 32 wide blocks: 3 of 32 + 32, and 32 + 32, 32 + 128, 128 + 32; norm 64, head 2 * 32 + 2
    count = 2 * 4 * (3 * 64 + 64 + 160 + 160) + 64 + 66
    assert sum(tensor.numel() for tensor in tensors.values()) == count
    assert 4 * count < path.stat().st_size < 4 * count + 6000
    lora = json.loads(metadata["description"])["lora"]
    assert (lora["rank"], lora["alpha"], lora["head"]) == (4, 6.0, False)


def test_loaded_it_gives_the_same_bits_and_trains_on_to_the_same(
    tiny_checkpoint: Path, split: Split, tmp_path: Path
) -> None:
    classifier, _ = trained(tiny_checkpoint, split, tmp_path / "run")
    loaded = Classifier.load(tmp_path / "run", tiny_checkpoint)
    assert loaded.description == classifier.description
    assert torch.equal(logits(loaded), logits(classifier))
    before = parameters(loaded)
    go_on(classifier, split, tmp_path / "on")
    go_on(loaded, split, tmp_path / "from_file")
    assert changed(before, loaded) == set(lora_names(loaded.model)) | HEAD_AND_NORM
    for name in ("best.safetensors", "last.safetensors", "metrics.jsonl"):
        assert sha256_of(tmp_path / "on" / name) == sha256_of(tmp_path / "from_file" / name)


def test_another_base_is_refused(
    tiny_checkpoint: Path, deep_checkpoint: Path, tmp_path: Path
) -> None:
    Classifier.on_base(tiny_checkpoint, LABELS, lora=LORA).save(tmp_path / "best.safetensors")
    other = write_checkpoint(tmp_path / "other", seed=77)  # the same sizes
    for base in (other, deep_checkpoint):
        with pytest.raises(CheckpointError, match="nonsense on another base"):
            Classifier.load(tmp_path, base)
    assert Classifier.load(tmp_path, tiny_checkpoint).description.lora == LORA


def test_a_file_without_one_of_its_adapters_is_refused(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    Classifier.on_base(tiny_checkpoint, LABELS, lora=LORA).save(tmp_path / "best.safetensors")
    description, tensors = read_classifier(tmp_path / "best.safetensors")
    del tensors["blocks.1.mlp.c_fc.lora_B"]
    write_classifier(tmp_path / "best.safetensors", description, tensors)
    with pytest.raises(CheckpointError, match=r"missing \['blocks.1.mlp.c_fc.lora_B'\]"):
        Classifier.load(tmp_path, tiny_checkpoint)


def test_no_head_is_attached_where_adapters_trained(
    tiny_checkpoint: Path, split: Split, tmp_path: Path
) -> None:
    """It was trained on the states of a base without them; nor the other way round."""
    other = Classifier.on_base(tiny_checkpoint, heads=[HeadConfig("other", labels=("a", "b"))])
    set_trainable(other.model, 0, final_norm=False)
    other.save(tmp_path / "head.safetensors")
    trained(tiny_checkpoint, split, tmp_path / "run", replace(CONFIG, final_norm=False))
    loaded = Classifier.load(tmp_path / "run", tiny_checkpoint)
    with pytest.raises(CheckpointError, match="blocks.0.attn.c_attn.lora_A was trained here"):
        loaded.attach(tmp_path / "head.safetensors")
    loaded.merge()
    with pytest.raises(CheckpointError, match="blocks.0.attn.c_attn.lora_A was trained here"):
        loaded.attach(tmp_path / "head.safetensors")
    with pytest.raises(CheckpointError, match="changes blocks.0.attn.c_attn.lora_A too"):
        other.attach(tmp_path / "run")


# --- merged ---


def test_merged_it_is_plain_and_answers_the_same(
    tiny_checkpoint: Path, split: Split, tmp_path: Path
) -> None:
    classifier, _ = trained(tiny_checkpoint, split, tmp_path / "run")
    apart, found = classifier.predict(TEXTS), logits(classifier)
    plain = logits(Classifier.on_base(tiny_checkpoint, LABELS, seed=3))
    scores = evaluate_classifier(classifier, split.test)
    assert plain_depth(classifier.model)[0] == 0 and (found - plain).abs().max() > 0.1

    classifier.merge()
    assert all(is_plain(block) for block in classifier.model.blocks)
    assert plain_depth(classifier.model) == (2, "")
    assert isinstance(classifier.texts(classifier.encode(TEXTS)[0]), Features)
    torch.testing.assert_close(logits(classifier), found, atol=1e-5, rtol=0)
    for one, other in zip(classifier.predict(TEXTS), apart, strict=True):
        assert one.label == other.label
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)
    assert evaluate_classifier(classifier, split.test) == scores


def test_merged_it_is_not_saved_and_taken_apart_it_is(
    tiny_checkpoint: Path, split: Split, tmp_path: Path
) -> None:
    classifier, _ = trained(tiny_checkpoint, split, tmp_path / "run")
    expected, before = logits(classifier), parameters(classifier)
    classifier.merge()
    classifier.merge()  # a second time changes nothing
    with pytest.raises(UsageError, match=r"unmerge\(\) before saving"):
        classifier.save(tmp_path / "merged.safetensors")
    assert not (tmp_path / "merged.safetensors").exists()
    classifier.unmerge()
    classifier.save(tmp_path / "apart.safetensors")
    _, tensors = read_tensors(tmp_path / "apart.safetensors", "gpt2-classifier 3")
    assert tensors.keys() == set(lora_names(classifier.model)) | HEAD_AND_NORM
    assert all(torch.equal(value, before[name]) for name, value in tensors.items())
    loaded = Classifier.load(tmp_path / "apart.safetensors", tiny_checkpoint)
    assert torch.equal(logits(loaded), expected)  # from the base's own weights, which do not round
    torch.testing.assert_close(logits(classifier), expected, atol=1e-5, rtol=0)


def test_training_takes_it_apart_first(tiny_checkpoint: Path, split: Split, tmp_path: Path) -> None:
    classifier, _ = trained(tiny_checkpoint, split, tmp_path / "run")
    loaded = Classifier.load(tmp_path / "run", tiny_checkpoint)
    loaded.merge()
    expected = go_on(classifier, split, tmp_path / "on")
    found = go_on(loaded, split, tmp_path / "merged_before")
    assert len(lora_names(loaded.model)) == 16
    for one, other in zip(found, expected, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, abs=1e-4)


# --- adapters in the last blocks: the others are computed once ---


@pytest.mark.parametrize("k", [1, 3])
def test_the_frozen_blocks_below_are_computed_once(
    deep_checkpoint: Path, split: Split, tmp_path: Path, k: int
) -> None:
    lora = replace(LORA, n_last_blocks=k)
    classifier = Classifier.on_base(deep_checkpoint, LABELS, lora=lora, seed=3)
    adapted = {name.split(".")[1] for name in lora_names(classifier.model)}
    assert adapted == {str(n) for n in range(4 - k, 4)}
    go_on(classifier, split, tmp_path / "run", store=FeatureStore(tmp_path / "store"))
    assert frozen_depth(classifier.model) == (4 - k, "")
    (space,) = (tmp_path / "store").iterdir()
    assert space.name.startswith(f"{4 - k}-blocks-float32") and len(list(space.iterdir())) == 2

    encoded = classifier.encode([m.text for m in split.test])[0]
    said = listen()
    texts = classifier.texts(encoded)
    assert isinstance(texts, Features) and texts.depth == 4 - k and said == []
    found = []
    for ours in (True, False):
        classifier.model.zero_grad()
        if ours:
            outputs = classifier.batch_logits(texts, range(len(encoded)))
        else:  # the whole model, text by text
            rows = [classifier.model(torch.tensor([ids]))[0, -1] for ids in encoded]
            outputs = torch.stack(rows)
        outputs.square().sum().backward()
        grads = [classifier.model.get_parameter(name).grad for name in lora_names(classifier.model)]
        found.append([outputs.detach(), *grads])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
        assert other.abs().max() > 1e-3


def test_with_adapters_in_every_block_nothing_is_computed_once(tiny_checkpoint: Path) -> None:
    classifier = Classifier.on_base(tiny_checkpoint, LABELS, lora=LORA)
    set_trainable(classifier.model, 0)
    said = listen()
    texts = classifier.texts(classifier.encode(TEXTS)[0])
    assert isinstance(texts, Embedded) and said == []
    ids, lengths = torch.tensor([[5, 7, 9], [5, 7, 0]]), torch.tensor([3, 2])
    plain = Classifier.on_base(tiny_checkpoint, LABELS).model
    expected = class_logits(plain, ids, lengths, "last_token")
    torch.testing.assert_close(
        class_logits(classifier.model, ids, lengths, "last_token"), expected, atol=1e-5, rtol=0
    )


# --- the recipe and the shell ---


def train(base: Path, table: Path, out: Path, settings: HeadSettings, epochs: int = 2):
    config = replace(CONFIG, epochs=epochs)
    return train_classifier(base, table, out, config, settings)


def test_the_recipe_freezes_the_blocks(tiny_checkpoint: Path, table: Path, tmp_path: Path) -> None:
    said = listen()
    run, classifier, _ = train_classifier(
        tiny_checkpoint, table, tmp_path / "run", settings=HeadSettings(lora=4)
    )
    assert classifier.description.lora == LoRAConfig(rank=4, alpha=4)
    settings = json.loads((run / "config.json").read_text())["settings"]
    assert settings["n_last_blocks"] == 0 and settings["lora"] == 4
    tensors = read_tensors(run / "best.safetensors", "gpt2-classifier 3")[1]
    assert tensors.keys() == set(lora_names(classifier.model)) | HEAD_AND_NORM
    # blocks 2 * 4 * 576, final norm 64, head 66
    assert any("4,738 train" in line for line in said)


def test_settings_say_how(tiny_checkpoint: Path, table: Path, tmp_path: Path) -> None:
    put_on = HeadSettings(lora=2, lora_alpha=5, lora_dropout=0.25, lora_blocks=1)
    _, classifier, _ = train(tiny_checkpoint, table, tmp_path / "run", put_on, epochs=1)
    expected = LoRAConfig(rank=2, alpha=5, dropout=0.25, n_last_blocks=1)
    assert classifier.description.lora == expected
    loaded = Classifier.load(tmp_path / "run", tiny_checkpoint)
    assert loaded.description.lora == expected and torch.equal(logits(loaded), logits(classifier))


DRAWING = HeadSettings(lora=4, lora_dropout=0.3, dropout=0.2)


@pytest.fixture(scope="module")
def unbroken(tiny_checkpoint: Path, table: Path, tmp_path_factory) -> Path:
    return train(tiny_checkpoint, table, tmp_path_factory.mktemp("unbroken") / "run", DRAWING)[0]


@pytest.mark.parametrize("steps", [3, 7])
def test_resumed_it_ends_with_the_same_bits(
    tiny_checkpoint: Path, table: Path, unbroken: Path, tmp_path: Path, monkeypatch, steps: int
) -> None:
    """Dropout beside the adapters included: in the middle of an epoch, and at its end."""
    plain = TrainingRun.step

    def step(self: TrainingRun, batch: list[int]) -> None:
        plain(self, batch)
        if self.at.step == steps:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "step", step)
        with pytest.raises(Interrupted, match=f"after step {steps} of 14"):
            train(tiny_checkpoint, table, tmp_path / "run", DRAWING)
    run, classifier, _ = resume_training(tmp_path / "run")
    assert classifier.description.lora == LoRAConfig(rank=4, alpha=4, dropout=0.3)
    for name in LASTING:
        assert sha256_of(run / name) == sha256_of(unbroken / name), name


def call(capsys: pytest.CaptureFixture, *arguments: object) -> tuple[int, str, str]:
    code = cli.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_from_the_shell(
    tiny_checkpoint: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run = tmp_path / "run"
    code, _, err = call(
        capsys,
        "train",
        "--model",
        tiny_checkpoint,
        "--data",
        table,
        "--out",
        run,
        "--lora",
        "4",
        "--lora-blocks",
        "1",
        "--epochs",
        "2",
        "--lr",
        "0.01",
        "--device",
        "cpu",
    )
    assert code == 0, err
    # one block's adapters 4 * 576, final norm 64, head 66
    assert "2,434 train" in err
    evaluation = json.loads((run / "evaluation.json").read_text())
    code, out, _ = call(capsys, "evaluate", run, "--model", tiny_checkpoint, "--json")
    told = json.loads(out)
    assert code == 0 and told.keys() == evaluation.keys()
    assert told["confusion"] == evaluation["confusion"]
    # LoRA is merged there, which rounds otherwise
    assert told["calibration"]["log_loss"] == pytest.approx(evaluation["calibration"]["log_loss"])
    code, out, _ = call(
        capsys, "predict", run, "--model", tiny_checkpoint, "--json", "a pill 3", "x"
    )
    records = [json.loads(line) for line in out.splitlines()]
    expected = Classifier.load(run, tiny_checkpoint).predict(["a pill 3", "x"])
    for record, prediction in zip(records, expected, strict=True):
        assert record["probabilities"] == pytest.approx(prediction.probabilities, abs=1e-6)
    code, out, err = call(capsys, "train", "--resume", run)
    assert code == 0 and "is complete" in out + err
    code, _, err = call(capsys, "train", "--resume", run, "--lora", "8")
    assert code == 2 and "lora: 4 -> 8" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lora", "33"], "rank 33 is above n_embd = 32"),
        (["--lora", "-1"], "lora = -1"),
        (["--lora", "4", "--lora-blocks", "3"], "this model has 2 blocks"),
        (["--lora-alpha", "4"], "lora says the rank"),
    ],
)
def test_mistakes_are_told_and_leave_nothing(
    tiny_checkpoint: Path, table: Path, tmp_path: Path, capsys, options: list[str], message: str
) -> None:
    common = ("train", "--model", tiny_checkpoint, "--data", table, "--out", tmp_path / "run")
    code, _, err = call(capsys, *common, *options)
    assert code == 2 and message in err and not (tmp_path / "run").exists()
