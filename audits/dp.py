"""Is the claimed epsilon contradicted by what the mechanism does? Lower bounds on epsilon, from running it.

A canary pair is two values of one record that a replace-one neighbour may swap; a trial sends one of them, as often as
the run would, and the auditor tries to tell which. Two bounds come of it. Clopper-Pearson (as in Jagielski, Ullman,
Oprea 2020, arXiv 2006.07709) assumes nothing and cannot exceed about ln(n / 3.7). The Gaussian one (Nasr et al. 2023,
arXiv 2302.07956) has no such cap, and is valid for Gaussian mechanisms alone. Half the trials choose the threshold,
the other half count. For whole trainings: the one-run audit of Steinke, Nasr, Jagielski 2023 (arXiv 2305.08846).

A lower bound above the claim is a VIOLATION, at the stated confidence. A lower bound below it proves nothing good: the
mechanism may leak more than this test saw. So a verdict is "violation" or "no violation found", never more.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from audits.statistics import Interval, proportion
from secsplit.accounting import epsilon_of, reconstruction_bound
from secsplit.defenses import Defense, Outgoing
from secsplit.defenses.gaussian import GaussianSpec, clipped
from secsplit.message import Kind, Stamp

CONFIDENCE = 0.95
Verdict = Literal["violation", "no violation found"]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Lower:
    """Lower bounds on epsilon at delta, with the stated confidence, from n held-out trials.

    clopper_pearson: for any mechanism; gaussian: for Gaussian mechanisms only, from the bound `mu`.
    """

    clopper_pearson: float
    gaussian: float
    mu: float
    delta: float
    n: int
    confidence: float = CONFIDENCE

    @property
    def epsilon(self) -> float:
        """The larger of the two."""
        return max(self.clopper_pearson, self.gaussian)


@dataclass(frozen=True)
class EpsilonAudit:
    """A claim and what was measured against it. claimed: inf where no finite epsilon is claimed.

    over: (messages of a record, the bound from them alone), of the same trials, up to all of them.
    """

    mechanism: str
    canaries: str
    claimed: float
    adjacency: str
    releases: int
    lower: Lower
    over: tuple[tuple[int, Lower], ...] = ()

    @property
    def verdict(self) -> Verdict:
        """A violation exactly where the lower bound exceeds the claim."""
        return "violation" if self.lower.epsilon > self.claimed else "no violation found"

    @property
    def statement(self) -> str:
        """One sentence with the claim, the bound, its confidence and n."""
        low = self.lower
        measured = (
            f"at least {low.epsilon:.3g} (Clopper-Pearson {low.clopper_pearson:.3g}, Gaussian {low.gaussian:.3g})"
        )
        messages = f"{self.releases} message{'s' * (self.releases > 1)} of a record"
        return (
            f"{self.mechanism}, {messages}, {self.canaries} canaries: claimed epsilon {self.claimed:.4g} "
            f"({self.adjacency}, delta {low.delta:g}), measured {measured} with {low.confidence:.0%} confidence, "
            f"n = {low.n}: {self.verdict}"
        )


def lower_bounds(one: Tensor, other: Tensor, delta: float, *, confidence: float = CONFIDENCE) -> Lower:
    """Bounds from the statistics of the two canaries, (n,) each, higher meaning `one`.

    Each bound may fail with probability (1 - confidence) / 2, so both hold together with `confidence`; within a bound,
    false positives and negatives share what is allowed. Thresholds are chosen on the even trials, counted on the odd:
    for Clopper-Pearson the best quantile there, for the Gaussian bound the middle, where its interval is narrowest.
    """
    alpha = (1 - confidence) / 4
    a, b = one.double().numpy(), other.double().numpy()
    choose, count = (a[::2], b[::2]), (a[1::2], b[1::2])
    quantiles = np.quantile(np.concatenate(choose), np.linspace(0.002, 0.998, 200))
    best = quantiles[np.argmax(_pure(*_rates(choose, quantiles, alpha), delta))]
    middle = (choose[0].mean() + choose[1].mean()) / 2
    epsilon = float(_pure(*_rates(count, np.array([best]), alpha), delta)[0])
    fpr, fnr = _rates(count, np.array([middle]), alpha)
    mu = max(float((stats.norm.ppf(1 - fpr) - stats.norm.ppf(fnr))[0]), 0.0)
    return Lower(max(epsilon, 0.0), epsilon_of(mu, delta), mu, delta, len(count[0]) + len(count[1]), confidence)


def _rates(trials: tuple[Floats, Floats], thresholds: Floats, alpha: float) -> tuple[Floats, Floats]:
    """Upper Clopper-Pearson limits, alpha each, of the false positive and the false negative rate by threshold."""
    one, other = np.sort(trials[0]), np.sort(trials[1])
    positives = len(other) - np.searchsorted(other, thresholds, side="right")
    misses = np.searchsorted(one, thresholds, side="right")
    return _upper(positives, len(other), alpha), _upper(misses, len(one), alpha)


def _upper(hits: NDArray[np.int64], n: int, alpha: float) -> Floats:
    limit = np.asarray(stats.beta.ppf(1 - alpha, hits + 1, np.maximum(n - hits, 1)))
    return np.where(hits >= n, 1.0, limit)


def _pure(fpr: Floats, fnr: Floats, delta: float) -> Floats:
    """The least epsilon with which these error rates are possible, by either hypothesis."""
    ways = [np.log(np.maximum(1 - delta - miss, 1e-300) / hit) for hit, miss in ((fpr, fnr), (fnr, fpr))]
    best: Floats = np.maximum(*ways)
    return best


# auditing a mechanism


@dataclass(frozen=True)
class Pair:
    """Two values of one example's message that a replace-one neighbour may swap, and where they differ once sent.

    one, other: (...,) before the defense; direction: (...,) what the auditor projects on; name: "crafted" or "real".
    """

    one: Tensor
    other: Tensor
    direction: Tensor
    name: str


def crafted(spec: GaussianSpec, *, width: int = 32) -> Pair:
    """The worst pair for a clipped vector: antipodal and five times too long, or two axes where nothing is negative.

    Of zero-out neighbours, one of the two is nothing. Too long, so that a mechanism that forgets to clip shows.
    """
    one, other = torch.zeros(width), torch.zeros(width)
    one[0] = 5 * spec.clip
    if spec.adjacency == "zero-out":
        return Pair(one, other, _unit(one), "crafted")
    other[1 if spec.nonnegative else 0] = 5 * spec.clip if spec.nonnegative else -5 * spec.clip
    return Pair(one, other, _unit(one - other), "crafted")


def farthest(messages: Tensor, spec: GaussianSpec, *, among: int = 500) -> Pair:
    """The real pair farthest apart after clipping: messages (n, ...) before the defense, the first `among` of them.

    Of zero-out neighbours, the longest message and nothing.
    """
    kept = messages[:among]
    inside = clipped(kept, spec.clip, nonnegative=spec.nonnegative).flatten(1)
    if spec.adjacency == "zero-out":
        i = int(inside.norm(dim=1).argmax())
        return Pair(kept[i], torch.zeros_like(kept[i]), _unit(inside[i]).view_as(kept[i]), "real")
    apart = torch.cdist(inside, inside)
    i, j = divmod(int(apart.argmax()), len(kept))
    return Pair(kept[i], kept[j], _unit(inside[i] - inside[j]).view_as(kept[i]), "real")


def audit_mechanism(
    defense: Defense,
    pair: Pair,
    claimed: float,
    *,
    kind: Kind,
    edge: str,
    delta: float,
    releases: int = 1,
    trials: int = 10_000,
    mechanism: str = "gaussian",
    adjacency: str = "replace-one",
    batch: int = 2_000,
) -> EpsilonAudit:
    """Send each canary `trials` times, `releases` messages each, through the defense itself, and bound epsilon.

    The statistic is <sum of a trial's messages, direction>, which is the best there is against Gaussian noise.
    """
    told = looked_at(releases)
    seen = [
        _sums(defense, value, pair.direction, side, told, kind=kind, edge=edge, trials=trials, batch=batch)
        for side, value in (("one", pair.one), ("other", pair.other))
    ]
    over = tuple((n, lower_bounds(seen[0][n], seen[1][n], delta)) for n in told)
    return EpsilonAudit(mechanism, pair.name, claimed, adjacency, releases, over[-1][1], over)


def looked_at(releases: int, *, most: int = 8) -> tuple[int, ...]:
    """After how many messages a bound is taken: evenly, the first and the last among them."""
    return tuple(sorted({1 + round(i * (releases - 1) / (most - 1)) for i in range(most)}))


def _sums(
    defense: Defense, value: Tensor, direction: Tensor, side: str, told: Collection[int], *, kind: Kind, edge: str,
    trials: int, batch: int,
) -> dict[int, Tensor]:  # fmt: skip
    """After each number of messages told: (trials,) the sum of <message, direction> so far."""
    sums = {n: torch.zeros(trials, dtype=torch.float64) for n in told}
    for start in range(0, trials, batch):
        rows = torch.arange(start, min(start + batch, trials))
        so_far = torch.zeros(len(rows), dtype=torch.float64)
        for release in range(max(told)):
            h = value.expand(len(rows), *value.shape)
            stamp = Stamp(step=release, micro=start // batch)
            left = defense.outgoing(Outgoing(kind, edge, stamp, h, None, rows, side))
            so_far += left.detach().double().flatten(1) @ direction.double().flatten()
            if release + 1 in sums:
                sums[release + 1][rows] = so_far
    return sums


def _unit(vector: Tensor) -> Tensor:
    unit: Tensor = vector / vector.norm().clamp(min=1e-30)
    return unit


# auditing a whole training by one run


def one_run_p_value(*, canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """How likely so many correct guesses are, at most, under (epsilon, delta)-DP (Steinke et al. 2023, theorem 5.2).

    canaries: each replaced by one of two values on a fair coin; guesses: those on which the auditor commits itself.
    """
    if not 0 <= correct <= guesses <= canaries:
        raise ValueError(f"expected 0 <= correct <= guesses <= canaries, got {correct}, {guesses}, {canaries}")
    q = 1 / (1 + math.exp(-epsilon))
    beta = float(stats.binom.sf(correct - 1, guesses, q))
    mass = np.cumsum(stats.binom.pmf(correct - np.arange(1, correct + 1), guesses, q))
    alpha = float((mass / np.arange(1, correct + 1)).max(initial=0.0))
    return min(beta + 2 * alpha * delta * canaries, 1.0)


def one_run_lower_bound(
    *, canaries: int, guesses: int, correct: int, delta: float, confidence: float = CONFIDENCE
) -> float:
    """The largest epsilon that so many correct guesses refute at that confidence; 0 where they refute none."""

    def refuted(epsilon: float) -> bool:
        p = one_run_p_value(canaries=canaries, guesses=guesses, correct=correct, epsilon=epsilon, delta=delta)
        return p < 1 - confidence

    low, high = 0.0, 30.0
    if not refuted(low):
        return 0.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


@dataclass(frozen=True)
class OneRun:
    """A whole training audited by its own canaries: how many coins were guessed right, and what that refutes."""

    canaries: int
    guesses: int
    correct: int
    claimed: float
    delta: float
    confidence: float = CONFIDENCE

    @property
    def lower(self) -> float:
        """The lower bound on epsilon."""
        counts = {"canaries": self.canaries, "guesses": self.guesses, "correct": self.correct}
        return one_run_lower_bound(**counts, delta=self.delta, confidence=self.confidence)

    @property
    def verdict(self) -> Verdict:
        """A violation exactly where the lower bound exceeds the claim."""
        return "violation" if self.lower > self.claimed else "no violation found"

    @property
    def statement(self) -> str:
        """One sentence with the claim, the bound, its confidence and n."""
        return (
            f"the whole training, one run of it: {self.correct} of {self.guesses} coins guessed right, of "
            f"{self.canaries} "
            f"canaries: claimed epsilon {self.claimed:.4g} (replace-one, delta {self.delta:g}), measured at least "
            f"{self.lower:.3g} with {self.confidence:.0%} confidence: {self.verdict}"
        )


def guess_coins(scores: Tensor, coins: Tensor, claimed: float, *, delta: float, share: float = 0.3) -> OneRun:
    """Guess the coins of the canaries with the clearest scores, a fixed `share` of them, by the sign of the score.

    scores: (m,), positive for "one"; coins: (m,) bool, true where "one" was used. The share is fixed beforehand: to
    choose it by the outcome would void the confidence.
    """
    count = max(1, round(share * len(scores)))
    clearest = scores.abs().topk(count).indices
    correct = int(((scores > 0) == coins)[clearest].sum())
    return OneRun(len(scores), count, correct, claimed, delta)


# reconstruction robustness


@dataclass(frozen=True)
class Reidentification:
    """How often a record was named among N candidates, beside what the noise allows anyone.

    bound: Phi(Phi^-1(1/N) + mu) for mu-GDP messages. It holds for the expected rate, so a measured rate is compared by
    its Clopper-Pearson lower end.
    """

    hits: int
    n: int
    candidates: int
    mu: float

    @property
    def rate(self) -> float:
        return self.hits / self.n

    @property
    def interval(self) -> Interval:
        """95% Clopper-Pearson interval of the rate."""
        return proportion(self.hits, self.n)

    @property
    def chance(self) -> float:
        return 1 / self.candidates

    @property
    def bound(self) -> float:
        return reconstruction_bound(self.mu, self.chance)

    @property
    def verdict(self) -> Verdict:
        return "violation" if self.interval.low > self.bound else "no violation found"

    @property
    def statement(self) -> str:
        """One sentence with the rate, its interval, chance and the bound."""
        return (
            f"re-identification among {self.candidates} records: {self.rate:.2%} "
            f"({self.interval.low:.2%} to {self.interval.high:.2%}, n = {self.n}; chance {self.chance:.2%}), where the "
            f"noise allows anyone at most {self.bound:.2%}: {self.verdict}"
        )


def reidentify(sent: Tensor, messages: Tensor, truth: Tensor, *, mu: float) -> Reidentification:
    """Name each sent message's record as the nearest candidate: the best guess under Gaussian noise and an even prior.

    sent: (n, ...) means of the noised messages of n records; messages: (N, ...) all candidates' messages before noise,
    clipped; truth: (n,) which candidate each is; mu: of all the messages in the mean together.
    """
    nearest = torch.cdist(sent.flatten(1).double(), messages.flatten(1).double()).argmin(1)
    return Reidentification(int((nearest == truth).sum()), len(truth), len(messages), mu)
