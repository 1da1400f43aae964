"""Download OpenAI's GPT-2 in four sizes.

A file gets its name only after its size, hash and contents were checked. Interrupted transfers are
resumed. Only https servers on a list are asked, redirects included, and a server that is too slow is
given up.

Of the 124M model five SHA-256 are known, and the MD5 of the data file. OpenAI never published the
SHA-256 of the data files, and they are not needed: `model.ckpt.index` holds a CRC-32C of every
tensor, so the pinned index verifies the data. The index of the other sizes must be whole by its own
checksums and describe data of the right size. OpenAI's `checkpoint` and `model.ckpt.meta` are not
needed.
"""

import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeVar

import requests

from gpt2_from_scratch.errors import (
    CheckpointError,
    DownloadError,
    GPT2Error,
    ResourceError,
    UsageError,
)
from gpt2_from_scratch.gpt2.config import SIZES, GPT2Config
from gpt2_from_scratch.gpt2.openai_checkpoint import check_tensors, read_index
from gpt2_from_scratch.progress import progress_bar
from gpt2_from_scratch.storage.files import HEAD, and_is, locked, read_json
from gpt2_from_scratch.storage.paths import expanded, home

log = logging.getLogger(__name__)

# --- The files, and what is known of them. ---

OPENAI = "https://openaipublic.blob.core.windows.net/gpt-2/models"
MIRROR = "https://f001.backblazeb2.com/file/LLMs-from-scratch"
INDEX, DATA = "model.ckpt.index", "model.ckpt.data-00000-of-00001"

Known = tuple[int | None, str | None]  # bytes, hash
VOCABULARY: dict[str, Known] = {  # the same in all sizes; tiktoken pins them too
    "vocab.bpe": (
        456_318,
        "sha256:1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    ),
    "encoder.json": (
        1_042_301,
        "sha256:196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    ),
}
WEIGHTS: dict[str, dict[str, Known]] = {
    "124M": {
        INDEX: (5_215, "sha256:71916f763f9746f9b2a06b12d91996cf1084ae008d0424543d39391c5f2dc687"),
        DATA: (497_759_232, "md5:f48b9cf1a525a603be52258f69bf9162"),  # shows accidents, not malice
    },
    "355M": {INDEX: (10_399, None), DATA: (1_419_292_672, None)},
    "774M": {INDEX: (None, None), DATA: (3_096_120_320, None)},  # these sizes of data files
    "1558M": {INDEX: (None, None), DATA: (6_230_444_800, None)},  # follow from the shapes
}


@dataclass(frozen=True)
class PinnedFile:
    """A file by name, with what is known of it beforehand; the rest is None."""

    name: str
    size: int | None = None  # bytes
    known_hash: str | None = None  # "sha256:..." or "md5:..."
    urls: tuple[str, ...] = ()  # tried in this order

    def facts(self) -> str:
        """Size and hash in words."""
        size = "size unknown" if self.size is None else f"{self.size:,} bytes"
        return f"{size}, {self.known_hash.replace(':', ' ')}" if self.known_hash else size

    def difference(self, path: Path) -> str:
        """What the file at `path` has instead of the expected size or hash; empty if nothing."""
        size, words = path.stat().st_size, ""
        if self.size not in (None, size):
            words = f"has {size:,} bytes, expected {self.size:,}"
        elif self.known_hash:
            kind, expected = self.known_hash.split(":")
            with path.open("rb") as file:
                digits = hashlib.file_digest(file, kind).hexdigest()
            if digits != expected:
                words = f"has {kind} {digits}, expected {expected}"
        if not words:
            return ""
        with path.open("rb") as file:
            return words + and_is(file.read(HEAD))


def model_files(name: str) -> list[PinnedFile]:
    """The files of one of OpenAI's models, in the order in which they are downloaded."""
    known = {**VOCABULARY, **WEIGHTS[name]}
    known["hparams.json"] = (None, None)  # copies differ in line ends: checked by its contents
    return [
        PinnedFile(file, *known[file], (f"{OPENAI}/{name}/{file}", f"{MIRROR}/gpt2/{name}/{file}"))
        for file in ("hparams.json", "vocab.bpe", "encoder.json", INDEX, DATA)
    ]


# --- Downloading them; each check of contents raises a GPT2Error. ---

Check = Callable[[Path], object]


def download_model(name: str, folder: str | Path | None = None) -> Path:
    """Download "124M", "355M", "774M" or "1558M" to `folder`, by default `weights/<name>` at home.

    Files that exist are checked, not downloaded again. Raises DownloadError, whose message says how
    to get a file by other means, and ResourceError if a file cannot be written.
    """
    folder = home() / "weights" / name if folder is None else expanded(folder)
    if name not in SIZES:
        raise UsageError(f"unknown model {name!r}; choose from: {', '.join(SIZES)}")
    checks: dict[str, Check] = {
        "hparams.json": partial(_check_hparams, SIZES[name]),
        INDEX: partial(_check_index, WEIGHTS[name][DATA][0]),
        DATA: partial(_check_data, folder),
    }
    for file in model_files(name):
        path = fetch(file, folder / file.name, checks.get(file.name))
        log.info(f"{path}: {path.stat().st_size:,} bytes, checked")
    return folder


def _check_hparams(config: GPT2Config, path: Path) -> None:
    found = read_json(path)
    if found != asdict(config):
        raise CheckpointError(f"{path} has {found!r:.200}, expected {asdict(config)}")


def _check_index(data_size: int | None, path: Path) -> None:
    described = sum(entry.size for entry in read_index(path).values())
    if described != data_size:
        raise CheckpointError(f"{path} describes {described} bytes of data, expected {data_size}")


def _check_data(folder: Path, path: Path) -> None:
    damaged = [entry.name for entry, ok, _, _ in check_tensors(folder, path) if not ok]
    if damaged:
        raise CheckpointError(
            f"{path} has {len(damaged)} damaged tensors: {', '.join(damaged[:5])}"
        )


# --- One file from the network to its place. ---

OFFLINE = "GPT2_FROM_SCRATCH_OFFLINE"  # set to 1, it forbids every request
HOME_HINT = "to store such files in another folder, set GPT2_FROM_SCRATCH_HOME to it"
MOST = 1 << 20  # bytes that are accepted if the size is unknown
CHUNK = 1 << 17  # bytes; an interrupted transfer loses at most these
PROGRESS = 1 << 20  # bytes after which failures are counted anew
Value = TypeVar("Value")


@dataclass(frozen=True)
class Limits:
    """Which servers are asked, and how patiently."""

    allowed: tuple[str, ...] = (
        "https://openaipublic.blob.core.windows.net",
        "https://f001.backblazeb2.com",
    )
    patience: float = 30.0  # seconds for the start of an answer, and for each chunk: 4.4 kB/s
    attempts: int = 4  # at one address, without progress
    pause: float = 1.0  # seconds before the second attempt, doubled each time
    longest_pause: float = 120.0  # seconds, whatever Retry-After asks for
    redirects: int = 5


def fetch(
    file: PinnedFile, target: Path, check: Check | None = None, limits: Limits = Limits()
) -> Path:
    """Download `file` to `target`; if the right file is there, no request is made.

    `check` raises a GPT2Error if the contents are wrong in a way that size and hash cannot show. A
    wrong file at `target` is replaced once the right one has arrived. Raises DownloadError that says
    how to get the file by other means, and ResourceError if it cannot be written; the next call
    resumes from what has arrived.
    """
    if not (fault := _fault(file, target, check)):
        return target
    reasons = [fault]
    if os.environ.get(OFFLINE, "") not in ("", "0"):
        reasons.append(f"{OFFLINE} is set")
    else:
        with _alone_at(target):
            if not _fault(file, target, check):  # another process has brought it in the meantime
                return target
            for url in file.urls:
                try:
                    Transfer(url, file, target, check, limits).complete()
                    return target
                except DownloadError as error:
                    reasons.append(f"{url}: {error}")
    lines = [
        f"{target.name} could not be downloaded:",
        *reasons,
        f"To get it by other means: put it at {target} ({file.facts()}). It is at",
        *file.urls,
    ]
    raise DownloadError("\n  ".join(lines))


@contextmanager
def _alone_at(target: Path) -> Iterator[None]:
    """Make the folder of `target`, and keep other processes from working on `target`.

    Errors of this machine become a ResourceError that says how to choose another folder.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for ending in ("", ".part", ".part.json"):
            path = target.with_name(f"{target.name}{ending}")
            if path.is_symlink():
                raise ResourceError(f"{path.name} is a symbolic link; remove it")
            if path.exists() and not path.is_file():  # opening a pipe may take forever
                raise ResourceError(f"{path.name} is not a regular file; remove it")
        with locked(target.with_name(f".{target.name}.lock"), wait=True):
            yield
    except (OSError, ResourceError) as error:
        what = getattr(error, "strerror", None) or error
        raise ResourceError(f"{target} could not be stored: {what}; {HOME_HINT}") from error


def _fault(file: PinnedFile, path: Path, check: Check | None = None) -> str:
    """What is wrong with the file at `path`; empty if it is there and right."""
    if not path.exists():
        return f"there is no {path}"
    if not path.is_file():
        raise ResourceError(f"{path} is not a regular file; remove it")
    faults = []
    try:
        if difference := file.difference(path):
            faults.append(f"{path} {difference}")
        if check and file.size in (None, path.stat().st_size):
            check(path)  # after a difference too: it may name what is damaged
    except OSError as error:  # it may be right, so it is not replaced
        raise ResourceError(f"{path} cannot be read: {error.strerror}") from error
    except GPT2Error as error:
        faults.append(str(error))
    return "; ".join(faults)


class _TryAgain(Exception):
    """A fault that may pass: the same address is asked again, after `pause` seconds or more."""

    def __init__(self, reason: str, pause: float = 0.0):
        super().__init__(reason)
        self.pause = pause


@dataclass(frozen=True)
class Transfer:
    """The download of one file from one address, resumed where an earlier one broke off.

    `<target>.part` holds the bytes that have come; `<target>.part.json` says from which address and
    of which version of the file they are. The server sends the rest only if its file still has that
    version (If-Range). Another address begins anew.
    """

    url: str
    file: PinnedFile
    target: Path
    check: Check | None
    limits: Limits

    @property
    def part(self) -> Path:
        """The file that holds the bytes until they are all there."""
        return self.target.with_name(f"{self.target.name}.part")

    @property
    def note(self) -> Path:
        """The file that says what the part is the beginning of."""
        return self.target.with_name(f"{self.target.name}.part.json")

    def complete(self) -> None:
        """Bring the file to its target, checked. Raises DownloadError."""
        failures, best = 0, 0
        while True:
            try:
                resumed = self._request()
                fault = _fault(self.file, self.part, self.check)
                if not fault:
                    break
                self.part.unlink()
                if not resumed:
                    raise DownloadError(fault)
                raise _TryAgain(fault)  # the bytes of the earlier transfer may be what was wrong
            except (_TryAgain, requests.RequestException) as error:
                done, _ = self._begun()
                failures, best = (1, done) if done >= best + PROGRESS else (failures + 1, best)
                if failures >= self.limits.attempts:
                    raise DownloadError(f"{error} (attempt {failures})") from None
                pause = max(self.limits.pause * 2 ** (failures - 1), getattr(error, "pause", 0))
                time.sleep(min(pause, self.limits.longest_pause))
        with self.part.open("rb+") as file:
            os.fsync(file.fileno())
        if self.target.exists():
            log.warning(f"{self.target} was not the right file and is replaced")
        os.replace(self.part, self.target)
        self.note.unlink()

    def _begun(self) -> tuple[int, str]:
        """How many bytes came from this address, and of which version; (0, "") to begin anew."""
        with suppress(CheckpointError, OSError):
            note = read_json(self.note)
            version = note.get("version")
            if note.get("url") == self.url and version and isinstance(version, str):
                return self.part.stat().st_size, version
        return 0, ""

    def _request(self) -> bool:
        """Ask once for the file or the rest of it; whether it began with earlier bytes."""
        done, version = self._begun()
        if done and done == self.file.size:
            return True
        headers = {"Accept-Encoding": "identity", "User-Agent": "gpt2-from-scratch"}
        if done:
            headers |= {"Range": f"bytes={done}-", "If-Range": version}
        response = _within(self.limits.patience, _open_url, self.url, headers, self.limits)
        try:
            start = self._start(response, done)
            if not start:
                _unlinked(self.part, "wb").close()  # first: old bytes never pass for this version
                etag, date = (response.headers.get(h, "") for h in ("ETag", "Last-Modified"))
                note = {"url": self.url, "version": etag if etag.startswith('"') else date}
                with _unlinked(self.note, "wb") as out:
                    out.write(json.dumps(note).encode())
            self._copy(response, start)
        finally:  # in a thread, because closing waits for a read that is under way
            threading.Thread(target=response.close, daemon=True).start()
        return start > 0

    def _start(self, response: requests.Response, done: int) -> int:
        """The byte at which the answer begins: `done` or 0. Raises for any other answer."""
        status, size, headers = response.status_code, self.file.size, response.headers
        answer = f"the server answers {status} {response.reason}"
        if status in (408, 425, 429) or status >= 500:
            raise _TryAgain(answer, _seconds(headers.get("Retry-After", "")))
        span, _, total = headers.get("Content-Range", "").partition("/")
        continues = span.startswith(f"bytes {done}-") and total in ("*", str(size or total))
        if status == 416 or (status == 206 and not continues):
            self.part.unlink(missing_ok=True)
            raise _TryAgain(f"{answer}, not the bytes from {done:,} on")
        if status not in (200, 206):
            raise DownloadError(answer)
        if headers.get("Content-Encoding", "identity") != "identity":
            raise DownloadError("the server compresses the file, though that was not asked for")
        start, length = done if status == 206 else 0, headers.get("Content-Length", "")
        if size is not None and length.isdecimal() and start + int(length[:20]) != size:
            raise DownloadError(
                f"the server offers {start + int(length[:20]):,} bytes "
                f"({headers.get('Content-Type', 'unknown type')}), expected {size:,}"
            )
        return start

    def _copy(self, response: requests.Response, done: int) -> None:
        """Append the answer to the part of `done` bytes."""
        size = self.file.size
        most, chunks = MOST if size is None else size, response.iter_content(CHUNK)
        bar = progress_bar(total=size, initial=done, unit="B", unit_scale=True, desc=self.file.name)
        with _unlinked(self.part, "ab") as out, bar:
            while chunk := _within(self.limits.patience, next, chunks, b""):
                done += out.write(chunk)
                bar.update(len(chunk))
                if done > most:
                    break
        if done > most:
            self.part.unlink()
            raise DownloadError(f"more than {most:,} bytes came")
        if size is not None and done < size:
            raise _TryAgain(f"cut off after {done:,} of {size:,} bytes")


def _seconds(retry_after: str) -> float:
    """What the header asks to wait, which it says in seconds or as a date; 0 if it says neither."""
    if retry_after.isdecimal():
        return float(retry_after[:9])
    try:
        then = parsedate_to_datetime(retry_after)  # of some dates without a zone, which is UTC
        then = then.replace(tzinfo=then.tzinfo or UTC)
        return max(0.0, (then - datetime.now(UTC)).total_seconds())
    except (ValueError, OverflowError):
        return 0.0


def _unlinked(path: Path, mode: str) -> IO[bytes]:
    """Open a file to write bytes, unless it has become a symbolic link."""
    flags = getattr(os, "O_NOFOLLOW", 0)
    return open(path, mode, opener=lambda name, more: os.open(name, more | flags, 0o666))


def _within(seconds: float, function: Callable[..., Value], *arguments: Any) -> Value:
    """The value of a call, made in a thread that is abandoned if the call takes longer.

    A timeout of the socket is not enough: it begins anew with each byte.
    """
    future: Future[Value] = Future()

    def call() -> None:
        try:
            future.set_result(function(*arguments))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    try:
        return future.result(seconds)
    except TimeoutError:
        raise _TryAgain(f"fewer than {CHUNK:,} bytes came in {seconds:g} seconds") from None


def _open_url(url: str, headers: dict[str, str], limits: Limits) -> requests.Response:
    """The server's answer, its body not read yet; redirects too may lead only to allowed servers."""
    session = requests.Session()
    session.adapters.clear()
    for origin in limits.allowed:  # the slash ends the host's name
        session.mount(f"{origin}/", requests.adapters.HTTPAdapter())
    session.max_redirects = limits.redirects
    # a redirect is closed, because requests would read its body, however long
    session.hooks["response"] = [lambda answer, **_: answer.close() if answer.is_redirect else None]
    try:
        return session.get(url, headers=headers, stream=True, timeout=limits.patience)
    except requests.exceptions.InvalidSchema as error:
        raise DownloadError(f"{error}; allowed are {', '.join(limits.allowed)}") from None
    except (requests.ConnectionError, requests.Timeout):
        raise
    except (OSError, ValueError) as error:  # of requests, of certificates, of a wrong redirect
        raise DownloadError(str(error)) from None
