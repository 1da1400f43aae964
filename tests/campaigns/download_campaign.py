"""Kills downloads at random moments, and looks after each what is on the disk.

What the server does and which processes run is decided by the seed; the moment at which a kill
strikes is up to the machine.
"""

import hashlib
import os
import random
import signal
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import campaign
import filelock  # noqa: F401  # here, so that no child spends its life importing it

from gpt2_from_scratch.errors import DownloadError, GPT2Error
from gpt2_from_scratch.gpt2.fetch import fetch
from gpt2_from_scratch.gpt2.https import Manners
from gpt2_from_scratch.gpt2.part import Part
from gpt2_from_scratch.gpt2.pinned import PinnedFile

SIZE = 4_000_000  # bytes
PIECE = 1 << 15  # bytes that the server sends at once
LIFE = 0.12  # seconds after which a process is killed, at most


# --- the server ---


def contents(seed: int) -> dict[str, bytes]:
    """{ETag: bytes}: the right version of the file and another one of the same size."""
    return {f'"{name}"': random.Random(f"{seed} {name}").randbytes(SIZE) for name in ("now", "old")}


class Server(ThreadingHTTPServer):
    """Slow, at a varying pace, and not always right; writes a line for each request to `log`."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, seed: int, log: Path):
        super().__init__(("127.0.0.1", 0), Handler)
        self.choices = random.Random(f"{seed} server")
        self.versions = contents(seed)
        self.log = log.open("a", buffering=1)

    def handle_error(self, request, client_address):
        pass  # a client that was killed


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self):
        choices = self.server.choices
        fault = choices.choices(["", "cut", "500", "old", "stall"], [12, 3, 2, 1, 1])[0]
        pause, end = choices.uniform(0, 0.004), choices.randrange(SIZE)
        wanted = self.headers.get("Range")
        print(wanted or "whole", fault, file=self.server.log)
        if fault == "500":
            return self.answer(500, {}, 0)
        etag = '"old"' if fault == "old" else '"now"'
        start = 0
        if wanted and self.headers.get("If-Range") == etag:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
        headers = {"ETag": etag}
        if start:
            headers["Content-Range"] = f"bytes {start}-{SIZE - 1}/{SIZE}"
        self.answer(206 if start else 200, headers, SIZE - start)
        body = self.server.versions[etag]
        for at in range(start, end if fault in ("cut", "stall") else SIZE, PIECE):
            self.wfile.write(body[at : at + PIECE])
            time.sleep(pause)
        if fault == "stall":
            time.sleep(1)

    def answer(self, status: int, headers: dict[str, str], length: int) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(length)}).items():
            self.send_header(name, value)
        self.end_headers()
        self.close_connection = True

    def log_message(self, format, *args):
        pass


# --- the campaign ---


@dataclass
class Campaign:
    """A folder with one target, processes that fetch it, and what was seen."""

    folder: Path
    seed: int
    port: int
    counts: Counter = field(default_factory=Counter)

    @cached_property
    def versions(self) -> dict[str, bytes]:
        return contents(self.seed)

    @cached_property
    def file(self) -> PinnedFile:
        digest = hashlib.sha256(self.versions['"now"']).hexdigest()
        return PinnedFile("a.bin", (f"http://127.0.0.1:{self.port}/a.bin",), SIZE, digest)

    @property
    def target(self) -> Path:
        return self.folder / self.file.name

    def fetch(self, patience: int = 4) -> None:
        """In this process, which may be killed."""
        origin = f"http://127.0.0.1:{self.port}"
        manners = Manners((origin,), timeouts=(5, 0.3), attempts=patience, pause=0.001)
        fetch(self.file, self.target, manners=manners)

    def start(self) -> int:
        """A process that fetches; ends with 0, or with 5 when the server failed too often."""
        if process := os.fork():
            return process
        try:
            self.fetch()
            os._exit(0)
        except GPT2Error as error:
            os._exit(error.exit_code)
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(99)

    def round(self, choices: random.Random) -> None:
        """One or two processes at once, one of them killed; then look at the disk."""
        processes = [self.start() for _ in range(choices.choice([1, 1, 1, 2]))]
        time.sleep(choices.uniform(0.0, LIFE))
        partial = Part(self.target).path.exists()
        choices.shuffle(processes)
        victim, *others = processes
        if self.kill(victim):
            self.counts["kills"] += 1
            self.counts["kills in the middle"] += partial
            self.counts["kills of one of two"] += len(others)
        for other in others:
            if choices.random() < 0.5:
                self.end_of(other)
            else:
                self.counts["kills"] += self.kill(other)
        self.look()

    def kill(self, process: int) -> bool:
        """Kill it; False if it had ended already."""
        os.kill(process, signal.SIGKILL)  # it is not waited for yet, so the number is still its own
        return self.end_of(process) == -signal.SIGKILL

    def end_of(self, process: int) -> int:
        """Wait for it to end; its exit code."""
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        assert code in (0, 5, -signal.SIGKILL), f"a process ended with {code}"
        self.counts["gave up"] += code == 5
        return code

    def look(self) -> None:
        """The target is whole or not there; what is noted of the part is true."""
        if self.target.exists():
            right = self.target.read_bytes() == self.versions['"now"']
            self.counts["wrong files"] += not right
            self.counts["completions"] += right
            self.target.unlink()
        part = Part(self.target)
        state = part.state()
        if state.done and not self.versions[state.version].startswith(part.path.read_bytes()):
            self.counts["wrong parts"] += 1

    def finish(self) -> None:
        """Fetch it once more, undisturbed: nothing but the file is left."""
        while not self.target.exists():
            with suppress(DownloadError):  # it may serve the older version, whole
                self.fetch(patience=1000)
        assert self.target.read_bytes() == self.versions['"now"']
        self.counts["orphans"] = len(list(self.folder.iterdir())) - 1


def serve(seed: int, log: Path) -> tuple[int, int]:
    """Start the server in a process of its own; its process and port."""
    server = Server(seed, log)
    if process := os.fork():
        server.socket.close()
        return process, server.server_port
    try:
        server.serve_forever()
    finally:
        os._exit(0)


def kills(count: int, seed: int, folder: Path) -> Counter:
    """Make `count` kills; AssertionError if anything on the disk was other than it should be."""
    log = folder / "log"
    server, port = serve(seed, log)
    (folder / "files").mkdir()
    run = Campaign(folder / "files", seed, port)
    choices = random.Random(f"{seed} kills")
    progress = campaign.Progress(count, "kills")
    try:
        while run.counts["kills"] < count:
            run.round(choices)
            progress(run.counts["kills"])
        run.finish()
    finally:
        os.kill(server, signal.SIGKILL)
        os.waitpid(server, 0)
    asked = log.read_text().splitlines()
    run.counts["requests"] = len(asked)
    run.counts["resumed requests"] = sum(line.startswith("bytes=") for line in asked)
    for what in ("wrong files", "wrong parts", "orphans"):
        assert not run.counts[what], f"{run.counts[what]} {what}"
    return run.counts


if __name__ == "__main__":
    campaign.main(kills)
