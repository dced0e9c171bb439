"""Isotropic Gaussian noise on the gradients that a label party returns: the baseline of Li et al. (ICLR 2022).

arXiv 2102.08504, section 4: every row gets N(0, (t max ||g|| / sqrt d)^2 I), with the largest norm of the batch, so
that norms no longer tell the classes apart. A measured control: no clipping, a scale that depends on the other rows,
and so no differential privacy and no bound that composes over epochs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from secsplit.defenses.base import Outgoing
from secsplit.defenses.noise import Noise
from secsplit.defenses.spec import AtCrossing, OnMessage, Positive, Tensorial


class IsoSpec(AtCrossing):
    """kind = "iso": noise of power t times the batch's largest gradient norm."""

    guarantee = "none"
    paper = "Li et al. 2022, arXiv 2102.08504"
    about = "isotropic noise on returned gradients"

    kind: Literal["iso"] = "iso"
    message: Tensorial = "cut-grad"
    t: Positive

    def build(self, noise: Noise, classes: Mapping[str, int]) -> Iso:
        del classes
        return Iso(self, noise)


class Iso(OnMessage[IsoSpec]):
    """Adds the noise; it holds no state."""

    def __init__(self, spec: IsoSpec, noise: Noise) -> None:
        super().__init__(spec)
        self._noise = noise

    def outgoing(self, out: Outgoing) -> Tensor:
        """(batch, ...): each row plus noise whose expected norm is t times the largest row norm."""
        g = out.tensor
        flat = g.flatten(1)
        deviation = self.spec.t * flat.norm(dim=1).max() / flat.shape[1] ** 0.5
        noised: Tensor = g + self._noise.normal(out.name, tuple(g.shape)).to(g) * deviation
        return noised
