"""Labels, names and texts that Hypothesis makes up, through what the command prints."""

import csv
import io
import unicodedata
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import campaign
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from gpt2_from_scratch.classifier.classifier import Classifier
from gpt2_from_scratch.cli.main import main
from gpt2_from_scratch.reports.render import environment, escape_markdown

BIDI = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")  # Unicode's explicit codes
ODD = [chr(n) for n in (*range(1, 32), *range(0x7F, 0xA0), 0x2028, 0x2029, *range(0x200B, 0x2070))]
PIECES = st.sampled_from(
    [*ODD, *ODD, "\x1b[2J", "\x1b]0;title\x07", "<b>", "|", "`", "=1", "a", "é", "漢"]
)
WORDS = st.lists(PIECES, min_size=1, max_size=12).map("".join)
NAMES = WORDS.map(lambda word: word.replace("/", "")[:40])


def obeyed(text: str) -> set[str]:
    """What a terminal would obey; tabs and line feeds are the command's own too."""
    return {
        c
        for c in set(text) - set("\t\n")
        if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")
        or unicodedata.bidirectional(c) in BIDI
    }


def printed(*words: object) -> tuple[int, str]:
    """The exit code, and all that a command printed."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code = main([str(word) for word in words])
        except SystemExit as stopped:
            code = int(stopped.code or 0)
    return code, out.getvalue() + err.getvalue()


def look(folder: Path, name: str, label: str, text: str, seen: Counter) -> None:
    """Print a report on a table, an answer, and errors that name things."""
    table = folder / f"{name}.csv"
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerows([["label", "text"], *([label, f"{text} {n}"] for n in range(3))])
    run = folder / "best.safetensors"
    Classifier.on_base("mini", ["ham", f"x{label}"]).save(run)
    for words in (
        ["check", table],
        ["predict", run, "--", text],
        ["predict", run, "--json", "--", text],
        ["predict", run, "--threshold", f"{name}=2", "a"],
        ["verify", folder / name],
        ["train", "--data", table, "--text-column", name],
        ["cache", f"--{name}"],
    ):
        code, shown = printed(*words)
        assert code != 1 and shown, words
        assert not obeyed(shown), (words, shown)
        seen["commands"] += 1
        seen["escapes"] += "\\x" in shown or "\\u" in shown
    table.unlink()
    page = environment(".html").from_string("{{ text }}").render(text=label + text)
    assert not obeyed(page + escape_markdown(label + text))


def commands(count: int, number: int, folder: Path) -> Counter:
    """At least `count` commands on made-up names, labels and texts."""
    torch.set_num_threads(1)
    seen: Counter = Counter()
    progress = campaign.Progress(count, "commands")

    @seed(number)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(NAMES, WORDS, WORDS)
    def each(name: str, label: str, text: str) -> None:
        if seen["commands"] < count:
            look(folder, name, label, text, seen)
            progress(seen["commands"])

    each()
    return seen


if __name__ == "__main__":
    campaign.main(commands)
