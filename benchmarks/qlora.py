"""What QLoRA saves and costs: memory, loss curves and accuracy next to LoRA, seconds per step.

    python benchmarks/qlora.py

Memory is that of the matrices of all blocks, counted from their tensors. 1558M is made and quantised
one block at a time. The classifiers are trained on the miniature, with LoRA of rank 8 in every
block, once next to float32 matrices and once next to NF4. Both have the same seeds, batches and
settings. Seconds per step are measured in turns, on the miniature and on random weights of the size
of 124M.
"""

import argparse
import copy
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from adaptation import scored
from bench import measure_machine, note, random_gpt2, timed

from gpt2_from_scratch import Classifier, Split, TrainConfig, finetune, load_gpt2, load_split
from gpt2_from_scratch.classifier.freezing import set_trainable
from gpt2_from_scratch.classifier.train import Epoch, TrainingRun, to_labelled
from gpt2_from_scratch.data.messages import DataConfig
from gpt2_from_scratch.evaluation.metrics import wilson_interval
from gpt2_from_scratch.gpt2.config import SIZES, GPT2Config, LoRAConfig, read_config
from gpt2_from_scratch.gpt2.model import GPT2, init_weights
from gpt2_from_scratch.gpt2.nf4 import packed_weights, quantize_blocks
from gpt2_from_scratch.progress import silenced
from gpt2_from_scratch.speed.devices import set_threads
from gpt2_from_scratch.storage.paths import model_folder

KINDS = {"none": "LoRA", "nf4": "QLoRA"}
LABELS = ["ham", "spam"]


def main() -> None:
    """Measure and print everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="*", default=["mini", "124M", "1558M"])
    parser.add_argument("--seeds", nargs="*", type=int, default=[1, 2, 3])
    parser.add_argument("--texts", type=int, default=1000, help="training texts")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--steps", type=int, default=10, help="timed steps of each kind")
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    set_threads(args.threads)
    for size in args.sizes:
        print_memory(size)
    if args.seeds:
        print_training(args)
    if args.steps:
        print_seconds(args)
    print(measure_machine().describe())


def print_memory(size: str) -> None:
    """Print the bytes of the blocks' matrices before and after, and the errors of their values."""
    if size in SIZES:
        config, models = SIZES[size], random_blocks(SIZES[size])
    else:
        config, models = read_config(model_folder(size)), iter([load_gpt2(size)])
    before = after = seconds = squares = errors = 0.0
    for model in models:
        plain = {name: p.detach() for name, p in copy.deepcopy(model).named_parameters()}
        seconds += timed(lambda model=model: quantize_blocks(model))
        for name, packed in packed_weights(model).items():
            before += plain[name].nbytes
            after += sum(buffer.nbytes for buffer in packed.buffers())
            errors += float((packed() - plain[name]).double().square().sum())
            squares += float(plain[name].double().square().sum())
    print(
        f"{size}: {config.n_layer} blocks, {before / 1e6:.1f} MB in float32, {before / 2e6:.1f} MB in "
        f"bfloat16, {after / 1e6:.1f} MB in NF4, {32 * after / before:.3f} bits per weight; root mean "
        f"square error {100 * (errors / squares) ** 0.5:.2f}% of the root mean square; {seconds:.1f} s"
    )


def random_blocks(config: GPT2Config) -> Iterator[GPT2]:
    """Yield models of one random block each, as many as the model has."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(config.n_layer):
        model = GPT2(replace(config, n_layer=1, n_vocab=1, n_ctx=1))
        init_weights(model, generator)
        yield model


def print_training(args: argparse.Namespace) -> None:
    """Train each kind with each seed; print loss curves, accuracies and the paired difference."""
    split = load_split(DataConfig("sms"))
    order = np.random.RandomState(0).permutation(len(split.train))[: args.texts]
    split = Split([split.train[n] for n in order], split.val[:100], split.test)
    rows: dict[str, list[dict]] = {kind: [] for kind in KINDS}
    curves: dict[str, list[list[Epoch]]] = {kind: [] for kind in KINDS}
    for seed in args.seeds:
        for kind in KINDS:
            config = TrainConfig(
                n_last_blocks=0, epochs=args.epochs, patience=args.epochs, lr=args.lr, seed=seed
            )
            lora = LoRAConfig(rank=8, alpha=8, quantize=kind)
            with tempfile.TemporaryDirectory() as folder, silenced():
                classifier = Classifier.on_base("mini", LABELS, lora=lora, seed=seed)
                set_trainable(classifier.model, 0)
                curves[kind].append(finetune(classifier, split, config, Path(folder) / "run"))
                rows[kind].append(scored(classifier, split.test))
            note(f"{KINDS[kind]} {seed}: {100 * np.mean(rows[kind][-1]['correct']):.2f}%")
    for kind, histories in curves.items():
        for name in ("train_loss", "val_loss"):
            means = [
                statistics.mean(getattr(epoch, name) for epoch in epochs)
                for epochs in zip(*histories, strict=True)
            ]
            print(f"{KINDS[kind]}: {name} " + " ".join(f"{mean:.4f}" for mean in means))
        correct = np.mean([row["correct"] for row in rows[kind]], axis=0)
        low, high = wilson_interval(round(float(correct.sum())), len(correct))
        print(
            f"{KINDS[kind]}: {100 * correct.mean():.2f}% ({100 * low:.1f} to {100 * high:.1f}) of "
            f"{len(correct)} texts, per seed "
            + " ".join(f"{100 * np.mean(row['correct']):.2f}" for row in rows[kind])
        )
    # the texts are the sample: the answers of all seeds to one text count as one observation
    each = [np.mean([row["correct"] for row in rows[kind]], axis=0) for kind in ("nf4", "none")]
    differences = 100 * (each[0] - each[1])
    middle, half = differences.mean(), 1.96 * differences.std(ddof=1) / len(differences) ** 0.5
    print(f"difference {middle:+.2f} points ({middle - half:+.2f} to {middle + half:+.2f})")


def print_seconds(args: argparse.Namespace) -> None:
    """Print the seconds per step of both kinds, in turns, and their ratio."""
    split = load_split(DataConfig("sms"))
    with tempfile.TemporaryDirectory() as folder:
        bases = {"mini": model_folder("mini"), "124M": None}
        for size, base in bases.items():
            vocabulary = model_folder("mini") if size == "124M" else None
            if base is None:  # the vocabulary of the miniature is enough to measure steps
                config = replace(SIZES["124M"], n_vocab=4096)
                base = random_gpt2(Path(folder) / size, config, vocabulary=vocabulary)
            runs = {}
            for kind in KINDS:
                lora = LoRAConfig(rank=8, alpha=8, quantize=kind)
                classifier = Classifier.on_base(base, LABELS, lora=lora)
                set_trainable(classifier.model, 0)
                config = TrainConfig(n_last_blocks=0, epochs=1, batch_size=8)
                labelled = to_labelled(classifier, split.train)
                runs[kind] = TrainingRun(classifier, split, labelled, config, folder)
            seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
            for step in range(args.steps + 1):
                batch = list(range(8 * step, 8 * step + 8))
                for kind, run in runs.items():
                    seconds[kind].append(timed(lambda run=run, batch=batch: run.step(batch)))
            ratio = statistics.median(
                b / a for a, b in zip(*(each[1:] for each in seconds.values()), strict=True)
            )
            medians = {KINDS[kind]: statistics.median(each[1:]) for kind, each in seconds.items()}
            described = ", ".join(f"{name} {1000 * s:.0f} ms" for name, s in medians.items())
            print(f"{size}: {described} per step of 8 texts; median ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
