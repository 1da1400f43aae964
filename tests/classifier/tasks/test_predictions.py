"""What heads of every task say, held against a plain loop: one text at a time, block by block.

T tokens of a text, C = n_embd, K outputs of a head.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import TINY_MERGES, write_checkpoint
from torch import Tensor, nn

from gpt2_from_scratch.classifier import heads as heads_module
from gpt2_from_scratch.classifier.classifier import Classifier
from gpt2_from_scratch.classifier.freezing import set_trainable
from gpt2_from_scratch.classifier.heads import layers_by_name
from gpt2_from_scratch.classifier.settings import HeadConfig
from gpt2_from_scratch.classifier.tasks.predictions import (
    LONGEST_ANSWER,
    Choice,
    Extract,
    Labels,
    Likelihood,
    State,
    Tag,
    Tags,
    Values,
    answers,
)
from gpt2_from_scratch.data.messages import Span
from gpt2_from_scratch.errors import CheckpointError, DataError, UsageError
from gpt2_from_scratch.gpt2.config import LoRAConfig
from gpt2_from_scratch.gpt2.model import TransformerBlock
from gpt2_from_scratch.gpt2.tokenizer import Tokenizer, write_bpe
from gpt2_from_scratch.gpt2.weights import load_gpt2, save_gpt2
from gpt2_from_scratch.storage.paths import MODELS

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
LABEL = HeadConfig("label", labels=("ham", "other", "spam"))
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
TOPICS = HeadConfig("topics", task="multi-label", labels=("x", "y", "z"), layer=2)
STARS = HeadConfig(
    "stars", task="regression", labels=("low", "high"), center=(3.0, -10), scale=(2.0, 0.5)
)
TAGS = HeadConfig(
    "tags", task="token-classification", labels=("B-x", "O", "I-x"), layer=2, final_norm=False
)
ANSWER = HeadConfig("answer", task="span")
LANGUAGE = HeadConfig("lm", task="language")
FIRST = replace(LABEL, name="first", pooling="first_token")
STATE = HeadConfig("state", task="features", layer=1, final_norm=False, pooling="mean")
BOTTOM = HeadConfig("bottom", task="features", layer=0)
HEADS = (LABEL, LAYERS, SIGMOID, TOPICS, STARS, TAGS, ANSWER, LANGUAGE, STATE)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("three_blocks")
    gpt2 = load_gpt2(write_checkpoint(folder / "openai", seed=7, n_layer=N_LAYER))
    save_gpt2(gpt2, folder / "ours")  # which loads in half the time
    write_bpe(folder / "ours", TINY_MERGES)
    return folder / "ours"


def classifier_with(base: Path, *heads: HeadConfig, **settings: Any) -> Classifier:
    """Frozen, with heads whose weights are of std 0.2, each the same in whatever company."""
    classifier = Classifier.on_base(base, heads=heads, **settings)
    with torch.no_grad():
        for name, layers in layers_by_name(classifier.model, heads).items():
            generator = torch.Generator().manual_seed(sum(name.encode()))
            for parameter in layers.parameters():
                if parameter is not classifier.model.wte.weight:
                    parameter.normal_(0.0, 0.2, generator=generator)
    set_trainable(classifier.model, 0, final_norm=False, heads=heads)
    return classifier


# --- the plain loop ---


@torch.no_grad()
def plain_outputs(classifier: Classifier, head: HeadConfig, ids: Sequence[int]) -> Tensor:
    """(K,), or (T, K) of a head that answers for every token."""
    model = classifier.model.eval()
    x = model.embed(torch.tensor([ids]))
    for block in list(model.blocks)[: N_LAYER if head.layer is None else head.layer]:
        x = block(x)
    states = (model.ln_f(x) if head.final_norm else x)[0]  # (T, C)
    if head.reads_one_state:
        states = {"last_token": states[-1], "first_token": states[0], "mean": states.mean(dim=0)}[
            head.pooling
        ]
    for layer in layers_of(classifier, head):
        states = layer(states)
    return states


def layers_of(classifier: Classifier, head: HeadConfig) -> list[nn.Module]:
    """Linear layers and activations, in their order."""
    layers = layers_by_name(classifier.model, classifier.description.heads)[head.name]
    return list(layers) if isinstance(layers, nn.Sequential) else [layers]


def softmax(scores: np.ndarray) -> np.ndarray:
    shares = np.exp(scores.astype(float) - scores.max())
    return shares / shares.sum()


def token_of_each_byte(tokenizer: Tokenizer, ids: Sequence[int]) -> list[int]:
    return [t for t, token in enumerate(ids) for _ in tokenizer.token_bytes(token)]


def plain_answer(
    head: HeadConfig, outputs: np.ndarray, text: str, ids: Sequence[int], tokenizer: Tokenizer
) -> Any:
    names = head.labels
    if head.task == "classification":
        z = float(outputs[0])
        shares = (
            [1 / (1 + np.exp(z)), 1 / (1 + np.exp(-z))] if head.one_output else softmax(outputs)
        )
        return Choice(names[int(np.argmax(shares))], dict(zip(names, shares, strict=True)))
    if head.task == "multi-label":
        shares = dict(zip(names, 1 / (1 + np.exp(-outputs.astype(float))), strict=True))
        return Labels([name for name in names if shares[name] > 0.5], shares)
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
        place, label, share = len(text[: word.start()].encode()), "O", 0.0
        if place < len(owner):
            shares = softmax(outputs[owner[place]])
            label, share = head.labels[int(shares.argmax())], float(shares.max())
        tags.append(Tag(word.group(), word.start(), word.end(), label, share))
    return Tags(tags)


def plain_extract(
    outputs: np.ndarray, text: str, ids: Sequence[int], tokenizer: Tokenizer
) -> Extract:
    """All pairs of tokens behind the first line, one after the other."""
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
    share, a, b = max(pairs)
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
    if not inside:  # nothing but white space
        return Extract("", -1, -1, share)
    return Extract(text[inside[0] : inside[-1] + 1], inside[0], inside[-1] + 1, share)


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


# --- predict ---


@pytest.mark.parametrize("head", [*HEADS, BOTTOM], ids=lambda head: head.name)
def test_each_task_says_what_the_loop_says(base: Path, head: HeadConfig) -> None:
    """Texts twice, texts that begin alike, empty ones, and one that is cut."""
    assert_answers_of_the_loop(classifier_with(base, head), TEXTS)


@pytest.mark.parametrize("max_tokens", [1, 7, 32])
def test_all_tasks_at_once_say_what_the_loop_says(base: Path, max_tokens: int) -> None:
    classifier = classifier_with(base, *HEADS, max_tokens=max_tokens)
    assert_answers_of_the_loop(classifier, TEXTS)
    assert classifier._made and classifier._made[1].depth == 1  # the first block ran packed


def test_a_head_at_the_bottom_lets_nothing_be_packed(base: Path) -> None:
    classifier = classifier_with(base, *HEADS, BOTTOM)
    assert_answers_of_the_loop(classifier, TEXTS)
    assert classifier._made is None


@pytest.mark.parametrize("final_norm", [True, False])
def test_states_of_every_layer(base: Path, final_norm: bool) -> None:
    heads = [
        HeadConfig(f"at_{n}", task="features", layer=n, final_norm=final_norm)
        for n in range(N_LAYER + 1)
    ]
    assert_answers_of_the_loop(classifier_with(base, *heads), TEXTS)
    assert_answers_of_the_loop(classifier_with(base, heads[2]), TEXTS)  # and one alone


def test_no_texts_no_answers(base: Path) -> None:
    classifier = classifier_with(base, *HEADS)
    assert classifier.predict([]) == []
    assert classifier.logits([]).shape == (0, 3)
    assert classifier_with(base, STATE).logits([]).shape == (0, 32)


@pytest.mark.parametrize("head", [TAGS, ANSWER, LANGUAGE])
def test_logits_are_one_row_a_text(base: Path, head: HeadConfig) -> None:
    classifier = classifier_with(base, head, LABEL)
    with pytest.raises(UsageError, match="answers for every token"):
        classifier.logits([[1, 2], [3]])
    with pytest.raises(UsageError, match="answers for every token"):
        classifier.all_logits(classifier.texts([[1, 2], [3]]))


# --- extracts and tags of any scores ---


@pytest.mark.parametrize("seed", range(30))
def test_an_extract_is_the_best_of_all_pairs(base: Path, seed: int) -> None:
    rng, tokenizer = np.random.default_rng(seed), Tokenizer(base)
    pieces = ["the", " cat", "\n", " ", "é", "🎉", "ing", "?", " you", "\u3000"]
    text = "".join(rng.choice(pieces, size=int(rng.integers(1, 50))))
    ids = tokenizer.encode(text)[: int(rng.integers(1, 60))]
    outputs = torch.from_numpy(rng.normal(size=(len(ids) + 3, 2)).astype(np.float32)) * 3
    outputs[len(ids) :] = 1e4  # pads would be the best by far
    (found,) = answers(ANSWER, outputs[None], [text], [ids], tokenizer)
    assert_same(found, plain_extract(outputs[: len(ids)].numpy(), text, ids, tokenizer))
    assert text.find("\n") < found.start <= found.end <= len(text)
    assert found.text == text[found.start : found.end] == found.text.strip()
    assert 0 <= found.probability <= 1


def test_an_extract_is_not_too_long(base: Path) -> None:
    """The likeliest start is the first token, the likeliest end the last."""
    tokenizer, text = Tokenizer(base), "x" * 50
    outputs = torch.zeros(1, 50, 2)
    outputs[0, 0, 0], outputs[0, 49, 1] = 5.0, 4.0
    (found,) = answers(ANSWER, outputs, [text], [tokenizer.encode(text)], tokenizer)
    assert found.end - found.start <= LONGEST_ANSWER == 30
    assert found.start == 0  # the better of the two that cannot be had together
    outputs[0, 49, 1] = 6.0
    (found,) = answers(ANSWER, outputs, [text], [tokenizer.encode(text)], tokenizer)
    assert found.end == 50 and found.start >= 20


def test_words_that_are_given_are_tagged(base: Path) -> None:
    """Those behind a cut are O; entities are made of BIO tags."""
    tokenizer, text = Tokenizer(base), "the cat is here"
    ids = tokenizer.encode(text)[:5]
    words = [Span(0, 3), Span(4, 7), Span(4, 5), Span(11, 15)]
    outputs = torch.full((1, len(ids), 3), -5.0)
    owner = token_of_each_byte(tokenizer, ids)
    outputs[0, :, 1] = 0.0
    outputs[0, owner[4]] = torch.tensor([5.0, 0, 0])
    (found,) = answers(TAGS, outputs, [text], [ids], tokenizer, [words])
    assert [(w.word, w.label) for w in found.words] == [
        ("the", "O"),
        ("cat", "B-x"),
        ("c", "B-x"),
        ("here", "O"),
    ]
    assert found.words[3].probability == 0 < found.words[0].probability
    assert found.entities == [Span(4, 7, "x"), Span(4, 5, "x")]
    plain = replace(TAGS, labels=("noun", "verb"))
    (found,) = answers(plain, outputs[:, :, :2], [text], [ids], tokenizer, [words])
    assert found.words[3].label == "noun"  # the first, where there is no O
    with pytest.raises(DataError, match="no BIO tag"):
        _ = found.entities


# --- several heads in one pass ---


def graph(classifier: Classifier, *names: str) -> dict[str, Tensor]:
    """A number of each head's outputs at real tokens, to take the gradient of."""
    everyone = range(len(TEXTS))
    encoded, _ = classifier.encode(TEXTS)
    texts = classifier.texts(encoded)
    outputs, lengths = classifier.batch_outputs(texts, everyone)
    found = {}
    for name, out in outputs.items():
        if out.dim() == 3:
            out = torch.cat([row[:n] for row, n in zip(out, lengths.tolist(), strict=True)])
        found[name] = (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum()
    return found


def gradients(classifier: Classifier, total: Tensor) -> dict[str, Tensor]:
    """By the parameters' names as a model of several heads has them."""
    classifier.model.zero_grad()
    total.backward()
    only = [head.name for head in classifier.description.heads]
    within = "head." if len(only) > 1 else f"head.{only[0]}."
    return {
        name.replace("head.", within, 1) if name.startswith("head.") else name: p.grad
        for name, p in classifier.model.named_parameters()
        if p.grad is not None
    }


@pytest.mark.parametrize("heads", [HEADS, (LABEL, STARS), (LABEL, FIRST), (TOPICS, LAYERS, BOTTOM)])
def test_several_heads_at_once_are_each_alone(base: Path, heads: tuple[HeadConfig, ...]) -> None:
    """Outputs, and the sum of their gradients."""
    together = classifier_with(base, *(replace(head, dropout=0.0) for head in heads))
    together.model.requires_grad_(True)
    found = graph(together)
    expected: dict[str, Tensor] = {}
    for head in heads:
        alone = classifier_with(base, replace(head, dropout=0.0))
        alone.model.requires_grad_(True)
        number = graph(alone)[head.name]
        torch.testing.assert_close(found[head.name], number, atol=1e-3, rtol=1e-5)
        for name, gradient in gradients(alone, number).items():
            expected[name] = expected.get(name, 0) + gradient
    together_gradients = gradients(together, sum(found.values()))
    assert together_gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        size = max(1.0, float(gradient.abs().max()))
        torch.testing.assert_close(
            together_gradients[name], gradient, atol=1e-5 * size, rtol=0, msg=name
        )


@pytest.mark.parametrize("head", [LABEL, LAYERS, SIGMOID, TAGS], ids=lambda head: head.name)
def test_a_head_without_gradient_leaves_the_model_alone(base: Path, head: HeadConfig) -> None:
    """And learns the same itself; a head beside it has its gradient as ever."""
    head = replace(head, dropout=0.0)
    found = {}
    for gradient in (True, False):
        classifier = classifier_with(base, replace(head, gradient=gradient))
        classifier.model.requires_grad_(True)
        found[gradient] = gradients(classifier, graph(classifier)[head.name])
    assert found[False].keys() == {name for name in found[True] if name.startswith("head.")}
    for name, gradient in found[False].items():
        torch.testing.assert_close(gradient, found[True][name], atol=1e-6, rtol=1e-6)
    both = classifier_with(base, replace(head, gradient=False), STARS)
    both.model.requires_grad_(True)
    stars = classifier_with(base, STARS)
    stars.model.requires_grad_(True)
    expected = gradients(stars, graph(stars)["stars"])
    for name, gradient in gradients(both, sum(graph(both).values())).items():
        if not name.startswith("head."):
            size = max(1.0, float(expected[name].abs().max()))
            torch.testing.assert_close(gradient, expected[name], atol=1e-5 * size, rtol=0)


@pytest.mark.parametrize(
    "heads, whole, at_one",
    [
        ((LAYERS,), [], [0]),  # the one block before it, at one position
        ((STATE,), [0], []),  # a mean needs all of them
        ((LAYERS, TOPICS), [0], [1]),
        ((TAGS,), [0, 1], []),
        ((TAGS, TOPICS), [0, 1], []),
        ((BOTTOM,), [], []),
        ((LABEL,), [0, 1], [2]),
        ((LABEL, SIGMOID), [0, 1, 2], []),
        ((LABEL, FIRST), [0, 1, 2], []),  # two positions of each text
        ((LABEL, LAYERS, STARS), [0, 1], [2]),
    ],
)
def test_blocks_above_what_is_read_do_not_run(
    base: Path,
    monkeypatch: pytest.MonkeyPatch,
    heads: tuple[HeadConfig, ...],
    whole: list[int],
    at_one: list[int],
) -> None:
    classifier = classifier_with(base, *heads)
    blocks = list(classifier.model.blocks)
    ran: dict[str, list[int]] = {"whole": [], "at one": []}

    def counted(kind: str, inner: Callable) -> Callable:
        def run(block: TransformerBlock, *rest: Any) -> Tensor:
            ran[kind].append(blocks.index(block))
            return inner(block, *rest)

        return run

    monkeypatch.setattr(TransformerBlock, "forward", counted("whole", TransformerBlock.forward))
    monkeypatch.setattr(heads_module, "block_on", counted("whole", heads_module.block_on))
    monkeypatch.setattr(heads_module, "block_at", counted("at one", heads_module.block_at))
    classifier.model.requires_grad_(True)  # so that nothing is computed before
    graph(classifier)
    assert ran == {"whole": whole, "at one": at_one}


def test_what_blocks_above_hold_does_not_matter(base: Path) -> None:
    classifier = classifier_with(base, LAYERS, STATE)
    before = classifier.predict(TEXTS)
    for block in list(classifier.model.blocks)[1:]:
        for parameter in block.parameters():
            nn.init.constant_(parameter, torch.nan)
    assert classifier.predict(TEXTS) == before


@pytest.mark.parametrize("name", ["type", "keys", "values", "train"])
def test_names_that_torch_has_are_refused(base: Path, name: str) -> None:
    with pytest.raises(UsageError, match=f"cannot be called '{name}'"):
        classifier_with(base, LABEL, replace(TOPICS, name=name))


@pytest.mark.parametrize("heads", [(LAYERS,), (LABEL, STARS), (STATE, LABEL)])
def test_heads_of_any_make_train_where_none_is_named(
    base: Path, heads: tuple[HeadConfig, ...]
) -> None:
    model = classifier_with(base, *heads).model
    set_trainable(model, 0, final_norm=False)
    trains = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trains == [n for n, _ in model.named_parameters() if n.startswith("head.")] != []


def test_a_tied_head_among_others_has_to_be_named(base: Path) -> None:
    model = classifier_with(base, LABEL, LANGUAGE).model
    with pytest.raises(UsageError, match="tied to wte"):
        set_trainable(model)


# --- attached, saved and loaded ---


@pytest.mark.parametrize("head", [LABEL, LAYERS, TAGS, LANGUAGE, BOTTOM], ids=lambda h: h.name)
def test_an_attached_head_says_what_it_said(base: Path, tmp_path: Path, head: HeadConfig) -> None:
    other = replace(STARS, name="other")
    there, here = classifier_with(base, head), classifier_with(base, other)
    there.save(tmp_path / "there.safetensors")
    before = torch.random.get_rng_state()
    here.attach(tmp_path / "there.safetensors")
    assert torch.equal(torch.random.get_rng_state(), before)
    expected = there.predict(TEXTS), classifier_with(base, other).predict(TEXTS)
    for found, *said in zip(here.predict(TEXTS), *expected, strict=True):
        assert list(found.answers) == ["other", head.name]
        assert_same(found.answers[head.name], said[0].answer)
        assert_same(found.answers["other"], said[1].answer)
    here.save(tmp_path / "here.safetensors")
    again = Classifier.load(tmp_path / "here.safetensors", base)
    assert again.predict(TEXTS) == here.predict(TEXTS)
    with pytest.raises(UsageError, match="each of another name"):
        again.attach(tmp_path / "there.safetensors")
    assert again.predict(TEXTS) == here.predict(TEXTS)


@pytest.mark.parametrize(
    "lora", [LoRAConfig(rank=2), LoRAConfig(rank=2, matrices=(), head=True)], ids=["all", "head"]
)
def test_no_head_is_attached_beside_adapters(base: Path, tmp_path: Path, lora: LoRAConfig) -> None:
    """Those of blocks change what it reads; those of heads would be looked for in it too."""
    classifier_with(base, STARS).save(tmp_path / "stars.safetensors")
    adapted = classifier_with(base, LABEL, lora=lora)
    with pytest.raises(CheckpointError, match="lora_A was trained here"):
        adapted.attach(tmp_path / "stars.safetensors")
    adapted.save(tmp_path / "adapted.safetensors")
    with pytest.raises(CheckpointError, match="lora_A"):
        classifier_with(base, STARS).attach(tmp_path / "adapted.safetensors")
    adapted.merge()
    with pytest.raises(CheckpointError, match="lora_A was trained here"):
        adapted.attach(tmp_path / "stars.safetensors")


def test_no_head_is_attached_that_reads_texts_otherwise(base: Path, tmp_path: Path) -> None:
    classifier_with(base, LABEL, max_tokens=5).save(tmp_path / "cut.safetensors")
    with pytest.raises(CheckpointError, match="max_tokens = 5, this one 32"):
        classifier_with(base, STARS).attach(tmp_path / "cut.safetensors")
    padded = classifier_with(base, replace(LABEL, pooling="last_position"))
    padded.description = replace(padded.description, pad_to=32)
    padded.save(tmp_path / "padded.safetensors")
    with pytest.raises(CheckpointError, match="pad_to = 32, this one None"):
        classifier_with(base, STARS).attach(tmp_path / "padded.safetensors")


COMBINATIONS = [
    ((LABEL,), None, {"n_last_blocks": 0, "final_norm": False}),
    ((LABEL, TAGS), LoRAConfig(rank=2, n_last_blocks=1), {"n_last_blocks": 1}),
    ((LABEL, LANGUAGE), LoRAConfig(rank=3, matrices=("query", "mlp.c_fc")), {"n_last_blocks": 3}),
    (HEADS, None, {"n_last_blocks": 2}),
    (HEADS, LoRAConfig(rank=2, head=True), {"n_last_blocks": 0}),
    ((LAYERS,), LoRAConfig(rank=2, matrices=(), head=True), {"n_last_blocks": 0}),
    ((LANGUAGE,), LoRAConfig(rank=2), {"n_last_blocks": 0, "final_norm": False}),
    ((LANGUAGE, LABEL), None, {"pattern": "wte.*,blocks.0.ln_1.*,head.label.*"}),
    ((STATE,), None, {"n_last_blocks": 0, "final_norm": False}),
]


@pytest.fixture(params=COMBINATIONS)
def trained(request: pytest.FixtureRequest, base: Path) -> Iterator[Classifier]:
    """Heads, LoRA and blocks, all that trains moved away from where it was."""
    heads, lora, what = request.param
    classifier = classifier_with(base, *heads, lora=lora)
    set_trainable(classifier.model, heads=heads, **what)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in classifier.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    yield classifier


def outputs_of(classifier: Classifier) -> dict[str, Tensor]:
    encoded, _ = classifier.encode(TEXTS)
    classifier.model.eval()
    with torch.no_grad():
        texts = classifier.texts(encoded)
        return classifier.batch_outputs(texts, range(len(TEXTS)))[0]


def test_any_combination_is_saved_and_loaded_to_the_bit(
    trained: Classifier, base: Path, tmp_path: Path
) -> None:
    trained.save(tmp_path / "best.safetensors")
    again = Classifier.load(tmp_path, base)
    assert again.description == trained.description
    expected = dict(trained.model.named_parameters())
    assert [name for name, _ in again.model.named_parameters()] == list(expected)
    for name, parameter in again.model.named_parameters():
        assert torch.equal(parameter, expected[name]), name
    for each in (again, trained):  # both from the embeddings on
        set_trainable(each.model, pattern="*", heads=each.description.heads)
    for name, outputs in outputs_of(again).items():
        assert torch.equal(outputs, outputs_of(trained)[name]), name
    assert again.predict(TEXTS) == trained.predict(TEXTS)


def test_a_file_holds_what_trained_and_little_more(trained: Classifier, tmp_path: Path) -> None:
    """What trained is a number of four bytes each; heads are frozen where LoRA adapts them."""
    path = tmp_path / "best.safetensors"
    trained.save(path)
    saved = [
        p.numel()
        for name, p in trained.model.named_parameters()
        if p.requires_grad or name.startswith("head.")
    ]
    assert 4 * sum(saved) < path.stat().st_size < 4 * sum(saved) + 6000 + 120 * len(saved)


def test_a_head_of_two_classes_takes_kilobytes(tmp_path: Path) -> None:
    assert "mini" in MODELS
    classifier = Classifier.on_base("mini", ["ham", "spam"])
    set_trainable(classifier.model, 0, final_norm=False)
    classifier.save(tmp_path / "head.safetensors")
    assert 2 * 257 * 4 < (tmp_path / "head.safetensors").stat().st_size < 10_000


def test_values_keep_the_digits_of_their_unit(base: Path) -> None:
    """In float32 there is nothing between 1,700,000,000 and 1,700,000,128."""
    head = HeadConfig("when", "regression", labels=("s",), center=(1.7e9,), scale=(10.0,))
    found = answers(head, torch.tensor([[0.5], [-2.0]]), ["a", "b"], [[1], [1]], Tokenizer(base))
    assert [answer.values["s"] for answer in found] == [1700000005.0, 1699999980.0]
