"""One file from the network to its place: whole and checked, or not at all.

What arrives is kept beside the target in `<name>.part`, and in `<name>.part.json` where it came
from and which version of the file it was. An interrupted transfer goes on from there, in this run
or the next one; the server is asked to send the rest only if its file is still that version
(If-Range). Only a file that passed every check gets its name, so a file that has its name is
whole.

Only servers on a list are asked, over https, redirects included.
"""

import os
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urljoin, urlsplit

import requests
from tqdm import tqdm

from gpt2_from_scratch.errors import DownloadError, GPT2Error
from gpt2_from_scratch.files import atomic_path
from gpt2_from_scratch.part import Part
from gpt2_from_scratch.pinned import PinnedFile

ALLOWED = (
    "https://openaipublic.blob.core.windows.net",
    "https://f001.backblazeb2.com",
    "https://archive.ics.uci.edu",
)
TIMEOUTS = (10, 60)  # seconds to connect, seconds of silence
ATTEMPTS = 4  # at one address, without progress
PROGRESS = 1 << 20  # bytes that count as some
MOST_REDIRECTS = 5
CHUNK = 1 << 14  # bytes; less than this is lost when a transfer breaks off
OFFLINE = "GPT2_FROM_SCRATCH_OFFLINE"  # set to 1, it forbids every request


class _TryAgain(Exception):
    """A fault that may pass: the same address is asked again."""


def fetch(
    file: PinnedFile,
    target: Path,
    check: Callable[[Path], None] = lambda path: None,
    *,
    allowed: Collection[str] = ALLOWED,
    pause: float = 1.0,
) -> Path:
    """Bring `file` to `target`, which costs no request if it is already there and right.

    `check` may raise a GPT2Error for a file that is wrong in other ways than size and hashes can
    tell. `allowed` are the servers, such as "https://host"; `pause` the seconds before the second
    attempt, doubled each time. Raises DownloadError that says how to get the file by other means.
    """
    reasons = []
    try:
        if target.exists():
            try:
                return _checked(file, target, check)
            except GPT2Error as error:
                reasons.append(f"what is there is wrong: {error}")
        if os.environ.get(OFFLINE, "") not in ("", "0"):
            reasons.append(f"{OFFLINE} is set")
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            part = Part(target.with_name(f"{target.name}.part"))
            begun = part.state().url
            for url in sorted(file.urls, key=lambda url: url != begun):
                try:
                    _receive(url, file, part, check, allowed, pause)
                    with atomic_path(target) as temporary:
                        os.replace(part.path, temporary)
                    part.discard()
                    return target
                except GPT2Error as error:
                    reasons.append(f"{url}: {error}")
    except OSError as error:  # of this machine's disk; the network's are caught below
        reasons.append(f"{error.filename or target}: {error.strerror or error}")
    lines = [
        f"{target.name} could not be fetched:", *reasons,
        f"To get it by other means: put it at {target} ({file.facts()}). It is at", *file.urls,
    ]  # fmt: skip
    raise DownloadError("\n  ".join(lines))


def _checked(file: PinnedFile, path: Path, check: Callable[[Path], None]) -> Path:
    if difference := file.difference(path):
        raise DownloadError(f"{path} {difference}")
    check(path)
    return path


def _receive(
    url: str,
    file: PinnedFile,
    part: Part,
    check: Callable[[Path], None],
    allowed: Collection[str],
    pause: float,
) -> None:
    """Complete `part` from one address and check it; a wrong one is removed. Raises GPT2Error."""
    failures, best = 0, 0
    while True:
        before = part.state()
        try:
            _transfer(url, file, part, allowed)
        except (_TryAgain, requests.RequestException) as error:
            reason = str(error)
        else:
            try:
                _checked(file, part.path, check)
                return
            except GPT2Error as error:
                part.discard()
                went_on = before.url == url and before.done
                if not went_on:  # else its old beginning may be what is wrong
                    raise
                reason = str(error)
        done = part.state().done
        failures, best = (1, done) if done >= best + PROGRESS else (failures + 1, best)
        if failures >= ATTEMPTS:
            raise DownloadError(f"{reason} (attempt {failures})")
        time.sleep(pause * 2 ** (failures - 1))


def _transfer(url: str, file: PinnedFile, part: Part, allowed: Collection[str]) -> None:
    """One request: the whole file, or the rest of it, into `part`."""
    before = part.state()
    done = before.done if before.url == url else 0
    if done and done == file.size:
        return
    headers = {"Accept-Encoding": "identity", "User-Agent": "gpt2-from-scratch"}
    if done:
        headers |= {"Range": f"bytes={done}-", "If-Range": before.version}
    with _open(url, headers, allowed) as response:
        start = _start(response, file, part, done)
        with part.open(start, url, _version(response)) as out:
            done = start + _copy(response, file, start, out)
    if done > _most(file):
        part.discard()
        raise DownloadError(f"more than {_most(file):,} bytes came")
    if file.size is not None and done < file.size:
        raise _TryAgain(f"cut off after {done:,} of {file.size:,} bytes")


def _start(response: requests.Response, file: PinnedFile, part: Part, done: int) -> int:
    """Where in the file the answer begins: at `done`, or at 0. Raises for any other answer."""
    status = response.status_code
    if status == 416 or (status == 206 and not _continues(response, file, done)):
        part.discard()
        raise _TryAgain(f"the server does not go on at byte {done:,}")
    if status not in (200, 206):
        passing = status in (408, 425, 429) or status >= 500
        raise (_TryAgain if passing else DownloadError)(
            f"the server answers {status} {response.reason}"
        )
    start = done if status == 206 else 0
    length = response.headers.get("Content-Length", "")
    if file.size is not None and length.isdecimal() and start + int(length) != file.size:
        kind = response.headers.get("Content-Type", "unknown type")
        raise DownloadError(
            f"the server offers {start + int(length):,} bytes ({kind}), expected {file.size:,}"
        )
    return start


def _copy(response: requests.Response, file: PinnedFile, start: int, out: BinaryIO) -> int:
    """Append the answer to `out`, one chunk more than the file may have at most; how many bytes."""
    copied = 0
    with tqdm(
        total=file.size, initial=start, unit="B", unit_scale=True, desc=file.name, disable=None
    ) as bar:
        for chunk in response.iter_content(CHUNK):
            copied += out.write(chunk)
            bar.update(len(chunk))
            if start + copied > _most(file):
                break
    out.flush()
    os.fsync(out.fileno())  # here, where it takes long, it can be interrupted
    return copied


def _most(file: PinnedFile) -> int:
    return file.most if file.size is None else file.size


def _open(url: str, headers: dict[str, str], allowed: Collection[str]) -> requests.Response:
    """The server's answer, after redirects; each address is checked before it is asked."""
    for _ in range(MOST_REDIRECTS + 1):
        parts = urlsplit(url)
        if f"{parts.scheme}://{parts.netloc}" not in allowed:
            raise DownloadError(f"{url} is on none of the servers {', '.join(allowed)}")
        try:
            response = requests.get(
                url, headers=headers, stream=True, timeout=TIMEOUTS, allow_redirects=False
            )
            if not response.is_redirect:
                return response
            response.close()
            url = urljoin(url, response.headers["Location"])
        except ValueError as error:  # requests parses the next address too
            raise DownloadError(f"{url} redirects to no address: {error}") from None
    raise DownloadError(f"more than {MOST_REDIRECTS} redirects")


def _continues(response: requests.Response, file: PinnedFile, done: int) -> bool:
    """Is this the rest of the file from byte `done` on?"""
    span, _, total = response.headers.get("Content-Range", "").partition("/")
    right_total = file.size is None or total in ("*", str(file.size))
    return span.startswith(f"bytes {done}-") and right_total


def _version(response: requests.Response) -> str:
    """What If-Range takes to name this version of the file; empty if the server names none."""
    etag = response.headers.get("ETag", "")
    return etag if etag.startswith('"') else response.headers.get("Last-Modified", "")
