"""Marvell: the noise on returned gradients that best hides a binary label for its power.

Li, Sun, Yang, Gao, Zhang, Xie, Smith, Wang, ICLR 2022 (arXiv 2102.08504), theorem 2. The gradients of the two classes
are modelled as Gaussians with means d apart and isotropic variances u (negatives) and v (positives); class c is noised
with variance l1c along the difference of the means and l2c in every other direction, minimising the symmetrised KL
divergence under a power budget p tr(S1) + (1 - p) tr(S0) <= s ||d||^2. For that one batch, any detector's error is at
least 1/2 - sqrt(sumKL) / 4. A measured control: it is no differential privacy, and it does not compose over epochs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from secsplit.defenses.base import Outgoing
from secsplit.defenses.noise import Noise
from secsplit.defenses.spec import AtCrossing, OnMessage, Positive, Spec, Tensorial
from secsplit.errors import RunError
from secsplit.topology import Topology


@dataclass(frozen=True)
class Variances:
    """Noise variances along the difference of the means (first) and in every other direction (other), by class."""

    first: tuple[float, float]  # negatives, positives
    other: tuple[float, float]
    sum_kl: float


class MarvellSpec(AtCrossing):
    """kind = "marvell": label-optimal noise of power s times the squared distance of the class means."""

    guarantee = "none"
    paper = "Li et al. 2022, arXiv 2102.08504"
    about = "label-optimal noise on returned gradients, binary tasks"

    kind: Literal["marvell"] = "marvell"
    message: Tensorial = "cut-grad"
    s: Positive

    def fits(self, topology: Topology, specs: Sequence[Spec], micro_batches: int) -> None:
        del specs, micro_batches
        role = self.role(topology)
        if not topology.labels(role):
            raise RunError(
                f"defenses.edge: marvell: role {role!r} holds no labels to hide; put it where the labels are"
            )

    def build(self, noise: Noise, classes: Mapping[str, int]) -> Marvell:
        if classes and 2 not in classes.values():
            raise RunError(f"defenses.kind: marvell is for binary labels, got classes {dict(classes)}; use iso")
        return Marvell(self, noise)


class Marvell(OnMessage[MarvellSpec]):
    """Adds the noise; `sum_kl` keeps the divergence reached batch by batch."""

    def __init__(self, spec: MarvellSpec, noise: Noise) -> None:
        super().__init__(spec)
        self._noise = noise
        self.sum_kl: list[float] = []

    def outgoing(self, out: Outgoing) -> Tensor:
        """(batch, ...): rows plus their class's noise. A batch of one class has no difference to hide, and stays."""
        g, y = out.tensor.flatten(1), out.labels
        if y is None or not bool((y == 1).any()) or not bool((y == 0).any()):
            return out.tensor
        negative, positive = g[y == 0], g[y == 1]
        difference = positive.mean(0) - negative.mean(0)
        distance = float(difference.square().sum())
        if distance == 0:
            return out.tensor
        u, v = (float((rows - rows.mean(0)).square().mean()) for rows in (negative, positive))
        found = variances(u, v, distance, g.shape[1], float((y == 1).float().mean()), self.spec.s * distance)
        self.sum_kl.append(found.sum_kl)
        direction = difference / distance**0.5
        drawn = self._noise.normal(out.name, tuple(g.shape)).to(g)
        along = (drawn @ direction).unsqueeze(1) * direction
        first, other = (g.new_tensor(pair)[(y == 1).long()].sqrt().unsqueeze(1) for pair in (found.first, found.other))
        noised: Tensor = g + first * along + other * (drawn - along)
        return noised.view_as(out.tensor)


def variances(u: float, v: float, distance: float, dimension: int, positives: float, power: float) -> Variances:
    """The paper's optimum, for class variances u, v a coordinate and squared mean distance `distance`.

    positives: their share p of the batch; power: the budget. Solved in units of `distance` by descent on the shares of
    the budget from several starts; the power is spent wholly, since more noise never tells more.
    """
    from scipy.optimize import minimize

    u, v, power = u / distance, v / distance, power / distance
    weights = np.array([1 - positives, positives, (1 - positives) * (dimension - 1), positives * (dimension - 1)])
    weights = np.maximum(weights, 1e-12)

    def shares(x: NDArray[np.float64]) -> NDArray[np.float64]:
        raised: NDArray[np.float64] = np.exp(x - x.max())
        raised /= raised.sum()
        return raised

    def objective(x: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        share = shares(x)
        value, slope = _sum_kl(power * share / weights, u, v, dimension)
        along = power * slope / weights
        return value, share * (along - share @ along)

    starts = [np.log([a, 1 - a, b, b]) for a in (0.1, 0.9) for b in (1e-4, 0.3)]
    found = min((minimize(objective, x, jac=True) for x in starts), key=lambda result: float(result.fun))
    l10, l11, l20, l21 = (power * distance * shares(found.x) / weights).tolist()
    return Variances((l10, l11), (l20, l21), float(found.fun))


def _sum_kl(noise: NDArray[np.float64], u: float, v: float, dimension: int) -> tuple[float, NDArray[np.float64]]:
    """KL(P0 || P1) + KL(P1 || P0) in units where the means are 1 apart, and its slope.

    noise: (4,) first and other variance of negatives and positives, in the order l10, l11, l20, l21.
    """
    a, b, c, d = noise[0] + u, noise[1] + v, noise[2] + u, noise[3] + v
    value = ((a + 1) / b + (b + 1) / a + (dimension - 1) * (c / d + d / c)) / 2 - dimension
    slope = np.array([1 / b - (b + 1) / a**2, 1 / a - (a + 1) / b**2, 1 / d - d / c**2, 1 / c - c / d**2]) / 2
    slope[2:] *= dimension - 1
    return max(float(value), 0.0), slope


def detection_error(sum_kl: float) -> float:
    """The least error of any detector on one batch that this divergence proves (0 where it proves nothing)."""
    return max(0.5 - math.sqrt(sum_kl) / 4, 0.0)
