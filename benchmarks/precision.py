"""The effect of bfloat16 and int8 on logits, labels and accuracy, on the SMS Spam Collection.

The frozen blocks compute in bfloat16 and int8 here, whether or not this processor is fast at it.
Trainable parameters stay float32:

    python benchmarks/precision.py --seeds 1 2 3 4 5

The first table has the test sets of balanced splits. The second has all distinct messages, which each
classifier answers in all precisions; most of them were not in its training set.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch
from bench import measure_machine, note

from gpt2_from_scratch import Classifier, TrainConfig, load_messages, split_messages
from gpt2_from_scratch.classifier import classifier
from gpt2_from_scratch.classifier.train import finetune, to_labelled
from gpt2_from_scratch.evaluation.significance import compare_paired
from gpt2_from_scratch.speed.devices import DTYPES


def trained(split: object, seed: int, model: str, dtype: torch.dtype) -> Classifier:
    """A classifier trained on features in this precision."""
    found = Classifier.on_base(model, ["ham", "spam"], seed=seed, dtype=dtype)
    with tempfile.TemporaryDirectory() as run:
        finetune(found, split, TrainConfig(seed=seed), Path(run))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mini")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    args = parser.parse_args()
    classifier.arithmetic = lambda dtype, device: dtype  # use bfloat16 even if it is slow
    rows, answered = [], []
    everything = list({message.text: message for message in load_messages("sms")}.values())
    for seed in args.seeds:
        split = split_messages(load_messages("sms"), balance=True, seed=seed)
        exact, rounded = (
            trained(split, seed, args.model, dtype) for dtype in (torch.float32, torch.bfloat16)
        )
        labelled = to_labelled(exact, split.test)
        encoded, labels = labelled.texts.encoded, labelled.labels
        a, c = exact.logits(encoded), rounded.logits(encoded)
        exact.dtype = torch.bfloat16  # the same weights, computed in bfloat16
        b = exact.logits(encoded)
        answered.append(answers(exact, [message.text for message in everything]))
        accuracies = [(x.argmax(1) == labels).float().mean().item() for x in (a, b, c)]
        flips = [int((x.argmax(1) != a.argmax(1)).sum()) for x in (b, c)]
        rows.append((*accuracies, (b - a).abs().max().item(), *flips))
        note(f"seed {seed}: {rows[-1]}")
    n = len(labels)
    print(
        f"precision, {args.model}, {len(rows)} splits of {n} test messages: {measure_machine().describe()}"
    )
    print(
        "| trained in, read in | accuracy, % | each split | flipped labels | largest logit change |"
    )
    print("|---|---|---|---|---|")
    columns = list(zip(*rows, strict=True))
    names = ("float32, float32", "float32, bfloat16", "bfloat16, bfloat16")
    changes = ("", f"{sum(columns[4])} of {n * len(rows)} | {max(columns[3]):.3f}")
    for k, name in enumerate(names):
        each = ", ".join(f"{100 * value:.1f}" for value in columns[k])
        change = (" | ", changes[1], f"{sum(columns[5])} of {n * len(rows)} | ")[k]
        print(f"| {name} | {100 * statistics.mean(columns[k]):.2f} | {each} | {change} |")
    print(f"\nall {len(everything):,} distinct messages, {len(answered)} classifiers")
    print(
        "| read in | accuracy, % | other answers than float32 | smallest p | largest logit change |"
    )
    print("|---|---|---|---|---|")
    is_spam = np.array([message.label == "spam" for message in everything])
    for dtype in DTYPES:
        other, right, ps, change = 0, [], [], 0.0
        for logits in answered:
            exact, rounded = np.array(logits["float32"]), np.array(logits[dtype])
            spam = [x.argmax(1) == 1 for x in (exact, rounded)]
            other += int((spam[0] != spam[1]).sum())
            right.append(np.mean(spam[1] == is_spam))
            ps.append(compare_paired(spam[0] == is_spam, spam[1] == is_spam).p)
            change = max(change, abs(exact - rounded).max())
        n = len(everything) * len(answered)
        print(
            f"| {dtype} | {100 * np.mean(right):.2f} | {other} of {n:,} | {min(ps):.2f} | {change:.3f} |"
        )


def answers(found: Classifier, texts: list[str]) -> dict[str, list[list[float]]]:
    """The logits of each text in each precision."""
    logits = {}
    for name, dtype in DTYPES.items():
        found.dtype = dtype
        logits[name] = found.logits(found.encode(texts)[0]).tolist()
    return logits


if __name__ == "__main__":
    main()
