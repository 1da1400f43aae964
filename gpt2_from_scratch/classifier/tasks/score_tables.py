"""Scores as a person reads them. K classes, labels, tags or values."""

from typing import assert_never

from gpt2_from_scratch.classifier.tasks.scores import (
    LanguageScores,
    MultiLabelScores,
    RegressionScores,
    Scores,
    SpanScores,
    TagScores,
)
from gpt2_from_scratch.evaluation.metrics import (
    Evaluation,
    format_classes,
    format_evaluation,
    format_proportion,
    percent,
)


def format_scores(scores: Scores) -> str:
    """Any scores as a table, what epochs are chosen by first; a dash for what is not defined."""
    match scores:
        case Evaluation():
            return format_evaluation(scores)
        case MultiLabelScores():
            lines = _multi_label_lines(scores)
        case RegressionScores():
            lines = _regression_lines(scores)
        case TagScores():
            lines = _tag_lines(scores)
        case SpanScores():
            exact = format_proportion("exact match", scores.exact, scores.total, scores.interval)
            lines = [f"F1 {100 * scores.f1:.2f} %", exact]
        case LanguageScores():
            lines = _language_lines(scores)
        case _:
            assert_never(scores)
    return "\n".join(lines)


def _multi_label_lines(scores: MultiLabelScores) -> list[str]:
    return [
        f"micro F1 {percent(scores.micro_f1).strip()} %, macro F1 {percent(scores.macro_f1).strip()} %",
        format_proportion("exactly the right set", scores.exact, scores.total, scores.interval),
        "",
        *format_classes(scores.classes, "label"),
    ]


def _regression_lines(scores: RegressionScores) -> list[str]:
    width = max([len("value"), *(len(value.name) for value in scores.values)])
    return [
        f"mean R2 {_number(scores.mean_r2)}  ({scores.total} texts)",
        "",
        f"{'value':<{width}}     Pearson    Spearman          R2        RMSE         MAE",
        *(
            f"{value.name:<{width}}"
            + "".join(f"  {_number(x):>10}" for x in (value.pearson, value.spearman, value.r2))
            + f"  {value.rmse:10.4g}  {value.mae:10.4g}"
            for value in scores.values
        ),
    ]


def _tag_lines(scores: TagScores) -> list[str]:
    words = format_proportion("word accuracy", scores.correct, scores.total, scores.interval)
    if scores.entities is None:
        return [words, "", *format_classes(scores.classes, "tag", "words")]
    return [
        f"entity F1 {percent(scores.entities.f1).strip()} %",
        words,
        "",
        *format_classes([*scores.classes, scores.entities], "entity", "entities"),
    ]


def _language_lines(scores: LanguageScores) -> list[str]:
    return [
        f"next-token accuracy {100 * scores.main:.2f} %  ({scores.right} of {scores.tokens})",
        f"{scores.nats_per_token:.4f} nats a token, perplexity {_number(scores.perplexity)}, "
        f"{_number(scores.bits_per_byte)} bits a byte",
    ]


def _number(value: float | None) -> str:
    """Four decimals; fewer digits for what is large."""
    if value is None:
        return "-"
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:.4g}"
