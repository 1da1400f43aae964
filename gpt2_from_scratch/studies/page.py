"""The page of a study, until reports/templates/study.html takes its place."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpt2_from_scratch.data.check import WIDE
from gpt2_from_scratch.data.messages import on_one_line
from gpt2_from_scratch.evaluation.calibration import calibration
from gpt2_from_scratch.evaluation.metrics import LabelledPredictions, wilson_interval
from gpt2_from_scratch.evaluation.significance import ROUNDING, format_p
from gpt2_from_scratch.reports.findings import (
    FILES,
    NAMED,
    SURE,
    between,
    file_name,
    listed,
    percent,
    texts_told,
)
from gpt2_from_scratch.reports.plots import plot_reliability, plot_scores
from gpt2_from_scratch.reports.render import (
    Page,
    Part,
    Picture,
    Section,
    Table,
    Text,
    Texts,
    write_page,
)
from gpt2_from_scratch.speed.devices import environment
from gpt2_from_scratch.studies.rows import TEXT, Result
from gpt2_from_scratch.studies.scoreboard import (
    CALIBRATED,
    ENSEMBLE,
    EXPERIMENTS,
    Difference,
    Score,
    Scoreboard,
    notes,
    short_p,
)

DASH = "–"
SHOWN = 15  # mistakes of a kind


def write_study_page(
    board: Scoreboard,
    results: Sequence[Result],
    settings: Mapping[str, Any],
    path: Path,
    device: torch.device | str = "cpu",
) -> None:
    """Write the page of a comparison, or of a table of experiments by its name."""
    if path.stem == "experiments":
        write_page(path, experiment_page(board, settings))
    else:
        write_page(path, compare_page(board, results, settings, versions_on(device)))


def compare_page(
    board: Scoreboard,
    results: Sequence[Result],
    settings: Mapping[str, Any],
    versions: Mapping[str, str | int],
) -> Page:
    """The page of a comparison; `page.write_page` writes it.

    `results` are those that the board was made of, `settings` those of the comparison: "model" and
    "data" are named at the top, "runs" are {folder: SHA-256}. Differences are those of ours from
    the others, above 0 where ours is better: the board has them the other way round. Raises
    UsageError without scikit-learn.
    """
    best = _best_text(board)
    mine = _answers(board, results, board.reference)
    theirs = _answers(board, results, best.name) if best else []
    sections = [
        _scores(board),
        _picture(board),
        _reliability(board, best, mine, theirs),
        _chance(board),
        *_mistakes(board, best, mine, theirs),
        _settings(settings),
        _versions(board, versions),
    ]
    return Page(
        f"{on_one_line(board.reference)} and what it must beat",
        [_compared(board, settings), _which_is_best(board, best), beats_text(board)],
        _warnings(board, mine),
        [section for section in sections if section.parts],
    )


def versions_on(device: torch.device | str) -> dict[str, str | int]:
    """Of what decides the last bits of a comparison, as a run has them."""
    where = environment(torch.device(device))
    return where | {"gpt2_from_scratch": version("gpt2-from-scratch")}


# --- the first lines ---


def beats_text(board: Scoreboard) -> str:
    """Whether ours beats the best text baseline, in one sentence."""
    ours, best = on_one_line(board.reference), _best_text(board)
    if best is None or best.difference is None:
        return f"No text baseline was run: nothing shows whether {ours} beats one."
    n_texts = sum(row.about == TEXT for row in board.rows)
    of = f"the best of {n_texts} text baselines" if n_texts > 1 else "the only text baseline"
    name = f"{on_one_line(best.name)} ({of})"
    points, sure = _points(best.difference), _sure(best.difference)
    if abs(points) < 100 * ROUNDING:
        return f"{ours} does not beat {name}: both are right as often; {sure}."
    how = f"{abs(points):.2f} points {'more' if points > 0 else 'less'} often"
    if best.difference.p_adjusted > SURE:
        return f"{ours} does not beat {name}: it is right {how}, which may be chance; {sure}."
    if points > 0:
        return f"{ours} beats {name}: it is right {how}; {sure}."
    return f"{ours} loses to {name}: it is right {how}; {sure}."


def _compared(board: Scoreboard, settings: Mapping[str, Any]) -> str:
    S, labels = len(board.splits), [on_one_line(label) for label in board.labels]
    task = (
        f"tell {labels[0]} from {labels[1]}"
        if len(labels) == 2
        else f"tell {len(labels)} labels apart"
    )
    data = f" in {file_name(settings['source'])}" if settings.get("source") else ""
    base = f" Base model: {file_name(settings['model'])}." if settings.get("model") else ""
    train = f"{texts_told(board.n_train)} to train on and " if board.n_train else ""
    return (
        f"{len(board.rows)} classifiers were compared at how well they {task}{data}.{base} "
        f"{S} split{'' if S == 1 else 's'} ({_few(board.splits)}), {'with' if S == 1 else 'each with'} "
        f"{train}{texts_told(board.n_test)} to test."
    )


def _which_is_best(board: Scoreboard, best_text: Score | None) -> str:
    """Of the single classifiers; that several together are better is told behind it."""
    single = [row for row in board.rows if row.about != ENSEMBLE.about]
    most = max(row.accuracy for row in single)
    best = [row for row in single if row.accuracy > most - ROUNDING]
    names = listed([on_one_line(row.name) for row in best])
    over = f" in the mean over {len(board.splits)} splits" if len(board.splits) > 1 else ""
    told = f"Most often right {'is' if len(best) == 1 else 'are'} {names}: {percent(most)} of the test texts{over}"
    if len(best) == 1:
        told += f" (95 % interval {between(best[0].interval)})"
        if best[0].difference and best[0] is not best_text:
            told += f"; {on_one_line(board.reference)} against it: {_told(best[0].difference)}"
    both = next((row for row in board.rows if row.about == ENSEMBLE.about), None)
    if both and both.difference and both.accuracy > most + ROUNDING:
        told += (
            f". The {ENSEMBLE.name} is right more often, {percent(both.accuracy)}; ours alone against it: "
            f"{_told(both.difference)}"
        )
    return told + "."


# --- warnings ---


def _warnings(board: Scoreboard, mine: Sequence[LabelledPredictions]) -> list[str]:
    found = [
        _one_split(board),
        _small_test(board, mine),
        _near_twins(board, mine),
        _by_chance(board),
        _ensemble(board),
        *map(on_one_line, board.notes),
    ]
    return [warning for warning in found if warning]


def _one_split(board: Scoreboard) -> str:
    if len(board.splits) > 1:
        return ""
    return (
        "This is one split only: another split, or another seed, gives other scores and perhaps "
        'another order, by chance alone. "gpt2-classifier compare --seeds 1 2 3" trains and scores '
        "on several splits."
    )


def _small_test(board: Scoreboard, mine: Sequence[LabelledPredictions]) -> str:
    halves = []
    for answered in mine:
        low, high = wilson_interval(int(answered.correct.sum()), len(answered.texts))
        halves.append((high - low) / 2)
    if max(halves) <= WIDE:
        return ""
    return (
        f"The test part is small: {texts_told(board.n_test)} leave {100 * max(halves):.0f} points of doubt "
        "to either side of the score of ours on one split. More labelled texts would help most."
    )


def _near_twins(board: Scoreboard, mine: Sequence[LabelledPredictions]) -> str:
    total = sum(len(answered.texts) for answered in mine)
    if board.n_without_near_duplicates is None or board.n_without_near_duplicates == total:
        return ""
    twins = total - board.n_without_near_duplicates
    return (
        f"{twins:,} of {texts_told(total)} to test {'has' if twins == 1 else 'have'} a near twin in "
        'training, so that scores tell in part what was remembered. The column "without near twins" '
        'leaves them out; "--together near-duplicates" splits so that none has one.'
    )


def _by_chance(board: Scoreboard) -> str:
    rows = [
        f"{on_one_line(row.name)} ({_points(row.difference):+.2f} points, {format_p(row.difference.p_adjusted)})"
        for row in board.rows
        if row.difference and row.difference.p_adjusted > SURE
    ]
    if not rows:
        return ""
    return (
        f"Chance alone may have made the difference of {on_one_line(board.reference)} from {_few(rows)}: "
        "nothing here shows which is better."
    )


def _ensemble(board: Scoreboard) -> str:
    if all(row.about != ENSEMBLE.about for row in board.rows):
        return ""
    return (
        f'Which text baseline is in the "{ENSEMBLE.name}" was chosen with a look at the validation part only, '
        "on each split anew; it need not be the one that is best on the test part."
    )


# --- sections ---


def _scores(board: Scoreboard) -> Section:
    several = len(board.splits) > 1
    columns = [
        "classifier",
        "accuracy",
        "95 % interval",
        *(["each split"] if several else []),
        f"F1 of {on_one_line(board.positive)}" if board.positive else "mean F1",
        "ROC-AUC",
        "Brier",
        "without near twins",
        "seconds",
    ]
    rows = [
        [
            on_one_line(row.name),
            percent(row.accuracy),
            between(row.interval),
            *([", ".join(f"{100 * share:.1f}" for share in row.accuracies)] if several else []),
            _share(row.f1),
            DASH if row.roc_auc is None else f"{row.roc_auc:.4f}",
            f"{row.brier:.4f}",
            _share(row.without_near_duplicates),
            f"{row.seconds:.1f}",
        ]
        for row in board.rows
    ]
    learned = [
        [on_one_line(row.name), split, on_one_line(what)]
        for row in board.rows
        for split, what in zip(board.splits, row.learned, strict=False)  # most have learned none
    ]
    about = "On the test part; means over splits where there are several. Of Brier scores the lower is better."
    parts: list[Part] = [Text(about), Table(columns, rows)]
    if learned:
        parts.append(
            Table(
                ["classifier", "split", "what it is"],
                learned,
                "What was found on the training part",
                3,
            )
        )
    return Section("Scoreboard", parts)


def _picture(board: Scoreboard) -> Section:
    names = [on_one_line(row.name) for row in board.rows]
    figure = plot_scores(
        names,
        [row.accuracy for row in board.rows],
        [row.interval for row in board.rows],
        reference=[row.name for row in board.rows].index(board.reference),
    )
    alt = "Accuracies with their 95 % intervals. " + "; ".join(
        f"{name} {percent(row.accuracy)}" for name, row in zip(names, board.rows, strict=True)
    )
    return Section("Accuracies beside each other", [Picture(figure, alt + ".")])


def _reliability(
    board: Scoreboard,
    best: Score | None,
    mine: Sequence[LabelledPredictions],
    theirs: Sequence[LabelledPredictions],
) -> Section:
    found = {on_one_line(board.reference): mine} | (
        {on_one_line(best.name): theirs} if best else {}
    )
    scores = {
        name: calibration(
            np.concatenate([a.probabilities for a in some]),  # (S N, K)
            np.concatenate([a.true for a in some]),
        )
        for name, some in found.items()
    }
    about = f"Of texts called something with 90 %, 90 % should be it. Here {CALIBRATED}."
    if len(board.splits) > 1:
        about += " Drawn are the answers on all splits together."
    told = [f"expected calibration error of {name} {one.ece:.3f}" for name, one in scores.items()]
    alt = f"Reliability diagram: {' and '.join(told)}."
    return Section(
        "Do probabilities mean what they say?",
        [Text(about), Picture(plot_reliability(scores), alt)],
    )


def _chance(board: Scoreboard) -> Section:
    others = [(row.name, row.difference) for row in board.rows if row.difference]
    if not others:
        return Section("What chance does", [])
    if len(board.splits) == 1:
        how = (
            "Intervals are of texts drawn again from these, smoothed by half a text of each kind "
            "(bootstrap); p is McNemar's, exact"
        )
    else:
        how = (
            "Intervals and p are of the corrected resampled t-test over splits (Nadeau and Bengio 2003), "
            "which knows that splits share texts"
        )
    about = (
        f"Ours is {on_one_line(board.reference)}. {how}. p is the chance of such a difference if there were none, adjusted by Holm for "
        f"{len(others)} comparison{'' if len(others) == 1 else 's'}; intervals are not adjusted."
    )
    rows = [
        [
            on_one_line(name),
            f"{_points(d):+.2f}",
            _range(d),
            short_p(d.p_adjusted),
            "yes" if d.p_adjusted > SURE else "no",
        ]
        for name, d in others
    ]
    columns = ["against", "ours better by, points", "95 % interval", "p", "may be chance"]
    return Section("What chance does", [Text(about), Table(columns, rows)])


def _mistakes(
    board: Scoreboard,
    best: Score | None,
    mine: Sequence[LabelledPredictions],
    theirs: Sequence[LabelledPredictions],
) -> list[Section]:
    if best is None:
        return []
    ours, text = on_one_line(board.reference), on_one_line(best.name)
    return [_only_right(ours, mine, text, theirs), _only_right(text, theirs, ours, mine)]


def _only_right(
    wrong_name: str,
    wrong: Sequence[LabelledPredictions],
    right_name: str,
    right: Sequence[LabelledPredictions],
) -> Section:
    """What one of two classifiers said of texts that the other has right and it has not."""
    found: list[tuple[str, str, str, float]] = []
    for a, b in zip(wrong, right, strict=True):
        for n in np.flatnonzero(b.correct & ~a.correct):
            true, called = (on_one_line(a.labels[k]) for k in (a.true[n], a.predicted[n]))
            found.append((a.texts[n], true, called, float(a.probabilities[n].max())))
    once: dict[str, tuple[str, str, str, float]] = {}
    for row in sorted(found, key=lambda row: -row[3]):  # of equals as they came
        once.setdefault(row[0], row)
    about = f"{texts_told(len(once))}, what {wrong_name} said of {'it' if len(once) == 1 else 'them'}, the surest first"
    if len(wrong) > 1:
        about += "; what is in several test parts stands here once"
    if len(once) > SHOWN:
        about += f"; the first {SHOWN} are shown"
    parts: list[Part] = (
        [Text(about + "."), Texts(list(once.values())[:SHOWN])] if once else [Text("No text.")]
    )
    return Section(f"Only {right_name} has these right", parts)


def _settings(settings: Mapping[str, Any]) -> Section:
    rows = []
    for name, value in settings.items():
        if name == "runs":
            rows += [
                [f"SHA-256 of run {file_name(run)}", str(found)] for run, found in value.items()
            ]
        else:
            rows.append([name, file_name(value) if name in FILES and value else str(value)])
    return Section("Settings", [Table(["setting", "value"], rows, numeric=2)] if rows else [])


def _versions(board: Scoreboard, versions: Mapping[str, str | int]) -> Section:
    rows = [[name, str(value)] for name, value in versions.items()]
    rows.append(["splits and their seeds", ", ".join(board.splits)])
    return Section("Versions and seeds", [Table(["", ""], rows, numeric=2)])


# --- words and numbers ---


def _best_text(board: Scoreboard) -> Score | None:
    """The text baseline that is right most often, of equals the first."""
    return next((row for row in board.rows if row.about == TEXT), None)


def _answers(board: Scoreboard, results: Sequence[Result], kind: str) -> list[LabelledPredictions]:
    """What a kind of classifier answered on each split, in the board's order."""
    found = {result.split: result.predictions for result in results if result.row.name == kind}
    return [found[split] for split in board.splits]


def _points(d: Difference) -> float:
    """By how many points of accuracy ours is better."""
    return 0.0 - 100 * d.difference  # and not -0.0


def _range(d: Difference) -> str:
    low, high = (0.0 - 100 * bound for bound in reversed(d.interval))
    return f"{low:+.2f} to {high:+.2f}"


def _sure(d: Difference) -> str:
    return f"95 % interval of the difference {_range(d)} points, {format_p(d.p_adjusted)}, adjusted by Holm"


def _told(d: Difference) -> str:
    return f"{_points(d):+.2f} points, {_sure(d)}"


def _share(share: float | None) -> str:
    return DASH if share is None else percent(share)


def _few(names: Sequence[str]) -> str:
    """The first of many, and how many more there are."""
    more = [f"{len(names) - NAMED} more"] if len(names) > NAMED else []
    return listed([*names[:NAMED], *more])


# --- a table of experiments ---


def experiment_page(board: Scoreboard, settings: Mapping[str, Any]) -> Page:
    """The page of a table of experiments, the default its first row."""
    default, n_test = board.rows[0], board.n_test
    seeds = [split.removeprefix("seed ") for split in board.splits]
    best = max(board.rows, key=lambda s: s.accuracy)  # ties go to the first
    data, model = file_name(settings["source"]), file_name(settings["model"])
    first = (
        f"{len(board.rows) - 1} changes of the default were tried on {data} with GPT-2 "
        f"{model}: {len(seeds)} seed{'' if len(seeds) == 1 else 's'} "
        f"({', '.join(seeds)}), {texts_told(n_test)} to test{'' if len(seeds) == 1 else ' each'}."
    )
    second = f"The default is right for {percent(default.accuracy)} of them (95 % interval {between(default.interval)})"
    if best is not default:
        second += f"; most often right is {best.name}, {percent(best.accuracy)} ({_how(best)})"
    alt = "; ".join(f"{s.name} {percent(s.accuracy)}" for s in board.rows)
    picture = plot_scores(
        [s.name for s in board.rows],
        [s.accuracy for s in board.rows],
        [s.interval for s in board.rows],
        reference=0,
        others=[s.book.accuracy / 100 if s.book else None for s in board.rows],
        others_name="the book, 124M, one seed",
    )
    parts: list[Part] = [Text(line) for line in told_by_kind(board.rows)]
    sections = [
        Section("What makes a difference", parts),
        Section(
            "All rows",
            [_experiment_table(board.rows), Picture(picture, f"Test accuracies: {alt}.")],
        ),
        Section("Notes", [Text(line) for line in notes(board, EXPERIMENTS)]),
    ]
    return Page(
        f"Experiments with GPT-2 {model} on {data}",
        [first, f"{second}."],
        _experiment_warnings(board.rows, len(seeds)),
        [section for section in sections if section.parts],
    )


def told_by_kind(summaries: Sequence[Score]) -> list[str]:
    """A sentence for each kind of rows of which some differ from the default beyond chance."""
    lines = []
    for about in dict.fromkeys(s.about for s in summaries[1:]):
        rows = [s for s in summaries[1:] if s.about == about]
        sure = [s for s in rows if _difference(s).p_adjusted < SURE]
        if sure:
            each = [
                f"{s.name} is {'better' if _difference(s).difference > 0 else 'worse'} than the default ({_how(s)})"
                for s in sure
            ]
            rest = len(rows) - len(sure)
            left = (
                f"; of {rest} more row{'s' if rest > 1 else ''} that cannot be said" if rest else ""
            )
            lines.append(f"{about[:1].upper()}{about[1:]}: {listed(each)}{left}.")
    return lines


def _experiment_warnings(summaries: Sequence[Score], n_seeds: int) -> list[str]:
    found = []
    if n_seeds == 1:
        found.append(
            "This is one seed and one split: others give other scores, by chance alone. --seeds 1 2 3 runs more."
        )
    if len(summaries) > 1 and all(_difference(s).p_adjusted >= SURE for s in summaries[1:]):
        found.append(
            "No row differs from the default beyond chance: nothing here shows that a change helps or harms."
        )
    if len(summaries) > 1:
        found.append(
            "Who takes the best row for its score here has chosen by the test part, so that the score is too good: try it on texts that no row has seen."
        )
    return found


def _experiment_table(summaries: Sequence[Score]) -> Table:
    several = len(summaries[0].accuracies) > 1
    columns = [
        "change",
        "accuracy",
        *(["spread"] if several else []),
        "95 % interval",
        "from the default",
        "p",
        "p, of so many",
        "the book",
    ]
    rows = []
    for s in summaries:
        d = s.difference
        against = (
            [f"{100 * d.difference:+.2f}", short_p(d.p), short_p(d.p_adjusted)] if d else [""] * 3
        )
        spread = [f"{100 * s.spread:.2f}"] if several else []
        book = f"{s.book.accuracy:.2f} % (row {s.book.row})" if s.book else ""
        rows.append(
            [
                s.name,
                percent(s.accuracy),
                *spread,
                between(s.interval),
                *against,
                book,
            ]
        )
    return Table(columns, rows)


def _how(s: Score) -> str:
    return f"{100 * _difference(s).difference:+.2f} points, {format_p(_difference(s).p_adjusted)}, adjusted by Holm"


def _difference(s: Score) -> Difference:
    assert s.difference is not None
    return s.difference
