"""Safetensors files, checked before they are read, and written with a checksum.

The format checks its own structure and nothing else: of 6,800 flipped bits in the numbers of a file
6,790 load without an error, and of two entries with one name the later one counts. So the header is
bounded and checked here before anything is allocated, and the files that this package writes hold a
SHA-256 of their metadata, names, shapes, types and numbers.

Source of the format: https://github.com/huggingface/safetensors, README.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gpt2_from_scratch.errors import CheckpointError, ResourceError, UsageError
from gpt2_from_scratch.storage.files import HEAD, and_is, atomic_path, open_regular, parse_json
from gpt2_from_scratch.storage.paths import expanded

LARGEST_HEADER = 1 << 20  # bytes; the header of the largest GPT-2 has about 60,000
OURS = "gpt2_from_scratch"  # the entry of the metadata that holds this package's own, as JSON
NUMBERS = {torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int32, torch.int64}
CHECKSUM = "sha256"  # the checksum's name in that entry


def write_tensors(
    path: str | Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    *,
    checksum: bool = True,
) -> None:
    """Write tensors and metadata atomically, with a checksum of both for `read_tensors`.

    Raises ResourceError if there is no space or no permission.
    """
    path = expanded(path)
    whole = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    if checksum:  # as one entry, because the library writes several in random order
        metadata = {OURS: json.dumps({**metadata, CHECKSUM: _checksum(whole, metadata)})}
    with atomic_path(path) as temporary:
        try:
            save_file(whole, temporary, metadata=dict(metadata))
        except SafetensorError as error:  # the library's own error for a full disk
            raise ResourceError(
                f"{path} could not be written: {error}; the file before is unchanged"
            ) from error


def read_tensors(path: str | Path, format: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Read the metadata and the tensors of a file that `write_tensors` wrote.

    Raises CheckpointError if the metadata's `format` is another one, and for any change since the
    file was written.
    """
    path = expanded(path)
    with open_tensors(path) as file:
        ours = (file.metadata() or {}).get(OURS, "{}")
        try:
            metadata = parse_json(ours)
        except ValueError as error:
            raise CheckpointError(f"{path}: its metadata are not JSON: {error}") from None
        if not isinstance(metadata, dict) or {type(v) for v in metadata.values()} - {str}:
            raise CheckpointError(f"{path}: its metadata are not strings: {ours!r:.100}")
        if metadata.get("format") != format:
            raise CheckpointError(
                f"{path}: its format is {metadata.get('format')!r}, not {format!r}"
            )
        for name in file.keys():  # no sizes are checked by the library if one of them is 0
            if 0 in (shape := file.get_slice(name).get_shape()):
                raise CheckpointError(f"{path}: {name} of shape {shape} holds no numbers")
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    for name, tensor in tensors.items():
        if tensor.dtype not in NUMBERS:
            raise CheckpointError(f"{path}: {name} holds {tensor.dtype}, which is not written here")
    expected = metadata.pop(CHECKSUM, None)
    if expected != _checksum(tensors, metadata):
        raise CheckpointError(f"{path} is damaged: its contents differ from what was saved")
    return metadata, tensors


@contextmanager
def open_tensors(path: Path) -> Iterator[Any]:
    """Check the header of a safetensors file and open it.

    Raises CheckpointError if it is not one, also for a SafetensorError inside the block.
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
    """Open a file whose header `open_tensors` has checked; raises the same errors."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a complete safetensors file: {error}") from None


def refuse_odd_name(path: Path) -> None:
    """Raise UsageError for a path that is not UTF-8; the library writes such files, but reads none."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise UsageError(f"{str(path)!r} is not UTF-8; choose another name") from None


def check_header(path: Path) -> None:
    """Raise CheckpointError for another kind of file, too long a header, or a repeated name."""
    with open_regular(path) as file:
        head = file.read(HEAD)
        length = int.from_bytes(head[:8], "little")
        if head[8:9] != b"{" or length > LARGEST_HEADER:
            kind = and_is(head) or ": it has no header of a plausible size"
            raise CheckpointError(f"{path} is not a safetensors file{kind}")
        file.seek(8)
        header = file.read(length)
    try:
        parse_json(header.decode("utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: its safetensors header is invalid: {error}") from None


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """One SHA-256 of all tensors: of each one's name, shape and float32 numbers, sorted by name."""
    return joined_sha256(each_sha256(tensors))


def each_sha256(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Give each tensor's shape and the SHA-256 of its float32 numbers: {name: "(2, 3) 9f86..."}."""
    with ThreadPoolExecutor(4) as threads:  # hashing does not hold Python's lock
        return dict(zip(tensors, threads.map(_shape_and_sha256, tensors.values()), strict=True))


def joined_sha256(hashes: Mapping[str, str]) -> str:
    """Make one SHA-256 of what `each_sha256` returned."""
    lines = (f"{name} {hashes[name]}\n" for name in sorted(hashes))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _shape_and_sha256(tensor: Tensor) -> str:
    numbers = tensor.detach().float().cpu().contiguous().numpy()
    return f"{tuple(tensor.shape)} {hashlib.sha256(numbers.data).hexdigest()}"


def _checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    dtypes = {name: str(tensor.dtype) for name, tensor in tensors.items()}
    described = json.dumps([dict(metadata), dtypes], sort_keys=True)
    return hashlib.sha256(f"{described} {tensors_sha256(tensors)}".encode()).hexdigest()
