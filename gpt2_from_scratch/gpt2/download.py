"""Download OpenAI's GPT-2 in four sizes.

A file gets its final name only after its size, hash and contents have been checked. Interrupted
transfers are resumed. Requests and redirects go only to https servers on a list. If a server is too
slow, the download from it is aborted.

For the 124M model, the SHA-256 of four files is pinned. OpenAI never published hashes of its data files,
but two public copies of the 124M model agree. `model.ckpt.index` contains a CRC-32C of every tensor, so
the index verifies the data, too. For the other sizes, the index must match its own checksums and
describe data of the correct size. Facts from only one source are listed as unconfirmed; nothing is
refused because of them. OpenAI's files `checkpoint` and
`model.ckpt.meta` are not needed.
"""

import errno
import hashlib
import json
import logging
import os
import socket
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

# --- The files, and their known sizes and hashes. ---

OPENAI = "https://openaipublic.blob.core.windows.net/gpt-2/models"
MIRROR = "https://f001.backblazeb2.com/file/LLMs-from-scratch"
INDEX, DATA = "model.ckpt.index", "model.ckpt.data-00000-of-00001"

Known = tuple[int | None, str | None]  # bytes, hash
VOCABULARY: dict[str, Known] = {  # the same for all sizes; tiktoken pins the same hashes
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
        DATA: (
            497_759_232,
            "sha256:2060c885360cc0cf41d7a6dbc4d24b5127aae20260c8b5ae521b5a6578407118",
        ),
    },
    "355M": {INDEX: (10_399, None), DATA: (1_419_292_672, None)},
    # the sizes of these data files are computed from the shapes
    "774M": {INDEX: (None, None), DATA: (3_096_120_320, None)},
    "1558M": {INDEX: (None, None), DATA: (6_230_444_800, None)},
}
# from one public copy only (355M), or computed from the shapes; a difference is only logged
UNCONFIRMED: dict[str, dict[str, Known]] = {
    "355M": {
        INDEX: (None, "sha256:4490e7b1f5ec0abfc1e111fcd27cdda7cb280c597ba0a885c364134e62ce43aa"),
        DATA: (None, "sha256:22b4212602a087d1cdeec3509648f4d7b1f181eaa33ce0f3c688fbfb732d622f"),
    },
    "774M": {INDEX: (15_535, None)},
    "1558M": {INDEX: (20_724, None)},
}


@dataclass(frozen=True)
class PinnedFile:
    """A file with its expected size and hash. An unknown value is None."""

    name: str
    size: int | None = None  # bytes
    known_hash: str | None = None  # "sha256:..." or "md5:..."
    urls: tuple[str, ...] = ()  # tried in this order

    def facts(self) -> str:
        """Format the expected size and hash as text."""
        size = "size unknown" if self.size is None else f"{self.size:,} bytes"
        return f"{size}, {self.known_hash.replace(':', ' ')}" if self.known_hash else size

    def difference(self, path: Path) -> str:
        """Describe how a file differs from the expected size or hash.

        Returns an empty string if it does not.
        """
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
    """Return the files of a model, in the order of the download."""
    known = {**VOCABULARY, **WEIGHTS[name]}
    # copies of this file have different line ends, so only its contents are compared
    known["hparams.json"] = (None, None)
    return [
        PinnedFile(file, *known[file], (f"{OPENAI}/{name}/{file}", f"{MIRROR}/gpt2/{name}/{file}"))
        for file in ("hparams.json", "vocab.bpe", "encoder.json", INDEX, DATA)
    ]


# --- Downloading a model. Each check of a file's contents raises a GPT2Error. ---

Check = Callable[[Path], object]


def download_model(name: str, folder: str | Path | None = None) -> Path:
    """Download "124M", "355M", "774M" or "1558M" to `folder`.

    The default folder is `weights/<name>` in `paths.home()`. Files that exist are checked and not
    downloaded again. Raises DownloadError if a file cannot be downloaded; the message explains how to
    get it by other means. Raises ResourceError if a file cannot be written.
    """
    folder = home() / "weights" / name if folder is None else expanded(folder)
    if name not in SIZES:
        raise UsageError(f"unknown model {name!r}; choose from: {', '.join(SIZES)}")
    checks: dict[str, Check] = {
        "hparams.json": partial(_check_hparams, SIZES[name]),
        INDEX: partial(_check_index, WEIGHTS[name][DATA][0]),
        DATA: partial(_check_data, folder),
    }
    files = model_files(name)
    for number, file in enumerate(files):
        try:
            path = fetch(file, folder / file.name, checks.get(file.name))
        except DownloadError as error:
            missing = [f for f in files[number + 1 :] if not (folder / f.name).exists()]
            lines = [f"{f.name} ({f.facts()}): {' or '.join(f.urls)}" for f in missing]
            if not missing:
                raise
            also = "\n  ".join([f"These files are missing in {folder}, too:", *lines])
            raise DownloadError(f"{error}\n{also}") from None
        log.info(f"{path}: {path.stat().st_size:,} bytes, checked")
        seen = PinnedFile(file.name, *UNCONFIRMED.get(name, {}).get(file.name, (None, None)))
        if difference := seen.difference(path):
            log.warning(f"{path} is valid, but it {difference} (unconfirmed, from one source only)")
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


# --- Downloading one file. ---

OFFLINE = "GPT2_FROM_SCRATCH_OFFLINE"  # if set to 1, no requests are made
HOME_HINT = "set GPT2_FROM_SCRATCH_HOME to store such files in another folder"
MOST = 1 << 20  # most bytes to accept if the size is unknown
CHUNK = 1 << 17  # bytes; an interrupted transfer loses at most one chunk
PROGRESS = 1 << 20  # bytes after which the count of failures starts again
Value = TypeVar("Value")


@dataclass(frozen=True)
class Limits:
    """The allowed servers, and the limits for requests to them."""

    allowed: tuple[str, ...] = (
        "https://openaipublic.blob.core.windows.net",
        "https://f001.backblazeb2.com",
    )
    patience: float = 30.0  # seconds to wait for a response and for each chunk (at least 4.4 kB/s)
    attempts: int = 4  # most attempts at one address without progress
    pause: float = 1.0  # seconds before the second attempt, doubled each time
    longest_pause: float = 120.0  # seconds, even if Retry-After asks for more
    redirects: int = 5  # most redirects per request


def fetch(
    file: PinnedFile, target: Path, check: Check | None = None, limits: Limits = Limits()
) -> Path:
    """Download a file, unless the correct file already exists.

    A wrong file at `target` is replaced as soon as the correct one is complete. After a failure, the
    next call resumes the transfer.

    Args:
        file: the addresses, and the expected size and hash.
        target: path of the file on this machine.
        check: an additional check of the contents, which raises a GPT2Error if they are wrong.
        limits: the allowed servers, and the limits for requests to them.

    Returns:
        `target`.

    Raises:
        DownloadError: the file cannot be downloaded. The message explains how to get it by other
            means.
        ResourceError: the file cannot be written.
    """
    if not (fault := _fault(file, target, check)):
        return target
    reasons = [fault]
    if os.environ.get(OFFLINE, "") not in ("", "0"):
        reasons.append(f"{OFFLINE} is set")
    else:
        with _alone_at(target):
            if not _fault(file, target, check):  # another process has downloaded it meanwhile
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
        f"To get it by other means, save it as {target} ({file.facts()}). Its addresses are",
        *file.urls,
    ]
    raise DownloadError("\n  ".join(lines))


@contextmanager
def _alone_at(target: Path) -> Iterator[None]:
    """Create the folder of `target`, and lock `target` during the block.

    An OSError becomes a ResourceError whose message explains how to choose another folder.
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
    """Describe what is wrong with the file at `path`.

    Returns an empty string if the file exists and is correct.
    """
    if not path.exists():
        return f"{path} does not exist"
    if not path.is_file():
        raise ResourceError(f"{path} is not a regular file; remove it")
    faults = []
    try:
        if difference := file.difference(path):
            faults.append(f"{path} {difference}")
        if check and file.size in (None, path.stat().st_size):
            check(path)  # even if the hash differs, because the check may name the damaged part
    except OSError as error:  # the file may be correct, so it is not replaced
        raise ResourceError(f"{path} cannot be read: {error.strerror}") from error
    except GPT2Error as error:
        faults.append(str(error))
    return "; ".join(faults)


class _TryAgain(Exception):
    """A temporary failure.

    The same address is tried again after at least `pause` seconds.
    """

    def __init__(self, reason: str, pause: float = 0.0):
        super().__init__(reason)
        self.pause = pause


@dataclass(frozen=True)
class Transfer:
    """The download of one file from one address. An interrupted download is resumed.

    `<target>.part` contains the bytes received so far. `<target>.part.json` contains their address
    and the version of the file on the server. The server sends the rest only if its file still has
    that version (If-Range). A download from another address starts from the beginning.
    """

    url: str
    file: PinnedFile
    target: Path
    check: Check | None
    limits: Limits

    @property
    def part(self) -> Path:
        """The file for the bytes received so far."""
        return self.target.with_name(f"{self.target.name}.part")

    @property
    def note(self) -> Path:
        """The file for the address and the version of these bytes."""
        return self.target.with_name(f"{self.target.name}.part.json")

    def complete(self) -> None:
        """Download the file, check it and move it to its target. Raises DownloadError."""
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
                raise _TryAgain(fault)  # perhaps only the bytes of the earlier transfer were wrong
            except (_TryAgain, requests.RequestException) as error:
                if not best and has_no_network(error):
                    raise DownloadError(f"there is no network ({error})") from None
                done, _ = self._begun()
                failures, best = (1, done) if done >= best + PROGRESS else (failures + 1, best)
                if failures >= self.limits.attempts:
                    raise DownloadError(f"{error} (attempt {failures})") from None
                pause = max(self.limits.pause * 2 ** (failures - 1), getattr(error, "pause", 0))
                time.sleep(min(pause, self.limits.longest_pause))
        with self.part.open("rb+") as file:
            os.fsync(file.fileno())
        if self.target.exists():
            log.warning(f"replacing {self.target}, which is not the correct file")
        os.replace(self.part, self.target)
        self.note.unlink()

    def _begun(self) -> tuple[int, str]:
        """Return the number of bytes received and the file's version.

        Returns (0, "") if nothing was received from this address.
        """
        with suppress(CheckpointError, OSError):
            note = read_json(self.note)
            version = note.get("version")
            if note.get("url") == self.url and version and isinstance(version, str):
                return self.part.stat().st_size, version
        return 0, ""

    def _request(self) -> bool:
        """Request the file or the rest of it. Returns whether earlier bytes were used."""
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
                # empty the part first, so that old bytes never seem to belong to the new version
                _unlinked(self.part, "wb").close()
                etag, date = (response.headers.get(h, "") for h in ("ETag", "Last-Modified"))
                note = {"url": self.url, "version": etag if etag.startswith('"') else date}
                with _unlinked(self.note, "wb") as out:
                    out.write(json.dumps(note).encode())
            self._copy(response, start)
        finally:  # in a thread, because closing would wait for a read in progress
            threading.Thread(target=response.close, daemon=True).start()
        return start > 0

    def _start(self, response: requests.Response, done: int) -> int:
        """Return the byte of the file at which the response begins: `done` or 0.

        Raises an error if the response is not the file or the rest of it.
        """
        status, size, headers = response.status_code, self.file.size, response.headers
        answer = f"the server answers {status} {response.reason}"
        if status in (408, 425, 429) or status >= 500:
            raise _TryAgain(answer, _seconds(headers.get("Retry-After", "")))
        span, _, total = headers.get("Content-Range", "").partition("/")
        continues = span.startswith(f"bytes {done}-") and total in ("*", str(size or total))
        if status == 416 or (status == 206 and not continues):
            self.part.unlink(missing_ok=True)
            raise _TryAgain(f"{answer} instead of the bytes from {done:,} on")
        if status not in (200, 206):
            raise DownloadError(answer)
        if headers.get("Content-Encoding", "identity") != "identity":
            raise DownloadError("the server compressed the file, although it was asked not to")
        start, length = done if status == 206 else 0, headers.get("Content-Length", "")
        if size is not None and length.isdecimal() and start + int(length[:20]) != size:
            raise DownloadError(
                f"the server offers {start + int(length[:20]):,} bytes "
                f"({headers.get('Content-Type', 'unknown type')}), expected {size:,}"
            )
        return start

    def _copy(self, response: requests.Response, done: int) -> None:
        """Append the body of the response to the `done` bytes received."""
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
            raise DownloadError(f"received more than {most:,} bytes")
        if size is not None and done < size:
            raise _TryAgain(f"cut off after {done:,} of {size:,} bytes")


def has_no_network(error: BaseException | None) -> bool:
    """Return whether a server's name or address cannot be reached at all from this machine.

    Another attempt would not help soon.
    """
    while error is not None:
        unreachable = (errno.ENETUNREACH, errno.EHOSTUNREACH)
        if isinstance(error, socket.gaierror) or getattr(error, "errno", None) in unreachable:
            return True
        error = error.__cause__ or error.__context__
    return False


def _seconds(retry_after: str) -> float:
    """Parse a Retry-After header, which contains seconds or a date.

    Returns seconds, or 0 if the header is invalid.
    """
    if retry_after.isdecimal():
        return float(retry_after[:9])
    try:
        then = parsedate_to_datetime(retry_after)  # some dates have no time zone and mean UTC
        then = then.replace(tzinfo=then.tzinfo or UTC)
        return max(0.0, (then - datetime.now(UTC)).total_seconds())
    except (ValueError, OverflowError):
        return 0.0


def _unlinked(path: Path, mode: str) -> IO[bytes]:
    """Open a file to write bytes. Raises OSError if it is a symbolic link."""
    flags = getattr(os, "O_NOFOLLOW", 0)
    return open(path, mode, opener=lambda name, more: os.open(name, more | flags, 0o666))


def _within(seconds: float, function: Callable[..., Value], *arguments: Any) -> Value:
    """Call a function with a time limit.

    The call runs in a thread, which is abandoned if it takes too long. A timeout of the socket is
    not sufficient, because it starts again with each byte.
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
        raise _TryAgain(f"received fewer than {CHUNK:,} bytes in {seconds:g} seconds") from None


def _open_url(url: str, headers: dict[str, str], limits: Limits) -> requests.Response:
    """Send a request, without reading the body of the response.

    Redirects are followed to allowed servers only.
    """
    session = requests.Session()
    session.adapters.clear()
    for origin in limits.allowed:  # without the slash, longer host names would match too
        session.mount(f"{origin}/", requests.adapters.HTTPAdapter())
    session.max_redirects = limits.redirects
    # close redirects, because requests would read their bodies, which may be long
    session.hooks["response"] = [lambda answer, **_: answer.close() if answer.is_redirect else None]
    try:
        return session.get(url, headers=headers, stream=True, timeout=limits.patience)
    except requests.exceptions.InvalidSchema as error:
        raise DownloadError(f"{error}; allowed servers: {', '.join(limits.allowed)}") from None
    except (requests.ConnectionError, requests.Timeout):
        raise
    except (OSError, ValueError) as error:  # from requests, certificates or an invalid redirect
        raise DownloadError(str(error)) from None
