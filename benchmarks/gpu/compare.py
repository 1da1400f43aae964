"""Stage a of `make gpu`: does the GPU compute what the CPU computes?

Each check computes the same numbers twice: on the CPU in float32, and on the device. The difference
is relative: the largest difference divided by the largest number. The model is `weights/mini`.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
from bench import CPU, best_of
from stage import Stage, short
from torch import Tensor

from gpt2_from_scratch import (
    Classifier,
    LoRAConfig,
    Split,
    TrainConfig,
    Trunk,
    block_at,
    generate,
    load_gpt2,
    load_messages,
    pad_batch,
    to_labelled,
)
from gpt2_from_scratch.classifier.train import TrainingRun, freeze
from gpt2_from_scratch.gpt2 import pretrain
from gpt2_from_scratch.gpt2.config import PretrainConfig
from gpt2_from_scratch.gpt2.tokenizer import Tokenizer
from gpt2_from_scratch.storage.paths import CHECKOUT

BASE = CHECKOUT / "weights" / "mini"
BOUNDS = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
MUON = 1e-3  # Muon orthogonalises in bfloat16, whatever the precision of the rest
F32, BF16 = BOUNDS

Compute = Callable[..., Tensor]  # of a device and a dtype


class Checks:
    """The computations that are compared, on a few of the hard messages."""

    def __init__(self, small: bool):
        messages = load_messages("hard")
        n = 4 if small else 64
        self.steps = 2 if small else 8
        self.pretraining = 1 if small else 3
        self.split = Split(messages[:n], messages[n : 2 * n], messages[2 * n : 3 * n])
        self.tokenizer = Tokenizer(BASE)
        self.encoded = [self.tokenizer.encode(message.text) for message in self.split.train]
        self.new_tokens = 4 if small else 40

    def logits(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Of a padded batch, without autograd: (B, T, V)."""
        ids, _ = pad_batch(self.encoded, 0)
        with torch.inference_mode(), autocast(device, dtype):
            return load_gpt2(BASE).to(device)(ids.to(device))

    def features(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Of all blocks but the last: (U, C)."""
        model = load_gpt2(BASE).to(device)
        trunk = Trunk(model, model.config.n_layer - 1, dtype)
        return trunk(trunk.pack(self.encoded))

    def one_position(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """The last block at each text's last token: (B, C)."""
        model = load_gpt2(BASE).to(device)
        ids, lengths = (part.to(device) for part in pad_batch(self.encoded, 0))
        with torch.inference_mode(), autocast(device, dtype):
            return block_at(model.blocks[-1], model.embed(ids), lengths - 1)

    def training_of(self, device: torch.device, dtype: torch.dtype, **settings: Any) -> Tensor:
        """The losses of a few steps, and the outputs for the validation texts after them."""
        with TemporaryDirectory() as folder:
            run, val = self.new_run(device, dtype, Path(folder), **settings)
            losses = [run.step(batch) for batch in self.batches()]
            return torch.cat([torch.tensor(losses), outputs(run.classifier, val)])

    def new_run(
        self,
        device: torch.device,
        dtype: torch.dtype,
        folder: Path,
        lora: LoRAConfig | None = None,
        n_last_blocks: int = 1,
    ) -> tuple[TrainingRun, Any]:
        """A finetuning run before its first step, and its validation texts."""
        classifier = Classifier.on_base(
            BASE, ["ham", "spam"], lora=lora, device=device, dtype=dtype
        )
        config = TrainConfig(n_last_blocks=n_last_blocks, epochs=1, lr=1e-4)
        freeze(classifier, config)
        train, val = (to_labelled(classifier, part) for part in (self.split.train, self.split.val))
        return TrainingRun(classifier, self.split, train, config, folder), val

    def batches(self) -> Iterator[list[int]]:
        """Numbers of the messages of each step."""
        n = len(self.split.train)
        yield from ([(2 * step + k) % n for k in range(min(8, n))] for step in range(self.steps))

    def resume(self, device: torch.device) -> dict[str, Any]:
        """A run that is saved and restored in the middle, against one that is not."""
        with TemporaryDirectory() as one, TemporaryDirectory() as other:
            unbroken, val = self.new_run(device, F32, Path(one))
            stopped, _ = self.new_run(device, F32, Path(other))
            *first, last = self.batches()
            for batch in first:
                unbroken.step(batch)
                stopped.step(batch)
            stopped.save()
            resumed, _ = self.new_run(device, F32, Path(other))
            resumed.restore()
            unbroken.step(last)
            resumed.step(last)
            ends = [outputs(run.classifier, val) for run in (unbroken, resumed)]
        found = compared(*ends, BOUNDS[F32])
        return found | {"equal to the bit": torch.equal(*ends)}

    def generation(self, device: torch.device) -> dict[str, Any]:
        """The most probable continuation, token by token."""
        ids = torch.tensor(self.tokenizer.encode("I will be at the station"))
        ours, theirs = (
            generate(load_gpt2(BASE).to(d), ids.to(d), self.new_tokens).tolist()
            for d in (CPU, device)
        )
        same = next(
            (n for n, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b), len(ours)
        )
        return {"equal tokens": same, "of": len(ours), "ok": ours == theirs}

    def rows(self, device: torch.device) -> Tensor:
        """Rows for pretraining: (B, T + 1)."""
        whole = torch.tensor([token for ids in self.encoded for token in ids])
        return whole[: len(whole) // 33 * 33].view(-1, 33).to(device)

    def pretraining_gradient(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """The loss of a batch and the gradient of every parameter, end to end."""
        model = load_gpt2(BASE).to(device)
        with products_in(dtype):
            loss = pretrain.next_token_loss(model, self.rows(device))
        loss.backward()
        return torch.cat([loss[None], *(p.grad.flatten() for p in model.parameters())]).detach()

    def pretraining_steps(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """The losses before each of a few steps with Muon and AdamW, and after the last."""
        model = load_gpt2(BASE).to(device)
        optimizers = pretrain.make_optimizers(model, PretrainConfig(lr=1e-3))
        losses = []
        for step in range(self.pretraining + 1):
            with products_in(dtype):
                loss = pretrain.next_token_loss(model, self.rows(device))
            losses.append(loss.detach())
            if step < self.pretraining:
                loss.backward()
                for optimizer in optimizers:
                    optimizer.step()
                    optimizer.zero_grad()
        return torch.stack(losses)

    def compiled(self, device: torch.device) -> dict[str, Any]:
        """A pretraining loss and its gradient, compiled against not compiled, in bfloat16."""
        model, rows = load_gpt2(BASE).to(device), self.rows(device)
        quick = torch.compile(pretrain.next_token_loss, dynamic=False)
        found, seconds = [], []
        for loss_of in (pretrain.next_token_loss, quick):

            def run(loss_of: Callable[..., Tensor] = loss_of) -> Tensor:
                model.zero_grad()
                loss = loss_of(model, rows)
                loss.backward()
                return loss

            start = time.perf_counter()
            loss = run()
            gradients = [p.grad.flatten() for p in model.parameters()]
            found.append(torch.cat([loss[None], *gradients]).detach().cpu())
            first = time.perf_counter() - start
            seconds.append(best_of(5, run, device))
        speed = {"compiling": first, "seconds": seconds[1], "seconds without": seconds[0]}
        return compared(*found, BOUNDS[BF16]) | speed


def outputs(classifier: Classifier, labelled: Any) -> Tensor:
    """A head's outputs for texts, end to end, on the CPU."""
    found = [out for _, out, _ in classifier.outputs(labelled.texts)]
    return torch.cat([next(iter(out.values())).flatten() for out in found]).cpu()


def compared(expected: Tensor, found: Tensor, bound: float) -> dict[str, Any]:
    """The relative difference, its bound, and whether it is within it."""
    expected, found = expected.detach().float().cpu(), found.detach().float().cpu()
    difference = float((expected - found).abs().max() / expected.abs().max())
    return {"difference": difference, "bound": bound, "ok": difference <= bound}


@contextmanager
def products_in(dtype: torch.dtype) -> Iterator[None]:
    """Let `next_token_loss` multiply in this precision on every device."""
    with patch.object(pretrain, "multiplies_bfloat16", return_value=dtype == BF16):
        yield


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Products in bfloat16, if that is what is asked for."""
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == BF16)


def check(stage: Stage, name: str, compute: Compute, bounds: dict[torch.dtype, float]) -> None:
    """Compute on the device in each precision, and compare with the CPU in float32."""
    expected: list[Tensor] = []

    def run(dtype: torch.dtype, bound: float) -> dict[str, Any]:
        if not expected:
            expected.append(compute(CPU, F32))
        return compared(expected[0], compute(stage.device, dtype), bound)

    for dtype, bound in bounds.items():
        stage.measure(f"{name}, {short(dtype)}", partial(run, dtype, bound))


def main() -> None:
    """Run every check, in float32 and in bfloat16 where both are used."""
    stage = Stage.from_command_line(__doc__.splitlines()[0])
    checks = Checks(stage.small)
    all_blocks = partial(checks.training_of, n_last_blocks=6)
    lora = partial(checks.training_of, lora=LoRAConfig(rank=4), n_last_blocks=0)
    float32 = {F32: BOUNDS[F32]}
    check(stage, "logits", checks.logits, BOUNDS)
    check(stage, "frozen features", checks.features, BOUNDS)
    check(stage, "one position of a block", checks.one_position, BOUNDS)
    check(stage, "training of the last block", checks.training_of, BOUNDS)
    check(stage, "training of all blocks", all_blocks, float32)
    check(stage, "training of LoRA", lora, float32)
    check(stage, "pretraining, gradient", checks.pretraining_gradient, BOUNDS)
    check(stage, "pretraining, steps", checks.pretraining_steps, BOUNDS | {F32: MUON})
    stage.measure("resume", lambda: checks.resume(stage.device))
    stage.measure("generation", lambda: checks.generation(stage.device))
    if not stage.small:  # compiling for a CPU takes half a minute
        stage.measure("torch.compile, bfloat16", lambda: checks.compiled(stage.device))


if __name__ == "__main__":
    main()
