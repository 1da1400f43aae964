"""Errors that the user can fix. Any other exception is a bug and keeps its traceback."""

import errno
from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class GPT2Error(Exception):
    """Base class of all errors that this package raises on purpose.

    The message says what is wrong, where, and what to do. The class itself is raised when the loss
    becomes NaN or infinite.
    """

    exit_code = 1


class UsageError(GPT2Error):
    """An argument or setting is invalid or contradicts another one."""

    exit_code = 2


class DataError(GPT2Error, ValueError):
    """A text, label, table or token id cannot be used."""

    exit_code = 3


class CheckpointError(GPT2Error):
    """A model, tokenizer, classifier or state is damaged or does not fit."""

    exit_code = 4


class DownloadError(GPT2Error):
    """A file could not be downloaded, or the server sent another one."""

    exit_code = 5


class ResourceError(GPT2Error):
    """Memory or disk space ran out, or a location is not writable."""

    exit_code = 6


class Interrupted(KeyboardInterrupt):
    """The process received Ctrl-C or SIGTERM.

    If the work can be resumed, its state is saved before this is raised. `again` are words that the
    user adds to the same command to resume. It is None if the message explains how to resume.
    """

    def __init__(self, message: str, signal: int = 2, again: Sequence[str] | None = None):
        super().__init__(message)
        self.exit_code = 128 + signal  # the shells' convention: 130 for Ctrl-C, 143 for SIGTERM
        self.again = again


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the known name that is most similar to `name`, ignoring case.

    Returns an empty string if no name is similar.
    """
    by_lower = {other.strip().lower(): other for other in known}
    near = get_close_matches(name.strip().lower(), by_lower, n=1)
    return by_lower[near[0]] if near else ""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a question to append to an error message about an unknown name.

    Returns an empty string if no known name is similar.
    """
    found = nearest(name, known)
    return f" Did you mean {found}?" if found else ""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory ran out.

    This may be the memory of the CPU or of a GPU.
    """
    # compared by name, because importing torch here for its OutOfMemoryError would be slow
    name, words = type(error).__name__, str(error)
    phrases = (
        "DefaultCPUAllocator",
        "bad_alloc",
        "out of memory",
        "Cannot allocate memory",
        "can't start new thread",
        "failed to map segment",  # a library that does not fit into memory
    )
    return name in ("MemoryError", "OutOfMemoryError") or (
        isinstance(error, (RuntimeError, ImportError))
        and any(phrase in words for phrase in phrases)
    )


def is_out_of_resources(error: BaseException) -> bool:
    """Return whether memory, disk space or file descriptors ran out."""
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EMFILE, errno.ENFILE)
    return (
        is_out_of_memory(error)
        or (isinstance(error, OSError) and error.errno in (*full, errno.ENOMEM))
        or "Too many open files" in str(error)  # raised when a library cannot be loaded
    )
