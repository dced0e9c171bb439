"""Dropout at the cut: entries of a message are zeroed at random. A measured control.

One observation of a record is much poorer for it; averaging a record's messages over epochs undoes most of that. It
proves nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from secsplit.defenses.base import Outgoing
from secsplit.defenses.noise import Noise
from secsplit.defenses.spec import AtCrossing, Fraction, OnMessage


class DropoutSpec(AtCrossing):
    """kind = "dropout": each entry is zeroed with probability p, in training and inference; the rest grow."""

    guarantee = "none"
    paper = "He et al. 2020 (as a defense)"
    about = "random zeros in a message (control)"

    kind: Literal["dropout"] = "dropout"
    p: Fraction

    def build(self, noise: Noise, classes: Mapping[str, int]) -> Dropout:
        del classes
        return Dropout(self, noise)


class Dropout(OnMessage[DropoutSpec]):
    """Draws a mask for every message, from the party's secret noise."""

    def __init__(self, spec: DropoutSpec, noise: Noise) -> None:
        super().__init__(spec)
        self._noise = noise

    def outgoing(self, out: Outgoing) -> Tensor:
        """(batch, ...): masked and rescaled."""
        h = out.tensor
        kept = self._noise.uniform(out.name, h.numel()).view(h.shape) >= self.spec.p
        return h * kept / (1 - self.spec.p)
