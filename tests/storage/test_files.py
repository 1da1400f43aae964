"""Tests of atomic writes, reading with limits, checksums, manifests and locks."""

import json
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from filelock import FileLock
from folders import read_only_folder
from said import listen

from gpt2_from_scratch.errors import CheckpointError, ResourceError, UsageError
from gpt2_from_scratch.storage import files
from gpt2_from_scratch.storage.files import (
    MANIFEST,
    SUMS,
    and_is,
    atomic_path,
    check_listed,
    check_sums,
    is_complete,
    locked,
    parse_json,
    read_json,
    read_manifest,
    read_sums,
    sha256_of,
    sweep,
    write_json,
    write_manifest,
    write_text,
)

POSIX = pytest.mark.skipif(os.name == "nt", reason="needs POSIX permissions, limits and open files")
ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1


# --- atomic writes ---


def test_the_file_appears_when_the_block_ends(tmp_path):
    path = tmp_path / "new" / "folders" / "file.bin"
    with atomic_path(path) as temporary:
        temporary.write_bytes(b"half")
        # a rename is atomic only within one file system
        assert temporary.parent.parent == path.parent
        assert not path.exists()
        with temporary.open("ab") as file:
            file.write(b" and half")
    assert path.read_bytes() == b"half and half"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_the_old_file_stays_if_the_block_raises(tmp_path, error):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(error), atomic_path(path) as temporary:
        temporary.write_text("new, but incompl")
        raise error
    assert path.read_text() == "old"
    with pytest.raises(error), atomic_path(tmp_path / "other.txt"):
        raise error
    assert list(tmp_path.iterdir()) == [path]


@POSIX
def test_readers_see_the_old_file_or_the_new_one(tmp_path):
    path = tmp_path / "file.txt"
    write_text(path, "old")
    with path.open() as early:
        with atomic_path(path) as temporary:
            temporary.write_text("new")
            assert path.read_text() == "old"
        assert early.read() == "old" and path.read_text() == "new"


def test_two_writers_do_not_share_a_temporary_file(tmp_path):
    path = tmp_path / "file.txt"
    with atomic_path(path) as first, atomic_path(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"  # the outer block ends last
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_in_the_way(tmp_path):
    (tmp_path / "file.txt").mkdir()
    with pytest.raises(ResourceError, match="file.txt could not be written"):
        write_text(tmp_path / "file.txt", "x")
    assert [path.name for path in tmp_path.iterdir()] == ["file.txt"]


@POSIX
@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_permissions_are_those_of_any_new_file(tmp_path, mask):
    before = os.umask(mask)
    try:
        write_text(tmp_path / "ours", "x")
        assert os.umask(mask) == mask
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == 0o666 & ~mask


@pytest.mark.parametrize("text", ["", "a\r\nb\rc\n", "Grüße 😀\u2028\x00", "\ufeffmark"])
def test_text_is_written_as_it_is(tmp_path, text):
    write_text(tmp_path / "file.txt", text)
    assert (tmp_path / "file.txt").read_bytes() == text.encode()


def test_json_is_read_back_and_an_invalid_value_leaves_the_old_file(tmp_path):
    path, value = tmp_path / "file.json", {"a": [1, 2.5, None, True], "ü": {"nested": "😀\n"}}
    write_json(path, value)
    text = path.read_text(encoding="utf-8")
    assert json.loads(text) == read_json(path) == value
    assert text.endswith("}\n") and '  "a": [' in text and "ü" in text
    for wrong in (float("nan"), [1, {"x": float("-inf")}], {1, 2}):
        with pytest.raises((ValueError, TypeError)):
            write_json(path, wrong)
    assert path.read_text(encoding="utf-8") == text
    assert list(tmp_path.iterdir()) == [path]


def test_a_name_that_is_not_utf8_survives_in_json(tmp_path):
    name = os.fsdecode(b"caf\xe9.csv")
    write_json(tmp_path / "file.json", {name: [name, "é"]})
    assert read_json(tmp_path / "file.json") == {name: [name, "é"]}
    assert (tmp_path / "file.json").read_bytes().count(rb"caf\udce9.csv") == 2


FULL_DISK = """
import errno, resource, signal, sys
from pathlib import Path
from gpt2_from_scratch.errors import ResourceError
from gpt2_from_scratch.storage.files import write_text

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # makes the write itself fail, as on a full disk
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    write_text(Path(sys.argv[1]), "new" * 100_000)
except ResourceError as error:
    print(errno.errorcode[error.__cause__.errno])
"""


@POSIX
def test_a_file_too_large_for_the_disk_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    found = subprocess.run(
        [sys.executable, "-c", FULL_DISK, path], capture_output=True, text=True, timeout=60
    )
    assert (found.stdout, found.stderr, found.returncode) == ("EFBIG\n", "", 0)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


KILLED = """
import os, signal, sys
from pathlib import Path
from gpt2_from_scratch.storage.files import atomic_path

with atomic_path(Path(sys.argv[1])) as temporary:
    temporary.write_text("new, but not wh")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@POSIX
def test_a_killed_writer_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    found = subprocess.run([sys.executable, "-c", KILLED, path], timeout=60)
    assert found.returncode == -9
    assert path.read_text() == "old"
    (leftover,) = set(tmp_path.iterdir()) - {path}
    assert [other.name for other in leftover.iterdir()] == ["file.txt"]
    sweep(tmp_path, older_than=3600)
    assert leftover.exists()  # the process that created it might still be running
    sweep(tmp_path)
    assert list(tmp_path.iterdir()) == [path]


# --- reading with limits ---


@pytest.mark.parametrize(
    ("raw", "fact"),
    [
        (b"", "is empty"),
        (b"[1]", r"object.*\[1\]"),
        (b"\xff", "utf-8"),
        (b'{"a": 1, "a": 2}', "'a'"),
        (b'{"a": NaN}', "NaN"),
        (b"[" * 200_000, "nested more than"),
        (b"\n <!DOCTYPE html>", "web page"),
        (b'"' + b"x" * 100 + b'"', "more than 90 bytes"),
    ],
    ids=range(8),
)
def test_json_that_is_refused(tmp_path, monkeypatch, raw, fact):
    path = tmp_path / "file.json"
    path.write_bytes(raw)
    if b"xxx" in raw:
        monkeypatch.setattr(files, "LARGEST_JSON", 90)
    with pytest.raises(CheckpointError, match=f"{path}.*{fact}"):
        read_json(path)


def test_files_that_are_missing_or_never_end(tmp_path):
    with pytest.raises(CheckpointError, match="none.json is missing"):
        read_json(tmp_path / "none.json")
    for path in (tmp_path, Path("/dev/zero")):
        if path.exists():
            with pytest.raises(CheckpointError, match=f"{path} cannot be read: .*regular"):
                read_json(path)


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "git-LFS"),
        (b"\xef\xbb\xbf<?xml", "web page"),
        (b"PK\x03\x04", "zip"),
        (b"\x80\x04\x95", "pickle"),
        (b"PAR1", "Parquet"),
    ],
)
def test_kinds_of_files_are_named(head, kind):
    assert kind in and_is(head)
    assert and_is(b"ham\tsee you") == ""


# --- checksums and manifests ---


def test_sha256(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_of(tmp_path / "abc") == ABC


def test_sums_are_those_of_sha256sum(tmp_path):
    assert read_sums(tmp_path) == {}
    (tmp_path / "abc").write_bytes(b"abc")
    (tmp_path / SUMS).write_text(f"{ABC}  abc\n{'0' * 64} *other\n")
    assert read_sums(tmp_path) == {"abc": ABC, "other": "0" * 64}
    check_sums(tmp_path, ["abc", "other", "not listed"])  # a missing file is not an error
    (tmp_path / "abc").write_bytes(b"abd")
    with pytest.raises(
        CheckpointError, match=f"abc has sha256 {sha256_of(tmp_path / 'abc')}.*{ABC}"
    ):
        check_sums(tmp_path, ["abc"])


@pytest.mark.parametrize(
    "text",
    [
        "",
        f"{ABC}  abc",
        f"{ABC} abc\n",
        f"{ABC.upper()}  abc\n",
        f"{ABC[1:]}  abc\n",
        f"{ABC}  ../abc\n",
        f"{ABC}  äbc\n",
    ],
)
def test_sums_that_are_refused(tmp_path, text):
    (tmp_path / SUMS).write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=str(tmp_path / SUMS)):
        read_sums(tmp_path)


def test_a_manifest_shows_what_changed(tmp_path):
    for name in ("abc", "Thumbs.db", ".lock"):
        (tmp_path / name).write_bytes(b"abc")
    (tmp_path / "folder").mkdir()
    check_listed(tmp_path / "whatever")  # the run has not finished
    assert not is_complete(tmp_path)
    for _ in range(2):
        write_manifest(tmp_path, ["folder", "missing", "abc"])
        assert is_complete(tmp_path) and read_manifest(tmp_path) == {"abc": ABC}
    check_listed(tmp_path / "abc")
    (tmp_path / "new").write_text("")
    with pytest.raises(CheckpointError, match="new is not in MANIFEST.json"):
        check_listed(tmp_path / "new")
    (tmp_path / "abc").write_bytes(b"abd")
    with pytest.raises(CheckpointError, match="abc .*changed"):
        check_listed(tmp_path / "abc")
    (tmp_path / "abc").unlink()
    with pytest.raises(CheckpointError, match="abc is missing"):
        check_listed(tmp_path / "abc")


@pytest.mark.parametrize(
    "value", [{}, {"sha256": [1]}, {"sha256": {"a": 1}}, {"sha256": {"../a": ""}}]
)
def test_manifests_that_are_refused(tmp_path, value):
    write_json(tmp_path / MANIFEST, value)
    with pytest.raises(CheckpointError, match=MANIFEST):
        read_manifest(tmp_path)


# --- locks, held by real processes ---

HOLD = """
import sys
from pathlib import Path
from gpt2_from_scratch.storage.files import locked
with locked(Path(sys.argv[1]), wait=True):
    print("held", flush=True)
    sys.stdin.readline()
"""
COUNT = """
import sys, time
from pathlib import Path
from gpt2_from_scratch.errors import UsageError
from gpt2_from_scratch.storage.files import locked
lock, number, left = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
while left:
    try:
        with locked(lock, wait=False):
            value = int(number.read_text())
            time.sleep(0.0002)
            number.write_text(str(value + 1))
            left -= 1
    except UsageError:
        pass  # tries again immediately, to hit every moment of another process's release
"""


def start(code: str, *arguments: object) -> subprocess.Popen:
    pipe = subprocess.PIPE
    words = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True)


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    return tmp_path / ".a.lock"


@pytest.fixture
def holder(lock: Path):
    """A process that holds the lock until it reads a line."""
    with start(HOLD, lock) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_lock_leaves_no_file(lock):
    lines = listen()
    for _ in range(2):
        with locked(lock, wait=False):
            assert lock.exists()
        assert not lock.exists()
    with pytest.raises(ZeroDivisionError), locked(lock, wait=False):
        1 / 0  # noqa: B018
    assert not lock.exists() and lines == []


def test_the_lock_file_is_removed_while_it_is_held(lock, monkeypatch):
    """If the file were removed after the release, another process might already hold it."""
    there: list[bool] = []
    release = FileLock.release

    def look_and_release(self, *arguments, **more):
        there.append(lock.exists())
        release(self, *arguments, **more)

    monkeypatch.setattr(FileLock, "release", look_and_release)
    with locked(lock, wait=False):
        pass
    assert there[0] is False


def test_without_waiting_a_held_lock_is_an_error(lock, holder, tmp_path):
    with pytest.raises(UsageError, match=str(tmp_path)), locked(lock, wait=False):
        pytest.fail("two processes hold the lock")
    assert lock.exists()


def test_waiting_is_logged_once(lock, holder, tmp_path):
    lines, holder_is_polled = listen(), threading.Event()

    def hold_until_somebody_waits() -> None:
        while not lines:
            holder_is_polled.wait(0.01)
        holder.communicate("end\n")

    thread = threading.Thread(target=hold_until_somebody_waits)
    thread.start()
    with locked(lock, wait=True):
        thread.join()
        assert holder.returncode == 0
    assert len(lines) == 1 and str(tmp_path) in lines[0]


@POSIX
def test_the_lock_of_a_killed_process_is_free(lock, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert lock.exists()
    with locked(lock, wait=False):
        pass
    assert not lock.exists()


def test_threads_exclude_each_other_too(lock):
    errors: list[Exception] = []

    def enter() -> None:
        try:
            with locked(lock, wait=False):
                pass
        except UsageError as error:
            errors.append(error)

    with locked(lock, wait=True):
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
    assert len(errors) == 1


@pytest.mark.slow
def test_no_two_processes_hold_a_lock_while_its_file_is_removed_and_created(lock, tmp_path):
    """Four processes each add 1 to a number 100 times; overlapping additions would be lost."""
    number = tmp_path / "number"
    number.write_text("0")
    processes = [start(COUNT, lock, number, 100) for _ in range(4)]
    for process in processes:
        process.communicate()
        assert process.returncode == 0
    assert number.read_text() == "400"
    assert not lock.exists()


def test_a_lock_file_that_cannot_be_created(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match=r"\.a\.lock"):
        with locked(tmp_path / "file" / ".a.lock", wait=True):
            pass
    with read_only_folder() as folder, pytest.raises(ResourceError, match="Permission denied"):
        with locked(folder / ".a.lock", wait=True):
            pass


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("[" * 990 + "]" * 990, "50 levels deep"),
        ('{"a":' * 60 + "1" + "}" * 60, "50 levels deep"),
        ("[" * 100_000, "50 levels deep"),
        ('{"a": [1, {"b": 10000000000000000000}]}', "does not fit in 64 bits"),
        ("[1e999]", "does not fit in 64 bits"),
        ("9" * 5000, "digits"),
        ('{"a": 1, "a": 2}', "twice"),
        ("[NaN]", "NaN"),
        ("", "line 1"),
    ],
)
def test_untrusted_json_is_bounded(text, fact):
    with pytest.raises(ValueError, match=fact):
        parse_json(text)


def test_json_within_the_bounds_is_read():
    value = [{"a": [2**63 - 1, -(2**63), 1e308, True, None, "x"]}, [[[[]]]]]
    assert parse_json(json.dumps(value)) == value
