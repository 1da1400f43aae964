"""Fetching files, held against a real server on this machine that errs in every way wanted."""

import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from folders import read_only_folder
from said import listen
from write_bundle import index_bytes, random_gpt2, write_random_gpt2

from gpt2_from_scratch.errors import CheckpointError, DownloadError, ResourceError, UsageError
from gpt2_from_scratch.gpt2 import download, fetch, https
from gpt2_from_scratch.gpt2.config import SIZES, GPT2Config
from gpt2_from_scratch.gpt2.openai_checkpoint import TensorEntry, read_index
from gpt2_from_scratch.gpt2.pinned import PinnedFile

SHARED = Path(__file__).parents[3] / "shared"
TINY = {"n_vocab": 277, "n_ctx": 16, "n_embd": 8, "n_head": 2, "n_layer": 2}
CONTENT = np.random.default_rng(1).bytes(300_000)
FIRST = 6 * fetch.CHUNK  # 98,304 bytes


@dataclass
class Answer:
    """What the server does with one request; what is left out is done right."""

    status: int = 200
    body: bytes | None = None  # instead of the file
    cut: int | None = None  # bytes after which the connection is closed
    ignore_range: bool = False
    headers: dict[str, str] = field(default_factory=dict)  # None removes one
    length: bool = True  # say Content-Length
    stall: float = 0.0  # seconds of silence after what is sent
    endless: bool = False  # go on after the file for ever


class Server(ThreadingHTTPServer):
    """Serves `files` by path, with the next of `answers` each time; `asked` lists the requests."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.answers: list[Answer] = []
        self.asked: list[tuple[str, str | None]] = []  # path, Range
        self.released = threading.Event()  # ends what is stalled and endless
        self.origin = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        pass  # a client that hangs up is part of the tests


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self):
        wanted = self.headers.get("Range")
        self.server.asked.append((self.path, wanted))
        answer = self.server.answers.pop(0) if self.server.answers else Answer()
        whole = self.server.files.get(self.path)
        if answer.body is not None:
            whole = answer.body
        status = answer.status if whole is not None or answer.status != 200 else 404
        body = whole or b""
        etag = f'"{hashlib.md5(body).hexdigest()}"'
        headers = {"ETag": etag, "Content-Type": "application/octet-stream"}
        if wanted and status == 200 and not answer.ignore_range:
            if self.headers.get("If-Range") in (None, etag, answer.headers.get("ETag")):
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
        self.server.released.wait(answer.stall)
        while answer.endless and not self.server.released.is_set():
            self.wfile.write(bytes(1 << 16))
        self.close_connection = True

    def log_message(self, format, *args):
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.released.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def file(server: Server) -> PinnedFile:
    server.files["/a.bin"] = CONTENT
    digest = hashlib.sha256(CONTENT).hexdigest()
    return PinnedFile("a.bin", (f"{server.origin}/a.bin",), len(CONTENT), digest)


def near(server: Server) -> https.Manners:
    """Asks this server only, and soon again."""
    return https.Manners((server.origin,), timeouts=(5, 0.5), pause=0.001)


@pytest.fixture
def get(server: Server, tmp_path: Path):
    def get(file: PinnedFile, check=lambda path: None) -> Path:
        target = tmp_path / "new" / file.name
        return fetch.fetch(file, target, check, near(server))

    return get


def assert_alone(path: Path) -> None:
    assert [other.name for other in path.parent.iterdir()] == [path.name]


def part_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


# --- right servers ---


def test_a_file_is_fetched_once(server, file, get):
    path = get(file)
    assert path.read_bytes() == CONTENT
    assert_alone(path)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask()
    assert get(file) == path
    assert server.asked == [("/a.bin", None)]


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_no_request_for_a_file_that_is_there_even_offline(server, file, get, tmp_path, monkeypatch):
    monkeypatch.setenv("GPT2_FROM_SCRATCH_OFFLINE", "1")
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "a.bin").write_bytes(CONTENT)
    assert get(file).read_bytes() == CONTENT
    assert server.asked == []


def test_offline_says_how_to_get_the_file(server, file, get, tmp_path, monkeypatch):
    monkeypatch.setenv("GPT2_FROM_SCRATCH_OFFLINE", "1")
    with pytest.raises(DownloadError) as error:
        get(file)
    for words in (
        "GPT2_FROM_SCRATCH_OFFLINE",
        file.urls[0],
        "300,000 bytes",
        file.sha256,
        str(tmp_path / "new" / "a.bin"),
    ):
        assert words in str(error.value)
    assert server.asked == []


def test_a_wrong_file_in_its_place_is_set_aside(server, file, tmp_path):
    target, bad, said = tmp_path / "a.bin", tmp_path / "a.bin.bad", []
    bad.write_bytes(b"of another time")
    target.write_bytes(CONTENT[:-1] + b"?")
    fetch.fetch(file, target, manners=near(server))
    assert target.read_bytes() == CONTENT
    assert bad.read_bytes() == CONTENT[:-1] + b"?"
    assert said == [f"{target} was not what it should be; it is now a.bin.bad"]
    assert sorted(tmp_path.iterdir()) == [target, bad]


def test_a_wrong_file_stays_in_its_place_until_the_right_one_has_come(server, file, tmp_path):
    target = tmp_path / "a.bin"
    target.write_bytes(PAGE)
    server.answers = [Answer(404, b"no")]
    with pytest.raises(DownloadError, match="has 38 bytes, expected 300,000 and is a web page"):
        fetch.fetch(file, target, manners=near(server))
    assert target.read_bytes() == PAGE
    assert_alone(target)


def test_a_right_file_in_a_folder_that_cannot_be_written(server, file):
    with read_only_folder(**{"a.bin": CONTENT}) as folder:
        fetch.fetch(file, folder / "a.bin", manners=near(server))
        assert_alone(folder / "a.bin")
    assert server.asked == []


def test_redirects_on_the_list_are_followed(server, file, get):
    server.answers = [Answer(302, b"", headers={"Location": "/b.bin"})]
    server.files["/b.bin"] = CONTENT
    get(file)
    assert [path for path, _ in server.asked] == ["/a.bin", "/b.bin"]


def test_a_redirect_of_endless_length_is_not_read(server, file, get):
    answer = Answer(302, b"", headers={"Location": "/b.bin"}, length=False, endless=True)
    server.answers = [answer]
    server.files["/b.bin"] = CONTENT
    assert get(file).read_bytes() == CONTENT


def test_what_killed_processes_left_is_swept(server, file, get, tmp_path):
    folder = tmp_path / "new"
    for name in (".a.bin.abcd_123.tmp", ".a.bin.part.json.abcd_123.tmp", ".a.bin.b.abcd_123.tmp"):
        (folder / name).mkdir(parents=True)
        (folder / name / "left").write_text("")
    get(file)
    neighbour = folder / ".a.bin.b.abcd_123.tmp"
    assert sorted(folder.iterdir()) == [neighbour, folder / "a.bin"]


def test_two_at_once_make_one_request(server, file, tmp_path):
    server.answers = [Answer(cut=FIRST, stall=0.3)]
    target, said = tmp_path / "a.bin", []
    threads = [
        threading.Thread(
            target=fetch.fetch, args=(file, target, lambda path: None, near(server), said.append)
        )
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [wanted for _, wanted in server.asked] == [None, "bytes=98304-"]  # both of the first
    assert said == [f"another process is at work in {tmp_path}; waiting for it to end"]
    assert target.read_bytes() == CONTENT
    assert_alone(target)


# --- interrupted transfers ---


@pytest.mark.parametrize(
    "cuts", [[1], [30_000], [150_000], [297_000], [299_999], [100, 5_000, 70_000]]
)
@pytest.mark.parametrize("length", [True, False])
def test_a_transfer_that_breaks_off_goes_on(server, file, get, cuts, length):
    server.answers = [Answer(cut=cut, length=length) for cut in cuts]
    assert get(file).read_bytes() == CONTENT
    # with Content-Length the HTTP library drops the last, unfinished chunk
    kept = [cut - cut % fetch.CHUNK if length else cut for cut in cuts]
    starts = [0, *np.cumsum(kept).tolist()]
    assert [r for _, r in server.asked] == [f"bytes={n}-" if n else None for n in starts]


def test_a_server_that_falls_silent(server, file, get):
    server.answers = [Answer(cut=FIRST, stall=20), Answer(cut=0, stall=20)]
    assert get(file).read_bytes() == CONTENT
    assert [wanted for _, wanted in server.asked] == [None, "bytes=98304-", "bytes=98304-"]


def test_the_next_run_goes_on(server, file, get, tmp_path):
    server.answers = [Answer(cut=FIRST)] + [Answer(503)] * 4
    with pytest.raises(DownloadError, match="503"):
        get(file)
    assert part_of(tmp_path / "new" / "a.bin").stat().st_size == FIRST
    path = get(file)
    assert server.asked[-1] == ("/a.bin", "bytes=98304-")
    assert path.read_bytes() == CONTENT
    assert_alone(path)


def test_a_file_that_changed_between_runs_is_fetched_anew(server, file, get, tmp_path):
    server.answers = [Answer(body=bytes(len(CONTENT)), cut=FIRST)] + [Answer(503)] * 4
    with pytest.raises(DownloadError, match="503"):
        get(file)
    server.answers = []
    server.asked.clear()
    assert get(file).read_bytes() == CONTENT
    assert [wanted for _, wanted in server.asked] == ["bytes=98304-"]  # answered with the whole


def test_a_part_that_cannot_go_on_is_dropped(server, file, get, tmp_path):
    server.answers = [Answer(cut=FIRST, headers={"ETag": None})] + [Answer(503)] * 4
    with pytest.raises(DownloadError, match="503"):
        get(file)
    assert list((tmp_path / "new").iterdir()) == []


def test_what_came_is_kept_until_the_mirrors_answer_begins(server, file, get, tmp_path):
    server.files["/mirror"] = CONTENT
    file = replace(file, urls=(*file.urls, f"{server.origin}/mirror"))
    server.answers = [Answer(cut=FIRST)] + [Answer(500)] * 8
    with pytest.raises(DownloadError, match="mirror: .*500"):
        get(file)
    assert part_of(tmp_path / "new" / "a.bin").read_bytes() == CONTENT[:FIRST]
    server.answers = [Answer(500)] * 4 + [Answer(cut=FIRST // 2)]
    server.asked.clear()
    assert get(file).read_bytes() == CONTENT
    assert server.asked == [("/a.bin", "bytes=98304-")] * 4 + [
        ("/mirror", None),
        ("/mirror", "bytes=49152-"),
    ]


@pytest.mark.parametrize("cut", [None, FIRST])
@pytest.mark.parametrize("length", [True, False])
def test_a_compressed_answer_that_was_not_asked_for(server, file, get, cut, length):
    body = gzip.compress(CONTENT)
    answer = Answer(body=body, headers={"Content-Encoding": "gzip"}, length=length)
    # after a cut it cannot go on, as its offsets are not the file's
    server.answers = [replace(answer, cut=cut), replace(answer, ignore_range=True)]
    assert get(file).read_bytes() == CONTENT
    assert {wanted for _, wanted in server.asked} == {None}


def test_a_whole_part_needs_no_request(server, file, get, tmp_path):
    server.answers = [Answer(cut=FIRST)] + [Answer(503)] * 4
    with pytest.raises(DownloadError):
        get(file)
    part_of(tmp_path / "new" / "a.bin").write_bytes(CONTENT)
    server.asked.clear()
    assert get(file).read_bytes() == CONTENT
    assert server.asked == []


def test_a_server_that_ignores_range(server, file, get):
    server.answers = [Answer(cut=FIRST), Answer(ignore_range=True)]
    assert get(file).read_bytes() == CONTENT


def test_a_file_that_changed_between_is_fetched_anew(server, file, get):
    server.answers = [Answer(body=bytes(len(CONTENT)), cut=FIRST)]  # an older version
    assert get(file).read_bytes() == CONTENT
    assert [wanted for _, wanted in server.asked] == [None, "bytes=98304-"]


def test_an_old_beginning_under_the_same_etag_is_dropped(server, file, get):
    same = {"ETag": '"same"'}
    server.answers = [
        Answer(body=bytes(len(CONTENT)), cut=FIRST, headers=same),
        Answer(headers=same),  # 206, the right rest after wrong bytes
    ]
    assert get(file).read_bytes() == CONTENT
    assert [wanted for _, wanted in server.asked] == [None, "bytes=98304-", None]


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
def test_without_a_strong_etag_the_transfer_begins_anew(server, file, get, etag):
    server.answers = [Answer(cut=FIRST, headers={"ETag": etag})]
    assert get(file).read_bytes() == CONTENT
    assert [wanted for _, wanted in server.asked] == [None, None]


def test_last_modified_names_a_version_too(server, file, get):
    date = {"ETag": None, "Last-Modified": "Wed, 13 Feb 2019 00:00:00 GMT"}
    server.answers = [Answer(cut=FIRST, headers=date)]
    assert get(file).read_bytes() == CONTENT
    assert server.asked[1] == ("/a.bin", "bytes=98304-")


@pytest.mark.parametrize(
    "answer",
    [
        Answer(416, b""),
        Answer(206, CONTENT[5:], headers={"Content-Range": "bytes 5-299999/300000"}),
        Answer(206, CONTENT[FIRST:], headers={"Content-Range": "bytes 98304-299999/300001"}),
        Answer(206, CONTENT[FIRST:]),
        Answer(
            206,
            CONTENT[FIRST:],
            headers={"Content-Range": "bytes 98304-299999/300000", "Content-Encoding": "gzip"},
        ),
    ],
)
def test_a_wrong_answer_to_a_range_begins_anew(server, file, get, answer):
    server.answers = [Answer(cut=FIRST), answer]
    assert get(file).read_bytes() == CONTENT
    assert [wanted for _, wanted in server.asked] == [None, "bytes=98304-", None]


@pytest.mark.parametrize(
    "note", ["", "[]", "{}", "[" * 200_000, '{"url": 1, "version": 2}', "[" * 5], ids=range(6)
)
def test_a_damaged_note_begins_anew(server, file, get, tmp_path, note):
    part = part_of(tmp_path / "new" / "a.bin")
    part.parent.mkdir()
    part.write_bytes(b"something else")
    part.with_name("a.bin.part.json").write_text(note)
    path = get(file)
    assert path.read_bytes() == CONTENT
    assert_alone(path)
    assert server.asked == [("/a.bin", None)]


# --- wrong servers ---


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
def test_faults_that_pass_are_waited_for(server, file, get, status):
    server.answers = [Answer(status, b"busy"), Answer(status, b"busy")]
    assert get(file).read_bytes() == CONTENT


def test_the_mirror_is_asked_next(server, file, get):
    server.files["/mirror"] = server.files.pop("/a.bin")
    file = replace(file, urls=(*file.urls, f"{server.origin}/mirror"))
    assert get(file).read_bytes() == CONTENT
    assert [path for path, _ in server.asked] == ["/a.bin", "/mirror"]  # 404 is not asked again


def test_the_mirror_is_asked_after_a_server_that_stays_broken(server, file, get):
    server.files["/mirror"] = CONTENT
    file = replace(file, urls=(*file.urls, f"{server.origin}/mirror"))
    server.answers = [Answer(500)] * 4
    assert get(file).read_bytes() == CONTENT
    assert [path for path, _ in server.asked] == ["/a.bin"] * 4 + ["/mirror"]


WRONG = bytes([CONTENT[0] ^ 1]) + CONTENT[1:]
PAGE = b"<!DOCTYPE html><p>Sign in to the Wi-Fi"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Answer(404, b"no"), "404"),
        (Answer(500, b"no"), r"500 .*attempt 4"),
        (Answer(body=WRONG), f"has sha256 {hashlib.sha256(WRONG).hexdigest()}, expected"),
        (Answer(body=CONTENT[:-1]), "offers 299,999 bytes .*expected 300,000"),
        (Answer(body=CONTENT + b"x", length=False), "more than 300,000 bytes came"),
        (
            Answer(body=PAGE, headers={"Content-Type": "text/html"}),
            r"offers 38 bytes \(text/html\)",
        ),
        (Answer(body=PAGE, length=False), "cut off after 38 of|does not go on at byte 38"),
        (
            Answer(body=PAGE.ljust(len(CONTENT)), headers={"Content-Type": "text/html"}),
            "has sha256 .* and is a web page",
        ),
        (Answer(headers={"Content-Length": "299999"}), "offers 299,999 bytes"),
        (Answer(headers={"Content-Length": "300001"}), "offers 300,001 bytes"),
        (Answer(headers={"Content-Length": "9" * 5000}), "offers 99,999,"),
        (Answer(endless=True, length=False), "more than 300,000 bytes came"),
        (Answer(body=PAGE, headers={"Content-Encoding": "gzip"}), "failed to decode"),
        (Answer(302, b"", headers={"Location": "/a.bin"}), "more than 5 redirects"),
        (Answer(302, PAGE, headers={"Location": "http://portal.example/"}), "none of the servers"),
        (Answer(302, b"", headers={"Location": "http://example.com/a.bin"}), "none of the servers"),
        (Answer(302, b"", headers={"Location": "https://127.0.0.1/a.bin"}), "none of the servers"),
        (Answer(302, b"", headers={"Location": "file:///etc/passwd"}), "none of the servers"),
        (Answer(302, b"", headers={"Location": "http://[/"}), "no address"),
        (Answer(cut=0), "cut off|IncompleteRead|ended prematurely|Connection broken"),
    ],
)
def test_a_wrong_server_is_told_and_leaves_no_file(server, file, get, tmp_path, answer, message):
    server.answers = [answer] * 9
    with pytest.raises(DownloadError, match=message) as error:
        get(file)
    assert file.urls[0] in str(error.value) and "by other means" in str(error.value)
    assert not (tmp_path / "new" / "a.bin").exists()
    server.answers = []
    assert get(file).read_bytes() == CONTENT  # what was left does no harm


def test_a_wrong_file_leaves_no_part(server, file, get, tmp_path):
    server.answers = [Answer(body=WRONG)]
    with pytest.raises(DownloadError):
        get(file)
    assert list((tmp_path / "new").iterdir()) == []


def test_a_web_page_for_a_moment_does_not_cost_what_came_before(server, file, get, tmp_path):
    server.answers = [Answer(cut=FIRST), Answer(body=PAGE, ignore_range=True)]
    with pytest.raises(DownloadError, match="38 bytes"):
        get(file)
    get(file)
    assert server.asked[-1] == ("/a.bin", "bytes=98304-")


def test_no_server_at_all(server, file, get):
    server.shutdown()
    server.server_close()
    with pytest.raises(DownloadError, match="by other means"):
        get(file)


def test_only_https_and_known_servers_by_default(server, file, tmp_path):
    assert all(origin.startswith("https://") for origin in https.POLITE.allowed)
    with pytest.raises(DownloadError, match="none of the servers"):
        fetch.fetch(file, tmp_path / "a.bin")
    assert server.asked == []


@pytest.mark.parametrize(
    "url",
    [
        "https://evil@f001.backblazeb2.com/x",
        "https://f001.backblazeb2.com@evil.example/x",
        "https://f001.backblazeb2.com.evil.example/x",
        "https://f001.backblazeb2.com\\.evil.example/x",
        "https://f001.backblazeb2.com:444/x",
        "http://f001.backblazeb2.com/x",
    ],
)
def test_addresses_that_only_look_known(tmp_path, url):
    with pytest.raises(DownloadError, match="none of the servers"):
        fetch.fetch(PinnedFile("x", (url,)), tmp_path / "x")


def test_an_unknown_size_has_a_limit(server, file, get):
    file = replace(file, size=None, sha256=None, most=1_000)
    with pytest.raises(DownloadError, match="more than 1,000 bytes"):
        get(file)


def test_a_check_may_refuse_the_file(server, file, get, tmp_path):
    def refuse(path: Path) -> None:
        raise CheckpointError(f"{path.name} is not to my liking")

    with pytest.raises(DownloadError, match=r"a.bin.part is not to my liking"):
        get(file, refuse)
    assert list((tmp_path / "new").iterdir()) == []


def test_certificates_that_are_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "missing.pem"))
    file = PinnedFile("x", ("https://127.0.0.1:1/x",))
    manners = https.Manners(("https://127.0.0.1:1",), attempts=1)
    with pytest.raises(DownloadError, match=r"missing.pem"):
        fetch.fetch(file, tmp_path / "x", manners=manners)


# --- kills ---


# --- wrong disks ---


def test_a_file_where_the_folder_should_be(server, file, tmp_path):
    (tmp_path / "new").write_text("")
    with pytest.raises(ResourceError, match="new/a.bin could not be .*GPT2_FROM_SCRATCH_HOME"):
        fetch.fetch(file, tmp_path / "new" / "a.bin", manners=near(server))


def test_a_folder_that_cannot_be_written(server, file):
    with read_only_folder() as folder:
        with pytest.raises(
            ResourceError, match="Permission denied.*GPT2_FROM_SCRATCH_HOME"
        ) as error:
            fetch.fetch(file, folder / "a.bin", manners=near(server))
    assert error.value.exit_code == 6 and str(error.value).count("GPT2_FROM_SCRATCH_HOME") == 1
    assert server.asked == []


LITTLE_ROOM = """
import resource, sys
from pathlib import Path
from gpt2_from_scratch.gpt2 import fetch, https
from gpt2_from_scratch.errors import GPT2Error
from gpt2_from_scratch.gpt2.pinned import PinnedFile
url, origin, target, size, digest, room = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_FSIZE, (int(room), int(room)))
file = PinnedFile("a.bin", (url, url + "?mirror"), int(size), digest)
try:
    fetch.fetch(file, Path(target), manners=https.Manners((origin,), pause=0.001))
except GPT2Error as error:
    print(error)
    sys.exit(error.exit_code)
"""


@pytest.mark.parametrize("room", [0, 100_000])
def test_a_full_disk(server, file, tmp_path, room):
    """Here a file may not grow further than a limit, which fails as a full disk does."""
    pytest.importorskip("resource")
    target = tmp_path / "a.bin"
    facts = [file.urls[0], server.origin, target, len(CONTENT), file.sha256, room]
    words = [sys.executable, "-c", LITTLE_ROOM, *map(str, facts)]
    found = subprocess.run(words, capture_output=True, text=True, check=False)
    assert found.returncode == 6, found.stderr
    assert "File too large" in found.stdout and "GPT2_FROM_SCRATCH_HOME" in found.stdout
    assert len(server.asked) == 1  # no mirror helps
    if room:
        assert part_of(target).read_bytes() == CONTENT[:room]
    fetch.fetch(file, target, manners=near(server))
    assert server.asked[1:] == [("/a.bin", f"bytes={room}-" if room else None)]
    assert_alone(target)


# --- OpenAI's models ---


@pytest.fixture
def tiny_model(server, monkeypatch, tmp_path) -> Path:
    """The folder that the server offers as "355M", with no hash known of weights and index."""
    folder = tmp_path / "offered"
    write_random_gpt2(folder, TINY, seed=3)
    for name in download.VOCABULARY:
        (folder / name).write_text(name)
    known = {
        name: (len(name), hashlib.sha256(name.encode()).hexdigest()) for name in download.VOCABULARY
    }
    monkeypatch.setattr(download, "VOCABULARY", known)
    monkeypatch.setattr(download, "OPENAI", f"{server.origin}/models")
    monkeypatch.setattr(download, "MIRROR", f"{server.origin}/mirror")
    sizes = ((folder / download.INDEX).stat().st_size, (folder / download.DATA).stat().st_size)
    monkeypatch.setitem(download.BYTES, "355M", sizes)
    monkeypatch.setitem(download.SIZES, "355M", GPT2Config(**TINY))
    monkeypatch.setattr(
        download,
        "fetch",
        lambda file, target, check, say: fetch.fetch(file, target, check, near(server), say),
    )
    offer(server, folder)
    return folder


def offer(server: Server, folder: Path) -> None:
    server.files = {f"/models/355M/{path.name}": path.read_bytes() for path in folder.iterdir()}


def test_a_model_is_fetched_and_checked(server, tiny_model, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GPT2_FROM_SCRATCH_HOME", str(tmp_path / "home"))
    folder = download.download_model("355M")
    assert folder == tmp_path / "home" / "weights" / "355M"
    for path in tiny_model.iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes()
    assert len(list(folder.iterdir())) == len(server.asked) == 5
    out, err = capsys.readouterr()
    assert out == "" and err.count("checked") == 5
    said = listen()
    download.download_model("355M", folder, said.append)
    assert len(server.asked) == 5 and len(said) == 5


@pytest.mark.parametrize("hash_known", [True, False])
def test_a_bit_of_the_data_that_flipped_names_its_tensor(
    server, tiny_model, tmp_path, monkeypatch, hash_known
):
    entry = read_index(tiny_model / download.INDEX)["model/h1/mlp/c_fc/w"]
    raw = bytearray((tiny_model / download.DATA).read_bytes())
    raw[entry.offset] ^= 1
    server.files[f"/models/355M/{download.DATA}"] = bytes(raw)
    if hash_known:
        digest = hashlib.md5((tiny_model / download.DATA).read_bytes()).hexdigest()
        monkeypatch.setitem(download.DATA_MD5, "355M", digest)
    with pytest.raises(DownloadError, match="1 damaged tensors: model/h1/mlp/c_fc/w"):
        download.download_model("355M", tmp_path / "got")
    assert not list((tmp_path / "got").glob(f"{download.DATA}*"))
    offer(server, tiny_model)
    download.download_model("355M", tmp_path / "got")


def test_an_index_of_other_shapes_is_refused(server, tiny_model, tmp_path):
    arrays = random_gpt2(TINY)
    entries, offset = [], 0
    for name, array in sorted(arrays.items()):
        shape = array.shape[1:] if array.ndim == 3 else array.shape
        entries.append(TensorEntry(name, array.dtype, shape, offset, array.nbytes, 1))
        offset += array.nbytes
    raw = index_bytes(entries)
    server.files[f"/models/355M/{download.INDEX}"] = raw
    download.BYTES["355M"] = (None, None)
    with pytest.raises(DownloadError, match=r"differs in 8 arrays.*model/h0/attn/c_attn/w"):
        download.download_model("355M", tmp_path / "got")


def test_hparams_are_compared_by_what_they_say(server, tiny_model, tmp_path):
    name = "/models/355M/hparams.json"
    server.files[name] = json.dumps(TINY, indent=4).replace("\n", "\r\n").encode()
    download.download_model("355M", tmp_path / "got")
    for raw in (json.dumps(TINY | {"n_head": 4}).encode(), b"[" * 100_000, b"\xff", b"null"):
        server.files[name] = raw
        with pytest.raises(DownloadError, match="hparams.json"):
            download.download_model("355M", tmp_path / "other")


def test_the_table_of_files():
    assert set(download.BYTES) == set(SIZES)
    for name, config in list(SIZES.items())[:2]:  # our index writer is slow for the others
        shapes = download.openai_arrays(config)
        entries, offset = [], 0
        for array, shape in sorted(shapes.items()):
            size = 4 * int(np.prod(shape))
            entries.append(TensorEntry(array, np.dtype("<f4"), shape, offset, size, crc32c=1))
            offset += size
        assert download.BYTES[name] == (len(index_bytes(entries)), offset)
    for name, config in SIZES.items():
        shapes = download.openai_arrays(config)
        assert download.BYTES[name][1] == sum(4 * int(np.prod(shape)) for shape in shapes.values())
        for file in download.model_files(name):
            assert [f"{url.split('/', 3)[2]}" for url in file.urls] == [
                "openaipublic.blob.core.windows.net",
                "f001.backblazeb2.com",
            ]
            assert all(url.endswith(f"/{name}/{file.name}") for url in file.urls)
    small = {name: GPT2Config(**(asdict(config) | TINY)) for name, config in SIZES.items()}
    assert {n: a.shape for n, a in random_gpt2(TINY).items()} == download.openai_arrays(
        small["124M"]
    )


def test_openais_own_files_are_right_as_they_are(tmp_path, monkeypatch):
    """All but the data file are found in their place; for that one the message helps."""
    if not (SHARED / "openai_124M").exists():
        pytest.skip(f"{SHARED}/openai_124M is not here")
    monkeypatch.setenv("GPT2_FROM_SCRATCH_OFFLINE", "1")
    for file in download.model_files("124M")[:4]:
        (tmp_path / file.name).write_bytes((SHARED / "openai_124M" / file.name).read_bytes())
    said = listen()
    with pytest.raises(DownloadError, match="497,759,232 bytes, md5 f48b9cf1a525a603"):
        download.download_model("124M", tmp_path, said.append)
    assert [line.split(": ")[0] for line in said] == [
        str(tmp_path / file.name) for file in download.model_files("124M")[:4]
    ]


def test_an_unknown_model():
    with pytest.raises(UsageError, match="no model '117M'"):
        download.download_model("117M")


# --- the SMS Spam Collection ---

SMS = b"ham\tsee you\nspam\twin now\n"


def zip_of(members: dict[str, bytes]) -> bytes:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return raw.getvalue()


@pytest.fixture
def sms(server, monkeypatch, tmp_path) -> Path:
    pin = PinnedFile("SMSSpamCollection", (), len(SMS), hashlib.sha256(SMS).hexdigest())
    monkeypatch.setattr(download, "SMS", pin)
    monkeypatch.setattr(
        download, "SMS_ZIP", replace(download.SMS_ZIP, urls=(f"{server.origin}/sms.zip",))
    )
    monkeypatch.setattr(
        download,
        "fetch",
        lambda file, target, check, say: fetch.fetch(file, target, check, near(server), say),
    )
    monkeypatch.setenv("GPT2_FROM_SCRATCH_HOME", str(tmp_path))
    return tmp_path / "data" / "sms_spam" / "SMSSpamCollection"


def test_the_collection_is_taken_out_of_its_zip(server, sms):
    server.files["/sms.zip"] = zip_of({"../evil": b"x", "/evil": b"x", "SMSSpamCollection": SMS})
    assert download.download_sms_spam() == sms
    assert sms.read_bytes() == SMS
    assert_alone(sms)
    assert download.download_sms_spam() == sms
    assert len(server.asked) == 1


def test_two_at_once_get_one_collection(server, sms):
    server.files["/sms.zip"] = zip_of({"SMSSpamCollection": SMS})
    server.answers = [Answer(stall=0.2)]
    threads = [threading.Thread(target=download.download_sms_spam) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sms.read_bytes() == SMS and len(server.asked) == 1
    assert_alone(sms)


def test_a_wrong_collection_is_set_aside(server, sms):
    server.files["/sms.zip"] = zip_of({"SMSSpamCollection": SMS})
    sms.parent.mkdir(parents=True)
    sms.write_bytes(b"my own")
    said = listen()
    download.download_sms_spam()
    assert sms.read_bytes() == SMS
    assert sms.with_name("SMSSpamCollection.bad").read_bytes() == b"my own"
    assert len(said) == 1


@pytest.mark.parametrize(
    "raw",
    [
        zip_of({"readme": b"x"}),
        zip_of({"../SMSSpamCollection": SMS}),
        zip_of({"SMSSpamCollection": SMS[:-1]}),
        zip_of({"SMSSpamCollection": SMS.upper()}),
        zip_of({"SMSSpamCollection": bytes(10**7)}),  # small in the zip, large outside
        zip_of({"SMSSpamCollection": SMS})[:-30],
        zip_of({"SMSSpamCollection": SMS})[:50] + b"????" + zip_of({"SMSSpamCollection": SMS})[54:],
        PAGE,
        b"",
    ],
)
def test_a_wrong_zip_is_refused(server, sms, raw):
    server.files["/sms.zip"] = raw
    with pytest.raises(DownloadError, match="SMSSpamCollection"):
        download.download_sms_spam()
    assert list(sms.parent.iterdir()) == []


def test_the_pinned_collection_is_the_genuine_one():
    path = SHARED / "data" / "sms_spam" / "SMSSpamCollection"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    assert download.SMS.difference(path) == ""


def test_downloading_needs_no_torch():
    code = "import sys, gpt2_from_scratch.gpt2.download; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
