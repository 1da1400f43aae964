"""Safetensors files, read with suspicion and written so that damage shows.

The format checks its own structure and no more: of 6,800 flipped bits in the numbers of a file
6,790 load without a word, and of two entries of one name the later counts. So a header is bounded
and looked at here before anything is allocated, and what this package writes carries a SHA-256 of
its metadata, names, shapes, types and numbers.

Source of the format: https://github.com/huggingface/safetensors, README.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gpt2_from_scratch.errors import CheckpointError, ResourceError, UsageError
from gpt2_from_scratch.storage.files import HEAD, and_is, atomic_path, each_once, open_regular

LARGEST_HEADER = 1 << 20  # bytes; that of GPT-2's largest has some 60,000
OURS = "gpt2_from_scratch"  # the entry of the metadata that holds ours, as JSON
CHECKSUM = "sha256"  # its name in there


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], *, checksum: bool = True
) -> None:
    """Write tensors and metadata atomically, with a checksum of all of it for `read_tensors`.

    Raises ResourceError when there is no room or no permission.
    """
    whole = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    if checksum:  # as one entry, for the library writes several in random order
        metadata = {OURS: json.dumps({**metadata, CHECKSUM: _checksum(whole, metadata)})}
    with atomic_path(path) as temporary:
        try:
            save_file(whole, temporary, metadata=dict(metadata))
        except SafetensorError as error:  # it wraps a full disk in its own
            raise ResourceError(
                f"{path} could not be written: {error}; what was there before stands"
            ) from error


def read_tensors(path: Path, format: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    """What `write_tensors` wrote: the metadata, whose `format` must be this one, and the tensors.

    Raises CheckpointError for anything else, and for the least change since.
    """
    with open_tensors(path) as file:
        metadata = _read_metadata(file.metadata() or {}, path)
        if metadata.get("format") != format:
            raise CheckpointError(
                f"{path}: its format is {metadata.get('format')!r}, not {format!r}"
            )
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    expected = metadata.pop(CHECKSUM, None)
    if expected != _checksum(tensors, metadata):
        raise CheckpointError(f"{path} is damaged: its contents are not those saved")
    return metadata, tensors


@contextmanager
def open_tensors(path: Path) -> Iterator[Any]:
    """Open a safetensors file, its header looked at; raises CheckpointError for what is none.

    What the block reads of it may raise SafetensorError, which becomes a CheckpointError here.
    """
    refuse_odd_name(path)
    try:
        check_header(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    with mapped_tensors(path) as file:
        yield file


@contextmanager
def mapped_tensors(path: Path) -> Iterator[Any]:
    """Open it once more, after `open_tensors` looked at its header: the same errors."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from None


def refuse_odd_name(path: Path) -> None:
    """Raise UsageError for a path that is not UTF-8: the library can write such files, not read."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise UsageError(f"{str(path)!r} is not UTF-8; choose another name") from None


def check_header(path: Path) -> None:
    """Raise CheckpointError for a file of another kind, too long a header, or a name twice."""
    with open_regular(path) as file:
        head = file.read(HEAD)
        length = int.from_bytes(head[:8], "little")
        if head[8:9] != b"{" or length > LARGEST_HEADER:
            kind = and_is(head) or ": it has no header of a likely size"
            raise CheckpointError(f"{path} is no safetensors file{kind}")
        file.seek(8)
        header = file.read(length)
    try:
        json.loads(header, object_pairs_hook=each_once)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no whole safetensors file; its header: {error}") from None


def _read_metadata(entries: Mapping[str, str], path: Path) -> dict[str, str]:
    try:
        metadata = json.loads(entries.get(OURS, "{}"), object_pairs_hook=each_once)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: its metadata are no JSON: {error}") from None
    if not isinstance(metadata, dict) or {type(v) for v in metadata.values()} - {str}:
        raise CheckpointError(f"{path}: its metadata are not words: {entries.get(OURS)!r:.100}")
    return metadata


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over each tensor's name, shape and SHA-256 of its float32 numbers, in order of names."""
    names = sorted(tensors)
    with ThreadPoolExecutor(4) as threads:  # hashing lets other threads run
        hashes = threads.map(_sha256, (tensors[name] for name in names))
        lines = [
            f"{name} {tuple(tensors[name].shape)} {digest}\n"
            for name, digest in zip(names, hashes, strict=True)
        ]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _sha256(tensor: Tensor) -> str:
    numbers = tensor.detach().float().cpu().contiguous().numpy()
    return hashlib.sha256(numbers.data).hexdigest()


def _checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    dtypes = {name: str(tensor.dtype) for name, tensor in tensors.items()}
    described = json.dumps([dict(metadata), dtypes], sort_keys=True)
    return hashlib.sha256(f"{described} {tensors_sha256(tensors)}".encode()).hexdigest()
