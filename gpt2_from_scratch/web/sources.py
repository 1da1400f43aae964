"""The package's source code of each part of the picture, and the chapter that explains it.

Only the objects listed here are shown.
"""

import inspect
import json
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gpt2_from_scratch
from gpt2_from_scratch.classifier.classifier import Classifier
from gpt2_from_scratch.classifier.freezing import set_trainable
from gpt2_from_scratch.classifier.heads import head_layers, pool, read_positions, replace_head
from gpt2_from_scratch.classifier.tasks.classification import Classification, probabilities_of
from gpt2_from_scratch.gpt2.model import GPT2, MLP, CausalSelfAttention, TransformerBlock
from gpt2_from_scratch.gpt2.tokenizer import Tokenizer
from gpt2_from_scratch.speed.batching import end_tokens, tidied

PACKAGE = Path(gpt2_from_scratch.__file__).parent
CHAPTERS = PACKAGE.parent / "chapters" / "notebooks"  # only in a clone of the repository


@dataclass(frozen=True)
class Shown:
    """The code of a part, and its chapter."""

    title: str
    what: str
    code: tuple[Callable | type, ...]
    chapter: str  # name of its notebook


PARTS = {
    "tokenizer": Shown(
        "Tokenizer",
        "Cuts the text into tokens and appends the end token, at which the head reads.",
        (Tokenizer.encode, tidied, end_tokens),
        "02_tokens",
    ),
    "embeddings": Shown(
        "Embeddings",
        "Add a vector for each token (wte) and a vector for its position (wpe).",
        (GPT2.__init__, GPT2.embed),
        "04_network",
    ),
    "block": Shown(
        "Transformer block",
        "Adds what attention and the MLP compute to the residual stream.",
        (TransformerBlock,),
        "04_network",
    ),
    "norm": Shown(
        "Layer normalisation",
        "Gives each position's state mean 0 and variance 1, then scales and shifts it.",
        (TransformerBlock.__init__, TransformerBlock.forward),
        "04_network",
    ),
    "attention": Shown(
        "Causal self-attention",
        "Each head mixes the values of earlier positions, weighted by how well query and key match.",
        (CausalSelfAttention,),
        "03_attention",
    ),
    "mlp": Shown(
        "MLP",
        "Two linear layers with a GELU, applied to each position separately.",
        (MLP,),
        "04_network",
    ),
    "final_norm": Shown(
        "Final norm", "Normalises the last block's states.", (GPT2.hidden,), "04_network"
    ),
    "pooling": Shown(
        "Reading position",
        "Chooses the position whose state the head reads.",
        (pool, read_positions),
        "07_last_token",
    ),
    "head": Shown(
        "Classification head",
        "Replaces GPT-2's own head: one logit per class from one state.",
        (replace_head, head_layers),
        "06_head",
    ),
    "answer": Shown(
        "Answer",
        "The softmax turns the logits into probabilities. The most probable label is the answer.",
        (probabilities_of, Classification.answers, Classifier.predict),
        "11_use",
    ),
    "freezing": Shown(
        "Frozen and trained parts",
        "Everything is frozen first; then the last blocks, the final norm and the head are unfrozen.",
        (set_trainable,),
        "08_freezing",
    ),
}


def part_shown(part: str) -> dict[str, Any]:
    """Return a part's title, its source code, and the name of its chapter."""
    shown = PARTS[part]
    return {
        "part": part,
        "title": shown.title,
        "what": shown.what,
        "source": [_source(thing) for thing in shown.code],
        "chapter": shown.chapter,
    }


def _source(thing: Callable | type) -> dict[str, Any]:
    lines, first = inspect.getsourcelines(thing)
    file = Path(inspect.getsourcefile(thing) or "").relative_to(PACKAGE.parent)
    return {
        "name": thing.__qualname__,
        "file": file.as_posix(),
        "line": first,
        "code": textwrap.dedent("".join(lines)),
    }


def chapter_shown(name: str) -> dict[str, Any]:
    """Return the cells of a chapter's notebook, without pictures; none without the repository."""
    path = CHAPTERS / f"{name}.ipynb"
    cells = json.loads(path.read_text("utf-8"))["cells"] if path.is_file() else []
    shown = [
        {"kind": cell["cell_type"], "text": "".join(cell["source"])}
        for cell in cells
        if "hide-input" not in cell["metadata"].get("tags", [])
    ]
    return {"chapter": name, "file": f"chapters/notebooks/{name}.ipynb", "cells": shown}
