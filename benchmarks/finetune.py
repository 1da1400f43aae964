"""Finetuning end to end: the textbook loop, Hugging Face, and this package, on the same messages.

The lecture's recipe (1,045 / 149 / 300 messages, 5 epochs of 130 batches of 8, its evaluations, test
accuracy at the end), read at each message's last token, on random weights of the size of 124M:

    python benchmarks/finetune.py            # the slow sides: some steps and evaluations, scaled up
    python benchmarks/finetune.py --full     # all sides to the end, losses compared: 40 minutes
    python benchmarks/finetune.py --full --small    # the same at the miniature's size: 5 minutes
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice, product
from pathlib import Path

import torch
import torch.nn.functional as F
from bench import (
    Machine,
    PeakMemory,
    block_flops,
    measure_machine,
    megabytes,
    note,
    random_gpt2,
    sms_path,
    timed,
)
from torch import Tensor, nn

from gpt2_from_scratch import Tokenizer, load_gpt2
from gpt2_from_scratch.gpt2.config import SIZES, GPT2Config
from gpt2_from_scratch.reports.plots import plot_seconds, save_picture
from gpt2_from_scratch.runs import lecture
from gpt2_from_scratch.runs.lecture import Loaders, Trace, lecture_split, make_loaders
from gpt2_from_scratch.speed.devices import arithmetic
from gpt2_from_scratch.speed.feature_store import FeatureStore
from gpt2_from_scratch.speed.frozen_trunk import TOKENS, batches, pack

SMALL = GPT2Config(n_embd=256, n_head=4, n_layer=6)
CONFIG = SMALL if "--small" in sys.argv else SIZES["124M"]
TRAINED = 12 * CONFIG.n_embd**2 + 17 * CONFIG.n_embd + 2  # last block, final norm, head
STEPS, EVALUATIONS = 650, 412  # batches of 8 in the whole recipe: trained on, evaluated
SPLIT = lecture_split(sms_path())


class Textbook:
    """Every message, padded to the longest of all, through every block, in every pass."""

    def __init__(self, folder: Path, encoded: list[list[int]], longest: int):
        self.encoded, self.width = encoded, longest
        self.model = load_gpt2(folder)
        for parameter in self.model.parameters():
            parameter.requires_grad = False
        torch.manual_seed(123)
        self.model.head = nn.Linear(CONFIG.n_embd, 2)
        for part in (self.model.blocks[-1], self.model.ln_f):
            for parameter in part.parameters():
                parameter.requires_grad = True
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=5e-5, weight_decay=0.1)

    def logits(self, numbers: list[int]) -> Tensor:
        """(B, 2)"""
        ids = torch.full((len(numbers), self.width), 50256)
        for row, n in enumerate(numbers):
            ids[row, : len(self.encoded[n])] = torch.tensor(self.encoded[n])
        states = self.model.ln_f(self.blocks(ids))
        last = torch.tensor([len(self.encoded[n]) - 1 for n in numbers])
        return self.model.head(states)[torch.arange(len(numbers)), last]

    def blocks(self, ids: Tensor) -> Tensor:
        """(B, T) -> (B, T, C), written out: the package's own forward pass is not on trial here."""
        x = self.model.wte(ids) + self.model.wpe.weight[: ids.shape[1]]
        for block in self.model.blocks:
            x = block(x)
        return x

    def tokens(self, numbers: list[int]) -> int:
        """How many tokens go through the blocks for these messages."""
        return len(numbers) * self.width


class HuggingFace(Textbook):
    """GPT2ForSequenceClassification, each batch padded to its own longest, the same layers frozen."""

    def __init__(self, folder: Path, encoded: list[list[int]], longest: int):
        from safetensors.torch import load_file
        from transformers import GPT2Config as Config
        from transformers import GPT2ForSequenceClassification

        self.encoded = encoded
        config = Config(
            n_embd=CONFIG.n_embd,
            n_head=CONFIG.n_head,
            n_layer=CONFIG.n_layer,
            num_labels=2,
            pad_token_id=50256,
            resid_pdrop=0,
            embd_pdrop=0,
            attn_pdrop=0,
        )
        self.model = GPT2ForSequenceClassification(config)
        self.model.transformer.load_state_dict(load_file(folder / "model.safetensors"))
        torch.manual_seed(123)
        self.model.score = nn.Linear(CONFIG.n_embd, 2)  # with a bias, as the others have
        for parameter in self.model.transformer.parameters():
            parameter.requires_grad = False
        for part in (self.model.transformer.h[-1], self.model.transformer.ln_f):
            for parameter in part.parameters():
                parameter.requires_grad = True
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=5e-5, weight_decay=0.1, fused=True)

    def logits(self, numbers: list[int]) -> Tensor:
        """(B, 2)"""
        width = max(len(self.encoded[n]) for n in numbers)
        ids, mask = torch.full((len(numbers), width), 50256), torch.zeros(len(numbers), width)
        for row, n in enumerate(numbers):
            ids[row, : len(self.encoded[n])] = torch.tensor(self.encoded[n])
            mask[row, : len(self.encoded[n])] = 1
        return self.model(input_ids=ids, attention_mask=mask).logits

    def tokens(self, numbers: list[int]) -> int:
        """How many tokens go through the blocks for these messages."""
        return len(numbers) * max(len(self.encoded[n]) for n in numbers)


@dataclass
class Side:
    """What was measured of one way of doing it."""

    name: str
    seconds: list[float] = field(default_factory=list)  # of each round
    megabytes: float = 0.0
    limit: float = 0.0  # seconds that this machine's arithmetic and memory would take
    trace: Trace | None = None
    parts: dict[str, float] = field(default_factory=dict)  # seconds, for the picture


def train_step(side: Textbook, numbers: Tensor, labels: Tensor) -> None:
    side.optimizer.zero_grad()
    F.cross_entropy(side.logits(numbers.tolist()), labels).backward()
    side.optimizer.step()


@torch.no_grad()
def evaluate(side: Textbook, loader: object, count: int | None) -> tuple[float, float]:
    """(mean loss, accuracy) over the first batches of a new pass."""
    losses, right, total = [], 0, 0
    for numbers, labels in islice(loader, count):
        logits = side.logits(numbers.tolist())
        losses.append(F.cross_entropy(logits, labels).item())
        right += int((logits.argmax(dim=1) == labels).sum())
        total += len(labels)
    return statistics.mean(losses), right / total


def whole_recipe(side: Textbook, loaders: Loaders) -> Trace:
    """The lecture's steps and evaluations, in its order."""
    trace, step = Trace(), -1
    train, val, _ = loaders
    torch.manual_seed(123)
    trace.initial_accuracy = [evaluate(side, loader, 10)[1] for loader in loaders]
    trace.initial_loss = [evaluate(side, loader, 5)[0] for loader in loaders]
    torch.manual_seed(123)
    for _ in range(5):
        for numbers, labels in train:
            train_step(side, numbers, labels)
            step += 1
            if step % 50 == 0:
                trace.losses.append((step, evaluate(side, train, 5)[0], evaluate(side, val, 5)[0]))
                note(f"  step {step}: {trace.losses[-1][1]:.4f} {trace.losses[-1][2]:.4f}")
        trace.accuracies.append((evaluate(side, train, 5)[1], evaluate(side, val, 5)[1]))
    trace.final_accuracy = [evaluate(side, loader, None)[1] for loader in loaders]
    return trace


def run_plain(side: Side, make: Callable[..., Textbook], folder: Path, full: bool) -> None:
    """The textbook or Hugging Face: to the end, or 6 steps and 6 evaluations, scaled up."""
    loaders, encoded, longest = make_loaders(SPLIT, Tokenizer(folder))
    made: list[Textbook] = []
    with PeakMemory() as peak:
        load = timed(lambda: made.append(make(folder, encoded, longest)))
        torch.manual_seed(123)
        some = list(islice(loaders[0], 7))
        train_step(made[0], *some[0])
        step = timed(lambda: [train_step(made[0], *batch) for batch in some[1:]]) / 6
        look = timed(lambda: evaluate(made[0], iter(some[1:]), None)) / 6
    side.parts = {"steps": STEPS * step, "evaluations": EVALUATIONS * look, "loading": load}
    seconds = sum(side.parts.values())
    if full:
        fresh = make(folder, encoded, longest)
        seconds = load + timed(lambda: setattr(side, "trace", whole_recipe(fresh, loaders)))
    side.seconds.append(seconds)
    side.megabytes = peak.bytes / 1e6
    side.limit = plain_limit(made[0], loaders)


def run_ours(side: Side, folder: Path, dtype: torch.dtype, store: Path) -> None:
    """This package's lecture recipe, with features from `store` or into it."""
    looks = Stopwatch(lecture._pass)
    lecture._pass = looks

    def run() -> None:
        _, side.trace = lecture.lecture(
            load_gpt2(folder),
            Tokenizer(folder),
            SPLIT,
            base="random",
            pooling="last_token",
            dtype=dtype,
            store=FeatureStore(store),
        )

    with PeakMemory() as peak:
        side.seconds.append(timed(run))
    lecture._pass = looks.run
    side.parts = {"evaluations": looks.seconds}
    side.megabytes = peak.bytes / 1e6


class Stopwatch:
    """A function that counts the seconds spent in it."""

    def __init__(self, run: Callable):
        self.run, self.seconds = run, 0.0

    def __call__(self, *args: object) -> object:
        found: list[object] = []
        self.seconds += timed(lambda: found.append(self.run(*args)))
        return found[0]


def seconds_at_best(flops: float, rate: float, bytes_moved: float, machine: Machine) -> float:
    return flops / rate + bytes_moved / machine.bandwidth


def plain_limit(plain: Textbook, loaders: Loaders) -> float:
    """Seconds of the plain way's arithmetic at this machine's best rate."""
    epoch = [numbers.tolist() for numbers, _ in loaders[0]]
    tokens = sum(map(plain.tokens, epoch)) / len(epoch)  # of a batch
    one = block_flops(CONFIG, tokens, tokens / 8)
    flops = (STEPS + EVALUATIONS) * CONFIG.n_layer * one + STEPS * 2 * one
    return seconds_at_best(flops, MACHINE.flops[torch.float32], STEPS * step_bytes(), MACHINE)


def our_limit(folder: Path, dtype: torch.dtype, stored: bool) -> float:
    """Seconds that what we compute and move would take at this machine's best rates."""
    _, encoded, _ = make_loaders(SPLIT, Tokenizer(folder))
    distinct = list(dict.fromkeys(map(tuple, encoded)))
    packed = [pack([distinct[n] for n in batch]) for batch in batches(distinct, TOKENS["cpu"])]
    rows = 0 if stored else sum(len(batch.ids) for batch in packed)
    frozen = (CONFIG.n_layer - 1) * block_flops(CONFIG, rows, 30)
    rate = MACHINE.flops[arithmetic(dtype, torch.device("cpu"))]
    trained = 6 * TRAINED * 8 * STEPS / MACHINE.flops[torch.float32]
    moved = STEPS * step_bytes() + EVALUATIONS * 8 / 64 * 4 * TRAINED
    return seconds_at_best(frozen, rate, moved, MACHINE) + trained


def step_bytes() -> float:
    """A step reads the trained weights twice, writes their gradients, and AdamW passes over seven
    arrays of their size.
    """
    return 10 * 4 * TRAINED


def measure(folder: Path, rounds: int, full: bool) -> list[Side]:
    """All sides, one after the other, round by round."""
    kinds = [
        (dtype, stored) for stored, dtype in product((False, True), (torch.float32, torch.bfloat16))
    ]
    plain = {"textbook loop": Textbook, "Hugging Face, padded to each batch": HuggingFace}
    sides = {name: Side(name) for name in plain}
    for dtype, stored in kinds:
        name = f"ours, {str(dtype).removeprefix('torch.')}" + (", second run" if stored else "")
        sides[name] = Side(name, limit=our_limit(folder, dtype, stored))
    for number in range(rounds):
        with tempfile.TemporaryDirectory() as store:
            for (dtype, _), side in zip(kinds, list(sides.values())[2:], strict=True):
                run_ours(side, folder, dtype, Path(store))
                note(f"round {number + 1}: {side.name} {side.seconds[-1]:.1f} s")
        for name, make in plain.items():
            run_plain(sides[name], make, folder, full)
            note(f"round {number + 1}: {name} {sides[name].seconds[-1]:.0f} s")
    return list(sides.values())


def table(sides: list[Side]) -> Iterator[str]:
    """Markdown."""
    times = {side.name: statistics.median(side.seconds) for side in sides}
    textbook, hugging_face, *_ = times.values()
    yield "| | seconds | textbook / it | Hugging Face / it | at best, s | test accuracy | MB |"
    yield "|---|---|---|---|---|---|---|"
    for side in sides:
        seconds = times[side.name]
        accuracy = f"{100 * side.trace.final_accuracy[2]:.2f} %" if side.trace else ""
        yield (
            f"| {side.name} | {seconds:,.1f} | {textbook / seconds:.1f} | {hugging_face / seconds:.1f} "
            f"| {side.limit:,.1f} | {accuracy} | {megabytes(1e6 * side.megabytes)} |"
        )


def losses(trace: Trace) -> Tensor:
    return torch.tensor([trace.initial_loss, *trace.losses])


def compare(sides: list[Side]) -> Iterator[str]:
    """How far the losses of runs to the end are from those of ours in float32."""
    ours = next(side.trace for side in sides if side.name == "ours, float32")
    assert ours is not None
    for side in sides:
        if side.trace is not None and side.trace is not ours:
            gap = (losses(side.trace) - losses(ours)).abs().max()
            yield (
                f"{side.name}: losses differ from ours in float32 by at most {gap:.1e}; accuracies "
                f"{'equal' if side.trace.accuracies == ours.accuracies else side.trace.accuracies}, "
                f"at the end {side.trace.final_accuracy}, ours {ours.final_accuracy}"
            )


def draw(sides: list[Side], path: Path) -> None:
    """Where the time goes, as bars: of the last round's textbook loop, of the median of ours."""
    times = {side.name: statistics.median(side.seconds) for side in sides}
    ours, stored = times["ours, float32"], times["ours, float32, second run"]
    looks = next(s.parts["evaluations"] for s in sides if s.name == "ours, float32")
    textbook = sides[0].parts
    frozen, steps, evaluated = "frozen blocks, once", "650 training steps", "412 batches evaluated"
    bars = {
        "textbook loop": {
            steps: textbook["steps"],
            evaluated: textbook["evaluations"],
            "loading": textbook["loading"],
        },
        "ours, first run": {frozen: ours - stored, steps: stored - looks, evaluated: looks},
        "ours, second run": {steps: stored - looks, evaluated: looks},
    }
    title = "The lecture's recipe on 2 cores, float32"
    save_picture(plot_seconds(bars, title=title), path)


def main() -> None:
    global MACHINE
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="run the slow sides to the end")
    parser.add_argument("--small", action="store_true", help="256 wide, 6 blocks")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--picture", type=Path, help="a .png of where the time goes")
    args = parser.parse_args()
    MACHINE = measure_machine()
    with tempfile.TemporaryDirectory() as folder:
        sides = measure(
            random_gpt2(Path(folder), CONFIG), 1 if args.full else args.rounds, args.full
        )
    print(f"finetune: {MACHINE.describe()}")
    if not args.full:
        print("the first two: 6 steps and 6 evaluated batches a round, times 650 and 412")
    print(*table(sides), *compare(sides), sep="\n")
    if args.picture:
        draw(sides, args.picture)


if __name__ == "__main__":
    main()
