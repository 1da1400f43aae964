"""Heads for the next token at any layer: logit lens, tuned lens and linear layer.

The witnesses are numpy and plain loops over all logits; test_hugging_face_heads.py has another.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from interrupted import interrupted_after
from safetensors import safe_open
from three_blocks import (
    HEADS,
    LABEL,
    N_LAYER,
    TEXTS,
    assert_answers_of_the_loop,
    classifier_with,
)
from torch import Tensor, nn

from gpt2_from_scratch.classifier import heads as heads_module
from gpt2_from_scratch.classifier import train as training_run
from gpt2_from_scratch.classifier.classifier import Classifier
from gpt2_from_scratch.classifier.freezing import set_trainable, trainable_names
from gpt2_from_scratch.classifier.generate import generate_with_heads
from gpt2_from_scratch.classifier.heads import layers_by_name
from gpt2_from_scratch.classifier.hugging_face import to_peft, to_transformers
from gpt2_from_scratch.classifier.onnx_graph import to_onnx
from gpt2_from_scratch.classifier.settings import LANGUAGE_FORMS, HeadConfig, TrainConfig
from gpt2_from_scratch.classifier.tasks.language import Likelihood, TunedLens
from gpt2_from_scratch.classifier.train import TrainingRun, finetune, loss_and_scores, to_labelled
from gpt2_from_scratch.data.messages import Message
from gpt2_from_scratch.data.split import Split
from gpt2_from_scratch.errors import Interrupted, UsageError
from gpt2_from_scratch.gpt2.config import LoRAConfig
from gpt2_from_scratch.gpt2.weights import load_gpt2
from gpt2_from_scratch.storage.files import sha256_of
from gpt2_from_scratch.storage.tensors import read_tensors, write_tensors

LAYERS = range(N_LAYER + 1)
LOGIT_LENSES = [HeadConfig(f"logit_{n}", "language", layer=n) for n in LAYERS]
LENSES = [HeadConfig(f"lens_{n}", "language", layer=n, form="tuned lens") for n in LAYERS]
FULL = [HeadConfig(f"full_{n}", "language", layer=n, form="full") for n in LAYERS]
SHORT = [text for text in TEXTS if len(text) < 60]
FROZEN = TrainConfig(
    n_last_blocks=0, final_norm=False, epochs=2, batch_size=4, lr=0.01, patience=2, seed=3
)


def random_heads(base: Path, *heads: HeadConfig, **settings) -> Classifier:
    """A frozen classifier whose heads, and only they, are changed at random."""
    classifier = Classifier.on_base(base, heads=heads, **settings)
    set_trainable(classifier.model, 0, final_norm=False, heads=heads)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in classifier.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return classifier


def split_of(texts: list[str]) -> Split:
    return Split(*([Message(text, "x") for text in part] for part in (texts, texts[:5], texts[:1])))


@torch.no_grad()
def streams(classifier: Classifier, text: str) -> tuple[list[int], list[Tensor]]:
    """The ids of a text and its residual stream (T, C) at each layer, by a plain loop."""
    ids = classifier.encode([text])[0][0]
    x = classifier.model.embed(torch.tensor([ids]))
    found = [x[0]]
    for block in classifier.model.blocks:
        x = block(x)
        found.append(x[0])
    return ids, found


# --- what the three forms compute ---


def test_all_forms_start_as_the_logit_lens(base: Path) -> None:
    classifier = Classifier.on_base(base, heads=[*LOGIT_LENSES, *LENSES, *FULL])
    for prediction in classifier.predict(TEXTS):
        for n in LAYERS:
            start, full = (prediction.answers[f"{kind}_{n}"] for kind in ("logit", "full"))
            assert prediction.answers[f"lens_{n}"] == start
            if n > 0:
                assert full == start
            else:  # all tokens are equally probable
                assert full.nats == pytest.approx(full.tokens * np.log(277), rel=1e-5)


def test_heads_equal_numpy(base: Path) -> None:
    classifier = random_heads(base, *LENSES, *FULL)
    norm = classifier.model.ln_f
    gain, shift, wte = (
        t.detach().double().numpy() for t in (norm.weight, norm.bias, classifier.model.wte.weight)
    )

    def normed(x: np.ndarray) -> np.ndarray:
        centred = x - x.mean(axis=1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-5) * gain + shift

    found = classifier.predict(SHORT)
    for text, prediction in zip(SHORT, found, strict=True):
        ids, states = streams(classifier, text)
        for n in LAYERS:
            x = states[n].double().numpy()
            layers = layers_by_name(classifier.model, classifier.description.heads)
            A, b = (p.detach().double().numpy() for p in layers[f"lens_{n}"].change.parameters())
            W, c = (p.detach().double().numpy() for p in layers[f"full_{n}"].parameters())
            by_name = {
                f"lens_{n}": normed(x + x @ A.T + b) @ wte.T,
                f"full_{n}": normed(x) @ W.T + c,
            }
            for name, logits in by_name.items():
                logits = logits[:-1]
                logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
                nats = -sum(logs[t, token] for t, token in enumerate(ids[1:]))
                correct = sum(int(logs[t].argmax() == token) for t, token in enumerate(ids[1:]))
                answer: Likelihood = prediction.answers[name]
                assert answer.nats == pytest.approx(nats, rel=1e-4, abs=1e-5)
                assert (answer.correct, answer.tokens) == (correct, len(ids) - 1)


def test_no_random_number_is_drawn(base: Path) -> None:
    """So the other heads of a run start as they would without them."""
    alone, after = (
        Classifier.on_base(base, heads=[*others, LABEL], seed=5) for others in ([], LENSES + FULL)
    )
    found = layers_by_name(after.model, after.description.heads)["label"]
    assert torch.equal(found.weight, alone.model.head.weight)


# --- training ---


@pytest.mark.slow
def test_only_the_heads_train(base: Path, tmp_path: Path) -> None:
    classifier = Classifier.on_base(base, heads=[*LOGIT_LENSES[:1], *LENSES, *FULL])
    start = {name: p.clone() for name, p in classifier.model.named_parameters()}
    finetune(classifier, split_of(SHORT), FROZEN, tmp_path)
    expected = {f"head.lens_{n}.change.{name}" for n in LAYERS for name in ("weight", "bias")}
    expected |= {f"head.full_{n}.{name}" for n in LAYERS for name in ("weight", "bias")}
    assert {*trainable_names(classifier.model)} == expected
    for name, parameter in classifier.model.named_parameters():
        assert torch.equal(parameter, start[name]) is (name not in expected), name


@pytest.mark.parametrize("logits", [3 * 277, 10**9])
def test_gradients_are_those_of_all_logits_together(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logits: int
) -> None:
    """In pieces of three positions, and in one."""
    heads = [*LOGIT_LENSES[:1], *LENSES, *FULL]
    classifier = random_heads(base, *heads)
    split, computed = split_of(SHORT), []
    labelled = to_labelled(classifier, split.train)
    run = TrainingRun(classifier, split, labelled, FROZEN, tmp_path)
    monkeypatch.setattr(heads_module, "LOGITS", logits)
    plain = heads_module._checked_outputs
    monkeypatch.setattr(
        heads_module,
        "_checked_outputs",
        lambda *given: computed.append(plain(*given)) or computed[-1],
    )
    losses = run._gradients([0, 3, 4, 6, 8])
    for name, parameter in classifier.model.named_parameters():
        assert (parameter.grad is not None) is name.startswith(("head.lens", "head.full")), name
    assert max(found.numel() for found in computed) <= logits
    total, layers = 0.0, layers_by_name(classifier.model, heads)
    for head in heads:
        nats, n_tokens = 0.0, 0
        for number in (0, 3, 4, 6, 8):
            ids, states = streams(classifier, split.train[number].text)
            x = states[head.layer] if head in LENSES else classifier.model.ln_f(states[head.layer])
            wanted = torch.tensor(ids[1:], dtype=torch.int64)
            nats = nats + F.cross_entropy(layers[head.name](x[:-1]), wanted, reduction="sum")
            n_tokens += len(wanted)
        assert losses[head.name][0] == pytest.approx(nats.item() / n_tokens, rel=1e-5)
        total = total + nats / n_tokens
    expected = torch.autograd.grad(total, [*run.trainable.values()])
    for (name, parameter), gradient in zip(run.trainable.items(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-6, rtol=1e-4, msg=name)


@pytest.mark.slow
def test_scores_do_not_depend_on_the_size_of_pieces(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = random_heads(base, LABEL, *LENSES)
    labelled = to_labelled(classifier, [Message(text, "ham") for text in TEXTS])
    whole, answers = loss_and_scores(classifier, labelled), classifier.predict(TEXTS)
    computed, plain = [], heads_module._checked_outputs
    monkeypatch.setattr(heads_module, "LOGITS", 40 * 277)
    monkeypatch.setattr(
        heads_module,
        "_checked_outputs",
        lambda *given: computed.append(plain(*given)) or computed[-1],
    )
    in_pieces = loss_and_scores(classifier, labelled)
    assert max(found.numel() for found in computed) <= 40 * 277
    assert in_pieces[0] == pytest.approx(whole[0], rel=1e-5)
    for name, scores in whole[1].items():
        assert in_pieces[1][name].main == scores.main
    for one, other in zip(classifier.predict(TEXTS), answers, strict=True):
        for head in LENSES:
            assert one.answers[head.name].nats == pytest.approx(other.answers[head.name].nats)


def test_answers_in_pieces_are_those_of_a_loop(base: Path, monkeypatch) -> None:
    """Also those of heads of other tasks in the same batch."""
    monkeypatch.setattr(heads_module, "LOGITS", 40 * 277)
    assert_answers_of_the_loop(classifier_with(base, *HEADS), TEXTS)


def test_a_lens_beside_blocks_that_train(base: Path, tmp_path: Path) -> None:
    """The gradient of a lens after a trainable block reaches this block, as for other heads."""
    heads = [HeadConfig("lens", "language", form="tuned lens"), LABEL]
    classifier = random_heads(base, *heads)
    split = split_of(SHORT)
    set_trainable(classifier.model, 1, heads=heads)
    labelled = to_labelled(classifier, [Message(text, "ham") for text in SHORT])
    run = TrainingRun(classifier, split, labelled, FROZEN, tmp_path)
    run._gradients([0, 4])
    found = {name: p.grad.clone() for name, p in run.trainable.items()}
    assert {"ln_f.weight", "blocks.2.mlp.c_fc.weight", "head.lens.change.bias"} <= found.keys()
    nats, n_tokens, chosen = 0.0, 0, 0.0
    for number in (0, 4):
        ids = classifier.encode([SHORT[number]])[0]
        x = classifier.model.embed(torch.tensor(ids))
        for block in classifier.model.blocks:
            x = block(x)
        layers = layers_by_name(classifier.model, heads)
        logits = layers["lens"](x)[0, :-1]
        nats = nats + F.cross_entropy(logits, torch.tensor(ids[0][1:]), reduction="sum")
        n_tokens += len(ids[0]) - 1
        logits = layers["label"](classifier.model.ln_f(x[:, -1]))
        chosen = chosen + F.cross_entropy(logits, torch.tensor([0])) / 2
    expected = torch.autograd.grad(nats / n_tokens + chosen, [*run.trainable.values()])
    for (name, gradient), other in zip(found.items(), expected, strict=True):
        torch.testing.assert_close(gradient, other, atol=1e-5, rtol=1e-3, msg=name)


@pytest.mark.slow
def test_a_stopped_run_ends_bit_identical(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads, split = [*LENSES[:2], FULL[2]], split_of(SHORT)
    finetune(Classifier.on_base(base, heads=heads), split, FROZEN, tmp_path / "unbroken")
    with interrupted_after(4, monkeypatch), pytest.raises(Interrupted):
        finetune(Classifier.on_base(base, heads=heads), split, FROZEN, tmp_path / "stopped")
    finetune(
        Classifier.on_base(base, heads=heads), split, FROZEN, tmp_path / "stopped", resume=True
    )
    for name in ("metrics.jsonl", "last.safetensors", "best.safetensors"):
        found, expected = (sha256_of(tmp_path / run / name) for run in ("stopped", "unbroken"))
        assert found == expected, name


@pytest.mark.slow
def test_a_state_without_forms_is_resumed(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Earlier versions had only the tied head."""
    split = split_of(SHORT)
    with interrupted_after(4, monkeypatch), pytest.raises(Interrupted):
        finetune(Classifier.on_base(base, heads=[LABEL_X]), split, FROZEN, tmp_path)
    record, tensors = training_run.newest_state(tmp_path)
    for head in record["settings"]["heads"]:
        assert head.pop("form") == "tied"
    monkeypatch.setattr(training_run, "newest_state", lambda folder: (record, tensors))
    history = finetune(
        Classifier.on_base(base, heads=[LABEL_X]), split, FROZEN, tmp_path, resume=True
    )
    assert len(history) == 2


LABEL_X = HeadConfig("label", labels=("x", "y"), pooling="last_token")


# --- saving, generating, exporting ---


@pytest.mark.parametrize("lora", [None, LoRAConfig(rank=2), LoRAConfig(rank=2, head=True)])
def test_saved_and_loaded(base: Path, tmp_path: Path, lora: LoRAConfig | None) -> None:
    classifier = random_heads(base, LOGIT_LENSES[1], *LENSES, FULL[0], lora=lora)
    classifier.save(tmp_path / "best.safetensors")
    again = Classifier.load(tmp_path, base)
    assert again.predict(TEXTS) == classifier.predict(TEXTS)
    assert again.description == classifier.description
    with safe_open(tmp_path / "best.safetensors", "pt") as file:
        names = set(file.keys())
    assert not any(name.startswith(("wte.", "wpe.", "ln_f.")) or "own" in name for name in names)
    if lora is None:
        assert names == {*trainable_names(classifier.model)}


def test_a_single_head_is_saved_and_attached(base: Path, tmp_path: Path) -> None:
    lens = random_heads(base, LENSES[1])
    lens.save(tmp_path / "lens.safetensors")
    both = random_heads(base, FULL[1])
    both.attach(tmp_path / "lens.safetensors")
    for one, other in zip(both.predict(TEXTS), lens.predict(TEXTS), strict=True):
        assert one.answers["lens_1"] == other.answers["lens_1"]
    assert layers_by_name(both.model, both.description.heads)["lens_1"].ln_f is not None


def test_files_without_forms_have_a_tied_head(base: Path, tmp_path: Path) -> None:
    """Earlier versions had only the tied head."""
    classifier = random_heads(base, LOGIT_LENSES[2], LABEL)
    path = tmp_path / "best.safetensors"
    classifier.save(path)
    metadata, tensors = read_tensors(path, "gpt2-classifier 3")
    description = json.loads(metadata["description"])
    for head in description["heads"]:
        assert head.pop("form") == "tied"
    write_tensors(path, tensors, metadata | {"description": json.dumps(description)})
    again = Classifier.load(path, base)
    assert again.description == classifier.description
    assert again.predict(TEXTS) == classifier.predict(TEXTS)


def test_generation_from_a_layer(base: Path) -> None:
    classifier = random_heads(base, LENSES[1], LABEL)
    found = generate_with_heads(classifier, "the cat", 5)
    ids = classifier.tokenizer.encode("the cat")
    lens = layers_by_name(classifier.model, classifier.description.heads)["lens_1"]
    assert isinstance(lens, TunedLens)
    with torch.no_grad():
        for _ in range(5):
            x = classifier.model.blocks[0](classifier.model.embed(torch.tensor([ids])))
            ids.append(int(lens(x)[0, -1].argmax()))
    assert found.text == classifier.tokenizer.decode(ids)


@pytest.mark.parametrize("form", LANGUAGE_FORMS)
@pytest.mark.parametrize("export", [to_onnx, to_transformers, to_peft])
def test_exports_refuse_them(base: Path, form: str, export) -> None:
    lora = LoRAConfig(rank=2) if export is to_peft else None
    head = HeadConfig("next", "language", form=form)
    with pytest.raises(UsageError, match="'next' is for language"):
        export(Classifier.on_base(base, heads=[head], lora=lora))


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"task": "features", "form": "full"}, ["full", "features"]),
        ({"labels": ("a", "b"), "form": "tuned lens"}, ["tuned lens", "classification"]),
        ({"task": "language", "form": "tuned lens", "final_norm": False}, ["final_norm"]),
        ({"task": "language", "form": "lens"}, ["lens", "tied", "full", "tuned lens"]),
        ({"task": "language", "form": "full", "hidden": (8,)}, ["language", "hidden"]),
    ],
)
def test_settings_that_no_head_can_have(settings: dict, names: list[str]) -> None:
    with pytest.raises(UsageError) as error:
        HeadConfig(**settings)
    assert all(name in str(error.value) for name in names)


def test_a_full_head_may_read_the_raw_state(base: Path) -> None:
    head = HeadConfig("raw", "language", layer=1, form="full", final_norm=False)
    classifier = random_heads(base, head)
    ids, states = streams(classifier, TEXTS[0])
    assert isinstance(classifier.model.head, nn.Linear)
    with torch.no_grad():
        logits = F.linear(states[1], classifier.model.head.weight, classifier.model.head.bias)
    expected = F.cross_entropy(logits[:-1], torch.tensor(ids[1:]), reduction="sum")
    found = classifier.predict(TEXTS[:1])[0].answer
    assert found.nats == pytest.approx(expected.item(), rel=1e-4)
    assert load_gpt2(base).wte.weight.equal(classifier.model.wte.weight)
