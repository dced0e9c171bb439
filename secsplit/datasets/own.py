"""A data set of one's own, from Python: any pair of torch Datasets whose items are (inputs, label)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from secsplit.datasets.records import Dataset, DatasetCard, mismatch
from secsplit.datasets.source import Source, shape
from secsplit.datasets.spec import DataSpec


def of_torch(
    train: TorchDataset[tuple[Tensor, int]],
    test: TorchDataset[tuple[Tensor, int]],
    card: DatasetCard,
    spec: DataSpec | None = None,
) -> Dataset:
    """Read two torch Datasets into memory. Images are taken as (channels, height, width) in [0, 1], never standardised.

    A run file never names code: this is for programs, which pass the result to a run themselves.
    """
    items = [part[i] for part in (train, test) for i in range(len(part))]  # type: ignore[arg-type]
    inputs = torch.stack([torch.as_tensor(x, dtype=torch.float32) for x, _ in items])
    y = torch.tensor([int(label) for _, label in items])
    if inputs.ndim == 2 and len(card.features) != inputs.shape[1]:
        raise mismatch(
            "card.features", expected=f"{inputs.shape[1]} names", got=f"{len(card.features)}", fix="name each feature"
        )
    held_out = torch.arange(len(items)) >= len(train)  # type: ignore[arg-type]
    source = Source(card, inputs, {"y": y}, {"y": int(y.max()) + 1}, torch.arange(len(items)), test=held_out)
    return shape(source, spec or DataSpec(name=card.source))
