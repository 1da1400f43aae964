"""Read and write safetensors files, with checks and a checksum.

The safetensors library checks only the structure of a file. In a test, 6,790 of 6,800 flipped bits in
the values went unnoticed. If two entries have the same name, the library uses the later one. This
module therefore checks the header and limits its size before anything is allocated. Files that this
package writes also contain a SHA-256 of their metadata, names, shapes, types and values.

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
from gpt2_from_scratch.storage.mapped import MappedParameter
from gpt2_from_scratch.storage.paths import expanded

LARGEST_HEADER = 1 << 20  # bytes; the header of the largest GPT-2 has about 60,000
OURS = "gpt2_from_scratch"  # key in the file's metadata for this package's metadata, as JSON
DTYPES = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
DTYPES |= {torch.uint8, torch.int32, torch.int64}
HASHED_AT_ONCE = 1 << 20  # numbers
CHECKSUM = "sha256"  # key of the checksum in this package's metadata


def write_tensors(
    path: str | Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    *,
    checksum: bool = True,
) -> None:
    """Write tensors and metadata atomically to a safetensors file.

    Args:
        path: the file.
        tensors: the tensors, by name.
        metadata: strings, by key. `read_tensors` expects the key "format" among them.
        checksum: whether to add a checksum of tensors and metadata, which `read_tensors` requires.

    Raises:
        ResourceError: there is no space or no permission.
    """
    path = expanded(path)
    contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    if checksum:  # as a single entry, because the library writes several entries in random order
        metadata = {OURS: json.dumps({**metadata, CHECKSUM: _checksum(contiguous, metadata)})}
    with atomic_path(path) as temporary:
        try:
            save_file(contiguous, temporary, metadata=dict(metadata))
        except SafetensorError as error:  # raised by the library if the disk is full
            raise ResourceError(
                f"{path} could not be written: {error}. An existing file is unchanged."
            ) from error


def read_tensors(
    path: str | Path, format: str, *, newer: str | None = None
) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Read the metadata and the tensors of a file written by `write_tensors`.

    Raises CheckpointError if the file's format is neither `format` nor `newer`, or if the file was
    changed or damaged after it was written.
    """
    path = expanded(path)
    with open_tensors(path) as file:
        ours = (file.metadata() or {}).get(OURS, "{}")
        try:
            metadata = parse_json(ours)
        except ValueError as error:
            raise CheckpointError(f"{path}: the metadata are not JSON: {error}") from None
        if not isinstance(metadata, dict) or {type(v) for v in metadata.values()} - {str}:
            raise CheckpointError(f"{path}: the metadata are not all strings: {ours!r:.100}")
        known = [format, newer] if newer else [format]
        if metadata.get("format") not in known:
            expected = " or ".join(map(repr, known))
            raise CheckpointError(
                f"{path}: the format is {metadata.get('format')!r}, not {expected}"
            )
        for name in file.keys():  # the library does not check a shape that contains a 0
            if 0 in (shape := file.get_slice(name).get_shape()):
                raise CheckpointError(f"{path}: {name} of shape {shape} is empty")
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            raise CheckpointError(f"{path}: {name} has the unexpected type {tensor.dtype}")
    expected = metadata.pop(CHECKSUM, None)
    if expected != _checksum(tensors, metadata):
        raise CheckpointError(f"{path} is damaged: its contents do not match its checksum")
    return metadata, tensors


@contextmanager
def open_tensors(path: Path) -> Iterator[Any]:
    """Check the header of a safetensors file and open the file.

    Raises CheckpointError if the file is missing, unreadable or not a valid safetensors file. A
    SafetensorError inside the block also becomes a CheckpointError.
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
    """Open a file whose header `open_tensors` has already checked. Raises the same errors."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a complete safetensors file: {error}") from None


def tensor_offsets(path: Path) -> dict[str, int]:
    """Return where each tensor of a checked file begins, in bytes from the start of the file."""
    with open_regular(path) as file:
        length = int.from_bytes(file.read(8), "little")
        header = parse_json(file.read(length).decode("utf-8"))
    return {
        name: 8 + length + entry["data_offsets"][0]
        for name, entry in header.items()
        if name != "__metadata__"
    }


def refuse_odd_name(path: Path) -> None:
    """Raise UsageError if a path is not UTF-8. The library writes such files but cannot read them."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise UsageError(f"{str(path)!r} is not UTF-8; choose another name") from None


def check_header(path: Path) -> None:
    """Check the header of a safetensors file.

    Raises CheckpointError if it is missing, too long, or repeats a name.
    """
    with open_regular(path) as file:
        head = file.read(HEAD)
        length = int.from_bytes(head[:8], "little")
        if head[8:9] != b"{" or length > LARGEST_HEADER:
            kind = and_is(head) or ": its header does not have a plausible size"
            raise CheckpointError(f"{path} is not a safetensors file{kind}")
        file.seek(8)
        header = file.read(length)
    try:
        parse_json(header.decode("utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: its safetensors header is invalid: {error}") from None


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Return one SHA-256 of the names, shapes and values of tensors.

    The order of the tensors does not matter. Values are hashed as float32.
    """
    return joined_sha256(each_sha256(tensors))


def each_sha256(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the shape and the SHA-256 of each tensor, by name.

    An example is {"wte": "(2, 3) 9f86..."}. Values are hashed as float32. The hash of a matrix that
    stays in its file is computed once.
    """
    with ThreadPoolExecutor(4) as threads:  # hashing releases the GIL
        return dict(zip(tensors, threads.map(_shape_and_sha256, tensors.values()), strict=True))


def joined_sha256(hashes: Mapping[str, str]) -> str:
    """Combine the result of `each_sha256` into one SHA-256."""
    lines = (f"{name} {hashes[name]}\n" for name in sorted(hashes))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _shape_and_sha256(tensor: Tensor) -> str:
    if isinstance(tensor, MappedParameter) and tensor.is_unchanged:
        if not tensor.digest:
            tensor.digest = _hashed(tensor)
            tensor.release()
        return tensor.digest
    return _hashed(tensor)


def _hashed(tensor: Tensor) -> str:
    digest, rows = hashlib.sha256(), tensor.detach()[None] if tensor.dim() == 0 else tensor.detach()
    # some rows at a time, because a row may have to be converted or transposed, which copies it
    for part in rows.split(max(1, HASHED_AT_ONCE * len(rows) // max(1, rows.numel()))):
        digest.update(part.float().cpu().contiguous().numpy().data)
    return f"{tuple(tensor.shape)} {digest.hexdigest()}"


def _checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    dtypes = {name: str(tensor.dtype) for name, tensor in tensors.items()}
    described = json.dumps([dict(metadata), dtypes], sort_keys=True)
    return hashlib.sha256(f"{described} {tensors_sha256(tensors)}".encode()).hexdigest()
