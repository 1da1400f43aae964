"""What the JSON API answers: one table of operations, their checks, and their OpenAPI description.

Each operation calls functions of other rooms and puts their results into JSON's types. The table is
the only list of routes: `app` serves it, and `openapi` describes it.

T tokens of a text, L blocks, H = n_head, K labels.
"""

import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np

from gpt2_from_scratch.classifier.classifier import Prediction
from gpt2_from_scratch.classifier.prediction_table import PredictionTable
from gpt2_from_scratch.errors import UsageError, did_you_mean
from gpt2_from_scratch.explain.attribution import (
    attention_weights,
    contributions,
    read,
    tokens_of,
)
from gpt2_from_scratch.explain.gradients import gradient_times_input, integrated_gradients
from gpt2_from_scratch.explain.lenses import answer_by_layer, next_tokens
from gpt2_from_scratch.explain.tokens import end_of, leave_one_out
from gpt2_from_scratch.web.models import WEIGHTS, Model
from gpt2_from_scratch.web.network import arrows
from gpt2_from_scratch.web.sources import PARTS, chapter_shown, part_shown

MOST_BYTES = 1_000_000  # of a request's body
MOST_TEXTS = 1000  # per request
LONGEST_TEXT = 20_000  # characters
MOST_TOKENS = 256  # of a text that is explained; memory grows with the square
TEXTS_AT_ONCE = 64  # other requests may be answered before the next ones
REQUIRED = object()
KINDS: dict[type, str] = {
    str: "a string",
    int: "an integer",
    float: "a number",
    bool: "true or false",
    list: "a list",
}
LIMITS = {
    "bytes": MOST_BYTES,
    "texts": MOST_TEXTS,
    "characters": LONGEST_TEXT,
    "tokens": MOST_TOKENS,
}

DIGITS = 6  # after the decimal point, of probabilities in arrays
METHODS = {
    "leave-one-out": leave_one_out,
    "integrated-gradients": integrated_gradients,
    "gradient-x-input": gradient_times_input,
}

Models = Mapping[str, Model]


@dataclass(frozen=True)
class Field:
    """A field of a request: its type, its default and its bounds."""

    name: str
    what: str
    kind: type = str  # str, int, bool, or list for a list of strings
    default: Any = REQUIRED
    choices: tuple[str, ...] = ()
    at_least: int = 0
    at_most: int = LONGEST_TEXT  # characters, items, or the value of an integer

    def checked(self, value: Any) -> Any:
        """Return the value if it fits. Raises UsageError if it does not."""
        kind = type(value)
        if kind is not self.kind:  # not isinstance: true is not an integer
            found = KINDS.get(kind, "null" if value is None else "an object")
            raise UsageError(f"{self.name} must be {KINDS[self.kind]}, not {found}")
        if self.choices and value not in self.choices:
            hint = did_you_mean(value, self.choices) or f" Choose from {', '.join(self.choices)}."
            raise UsageError(f"unknown {self.name} {value!r:.80}.{hint}")
        if self.kind is list:
            for number, text in enumerate(value):
                if type(text) is not str:
                    raise UsageError(f"{self.name}[{number}] must be a string")
                if len(text) > LONGEST_TEXT:
                    raise UsageError(
                        f"{self.name}[{number}] has {len(text):,} characters; at most "
                        f"{LONGEST_TEXT:,} are allowed"
                    )
        size = value if self.kind is int else len(value) if self.kind in (str, list) else 0
        if not self.at_least <= size <= self.at_most:
            unit = " characters" if kind is str else " items" if kind is list else ""
            raise UsageError(
                f"{self.name} has {size:,}{unit}; allowed are {self.at_least:,} to "
                f"{self.at_most:,}{unit}"
            )
        return value

    def schema(self) -> dict[str, Any]:
        """Describe the field as JSON Schema."""
        found: dict[str, Any] = {"description": self.what}
        if self.kind is list:
            items = {"type": "string", "maxLength": LONGEST_TEXT}
            found |= {"type": "array", "items": items, "maxItems": self.at_most}
        elif self.kind is int:
            found |= {"type": "integer", "minimum": self.at_least, "maximum": self.at_most}
        elif self.kind is bool:
            found |= {"type": "boolean"}
        elif self.choices:
            found |= {"type": "string", "enum": list(self.choices)}
        else:
            found |= {"type": "string", "maxLength": self.at_most}
        return found if self.default in (REQUIRED, None) else found | {"default": self.default}


@dataclass(frozen=True)
class Operation:
    """One route of the API.

    `answer` gets the models and the fields, and returns what JSON accepts. If it is a generator,
    other requests may be answered between its steps, and its last value is the answer. `returns` is
    an example with types instead of values; see `schema_of`.
    """

    path: str
    what: str
    answer: Callable[..., Any]
    returns: Any
    fields: tuple[Field, ...] = ()
    method: str = "POST"
    media: str = "application/json"

    def values(self, given: Any, models: Models) -> dict[str, Any]:
        """Check the fields of a request, and return them with defaults.

        The name of a model is replaced by the model. Raises UsageError for what is not allowed.
        """
        if not isinstance(given, dict):
            raise UsageError("the body must be a JSON object")
        known = {each.name: each for each in self.fields}
        if others := [name for name in given if name not in known]:
            hint = did_you_mean(others[0], known) or f" Known fields: {', '.join(known)}."
            raise UsageError(f"unknown field {others[0]!r:.80}.{hint}")
        values = {}
        for name, each in known.items():
            if name in given:
                values[name] = each.checked(given[name])
            elif each.default is REQUIRED:
                raise UsageError(f"the field {name} is missing")
            else:
                values[name] = each.default
        if "model" in values:
            values["model"] = _model(models, values["model"])
        return values


def _model(models: Models, name: str) -> Model:
    if name == "":
        return next(iter(models.values()))
    if name not in models:
        hint = did_you_mean(name, models) or f" Served are {', '.join(models)}."
        raise UsageError(f"unknown model {name!r:.80}.{hint}")
    return models[name]


# --- answers ---


def _health(models: Models) -> dict[str, Any]:
    return {"status": "ok", "version": version("gpt2-from-scratch")}


def _models(models: Models) -> dict[str, Any]:
    return {"models": [model.facts() for model in models.values()], "limits": LIMITS}


def _predict(models: Models, model: Model, texts: list[str]) -> Iterator[Any]:
    answers: list[dict[str, Any]] = []
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        found = model.classifier.predict(texts[start : start + TEXTS_AT_ONCE])
        answers += [as_dict(prediction) for prediction in found if prediction]
        yield
    yield {"model": model.name, "predictions": answers}


def _table(models: Models, model: Model, texts: list[str], with_text: bool) -> Iterator[Any]:
    file = io.StringIO()
    table = PredictionTable(file, model.classifier.description.heads, with_text)
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        some = texts[start : start + TEXTS_AT_ONCE]
        for number, found in enumerate(model.classifier.predict(some), start=start):
            assert found
            table.write(number + 1, texts[number], found)
        yield
    yield file.getvalue()


def _tokens(models: Models, model: Model, text: str) -> dict[str, Any]:
    refuse_long(model, text)
    (prediction,) = model.classifier.predict([text])
    assert prediction
    name = model.classifier.description.head.name
    return {
        "model": model.name,
        "prediction": as_dict(prediction),
        "tokens": [
            {"token": token, "answer": answers[name].as_dict()}
            for token, answers in model.classifier.predict_by_token(text)
        ],
    }


def _importance(
    models: Models, model: Model, text: str, label: str, method: str, unit: str
) -> dict[str, Any]:
    refuse_long(model, text)
    explain: Callable[..., Any] = METHODS[method]
    found = explain(model.classifier, text, label, unit=unit)
    return {"model": model.name} | found.as_dict() | {"limit": found.limit}


def _attention(models: Models, model: Model, text: str, weights: str, token: int) -> dict[str, Any]:
    tokens, found = _weights(model, text, weights)
    if token >= len(tokens):
        raise UsageError(f"token = {token}: the text has tokens 0 to {len(tokens) - 1}")
    return {
        "model": model.name,
        "weights": weights,
        "tokens": tokens,
        "token": token,
        "attends_to": _rounded(found[:, :, token]),
        "attended_by": _rounded(found[:, :, :, token]),
    }


def _attention_head(
    models: Models, model: Model, text: str, weights: str, block: int, head: int
) -> dict[str, Any]:
    tokens, found = _weights(model, text, weights)
    if block >= found.shape[0] or head >= found.shape[1]:
        raise UsageError(
            f"block {block}, head {head}: there are blocks 0 to {found.shape[0] - 1} with heads 0 to "
            f"{found.shape[1] - 1}"
        )
    return {
        "model": model.name,
        "weights": weights,
        "tokens": tokens,
        "matrix": _rounded(found[block, head]),
    }


def _weights(model: Model, text: str, weights: str) -> tuple[list[str], np.ndarray]:
    """The tokens of a text and their attention weights (L, H, T, T)."""
    refuse_long(model, text)
    ids, _ = read(model.classifier, text)
    found = attention_weights(model.gpt2(weights), ids[0].tolist())
    return tokens_of(model.classifier, ids), found


def _layers(models: Models, model: Model, text: str) -> dict[str, Any]:
    refuse_long(model, text)
    found = answer_by_layer(model.classifier, text)
    return {
        "model": model.name,
        "tokens": found.tokens,
        "labels": list(found.labels),
        "probabilities": _rounded(found.probabilities),
        "by_token": _rounded(found.by_token),
    }


def _next(
    models: Models, model: Model, text: str, weights: str, token: int, top: int
) -> dict[str, Any]:
    refuse_long(model, text)
    classifier = model.classifier
    (ids,), _ = classifier.encode([text])
    ids = ids[: len(ids) - len(end_of(classifier))]  # GPT-2 was pretrained without end tokens
    if token >= len(ids):
        raise UsageError(f"token = {token}: the text has {len(ids)} tokens")
    tokenizer = classifier.tokenizer
    found = next_tokens(model.gpt2(weights), tokenizer, tokenizer.decode(ids), top=top)
    return {
        "model": model.name,
        "weights": weights,
        "tokens": found.tokens,
        "token": token,
        "layers": [
            [{"token": name, "probability": p} for name, p in zip(names, row, strict=True)]
            for names, row in zip(
                found.predicted[:, token].tolist(),
                _rounded(found.probabilities[:, token]),
                strict=True,
            )
        ],
    }


def _contributions(
    models: Models, model: Model, text: str, label: str, other: str
) -> dict[str, Any]:
    refuse_long(model, text)
    found = contributions(model.classifier, text, label, other)
    arrays = {"heads": _rounded(found.heads), "mlps": _rounded(found.mlps)}
    return {"model": model.name} | vars(found) | arrays


def _rounded(numbers: np.ndarray) -> Any:
    return numbers.astype(float).round(DIGITS).tolist()


def _network(models: Models, model: Model, text: str) -> dict[str, Any]:
    refuse_long(model, text)
    return {"model": model.name, "arrows": arrows(model.classifier, text)}


def _part(models: Models, part: str) -> dict[str, Any]:
    return part_shown(part)


def _chapter(models: Models, name: str) -> dict[str, Any]:
    return chapter_shown(name)


def as_dict(prediction: Prediction) -> dict[str, Any]:
    """Return a prediction in JSON's types."""
    answers = {name: answer.as_dict() for name, answer in prediction.answers.items()}
    return vars(prediction) | {"answers": answers}


def refuse_long(model: Model, text: str) -> None:
    """Raise UsageError if a text has more tokens than are explained."""
    (ids,), _ = model.classifier.encode([text])
    count = max(len(ids), model.classifier.description.pad_to or 0)
    if count > MOST_TOKENS:
        raise UsageError(
            f"the text has {count} tokens, but texts of at most {MOST_TOKENS} are answered token by "
            "token and explained; /api/predict answers it"
        )


# --- the table ---

MODEL = Field("model", "name of a served model; empty: the first", default="", at_most=200)
TEXT = Field("text", "the message")
LABEL = Field("label", "the label; empty: the most probable one", default="")
SIDE = Field("weights", "GPT-2 after or before finetuning", default=WEIGHTS[0], choices=WEIGHTS)
TOKEN = Field("token", "number of a token, from 0", int, default=0, at_most=MOST_TOKENS - 1)
TEXTS = Field("texts", "the messages", list, at_most=MOST_TEXTS)

PREDICTION = {"answers": dict, "n_tokens": int, "truncated": bool, "empty": bool, "replaced": bool}

OPERATIONS = (
    Operation(
        "/health", "Whether the server runs.", _health, {"status": str, "version": str}, (), "GET"
    ),
    Operation(
        "/api/models",
        "The served classifiers and the limits of requests.",
        _models,
        {"models": [dict], "limits": dict},
        (),
        "GET",
    ),
    Operation(
        "/api/predict",
        "Each head's answer to each text.",
        _predict,
        {"model": str, "predictions": [PREDICTION]},
        (MODEL, TEXTS),
    ),
    Operation(
        "/api/table",
        "The answers as a table, as `gpt2-classifier predict --csv` prints it.",
        _table,
        str,
        (MODEL, TEXTS, Field("with_text", "add a column with the texts", bool, default=False)),
        media="text/csv",
    ),
    Operation(
        "/api/tokens",
        "The answer to a text, and to its beginning after each of its tokens.",
        _tokens,
        {"model": str, "prediction": PREDICTION, "tokens": [{"token": str, "answer": dict}]},
        (MODEL, TEXT),
    ),
    Operation(
        "/api/importance",
        "How much each word or token adds to the evidence for a label.",
        _importance,
        {
            "model": str,
            "method": str,
            "text": str,
            "label": str,
            "evidence": float,
            "probability": (float, None),
            "parts": [
                {
                    "text": str,
                    "characters": [int],
                    "tokens": [int],
                    "value": float,
                    "probability": (float, None),
                }
            ],
            "baseline": str,
            "total": float,
            "error": float,
            "limit": str,
        },
        (
            MODEL,
            TEXT,
            LABEL,
            Field("method", "how it is computed", default="leave-one-out", choices=(*METHODS,)),
            Field("unit", "words or tokens", default="word", choices=("word", "token")),
        ),
    ),
    Operation(
        "/api/attention",
        "What a token attends to, and what attends to it, in each head of each block.",
        _attention,
        {
            "model": str,
            "weights": str,
            "tokens": [str],
            "token": int,
            "attends_to": [[[float]]],
            "attended_by": [[[float]]],
        },
        (MODEL, TEXT, SIDE, TOKEN),
    ),
    Operation(
        "/api/attention-head",
        "The attention weights of one head: a row per token that attends.",
        _attention_head,
        {"model": str, "weights": str, "tokens": [str], "matrix": [[float]]},
        (
            MODEL,
            TEXT,
            SIDE,
            Field("block", "number of the block, from 0", int, default=0, at_most=999),
            Field("head", "number of the head, from 0", int, default=0, at_most=999),
        ),
    ),
    Operation(
        "/api/layers",
        "The answer if the head read an earlier layer, where it reads and at each token.",
        _layers,
        {
            "model": str,
            "tokens": [str],
            "labels": [str],
            "probabilities": [[float]],
            "by_token": [[[float]]],
        },
        (MODEL, TEXT),
    ),
    Operation(
        "/api/next",
        "The most probable next tokens after a token, read at each layer.",
        _next,
        {
            "model": str,
            "weights": str,
            "tokens": [str],
            "token": int,
            "layers": [[{"token": str, "probability": float}]],
        },
        (
            MODEL,
            TEXT,
            SIDE,
            TOKEN,
            Field("top", "how many", int, default=5, at_least=1, at_most=20),
        ),
    ),
    Operation(
        "/api/contributions",
        "What each head and each MLP adds to a label's logit, or to a difference of two logits.",
        _contributions,
        {
            "model": str,
            "tokens": [str],
            "label": str,
            "other": str,
            "logit": float,
            "token": float,
            "position": float,
            "heads": [[float]],
            "mlps": [float],
            "biases": float,
        },
        (MODEL, TEXT, LABEL, Field("other", "a label whose logit is subtracted", default="")),
    ),
    Operation(
        "/api/network",
        "The shape of every intermediate result for a text.",
        _network,
        {"model": str, "arrows": dict},
        (MODEL, TEXT),
    ),
    Operation(
        "/api/part",
        "The package's source code of a part of the network, and the chapter that explains it.",
        _part,
        {
            "part": str,
            "title": str,
            "what": str,
            "source": [{"name": str, "file": str, "line": int, "code": str}],
            "chapter": str,
        },
        (Field("part", "name of the part", choices=tuple(PARTS)),),
    ),
    Operation(
        "/api/chapter",
        "A chapter of the course; it has no cells unless the repository is installed.",
        _chapter,
        {"chapter": str, "file": str, "cells": [{"kind": str, "text": str}]},
        (
            Field(
                "name",
                "name of the chapter",
                choices=tuple(sorted({part.chapter for part in PARTS.values()})),
            ),
        ),
    ),
)


# --- its description ---

ERRORS = {
    "400": "the body is not JSON",
    "408": "the body arrived too slowly",
    "413": "the body is too large",
    "415": "the body is not application/json",
    "421": "the Host header is not an address of this server",
    "422": "a field is missing, unknown, or has a value that is not allowed",
    "500": "a bug, or a classifier that cannot answer",
    "503": "too many requests are waiting",
}
_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", dict: "object"}


def schema_of(shape: Any) -> dict[str, Any]:
    """Make JSON Schema of a shape: types, lists with one shape, dictionaries of shapes."""
    if isinstance(shape, list):
        return {"type": "array", "items": schema_of(shape[0])}
    if isinstance(shape, dict):
        properties = {name: schema_of(each) for name, each in shape.items()}
        return {"type": "object", "properties": properties, "required": list(shape)}
    if isinstance(shape, tuple):  # the type or null
        return {"type": [_TYPES[shape[0]], "null"]}
    return {"type": _TYPES[shape]}


def openapi() -> dict[str, Any]:
    """Describe the API as OpenAPI 3.1."""
    error = {"$ref": "#/components/schemas/Error"}
    paths: dict[str, Any] = {}
    for operation in OPERATIONS:
        codes: dict[str, str] = ERRORS if operation.method == "POST" else {"421": ERRORS["421"]}
        responses: dict[str, Any] = {
            "200": {
                "description": "the answer",
                "content": {operation.media: {"schema": schema_of(operation.returns)}},
            }
        }
        for code, what in codes.items():
            responses[code] = {
                "description": what,
                "content": {"application/json": {"schema": error}},
            }
        described: dict[str, Any] = {
            "summary": operation.what,
            "operationId": operation.path.rsplit("/", 1)[1],
            "responses": responses,
        }
        if operation.method == "POST":
            properties = {each.name: each.schema() for each in operation.fields}
            required = [each.name for each in operation.fields if each.default is REQUIRED]
            schema = {
                "type": "object",
                "properties": properties,
                "required": required,
                "additionalProperties": False,
            }
            content = {"application/json": {"schema": schema}}
            described["requestBody"] = {"required": True, "content": content}
        paths[operation.path] = {operation.method.lower(): described}
    shape = {"error": str}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "gpt2-classifier serve",
            "description": "A finetuned GPT-2 answers, and shows how it decides.",
            "version": version("gpt2-from-scratch"),
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "paths": paths,
        "components": {"schemas": {"Error": schema_of(shape)}},
    }
