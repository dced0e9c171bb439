"""Norm alignment of returned gradients: the max-norm heuristic of Li et al. (ICLR 2022), and plain normalisation.

arXiv 2102.08504, section 4: each row gets noise along its own direction, so that its expected squared norm is the
largest of the batch. It hides norms and leaves directions: a negative control, no differential privacy. mode =
"normalise" scales every row to the mean norm instead, which hides norms wholly and directions not at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from secsplit.defenses.base import Outgoing
from secsplit.defenses.noise import Noise
from secsplit.defenses.spec import AtCrossing, OnMessage, Tensorial


class MaxNormSpec(AtCrossing):
    """kind = "max-norm": rows of unequal norm are made alike, at random (the paper's) or exactly ("normalise")."""

    guarantee = "none"
    paper = "Li et al. 2022, arXiv 2102.08504"
    about = "norm alignment of returned gradients (negative control)"

    kind: Literal["max-norm"] = "max-norm"
    message: Tensorial = "cut-grad"
    mode: Literal["max-norm", "normalise"] = "max-norm"

    def build(self, noise: Noise, classes: Mapping[str, int]) -> MaxNorm:
        del classes
        return MaxNorm(self, noise)


class MaxNorm(OnMessage[MaxNormSpec]):
    """Aligns the norms; it holds no state."""

    def __init__(self, spec: MaxNormSpec, noise: Noise) -> None:
        super().__init__(spec)
        self._noise = noise

    def outgoing(self, out: Outgoing) -> Tensor:
        """(batch, ...): every row times a factor of its own; rows of norm zero stay."""
        g = out.tensor
        norms = g.flatten(1).norm(dim=1)
        safe = norms.clamp(min=1e-30)
        if self.spec.mode == "normalise":
            factor = norms.mean() / safe
        else:
            spread = ((norms.max() / safe) ** 2 - 1).clamp(min=0).sqrt()
            factor = 1 + spread * self._noise.normal(out.name, (len(g),)).to(g)
        factor = factor.where(norms > 0, norms.new_ones(()))
        aligned: Tensor = g * factor.view(-1, *[1] * (g.ndim - 1))
        return aligned
