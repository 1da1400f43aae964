"""What can go wrong that the user can fix. Anything else is a bug and keeps its traceback."""

import errno
from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class GPT2Error(Exception):
    """Base of every error this package raises on purpose: says what, where, and what to do.

    Raised itself for a loss that is no number any more.
    """

    exit_code = 1


class UsageError(GPT2Error):
    """An argument or a setting that makes no sense, or contradicts another."""

    exit_code = 2


class DataError(GPT2Error, ValueError):
    """A text, label, table or token id that cannot be used."""

    exit_code = 3


class CheckpointError(GPT2Error):
    """A model folder, weights file, tokenizer or saved classifier that is damaged or does not fit."""

    exit_code = 4


class DownloadError(GPT2Error):
    """A file that could not be fetched, or that came as something else than was asked for."""

    exit_code = 5


class ResourceError(GPT2Error):
    """Memory or room on a disk that there is not, or a place that cannot be written."""

    exit_code = 6


class Interrupted(KeyboardInterrupt):
    """The user's Ctrl-C or the system's SIGTERM, after the work done so far has been saved.

    The same command with the words `again` added resumes; None if the message says how.
    """

    def __init__(self, message: str, signal: int = 2, again: Sequence[str] | None = None):
        super().__init__(message)
        self.exit_code = 128 + signal  # as shells have it: 130 for Ctrl-C, 143 for SIGTERM
        self.again = again


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that was probably meant, whatever its case; empty if none is near."""
    by_lower = {other.strip().lower(): other for other in known}
    near = get_close_matches(name.strip().lower(), by_lower, n=1)
    return by_lower[near[0]] if near else ""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A question to append to an error message about an unknown name; empty if no name is near."""
    found = nearest(name, known)
    return f" Did you mean {found}?" if found else ""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on the processor or on a GPU."""
    name, words = type(error).__name__, str(error)  # OutOfMemoryError is torch's, not loaded here
    phrases = (
        "DefaultCPUAllocator",
        "bad_alloc",
        "out of memory",
        "Cannot allocate memory",
        "can't start new thread",
        "failed to map segment",  # for want of room in memory
    )
    return name in ("MemoryError", "OutOfMemoryError") or (
        isinstance(error, (RuntimeError, ImportError))
        and any(phrase in words for phrase in phrases)
    )


def is_out_of_resources(error: BaseException) -> bool:
    """Whether an error says that memory, room on a disk or the number of open files ran out."""
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EMFILE, errno.ENFILE)
    return (
        is_out_of_memory(error)
        or (isinstance(error, OSError) and error.errno in (*full, errno.ENOMEM))
        or "Too many open files" in str(error)  # a library that could not be loaded
    )
