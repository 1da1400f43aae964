"""What can be typed after `gpt2-classifier`: commands, options, and examples of their use."""

import argparse
from pathlib import Path

from gpt2_from_scratch.classifier.settings import POOLINGS, HeadSettings
from gpt2_from_scratch.cli.options import (
    DATA_HELP,
    MODEL_HELP,
    add_columns,
    add_command,
    add_settings,
    add_training,
    path,
    something,
)
from gpt2_from_scratch.gpt2.config import PretrainConfig

EXIT_CODES = (
    "exit codes: 0 done, 1 a bug, 2 usage, 3 data, 4 model or weights, 5 network, 6 memory or disk, "
    "130 interrupted, 143 terminated"
)


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="gpt2-classifier",
        description="GPT-2, written by hand, as a text classifier you can trust.",
        epilog="gpt2-classifier COMMAND --help shows examples.  " + EXIT_CODES,
    )
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    train = add_command(
        commands,
        "train",
        "finetune a pretrained GPT-2 into a classifier",
        "gpt2-classifier train",
        "gpt2-classifier train --data sms --balance --seed 1",
        "gpt2-classifier train --model 124M --data reviews.csv --label-column stars --out runs/reviews",
        "gpt2-classifier train --data tickets.jsonl --task multi-label --head tanh --dropout 0.1",
        "gpt2-classifier train --data train.conll --task token-classification --n-last-blocks 2",
        "gpt2-classifier train --data squad.json --task span --model 124M --lora 16",
        "gpt2-classifier train --model 124M --data sms --recipe lecture",
        "gpt2-classifier train --resume runs/reviews",
    )
    add_training(train)
    train.add_argument("--val-data", type=something, help="a file of its own to choose by")
    train.add_argument(
        "--test-data", type=something, help="and one to test on; else parts of --data"
    )
    train.add_argument("--out", type=path, help="the run's folder (default: a new one in runs/)")
    train.add_argument(
        "--resume",
        type=path,
        metavar="RUN",
        help="go on with a run that was interrupted; settings are its own",
    )
    train.add_argument(
        "--recipe",
        choices=["default", "lecture"],
        help="lecture: step by step as the lecture does it; only --seed applies (default: default)",
    )

    find_rate = add_command(
        commands,
        "find-rate",
        "let the learning rate rise, draw the loss, suggest a rate",
        "gpt2-classifier find-rate --data sms --balance",
        "gpt2-classifier find-rate --model 124M --data reviews.csv --lora 8 --out rates.png",
    )
    add_training(find_rate)
    find_rate.add_argument("--steps", type=int, default=100, help="at most (default: 100)")
    find_rate.add_argument(
        "--out", type=path, default=Path("rates.png"), help="the picture (default: rates.png)"
    )

    compare = add_command(
        commands,
        "compare",
        "score a finetuned GPT-2 beside what it must beat, on the same splits",
        "gpt2-classifier compare",
        "gpt2-classifier compare --data sms --balance --seeds 1 2 3",
        "gpt2-classifier compare --data reviews.csv --folds 5 --n-last-blocks 2 --quick",
        "gpt2-classifier compare runs/mini-demo-123 runs/another-on-the-same-split",
    )
    compare.add_argument(
        "runs",
        type=path,
        nargs="*",
        metavar="RUN",
        help="finished runs that kept the same test texts; others are held against the first",
    )
    add_training(compare)
    many = compare.add_mutually_exclusive_group()
    many.add_argument(
        "--seeds", type=int, nargs="+", metavar="SEED", help="a split and a training of each"
    )
    many.add_argument(
        "--folds", type=int, metavar="N", help="cut into N parts instead, each tested on once"
    )
    compare.add_argument(
        "--out",
        type=path,
        help="a folder; what is finished there is not computed again (default: runs/compare-...)",
    )
    compare.add_argument(
        "--quick",
        action="store_true",
        default=None,
        help="without random weights and the slower baselines",
    )

    experiments = add_command(
        commands,
        "experiments",
        "run a whole table of experiments, each one change from the default",
        "gpt2-classifier experiments --list",
        "gpt2-classifier experiments --data sms --balance --epochs 5",
        "gpt2-classifier experiments --rows 'token position' LoRA --seeds 1 2 3",
    )
    add_training(experiments)
    experiments.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        default=[1, 2, 3, 4, 5],
        metavar="N",
        help="each a split, first weights and an order of messages (default: 1 2 3 4 5)",
    )
    experiments.add_argument(
        "--rows", nargs="+", metavar="ROW", help="rows, or kinds of rows, beside the default"
    )
    experiments.add_argument("--list", action="store_true", help="only say which rows there are")
    experiments.add_argument(
        "--jobs", type=int, metavar="N", help="processes side by side (default: one a processor)"
    )
    experiments.add_argument(
        "--out",
        type=path,
        help="a folder; what is finished there is not done again (default: runs/experiments-...)",
    )

    evaluate = add_command(
        commands,
        "evaluate",
        "score a saved classifier on labelled messages",
        "gpt2-classifier evaluate runs/mini-demo-123",
        "gpt2-classifier evaluate runs/mini-demo-123 --data more.csv --json",
        "gpt2-classifier evaluate runs/mini-demo-123 --watch spam --lose-at-most 1 --show 30",
    )
    evaluate.add_argument("run", type=path, help="a run's folder, or its best.safetensors")
    evaluate.add_argument(
        "--model", type=something, help="where the base model lies, if it has no known name"
    )
    evaluate.add_argument(
        "--data", type=something, help=DATA_HELP + " (default: the run's own test messages)"
    )
    add_columns(evaluate)
    evaluate.add_argument(
        "--watch",
        type=something,
        dest="positive",
        metavar="LABEL",
        help="the positive label, spam, that thresholds are for (default: the rarer of two)",
    )
    evaluate.add_argument(
        "--lose-at-most",
        type=float,
        nargs="+",
        dest="allowed_per_1000",
        metavar="N",
        help="false positives per 1,000 texts of other labels (default: 0 5 10 20)",
    )
    evaluate.add_argument(
        "--cost-of-losing",
        type=float,
        dest="cost",
        metavar="N",
        help="cost of a false positive, relative to a false negative (which costs 1)",
    )
    evaluate.add_argument(
        "--show",
        type=int,
        dest="n_shown",
        metavar="N",
        help="mistakes and least certain answers that are shown (default: 10)",
    )
    evaluate.add_argument("--json", action="store_true", help="one JSON object")

    predict = add_command(
        commands,
        "predict",
        "classify texts",
        "gpt2-classifier predict runs/mini-demo-123 'You won! Call now' 'see you at six'",
        "gpt2-classifier predict runs/mini-demo-123 --file inbox.txt --csv > labels.csv",
        "gpt2-classifier predict runs/mini-demo-123 --threshold spam=0.95 --file inbox.txt",
        "cat inbox.txt | gpt2-classifier predict runs/mini-demo-123 --json",
    )
    predict.add_argument("run", type=path, help="a run's folder, or its best.safetensors")
    predict.add_argument("texts", nargs="*", metavar="TEXT", help="texts (default: lines of stdin)")
    predict.add_argument(
        "--threshold",
        type=something,
        metavar="LABEL=P",
        help="answer LABEL only where its probability is at least P; evaluate shows what it costs",
    )
    predict.add_argument(
        "--file", type=path, help="lines of a text file, or a column of a .csv, .tsv or .jsonl file"
    )
    predict.add_argument("--text-column", default="text", help="its name (default: text)")
    predict.add_argument(
        "--model", type=something, help="where the base model lies, if it has no known name"
    )
    form = predict.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="a JSON object a line")
    form.add_argument("--csv", action="store_true", help="number, label, probabilities")
    predict.add_argument(
        "--with-text",
        action="store_true",
        help="with --csv: the text too, with ' before what a spreadsheet would execute",
    )

    features = add_command(
        commands,
        "features",
        "write hidden states of texts as an array, for tools of your own",
        "gpt2-classifier features --file inbox.txt --out states.npy",
        "gpt2-classifier features --file mail.csv --layer 4 --state raw --pooling mean --out x.npy",
    )
    features.add_argument(
        "--file", type=path, required=True, help="lines of a text file, or a column of a table"
    )
    features.add_argument("--text-column", default="text", help="its name (default: text)")
    features.add_argument(
        "--model", type=something, default="mini", help=MODEL_HELP + " (default: mini)"
    )
    features.add_argument("--out", type=path, required=True, help="the .npy file, (texts, n_embd)")
    add_settings(features, HeadSettings, "layer", "state", "pooling")

    check = add_command(
        commands,
        "check",
        "read messages with one class each and say what is wrong with them",
        "gpt2-classifier check reviews.csv --label-column stars",
        "gpt2-classifier check reviews.csv --encoding cp1252 --json",
    )
    check.add_argument("data", help=DATA_HELP)
    add_columns(check)
    check.add_argument(
        "--model", type=something, default="mini", help=MODEL_HELP + ", to count its tokens"
    )
    check.add_argument("--max-tokens", type=int, help="tell what this would cut too")
    check.add_argument("--json", action="store_true", help="one JSON object")

    verify = add_command(
        commands,
        "verify",
        "check the files of a model or a finished run, one by one",
        "gpt2-classifier verify mini",
        "gpt2-classifier verify weights/124M",
        "gpt2-classifier verify runs/mini-demo-123",
    )
    verify.add_argument("model", help=MODEL_HELP + "; or a run's folder")

    generate = add_command(
        commands,
        "generate",
        "continue a text: see that the weights are right",
        "gpt2-classifier generate --prompt 'Every effort moves you'",
        "gpt2-classifier generate --prompt 'Hi, are you' --temperature 0.8 --top-k 40 --seed 7",
    )
    generate.add_argument(
        "--model", type=something, default="mini", help=MODEL_HELP + " (default: mini)"
    )
    generate.add_argument("--prompt", required=True, help="the text to continue")
    generate.add_argument("--tokens", type=int, default=40, help="new tokens (default: 40)")
    generate.add_argument(
        "--temperature", type=float, default=0.0, help="0: the likeliest; 1: drawn (default: 0)"
    )
    generate.add_argument("--top-k", type=int, help="draw from the k likeliest only")
    generate.add_argument("--seed", type=int, default=123, help="of the drawing (default: 123)")

    pretrain = add_command(
        commands,
        "pretrain",
        "train a small GPT-2 from nothing on plain text",
        "gpt2-classifier pretrain --corpus texts/ --out runs/my-gpt2 --steps 500",
        "gpt2-classifier pretrain --corpus texts/ --out runs/my-gpt2 --steps 1000 --resume",
    )
    pretrain.add_argument("--corpus", type=path, required=True, help="a folder of .txt files")
    pretrain.add_argument("--out", type=path, required=True, help="the model's folder")
    pretrain.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    pretrain.add_argument(
        "--dtype", choices=["float32", "float16"], default="float32", help="of the weights on disk"
    )
    add_settings(pretrain, PretrainConfig)

    download = add_command(
        commands,
        "download",
        "fetch OpenAI's weights or the SMS Spam Collection",
        "gpt2-classifier download 124M",
        "gpt2-classifier download sms",
    )
    download.add_argument("what", choices=["124M", "355M", "774M", "1558M", "sms"])

    cache = add_command(
        commands,
        "cache",
        "show or clear what is kept of frozen blocks' output",
        "gpt2-classifier cache",
        "gpt2-classifier cache --clear",
    )
    cache.add_argument("--clear", action="store_true", help="remove all of it")

    probe = add_command(
        commands,
        "probe",
        "see at which layers a linear classifier can tell the labels",
        "gpt2-classifier probe",
        "gpt2-classifier probe --data sms --balance --out probes.png",
        "gpt2-classifier probe --data topics --pooling mean last_position --json",
    )
    probe.add_argument(
        "--model", type=something, default="mini", help=MODEL_HELP + " (default: mini)"
    )
    probe.add_argument(
        "--data",
        type=something,
        help="demo, topics, sms, or a .csv, .tsv or .jsonl file, one label a text (default: demo)",
    )
    add_columns(probe)
    probe.add_argument(
        "--pooling",
        choices=POOLINGS,
        nargs="+",
        dest="poolings",
        help="where texts are read (default: all that read no pads)",
    )
    probe.add_argument(
        "--balance", action="store_true", default=None, help="as many texts of each label"
    )
    probe.add_argument("--seed", type=int, help="of the split (default: 123)")
    probe.add_argument("--out", type=path, help="the picture to write, a .png")
    probe.add_argument("--json", action="store_true", help="a JSON list, one object a probe")

    for command in (
        train,
        find_rate,
        compare,
        experiments,
        evaluate,
        predict,
        features,
        probe,
        check,
    ):
        command.add_argument("--encoding", help="of a file (default: utf-8)")
    for command in (train, find_rate, compare, experiments, evaluate, predict, features, probe):
        command.add_argument(
            "--on-error",
            choices=["stop", "skip"],
            help="at a row with a fault: stop, or leave it out and say so (default: stop)",
        )
    for command in (train, compare, evaluate):
        command.add_argument(
            "--cache",
            action=argparse.BooleanOptionalAction,
            help="keep the frozen blocks' output on disk for the next run (default: yes)",
        )
    for command in (train, find_rate, compare, experiments, evaluate, predict, features, probe):
        command.add_argument(
            "--dtype",
            choices=["float32", "bfloat16"],
            help="of the frozen blocks: bfloat16 is quicker and takes half the room; what trains "
            "stays float32 (default: float32)",
        )
        command.add_argument("--threads", type=int, metavar="N", help="(default: every core)")
    for command in (
        train,
        find_rate,
        compare,
        evaluate,
        predict,
        features,
        probe,
        generate,
        pretrain,
    ):
        command.add_argument(
            "--device",
            default="auto",
            choices=["auto", "cpu", "cuda", "mps"],
            help="what computes (default: auto)",
        )
    return parser


def _version() -> str:
    from importlib.metadata import version

    return f"gpt2-classifier {version('gpt2-from-scratch')}"
