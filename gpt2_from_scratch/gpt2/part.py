"""An unfinished transfer on disk: `<name>.part`, and in `<name>.part.json` what it is the
beginning of.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from gpt2_from_scratch.storage.files import write_json


@dataclass(frozen=True)
class State:
    """How far a transfer came, and of which version of which file; nothing if it cannot go on."""

    url: str = ""
    version: str = ""  # an ETag or a date, as If-Range takes it
    done: int = 0  # bytes


@dataclass(frozen=True)
class Part:
    """The file in which a transfer to `target` collects its bytes."""

    target: Path

    @property
    def path(self) -> Path:
        """Where the bytes are until they are all there."""
        return self.target.with_name(f"{self.target.name}.part")

    @property
    def note(self) -> Path:
        """The file that says where the bytes are from."""
        return self.target.with_name(f"{self.target.name}.part.json")

    def state(self) -> State:
        """What is there; an empty state if that is nothing, damaged, or of no known version."""
        try:
            note = json.loads(self.note.read_text(encoding="utf-8"))
            state = State(note["url"], note["version"], self.path.stat().st_size)
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            return State()
        usable = isinstance(state.url, str) and isinstance(state.version, str) and state.version
        return state if usable else State()

    def open(self, start: int, url: str, version: str) -> BinaryIO:
        """Open it to go on at byte `start`; at 0 it is emptied and belongs to `version` of `url`."""
        if start:
            return self.path.open("ab")
        self.path.write_bytes(b"")  # before the note, so that old bytes never pass for this version
        write_json(self.note, {"url": url, "version": version})
        return self.path.open("wb")

    def become_target(self) -> None:
        """Give the bytes their name: they are all there and right."""
        with self.path.open("rb+") as file:
            os.fsync(file.fileno())  # a run that was killed may have left some in memory
        os.replace(self.path, self.target)  # no copy: a kill here loses nothing of what has come
        self.note.unlink(missing_ok=True)

    def discard(self) -> None:
        """Remove both files, as far as they are there."""
        self.path.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)
