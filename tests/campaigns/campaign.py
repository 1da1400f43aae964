"""What the long campaigns share: each runs in a process of its own, COUNT times from a SEED.

A process of its own, because forks need one without threads. `python tests/campaigns/NAME_campaign.py 300 1`
prints its progress and, as its last line, its counts as JSON.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

Counts = dict[str, int]
HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))  # where the helpers of several rooms are


def run(name: str, count: int, seed: int, say: Callable[[str], None] = print) -> Counts:
    """Run `NAME_campaign.py`; what it counted. AssertionError if it found what must not be."""
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
    """The command line of one campaign, which gets an empty folder."""
    folder, begun = Path(tempfile.mkdtemp(prefix="campaign.")), time.monotonic()
    try:
        counts = dict(campaign(int(sys.argv[1]), int(sys.argv[2]), folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(counts | {"seconds": round(time.monotonic() - begun)}))


class Progress:
    """Prints how far it is, now and then."""

    def __init__(self, total: int, what: str):
        self.total, self.what = total, what
        self.begun = self.told = time.monotonic()

    def __call__(self, done: int) -> None:
        now = time.monotonic()
        if now - self.told > 20:
            self.told = now
            print(f"{done:,} of {self.total:,} {self.what}, {now - self.begun:.0f} s", flush=True)


def fork(work: Callable[[], None]) -> int:
    """A child that does the work and ends with 0, with an Interrupted's exit code, or with 99."""
    sys.stdout.flush()
    if child := os.fork():
        return child
    try:
        work()
        os._exit(0)
    except BaseException as error:
        if not hasattr(error, "exit_code"):
            print(f"in a child: {error!r}", file=sys.stderr)
        os._exit(getattr(error, "exit_code", 99))


def end_of(child: int) -> int:
    """Wait for a child; its exit code, the negative signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill(child: int, number: int = signal.SIGKILL) -> int:
    """Send a signal to a child that was not waited for yet, and wait; its exit code."""
    os.kill(child, number)
    return end_of(child)
