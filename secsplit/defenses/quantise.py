"""Quantisation of a message to a few levels, and its sign. Measured controls: cheap, sometimes useful, no guarantee.

Each row is scaled to its own range, so a row's largest and smallest values leave exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from secsplit.defenses.base import Outgoing
from secsplit.defenses.noise import Noise
from secsplit.defenses.spec import AtCrossing, OnMessage


class QuantiseSpec(AtCrossing):
    """kind = "quantise": each row is rounded to `levels` even steps over its range (2 bits: 4 levels)."""

    guarantee = "none"
    paper = "Yin et al. 2021 (as a defense); see the audit"
    about = "a few levels for each row (control)"

    kind: Literal["quantise"] = "quantise"
    levels: Annotated[int, Field(ge=2, le=65536)]

    def build(self, noise: Noise, classes: Mapping[str, int]) -> Quantise:
        del noise, classes
        return Quantise(self)


class SignSpec(AtCrossing):
    """kind = "sign": each entry becomes its sign times the batch's mean magnitude."""

    guarantee = "none"
    paper = "Bernstein et al. 2018, arXiv 1802.04434 (as a defense)"
    about = "signs alone (control)"

    kind: Literal["sign"] = "sign"

    def build(self, noise: Noise, classes: Mapping[str, int]) -> Sign:
        del noise, classes
        return Sign(self)


class Quantise(OnMessage[QuantiseSpec]):
    """Rounds forward; backward passes the gradient through unchanged."""

    def outgoing(self, out: Outgoing) -> Tensor:
        """(batch, ...): rows of `levels` different values at most."""
        h = out.tensor
        flat = h.detach().flatten(1)
        low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
        step = ((high - low) / (self.spec.levels - 1)).clamp(min=1e-30)
        rounded = (low + ((flat - low) / step).round() * step).view_as(h)
        return through(h, rounded)


class Sign(OnMessage[SignSpec]):
    """Signs forward; backward passes the gradient through unchanged."""

    def outgoing(self, out: Outgoing) -> Tensor:
        """(batch, ...): two values (and zero) in the whole batch."""
        h = out.tensor
        return through(h, h.detach().sign() * h.detach().abs().mean())


def through(h: Tensor, instead: Tensor) -> Tensor:
    """`instead` forward; backward, as if it were h."""
    return instead + (h - h.detach()) if h.requires_grad else instead
