"""What a finished table of experiments took, against the same rows by plain training.

Plain training is what the book's script does for a row: every batch padded to the longest text,
through the whole model in every step and at every look at validation and test. A few of its steps
are measured here for every row, on all processors, and multiplied by the steps that the row took.

    gpt2-classifier experiments --data sms --balance --epochs 5 --out runs/table
    python benchmarks/experiments.py runs/table
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from bench import measure_machine, note
from torch import Tensor

from gpt2_from_scratch import Classifier, Split, TrainConfig
from gpt2_from_scratch.classifier.freezing import parameter_groups
from gpt2_from_scratch.classifier.heads import pool
from gpt2_from_scratch.classifier.settings import HeadSettings
from gpt2_from_scratch.gpt2.config import read_config
from gpt2_from_scratch.runs.recipes import new_classifier
from gpt2_from_scratch.speed.batching import pad_batch
from gpt2_from_scratch.speed.devices import set_threads
from gpt2_from_scratch.storage.files import read_json
from gpt2_from_scratch.storage.paths import model_folder
from gpt2_from_scratch.studies.ablations import Row, ablations
from gpt2_from_scratch.studies.experiments import Plan, Result, read_results, split_for

STEPS = 4  # that are measured, after one that is not


def read_plan(folder: Path) -> Plan:
    """What the experiments of a folder have in common."""
    saved = read_json(folder / "experiments.json")
    del saved["messages_sha256"]
    saved["config"] = TrainConfig(**saved["config"])
    saved["settings"] = HeadSettings(**saved["settings"])
    saved["reading"] = tuple(tuple(pair) for pair in saved["reading"])
    return Plan(seeds=(1,), **saved)


def plain_logits(classifier: Classifier, ids: Tensor, lengths: Tensor) -> Tensor:
    """Every token through every block: ids (B, T), lengths (B,) -> (B, K)."""
    model = classifier.model
    x = model.embed(ids)
    for block in model.blocks:
        x = block(x)
    return model.head(pool(model.ln_f(x), lengths, classifier.description.pooling))


def seconds(step: Callable[[list[int]], Any], batches: list[list[int]]) -> float:
    """The median time of a step."""
    taken = []
    for batch in batches:
        began = time.perf_counter()
        step(batch)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[1:])


def plain_seconds(plan: Plan, row: Row, split: Split, result: Result) -> float:
    """About what a row takes in the plain way, with as many epochs as it took in ours."""
    config, settings = row.changed(replace(plan.config, seed=1), plan.settings)
    classifier = new_classifier(plan.model, split, config, settings, plan.max_tokens)
    encoded, _ = classifier.encode([message.text for message in split.train])
    labels = torch.tensor([classifier.description.labels.index(m.label) for m in split.train])
    B = 1 if config.micro_batch == 1 else config.batch_size
    longest = classifier.description.pad_to or max(map(len, encoded))
    optimizer = torch.optim.AdamW(
        parameter_groups(classifier.model, config, classifier.description.heads)
    )

    def forward(batch: list[int]) -> Tensor:
        pad_to = longest if B > 1 else None  # one text at a time needs no pads
        return plain_logits(classifier, *pad_batch([encoded[n] for n in batch], 0, pad_to))

    def train(batch: list[int]) -> None:
        optimizer.zero_grad()
        F.cross_entropy(forward(batch), labels[batch]).backward()
        optimizer.step()

    order = torch.randperm(len(encoded), generator=torch.Generator().manual_seed(1)).tolist()
    some = [order[n * B : (n + 1) * B] for n in range(STEPS + 1)]
    one_step = seconds(train, some)
    with torch.no_grad():
        one_look = seconds(forward, some)
    looks = result.epochs * math.ceil(len(split.val) / B) + math.ceil(len(split.test) / B)
    return result.epochs * math.ceil(result.n_train / B) * one_step + looks * one_look


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="of finished experiments")
    args = parser.parse_args()
    set_threads()
    plan, results = read_plan(args.folder), read_results(args.folder)
    rows = ablations(read_config(model_folder(plan.model)), plan.config)
    splits = {
        every: split_for(plan, replace(rows[0], all_messages=every), 1) for every in (False, True)
    }
    print(f"{measure_machine().describe()}\n")
    print("| row | seeds | ours, s of one processor | plain training, s | times |")
    print("|---|---|---|---|---|")
    sums = [0.0, 0.0]
    for row in rows:
        done = [result for (name, _), result in results.items() if name == row.name]
        if not done:
            continue
        note(row.name)
        plain = len(done) * plain_seconds(plan, row, splits[row.all_messages], done[0])
        ours = sum(result.busy for result in done)
        sums = [sums[0] + ours, sums[1] + plain]
        print(f"| {row.name} | {len(done)} | {ours:.0f} | {plain:.0f} | {plain / ours:.1f} |")
    print(f"| all | | {sums[0]:.0f} | {sums[1]:.0f} | {sums[1] / sums[0]:.1f} |")


if __name__ == "__main__":
    main()
