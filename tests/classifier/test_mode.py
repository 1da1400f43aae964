"""Using a classifier leaves its model in the mode in which it was."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from three_blocks import LABEL, LANGUAGE, LAYERS, TAGS, classifier_with
from torch import Tensor

from gpt2_from_scratch.classifier import classifier as module
from gpt2_from_scratch.classifier.classifier import Classifier, in_mode
from gpt2_from_scratch.classifier.generate import generate_with_heads
from gpt2_from_scratch.classifier.settings import TrainConfig
from gpt2_from_scratch.classifier.train import finetune, loss_and_scores, to_labelled
from gpt2_from_scratch.data.messages import Message
from gpt2_from_scratch.data.split import Split
from gpt2_from_scratch.errors import GPT2Error
from gpt2_from_scratch.gpt2.config import LoRAConfig
from gpt2_from_scratch.studies.learning_rate import find_learning_rate

TEXTS = ["the cat is in the house", "win", "you and the other one", ""]
MESSAGES = [Message("the cat", "ham"), Message("win", "spam"), Message("you", "other")] * 2
SPLIT = Split(MESSAGES, MESSAGES, MESSAGES)
QUICK = TrainConfig(epochs=1, n_last_blocks=1)


def half_of_the_stream(classifier: Classifier, folder: Path) -> None:
    stream = classifier.predict_stream(iter(TEXTS * 100))
    next(stream)
    assert modes(classifier) == before(classifier), "between two answers too"


def half_of_the_outputs(classifier: Classifier, folder: Path) -> None:
    outputs = classifier.outputs(classifier.encode([f"{'the ' * n}" for n in range(1, 30)])[0])
    next(outputs)
    assert modes(classifier) == before(classifier), "between two batches too"


def merged(classifier: Classifier, folder: Path) -> None:
    classifier.merge()
    classifier.predict(TEXTS)
    classifier.unmerge()


def stopped(classifier: Classifier, folder: Path) -> None:
    def stop(module: torch.nn.Module, args: tuple) -> None:
        raise KeyboardInterrupt

    hook = classifier.model.blocks[2].register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        classifier.predict(TEXTS)
    hook.remove()


def infinite(classifier: Classifier, folder: Path) -> None:
    classifier.model.ln_f.weight.data.fill_(torch.inf)
    for ask in (
        lambda: classifier.predict(TEXTS),
        lambda: generate_with_heads(classifier, "the", 2),
        lambda: finetune(classifier, SPLIT, QUICK, folder),
    ):
        with pytest.raises(GPT2Error):
            ask()


USES: dict[str, Callable[[Classifier, Path], object]] = {
    "predict": lambda c, _: c.predict(TEXTS),
    "logits": lambda c, _: c.logits(c.encode(TEXTS)[0]),
    "logits of prepared texts": lambda c, _: c.logits(c.texts(c.encode(TEXTS)[0])),
    "predict_stream": lambda c, _: list(c.predict_stream(TEXTS)),
    "half of a stream": half_of_the_stream,
    "half of the outputs": half_of_the_outputs,
    "loss_and_scores": lambda c, _: loss_and_scores(c, to_labelled(c, MESSAGES)),
    "generate_with_heads": lambda c, _: generate_with_heads(c, "the cat", 3),
    "finetune": lambda c, folder: finetune(c, SPLIT, QUICK, folder),
    "find_learning_rate": lambda c, _: find_learning_rate(c, SPLIT, QUICK, steps=2),
    "save": lambda c, folder: c.save(folder / "c.safetensors"),
    "merge": merged,
    "a stop": stopped,
    "infinite weights": infinite,
}


def modes(classifier: Classifier) -> dict[str, bool]:
    parts = classifier.model.named_modules()
    return {name: part.training for name, part in parts if "head" not in name}


def before(classifier: Classifier) -> dict[str, bool]:
    return {name: name != "blocks.1.mlp" for name in modes(classifier)}


@pytest.fixture
def classifier(base: Path) -> Iterator[Classifier]:
    """In training mode, as in a hand-written loop, except for one part."""
    classifier = classifier_with(base, LABEL, LANGUAGE, lora=LoRAConfig(rank=2, n_last_blocks=1))
    classifier.model.train()
    classifier.model.blocks[1].mlp.training = False
    yield classifier


@pytest.mark.parametrize("use", USES)
def test_every_part_keeps_its_mode(classifier: Classifier, use: str, tmp_path: Path) -> None:
    USES[use](classifier, tmp_path)
    assert modes(classifier) == before(classifier)


def test_a_model_in_evaluation_mode_stays_in_it(classifier: Classifier, tmp_path: Path) -> None:
    classifier.model.eval()
    finetune(classifier, SPLIT, QUICK, tmp_path)
    assert not any(modes(classifier).values())


def test_the_last_of_several_threads_restores_the_mode(classifier: Classifier) -> None:
    one, other = (in_mode(classifier.model, training=False) for _ in range(2))
    with one:
        other.__enter__()
    assert not any(modes(classifier).values()), "the other thread is still computing"
    other.__exit__(None, None, None)
    assert modes(classifier) == before(classifier)


def test_dropout_is_active_only_in_training(base: Path) -> None:
    """A prediction within a hand-written training loop does not affect the loop."""
    head = LAYERS  # this head has dropout
    classifier = classifier_with(base, head, TAGS)
    classifier.model.train()

    def outputs() -> Tensor:
        torch.manual_seed(3)
        texts = classifier.texts([[5, 6, 7], [8]])
        return classifier.batch_outputs(texts, [0, 1])[0][head.name]

    expected = outputs()
    assert classifier.predict(TEXTS) == classifier.predict(TEXTS), "without dropout"
    assert torch.equal(outputs(), expected), "with the same dropout"
    classifier.model.eval()
    assert not torch.equal(outputs(), expected)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no fork")
def test_a_fork_resets_modes_of_other_threads(base: Path) -> None:
    """Other threads hold the lock and evaluation mode, but do not exist in the new process."""
    model = classifier_with(base, LABEL).model.train()
    with in_mode(model, training=False), module._LOCK:
        if child := os.fork():
            status = os.waitpid(child, 0)[1]
        else:
            signal.alarm(60)  # ends the process if the lock is never released
            was_training = model.training
            with in_mode(model, training=False):
                evaluates = not model.training
            os._exit(not (was_training and evaluates and model.training))
    assert status == 0 and model.training
