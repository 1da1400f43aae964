"""Downloads from a real server on this machine.

The server can be made to fail in many ways.
"""

import gc
import hashlib
import json
import math
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from folders import read_only_folder
from said import listen
from write_bundle import index_bytes, write_random_gpt2

from gpt2_from_scratch.errors import CheckpointError, DownloadError, ResourceError, UsageError
from gpt2_from_scratch.gpt2 import download
from gpt2_from_scratch.gpt2.config import SIZES, GPT2Config
from gpt2_from_scratch.gpt2.download import CHUNK, DATA, INDEX, Limits, PinnedFile, fetch
from gpt2_from_scratch.gpt2.openai_checkpoint import TensorEntry, read_index
from gpt2_from_scratch.gpt2.weights import meta_gpt2, names_on_disk

TINY = {"n_vocab": 277, "n_ctx": 16, "n_embd": 8, "n_head": 2, "n_layer": 2}
CONTENT = np.random.default_rng(1).bytes(900_000)
FIRST = 3 * CHUNK
RESUMED = f"bytes={FIRST}-"
PAGE = b"<!DOCTYPE html><p>Sign in to the Wi-Fi"
WRONG = bytes([CONTENT[0] ^ 1]) + CONTENT[1:]


@dataclass
class Answer:
    """How the server responds to one request. By default it responds correctly."""

    status: int = 200
    body: bytes | None = None  # sent instead of the file
    cut: int | None = None  # bytes after which the connection is closed
    ignore_range: bool = False
    headers: dict[str, str | None] = field(default_factory=dict)  # None removes a header
    length: bool = True  # whether to send Content-Length
    then: str = ""  # what follows the body: "silence", "trickle" or "endless"
    trickled_headers: bool = False


class Server(ThreadingHTTPServer):
    """A server of `files`.

    It uses the next of `answers` for each request, and lists requests in `asked`.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.answers: list[Answer] = []
        self.asked: list[tuple[str, str | None]] = []  # path, Range
        self.released = threading.Event()  # ends all silent responses
        self.origin = f"http://127.0.0.1:{self.server_port}"

    @property
    def ranges(self) -> list[str | None]:
        return [wanted for _, wanted in self.asked]

    def handle_error(self, request, client_address):
        pass  # the tests include clients that close the connection


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self):
        self.close_connection = True
        wanted = self.headers.get("Range")
        self.server.asked.append((self.path, wanted))
        answer = self.server.answers.pop(0) if self.server.answers else Answer()
        if answer.trickled_headers:
            self.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
            return self.trickle()
        whole = self.server.files.get(self.path) if answer.body is None else answer.body
        status = answer.status if whole is not None or answer.status != 200 else 404
        body = whole or b""
        etag = f'"{hashlib.md5(body).hexdigest()}"'
        headers = {"ETag": etag, "Content-Type": "application/octet-stream"}
        if wanted and status == 200 and not answer.ignore_range:
            if self.headers.get("If-Range") in (etag, *answer.headers.values()):
                start, status = int(wanted.removeprefix("bytes=").rstrip("-")), 206
                headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
                body = body[start:]
        if answer.length:
            headers["Content-Length"] = str(len(body))
        self.send_response(status)
        for name, value in (headers | answer.headers).items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[: answer.cut])
        if answer.then == "silence":
            self.server.released.wait()
        if answer.then == "trickle":
            self.trickle()
        while answer.then == "endless" and not self.server.released.is_set():
            self.wfile.write(bytes(1 << 16))

    def trickle(self):
        while not self.server.released.wait(0.02):
            self.wfile.write(b"x")

    def log_message(self, format, *args):
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        server.files["/a.bin"] = CONTENT
        yield server
        server.released.set()
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def pauses(monkeypatch) -> list[float]:
    """The seconds that the downloader would have slept. Here `sleep` returns immediately."""
    found: list[float] = []
    monkeypatch.setattr(download, "time", SimpleNamespace(sleep=found.append))
    return found


@pytest.fixture
def file(server: Server) -> PinnedFile:
    digest = hashlib.sha256(CONTENT).hexdigest()
    return PinnedFile("a.bin", len(CONTENT), f"sha256:{digest}", (f"{server.origin}/a.bin",))


@pytest.fixture
def mirrored(server: Server, file: PinnedFile) -> PinnedFile:
    server.files["/mirror"] = CONTENT
    return replace(file, urls=(*file.urls, f"{server.origin}/mirror"))


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "new" / "a.bin"


@pytest.fixture
def get(server: Server, target: Path):
    """A function that fetches a file from this server only.

    Its first argument is the file.
    """
    return lambda file, *check: fetch(file, target, *check, limits=Limits((server.origin,)))


def assert_alone(path: Path) -> None:
    assert [other.name for other in path.parent.iterdir()] == [path.name]


def part_of(target: Path) -> Path:
    return target.with_name(f"{target.name}.part")


# --- servers without errors ---


def test_a_file_is_downloaded_once(server, file, get, target):
    assert get(file) == target and target.read_bytes() == CONTENT
    assert_alone(target)
    mask = os.umask(0)
    os.umask(mask)
    assert target.stat().st_mode & 0o777 == 0o666 & ~mask
    get(file)
    assert server.asked == [("/a.bin", None)]


def test_a_right_file_needs_no_request_and_no_writing(server, file, monkeypatch):
    monkeypatch.setenv("GPT2_FROM_SCRATCH_OFFLINE", "1")
    with read_only_folder(**{"a.bin": CONTENT}) as folder:
        fetch(file, folder / "a.bin")
        assert_alone(folder / "a.bin")


def test_offline_says_how_to_get_the_file(server, file, get, target, monkeypatch):
    monkeypatch.setenv("GPT2_FROM_SCRATCH_OFFLINE", "1")
    with pytest.raises(DownloadError) as error:
        get(file)
    digest = hashlib.sha256(CONTENT).hexdigest()
    for fact in ("GPT2_FROM_SCRATCH_OFFLINE", file.urls[0], "900,000 bytes", digest, str(target)):
        assert fact in str(error.value)
    assert server.asked == []


def test_a_wrong_file_stays_until_the_right_one_has_come(server, file, get, target):
    target.parent.mkdir()
    target.write_bytes(PAGE)
    server.answers = [Answer(404, b"no")]
    with pytest.raises(DownloadError, match="has 38 bytes, expected 900,000 and is a web page"):
        get(file)
    assert target.read_bytes() == PAGE
    assert_alone(target)
    lines = listen()
    assert get(file).read_bytes() == CONTENT
    assert_alone(target)
    assert len(lines) == 1 and str(target) in lines[0] and "replacing" in lines[0]


def test_two_at_once_make_one_download(server, file, get, target):
    server.answers = [Answer(cut=FIRST, then="silence")]
    lines = listen()
    threads = [threading.Thread(target=get, args=(file,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    while not any("another process" in line for line in lines):  # until the second one waits
        threads[0].join(0.01)
    server.released.set()
    for thread in threads:
        thread.join()
    assert server.ranges == [None, RESUMED]  # both requests come from the first download
    assert target.read_bytes() == CONTENT
    assert_alone(target)


# --- interrupted transfers ---


@pytest.mark.parametrize(
    "cuts", [[1], [CHUNK + 1], [len(CONTENT) - 1], [100, CHUNK, 2 * CHUNK + 9]]
)
@pytest.mark.parametrize("length", [True, False])
def test_a_transfer_that_breaks_off_is_resumed(server, file, get, cuts, length):
    server.answers = [Answer(cut=cut, length=length) for cut in cuts]
    assert get(file).read_bytes() == CONTENT
    # with Content-Length, the HTTP library drops the last incomplete chunk
    kept = [cut - cut % CHUNK if length else cut for cut in cuts]
    starts = [0, *np.cumsum(kept).tolist()]
    assert server.ranges == [f"bytes={n}-" if n else None for n in starts]


@pytest.mark.slow
@pytest.mark.parametrize("then", ["silence", "trickle"])
def test_a_server_that_becomes_too_slow_is_asked_again(server, file, target, then):
    server.answers = [Answer(cut=FIRST, then=then)]
    limits = Limits((server.origin,), patience=0.5, attempts=100)
    assert fetch(file, target, limits=limits).read_bytes() == CONTENT
    assert server.ranges[:2] == [None, RESUMED]


@pytest.mark.slow
@pytest.mark.parametrize(
    "answer",
    [Answer(cut=0, then="trickle"), Answer(trickled_headers=True)],
    ids=["body", "headers"],
)
def test_a_server_that_trickles_bytes_is_given_up(server, file, target, answer):
    """Each byte arrives within the timeout of the socket."""
    server.answers = [answer] * 9
    with pytest.raises(DownloadError, match=r"in 0.2 seconds .*attempt 2"):
        fetch(file, target, limits=Limits((server.origin,), patience=0.2, attempts=2))


def test_the_next_run_resumes(server, file, get, target):
    server.answers = [Answer(cut=FIRST)] + [Answer(503)] * 4
    with pytest.raises(DownloadError, match="503"):
        get(file)
    assert part_of(target).read_bytes() == CONTENT[:FIRST]
    assert get(file).read_bytes() == CONTENT
    assert server.ranges[-1] == RESUMED
    assert_alone(target)


KILLED = """
import os, signal, sys
from pathlib import Path
from gpt2_from_scratch.gpt2 import download
from gpt2_from_scratch.gpt2.download import Limits, PinnedFile, fetch
url, size, known_hash, origin, root = sys.argv[1:]
file = PinnedFile("a.bin", int(size), known_hash, (url,))

def die_at(step, owner, name):
    function = getattr(owner, name)
    def counted(*arguments, **options):
        global steps
        steps += 1
        if steps == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    setattr(owner, name, counted)

def download_in_a_child(target, step):
    if child := os.fork():
        return os.waitpid(child, 0)[1]
    for place in [
        (os, "replace"), (os, "fsync"), (Path, "unlink"), (download, "_within"), (download, "_unlinked")
    ]:
        die_at(step, *place)
    fetch(file, target, None, Limits((origin,)))
    os._exit(0)

for step in range(1, 1000):
    steps, target = 0, Path(root, str(step), "a.bin")
    ended = download_in_a_child(target, step)
    assert not target.exists() or not file.difference(target)
    assert ended in (0, signal.SIGKILL) and download_in_a_child(target, None) == 0
    assert not file.difference(target)
    left = {path.name for path in target.parent.iterdir()}
    assert left <= {"a.bin", "a.bin.part.json", ".a.bin.lock"}, left  # of kills after the rename
    if ended == 0:
        sys.exit(step)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="forks and signals as POSIX has them")
def test_a_download_killed_at_any_step_is_completed_by_the_next(server, file, tmp_path):
    """It is killed before each chunk and before each change on the disk, each time in a new folder."""
    words = [file.urls[0], len(CONTENT), file.known_hash, server.origin, tmp_path]
    found = subprocess.run([sys.executable, "-c", KILLED, *map(str, words)], timeout=300)
    assert 15 < found.returncode < 30
    for n in range(1, len(CONTENT) // CHUNK):  # a kill after n chunks is resumed after n chunks
        assert f"bytes={n * CHUNK}-" in server.ranges


def test_a_whole_part_needs_no_request(server, file, get, target):
    server.answers = [Answer(cut=FIRST)] + [Answer(503)] * 4
    with pytest.raises(DownloadError):
        get(file)
    part_of(target).write_bytes(CONTENT)
    server.asked.clear()
    assert get(file).read_bytes() == CONTENT
    assert server.asked == []


@pytest.mark.parametrize(
    ("first", "second", "ranges"),
    [
        (Answer(), Answer(ignore_range=True), [RESUMED]),
        (Answer(body=bytes(len(CONTENT))), Answer(), [RESUMED]),  # an older version
        # the beginning of an old version and the rest of the new one, with the same ETag
        (
            Answer(body=bytes(len(CONTENT)), headers={"ETag": '"same"'}),
            Answer(headers={"ETag": '"same"'}),
            [RESUMED, None],
        ),
        (Answer(headers={"ETag": None}), Answer(), [None]),
        (Answer(headers={"ETag": 'W/"weak"'}), Answer(), [None]),
        (
            date := Answer(
                headers={"ETag": None, "Last-Modified": "Wed, 13 Feb 2019 00:00:00 GMT"}
            ),
            date,
            [RESUMED],
        ),
        (Answer(), Answer(416, b""), [RESUMED, None]),
        (Answer(), Answer(206, CONTENT[FIRST:]), [RESUMED, None]),
        (
            Answer(),
            Answer(206, CONTENT[5:], headers={"Content-Range": "bytes 5-899999/900000"}),
            [RESUMED, None],
        ),
        (
            Answer(),
            Answer(206, CONTENT[FIRST:], headers={"Content-Range": f"bytes {FIRST}-9/900001"}),
            [RESUMED, None],
        ),
    ],
    ids="ignored older same none weak date 416 no-range other-start other-total".split(),
)
def test_only_the_rest_of_the_same_version_is_resumed(server, file, get, first, second, ranges):
    server.answers = [replace(first, cut=FIRST), second]
    assert get(file).read_bytes() == CONTENT
    assert server.ranges == [None, *ranges]


@pytest.mark.parametrize(
    "note", ["", "[]", '{"url": 1, "version": 2}', "[" * 200_000], ids=range(4)
)
def test_a_damaged_note_begins_anew(server, file, get, target, note):
    gc.collect()  # not in the middle of deep recursion, where finalizers of earlier tests would fail
    target.parent.mkdir()
    part_of(target).write_bytes(b"something else")
    target.with_name("a.bin.part.json").write_text(note)
    assert get(file).read_bytes() == CONTENT
    assert_alone(target)
    assert server.asked == [("/a.bin", None)]


# --- servers with errors ---


def test_a_busy_server_is_asked_again_when_it_says(server, file, target, pauses):
    after = [{}, {"Retry-After": "7"}, {"Retry-After": "9" * 5000}, {"Retry-After": "soon"}]
    statuses = [408, 429, 503, 500]
    server.answers = [Answer(s, b"", headers=h) for s, h in zip(statuses, after, strict=True)]
    limits = Limits((server.origin,), attempts=5)
    assert fetch(file, target, limits=limits).read_bytes() == CONTENT
    assert pauses == [1, 7, 120, 8]


def test_the_mirror_is_asked_next(server, mirrored, get, target):
    server.answers = [Answer(404, b"no")]  # this server is not asked again
    assert get(mirrored).read_bytes() == CONTENT
    target.unlink()
    server.answers = [Answer(500)] * 4
    get(mirrored)
    server.answers = [Answer(headers={"Content-Encoding": "gzip"})]
    target.unlink()
    get(mirrored)
    paths = [path for path, _ in server.asked]
    assert paths == ["/a.bin", "/mirror", *["/a.bin"] * 4, "/mirror", "/a.bin", "/mirror"]


def test_what_has_come_is_kept_until_the_mirrors_answer_begins(server, mirrored, get, target):
    server.answers = [Answer(cut=FIRST)] + [Answer(500)] * 8
    with pytest.raises(DownloadError, match="mirror: .*500"):
        get(mirrored)
    assert part_of(target).read_bytes() == CONTENT[:FIRST]
    server.answers = [Answer(500)] * 4 + [Answer(cut=CHUNK)]
    server.asked.clear()
    assert get(mirrored).read_bytes() == CONTENT
    assert server.asked[-2:] == [("/mirror", None), ("/mirror", f"bytes={CHUNK}-")]


@pytest.mark.parametrize(
    ("answer", "facts"),
    [
        (Answer(404, b"no"), "404"),
        (Answer(500, b"no"), "500 .*attempt 4"),
        (Answer(body=WRONG), f"sha256 {hashlib.sha256(WRONG).hexdigest()}"),
        (Answer(body=PAGE.ljust(len(CONTENT))), "sha256 .* web page"),
        (Answer(body=CONTENT[:-1]), "899,999 bytes .*900,000"),
        (Answer(body=PAGE, headers={"Content-Type": "text/html"}), r"38 bytes \(text/html\)"),
        (Answer(headers={"Content-Length": "9" * 5000}), "99,999,"),
        (Answer(body=CONTENT + b"x", length=False), "more than 900,000 bytes"),
        (Answer(then="endless", length=False), "more than 900,000 bytes"),
        (Answer(body=PAGE, headers={"Content-Encoding": "gzip"}), "compressed"),
        (Answer(302, b"", headers={"Location": "/a.bin"}), "5 redirects"),
        (Answer(302, PAGE, headers={"Location": "http://portal.example/"}), "portal.example"),
        (Answer(302, b"", headers={"Location": "https://127.0.0.1/a.bin"}), "allowed servers"),
        (Answer(302, b"", headers={"Location": "file:///etc/passwd"}), "allowed servers"),
        (Answer(302, b"", headers={"Location": "http://[/"}), "Invalid"),
        (Answer(cut=0), "attempt 4"),
    ],
)
def test_a_wrong_server_leaves_no_file(server, file, get, target, answer, facts):
    server.answers = [answer] * 9
    with pytest.raises(DownloadError, match=facts) as error:
        get(file)
    assert file.urls[0] in str(error.value) and str(target) in str(error.value)
    assert not target.exists()
    server.answers = []
    assert get(file).read_bytes() == CONTENT  # leftover files do no harm
    assert_alone(target)


def test_redirects_on_the_list_are_followed_and_their_bodies_not_read(server, file, get):
    there = Answer(302, b"", headers={"Location": "/b.bin"}, length=False, then="endless")
    server.answers = [there]
    server.files["/b.bin"] = CONTENT
    get(file)
    assert [path for path, _ in server.asked] == ["/a.bin", "/b.bin"]


def test_a_wrong_length_does_not_cost_what_came_before(server, file, get):
    server.answers = [Answer(cut=FIRST), Answer(body=PAGE, ignore_range=True)]
    with pytest.raises(DownloadError, match="38 bytes"):
        get(file)
    get(file)
    assert server.ranges[-1] == RESUMED


def test_no_server_at_all(server, file, get):
    server.shutdown()
    server.server_close()
    with pytest.raises(DownloadError, match="attempt 4"):
        get(file)


@pytest.mark.parametrize(
    "url",
    [
        "https://evil@f001.backblazeb2.com/x",
        "https://f001.backblazeb2.com@evil.example/x",
        "https://f001.backblazeb2.com.evil.example/x",
        "https://f001.backblazeb2.com:444/x",
        "http://f001.backblazeb2.com/x",
    ],
)
def test_only_https_and_known_servers_are_asked(tmp_path, url):
    assert all(origin.startswith("https://") for origin in Limits().allowed)
    with pytest.raises(DownloadError, match="allowed servers: https://openaipublic"):
        fetch(PinnedFile("x", urls=(url,)), tmp_path / "x")


def test_an_unknown_size_has_a_limit(server, file, get, monkeypatch):
    monkeypatch.setattr(download, "MOST", 1_000)
    with pytest.raises(DownloadError, match="more than 1,000 bytes"):
        get(replace(file, size=None, known_hash=None))


def test_a_check_may_refuse_the_contents(file, get, target):
    def refuse(path: Path) -> None:
        raise CheckpointError(f"{path.name} is refused")

    with pytest.raises(DownloadError, match="a.bin.part is refused"):
        get(file, refuse)
    assert not target.exists() and not part_of(target).exists()


def test_certificates_that_are_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "missing.pem"))
    file = PinnedFile("x", urls=("https://127.0.0.1:1/x",))
    with pytest.raises(DownloadError, match="missing.pem"):
        fetch(file, tmp_path / "x", limits=Limits(("https://127.0.0.1:1",)))


# --- clocks, odd files and full disks ---


class Noon(datetime):
    """A clock that always shows noon."""

    @classmethod
    def now(cls, tz=None):
        return datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    "date, pause",
    [
        ("Sun, 01 Mar 2026 12:00:42 GMT", 42),
        ("Sun, 01 Mar 2026 13:00:42 +0100", 42),
        ("Sunday, 01-Mar-26 12:00:42 GMT", 42),  # the format of RFC 850
        ("Sun Mar  1 12:00:42 2026", 42),  # the format of asctime, in UTC
        ("Sun, 01 Mar 2026 13:00:00 GMT", 120),
        ("Fri, 31 Dec 9999 23:59:59 -2359", 120),
        ("Sun, 01 Mar 2026 11:00:00 GMT", 1),
        ("Sun, 99 Mar 2026 12:00:42 GMT", 1),
        ("-5", 1),
        ("1e9", 1),
        ("\u0663", 1),
        ("", 1),
    ],
)
def test_a_busy_server_may_name_a_date(server, file, target, pauses, monkeypatch, date, pause):
    monkeypatch.setattr(download, "datetime", Noon)
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    server.answers = [Answer(503, b"", headers={"Retry-After": date.encode().decode("latin-1")})]
    assert fetch(file, target, limits=Limits((server.origin,))).read_bytes() == CONTENT
    monkeypatch.undo()
    time.tzset()
    assert pauses == [pause]


@pytest.mark.parametrize("name", ["a.bin", "a.bin.part", "a.bin.part.json"])
@pytest.mark.parametrize("made", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("nowhere")])
def test_a_target_that_is_not_a_file_is_neither_opened_nor_followed(
    server, file, get, target, made, name
):
    target.parent.mkdir()
    made(target.with_name(name))
    with pytest.raises(ResourceError, match=f"{name} is "):
        get(file)
    assert [path.name for path in target.parent.iterdir()] == [name] and server.asked == []


@pytest.mark.parametrize("name", ["a.bin.part", "a.bin.part.json"])
def test_a_link_that_is_made_meanwhile_is_not_followed(server, file, get, target, tmp_path, name):
    other = tmp_path / "other"
    other.write_text("somebody's work")
    answer = download._open_url

    def then_linked(*arguments):
        found = answer(*arguments)
        target.with_name(name).symlink_to(other)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(download, "_open_url", then_linked)
        with pytest.raises(ResourceError):
            get(file)
    assert other.read_text() == "somebody's work"


@pytest.mark.parametrize("name", ["a.bin", "a.bin.part", "a.bin.part.json"])
def test_symbolic_links_are_not_written_to(server, file, get, target, tmp_path, name):
    other = tmp_path / "other"
    other.write_text("somebody's work")
    target.parent.mkdir()
    target.with_name(name).symlink_to(other)
    with pytest.raises(ResourceError, match=f"{name} is a symbolic link"):
        get(file)
    assert other.read_text() == "somebody's work" and server.asked == []


def test_a_folder_that_cannot_be_written(server, file, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="file/a.bin .*GPT2_FROM_SCRATCH_HOME"):
        fetch(file, tmp_path / "file" / "a.bin")
    with read_only_folder() as folder:
        with pytest.raises(ResourceError, match="Permission denied") as error:
            fetch(file, folder / "a.bin")
    assert error.value.exit_code == 6 and str(error.value).count("GPT2_FROM_SCRATCH_HOME") == 1
    assert server.asked == []


LITTLE_ROOM = """
import resource, sys
from pathlib import Path
from gpt2_from_scratch.errors import GPT2Error
from gpt2_from_scratch.gpt2.download import Limits, PinnedFile, fetch
url, size, known_hash, origin, target, room = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_FSIZE, (int(room), int(room)))
try:
    file = PinnedFile("a.bin", int(size), known_hash, (url, url + "?mirror"))
    fetch(file, Path(target), None, Limits((origin,)))
except GPT2Error as error:
    print(error)
    sys.exit(error.exit_code)
"""


def test_a_full_disk(server, file, get, target):
    """A limit on the size of files simulates a full disk."""
    pytest.importorskip("resource")
    room = 200_000
    words = [file.urls[0], len(CONTENT), file.known_hash, server.origin, target, room]
    command = [sys.executable, "-c", LITTLE_ROOM, *map(str, words)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 6, found.stderr
    assert "File too large" in found.stdout and "GPT2_FROM_SCRATCH_HOME" in found.stdout
    assert part_of(target).read_bytes() == CONTENT[:room]
    get(file)
    assert server.ranges == [None, f"bytes={room}-"]  # the mirror is not asked, as it cannot help
    assert_alone(target)


# --- OpenAI's models ---


@pytest.fixture
def nearby(server, monkeypatch) -> None:
    """Makes downloads by name come from the server of these tests."""
    monkeypatch.setattr(download, "fetch", partial(fetch, limits=Limits((server.origin,))))


@pytest.fixture
def tiny_model(server, nearby, monkeypatch, tmp_path) -> Path:
    """The folder that the server offers as "355M". No hashes of its weights and index are pinned."""
    folder = tmp_path / "offered"
    write_random_gpt2(folder, TINY, seed=3)
    for name in download.VOCABULARY:
        (folder / name).write_text(name)
        known = (len(name), f"sha256:{hashlib.sha256(name.encode()).hexdigest()}")
        monkeypatch.setitem(download.VOCABULARY, name, known)
    monkeypatch.setattr(download, "OPENAI", f"{server.origin}/models")
    monkeypatch.setattr(download, "MIRROR", f"{server.origin}/mirror")
    known = {name: ((folder / name).stat().st_size, None) for name in (INDEX, DATA)}
    monkeypatch.setitem(download.WEIGHTS, "355M", known)
    monkeypatch.setitem(download.UNCONFIRMED, "355M", {})
    monkeypatch.setitem(download.SIZES, "355M", GPT2Config(**TINY))
    offer(server, folder)
    return folder


def offer(server: Server, folder: Path) -> None:
    server.files = {f"/models/355M/{path.name}": path.read_bytes() for path in folder.iterdir()}


def test_a_model_is_downloaded_and_checked(server, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("GPT2_FROM_SCRATCH_HOME", str(tmp_path / "home"))
    lines = listen()
    folder = download.download_model("355M")
    assert folder == tmp_path / "home" / "weights" / "355M"
    for path in tiny_model.iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes()
    assert len(list(folder.iterdir())) == len(server.asked) == len(lines) == 5
    download.download_model("355M", folder)
    assert len(server.asked) == 5 and len(lines) == 10


@pytest.mark.parametrize("hash_known", [True, False])
def test_a_flipped_bit_of_the_data_names_its_tensor(server, tiny_model, tmp_path, hash_known):
    entry = read_index(tiny_model / INDEX)["model/h1/mlp/c_fc/w"]
    raw = (tiny_model / DATA).read_bytes()
    damaged = bytearray(raw)
    damaged[entry.offset] ^= 1
    server.files[f"/models/355M/{DATA}"] = bytes(damaged)
    if hash_known:
        download.WEIGHTS["355M"][DATA] = (len(raw), f"md5:{hashlib.md5(raw).hexdigest()}")
    with pytest.raises(DownloadError, match="1 damaged tensors: model/h1/mlp/c_fc/w"):
        download.download_model("355M", tmp_path / "got")
    assert not (tmp_path / "got" / DATA).exists()
    offer(server, tiny_model)
    download.download_model("355M", tmp_path / "got")


def test_an_index_of_another_size_is_refused(server, tiny_model, tmp_path):
    write_random_gpt2(tmp_path / "other", TINY | {"n_layer": 3})
    server.files[f"/models/355M/{INDEX}"] = (tmp_path / "other" / INDEX).read_bytes()
    download.WEIGHTS["355M"][INDEX] = (None, None)
    expected = (tiny_model / DATA).stat().st_size
    with pytest.raises(DownloadError, match=f"{INDEX}.part describes .*{expected}"):
        download.download_model("355M", tmp_path / "got")


def test_hparams_are_compared_by_their_contents(server, tiny_model, tmp_path):
    name = "/models/355M/hparams.json"
    server.files[name] = json.dumps(TINY, indent=4).replace("\n", "\r\n").encode()
    download.download_model("355M", tmp_path / "got")
    for raw in (json.dumps(TINY | {"n_head": 4}).encode(), b"[" * 100_000, b"\xff", b"null"):
        server.files[name] = raw
        with pytest.raises(DownloadError, match="hparams.json"):
            download.download_model("355M", tmp_path / "other")


def test_the_table_of_files():
    assert set(download.WEIGHTS) == set(SIZES)
    numbers = {
        "124M": 124_439_808,
        "355M": 354_823_168,
        "774M": 774_030_080,
        "1558M": 1_557_611_200,
    }
    for name in SIZES:
        assert download.WEIGHTS[name][DATA][0] == 4 * numbers[name]  # float32 parameters
        for file in download.model_files(name):
            assert [url.split("/")[2] for url in file.urls] == [
                "openaipublic.blob.core.windows.net",
                "f001.backblazeb2.com",
            ]
            assert all(url.endswith(f"/{name}/{file.name}") for url in file.urls)


def test_openais_own_files_are_right(openai_124M, tmp_path, monkeypatch):
    """All files but the data file are there, and the message describes the data file."""
    monkeypatch.setenv("GPT2_FROM_SCRATCH_OFFLINE", "1")
    for file in download.model_files("124M")[:4]:
        shutil.copyfile(openai_124M / file.name, tmp_path / file.name)
    lines = listen()
    with pytest.raises(DownloadError, match="497,759,232 bytes, sha256 2060c885360cc0cf"):
        download.download_model("124M", tmp_path)
    assert len(lines) == 4


def test_an_unknown_model():
    with pytest.raises(UsageError, match="'117M'.* 124M, 355M"):
        download.download_model("117M")


# --- without a network, and facts from one source only ---


def test_without_a_network_all_missing_files_are_listed_at_once(tmp_path, monkeypatch, pauses):
    def unknown_host(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown_host)
    with pytest.raises(DownloadError, match="no network") as error:
        download.download_model("124M", tmp_path)
    assert pauses == []  # no second attempt
    for file in download.model_files("124M"):
        for fact in (file.name, file.facts(), *file.urls):
            assert fact in str(error.value)


@pytest.mark.slow
def test_index_sizes_from_the_shapes():
    """An index written in TensorFlow's way has the size that is known or derived."""
    known = {name: download.WEIGHTS[name][INDEX][0] for name in ("124M", "355M")}
    known |= {name: download.UNCONFIRMED[name][INDEX][0] for name in ("774M", "1558M")}
    for name, size in known.items():
        entries, offset = [], 0
        names = names_on_disk(SIZES[name])
        shapes = {names[p][0]: tuple(v.shape) for p, v in meta_gpt2(SIZES[name]).named_parameters()}
        for array, shape in sorted(shapes.items()):
            if array.endswith("/w"):
                shape = (1, *shape[::-1])
            n_bytes = 4 * math.prod(shape)
            entries.append(TensorEntry(array, np.dtype("<f4"), shape, offset, n_bytes, 1))
            offset += n_bytes
        assert len(index_bytes(entries)) == size, name


def test_an_unconfirmed_hash_is_only_a_warning(server, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setitem(download.UNCONFIRMED, "355M", {INDEX: (None, f"sha256:{'0' * 64}")})
    offer(server, tiny_model)
    lines = listen()
    download.download_model("355M", tmp_path / "other")
    assert [line for line in lines if "unconfirmed" in line and INDEX in line]
