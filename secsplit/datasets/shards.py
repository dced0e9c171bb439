"""Horizontal partition: which client holds which records. IID, or unequal in labels by a Dirichlet distribution.

Dirichlet: Hsu, Qi, Brown 2019, arXiv 1909.06335; Yurochkin et al. 2019 draw the shares class by class, as here.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from secsplit.datasets.records import Dataset, mismatch


def shards(
    dataset: Dataset,
    count: int,
    *,
    how: Literal["iid", "dirichlet"] = "iid",
    alpha: float = 0.5,
    seed: int = 0,
    weights: Sequence[float] | None = None,
) -> list[Dataset]:
    """Share the training records among ``count`` clients, every record to exactly one and at least one to each.

    Every shard keeps the whole test set (the same tensors, not copies): utility is judged on the same records whoever
    trained. Ids stay those of the whole data set. The smaller alpha, the fewer classes a client sees.
    """
    n = len(dataset.train)
    sizes = torch.ones(count, dtype=torch.float64) if weights is None else torch.tensor(weights, dtype=torch.float64)
    if len(sizes) != count or bool((sizes <= 0).any()):
        raise mismatch(
            "data.weights",
            expected=f"{count} positive numbers, one for each client",
            got=f"{weights}",
            fix="give one each",
        )
    if not 1 <= count <= n:
        raise mismatch(
            "shards", expected=f"1 to {n} clients for {n} records", got=f"{count}", fix="fewer clients or more records"
        )
    if count == 1:
        return [dataset]
    coins = torch.Generator().manual_seed(seed)
    shares = sizes / sizes.sum()
    if how == "iid":
        owners = torch.empty(n, dtype=torch.int64)
        owners[torch.randperm(n, generator=coins)] = dealt(n, shares)
    else:
        owners = by_class(strata(dataset), alpha * count * shares, coins)
    nobody_left_out(owners, count)
    return [replace(dataset, train=dataset.train.take((owners == k).nonzero().flatten())) for k in range(count)]


def dealt(n: int, shares: Tensor) -> Tensor:
    """(n,) owners in order, in these shares, each within one record of exact (largest remainder)."""
    exact = shares * n
    counts = exact.floor().long()
    counts[(exact - counts).argsort(descending=True, stable=True)[: n - int(counts.sum())]] += 1
    return torch.repeat_interleave(torch.arange(len(shares)), counts)


def by_class(classes: Tensor, concentration: Tensor, coins: torch.Generator) -> Tensor:
    """(n,) owners: each class is shared in proportions drawn anew from Dirichlet(concentration)."""
    owners = torch.empty(len(classes), dtype=torch.int64)
    for each in torch.unique(classes):
        rows = (classes == each).nonzero().flatten()
        shares = torch._sample_dirichlet(concentration, generator=coins)
        owners[rows[torch.randperm(len(rows), generator=coins)]] = dealt(len(rows), shares)
    return owners


def strata(dataset: Dataset) -> Tensor:
    """The first label column that has classes."""
    for name, column in dataset.train.labels.items():
        if dataset.classes[name] and column.ndim == 1:
            return column
    raise mismatch(
        "data.partition", expected="a label with classes to share by", got="none", fix='set data.partition = "iid"'
    )


def nobody_left_out(owners: Tensor, count: int) -> None:
    """Give each client without a record one of the largest client's, in place."""
    counts = torch.bincount(owners, minlength=count)
    for empty in (counts == 0).nonzero().flatten():
        largest = int(counts.argmax())
        owners[(owners == largest).nonzero().flatten()[0]] = empty
        counts[largest] -= 1
        counts[empty] += 1
