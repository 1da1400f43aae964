"""Write `commands.md` and `settings.md` from the code: `python docs/reference/generate.py`.

A test fails if these pages are not current.
"""

import argparse
import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any

from gpt2_from_scratch.classifier.settings import HeadConfig, HeadSettings, TrainConfig
from gpt2_from_scratch.cli.main import build_parser
from gpt2_from_scratch.data.messages import DataConfig
from gpt2_from_scratch.gpt2.config import LoRAConfig, PretrainConfig
from gpt2_from_scratch.storage.settings import COMPARISONS

FOLDER = Path(__file__).parent
NOTE = "<!-- Written by docs/reference/generate.py. Change the code and run it again. -->"
COMMANDS = """\
# Commands

{note}

`gpt2-classifier COMMAND --help` shows the most useful options on your terminal, and `--help-all` shows all. Every command also
has `--verbose` (`-v`). Options that several commands share are listed once, under [Shared options](#shared-options).

`python -m gpt2_from_scratch` is the same command. In bash and zsh, `eval "$(register-python-argcomplete gpt2-classifier)"`
completes commands and options with the tab key.

| command | what it does |
|---|---|
"""
SETTINGS = """\
# Settings

{note}

Each class below is a frozen dataclass. The options of `train` are made from the first three, and those of `pretrain` from
the last: `n_last_blocks` is `--n-last-blocks`. An unknown name, a wrong type or a value outside the bounds raises an error.
"""
KINDS = (DataConfig, HeadSettings, TrainConfig, HeadConfig, LoRAConfig, PretrainConfig)

Rows = list[tuple[str, str]]
Groups = dict[str, Rows]


def commands_page() -> str:
    """The page of all commands, with their options and examples."""
    parsers = _parsers(build_parser())
    found = {name: _groups(parser) for name, parser in parsers.items()}
    everywhere = [group for groups in found.values() for group in groups.items()]
    shared: Groups = {}
    for title, rows in everywhere:
        if title not in ("", *shared) and everywhere.count((title, rows)) > 1:
            shared[title] = rows
    page = COMMANDS.format(note=NOTE)
    for name, parser in parsers.items():
        page += f"| [`{name}`](#{name}) | {_cell(_first_line(parser))} |\n"
    for name, parser in parsers.items():
        page += f"\n## {name}\n\n{(parser.description or '').strip()}\n"
        links = [title for title, rows in found[name].items() if shared.get(title) == rows]
        for title, rows in found[name].items():
            if rows and title not in links:
                page += f"\n{_table(title.capitalize() or 'Option', rows)}"
        if links:
            page += f"\nShared options: {', '.join(f'[{t}](#{_anchor(t)})' for t in links)}.\n"
        if examples := _examples(parser):
            page += f"\n```text\n{examples}\n```\n"
    page += "\n## Shared options\n"
    for title, rows in shared.items():
        page += f"\n### {title[0].upper()}{title[1:]}\n\n{_table('Option', rows)}"
    return page


def settings_page() -> str:
    """The page of all settings, with their defaults and bounds."""
    page = SETTINGS.format(note=NOTE)
    for kind in KINDS:
        page += f"\n## {kind.__name__}\n\n{inspect.cleandoc(kind.__doc__ or '')}\n\n"
        page += "| setting | default | meaning | allowed |\n|---|---|---|---|\n"
        comments = _comments(kind)
        for field in dataclasses.fields(kind):
            meaning = field.metadata.get("help") or comments.get(field.name, "")
            default = "" if field.default is dataclasses.MISSING else f"`{_plain(field.default)}`"
            page += f"| `{field.name}` | {default} | {_cell(meaning)} | {_allowed(field)} |\n"
    return page


def _parsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def _first_line(parser: argparse.ArgumentParser) -> str:
    return (parser.description or "").split("\n\n")[0].replace("\n", " ")


def _examples(parser: argparse.ArgumentParser) -> str:
    """The examples of a command, for `gpt2-classifier` however it was started here."""
    lines = getattr(parser, "examples", None) or (parser.epilog or "").splitlines()[1:]
    program = parser.prog.rpartition(" ")[0]
    return "\n".join(line.strip().replace(program, "gpt2-classifier") for line in lines)


def _groups(parser: argparse.ArgumentParser) -> Groups:
    """The options by the title of their group; those of argparse's own groups under ""."""
    own = {"positional arguments", "options"}
    groups: Groups = {"": []}
    for group in parser._action_groups:
        rows = [_row(action) for action in group._group_actions if not _is_general(action)]
        title = "" if group.title in own else group.title or ""
        groups.setdefault(title, []).extend(row for row in rows if row)
    return groups


def _is_general(action: argparse.Action) -> bool:
    """Whether every command has this option."""
    return bool({"--help", "--help-all", "--verbose"} & {*action.option_strings})


def _row(action: argparse.Action) -> tuple[str, str] | None:
    if action.help == argparse.SUPPRESS:
        return None
    value = action.metavar or ""
    if isinstance(value, tuple):
        value = " ".join(value)
    if not value and action.choices and action.nargs != 0:
        value = "|".join(map(str, action.choices))
    elif not value and action.option_strings and action.nargs != 0:
        value = action.dest.upper()
    if isinstance(action, argparse.BooleanOptionalAction):
        value = ""
    name = ", ".join(action.option_strings) or value or action.dest
    shown = f"{name} {value}" if action.option_strings and value else name
    words = (action.help or "") % (vars(action) | {"prog": "gpt2-classifier"})
    return f"`{shown}`".replace("|", r"\|"), _cell(words)


def _table(heading: str, rows: Rows) -> str:
    lines = [
        f"| {heading} | Meaning |",
        "|---|---|",
        *(f"| {name} | {words} |" for name, words in rows),
    ]
    return "\n".join(lines) + "\n"


def _comments(kind: type) -> dict[str, str]:
    """The comments of fields, on the lines above them or at the ends of their lines."""
    source = inspect.getsource(kind)
    above = re.findall(r"^((?:    # .*\n)+)    (\w+):", source, flags=re.MULTILINE)
    found = {name: " ".join(re.findall(r"# (.*)", lines)) for lines, name in above}
    return found | dict(re.findall(r"^    (\w+): [^#\n]*#\s*(.*)$", source, flags=re.MULTILINE))


def _allowed(field: Any) -> str:
    if choices := field.metadata.get("choices"):
        return ", ".join(f"`{choice}`" for choice in choices)
    bounds = field.metadata.get("bounds", {})
    return " and ".join(
        f"{name} {bounds[name]:g}"
        for name in COMPARISONS
        if name in bounds and bounds[name] is not None
    )


def _plain(value: Any) -> str:
    return '""' if value == "" else str(value).replace("|", r"\|")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|").replace("<", "&lt;")


def _anchor(title: str) -> str:
    return re.sub(r"[^\w-]", "", title.lower().replace(" ", "-"))


def main() -> None:
    """Write both pages."""
    (FOLDER / "commands.md").write_text(commands_page(), encoding="utf-8")
    (FOLDER / "settings.md").write_text(settings_page(), encoding="utf-8")


if __name__ == "__main__":
    main()
