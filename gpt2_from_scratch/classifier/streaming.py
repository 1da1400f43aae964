"""Any number of texts in constant memory: answers to a stream, and rows in a file.

Texts are read in windows. Several processes (see `storage.processes`) share them: all read the same
texts, and each computes every n-th window. The windows do not depend on the number of processes, so
neither do the results.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import accumulate, islice
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
from numpy.lib.format import write_array_header_1_0

from gpt2_from_scratch.errors import DataError
from gpt2_from_scratch.progress import progress_bar
from gpt2_from_scratch.speed.batching import no_string
from gpt2_from_scratch.storage.files import atomic_path
from gpt2_from_scratch.storage.processes import (
    agreed,
    count,
    gathered,
    is_first,
    part_of,
    rank,
    wait_for_all,
)

A = TypeVar("A")
# texts per window; the first windows are small so that answers come soon
FIRST, LARGEST = 64, 4096
CHARACTERS = 4_000_000  # the most characters per window
REMEMBERED = 65_536  # distinct texts whose answers are remembered; about 50 MB


def answers_to_stream(
    predict: Callable[[list[str]], list[A]], texts: Iterable[str], on_error: str
) -> Iterator[tuple[str, A | None]]:
    """Yield (text, answer) for each text, in order. Of several processes, the first yields them.

    A distinct text is answered once while it is remembered.

    Args:
        predict: Answers a list of texts.
        texts: The stream.
        on_error: "stop" raises DataError for a text that is not a string; with "skip" its answer is
            None.
    """
    known: dict[bytes, _Entry[A]] = {}  # the most recent texts come last
    windows = windows_of(texts, on_error)
    while now := [*islice(windows, count())]:  # one window for each process
        found = [_entries(window, known) for window in now]
        own = found[rank()].new if rank() < len(found) else []
        answers = predict([text for text, _ in own])
        for entries, some in zip(found, gathered(answers), strict=False):
            for (_, entry), answer in zip(entries.new, some, strict=True):
                entry.answer = answer
        if is_first():
            for window, entries in zip(now, found, strict=True):
                yield from ((t, e.answer) for t, e in zip(window, entries.every, strict=True))


@dataclass
class _Entry(Generic[A]):
    """The answer to a text; None until it is known, and for what is not a text."""

    answer: A | None = None


@dataclass(frozen=True)
class _Entries(Generic[A]):
    """The entries of a window's texts."""

    every: list[_Entry[A]]  # in the order of the texts
    new: list[tuple[str, _Entry[A]]]  # those that must be answered, with their texts


def _entries(window: list[str], known: dict[bytes, _Entry[A]]) -> _Entries[A]:
    """Find or make the entries of a window's texts, and update what is known."""
    found = _Entries[A]([], [])
    for text in window:
        if not isinstance(text, str):
            found.every.append(_Entry())
            continue
        key = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        entry = known.pop(key, None)
        if entry is None:
            entry = _Entry()
            found.new.append((text, entry))
        known[key] = entry
        found.every.append(entry)
    for key in [*islice(known, max(0, len(known) - REMEMBERED))]:
        del known[key]
    return found


def windows_of(texts: Iterable[str], on_error: str = "stop") -> Iterator[list[str]]:
    """Cut a stream into windows that grow from FIRST to LARGEST texts.

    Raises DataError for a text that is not a string, unless `on_error` is "skip".
    """
    window: list[str] = []
    size, characters = FIRST, 0
    for number, text in enumerate(texts):
        if on_error == "stop" and not isinstance(text, str):
            raise DataError(no_string(text, number))
        window.append(text)
        characters += len(text) if isinstance(text, str) else 0
        if len(window) >= size or characters >= CHARACTERS:
            yield window
            window, characters = [], 0
            size = min(2 * size, LARGEST)
    if window:
        yield window


def write_rows(
    compute: Callable[[list[str]], np.ndarray], width: int, texts: Sequence[str], path: Path
) -> None:
    """Write one row per text to a .npy file, atomically: (N, K) float32.

    Args:
        compute: Computes the rows of n texts, (n, K).
        width: K.
        texts: The N texts. They are computed window by window, so memory does not grow with N rows.
        path: The file.

    Raises:
        DataError: A text is not a string.
        ResourceError: There is no space or no permission.
    """
    windows = [*windows_of(texts)]
    starts = accumulate((len(window) for window in windows), initial=0)
    with (
        atomic_path(path) if is_first() else nullcontext(path) as temporary,
        progress_bar(total=len(texts) // count(), desc="computed", unit=" texts") as bar,
    ):
        temporary = agreed(temporary)
        if is_first():
            with temporary.open("wb") as file:
                form = {"descr": "<f4", "fortran_order": False, "shape": (len(texts), width)}
                write_array_header_1_0(file, form)
        wait_for_all()
        with temporary.open("r+b") as file:
            begin = file.seek(0, os.SEEK_END)
            wait_for_all()  # until all know where the array begins
            for window, start in part_of(zip(windows, starts, strict=False)):
                rows = compute(window).astype("<f4")
                file.seek(begin + start * width * rows.itemsize)
                file.write(rows.tobytes())
                bar.update(len(window))
        wait_for_all()
