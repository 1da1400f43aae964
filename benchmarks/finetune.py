"""Finetuning from start to end: the textbook loop, Hugging Face, and this package.

All use the lecture's recipe on the same messages: 1,045 / 149 / 300 messages, 5 epochs of 130
batches of 8, its evaluations, and the test accuracy at the end. They read each message's last
token, and start from random weights of the size of 124M:

    python benchmarks/finetune.py            # slow sides: some steps and evaluations, extrapolated
    python benchmarks/finetune.py --full     # all sides complete, losses compared: 40 minutes
    python benchmarks/finetune.py --full --small    # the same at the miniature's size: 5 minutes
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice, product
from pathlib import Path

import torch
import torch.nn.functional as F
from bench import (
    CPU,
    Machine,
    PeakMemory,
    block_flops,
    measure_machine,
    megabytes,
    note,
    random_gpt2,
    timed,
)
from torch import Tensor, nn

from gpt2_from_scratch import Split, Tokenizer, load_gpt2
from gpt2_from_scratch.gpt2.config import SIZES, GPT2Config, read_config
from gpt2_from_scratch.runs import lecture
from gpt2_from_scratch.runs.lecture import Loaders, Trace, lecture_split, make_loaders
from gpt2_from_scratch.speed.devices import arithmetic
from gpt2_from_scratch.speed.feature_store import FeatureStore
from gpt2_from_scratch.speed.frozen_trunk import TOKENS, batches, pack
from gpt2_from_scratch.storage.paths import data_file

SMALL = GPT2Config(n_embd=256, n_head=4, n_layer=6)
# number of batches of 8 in the recipe, for training and for evaluation
STEPS, EVALUATIONS = 650, 412


@dataclass(frozen=True)
class Job:
    """The work of every side: finetune this model on these messages, on this machine."""

    folder: Path
    split: Split
    machine: Machine
    device: torch.device = CPU
    steps: int = 6  # measured steps and evaluations of a plain side, before extrapolation

    @property
    def config(self) -> GPT2Config:
        """The model's sizes."""
        return read_config(self.folder)

    @property
    def trained(self) -> int:
        """The number of parameters in the last block, the final norm and the head."""
        return 12 * self.config.n_embd**2 + 17 * self.config.n_embd + 2


class Textbook:
    """All messages are padded to the longest and pass through every block, every time."""

    def __init__(self, folder: Path, encoded: list[list[int]], longest: int, device: torch.device):
        self.encoded, self.width, self.device = encoded, longest, device
        self.model = load_gpt2(folder).to(device)
        for parameter in self.model.parameters():
            parameter.requires_grad = False
        torch.manual_seed(123)
        self.model.head = nn.Linear(self.model.config.n_embd, 2).to(device)
        for part in (self.model.blocks[-1], self.model.ln_f):
            for parameter in part.parameters():
                parameter.requires_grad = True
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=5e-5, weight_decay=0.1)

    def logits(self, numbers: list[int]) -> Tensor:
        """The logits (B, 2)."""
        ids = torch.full((len(numbers), self.width), self.model.config.n_vocab - 1)
        for row, n in enumerate(numbers):
            ids[row, : len(self.encoded[n])] = torch.tensor(self.encoded[n])
        states = self.model.ln_f(self.blocks(ids.to(self.device)))
        last = torch.tensor([len(self.encoded[n]) - 1 for n in numbers])
        return self.model.head(states)[torch.arange(len(numbers)), last]

    def blocks(self, ids: Tensor) -> Tensor:
        """(B, T) -> (B, T, C), without the package's forward pass, which is not measured here."""
        x = self.model.wte(ids) + self.model.wpe.weight[: ids.shape[1]]
        for block in self.model.blocks:
            x = block(x)
        return x

    def tokens(self, numbers: list[int]) -> int:
        """The number of tokens that pass through the blocks for these messages."""
        return len(numbers) * self.width


class HuggingFace(Textbook):
    """GPT2ForSequenceClassification with the same frozen layers; each batch has its own padding."""

    def __init__(self, folder: Path, encoded: list[list[int]], longest: int, device: torch.device):
        from safetensors.torch import load_file
        from transformers import GPT2Config as Config
        from transformers import GPT2ForSequenceClassification

        self.encoded, self.device = encoded, device
        sizes = read_config(folder)
        config = Config(
            vocab_size=sizes.n_vocab,
            n_positions=sizes.n_ctx,
            n_embd=sizes.n_embd,
            n_head=sizes.n_head,
            n_layer=sizes.n_layer,
            num_labels=2,
            pad_token_id=sizes.n_vocab - 1,
            resid_pdrop=0,
            embd_pdrop=0,
            attn_pdrop=0,
        )
        self.model = GPT2ForSequenceClassification(config)
        self.model.transformer.load_state_dict(load_file(folder / "model.safetensors"))
        torch.manual_seed(123)
        self.model.score = nn.Linear(sizes.n_embd, 2)  # with a bias, like the other sides
        self.model.to(device)
        for parameter in self.model.transformer.parameters():
            parameter.requires_grad = False
        for part in (self.model.transformer.h[-1], self.model.transformer.ln_f):
            for parameter in part.parameters():
                parameter.requires_grad = True
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=5e-5, weight_decay=0.1, fused=True)

    def logits(self, numbers: list[int]) -> Tensor:
        """The logits (B, 2)."""
        width = max(len(self.encoded[n]) for n in numbers)
        ids = torch.full((len(numbers), width), self.model.config.pad_token_id)
        mask = torch.zeros(len(numbers), width)
        for row, n in enumerate(numbers):
            ids[row, : len(self.encoded[n])] = torch.tensor(self.encoded[n])
            mask[row, : len(self.encoded[n])] = 1
        ids, mask = ids.to(self.device), mask.to(self.device)
        return self.model(input_ids=ids, attention_mask=mask).logits

    def tokens(self, numbers: list[int]) -> int:
        """The number of tokens that pass through the blocks for these messages."""
        return len(numbers) * max(len(self.encoded[n]) for n in numbers)


@dataclass
class Side:
    """The measurements of one side."""

    name: str
    seconds: list[float] = field(default_factory=list)  # one per round
    megabytes: float = 0.0
    limit: float = 0.0  # seconds at this machine's highest speed
    flops: float = 0.0  # operations of the whole recipe
    trace: Trace | None = None
    parts: dict[str, float] = field(default_factory=dict)  # seconds per part, for the picture


def train_step(side: Textbook, numbers: Tensor, labels: Tensor) -> None:
    side.optimizer.zero_grad()
    F.cross_entropy(side.logits(numbers.tolist()), labels.to(side.device)).backward()
    side.optimizer.step()


@torch.no_grad()
def evaluate(side: Textbook, loader: object, count: int | None) -> tuple[float, float]:
    """(mean loss, accuracy) over the first batches of a new pass."""
    losses, right, total = [], 0, 0
    for numbers, labels in islice(loader, count):
        logits = side.logits(numbers.tolist()).cpu()
        losses.append(F.cross_entropy(logits, labels).item())
        right += int((logits.argmax(dim=1) == labels).sum())
        total += len(labels)
    return statistics.mean(losses), right / total


def whole_recipe(side: Textbook, loaders: Loaders) -> Trace:
    """Run the lecture's steps and evaluations, in its order."""
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


def run_plain(side: Side, make: Callable[..., Textbook], job: Job, full: bool) -> None:
    """Run the textbook loop or Hugging Face completely, or extrapolate from some steps."""
    loaders, encoded, longest = make_loaders(job.split, Tokenizer(job.folder))
    made: list[Textbook] = []
    with PeakMemory(job.device) as peak:
        load = timed(
            lambda: made.append(make(job.folder, encoded, longest, job.device)), job.device
        )
        torch.manual_seed(123)
        some = list(islice(loaders[0], job.steps + 1))
        train_step(made[0], *some[0])
        rest = some[1:]
        step = timed(lambda: [train_step(made[0], *batch) for batch in rest], job.device)
        look = timed(lambda: evaluate(made[0], iter(rest), None), job.device)
    side.parts = {
        "steps": STEPS * step / len(rest),
        "evaluations": EVALUATIONS * look / len(rest),
        "loading": load,
    }
    seconds = sum(side.parts.values())
    if full:
        fresh = make(job.folder, encoded, longest, job.device)
        seconds = load + timed(lambda: setattr(side, "trace", whole_recipe(fresh, loaders)))
    side.seconds.append(seconds)
    side.megabytes = peak.bytes / 1e6
    side.flops = plain_flops(made[0], job, loaders)
    rate, moved = job.machine.flops[torch.float32], STEPS * step_bytes(job)
    side.limit = side.flops / rate + moved / job.machine.bandwidth


def run_ours(side: Side, job: Job, dtype: torch.dtype, store: Path) -> None:
    """Run the lecture's recipe in this package; read or write features in `store`."""
    looks = Stopwatch(lecture._pass)
    lecture._pass = looks

    def run() -> None:
        _, side.trace = lecture.lecture(
            load_gpt2(job.folder).to(job.device),
            Tokenizer(job.folder),
            job.split,
            base="random",
            pooling="last_token",
            dtype=dtype,
            store=FeatureStore(store),
        )

    with PeakMemory(job.device) as peak:
        side.seconds.append(timed(run, job.device))
    lecture._pass = looks.run
    side.parts = {"evaluations": looks.seconds}
    side.megabytes = peak.bytes / 1e6


class Stopwatch:
    """A function that also adds up the seconds spent in it."""

    def __init__(self, run: Callable):
        self.run, self.seconds = run, 0.0

    def __call__(self, *args: object) -> object:
        found: list[object] = []
        self.seconds += timed(lambda: found.append(self.run(*args)))
        return found[0]


def plain_flops(plain: Textbook, job: Job, loaders: Loaders) -> float:
    """The operations of the whole recipe on a plain side."""
    epoch = [numbers.tolist() for numbers, _ in loaders[0]]
    tokens = sum(map(plain.tokens, epoch)) / len(epoch)  # tokens per batch
    one = block_flops(job.config, tokens, tokens / 8)
    return (STEPS + EVALUATIONS) * job.config.n_layer * one + STEPS * 2 * one


def our_flops(job: Job, stored: bool) -> tuple[float, float]:
    """The operations of the frozen blocks and of the trainable part in this package."""
    _, encoded, _ = make_loaders(job.split, Tokenizer(job.folder))
    distinct = list(dict.fromkeys(map(tuple, encoded)))
    tokens = TOKENS[job.device.type]
    packed = [pack([distinct[n] for n in batch]) for batch in batches(distinct, tokens)]
    rows = 0 if stored else sum(len(batch.ids) for batch in packed)
    frozen = (job.config.n_layer - 1) * block_flops(job.config, rows, 30)
    return frozen, 6 * job.trained * 8 * STEPS


def our_limit(job: Job, dtype: torch.dtype, flops: tuple[float, float]) -> float:
    """The seconds that our operations and memory traffic take at this machine's highest speed."""
    rates = job.machine.flops
    moved = STEPS * step_bytes(job) + EVALUATIONS * 8 / 64 * 4 * job.trained
    frozen = flops[0] / rates[arithmetic(dtype, job.device)]
    return frozen + flops[1] / rates[torch.float32] + moved / job.machine.bandwidth


def step_bytes(job: Job) -> float:
    """The bytes that a step moves.

    It reads the trained weights twice, writes their gradients, and AdamW passes over seven arrays
    of their size.
    """
    return 10 * 4 * job.trained


PLAIN = {"textbook loop": Textbook, "Hugging Face, padded to each batch": HuggingFace}
OURS = [
    (dtype, stored) for stored, dtype in product((False, True), (torch.float32, torch.bfloat16))
]


def our_side(job: Job, dtype: torch.dtype, stored: bool) -> Side:
    """This package in one precision, not yet measured."""
    name = f"ours, {str(dtype).removeprefix('torch.')}" + (", second run" if stored else "")
    flops = our_flops(job, stored)
    return Side(name, limit=our_limit(job, dtype, flops), flops=sum(flops))


def measure(job: Job, rounds: int, full: bool) -> list[Side]:
    """Run all sides one after the other, in several rounds."""
    plain = [Side(name) for name in PLAIN]
    ours = [our_side(job, *kind) for kind in OURS]
    for number in range(rounds):
        with tempfile.TemporaryDirectory() as store:
            for (dtype, _), side in zip(OURS, ours, strict=True):
                run_ours(side, job, dtype, Path(store))
                note(f"round {number + 1}: {side.name} {side.seconds[-1]:.1f} s")
        for side in plain:
            run_plain(side, PLAIN[side.name], job, full)
            note(f"round {number + 1}: {side.name} {side.seconds[-1]:.0f} s")
    return plain + ours


def table(sides: list[Side]) -> Iterator[str]:
    """Yield the lines of the Markdown table."""
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
    """Yield how much the losses of complete runs differ from ours in float32."""
    ours = next(side.trace for side in sides if side.name == "ours, float32")
    assert ours is not None
    for side in sides:
        if side.trace is not None and side.trace is not ours:
            gap = (losses(side.trace) - losses(ours)).abs().max()
            yield (
                f"{side.name}: losses differ from ours in float32 by at most {gap:.1e}; accuracies "
                f"{'equal' if side.trace.accuracies == ours.accuracies else side.trace.accuracies}, "
                f"final accuracies {side.trace.final_accuracy}, ours {ours.final_accuracy}"
            )


def draw(sides: list[Side], path: Path) -> None:
    """Draw where the time goes: the last round of the textbook loop, the median of ours."""
    from gpt2_from_scratch.reports.plots import plot_seconds, save_picture

    times = {side.name: statistics.median(side.seconds) for side in sides}
    ours, stored = times["ours, float32"], times["ours, float32, second run"]
    looks = next(s.parts["evaluations"] for s in sides if s.name == "ours, float32")
    textbook = sides[0].parts
    frozen, steps, evaluated = "frozen blocks, once", "650 training steps", "412 evaluated batches"
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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="run the slow sides completely")
    parser.add_argument("--small", action="store_true", help="256 wide, 6 blocks")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument(
        "--picture", type=Path, help="a .png file for the picture of where the time goes"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        random_gpt2(Path(folder), SMALL if args.small else SIZES["124M"])
        job = Job(Path(folder), lecture_split(data_file("sms")), measure_machine())
        sides = measure(job, 1 if args.full else args.rounds, args.full)
    print(f"finetune: {job.machine.describe()}")
    if not args.full:
        print(
            "first two sides: 6 steps and 6 evaluated batches per round, extrapolated to 650 and 412"
        )
    print(*table(sides), *compare(sides), sep="\n")
    if args.picture:
        draw(sides, args.picture)


if __name__ == "__main__":
    main()
