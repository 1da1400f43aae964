"""The model card of a classifier: what stands beside it in Markdown wherever it goes.

Its head is YAML as the Hugging Face hub reads it. Licence and language are left to who publishes
it: neither is known here. Source: Mitchell et al. 2019, Model Cards for Model Reporting.
"""

import re
from collections.abc import Sequence

from gpt2_from_scratch.evaluation.metrics import Evaluation
from gpt2_from_scratch.evaluation.significance import format_p
from gpt2_from_scratch.reports.findings import (
    P_TOLD,
    RunFacts,
    against_baselines,
    between,
    file_name,
    how_good,
    percent,
    python_lines,
    run_warnings,
    shell_commands,
    split_rule,
    trained_on,
)
from gpt2_from_scratch.reports.render import escape

HUB = {  # names of the base models there
    "124M": "openai-community/gpt2",
    "355M": "openai-community/gpt2-medium",
    "774M": "openai-community/gpt2-large",
    "1558M": "openai-community/gpt2-xl",
}
TASKS = {  # as the hub calls them, and its metrics
    "classification": ("text-classification", "accuracy"),
    "multi-label": ("text-classification", "f1"),
    "regression": ("text-regression", "r_squared"),
    "token-classification": ("token-classification", "f1"),
    "span": ("question-answering", "f1"),
}


def model_card(facts: RunFacts) -> str:
    """The card as Markdown with a YAML head; texts from data come out as text."""
    parts = [
        _head(facts),
        f"# GPT-2 {escape(file_name(facts.model))} on {escape(file_name(facts.data))}",
        escape(trained_on(facts)),
        _section("What it was trained on", [_counts(facts), escape(split_rule(facts))]),
        _section("How good it is", _how_good(facts)),
        _section("Calibration", _calibration(facts)),
        _section("What it is for", _uses(facts)),
        _section("Limits", ["\n".join(f"- {escape(line)}" for line in run_warnings(facts))]),
        _section(
            "How to load it",
            [fenced("sh", shell_commands(facts)), fenced("python", python_lines(facts))],
        ),
        _section("Versions", [_versions(facts)]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def fenced(language: str, text: str) -> str:
    """Lines as code, between fences longer than any run of backticks in it."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def _head(facts: RunFacts) -> str:
    task, metric = TASKS.get(facts.task, ("text-generation", "perplexity"))
    lines = ["---", "tags:", "- gpt2", "- gpt2-from-scratch", f"- {task}"]
    if facts.model in HUB:
        lines.append(f"base_model: {HUB[facts.model]}")
    lines += ["metrics:", f"- {metric}"]
    return "\n".join([*lines, "---"])


def _section(title: str, parts: Sequence[str]) -> str:
    told = [part for part in parts if part]
    return "\n\n".join([f"## {title}", *told]) if told else ""


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], mark: str = "---:") -> str:
    """Cells, escaped here, those of the first column at the left; of the others `mark` says it."""
    lines = [[escape(cell) or " " for cell in row] for row in (columns, *rows)]
    marks = ["---", *[mark] * (len(columns) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], marks, *lines[1:]))


def _counts(facts: RunFacts) -> str:
    parts = ("train", "val", "test")
    rows = [
        [label, *(f"{facts.counts.get(part, {}).get(label, 0):,}" for part in parts)]
        for label in facts.counts["train"]
    ]
    return _table(["label", "to train on", "to choose by", "to test"], rows)


def _how_good(facts: RunFacts) -> list[str]:
    sentences = [escape(how_good(facts)), escape(against_baselines(facts))]
    if not isinstance(facts.scores, Evaluation):
        return [*sentences, fenced("", facts.scores.as_table())]
    classes = [
        [
            one.label,
            *("–" if x is None else percent(x) for x in (one.precision, one.recall, one.f1)),
        ]
        for one in facts.scores.classes
    ]
    told = [*sentences, _table(["label", "precision", "recall", "F1"], classes)]
    if not facts.baselines:
        return told
    rows = [
        [
            name,
            percent(scores.accuracy),
            between(scores.interval),
            format_p(paired.p) if paired else "–",
        ]
        for name, scores, paired in sorted(facts.baselines, key=lambda found: -found[1].accuracy)
    ]
    columns = ["text baseline, same texts", "accuracy", "95 % interval", "against this"]
    return [*told, _table(columns, rows), escape(f"{P_TOLD}.")]


def _calibration(facts: RunFacts) -> list[str]:
    if not facts.assessment:
        return []
    now, before = facts.assessment.calibration, facts.assessment.uncalibrated
    temperature = facts.assessment.temperature
    how = "as trained" if temperature == 1 else f"those at temperature {temperature:.2f}"
    told = f"Probabilities are {how}. On the test part their expected calibration error is {now.ece:.4f}"
    told += f" ({before.ece:.4f} as trained)" if before and temperature != 1 else ""
    return [escape(f"{told}, their Brier score {now.brier:.4f}.")]


def _uses(facts: RunFacts) -> list[str]:
    return [
        "For texts like those it was trained on: of the same source, language and time. How good it "
        "is on others is not known; score it on labelled texts of yours first "
        "(`gpt2-classifier evaluate RUN --data yours.csv`).",
        "Not for decisions about people that nobody looks at again, and not against writers who try "
        "to get past it: neither was tested. GPT-2 has learned from web pages, and their prejudices "
        "with it.",
    ]


def _versions(facts: RunFacts) -> str:
    rows = [[name, str(value)] for name, value in facts.versions.items()]
    rows += [["seed", str(facts.seed)], ["SHA-256 of the base model", facts.base_sha256]]
    return _table(["", ""], rows, mark="---")
