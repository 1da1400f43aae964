"""Inspect labelled texts before training: read every row and report everything found."""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from heapq import nlargest
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from gpt2_from_scratch.data.formats import (
    TASKS,
    UNLABELLED,
    form_in_words,
    found_examples,
    label_names,
    values_in,
)
from gpt2_from_scratch.data.messages import (
    ALIKE,
    CONTROL,
    FORMULA,
    REPLACEMENT,
    DataConfig,
    GoldAnswers,
    Message,
    Span,
    gold_answers,
    in_order,
    label_parts,
    labels_alike,
    on_one_line,
    short,
    source_path,
)
from gpt2_from_scratch.data.near_duplicates import (
    THRESHOLD,
    has_near_duplicate,
    masked,
    near_duplicate_groups,
)
from gpt2_from_scratch.data.split import TENTHS, Split, split_messages, texts_with_two_labels
from gpt2_from_scratch.data.tables import Fault
from gpt2_from_scratch.errors import DataError, UsageError
from gpt2_from_scratch.gpt2.config import read_config
from gpt2_from_scratch.gpt2.tokenizer import Tokenizer
from gpt2_from_scratch.progress import silenced
from gpt2_from_scratch.storage.paths import model_folder

UNEVEN = 3  # labels are uneven if one has more than 3 times as many texts as another
WIDE = 0.03  # a test set is small if the uncertainty of its accuracy exceeds 3 points
TELLING = 0.8  # warn if text length alone ranks this proportion of text pairs correctly
ACCURACY = 0.95  # assumed accuracy, used to show how wide its interval would be on the test set
FIRST = 5  # number of lines and examples listed per finding
SEED = 123  # for the trial splits
MOST_LABELS = 20  # the text report lists all labels if there are at most 20
FREQUENT = 10  # otherwise it lists the 10 most frequent labels
LONGEST_SENTENCE = 500  # most characters per sentence in the text report


@dataclass(frozen=True)
class Found:
    """The number of rows, and the line numbers of the first few."""

    rows: int
    lines: list[int]


@dataclass(frozen=True)
class Share:
    """The number of rows, and their proportion of all readable rows."""

    rows: int
    share: float


@dataclass(frozen=True)
class Example:
    """A text of a group, and the first lines and the first labels of all texts in the group."""

    text: str
    lines: list[int]
    labels: list[str]


@dataclass(frozen=True)
class Groups:
    """Groups of texts: their number, the number of rows in them, and the first few groups."""

    groups: int
    rows: int
    examples: list[Example]


@dataclass(frozen=True)
class Lengths:
    """The range of text lengths."""

    shortest: int
    median: float
    longest: int


@dataclass(frozen=True)
class Values:
    """The range of the numbers in one column."""

    least: float
    median: float
    greatest: float


@dataclass(frozen=True)
class LabelLengths:
    """The median length of one label's texts, and how often they are longer than other texts.

    `longer` is the probability that a text of this label is longer than a text of another label,
    over all such pairs. Equal lengths count as half. `longer` is None if there is no other label.
    """

    median: float
    longer: float | None


@dataclass(frozen=True)
class Cut:
    """The effect of a token limit: the number of texts it shortens and of tokens it removes."""

    limit: int
    texts: int
    tokens: int
    all_tokens: int


@dataclass(frozen=True)
class Leak:
    """Test texts that also occur in the training set (seen) or have a near duplicate there (near).

    The counts are for three splits of the same rows:

    - `plain`: the rows are split 70 / 10 / 20% at random, and copies may be separated.
    - `our`: `split_messages` splits the rows, and all copies of a text are in one part.
    - `together`: near duplicates are in one part as well. The counts are None if no such split is
      possible.

    A copy also counts as a near duplicate.
    """

    plain_test: int
    plain_seen: int
    plain_near: int
    our_test: int
    our_seen: int
    our_near: int
    together_test: int | None
    together_near: int | None


@dataclass(frozen=True)
class Report:
    """Everything that `check_data` found. Counts are rows, and line numbers start at 1."""

    source: str
    task: str
    form: str  # the file's format as detected; "" if it was not recognised
    rows: int  # including faulty ones
    faults: dict[str, Found]
    stopped: str | None  # the error that made it impossible to read on, if any
    labels: dict[str, Share]  # classes, labels or tags; tags are counted in words
    values: dict[str, Values]  # for regression; for spans, the lengths of the answers in characters
    labels_alike: list[list[str]]
    duplicates: Groups  # texts that occur more than once
    near_duplicates: Groups  # different texts linked by a chain of near duplicates
    contradictions: Groups  # equal texts with different classes or other different targets
    near_contradictions: Groups  # texts with equal masked forms but two classes
    characters: Lengths | None
    tokens: Lengths | None
    model: str  # the model whose tokenizer counts tokens
    n_ctx: int  # the largest number of tokens that the model reads
    over_n_ctx: Found
    cuts: list[Cut]  # the effect of the limits n_ctx and max_tokens
    lengths_by_label: dict[str, LabelLengths]  # in tokens
    formulas: Found  # texts that a spreadsheet would execute as formulas
    controls: Found
    replacements: Found  # texts with U+FFFD, the mark of a character that was lost earlier
    leak: Leak | None
    remarks: list[str]  # warnings that do not prevent training
    obstacles: list[str]  # reasons why training is not possible; empty if ready
    obstacles_with_skip: list[str]  # the reasons that remain with --on-error skip


def check_data(
    data: str | Path | DataConfig = "sms",
    task: str = "classification",
    *,
    model: str | Path = "mini",
    max_tokens: int | None = None,
) -> Report:
    """Read all rows of labelled texts, including faulty ones, and report what was found.

    Args:
        data: See `load_examples`.
        task: The task to train for.
        model: The model whose tokenizer counts the tokens.
        max_tokens: A token limit. The report shows the effect of this limit too.

    Returns:
        The report. `format_report` formats it as text.

    Raises:
        DataError: The file does not exist.
        CheckpointError: The model does not exist.
        UsageError: `max_tokens` is not from 1 to n_ctx, or the task is unknown or needs no labels.
    """
    if task not in TASKS or task in UNLABELLED:
        known = [name for name in TASKS if name not in UNLABELLED]
        raise UsageError(f"unknown task {task!r}; choose from: {', '.join(known)}")
    data = DataConfig.of(data)
    path, folder = source_path(data.source), model_folder(model)
    tokenizer, n_ctx = Tokenizer(folder), read_config(folder).n_ctx
    limits = [n_ctx] if max_tokens is None else [n_ctx, max_tokens]
    if not 1 <= limits[-1] <= n_ctx:
        raise UsageError(f"max_tokens = {max_tokens} must be from 1 to n_ctx = {n_ctx}")
    classes = task == "classification"
    with silenced():  # the report contains what would be logged
        form = ""
        with suppress(DataError):
            form = form_in_words(data, task)
        messages, faults, stopped = _read(data, task)
        split, obstacles, with_skip = _obstacles(messages, faults, stopped, data.rare_labels)
        # many questions have the same context, so they would all count as near duplicates
        leak = count_leaks(messages, split, SEED) if split and task != "span" else None
    texts = [message.text for message in messages]
    count_of = {text: len(tokenizer.encode(text)) for text in set(texts)}
    lengths = [count_of[text] for text in texts]
    by_label = lengths_by_label(lengths, [m.label for m in messages]) if classes else {}
    counts = Counter(name for message in messages for name in label_parts(message.label))
    distinct = list(dict.fromkeys(texts))
    groups = near_duplicate_groups(distinct) if task != "span" else range(len(distinct))
    group_of = dict(zip(distinct, groups, strict=True))
    different = texts_with_two_labels(messages)
    whole = sum(counts.values()) if task == "token-classification" else len(messages)

    def found(is_wanted: Callable[[str], object]) -> Found:
        return _found(message.line for message in messages if is_wanted(message.text))

    return Report(
        source=str(path),
        task=task,
        form=form,
        rows=len(messages) + len(faults),
        faults={
            kind: _found(fault.line for fault in faults if fault.kind == kind)
            for kind in dict.fromkeys(fault.kind for fault in faults)
        },
        stopped=stopped,
        labels={label: Share(counts[label], counts[label] / whole) for label in in_order(counts)},
        values=_values(messages, data, task),
        labels_alike=labels_alike(counts),
        duplicates=_groups(messages, lambda text: text, lambda group: len(group) > 1),
        near_duplicates=_groups(messages, group_of.__getitem__, _has_two_texts),
        contradictions=_groups(
            messages, lambda text: text, lambda group: group[0].text in different
        ),
        near_contradictions=_groups(
            messages if classes else [],
            masked,
            lambda group: _has_two_texts(group) and len({m.label for m in group}) > 1,
        ),
        characters=length_range([len(text) for text in texts]),
        tokens=length_range(lengths),
        model=str(model),
        n_ctx=n_ctx,
        over_n_ctx=found(lambda text: count_of[text] > n_ctx),
        cuts=[cut(lengths, limit) for limit in limits],
        lengths_by_label=by_label,
        formulas=found(lambda text: FORMULA.match(text)),
        controls=found(CONTROL.search),
        replacements=found(lambda text: REPLACEMENT in text),
        leak=leak,
        remarks=remarks(counts, by_label, leak.our_test if leak else None) if by_label else [],
        obstacles=obstacles,
        obstacles_with_skip=with_skip,
    )


def _values(messages: Sequence[Message], data: DataConfig, task: str) -> dict[str, Values]:
    """{column: the range of its numbers}; for spans, the range of the answers' lengths."""
    columns: dict[str, list[float]] = {}
    if task == "regression":
        names, named = label_names(messages, task), data.label_column.split(",")
        names = tuple(name.strip() for name in named) if len(named) == len(names) else names
        columns = {name: [m.label[n] for m in messages] for n, name in enumerate(names)}
    elif task == "token-regression" and messages:
        columns = {"value": [value for m in messages for (value,) in values_in(m.label)] or [0.0]}
    elif task == "span" and messages:
        spans = [span for m in messages for span in gold_answers(m.label)]
        columns = {"characters": [span.end - span.start for span in spans]}
    return {
        name: Values(min(values), float(np.median(values)), max(values))
        for name, values in columns.items()
    }


def length_range(lengths: Sequence[int]) -> Lengths | None:
    """The shortest, median and longest length; None if there are no texts."""
    if not lengths:
        return None
    return Lengths(min(lengths), float(np.median(lengths)), max(lengths))


def cut(lengths: Sequence[int], limit: int) -> Cut:
    """The number of texts and tokens lost if texts of these lengths are cut to `limit` tokens."""
    over = [length - limit for length in lengths if length > limit]
    return Cut(limit, len(over), sum(over), sum(lengths))


def lengths_by_label(lengths: Sequence[int], labels: Sequence[str]) -> dict[str, LabelLengths]:
    """Compare the lengths of each label's texts with those of all other texts.

    Returns {label: its LabelLengths}, with the labels sorted by `in_order`. `longer` is the area
    under the ROC curve if the length is used as the score (Mann and Whitney 1947).
    """
    from scipy.stats import rankdata

    rows: dict[str, list[int]] = {}
    for row, label in enumerate(labels):
        rows.setdefault(label, []).append(row)
    every, ranks, found = np.array(lengths), rankdata(lengths), {}
    for label in in_order(rows):
        own, others = rows[label], len(labels) - len(rows[label])
        u = ranks[own].sum() - len(own) * (len(own) + 1) / 2
        longer = float(u / (len(own) * others)) if others else None
        found[label] = LabelLengths(float(np.median(every[own])), longer)
    return found


def count_leaks(messages: Sequence[Message], split: Split, seed: int) -> Leak:
    """Count the test texts that leak into the training set, for three ways to split.

    `split` is the split that `split_messages` made. `seed` is used for the other two ways, `plain`
    and `together` (see Leak).
    """
    texts = [message.text for message in messages]
    order = np.random.RandomState(seed).permutation(len(texts))
    first, second = (int(share / 10 * len(texts)) for share in TENTHS[:2])
    plain_train = [texts[n] for n in order[:first]]
    plain_test = [texts[n] for n in order[first + second :]]
    plain_seen, plain_near = _seen_and_near(plain_train, plain_test)
    our_seen, our_near = _seen_and_near(*_texts(split))
    kept = None
    with suppress(DataError):  # too few groups of near duplicates
        kept = split_messages(messages, seed=seed, keep_together="near-duplicates", on_error="skip")
    return Leak(
        plain_test=len(plain_test),
        plain_seen=plain_seen,
        plain_near=plain_near,
        our_test=len(split.test),
        our_seen=our_seen,
        our_near=our_near,
        together_test=len(kept.test) if kept else None,
        together_near=_seen_and_near(*_texts(kept))[1] if kept else None,
    )


def _texts(split: Split) -> tuple[list[str], list[str]]:
    return [m.text for m in split.train], [m.text for m in split.test]


def _seen_and_near(train: list[str], test: list[str]) -> tuple[int, int]:
    """Count test texts with a copy in the training set, and those with a near duplicate in it."""
    seen = set(train)
    return sum(text in seen for text in test), int(has_near_duplicate(test, train).sum())


def remarks(
    counts: Mapping[str, int], lengths: Mapping[str, LabelLengths], n_test: int | None
) -> list[str]:
    """Return warnings: uneven labels, a length that predicts the label, a small test set.

    `counts` must not be empty. `n_test` is the size of the test set, or None if there is none.
    """
    from scipy.stats import binomtest

    found = []
    common, rare = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
    if counts[common] > UNEVEN * counts[rare]:
        found.append(
            f"labels are uneven: {counts[common] / counts[rare]:.1f} {common} per {rare}; see "
            "--balance and --class-weights balanced"
        )
    telling = {label: of.longer for label, of in lengths.items() if of.longer is not None}
    if telling:
        # two labels are equally far from 0.5, so name the label with longer texts
        label = max(telling, key=lambda name: (round(abs(telling[name] - 0.5), 9), telling[name]))
        proportion = max(telling[label], 1 - telling[label])
        if proportion >= TELLING:
            found.append(
                f"text length alone separates the labels: a text labelled {label} is "
                f"{'longer' if telling[label] > 0.5 else 'shorter'} than a text with another label "
                f"in {100 * proportion:.0f}% of pairs; a classifier may learn nothing but this"
            )
    if n_test:
        low, high = binomtest(round(ACCURACY * n_test), n_test).proportion_ci(method="wilson")
        if (high - low) / 2 > WIDE:
            found.append(
                f"only {n_test:,} test texts: an accuracy of {100 * ACCURACY:.0f}% would have an "
                f"uncertainty of plus or minus {50 * (high - low):.0f} points"
            )
    return found


def _read(data: DataConfig, task: str) -> tuple[list[Message], list[Fault], str | None]:
    """The valid rows, the faulty rows, and the error that ended the reading, if any."""
    good: list[Message] = []
    faults: list[Fault] = []
    try:
        for row in found_examples(data, task):
            if isinstance(row, Fault):
                faults.append(row)
            else:
                good.append(row)
    except DataError as error:
        return good, faults, str(error)
    return good, faults, None


def _obstacles(
    messages: list[Message], faults: list[Fault], stopped: str | None, rare_labels: str
) -> tuple[Split | None, list[str], list[str]]:
    """Split with --on-error skip, and list the obstacles without and with this option.

    Returns (split, obstacles without skip, obstacles with skip). The split is None if it fails.
    """
    lasting = [stopped] if stopped else []
    split = None
    try:
        split = split_messages(messages, seed=SEED, on_error="skip", rare_labels=rare_labels)
    except DataError as error:
        lasting += [str(error)] if messages or not stopped else []
    skipped = [f"{len(faults):,} faulty row{'s' * (len(faults) > 1)}"] if faults else []
    different = texts_with_two_labels(messages).values()
    if contradictory := sum(all(isinstance(x, str) for x in labels) for labels in different):
        skipped.append(f"{contradictory:,} texts with two labels")
    return split, skipped + lasting, lasting


def _found(lines: Iterable[int]) -> Found:
    every = list(lines)
    return Found(len(every), every[:FIRST])


def _groups(
    messages: Sequence[Message],
    key: Callable[[str], Hashable],
    is_wanted: Callable[[list[Message]], bool],
) -> Groups:
    """Group the messages by the key of their texts, and count the groups that are wanted."""
    by_key: dict[Hashable, list[Message]] = {}
    for message in messages:
        by_key.setdefault(key(message.text), []).append(message)
    groups = [group for group in by_key.values() if is_wanted(group)]
    examples = [
        Example(
            group[0].text,
            [message.line for message in group[:FIRST]],
            in_order({_in_words(message.label) for message in group})[:FIRST],
        )
        for group in groups[:FIRST]
    ]
    return Groups(len(groups), sum(map(len, groups)), examples)


def _in_words(label: Any) -> str:
    """Format a label of any task as text."""
    if isinstance(label, Span | GoldAnswers):
        return " or ".join(f"{span.start} to {span.end}" for span in gold_answers(label))
    if isinstance(label, tuple) and label and not isinstance(label[0], float):
        return " ".join(label_parts(label))
    return ", ".join(f"{number:g}" for number in label) if isinstance(label, tuple) else str(label)


def _has_two_texts(group: list[Message]) -> bool:
    return any(message.text != group[0].text for message in group)


# --- The report as text ---


def format_report(report: Report) -> str:
    """Format all findings as text; the last line says whether training is possible."""
    lines = [f"{report.source}: {report.rows:,} rows"]
    lines += [f"  {report.form}"] if report.form else []
    lines += [
        f"  {found.rows:,} with {kind}{_where(found)}" for kind, found in report.faults.items()
    ]
    if report.stopped:
        lines.append(f"  cannot be read: {short(report.stopped, LONGEST_SENTENCE)}")
    if report.characters:
        lines += [
            *_format_targets(report),
            *_format_texts(report),
            *_format_lengths(report),
            *_format_leak(report.leak),
        ]
    if report.remarks:
        found = (short(remark, LONGEST_SENTENCE) for remark in report.remarks)
        lines += ["remarks", *(f"  {remark}" for remark in found)]
    if not report.obstacles:
        return "\n".join([*lines, "ready to train"])
    obstacles = "; ".join(
        "the error above" if obstacle == report.stopped else short(obstacle, LONGEST_SENTENCE)
        for obstacle in report.obstacles
    )
    rest = "--on-error skip is not enough"
    if not report.obstacles_with_skip:
        rest = "or leave them out with --on-error skip"
    return "\n".join([*lines, f"to fix: {obstacles}; {rest}"])


def _format_targets(report: Report) -> list[str]:
    """Return the lines of the tables of labels, tags and values."""
    lines = []
    if report.labels:
        tags = report.task == "token-classification"
        rows = [
            (short(label), f"{found.rows:,}", f"{100 * found.share:.1f}%")
            for label, found in _frequent(report).items()
        ]
        if more := len(report.labels) - len(rows):
            rows.append((f"and {more:,} more", "", ""))
        headers = ["words" if tags else "rows", "of all"]
        lines = _table("tags" if tags else "labels", headers, rows)
        lines += [
            f"  {ALIKE}: {_listed([*map(repr, alike)])}" for alike in report.labels_alike[:FIRST]
        ]
        if len(report.labels_alike) > FIRST:
            lines.append(f"  and {len(report.labels_alike) - FIRST:,} more groups")
        common = max(report.labels, key=lambda label: report.labels[label].rows)
        if report.task != "multi-label":
            lines.append(
                f"  always predicting {short(common)} is correct for "
                f"{100 * report.labels[common].share:.1f}%"
            )
    if report.values:
        values = [
            (on_one_line(name), f"{of.least:,.6g}", f"{of.median:,.6g}", f"{of.greatest:,.6g}")
            for name, of in report.values.items()
        ]
        title = "answers" if report.task == "span" else "values"
        lines += _table(title, ["least", "median", "greatest"], values)
    return lines


def _format_texts(report: Report) -> list[str]:
    near = (
        "near duplicates (equal except for digits and punctuation, or "
        f"{100 * THRESHOLD:.0f}% of their word pairs in common)"
    )
    groups = {"that occur more than once": report.duplicates}
    if report.task != "span":
        groups[near] = report.near_duplicates
    if report.task == "classification":
        groups["with two labels"] = report.contradictions
        groups["with two labels, equal except for case, digits, punctuation or spaces"] = (
            report.near_contradictions
        )
    else:
        does = {"regression": "averages", "multi-label": "merges"}.get(report.task, "keeps")
        groups[f"with different targets, which training {does}"] = report.contradictions
    odd = {
        "that begin with = + - @, a tab or a return, which spreadsheets execute": report.formulas,
        "with NUL or control characters": report.controls,
        "with U+FFFD, which marks a character that was lost earlier": report.replacements,
    }
    lines = ["texts"]
    for what, found in groups.items():
        lines.append(
            f"  {found.rows:,} {what}" + (f", in {found.groups:,} groups" if found.groups else "")
        )
        lines += [
            f"    lines {', '.join(map(str, example.lines))}: {on_one_line(example.text):.60}  "
            f"({_listed(example.labels)})"
            for example in found.examples
        ]
    return lines + [f"  {found.rows:,} {what}{_where(found)}" for what, found in odd.items()]


def _format_lengths(report: Report) -> list[str]:
    named = {"characters": report.characters, "tokens": report.tokens}
    rows = [
        (name, f"{of.shortest:,}", f"{of.median:,.0f}", f"{of.longest:,}")
        for name, of in named.items()
        if of
    ]
    rows += [
        (f"tokens of {short(label)}", "", f"{report.lengths_by_label[label].median:,.0f}", "")
        for label in _frequent(report)
        if label in report.lengths_by_label
    ]
    over = f"longer than the {report.n_ctx:,} tokens that {report.model} reads"
    return [
        *_table("lengths", ["shortest", "median", "longest"], rows),
        f"  {report.over_n_ctx.rows:,} {over}{_where(report.over_n_ctx)}",
        *(
            f"  a limit of {cut.limit:,} tokens cuts {cut.texts:,} text{'' if cut.texts == 1 else 's'} and removes "
            f"{cut.tokens:,} tokens, {100 * cut.tokens / max(1, cut.all_tokens):.1f}% of all"
            for cut in report.cuts
            if cut.texts or cut.limit < report.n_ctx
        ),
    ]


def _format_leak(leak: Leak | None) -> list[str]:
    if leak is None:
        return []
    rows = [
        ("row by row", f"{leak.plain_test:,}", f"{leak.plain_seen:,}", f"{leak.plain_near:,}"),
        ("copies together", f"{leak.our_test:,}", f"{leak.our_seen:,}", f"{leak.our_near:,}"),
    ]
    if leak.together_test is None:
        rows.append(("near duplicates together", "too few groups", "", ""))
    else:
        rows.append(
            ("near duplicates together", f"{leak.together_test:,}", "0", f"{leak.together_near:,}")
        )
    headers = ["test texts", "also in training", "near duplicate in training"]
    return _table("split 70 / 10 / 20%", headers, rows)


def _table(title: str, headers: list[str], rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Return the lines of a title and a table. Only the first column has text and no header."""
    align = ("left", *["right"] * len(headers))
    table = tabulate(rows, ["", *headers], "plain", disable_numparse=True, colalign=align)
    return [title, *(f"  {line}" for line in table.splitlines())]


def _frequent(report: Report) -> dict[str, Share]:
    """The labels to show, in the report's order: all of them, or the most frequent."""
    if len(report.labels) <= MOST_LABELS:
        return report.labels
    most = nlargest(FREQUENT, report.labels, key=lambda label: report.labels[label].rows)
    return {label: report.labels[label] for label in report.labels if label in most}


def _listed(names: Sequence[str]) -> str:
    more = [f"and {len(names) - FIRST:,} more"] if len(names) > FIRST else []
    return ", ".join([*map(short, names[:FIRST]), *more])


def _where(found: Found) -> str:
    more = ", ..." if found.rows > len(found.lines) else ""
    return f": line {', '.join(map(str, found.lines))}{more}" if found.lines else ""
