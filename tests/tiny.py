"""A GPT-2 small enough to check by hand, as a folder in OpenAI's format."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from write_bundle import write_random_gpt2

from gpt2_from_scratch.classifier.classifier import Classifier
from gpt2_from_scratch.classifier.settings import HeadConfig
from gpt2_from_scratch.gpt2.tokenizer import write_bpe

TINY = {"n_vocab": 277, "n_ctx": 32, "n_embd": 32, "n_head": 4, "n_layer": 2}
# 20 merges and 256 bytes and <|endoftext|> are 277 tokens; "Ġ" is the space
TINY_MERGES = [
    ("Ġ", "t"),
    ("h", "e"),
    ("i", "n"),
    ("r", "e"),
    ("o", "n"),
    ("Ġt", "he"),
    ("e", "r"),
    ("Ġ", "a"),
    ("a", "t"),
    ("e", "n"),
    ("Ġ", "w"),
    ("i", "s"),
    ("o", "u"),
    ("Ġ", "s"),
    ("in", "g"),
    ("l", "l"),
    ("a", "n"),
    ("n", "d"),
    ("Ġa", "nd"),
    ("y", "ou"),
]

ODD_TEXTS = [
    "the cat is in the house",
    "win",
    "",
    "you and the other one at ten \r\n\u200b",
    "cafe\u0301 \ufeff",
    "<|endoftext|>",
    "in <|endoftext|>",
    "and where is the mat " * 9,  # cut to 32 tokens
    "🎉 there and\tthere",
]


def write_checkpoint(folder: Path, seed: int, **sizes: int) -> Path:
    """Write random weights of the tiny sizes, except for `sizes`, and both BPE files."""
    write_random_gpt2(folder, TINY | sizes, seed=seed)
    write_bpe(folder, TINY_MERGES)
    return folder


class Halved(nn.Module):
    """A part that is not GPT-2's: it halves the result of another part."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) / 2


def random_classifier(base: Path, *heads: HeadConfig, **options: Any) -> Classifier:
    """A classifier whose heads, final norm and adapters are all random, with std 0.2."""
    classifier = Classifier.on_base(base, heads=heads, **options)
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for name, parameter in classifier.model.named_parameters():
            if name.startswith(("head.", "ln_f.")) or "lora_" in name:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return classifier
