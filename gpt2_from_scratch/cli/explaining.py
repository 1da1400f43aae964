"""The command `explain`: which words or tokens of a text matter for its answer."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2_from_scratch.cli.classifying import (
    add_texts,
    check_texts,
    load_classifier,
    numbered_texts,
)
from gpt2_from_scratch.cli.options import add_computing, given, new_path, non_empty
from gpt2_from_scratch.data.messages import on_one_line, short
from gpt2_from_scratch.errors import DataError, UsageError
from gpt2_from_scratch.progress import print_coloured, shows_colours

if TYPE_CHECKING:
    from gpt2_from_scratch.explain.tokens import Explanation

METHODS = ("leave-one-out", "integrated-gradients", "gradient-x-input")
MOST_ON_A_PAGE = 100  # texts
# backgrounds among a terminal's 256 colours, from weak to strong; people who do not see red or green
# can tell orange from blue
FOR, AGAINST = (230, 223, 215, 208), (195, 153, 117, 75)
WEAKEST = 0.05  # parts below this proportion of the largest value have no colour


def add_explain(commands: Any) -> None:
    """Add `explain`."""
    parser = commands.add(
        "explain",
        run_explain,
        "show which words of a text matter for its answer",
        "gpt2-classifier explain runs/demo 'Claim your free prize, call 0800 123 now'",
        "gpt2-classifier explain runs/demo 'Claim your free prize' --html why.html",
        "gpt2-classifier explain runs/demo 'See you at six' --label ham --unit token",
        "gpt2-classifier explain runs/demo --method integrated-gradients --file inbox.txt --json",
    )
    add_texts(parser)
    parser.add_argument(
        "--method",
        choices=METHODS,
        help="leave-one-out: answer the text without each word; integrated-gradients: divide the "
        "difference from a baseline among the words; gradient-x-input: a fast approximation "
        "(default: leave-one-out)",
    )
    parser.add_argument(
        "--unit", choices=["word", "token"], help="explain words or tokens (default: word)"
    )
    parser.add_argument(
        "--label",
        type=non_empty,
        help="label to explain (default: the most probable label, or the first value)",
    )
    parser.add_argument(
        "--head", type=non_empty, metavar="NAME", help="the head to explain (default: the first)"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON object per text")
    form.add_argument(
        "--html",
        type=new_path,
        metavar="FILE",
        help=f"a new .html file, with at most {MOST_ON_A_PAGE} texts",
    )
    add_computing(parser)


def run_explain(args: argparse.Namespace) -> None:
    """Print what each word of each text adds to a label, or write it to a page."""
    from gpt2_from_scratch.explain import gradients, tokens

    check_texts(args)
    classifier = load_classifier(args)
    functions = (
        tokens.leave_one_out,
        gradients.integrated_gradients,
        gradients.gradient_times_input,
    )
    explain = dict(zip(METHODS, functions, strict=True))[args.method or METHODS[0]]
    options = given(args, "label", "unit", "head")
    texts = numbered_texts(args)
    if args.html:
        explained: list[tuple[Explanation, list[tuple[str, float]]]] = []
        for _, text in texts:
            if len(explained) == MOST_ON_A_PAGE:
                raise UsageError(
                    f"--html shows at most {MOST_ON_A_PAGE} texts. Use --json for more."
                )
            found = explain(classifier, text, **options)
            after = tokens.after_each_token(classifier, text, found.label, head=found.head)
            explained.append((found, after))
        _write_page(explained, args.html)
        return
    for n, (number, text) in enumerate(texts):
        found = explain(classifier, text, **options)
        if args.json:
            print(json.dumps({"number": number} | found.as_dict()))
        else:
            print("" if n else f"{found.method}: {_about(found)}\n{found.limit}\n")
            _print(found)
        sys.stdout.flush()  # another program may be waiting for each answer


def _write_page(explained: "list[tuple[Explanation, list[tuple[str, float]]]]", path: Path) -> None:
    from gpt2_from_scratch.reports.render import write_explanations

    if not explained:
        raise DataError("there are no texts to explain")
    write_explanations(explained, path)
    print(path)


def _about(explanation: "Explanation") -> str:
    """What the numbers or colours mean."""
    adds = f"what each part adds to the {explanation.quantity}"
    if not shows_colours(sys.stdout):
        return f"{adds}."
    return f"{adds}; orange speaks for the label, blue against it."


def _print(explanation: "Explanation") -> None:
    """Print the label and its probability, and the text with colours or numbers."""
    evidence = f"{explanation.quantity} {explanation.evidence:+z.2f}"
    chance = "" if explanation.probability is None else f"{explanation.probability:.3f}, "
    mark = " (cut)" if explanation.truncated else ""
    print(f"{short(explanation.label)}  {chance}{evidence}{mark}")
    strongest = max((abs(part.value) for part in explanation.parts), default=0.0)
    pieces: list[tuple[str, int | None]] = []
    for part in explanation.parts:
        word = on_one_line(part.text)
        before, after = part.text.partition(part.text.strip())[::2] if word else (part.text, "")
        pieces.append((" " if before else "", None))
        if shows_colours(sys.stdout):
            pieces.append((word, _colour(part.value, strongest)))
        else:
            pieces.append((f"{word}({part.value:+z.2f})", None))
        pieces.append((" " if after else "", None))
    print_coloured(pieces, sys.stdout)


def _colour(value: float, strongest: float) -> int | None:
    """The background of a part."""
    strength = abs(value) / strongest if strongest else 0.0
    if strength < WEAKEST:
        return None
    colours = FOR if value > 0 else AGAINST
    return colours[min(int(strength * len(colours)), len(colours) - 1)]
