"""Names of the data room's contract, made from what that room offers now. It goes at the merge."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gpt2_from_scratch.data import messages as messages_module
from gpt2_from_scratch.data import split as split_module
from gpt2_from_scratch.data.messages import Message
from gpt2_from_scratch.data.split import Split
from gpt2_from_scratch.storage.settings import check_settings, setting

TOGETHER = {"copies": "copies", "near-duplicates": "near-twins"}


@dataclass(frozen=True)
class DataConfig:
    """Where labelled texts come from, and how they are read and split."""

    source: str = setting("demo", "")
    val_source: str = setting("", "")
    test_source: str = setting("", "")
    text_column: str = setting("text", "")
    label_column: str = setting("label", "")
    encoding: str = setting("utf-8", "")
    on_error: str = setting("stop", "", choices=("stop", "skip"))
    keep_empty: bool = setting(False, "")
    balance: bool = setting(False, "")
    keep_together: str = setting("copies", "", choices=tuple(TOGETHER))

    def __post_init__(self) -> None:
        check_settings(self)


def load_messages(data: str | Path | DataConfig = "demo") -> list[Message]:
    """Read labelled texts."""
    if not isinstance(data, DataConfig):
        data = DataConfig(str(data))
    return messages_module.load_messages(
        data.source,
        text_column=data.text_column,
        label_column=data.label_column,
        encoding=data.encoding,
        on_error=data.on_error,
        keep_empty=data.keep_empty,
    )


def split_messages(
    messages: Sequence[Message],
    *,
    balance: bool = False,
    keep_together: str = "copies",
    seed: int = 123,
    on_error: str = "stop",
) -> Split:
    """Split messages into three parts."""
    together = TOGETHER[keep_together]
    return split_module.split_messages(
        messages, balance=balance, together=together, seed=seed, on_error=on_error
    )


def folds(
    messages: Sequence[Message],
    n_folds: int,
    *,
    seed: int,
    keep_together: str,
    balance: bool,
    on_error: str,
) -> list[Split]:
    """Split messages into n folds."""
    together = TOGETHER[keep_together]
    return split_module.folds(
        messages, n_folds, seed=seed, together=together, balance=balance, on_error=on_error
    )
