"""From what a source holds to a Dataset: labels, split, thinning, limits, scaling, columns. One path for all sources.

A source (one file each: ``digits.py``, ``fashion_mnist.py``, ...) only reads; everything after is here, so that no two
sources can come to differ in how they split or scale.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from secsplit.datasets.records import Dataset, DatasetCard, Records, mismatch
from secsplit.datasets.select import choose_input, choose_label
from secsplit.datasets.spec import DataSpec


@dataclass(frozen=True)
class Source:
    """All records of a source as read.

    ``inputs``: a table (n, features) float32, NaN where a value is missing, named by ``card.features``; or images
    (n, channels, height, width), uint8 in 0..255 or float32 in [0, 1]. ``test``: (n,) bool, the published test records,
    or None where there are none. ``classes``: label -> number of classes, 0 for regression.
    """

    card: DatasetCard
    inputs: Tensor
    labels: dict[str, Tensor]
    classes: dict[str, int]
    ids: Tensor
    test: Tensor | None = None

    def take(self, rows: Tensor) -> Source:
        """The records at these positions, (m,) int64, in that order."""
        return replace(
            self,
            inputs=self.inputs[rows],
            labels={name: column[rows] for name, column in self.labels.items()},
            ids=self.ids[rows],
            test=None if self.test is None else self.test[rows],
        )


def shape(source: Source, spec: DataSpec) -> Dataset:
    """Make the Dataset that the spec asks for out of what the source holds."""
    chosen = {
        name: choose_label(selector, source.labels, source.classes, source.inputs, source.card.features)
        for name, selector in spec.labels.items()
    }
    labels = {name: column for name, (column, _) in chosen.items()}
    classes = {name: count for name, (_, count) in chosen.items()}
    if spec.positive is not None:
        labels["y"], classes["y"] = against_the_rest(spec.positive, labels, classes)
    strata = next((labels[name] for name in labels if classes[name] and labels[name].ndim == 1), None)
    if spec.id_key is not None:
        strata = None  # sites that share records draw the same test records, whether they hold labels or not

    coins = torch.Generator().manual_seed(spec.seed)
    test = source.test if source.test is not None else hold_out(len(source.ids), strata, spec.test_fraction, coins)
    train_rows, test_rows = (~test).nonzero().flatten(), test.nonzero().flatten()
    if spec.positive_fraction is not None:
        train_rows, test_rows = (
            thin(rows, labels, classes, spec.positive_fraction, coins) for rows in (train_rows, test_rows)
        )
    train_rows, test_rows = sample(train_rows, spec.limit, coins), sample(test_rows, spec.limit_test, coins)
    if not len(train_rows) or not len(test_rows):
        raise mismatch(
            f"data set {spec.name!r}",
            expected="records to train on and records to judge by",
            got=f"{len(train_rows)} and {len(test_rows)}",
            fix="give more records, or another data.test_fraction or data.positive_fraction",
        )

    scale = scaling(source.inputs, train_rows)
    predicted = {selector.partition(" in ")[0].strip() for selector in spec.labels.values()}
    withdrawn = frozenset(f for f in source.card.features if f in predicted or f.partition("=")[0] in predicted)

    def records(rows: Tensor) -> Records:
        inputs = scale(source.inputs[rows])
        return Records(
            inputs={
                name: choose_input(name, selector, inputs, source.card.features, without=withdrawn)
                for name, selector in spec.modalities.items()
            },
            labels={name: column[rows] for name, column in labels.items()},
            ids=source.ids[rows],
        )

    train = unlabel(records(train_rows), 1 - spec.labelled_fraction, coins)
    return Dataset(spec.name, train, records(test_rows), classes, source.card)


def unlabel(records: Records, fraction: float, coins: torch.Generator) -> Records:
    """Take the labels off a fraction of the records: -1 for a class, NaN for a regression value."""
    rows = torch.randperm(len(records), generator=coins)[: round(fraction * len(records))]
    labels = {name: column.clone() for name, column in records.labels.items()} if len(rows) else records.labels
    for column in labels.values():
        column[rows] = torch.nan if column.is_floating_point() else -1
    return replace(records, labels=labels)


def against_the_rest(positive: int, labels: dict[str, Tensor], classes: dict[str, int]) -> tuple[Tensor, int]:
    """``y`` made binary: 1 where it is the positive class."""
    count = classes.get("y", 0)
    if positive >= count:
        raise mismatch(
            "data.positive",
            expected=f"a class of label y, 0 to {count - 1}" if count else "a label y that has classes",
            got=str(positive),
            fix="name a class that the label has",
        )
    return (labels["y"] == positive).long(), 2


def hold_out(n: int, strata: Tensor | None, fraction: float, coins: torch.Generator) -> Tensor:
    """(n,) bool: a test set of the given fraction, drawn within each class where there are classes."""
    strata = torch.zeros(n, dtype=torch.int64) if strata is None else strata
    test = torch.zeros(n, dtype=torch.bool)
    for stratum in torch.unique(strata):
        rows = (strata == stratum).nonzero().flatten()
        test[rows[torch.randperm(len(rows), generator=coins)[: round(fraction * len(rows))]]] = True
    return test


def thin(
    rows: Tensor, labels: dict[str, Tensor], classes: dict[str, int], fraction: float, coins: torch.Generator
) -> Tensor:
    """Drop as few rows as make class 1 of ``y`` the given fraction of those that stay."""
    if classes.get("y") != 2:
        raise mismatch(
            "data.positive_fraction",
            expected="a label y of two classes",
            got=f"{classes.get('y', 0)} classes",
            fix="set data.positive to the class that counts as positive",
        )
    positive, negative = rows[labels["y"][rows] == 1], rows[labels["y"][rows] == 0]
    wanted = round(len(negative) * fraction / (1 - fraction))
    if wanted <= len(positive):
        positive = sample(positive, wanted, coins)
    else:
        negative = sample(negative, round(len(positive) * (1 - fraction) / fraction), coins)
    return torch.cat([positive, negative]).sort().values


def sample(rows: Tensor, most: int | None, coins: torch.Generator) -> Tensor:
    """At most so many of the rows, drawn without replacement and kept in their order."""
    if most is None or most >= len(rows):
        return rows
    return rows[torch.randperm(len(rows), generator=coins)[:most].sort().values]


def scaling(inputs: Tensor, train_rows: Tensor) -> Callable[[Tensor], Tensor]:
    """How raw inputs become float32: bytes to [0, 1]; a table to mean 0, deviation 1, gaps filled by the median.

    A table's statistics are those of the records to train on, all clients together, and never of those to judge by.
    """
    if inputs.dtype == torch.uint8:
        return lambda rows: rows.to(torch.float32).div_(255)
    if inputs.ndim != 2:
        return lambda rows: rows.to(torch.float32)
    seen = inputs[train_rows].double()
    median = seen.nanmedian(dim=0).values.nan_to_num(0.0)
    seen = torch.where(seen.isnan(), median, seen)
    mean, deviation = seen.mean(0), seen.std(0, correction=0)
    deviation[deviation < 1e-12] = 1.0  # a feature that never varies becomes 0
    return lambda rows: ((torch.where(rows.isnan(), median, rows.double()) - mean) / deviation).float()
