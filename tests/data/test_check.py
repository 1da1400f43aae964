"""The findings of `check`, compared with brute force and with what training then does."""

import json
import random
import re
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from made_messages import are_near_duplicates, components, with_near_duplicates
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

from gpt2_from_scratch.cli import main as cli
from gpt2_from_scratch.data.check import (
    Cut,
    Found,
    LabelLengths,
    Lengths,
    Values,
    check_data,
    cut,
    format_report,
    length_range,
    lengths_by_label,
    remarks,
)
from gpt2_from_scratch.data.messages import DataConfig, Message, load_messages, write_messages
from gpt2_from_scratch.data.near_duplicates import masked
from gpt2_from_scratch.data.split import load_split, split_messages
from gpt2_from_scratch.errors import CheckpointError, DataError, UsageError
from gpt2_from_scratch.gpt2.tokenizer import Tokenizer
from gpt2_from_scratch.storage.paths import embedded

CASES = Path(__file__).parents[1] / "fixtures" / "cases"


def drawn(seed: int, count: int = 300) -> list[Message]:
    """Texts of few words, so that many are equal, nearly equal, or have two labels."""
    draw = random.Random(seed)
    words = ["Call", "call", "1", "2", "!", "now", "é", "=", "-", "\x07", "\ufffd", "@x", "😀"]
    texts = [" ".join(draw.choices(words, k=draw.randrange(1, 5))) for _ in range(count)]
    return [Message(text, draw.choice(["ham", "spam"])) for text in texts]


def row_of(shown: str, name: str) -> str:
    """The cells to the right of a name in a table of the report."""
    (line,) = [line for line in shown.splitlines() if line.strip().startswith(name + "  ")]
    return line.split(name, 1)[1].strip()


def written(path: Path, messages: list[Message]) -> Path:
    write_messages(path, messages)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_counts_by_brute_force(tmp_path: Path, seed: int) -> None:
    messages = drawn(seed)
    report = check_data(written(tmp_path / "m.csv", messages))
    texts = [m.text for m in messages]
    count = Counter(texts)
    assert report.rows == 300 and report.faults == {} and report.stopped is None
    assert {k: v.rows for k, v in report.labels.items()} == Counter(m.label for m in messages)
    assert sum(v.share for v in report.labels.values()) == pytest.approx(1)
    assert report.duplicates.rows == sum(count[text] > 1 for text in texts)
    assert report.duplicates.groups == sum(n > 1 for n in count.values())
    distinct = list(count)
    groups = [{distinct[n] for n in group} for group in components(distinct) if len(group) > 1]
    assert report.near_duplicates.groups == len(groups) > 0
    assert report.near_duplicates.rows == sum(count[t] for group in groups for t in group) < 300
    both = {a.text for a in messages for b in messages if a.text == b.text and a.label != b.label}
    assert report.contradictions.groups == len(both)
    assert report.contradictions.rows == sum(text in both for text in texts)

    labels_of = {a: {m.label for m in messages if masked(m.text) == a} for a in map(masked, texts)}
    mixed = [
        a for a in labels_of if len(labels_of[a]) > 1 and sum(masked(t) == a for t in count) > 1
    ]
    assert report.near_contradictions.groups == len(mixed) > 0
    assert report.near_contradictions.rows == sum(masked(text) in mixed for text in texts)

    def lines(wanted) -> Found:
        found = [n + 2 for n, text in enumerate(texts) if wanted(text)]
        return Found(len(found), found[:5])

    assert report.formulas == lines(lambda text: text[0] in "=-@")
    assert report.controls == lines(lambda text: "\x07" in text)
    assert report.replacements == lines(lambda text: "\ufffd" in text)
    for example in report.duplicates.examples:
        assert example.lines == [n + 2 for n, text in enumerate(texts) if text == example.text][:5]
    json.dumps(asdict(report), allow_nan=False)


@pytest.mark.slow
def test_lengths(tmp_path: Path) -> None:
    texts = ["a", "the cat " * 400, "win", "you 😀"] + [f"text {n}" for n in range(36)]
    path = written(tmp_path / "m.csv", [Message(t, "ab"[n % 2]) for n, t in enumerate(texts)])
    report = check_data(path)
    lengths = [len(Tokenizer(embedded("weights/mini")).encode(text)) for text in texts]
    tokens = report.tokens
    assert (tokens.shortest, tokens.longest) == (min(lengths), max(lengths))
    assert tokens.median == np.median(lengths)
    assert report.characters.median == np.median([len(text) for text in texts])
    assert report.n_ctx == 384 and report.over_n_ctx == Found(1, [3])


@pytest.mark.slow
def test_the_tokens_of_another_model(tmp_path: Path, tiny_checkpoint: Path) -> None:
    report = check_data(model=tiny_checkpoint)
    assert report.n_ctx == 32 and report.over_n_ctx.rows > 100
    with pytest.raises(CheckpointError):
        check_data(model="nowhere")


def test_leaks_of_a_plain_split(tmp_path: Path) -> None:
    messages = [Message(f"text {n % 60} of many", "ab"[n % 2]) for n in range(200)]
    messages += [Message(f"Text number {n}!", "ab"[n % 2]) for n in range(50)]
    leak = check_data(written(tmp_path / "m.csv", messages)).leak
    order = np.random.RandomState(123).permutation(250)
    train, test = order[:175], order[200:]
    expected = sum(any(messages[n].text == messages[k].text for k in train) for n in test)
    assert (leak.plain_test, leak.plain_seen) == (50, expected) and expected > 20
    split = split_messages(messages)
    near = [any(are_near_duplicates(a.text, b.text) for b in split.train) for a in split.test]
    assert (leak.our_test, leak.our_seen, leak.our_near) == (len(split.test), 0, sum(near))
    plain_near = sum(
        any(are_near_duplicates(messages[n].text, messages[k].text) for k in train) for n in test
    )
    assert leak.plain_near == plain_near > expected and sum(near) > 5
    # the texts form only two groups
    assert leak.together_test is None and leak.together_near is None
    shown = format_report(check_data(tmp_path / "m.csv"))
    assert row_of(shown, "near duplicates together") == "too few groups"


@pytest.mark.slow
def test_near_duplicates(tmp_path: Path) -> None:
    messages = with_near_duplicates()
    report = check_data(written(tmp_path / "m.csv", messages))
    texts = [m.text for m in messages]
    groups = [group for group in components(texts) if len(group) > 1]
    assert report.near_duplicates.groups == len(groups)
    assert report.near_duplicates.rows == sum(map(len, groups)) > 100
    first = min(groups, key=min)
    assert report.near_duplicates.examples[0].lines == sorted(n + 2 for n in first)[:5]
    assert report.leak.our_near > 10 and report.leak.together_near == 0
    assert report.leak.our_test == 84 and abs(report.leak.together_test - 84) < 3
    shown = format_report(report)
    assert row_of(shown, "copies together").split() == ["84", "0", str(report.leak.our_near)]
    assert row_of(shown, "near duplicates together").split() == [
        str(report.leak.together_test),
        "0",
        "0",
    ]


@pytest.mark.slow
def test_the_effect_of_a_token_limit(tmp_path: Path, capsys) -> None:
    texts = ["the cat " * 400, "the cat sat on the mat"] + [f"text {n}" for n in range(38)]
    path = written(tmp_path / "m.csv", [Message(t, "ab"[n % 2]) for n, t in enumerate(texts)])
    lengths = [len(Tokenizer(embedded("weights/mini")).encode(text)) for text in texts]
    (whole,) = check_data(path).cuts
    assert whole == Cut(384, 1, lengths[0] - 384, sum(lengths))
    cuts = check_data(path, max_tokens=4).cuts
    longer = [n for n in lengths if n > 4]
    assert cuts == [whole, Cut(4, len(longer), sum(longer) - 4 * len(longer), sum(lengths))]
    assert cli.main(["check", str(path), "--max-tokens", "4"]) == 0
    out = capsys.readouterr().out
    assert f"4 tokens cuts {len(longer)} texts and removes {cuts[1].tokens:,} tokens" in out
    assert f"384 tokens cuts 1 text and removes {whole.tokens:,} tokens" in out
    for wrong in (0, 385):
        with pytest.raises(UsageError, match=f"max_tokens = {wrong} .*384"):
            check_data(path, max_tokens=wrong)


def test_remarks_come_before_the_verdict(tmp_path: Path) -> None:
    messages = [Message(f"see {n}", "ham") for n in range(80)]
    messages += [Message(f"win {n} " + "now " * 9, "spam") for n in range(20)]
    shown = format_report(check_data(written(tmp_path / "m.csv", messages))).splitlines()
    assert any("ham" in line and "80.0%" in line and "always" in line for line in shown)
    assert shown[-5] == "remarks" and shown[-1] == "ready to train"
    assert [line.split(":")[0] for line in shown[-4:-1]] == [
        "  labels are uneven",
        "  text length alone separates the labels",
        "  only 20 test texts",
    ]
    even = [Message(f"{n} of them", "ab"[n % 2]) for n in range(1200)]
    report = check_data(written(tmp_path / "even.csv", even))
    assert report.remarks == [] and "remarks" not in format_report(report).splitlines()


# --- whether training is possible ---


def by_load_and_split(path: Path, on_error: str) -> bool:
    """The correct verdict: whether the first steps of training succeed."""
    try:
        messages = load_messages(DataConfig(source=str(path), on_error=on_error))
        split_messages(messages, on_error=on_error)
    except DataError:
        return False
    return True


GOOD = "".join(f"{label},text {n} {label}\n" for n in range(12) for label in ("ham", "spam"))


@pytest.mark.parametrize(
    ("rows", "ready", "with_skip"),
    [
        (GOOD, True, True),
        (GOOD + "ham\n", False, True),
        (GOOD + "ham,\n", False, True),
        (GOOD + "ham,text 1 spam\n", False, True),
        (GOOD + "Ham,more\n", False, False),
        (GOOD + "eggs,more\n", False, False),
        (GOOD + 'ham,"open\n', False, False),
        (GOOD[: len(GOOD) // 2] + "ham\n", False, False),
        (re.sub("spam", "ham", GOOD), False, False),
        ("", False, False),
    ],
)
def test_the_verdict_agrees_with_training(tmp_path: Path, capsys, rows, ready, with_skip) -> None:
    path = tmp_path / "m.csv"
    path.write_text("label,text\n" + rows)
    report = check_data(path)
    assert (not report.obstacles) == by_load_and_split(path, "stop") == ready
    assert (not report.obstacles_with_skip) == by_load_and_split(path, "skip") == with_skip
    last = format_report(report).splitlines()[-1]
    assert (last == "ready to train") == ready
    assert ("or leave them out with --on-error skip" in last) == (with_skip and not ready)
    assert ("--on-error skip is not enough" in last) == (not with_skip)
    assert cli.main(["check", str(path)]) == (0 if ready else 3)
    out, err = capsys.readouterr()
    assert out == format_report(report) + "\n" and "Traceback" not in err
    assert ("cannot be trained on" in err) == (not ready) and err.count("\n") <= 1


def test_faults_do_not_stop_the_check(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_bytes(b"label,text\n" + b"ham\nham,caf\xe9\n" * 7 + b"ham,\n" + GOOD.encode())
    report = check_data(path)
    ragged, undecodable, empty = report.faults.values()
    assert ragged == Found(7, [2, 4, 6, 8, 10]) and undecodable == Found(7, [3, 5, 7, 9, 11])
    assert empty == Found(1, [16]) and report.faults.keys() >= {"empty texts"}
    assert report.rows == 15 + 24 and report.labels["ham"].rows == 12
    shown = format_report(report)
    assert "7 with bytes that are not UTF-8: line 3, 5, 7, 9, 11, ..." in shown


def test_an_error_is_reported_with_the_rows_before_it(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text("label,text\n" + GOOD + 'ham,"open\n')
    report = check_data(path)
    assert report.rows == 24 and "line 26" in report.stopped and "quote left open" in report.stopped
    assert report.stopped in report.obstacles
    path.write_text("label,Text\n" + GOOD)
    report = check_data(path)
    assert "Did you mean 'Text'?" in report.stopped and report.obstacles == [report.stopped]
    assert len(format_report(report).splitlines()) == 3


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none.csv is not a file"):
        check_data(tmp_path / "none.csv")
    path = written(tmp_path / "m.csv", [Message("a", "b")])
    with pytest.raises(UsageError, match="zlib"):
        check_data(DataConfig(source=str(path), encoding="zlib"))


@pytest.mark.slow
def test_the_collection(sms_file: Path) -> None:
    report = check_data(sms_file)
    assert (report.rows, report.faults, report.obstacles) == (5574, {}, [])
    assert report.duplicates.rows - report.duplicates.groups == 5574 - 5171
    assert report.leak.our_seen == 0 < report.leak.plain_seen
    assert report.leak.together_near == 0 < report.leak.our_near < report.leak.plain_near
    assert report.near_duplicates.groups == 153 and report.near_contradictions.groups == 0
    assert [remark.split(":")[0] for remark in report.remarks] == [
        "labels are uneven",
        "text length alone separates the labels",
    ]


# --- other tasks ---


def jsonl(path: Path, rows: list[tuple[str, object]]) -> Path:
    path.write_text("".join(json.dumps({"text": t, "label": x}) + "\n" for t, x in rows))
    return path


def squad(path: Path, count: int, n_contexts: int) -> Path:
    answer = [{"text": "Alex", "answer_start": 3}]
    questions = [{"id": str(n), "question": f"Who {n}?", "answers": answer} for n in range(count)]
    questions.append({"id": "x", "question": "Why?", "answers": []})
    paragraphs = [
        {"context": f"It Alex was {n % n_contexts}", "qas": [question]}
        for n, question in enumerate(questions)
    ]
    data = {"data": [{"paragraphs": paragraphs}]}
    path.write_text(json.dumps(data))
    return path


def test_the_words_of_conll(capsys) -> None:
    path = CASES / "words.conll"
    report = check_data(path, "token-classification")
    assert report.rows == 2 and report.form == "one word and its tag per line"
    assert {tag: found.rows for tag, found in report.labels.items()} == {
        "B-ORG": 1,
        "B-PER": 1,
        "O": 1,
    }
    assert sum(found.share for found in report.labels.values()) == pytest.approx(1)
    assert report.obstacles == ["2 texts are too few; 10 are needed"]
    assert cli.main(["check", str(path), "--task", "token-classification"]) == 3
    assert "always predicting" in capsys.readouterr().out
    assert cli.main(["check", str(path)]) == 3  # the error names the right task
    assert "--task" in capsys.readouterr().out


def test_the_questions_of_squad(tmp_path: Path) -> None:
    report = check_data(squad(tmp_path / "a.json", 12, 11), "span")
    assert report.rows == 13 and list(report.faults) == ["questions without an answer"]
    assert report.values == {"characters": Values(4, 4.0, 4)} and report.labels == {}
    assert report.obstacles == ["1 faulty row"] and report.obstacles_with_skip == []
    # many questions may have the same context
    assert report.near_duplicates.groups == 0 and report.leak is None
    assert "answers" in format_report(report).splitlines()
    report = check_data(squad(tmp_path / "a.json", 30, 9), "span")
    assert report.obstacles_with_skip == ["9 contexts are too few; 10 are needed"]


def test_all_correct_answers_are_checked(tmp_path: Path) -> None:
    """Their lengths are counted, and equal questions with other answers are found."""
    rows = [(f"Who?\nAlex and Kim {n}", [[5, 9], [14, 17]]) for n in range(12)]
    report = check_data(jsonl(tmp_path / "a.jsonl", [*rows, (rows[0][0], [5, 9])]), "span")
    assert report.values == {"characters": Values(3, 4.0, 4)} and report.obstacles == []
    (example,) = report.contradictions.examples
    assert example.labels == ["5 to 9", "5 to 9 or 14 to 17"]


def test_labels_and_numbers(tmp_path: Path) -> None:
    rows = [(f"text {n} {'q' * n}", ["a", "b"][: n % 3]) for n in range(20)]
    report = check_data(
        jsonl(tmp_path / "a.jsonl", [*rows, rows[1], ("text 0 ", ["b"])]), "multi-label"
    )
    assert {label: found.rows for label, found in report.labels.items()} == {"a": 14, "b": 7}
    assert report.labels["a"].share == pytest.approx(14 / 22)
    assert report.contradictions.groups == 1 and report.contradictions.rows == 2
    assert report.obstacles == []
    shown = format_report(report)
    assert "2 with different targets, which training merges" in shown
    assert "always predicting" not in shown and shown.endswith("ready to train")

    path = tmp_path / "b.csv"
    raw = "".join(f"text {n} {'q' * n},{n - 3},{n / 4}\n" for n in range(20))
    path.write_text("text,stars,price\n" + raw + "text 0 ,7,8\n")
    report = check_data(DataConfig(str(path), label_column="stars,price"), "regression")
    assert report.values == {"stars": Values(-3, 7.0, 16), "price": Values(0, 2.5, 8)}
    assert "2 with different targets, which training averages" in format_report(report)
    assert report.obstacles == [] and report.lengths_by_label == {}


@pytest.mark.parametrize("task", ["classification", "multi-label", "regression", "span"])
def test_the_verdict_agrees_with_training_for_other_tasks(tmp_path: Path, task: str) -> None:
    """For a file that fits the task, and for one that does not."""
    label = {"classification": "a", "multi-label": ["a"], "regression": 1.5, "span": [0, 2]}[task]
    other = "b" if task == "classification" else label
    good = [(f"text {n}", other if n % 2 else label) for n in range(20)]
    for rows, ready in ((good, True), (good[:9], False), ([*good, ("t", None)], False)):
        path = jsonl(tmp_path / "a.jsonl", rows)
        try:
            load_split(path, task)
            trains = True
        except DataError:
            trains = False
        assert trains == ready == (not check_data(path, task).obstacles)


def test_rare_labels_are_no_obstacle_with_an_option_for_them(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text("label,text\n" + GOOD + "eggs,more\n")
    assert "--rare-labels" in check_data(path).obstacles[0]
    for rare in ("drop", "keep", "join:ham"):
        assert check_data(DataConfig(str(path), rare_labels=rare)).obstacles == []


@pytest.mark.parametrize("task", ["ner", "language", "features"])
def test_tasks_that_cannot_be_checked(task: str) -> None:
    with pytest.raises(UsageError, match="token-classification, token-regression, span"):
        check_data("hard", task)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("semicolon.csv", "separated by semicolon, with a header"),
        ("noheader.tsv", "separated by tab, without a header"),
        ("pandas_quotes.tsv", "separated by tab, with a header; quotes as in csv"),
        (
            "SMSSpamCollection",
            "quotes are ordinary characters; text in column 2, label in column 1",
        ),
    ],
)
def test_the_detected_format_is_reported(capsys, name: str, words: str) -> None:
    assert cli.main(["check", str(CASES / name)]) == 0
    out, err = capsys.readouterr()
    assert words in out.splitlines()[1] and err == ""


def test_the_label_separator_is_reported() -> None:
    assert check_data(CASES / "multi_comma.csv", "multi-label").form.endswith("by commas")


@pytest.mark.parametrize("task", ["span", "token-classification"])
def test_a_table_is_described_as_a_table_for_every_task(task: str) -> None:
    report = check_data(CASES / "multi_comma.csv", task)
    assert report.form.startswith("2 columns separated by comma") and task in report.stopped


# --- the command ---


def test_the_command_prints_json_first_and_then_fails(tmp_path: Path, capsys) -> None:
    path = tmp_path / "m.csv"
    path.write_text("kind,body\n" + GOOD + "spam\n")
    options = ["--text-column", "body", "--label-column", "kind", "--json"]
    assert cli.main(["check", str(path), *options]) == 3
    out, err = capsys.readouterr()
    found = json.loads(out)
    config = DataConfig(source=str(path), text_column="body", label_column="kind")
    assert found == asdict(check_data(config))
    assert found["obstacles"] == ["1 faulty row"] and found["obstacles_with_skip"] == []
    assert err == f"gpt2-classifier: {path} cannot be trained on: 1 faulty row\n"


def test_control_characters_are_escaped_in_the_report(tmp_path: Path) -> None:
    messages = [Message("\x1b[31m evil", "ham\x07")] * 2 + [Message("\x1b[31m evil", "spam")]
    shown = format_report(check_data(written(tmp_path / "m.csv", messages)))
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", shown)


# --- lengths and remarks ---


@pytest.mark.parametrize("seed", range(5))
def test_longer_is_the_area_under_the_curve(seed):
    draw = random.Random(seed)
    labels = draw.choices(["a", "b", "c"], [5, 3, 1], k=120)
    lengths = [
        draw.randrange(1, 12) + 2 * (label == "c") for label in labels
    ]  # many lengths are equal
    found = lengths_by_label(lengths, labels)
    assert list(found) == sorted(set(labels))
    for label, of in found.items():
        own = [n for n, other in zip(lengths, labels, strict=True) if other == label]
        others = [n for n, other in zip(lengths, labels, strict=True) if other != label]
        is_own = [other == label for other in labels]
        assert of.longer == pytest.approx(roc_auc_score(is_own, lengths))
        wins = sum((a > b) + (a == b) / 2 for a in own for b in others)
        assert of.longer == pytest.approx(wins / (len(own) * len(others)))
        assert of.median == np.median(own)


def test_lengths_by_hand():
    assert lengths_by_label([3, 3, 5], ["a", "b", "b"]) == {
        "a": LabelLengths(3.0, 0.25),
        "b": LabelLengths(4.0, 0.75),
    }
    assert lengths_by_label([3, 4], ["a", "a"]) == {"a": LabelLengths(3.5, None)}
    assert lengths_by_label([], []) == {} and length_range([]) is None
    assert length_range([5, 1, 2]) == Lengths(1, 2.0, 5)
    assert cut([3, 10, 12], 10) == Cut(10, 1, 2, 25) and cut([], 4) == Cut(4, 0, 0, 0)


@pytest.mark.parametrize(("ham", "reported"), [(100, False), (300, False), (301, True)])
def test_uneven_labels(ham, reported):
    found = remarks({"eggs": 150, "ham": ham, "spam": 100}, {}, None)
    assert len(found) == reported
    if reported:
        assert "3.0 ham per spam" in found[0]
        assert "--balance" in found[0] and "--class-weights balanced" in found[0]


@pytest.mark.parametrize(
    ("ham", "spam", "expected"),
    [
        (0.21, 0.79, ""),
        (0.15, 0.85, "spam is longer .* 85%"),
        (0.05, None, "ham is shorter .* 95%"),
    ],
)
def test_telling_lengths(ham, spam, expected):
    lengths = {"ham": LabelLengths(3.0, ham), "spam": LabelLengths(4.0, spam)}
    (found,) = remarks({"ham": 1, "spam": 1}, lengths, None) or [""]
    assert re.search(expected, found) if expected else found == ""


@pytest.mark.parametrize("n", [1, 20, 120, 200, 2000])
def test_a_small_test_set(n):
    interval = binomtest(round(0.95 * n), n).proportion_ci(method="wilson")
    half = (interval.high - interval.low) / 2
    found = remarks({"a": 1, "b": 1}, {}, n)
    assert len(found) == (half > 0.03)
    for remark in found:
        assert f"{n} test texts" in remark and f"minus {100 * half:.0f} points" in remark
    assert (n == 2000) == (found == []) and ("minus 4 points" in str(found)) == (n == 120)


def test_no_warning_without_a_test_set():
    assert remarks({"a": 1, "b": 1}, {"a": LabelLengths(3.0, None)}, None) == []


# --- many labels, long ones ---


@pytest.mark.slow
def test_a_report_on_many_labels_is_short(tmp_path):
    """The text lists the ten most frequent of 20,000 labels; the object and --json have all."""
    rows = [Message(f"word{n} of {n * 7919}", f"label{n}") for n in range(20_000)]
    rows += [Message(f"another {n}", "label77") for n in range(5)]
    write_messages(tmp_path / "m.csv", rows)
    report = check_data(tmp_path / "m.csv")
    shown = format_report(report)
    assert len(report.labels) == 20_000 and len(shown) < 5_000
    assert "label77 " in shown and "and 19,990 more" in shown
    assert sum(line.startswith("  tokens of ") for line in shown.splitlines()) == 10


def test_long_labels_are_cut_in_a_report(tmp_path):
    odd = [f"{'x' * 50_000}{n % 2}" for n in range(20)]
    alike = ["A" * 50_000, "a" * 50_000]
    write_messages(tmp_path / "m.csv", [Message(f"t {n}", x) for n, x in enumerate(odd + alike)])
    report = check_data(tmp_path / "m.csv")
    assert len(report.labels) == 4 and len(format_report(report)) < 5_000


def test_twenty_labels_are_all_shown(tmp_path):
    for number, lines in ((20, 20), (21, 11)):
        rows = [Message(f"t {n} {k}", f"label{n}") for n in range(number) for k in range(n + 1)]
        write_messages(tmp_path / "m.csv", rows)
        shown = format_report(check_data(tmp_path / "m.csv")).split("labels\n")[1]
        assert re.search(r"\n  always", shown).start() == len(
            "\n".join(shown.splitlines()[: lines + 1])
        )
        assert ("and 11 more" in shown) == (number == 21)
        assert "label20 " in shown or number == 20  # the most frequent label is listed


@pytest.mark.parametrize("header", ["column,", "x" * 50])
def test_columns_that_are_listed_are_cut(tmp_path, header):
    (tmp_path / "m.csv").write_text(header * 20_000 + "\n1\n")
    with pytest.raises(DataError) as error:
        load_messages(tmp_path / "m.csv")
    assert len(str(error.value)) < 1_000
