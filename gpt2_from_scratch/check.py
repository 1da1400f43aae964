"""What is in labelled messages before anything is trained on them: all is read, all is told."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpt2_from_scratch.characters import CONTROL, FORMULA, REPLACEMENT
from gpt2_from_scratch.config import read_config
from gpt2_from_scratch.data import Message, count_labels, labelled_rows, labels_alike, source_path
from gpt2_from_scratch.errors import DataError, UsageError
from gpt2_from_scratch.leaks import Leak, count_leaks
from gpt2_from_scratch.lengths import Cut, LabelLengths, Lengths, cut, lengths_by_label, spread
from gpt2_from_scratch.lines import Fault, Row
from gpt2_from_scratch.near_twins import masked, twin_groups
from gpt2_from_scratch.paths import model_folder
from gpt2_from_scratch.remarks import remarks
from gpt2_from_scratch.split import Split, split_messages, texts_with_two_labels
from gpt2_from_scratch.tokenizer import Tokenizer

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
        split = split_messages(messages, seed=SEED, on_error="skip", say=skipped.append)
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
