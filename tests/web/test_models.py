"""Which classifiers can be served, and what is known about them."""

from pathlib import Path

import pytest
from tiny import random_classifier

from gpt2_from_scratch.classifier.settings import HeadConfig
from gpt2_from_scratch.errors import UsageError
from gpt2_from_scratch.gpt2.config import LoRAConfig
from gpt2_from_scratch.runs.exporting import export
from gpt2_from_scratch.web.models import load_models

HEAD = HeadConfig(labels=("ham", "spam"))
TEXTS = ["the goal", "win a pill"]


@pytest.mark.parametrize("quantize", ["none", "nf4"])
def test_lora_next_to_plain_and_quantised_weights(
    tiny_checkpoint: Path, tmp_path: Path, quantize: str
) -> None:
    lora = LoRAConfig(rank=2, alpha=4.0, quantize=quantize)
    classifier = random_classifier(tiny_checkpoint, HEAD, lora=lora)
    classifier.save(tmp_path / "best.safetensors")
    (model,) = load_models([tmp_path / "best.safetensors"], tiny_checkpoint).values()
    found, expected = model.classifier.predict(TEXTS), classifier.predict(TEXTS)
    for one, two in zip(found, expected, strict=True):
        assert one and two
        assert one.probabilities["spam"] == pytest.approx(two.probabilities["spam"], abs=1e-5)


def test_gpt2_before_finetuning_is_unknown_if_another_tool_saved_the_classifier(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """Its folder contains the finetuned GPT-2 only."""
    export(random_classifier(tiny_checkpoint, HEAD), tmp_path / "exported")
    (model,) = load_models([tmp_path / "exported"]).values()
    assert model.gpt2("finetuned") is model.classifier.model
    with pytest.raises(UsageError, match="exported .* before finetuning"):
        model.gpt2("pretrained")
