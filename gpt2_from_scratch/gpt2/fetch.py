"""One file from the network to its place: whole and checked, or not at all.

What arrives is kept beside the target in `<name>.part`, and in `<name>.part.json` where it came
from and which version of the file it was. An interrupted transfer goes on from there, in this run
or the next one; the server is asked to send the rest only if its file is still that version
(If-Range). A mirror that takes over begins anew, and only its first bytes replace the others'.

Only a file that passed every check gets its name, so what has its name is whole, unless somebody
else put it there: a wrong one becomes `<name>.bad` when the right one has come.

Only servers on a list are asked, over https, redirects included. One process at a time works on
one target.
"""

import glob
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import requests

from gpt2_from_scratch.errors import DownloadError, GPT2Error, ResourceError
from gpt2_from_scratch.gpt2.https import POLITE, Manners, continues, encoded, open_url, version
from gpt2_from_scratch.gpt2.part import Part
from gpt2_from_scratch.gpt2.pinned import PinnedFile
from gpt2_from_scratch.progress import progress_bar
from gpt2_from_scratch.storage.files import locked

log = logging.getLogger(__name__)

CHUNK = 1 << 14  # bytes; less than this is lost when a transfer breaks off
PROGRESS = 1 << 20  # bytes that count as some
OFFLINE = "GPT2_FROM_SCRATCH_OFFLINE"  # set to 1, it forbids every request
HOME_HINT = "to keep such files in another folder, set GPT2_FROM_SCRATCH_HOME to it"

Check = Callable[[Path], None]
Say = Callable[[str], None]


class _TryAgain(Exception):
    """A fault that may pass: the same address is asked again."""


def to_stderr(line: str) -> None:
    """Tell the user; standard output is left to results."""
    print(line, file=sys.stderr)


def fetch(
    file: PinnedFile, target: Path, check: Check = lambda path: None, manners: Manners = POLITE
) -> Path:
    """Bring `file` to `target`; if it is there and right, nothing is asked and nothing written.

    `check` may raise a GPT2Error for a file that is wrong in other ways than size and hashes can
    tell. Raises DownloadError that says how to get the file by other means, and ResourceError when
    it cannot be written; what has come by then is kept for the next time.
    """
    with storing(target):
        if not (fault := _fault(file, target, check)):
            return target
        if os.environ.get(OFFLINE, "") not in ("", "0"):
            raise _failure(file, target, [fault, f"{OFFLINE} is set"])
        with alone_at(target):
            # another process may have brought it meanwhile
            if fault := _fault(file, target, check):
                _sweep(target)
                _complete(file, Part(target), check, manners, fault)
                set_aside(target)
                Part(target).become_target()
    return target


@contextmanager
def storing(target: Path) -> Iterator[None]:
    """Make a ResourceError of this machine's errors that tells how to choose another folder."""
    try:
        yield
    except (OSError, ResourceError) as error:
        if HOME_HINT in str(error):
            raise
        what = error.strerror if isinstance(error, OSError) else None
        raise ResourceError(
            f"{target} could not be stored: {what or error}; {HOME_HINT}"
        ) from error


@contextmanager
def alone_at(target: Path) -> Iterator[None]:
    """Make the folder of `target` and keep other processes from working on `target`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with locked(target.with_name(f".{target.name}.lock"), wait=True):
        yield


def set_aside(target: Path) -> None:
    """Rename a wrong file in the place of the right one; it may be somebody's work."""
    if target.exists():
        os.replace(target, target.with_name(f"{target.name}.bad"))
        log.warning(f"{target} was not what it should be; it is now {target.name}.bad")


def _sweep(target: Path) -> None:
    """Remove the temporary folders of `target` and its note that killed processes left."""
    for name in (target.name, Part(target).note.name):
        # eight characters, as tempfile makes them: "a" is not to sweep for its neighbour "a.bin"
        for left in target.parent.glob(f".{glob.escape(name)}.????????.tmp"):
            shutil.rmtree(left, ignore_errors=True)


def _fault(file: PinnedFile, path: Path, check: Check) -> str:
    """What is wrong with the file at `path`; empty if it is there and right."""
    if not path.exists():
        return f"there is no {path}"
    difference = file.difference(path)
    faults = [f"{path} {difference}"] if difference else []
    if file.size in (None, path.stat().st_size):
        try:  # also after a difference: it may name what is damaged
            check(path)
        except ResourceError:
            raise
        except GPT2Error as error:
            faults.append(str(error))
    return "; ".join(faults)


def _failure(file: PinnedFile, target: Path, reasons: list[str]) -> DownloadError:
    lines = [
        f"{target.name} could not be fetched:",
        *reasons,
        f"To get it by other means: put it at {target} ({file.facts()}). It is at",
        *file.urls,
    ]
    return DownloadError("\n  ".join(lines))


def _complete(file: PinnedFile, part: Part, check: Check, manners: Manners, fault: str) -> None:
    """Complete `part` from the first address that has the right file. Raises DownloadError."""
    begun = part.state().url
    reasons = [fault]
    for url in sorted(file.urls, key=lambda url: url != begun):
        try:
            return _receive(url, file, part, check, manners)
        except DownloadError as error:
            reasons.append(f"{url}: {error}")
    if not part.state().done:  # a version without a name: nothing can go on from it
        part.discard()
    raise _failure(file, part.target, reasons)


def _receive(url: str, file: PinnedFile, part: Part, check: Check, manners: Manners) -> None:
    """Complete `part` from one address and check it; a wrong one is removed.

    Raises DownloadError.
    """
    failures, best = 0, 0
    while True:
        before = part.state()
        try:
            _transfer(url, file, part, manners)
        except (_TryAgain, requests.RequestException) as error:
            reason = str(error)
        else:
            if not (reason := _fault(file, part.path, check)):
                return
            part.discard()
            went_on = before.url == url and before.done
            if not went_on:  # else its old beginning may be what is wrong
                raise DownloadError(reason)
        done = part.state().done
        failures, best = (1, done) if done >= best + PROGRESS else (failures + 1, best)
        if failures >= manners.attempts:
            raise DownloadError(f"{reason} (attempt {failures})")
        time.sleep(manners.pause * 2 ** (failures - 1))


def _transfer(url: str, file: PinnedFile, part: Part, manners: Manners) -> None:
    """One request: the whole file, or the rest of it, into `part`."""
    before = part.state()
    done = before.done if before.url == url else 0
    if done and done == file.size:
        return
    headers = {"Accept-Encoding": "identity", "User-Agent": "gpt2-from-scratch"}
    if done:
        headers |= {"Range": f"bytes={done}-", "If-Range": before.version}
    with open_url(url, headers, manners) as response:
        start = _start(response, file, part, done)
        with part.open(start, url, version(response)) as out:
            done = start + _copy(response, file, start, out)
    if done > _most(file):
        part.discard()
        raise DownloadError(f"more than {_most(file):,} bytes came")
    if file.size is not None and done < file.size:
        raise _TryAgain(f"cut off after {done:,} of {file.size:,} bytes")


def _start(response: requests.Response, file: PinnedFile, part: Part, done: int) -> int:
    """Where in the file the answer begins: at `done`, or at 0. Raises for any other answer."""
    status = response.status_code
    if status == 416 or (status == 206 and not continues(response, file.size, done)):
        part.discard()
        raise _TryAgain(f"the server does not go on at byte {done:,}")
    if status not in (200, 206):
        passing = status in (408, 425, 429) or status >= 500
        raise (_TryAgain if passing else DownloadError)(
            f"the server answers {status} {response.reason}"
        )
    start = done if status == 206 else 0
    length = response.headers.get("Content-Length", "")
    if file.size is None or encoded(response) or not length.isdecimal():
        return start
    offered = start + int(length[:20])
    if offered != file.size:
        kind = response.headers.get("Content-Type", "unknown type")
        raise DownloadError(f"the server offers {offered:,} bytes ({kind}), expected {file.size:,}")
    return start


def _copy(response: requests.Response, file: PinnedFile, start: int, out: BinaryIO) -> int:
    """Append the answer to `out`, one chunk more than the file may have at most; how many bytes."""
    copied = 0
    with progress_bar(
        total=file.size, initial=start, unit="B", unit_scale=True, desc=file.name
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
