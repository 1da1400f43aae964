"""Predictions for labelled texts, the temperature, thresholds, and what a finished run saves."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
import torch.nn.functional as F
from hub_dataset import ClassLabel, Dataset, DatasetDict
from scipy.optimize import minimize_scalar
from sklearn.metrics import f1_score

from gpt2_from_scratch import Classifier, HeadConfig, TrainConfig, load_messages, train_classifier
from gpt2_from_scratch.classifier.settings import HeadSettings
from gpt2_from_scratch.cli.main import main
from gpt2_from_scratch.data.messages import DataConfig, Message, write_messages
from gpt2_from_scratch.data.near_duplicates import masked
from gpt2_from_scratch.errors import CheckpointError, DataError, UsageError
from gpt2_from_scratch.evaluation.metrics import read_predictions
from gpt2_from_scratch.evaluation.task_baselines import TAG
from gpt2_from_scratch.runs.folder import RunConfig, read_test_part
from gpt2_from_scratch.runs.recipes import resume_training
from gpt2_from_scratch.runs.results import (
    assess_again,
    calibrate,
    choose_thresholds,
    class_logits_of,
    labelled_predictions,
    predictions_at,
)
from gpt2_from_scratch.storage.files import check_listed

TEXTS = ["see you", "win now", "call me", "free prize now", "home soon", "cash for you"]
MESSAGES = [Message(text, "ab"[n % 2]) for n, text in enumerate(TEXTS)]


@pytest.fixture
def classifier(tiny_checkpoint: Path) -> Classifier:
    return Classifier.on_base(tiny_checkpoint, ["a", "b"], seed=3)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run on the demo messages."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    train_classifier("mini", "hard", TrainConfig(epochs=3), run=folder).write_report()
    return folder


# --- predictions ---


@pytest.mark.parametrize("one_output", [False, True])
def test_answers_are_those_of_predict(tiny_checkpoint: Path, one_output: bool) -> None:
    head = HeadConfig(labels=("a", "b"), one_output=one_output, temperature=1.7)
    classifier = Classifier.on_base(tiny_checkpoint, heads=[head])
    answered = labelled_predictions(classifier, MESSAGES)
    reported = [answer.probabilities for answer in classifier.predict(TEXTS) if answer]
    np.testing.assert_allclose(
        answered.probabilities, [[t["a"], t["b"]] for t in reported], atol=1e-6
    )
    assert answered.true.tolist() == [0, 1, 0, 1, 0, 1] and answered.texts == TEXTS
    logits, _ = class_logits_of(classifier, MESSAGES)
    plain = predictions_at(1.0, classifier, MESSAGES, logits, answered.true)
    expected = F.softmax(torch.from_numpy(logits), dim=1)
    np.testing.assert_allclose(plain.probabilities, expected)


def test_other_tasks_have_no_classes(tiny_checkpoint: Path) -> None:
    classifier = Classifier.on_base(tiny_checkpoint, heads=[HeadConfig("x", "multi-label", ("a",))])
    with pytest.raises(UsageError, match="'x' is for multi-label"):
        labelled_predictions(classifier, MESSAGES)


# --- the temperature ---


def test_the_temperature_is_the_best_one_for_these_messages(classifier: Classifier) -> None:
    logits, true = class_logits_of(classifier, MESSAGES)
    smoothed = np.where(np.eye(2)[true] == 1, 7 / 8, 1 / 8)  # Platt's targets for six texts

    def loss(log_t: float) -> float:
        scores = torch.from_numpy(logits / np.exp(log_t)).log_softmax(dim=1).numpy()
        return float(-(smoothed * scores).sum())

    reported = calibrate(classifier, MESSAGES)
    found = classifier.description.head.temperature
    best = minimize_scalar(
        loss, bounds=(np.log(0.05), np.log(20)), method="bounded", options={"xatol": 1e-9}
    )
    assert loss(np.log(found)) == pytest.approx(best.fun, abs=1e-7)
    assert found != 1
    np.testing.assert_array_equal(
        reported.probabilities,
        labelled_predictions(classifier, MESSAGES).probabilities,
    )


def test_no_answer_changes_and_the_file_keeps_it(classifier: Classifier, tmp_path: Path) -> None:
    before = classifier.predict(TEXTS)
    calibrate(classifier, MESSAGES)
    temperature = classifier.description.head.temperature
    after = classifier.predict(TEXTS)
    assert [a.label for a in after if a] == [b.label for b in before if b]
    for a, b in zip(after, before, strict=True):
        logit, cooled = (np.log(x.probabilities["a"] / x.probabilities["b"]) for x in (b, a))
        assert cooled == pytest.approx(logit / temperature, rel=1e-4)
    classifier.save(tmp_path / "c.safetensors")
    again = Classifier.load(tmp_path / "c.safetensors", classifier.description.base)
    assert again.description.head.temperature == temperature and again.predict(TEXTS) == after


@pytest.mark.parametrize(
    "changes", [{"temperature": 0.0}, {"task": "multi-label", "temperature": 2.0}]
)
def test_invalid_temperatures(changes: dict) -> None:
    with pytest.raises(UsageError, match="temperature = "):
        HeadConfig(labels=("a", "b"), **changes)


# --- thresholds ---


@pytest.fixture
def sets(tiny_checkpoint: Path) -> tuple[Classifier, list[Message]]:
    """A classifier with three labels per text, and messages; no message has the label "none"."""
    head = HeadConfig(task="multi-label", labels=("a", "b", "none"))
    rng = np.random.default_rng(0)
    marks = rng.random((40, 2)) < [0.2, 0.7]
    messages = [
        Message(
            f"{TEXTS[n % 6]} {n}", tuple(x for x, is_set in zip("ab", row, strict=True) if is_set)
        )
        for n, row in enumerate(marks)
    ]
    return Classifier.on_base(tiny_checkpoint, heads=[head], seed=3), messages


def test_each_label_has_the_threshold_with_the_highest_f1(sets) -> None:
    """All thresholds between two of the predicted probabilities are tried, with scikit-learn's F1."""
    classifier, messages = sets
    before = classifier.predict([m.text for m in messages])
    choose_thresholds(classifier, messages)
    *chosen, of_none = classifier.description.head.thresholds
    assert of_none == 0.5 and 0.5 not in chosen
    for label, threshold in zip("ab", chosen, strict=True):
        p = np.array([found.probabilities[label] for found in before])
        is_label = np.array([label in m.label for m in messages])
        every = np.unique([0.0, *p])
        tried = [f1_score(is_label, p > t) for t in [0.5, *(every[:-1] + every[1:]) / 2]]
        after = classifier.predict([m.text for m in messages])
        found = f1_score(is_label, [label in answer.answer.labels for answer in after])
        assert found == f1_score(is_label, p > threshold) == pytest.approx(max(tried))
        assert found > tried[0]


def test_thresholds_are_for_several_labels(classifier: Classifier) -> None:
    with pytest.raises(UsageError, match="'label' is for classification"):
        choose_thresholds(classifier, MESSAGES)


@pytest.mark.slow
def test_a_run_saves_its_thresholds(
    tiny_checkpoint: Path, tmp_path: Path, sets, capsys: pytest.CaptureFixture
) -> None:
    """They are chosen on the validation set, for the weights of the best epoch."""
    rows = [json.dumps({"text": m.text, "label": m.label}) for m in sets[1]]
    (tmp_path / "m.jsonl").write_text("\n".join(rows))
    options = {"head": HeadSettings(task="multi-label"), "run": tmp_path / "run", "device": "cpu"}
    run = train_classifier(tiny_checkpoint, tmp_path / "m.jsonl", TrainConfig(epochs=1), **options)
    found = run.classifier.description.head.thresholds
    assert Classifier.load(run.folder, tiny_checkpoint).description.head.thresholds == found
    last = Classifier.load(run.folder / "last.safetensors", tiny_checkpoint)
    assert last.description.head.thresholds == () and len(found) == 2
    choose_thresholds(last, run.load_split().val)
    assert last.description.head.thresholds == pytest.approx(found, abs=1e-6)
    written = json.loads((run.folder / "evaluation.json").read_text())
    assert written["thresholds"] == dict(zip("ab", found, strict=True))
    texts = [m.text for m in run.load_split().test]
    true = [[label in m.label for label in "ab"] for m in run.load_split().test]
    said = [
        [p.probabilities[x] > t for x, t in zip("ab", found, strict=True)]
        for p in last.predict(texts)
    ]
    micro = f1_score(np.array(true), np.array(said), average="micro")
    assert written["micro_f1"] == pytest.approx(micro)
    assert resume_training(run.folder, device="cpu").scores == run.scores
    capsys.readouterr()
    base = ["--model", str(tiny_checkpoint), "--json"]
    assert main(["evaluate", str(run.folder), *base]) == 0
    assert json.loads(capsys.readouterr().out)["micro_f1"] == pytest.approx(micro)
    assert main(["predict", str(run.folder), *base, *texts]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [[label in line["labels"] for label in "ab"] for line in lines] == said


# --- a threshold of `predict` ---


@pytest.mark.slow
def test_predict_takes_a_threshold(run: Path, capsys: pytest.CaptureFixture) -> None:
    texts = ["Claim your prize now", "see you at six"]
    for threshold, expected in (("spam=0", {"spam"}), ("spam=1", {"ham"})):
        assert main(["predict", str(run), "--json", "--threshold", threshold, *texts]) == 0
        reported = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert {line["label"] for line in reported} == expected
    for wrong in ("spam", "eggs=0.5", "spam=1.5", "spam=x", "spam=nan"):
        assert main(["predict", str(run), "--threshold", wrong, *texts]) == 2
        assert "LABEL=P" in capsys.readouterr().err


# --- what a run saves ---


@pytest.mark.slow
def test_predictions_page_and_card_are_in_the_folder(run: Path) -> None:
    listed = json.loads((run / "MANIFEST.json").read_text())["sha256"]
    assert {"report.html", "model_card.md", "test-answers.jsonl", "val-answers.jsonl"} <= {*listed}
    test, val = (read_predictions(run / f"{part}-answers.jsonl") for part in ("test", "val"))
    assert len(test.texts) == 120 and len(val.texts) == 60 and val.near_duplicates is None
    written = json.loads((run / "evaluation.json").read_text())
    assert (
        written["correct"] == int(test.correct.sum()) and written["accuracy"] == test.correct.mean()
    )
    classifier = Classifier.load(run)
    assert written["temperature"] == classifier.description.head.temperature
    again = labelled_predictions(
        classifier,
        read_test_part(run, "classification"),
    )
    np.testing.assert_allclose(again.probabilities, test.probabilities, atol=1e-6)
    page = (run / "report.html").read_text()
    assert "GPT-2 mini on hard" in page and "bag of words" in page and "<script" not in page
    assert f"{100 * test.correct.mean():.1f}" in (run / "model_card.md").read_text()


@pytest.mark.slow
def test_test_texts_with_a_near_duplicate_are_counted(tmp_path: Path) -> None:
    """Texts that differ only in digits are in several parts, and are counted separately."""
    rows = [
        f"{label} offer number {n} of {word},{label}"
        for label, word in (("a", "tea"), ("b", "oil"))
        for n in range(30)
    ]
    rows += [
        f"{m.text.split()[0]} {m.text.split()[-1]} {n},{'ab'[n % 2]}"
        for n, m in enumerate(load_messages("hard")[:40])
        if "," not in m.text and '"' not in m.text
    ]
    (tmp_path / "m.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    config = TrainConfig(epochs=1)
    train_classifier("mini", tmp_path / "m.csv", config, run=tmp_path / "run")
    test = read_predictions(tmp_path / "run" / "test-answers.jsonl")
    assert test.near_duplicates is not None
    offers = ["offer" in masked(text) for text in test.texts]
    assert test.near_duplicates.tolist() == offers and 0 < sum(offers) < len(offers)
    written = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert written["without_near_duplicates"]["total"] == len(offers) - sum(offers)


@pytest.mark.slow
def test_evaluate_uses_the_facts_of_the_run(run: Path, capsys: pytest.CaptureFixture) -> None:
    assert (
        main(
            [
                "evaluate",
                str(run),
                "--json",
                "--allowed-false-positives",
                "50",
                "--cost-of-false-positive",
                "9",
                "--show",
                "2",
            ]
        )
        == 0
    )
    reported = json.loads(capsys.readouterr().out)
    written = json.loads((run / "evaluation.json").read_text())
    for name in ("accuracy", "confusion", "calibration", "uncalibrated", "without_near_duplicates"):
        assert reported[name] == pytest.approx(written[name]) if name == "accuracy" else True
        assert json.dumps(reported[name])[:40] == json.dumps(written[name])[:40]
    assert [t["allowed_per_1000"] for t in reported["thresholds"]] == [50.0]
    assert len(reported["mistakes"]) == len(reported["least_certain"]) == 2
    at = reported["at_cost"]
    assert at["threshold"] == pytest.approx(0.9) and at["false_positive_cost"] == 9
    classifier = Classifier.load(run)
    messages = read_test_part(run, "classification")
    spam = np.array(
        [a.probabilities["spam"] for a in classifier.predict([m.text for m in messages]) if a]
    )
    is_spam = np.array([m.label == "spam" for m in messages])
    lost, caught = int((~is_spam & (spam > 0.9)).sum()), int((is_spam & (spam > 0.9)).sum())
    assert (at["false_positives"], at["true_positives"]) == (lost, caught)
    assert at["mean_cost"] == pytest.approx((9 * lost + is_spam.sum() - caught) / 120)


@pytest.mark.slow
def test_evaluate_on_other_messages_keeps_the_thresholds(run: Path) -> None:
    classifier = Classifier.load(run)
    found = assess_again(classifier, load_messages("hard")[:40], run)
    assert found.without_near_duplicates is None and len(found.thresholds) == 4
    bare = assess_again(classifier, load_messages("hard")[:40], run.parent)
    assert bare.thresholds == [] and bare.evaluation == found.evaluation


@pytest.mark.slow
def test_changed_answers_are_refused(run: Path, tmp_path: Path) -> None:
    for path in run.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    answers = tmp_path / "val-answers.jsonl"
    answers.write_text(answers.read_text().replace("ham", "spam", 1))
    with pytest.raises(CheckpointError, match="val-answers.jsonl differs"):
        assess_again(Classifier.load(tmp_path), load_messages("hard")[:20], tmp_path)


def test_evaluate_says_which_options_are_for_classes(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    classifier = Classifier.on_base(
        tiny_checkpoint, heads=[HeadConfig("x", "multi-label", ("a", "b"))]
    )
    path = tmp_path / "c.safetensors"
    classifier.save(path)
    (tmp_path / "m.jsonl").write_text('{"text": "one", "label": ["a"]}\n')
    given = [
        "evaluate",
        str(path),
        "--model",
        str(tiny_checkpoint),
        "--data",
        str(tmp_path / "m.jsonl"),
    ]
    assert main([*given, "--positive", "a"]) == 2
    assert "--positive" in capsys.readouterr().err


@pytest.mark.slow
def test_the_last_epoch_has_no_thresholds_of_the_best(
    run: Path, capsys: pytest.CaptureFixture
) -> None:
    """The saved predictions are those of the best epoch, at its temperature."""
    assert main(["evaluate", str(run / "last.safetensors"), "--json"]) == 0
    reported = json.loads(capsys.readouterr().out)
    assert reported["thresholds"] == [] and reported["temperature"] == 1.0
    assert main(["evaluate", str(run / "best.safetensors"), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["thresholds"]) == 4


# --- the baselines of other tasks ---


def tagged_part(path: Path, n_cat: int, n_dog: int, n_red: int) -> str:
    """Write texts "the WORD NUMBER" whose words have the tags O, B-x or O, and O."""
    words = ["cat"] * n_cat + ["dog"] * n_dog + ["red"] * n_red
    lines = [
        f"the O\n{word} {'O' if word == 'red' else 'B-x'}\n{path.stem}{n} O\n\n"
        for n, word in enumerate(words)
    ]
    path.write_text("".join(lines))
    return str(path)


@pytest.mark.slow
def test_a_baseline_has_the_scores_of_the_classifier(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Every "cat" is found, because it is an x in training; "dog" is unknown."""
    sizes = {"train": (8, 0, 4), "val": (3, 1, 2), "test": (2, 3, 4)}
    data = DataConfig(*(tagged_part(tmp_path / f"{n}.conll", *sizes[n]) for n in sizes))
    config, head = TrainConfig(epochs=1), HeadSettings(task="token-classification")
    run = train_classifier(tiny_checkpoint, data, config, head, run=tmp_path / "run")
    [(name, scores)] = run.facts.task_baselines
    assert name == TAG and type(scores) is type(run.scores)
    assert (scores.correct, scores.total) == (27 - 3, run.scores.total) == (24, 27)
    recall = 2 / 5
    assert scores.main == scores.entities.f1 == pytest.approx(2 * recall / (1 + recall))


# --- the report on request ---


@pytest.mark.slow
def test_training_alone_writes_no_report(tiny_checkpoint: Path, tmp_path: Path) -> None:
    rows = [f"{'see you' if n % 2 else 'win now'} {n},{'ab'[n % 2]}" for n in range(40)]
    (tmp_path / "m.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    config = TrainConfig(epochs=1)
    run = train_classifier(tiny_checkpoint, tmp_path / "m.csv", config, run=tmp_path / "run")
    before = {path.name for path in run.folder.iterdir()}
    listed = json.loads((run.folder / "MANIFEST.json").read_text())["sha256"]
    assert {*listed} == before - {"MANIFEST.json"}
    run.write_report()
    added = {path.name for path in run.folder.iterdir()} - before
    assert added == {"report.html", "model_card.md", "curves.png"}
    assert {*json.loads((run.folder / "MANIFEST.json").read_text())["sha256"]} == {*listed} | added


@pytest.mark.slow
def test_a_report_written_again_leaves_the_rest_of_the_manifest(run: Path, tmp_path: Path) -> None:
    """A file that was changed before the report is written again is still refused."""
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    (folder / "last.safetensors").write_bytes((run / "last.safetensors").read_bytes() + b" ")
    resume_training(folder, device="cpu").write_report()
    with pytest.raises(CheckpointError, match="last.safetensors"):
        check_listed(folder / "last.safetensors")
    check_listed(folder / "report.html")


@pytest.mark.slow
def test_training_in_python_prints_nothing_on_standard_output(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """Warnings go to standard error; other log lines are shown if the program asks for them."""
    rows = [
        f"{word} {n},{label}" for n in range(20) for word, label in (("win", 1), ("see you", 0))
    ]
    (tmp_path / "table.csv").write_text("\n".join(["text,label", *rows]))
    code = f"""
import logging, sys
from gpt2_from_scratch import TrainConfig, train_classifier
for number, chosen in enumerate([False, True]):
    if chosen:
        logging.basicConfig(level=logging.INFO)
    run = train_classifier({str(tiny_checkpoint)!r}, "table.csv", TrainConfig(epochs=1), run=str(number))
    run.write_report()
    run.classifier.predict(["a text"])
    print("--", file=sys.stderr)
"""
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert found.returncode == 0 and found.stdout == "", found.stderr
    quiet, asked = found.stderr.split("--\n")[:2]
    assert "epoch 1/1" not in quiet and "epoch 1/1" in asked


# --- a DataFrame ---


@pytest.mark.slow
def test_a_frame_is_kept_as_a_table(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The run resumes and is evaluated from that table, and equals the run of a file."""
    texts = [f'win "{n}"\r, now\nor never' if n % 2 else f"see you {n}" for n in range(60)]
    frame = pandas.DataFrame({"n": range(60), "label": [n % 2 for n in range(60)], "text": texts})
    settings = TrainConfig(epochs=1), HeadSettings()
    ours = train_classifier(str(tiny_checkpoint), frame, *settings, run=tmp_path / "ours")
    table = pandas.read_csv(tmp_path / "ours" / "data.csv", lineterminator="\n")
    assert table["text"].tolist() == texts and table["label"].tolist() == frame["label"].tolist()
    assert RunConfig.read(tmp_path / "ours").data.source == str(tmp_path / "ours" / "data.csv")
    given = [Message(text, str(n % 2)) for n, text in enumerate(texts)]
    write_messages(tmp_path / "given.csv", given)
    theirs = train_classifier(
        str(tiny_checkpoint), tmp_path / "given.csv", *settings, run=tmp_path / "theirs"
    )
    for (name, p), q in zip(
        ours.classifier.model.named_parameters(), theirs.classifier.model.parameters(), strict=True
    ):
        assert torch.equal(p, q), name
    assert resume_training(tmp_path / "ours").scores == ours.scores


FRAME = pandas.DataFrame({"text": ["a", "b", "c"], "label": ["x", "y", "x"]}, index=[7, 7, 8])
FAULTY = {
    "missing text": (FRAME.assign(text=["a", "b", None]), "row 2 of the DataFrame, .* no text"),
    "NaN": (FRAME.assign(text=["a", float("nan"), "c"]), "row 1 .* no text: it is nan"),
    "number": (FRAME.assign(text=["a", 5, "c"]), "row 1 .* int as its text"),
    "empty": (FRAME.assign(text=["a", "b", " "]), "row 2 .* empty text"),
    "missing label": (FRAME.assign(label=["x", None, "y"]), "row 1 .* no label"),
    "missing number": (FRAME.assign(label=[1, 2, None]), "row 2 .* no label: it is nan"),
    "another name": (FRAME.rename(columns={"label": "stars"}), "'stars'.*'label'.*rename"),
    "parts": (
        DatasetDict(train=Dataset({"text": ["a"]}), test=Dataset({"text": ["b"]})),
        r"several parts, 'train', 'test'.*data\['train'\]",
    ),
    "column of a data set": (Dataset({"text": ["a"], "stars": [1]}), "Dataset.*'stars'.*rename"),
    "without a label": (
        Dataset({"text": ["a", "b"], "label": [0, -1]}, {"label": ClassLabel(["x", "y"])}),
        "row 1 of the Dataset, .* no label",
    ),
}


@pytest.mark.parametrize("kind", FAULTY)
def test_a_faulty_cell_of_a_frame_is_named(kind: str, tmp_path: Path) -> None:
    data, message = FAULTY[kind]
    with pytest.raises(DataError, match=message):
        train_classifier("mini", data, run=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_data_set_of_the_hub_is_a_frame(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Class numbers get the names of their classes; a Dataset without them keeps its labels."""
    texts, numbers = [f"see you {n}" for n in range(40)], [n % 2 for n in range(40)]
    numbered = Dataset(
        {"id": [*range(40)], "text": texts, "label": numbers}, {"label": ClassLabel(["ham", "win"])}
    )
    named = Dataset({"text": texts, "label": ["ham" if n == 0 else "win" for n in numbers]})
    runs = [
        train_classifier(
            str(tiny_checkpoint), data, TrainConfig(epochs=1), run=tmp_path / f"run-{n}"
        )
        for n, data in enumerate([numbered, named])
    ]
    assert runs[0].classifier.description.labels == ["ham", "win"]
    table = pandas.read_csv(tmp_path / "run-0" / "data.csv")
    assert table["text"].tolist() == texts and table["label"].tolist() == [*named["label"]]
    assert runs[0].scores == runs[1].scores == resume_training(tmp_path / "run-0").scores
    answers = runs[0].classifier.predict(numbered["text"])
    assert answers == runs[1].classifier.predict(texts)


@pytest.mark.parametrize("columns", [["text", "stars"], ["text", "label", "text"], []])
def test_a_frame_without_one_text_and_one_label_is_refused(
    columns: list[str], tmp_path: Path
) -> None:
    frame = pandas.DataFrame([["a"] * len(columns)] * 3, columns=columns)
    with pytest.raises(DataError, match="'text'.*'label'.*rename"):
        train_classifier("mini", frame, run=tmp_path / "run")
    assert not (tmp_path / "run").exists()
