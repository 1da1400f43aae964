"""`SHA256SUMS` in a model's folder: what its files should be, as the program sha256sum writes it."""

from collections.abc import Sequence
from pathlib import Path

from gpt2_from_scratch.errors import CheckpointError
from gpt2_from_scratch.files import read_bounded, sha256_of

SUMS = "SHA256SUMS"
LARGEST_SUMS = 1 << 20  # bytes


def check_sums(folder: Path, names: Sequence[str]) -> None:
    """Raise CheckpointError where a file is there, listed, and not what the list says."""
    listed = read_sums(folder)
    for name in names:
        if name in listed and (folder / name).is_file():
            if (digits := sha256_of(folder / name)) != listed[name]:
                raise CheckpointError(
                    f"{folder / name} has sha256 {digits}, {SUMS} says {listed[name]}: it was changed"
                )


def read_sums(folder: Path) -> dict[str, str]:
    """{file: SHA-256} of `SHA256SUMS`, as the program sha256sum writes it; {} if there is none."""
    if not (folder / SUMS).exists():
        return {}
    try:
        lines = read_bounded(folder / SUMS, LARGEST_SUMS).decode("ascii").split("\n")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{folder / SUMS} cannot be read: {error}") from None
    sums = {}
    for line in lines[:-1]:
        digits, name = line[:64], line[66:]
        whole = len(digits) == 64 and set(digits) <= set("0123456789abcdef")
        if not whole or line[64:66] not in ("  ", " *") or Path(name).name != name:
            raise CheckpointError(f"{folder / SUMS} has the line {line!r:.100}")
        sums[name] = digits
    if lines[-1] or not sums:
        raise CheckpointError(f"{folder / SUMS} is cut off")
    return sums
