"""Read the head of a classifier that transformers saved.

transformers' GPT2ForSequenceClassification has a linear layer without bias, `score`. It reads the
rightmost token that is not the padding token. This is pooling `last_token` here, or `end_token` if the
tokenizer appends an end token, as in a folder that `export` wrote. GPT2ForTokenClassification has a linear
layer with bias, `classifier`, and reads every token.
"""

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt2_from_scratch.classifier.settings import HeadConfig, Pooling
from gpt2_from_scratch.data.formats import Task
from gpt2_from_scratch.errors import CheckpointError
from gpt2_from_scratch.gpt2.folders import tensor_files, weight_files
from gpt2_from_scratch.gpt2.tokenizer import Tokenizer
from gpt2_from_scratch.progress import command
from gpt2_from_scratch.storage.files import read_json
from gpt2_from_scratch.storage.tensors import open_tensors

LAYERS = {  # {class: the parts of its last layer}
    "GPT2ForSequenceClassification": ("score.weight",),
    "GPT2ForTokenClassification": ("classifier.weight", "classifier.bias"),
}
OTHER_KINDS = {  # {class: why its head is not read}
    "GPT2DoubleHeadsModel": "which chooses one of several texts; a classifier here answers one text",
    "GPT2ForQuestionAnswering": "which reads a question next to each text",
}
TASKS: dict[str | None, Task] = {  # {transformers' problem_type: our task}
    "single_label_classification": "classification",
    "multi_label_classification": "multi-label",
    "regression": "regression",
}


def kind_of_classifier(folder: Path) -> str:
    """Return transformers' class of the classifier in a folder; empty if there is none.

    Raises CheckpointError if the folder contains another head of transformers, which is not read.
    """
    if not os.path.isfile(folder / "config.json"):
        return ""
    kinds = read_json(folder / "config.json").get("architectures")
    for kind in kinds if isinstance(kinds, list) else ():
        if kind in OTHER_KINDS:
            raise CheckpointError(
                f"{folder} is a {kind}, {OTHER_KINDS[kind]}. Train a head of your own on its GPT-2: "
                f"{command('train', '--model', str(folder))}"
            )
        if kind in LAYERS:
            return kind
    return ""


def read_head(folder: Path, kind: str, tokenizer: Tokenizer) -> tuple[HeadConfig, Tensor, Tensor]:
    """Read the head, its weight (K, C) and its bias (K,), which is 0 if there is none.

    Raises CheckpointError if this package would give other answers than transformers.
    """
    path = folder / "config.json"
    config = read_json(path)
    labels = _labels(config, path)
    if kind == "GPT2ForSequenceClassification":
        head = _sequence_head(config, labels, path, tokenizer)
    elif len(labels) > 1:
        head = HeadConfig(task="token-classification", labels=labels)
    else:
        raise CheckpointError(f"{path}: a {kind} needs at least two labels; found {labels!r:.80}")
    source = weight_files(folder)[-1]  # safetensors
    files = tensor_files(source) if source.suffix != ".index" else {}
    tensors = []
    for name in LAYERS[kind]:
        if name not in files:
            raise CheckpointError(f"{source} does not contain {name}, the head of a {kind}")
        with open_tensors(files[name]) as opened:
            tensors.append(opened.get_tensor(name).float())
        width = config.get("n_embd", config.get("hidden_size"))
        expected = (len(labels), width) if len(tensors) == 1 else (len(labels),)
        if tuple(tensors[-1].shape) != expected or not tensors[-1].isfinite().all():
            raise CheckpointError(
                f"{files[name]}: {name} must be {expected} finite numbers, one row per label; found "
                f"shape {tuple(tensors[-1].shape)}"
            )
    weight, bias = tensors if len(tensors) == 2 else (tensors[0], torch.zeros(len(labels)))
    return head, weight, bias


def _sequence_head(
    config: dict[str, Any], labels: tuple[str, ...], path: Path, tokenizer: Tokenizer
) -> HeadConfig:
    """The head of a GPT2ForSequenceClassification."""
    problem = config.get("problem_type")
    if problem is None:  # transformers' own rule
        problem = "regression" if len(labels) == 1 else "single_label_classification"
    task = TASKS.get(problem) if isinstance(problem, str) else None
    if task is None or (task == "classification" and len(labels) < 2):
        raise CheckpointError(
            f"{path}: problem_type is {problem!r:.80} with {len(labels)} outputs, which is not one of "
            f"{', '.join(map(str, TASKS))}. Train a head of your own on this folder with --model."
        )
    pad = config.get("pad_token_id")
    if pad is not None and not (type(pad) is int and pad >= tokenizer.end_of_text_id):
        raise CheckpointError(
            f"{path}: pad_token_id is {pad!r:.80}, a token that occurs in texts. transformers does not "
            "read it at the end of a text, and this package does."
        )
    pooling: Pooling = "end_token" if tokenizer.appends_newline else "last_token"
    return HeadConfig(task=task, labels=labels, pooling=pooling)


def _labels(config: dict[str, Any], path: Path) -> tuple[str, ...]:
    """Return the labels in the order of the outputs."""
    named = config.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}  # transformers' default
    if not isinstance(named, dict) or {*named} != {str(n) for n in range(len(named))}:
        raise CheckpointError(f"{path}: id2label must name the labels 0, 1, ...: {named!r:.200}")
    return tuple(str(named[str(n)]) for n in range(len(named)))
