"""The table of experiments as data: one row is one change from the default.

The lecture's book has such a table for 124M (bonus material of chapter 6 of S. Raschka's *Build a
Large Language Model (From Scratch)*, `02_bonus_additional-experiments`), one seed a row. Its rows
that a single machine can run stand here too, with its test accuracy; `NOT_RUN` has the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from gpt2_from_scratch.classifier.settings import HeadSettings, TrainConfig
from gpt2_from_scratch.errors import UsageError
from gpt2_from_scratch.gpt2.config import GPT2Config

# what trains beside the one head: nothing; GPT-2's own, guessing the next token; or instead of it a
# head whose loss is taken at every token
Extra = Literal["", "language", "tokens"]


@dataclass(frozen=True)
class Book:
    """A row of the book's table: its number there, its test accuracy in %."""

    row: int
    accuracy: float
    note: str = ""  # where it differs from ours, or is wrong


@dataclass(frozen=True)
class Row:
    """One experiment: what is changed of the default."""

    name: str
    about: str  # what is varied: rows of one kind stand together
    config: dict[str, Any] = field(default_factory=dict)  # of TrainConfig
    settings: dict[str, Any] = field(default_factory=dict)  # of HeadSettings
    random_weights: bool = False  # in place of the pretrained ones
    all_messages: bool = False  # train on all that validation and test leave, however unbalanced
    extra: Extra = ""
    book: Book | None = None

    def changed(
        self, config: TrainConfig, settings: HeadSettings
    ) -> tuple[TrainConfig, HeadSettings]:
        """The settings of this row, where these are the default's."""
        return replace(config, **self.config), replace(settings, **self.settings)


LAST_POSITION = {"pooling": "last_position", "pad_to": -1}


def ablations(sizes: GPT2Config, config: TrainConfig) -> list[Row]:
    """The rows for a model of this size, the default first; `config` is the default's."""
    rows = [
        Row("default", "", book=Book(16, 98.33)),
        *_positions(sizes.n_ctx),
        *_trained(sizes.n_layer, config.n_last_blocks),
        *_lora(),
        Row("random weights, last block", "weights", random_weights=True),
        Row(
            "random weights, everything trains",
            "weights",
            {"trainable": "*"},
            random_weights=True,
            book=Book(10, 93.67),
        ),
        Row("batch of 1", "batch", {"batch_size": 1}, book=Book(14, 98.00)),
        Row(
            "batch of 8, one at a time",
            "batch",
            {"batch_size": 8, "micro_batch": 1},
            book=Book(15, 98.33),
        ),
        Row(
            "no causal mask",
            "attention",
            settings={"causal_mask": False},
            book=Book(17, 95.33, "read at the last position, pads attended to"),
        ),
        Row(
            "loss at every token, pads ignored",
            "loss",
            extra="tokens",
            book=Book(18, 95.00, "the option was never passed on: its row 1 again"),
        ),
        Row("and guesses the next token, pads ignored", "loss", extra="language"),
        Row("label smoothing 0.1", "loss", settings={"label_smoothing": 0.1}),
        Row("two stacked linear layers", "head", settings={"head": "two-layer"}),
        Row("tanh head, dropout 0.1", "head", settings={"head": "tanh", "dropout": 0.1}),
        Row("all other messages", "messages", all_messages=True),
        Row(
            "all other messages, class weights",
            "messages",
            all_messages=True,
            settings={"class_weights": "balanced"},
        ),
        *(
            Row(f"learning rate × {factor:g}", "learning rate", {"lr": config.lr * factor})
            for factor in (0.1, 0.3, 3)
        ),
    ]
    if sizes.n_layer >= 3 and config.epochs >= 4:
        rows.append(
            Row(
                "three blocks, one more every epoch",
                "trained part",
                {"n_last_blocks": 3, "unfreeze_every": 1, "rate_decay": 2.6},
            )
        )
    return rows


def _positions(n_ctx: int) -> list[Row]:
    """Where a text is read, and how far it is padded where pads are read."""
    about = "token position"
    return [
        Row(
            "last position, padded to the longest",
            about,
            settings=LAST_POSITION,
            book=Book(1, 95.00),
        ),
        Row("first token", about, settings={"pooling": "first_token"}, book=Book(2, 75.00)),
        Row("mean over tokens", about, settings={"pooling": "mean"}),
        Row(
            "mean over positions, padded to the longest",
            about,
            settings={"pooling": "mean_position", "pad_to": -1},
            book=Book(19, 96.33),
        ),
        Row(
            f"last position, padded to {n_ctx} tokens",
            "context",
            settings=LAST_POSITION | {"pad_to": n_ctx},
            book=Book(13, 78.33, "1,024 tokens"),
        ),
    ]


def _trained(n_layer: int, n_last_blocks: int) -> list[Row]:
    """What trains: the head, so many last blocks, everything."""
    about, read = "trained part", "read at the last position"
    rows = [
        Row("head alone", about, {"n_last_blocks": 0, "final_norm": False}),
        Row(
            "head alone, last position",
            about,
            {"n_last_blocks": 0, "final_norm": False},
            LAST_POSITION,
            book=Book(3, 72.00),
        ),
    ]
    for n, word, book in ((2, "two", Book(4, 98.33, read)), (4, "four", None)):
        if n_last_blocks != n <= n_layer:
            rows.append(Row(f"last {word} blocks", about, {"n_last_blocks": n}, book=book))
    return [*rows, Row("everything", about, {"trainable": "*"}, book=Book(5, 96.67, read))]


def _lora() -> list[Row]:
    """LoRA of several ranks in the last block, and of one in all."""
    frozen = {"n_last_blocks": 0}
    rows = [
        Row(f"LoRA {rank}, last block", "LoRA", frozen, {"lora": rank, "lora_blocks": 1})
        for rank in (1, 4, 16)
    ]
    note = "rank 16, read at the last position; scaled 16 times, not once"
    all_blocks = Row("LoRA 8, every block", "LoRA", frozen, {"lora": 8}, book=Book(11, 96.67, note))
    return [*rows, all_blocks]


# rows of the book's table without a counterpart here, and why
NOT_RUN: dict[int, str] = {
    6: "355M: 84.67 %; a larger model, --model 355M",
    7: "774M: 96.67 %; a larger model, --model 774M",
    8: "1558M: 98.33 %; its validation 99.81 % cannot be: of 149 messages that is 148.7",
    9: "1558M, everything trains: 98.67 %",
    12: "1558M, LoRA: 98.33 %",
}


def chosen(rows: Sequence[Row], names: Sequence[str]) -> list[Row]:
    """The default and the rows whose name or kind is among `names`; all for none.

    Raises UsageError for a name that is neither.
    """
    known = {row.name for row in rows} | {row.about for row in rows}
    if unknown := [name for name in names if name not in known]:
        raise UsageError(
            f"no row or kind of rows is called {unknown[0]!r}; there are "
            + ", ".join(dict.fromkeys(row.about for row in rows if row.about))
            + "; and "
            + ", ".join(row.name for row in rows)
        )
    wanted = {*names, "default"} if names else known
    return [row for row in rows if row.name in wanted or row.about in wanted]
