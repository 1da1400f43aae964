"""Adapting GPT-2 equals a plain loop of next-token training, and uses no label and no test text."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from said import listen

from gpt2_from_scratch.classifier.adaptation import adapt
from gpt2_from_scratch.classifier.classifier import Classifier
from gpt2_from_scratch.classifier.freezing import trainable_names
from gpt2_from_scratch.classifier.settings import ADAPT_LR, TrainConfig
from gpt2_from_scratch.classifier.train import epoch_order, finetune, freeze, rate_factor
from gpt2_from_scratch.data.messages import Message
from gpt2_from_scratch.data.split import Split
from gpt2_from_scratch.errors import UsageError
from gpt2_from_scratch.gpt2.changes import parameters_by_name
from gpt2_from_scratch.gpt2.config import LoRAConfig
from gpt2_from_scratch.gpt2.tokenizer import Tokenizer
from gpt2_from_scratch.gpt2.weights import load_gpt2
from gpt2_from_scratch.speed.feature_store import FeatureStore

TRAIN = [Message(f"{'the cat' if n % 2 else 'a house'} is in {n}", "ab"[n % 2]) for n in range(10)]
VAL = [Message(f"the cat is in {n}", "b") for n in range(20, 24)]
TEST = [Message("nobody may read this", "a")]
OTHERS = ["where is the house", "the cat is where", TRAIN[0].text, "where is the house"]
SPLIT = Split(TRAIN, VAL, TEST)
CONFIG = TrainConfig(adapt=3, adapt_lr=3e-3, batch_size=4, seed=7)


def made(base: Path, **options) -> Classifier:
    return Classifier.on_base(base, ("a", "b"), seed=1, **options)


def values(classifier: Classifier) -> dict[str, torch.Tensor]:
    parameters = parameters_by_name(classifier.model).items()
    return {name: parameter.detach().clone() for name, parameter in parameters}


@torch.no_grad()
def bits_per_byte(model, tokenizer: Tokenizer, texts: list[str]) -> float:
    nats = n_bytes = 0.0
    for text in texts:
        ids = tokenizer.encode(text)
        logits = model(torch.tensor([ids]))[0]
        nats += float(F.cross_entropy(logits[:-1], torch.tensor(ids[1:]), reduction="sum"))
        n_bytes += sum(len(tokenizer.token_bytes(token)) for token in ids[1:])
    return nats / float(torch.tensor(2.0).log()) / n_bytes


@pytest.mark.slow
def test_the_weights_are_those_of_a_plain_loop(tiny_checkpoint, tmp_path) -> None:
    classifier = made(tiny_checkpoint)
    before = values(classifier)
    found = adapt(classifier, SPLIT, OTHERS, CONFIG, tmp_path)

    model, tokenizer = load_gpt2(tiny_checkpoint), Tokenizer(tiny_checkpoint)
    own = [message.text for message in TRAIN]
    texts = [*own, OTHERS[0], OTHERS[1]]  # each text once
    model.train().requires_grad_(True)
    named = {name: p for name, p in model.named_parameters()}
    decayed = [p for name, p in named.items() if p.dim() == 2 and name != "wpe.weight"]
    others = [p for p in named.values() if not any(p is one for one in decayed)]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer, step, total = torch.optim.AdamW(groups, fused=True), 0, 3 * 3
    bits = [bits_per_byte(model, tokenizer, [m.text for m in VAL])]
    for epoch in (1, 2, 3):
        order = epoch_order(len(texts), 7, epoch).tolist()
        for first in range(0, len(texts), 4):
            batch = [tokenizer.encode(texts[n]) for n in order[first : first + 4]]
            nats = [
                F.cross_entropy(
                    model(torch.tensor([ids]))[0, :-1], torch.tensor(ids[1:]), reduction="sum"
                )
                for ids in batch
            ]
            loss = sum(nats) / sum(len(ids) - 1 for ids in batch)
            optimizer.zero_grad()
            loss.backward()
            for group in optimizer.param_groups:
                group["lr"] = 3e-3 * rate_factor(step, total, 0.1)
            optimizer.step()
            step += 1
    bits.append(bits_per_byte(model, tokenizer, [m.text for m in VAL]))
    after = values(classifier)
    for name, parameter in named.items():
        found_here, expected = after[name], parameter.detach()
        if name.endswith("c_attn.bias"):
            # the biases of keys change no output; Adam moves them by rounding errors
            found_here, expected = (torch.cat([x[:32], x[64:]]) for x in (found_here, expected))
        torch.testing.assert_close(found_here, expected, atol=1e-4, rtol=1e-3)
        assert not torch.equal(after[name], before[name]), name
    assert torch.equal(after["head.weight"], before["head.weight"])
    assert [found.bits_before, found.bits_after] == pytest.approx(bits, rel=1e-4)
    assert found.bits_after < found.bits_before
    assert (found.epochs, found.n_train, found.n_unlabelled) == (3, 10, 2)


@pytest.mark.slow
def test_neither_labels_nor_test_texts_are_used(tiny_checkpoint, tmp_path) -> None:
    found = []
    other = Split([replace(m, label="a") for m in TRAIN], [replace(m, label="a") for m in VAL], [])
    for name, split in (("one", SPLIT), ("other", other)):
        classifier = made(tiny_checkpoint)
        adapt(classifier, split, OTHERS, CONFIG, tmp_path / name)
        found.append(values(classifier))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.slow
def test_unlabelled_texts_change_the_weights(tiny_checkpoint, tmp_path) -> None:
    found = []
    for name, texts in (("with", OTHERS), ("without", [])):
        classifier = made(tiny_checkpoint)
        adapt(classifier, SPLIT, texts, CONFIG, tmp_path / name)
        found.append(values(classifier))
    assert not torch.equal(found[0]["wte.weight"], found[1]["wte.weight"])


@pytest.mark.slow
def test_adapters_stay_as_they_are_and_the_model_is_frozen_as_before(
    tiny_checkpoint, tmp_path
) -> None:
    """LoRA's B is 0 at the beginning, so its weights are those without LoRA."""
    plain, adapted = made(tiny_checkpoint), made(tiny_checkpoint, lora=LoRAConfig(rank=2, alpha=2))
    freeze(adapted, TrainConfig(n_last_blocks=0))
    names, before = trainable_names(adapted.model), values(adapted)
    for name, classifier in (("plain", plain), ("adapted", adapted)):
        adapt(classifier, SPLIT, [], CONFIG, tmp_path / name)
    after, expected = values(adapted), values(plain)
    assert trainable_names(adapted.model) == names
    for name in after:
        of_gpt2 = name in expected and not name.startswith("head.")
        assert torch.equal(after[name], (expected if of_gpt2 else before)[name]), name


@pytest.mark.slow
def test_frozen_blocks_have_their_own_cached_features(tiny_checkpoint, tmp_path) -> None:
    """A store with the features of the unadapted GPT-2 does not change the adapted classifier."""
    training = TrainConfig(epochs=1, seed=3)
    found = []
    for name in ("alone", "after another"):
        store = FeatureStore(tmp_path / name)
        if name == "after another":
            other = made(tiny_checkpoint, store=store)
            finetune(other, SPLIT, training, tmp_path / name / "other")
        classifier = made(tiny_checkpoint, store=store)
        adapt(classifier, SPLIT, [], CONFIG, tmp_path / name / "adaptation")
        finetune(classifier, SPLIT, training, tmp_path / name / "run")
        assert len([p for p in (tmp_path / name).iterdir() if p.name.startswith("1-blocks")]) == (
            1 if name == "alone" else 2
        )
        found.append(values(classifier))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_long_texts_are_cut_and_reported(tiny_checkpoint, tmp_path) -> None:
    lines = listen()
    classifier = made(tiny_checkpoint, max_tokens=8)
    adapt(classifier, SPLIT, ["you and the other one " * 20], CONFIG, tmp_path)
    assert any("of 11 messages are longer than 8 tokens" in line for line in lines)


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(UsageError, match="adapt_lr.*adapt"):
        TrainConfig(adapt_lr=1e-3)
    with pytest.raises(UsageError, match="adapt"):
        TrainConfig(adapt=-1)
    assert TrainConfig(adapt=1).adapt_lr == 0 < ADAPT_LR
