"""NoPeek: train the bottom so that what it sends is less correlated with its input.

Vepakomma, Singh, Gupta, Raskar 2020 (arXiv 2008.09161): the loss is (1 - a) CE + a dCor(x, h), with the distance
correlation of Szekely, Rizzo, Bakirov 2007. Here the term is added as a / (1 - a) dCor, which is the same up to a
factor on the whole loss. It lowers a correlation and proves nothing: inversion attacks are often little affected, so
measure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from secsplit.defenses.base import Defense
from secsplit.defenses.noise import Noise
from secsplit.defenses.spec import AtCut, Fraction, Spec
from secsplit.errors import RunError
from secsplit.topology import Topology


class NoPeekSpec(AtCut):
    """kind = "nopeek": distance correlation between a segment's input and what it sends on `edge`, with weight a."""

    guarantee = "none"
    paper = "Vepakomma et al. 2020, arXiv 2008.09161"
    about = "distance correlation added to the loss"

    kind: Literal["nopeek"] = "nopeek"
    a: Fraction

    def fits(self, topology: Topology, specs: Sequence[Spec], micro_batches: int) -> None:
        del topology, specs
        if micro_batches > 1:
            raise RunError("train.micro_batches: nopeek correlates the rows of a whole batch; use micro_batches = 1")

    def build(self, noise: Noise, classes: Mapping[str, int]) -> NoPeek:
        del noise, classes
        return NoPeek(self)


class NoPeek(Defense):
    """Adds the penalty; messages leave unchanged."""

    def __init__(self, spec: NoPeekSpec) -> None:
        self.spec = spec

    def penalty(self, edge: str, x: Tensor, h: Tensor) -> Tensor | None:
        if edge != self.spec.edge:
            return None
        return self.spec.a / (1 - self.spec.a) * distance_correlation(x, h)


def distance_correlation(x: Tensor, h: Tensor) -> Tensor:
    """dCor in [0, 1] of the rows of x (n, ...) and h (n, ...): 0 iff independent, in the limit of many rows."""
    a, b = _centred(x), _centred(h)
    covariance = (a * b).mean().clamp(min=0)
    variance = (a.square().mean() * b.square().mean()).sqrt()
    return (covariance / variance.clamp(min=1e-12) + 1e-12).sqrt()


def _centred(rows: Tensor) -> Tensor:
    """(n, n) distances between rows, with row means, column means and the grand mean taken out."""
    flat = rows.flatten(1)
    square = flat.square().sum(1)
    squared = (square[:, None] + square[None, :] - 2 * flat @ flat.T).clamp(min=0)
    apart = squared > 1e-9 * square.max().clamp(min=1e-30)
    distance = torch.where(apart, squared, torch.ones_like(squared)).sqrt() * apart  # no infinite slope at 0
    return distance - distance.mean(0, keepdim=True) - distance.mean(1, keepdim=True) + distance.mean()
