"""The duration of a finished table of experiments, and how its order agrees with the book's.

The duration is compared with plain training, as in the book's script: every batch is padded to the
longest text and goes through the whole model, in every training step and every evaluation. A few
such steps are measured here for every row, on all processors, and multiplied by the number of steps
of the row. The orders are compared by Kendall's tau, and by pairs of rows whose order is
significantly reversed here.

    gpt2-classifier experiments --data sms --balance --epochs 5 --out runs/table
    python benchmarks/experiments.py runs/table
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
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
from gpt2_from_scratch.data.messages import DataConfig
from gpt2_from_scratch.evaluation.significance import compare_accuracies, format_p, holm
from gpt2_from_scratch.runs.folder import RunConfig
from gpt2_from_scratch.runs.recipes import new_classifier
from gpt2_from_scratch.speed.batching import pad_batch
from gpt2_from_scratch.speed.devices import DTYPES, set_threads
from gpt2_from_scratch.storage.files import read_json
from gpt2_from_scratch.studies.rows import Finetuned, Result, Setup
from gpt2_from_scratch.studies.study import Study, experiments, finished_results

STEPS = 4  # measured steps, after one for warming up
APART = 2.0  # points; with 300 messages and one seed, a smaller difference means nothing


def read_study(folder: Path) -> Study:
    """Read the study in a folder, with all of its seeds."""
    saved = read_json(folder / "settings.json")
    seeds = [int(split.split()[1]) for split in read_json(folder / "finished.json")]

    def of(kind: Any) -> Any:
        names = {field.name for field in fields(kind)}
        return kind(**{name: value for name, value in saved.items() if name in names})

    dtype = DTYPES[saved["dtype"]]
    return experiments(
        saved["model"], of(DataConfig), of(TrainConfig), of(HeadSettings), seeds=seeds, dtype=dtype
    )


@dataclass(frozen=True)
class Agreement:
    """How the order of the rows agrees with the book's."""

    rows: int  # number of rows in both tables
    tau: float  # Kendall's tau-b: 1 for the same order, 0 for unrelated, -1 for reversed orders
    p: float  # probability of a tau at least this far from 0 if the orders are unrelated
    # (row that is better in the book by two points or more, row that is significantly better here)
    contrary: list[tuple[str, str]]


def agreement(results: list[Result]) -> Agreement | None:
    """Compare the order of the rows that are also in the book; None if there are too few."""
    from scipy.stats import kendalltau

    found: dict[str, list[Result]] = {}
    for result in results:
        if result.row.book:
            found.setdefault(result.row.name, []).append(result)
    most = max(map(len, found.values()), default=0)
    found = {name: some for name, some in found.items() if len(some) == most}
    mean = {name: statistics.fmean(r.accuracy for r in some) for name, some in found.items()}
    books = {name: some[0].row.book.accuracy for name, some in found.items()}  # type: ignore[union-attr]
    if len(found) < 3 or len({*mean.values()}) == 1 or len({*books.values()}) == 1:
        return None
    tau = kendalltau([*mean.values()], [*books.values()])
    pairs = [(a, b) for a in found for b in found if books[a] - books[b] >= APART]
    correct = {name: [r.predictions.correct for r in some] for name, some in found.items()}
    n_train = next(iter(found.values()))[0].n_train
    adjusted = holm([compare_accuracies(correct[b], correct[a], n_train).p for a, b in pairs])
    contrary = [
        (a, b) for (a, b), p in zip(pairs, adjusted, strict=True) if mean[a] < mean[b] and p < 0.05
    ]
    return Agreement(len(found), float(tau.statistic), float(tau.pvalue), contrary)


def plain_logits(classifier: Classifier, ids: Tensor, lengths: Tensor) -> Tensor:
    """Run every token through every block: ids (B, T), lengths (B,) -> (B, K)."""
    model = classifier.model
    x = model.embed(ids)
    for block in model.blocks:
        x = block(x)
    return model.head(pool(model.ln_f(x), lengths, classifier.description.pooling))


def seconds(step: Callable[[list[int]], Any], batches: list[list[int]]) -> float:
    """The median duration of a step."""
    taken = []
    for batch in batches:
        began = time.perf_counter()
        step(batch)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[1:])


def plain_seconds(setup: Setup, row: Finetuned, split: Split, result: Result) -> float:
    """Estimate the duration of plain training for a row, with the number of epochs it took here."""
    config, head = row.changed(replace(setup.training, seed=1), setup.head)
    run = RunConfig(model=str(setup.model), training=config, head=head)
    classifier = new_classifier(run, split)
    encoded, _ = classifier.encode([message.text for message in split.train])
    labels = torch.tensor([classifier.description.labels.index(m.label) for m in split.train])
    B = 1 if config.micro_batch == 1 else config.batch_size
    longest = classifier.description.pad_to or max(map(len, encoded))
    optimizer = torch.optim.AdamW(
        parameter_groups(classifier.model, config, classifier.description.heads)
    )

    def forward(batch: list[int]) -> Tensor:
        pad_to = longest if B > 1 else None  # single texts need no padding
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
    epochs = result.epochs or 0
    looks = epochs * math.ceil(len(split.val) / B) + math.ceil(len(split.test) / B)
    return epochs * math.ceil(result.n_train / B) * one_step + looks * one_look


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder of finished experiments")
    args = parser.parse_args()
    set_threads()
    study = read_study(args.folder)
    results = finished_results(study, args.folder)
    parts = study.splits[0].parts
    print(f"{measure_machine().describe()}\n")
    print("| row | seeds | ours, s of one processor | plain training, s | times |")
    print("|---|---|---|---|---|")
    sums = [0.0, 0.0]
    for row in study.rows:
        done = [result for result in results if result.row.name == row.name]
        if not done or not isinstance(row, Finetuned):
            continue
        note(row.name)
        train = list(study.splits[0].unbalanced) if row.all_messages else parts.train
        split = replace(parts, train=train)
        plain = len(done) * plain_seconds(study.setup, row, split, done[0])
        ours = sum(result.cpu_seconds for result in done)
        sums = [sums[0] + ours, sums[1] + plain]
        print(f"| {row.name} | {len(done)} | {ours:.0f} | {plain:.0f} | {plain / ours:.1f} |")
    print(f"| all | | {sums[0]:.0f} | {sums[1]:.0f} | {sums[1] / sums[0]:.1f} |")
    if found := agreement(results):
        order = f"Kendall's tau {found.tau:.2f} ({format_p(found.p)})"
        print(f"\nOrder of the {found.rows} rows that are also in the book: {order}.")
        for better, worse in found.contrary:
            print(f"{worse} is significantly better than {better} here, but worse in the book.")


if __name__ == "__main__":
    main()
