"""Stage c of `make gpu`: pretrain the next miniature in the time that is left.

The speed of a step and of encoding is measured first; from it follows the number of steps, decay
included. A checkpoint is written about once a minute.
"""

import json
import shutil
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from bench import PeakMemory, block_flops, measure_machine, timed
from stage import Stage

from gpt2_from_scratch.gpt2.config import PretrainConfig
from gpt2_from_scratch.gpt2.corpus import Source, encode_source, read_documents, registers
from gpt2_from_scratch.gpt2.model import GPT2, init_weights
from gpt2_from_scratch.gpt2.pretrain import draw_rows, make_optimizers, next_token_loss, pretrain
from gpt2_from_scratch.gpt2.tokenizer import Tokenizer
from gpt2_from_scratch.progress import log_to

RESERVE = 20  # seconds for compiling again and for the last checkpoint
USED = 0.9  # proportion of the rest that is planned: checkpoints and slower steps need some
CHECKPOINT = 60  # seconds between two
SMALL_STEPS = 4
SAMPLE = 2_000_000  # characters whose encoding is timed


def planned(config: PretrainConfig, seconds: float, per_step: float) -> PretrainConfig:
    """Choose the number of steps that fit, and the steps between checkpoints."""
    steps = max(2, int(USED * seconds / per_step))
    every = min(steps, max(1, round(CHECKPOINT / per_step)))
    warmup = min(config.warmup, steps // 10)
    return replace(config, steps=steps, save_every=every, warmup=warmup)


def encoded_sample(corpus: Path, tokenizer: Tokenizer) -> tuple[Source, float]:
    """Encode part of the largest file; also the seconds that the whole corpus would take."""
    largest = max(corpus.glob("*.txt"), key=lambda path: path.stat().st_size)
    documents = read_documents(largest)
    size, some = 0, []
    for document in documents:
        some.append(document)
        size += len(document)
        if size >= SAMPLE:
            break
    made: list[Source] = []
    seconds = timed(lambda: made.append(encode_source(largest.name, some, tokenizer, 1.0)))
    total = sum(
        (corpus / name).stat().st_size * (3 if register == "conversation" else 1)
        # as typed on a phone it is encoded again, in twice the time
        for name, register in registers(corpus).items()
    )
    return made[0], seconds * total / size


def seconds_per_step(config: PretrainConfig, source: Source, device: torch.device) -> float:
    """Take a few steps with short and long rows, after those that compile; the mean of a step."""
    model = GPT2(config.sizes())
    init_weights(model, torch.Generator().manual_seed(config.seed))
    optimizers = make_optimizers(model.to(device), config)
    compiled_loss = torch.compile(next_token_loss, dynamic=False)

    def step(number: int) -> None:
        rows = draw_rows([source], config, number).to(device)
        loss = compiled_loss(model, rows)
        loss.item()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    last = config.long_every - 1
    for number in (0, last, 0, last):  # compiles both, and fills the memory
        step(number)
    several = range(config.long_every)
    return timed(lambda: [step(number) for number in several], device) / len(several)


def calibrated(
    config: PretrainConfig, source: Source, device: torch.device, compiled: bool = True
) -> tuple[PretrainConfig, dict[str, Any]]:
    """Find settings that run here, and how fast.

    Fewer tokens per step if memory runs out, and no compiling if that fails.
    """
    torch.compiler.set_stance("default" if compiled else "force_eager")
    notes: dict[str, Any] = {"compiled": compiled}
    while True:
        try:
            seconds = seconds_per_step(config, source, device)
            break
        except torch.OutOfMemoryError:
            if config.tokens // 2 < config.n_ctx:
                raise
            smaller = replace(config, tokens=config.tokens // 2)
        except Exception as error:
            if not notes["compiled"]:
                raise
            torch.compiler.set_stance("force_eager")
            notes |= {"compiled": False, "why": f"{type(error).__name__}: {error}"[:1000]}
            smaller = config
        config = smaller
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return config, notes | {"seconds per step": seconds, "tokens / s": config.tokens / seconds}


def step_flops(config: PretrainConfig) -> float:
    """Multiplications and additions of a step, forward and backward, without the optimizer's."""
    mean_length = config.row + (config.n_ctx - config.row) / config.long_every
    blocks = config.n_layer * block_flops(config.sizes(), config.tokens, mean_length)
    return 3 * (blocks + 2 * config.tokens * config.n_embd * config.n_vocab)


class Pretraining:
    """What is known before the run: its settings, how long encoding takes, how fast a step is."""

    def __init__(self, stage: Stage):
        self.stage, self.corpus = stage, stage.data / "corpus"
        self.out = shutil.copytree(stage.data / "next", stage.work / "next", dirs_exist_ok=True)
        settings = json.loads((stage.data / "pretraining.json").read_text("utf-8"))
        self.config = PretrainConfig(**settings)

    def calibrate(self) -> dict[str, Any]:
        """Measure encoding and steps; plan the run."""
        source, encoding = encoded_sample(self.corpus, Tokenizer(self.out))
        # compiling for a CPU takes half a minute
        compiled = not self.stage.small
        config, found = calibrated(self.config, source, self.stage.device, compiled)
        seconds = self.stage.left - encoding - RESERVE
        self.config = planned(config, seconds, found["seconds per step"])
        if self.stage.small:
            self.config = replace(self.config, steps=SMALL_STEPS, save_every=SMALL_STEPS // 2)
        plan = {"steps": self.config.steps, "save every": self.config.save_every}
        return found | {"encoding will take": encoding, "for steps": seconds} | plan

    def run(self) -> dict[str, Any]:
        """Pretrain; the settings, the learning curve, the share of the card's peak."""
        device = self.stage.device
        peak_flops = measure_machine(device, times=1 if self.stage.small else 5).flops
        with PeakMemory(device) as peak:
            pretrain(self.corpus, self.out, self.config, device=device, dtype=torch.float16)
        lines = (self.out / "pretraining.jsonl").read_text("utf-8").splitlines()
        curve = [json.loads(line) for line in lines]
        rate = curve[-1]["tokens_per_second"] / self.config.tokens * step_flops(self.config)
        return {
            "bits per byte": curve[-1]["held_out_bits_per_byte"],
            "tokens": curve[-1]["tokens"],
            "tokens / s": curve[-1]["tokens_per_second"],
            "share of peak": rate / peak_flops[torch.bfloat16],
            "peak MB": peak.bytes / 1e6,
            "curve": curve,
            "settings": asdict(self.config),
        }


def main() -> None:
    """Calibrate, then pretrain."""
    stage = Stage.from_command_line(__doc__.splitlines()[0])
    log_to(sys.stderr)
    pretraining = Pretraining(stage)
    stage.measure("calibration", pretraining.calibrate)
    stage.measure("pretraining", pretraining.run)


if __name__ == "__main__":
    main()
