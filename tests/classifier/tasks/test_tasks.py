"""Tasks from a file to scores, by the command line, on data made here; the mini learns them."""

import csv
import json
import random
from pathlib import Path

import numpy as np
import pytest

from gpt2_from_scratch.classifier.classifier import Classifier
from gpt2_from_scratch.cli import main as cli

THINGS = (
    "kettle ladder garden window ticket basket hammer blanket candle mirror bottle pencil".split()
)
NAMES = "Anna Tom Maria Henry Julia Oscar Peter Wanda Olga Felix Ruth Alice".split()
PLACES = "Paris London Dublin Vienna Oslo Lisbon Berlin Madrid Chicago Glasgow Warsaw Rome".split()


def run(capsys: pytest.CaptureFixture, *words: object) -> tuple[str, str]:
    code = cli.main([str(word) for word in words])
    out, err = capsys.readouterr()
    assert code == 0, err
    return out, err


def test_a_number_is_learned(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """How many things stand in a list, two values at once; better than the mean by far."""
    draw, data = random.Random(1), tmp_path / "counts.csv"
    with data.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "things", "cost"])
        for _ in range(240):
            some = draw.choices(THINGS, k=draw.randint(1, 12))
            writer.writerow(
                [
                    f"{draw.choice(NAMES)} bought " + ", ".join(some),
                    len(some),
                    250 * len(some) + 1e6,
                ]
            )
    out, _ = run(
        capsys,
        "train",
        "--data",
        data,
        "--task",
        "regression",
        "--label-column",
        "things,cost",
        "--layer",
        3,
        "--pooling",
        "mean",
        "--epochs",
        6,
        "--lr",
        "2e-3",
        "--out",
        tmp_path / "run",
    )
    scores = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert scores["mean_r2"] > 0.8 and "cost" in out
    again, _ = run(capsys, "evaluate", tmp_path / "run", "--json")
    assert json.loads(again) == scores
    text = "Tom bought " + ", ".join(THINGS[:6])
    [found] = Classifier.load(tmp_path / "run").predict([text])
    told, _ = run(capsys, "predict", tmp_path / "run", text, "--csv")
    header, row = told.splitlines()
    assert header == "number,things,cost" and row.startswith("1,")
    assert np.allclose(
        [float(cell) for cell in row.split(",")[1:]], list(found.answer.values.values()), rtol=1e-5
    )
    assert (
        abs(found.answer.values["things"] - 6) < 3
        and abs(found.answer.values["cost"] - 1e6 - 1500) < 750
    )


def test_an_answer_is_found_in_a_text(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Who, and where: names that the test part has in other sentences; better than the first word."""
    draw, paragraphs = random.Random(2), []
    for n in range(150):
        name, place = draw.choice(NAMES), draw.choice(PLACES)
        form = draw.choice(
            ["I met {} in {}.", "{} moved to {}.", "We saw {} near {}.", "{} called from {}."]
        )
        context = f"{form.format(name, place)} It was day {n}."
        questions = {"Who?": name, "Where?": place}
        qas = [
            {
                "id": f"{n}-{q}",
                "question": q,
                "answers": [{"text": a, "answer_start": context.index(a)}],
            }
            for q, a in questions.items()
        ]
        paragraphs.append({"context": context, "qas": qas})
    data = tmp_path / "squad.json"
    data.write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    run(
        capsys,
        "train",
        "--data",
        data,
        "--task",
        "span",
        "--n-last-blocks",
        3,
        "--epochs",
        5,
        "--lr",
        "1e-3",
        "--out",
        tmp_path / "run",
    )
    scores = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert scores["f1"] > 0.6 and scores["total"] == 60
    told, _ = run(
        capsys, "predict", tmp_path / "run", "Where?\nRuth moved to Oslo. It was day 7.", "--json"
    )
    answer = json.loads(told)
    text = "Where?\nRuth moved to Oslo. It was day 7."
    assert answer["text"] == text[answer["start"] : answer["end"]] and answer["start"] >= 7
