"""The findings of `check_data` as a person reads them."""

from gpt2_from_scratch.characters import on_one_line
from gpt2_from_scratch.check import Found, Groups, Report
from gpt2_from_scratch.lengths import Lengths
from gpt2_from_scratch.near_twins import THRESHOLD


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
