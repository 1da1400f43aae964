"""Find lines of a corpus that overlap with other texts.

The other texts are usually those of a test set, because a model cannot be evaluated on texts that it
was trained on. Two lines overlap if they are equal or have WIDTH consecutive bytes in common.
Differences in case and white space are ignored.
"""

from collections.abc import Iterable, Sequence

import numpy as np

WIDTH = 50  # bytes; common phrases are shorter
SHORTEST = 20  # bytes; shorter lines, such as "I'll call you later", may be equal by chance
FACTOR = 0x9E3779B97F4A7C15  # odd, so multiplying by it modulo 2^64 is invertible
TABLE = 24  # leading bits of a hash, which index a table for a quick first test


class Overlap:
    """Texts that must not occur in a corpus."""

    def __init__(self, texts: Iterable[str]) -> None:
        lines = {_normalised(line) for text in texts for line in text.splitlines()}
        self.lines = {line for line in lines if len(line.encode()) >= SHORTEST}
        self._hashes = np.unique(
            np.concatenate([window_hashes(line) for line in [b"", *map(str.encode, lines)]])
        )
        self._table = np.zeros(1 << TABLE, dtype=bool)
        self._table[self._hashes >> np.uint64(64 - TABLE)] = True

    def find(self, lines: Sequence[str]) -> np.ndarray:
        """Return for each line whether it overlaps with one of the texts: (lines,) bool."""
        normal = [_normalised(line) for line in lines]
        found = np.array([line in self.lines for line in normal], dtype=bool)
        raw = [line.encode() for line in normal]
        starts = np.cumsum([0, *(len(line) + 1 for line in raw)])  # positions in the joined lines
        hashes = window_hashes(b"\n".join(raw))
        places = np.flatnonzero(self._table[hashes >> np.uint64(64 - TABLE)])
        places = places[np.isin(hashes[places], self._hashes)]
        found[np.searchsorted(starts, places, side="right") - 1] = True
        return found


def window_hashes(data: bytes) -> np.ndarray:
    """Hash each window of WIDTH bytes: (len(data) - WIDTH + 1,) uint64.

    The hash of a window is combined from the hashes of its parts of 1, 2, 4, ... bytes.
    """
    hashes = np.frombuffer(data, np.uint8).astype(np.uint64) + np.uint64(1)
    count = max(0, len(data) - WIDTH + 1)
    window, hashed, width = np.zeros(count, dtype=np.uint64), 0, 1  # the hash of no bytes is 0
    while hashed < WIDTH:
        if WIDTH & width:
            part = hashes[hashed : hashed + count]
            window = window * np.uint64(pow(FACTOR, width, 2**64)) + part
            hashed += width
        hashes = hashes[:-width] * np.uint64(pow(FACTOR, width, 2**64)) + hashes[width:]
        width *= 2
    return window


def _normalised(line: str) -> str:
    return " ".join(line.lower().split())
