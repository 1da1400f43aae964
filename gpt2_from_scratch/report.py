"""The findings of `check_data` as a person reads them."""

from gpt2_from_scratch.characters import on_one_line
from gpt2_from_scratch.check import Found, Groups, Lengths, Report


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
    lines += [f"  {share.rows:8,}  {100 * share.share:5.1f} %  {on_one_line(label)}" for label, share in report.labels.items()]  # fmt: skip
    lines += [f"  differ in case or white space only: {alike}" for alike in report.labels_alike]
    lines += _texts(report) + _leak(report) + [_verdict(report)]
    return "\n".join(lines)


def _texts(report: Report) -> list[str]:
    lines = ["texts"]
    lines += _group("standing there more than once", report.duplicates)
    lines += _group("differing in case, digits, punctuation or space only", report.near_duplicates)
    lines += _group("with two labels", report.contradictions)
    lines += _length("characters", report.characters) + _length("tokens", report.tokens)
    odd = {
        f"longer than the {report.n_ctx:,} tokens that {report.model} reads": report.over_n_ctx,
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


def _length(what: str, lengths: Lengths | None) -> list[str]:
    if lengths is None:
        return []
    return [f"  {lengths.shortest:,} to {lengths.longest:,} {what}, half of them up to {lengths.median:,.0f}"]  # fmt: skip


def _where(found: Found) -> str:
    more = ", ..." if found.rows > len(found.lines) else ""
    return f": line {', '.join(map(str, found.lines))}{more}" if found.lines else ""


def _leak(report: Report) -> list[str]:
    leak = report.leak
    if leak is None:
        return []
    return [
        "split into training, validation and test, 70 / 10 / 20 %",
        f"  row by row: {leak.plain_seen:,} of {leak.plain_test:,} test rows stand in training too",
        f"  ours: {leak.our_seen:,} of {leak.our_test:,}; {leak.our_near:,} are like one in training "
        "but for case, digits, punctuation or space",
    ]


def _verdict(report: Report) -> str:
    if not report.obstacles:
        return "ready to train"
    told = "to be mended: " + "; ".join(on_one_line(obstacle) for obstacle in report.obstacles)
    if report.obstacles_with_skip:
        return told + "; --on-error skip would not do"
    return told + "; or leave them out with --on-error skip"
