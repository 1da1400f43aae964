"""Adapt GPT-2 to texts: train it to predict their next tokens before a classifier is trained on it.

This is the second stage of ULMFiT (Howard & Ruder 2018, section 3.2). Gururangan et al. 2020 ("Don't
Stop Pretraining") call it task-adaptive pretraining. No label is used.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from gpt2_from_scratch.classifier.classifier import Classifier
from gpt2_from_scratch.classifier.settings import ADAPT_LR, HeadConfig, TrainConfig
from gpt2_from_scratch.classifier.train import (
    Labelled,
    finetune,
    freeze,
    loss_and_scores,
    to_labelled,
)
from gpt2_from_scratch.data.messages import Message
from gpt2_from_scratch.data.split import Split
from gpt2_from_scratch.errors import UsageError
from gpt2_from_scratch.gpt2.changes import parameters_by_name
from gpt2_from_scratch.gpt2.model import GPT2
from gpt2_from_scratch.gpt2.nf4 import packed_weights
from gpt2_from_scratch.storage.paths import expanded

log = logging.getLogger(__name__)

HEAD = HeadConfig("next", "language")


@dataclass(frozen=True)
class Adaptation:
    """The texts to which GPT-2 was adapted, and what it gained on the validation texts."""

    epochs: int
    n_train: int  # distinct training texts
    n_unlabelled: int  # other texts, without labels
    bits_before: float  # bits per byte of the validation texts
    bits_after: float
    seconds: float | None  # None if it was interrupted

    def in_words(self) -> str:
        """Format the texts, the epochs, the gain and the duration."""
        texts = f"{self.n_train:,} training texts"
        if self.n_unlabelled:
            texts += f" and {self.n_unlabelled:,} texts without labels"
        epochs = "1 epoch" if self.epochs == 1 else f"{self.epochs} epochs"
        seconds = "" if self.seconds is None else f" ({self.seconds:.0f} s)"
        return (
            f"{epochs} on {texts}, from {self.bits_before:.2f} to {self.bits_after:.2f} bits per byte "
            f"on the validation texts{seconds}"
        )


def adapt(
    classifier: Classifier,
    split: Split,
    unlabelled: Sequence[str],
    config: TrainConfig,
    folder: str | Path,
    *,
    resume: bool = False,
) -> Adaptation:
    """Train all of a classifier's GPT-2 on next-token prediction, in place.

    The heads and LoRA adapters stay as they are. The model learns from the training texts and from
    those without labels. The validation texts select the best epoch, and the test texts are not
    used.

    Args:
        classifier: The classifier, before its training.
        split: The messages; their labels are not used.
        unlabelled: Other texts to learn from.
        config: The settings of the classifier's training. `adapt` is the number of epochs, and
            `adapt_lr` the learning rate.
        folder: The folder for the state of this stage.
        resume: Continue from the newest state in `folder`.

    Returns:
        The number of texts, and the bits per byte before and after.

    Raises:
        UsageError: The blocks' matrices are quantised.
        GPT2Error: The errors of `finetune`.
    """
    folder = expanded(folder)
    if packed := packed_weights(classifier.model):
        raise UsageError(f"{min(packed)} is stored in NF4, so GPT-2 cannot be adapted")
    language = Classifier.on_base(
        classifier.description.base,
        heads=[HEAD],
        max_tokens=classifier.description.max_tokens,
        device=classifier.device,
    )
    copy_gpt2(classifier.model, language.model)
    settings = replace(
        config,
        adapt=0,
        adapt_lr=0.0,
        epochs=config.adapt,
        patience=config.adapt,  # no early stop
        lr=config.adapt_lr or ADAPT_LR,
        trainable="*",
        unfreeze_every=0,
        vary_endings=False,
        balance_losses=False,
    )
    own = dict.fromkeys(message.text for message in split.train)
    others = [text for text in dict.fromkeys(unlabelled) if text not in own]
    train = [Message(text, None) for text in (*own, *others)]
    val = [Message(text, None) for text in dict.fromkeys(message.text for message in split.val)]
    log.info(
        f"adapting GPT-2 to {len(own):,} training texts and {len(others):,} texts without labels"
    )
    freeze(language, settings)
    labelled = to_labelled(language, val)
    began, before = time.monotonic(), _bits_per_byte(language, labelled)
    finetune(language, Split(train, val, []), settings, folder, resume=resume)
    seconds = None if resume else time.monotonic() - began
    after = _bits_per_byte(language, labelled)
    copy_gpt2(language.model, classifier.model)
    found = Adaptation(config.adapt, len(own), len(others), before, after, seconds)
    log.info(f"adapted GPT-2 for {found.in_words()}")
    if after >= before:
        log.warning("adapting did not help GPT-2 to predict these texts; leave out --adapt")
    return found


@torch.no_grad()
def copy_gpt2(source: GPT2, target: GPT2) -> None:
    """Copy all parameters of GPT-2 itself from one model to another, without heads and adapters."""
    to = parameters_by_name(target)
    for name, value in parameters_by_name(source).items():
        if name.startswith(("wte.", "wpe.", "blocks.", "ln_f.")) and name in to:
            to[name].copy_(value)


def _bits_per_byte(language: Classifier, labelled: Labelled) -> float:
    return loss_and_scores(language, labelled)[1][HEAD.name].bits_per_byte
