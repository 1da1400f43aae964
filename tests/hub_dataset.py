"""What this package uses of a data set of the library `datasets`, which is not a dependency."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any


class Column(Sequence):
    """A column: a sequence, but neither a list nor an array."""

    def __init__(self, values: Sequence[Any]):
        self.values = values

    def __getitem__(self, n: Any) -> Any:
        return self.values[n]

    def __len__(self) -> int:
        return len(self.values)


@dataclass
class ClassLabel:
    """The feature of a column of class numbers."""

    names: list[str]


@dataclass
class Dataset:
    """Columns by their names; iterating gives one dictionary per row."""

    columns_by_name: dict[str, Sequence[Any]]
    features: dict[str, Any] = field(default_factory=dict)

    @property
    def column_names(self) -> list[str]:
        return [*self.columns_by_name]

    def __getitem__(self, name: str) -> Column:
        return Column(self.columns_by_name[name])

    def __len__(self) -> int:
        return len(next(iter(self.columns_by_name.values())))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for n in range(len(self)):
            yield {name: values[n] for name, values in self.columns_by_name.items()}

    def to_csv(self, path: str) -> None:
        raise NotImplementedError


class DatasetDict(dict):
    """Several data sets by the names of the parts."""

    @property
    def column_names(self) -> dict[str, list[str]]:
        return {name: part.column_names for name, part in self.items()}

    def to_csv(self, path: str) -> None:
        raise NotImplementedError
