"""Runs whose answers combine GPT-2 with n-grams."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command import call
from said import listen

from gpt2_from_scratch import Classifier, HeadSettings, TrainConfig, train_classifier
from gpt2_from_scratch.evaluation.baselines import (
    WORDS_AND_CHARACTERS,
    baseline_fits,
    predictions_of,
)
from gpt2_from_scratch.evaluation.calibration import fit_weights
from gpt2_from_scratch.evaluation.metrics import evaluate_predictions, read_predictions
from gpt2_from_scratch.runs.continuing import inherited_head
from gpt2_from_scratch.runs.folder import RunConfig, read_test_part, verify_run
from gpt2_from_scratch.runs.recipes import resume_training
from gpt2_from_scratch.runs.results import (
    Run,
    add_ngrams,
    assess_again,
    class_logits_of,
    evaluate_classifier,
)

CONFIG = TrainConfig(epochs=1, batch_size=8, lr=0.003, seed=3)
WITH = HeadSettings(with_ngrams=True)


def write_table(path: Path) -> Path:
    """Texts of two labels. The labels of some of them are wrong."""
    rows = [
        f"{'the goal' if (n + (n % 7 == 0)) % 2 else 'a pill'} {n * n % 97} {n},{'ab'[n % 2]}"
        for n in range(120)
    ]
    path.write_text("text,label\n" + "\n".join(rows) + "\n")
    return path


@pytest.fixture(scope="module")
def run(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("with_ngrams")
    table = write_table(folder / "table.csv")
    return train_classifier(tiny_checkpoint, table, CONFIG, WITH, run=folder / "run", device="cpu")


def test_the_answers_of_a_run_are_those_of_its_loaded_classifier(run: Run) -> None:
    loaded = Classifier.load(run.folder, run.config.model)
    assert loaded.ngrams and loaded.description.head.temperature == 1
    kept = read_predictions(run.folder / "test-answers.jsonl")
    found = [[*x.probabilities.values()] for x in loaded.predict(kept.texts) if x]
    np.testing.assert_allclose(found, kept.probabilities, atol=1e-6)
    messages = read_test_part(run.folder, "classification")
    scores = evaluate_predictions(kept.true, kept.probabilities.argmax(axis=1), kept.labels)
    assert run.scores == scores == evaluate_classifier(loaded, messages)
    assert assess_again(loaded, messages, run.folder).evaluation == scores
    assert resume_training(run.folder, device="cpu").scores == scores
    assert all(check.ok for check in verify_run(run.folder))


def test_the_weights_are_fitted_on_the_validation_set(run: Run) -> None:
    split, classifier = run.load_split(), Classifier.load(run.folder, run.config.model)
    ngrams, classifier.ngrams = classifier.ngrams, None
    logits, true = class_logits_of(classifier, split.val)
    baseline = baseline_fits()[WORDS_AND_CHARACTERS](split, ["a", "b"])
    assert baseline and ngrams
    p = baseline.probabilities([message.text for message in split.val])
    np.testing.assert_allclose(ngrams.weights, fit_weights([logits, np.log(p)], true), rtol=1e-4)


@pytest.mark.slow
def test_the_report_shows_both_parts(run: Run) -> None:
    run.write_report()
    facts, split = run.facts, run.load_split()
    assert run.classifier.ngrams and facts.ngram_weights == run.classifier.ngrams.weights
    alone = Classifier.load(run.folder, run.config.model)
    alone.ngrams = None
    assert facts.alone == evaluate_classifier(alone, split.test).accuracy
    baseline = baseline_fits()[WORDS_AND_CHARACTERS](split, ["a", "b"])
    assert baseline
    theirs = predictions_of(baseline, split.test, ["a", "b"])
    rows = {name: scores for name, scores, _ in facts.baselines}
    assert rows[WORDS_AND_CHARACTERS] == evaluate_predictions(
        theirs.true, theirs.predicted, ["a", "b"]
    )
    for name in ("report.html", "model_card.md"):
        page = (run.folder / name).read_text("utf-8")
        assert f"GPT-2 alone: {100 * facts.alone:.1f}%" in page
        assert all(f"(weight {weight:.2f})" in page for weight in facts.ngram_weights)


def test_settings_without_this_one_are_read(run: Run, tmp_path: Path) -> None:
    values = json.loads((run.folder / "config.json").read_text("utf-8"))
    assert RunConfig.read(run.folder).head.with_ngrams
    del values["head"]["with_ngrams"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert not RunConfig.read(tmp_path).head.with_ngrams


def test_texts_without_ngrams_leave_gpt2_alone(run: Run) -> None:
    split, classifier = run.load_split(), Classifier.load(run.folder, run.config.model)
    classifier.ngrams = None
    marks = [replace(message, text="!?"[n % 2]) for n, message in enumerate(split.train)]
    add_ngrams(classifier, replace(split, train=marks))
    assert classifier.ngrams is None


@pytest.mark.slow
def test_a_continuing_run_fits_new_ones_if_asked(run: Run, tmp_path: Path) -> None:
    said = listen()
    assert not inherited_head(run.folder, {}).with_ngrams
    assert any("--with-ngrams" in line for line in said)
    assert inherited_head(run.folder, {"with_ngrams": True}).with_ngrams
    table = tmp_path / "bc.csv"
    rows = [f"{['three of', 'no other'][n % 2]} {n},{'bc'[n % 2]}" for n in range(60)]
    table.write_text("text,label\n" + "\n".join(rows) + "\n")
    options = {"start": run.folder, "device": "cpu"}
    without = train_classifier(run.config.model, table, CONFIG, run=tmp_path / "no", **options)
    assert without.classifier.ngrams is None
    found = train_classifier(run.config.model, table, CONFIG, WITH, run=tmp_path / "run", **options)
    ngrams = found.classifier.ngrams
    assert ngrams and found.config.head.with_ngrams
    assert any("'a'" in line or " a" in line for line in said if "hardly ever" in line)
    assert found.classifier.description.labels == ["a", "b", "c"]
    assert ngrams.seen.tolist() == [1, 2] and "three of" in ngrams.words
    assert not {"goal", "pill"} & {*ngrams.words}


@pytest.mark.slow
def test_the_option(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, model = write_table(tmp_path / "table.csv"), ["--model", str(tiny_checkpoint)]
    options = ["--epochs", "1", "--threads", "1", "--device", "cpu", "--out", tmp_path / "run"]
    code, out, _ = call(capsys, "train", "--data", table, "--with-ngrams", *model, *options)
    assert code == 0 and "Test set: accuracy" in out
    loaded = Classifier.load(tmp_path / "run", tiny_checkpoint)
    assert loaded.ngrams
    code, out, _ = call(capsys, "predict", tmp_path / "run", *model, "--json", "the goal 4")
    (expected,) = loaded.predict(["the goal 4"])
    assert code == 0 and expected
    assert json.loads(out)["probabilities"] == pytest.approx(expected.probabilities, abs=1e-6)
    code, out, _ = call(capsys, "evaluate", tmp_path / "run", *model, "--json")
    scores = json.loads((tmp_path / "run" / "evaluation.json").read_text("utf-8"))
    assert code == 0 and json.loads(out)["accuracy"] == scores["accuracy"]
    code, _, err = call(capsys, "train", "--with-ngrams", "--task", "regression", *model)
    assert code == 2 and "with_ngrams" in err
    code, _, err = call(capsys, "train", "--with-ngrams", "--recipe", "lecture", *model)
    assert code == 2 and "with_ngrams" in err
