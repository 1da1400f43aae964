"""A training step of the second run, taken apart: where its time goes, and what would save some.

In a second run the frozen blocks' output is on disk, and a step trains the last block, the final
norm and the head on batches of 8 messages. Random weights of the size of 124M; the vocabulary is the
miniature's, because tokenizing is not measured. Every number is processor time, which other programs
disturb less than the clock, as a proportion of today's step in the same run. The ways take turns.

    python benchmarks/second_run.py                # ten minutes with --compile, two without
"""

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from bench import measure_machine, note, random_gpt2
from torch import Tensor, nn

from gpt2_from_scratch import Classifier, load_messages, set_trainable
from gpt2_from_scratch.classifier import heads
from gpt2_from_scratch.gpt2.config import SIZES
from gpt2_from_scratch.speed.devices import set_threads
from gpt2_from_scratch.speed.feature_cache import Texts
from gpt2_from_scratch.speed.feature_store import FeatureStore
from gpt2_from_scratch.speed.partial_blocks import block_at
from gpt2_from_scratch.storage.paths import model_folder

BATCH = 8
ROUND = 8  # steps before the next way's turn; the first two of them are not counted
PARTS = ("gradients to None", "features", "forward", "backward", "optimizer")
LABELS = ("ham", "spam")


@dataclass
class Way:
    """One way to take a step: `block_at` or another function for the last block, and an optimizer."""

    name: str
    block: Callable[..., Tensor] = block_at
    adamw: dict[str, Any] = field(default_factory=lambda: {"fused": True})
    keep: bool = False  # gradients are set to zeros, not to None
    clip: float = 0.0
    at_once: bool = False  # each parameter is updated as soon as it has its gradient
    halves: bool = False  # the last block's matrices have copies in bfloat16
    size: int = BATCH
    seconds: list[list[float]] = field(default_factory=list)  # of each part of each step
    losses: list[float] = field(default_factory=list)

    def start(self, classifier: Classifier) -> None:
        """Take a copy of the classifier, and make the optimizer."""
        self.classifier = copy.deepcopy(classifier)
        self.trained = [p for p in self.classifier.model.parameters() if p.requires_grad]
        settings = {"lr": 5e-5, "weight_decay": 0.1, **self.adamw}
        self.optimizer = torch.optim.AdamW(self.trained, **settings)
        if self.at_once:
            each = {p: torch.optim.AdamW([p], **settings) for p in self.trained}

            def update(parameter: Tensor) -> None:
                each[parameter].step()
                parameter.grad = None

            for parameter in self.trained:
                parameter.register_post_accumulate_grad_hook(update)
        if self.halves:
            HALVES.update({p: p.detach().bfloat16() for p in self.trained})

    def step(self, texts: Texts, labels: Tensor, first: int) -> None:
        """Take a step on the messages from `first` on, and time its parts."""
        numbers = [(first + k) % len(labels) for k in range(self.size)]
        times = [time.process_time()]
        self.optimizer.zero_grad(set_to_none=not self.keep)
        times.append(time.process_time())
        ready = Ready(texts, *texts.batch(numbers))
        times.append(time.process_time())
        with patch.object(heads, "block_at", self.block):
            logits = self.classifier.batch_logits(ready, numbers)  # type: ignore[arg-type]
        loss = F.cross_entropy(logits, labels[numbers])
        times.append(time.process_time())
        loss.backward()
        times.append(time.process_time())
        if self.clip:
            nn.utils.clip_grad_norm_(self.trained, self.clip)
        if not self.at_once:
            self.optimizer.step()
        if self.halves:
            for parameter in self.trained:
                HALVES[parameter].copy_(parameter.detach())
        times.append(time.process_time())
        self.seconds.append([b - a for a, b in zip(times, times[1:], strict=False)])
        self.losses.append(loss.item())

    def medians(self) -> list[float]:
        """The median of each part's seconds, without the first round and the first steps of each."""
        counted = [s for n, s in enumerate(self.seconds) if n >= ROUND and n % ROUND >= 2]
        return [statistics.median(part) for part in zip(*counted, strict=True)]

    @property
    def whole(self) -> float:
        """The seconds of a step."""
        return sum(self.medians())


@dataclass
class Ready:
    """Features that were already read, in place of those of `Classifier.texts`."""

    texts: Texts
    x: Tensor
    lengths: Tensor

    @property
    def depth(self) -> int:
        """The number of frozen blocks."""
        return self.texts.depth

    def batch(self, numbers: list[int]) -> tuple[Tensor, Tensor]:
        """The features and the lengths."""
        return self.x, self.lengths


# --- other ways to multiply by the last block's matrices ---


def block_with(multiply: Callable[[nn.Linear, Tensor], Tensor]) -> Callable[..., Tensor]:
    """`block_at` with another function for its three plain matrices."""

    def block_at_with(block: Any, x: Tensor, positions: Tensor) -> Tensor:
        attn, mlp = block.attn, block.mlp
        with (
            patch.object(attn.c_proj, "forward", lambda y: multiply(attn.c_proj, y)),
            patch.object(mlp.c_fc, "forward", lambda y: multiply(mlp.c_fc, y)),
            patch.object(mlp.c_proj, "forward", lambda y: multiply(mlp.c_proj, y)),
        ):
            return block_at(block, x, positions)

    return block_at_with


def with_onednn(layer: nn.Linear, x: Tensor) -> Tensor:
    """Multiply with oneDNN instead of MKL."""
    return F.linear(x.to_mkldnn(), layer.weight, layer.bias).to_dense()


HALVES: dict[Tensor, Tensor] = {}  # {parameter: its copy in bfloat16}


class InBFloat16(torch.autograd.Function):
    """Products in bfloat16 with a copy of the weights; the gradient is for the float32 weights."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """(B, C) -> (B, K)"""
        x, rounded = x.bfloat16(), HALVES[weight]
        ctx.save_for_backward(x, rounded)
        return F.linear(x, rounded).float() + bias

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of all three."""
        x, rounded = ctx.saved_tensors
        low = dy.bfloat16()
        return (low @ rounded).float(), (low.T @ x).float(), dy.sum(0)


def in_bfloat16(layer: nn.Linear, x: Tensor) -> Tensor:
    """Multiply with the rounded copies."""
    return InBFloat16.apply(x, layer.weight, layer.bias)


def all_ways(compiled: bool) -> Iterator[Way]:
    """Today's step first, then the others."""
    yield Way("today")
    yield Way("AdamW for each parameter in Python", adamw={"foreach": False})
    yield Way("AdamW with foreach", adamw={"foreach": True})
    yield Way("AdamW within the backward pass", at_once=True)
    yield Way("gradients set to zeros", keep=True)
    yield Way("gradients clipped", clip=1.0)
    yield Way("matrices through oneDNN", block_with(with_onednn))
    yield Way("matrices in bfloat16", block_with(in_bfloat16), halves=True)
    yield Way("16 messages per step", size=2 * BATCH)
    yield Way("32 messages per step", size=4 * BATCH)
    if compiled:
        yield Way("the last block compiled", torch.compile(block_at, dynamic=True))


def main() -> None:
    """Measure and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--texts", type=int, default=256)
    parser.add_argument("--compile", action="store_true", help="also try torch.compile; needs g++")
    args = parser.parse_args()
    set_threads(args.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = replace(SIZES["124M"], n_vocab=4096)
        base = random_gpt2(folder / "base", config, vocabulary=model_folder("mini"))
        store = FeatureStore(folder / "features")
        classifier = Classifier.on_base(base, LABELS, pooling="last_token", store=store)
        set_trainable(classifier.model, n_last_blocks=1, final_norm=True)
        messages = load_messages("sms")[: args.texts]
        encoded, _ = classifier.encode([message.text for message in messages])
        classifier.texts(encoded)  # the first run
        texts = classifier.texts(encoded)
        labels = torch.tensor([LABELS.index(message.label) for message in messages])
        ways = [*all_ways(args.compile)]
        for way in ways:
            way.start(classifier)
        for number in range(args.rounds):
            for way in ways:
                for step in range(ROUND):
                    way.step(texts, labels, way.size * (ROUND * number + step))
            note(f"round {number + 1} of {args.rounds}")
    print_tables(ways)


def print_tables(ways: list[Way]) -> None:
    """Print the parts of today's step, and all ways in proportion to it."""
    today = ways[0]
    print(f"a step of {BATCH} messages, {measure_machine().describe()}")
    print("| part of today's step | ms | % |\n|---|---|---|")
    for part, seconds in zip(PARTS, today.medians(), strict=True):
        print(f"| {part} | {1000 * seconds:.1f} | {100 * seconds / today.whole:.0f} |")
    print("\n| way | ms | ratio | largest difference of a loss |\n|---|---|---|---|")
    for way in ways:
        gap = max(abs(a - b) for a, b in zip(way.losses, today.losses, strict=True))
        difference = f"{gap:.1e}" if way.size == BATCH and not way.clip else ""
        ratio = way.whole / today.whole
        print(f"| {way.name} | {1000 * way.whole:.1f} | {ratio:.2f} | {difference} |")


if __name__ == "__main__":
    main()
