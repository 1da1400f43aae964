"""Files appear whole or not at all."""

import hashlib
import json
import os
import stat
import subprocess
import sys

import pytest

from gpt2_from_scratch.errors import ResourceError
from gpt2_from_scratch.storage.files import atomic_path, sha256_of, sweep, write_json, write_text

POSIX = pytest.mark.skipif(
    os.name == "nt", reason="permissions, limits, open files: as POSIX has them"
)


def test_the_file_appears_when_the_block_ends(tmp_path):
    path = tmp_path / "new" / "folders" / "file.bin"
    with atomic_path(path) as temporary:
        temporary.write_bytes(b"half")
        assert temporary.parent.parent == path.parent  # else the rename could not be atomic
        assert not path.exists()
        with temporary.open("ab") as file:
            file.write(b" and half")
    assert path.read_bytes() == b"half and half"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_the_old_file_stands_when_the_block_raises(tmp_path, error):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(error), atomic_path(path) as temporary:
        temporary.write_text("new, but not whole")
        raise error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_no_file_comes_of_a_block_that_raises(tmp_path):
    with pytest.raises(ValueError), atomic_path(tmp_path / "file.txt") as temporary:
        temporary.write_text("x")
        raise ValueError
    assert not list(tmp_path.iterdir())


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
@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002, 0o027])
def test_permissions_are_those_of_any_new_file(tmp_path, mask):
    before = os.umask(mask)
    try:
        write_text(tmp_path / "ours", "x")
        (tmp_path / "any").write_text("x")
        assert os.umask(mask) == mask
    finally:
        os.umask(before)
    ours, any_other = (stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("ours", "any"))
    assert ours == any_other == 0o666 & ~mask


@pytest.mark.parametrize("text", ["", "a\nb\n", "a\r\nb\rc", "Grüße 😀\u2028\x00", "\ufeffmark"])
def test_text_is_written_as_it_is(tmp_path, text):
    write_text(tmp_path / "file.txt", text)
    assert (tmp_path / "file.txt").read_bytes() == text.encode()


def test_text_that_cannot_be_written_leaves_the_old(tmp_path):
    write_text(tmp_path / "file.txt", "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "file.txt", "half a character: \ud800")
    assert (tmp_path / "file.txt").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_json_comes_back(tmp_path):
    value = {"a": [1, 2.5, None, True], "ü": {"nested": "😀\n"}}
    write_json(tmp_path / "file.json", value)
    text = (tmp_path / "file.json").read_text(encoding="utf-8")
    assert json.loads(text) == value
    assert text.endswith("}\n") and '  "a": [' in text and "ü" in text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [1, {"x": float("-inf")}], {1, 2}])
def test_what_is_no_json_leaves_the_old(tmp_path, value):
    write_json(tmp_path / "file.json", "old")
    with pytest.raises((ValueError, TypeError)):
        write_json(tmp_path / "file.json", value)
    assert json.loads((tmp_path / "file.json").read_text()) == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_sha256(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    # FIPS 180-2, appendix B.1
    published = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_of(tmp_path / "abc") == published
    raw = os.urandom(300_000)
    (tmp_path / "more").write_bytes(raw)
    assert sha256_of(tmp_path / "more") == hashlib.sha256(raw).hexdigest()


FULL_DISK = """
import errno, resource, signal, sys
from pathlib import Path
from gpt2_from_scratch.errors import ResourceError
from gpt2_from_scratch.storage.files import write_text

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then the write itself fails, as on a full disk
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    write_text(Path(sys.argv[1]), "new" * 100_000)
except ResourceError as error:
    print(errno.errorcode[error.__cause__.errno])
"""


@POSIX
def test_a_file_too_large_for_the_disk_leaves_the_old(tmp_path):
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
def test_a_killed_writer_leaves_the_old(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    found = subprocess.run([sys.executable, "-c", KILLED, path], timeout=60)
    assert found.returncode == -9
    assert path.read_text() == "old"
    (left,) = set(tmp_path.iterdir()) - {path}
    assert [other.name for other in left.iterdir()] == ["file.txt"]
    sweep(tmp_path, older_than=3600)
    assert left.exists()  # its writer may still be at it
    sweep(tmp_path)
    assert list(tmp_path.iterdir()) == [path]
