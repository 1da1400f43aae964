"""What is known of a file from elsewhere: where it lies, its size, its hashes."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from gpt2_from_scratch.storage.files import HEAD, and_is


@dataclass(frozen=True)
class PinnedFile:
    """A file by name, with everything about it that is known for sure; the rest is None."""

    name: str
    urls: tuple[str, ...] = ()  # tried in this order
    size: int | None = None  # bytes
    sha256: str | None = None
    md5: str | None = None  # only beside others: it shows accidents, not malice
    most: int = 1 << 20  # bytes that are accepted when the size is not known

    def hashes(self) -> dict[str, str]:
        """The known ones, {kind: hexadecimal digits}."""
        known = {"sha256": self.sha256, "md5": self.md5}
        return {kind: digits for kind, digits in known.items() if digits is not None}

    def facts(self) -> str:
        """Size and hashes in words."""
        size = "size unknown" if self.size is None else f"{self.size:,} bytes"
        return ", ".join([size, *(f"{kind} {digits}" for kind, digits in self.hashes().items())])

    def difference(self, path: Path) -> str:
        """What the file at `path` has instead of what is expected, if anything."""
        found = path.stat().st_size
        if self.size is not None and found != self.size:
            return f"has {found:,} bytes, expected {self.size:,}{_looks(path)}"
        for kind, expected in self.hashes().items():
            with path.open("rb") as file:
                digits = hashlib.file_digest(file, kind).hexdigest()
            if digits != expected:
                return f"has {kind} {digits}, expected {expected}{_looks(path)}"
        return ""


def _looks(path: Path) -> str:
    with path.open("rb") as file:
        return and_is(file.read(HEAD))
