"""The command-line parser, with short help and short errors.

Help fits on a screen. An error is one line, and suggests the nearest correct spelling.
"""

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, NoReturn

from gpt2_from_scratch.classifier.settings import HeadSettings, TrainConfig
from gpt2_from_scratch.data.messages import DataConfig
from gpt2_from_scratch.errors import did_you_mean
from gpt2_from_scratch.gpt2.config import PretrainConfig
from gpt2_from_scratch.progress import program
from gpt2_from_scratch.storage.paths import MODELS, known_name

# settings that --help shows; only --help-all shows the others
COMMON = set(
    "source text_column label_column balance task lora n_last_blocks epochs batch_size lr "
    "seed n_vocab n_embd n_layer steps".split()
)
RARE = {"cache", "device", "dtype", "stream_blocks", "tensorboard", "threads"} | {
    field.name
    for kind in (DataConfig, HeadSettings, TrainConfig, PretrainConfig)
    for field in fields(kind)
    if field.name not in COMMON
}
MOST_EXAMPLES = 4  # most examples that --help shows
FOR_WORDS = ("--data", "--corpus", "--file")  # options that people forget to type


class Help(argparse.RawDescriptionHelpFormatter):
    """A formatter of help that leaves out the options whose destination is in `hidden`."""

    hidden: frozenset[str] | set[str] = frozenset()

    def add_argument(self, action: argparse.Action) -> None:
        """Add an option, unless it is hidden."""
        if action.dest not in self.hidden:
            super().add_argument(action)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if isinstance(action, argparse.BooleanOptionalAction):
            return f"--[no-]{action.option_strings[0].removeprefix('--')}"
        return super()._format_action_invocation(action)


class HelpAll(argparse.Action):
    """The action of --help-all: print the help with all options, and exit."""

    def __call__(self, parser: Any, *_: Any) -> None:
        parser.shows_all = True
        parser.print_help()
        parser.exit()


class Parser(argparse.ArgumentParser):
    """A parser of one command, or of the command line as a whole."""

    shows_all = False  # whether the help shows every option

    def __init__(self, *, examples: Sequence[str] = (), **options: Any):
        super().__init__(formatter_class=Help, **options)
        self.examples = [example.replace("gpt2-classifier", program()) for example in examples]

    # --- help ---

    @property
    def hidden(self) -> set[str]:
        """The destinations of the options that the help leaves out."""
        return set() if self.shows_all else RARE & {action.dest for action in self._actions}

    def format_help(self) -> str:
        """The text of the help: how the command is called, its options, and some examples."""
        self.usage = self._usage()
        if self.examples:
            shown = self.examples if self.shows_all else self.examples[:MOST_EXAMPLES]
            self.epilog = "examples:\n  " + "\n  ".join(shown)
            if n := len(self.hidden):
                self.epilog += f"\n\n{n} more options: {self.prog} --help-all"
        return super().format_help()

    def _usage(self) -> str:
        """The command, its required options and its positional arguments."""
        words = [self.prog, "[options]"]
        for action in self._actions:
            name = action.metavar or action.dest.upper()
            if action.option_strings:
                words += [action.option_strings[0], str(name)] if action.required else []
            elif action.help != argparse.SUPPRESS:
                several = {"*": f"[{name} ...]", "?": f"[{name}]", argparse.PARSER: f"{name} ..."}
                words.append(several.get(str(action.nargs), str(name)))
        return " ".join(words).replace("%", "%%")

    def _get_formatter(self) -> argparse.HelpFormatter:
        formatter = super()._get_formatter()
        if isinstance(formatter, Help):
            formatter.hidden = self.hidden
        return formatter

    # --- errors ---

    def error(self, message: str) -> NoReturn:
        """Print what is wrong, and exit with code 2.

        If the message does not say what to do, a hint at --help follows.
        """
        hint = "" if message.endswith((".", "?")) else f"\nsee {self.prog} --help"
        self.exit(2, f"{self.prog}: {message}{hint}\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        choices = [str(choice) for choice in action.choices]
        what = "/".join(action.option_strings) or (action.metavar or action.dest)
        hint = did_you_mean(str(value), choices) or f" Choose from {', '.join(choices)}."
        raise argparse.ArgumentError(None, f"unknown {str(what).lower()} {value!r:.80}.{hint}")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as argparse does; return the options, and the words that are left over.

        These words are texts if the command takes texts. Otherwise they are an error, and so is an
        unknown option.
        """
        found, rest = super().parse_known_args(args, namespace)
        takes_texts = hasattr(found, "texts")
        if options := [word for word in rest if word.startswith("-")]:
            self.error(self._unknown(options[0], takes_texts))
        if rest and not takes_texts:
            self.error(self._unexpected(rest[0]))
        return found, rest

    def _unknown(self, option: str, takes_texts: bool) -> str:
        known = [name for action in self._actions for name in action.option_strings]
        option = option.split("=")[0]
        hint = did_you_mean(option, [name for name in known if name.startswith("--")])
        if not hint and takes_texts:
            hint = " Put -- before texts that begin with -."
        return f"unknown option {option:.80}{'.' if hint else ''}{hint}"

    def _unexpected(self, word: str) -> str:
        known = {name for action in self._actions for name in action.option_strings}
        options = ["--model"] if known_name(word) in MODELS and not os.path.exists(word) else []
        likely = next((name for name in (*options, *FOR_WORDS) if name in known), "")
        hint = f". Did you mean {likely} {word:.80}?" if likely else ""
        return f"unexpected word {word!r:.80}{hint}"


class Commands:
    """The commands of a parser."""

    def __init__(self, parser: Parser):
        self.parsers = parser.add_subparsers(title="commands", metavar="COMMAND")

    def add(
        self, name: str, run: Callable[[argparse.Namespace], None], what: str, *examples: str
    ) -> Parser:
        """Add a command, and return its parser, to which its options can be added.

        `run` is the function that runs it, `what` its help, and `examples` show how to call it.
        """
        parser = self.parsers.add_parser(
            name,
            help=what,
            description=what[0].upper() + what[1:] + ".",
            examples=examples,
            add_help=False,
        )
        parser.add_argument("-h", "--help", action="help", help="show this help")
        parser.add_argument("--help-all", action=HelpAll, nargs=0, help="show every option")
        parser.add_argument(
            "-v", "--verbose", action="store_true", help="show details, and tracebacks of errors"
        )
        parser.set_defaults(command=name, run=run)
        return parser
