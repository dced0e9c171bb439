"""What a release costs: the exact arithmetic of Gaussian mechanisms, and the charges that the ledger adds up.

Gaussian differential privacy is of Dong, Roth, Su (arXiv 1905.02383); the closed form of delta is of Balle and Wang
(arXiv 1805.06530). Everything here is about ONE record; who that record belongs to, who reads the message and what is
not covered is said by the ledger. Opacus's RDP and PRV accountants stand beside the closed form as upper bounds; its
central-limit accountant is not offered, since it is wrong for few or unsampled releases.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from scipy.special import log_ndtr, ndtr, ndtri
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


def reconstruction_bound(mu: float, kappa: float) -> float:
    """The most that mu-GDP lets anyone succeed who would succeed with probability kappa knowing no message.

    Reconstruction robustness: Balle et al. 2022 (arXiv 2201.04845), Hayes et al. 2023; this closed form for Gaussian
    mechanisms is that of Kaissis et al. 2023 (arXiv 2307.03928). kappa = 1/N where one of N candidates is to be named.
    """
    if not 0 < kappa < 1:
        raise ValueError(f"kappa: expected a probability between 0 and 1, got {kappa}")
    return 1.0 if math.isinf(mu) else float(ndtr(float(ndtri(kappa)) + mu))


def label_bound(epsilon: float, classes: int) -> float:
    """The best accuracy on randomised labels of anyone without side information, classes being equally likely."""
    return 1 / (1 + (classes - 1) * math.exp(-epsilon))


Releases = Iterable[tuple[float, int]]  # (mu of one release, how often)


def rdp_epsilon(releases: Releases, delta: float) -> float:
    """Epsilon by Opacus's RDP accountant: an upper bound, some 7% above the exact one for Gaussian releases."""
    from opacus.accountants import RDPAccountant

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # "optimal order is the largest alpha": still a bound
        return float(_accountant(RDPAccountant(), releases).get_epsilon(delta))


def prv_epsilon(releases: Releases, delta: float) -> float:
    """Epsilon by Opacus's PRV accountant: an upper bound, within 0.01 of the exact one."""
    from opacus.accountants import PRVAccountant

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # log(0) at sample rate 1, which it goes on from correctly
        return float(_accountant(PRVAccountant(), releases).get_epsilon(delta))


def hidden_participation_epsilon(*, sigma: float, sample_rate: float, steps: int, delta: float) -> float:
    """Epsilon of DP-SGD for someone who sees the final weights ALONE, of truly Poisson-sampled training (zero-out).

    It is what an amplified accountant prints. It says nothing against a peer who is sent one message an example, and so
    sees who takes part: for that, compose the releases. By Opacus's RDP accountant.
    """
    from opacus.accountants import RDPAccountant

    accountant = RDPAccountant()
    accountant.history = [(sigma, sample_rate, steps)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return float(accountant.get_epsilon(delta))


def _accountant(accountant: Any, releases: Releases) -> Any:
    """The accountant, with each release as a Gaussian of sensitivity 1 that everybody takes part in."""
    accountant.history = [(1 / mu, 1.0, count) for mu, count in releases]
    return accountant
