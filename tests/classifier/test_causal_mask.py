"""Frozen blocks without the causal mask: every token sees all of its own text and no padding."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2_from_scratch import Classifier, LoRAConfig, TrainConfig
from gpt2_from_scratch.classifier.settings import HeadConfig
from gpt2_from_scratch.classifier.train import freeze
from gpt2_from_scratch.errors import CheckpointError, UsageError
from gpt2_from_scratch.gpt2.model import GPT2

TEXTS = [[5, 9, 2, 7, 7], [5, 9, 2], [5, 9, 4, 1], [3]]  # some have the same beginning


def plainly(model: GPT2, ids: list[int]) -> Tensor:
    """Logits at the last token of one unpadded text, computed without any mask: (K,)."""
    x = model.embed(torch.tensor([ids]))
    B, T, C = x.shape
    for block in model.blocks:
        q, k, v = (
            part.view(B, T, model.config.n_head, -1).transpose(1, 2)
            for part in block.attn.c_attn(block.ln_1(x)).split(C, dim=2)
        )
        weights = (q @ k.mT / q.shape[3] ** 0.5).softmax(dim=3)
        x = x + block.attn.c_proj((weights @ v).transpose(1, 2).reshape(B, T, C))
        x = x + block.mlp.c_proj(F.gelu(block.mlp.c_fc(block.ln_2(x)), approximate="tanh"))
    return model.head(model.ln_f(x[0, -1]))


@pytest.mark.parametrize("n_last_blocks", [0, 1])
def test_every_token_sees_its_text_and_no_pad(tiny_checkpoint: Path, n_last_blocks: int) -> None:
    classifier = Classifier.on_base(tiny_checkpoint, ["a", "b"], causal_mask=False)
    freeze(classifier, TrainConfig(n_last_blocks=n_last_blocks))
    expected = torch.stack([plainly(classifier.model, ids) for ids in TEXTS]).detach()
    torch.testing.assert_close(classifier.logits(TEXTS), expected, atol=1e-4, rtol=0)
    features = classifier.texts(TEXTS)
    found = classifier.batch_logits(features, [0, 1, 2, 3]).detach()
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    masked = Classifier.on_base(tiny_checkpoint, ["a", "b"]).logits(TEXTS)
    assert (masked - expected)[:3].abs().max() > 1e-2
    # a single token sees itself in both cases
    torch.testing.assert_close(masked[3], expected[3], atol=1e-4, rtol=0)


def test_the_file_says_that_there_is_no_mask(tiny_checkpoint: Path, tmp_path: Path) -> None:
    classifier = Classifier.on_base(tiny_checkpoint, ["a", "b"], causal_mask=False)
    freeze(classifier, TrainConfig())
    classifier.save(tmp_path / "best.safetensors")
    again = Classifier.load(tmp_path / "best.safetensors", tiny_checkpoint)
    assert torch.equal(again.logits(TEXTS), classifier.logits(TEXTS))
    masked = Classifier.on_base(tiny_checkpoint, heads=[HeadConfig("other", labels=("a", "b"))])
    with pytest.raises(CheckpointError, match="causal_mask = False"):
        masked.attach(tmp_path / "best.safetensors")


def test_the_store_keeps_both_kinds_apart(tiny_checkpoint: Path) -> None:
    model = Classifier.on_base(tiny_checkpoint, ["a", "b"], causal_mask=False)
    masked = Classifier.on_base(tiny_checkpoint, ["a", "b"])
    assert model._trunk(1).sha256() != masked._trunk(1).sha256()
    masked.description = model.description  # the cached blocks depend on it
    assert model._trunk(1).sha256() == masked._trunk(1).sha256()


def test_settings_without_exact_answers_are_refused(tiny_checkpoint: Path) -> None:
    for heads in (
        [HeadConfig(labels=("a", "b"), pooling="mean")],
        [HeadConfig("tags", "token-classification", ("a", "b"))],
    ):
        with pytest.raises(UsageError, match="must read the last token"):
            Classifier.on_base(tiny_checkpoint, heads=heads, causal_mask=False)
    classifier = Classifier.on_base(tiny_checkpoint, ["a", "b"], causal_mask=False)
    freeze(classifier, TrainConfig(n_last_blocks=2))
    with pytest.raises(UsageError, match="all blocks but the last must be frozen"):
        classifier.texts(TEXTS)
    adapted = Classifier.on_base(
        tiny_checkpoint, ["a", "b"], lora=LoRAConfig(rank=2), causal_mask=False
    )
    with pytest.raises(UsageError, match="all blocks but the last must be frozen"):
        adapted.predict(["x"])
