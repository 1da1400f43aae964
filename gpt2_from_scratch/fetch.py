"""One file from the network to its place: whole and checked, or not at all.

What arrives is kept beside the target in `<name>.part`, and in `<name>.part.json` where it came from
and which version of the file it was. An interrupted transfer goes on from there, in this run or the
next one; the server is asked to send the rest only if its file is still that version (If-Range).
Only a file that passed every check gets its name, so a file that has its name is whole.

Only servers on a list are asked, over https, redirects included.
"""

import json
import os
import time
from collections.abc import Callable, Collection
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import requests
from tqdm import tqdm

from gpt2_from_scratch.errors import DownloadError, GPT2Error
from gpt2_from_scratch.files import atomic_path, write_json
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
CHUNK = 1 << 18  # bytes
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

    `check` may raise a GPT2Error for a file that is wrong in other ways than size and hashes can tell.
    `allowed` are the servers, such as "https://host"; `pause` the seconds before the second attempt,
    doubled each time. Raises DownloadError that says how to get the file by other means.
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
            part = target.with_name(f"{target.name}.part")
            begun, _, _ = _begun(part)
            for url in sorted(file.urls, key=lambda url: url != begun):
                try:
                    _receive(url, file, part, check, allowed, pause)
                    with atomic_path(target) as temporary:
                        os.replace(part, temporary)
                    _discard(part)
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
    part: Path,
    check: Callable[[Path], None],
    allowed: Collection[str],
    pause: float,
) -> None:
    """Complete `part` from one address and check it; a wrong one is removed. Raises GPT2Error."""
    failures, best = 0, 0
    while True:
        begun, _, resumed = _begun(part)
        try:
            _transfer(url, file, part, allowed)
        except (_TryAgain, requests.RequestException) as error:
            reason = str(error)
        else:
            try:
                _checked(file, part, check)
                return
            except GPT2Error as error:
                _discard(part)
                if not (resumed and begun == url):  # else its old beginning may be what is wrong
                    raise
                reason = str(error)
        done = _begun(part)[2]
        failures, best = (1, done) if done >= best + PROGRESS else (failures + 1, best)
        if failures >= ATTEMPTS:
            raise DownloadError(f"{reason} (attempt {failures})")
        time.sleep(pause * 2 ** (failures - 1))


def _transfer(url: str, file: PinnedFile, part: Path, allowed: Collection[str]) -> None:
    """One request: the whole file, or the rest of it, into `part`."""
    begun, version, done = _begun(part)
    headers = {"Accept-Encoding": "identity", "User-Agent": "gpt2-from-scratch"}
    if begun != url or not done:
        done = 0
    elif done == file.size:
        return
    else:
        headers |= {"Range": f"bytes={done}-", "If-Range": version}
    most = file.most if file.size is None else file.size
    with _open(url, headers, allowed) as response:
        status = response.status_code
        if status == 416 or (status == 206 and not _continues(response, file, done)):
            _discard(part)
            raise _TryAgain(f"the server does not go on at byte {done:,}")
        if status in (408, 425, 429) or status >= 500:
            raise _TryAgain(f"the server answers {status} {response.reason}")
        if status not in (200, 206):
            raise DownloadError(f"the server answers {status} {response.reason}")
        done = done if status == 206 else 0
        length = response.headers.get("Content-Length", "")
        if file.size is not None and length.isdecimal() and done + int(length) != file.size:
            kind = response.headers.get("Content-Type", "unknown type")
            raise DownloadError(
                f"the server offers {done + int(length):,} bytes ({kind}), expected {file.size:,}"
            )
        with part.open("ab" if done else "wb") as out:
            if not done:  # after the old bytes are gone, so that they never pass for this version
                write_json(_note(part), {"url": url, "version": _version(response)})
            with tqdm(
                total=file.size,
                initial=done,
                unit="B",
                unit_scale=True,
                desc=file.name,
                disable=None,
            ) as bar:
                for chunk in response.iter_content(CHUNK):
                    done += out.write(chunk)
                    bar.update(len(chunk))
                    if done > most:
                        _discard(part)
                        raise DownloadError(f"more than {most:,} bytes came")
    if file.size is not None and done < file.size:
        raise _TryAgain(f"cut off after {done:,} of {file.size:,} bytes")


def _open(url: str, headers: dict[str, str], allowed: Collection[str]) -> requests.Response:
    """The server's answer, after redirects; each address is checked before it is asked."""
    for _ in range(MOST_REDIRECTS + 1):
        try:
            parts = urlsplit(url)
        except ValueError as error:
            raise DownloadError(f"{url!r} is no address: {error}") from None
        if f"{parts.scheme}://{parts.netloc}" not in allowed:
            raise DownloadError(f"{url} is on none of the servers {', '.join(allowed)}")
        response = requests.get(
            url, headers=headers, stream=True, timeout=TIMEOUTS, allow_redirects=False
        )
        if not response.is_redirect:
            return response
        response.close()
        url = urljoin(url, response.headers["Location"])
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


def _begun(part: Path) -> tuple[str, str, int]:
    """Address, version and number of bytes of an unfinished transfer; ("", "", 0) if there is none."""
    try:
        note = json.loads(_note(part).read_text(encoding="utf-8"))
        url, version, done = note["url"], note["version"], part.stat().st_size
    except (OSError, ValueError, LookupError, TypeError):
        return "", "", 0
    usable = isinstance(url, str) and isinstance(version, str) and version
    return (url, version, done) if usable else ("", "", 0)


def _note(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _note(part).unlink(missing_ok=True)
