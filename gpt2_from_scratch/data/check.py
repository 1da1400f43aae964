"""How long texts are, what a limit cuts from them, and whether length alone tells labels apart.

N texts.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import binomtest

from gpt2_from_scratch.data.lines import Fault, Row
from gpt2_from_scratch.data.messages import (
    CONTROL,
    FORMULA,
    REPLACEMENT,
    Message,
    count_labels,
    labelled_rows,
    labels_alike,
    on_one_line,
    source_path,
)
from gpt2_from_scratch.data.near_duplicates import THRESHOLD, has_twin, masked, twin_groups
from gpt2_from_scratch.data.split import FRACTIONS, Split, split_messages, texts_with_two_labels
from gpt2_from_scratch.errors import DataError, UsageError
from gpt2_from_scratch.gpt2.config import read_config
from gpt2_from_scratch.gpt2.tokenizer import Tokenizer
from gpt2_from_scratch.storage.paths import model_folder

# --- How many test texts training has seen, or nearly seen, under three ways to split. ---


@dataclass(frozen=True)
class Leak:
    """Test texts that stand in training too (seen), or have a near twin or a copy there (near).

    `plain`: the rows split 70 / 10 / 20 % just as they are; `our`: as `split_messages` does;
    `together`: with near twins in one part, None where that cannot be done.
    """

    plain_test: int
    plain_seen: int
    plain_near: int
    our_test: int
    our_seen: int
    our_near: int
    together_test: int | None
    together_near: int | None


def count_leaks(messages: Sequence[Message], split: Split, seed: int) -> Leak:
    """Count them; `split` is ours of these messages, and `seed` draws the other two."""
    texts = [message.text for message in messages]
    order = np.random.RandomState(seed).permutation(len(texts))
    first, second = (int(fraction * len(texts)) for fraction in FRACTIONS)
    plain_seen, plain_near = _seen_and_near(
        [texts[n] for n in order[:first]], [texts[n] for n in order[first + second :]]
    )
    our_seen, our_near = _of_split(split)
    try:
        kept = split_messages(messages, seed=seed, together="near-twins", on_error="skip")
    except DataError:
        kept = None
    return Leak(
        plain_test=len(texts) - first - second,
        plain_seen=plain_seen,
        plain_near=plain_near,
        our_test=len(split.test),
        our_seen=our_seen,
        our_near=our_near,
        together_test=len(kept.test) if kept else None,
        together_near=_of_split(kept)[1] if kept else None,
    )


def _of_split(split: Split) -> tuple[int, int]:
    train, test = ([message.text for message in part] for part in (split.train, split.test))
    return _seen_and_near(train, test)


def _seen_and_near(train: list[str], test: list[str]) -> tuple[int, int]:
    seen = set(train)
    return sum(text in seen for text in test), int(has_twin(test, train).sum())


@dataclass(frozen=True)
class Lengths:
    """How long texts are."""

    shortest: int
    median: float
    longest: int


@dataclass(frozen=True)
class Cut:
    """What a limit takes away: how many texts are longer, how many of all their tokens are lost."""

    limit: int
    texts: int
    tokens: int
    all_tokens: int


@dataclass(frozen=True)
class LabelLengths:
    """The median length of one label's texts, and how often one of them is longer than one of
    another label: of all such pairs, equal ones counted half. None where there is no other label.
    """

    median: float
    longer: float | None


def spread(lengths: Sequence[int]) -> Lengths | None:
    """The shortest, the median and the longest; None of no texts."""
    if not lengths:
        return None
    return Lengths(min(lengths), float(np.median(lengths)), max(lengths))


def cut(lengths: Sequence[int], limit: int) -> Cut:
    """What is lost of texts of these lengths, in tokens, if they are cut behind `limit`."""
    over = [length - limit for length in lengths if length > limit]
    return Cut(limit, len(over), sum(over), sum(lengths))


def lengths_by_label(lengths: Sequence[int], labels: Sequence[str]) -> dict[str, LabelLengths]:
    """{label: its texts' lengths} of N texts, in the labels' alphabetical order.

    `longer` is the area under the ROC curve of the length, by ranks: Mann and Whitney 1947.
    """
    values, place, counts = np.unique(
        np.array(lengths, dtype=int), return_inverse=True, return_counts=True
    )
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]  # (N,), from 1; of equals the mean
    found = {}
    for label in sorted(set(labels)):
        own = np.array([other == label for other in labels])
        n, others = int(own.sum()), int((~own).sum())
        wins = float(ranks[own].sum()) - n * (n + 1) / 2
        median = float(np.median(values[place[own]]))
        found[label] = LabelLengths(median, wins / (n * others) if others else None)
    return found


# --- What to think of before training on labelled texts: it hinders nothing, but scores hang on it. ---


MOST_UNEVEN = 3  # times as many texts of the commonest label as of the rarest
TELLING = 0.8  # of pairs of texts, those whose labels length tells
ACCURACY = 0.95  # of a classifier whose test is imagined
WIDEST = 0.03  # half of the interval of that accuracy


def remarks(
    counts: Mapping[str, int], lengths: Mapping[str, LabelLengths], n_test: int | None
) -> list[str]:
    """Sentences on uneven labels, on lengths that give labels away, on a small test part.

    `counts` are of the labels, not empty; `n_test` texts are in the test part, None where there
    is none.
    """
    return [*_uneven(counts), *_told_by_length(lengths), *_small_test(n_test)]


def _uneven(counts: Mapping[str, int]) -> list[str]:
    common, rare = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
    if counts[common] <= MOST_UNEVEN * counts[rare]:
        return []
    return [
        f"labels are uneven: {counts[common] / counts[rare]:.1f} {common} for one {rare}; see "
        "--balance and --class-weights balanced"
    ]


def _told_by_length(lengths: Mapping[str, LabelLengths]) -> list[str]:
    told = {label: of.longer for label, of in lengths.items() if of.longer is not None}
    if not told:
        return []
    # of two labels, about which the same can be said, the longer
    label = max(told, key=lambda label: (round(abs(told[label] - 0.5), 9), told[label]))
    share = max(told[label], 1 - told[label])
    if share < TELLING:
        return []
    which = "longer" if told[label] > 0.5 else "shorter"
    return [
        f"length alone tells much: of a text of {label} and another, that of {label} is the "
        f"{which} in {100 * share:.0f} % of pairs; a classifier may learn no more than that"
    ]


def _small_test(n_test: int | None) -> list[str]:
    if not n_test:
        return []
    low, high = binomtest(round(ACCURACY * n_test), n_test).proportion_ci(method="wilson")
    half = (high - low) / 2
    if half <= WIDEST:
        return []
    return [
        f"{n_test:,} test texts: an accuracy of {100 * ACCURACY:.0f} % would be known to plus or "
        f"minus {100 * half:.0f} points"
    ]


# --- What is in labelled messages before anything is trained on them: all is read, all is told. ---


FIRST = 5  # lines and examples told of each finding
SEED = 123  # of the splits that are tried


@dataclass(frozen=True)
class Found:
    """How many rows, and in which lines the first of them begin."""

    rows: int
    lines: list[int]


@dataclass(frozen=True)
class Share:
    """How many rows, and what part of all that can be read."""

    rows: int
    share: float


@dataclass(frozen=True)
class Example:
    """A text, the lines it (or one like it) stands in, and its labels there."""

    text: str
    lines: list[int]
    labels: list[str]


@dataclass(frozen=True)
class Groups:
    """Texts that go together: how many such groups, rows in them, and the first groups."""

    groups: int
    rows: int
    examples: list[Example]


@dataclass(frozen=True)
class Report:
    """All that `check_data` found. Counts are of rows, lines are counted from 1."""

    source: str
    rows: int  # with faults or without
    faults: dict[str, Found]
    stopped: str | None  # what is wrong with the file as a whole, where reading had to end
    labels: dict[str, Share]
    labels_alike: list[list[str]]
    duplicates: Groups  # texts that stand there more than once
    near_duplicates: Groups  # different texts that are near twins, or twins of twins
    contradictions: Groups  # texts with two labels
    near_contradictions: Groups  # different texts whose masked forms are equal, with two labels
    characters: Lengths | None
    tokens: Lengths | None
    model: str  # whose tokens
    n_ctx: int  # the most tokens it reads
    over_n_ctx: Found
    cuts: list[Cut]  # what is lost behind n_ctx, and behind --max-tokens
    lengths_by_label: dict[str, LabelLengths]  # in tokens
    formulas: Found  # texts that a spreadsheet would execute
    controls: Found
    replacements: Found  # texts with U+FFFD: something was lost before
    leak: Leak | None
    remarks: list[str]  # no obstacles, but to be known
    obstacles: list[str]  # to training; none: ready
    obstacles_with_skip: list[str]  # those that --on-error skip does not remove


def check_data(
    source: str | Path = "demo",
    *,
    text_column: str = "text",
    label_column: str = "label",
    encoding: str = "utf-8",
    model: str | Path = "mini",
    max_tokens: int | None = None,
) -> Report:
    """Read all rows of labelled messages without stopping at faults, and count what is in them.

    See `load_messages` for the arguments; `model` is whose tokens are counted, `max_tokens` a limit
    of whose cuts is told. Raises DataError only when there is no such file, CheckpointError when
    there is no such model, UsageError for `max_tokens` outside 1 to n_ctx.
    """
    path, folder = source_path(source), model_folder(model)
    tokenizer, n_ctx = Tokenizer(folder), read_config(folder).n_ctx
    limits = [n_ctx] if max_tokens is None else [n_ctx, max_tokens]
    if not 1 <= limits[-1] <= n_ctx:
        raise UsageError(f"max_tokens = {max_tokens} must be from 1 to n_ctx = {n_ctx}")
    rows, faults, stopped = _read(labelled_rows(source, text_column, label_column, encoding))
    messages = [Message(*row.values) for row in rows]
    texts = [message.text for message in messages]
    count_of = {text: len(tokenizer.encode(text)) for text in set(texts)}
    lengths = [count_of[text] for text in texts]
    by_label = lengths_by_label(lengths, [message.label for message in messages])
    counts = count_labels(messages)
    group_of = dict(zip(count_of, twin_groups(count_of), strict=True))
    both = texts_with_two_labels(messages)
    split, obstacles, with_skip = _obstacles(messages, faults, stopped)
    leak = count_leaks(messages, split, SEED) if split else None

    def found(what: Callable[[str], object]) -> Found:
        return _found(row.line for row in rows if what(row.values[0]))

    return Report(
        source=str(path),
        rows=len(rows) + len(faults),
        faults=_by_kind(faults),
        stopped=stopped,
        labels={k: Share(n, n / len(rows)) for k, n in counts.items()},
        labels_alike=labels_alike(message.label for message in messages),
        duplicates=_groups(rows, lambda text: text, lambda group: len(group) > 1),
        near_duplicates=_groups(rows, group_of.__getitem__, _has_two_texts),
        contradictions=_groups(rows, lambda text: text, lambda group: group[0].values[0] in both),
        near_contradictions=_groups(rows, masked, _has_two_texts_and_labels),
        characters=spread([len(text) for text in texts]),
        tokens=spread(lengths),
        model=str(model),
        n_ctx=n_ctx,
        over_n_ctx=found(lambda text: count_of[text] > n_ctx),
        cuts=[cut(lengths, limit) for limit in limits],
        lengths_by_label=by_label,
        formulas=found(lambda text: text.startswith(FORMULA)),
        controls=found(CONTROL.search),
        replacements=found(lambda text: REPLACEMENT in text),
        leak=leak,
        remarks=remarks(counts, by_label, leak.our_test if leak else None) if counts else [],
        obstacles=obstacles,
        obstacles_with_skip=with_skip,
    )


def _read(rows: Iterable[Row | Fault]) -> tuple[list[Row], list[Fault], str | None]:
    good, faults = [], []
    try:
        for row in rows:
            if isinstance(row, Row):
                good.append(row)
            else:
                faults.append(row)
    except DataError as error:
        return good, faults, str(error)
    return good, faults, None


def _obstacles(
    messages: list[Message], faults: list[Fault], stopped: str | None
) -> tuple[Split | None, list[str], list[str]]:
    """The split that --on-error skip would give, what is in the way without it, and with it."""
    lasting = [stopped] if stopped else []
    if alike := labels_alike(message.label for message in messages):
        lasting.append(f"labels that differ in case or white space only: {alike}")
    skipped: list[str] = []
    split = None
    try:
        split = split_messages(messages, seed=SEED, on_error="skip")
    except DataError as error:
        lasting += [str(error)] if messages or not stopped else []
    passing = [f"{len(faults):,} rows with faults"] if faults else []
    if skipped:
        passing.append(f"{len(texts_with_two_labels(messages)):,} texts with two labels")
    return split, passing + lasting, lasting


def _found(lines: Iterable[int]) -> Found:
    every = list(lines)
    return Found(len(every), every[:FIRST])


def _by_kind(faults: Sequence[Fault]) -> dict[str, Found]:
    kinds = dict.fromkeys(fault.kind for fault in faults)
    return {kind: _found(f.line for f in faults if f.kind == kind) for kind in kinds}


def _groups(
    rows: Sequence[Row], key: Callable[[str], Hashable], wanted: Callable[[list[Row]], bool]
) -> Groups:
    by_key: dict[Hashable, list[Row]] = {}
    for row in rows:
        by_key.setdefault(key(row.values[0]), []).append(row)
    groups = [group for group in by_key.values() if wanted(group)]
    examples = [
        Example(
            group[0].values[0],
            [row.line for row in group[:FIRST]],
            sorted({row.values[1] for row in group}),
        )
        for group in groups[:FIRST]
    ]
    return Groups(len(groups), sum(map(len, groups)), examples)


def _has_two_texts(group: list[Row]) -> bool:
    return any(row.values[0] != group[0].values[0] for row in group)


def _has_two_texts_and_labels(group: list[Row]) -> bool:
    return _has_two_texts(group) and len({row.values[1] for row in group}) > 1


# --- The findings of `check_data` as a person reads them. ---


def format_report(report: Report) -> str:
    """All findings, the ones that need mending first; the last line says whether to train."""
    lines = [f"{report.source}: {report.rows:,} rows read"]
    lines += [
        f"  {found.rows:,} with {kind}{_where(found)}" for kind, found in report.faults.items()
    ]
    if report.stopped:
        lines.append(f"  reading ended: {report.stopped}")
    if not report.labels:
        return "\n".join([*lines, _verdict(report)])
    lines.append("labels")
    lines += [
        f"  {share.rows:8,}  {100 * share.share:5.1f} %  {on_one_line(label)}"
        for label, share in report.labels.items()
    ]
    lines += [f"  differ in case or white space only: {alike}" for alike in report.labels_alike]
    common = max(report.labels, key=lambda label: report.labels[label].rows)
    lines.append(
        f"  always answering {on_one_line(common)} is right for "
        f"{100 * report.labels[common].share:.1f} %"
    )
    lines += _texts(report) + _lengths(report) + _leak(report) + _remarks(report)
    return "\n".join([*lines, _verdict(report)])


def _texts(report: Report) -> list[str]:
    lines = ["texts"]
    lines += _group("standing there more than once", report.duplicates)
    near = f"near twins (equal but for digits and punctuation, or in {100 * THRESHOLD:.0f} % of word pairs)"
    lines += _group(near, report.near_duplicates)
    lines += _group("with two labels", report.contradictions)
    alike = "with two labels, equal but for case, digits, punctuation or space"
    lines += _group(alike, report.near_contradictions)
    odd = {
        "beginning with = + - @, a tab or a return, which spreadsheets execute": report.formulas,
        "with NUL or control characters": report.controls,
        "with U+FFFD, where a character was lost before": report.replacements,
    }
    return lines + [f"  {found.rows:,} {what}{_where(found)}" for what, found in odd.items()]


def _group(what: str, groups: Groups) -> list[str]:
    if not groups.groups:
        return [f"  0 {what}"]
    examples = [
        f"    lines {', '.join(map(str, example.lines))}: {on_one_line(example.text):.60}  "
        f"({', '.join(map(on_one_line, example.labels))})"
        for example in groups.examples
    ]
    return [f"  {groups.rows:,} {what}, in {groups.groups:,} groups", *examples]


def _lengths(report: Report) -> list[str]:
    over = f"longer than the {report.n_ctx:,} tokens that {report.model} reads"
    lines = ["lengths"]
    lines += _length("characters", report.characters) + _length("tokens", report.tokens)
    lines.append(f"  {report.over_n_ctx.rows:,} {over}{_where(report.over_n_ctx)}")
    lines += [
        f"  cut behind {cut.limit:,} tokens, {cut.texts:,} texts lose {cut.tokens:,} tokens, "
        f"{100 * cut.tokens / max(1, cut.all_tokens):.1f} % of all"
        for cut in report.cuts
        if cut.texts or cut.limit < report.n_ctx
    ]
    lines += [
        f"  half of {on_one_line(label)} up to {lengths.median:,.0f} tokens"
        for label, lengths in report.lengths_by_label.items()
    ]
    return lines


def _length(what: str, lengths: Lengths | None) -> list[str]:
    if lengths is None:
        return []
    return [
        f"  {lengths.shortest:,} to {lengths.longest:,} {what}, half of them up to {lengths.median:,.0f}"
    ]


def _where(found: Found) -> str:
    more = ", ..." if found.rows > len(found.lines) else ""
    return f": line {', '.join(map(str, found.lines))}{more}" if found.lines else ""


def _leak(report: Report) -> list[str]:
    leak = report.leak
    if leak is None:
        return []
    lines = [
        "split into training, validation and test, 70 / 10 / 20 %",
        f"  row by row: {leak.plain_seen:,} of {leak.plain_test:,} test rows stand in training too, "
        f"{leak.plain_near:,} have a near twin or a copy there",
        f"  ours: {leak.our_seen:,} of {leak.our_test:,}; {leak.our_near:,} have a near twin there",
    ]
    if leak.together_test is None:
        return [*lines, "  with --together near-twins: the groups of texts are too few"]
    together = f"{leak.together_near:,} of {leak.together_test:,} have a near twin there"
    return [*lines, f"  with --together near-twins: {together}"]


def _remarks(report: Report) -> list[str]:
    lines = [f"  {on_one_line(remark)}" for remark in report.remarks]
    return ["remarks", *lines] if lines else []


def _verdict(report: Report) -> str:
    if not report.obstacles:
        return "ready to train"
    told = "to be mended: " + "; ".join(on_one_line(obstacle) for obstacle in report.obstacles)
    if report.obstacles_with_skip:
        return told + "; --on-error skip would not do"
    return told + "; or leave them out with --on-error skip"
