"""The book's table of experiments as rows, each with one change from the default.

The book's table is for 124M, with one seed per row. The rows that a single machine can run are
repeated here, next to the book's test accuracy; `NOT_RUN` lists the others. Source: bonus material
of chapter 6 of S. Raschka's *Build a Large Language Model (From Scratch)*,
`02_bonus_additional-experiments`.
"""

from collections.abc import Sequence

from gpt2_from_scratch.classifier.settings import TrainConfig
from gpt2_from_scratch.errors import UsageError
from gpt2_from_scratch.gpt2.config import GPT2Config
from gpt2_from_scratch.studies.rows import Book, Finetuned, Row

LAST_POSITION = {"pooling": "last_position", "pad_to": -1}
HEAD_ALONE = {"n_last_blocks": 0, "final_norm": False}
ADAPTERS_ALONE = {"n_last_blocks": 0}  # the adapters, the final norm and the head are trained

# several ranks in the last block, or one rank in all blocks
LORA = [
    *(
        Finetuned(
            f"LoRA {rank}, last block",
            "LoRA",
            training=ADAPTERS_ALONE,
            head={"lora": rank, "lora_blocks": 1},
        )
        for rank in (1, 4, 16)
    ),
    Finetuned(
        "LoRA 8, every block",
        "LoRA",
        Book(11, 96.67, "rank 16, read at the last position; scaled 16 times, not once"),
        training=ADAPTERS_ALONE,
        head={"lora": 8},
    ),
]

# rows of the book's table that are not repeated here, and why
NOT_RUN: dict[int, str] = {
    6: "355M: 84.67%; a larger model, --model 355M",
    7: "774M: 96.67%; a larger model, --model 774M",
    8: "1558M: 98.33%; its validation accuracy of 99.81% is impossible with 149 messages (148.7 correct)",
    9: "1558M, everything trained: 98.67%",
    12: "1558M, LoRA: 98.33%",
}


def book_rows(sizes: GPT2Config, training: TrainConfig) -> list[Finetuned]:
    """The rows for a model of this size, the default row first.

    `training` has the settings of the default row.
    """
    rows = [
        Finetuned("default", ""),
        *_positions(sizes.n_ctx),
        *_trained_parts(sizes.n_layer, training.n_last_blocks),
        *LORA,
        Finetuned("random weights, last block", "weights", random_weights=True),
        Finetuned(
            "random weights, everything trains",
            "weights",
            Book(10, 93.67),
            {"trainable": "*"},
            random_weights=True,
        ),
        Finetuned("batch of 1", "batch", Book(14, 98.00), {"batch_size": 1}),
        Finetuned(
            "batch of 8, one at a time",
            "batch",
            Book(15, 98.33),
            {"batch_size": 8, "micro_batch": 1},
        ),
        Finetuned(
            "no causal mask",
            "attention",
            Book(17, 95.33, "read at the last position, padding attended to"),
            head={"causal_mask": False},
        ),
        Finetuned(
            "loss at every token, padding ignored",
            "loss",
            Book(18, 95.00, "the option had no effect, so this is the book's row 1 again"),
            extra="tokens",
        ),
        # a head that answers for every token shares no text with one that reads an end token
        Finetuned(
            "also predicts the next token, padding ignored",
            "loss",
            head={"pooling": "last_token"},
            extra="language",
        ),
        Finetuned("label smoothing 0.1", "loss", head={"label_smoothing": 0.1}),
        Finetuned("two stacked linear layers", "head", head={"head": "two-layer"}),
        Finetuned("tanh head, dropout 0.1", "head", head={"head": "tanh", "dropout": 0.1}),
        Finetuned("all other messages", "messages", all_messages=True),
        Finetuned(
            "all other messages, class weights",
            "messages",
            head={"class_weights": "balanced"},
            all_messages=True,
        ),
    ]
    for factor in (0.1, 0.3, 3):
        name = f"learning rate × {factor:g}"
        rows.append(Finetuned(name, "learning rate", training={"lr": training.lr * factor}))
    if sizes.n_layer >= 3 and not 0 < training.epochs < 4:
        gradually = {"n_last_blocks": 3, "unfreeze_every": 1, "rate_decay": 2.6}
        name = "three blocks, one more every epoch"
        rows.append(Finetuned(name, "trained part", training=gradually))
    return rows


def _positions(n_ctx: int) -> list[Finetuned]:
    """Rows that change where a text is read, and how far it is padded if padding is read."""
    about = "token position"
    mean_position = {"pooling": "mean_position", "pad_to": -1}
    return [
        Finetuned(
            "last position, padded to the longest", about, Book(1, 95.00), head=LAST_POSITION
        ),
        Finetuned("last token", about, Book(16, 98.33), head={"pooling": "last_token"}),
        Finetuned("first token", about, Book(2, 75.00), head={"pooling": "first_token"}),
        Finetuned("mean over tokens", about, head={"pooling": "mean"}),
        Finetuned(
            "mean over positions, padded to the longest", about, Book(19, 96.33), head=mean_position
        ),
        Finetuned(
            f"last position, padded to {n_ctx} tokens",
            "context",
            Book(13, 78.33, "1,024 tokens"),
            head=LAST_POSITION | {"pad_to": n_ctx},
        ),
    ]


def _trained_parts(n_layer: int, n_last_blocks: int) -> list[Finetuned]:
    """Rows that change what is trained: the head, some last blocks, everything."""
    about, read = "trained part", "read at the last position"
    rows = [
        Finetuned("head alone", about, training=HEAD_ALONE),
        Finetuned("head alone, last position", about, Book(3, 72.00), HEAD_ALONE, LAST_POSITION),
    ]
    for n, word, book in ((2, "two", Book(4, 98.33, read)), (4, "four", None)):
        if n_last_blocks != n <= n_layer:
            rows.append(Finetuned(f"last {word} blocks", about, book, {"n_last_blocks": n}))
    return [*rows, Finetuned("everything", about, Book(5, 96.67, read), {"trainable": "*"})]


def chosen(rows: Sequence[Row], names: Sequence[str]) -> list[Row]:
    """Select the first row, and the rows whose name or kind is in `names`.

    If `names` is empty, all rows are selected. Raises UsageError for a name that is neither a row
    nor a kind.
    """
    kinds = dict.fromkeys(row.about for row in rows if row.about)
    every = [row.name for row in rows]
    if unknown := [name for name in names if name not in {*kinds, *every}]:
        raise UsageError(
            f"unknown row {unknown[0]!r}; choose from the kinds {', '.join(kinds)}; "
            f"or from the rows {', '.join(every)}"
        )
    wanted = {*names, every[0]} if names else {*every}
    return [row for row in rows if row.name in wanted or row.about in wanted]
