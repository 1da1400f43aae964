"""Text generation with other heads: tokens as from generate(), answers as from predict()."""

from pathlib import Path

import pytest
import torch
from tiny import TINY

from gpt2_from_scratch.classifier.classifier import Classifier
from gpt2_from_scratch.classifier.generate import generate_with_heads
from gpt2_from_scratch.classifier.settings import HeadConfig
from gpt2_from_scratch.errors import UsageError
from gpt2_from_scratch.gpt2.config import LoRAConfig
from gpt2_from_scratch.gpt2.generate import generate
from gpt2_from_scratch.gpt2.weights import load_gpt2

HEADS = [
    HeadConfig("kind", labels=("a", "b", "c"), pooling="last_token"),
    HeadConfig("mean", labels=("a", "b"), pooling="mean", layer=1),
    HeadConfig("first", "regression", ("x", "y"), pooling="first_token", scale=(3.0, 1.0)),
    HeadConfig("any", "multi-label", ("a", "b"), layer=0, final_norm=False, pooling="last_token"),
    HeadConfig("tag", "token-classification", ("O", "X", "Y"), layer=1, hidden=(7,), dropout=0.5),
    HeadConfig("state", "features", layer=2, pooling="last_token"),
    HeadConfig("next", "language"),
    HeadConfig("ends", "span"),
]
PROMPT = "the ring and"


@pytest.fixture
def classifier(tiny_checkpoint: Path) -> Classifier:
    """One head per task, with weights of std 0.2."""
    made = Classifier.on_base(tiny_checkpoint, heads=HEADS)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.model.head.parameters():
            if parameter is not made.model.wte.weight:
                parameter.normal_(0, 0.2, generator=generator)
    return made


@pytest.mark.parametrize("drawn", [{}, {"temperature": 1.3, "top_k": 9, "seed": 4}])
def test_the_tokens_are_those_of_generate(tiny_checkpoint, classifier, drawn):
    generated = generate_with_heads(classifier, PROMPT, 12, **drawn)
    ids = torch.tensor(classifier.tokenizer.encode(PROMPT))
    plain = generate(load_gpt2(tiny_checkpoint), ids, 12, stop_id=276, **drawn).tolist()
    assert generated.text == classifier.tokenizer.decode(plain) and generated.text.startswith(
        PROMPT
    )
    assert generated.tokens == [classifier.tokenizer.decode([token]) for token in plain]
    assert generated.n_prompt == len(ids) < len(generated.tokens)
    assert all(len(rows) == len(plain) for rows in generated.outputs.values())


@torch.no_grad()
def test_heads_answer_for_the_text_so_far(tiny_checkpoint, classifier):
    generated = generate_with_heads(classifier, PROMPT, 8, temperature=1.0)
    ids = torch.tensor(classifier.tokenizer.encode(PROMPT))
    plain = generate(load_gpt2(tiny_checkpoint), ids, 8, stop_id=276, temperature=1.0).tolist()
    model, x, states = classifier.model.eval(), None, []
    x = model.wte.weight[plain] + model.wpe.weight[: len(plain)]  # (T, C)
    for block in (*model.blocks, None):
        states.append(x)
        x = block(x[None])[0] if block else x
    normal, (T, C) = [model.ln_f(state) for state in states], states[0].shape
    so_far = torch.stack([normal[1][: t + 1].mean(dim=0) for t in range(T)])
    hidden = torch.nn.functional.linear(normal[1], *model.head["tag"].dense_0.parameters())
    expected = {
        "kind": model.head["kind"](normal[2]),
        "mean": model.head["mean"](so_far),
        "first": model.head["first"](normal[2][0]).expand(T, 2),
        "any": model.head["any"](states[0]),
        "tag": model.head["tag"].out(hidden),
        "state": normal[2],
        "ends": model.head["ends"](normal[2]),
    }
    assert generated.outputs.keys() == expected.keys() and generated.outputs["state"].shape == (
        T,
        C,
    )
    for name, outputs in expected.items():
        torch.testing.assert_close(generated.outputs[name], outputs, atol=1e-4, rtol=0)


def test_answers_are_those_of_predict(classifier):
    """For each beginning that the tokenizer encodes as exactly these tokens."""
    generated = generate_with_heads(classifier, PROMPT, 10, temperature=0.7)
    assert list(generated.answers) == ["kind", "mean", "first", "any", "tag", "state"]
    compared = 0
    for t in range(1, len(generated.tokens) + 1):
        text = "".join(generated.tokens[:t])
        if "\ufffd" in text or classifier.encode([text])[0][0] != ids_of(classifier, generated)[:t]:
            continue
        compared += 1
        [found] = classifier.predict([text])
        for name in ("kind", "mean"):
            ours, theirs = generated.answers[name][t - 1], found.answers[name]
            assert ours.label == theirs.label
            assert ours.probabilities == pytest.approx(theirs.probabilities, abs=1e-4)
        assert generated.answers["first"][t - 1].values == pytest.approx(
            found.answers["first"].values, abs=1e-4
        )
        assert generated.answers["any"][t - 1].probabilities == pytest.approx(
            found.answers["any"].probabilities, abs=1e-4
        )
    assert compared >= generated.n_prompt
    [found] = classifier.predict([PROMPT])
    first_word = generated.answers["tag"][0]  # the first word is one token
    assert found.answers["tag"].words[0].label == first_word.label
    assert found.answers["tag"].words[0].probability == pytest.approx(
        first_word.probabilities[first_word.label], abs=1e-4
    )


def ids_of(classifier: Classifier, generated) -> list[int]:
    plain = load_gpt2(classifier.description.base)
    ids = torch.tensor(classifier.tokenizer.encode(PROMPT))
    return generate(plain, ids, 10, stop_id=276, temperature=0.7).tolist()


def test_lora_generates_as_the_merged_model(tiny_checkpoint):
    kind = HeadConfig("kind", labels=("a", "b"), pooling="last_token")
    heads = [kind, HeadConfig("next", "language")]
    adapted = Classifier.on_base(tiny_checkpoint, heads=heads, lora=LoRAConfig(rank=2))
    with torch.no_grad():
        for name, parameter in adapted.model.named_parameters():
            if "lora" in name:
                parameter.normal_(0, 0.2, generator=torch.Generator().manual_seed(1))
    generated = generate_with_heads(adapted, PROMPT, 9)
    plain = load_gpt2(tiny_checkpoint)
    adapted.merge()
    values = {n: p for n, p in adapted.model.state_dict().items() if not n.startswith("head.")}
    plain.load_state_dict(values | {"head.weight": values["wte.weight"]})
    ids = torch.tensor(adapted.tokenizer.encode(PROMPT))
    assert generated.text == adapted.tokenizer.decode(generate(plain, ids, 9, stop_id=276).tolist())


def test_one_head_and_no_new_tokens(tiny_checkpoint):
    alone = Classifier.on_base(tiny_checkpoint, heads=[HeadConfig("next", "language")])
    generated = generate_with_heads(alone, PROMPT, 0)
    assert generated.text == PROMPT and generated.outputs == generated.answers == {}


def test_it_stops_at_the_end_of_text(classifier, monkeypatch):
    """The third token that the plain model generates is used as the end of text."""
    tokenizer, model = classifier.tokenizer, load_gpt2(classifier.description.base)
    ids = generate(model, torch.tensor(tokenizer.encode(PROMPT)), 6).tolist()
    stop = ids[len(tokenizer.encode(PROMPT)) + 2]
    monkeypatch.setattr(tokenizer, "end_of_text_id", stop)
    generated = generate_with_heads(classifier, PROMPT, 6)
    n = ids.index(stop, generated.n_prompt) + 1
    assert generated.tokens == [tokenizer.decode([token]) for token in ids[:n]]
    assert len(generated.outputs["kind"]) == n <= generated.n_prompt + 3


def test_impossible_generation_is_refused(tiny_checkpoint, classifier):
    mute = Classifier.on_base(tiny_checkpoint, ["a", "b"])
    with pytest.raises(UsageError, match="task='language'"):
        generate_with_heads(mute, PROMPT, 3)
    n = len(classifier.tokenizer.encode(PROMPT))
    assert len(generate_with_heads(classifier, PROMPT, TINY["n_ctx"] - n).tokens) <= TINY["n_ctx"]
    with pytest.raises(UsageError, match=f"{n} prompt tokens and {33 - n} new ones .* 32"):
        generate_with_heads(classifier, PROMPT, 33 - n)
    with pytest.raises(UsageError, match="nothing to continue"):
        generate_with_heads(classifier, "", 3)
    for wrong in ({"temperature": -1.0}, {"top_k": 0}, {"seed": -1}):
        with pytest.raises(UsageError, match=r"-1|0"):
            generate_with_heads(classifier, PROMPT, 3, **wrong)
