"""Hostile and mistaken requests get a clear error in JSON, and nothing runs or leaks."""

import json
import math

import pytest
from starlette.testclient import TestClient

from gpt2_from_scratch.errors import CheckpointError
from gpt2_from_scratch.web.app import make_app
from gpt2_from_scratch.web.operations import LONGEST_TEXT, MOST_BYTES, MOST_TEXTS

JSON = {"Content-Type": "application/json"}


def refused(response, status: int, *words: str) -> None:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert [*response.json()] == ["error"] and all(word in error for word in words), error


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"", 400, ["JSON"]),
        (b"{", 400, ["JSON"]),
        (b'{"texts": ["a"]} x', 400, ["JSON"]),
        (b'{"texts": [NaN]}', 400, ["NaN"]),
        (b'{"texts": [-Infinity]}', 400, ["Infinity"]),
        (b'{"texts": [' + b"9" * 5000 + b"]}", 400, ["JSON"]),
        (b"[" * 100_000, 400, ["deep"]),
        (b'{"a":' * 100_000, 400, ["deep"]),
        (b'\xff\xfe{"texts": []}', 400, ["JSON"]),
        (b'{"texts": ["\xc3\x28"]}', 400, ["JSON"]),
        (b"[]", 422, ["object"]),
        (b"null", 422, ["object"]),
        (b"{}", 422, ["texts", "missing"]),
        (b'{"texts": "a"}', 422, ["texts", "list", "string"]),
        (b'{"texts": [1]}', 422, ["texts[0]", "string"]),
        (b'{"texts": ["a", null]}', 422, ["texts[1]", "string"]),
        (b'{"texts": null}', 422, ["texts", "null"]),
        (b'{"texts": ["a"], "modle": "first"}', 422, ["modle", "model"]),
        (b'{"texts": ["a"], "model": "frist"}', 422, ["frist", "first"]),
        (b'{"texts": ["a"], "model": "\\ud800"}', 422, ["model"]),
        (b'{"texts": ["a"], "model": ["first"]}', 422, ["model", "list"]),
        (b'{"texts": ["a"], "model": true}', 422, ["model", "true"]),
    ],
)
def test_bodies_that_are_refused(client, body, status, words):
    refused(client.post("/api/predict", content=body, headers=JSON), status, *words)


def test_limits(client):
    texts = ["a"] * (MOST_TEXTS + 1)
    refused(client.post("/api/predict", json={"texts": texts}), 422, "1,001", "1,000")
    long = "a" * (LONGEST_TEXT + 1)
    refused(client.post("/api/predict", json={"texts": ["a", long]}), 422, "texts[1]", "20,001")
    refused(client.post("/api/tokens", json={"text": long}), 422, "text", "20,001")


def test_a_large_body_is_refused_by_its_header(client):
    headers = JSON | {"Content-Length": str(MOST_BYTES + 1)}
    refused(client.post("/api/predict", content=b"", headers=headers), 413, "1,000,000")


def test_a_large_body_is_refused_while_it_arrives(client):
    def pieces():
        for _ in range(20):
            yield b" " * 100_000

    refused(client.post("/api/predict", content=pieces(), headers=JSON), 413, "1,000,000")


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "", "json"])
def test_what_a_form_of_another_website_can_send(client, kind):
    body = b'{"texts": ["a"]}'
    response = client.post("/api/predict", content=body, headers={"Content-Type": kind})
    refused(response, 415, "application/json")


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("127.0.0.1:8124", True),
        ("localhost:8124", True),
        ("LOCALHOST", True),
        ("[::1]:8124", True),
        ("192.168.1.7:8124", True),  # an address cannot be rebound
        ("evil.example", False),
        ("localhost.evil.example:8124", False),
        ("127.0.0.1.evil.example", False),
        ("", False),
        ("[evil.example]", False),
    ],
)
def test_names_that_are_not_this_servers(client, host, allowed):
    response = client.get("/api/models", headers={"Host": host})
    if allowed:
        assert response.status_code == 200
    else:
        refused(response, 421, "host")


def test_the_name_that_the_server_was_started_with(models):
    client = TestClient(make_app(models, "box.lan"), base_url="http://box.lan:8124")
    assert client.get("/health").status_code == 200


def test_addresses_and_methods(client):
    refused(client.get("/api/nothing"), 404, "/api/nothing", "openapi")
    refused(client.get("/static/../app.py"), 404)
    refused(client.get("/static/..%2fapp.py"), 404)
    refused(client.get("/api/predict"), 405, "GET")
    refused(client.delete("/health"), 405, "DELETE")


def test_halves_of_characters_are_answered(client):
    found = client.post("/api/predict", content=b'{"texts": ["\\ud83d win"]}', headers=JSON)
    assert found.status_code == 200 and found.json()["predictions"][0]["replaced"]
    assert client.post("/api/tokens", content=b'{"text": "\\ud83d"}', headers=JSON).is_success
    body = b'{"texts": ["\\ud83d"], "with_text": true}'
    assert client.post("/api/table", content=body, headers=JSON).is_success


def test_html_is_text(client):
    """JSON is never read as HTML, and the page puts no answer into HTML."""
    response = client.post("/api/tokens", json={"text": "<script>alert(1)</script>"})
    assert response.is_success and response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["content-type"] == "application/json"


@pytest.mark.parametrize("path", ["/", "/static/app.js", "/health", "/api/nothing", "/api/predict"])
def test_security_headers(client, path):
    headers = client.get(path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in headers


def test_an_explained_text_is_short(client, monkeypatch):
    monkeypatch.setattr("gpt2_from_scratch.web.operations.MOST_TOKENS", 5)
    refused(client.post("/api/tokens", json={"text": "one two three four"}), 422, "5", "predict")


def test_bugs_and_broken_classifiers(client, models, monkeypatch, caplog):
    def fail(error):
        def predict(texts):
            raise error

        monkeypatch.setattr(models["first"].classifier, "predict", predict)
        return client.post("/api/predict", json={"texts": ["a"]})

    refused(fail(CheckpointError("the outputs are NaN")), 500, "NaN")
    refused(fail(MemoryError()), 503, "memory")
    refused(fail(KeyError("secret")), 500, "KeyError")
    assert "secret" in caplog.text
    assert "secret" not in fail(KeyError("secret")).text


def test_answers_are_json_numbers(client):
    found = client.post("/api/tokens", json={"text": "win"}).text
    assert all(math.isfinite(p) for p in _numbers(json.loads(found)))


def _numbers(value):
    if isinstance(value, dict):
        value = [*value.values()]
    if isinstance(value, list):
        for each in value:
            yield from _numbers(each)
    elif isinstance(value, float):
        yield value
