"""A GPT-2 of three blocks and an untrained classifier for the tests of this room."""

from pathlib import Path

import pytest
import torch
from three_blocks import N_LAYER
from tiny import TINY_MERGES, write_checkpoint

from gpt2_from_scratch.classifier.classifier import Classifier
from gpt2_from_scratch.classifier.freezing import set_trainable
from gpt2_from_scratch.gpt2.tokenizer import write_bpe
from gpt2_from_scratch.gpt2.weights import load_gpt2, save_gpt2


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("three_blocks")
    gpt2 = load_gpt2(write_checkpoint(folder / "openai", seed=7, n_layer=N_LAYER))
    save_gpt2(gpt2, folder / "ours")  # our format loads in half the time
    write_bpe(folder / "ours", TINY_MERGES)
    return folder / "ours"


@pytest.fixture
def classifier(tiny_checkpoint: Path) -> Classifier:
    """Untrained, but with all trainable parameters moved away from their initial values."""
    classifier = Classifier.on_base(tiny_checkpoint, ["ham", "other", "spam"], seed=5)
    set_trainable(classifier.model, 1)
    with torch.no_grad():
        for parameter in classifier.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    return classifier
