"""Pruning of a message: only its largest entries leave. A measured control, and often a harmful one.

On returned gradients of a rare class it REVEALS labels: the many small gradients become zero rows (see the audit's
norm attack). It proves nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from secsplit.defenses.base import Outgoing
from secsplit.defenses.noise import Noise
from secsplit.defenses.spec import AtCrossing, OnMessage


class PruneSpec(AtCrossing):
    """kind = "prune": the share `keep` of entries largest in magnitude stays, by row or over the whole batch."""

    guarantee = "none"
    paper = "Zhu et al. 2019, arXiv 1906.08935 (as a defense)"
    about = "only the largest entries leave (control)"

    kind: Literal["prune"] = "prune"
    keep: Annotated[float, Field(gt=0, le=1)]
    by: Literal["batch", "row"] = "batch"

    def build(self, noise: Noise, classes: Mapping[str, int]) -> Prune:
        del noise, classes
        return Prune(self)


class Prune(OnMessage[PruneSpec]):
    """Zeroes the small entries; the gradient flows through those that stay."""

    def outgoing(self, out: Outgoing) -> Tensor:
        """(batch, ...): the same tensor with zeros where entries were small."""
        flat = out.tensor.detach().flatten(1).abs()
        flat = flat if self.spec.by == "row" else flat.reshape(1, -1)
        count = max(1, round(self.spec.keep * flat.shape[1]))
        least = flat.topk(count, dim=1).values[:, -1:]
        return out.tensor * (flat >= least).view_as(out.tensor)
