"""Verify the files, tensors and outputs of a model.

Damage does not raise an error. It is reported as a failed check. A check that damage makes impossible is
also reported as failed. If the weights are OpenAI's 124M, the model's outputs are compared with
published ones.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from gpt2_from_scratch.errors import CheckpointError
from gpt2_from_scratch.gpt2.config import SIZES, GPT2Config, read_config
from gpt2_from_scratch.gpt2.download import DATA, INDEX, PinnedFile, model_files
from gpt2_from_scratch.gpt2.folders import (
    SAFETENSORS,
    SHARDS,
    tensor_files,
    tensorflow_prefix,
    weight_files,
)
from gpt2_from_scratch.gpt2.generate import generate
from gpt2_from_scratch.gpt2.model import GPT2
from gpt2_from_scratch.gpt2.openai_checkpoint import (
    check_tensors,
    data_files,
    open_arrays,
    read_index,
)
from gpt2_from_scratch.gpt2.tokenizer import TOKENIZER_JSON, Tokenizer
from gpt2_from_scratch.gpt2.weights import load_gpt2, meta_gpt2, stored_parameters
from gpt2_from_scratch.storage.files import SUMS, read_sums
from gpt2_from_scratch.storage.paths import model_folder

INDEX_124M = next(file for file in model_files("124M") if file.name == INDEX)
HUGGING_FACE_124M = PinnedFile(  # openai-community/gpt2, revision 607a30d7
    SAFETENSORS,
    548_105_171,
    "sha256:248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707",
)
TENSOR = "tensor "  # the names of checks of single tensors begin with this word

Value = TypeVar("Value")


@dataclass(frozen=True)
class Check:
    """A single check and its result."""

    what: str
    ok: bool
    detail: str


def attempt(
    what: str, function: Callable[[], Value], describe: Callable[[Any], str]
) -> tuple[Check, Value | None]:
    """Check that a function raises no error.

    Args:
        what: name of the check.
        function: the function to call.
        describe: turns the function's value into the detail of the check.

    Returns:
        The check and the function's value, or None if it raised an error.
    """
    try:
        value = function()
        return Check(what, True, describe(value)), value
    except Exception as error:  # damaged files can cause any error
        return Check(what, False, f"{error}" or type(error).__name__), None


def not_possible(what: str, reason: str) -> Check:
    """Return a failed result for a check that other damage makes impossible."""
    return Check(what, False, f"not possible, because {reason}")


def format_checks(checks: Iterable[Check]) -> str:
    """Format checks, one per line.

    All tensors share a line, and each damaged tensor has an additional line.
    """
    lines, tensors = [], []
    for check in checks:
        if check.what.startswith(TENSOR):
            tensors.append(check)
        if not check.what.startswith(TENSOR) or not check.ok:
            lines.append(check)
    if tensors:
        correct = sum(check.ok for check in tensors)
        detail = f"{correct} of {len(tensors)} have the CRC-32C in the index"
        lines.append(Check("tensors", correct == len(tensors), detail))
    width = max((len(check.what) for check in lines), default=0)
    return "\n".join(
        f"{'ok    ' if check.ok else 'FAILED'}  {check.what:{width}}  {check.detail}"
        for check in lines
    )


def verify_model(model: str | Path) -> Iterator[Check]:
    """Check a model, given by its name or folder. Quick checks come first.

    Raises CheckpointError only if the folder does not exist.
    """
    folder = model_folder(model)
    check, prefix = attempt("checkpoint", lambda: tensorflow_prefix(folder), str)
    if not check.ok:
        yield check
    prefix = prefix or ("model.ckpt" if (folder / DATA).exists() else "")
    sizes, config = attempt("sizes", lambda: _sizes(folder), str)
    yield from _check_files(folder, config, prefix)
    yield sizes
    check, tokenizer = attempt(
        "tokenizer", lambda: _tokenizer(folder, config), lambda found: f"{found.n_vocab:,} tokens"
    )
    yield check
    if prefix:
        yield from _check_checkpoint(folder / prefix)
    yield from _check_parameters(folder, config)
    known = INDEX_124M if prefix else HUGGING_FACE_124M
    _, difference = attempt(known.name, lambda: known.difference(folder / known.name), str)
    if difference == "":
        yield from _check_published(folder, tokenizer)


def _sizes(folder: Path) -> GPT2Config:
    config = read_config(folder)
    if config != SIZES.get(folder.name, config):
        raise CheckpointError(f"found {config}, but {folder.name} has {SIZES[folder.name]}")
    return config


def _tokenizer(folder: Path, config: GPT2Config | None) -> Tokenizer:
    tokenizer = Tokenizer(folder)
    if config and not tokenizer.fits(config.n_vocab):
        raise CheckpointError(f"found {tokenizer.n_vocab} tokens, but n_vocab = {config.n_vocab}")
    return tokenizer


# --- Files. ---

# names of the same file; the first is OpenAI's, and the others are Hugging Face's
NAMES = (
    ("hparams.json", "config.json"),
    ("vocab.bpe", "merges.txt", TOKENIZER_JSON),
    ("encoder.json", "vocab.json", TOKENIZER_JSON),
)


def _check_files(folder: Path, config: GPT2Config | None, prefix: str) -> Iterator[Check]:
    """Compare files with their published sizes and hashes, and with `SHA256SUMS`.

    The files are those that the model needs and those that `SHA256SUMS` lists.
    """
    check, listed = attempt(SUMS, lambda: read_sums(folder), lambda sums: f"{len(sums)} files")
    if listed is None or listed:
        yield check
    published = _published_files(folder, config, prefix)
    needed = [
        next((name for name in names if (folder / name).exists()), names[0]) for names in NAMES
    ]
    needed += _weights(folder, prefix)
    for name in dict.fromkeys([*needed, *(listed or ())]):
        pins = {}
        if name in published:
            pins["as published"] = published[name]
        if name in (listed or ()):
            pins[f"as in {SUMS}"] = PinnedFile(name, known_hash=f"sha256:{(listed or {})[name]}")
        check, _ = attempt(name, lambda n=name, p=pins: _check_file(folder / n, p), str)  # type: ignore[misc]
        if listed and name not in listed:
            check = Check(name, False, f"not in {SUMS}; {check.detail}")
        yield check


def _weights(folder: Path, prefix: str) -> list[str]:
    """Return the names of the files with the weights, also of files that are missing."""
    names = []
    if prefix:
        _, arrays = attempt("", lambda: open_arrays(folder / prefix), str)
        data = arrays.paths if arrays else data_files(folder / prefix, 1)
        names += [f"{prefix}.index", *(path.name for path in data)]
    if (folder / SHARDS).exists():
        _, files = attempt("", lambda: tensor_files(folder / SHARDS), str)
        names += [SHARDS, *sorted({path.name for path in (files or {}).values()})]
    if (folder / SAFETENSORS).exists() or not names:
        names.append(SAFETENSORS)
    return names


def _check_file(path: Path, pins: dict[str, PinnedFile]) -> str:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing")
    for pin in pins.values():
        if difference := pin.difference(path):
            raise CheckpointError(difference)
    compared = [source for source, pin in pins.items() if pin.size is not None or pin.known_hash]
    return (
        f"{path.stat().st_size:,} bytes, {' and '.join(compared) or 'nothing to compare it with'}"
    )


def _published_files(folder: Path, config: GPT2Config | None, prefix: str) -> dict[str, PinnedFile]:
    """Return the published sizes and hashes of the files of a folder.

    Returns {} if the folder does not contain one of OpenAI's models. The size alone does not show
    that, because a finetuned model has the same size. A folder is OpenAI's if its name says so, or if
    its index is the published one.
    """
    named = folder.name if folder.name in SIZES else None
    if not prefix:
        return {SAFETENSORS: HUGGING_FACE_124M} if named == "124M" else {}
    _, difference = attempt(INDEX, lambda: INDEX_124M.difference(folder / INDEX), str)
    if config == SIZES["124M"] and difference == "":
        named = "124M"
    return {file.name: file for file in model_files(named)} if named else {}


# --- Weights. ---


def _check_checkpoint(prefix: Path) -> Iterator[Check]:
    """Check the index and the tensors of OpenAI's format.

    The index is checked by its own CRCs, and the tensors by the CRCs in the index.
    """
    check, entries = attempt(
        "index",
        lambda: read_index(f"{prefix}.index"),
        lambda found: f"{len(found)} arrays, CRCs correct",
    )
    yield check
    if entries is None:
        yield not_possible("tensors' checksums", "the index cannot be read")
        return
    try:
        for entry, ok, expected, found in check_tensors(prefix):
            detail = f"CRC-32C {found:08x}" + ("" if ok else f", expected {expected:08x}")
            yield Check(f"{TENSOR}{entry.name}", ok, detail)
    except CheckpointError as error:
        yield not_possible("tensors' checksums", str(error))


def _check_parameters(folder: Path, config: GPT2Config | None) -> Iterator[Check]:
    """Check that names, shapes and values are valid.

    Names and shapes must be those of the model, and values must be finite.
    """
    names, numbers = "names and shapes", "finite numbers"
    if config is None:
        yield not_possible(names, "the sizes cannot be read")
        return
    check, found = attempt(
        names,
        lambda: [
            (parameter, value.numel(), bool(torch.isfinite(value.sum()) or value.isfinite().all()))
            # without the CRCs, because `check_tensors` has already compared them
            for parameter, value in stored_parameters(folder, meta_gpt2(config), check_crcs=False)
        ],
        lambda found: f"{len(found)} arrays, one for each parameter{_equal(folder)}",
    )
    yield check
    if found is None:
        yield not_possible(numbers, "the parameters cannot be read")
        return
    bad = [parameter for parameter, _, finite in found if not finite]
    detail = f"all {sum(count for _, count, _ in found):,}"
    if bad:
        detail = f"NaN or infinite in {len(bad)} parameters: {', '.join(bad[:5])}"
    yield Check(numbers, not bad, detail)


def _equal(folder: Path) -> str:
    """Mention that a folder contains the weights in several formats, which were compared."""
    first, *others = weight_files(folder)
    if not others:
        return ""
    return f"; {first.name} and {' and '.join(path.name for path in others)} have equal weights"


# --- Outputs published by others for OpenAI's 124M weights. ---

IDS = (5211, 345, 423, 640)  # "Do you have time"
SEED = 123  # set just before the new head is initialised
LOGITS = ((-1.5854, 0.9904), (-3.7235, 7.4548), (-2.2661, 6.6049), (-3.5983, 3.9902))
TOLERANCE = 5e-4
PROMPT = "Every effort moves you"
CONTINUATION = " forward.\n\nThe first step is to understand the importance of your work"


def logits_of_new_head(model: GPT2, ids: Tensor, num_classes: int, seed: int) -> Tensor:
    """Compute the logits of a new, random head.

    The head is initialised in the same way as by `replace_head`.

    Args:
        model: a GPT-2.
        ids: token ids (T,).
        num_classes: number of outputs of the head.
        seed: random seed for the head's weights.

    Returns:
        The logits, (T, num_classes).
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        head = nn.Linear(model.config.n_embd, num_classes, device=model.wte.weight.device)
        return head(model.hidden(ids[None])[0])


def greedy_continuation(model: GPT2, tokenizer: Tokenizer, prompt: str, tokens: int) -> str:
    """Continue a prompt with the most probable token each time.

    Args:
        model: a GPT-2 with its own head.
        tokenizer: the model's tokenizer.
        prompt: the text to continue.
        tokens: number of new tokens.

    Returns:
        The new text, without the prompt.
    """
    ids = torch.tensor(tokenizer.encode(prompt))
    return tokenizer.decode(generate(model, ids, tokens)[len(ids) :].tolist())


def _check_published(folder: Path, tokenizer: Tokenizer | None) -> Iterator[Check]:
    logits, text = "published logits", "published continuation"
    check, model = attempt("model", lambda: load_gpt2(folder), lambda model: "loaded")
    yield check
    if model is None:
        yield not_possible(logits, "the model cannot be loaded")
        yield not_possible(text, "the model cannot be loaded")
        return
    found = logits_of_new_head(model, torch.tensor(IDS), 2, SEED)
    difference = (found - torch.tensor(LOGITS)).abs().max().item()
    yield Check(logits, difference <= TOLERANCE, f"at most {difference:.1e} from the book's")
    if tokenizer is None:
        yield not_possible(text, "the tokenizer cannot be read")
        return
    continued = greedy_continuation(model, tokenizer, PROMPT, 15)
    yield Check(text, continued == CONTINUATION, f"{PROMPT!r} continues with {continued!r}")
