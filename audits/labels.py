"""How well labels were guessed: hits, hits up to a renaming of the groups, balanced accuracy, leak AUC batch by batch.

Leak AUC: Li et al. 2022 (arXiv 2102.08504), the ROC area inside each batch. Groups are renamed to their best by Kuhn's
Hungarian method, which flatters small batches, so its null is matched in the same way. Tensors in, tensors out: this
file knows no attack, no view and no run.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from scipy.stats import rankdata
from torch import Tensor

from audits.statistics import Null


def matched(guessed: Tensor, truth: Tensor) -> Tensor:
    """The guessed groups (n,) renamed so that as many as possible agree with truth (n,) int64."""
    groups, guessed = guessed.unique(return_inverse=True)
    size = max(len(groups), int(truth.max()) + 1)
    counts = torch.zeros(size, size, dtype=torch.int64)
    counts.index_put_((guessed, truth), torch.ones_like(truth), accumulate=True)
    _, names = linear_sum_assignment(counts.numpy(), maximize=True)
    return torch.as_tensor(names)[guessed]


def matched_within(guessed: Tensor, truth: Tensor, batch: Tensor) -> Tensor:
    """The same inside each batch; batch: (n,) int64."""
    renamed = torch.empty_like(truth)
    for rows in members(batch):
        renamed[rows] = matched(guessed[rows], truth[rows])
    return renamed


def shuffled_within(batch: Tensor, *, coins: torch.Generator) -> Tensor:
    """(n,) a random order of the rows that leaves each in its batch."""
    order = torch.empty_like(batch)
    for rows in members(batch):
        order[rows] = rows[torch.randperm(len(rows), generator=coins)]
    return order


def members(batch: Tensor) -> list[Tensor]:
    """The rows of each batch."""
    order = batch.argsort(stable=True)
    _, counts = batch[order].unique_consecutive(return_counts=True)
    return list(order.split(counts.tolist()))


def balanced(hits: Tensor, truth: Tensor) -> float:
    """Mean over the classes present of the share of hits."""
    return float(torch.stack([hits[truth == c].double().mean() for c in truth.unique()]).mean())


@dataclass(frozen=True)
class BatchAreas:
    """areas: (batches,) the leak AUC of each batch with both classes; nulls: of their median and their 95% quantile."""

    areas: Tensor
    median_null: Null
    high_null: Null


def batch_areas(
    scores: Tensor,
    positive: Tensor,
    batch: Tensor,
    *,
    coins: torch.Generator,
    signed: bool = True,
    draws: int = 199,
) -> BatchAreas | None:
    """Leak AUC inside each batch, and what shuffling the labels inside each batch gives; None where no batch has both.

    signed=False takes max(a, 1 - a): the attack does not say which side is positive.
    """
    areas, nulls = [], []
    for rows in members(batch):
        n1 = int(positive[rows].sum())
        n0 = len(rows) - n1
        if not n0 or not n1:
            continue
        ranks = torch.as_tensor(rankdata(scores[rows].double().numpy()))
        picked = torch.rand(draws, len(rows), generator=coins).argsort(1)[:, :n1]
        sums = torch.cat([ranks[positive[rows]].sum()[None], ranks[picked].sum(1)])
        area = (sums - n1 * (n1 + 1) / 2) / (n0 * n1)
        area = area if signed else torch.maximum(area, 1 - area)
        areas.append(area[0])
        nulls.append(area[1:])
    if not areas:
        return None
    null = torch.stack(nulls)  # (batches, draws)
    return BatchAreas(torch.stack(areas), Null(null.quantile(0.5, dim=0)), Null(null.quantile(0.95, dim=0)))
