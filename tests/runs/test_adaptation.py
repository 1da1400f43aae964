"""Runs that adapt GPT-2 first: bit-identical after an interruption, honest about their texts."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from command import call
from interrupted import interrupted_after
from said import listen

from gpt2_from_scratch.classifier.classifier import Classifier
from gpt2_from_scratch.classifier.freezing import trainable_names
from gpt2_from_scratch.classifier.settings import HeadSettings, TrainConfig
from gpt2_from_scratch.classifier.train import TrainingRun
from gpt2_from_scratch.data.messages import DataConfig
from gpt2_from_scratch.errors import DataError, Interrupted, UsageError
from gpt2_from_scratch.evaluation.metrics import read_predictions
from gpt2_from_scratch.gpt2.changes import parameters_by_name
from gpt2_from_scratch.gpt2.weights import names_on_disk
from gpt2_from_scratch.runs import recipes
from gpt2_from_scratch.runs.continuing import inherited_training
from gpt2_from_scratch.runs.folder import RunConfig, TrainedOn
from gpt2_from_scratch.runs.recipes import resume_training, train_classifier
from gpt2_from_scratch.runs.results import TEST_PREDICTIONS, Run
from gpt2_from_scratch.storage.files import sha256_of
from gpt2_from_scratch.studies.rows import Setup, StudySplit, finetuned
from gpt2_from_scratch.studies.study import compare

CONFIG = TrainConfig(epochs=2, batch_size=5, lr=0.01, seed=3, adapt=2, adapt_lr=1e-3)
LASTING = ("best.safetensors", "last.safetensors", "metrics.jsonl", "evaluation.json")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapting")
    rows = [f"{'the goal' if n % 2 else 'a pill'} {n},{'ab'[n % 2]}" for n in range(40)]
    (folder / "few.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    more = [f"where is the house {n}" for n in range(7)]
    same = [f"{'the goal' if n % 2 else 'a pill'}  {n} " for n in range(40)]  # other white space
    (folder / "many.txt").write_text("\n".join([*more, "", *same, " ", more[0]]) + "\n")
    return folder


def data(folder: Path, name: str = "many.txt") -> DataConfig:
    return DataConfig(source=str(folder / "few.csv"), unlabelled=str(folder / name))


def train(base: Path, folder: Path, out: Path, **options) -> Run:
    options = {"training": CONFIG, "device": "cpu"} | options
    return train_classifier(base, data(folder), run=out, **options)


def digests(run: Path) -> dict[str, str]:
    return {name: sha256_of(run / name) for name in LASTING}


def described(run: Run) -> dict:
    found = asdict(run.load_adaptation())
    del found["seconds"]
    return found


@pytest.fixture(scope="module")
def unbroken(tiny_checkpoint: Path, folder: Path, tmp_path_factory) -> Run:
    return train(tiny_checkpoint, folder, tmp_path_factory.mktemp("unbroken") / "run")


# --- the run ---


@pytest.mark.slow
def test_the_saved_classifier_contains_the_adapted_gpt2(tiny_checkpoint, folder, unbroken) -> None:
    saved = Classifier.load(unbroken.folder, tiny_checkpoint)
    base = Classifier.on_base(tiny_checkpoint, ("a", "b"))
    here, there = parameters_by_name(saved.model), parameters_by_name(base.model)
    changed = {name for name in here if not here[name].equal(there[name])}
    assert changed == {*names_on_disk(base.model.config), "head.weight", "head.bias"} & {*here}
    # only the last block, the final norm and the head were trained on labels
    assert not any(
        n.startswith(("wte", "wpe", "blocks.0")) for n in trainable_names(unbroken.classifier.model)
    )
    texts = ["the goal 3", "a pill"]
    answers = [p.probabilities for p in unbroken.classifier.predict(texts)]
    assert [p.probabilities for p in saved.predict(texts)] == answers
    kept = {path.name for path in unbroken.folder.iterdir()}
    assert "adaptation.json" in kept and not kept & {"adaptation", "start.safetensors"}


@pytest.mark.slow
def test_texts_of_validation_and_test_are_left_out(tiny_checkpoint, folder, tmp_path) -> None:
    lines = listen()
    run = train(tiny_checkpoint, folder, tmp_path / "run")
    held_out = [*run.split.val, *run.split.test]
    texts = run.config.load_unlabelled(run.split)
    assert len(held_out) == 12 and len(texts) == 7 + 28
    spaced = {" ".join(text.split()) for text in texts}
    assert not spaced & {message.text for message in held_out}
    assert any("12 of 47 unlabelled texts are left out" in line for line in lines)
    found = run.load_adaptation()
    assert (found.n_train, found.n_unlabelled, found.epochs) == (28, 35, 2)
    known = TrainedOn.of(run.folder)
    assert known.count(run.split.test) == 0
    assert len(known.hashes) == 28 + 7
    run.write_report()
    facts = f"from {found.bits_before:.2f} to {found.bits_after:.2f} bits per byte"
    for page in ("report.html", "model_card.md"):
        written = (run.folder / page).read_text()
        assert facts in written and "28 training texts and 35 texts without labels" in written


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [{"lora": 2}, {"task": "multi-label"}, {"layer": 1, "pooling": "mean"}]
)
def test_other_heads_and_lora(tiny_checkpoint, folder, tmp_path, settings) -> None:
    head = HeadSettings(**settings)
    training = replace(CONFIG, n_last_blocks=0 if head.lora else 1)
    run = train(tiny_checkpoint, folder, tmp_path / "run", head=head, training=training)
    assert run.load_adaptation().bits_after < run.load_adaptation().bits_before
    again = Classifier.load(run.folder, tiny_checkpoint)
    here, there = parameters_by_name(run.classifier.model), parameters_by_name(again.model)
    assert all(here[name].equal(there[name]) for name in here)


# --- resuming ---


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 12, 13, 25])
def test_a_stopped_adaptation_ends_bit_identical(
    tiny_checkpoint, folder, unbroken, tmp_path, monkeypatch, steps
) -> None:
    """63 texts are 13 steps per epoch; the classifier's 28 texts are 6."""
    with interrupted_after(steps, monkeypatch), pytest.raises(Interrupted, match="of 26"):
        train(tiny_checkpoint, folder, tmp_path / "run")
    assert not (tmp_path / "run" / "start.safetensors").exists()
    run = resume_training(tmp_path / "run", device="cpu")
    assert digests(run.folder) == digests(unbroken.folder)
    assert described(run) == described(unbroken) and run.load_adaptation().seconds is None
    names = [{path.name for path in each.folder.iterdir()} for each in (run, unbroken)]
    assert names[0] == names[1]


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 20, 26, 30])
def test_a_killed_run_ends_bit_identical(
    tiny_checkpoint, folder, unbroken, tmp_path, monkeypatch, steps
) -> None:
    """Nothing is saved when it is killed; the state of the step before is on disk."""

    class Killed(BaseException):
        pass

    plain, done = TrainingRun.step, []

    def step(self: TrainingRun, batch: list[int]) -> float:
        done.append(self.folder)
        if len(done) == steps:
            raise Killed
        return plain(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "step", step)
        patch.setattr("gpt2_from_scratch.classifier.train.SAVE_EVERY", 0.0)
        with pytest.raises(Killed):
            train(tiny_checkpoint, folder, tmp_path / "run")
    in_adaptation = steps <= 26
    assert (tmp_path / "run" / "start.safetensors").exists() != in_adaptation
    assert len({*done}) == (1 if in_adaptation else 2)
    run = resume_training(tmp_path / "run", device="cpu")
    assert digests(run.folder) == digests(unbroken.folder)
    assert described(run) == described(unbroken)


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before its start", "at its start", "in its middle"])
def test_a_stopped_training_does_not_adapt_again(
    tiny_checkpoint, folder, unbroken, tmp_path, monkeypatch, when
) -> None:
    """Before its start: killed when the classifier was saved, but the first stage not removed."""
    plain = recipes.finetune

    def stopped(*arguments, **options) -> None:
        if when != "in its middle":
            raise KeyboardInterrupt
        with interrupted_after(4, monkeypatch):
            plain(*arguments, **options)

    with monkeypatch.context() as patch:
        if when == "before its start":
            patch.setattr(recipes, "shutil", SimpleNamespace(rmtree=stopped))
        patch.setattr(recipes, "finetune", stopped)
        with pytest.raises(Interrupted):
            train(tiny_checkpoint, folder, tmp_path / "run")
    assert (tmp_path / "run" / "start.safetensors").exists()
    monkeypatch.setattr(recipes, "adapt", lambda *_, **__: pytest.fail("it is adapted again"))
    run = resume_training(tmp_path / "run", device="cpu")
    assert digests(run.folder) == digests(unbroken.folder)
    assert described(run) == described(unbroken)
    assert not {"start.safetensors", "adaptation"} & {p.name for p in run.folder.iterdir()}


@pytest.mark.slow
def test_a_complete_run_keeps_its_ledger(tiny_checkpoint, unbroken) -> None:
    again = resume_training(unbroken.folder, device="cpu")
    assert again.scores == unbroken.scores
    assert trainable_names(again.classifier.model) == trainable_names(unbroken.classifier.model)


@pytest.mark.slow
def test_missing_moved_and_changed_unlabelled_texts(
    tiny_checkpoint, folder, unbroken, tmp_path, monkeypatch, capsys
) -> None:
    away = tmp_path / "away"
    away.mkdir()
    for name in ("few.csv", "many.txt"):
        (away / name).write_bytes((folder / name).read_bytes())
    with interrupted_after(3, monkeypatch), pytest.raises(Interrupted):
        train(tiny_checkpoint, away, tmp_path / "run")
    new = (away / "many.txt").rename(away / "moved.txt")
    with pytest.raises(DataError, match="many.txt is missing(?s:.*)--unlabelled NEW"):
        resume_training(tmp_path / "run", device="cpu")
    text = new.read_text()
    new.write_text(text + "one more\n")
    code, _, err = call(capsys, "train", "--resume", tmp_path / "run", "--unlabelled", new)
    assert code == 2 and str(new) in err and "without labels" in err
    new.write_text("\n")
    code, _, err = call(capsys, "train", "--resume", tmp_path / "run", "--unlabelled", new)
    assert code != 0 and str(new) in err
    new.write_text(text)
    code, _, err = call(capsys, "train", "--resume", tmp_path / "run", "--unlabelled", new)
    assert code == 0, err
    assert digests(tmp_path / "run") == digests(unbroken.folder)
    assert RunConfig.read(tmp_path / "run").data.unlabelled == str(new)


# --- combinations ---


def test_contradictions_are_refused(tiny_checkpoint, folder, tmp_path, capsys) -> None:
    with pytest.raises(UsageError, match="many.txt.*--adapt"):
        train(tiny_checkpoint, folder, tmp_path / "run", training=TrainConfig())
    with pytest.raises(DataError, match="no.txt"):
        train_classifier(tiny_checkpoint, data(folder, "no.txt"), CONFIG, run=tmp_path / "run")
    options = ("--recipe", "lecture", "--adapt", 1)
    code, _, err = call(capsys, "train", "--model", tiny_checkpoint, *options)
    assert code == 2 and "adapt" in err
    with pytest.raises(UsageError, match="many.txt.*--adapt"):
        compare(tiny_checkpoint, data(folder), out=tmp_path / "study")
    with pytest.raises(DataError, match="no.txt"):
        compare(tiny_checkpoint, data(folder, "no.txt"), CONFIG, out=tmp_path / "study")
    assert not (tmp_path / "run").exists() and not (tmp_path / "study").exists()


@pytest.mark.slow
def test_an_adapted_classifier_can_be_continued_but_not_adapted(
    tiny_checkpoint, folder, unbroken, tmp_path
) -> None:
    assert inherited_training(unbroken.folder)["n_last_blocks"] == 1
    options = {"start": unbroken.folder, "device": "cpu", "run": tmp_path / "run"}
    with pytest.raises(UsageError, match="--adapt"):
        train_classifier(tiny_checkpoint, data(folder), CONFIG, **options)
    run = train_classifier(tiny_checkpoint, folder / "few.csv", **options)
    here = parameters_by_name(run.classifier.model)
    there = parameters_by_name(unbroken.classifier.model)
    assert all(here[n].equal(there[n]) for n in here if n.startswith(("wte", "wpe", "blocks.0")))
    assert run.load_adaptation() is None
    # the next one trains the same block again, although the file contains all of GPT-2
    assert inherited_training(run.folder)["n_last_blocks"] == 1
    again = resume_training(run.folder, device="cpu")
    assert trainable_names(again.classifier.model) == trainable_names(run.classifier.model)


@pytest.mark.slow
def test_the_report_needs_no_unlabelled_texts(tiny_checkpoint, folder, unbroken, tmp_path) -> None:
    moved = tmp_path / "few.csv"
    moved.write_bytes((folder / "few.csv").read_bytes())
    (tmp_path / "many.txt").write_bytes((folder / "many.txt").read_bytes())
    run = train(tiny_checkpoint, tmp_path, tmp_path / "run")
    (tmp_path / "many.txt").unlink()
    assert replace(run, split=None).load_split() == run.split


@pytest.mark.slow
def test_a_comparison_adapts_its_gpt2_too(tiny_checkpoint, folder, tmp_path) -> None:
    """The finetuned row has the predictions of `train` with the same settings."""
    run = train(tiny_checkpoint, folder, tmp_path / "run")
    setup = Setup(tiny_checkpoint, CONFIG, data=data(folder), labels=("a", "b"), cache=False)
    result = finetuned(setup).answer(setup, StudySplit("one", CONFIG.seed, run.split))
    expected = read_predictions(run.folder / TEST_PREDICTIONS)
    assert result.predictions.texts == expected.texts
    np.testing.assert_allclose(result.predictions.probabilities, expected.probabilities, atol=1e-6)
    assert "adapted" in result.row.name


@pytest.mark.slow
def test_find_rate_adapts_first(tiny_checkpoint, folder, tmp_path, capsys) -> None:
    lines = listen()
    options = ("--data", folder / "few.csv", "--adapt", 1, "--steps", 5)
    out = ("--out", tmp_path / "rates.png")
    code, _, err = call(capsys, "find-rate", "--model", tiny_checkpoint, *options, *out)
    assert code == 0, err
    assert any("adapted GPT-2 for 1 epoch on 28 training texts" in line for line in lines)


@pytest.mark.slow
def test_settings_are_in_the_run(unbroken) -> None:
    config = json.loads((unbroken.folder / "config.json").read_text())
    assert config["training"]["adapt"] == 2 and config["data"]["unlabelled"].endswith("many.txt")
    provenance = json.loads((unbroken.folder / "provenance.json").read_text())
    assert provenance["unlabelled"]["texts"] == 35
