"""What the stages of `make gpu` share: their settings, and a file of results that grows."""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gpt2_from_scratch import Classifier, HeadConfig, LoRAConfig, Split, Tokenizer
from gpt2_from_scratch.classifier.saving import Description, assemble
from gpt2_from_scratch.data.messages import Message
from gpt2_from_scratch.gpt2.config import SIZES, GPT2Config
from gpt2_from_scratch.gpt2.model import GPT2, init_weights
from gpt2_from_scratch.storage.files import write_json

TINY = {"n_ctx": 128, "n_embd": 32, "n_head": 4, "n_layer": 2}
LABELS = ("ham", "spam")


@dataclass
class Stage:
    """A stage in progress."""

    device: torch.device
    small: bool  # sizes for a try on a CPU
    data: Path  # what the pack holds, unpacked
    work: Path  # for files that do not come back
    out: Path  # the file of results
    seconds: float  # it may take
    started: float = field(default_factory=time.monotonic)
    found: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_command_line(cls, about: str) -> "Stage":
        """Read the settings that `run.py` passes, and forbid TF32 in float32 products."""
        parser = argparse.ArgumentParser(description=about)
        parser.add_argument("--device", type=torch.device, required=True)
        parser.add_argument("--small", action="store_true")
        parser.add_argument("--data", type=Path, required=True)
        parser.add_argument("--work", type=Path, required=True)
        parser.add_argument("--out", type=Path, required=True)
        parser.add_argument("--seconds", type=float, required=True)
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False
        return cls(**vars(parser.parse_args()))

    @property
    def left(self) -> float:
        """Seconds until its time is over."""
        return self.seconds - (time.monotonic() - self.started)

    def measure(self, name: str, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Run a measurement and write what it finds, or its error, to the file at once."""
        start = time.monotonic()
        if self.left <= 0:
            result: dict[str, Any] = {"skipped": "no time was left"}
        else:
            try:
                result = run()
            except ModuleNotFoundError as error:
                result = {"skipped": f"the package {error.name} is missing"}
            except Exception as error:  # noted, so that the next measurement runs
                result = {"error": f"{type(error).__name__}: {error}"}
        self.found[name] = {**result, "took": round(time.monotonic() - start, 2)}
        write_json(self.out, self.found)
        print(f"{name}: {line(self.found[name])}", flush=True)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return result

    def split(self) -> Split:
        """The lecture's split of the SMS collection, from the pack."""
        parts = json.loads((self.data / "lecture.json").read_text("utf-8"))
        return Split(*([Message(text, label) for text, label in part] for part in parts))

    def sizes(self, name: str) -> GPT2Config:
        """GPT-2's sizes by name; tiny ones for a try."""
        if not self.small:
            return SIZES[name]
        return GPT2Config(n_vocab=Tokenizer(self.data / "openai").n_vocab, **TINY)

    def random_model(self, config: GPT2Config) -> GPT2:
        """Random weights, drawn on the device, none of them trainable."""
        with self.device:
            model = GPT2(config)
        init_weights(model, torch.Generator(self.device).manual_seed(1558))
        return model.requires_grad_(False)

    def random_classifier(
        self,
        config: GPT2Config,
        *,
        lora: LoRAConfig | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Classifier:
        """A classifier of two classes on random weights, with the vocabulary of the pack."""
        model, tokenizer = self.random_model(config), Tokenizer(self.data / "openai")
        head = HeadConfig(labels=LABELS, layer=config.n_layer)
        description = Description("random", "0" * 64, (head,), config.n_ctx, lora=lora)
        assemble(description, model, tokenizer, seed=123)
        model.to(self.device)
        return Classifier(model, tokenizer, description, dtype=dtype)


def line(result: dict[str, Any]) -> str:
    """A result on one line: numbers with four digits, no lists and tables."""
    values = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in result.items()}
    return ", ".join(f"{k} {v}" for k, v in values.items() if not isinstance(v, list | dict))


def short(dtype: torch.dtype) -> str:
    """Such as "bfloat16"."""
    return str(dtype).removeprefix("torch.")
