"""Locks, held by real processes, some of which are killed."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from filelock import FileLock
from folders import read_only_folder
from said import listen

from gpt2_from_scratch.errors import ResourceError, UsageError
from gpt2_from_scratch.storage.files import locked

HOLD = """
import sys
from pathlib import Path
from gpt2_from_scratch.storage.files import locked
with locked(Path(sys.argv[1]), wait=True, say=print):
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
        with locked(lock, wait=False, say=print):
            value = int(number.read_text())
            time.sleep(0.0002)
            number.write_text(str(value + 1))
            left -= 1
    except UsageError:
        pass  # again at once, so that locks are opened at every moment of another's release
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
    """A process that holds the lock until it is told a line."""
    with start(HOLD, lock) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_it_leaves_nothing_behind(lock):
    said = listen()
    for _ in range(2):
        with locked(lock, wait=False):
            assert lock.exists()
        assert not lock.exists()
    assert said == []


def test_the_file_is_removed_while_it_is_held(lock, monkeypatch):
    """Removed after the release, it might be the file that another process holds by then."""
    there: list[bool] = []
    release = FileLock.release

    def look_and_release(self, *arguments, **more):
        there.append(lock.exists())
        release(self, *arguments, **more)

    monkeypatch.setattr(FileLock, "release", look_and_release)
    with locked(lock, wait=False):
        pass
    assert there[0] is False


def test_an_error_frees_it(lock):
    with pytest.raises(ZeroDivisionError), locked(lock, wait=False):
        1 / 0  # noqa: B018
    with locked(lock, wait=False):
        pass
    assert not lock.exists()


def test_who_does_not_wait_is_told(lock, holder, tmp_path):
    with pytest.raises(UsageError, match=f"another process is at work in {tmp_path}; "):
        with locked(lock, wait=False):
            pytest.fail("two hold it")
    assert lock.exists()


def test_who_waits_is_told_once_and_gets_it(lock, holder, tmp_path):
    said = listen()
    timer = threading.Timer(0.3, lambda: holder.communicate("go on\n"))
    timer.start()
    with locked(lock, wait=True):
        timer.join()
        assert holder.returncode == 0
    assert said == [f"another process is at work in {tmp_path}; waiting for it to end"]


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is not known there")
def test_a_killed_holder_holds_nothing(lock, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert lock.exists()
    with locked(lock, wait=False):
        pass
    assert not lock.exists()


def test_threads_exclude_each_other_too(lock):
    with locked(lock, wait=True):
        errors: list[Exception] = []

        def enter() -> None:
            try:
                with locked(lock, wait=False):
                    pass
            except UsageError as error:
                errors.append(error)

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        assert len(errors) == 1


def test_no_two_processes_hold_it_though_the_file_comes_and_goes(lock, tmp_path):
    """Each adds 300 to a number; an addition that overlaps another is lost."""
    number = tmp_path / "number"
    number.write_text("0")
    processes = [start(COUNT, lock, number, 300) for _ in range(4)]
    for process in processes:
        process.communicate()
        assert process.returncode == 0
    assert number.read_text() == "1200"
    assert not lock.exists()


def test_no_folder_to_make_it_in(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="lock cannot be made"):
        with locked(tmp_path / "file" / ".a.lock", wait=True):
            pass


def test_a_folder_that_cannot_be_written():
    with read_only_folder() as folder:
        with pytest.raises(ResourceError, match="Permission denied"):
            with locked(folder / ".a.lock", wait=True):
                pass
