"""Runs that continue from a trained classifier keep all of it, and do not need it later."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from command import call
from interrupted import interrupted_after
from said import listen
from torch import Tensor

from gpt2_from_scratch.classifier.classifier import Classifier
from gpt2_from_scratch.classifier.saving import read_classifier
from gpt2_from_scratch.classifier.settings import HeadConfig, HeadSettings, TrainConfig
from gpt2_from_scratch.errors import CheckpointError, DataError, Interrupted, UsageError
from gpt2_from_scratch.gpt2.weights import load_gpt2
from gpt2_from_scratch.runs.folder import TrainedOn
from gpt2_from_scratch.runs.recipes import resume_training, train_classifier
from gpt2_from_scratch.runs.results import Run
from gpt2_from_scratch.storage.files import sha256_of
from gpt2_from_scratch.storage.tensors import read_tensors

CONFIG = TrainConfig(epochs=2, batch_size=5, lr=0.01, seed=3)
STILL = TrainConfig(epochs=1, lr=1e-30, seed=3)  # weights do not move
TEXTS = ["the goal 3", "a pill", "", "you and the other one " * 20, "three of them"]
LASTING = ("best.safetensors", "last.safetensors", "metrics.jsonl", "evaluation.json")
WORDS = {"a": "a pill", "b": "the goal", "c": "three of", "d": "no other"}


def write_rows(path: Path, labels: str, start: int = 0) -> Path:
    """Thirteen distinct texts of each of these labels."""
    rows = [f"{WORDS[label]} {start + n},{label}" for n in range(13) for label in labels]
    path.write_text("text,label\n" + "\n".join(rows) + "\n")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("continuing")
    write_rows(folder / "ab.csv", "ab")
    write_rows(folder / "bc.csv", "bc", start=100)
    return folder


@pytest.fixture(scope="module")
def first(tiny_checkpoint: Path, folder: Path) -> Run:
    """A run trained on labels a and b: the last block, the final norm and the head."""
    table = folder / "ab.csv"
    return train_classifier(tiny_checkpoint, table, CONFIG, run=folder / "first", device="cpu")


def continued(first: Run, table: Path, out: Path, **options: Any) -> Run:
    options = {"training": CONFIG, "device": "cpu", "model": first.config.model} | options
    return train_classifier(data=table, start=first.folder, run=out, **options)


def logits(classifier: Classifier) -> dict[str, Tensor]:
    rows = classifier.logits(classifier.encode(TEXTS)[0])
    return dict(zip(classifier.description.labels, rows.T, strict=True))


# --- weights ---


@pytest.mark.slow
def test_weights_of_known_labels_are_kept_and_new_ones_are_drawn(first, folder, tmp_path) -> None:
    lines = listen()
    run = continued(first, folder / "bc.csv", tmp_path / "run", training=STILL)
    assert run.classifier.description.labels == ["a", "b", "c"]
    before, after = (
        logits(Classifier.load(first.folder, first.config.model)),
        logits(run.classifier),
    )
    for label in "ab":
        torch.testing.assert_close(after[label], before[label])
    again = continued(first, folder / "bc.csv", tmp_path / "again", training=STILL)
    assert torch.equal(again.classifier.model.head.weight, run.classifier.model.head.weight)
    assert (run.classifier.model.head.weight[2] != 0).all()
    said = next(line for line in lines if "continuing from" in line)
    assert "kept: a, b" in said and "drawn: c" in said


@pytest.mark.slow
def test_texts_of_one_label_are_enough_to_continue(first, tmp_path) -> None:
    table = write_rows(tmp_path / "a.csv", "a", start=200)
    run = continued(first, table, tmp_path / "run")
    assert run.classifier.description.labels == ["a", "b"] and run.scores.total == 3
    assert {m.label for m in run.load_split().train} == {"a"}
    resume_training(run.folder, data=table, device="cpu")
    with pytest.raises(DataError, match="only one label, 'a'"):
        train_classifier(first.config.model, table, CONFIG, run=tmp_path / "new", device="cpu")


@pytest.mark.slow
def test_the_order_of_labels_may_be_chosen(first, folder, tmp_path) -> None:
    head = HeadSettings(labels="c,b")
    run = continued(first, folder / "bc.csv", tmp_path / "run", training=STILL, head=head)
    assert run.classifier.description.labels == ["c", "b"]
    before, after = (
        logits(Classifier.load(first.folder, first.config.model)),
        logits(run.classifier),
    )
    torch.testing.assert_close(after["b"], before["b"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"head": "tanh", "pooling": "mean"},
        {"lora": 2, "lora_alpha": 3.0, "lora_blocks": 1},
        {"task": "multi-label", "layer": 1, "state": "raw"},
        {"pooling": "mean_position", "pad_to": 16},
        {"causal_mask": False, "max_tokens": 12, "dropout": 0.2, "name": "kind"},
    ],
)
def test_every_kind_of_head_continues(tiny_checkpoint, folder, tmp_path, settings) -> None:
    options = {"run": tmp_path / "first", "device": "cpu"}
    head = HeadSettings(**settings)
    training = TrainConfig(epochs=2, n_last_blocks=0 if head.lora else 1)
    first = train_classifier(
        tiny_checkpoint, folder / "ab.csv", head=head, training=training, **options
    )
    run = continued(first, folder / "bc.csv", tmp_path / "run", training=STILL)
    shutil.rmtree(first.folder)
    there, here = first.classifier.description, run.classifier.description
    assert (here.lora, here.max_tokens, here.pad_to) == (there.lora, there.max_tokens, there.pad_to)
    assert here.head.labels == ("a", "b", "c") and here.base_sha256 == there.base_sha256
    # training starts without the earlier thresholds, and then new ones are chosen
    assert read_classifier(run.folder / "last.safetensors")[0].head.thresholds == ()
    counts = (2, 3) if there.head.task == "multi-label" else (0, 0)
    assert (len(there.head.thresholds), len(here.head.thresholds)) == counts
    before, after = logits(first.classifier), logits(Classifier.load(run.folder, tiny_checkpoint))
    for label in "ab":
        torch.testing.assert_close(after[label], before[label])


@pytest.mark.slow
def test_values_keep_their_unit(tiny_checkpoint, tmp_path) -> None:
    for name, factor in (("one", 1), ("two", 100)):
        rows = [f"the pill {n},{factor * (n % 7)}" for n in range(20)]
        (tmp_path / f"{name}.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    head = HeadSettings(task="regression")
    first = train_classifier(
        tiny_checkpoint, tmp_path / "one.csv", CONFIG, head, run=tmp_path / "first", device="cpu"
    )
    run = continued(first, tmp_path / "two.csv", tmp_path / "run", training=STILL)
    before, after = first.classifier.description.head, run.classifier.description.head
    assert (after.center, after.scale, after.labels) == (before.center, before.scale, before.labels)
    torch.testing.assert_close(logits(run.classifier), logits(first.classifier))


# --- trained parameters, and frozen ones that are kept ---


@pytest.mark.slow
def test_a_sigmoid_head_continues_with_its_two_labels(tiny_checkpoint, folder, tmp_path) -> None:
    head = HeadSettings(head="sigmoid")
    base = (tiny_checkpoint, folder / "ab.csv", STILL)
    first = train_classifier(*base, head, run=tmp_path / "first", device="cpu")
    run = train_classifier(*base, start=first.folder, run=tmp_path / "run", device="cpu")
    assert run.classifier.predict(TEXTS) == first.classifier.predict(TEXTS)
    with pytest.raises(UsageError, match="one output"):
        labels = HeadSettings(labels="b,a")
        train_classifier(*base, labels, start=first.folder, run=tmp_path / "no", device="cpu")


@pytest.mark.slow
def test_blocks_that_are_frozen_now_stay_as_they_were_trained(first, folder, tmp_path) -> None:
    frozen = TrainConfig(n_last_blocks=0, final_norm=False, epochs=2, lr=0.01, seed=3)
    base = first.config.model
    # the store contains the features from the base's own blocks
    train_classifier(base, folder / "bc.csv", frozen, run=tmp_path / "other", device="cpu")
    runs = [
        continued(first, folder / "bc.csv", tmp_path / f"{cache}", training=frozen, cache=cache)
        for cache in (True, False)
    ]
    _, tensors = read_tensors(runs[0].folder / "best.safetensors", "gpt2-classifier 3")
    _, before = read_tensors(first.folder / "best.safetensors", "gpt2-classifier 3")
    plain = dict(load_gpt2(base).named_parameters())
    for name, value in before.items():
        if not name.startswith("head"):
            assert torch.equal(tensors[name], value) and not torch.equal(value, plain[name])
    assert digests(runs[0].folder) == digests(runs[1].folder)
    shown = [Classifier.load(run.folder, base).predict(TEXTS) for run in runs]
    assert shown[0] == shown[1] == runs[0].classifier.predict(TEXTS)


def digests(run: Path) -> dict[str, str]:
    return {name: sha256_of(run / name) for name in LASTING}


@pytest.mark.slow
def test_by_default_the_same_parts_are_trained(tiny_checkpoint, folder, tmp_path) -> None:
    for n, (blocks, norm) in enumerate([(2, True), (0, False)]):
        training = TrainConfig(n_last_blocks=blocks, final_norm=norm, epochs=1)
        first = train_classifier(
            tiny_checkpoint, folder / "ab.csv", training, run=tmp_path / f"{n}", device="cpu"
        )
        run = continued(first, folder / "bc.csv", tmp_path / f"then {n}", training=None)
        assert (run.config.training.n_last_blocks, run.config.training.final_norm) == (blocks, norm)


# --- the earlier run is no longer needed ---


def interrupted(first: Run, table: Path, out: Path, monkeypatch, steps: int) -> None:
    with interrupted_after(steps, monkeypatch), pytest.raises(Interrupted):
        continued(first, table, out)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [2, 5])
def test_a_continued_run_resumes_without_the_other(
    first, folder, tmp_path, monkeypatch, steps
) -> None:
    copy = tmp_path / "first"
    shutil.copytree(first.folder, copy)
    begun = Run(copy, first.config, first.classifier, first.scores)
    whole = continued(begun, folder / "bc.csv", tmp_path / "whole")
    interrupted(begun, folder / "bc.csv", tmp_path / "run", monkeypatch, steps)
    assert (tmp_path / "run" / "start.safetensors").exists()
    shutil.rmtree(copy)
    run = resume_training(tmp_path / "run", device="cpu")
    assert digests(run.folder) == digests(whole.folder)
    assert not (run.folder / "start.safetensors").exists()
    assert sorted(p.name for p in run.folder.iterdir()) == sorted(
        p.name for p in whole.folder.iterdir()
    )
    provenance = json.loads((run.folder / "provenance.json").read_text())
    assert provenance["start"] == {
        "path": str(copy),
        "sha256": sha256_of(first.folder / "best.safetensors"),
    }
    assert provenance["classifier"]["base_sha256"] == first.classifier.description.base_sha256
    assert run.config.start == str(copy)


# --- texts that the earlier run was trained on ---


@pytest.mark.slow
def test_texts_of_the_other_run_count_as_trained_on(first, folder, tmp_path) -> None:
    lines = listen()
    other = TrainConfig(epochs=1, seed=4)  # another split of the same data
    run = continued(first, folder / "ab.csv", tmp_path / "run", training=other)
    test = {message.text for message in run.load_split().test}
    learned = {message.text for message in first.load_split().train}
    n = len(test & learned)
    assert n and any(f"{n} of {len(test)} test texts" in line for line in lines)
    assert TrainedOn.of(run.folder).count(run.load_split().test) == n
    run.write_report()
    assert f"trained on {n} of {len(test)} test texts" in (
        run.folder / "model_card.md"
    ).read_text().replace("\\", "")
    bare = tmp_path / "bare.safetensors"
    shutil.copy(first.folder / "best.safetensors", bare)
    begun = Run(bare, first.config, first.classifier, first.scores)
    run = continued(begun, folder / "bc.csv", tmp_path / "from bare", training=STILL)
    assert not TrainedOn.of(run.folder).complete


# --- refused ---


@pytest.mark.parametrize(
    ("options", "error", "facts"),
    [
        (["--task", "multi-label"], 2, ["task", "multi-label", "classification"]),
        (["--pooling", "mean"], 2, ["pooling", "mean", "end_token"]),
        (["--lora", "4"], 2, ["lora", "4"]),
        (["--head", "tanh"], 2, ["head", "tanh", "linear"]),
        (["--model", "mini"], 4, ["mini", "weights"]),
        (["--labels", "a,b"], 3, ["'c'", "a,b"]),
        (["--resume", "x"], 2, ["--from"]),
        (["--recipe", "lecture"], 2, ["start"]),
    ],
)
def test_settings_that_contradict_the_classifier_are_refused(
    first, folder, tmp_path, capsys, options, error, facts
) -> None:
    command = ["train", "--from", first.folder, "--data", folder / "bc.csv", "--epochs", 1]
    command += ["--out", tmp_path / "run"]
    if "--model" not in options:
        command += ["--model", first.config.model]
    code, _, err = call(capsys, *command, *options)
    assert code == error and all(fact in err for fact in facts) and "Traceback" not in err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_command_continues_with_what_was_typed(first, folder, tmp_path, capsys) -> None:
    command = ["train", "--from", first.folder, "--data", folder / "bc.csv", "--epochs", 1]
    base = ["--model", first.config.model]
    typed = ["--task", "classification", "--lr", "0.001", "--class-weights", "balanced"]
    code, out, err = call(capsys, *command, *base, *typed, "--out", tmp_path / "run")
    assert code == 0 and "Test set" in out and "drawn: c" in err
    training = json.loads((tmp_path / "run" / "config.json").read_text())["training"]
    assert (training["lr"], training["n_last_blocks"], training["epochs"]) == (0.001, 1, 1)
    code, _, err = call(capsys, *command, "--out", tmp_path / "other")
    assert code == 4 and "--model" in err


def test_the_demo_messages_are_not_the_default(first, tmp_path, capsys) -> None:
    command = ("train", "--from", first.folder, "--model", first.config.model)
    code, _, err = call(capsys, *command, "--out", tmp_path / "run")
    assert code == 2 and "--data" in err


def test_labels_in_another_spelling_are_refused(first, folder, tmp_path) -> None:
    table = tmp_path / "caps.csv"
    table.write_text((folder / "ab.csv").read_text().replace(",a\n", ",A \n"))
    with pytest.raises(DataError, match=r"\['A ?', 'a'\]"):
        continued(first, table, tmp_path / "run")


def test_heads_that_cannot_continue_are_refused(tiny_checkpoint, folder, tmp_path) -> None:
    path = tmp_path / "c.safetensors"
    two = HeadConfig("x", labels=("a", "b"), pooling="last_token")
    for heads, error, fact in (
        ([HeadConfig(labels=("a", "b"), one_output=True)], UsageError, "linear"),
        ([two, HeadConfig("y", "span")], UsageError, "finetune"),
        ([HeadConfig(labels=("a", "b"), hidden=(8, 8))], UsageError, "finetune"),
        ([HeadConfig("x", "language")], UsageError, "finetune"),
    ):
        Classifier.on_base(tiny_checkpoint, heads=heads).save(path)
        with pytest.raises(error, match=fact):
            train_classifier(tiny_checkpoint, folder / "bc.csv", STILL, start=path)
    Classifier.on_base(tiny_checkpoint, heads=[HeadConfig("x", "regression", ("one", "two"))]).save(
        path
    )
    (tmp_path / "n.csv").write_text("text,label\n" + "".join(f"pill {n},{n}\n" for n in range(20)))
    with pytest.raises(DataError, match="1 values.*one, two"):
        train_classifier(tiny_checkpoint, tmp_path / "n.csv", STILL, start=path)
    with pytest.raises(CheckpointError, match="is a GPT-2"):
        train_classifier(data=folder / "bc.csv", start="mini")
