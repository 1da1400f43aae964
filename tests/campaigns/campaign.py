"""Common code of the long campaigns: each runs COUNT trials from a SEED, in its own process.

A campaign needs its own process because forks require one without threads.
`python tests/campaigns/NAME_campaign.py 300 1` prints its progress and, in its last line, its
counts as JSON. Processes are stopped at the n-th change of a file, or at a byte of it, but never
after a time. A seed therefore tries the same things on a slow machine.
"""

import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

Counts = dict[str, int]
CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "campaign.fsync"}
DEATHS = (
    -signal.SIGKILL,
    -signal.SIGXFSZ,
)  # exit codes of children ended by `die` or `die_at_byte`
HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))  # the folder with helpers for several rooms


def run(name: str, count: int, seed: int, say: Callable[[str], None] = print) -> Counts:
    """Run `NAME_campaign.py` and return its counts; AssertionError if it found a fault."""
    words = [sys.executable, str(HERE / f"{name}_campaign.py"), str(count), str(seed)]
    settings = os.environ | {"OMP_NUM_THREADS": "1"}
    line = "{}"
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=settings) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if not line.startswith("{"):
                say(line.rstrip("\n"))
    assert process.returncode == 0, f"{name}: the campaign ended with {process.returncode}"
    return json.loads(line)


def main(campaign: Callable[[int, int, Path], Counts]) -> None:
    """The command line of a campaign, which gets an empty folder."""
    folder, begun = Path(tempfile.mkdtemp(prefix="campaign.")), time.monotonic()
    try:
        counts = dict(campaign(int(sys.argv[1]), int(sys.argv[2]), folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(counts | {"seconds": round(time.monotonic() - begun)}))


class Progress:
    """Prints the progress from time to time."""

    def __init__(self, total: int, what: str):
        self.total, self.what = total, what
        self.begun = self.reported = time.monotonic()

    def __call__(self, done: int) -> None:
        now = time.monotonic()
        if now - self.reported > 20:
            self.reported = now
            print(f"{done:,} of {self.total:,} {self.what}, {now - self.begun:.0f} s", flush=True)


def fork(work: Callable[[], None]) -> int:
    """Run the work in a child, which exits with 0, with its error's exit code, 130 or 99."""
    sys.stdout.flush()
    if child := os.fork():
        return child
    try:
        work()
        os._exit(0)
    except KeyboardInterrupt:
        os._exit(130)  # the command's exit code
    except BaseException as error:
        if not hasattr(error, "exit_code"):
            print(f"in a child: {error!r}", file=sys.stderr)
        os._exit(getattr(error, "exit_code", 99))


def end_of(child: int) -> int:
    """Wait for a child; return its exit code, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# --- in a child ---


def at_change(number: int, action: Callable[[], None]) -> Callable[[], int]:
    """Call `action` just before this process changes a file or folder for the n-th time; 0: never.

    A change is a file opened for writing, synced, renamed or removed, or a folder made or removed.
    It cannot be undone, so use this in a child. Returns a function that counts the changes so far.
    """
    numbers, seen, sync = itertools.count(1), [0], os.fsync

    def fsync(descriptor: int) -> None:
        sys.audit("campaign.fsync")
        sync(descriptor)

    def see(event: str, arguments: tuple) -> None:
        if event in CHANGES or event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            seen[0] = next(numbers)
            if seen[0] == number:
                action()

    os.fsync = fsync
    sys.addaudithook(see)
    return lambda: seen[0]


def die() -> None:
    """End this process as kill -9 does."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_at_byte(size: int) -> None:
    """End this process abruptly when a file that it writes exceeds `size` bytes."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores this signal by default
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
