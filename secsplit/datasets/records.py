"""Records: rows of a data set kept aligned by their ids, and the error that says what was wrong with them.

Here is the one place that says what a data set is. It knows no file, no source and no network.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from secsplit.errors import DataError


def mismatch(what: str, *, expected: str, got: str, fix: str) -> DataError:
    """The error that says what was looked at, what was expected, what came, and how to fix it."""
    return DataError(f"{what}: expected {expected}, got {got}; {fix}")


@dataclass(frozen=True)
class Records:
    """Aligned rows: row i of every column belongs to the record ``ids[i]``.

    Inputs are float32 of shape (n, ...); labels are int64 (n,) for classes, int64 (n, height, width) for masks,
    float32 (n,) for regression; ids are int64 (n,), unique, and mean the same record at every party and in every shard.
    """

    inputs: dict[str, Tensor]
    labels: dict[str, Tensor]
    ids: Tensor

    def __post_init__(self) -> None:
        for kind, columns in (("input", self.inputs), ("label", self.labels)):
            for name, column in columns.items():
                if len(column) != len(self.ids):
                    raise mismatch(
                        f"{kind} column {name!r}",
                        expected=f"{len(self.ids)} rows, one for each record id",
                        got=f"{len(column)}",
                        fix="give every column the same records in the same order",
                    )

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: Tensor) -> Self:
        """The chosen rows, in the order given. ``rows``: (m,) int64 positions or an (n,) bool mask."""
        return type(self)(
            inputs={name: column[rows] for name, column in self.inputs.items()},
            labels={name: column[rows] for name, column in self.labels.items()},
            ids=self.ids[rows],
        )


@dataclass(frozen=True)
class DatasetCard:
    """What a reader must know of a data set before believing a number made with it."""

    source: str
    licence: str
    what: str
    real_patients: bool
    features: tuple[str, ...] = ()


@dataclass(frozen=True)
class Dataset:
    """Records to train on and records to judge by. ``classes``: label column -> number of classes, 0 for regression."""

    name: str
    train: Records
    test: Records
    classes: dict[str, int]
    card: DatasetCard

    def shapes(self) -> dict[str, torch.Size]:
        """The shape of one record in every input column."""
        return {name: column.shape[1:] for name, column in self.train.inputs.items()}
