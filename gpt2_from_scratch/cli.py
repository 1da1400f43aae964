"""The command `gpt2-classifier`: each subcommand is one function of the package.

Results go to standard output, everything else to standard error. Nothing heavy is imported before a command
is chosen, so that --help answers at once.
"""

import argparse
import csv
import errno
import json
import os
import sys
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from itertools import islice
from pathlib import Path
from typing import Any

from gpt2_from_scratch.config import PretrainConfig, TrainConfig
from gpt2_from_scratch.errors import DataError, GPT2Error

MODEL_HELP = "mini (ships with the package), 124M, 355M, 774M, 1558M, or a model's folder"
DATA_HELP = (
    "demo (ships with the package), sms (the SMS Spam Collection), or a .csv, .tsv or .jsonl file"
)
EXIT_CODES = (
    "exit codes: 0 done, 1 a bug, 2 usage, 3 data, 4 model or weights, 5 network, 6 memory or disk, "
    "130 interrupted"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. A user's mistake gives a message, not a traceback."""
    parser = build_parser()
    args, rest = parser.parse_known_args(arguments)
    if rest and (not hasattr(args, "texts") or any(text.startswith("-") for text in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:  # argparse passes over texts that stand behind an option
        args.texts += rest
    try:
        args.command(args)
        sys.stdout.flush()
        return 0
    except BrokenPipeError:  # the reader of our output, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    except GPT2Error as error:
        return _failed(error, error.exit_code, args.verbose)
    except MemoryError as error:
        return _failed(error, 6, args.verbose)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        return _failed(error, 6 if full else 3, args.verbose)


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="gpt2-classifier",
        description="GPT-2, written by hand, as a text classifier you can trust.",
        epilog="gpt2-classifier COMMAND --help shows examples.  " + EXIT_CODES,
    )
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    train = _add(
        commands, "train", run_train, "finetune a pretrained GPT-2 into a classifier",
        "gpt2-classifier train",
        "gpt2-classifier train --data sms --balance --seed 1",
        "gpt2-classifier train --model 124M --data reviews.csv --label-column stars --out runs/reviews",
        "gpt2-classifier train --model 124M --data sms --recipe lecture",
    )  # fmt: skip
    _add_model_and_data(train)
    train.add_argument("--out", type=Path, help="the run's folder (default: a new one in runs/)")
    train.add_argument(
        "--recipe", choices=["default", "lecture"], default="default",
        help="lecture: step by step as the lecture does it; only --seed applies (default: default)",
    )  # fmt: skip
    train.add_argument("--balance", action="store_true", help="as many texts of each label")
    train.add_argument(
        "--pooling", choices=["last_token", "last_position", "first_token", "mean"],
        default="last_token", help="where a text is read (default: last_token)",
    )  # fmt: skip
    train.add_argument("--max-tokens", type=int, help="cut longer texts (default: n_ctx)")
    _add_settings(train, TrainConfig)

    evaluate = _add(
        commands, "evaluate", run_evaluate, "score a saved classifier on labelled messages",
        "gpt2-classifier evaluate runs/mini-demo-123",
        "gpt2-classifier evaluate runs/mini-demo-123 --data more.csv --json",
    )  # fmt: skip
    evaluate.add_argument("run", type=Path, help="a run's folder, or its best.safetensors")
    evaluate.add_argument("--model", help="where the base model lies, if it has no known name")
    evaluate.add_argument("--data", help=DATA_HELP + " (default: the run's own test messages)")
    _add_columns(evaluate)
    evaluate.add_argument("--json", action="store_true", help="one JSON object")

    predict = _add(
        commands, "predict", run_predict, "classify texts",
        "gpt2-classifier predict runs/mini-demo-123 'You won! Call now' 'see you at six'",
        "gpt2-classifier predict runs/mini-demo-123 --file inbox.txt --csv > labels.csv",
        "cat inbox.txt | gpt2-classifier predict runs/mini-demo-123 --json",
    )  # fmt: skip
    predict.add_argument("run", type=Path, help="a run's folder, or its best.safetensors")
    predict.add_argument("texts", nargs="*", metavar="TEXT", help="texts (default: lines of stdin)")
    predict.add_argument(
        "--file", type=Path, help="lines of a text file, or a column of a .csv, .tsv or .jsonl file"
    )
    predict.add_argument("--text-column", default="text", help="its name (default: text)")
    predict.add_argument("--model", help="where the base model lies, if it has no known name")
    form = predict.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="a JSON object a line")
    form.add_argument("--csv", action="store_true", help="number, label, probabilities")

    verify = _add(
        commands, "verify", run_verify, "check a model's files, one by one and number by number",
        "gpt2-classifier verify mini",
        "gpt2-classifier verify weights/124M",
    )  # fmt: skip
    verify.add_argument("model", help=MODEL_HELP)

    generate = _add(
        commands, "generate", run_generate, "continue a text: see that the weights are right",
        "gpt2-classifier generate --prompt 'Every effort moves you'",
        "gpt2-classifier generate --prompt 'Hi, are you' --temperature 0.8 --top-k 40 --seed 7",
    )  # fmt: skip
    generate.add_argument("--model", default="mini", help=MODEL_HELP + " (default: mini)")
    generate.add_argument("--prompt", required=True, help="the text to continue")
    generate.add_argument("--tokens", type=int, default=40, help="new tokens (default: 40)")
    generate.add_argument(
        "--temperature", type=float, default=0.0, help="0: the likeliest; 1: drawn (default: 0)"
    )
    generate.add_argument("--top-k", type=int, help="draw from the k likeliest only")
    generate.add_argument("--seed", type=int, default=123, help="of the drawing (default: 123)")

    pretrain = _add(
        commands, "pretrain", run_pretrain, "train a small GPT-2 from nothing on plain text",
        "gpt2-classifier pretrain --corpus texts/ --out runs/my-gpt2 --steps 500",
        "gpt2-classifier pretrain --corpus texts/ --out runs/my-gpt2 --steps 1000 --resume",
    )  # fmt: skip
    pretrain.add_argument("--corpus", type=Path, required=True, help="a folder of .txt files")
    pretrain.add_argument("--out", type=Path, required=True, help="the model's folder")
    pretrain.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    pretrain.add_argument(
        "--dtype", choices=["float32", "float16"], default="float32", help="of the weights on disk"
    )
    _add_settings(pretrain, PretrainConfig)

    download = _add(
        commands, "download", run_download, "fetch OpenAI's weights or the SMS Spam Collection",
        "gpt2-classifier download 124M",
        "gpt2-classifier download sms",
    )  # fmt: skip
    download.add_argument("what", choices=["124M", "355M", "774M", "1558M", "sms"])
    for command in (train, evaluate, predict, generate, pretrain):
        command.add_argument(
            "--device", default="auto", choices=["auto", "cpu", "cuda", "mps"],
            help="what computes (default: auto)",
        )  # fmt: skip
    return parser


def run_train(args: argparse.Namespace) -> None:
    """Finetune a classifier and print its scores on the test part."""
    from gpt2_from_scratch.devices import choose_device
    from gpt2_from_scratch.metrics import format_evaluation
    from gpt2_from_scratch.recipes import train_as_the_lecture, train_classifier

    device = choose_device(args.device)
    if args.recipe == "lecture":
        run, _, evaluation = train_as_the_lecture(
            args.model, args.data, args.out, seed=args.seed, device=device
        )
    else:
        run, _, evaluation = train_classifier(
            args.model,
            args.data,
            args.out,
            _settings(args, TrainConfig),
            text_column=args.text_column,
            label_column=args.label_column,
            balance=args.balance,
            pooling=args.pooling,
            max_tokens=args.max_tokens,
            device=device,
            say=say,
        )
    print(f"test part, {evaluation.total} messages never trained on or chosen by:")
    print(format_evaluation(evaluation))
    say(f"\nsaved in {run}; use it with\n  gpt2-classifier predict {run} 'a message of yours'")


def run_evaluate(args: argparse.Namespace) -> None:
    """Print a saved classifier's scores on labelled messages."""
    from gpt2_from_scratch.data import load_messages
    from gpt2_from_scratch.metrics import format_evaluation
    from gpt2_from_scratch.recipes import evaluate_classifier

    classifier = _load_classifier(args)
    folder = args.run if args.run.is_dir() else args.run.parent
    data = args.data or folder / "test.csv"
    messages = load_messages(data, text_column=args.text_column, label_column=args.label_column)
    evaluation = evaluate_classifier(classifier, messages)
    if args.json:
        print(json.dumps({"accuracy": evaluation.accuracy} | asdict(evaluation)))
    else:
        print(format_evaluation(evaluation))


def run_predict(args: argparse.Namespace) -> None:
    """Print the label and the probabilities of each text."""
    from gpt2_from_scratch.data import read_texts

    if args.file and args.texts:
        raise DataError("give texts or --file, not both")
    classifier = _load_classifier(args)
    if args.file:
        texts: Iterable[str] = read_texts(args.file, args.text_column)
    else:
        texts = args.texts or (line.rstrip("\r\n") for line in sys.stdin)
    labels = classifier.description.labels
    writer = csv.writer(sys.stdout, lineterminator="\n")
    if args.csv:
        writer.writerow(["number", "label", *labels])
    for number, text, prediction in _predictions(classifier, texts):
        if args.json:
            print(json.dumps({"number": number} | asdict(prediction)))
        elif args.csv:
            shares = (f"{share:.6f}" for share in prediction.probabilities.values())
            writer.writerow([number, prediction.label, *shares])
        else:
            shares = (f"{name} {share:.3f}" for name, share in prediction.probabilities.items())
            shown = " ".join(text.split())  # one line a text
            print(f"{prediction.label}  ({', '.join(shares)})  {shown:.80}")


def run_verify(args: argparse.Namespace) -> None:
    """Print what was checked of a model; raises CheckpointError when something failed."""
    from gpt2_from_scratch.errors import CheckpointError
    from gpt2_from_scratch.verify import format_checks, verify_model

    checks = list(verify_model(args.model))
    print(format_checks(checks))
    failed = [check.what for check in checks if not check.ok]
    if failed:
        raise CheckpointError(
            f"{len(failed)} of {len(checks)} checks failed: {', '.join(failed[:5])}"
        )


def run_generate(args: argparse.Namespace) -> None:
    """Print a continued text."""
    import torch

    from gpt2_from_scratch.devices import choose_device
    from gpt2_from_scratch.generate import generate
    from gpt2_from_scratch.paths import model_folder
    from gpt2_from_scratch.tokenizer import Tokenizer
    from gpt2_from_scratch.weights import load_gpt2

    tokenizer = Tokenizer(model_folder(args.model))
    device = choose_device(args.device)
    ids = generate(
        load_gpt2(args.model).to(device),
        torch.tensor(tokenizer.encode(args.prompt), dtype=torch.int64, device=device),
        args.tokens,
        temperature=args.temperature,
        top_k=args.top_k,
        stop_id=tokenizer.end_of_text_id,
        seed=args.seed,
    )
    print(tokenizer.decode([token for token in ids.tolist() if token != tokenizer.end_of_text_id]))


def run_pretrain(args: argparse.Namespace) -> None:
    """Pretrain a model into a folder."""
    import torch

    from gpt2_from_scratch.devices import choose_device
    from gpt2_from_scratch.pretrain import pretrain

    pretrain(
        args.corpus,
        args.out,
        _settings(args, PretrainConfig),
        device=choose_device(args.device),
        dtype=getattr(torch, args.dtype),
        resume=args.resume,
        say=say,
    )
    say(
        f"saved in {args.out}; try it with\n  gpt2-classifier generate --model {args.out} --prompt Hi"
    )


def run_download(args: argparse.Namespace) -> None:
    """Fetch files and print where they lie."""
    from gpt2_from_scratch.download import download_model, download_sms_spam

    print(download_sms_spam() if args.what == "sms" else download_model(args.what))


def say(text: str) -> None:
    """Print to standard error, above a progress bar if one is there."""
    from tqdm import tqdm

    tqdm.write(text, file=sys.stderr)


def _predictions(classifier: Any, texts: Iterable[str]) -> Iterable[tuple[int, str, Any]]:
    """Classify in groups, so that a pipe of any length is answered as it comes."""
    remaining, number = iter(texts), 0
    while group := list(islice(remaining, 256)):
        for text, prediction in zip(group, classifier.predict(group), strict=True):
            number += 1
            yield number, text, prediction
        sys.stdout.flush()


def _load_classifier(args: argparse.Namespace) -> Any:
    from gpt2_from_scratch.classifier import Classifier
    from gpt2_from_scratch.devices import choose_device

    classifier = Classifier.load(args.run, args.model)
    classifier.model.to(choose_device(args.device))
    return classifier


def _add(
    commands: Any, name: str, function: Any, what: str, *examples: str
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=what,
        description=what[0].upper() + what[1:] + ".",
        epilog="examples:\n  " + "\n  ".join(examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="show tracebacks")
    parser.set_defaults(command=function)
    return parser


def _add_model_and_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="mini", help=MODEL_HELP + " (default: mini)")
    parser.add_argument("--data", default="demo", help=DATA_HELP + " (default: demo)")
    _add_columns(parser)


def _add_columns(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--text-column", default="text", help="of a file (default: text)")
    parser.add_argument("--label-column", default="label", help="of a file (default: label)")


def _add_settings(parser: argparse.ArgumentParser, kind: type) -> None:
    """An option for every field of a settings dataclass."""
    for field in fields(kind):
        option = "--" + field.name.replace("_", "-")
        meaning = f"{field.metadata['help']} (default: {field.default})"
        if isinstance(field.default, bool):
            parser.add_argument(
                option, action=argparse.BooleanOptionalAction, default=field.default, help=meaning
            )
        else:
            parser.add_argument(
                option, type=type(field.default), default=field.default, metavar="N", help=meaning
            )


def _settings(args: argparse.Namespace, kind: Any) -> Any:
    return kind(**{field.name: getattr(args, field.name) for field in fields(kind)})


def _failed(error: BaseException, code: int, verbose: bool) -> int:
    if verbose:
        traceback.print_exc()
    say(f"gpt2-classifier: {str(error) or type(error).__name__}")
    return code


def _version() -> str:
    from importlib.metadata import version

    return f"gpt2-classifier {version('gpt2-from-scratch')}"


if __name__ == "__main__":
    sys.exit(main())
