"""The truth: every private record of a run and its labels, by cast and position. It enters here and goes no lower.

No attack may hold a Truth; the scorer and the baselines do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from secsplit.errors import DataError, nearest


@dataclass(frozen=True)
class Truth:
    """inputs, labels: cast -> column -> (n, ...), rows in the order of the cast's training records.

    classes: label column -> number of classes (0: regression); sites: cast -> the name its data goes by in reports;
    real_patients: the data set says that its records are people.
    """

    inputs: Mapping[int, Mapping[str, Tensor]]
    labels: Mapping[int, Mapping[str, Tensor]]
    classes: Mapping[str, int]
    sites: Mapping[int, str] = field(default_factory=dict)
    real_patients: bool = True
    candidates: tuple[Tensor, Tensor] | None = None  # (n,) cast and position of each candidate, -1 for outsiders

    @property
    def casts(self) -> tuple[int, ...]:
        return tuple(sorted(self.labels.keys() | self.inputs.keys()))

    def label(self, column: str, cast: Tensor, position: Tensor) -> Tensor:
        """(n,): the true labels of those rows."""
        return _take(self.labels, column, cast, position, "label")

    def input(self, column: str, cast: Tensor, position: Tensor) -> Tensor:
        """(n, ...): the true inputs of those rows."""
        return _take(self.inputs, column, cast, position, "input")

    def site(self, cast: int) -> str:
        return self.sites.get(cast, f"client {cast + 1}")


def _take(tables: Mapping[int, Mapping[str, Tensor]], column: str, cast: Tensor, position: Tensor, kind: str) -> Tensor:
    rows: Tensor | None = None
    for index in cast.unique().tolist():
        known = tables.get(index, {})
        if column not in known:
            raise DataError(f"a guess names {kind} column {column!r} of cast {index}; {nearest(column, known)}")
        mine = cast == index
        if bool((position[mine] < 0).any()) or bool((position[mine] >= len(known[column])).any()):
            raise DataError(f"a guess names a row outside the {len(known[column])} records of cast {index}")
        found = known[column][position[mine]]
        rows = torch.empty(len(cast), *found.shape[1:], dtype=found.dtype) if rows is None else rows
        rows[mine] = found
    return torch.empty(0) if rows is None else rows
