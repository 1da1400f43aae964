"""Training on cached features equals the plain training loop."""

import logging
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from said import listen
from tiny import Halved, write_checkpoint
from torch import Tensor, nn

from gpt2_from_scratch.classifier.classifier import Classifier
from gpt2_from_scratch.classifier.freezing import frozen_depth, set_trainable
from gpt2_from_scratch.classifier.heads import pool
from gpt2_from_scratch.classifier.settings import POOLINGS, TrainConfig
from gpt2_from_scratch.classifier.train import epoch_order, finetune, rate_factor
from gpt2_from_scratch.data.messages import Message
from gpt2_from_scratch.data.split import Split
from gpt2_from_scratch.speed import feature_cache, frozen_trunk
from gpt2_from_scratch.speed.batching import pad_batch
from gpt2_from_scratch.speed.feature_cache import Embedded, Features
from gpt2_from_scratch.speed.feature_store import FeatureStore
from gpt2_from_scratch.speed.frozen_trunk import Packed, Trunk, pack

WORDS = ["the", "you", "and", "win", "see", "at", "ten", "house", "in", "another", "is", "there"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with three blocks.

    Two of them can be trained after a frozen one.
    """
    return write_checkpoint(tmp_path_factory.mktemp("base"), seed=77, n_layer=3)


@pytest.fixture
def split() -> Split:
    """A split with texts of many lengths.

    Some are identical, and some have a common prefix.
    """
    draw = torch.Generator().manual_seed(4)
    texts = []
    for _ in range(24):
        n = int(torch.randint(1, 8, (1,), generator=draw))
        texts.append(" ".join(WORDS[i] for i in torch.randint(12, (n,), generator=draw)))
    texts += texts[:4]
    messages = [Message(t, "spam" if "win" in t or "ten" in t else "ham") for t in texts]
    return Split(messages[:20], messages[20:24], messages[24:])


def plain_logits(classifier: Classifier, texts: list[str]) -> Tensor:
    """Compute logits with all blocks on a padded batch."""
    ids, lengths = pad_batch(classifier.encode(texts)[0], 276, classifier.description.pad_to)
    states = classifier.model.hidden(ids)
    return classifier.model.head(pool(states, lengths, classifier.description.pooling))


def plain_training(
    classifier: Classifier, split: Split, config: TrainConfig
) -> tuple[list[float], dict[str, Tensor]]:
    """Train with full forward passes.

    Returns the loss of each step and the gradients of the first step.
    """
    set_trainable(classifier.model, config.n_last_blocks, config.final_norm)
    trained = {n: p for n, p in classifier.model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in trained.values() if p.dim() == 2]},
            {"params": [p for p in trained.values() if p.dim() == 1], "weight_decay": 0.0},
        ],
        lr=config.lr,
        weight_decay=config.weight_decay,
    )
    steps = config.epochs * math.ceil(len(split.train) / config.batch_size)
    losses, first, step = [], {}, 0
    for epoch in range(1, config.epochs + 1):
        order = epoch_order(len(split.train), config.seed, epoch)
        for start in range(0, len(order), config.batch_size):
            batch = [split.train[n] for n in order[start : start + config.batch_size]]
            labels = torch.tensor([int(m.label == "spam") for m in batch])
            loss = F.cross_entropy(plain_logits(classifier, [m.text for m in batch]), labels)
            for group in optimizer.param_groups:
                group["lr"] = config.lr * rate_factor(step, steps, config.warmup)
            optimizer.zero_grad()
            loss.backward()
            first = first or {name: p.grad.clone() for name, p in trained.items()}
            optimizer.step()
            step += 1
            losses += [loss.item()] * len(batch)
    return losses, first


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1])
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("n_last_blocks", [0, 1, 2, 3])
def test_training_equals_the_plain_loop(
    base: Path, split: Split, tmp_path: Path, n_last_blocks: int, pooling: str, seed: int
) -> None:
    config = TrainConfig(n_last_blocks, epochs=3, batch_size=4, lr=2e-3, patience=9, seed=seed)
    ours, plain = (
        Classifier.on_base(base, ["ham", "spam"], pooling=pooling, seed=seed) for _ in range(2)
    )
    (tmp_path / "run").mkdir()
    ours.store = FeatureStore(tmp_path / "store")
    history = finetune(ours, split, config, tmp_path / "run")
    losses, _ = plain_training(plain, split, config)
    for number, epoch in enumerate(history):
        theirs = losses[number * 20 : (number + 1) * 20]
        assert epoch.train_loss == pytest.approx(sum(theirs) / 20, abs=1e-5)
    last = Classifier.load(tmp_path / "run" / "last.safetensors", base)
    for (name, found), expected in zip(
        last.model.named_parameters(), plain.model.parameters(), strict=True
    ):
        keep = torch.arange(len(found)) >= 0
        # The output does not depend on the key bias. If the first token sees only itself, the output
        # does not depend on any query or key either. In the plain loop, their gradients are rounding
        # errors, which AdamW turns into steps of full size.
        if name.endswith("c_attn.bias"):
            keep[32:64] = False
        if "c_attn" in name and pooling == "first_token":
            keep[:64] = False
        torch.testing.assert_close(found[keep], expected[keep], atol=1e-4, rtol=0)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("n_last_blocks", [0, 1, 2])
def test_gradients_equal_those_of_the_plain_loop(
    base: Path, split: Split, pooling: str, n_last_blocks: int
) -> None:
    config = TrainConfig(n_last_blocks, epochs=1, batch_size=len(split.train), seed=5)
    ours, plain = (Classifier.on_base(base, ["ham", "spam"], pooling=pooling) for _ in range(2))
    _, expected = plain_training(plain, split, config)
    set_trainable(ours.model, n_last_blocks)
    texts = ours.texts(ours.encode([m.text for m in split.train])[0])
    order = epoch_order(len(split.train), 5, 1).tolist()
    labels = torch.tensor([int(split.train[n].label == "spam") for n in order])
    F.cross_entropy(ours.batch_logits(texts, order), labels).backward()
    found = {n: p.grad for n, p in ours.model.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-4, rtol=1e-4)


def test_a_recipe_with_padding_reads_the_padding(base: Path, split: Split) -> None:
    """The lecture reads the output at a padding position. Cached features give the same output."""
    from dataclasses import replace

    classifier = Classifier.on_base(base, ["ham", "spam"], pooling="last_position")
    classifier.description = replace(classifier.description, pad_to=24, max_tokens=24)
    set_trainable(classifier.model, 1)
    messages = [m.text for m in split.train]
    texts = classifier.texts(classifier.encode(messages)[0])
    assert isinstance(texts, Features)
    assert texts.batch([0, 1])[1].tolist() == [24, 24]
    expected = plain_logits(classifier, messages)
    torch.testing.assert_close(classifier.logits(texts), expected, atol=1e-4, rtol=0)
    found = classifier.logits(classifier.encode(messages)[0])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("n_last_blocks", [0, 1])
def test_weights_do_not_depend_on_what_filled_the_cache(
    base: Path, split: Split, tmp_path: Path, n_last_blocks: int
) -> None:
    """An empty cache, no cache, and a cache filled by other texts give bit-identical weights."""
    config, found = TrainConfig(n_last_blocks, epochs=2, batch_size=4, lr=2e-3), []
    texts = [m.text for m in split.train]
    others = [f"{text} {n * '.'}" for n, text in enumerate(texts)]
    fillings: list[list[str] | None] = [None, [], texts[:1], [*others, *texts[3:9]], others]
    for n, filling in enumerate(fillings):
        classifier = Classifier.on_base(base, ["ham", "spam"])
        set_trainable(classifier.model, n_last_blocks)
        if filling is not None:
            classifier.store = FeatureStore(tmp_path / f"store {n}")
            classifier.texts(classifier.encode(filling)[0])
        run = tmp_path / f"run {n}"
        run.mkdir()
        finetune(classifier, split, config, run)
        found.append((run / "last.safetensors").read_bytes())
    assert all(file == found[0] for file in found)


# --- when the cache would not be exact ---


def test_the_cache_is_not_used_and_the_reason_is_logged(base: Path) -> None:
    said = listen()

    def depth_of(classifier: Classifier) -> int:
        said.clear()
        texts = classifier.texts([[1, 2], [3]])
        assert isinstance(texts, Features if texts.depth else Embedded)
        return texts.depth

    classifier = Classifier.on_base(base, ["a", "b"])
    set_trainable(classifier.model, 1)
    assert depth_of(classifier) == 2 and said == []
    set_trainable(classifier.model, 3)
    assert depth_of(classifier) == 0 and said == []  # no log line if no block is frozen
    set_trainable(classifier.model, 0)
    assert depth_of(classifier) == 3 and said == []
    classifier.model.wpe.weight.requires_grad_(True)
    assert depth_of(classifier) == 0 and "embeddings are trainable" in said[0]
    set_trainable(classifier.model, 1)
    classifier.model.blocks[0].ln_1.bias.requires_grad_(True)
    assert depth_of(classifier) == 0
    set_trainable(classifier.model, 1)
    dropout = nn.Sequential(classifier.model.blocks[1].mlp, nn.Dropout(0.5))
    classifier.model.blocks[1].mlp = dropout
    assert depth_of(classifier) == 1 and "blocks.1" in said[0]
    positional = Classifier.on_base(base, ["a", "b"], pooling="last_position")
    set_trainable(positional.model, 1)
    assert depth_of(positional) == 0 and "other texts in the batch" in said[0]


def test_a_changed_part_is_not_ignored(base: Path) -> None:
    """This holds in training and in prediction, and for a part at any place."""
    for n in range(3):
        classifier = Classifier.on_base(base, ["a", "b"])
        set_trainable(classifier.model, 1)
        encoded = [[1, 2, 3], [4], [5, 6]]
        plain = classifier.logits(encoded)
        classifier.model.blocks[n].mlp = Halved(classifier.model.blocks[n].mlp)
        assert frozen_depth(classifier.model)[0] == min(n, 2)
        expected = torch.cat([classifier.model(torch.tensor([ids]))[:, -1] for ids in encoded])
        for found in (classifier.logits(encoded), classifier.logits(classifier.texts(encoded))):
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
            assert (found - plain).abs().max() > 1e-3


# --- each thing once ---


def test_equal_texts_are_computed_once(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = Classifier.on_base(base, ["a", "b"])
    seen: list[int] = []
    monkeypatch.setattr(
        Trunk, "pack", lambda _, texts, **_k: seen.append(len(texts)) or pack(texts)
    )
    texts = [[1, 2], [3], [1, 2], [1, 2], [3]]
    features = Features(Trunk(classifier.model, 2), texts)
    assert sum(seen) == 2
    x, lengths = features.batch([0, 1, 3])
    assert torch.equal(x[0], x[2]) and lengths.tolist() == [2, 1, 2]


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("done", [0, 1, 4, 9])
def test_an_interrupted_computation_resumes_with_the_same_bits(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: int, killed: bool
) -> None:
    """A killed process loses only the batches that are not in a shard yet."""
    monkeypatch.setattr(feature_cache, "SHARD", 2000)  # a shard has two or three batches
    monkeypatch.setattr(frozen_trunk, "TOKENS", {"cpu": 9})
    model = Classifier.on_base(base, ["a", "b"]).model
    draw = torch.Generator().manual_seed(3)
    texts = [torch.randint(9, (1 + n % 6,), generator=draw).tolist() for n in range(40)]
    original, computed = Trunk.__call__, list[list[int]]()

    def counted(self: Trunk, packed: Packed) -> Tensor:
        computed.append(packed.ids.tolist())
        return original(self, packed)

    def interrupted(self: Trunk, packed: Packed) -> Tensor:
        if len(computed) == done:
            if killed:
                monkeypatch.setattr(FeatureStore, "save", lambda *_: None)
            raise KeyboardInterrupt
        return counted(self, packed)

    def features(folder: str) -> Features:
        return Features(Trunk(model, 2), texts, store=FeatureStore(tmp_path / folder))

    save = FeatureStore.save
    monkeypatch.setattr(Trunk, "__call__", counted)
    expected, whole = features("whole").batch(range(40))[0], len(computed)
    computed.clear()
    monkeypatch.setattr(Trunk, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        features("broken")
    monkeypatch.setattr(FeatureStore, "save", save)
    monkeypatch.setattr(Trunk, "__call__", counted)
    resumed = features("broken")
    again = len(computed)
    assert again <= whole + (4 if killed else 1)
    assert torch.equal(resumed.batch(range(40))[0], expected)
    assert len(computed) == again, "read from the store"


def test_a_second_run_computes_nothing_and_each_depth_has_its_own_features(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Classifier.on_base(base, ["a", "b"]).model
    texts = [[1, 2], [3], [4, 5, 6]]
    computed: list[tuple[int, torch.dtype]] = []
    original = Trunk.__call__

    def counted(self: Trunk, packed: object) -> Tensor:
        computed.append((self.depth, self.dtype))
        return original(self, packed)

    monkeypatch.setattr(Trunk, "__call__", counted)
    kinds = [(2, torch.float32), (1, torch.float32), (2, torch.bfloat16)]
    first = [
        Features(Trunk(model, d, t), texts, dtype=t, store=FeatureStore(tmp_path)).batch([0, 1, 2])[
            0
        ]
        for d, t in kinds
    ]
    assert computed == kinds
    for (d, t), expected in zip(kinds, first, strict=True):
        said = listen(logging.DEBUG)
        store = FeatureStore(tmp_path)
        again = Features(Trunk(model, d, t), texts, dtype=t, store=store)
        assert torch.equal(again.batch([0, 1, 2])[0], expected)
        assert "3 distinct texts from the cache, 0 computed" in said[0]
    assert computed == kinds
    more = Features(Trunk(model, 2), [*texts, [9]], store=FeatureStore(tmp_path))
    assert len(computed) == 4 and more.batch([3])[0].shape == (1, 1, 32)


def test_other_weights_have_other_features(base: Path, tmp_path: Path) -> None:
    """This also holds for a block that was trained and is then frozen again."""
    classifier = Classifier.on_base(base, ["a", "b"])
    store = FeatureStore(tmp_path)
    before = Features(Trunk(classifier.model, 2), [[1, 2]], store=store).batch([0])[0]
    with torch.no_grad():
        classifier.model.blocks[1].mlp.c_fc.weight += 0.01
    after = Features(Trunk(classifier.model, 2), [[1, 2]], store=store).batch([0])[0]
    assert (after - before).abs().max() > 1e-4


def multiplied(classifier: Classifier) -> None:
    with torch.no_grad():
        classifier.model.blocks[0].mlp.c_fc.weight *= 1.5


def multiplied_data(classifier: Classifier) -> None:
    classifier.model.blocks[0].mlp.c_fc.weight.data.mul_(1.5)


def multiplied_by_numpy(classifier: Classifier) -> None:
    numbers = classifier.model.blocks[0].mlp.c_fc.weight.detach().numpy()
    numbers *= 1.5


def stepped_by_fused_adamw(classifier: Classifier) -> None:
    weight = classifier.model.blocks[0].mlp.c_fc.weight
    weight.grad = weight.detach().clone()
    torch.optim.AdamW([weight], lr=0.1, fused=True).step()


@pytest.mark.parametrize(
    "change", [multiplied, multiplied_data, multiplied_by_numpy, stepped_by_fused_adamw]
)
@pytest.mark.parametrize("first_mode", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_rounded_predictions_follow_the_weights(
    base: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Classifier], None],
    first_mode: bool,
    dtype: torch.dtype,
) -> None:
    """The rounded copy of the frozen blocks is always up to date, also in inference mode."""
    monkeypatch.setattr(
        "gpt2_from_scratch.classifier.classifier.arithmetic", lambda dtype, device: dtype
    )
    classifier = Classifier.on_base(base, ["a", "b"], dtype=dtype)
    exact = Classifier.on_base(base, ["a", "b"])
    found = []
    for mode in (first_mode, not first_mode):
        with torch.inference_mode(mode):
            rounded, expected = classifier.logits([[1, 2, 3]]), exact.logits([[1, 2, 3]])
        assert 0 < (rounded - expected).abs().max() < 0.1
        found.append(expected)
        for each in (classifier, exact):
            change(each)
    assert (found[1] - found[0]).abs().max() > 0.1
