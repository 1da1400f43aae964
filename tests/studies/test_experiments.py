"""Tables of experiments: rows as data, the runs, what is resumed, and what comes out."""

import json
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from gpt2_from_scratch import TrainConfig, load_messages, split_messages, train_classifier
from gpt2_from_scratch.classifier.settings import HeadSettings
from gpt2_from_scratch.classifier.train import to_labelled
from gpt2_from_scratch.cli.main import main
from gpt2_from_scratch.data.messages import write_messages
from gpt2_from_scratch.errors import CheckpointError, GPT2Error, UsageError
from gpt2_from_scratch.gpt2.config import GPT2Config
from gpt2_from_scratch.studies.ablations import NOT_RUN, Row, ablations, chosen
from gpt2_from_scratch.studies.experiment_table import (
    Agreement,
    agreement,
    format_notes,
    format_table,
    summarize,
)
from gpt2_from_scratch.studies.experiments import (
    Plan,
    Result,
    _prepared,
    _right,
    read_results,
    run_experiments,
    run_one,
    split_for,
)

SIZES = GPT2Config(4096, 384, 256, 4, 6)
CONFIG = TrainConfig(epochs=2, batch_size=8)
EVERY = ablations(SIZES, replace(CONFIG, epochs=5))
ROW = {row.name: row for row in EVERY}


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """A hundred of the demo messages, 60 ham and 40 spam, on the miniature."""
    messages = load_messages("demo")
    some = [
        [m for m in messages if m.label == label][:n] for label, n in (("ham", 60), ("spam", 40))
    ]
    path = tmp_path_factory.mktemp("data") / "some.csv"
    write_messages(path, [*some[0], *some[1]])
    return Plan("mini", str(path), (1, 2), CONFIG, HeadSettings())


@pytest.fixture(scope="module")
def done(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Result]]:
    out = tmp_path_factory.mktemp("experiments")
    rows = [ROW["default"], ROW["head alone"]]
    return out, run_experiments(plan, rows, out, jobs=1)


# --- rows ---


def test_every_row_of_the_book_is_there_once_or_said_not_to_be_run():
    rows = [row.book.row for row in EVERY if row.book]
    assert sorted([*rows, *NOT_RUN]) == list(range(1, 20))


def test_every_row_is_one_change_from_the_default():
    assert len({row.name for row in EVERY}) == len(EVERY) >= 16
    base = TrainConfig(epochs=5), HeadSettings()
    seen = {}
    for row in EVERY:
        changed = (row.changed(*base), row.random_weights, row.all_messages, row.extra)
        assert repr(changed) not in seen, f"{row.name} is {seen.get(repr(changed))}"
        seen[repr(changed)] = row.name
    assert EVERY[0].changed(*base) == base


def test_rows_a_small_model_cannot_have_are_left_out():
    names = [row.name for row in ablations(GPT2Config(300, 32, 32, 2, 2), CONFIG)]
    assert "last two blocks" in names and "last four blocks" not in names
    assert not [name for name in names if name.startswith("three blocks")]


def test_rows_are_chosen_by_name_or_kind():
    found = [row.name for row in chosen(EVERY, ["LoRA", "first token"])]
    assert found[:2] == ["default", "first token"] and len(found) == 6
    assert chosen(EVERY, []) == EVERY
    with pytest.raises(
        UsageError, match="no row or kind of rows is called 'lora'; there are token"
    ):
        chosen(EVERY, ["lora"])


# --- runs ---


def test_the_default_row_is_what_train_does(plan: Plan, done, tmp_path: Path):
    _, results = done
    _, _, scores = train_classifier(
        plan.model, plan.data, tmp_path / "run", replace(CONFIG, seed=1), balance=True
    )
    assert (results[0].row, results[0].seed) == ("default", 1)
    assert results[0].right.count("1") == scores.correct and len(results[0].right) == scores.total
    assert results[0].trained == 790_786 and results[2].trained == 514  # README's ledger; 2 x 257


def test_what_is_done_is_not_done_again(plan: Plan, done, tmp_path: Path, monkeypatch):
    out, results = done
    again = tmp_path / "again"
    again.mkdir()
    (again / "experiments.json").write_bytes((out / "experiments.json").read_bytes())
    lines = (out / "results.jsonl").read_text().splitlines(keepends=True)
    (again / "results.jsonl").write_text("".join(lines[:3]) + lines[3][:40])  # killed in a line
    ran = []
    monkeypatch.setattr(
        "gpt2_from_scratch.studies.experiments.run_one",
        lambda plan, row, seed: ran.append((row.name, seed)) or run_one(plan, row, seed),
    )
    rows = [ROW["default"], ROW["head alone"]]
    found = run_experiments(plan, rows, again, jobs=1)
    assert ran == [(json.loads(lines[3])["row"], json.loads(lines[3])["seed"])]
    assert [(r.row, r.seed, r.right) for r in found] == [(r.row, r.seed, r.right) for r in results]
    assert read_results(again).keys() == read_results(out).keys()


def test_other_settings_are_refused_and_more_seeds_are_not(plan: Plan, done):
    out, _ = done
    other = replace(plan, config=replace(CONFIG, lr=1e-3))
    with pytest.raises(UsageError, match="other settings"):
        run_experiments(other, [ROW["default"]], out, jobs=1)
    found = run_experiments(replace(plan, seeds=(1,)), [ROW["default"]], out, jobs=1)
    assert [r.seed for r in found] == [1]


def test_other_messages_are_refused(plan: Plan, done, tmp_path: Path):
    out, _ = done
    other = tmp_path / Path(plan.data).name
    other.write_text(Path(plan.data).read_text().replace("ham", "SPAM").replace("spam", "ham"))
    (tmp_path / "out").mkdir()
    saved = json.loads((out / "experiments.json").read_text())
    (tmp_path / "out" / "experiments.json").write_text(json.dumps(saved | {"data": str(other)}))
    with pytest.raises(UsageError, match="messages_sha256"):
        run_experiments(replace(plan, data=str(other)), [ROW["default"]], tmp_path / "out", jobs=1)


def test_an_experiment_that_fails_leaves_its_row_out(plan: Plan, tmp_path: Path):
    """There are no other messages where nothing is left out to balance."""
    plan, said = replace(plan, balance=False, seeds=(1,)), list[str]()
    rows = [ROW["default"], ROW["all other messages"]]
    found = run_experiments(plan, rows, tmp_path, jobs=1)
    assert [r.row for r in found] == ["default"] and len(read_results(tmp_path)) == 1
    assert "all other messages, seed 1: left out: there are no other messages" in "\n".join(said)
    diverging = Row("default", "", {"lr": 1e30})
    with pytest.raises(GPT2Error, match="the default row failed"):
        run_experiments(plan, [diverging], tmp_path / "other", jobs=1)


def test_near_twins_stay_together(plan: Plan):
    together = replace(plan, together="near-duplicates")
    expected = split_messages(
        load_messages(plan.data), balance=True, seed=1, keep_together="near-duplicates"
    )
    assert split_for(together, ROW["default"], 1) == expected


def test_every_token_of_a_text_has_its_label(plan: Plan):
    """Read at the last token, as the default is; pads and nothing else are left out of the loss."""
    classifier, split = _prepared(
        "mini",
        split_for(plan, ROW["default"], 1),
        CONFIG,
        HeadSettings(),
        ROW["loss at every token, pads ignored"],
        plan,
    )
    labelled = to_labelled(classifier, split.val)
    for n, message in enumerate(split_for(plan, ROW["default"], 1).val):
        target = labelled.targets["label"].batch([n])[0]
        k = classifier.description.labels.index(message.label)
        assert set(target.tolist()) <= {k, -100} and target[-1] == k
        assert (target == k).float().mean() > 0.9  # but for tokens of white space
    right = _right(classifier, split.val)
    for n, (message, is_right) in enumerate(zip(split.val, right, strict=True)):
        ids = torch.tensor([labelled.texts.encoded[n]])
        with torch.no_grad():
            states = classifier.model.hidden(ids)[0, -1]
            best = int(classifier.model.head(states).argmax())
        assert is_right == (classifier.description.labels[best] == message.label[0].label)


def test_results_that_are_none_are_refused(tmp_path: Path):
    (tmp_path / "results.jsonl").write_text('{"row": 1}\n{}\n')
    with pytest.raises(CheckpointError, match="line 1 is no result"):
        read_results(tmp_path)
    assert read_results(tmp_path / "nowhere") == {}


def test_processes_side_by_side_give_the_same(plan: Plan, done, tmp_path: Path):
    _, results = done
    found = run_experiments(plan, [ROW["default"]], tmp_path, jobs=2)
    assert [r.right for r in found] == [r.right for r in results[:2]]


@pytest.mark.parametrize(
    "name",
    [
        "batch of 8, one at a time",
        "loss at every token, pads ignored",
        "and guesses the next token, pads ignored",
        "random weights, last block",
        "all other messages, class weights",
        "no causal mask",
        "mean over positions, padded to the longest",
        "last position, padded to 384 tokens",
        "LoRA 4, last block",
        "three blocks, one more every epoch",
    ],
)
def test_every_kind_of_row_runs(plan: Plan, done, name: str):
    _, results = done
    epochs = 4 if "every epoch" in name else 1
    plan = replace(plan, config=replace(CONFIG, epochs=epochs, lr=2e-3))
    found = run_one(plan, ROW[name], 1)
    assert len(found.right) == len(results[0].right) == 16 and set(found.right) <= {"0", "1"}
    assert found.n_train == (76 if "all other" in name else 56) and found.epochs == epochs


def test_one_at_a_time_is_the_same_batch(plan: Plan):
    """Gradients are added up: the book's accumulation, which no padding disturbs."""
    whole = run_one(plan, Row("batch of 8", "", {"batch_size": 8}), 2)
    assert run_one(plan, ROW["batch of 8, one at a time"], 2).right == whole.right


def test_all_other_messages(plan: Plan):
    balanced, every = (split_for(plan, ROW[name], 1) for name in ("default", "all other messages"))
    assert balanced == split_messages(load_messages(plan.data), balance=True, seed=1)
    assert every.val == balanced.val and every.test == balanced.test
    kept = {m.text for m in (*every.val, *every.test)}
    assert {m.text for m in every.train} == {m.text for m in load_messages(plan.data)} - kept


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seeds": (1, 1)}, "different numbers"),
        ({"seeds": ()}, "different numbers"),
        ({"settings": HeadSettings(task="regression")}, "for classification"),
        ({"settings": HeadSettings(pooling="mean")}, "pooling = 'mean': rows vary it"),
        ({"config": replace(CONFIG, n_last_blocks=2)}, "n_last_blocks = 2: rows vary it"),
        (
            {"config": replace(CONFIG, epochs=1)},
            "'three blocks, one more every epoch' does not fit",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_runs(plan, tmp_path, changes, said):
    with pytest.raises(UsageError, match=said):
        run_experiments(replace(plan, **changes), EVERY, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- the table ---


def made_up(name: str, rights: list[str]) -> list[Result]:
    return [
        Result(name, seed, right.count("1") / len(right), 0.9, right, 70, 5, 10, 1.5, 1.0)
        for seed, right in enumerate(rights)
    ]


ROWS = [ROW["default"], ROW["first token"], ROW["last two blocks"]]
RESULTS = [
    *made_up("default", ["1111111110", "1111111100", "1111111110"]),
    *made_up("first token", ["1110000000", "1100000000", "1000000000"]),
    *made_up("last two blocks", ["1111111110", "1111111111", "1111111110"]),
]


def test_rows_against_the_default():
    default, first, two = summarize(ROWS, RESULTS)
    assert default.mean == pytest.approx(26 / 30) and default.difference == 0
    assert default.spread == pytest.approx(statistics.stdev([0.9, 0.8, 0.9]))
    differences = np.array([0.3, 0.2, 0.1]) - np.array([0.9, 0.8, 0.9])
    t = differences.mean() / np.sqrt((1 / 3 + 10 / 70) * max(0.1, differences.std(ddof=1)) ** 2)
    assert first.p == pytest.approx(2 * stats.t.sf(abs(t), 2))
    assert (default.p, two.difference) == (1.0, pytest.approx(2 / 30))
    assert first.p_adjusted == pytest.approx(min(1, 2 * first.p)) and two.p_adjusted == two.p
    assert first.interval[0] == 0.0 and first.seconds == 4.5


def test_one_seed_is_compared_text_by_text():
    one = [r for r in RESULTS if r.seed == 0]
    _, first, _ = summarize(ROWS, one)
    assert first.p == pytest.approx(stats.binomtest(0, 6).pvalue)  # six texts only one had right
    assert first.spread == 0.0


def test_the_order_of_rows_against_the_books():
    summaries = summarize(ROWS, RESULTS)
    found = agreement(summaries, RESULTS)
    expected = stats.kendalltau([s.mean for s in summaries], [98.33, 75.00, 98.33])
    assert found == Agreement(
        3, pytest.approx(expected.statistic), pytest.approx(expected.pvalue), []
    )
    assert agreement(summaries[:2], RESULTS) is None
    same = [ROW["default"], ROW["last two blocks"], ROW["batch of 8, one at a time"]]
    others = [*RESULTS[:3], *RESULTS[6:], *made_up("batch of 8, one at a time", ["1" * 10] * 3)]
    assert agreement(summarize(same, others), others) is None  # the book has 98.33 for all three
    contrary = [
        *made_up("default", ["1" * 10] * 5),
        *made_up("first token", ["1" * 10] * 5),
        *made_up("everything", ["0" * 9 + "1"] * 5),
    ]
    rows = [ROW["default"], ROW["first token"], ROW["everything"]]
    told = agreement(summarize(rows, contrary), contrary)
    assert told is not None and told.contrary == [("everything", "first token")]


def test_the_table_and_its_notes():
    summaries = summarize(ROWS, RESULTS)
    lines = format_table(summaries).splitlines()
    assert len(lines) == 5 and len({line.count("|") for line in lines}) == 1
    assert lines[2].startswith("| default | 86.67 | 5.77 |") and "98.33 (row 16)" in lines[2]
    assert (
        lines[3].startswith("| first token | 20.00 | 10.00 | 0.0 to ") and "| -66.67 |" in lines[3]
    )
    notes = format_notes(summaries, agreement(summaries, RESULTS), 10)
    assert "3 seeds" in notes and "row 8 is not run here: 1558M" in notes
    assert "1 of 2 rows differ from the default beyond chance: first token (-66.7" in notes


def test_the_books_interval_is_wilsons():
    found = stats.binomtest(285, 300).proportion_ci(method="wilson")
    assert "from 91.9 to 96.9" in format_notes(summarize(ROWS, RESULTS), None, 10)
    assert (round(100 * found.low, 1), round(100 * found.high, 1)) == (91.9, 96.9)


def test_the_command(plan: Plan, done, capsys, monkeypatch):
    out, _ = done
    given = ["experiments", "--data", plan.data, "--balance", "--epochs", "2", "--batch-size", "8"]
    given += ["--seeds", "1", "2", "--rows", "head alone", "--out", str(out), "--jobs", "1"]
    assert main(given) == 0
    told = capsys.readouterr()
    assert told.out.startswith("| change | test accuracy") and "| head alone |" in told.out
    assert (out / "experiments.md").read_text() == told.out
    assert len(json.loads((out / "table.json").read_text())["rows"]) == 2
    assert (out / "experiments.png").stat().st_size > 5_000
    assert main([*given[:-2], "--rows", "nothing"]) == 2
    assert "no row or kind of rows" in capsys.readouterr().err
