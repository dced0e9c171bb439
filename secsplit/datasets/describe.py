"""What a reader should see of a data set before training: counts, balance of classes, and records on both sides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from secsplit.datasets.records import Dataset, Records


def describe(dataset: Dataset, shards: Sequence[Dataset] = ()) -> dict[str, Any]:
    """Counts, class balance of each label (of all, and of each shard), and how many test records are in train too."""
    return {
        "name": dataset.name,
        "real_patients": dataset.card.real_patients,
        "records": {"train": len(dataset.train), "test": len(dataset.test)},
        "balance": {"train": balance(dataset, dataset.train), "test": balance(dataset, dataset.test)},
        "shards": [{"records": len(shard.train), "balance": balance(shard, shard.train)} for shard in shards],
        "test_records_also_in_train": repeated(dataset),
    }


def balance(dataset: Dataset, records: Records) -> dict[str, list[int]]:
    """How many records each class of each label has; the unlabelled are not counted."""
    return {
        name: torch.bincount(column[column >= 0].flatten(), minlength=dataset.classes[name]).tolist()
        for name, column in records.labels.items()
        if dataset.classes[name]
    }


def repeated(dataset: Dataset) -> int:
    """How many test records have exactly the inputs of a record to train on, so that they measure memory."""
    seen = {_bytes(dataset.train, row) for row in range(len(dataset.train))}
    return sum(_bytes(dataset.test, row) in seen for row in range(len(dataset.test)))


def _bytes(records: Records, row: int) -> tuple[bytes, ...]:
    return tuple(column[row].numpy().tobytes() for column in records.inputs.values())
