"""Messages of an earlier turn, carried to where the last weights would have put them.

A row is seen once an epoch, and the network that sends it learns meanwhile. Batches are drawn at random, so what all
rows of a stretch of turns say together differs from what the last stretch says by the drift of the network alone. The
optimal transport between the two, taken as Gaussians (Dowson and Landau 1982), undoes it to second order. It looks at
nothing but the messages: no auxiliary record, whose distribution may be another, is used.
"""

from __future__ import annotations

import torch
from torch import Tensor

from attacks.observed import Observed

BINS = 48  # stretches of turns at most, of equal numbers of rows
ROWS = 1000  # the fewest rows that a stretch takes its moments from, and five a feature where covariances are whole
FULL = 512  # features up to which covariances are transported whole, beyond it one by one
SHRINK = 0.03  # towards the mean variance: what a stretch of few rows gets wrong


def settled(rows: Observed) -> Observed:
    """The rows with every stretch of turns carried to the newest one; unchanged where there are too few rows."""
    flat = rows.values.flatten(1).float()
    width = flat.shape[1]
    bins = min(BINS, len(rows) // max(ROWS, 5 * width if width <= FULL else 0))
    if bins < 2:
        return rows
    order = rows.step.argsort(descending=True, stable=True).to(flat.device)
    newest, *older = torch.tensor_split(order, bins)
    out = flat.clone()
    for stretch in older:
        out[stretch] = transported(flat[stretch], flat[newest])
    return rows.holding(out.reshape(rows.values.shape))


def transported(source: Tensor, target: Tensor) -> Tensor:
    """The rows of `source` (n, d), moved so that their mean and covariance become those of `target` (m, d)."""
    start, end = source.mean(0), target.mean(0)
    if source.shape[1] > FULL:
        floor = 1e-3 * target.std() + 1e-12
        return (source - start) * ((target.std(0) + floor) / (source.std(0) + floor)) + end
    unit = (torch.cov(target.T).diagonal().mean() * SHRINK + 1e-12) * torch.eye(source.shape[1], device=source.device)
    return (source - start) @ monge(torch.cov(source.T) + unit, torch.cov(target.T) + unit).to(source) + end


def transported_within(source: Tensor, target: Tensor, kind: Tensor, target_kind: Tensor) -> Tensor:
    """As `transported`, but kind by kind, (n,) and (m,), where both have rows enough for a covariance of that kind."""
    moved, width = transported(source, target), source.shape[1]
    for k in kind.unique().tolist() if width <= FULL else ():
        mine, theirs = kind == k, target_kind == k
        if min(int(mine.sum()), int(theirs.sum())) >= 2 * width:
            moved[mine] = transported(source[mine], target[theirs])
    return moved


def monge(source: Tensor, target: Tensor) -> Tensor:
    """(d, d), symmetric: the least movement that turns covariance `source` into `target`."""
    root, inverse = power(source, 0.5), power(source, -0.5)
    return inverse @ power(root @ target.double() @ root, 0.5) @ inverse


def power(covariance: Tensor, exponent: float) -> Tensor:
    """(d, d) double: a symmetric positive definite matrix to a real power."""
    values, vectors = torch.linalg.eigh(covariance.double())
    raised: Tensor = (vectors * values.clamp_min(1e-12).pow(exponent)) @ vectors.T
    return raised
