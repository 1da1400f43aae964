"""The API's answers are those of the functions that it calls, and its description is true."""

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import ODD_TEXTS

from gpt2_from_scratch.explain.attribution import attention_weights
from gpt2_from_scratch.explain.gradients import gradient_times_input, integrated_gradients
from gpt2_from_scratch.explain.lenses import answer_by_layer, next_tokens
from gpt2_from_scratch.explain.tokens import leave_one_out
from gpt2_from_scratch.gpt2.weights import load_gpt2
from gpt2_from_scratch.web.operations import OPERATIONS, openapi

TEXT = "you and the other one at ten"


def ask(client, path: str, **fields: Any) -> Any:
    response = client.post(f"/api/{path}", json=fields)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"
    return response.json()


def test_health(client):
    assert client.get("/health").json()["status"] == "ok"


def test_models(client, models, classifier):
    first, second = client.get("/api/models").json()["models"]
    assert (first["name"], second["name"]) == tuple(models)
    assert first["labels"] == ["ham", "<b>spam</b>"] and second["task"] == "regression"
    counted = sum(part["parameters"] for part in first["parts"])
    assert counted == sum(parameter.numel() for parameter in classifier.model.parameters())


@pytest.mark.parametrize("n", [1, 200])
def test_predictions_are_the_classifiers(client, classifier, n):
    texts = (ODD_TEXTS * 30)[:n]
    found = ask(client, "predict", texts=texts)["predictions"]
    expected = classifier.predict(texts)
    assert len(found) == n
    for one, other in zip(found, expected, strict=True):
        assert one["answers"]["label"]["label"] == other.label
        assert one["answers"]["label"]["probabilities"] == pytest.approx(other.probabilities)
        for name in ("n_tokens", "truncated", "empty", "replaced"):
            assert one[name] == getattr(other, name)


def test_the_second_model_answers(client, models):
    (found,) = ask(client, "predict", model="second", texts=[TEXT])["predictions"]
    (expected,) = models["second"].classifier.predict([TEXT])
    assert found["answers"]["label"] == {"values": pytest.approx(expected.answer.values)}


def test_no_texts(client):
    assert ask(client, "predict", texts=[])["predictions"] == []


@pytest.mark.parametrize("text", [TEXT, "", "🎉 there"])
def test_tokens(client, classifier, text):
    found = ask(client, "tokens", text=text)
    expected = classifier.predict_by_token(text)
    assert [each["token"] for each in found["tokens"]] == [token for token, _ in expected]
    for one, (_, answers) in zip(found["tokens"], expected, strict=True):
        assert one["answer"]["probabilities"] == pytest.approx(answers["label"].probabilities)
    if expected:
        last, whole = found["tokens"][-1]["answer"], found["prediction"]["answers"]["label"]
        assert last["probabilities"] == pytest.approx(whole["probabilities"], abs=1e-5)


def test_the_table_is_csv(client, classifier):
    texts = ["=1+1", 'a "quoted"\nline', "win"]
    response = client.post("/api/table", json={"texts": texts, "with_text": True})
    assert response.headers["content-type"].startswith("text/csv")
    header, *rows = csv.reader(io.StringIO(response.text))
    assert header == ["number", "label", "ham", "<b>spam</b>", "truncated", "text"]
    assert [row[1] for row in rows] == [found.label for found in classifier.predict(texts)]
    assert [row[-1] for row in rows] == ["'=1+1", texts[1], "win"]


def test_the_shapes_are_those_of_the_network(client, classifier):
    """Hooks on the plain network are the witness."""
    model, seen = classifier.model, {}
    (ids,), _ = classifier.encode([TEXT])
    block = model.blocks[0]
    parts = {"ln_1": block.ln_1, "qkv": block.attn.c_attn, "attn": block.attn, "ln_2": block.ln_2}
    parts |= {"c_fc": block.mlp.c_fc, "mlp": block.mlp, "block": block, "ln_f": model.ln_f}
    hooks = [
        part.register_forward_hook(lambda _, __, out, name=name: seen.update({name: [*out.shape]}))
        for name, part in parts.items()
    ]
    try:
        logits = model.head(model.hidden(torch.tensor([ids]))[:, -1])
    finally:
        for hook in hooks:
            hook.remove()
    found = ask(client, "network", text=TEXT)["arrows"]
    assert {name: found[name] for name in seen} == seen
    assert found["logits"] == [*logits.shape] and found["ids"] == [1, len(ids)]
    H, D = model.config.n_head, model.config.n_embd // model.config.n_head
    assert found["scores"] == [1, H, len(ids), len(ids)] and found["mixed"] == [1, H, len(ids), D]


@pytest.mark.parametrize(
    ("method", "explain"),
    [
        ("leave-one-out", leave_one_out),
        ("integrated-gradients", integrated_gradients),
        ("gradient-x-input", gradient_times_input),
    ],
)
def test_importance(client, classifier, method, explain):
    found = ask(client, "importance", text=TEXT, label="ham", method=method, unit="token")
    expected = explain(classifier, TEXT, "ham", unit="token")
    assert (found["method"], found["label"]) == (method, "ham")
    assert found["total"] == pytest.approx(expected.total)
    values = [part.value for part in expected.parts]
    assert [part["value"] for part in found["parts"]] == pytest.approx(values)
    words = ask(client, "importance", text=TEXT, method=method)["parts"]
    assert "".join(part["text"] for part in words) == TEXT


@pytest.mark.parametrize("weights", ["finetuned", "pretrained"])
def test_attention(client, models, classifier, weights):
    token = 3
    found = ask(client, "attention", text=TEXT, token=token, weights=weights)
    (ids,), _ = classifier.encode([TEXT])
    expected = attention_weights(models["first"].gpt2(weights), ids)
    assert len(found["tokens"]) == len(ids)
    np.testing.assert_allclose(found["attends_to"], expected[:, :, token], atol=1e-5)
    np.testing.assert_allclose(found["attended_by"], expected[:, :, :, token], atol=1e-5)
    one = ask(client, "attention-head", text=TEXT, weights=weights, block=1, head=2)
    np.testing.assert_allclose(one["matrix"], expected[1, 2], atol=1e-5)


def test_pretrained_weights_are_those_of_the_base(models, tiny_checkpoint):
    base = dict(load_gpt2(tiny_checkpoint).named_parameters())
    for name, parameter in models["first"].gpt2("pretrained").named_parameters():
        assert torch.equal(parameter, base[name])
    assert not torch.equal(models["first"].gpt2("finetuned").ln_f.weight, base["ln_f.weight"])


def test_layers(client, classifier):
    found = ask(client, "layers", text=TEXT)
    expected = answer_by_layer(classifier, TEXT)
    np.testing.assert_allclose(found["probabilities"], expected.probabilities, atol=1e-5)
    np.testing.assert_allclose(found["by_token"], expected.by_token, atol=1e-5)
    (prediction,) = classifier.predict([TEXT])
    last = [*prediction.probabilities.values()]
    np.testing.assert_allclose(found["probabilities"][-1], last, atol=1e-5)


@pytest.mark.parametrize("weights", ["finetuned", "pretrained"])
def test_next_tokens(client, models, classifier, weights):
    found = ask(client, "next", text=TEXT, token=2, top=3, weights=weights)
    expected = next_tokens(models["first"].gpt2(weights), classifier.tokenizer, TEXT, top=3)
    assert "".join(found["tokens"]) == TEXT
    for layer, names, numbers in zip(
        found["layers"], expected.predicted[:, 2], expected.probabilities[:, 2], strict=True
    ):
        assert [each["token"] for each in layer] == [*names]
        assert [each["probability"] for each in layer] == pytest.approx(numbers, abs=1e-5)


def test_contributions_add_up(client):
    found = ask(client, "contributions", text=TEXT, label="ham", other="<b>spam</b>")
    parts = np.sum(found["heads"]) + np.sum(found["mlps"])
    parts += found["token"] + found["position"] + found["biases"]
    assert parts == pytest.approx(found["logit"], abs=1e-3)


@pytest.mark.parametrize(
    ("path", "fields", "word"),
    [
        ("attention", {"token": 200}, "200"),
        ("attention", {"weights": "pretraind"}, "pretrained"),
        ("attention-head", {"block": 7}, "7"),
        ("next", {"token": 200}, "200"),
        ("importance", {"label": "eggs"}, "eggs"),
        ("importance", {"model": "second", "label": "ham"}, "ham"),
        ("contributions", {"other": "eggs"}, "eggs"),
        ("layers", {"model": "second"}, "regression"),
    ],
)
def test_what_cannot_be_explained(client, path, fields, word):
    response = client.post(f"/api/{path}", json={"text": TEXT} | fields)
    assert response.status_code == 422 and word in response.json()["error"]


def test_every_part_has_source_and_a_chapter(client):
    (operation,) = (each for each in OPERATIONS if each.path == "/api/part")
    for part in operation.fields[0].choices:
        shown = ask(client, "part", part=part)
        assert all(("def " in each["code"] or "class " in each["code"]) for each in shown["source"])
        chapter = ask(client, "chapter", name=shown["chapter"])
        assert chapter["cells"][0]["text"].startswith("# ")


def test_the_commands_of_the_documentation(client):
    page = Path(__file__).parents[2] / "docs" / "how-to" / "serve.md"
    found = re.findall(
        r"^curl -s localhost:8124(\S+)(?:.* -d '(.*)')?$", page.read_text("utf-8"), re.M
    )
    assert len(found) == 11
    for path, body in found:
        body = body.replace('"spam"', '"<b>spam</b>"')  # the label of this test's classifier
        response = client.post(path, json=json.loads(body)) if body else client.get(path)
        assert response.status_code == 200, f"{path}: {response.text}"


# --- the description ---


def test_the_description_lists_the_routes(client):
    described = client.get("/openapi.json").json()
    assert described == json.loads(json.dumps(openapi())) and described["openapi"] == "3.1.0"
    routes = {
        (route.path, method.lower())
        for route in client.app.routes
        for method in getattr(route, "methods", None) or ()
        if method != "HEAD"
    }
    others = {("/openapi.json", "get"), ("/", "get")}
    assert {(path, m) for path, item in described["paths"].items() for m in item} == routes - others


def fits(value: Any, schema: dict[str, Any]) -> bool:
    """Whether a value fits JSON Schema, as far as `openapi` uses it."""
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    types = {"string": str, "integer": int, "number": (int, float), "boolean": bool}
    types |= {"object": dict, "array": list, "null": type(None)}
    if not any(isinstance(value, types[kind]) for kind in kinds):
        return False
    if isinstance(value, list):
        return all(fits(each, schema["items"]) for each in value)
    if isinstance(value, dict) and "properties" in schema:
        known = schema["properties"]
        return value.keys() >= known.keys() and all(fits(value[k], known[k]) for k in known)
    return True


EXAMPLES = {
    "texts": ["win", TEXT],
    "text": TEXT,
    "part": "attention",
    "name": "03_attention",
}


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.path)
def test_answers_fit_the_description(client, operation):
    described = openapi()["paths"][operation.path][operation.method.lower()]
    if operation.method == "GET":
        response = client.get(operation.path)
    else:
        body = described["requestBody"]["content"]["application/json"]["schema"]
        response = client.post(
            operation.path, json={name: EXAMPLES[name] for name in body["required"]}
        )
    assert response.status_code == 200, response.text
    ((media, content),) = described["responses"]["200"]["content"].items()
    assert response.headers["content-type"].startswith(media)
    value = response.json() if media == "application/json" else response.text
    assert fits(value, content["schema"])
