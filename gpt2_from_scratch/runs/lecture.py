"""The lecture's recipe, step by step, so that its printed numbers can be reproduced.

With OpenAI's 124M weights and the SMS Spam Collection it prints the numbers of chapter 6 of S.
Raschka's *Build a Large Language Model (From Scratch)*. It is separate from the default recipe
because it has weaknesses. It treats quotation marks in the file as csv quotes. It allows copies of
test messages in training. It pads every text to the longest, and reads the last *position*, which
is padding for nearly all texts. Every pass over a loader draws from torch's global random
generator, so the results depend even on the order of the passes.
"""

import logging
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from gpt2_from_scratch.classifier.classifier import Classifier
from gpt2_from_scratch.classifier.freezing import format_ledger, ledger, set_trainable
from gpt2_from_scratch.classifier.heads import replace_head
from gpt2_from_scratch.classifier.saving import Description
from gpt2_from_scratch.classifier.settings import HeadConfig, Pooling, TrainConfig
from gpt2_from_scratch.data.messages import Message, load_messages
from gpt2_from_scratch.data.split import Split
from gpt2_from_scratch.errors import DataError
from gpt2_from_scratch.gpt2.model import GPT2
from gpt2_from_scratch.gpt2.tokenizer import Tokenizer
from gpt2_from_scratch.gpt2.weights import base_sha256
from gpt2_from_scratch.speed.feature_cache import Texts
from gpt2_from_scratch.speed.feature_store import FeatureStore
from gpt2_from_scratch.storage.paths import data_file, expanded

log = logging.getLogger(__name__)

LABELS = ["ham", "spam"]
BATCH_SIZE = 8
EPOCHS = 5
LR, WEIGHT_DECAY = 5e-5, 0.1
EVAL_EVERY, EVAL_BATCHES = 50, 5
SPLIT_RULE = (
    "The lecture's split: equal numbers of messages per label, copies included, divided at random "
    "into 70% training, 10% validation, and 20% test."
)
CHECK_TEXT = "Do you have time"

Loaders = tuple[DataLoader, DataLoader, DataLoader]  # training, validation, test


@dataclass
class Trace:
    """All numbers that the lecture prints; accuracies are from 0 to 1."""

    check_logits: list[list[float]] = field(default_factory=list)  # (4, 2) for "Do you have time"
    # each of these, and `final_accuracy`, has three values: training, validation, test
    initial_accuracy: list[float] = field(default_factory=list)  # over the first 10 batches
    initial_loss: list[float] = field(default_factory=list)  # over the first 5 batches
    # (step, training loss, validation loss), every 50 steps
    losses: list[tuple[int, float, float]] = field(default_factory=list)
    # (training, validation) after each epoch
    accuracies: list[tuple[float, float]] = field(default_factory=list)
    final_accuracy: list[float] = field(default_factory=list)  # over all batches


def lecture_settings(seed: int) -> TrainConfig:
    """The lecture's training settings, in the form that `config.json` stores."""
    return TrainConfig(
        n_last_blocks=1,
        final_norm=True,
        epochs=EPOCHS,
        patience=EPOCHS,
        batch_size=BATCH_SIZE,
        lr=LR,
        warmup=0.0,
        weight_decay=WEIGHT_DECAY,
        seed=seed,
    )


def read_lecture_split(source: str | Path, seed: int = 123) -> Split:
    """Read "sms" or a file, and split it by `lecture_split`; raises the same errors."""
    messages = load_messages(source)  # checks the file, however it is read afterwards
    path = data_file("sms") if source == "sms" else Path(source)
    return lecture_split(path if path.name == "SMSSpamCollection" else messages, seed)


def lecture_split(messages: list[Message] | str | Path, seed: int = 123) -> Split:
    """The lecture's 1045 / 149 / 300 messages, in the lecture's order.

    A path is read as the lecture reads the SMS Spam Collection, with pandas' default quoting. This
    gives 5,572 of the 5,574 rows and changes 53 of them. All spam is kept, and the same number of
    ham messages is drawn. Raises DataError for labels other than ham and spam, for fewer than 10
    spam messages, and for more spam than ham.
    """
    import pandas

    if isinstance(messages, str | Path):
        table = pandas.read_csv(expanded(messages), sep="\t", header=None, names=["label", "text"])
    else:
        table = pandas.DataFrame(
            {"label": [m.label for m in messages], "text": [m.text for m in messages]}
        )
    ham, spam = (table[table["label"] == label] for label in LABELS)
    if len(ham) + len(spam) != len(table) or not 10 <= len(spam) <= len(ham):
        raise DataError(
            "the lecture's recipe needs ham and spam, with at least as many ham messages; found "
            f"{table['label'].value_counts().to_dict()}. Use the default recipe."
        )
    drawn = pandas.concat([ham.sample(len(spam), random_state=seed), spam])
    shuffled = drawn.sample(frac=1, random_state=seed)
    rows = [
        Message(text, label)
        for label, text in zip(shuffled["label"], shuffled["text"], strict=True)
    ]
    train_end = int(len(rows) * 0.7)
    val_end = train_end + int(len(rows) * 0.1)
    return Split(rows[:train_end], rows[train_end:val_end], rows[val_end:])


def make_loaders(split: Split, tokenizer: Tokenizer) -> tuple[Loaders, list[list[int]], int]:
    """Make the loaders; also return the token ids of all texts, and the longest length.

    A batch of a loader is (indices of texts, labels). The longest length is that of the longest
    training text, in tokens. Every text is cut to it.
    """
    encoded: list[list[int]] = []
    loaders = []
    longest = max(len(tokenizer.encode(message.text)) for message in split.train)
    for part in (split.train, split.val, split.test):
        numbers = torch.arange(len(encoded), len(encoded) + len(part))
        labels = torch.tensor([LABELS.index(message.label) for message in part])
        encoded += [tokenizer.encode(message.text)[:longest] for message in part]
        shuffled = part is split.train
        loaders.append(
            DataLoader(TensorDataset(numbers, labels), BATCH_SIZE, shuffled, drop_last=shuffled)
        )
    return (loaders[0], loaders[1], loaders[2]), encoded, longest


def lecture(
    model: GPT2,
    tokenizer: Tokenizer,
    split: Split,
    *,
    base: str,
    seed: int = 123,
    pooling: Pooling = "last_position",
    dtype: torch.dtype = torch.float32,
    store: FeatureStore | None = None,
) -> tuple[Classifier, Trace]:
    """Finetune `model`, in place, as the lecture does; log the lecture's lines.

    Args:
        model: The pretrained model.
        tokenizer: Its tokenizer.
        split: The messages, from `read_lecture_split` or `lecture_split`.
        base: The model's name or folder, for the classifier's description.
        seed: Random seed of the head, the loaders and dropout.
        pooling: Where a text is read. The lecture reads the last position, with every text padded
            to the same length. With another pooling, nothing is padded.
        dtype: Precision of the frozen blocks, which are computed once per text.
        store: A cache on disk for the output of the frozen blocks; None for no cache.

    Returns:
        The classifier, and the numbers that were logged.
    """
    trace = Trace()
    identity = base_sha256(model, tokenizer)
    loaders, encoded, longest = make_loaders(split, tokenizer)
    log.info(
        f"{len(loaders[0])} / {len(loaders[1])} / {len(loaders[2])} batches of {longest} tokens"
    )
    torch.manual_seed(seed)
    replace_head(model, len(LABELS))
    set_trainable(model, n_last_blocks=1, final_norm=True)
    log.info(format_ledger(ledger(model)))
    pad_to = longest if pooling == "last_position" else None
    head = HeadConfig(labels=tuple(LABELS), layer=model.config.n_layer, pooling=pooling)
    description = Description(base, identity, (head,), longest, pad_to)
    classifier = Classifier(model, tokenizer, description, dtype=dtype, store=store)
    texts = classifier.texts(encoded)
    _before_training(classifier, texts, loaders, trace, seed)
    torch.manual_seed(seed)
    _train(classifier, texts, loaders, trace)
    trace.final_accuracy = [accuracy(classifier, texts, loader) for loader in loaders]
    log.info("Training {} | Validation {} | Test {}".format(*map(_percent, trace.final_accuracy)))
    return classifier, trace


def accuracy(
    classifier: Classifier, texts: Texts, loader: DataLoader, batches: int | None = None
) -> float:
    """The accuracy over the first `batches` batches of a new pass, or over all batches."""
    logits, labels = _pass(classifier, texts, loader, batches)
    return int((logits.argmax(dim=1) == labels).sum()) / len(labels)


def mean_loss(classifier: Classifier, texts: Texts, loader: DataLoader, batches: int) -> float:
    """The mean loss of the first `batches` batches of a new pass, in nats."""
    losses = F.cross_entropy(*_pass(classifier, texts, loader, batches), reduction="none")
    means = [batch.mean() for batch in losses.split(BATCH_SIZE)]
    return (sum(means) / len(means)).item()


def _before_training(
    classifier: Classifier,
    texts: Texts,
    loaders: Loaders,
    trace: Trace,
    seed: int,
) -> None:
    model = classifier.model
    with torch.no_grad():
        ids = torch.tensor([classifier.tokenizer.encode(CHECK_TEXT)])
        trace.check_logits = model(ids.to(model.wte.weight.device))[0].tolist()
    log.info(
        f"{CHECK_TEXT!r} -> " + "  ".join(f"[{a:.4f}, {b:.4f}]" for a, b in trace.check_logits)
    )
    torch.manual_seed(seed)
    trace.initial_accuracy = [accuracy(classifier, texts, loader, 10) for loader in loaders]
    trace.initial_loss = [mean_loss(classifier, texts, loader, EVAL_BATCHES) for loader in loaders]
    log.info(
        "Before training: accuracy {} | {} | {}".format(*map(_percent, trace.initial_accuracy))
    )
    log.info("Before training: loss {:.3f} | {:.3f} | {:.3f}".format(*trace.initial_loss))


def _train(
    classifier: Classifier,
    texts: Texts,
    loaders: Loaders,
    trace: Trace,
) -> None:
    train, val, _ = loaders
    # the lecture passes all parameters, but AdamW skips those without a gradient
    trainable = [p for p in classifier.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=LR, weight_decay=WEIGHT_DECAY, fused=True)
    step = -1
    for epoch in range(EPOCHS):
        for numbers, labels in train:
            optimizer.zero_grad()
            logits = classifier.batch_logits(texts, numbers.tolist())
            F.cross_entropy(logits, labels.to(logits.device)).backward()
            optimizer.step()
            step += 1
            if step % EVAL_EVERY == 0:
                losses = [mean_loss(classifier, texts, part, EVAL_BATCHES) for part in (train, val)]
                trace.losses.append((step, losses[0], losses[1]))
                log.info(
                    f"Ep {epoch + 1} (Step {step:06d}): Train loss {losses[0]:.3f}, Val loss {losses[1]:.3f}"
                )
        accuracies = [accuracy(classifier, texts, part, EVAL_BATCHES) for part in (train, val)]
        trace.accuracies.append((accuracies[0], accuracies[1]))
        log.info(
            "Training accuracy: {} | Validation accuracy: {}".format(*map(_percent, accuracies))
        )


@torch.no_grad()
def _pass(
    classifier: Classifier, texts: Texts, loader: DataLoader, batches: int | None
) -> tuple[Tensor, Tensor]:
    """Logits (N, K) and labels (N,), on the CPU, of the first batches of a new pass."""
    numbers, labels = map(torch.cat, zip(*islice(loader, batches), strict=True))
    logits = [classifier.batch_logits(texts, part.tolist()) for part in numbers.split(64)]
    return torch.cat(logits).cpu(), labels


def _percent(accuracy: float) -> str:
    return f"{100 * accuracy:.2f}%"
