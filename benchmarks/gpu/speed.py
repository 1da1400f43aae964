"""Stage b of `make gpu`: finetuning, features and predictions, in seconds and shares of the peak.

Random weights of the size of 124M: the lecture's recipe done the textbook's way, with Hugging Face
and by this package, and 10,000 messages classified. Random weights of 1558M: features and
predictions. A share of the peak is the arithmetic that a way needs, divided by its seconds and by
the fastest matrix product that was measured on this card.
"""

import json
import statistics
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from bench import PeakMemory, best_of, block_flops, measure_machine, random_gpt2, timed
from finetune import OURS, PLAIN, HuggingFace, Job, Side, our_side, run_ours, run_plain
from predict import BATCH_SIZES, hugging_face_rate, messages, our_rate
from stage import LABELS, Stage, short

from gpt2_from_scratch import Classifier, HeadConfig, Tokenizer, Trunk, replace_head, set_trainable
from gpt2_from_scratch.classifier.saving import Description
from gpt2_from_scratch.gpt2.config import GPT2Config
from gpt2_from_scratch.speed.frozen_trunk import batches


def finetuned(
    job: Job, side: Side, run: Callable[[], None], dtype: torch.dtype, plain: dict[str, float]
) -> dict[str, Any]:
    """One way of finetuning: its seconds, and how many times those the plain ways took."""
    run()
    seconds = statistics.median(side.seconds)
    ratios = {f"{name} / it": theirs / seconds for name, theirs in plain.items()}
    share = side.flops / seconds / job.machine.flops[dtype]
    return {"seconds": seconds, **ratios, "share of peak": share, "peak MB": side.megabytes}


def finetuning(stage: Stage, job: Job) -> None:
    """All ways of the lecture's recipe; the plain ones take some steps, which are scaled up."""
    plain: dict[str, float] = {}
    for name, make in PLAIN.items():
        side = Side(name)
        run = partial(run_plain, side, make, job, full=False)
        run = partial(finetuned, job, side, run, torch.float32, plain)
        found = stage.measure(f"finetune, 124M: {name}", run)
        if "seconds" in found:
            plain |= {name: found["seconds"]}
    for dtype, stored in OURS:
        side = our_side(job, dtype, stored)
        run = partial(run_ours, side, job, dtype, stage.work / "features")
        run = partial(finetuned, job, side, run, dtype, plain)
        stage.measure(f"finetune, 124M: {side.name}", run)


def hugging_face_predictions(
    folder: Path, texts: list[str], device: torch.device
) -> dict[str, Any]:
    """Messages per second of Hugging Face with its best batch size, tokenizing not included."""
    tokenizer = Tokenizer(folder)
    encoded = [tokenizer.encode(text) or [tokenizer.end_of_text_id] for text in texts]
    model = HuggingFace(folder, encoded, 0, device)
    sample = list(range(min(512, len(texts))))
    sizes = BATCH_SIZES if device.type == "cpu" else (32, 64, 128, 256)
    rates = {size: hugging_face_rate(model, sample, size) for size in sizes}
    best = max(rates, key=lambda size: rates[size])
    part = list(range(len(texts)))[:: max(1, len(texts) // 2048)]
    return {"messages / s": hugging_face_rate(model, part, best), "batch": best}


def our_predictions(classifier: Classifier, texts: list[str]) -> dict[str, Any]:
    """Messages per second, tokenizing included, and the most memory of the device."""
    our_rate(classifier, texts[:64])  # the first call prepares the frozen blocks
    with PeakMemory(classifier.device) as peak:
        rate = our_rate(classifier, texts)
    return {"messages / s": rate, "peak MB": peak.bytes / 1e6}


def predictions(stage: Stage, folder: Path, texts: list[str]) -> None:
    """124M: Hugging Face and this package."""
    run = partial(hugging_face_predictions, folder, texts, stage.device)
    theirs = stage.measure("predict, 124M: Hugging Face", run).get("messages / s")
    for dtype in (torch.float32, torch.bfloat16):

        def ours(dtype: torch.dtype = dtype) -> dict[str, Any]:
            classifier = Classifier.on_base(folder, LABELS, device=stage.device, dtype=dtype)
            found = our_predictions(classifier, texts)
            return found | ({"it / Hugging Face": found["messages / s"] / theirs} if theirs else {})

        stage.measure(f"predict, 124M: ours, {short(dtype)}", ours)


class Large:
    """Random weights of 1558M, drawn on the device, with a head of two classes."""

    def __init__(self, stage: Stage, config: GPT2Config, texts: list[str]):
        self.texts, self.tokenizer = texts, Tokenizer(stage.data / "openai")
        self.model = stage.random_model(config)
        replace_head(self.model, len(LABELS))
        set_trainable(self.model, n_last_blocks=1, final_norm=True)
        self.model.to(stage.device)

    def classifier(self, dtype: torch.dtype) -> Classifier:
        """A classifier on the model."""
        config = self.model.config
        head = HeadConfig(labels=LABELS, layer=config.n_layer)
        description = Description("random", "0" * 64, (head,), config.n_ctx)
        return Classifier(self.model, self.tokenizer, description, dtype=dtype)

    def features(self, dtype: torch.dtype, peak_flops: float) -> dict[str, Any]:
        """All blocks but the last over the texts: tokens per second and share of the peak."""
        config, device = self.model.config, self.model.wte.weight.device
        encoded = [self.tokenizer.encode(text) for text in self.texts]
        with PeakMemory(device) as peak:
            trunk = Trunk(self.model, config.n_layer - 1, dtype)
            packed = [trunk.pack([encoded[n] for n in b]) for b in batches(encoded, trunk.tokens)]
            seconds = best_of(1, lambda: [trunk(batch) for batch in packed], device)
        rows = sum(len(batch.ids) for batch in packed)
        length = statistics.mean(map(len, encoded))
        flops = trunk.depth * block_flops(config, rows, length)
        return {
            "seconds": seconds,
            "tokens / s": rows / seconds,
            "share of peak": flops / seconds / peak_flops,
            "peak MB": peak.bytes / 1e6,
        }


def large(
    stage: Stage, config: GPT2Config, texts: list[str], flops: dict[torch.dtype, float]
) -> None:
    """1558M: features and predictions in both precisions."""
    made: list[Large] = []

    def make() -> dict[str, Any]:
        seconds = timed(lambda: made.append(Large(stage, config, texts)), stage.device)
        return {
            "seconds": seconds,
            "parameters": sum(p.numel() for p in made[0].model.parameters()),
        }

    stage.measure("1558M: random weights", make)
    for dtype in (torch.bfloat16, torch.float32):
        name = short(dtype)
        stage.measure(f"features, 1558M: {name}", lambda d=dtype: made[0].features(d, flops[d]))
        stage.measure(
            f"predict, 1558M: {name}",
            lambda d=dtype: our_predictions(made[0].classifier(d), texts),
        )


def main() -> None:
    """Measure the card, then what runs on it."""
    stage = Stage.from_command_line(__doc__.splitlines()[0])
    machine = measure_machine(stage.device, times=1 if stage.small else 5)

    def card() -> dict[str, Any]:
        """What it can do at most."""
        rates = {short(d): f / 1e12 for d, f in machine.flops.items()}
        about = {
            "name": machine.name,
            "GB / s": machine.bandwidth / 1e9,
            "torch": torch.__version__,
        }
        return about | {f"TFLOP/s, {name}": rate for name, rate in rates.items()}

    stage.measure("card", card)
    vocabulary = stage.data / "openai"
    folder = random_gpt2(stage.work / "124M", stage.sizes("124M"), vocabulary=vocabulary)
    job = Job(folder, stage.split(), machine, stage.device, 1 if stage.small else 20)
    finetuning(stage, job)
    originals = json.loads((stage.data / "messages.json").read_text("utf-8"))
    texts = messages(32 if stage.small else 10_000, originals)
    predictions(stage, folder, texts)
    large(stage, stage.sizes("1558M"), texts[:2000], machine.flops)
    stage.measure("settings", lambda: {"config": asdict(job.config), "texts": len(texts)})


if __name__ == "__main__":
    main()
