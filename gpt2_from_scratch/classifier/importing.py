"""Read the head of a classifier that transformers' GPT2ForSequenceClassification saved.

Its head, `score`, is a linear layer without bias. It reads the rightmost token that is not the
padding token, as pooling `last_token` does here.
"""

import os
from pathlib import Path
from typing import Any

from torch import Tensor

from gpt2_from_scratch.classifier.settings import HeadConfig
from gpt2_from_scratch.data.formats import Task
from gpt2_from_scratch.errors import CheckpointError
from gpt2_from_scratch.gpt2.folders import tensor_files, weight_files
from gpt2_from_scratch.gpt2.tokenizer import Tokenizer
from gpt2_from_scratch.progress import command
from gpt2_from_scratch.storage.files import read_json
from gpt2_from_scratch.storage.tensors import open_tensors

KIND = "GPT2ForSequenceClassification"
OTHER_KINDS = ("GPT2ForTokenClassification", "GPT2DoubleHeadsModel", "GPT2ForQuestionAnswering")
TASKS: dict[str | None, Task] = {  # {transformers' problem_type: our task}
    None: "classification",
    "single_label_classification": "classification",
    "multi_label_classification": "multi-label",
}
SCORE = "score.weight"


def is_sequence_classifier(folder: Path) -> bool:
    """Return whether a folder contains a classifier of transformers.

    Raises CheckpointError if it contains another head of transformers, which is not read.
    """
    if not os.path.isfile(folder / "config.json"):
        return False
    kinds = read_json(folder / "config.json").get("architectures")
    for kind in kinds if isinstance(kinds, list) else ():
        if kind in OTHER_KINDS:
            raise CheckpointError(
                f"{folder} is a {kind}, whose head is not read. Train a head of your own on its GPT-2: "
                f"{command('train', '--model', str(folder))}"
            )
    return isinstance(kinds, list) and KIND in kinds


def read_head(folder: Path, tokenizer: Tokenizer) -> tuple[HeadConfig, Tensor]:
    """Read the head and its weight (K, C).

    Raises CheckpointError if this package would give other answers than transformers.
    """
    path = folder / "config.json"
    config = read_json(path)
    labels = _labels(config, path)
    problem = config.get("problem_type")
    if problem not in TASKS or len(labels) < 2:
        raise CheckpointError(
            f"{path}: problem_type is {problem!r:.80} with {len(labels)} outputs; only classification "
            "is read. Train a head of your own on this folder with --model."
        )
    pad = config.get("pad_token_id")
    if pad is not None and not (type(pad) is int and pad >= tokenizer.end_of_text_id):
        raise CheckpointError(
            f"{path}: pad_token_id is {pad!r:.80}, a token that occurs in texts. transformers does not "
            "read it at the end of a text, and this package does."
        )
    source = weight_files(folder)[-1]  # safetensors
    file = tensor_files(source).get(SCORE) if source.suffix != ".index" else None
    if file is None:
        raise CheckpointError(f"{source} does not contain {SCORE}, the head of a {KIND}")
    with open_tensors(file) as opened:
        weight = opened.get_tensor(SCORE).float()
    expected = (len(labels), config.get("n_embd", config.get("hidden_size")))
    if tuple(weight.shape) != expected or not weight.isfinite().all():
        raise CheckpointError(
            f"{file}: {SCORE} must be {expected} finite numbers, one row per label; found shape "
            f"{tuple(weight.shape)}"
        )
    return HeadConfig(task=TASKS[problem], labels=labels, pooling="last_token"), weight


def _labels(config: dict[str, Any], path: Path) -> tuple[str, ...]:
    """Return the labels in the order of the outputs."""
    named = config.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}  # transformers' default
    if not isinstance(named, dict) or {*named} != {str(n) for n in range(len(named))}:
        raise CheckpointError(f"{path}: id2label must name the labels 0, 1, ...: {named!r:.200}")
    return tuple(str(named[str(n)]) for n in range(len(named)))
