"""Heads of every task on a GPT-2 of three blocks, and a plain loop that computes their answers.

The loop processes one text at a time, block by block. T tokens of a text, C = n_embd, K outputs.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2_from_scratch.classifier.classifier import Classifier
from gpt2_from_scratch.classifier.freezing import set_trainable
from gpt2_from_scratch.classifier.heads import layers_by_name
from gpt2_from_scratch.classifier.settings import HeadConfig
from gpt2_from_scratch.classifier.tasks.classification import Choice
from gpt2_from_scratch.classifier.tasks.language import Likelihood, State
from gpt2_from_scratch.classifier.tasks.multi_label import Labels
from gpt2_from_scratch.classifier.tasks.regression import Values
from gpt2_from_scratch.classifier.tasks.span import LONGEST_ANSWER, Extract
from gpt2_from_scratch.classifier.tasks.tagging import Tag, Tags
from gpt2_from_scratch.gpt2.tokenizer import Tokenizer

N_LAYER = 3
TEXTS = [
    "the cat is in the house",
    "the cat",
    "",
    "the cat is in the house",
    "win",
    "the",
    "where is it\nthe cat is in the house",
    " \n ",
    "héllo 🎉  there",
    "you and the other one " * 20,
    "héllo 🎉  there",
    "what is it\n",
    "where is the cat and where is the hat and you\nhere",
    "the ",
]
# heads that answer for every token share no text with those that read an end token, the default
LABEL = HeadConfig("label", labels=("ham", "other", "spam"), pooling="last_token")
LAYERS = HeadConfig(
    "layers",
    labels=("a", "b"),
    layer=1,
    final_norm=False,
    pooling="first_token",
    hidden=(8, 5),
    activation="gelu",
    dropout=0.3,
)
SIGMOID = HeadConfig("sigmoid", labels=("no", "yes"), one_output=True, pooling="mean")
TOPICS = HeadConfig(
    "topics", task="multi-label", labels=("x", "y", "z"), layer=2, pooling="last_token"
)
STARS = HeadConfig(
    "stars",
    task="regression",
    labels=("low", "high"),
    center=(3.0, -10),
    scale=(2.0, 0.5),
    pooling="last_token",
)
TAGS = HeadConfig(
    "tags", task="token-classification", labels=("B-x", "O", "I-x"), layer=2, final_norm=False
)
ANSWER = HeadConfig("answer", task="span")
LANGUAGE = HeadConfig("lm", task="language")
FIRST = replace(LABEL, name="first", pooling="first_token")
STATE = HeadConfig("state", task="features", layer=1, final_norm=False, pooling="mean")
BOTTOM = HeadConfig("bottom", task="features", layer=0, pooling="last_token")
HEADS = (LABEL, LAYERS, SIGMOID, TOPICS, STARS, TAGS, ANSWER, LANGUAGE, STATE)
AT_THE_END = tuple(
    replace(head, name=f"{head.name}_end", pooling="end_token")
    for head in (LABEL, TOPICS, STARS, BOTTOM)
)


def classifier_with(base: Path, *heads: HeadConfig, **settings: Any) -> Classifier:
    """A frozen classifier; a head's weights (std 0.2) are the same in any combination of heads."""
    classifier = Classifier.on_base(base, heads=heads, **settings)
    with torch.no_grad():
        for name, layers in layers_by_name(classifier.model, heads).items():
            generator = torch.Generator().manual_seed(sum(name.encode()))
            for parameter in layers.parameters():
                if parameter is not classifier.model.wte.weight:
                    parameter.normal_(0.0, 0.2, generator=generator)
    set_trainable(classifier.model, 0, final_norm=False, heads=heads)
    return classifier


@torch.no_grad()
def plain_outputs(classifier: Classifier, head: HeadConfig, ids: Sequence[int]) -> Tensor:
    """(K,), or (T, K) for a head that answers for every token."""
    model = classifier.model.eval()
    x = model.embed(torch.tensor([ids]))
    for block in list(model.blocks)[: N_LAYER if head.layer is None else head.layer]:
        x = block(x)
    states = (model.ln_f(x) if head.final_norm else x)[0]  # (T, C)
    if head.reads_one_state:
        states = {
            "end_token": states[-1],  # the ids end with an end token
            "last_token": states[-1],
            "first_token": states[0],
            "mean": states.mean(dim=0),
        }[head.pooling]
    for layer in layers_of(classifier, head):
        states = layer(states)
    return states


def layers_of(classifier: Classifier, head: HeadConfig) -> list[nn.Module]:
    """The linear layers and activations, in order."""
    layers = layers_by_name(classifier.model, classifier.description.heads)[head.name]
    return list(layers) if isinstance(layers, nn.Sequential) else [layers]


def softmax(scores: np.ndarray) -> np.ndarray:
    probabilities = np.exp(scores.astype(float) - scores.max())
    return probabilities / probabilities.sum()


def token_of_each_byte(tokenizer: Tokenizer, ids: Sequence[int]) -> list[int]:
    return [t for t, token in enumerate(ids) for _ in tokenizer.token_bytes(token)]


def plain_answer(
    head: HeadConfig, outputs: np.ndarray, text: str, ids: Sequence[int], tokenizer: Tokenizer
) -> Any:
    names = head.labels
    if head.task == "classification":
        z = float(outputs[0])
        probabilities = (
            [1 / (1 + np.exp(z)), 1 / (1 + np.exp(-z))] if head.one_output else softmax(outputs)
        )
        return Choice(
            names[int(np.argmax(probabilities))], dict(zip(names, probabilities, strict=True))
        )
    if head.task == "multi-label":
        probabilities = dict(zip(names, 1 / (1 + np.exp(-outputs.astype(float))), strict=True))
        return Labels([name for name in names if probabilities[name] > 0.5], probabilities)
    if head.task == "regression":
        return Values(
            {
                n: float(x) * s + c
                for n, x, s, c in zip(names, outputs, head.scale, head.center, strict=True)
            }
        )
    if head.task == "token-classification":
        return plain_tags(head, outputs, text, ids, tokenizer)
    if head.task == "span":
        return plain_extract(outputs, text, ids, tokenizer)
    if head.task == "features":
        return State(outputs.tolist())
    following = torch.tensor(ids[1:], dtype=torch.int64)
    logits = torch.from_numpy(outputs[:-1])
    nats = float(F.cross_entropy(logits, following, reduction="sum")) if len(ids) > 1 else 0.0
    right = int((logits.argmax(dim=1) == following).sum())
    n_bytes = len(b"".join(map(tokenizer.token_bytes, ids[1:])))
    return Likelihood(nats, right, len(ids) - 1, n_bytes)


def plain_tags(
    head: HeadConfig, outputs: np.ndarray, text: str, ids: Sequence[int], tokenizer: Tokenizer
) -> Tags:
    owner, tags = token_of_each_byte(tokenizer, ids), []
    for word in re.finditer(r"\S+", text):
        place, label, probability = len(text[: word.start()].encode()), "O", 0.0
        if place < len(owner):
            probabilities = softmax(outputs[owner[place]])
            label, probability = (
                head.labels[int(probabilities.argmax())],
                float(probabilities.max()),
            )
        tags.append(Tag(word.group(), word.start(), word.end(), label, probability))
    return Tags(tags)


def plain_extract(
    outputs: np.ndarray, text: str, ids: Sequence[int], tokenizer: Tokenizer
) -> Extract:
    """Try all pairs of tokens after the first line, one after the other."""
    owner = token_of_each_byte(tokenizer, ids)
    context = text.find("\n") + 1
    place = len(text[:context].encode())
    if place >= len(owner) or context == len(text):
        return Extract("", len(text), len(text), 0.0)
    first = owner[place]
    starts, ends = softmax(outputs[first:, 0]), softmax(outputs[first:, 1])
    pairs = [
        (starts[a] * ends[b], first + a, first + b)
        for a in range(len(starts))
        for b in range(a, min(len(ends), a + LONGEST_ANSWER))
    ]
    probability, a, b = max(pairs)
    inside = [
        n
        for n, character in enumerate(text)
        if any(
            a <= owner[byte] <= b
            for byte in range(len(text[:n].encode()), len(text[: n + 1].encode()))
            if byte < len(owner)
        )
        and not character.isspace()
    ]
    if not inside:  # only white space
        return Extract("", -1, -1, probability)
    return Extract(text[inside[0] : inside[-1] + 1], inside[0], inside[-1] + 1, probability)


def assert_same(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    for name, value in vars(expected).items():
        other = getattr(found, name)
        if name in ("start", "end") and value == -1:
            assert found.start == found.end
        elif name in ("probabilities", "values") and isinstance(value, dict):
            assert list(other) == list(value)
            np.testing.assert_allclose([*other.values()], [*value.values()], atol=2e-5)
        elif name in ("values", "nats", "probability"):
            np.testing.assert_allclose(other, value, atol=1e-4)
        elif name == "words":
            assert len(other) == len(value)
            for one, another in zip(other, value, strict=True):
                assert_same(one, another)
        else:
            assert other == value


def assert_answers_of_the_loop(classifier: Classifier, texts: Sequence[str]) -> None:
    encoded, cut = classifier.encode(texts)
    assert any(cut)
    found = classifier.predict(texts)
    assert [p.truncated for p in found] == cut
    assert [p.n_tokens for p in found] == [len(ids) for ids in encoded]
    for text, ids, prediction in zip(texts, encoded, found, strict=True):
        assert list(prediction.answers) == [head.name for head in classifier.description.heads]
        for head in classifier.description.heads:
            outputs = plain_outputs(classifier, head, ids).numpy()
            expected = plain_answer(head, outputs, text, ids, classifier.tokenizer)
            assert_same(prediction.answers[head.name], expected)
