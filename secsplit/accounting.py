"""What a release costs: the exact arithmetic of Gaussian mechanisms, and the charges that the ledger adds up.

Gaussian differential privacy is of Dong, Roth, Su (arXiv 1905.02383); the closed form of delta is of Balle and Wang
(arXiv 1805.06530). Everything here is about ONE record; who that record belongs to, who reads the message and what is
not covered is said by the ledger. Opacus's RDP and PRV accountants stand beside the closed form as upper bounds; its
central-limit accountant is not offered, since it is wrong for few or unsampled releases.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from scipy.special import log_ndtr, ndtr
from torch import Tensor

Protects = Literal["inputs", "labels"]
INPUTS: Protects = "inputs"
LABELS: Protects = "labels"

Adjacency = Literal["replace-one", "zero-out"]
DIAMETER = {"replace-one": 2.0, "zero-out": 1.0}  # sensitivity of a vector clipped to norm 1
ORTHANT_DIAMETER = {"replace-one": math.sqrt(2.0), "zero-out": 1.0}  # the same, where no coordinate is negative


@dataclass(frozen=True, slots=True)
class Charge:
    """What one message tells about the inputs, or the labels, of each record in it.

    mu: Gaussian DP parameter given everything sent before (inf: no finite bound, and `why` says why).
    epsilon: pure DP of noise drawn once for a record, charged once under the name `once`, however often it is sent.
    """

    protects: Protects
    mechanism: str
    mu: float = 0.0
    epsilon: float = 0.0
    once: str = ""
    adjacency: Adjacency = "replace-one"
    why: str = ""

    @property
    def finite(self) -> bool:
        return math.isfinite(self.mu) and math.isfinite(self.epsilon)


@dataclass(frozen=True, slots=True)
class Release:
    """One message as the ledger charges it: which, of which records, and at what cost.

    key: the same for a resend; rows: (batch,) positions in the cast's records; cast, training: which records those are.
    updates: optimizer steps whose weights this message may depend on and that are not charged yet.
    """

    key: str
    rows: Tensor = field(compare=False)
    cast: int = 0
    training: bool = True
    charges: tuple[Charge, ...] = ()
    updates: tuple[Release, ...] = ()


def unbounded(protects: Protects, mechanism: str, why: str) -> Charge:
    """The charge of a message that nothing bounds."""
    return Charge(protects, mechanism, mu=math.inf, why=why)


def tightest(charges: Iterable[Charge]) -> Charge | None:
    """Of several bounds on the same message, the smallest; label noise drawn once covers whatever follows from it."""
    known = list(charges)
    once = [c for c in known if c.once]
    if once:
        return min(once, key=lambda c: c.epsilon)
    return min(known, key=lambda c: c.mu, default=None)


def gaussian_mu(sigma: float, *, adjacency: Adjacency = "replace-one", orthant: bool = False) -> float:
    """mu of a vector clipped to norm C plus N(0, (sigma C)^2): diameter / sigma. Raises ValueError unless sigma > 0."""
    if not (sigma > 0 and math.isfinite(sigma)):
        raise ValueError(f"sigma: expected a positive, finite noise multiplier, got {sigma}")
    return (ORTHANT_DIAMETER if orthant else DIAMETER)[adjacency] / sigma


def compose(mus: Sequence[float]) -> float:
    """mu of adaptive Gaussian releases together: the root of the sum of squares, exactly."""
    return math.sqrt(math.fsum(mu * mu for mu in mus))


def delta_of(mu: float, epsilon: float) -> float:
    """The exact delta(epsilon) of a mu-GDP Gaussian release (Balle and Wang 2018, theorem 8)."""
    if mu == 0:
        return 0.0
    if math.isinf(mu):
        return 1.0
    first = float(ndtr(mu / 2 - epsilon / mu))
    second = math.exp(min(epsilon + float(log_ndtr(-epsilon / mu - mu / 2)), 0.0))
    return max(first - second, 0.0)


def epsilon_of(mu: float, delta: float) -> float:
    """The smallest epsilon >= 0 with delta_of(mu, epsilon) <= delta, found by bisection to 1e-10; inf for mu = inf."""
    _check_delta(delta)
    if math.isinf(mu):
        return math.inf
    if mu == 0 or delta_of(mu, 0.0) <= delta:
        return 0.0
    low, high = 0.0, mu * mu / 2 + mu * math.sqrt(2 * math.log(1 / delta)) + 1.0  # the zCDP conversion bounds it
    while high - low > 1e-10 * max(1.0, high):
        middle = (low + high) / 2
        low, high = (low, middle) if delta_of(mu, middle) <= delta else (middle, high)
    return high


def mu_of(epsilon: float, delta: float) -> float:
    """The largest mu whose epsilon at delta does not exceed `epsilon`: what a budget allows."""
    _check_delta(delta)
    if not epsilon > 0:
        raise ValueError(f"epsilon: expected a positive budget, got {epsilon}")
    low, high = 0.0, 1.0
    while delta_of(high, epsilon) <= delta:
        low, high = high, high * 2
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if delta_of(middle, epsilon) <= delta else (low, middle)
    return low


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise ValueError(f"delta: expected a probability between 0 and 1 (well below 1/n), got {delta}")
