"""The command line as a person types it, called in this process for speed."""

import csv
import io
import json
import re
import shutil
import signal
import string
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from command import call

from gpt2_from_scratch.classifier.classifier import Classifier, Prediction
from gpt2_from_scratch.classifier.prediction_table import PredictionTable
from gpt2_from_scratch.classifier.settings import HeadConfig
from gpt2_from_scratch.classifier.tasks.regression import Values
from gpt2_from_scratch.cli import inspecting
from gpt2_from_scratch.cli import main as cli
from gpt2_from_scratch.data.messages import DataConfig, load_messages
from gpt2_from_scratch.data.split import split_messages
from gpt2_from_scratch.evaluation.task_baselines import MEAN, RIDGE
from gpt2_from_scratch.gpt2.tokenizer import Tokenizer
from gpt2_from_scratch.gpt2.weights import load_gpt2
from gpt2_from_scratch.runs.folder import RunConfig
from gpt2_from_scratch.studies.next_token import probe_next_tokens
from gpt2_from_scratch.studies.probes import probe_layers

COMMANDS = [
    "train",
    "evaluate",
    "predict",
    "check",
    "verify",
    "generate",
    "pretrain",
    "download",
    "probe",
]
CASES = Path(__file__).parents[1] / "fixtures" / "cases"
SETTINGS = ["--epochs", "2", "--lr", "0.005", "--device", "cpu"]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty labelled messages of three kinds, written as a spreadsheet would."""
    path = tmp_path_factory.mktemp("data") / "kinds.csv"
    words = {"sport": "the goal in", "health": "a pill, twice", "tech": 'the "chip" on'}
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["kind", "body"])
        for n in range(42):
            kind = sorted(words)[n % 3]
            writer.writerow([kind, f"{words[kind]} {n}"])
    return path


@pytest.fixture(scope="module")
def run(tiny_checkpoint: Path, table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with three classes, trained by the command."""
    out = tmp_path_factory.mktemp("runs") / "kinds"
    code = cli.main(
        ["train", "--model", str(tiny_checkpoint), "--data", str(table), "--out", str(out)]
        + ["--text-column", "body", "--label-column", "kind", *SETTINGS]
    )
    assert code == 0
    return out


@pytest.mark.slow
def test_a_run_leaves_everything_in_its_folder(run: Path) -> None:
    assert sorted(path.name for path in run.iterdir()) == [
        "MANIFEST.json",
        "best.safetensors",
        "config.json",
        "curves.png",
        "evaluation.json",
        "last.safetensors",
        "metrics.jsonl",
        "model_card.md",
        "provenance.json",
        "report.html",
        "test-answers.jsonl",
        "test.csv",
        "training-texts.txt",
        "val-answers.jsonl",
    ]
    config = json.loads((run / "config.json").read_text())
    assert config["training"]["epochs"] == 2 and config["training"]["lr"] == 0.005
    assert config["recipe"] == "default" and config["version"] == 2
    assert config["data"]["label_column"] == "kind" and config["data"]["balance"] is False
    provenance = json.loads((run / "provenance.json").read_text())
    assert provenance["classifier"]["heads"][0]["labels"] == ["health", "sport", "tech"]
    assert provenance["messages"] == {"train": 27, "val": 3, "test": 12}
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert evaluation["total"] == len(load_messages(run / "test.csv"))
    assert sum(map(sum, evaluation["confusion"])) == evaluation["total"]


@pytest.mark.slow
def test_evaluate_repeats_the_scores_of_the_run(
    run: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture
) -> None:
    code, out, _ = call(capsys, "evaluate", run, "--model", tiny_checkpoint, "--json")
    assert code == 0
    assert json.loads(out) == json.loads((run / "evaluation.json").read_text())
    code, out, _ = call(capsys, "evaluate", run, "--model", tiny_checkpoint)
    assert re.search(r"accuracy [\d.]+%  \(\d+ of 12; 95% interval", out)


@pytest.mark.slow
def test_predict_answers_in_three_forms(
    run: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    texts = ["the goal in May", "", "=1+1, twice"]
    (tmp_path / "inbox.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    common = ("predict", run, "--model", tiny_checkpoint)
    code, out, err = call(capsys, *common, "--file", tmp_path / "inbox.txt", "--json")
    records = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and err == ""
    assert [record["number"] for record in records] == [1, 2, 3]
    for record in records:
        assert max(record["probabilities"], key=record["probabilities"].get) == record["label"]
        assert sum(record["probabilities"].values()) == pytest.approx(1)
    _, out, _ = call(capsys, *common, "--file", tmp_path / "inbox.txt", "--csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert list(rows[0]) == ["number", "label", "health", "sport", "tech", "truncated"]
    assert [row["label"] for row in rows] == [record["label"] for record in records]
    _, out, _ = call(capsys, *common, *texts)
    assert [line.split()[0] for line in out.splitlines()] == [row["label"] for row in rows]


@pytest.mark.slow
def test_predict_computes_in_int8_if_the_processor_can(
    run: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture, monkeypatch
) -> None:
    """Probabilities differ a little from those of float32, and a processor that cannot is named."""
    common = ("predict", run, "the goal in May", "--model", tiny_checkpoint, "--json")
    found = {}
    for has, dtype in ((True, "float32"), (True, "int8"), (False, "int8")):
        monkeypatch.setattr(
            torch.cpu, "get_capabilities", lambda has=has: {"avx512_vnni": has}, raising=False
        )
        code, out, err = call(capsys, *common, "--dtype", dtype)
        assert code == 0 and ("no instructions for int8" in err) != has
        found[has, dtype] = np.array(list(json.loads(out)["probabilities"].values()))
    exact = found[True, "float32"]
    code, out, err = call(capsys, *common, "--dtype", "auto")  # this processor has int8 alone
    assert code == 0 and "float32" in err
    assert np.array_equal(list(json.loads(out)["probabilities"].values()), exact)
    assert 0 < np.abs(found[True, "int8"] - exact).max() < 0.05
    assert np.array_equal(found[False, "int8"], exact)


def test_predict_warns_if_a_text_looks_like_a_file(
    run: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    common = ("predict", run, "--model", tiny_checkpoint)
    for text, what in (
        (tmp_path / "nothere.csv", "no such file exists"),
        (tmp_path, "there is a folder of this name"),
    ):
        code, out, err = call(capsys, *common, text)
        assert code == 0 and len(out.splitlines()) == 1
        assert f"{text} is classified as a text: {what}" in err and "--file" in err
    for text in ("nothere.csv", "see a/b.csv", "and/or"):
        code, out, err = call(capsys, *common, text)
        assert code == 0 and err == ""


def squad_words(answer: str) -> list[str]:
    kept = "".join(c for c in answer.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", kept).split()


def squad_scores(gold: list[list[str]], predicted: list[str]) -> tuple[int, float]:
    """The number of exact matches and the mean F1, as in SQuAD's script."""
    exact, f1s = 0, []
    for answers, answer in zip(gold, predicted, strict=True):
        best, words = 0.0, squad_words(answer)
        for true in map(squad_words, answers):
            shared = sum((Counter(true) & Counter(words)).values())
            if shared:
                precision, recall = shared / len(words), shared / len(true)
                best = max(best, 2 * precision * recall / (precision + recall))
        exact += any(squad_words(true) == words for true in answers)
        f1s.append(best)
    return exact, sum(f1s) / len(f1s)


@pytest.mark.slow
def test_a_run_on_questions_is_scored_with_all_their_answers(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """`train` and `evaluate` give the scores of SQuAD's script on the answers in the file."""
    paragraphs, gold = [], {}
    for n in range(30):
        context = f"the cat {n} in it"
        answers = ["the cat", f"{n}", "in", f"cat {n} in it"]
        answers = answers[n % 4 :] + answers[: n % 4]  # so the first one cannot be learned
        listed = [{"text": a, "answer_start": context.index(a)} for a in answers]
        asked = [f"{word}?" for word in ("who", "how")[: n % 2 + 1]]
        gold |= {f"{question}\n{context}": answers for question in asked}
        qas = [{"id": f"{n} {q}", "question": q, "answers": listed} for q in asked]
        paragraphs.append({"context": context, "qas": qas})
    path, run = tmp_path / "squad.json", tmp_path / "run"
    path.write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    command = ("train", "--model", tiny_checkpoint, "--data", path, "--task", "span", *SETTINGS)
    code, _, err = call(capsys, *command, "--out", run)
    assert code == 0 and "45 distinct texts on 30 contexts" in err
    code, out, _ = call(capsys, "evaluate", run, "--model", tiny_checkpoint, "--json")
    scores = json.loads(out)
    texts = [json.loads(line)["text"] for line in (run / "test.jsonl").read_text().splitlines()]
    predicted = [p.answer.text for p in Classifier.load(run, tiny_checkpoint).predict(texts)]
    exact, f1 = squad_scores([gold[text] for text in texts], predicted)
    assert code == 0 and scores["total"] == len(texts)
    assert (scores["exact"], scores["f1"]) == (exact, pytest.approx(f1, abs=1e-12))
    assert f1 > squad_scores([gold[text][:1] for text in texts], predicted)[1]  # the others count
    trained = json.loads((run / "evaluation.json").read_text())
    assert trained["f1"] == scores["f1"] and trained["exact"] == scores["exact"]


@pytest.mark.parametrize("task", ["multi-label", "token-classification"])
def test_evaluate_says_where_an_unknown_label_is(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture, task: str
) -> None:
    heads = [HeadConfig(task=task, labels=("a", "b"))]
    saved, path = tmp_path / "c.safetensors", tmp_path / "m.jsonl"
    Classifier.on_base(tiny_checkpoint, heads=heads).save(saved)
    of = {"multi-label": lambda x: [x], "token-classification": lambda x: [[0, 3, x]]}[task]
    rows = [{"text": "the cat", "label": of(label)} for label in ("a", "c")]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, _, err = call(capsys, "evaluate", saved, "--model", tiny_checkpoint, "--data", path)
    assert code == 3 and f"{path}, line 2: unknown label 'c'; the head has a, b" in err


def test_predict_reads_standard_input(
    run: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture, monkeypatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"one\r\ntwo\n")))
    _, out, _ = call(capsys, "predict", run, "--model", tiny_checkpoint, "--json")
    # "on" and "e"; "t", "w" and "o"; and a newline at the end of each
    assert [json.loads(line)["n_tokens"] for line in out.splitlines()] == [3, 4]


@pytest.mark.slow
def test_standard_input_is_read_as_files_are(
    run: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture, monkeypatch
) -> None:
    common = ("predict", run, "--model", tiny_checkpoint, "--json")
    for data, tokens in ((b"\xef\xbb\xbfone\n", [3]), (b"a\0b\n\n", [4, 1]), (b"", [])):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        code, out, _ = call(capsys, *common)
        assert [json.loads(line)["n_tokens"] for line in out.splitlines()] == tokens and code == 0
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"fine\ncaf\xe9\n")))
    code, _, err = call(capsys, *common)
    assert code == 3 and "line 2" in err and "UTF-8" in err


@pytest.mark.slow
def test_faulty_rows_are_left_out_of_predict_and_counted(
    run: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch
) -> None:
    raw = b"the goal\ncaf\xe9\na pill\n"
    (tmp_path / "t.txt").write_bytes(raw)
    (tmp_path / "t.csv").write_bytes(b"id,text\n1,the goal\n2,caf\xe9\n3,a pill\n")
    common = ("predict", run, "--model", tiny_checkpoint, "--json")
    for name in ("t.txt", "t.csv", "-"):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))
        given = [] if name == "-" else ["--file", tmp_path / name]
        code, out, err = call(capsys, *common, *given)
        assert code == 3 and "0xe9 is not UTF-8" in err and "--on-error skip" in err
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))
        code, out, err = call(capsys, *common, *given, "--on-error", "skip")
        assert code == 0 and "left out 1 of 3 rows" in err
        skipped = [json.loads(line) for line in out.splitlines()]
        assert [record["number"] for record in skipped] == [1, 3]
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))
        code, out, err = call(capsys, *common, *given, "--encoding", "latin-1")
        whole = [json.loads(line) for line in out.splitlines()]
        assert (
            code == 0
            and err == ""
            and [whole[0], whole[2]]
            == [
                {**record, "probabilities": pytest.approx(record["probabilities"], abs=1e-5)}
                for record in skipped
            ]
        )


def test_numbers_stay_next_to_their_texts_over_many_windows(
    run: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    rows = [b"\xff" if n % 7 == 3 else f"{n} {n % 11}".encode() for n in range(1, 1000)]
    (tmp_path / "t.txt").write_bytes(b"\n".join(rows))
    common = ("predict", run, "--model", tiny_checkpoint, "--file", tmp_path / "t.txt")
    code, out, _ = call(capsys, *common, "--on-error", "skip", "--csv", "--with-text")
    found = list(csv.DictReader(io.StringIO(out)))
    assert code == 0 and len(found) == 999 - 143
    assert all(row["text"].encode() == rows[int(row["number"]) - 1] for row in found)


def test_evaluate_leaves_faulty_rows_out(
    run: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "more.csv"
    path.write_bytes("kind,body\ntech,the chip\ntech\nsport,\nhealth,café\n".encode("cp1252"))
    common = ("evaluate", run, "--model", tiny_checkpoint, "--data", path, "--json")
    common += ("--text-column", "body", "--label-column", "kind")
    code, out, err = call(capsys, *common)
    assert (code, out) == (3, "") and "more.csv, line 3" in err and "3 rows" in err
    code, out, err = call(capsys, *common, "--on-error", "skip")
    assert code == 0 and json.loads(out)["total"] == 1 and "3 of 4 rows" in err
    code, out, err = call(capsys, *common, "--on-error", "skip", "--encoding", "cp1252")
    assert code == 0 and json.loads(out)["total"] == 2 and "2 of 4 rows" in err
    code, out, err = call(capsys, *common, "--encoding", "rot13")
    assert (code, out) == (2, "") and "'rot13'" in err


def test_evaluate_reads_the_test_set_of_a_run_as_it_was_written(
    run: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for name in ("best.safetensors", "test.csv"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    with (tmp_path / "test.csv").open("a", encoding="utf-8") as file:
        file.write('"tech",""\n"tech","café"\n')  # as --keep-empty lets through
    code, out, _ = call(
        capsys,
        "evaluate",
        tmp_path,
        "--model",
        tiny_checkpoint,
        "--json",
        "--encoding",
        "cp1252",
        "--text-column",
        "body",
    )
    assert code == 0 and json.loads(out)["total"] == 14


def test_texts_that_were_changed_in_reading_are_marked(
    run: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture
) -> None:
    texts = ["fine", "", "you and " * 99, "a \ud800 b"]
    _, out, _ = call(capsys, "predict", run, "--model", tiny_checkpoint, *texts)
    shown = [line.split(")  ", 1)[1] for line in out.splitlines()]
    assert shown[:2] == ["fine", "(empty) "] and shown[3] == r"(replaced) a \ud800 b"
    assert shown[2].startswith("(cut) you and you") and shown[2][6:] == ("you and " * 99)[:99] + "…"
    _, out, _ = call(capsys, "predict", run, "--model", tiny_checkpoint, *texts, "--json")
    records = [json.loads(line) for line in out.splitlines()]
    assert [[r["truncated"], r["empty"], r["replaced"]] for r in records] == [
        [False] * 3,
        [False, True, False],
        [True, False, False],
        [False, False, True],
    ]


def test_no_spreadsheet_executes_what_predict_prints(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """No text and no label, in the header and in every row."""
    Classifier.on_base(tiny_checkpoint, ["=ham", "@spam"]).save(tmp_path / "best.safetensors")
    texts = ["=1+1", "+1", "-2", "@SUM(A1)", "\t=1", "\r=1", 'fine, "q"', "two\nlines", "\ud800=1"]
    common = ("predict", tmp_path, "--model", tiny_checkpoint, "--csv")
    code, out, _ = call(capsys, *common, "--with-text", "--", *texts)
    header, *rows = csv.reader(io.StringIO(out, newline=""))
    columns = ["number", "label", "'=ham", "'@spam", "truncated", "text"]
    assert code == 0 and header == columns
    assert [row[-1] for row in rows] == [f"'{t}" for t in texts[:4]] + ["'\t'=1", "'\r'=1"] + [
        *texts[6:8],
        "\ufffd=1",
    ]
    assert {row[1] for row in rows} <= {"'=ham", "'@spam"}
    assert [row[0] for row in rows] == [str(n) for n in range(1, 10)]
    _, out, _ = call(capsys, *common, "--", *texts)
    plain = list(csv.reader(io.StringIO(out, newline="")))
    assert plain == [row[:-1] for row in (header, *rows)]
    code, out, err = call(capsys, "predict", tmp_path, "--with-text", "a")
    assert (code, out) == (2, "") and "--with-text adds a column to --csv" in err


TAKEN = {  # labels: the names of their columns
    ("label", "number", "text"): ["(label)", "(number)", "(text)"],
    ("number", "(number)", "truncated", "probability"): [
        "((number))",
        "(number)",
        "(truncated)",
        "probability",
    ],
    ("((number))", "(number)", "number"): ["((number))", "(number)", "(((number)))"],
    ("=a", "'=a", "('=a)"): ["'=a", "(('=a))", "('=a)"],
    ("Number", "number.1", "n"): ["Number", "number.1", "n"],
}


@pytest.mark.parametrize("labels", TAKEN)
@pytest.mark.parametrize("task", ["classification", "multi-label", "regression"])
def test_columns_have_distinct_names(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture, labels, task
) -> None:
    head = HeadConfig("x", task, labels)
    Classifier.on_base(tiny_checkpoint, heads=[head]).save(tmp_path / "best.safetensors")
    command = ("predict", tmp_path, "--model", tiny_checkpoint, "--csv", "--with-text")
    code, out, _ = call(capsys, *command, "a pill", "you and " * 99)
    table = pandas.read_csv(io.StringIO(out))
    named = TAKEN[labels]
    if task == "regression" and "label" in labels:  # its answers have no label
        named = ["label" if name == "(label)" else name for name in named]
    own = ["number"] if task == "regression" else ["number", "label"]
    assert code == 0 and list(table.columns) == [*own, *named, "truncated", "text"]
    assert table["truncated"].tolist() == [False, True] and table["text"][0] == "a pill"
    assert len({*table.columns}) == len(table.columns)
    if task == "classification":
        assert table[named].sum(axis=1).tolist() == pytest.approx([1, 1], abs=1e-5)


def test_numbers_in_csv_stay_numbers() -> None:
    head = HeadConfig("s", "regression", ("shift", "-1", "=a"))
    values = Values({"shift": -0.5, "-1": -1.5e-07, "=a": 2.0})
    prediction = Prediction({"s": values}, 3, truncated=False, empty=False, replaced=False)
    file = io.StringIO(newline="")
    PredictionTable(file, [head], with_text=True).write(1, "-0.5", prediction)
    header, row = csv.reader(io.StringIO(file.getvalue(), newline=""))
    assert header == ["number", "shift", "-1", "'=a", "truncated", "text"]
    assert row == ["1", "-0.5", "-1.5e-07", "2", "false", "'-0.5"]


def test_texts_may_be_anywhere_and_begin_with_anything(
    run: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture
) -> None:
    _, out, _ = call(
        capsys,
        "predict",
        run,
        "one",
        "--model",
        tiny_checkpoint,
        "two",
        "--",
        "-5",
        "--json",
        "\x1b[",
    )
    assert [line.split(")  ")[1] for line in out.splitlines()] == [
        "one",
        "two",
        "-5",
        "--json",
        r"\x1b[",
    ]
    with pytest.raises(SystemExit) as stopped:
        cli.main(["predict", str(run), "-x"])
    assert stopped.value.code == 2 and "Put -- before" in capsys.readouterr().err


def test_an_unpaired_surrogate_gives_no_traceback(
    run: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "odd.jsonl").write_text('{"text": "a \\ud800 b"}\n')
    common = ("predict", run, "--model", tiny_checkpoint)
    assert call(capsys, *common, "--file", tmp_path / "odd.jsonl")[0] == 0
    assert call(capsys, *common, "a \ud800 b")[0] == 0


@pytest.mark.slow
def test_an_interrupted_run_can_be_scored(
    tiny_checkpoint: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    command = [sys.executable, "-m", "gpt2_from_scratch", "train", "--device", "cpu"]
    command += ["--model", str(tiny_checkpoint), "--data", str(table), "--out", str(tmp_path / "r")]
    command += ["--text-column", "body", "--label-column", "kind", "--epochs", "100000"]
    process = subprocess.Popen(
        [*command, "--patience", "100000"],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while not (tmp_path / "r" / "best.safetensors").exists():
        assert process.poll() is None, "it ended by itself"
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted" in err and "Traceback" not in err
    code, out, _ = call(capsys, "evaluate", tmp_path / "r", "--model", tiny_checkpoint)
    assert code == 0 and "of 12;" in out


def test_generate_prints_the_prompt_and_more(
    tiny_checkpoint: Path, capsys: pytest.CaptureFixture
) -> None:
    code, out, err = call(
        capsys, "generate", "--model", tiny_checkpoint, "--prompt", "you and", "--tokens", "5"
    )
    assert code == 0 and out.startswith("you and") and len(out) > len("you and\n") and err == ""


def test_verify_passes_a_whole_model_and_names_a_damaged_tensor(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    code, out, _ = call(capsys, "verify", tiny_checkpoint)
    assert code == 0, out
    for path in tiny_checkpoint.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    data = bytearray((tmp_path / "model.ckpt.data-00000-of-00001").read_bytes())
    data[-1] ^= 1  # the last tensor in the file is wte
    (tmp_path / "model.ckpt.data-00000-of-00001").write_bytes(data)
    code, out, err = call(capsys, "verify", tmp_path)
    assert code == 4 and "model/wte" in out and "failed" in err


@pytest.mark.slow
def test_the_lecture_runs_and_prints_its_lines(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    rows = [f"{'ham' if n % 2 else 'spam'},you and {n % 7} the {n}" for n in range(100)]
    (tmp_path / "two.csv").write_text("label,text\n" + "\n".join(rows) + "\n")
    code, _, err = call(
        capsys,
        "train",
        "--recipe",
        "lecture",
        "--model",
        tiny_checkpoint,
        "--data",
        tmp_path / "two.csv",
        "--out",
        tmp_path / "run",
        "--device",
        "cpu",
    )
    assert code == 0
    assert "8 / 2 / 3 batches of" in err
    assert "'Do you have time' -> [" in err
    assert "Ep 1 (Step 000000): Train loss" in err
    assert err.count("Training accuracy:") == 5
    trace = json.loads((tmp_path / "run" / "trace.json").read_text())
    assert (
        json.loads((tmp_path / "run" / "evaluation.json").read_text())["accuracy"]
        == (trace["final_accuracy"][2])
    )


@pytest.mark.parametrize(
    ("code", "arguments", "message"),
    [
        (3, ["train", "--data", "nowhere.csv"], "nowhere.csv is not a file"),
        (3, ["check", "nowhere.csv"], "nowhere.csv is not a file"),
        (4, ["check", "hard", "--model", "nowhere"], "nowhere is not a folder"),
        (4, ["train", "--model", "nowhere"], "nowhere is not a folder"),
        (4, ["generate", "--model", "1558M", "--prompt", "x"], "gpt2-classifier download 1558M"),
        (4, ["predict", "nowhere", "text"], "nowhere"),
        (2, ["generate", "--prompt", ""], "nothing to continue"),
        (2, ["generate", "--prompt", "x", "--temperature", "-1"], "temperature"),
        (3, ["pretrain", "--corpus", "nowhere", "--out", "out"], "no .txt files"),
        (2, ["train", "--epochs", "-1"], "epochs = -1"),
        (2, ["train", "--patience", "-1"], "patience = -1"),
        (2, ["train", "--seed", "-1"], "seed = -1"),
        (2, ["train", "--recipe", "lecture", "--lr", "3", "--balance"], "Leave out balance, lr"),
        (2, ["generate", "--prompt", "x", "--tokens", "-5"], "max_new_tokens = -5"),
        (2, ["pretrain", "--corpus", "c", "--out", "o", "--steps", "0"], "steps = 0"),
        (2, ["pretrain", "--corpus", "c", "--out", "o", "--n-vocab", "100"], "n_vocab = 100"),
        (2, ["train", "--n-last-blocks", "99"], "99"),
    ],
)
def test_a_mistake_gets_a_message_and_an_exit_code(
    code: int, arguments: list[str], message: str, capsys, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GPT2_FROM_SCRATCH_HOME", str(tmp_path))
    found, out, err = call(capsys, *arguments)
    assert (found, out) == (code, "")
    assert message in err and "Traceback" not in err
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]  # nothing half-made left


def test_labels_of_all_files_are_compared(tmp_path: Path, capsys) -> None:
    files = {"--data": "train.csv", "--val-data": "val_caps.csv", "--test-data": "semicolon.csv"}
    words = [word for option, name in files.items() for word in (option, CASES / name)]
    code, _, err = call(capsys, "train", *words, "--out", tmp_path / "run")
    assert code == 3 and "val_caps.csv, line 2" in err and "train.csv, line 2" in err
    (tmp_path / "eggs.csv").write_text("text,label\nfine,ham\nmore,eggs\n")
    words = ["--data", CASES / "train.csv", "--test-data", tmp_path / "eggs.csv"]
    code, _, err = call(capsys, "train", *words, "--out", tmp_path / "run")
    assert code == 3 and "eggs.csv, line 3" in err and "'eggs'" in err and "--rare-labels" in err
    assert not (tmp_path / "run").exists()


def test_a_run_is_never_overwritten(run: Path, tiny_checkpoint: Path, table: Path, capsys) -> None:
    before = (run / "best.safetensors").read_bytes()
    code, _, err = call(
        capsys,
        "train",
        "--model",
        tiny_checkpoint,
        "--data",
        table,
        "--out",
        run,
        "--text-column",
        "body",
        "--label-column",
        "kind",
        *SETTINGS,
    )
    assert code == 2 and "exists already" in err
    assert (run / "best.safetensors").read_bytes() == before


def test_an_interruption_is_130(monkeypatch, capsys: pytest.CaptureFixture) -> None:
    def interrupted(args) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(inspecting, "run_generate", interrupted)
    assert call(capsys, "generate", "--prompt", "x")[0] == 130


def test_a_bug_keeps_its_traceback(monkeypatch, capsys: pytest.CaptureFixture) -> None:
    def bug(args) -> None:
        raise ZeroDivisionError("\x1b[2J")

    monkeypatch.setattr(inspecting, "run_generate", bug)
    code, out, err = call(capsys, "generate", "--prompt", "x")
    assert (code, out) == (1, "") and "Traceback" in err and "in bug" in err
    assert r"ZeroDivisionError: \x1b[2J" in err and "\x1b" not in err


@pytest.mark.slow
def test_a_closed_pipe_is_quiet(run: Path, tiny_checkpoint: Path) -> None:
    command = f"'{sys.executable}' -m gpt2_from_scratch predict '{run}' --model '{tiny_checkpoint}'"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; seq 2000 | {command} | head -1"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0 and done.stderr == "" and len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_examples(command: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main([command, "--help"])
    out, _ = capsys.readouterr()
    assert stopped.value.code == 0
    assert f"examples:\n  gpt2-classifier {command}" in out


# --- streams, odd values, odd places ---


def shell(line: str, *words: object, **more) -> subprocess.CompletedProcess:
    """A line of the shell, in which $G is the command and $1, $2, ... are the words."""
    code = f"G='{sys.executable} -m gpt2_from_scratch'; {line}"
    return subprocess.run(
        ["bash", "-c", code, "bash", *map(str, words)], capture_output=True, text=True, **more
    )


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has /dev/full")
@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("$G check hard >&-", 0),
        ("$G cache >&-", 0),
        ("$G predict $1 hi --model $2 --csv >&-", 0),
        ("$G predict $1 hi --model $2 --json 2>&-", 0),
        ("$G predict $1 hi --model $2 2>/dev/full", 0),
        ("set -o pipefail; $G check hard | true", 0),
        ("set -o pipefail; $G evaluate $1 --model $2 2>&1 | true", 0),
        ("set -o pipefail; $G check nowhere 2>&1 | true", 3),
        ("$G check hard >/dev/full", 6),
        ("$G predict $1 hi --model $2 >/dev/full", 6),
        ("$G predict $1 --model $2 < /dev/null >&- 2>&-", 0),
    ],
)
def test_streams_that_are_closed_or_full(run: Path, tiny_checkpoint: Path, line, code) -> None:
    found = shell(line, run, tiny_checkpoint)
    assert found.returncode == code and "Traceback" not in found.stderr
    if line.endswith(("2>&-", "2>/dev/full")) and "hi" in line:
        assert "hi" in found.stdout or "label" in found.stdout  # the answer is not lost


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["train", "--threads", "99999999999999999999"], 2),
        (["train", "--threads", "100000"], 2),
        (["generate", "--prompt", "x", "--seed", "9" * 30], 2),
        (["train", "--data", "~nobody-here/x"], 2),
        (["generate", "--prompt", "x", "--tokens", "2", "--temperature", "1e-300"], 0),
        (["train", "--encoding", "xx"], 2),
        (["train", "--out", "/dev/null/x"], 6),
    ],
)
def test_odd_values(words: list[str], code: int, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(words) == code
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--data", "--model", "--out", "--resume"])
def test_a_name_must_not_be_empty(option: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["train", option, ""])
    assert stopped.value.code == 2 and "must not be empty" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="address space is limited as Linux does it")
@pytest.mark.parametrize("megabytes", [300, 450])
def test_too_little_memory_to_start_is_exit_6(megabytes: int, tmp_path: Path) -> None:
    line = f"ulimit -v {megabytes * 1024}; $G train --no-cache --out $1 --device cpu"
    found = shell(line, tmp_path / "run")
    assert found.returncode == 6 and "Traceback" not in found.stderr, found.stderr


@pytest.mark.slow
def test_probe_prints_a_table_and_writes_its_picture(
    tiny_checkpoint: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    common = ("probe", "--model", tiny_checkpoint, "--data", table, "--device", "cpu", "--seed", 5)
    common += ("--text-column", "body", "--label-column", "kind", "--pooling", "mean", "last_token")
    code, out, err = call(capsys, *common, "--out", tmp_path / "a" / "probes.png")
    assert code == 0 and [line.split()[0] for line in out.splitlines()[4:7]] == ["0", "1", "2"]
    assert re.search(r"^12 probes in [\d.]+ s$", err, re.M) and "probes.png" in err
    assert (tmp_path / "a" / "probes.png").read_bytes().startswith(b"\x89PNG")
    code, out, _ = call(capsys, *common, "--json")
    found = json.loads(out)
    assert code == 0 and len(found) == 12 and {probe["total"] for probe in found} == {12}
    assert all(probe["accuracy"] == probe["correct"] / probe["total"] for probe in found)
    split = split_messages(
        load_messages(DataConfig(source=str(table), text_column="body", label_column="kind")),
        seed=5,
    )
    model, tokenizer = load_gpt2(tiny_checkpoint), Tokenizer(tiny_checkpoint)
    probes = probe_layers(model, tokenizer, split, poolings=["mean", "last_token"])
    assert [probe["correct"] for probe in found] == [probe.correct for probe in probes]


@pytest.mark.slow
def test_probe_predicts_the_next_token_from_a_run(
    run: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Its final norm was trained, which all heads use, so no number is that of the base."""
    common = ("probe", run, "--model", tiny_checkpoint, "--task", "language", "--epochs", 1)
    picture = tmp_path / "next.png"
    code, out, _ = call(capsys, *common, "--device", "cpu", "--out", picture)
    assert code == 0 and [line.split()[0] for line in out.splitlines()[3:6]] == ["0", "1", "2"]
    assert picture.read_bytes().startswith(b"\x89PNG")
    code, out, _ = call(capsys, *common, "--device", "cpu", "--json")
    found = json.loads(out)
    classifier = Classifier.load(run, tiny_checkpoint)
    for model, same in ((classifier.model, 9), (load_gpt2(tiny_checkpoint), 0)):
        probes = probe_next_tokens(
            model, classifier.tokenizer, RunConfig.read(run).load_split(), epochs=1
        )
        expected = [probe.bits_per_byte for probe in probes]
        equal = [p["bits_per_byte"] == bits for p, bits in zip(found, expected, strict=True)]
        assert (code, sum(equal)) == (0, same)


@pytest.mark.parametrize(
    ("options", "fact"),
    [
        (["--task", "language", "--pooling", "mean"], "--pooling"),
        (["--epochs", "2"], "--epochs"),
        (["--forms", "tied"], "--forms"),
        (["runs/x", "--data", "hard"], "--data"),
        (["runs/x", "--seed", "1"], "--seed"),
    ],
)
def test_probe_refuses_options_without_effect(capsys, options, fact) -> None:
    code, out, err = call(capsys, "probe", *options)
    assert (code, out) == (2, "") and fact in err


def test_probe_refuses_a_run_with_other_labels(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    shutil.copytree(run, tmp_path / "run")
    config = json.loads((run / "config.json").read_text("utf-8"))
    config["head"]["task"] = "regression"
    (tmp_path / "run" / "config.json").write_text(json.dumps(config), "utf-8")
    code, out, err = call(capsys, "probe", tmp_path / "run")
    assert (code, out) == (2, "") and "regression" in err and "--task language" in err


def test_probe_refuses_what_train_refuses(
    tiny_checkpoint: Path, table: Path, capsys: pytest.CaptureFixture
) -> None:
    code, out, err = call(capsys, "probe", "--model", tiny_checkpoint, "--data", table)
    assert (code, out) == (3, "") and "column" in err


@pytest.mark.parametrize(("pooling", "end"), [([], "\n"), (["--pooling", "last_token"], "")])
def test_features_are_the_states_that_a_head_would_read(
    tiny_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    pooling: list[str],
    end: str,
) -> None:
    texts, out = ["the cat", "win", "the house at ten"], tmp_path / "states.npy"
    (tmp_path / "texts.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    options = ["--file", tmp_path / "texts.txt", "--model", tiny_checkpoint, "--out", out, *pooling]
    assert call(capsys, "features", *options, "--layer", 1, "--state", "raw")[:2] == (0, f"{out}\n")
    model, tokenizer = load_gpt2(tiny_checkpoint), Tokenizer(tiny_checkpoint)
    for row, text in zip(np.load(out), texts, strict=True):
        ids = torch.tensor([[*tokenizer.encode(text), *tokenizer.encode(end)]])
        with torch.no_grad():
            state = model.blocks[0](model.embed(ids))[0, -1]
        np.testing.assert_allclose(row, state, atol=1e-4)


@pytest.mark.slow
def test_a_learning_rate_is_suggested_and_drawn(
    tiny_checkpoint: Path,
    table: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    picture = tmp_path / "rates.png"
    columns = ["--text-column", "body", "--label-column", "kind"]
    options = ["--data", table, *columns, "--model", tiny_checkpoint, "--steps", 20]
    code, out, _ = call(capsys, "find-rate", *options, "--out", picture)
    assert code == 0 and 0 < float(out) < 1
    assert picture.read_bytes().startswith(b"\x89PNG")
    monkeypatch.chdir(tmp_path)  # where rates.png is now
    assert call(capsys, "find-rate", *options)[:2] == (0, out)
    assert (tmp_path / "rates-2.png").read_bytes() == picture.read_bytes()


@pytest.mark.parametrize("there", ["a file", "a folder", "a link to nothing"])
@pytest.mark.parametrize(
    "command",
    [["find-rate"], ["probe", "--data", "hard"], ["features", "--file", "x.txt"]],
    ids=lambda command: command[0],
)
def test_a_file_that_exists_is_never_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture, command: list[str], there: str
) -> None:
    out = tmp_path / "thesis.png"
    if there == "a file":
        out.write_text("mine")
    elif there == "a folder":
        out.mkdir()
    else:
        out.symlink_to("nowhere")
    with pytest.raises(SystemExit) as exit:
        call(capsys, *command, "--out", out)
    assert exit.value.code == 2 and "exists already" in capsys.readouterr().err
    assert [*tmp_path.iterdir()] == [out] and (there != "a file" or out.read_text() == "mine")


@pytest.mark.slow
def test_runs_without_a_name_are_numbered(
    tiny_checkpoint: Path, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--model", str(tiny_checkpoint), "--data", str(table), *SETTINGS]
    for _ in range(2):
        columns = ["--text-column", "body", "--label-column", "kind"]
        assert cli.main(["train", *options, *columns]) == 0
    first = f"{tiny_checkpoint.name}-kinds-123"
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == [first, f"{first}-2"]


def test_pretraining_starts_from_a_model_and_leaves_test_sets_out(
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """The sizes are those of the model; the texts of a table and of a .conll file are left out."""
    monkeypatch.setattr(torch, "compile", lambda function, **settings: function)
    corpus, out = tmp_path / "corpus", tmp_path / "out"
    corpus.mkdir()
    lines = [f"the cat saw the dog on day {n} and again" for n in range(600)]
    (corpus / "a.txt").write_text("\n\n".join([*lines, "a test text that nobody may read"]))
    (corpus / "b.txt").write_text("Words with one tag each , from a test set\n\nand another line")
    (tmp_path / "test.csv").write_text("text,label\nA test text that nobody may read,ham\n")
    words = "Words with one tag each , from a test set".split()
    (tmp_path / "test.conll").write_text("".join(f"{word}\tO\n" for word in words))
    settings = ["--steps", 1, "--tokens", 64, "--row", 16, "--device", "cpu"]
    code, _, err = call(
        capsys,
        *("pretrain", "--corpus", corpus, "--out", out, "--from", tiny_checkpoint, *settings),
        *("--exclude", tmp_path / "test.csv", tmp_path / "test.conll"),
    )
    assert code == 0 and "1 of a.txt, 1 of b.txt" in err
    assert load_gpt2(out).config == load_gpt2(tiny_checkpoint).config
    code, _, err = call(
        capsys,
        *("pretrain", "--corpus", corpus, "--out", tmp_path / "other", "--from", tiny_checkpoint),
        *("--n-layer", 1, *settings),
    )
    assert code == 2 and "n_layer=2" in err and "n_layer=1" in err


@pytest.mark.slow
def test_train_compares_every_task_with_a_baseline(
    tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture
) -> None:
    path, words = tmp_path / "m.csv", ["good", "bad", "fair"]
    rows = [f"a {words[n % 3]} day {n},{n % 3}" for n in range(60)]
    path.write_text("text,label\n" + "\n".join(rows) + "\n")
    out = tmp_path / "run"
    options = ["--task", "regression", "--out", out, *SETTINGS]
    code, printed, _ = call(capsys, "train", "--model", tiny_checkpoint, "--data", path, *options)
    ours = json.loads((out / "evaluation.json").read_text())["mean_r2"]
    last = " ".join(printed.split("\n\n")[-1].split())
    assert code == 0 and RIDGE in last.lower()
    theirs, mine = map(float, re.findall(r"-?\d\.\d+", last))
    assert theirs > 0.9 and mine == pytest.approx(ours, abs=6e-4)
    page = (out / "report.html").read_text() + (out / "model_card.md").read_text()
    assert page.count(MEAN) == 2 and page.count(RIDGE) >= 2


@pytest.mark.slow
def test_the_demo_ends_with_what_a_newcomer_wants_to_know(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Train on the SMS collection, for a quarter of a minute."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    code, out, _ = call(capsys, "demo")
    run = Path("runs") / "demo-2"
    found = json.loads((run / "evaluation.json").read_text())
    classes = {scores["label"]: scores for scores in found["classes"]}
    (_, ham_as_spam), (_, spam) = found["confusion"]
    expected = [
        f"accuracy {100 * found['accuracy']:.2f}%  ({found['correct']} of {found['total']}; 95% ",
        f"{spam} of {classes['spam']['support']} spam messages; "
        f"marked {ham_as_spam} of {classes['ham']['support']} good messages",
        "selected to receive $1000 cash or a $2000 award",
        "still on for dinner tonight?",
        f"{run / 'report.html'}",
        "one seed",
        "TF-IDF of characters, 2 to 5",
    ]
    assert code == 0 and found["accuracy"] > 0.9
    read = out.replace("\n", " ")  # a line may end within a fact
    places = [read.find(fact) for fact in expected]
    assert -1 not in places and places == sorted(places), out
    assert len(out.splitlines()) <= 10
