"""The real server: it listens, stays available to many clients, and stops when asked."""

import json
import logging
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPResponse

import httpx
import pytest
import uvicorn
from command import call

from gpt2_from_scratch.cli import serving
from gpt2_from_scratch.errors import UsageError
from gpt2_from_scratch.web import app
from gpt2_from_scratch.web.server import is_loopback, listen, make_server, serve


@pytest.fixture(scope="module")
def address(models) -> Iterator[tuple[str, int]]:
    """Where a server runs in a thread of this process."""
    listener = listen("127.0.0.1", 0)
    server: uvicorn.Server = make_server(models)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield listener.getsockname()
    server.should_exit = True
    thread.join(timeout=30)
    listener.close()
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def url(address) -> str:
    return f"http://127.0.0.1:{address[1]}"


@pytest.mark.slow
def test_many_clients_at_once(url, classifier):
    texts = [f"{n} the cat and you" for n in range(32)]
    expected = classifier.predict(texts)

    with ThreadPoolExecutor(32) as pool, httpx.Client(base_url=url, timeout=60) as client:

        def one(text: str) -> dict[str, float]:
            response = client.post("/api/tokens", json={"text": text})
            return response.json()["prediction"]["answers"]["label"]["probabilities"]

        for found, prediction in zip(pool.map(one, texts), expected, strict=True):
            assert found == pytest.approx(prediction.probabilities, abs=1e-5)


def test_a_request_whose_client_has_left_is_not_computed(address, url, models, monkeypatch):
    classifier = models["first"].classifier
    begun, continues, computed = threading.Event(), threading.Event(), []

    def predict(texts: list[str], answer=classifier.predict):
        computed.append(texts)
        begun.set()
        assert continues.wait(30)
        return answer(texts)

    monkeypatch.setattr(classifier, "predict", predict)
    with ThreadPoolExecutor(2) as pool, httpx.Client(base_url=url, timeout=60) as client:
        first = pool.submit(client.post, "/api/predict", json={"texts": ["first"]})
        assert begun.wait(30)
        body = b'{"texts": ["left"]}'
        with socket.create_connection(address) as connection:
            connection.sendall(START + b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
        last = pool.submit(client.post, "/api/predict", json={"texts": ["last"]})
        assert client.get("/health").is_success  # while another request is computed
        continues.set()
        assert first.result().is_success and last.result().is_success
    assert computed == [["first"], ["last"]]


def test_too_many_waiting_requests(url, models, monkeypatch):
    monkeypatch.setattr(app, "MOST_WAITING", 0)
    response = httpx.post(f"{url}/api/predict", json={"texts": ["a"]})
    assert response.status_code == 503 and "later" in response.json()["error"]


def exchange(address: tuple[str, int], sent: bytes) -> tuple[int, dict[str, str]]:
    """The status and the JSON that the server answers to some bytes."""
    with socket.create_connection(address, timeout=60) as connection:
        connection.sendall(sent)
        response = HTTPResponse(connection)
        response.begin()
        return response.status, json.loads(response.read())


START = b"POST /api/predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"


def test_a_body_of_100_megabytes_is_refused_before_it_arrives(address):
    status, answer = exchange(address, START + b"Content-Length: 100000000\r\n\r\n")
    assert status == 413 and "1,000,000" in answer["error"]


def test_a_body_without_a_length_is_refused_while_it_arrives(address):
    """The connection stays usable: the rest is received and dropped."""
    chunks = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    status, answer = exchange(address, START + b"Transfer-Encoding: chunked\r\n\r\n" + chunks * 99)
    assert status == 413 and "1,000,000" in answer["error"]


def test_a_slow_body_is_refused(models):
    listener = listen("127.0.0.1", 0)
    config = uvicorn.Config(
        app.make_app(models, body_seconds=0.2), http="h11", lifespan="off", log_config=None
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        found = exchange(listener.getsockname(), START + b"Content-Length: 100\r\n\r\n{")
    finally:
        server.should_exit = True
        thread.join(timeout=30)
        listener.close()
    assert found[0] == 408 and "0.2 seconds" in found[1]["error"]


def test_a_port_that_is_taken(address):
    with pytest.raises(UsageError, match=str(address[1])):
        listen("127.0.0.1", address[1])


def test_an_address_that_is_not_here():
    with pytest.raises(UsageError, match=r"203\.0\.113\.1"):
        listen("203.0.113.1", 0)


def test_addresses_that_only_this_computer_reaches():
    own = {"127.0.0.1", "127.9.9.9", "::1", "localhost"}
    others = {"0.0.0.0", "::", "192.168.1.7", "box.lan"}
    assert all(map(is_loopback, own)) and not any(map(is_loopback, others))


# --- the command ---


@pytest.mark.slow
def test_mistakes_on_the_command_line(tmp_path, address, classifier, tiny_checkpoint, capsys):
    code, _, err = call(capsys, "serve", tmp_path / "nothing")
    assert code == 4 and "nothing" in err
    classifier.save(tmp_path / "run" / "best.safetensors")
    run = (tmp_path / "run", "--model", tiny_checkpoint)
    code, _, err = call(capsys, "serve", *run, "--port", 70_000)
    assert code == 2 and "70000" in err
    code, _, err = call(capsys, "serve", *run, "--port", address[1])
    assert code == 2 and str(address[1]) in err and "--port" in err


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_command(tmp_path, classifier, tiny_checkpoint, number, code):
    classifier.save(tmp_path / "run" / "best.safetensors")
    words = ("serve", tmp_path / "run", "--model", tiny_checkpoint, "--port", "0")
    command = [sys.executable, "-m", "gpt2_from_scratch", *map(str, words)]
    with subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        assert process.stderr
        url = process.stderr.readline().split()[2]
        assert httpx.get(f"{url}health").is_success
        process.send_signal(number)
        rest = process.stderr.read()
    assert process.returncode == code and "Traceback" not in rest


def test_a_warning_if_other_computers_can_reach_it(models, monkeypatch, caplog):
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: None)
    with caplog.at_level(logging.INFO, "gpt2_from_scratch"):
        serve(models, "0.0.0.0")
        assert "0.0.0.0" in caplog.records[0].message and caplog.records[0].levelname == "WARNING"
        caplog.clear()
        serve(models)
        (line,) = caplog.records
        assert "http://127.0.0.1:" in line.message and line.levelname == "INFO"


def test_the_packages_of_the_extra_are_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(serving, "find_spec", lambda name: None)
    code, _, err = call(capsys, "serve", tmp_path)
    assert code == 2 and "serve" in err and "pip install" in err
