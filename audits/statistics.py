"""Intervals, nulls and corrections: what turns a number into evidence.

Clopper & Pearson 1934 for proportions; DeLong, DeLong & Clarke-Pearson 1988 for the area under the ROC curve, by the
fast form of Sun & Xu 2014; percentile bootstrap over clusters (records, images) elsewhere; order statistics for
medians; permutation nulls with the p-value of Phipson & Smyth 2010; Holm 1979 and Benjamini & Hochberg 1995 for many
attacks at once. This file knows numbers only: no attack, no view, no run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp, isnan, log, nan, sqrt

import torch
from scipy import stats
from torch import Tensor

LEVEL = 0.95
FLOOR = 1e-12  # no p-value is called smaller
CHUNK = 1 << 22  # elements a bootstrap draws at once, which bounds its memory


@dataclass(frozen=True)
class Interval:
    """A two-sided interval at `level`, and by which method it was made."""

    low: float
    high: float
    method: str
    level: float = LEVEL


def proportion(hits: int, n: int, *, level: float = LEVEL) -> Interval:
    """Clopper-Pearson: exact, never too narrow. Of nothing it says nothing: [0, 1]."""
    if n == 0:
        return Interval(0.0, 1.0, "none: n = 0", level)
    found = stats.binomtest(hits, n).proportion_ci(level, method="exact")
    return Interval(float(found.low), float(found.high), "Clopper-Pearson", level)


def auc(scores: Tensor, positive: Tensor) -> float:
    """Area under the ROC curve, ties counted half; NaN where there is only one class.

    scores: (n,), higher means positive; positive: (n,) bool.
    """
    n1 = int(positive.sum())
    n0 = len(positive) - n1
    if not n0 or not n1:
        return nan
    ranks = torch.as_tensor(stats.rankdata(scores.double().numpy()))
    return (float(ranks[positive].sum()) - n1 * (n1 + 1) / 2) / (n0 * n1)


def auc_interval(scores: Tensor, positive: Tensor, *, level: float = LEVEL) -> Interval:
    """DeLong on the logit scale, which stays inside [0, 1].

    At an area of 0 or 1 DeLong's variance is 0 and would claim certainty; there the rarer class is taken as that many
    exact trials (Clopper-Pearson), which is conservative.
    """
    value = auc(scores, positive)
    if isnan(value):
        return Interval(0.0, 1.0, "none: one class", level)
    n1, n0 = int(positive.sum()), int((~positive).sum())
    variance = _delong_variance(scores.double(), positive, n0, n1) if min(n0, n1) > 1 else 0.0
    if value in (0.0, 1.0) or variance <= 0.0:
        few = min(n0, n1)
        exact = proportion(round(value * few), few, level=level)
        return Interval(min(exact.low, value), max(exact.high, value), "Clopper-Pearson on the rarer class", level)
    z = float(stats.norm.ppf((1 + level) / 2))
    centre, half = log(value / (1 - value)), z * sqrt(variance) / (value * (1 - value))
    return Interval(_logistic(centre - half), _logistic(centre + half), "DeLong, logit scale", level)


def _delong_variance(scores: Tensor, positive: Tensor, n0: int, n1: int) -> float:
    """Sun & Xu's form: placements from mid-ranks, one sort in place of all pairs."""
    every = torch.as_tensor(stats.rankdata(scores.numpy()))
    above = torch.as_tensor(stats.rankdata(scores[positive].numpy()))
    below = torch.as_tensor(stats.rankdata(scores[~positive].numpy()))
    of_positive = (every[positive] - above) / n0  # share of negatives each positive beats
    of_negative = 1 - (every[~positive] - below) / n1
    return float(of_positive.var() / n1 + of_negative.var() / n0)


def _logistic(x: float) -> float:
    return 1 / (1 + exp(-x)) if x > -700 else 0.0


def median(values: Tensor, *, level: float = LEVEL) -> Interval:
    """Distribution-free interval of the median from order statistics; the range where n is too small for one."""
    n = len(values)
    if n == 0:
        return Interval(nan, nan, "none: n = 0", level)
    ordered = values.double().sort().values
    below = int(stats.binom.ppf((1 - level) / 2, n, 0.5))  # P(fewer than `below` values lie under the median) < alpha/2
    if below < 1:
        return Interval(float(ordered[0]), float(ordered[-1]), f"range: n = {n} is too small for an interval", level)
    return Interval(float(ordered[below - 1]), float(ordered[n - below]), "order statistics", level)


def bootstrap(
    values: Tensor, *, coins: torch.Generator, weights: Tensor | None = None, draws: int = 1000, level: float = LEVEL
) -> Interval:
    """Percentile bootstrap of the (weighted) mean over independent units.

    values: (n,) one number a unit; weights: (n,) how many observations each unit stands for (ratio of sums).
    """
    n = len(values)
    if n < 2:
        return Interval(nan, nan, f"none: n = {n}", level)
    weight = torch.ones(n, dtype=torch.float64) if weights is None else weights.double()
    total = values.double() * weight
    means = []
    for start in range(0, draws, size := max(1, CHUNK // n)):
        pick = torch.randint(n, (min(size, draws - start), n), generator=coins)
        means.append(total[pick].sum(1) / weight[pick].sum(1))
    low, high = torch.cat(means).quantile(torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64))
    return Interval(float(low), float(high), f"bootstrap, {draws} draws", level)


def never_certain(within: Interval, value: float, n: int) -> Interval:
    """The interval of a share in [0, 1] over n units; where a bootstrap of units all alike has no width, exact.

    To find nothing among few says little, and a bootstrap of nothing but misses would call it certain.
    """
    if within.high > within.low or isnan(value) or not n:
        return within
    exact = proportion(round(value * n), n, level=within.level)
    return Interval(
        min(exact.low, value), max(exact.high, value), f"{exact.method}, for all units are alike", within.level
    )


def over_seeds(values: Sequence[float], *, level: float = LEVEL) -> Interval:
    """Student's t over seeds, where a seed is a victim and an attacker of its own."""
    n = len(values)
    if n < 2:
        return Interval(nan, nan, "none: one seed", level)
    mean, error = sum(values) / n, float(stats.sem(values))
    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * error
    return Interval(mean - half, mean + half, f"t over {n} seeds", level)


@dataclass(frozen=True)
class Null:
    """What the statistic does when nothing is to be learnt: draws of it under permutation."""

    draws: Tensor  # (B,)

    @property
    def mean(self) -> float:
        return float(self.draws.mean())

    def quantile(self, q: float = LEVEL) -> float:
        return float(self.draws.quantile(q))

    def p(self, observed: float) -> float:
        """One-sided p-value: (1 + exceedances) / (1 + draws); where no draw comes near, the normal tail beyond them.

        Without the tail, few draws could never survive a correction for many attacks.
        """
        exceeding = int((self.draws >= observed).sum())
        if exceeding:
            return (1 + exceeding) / (1 + len(self.draws))
        spread = float(self.draws.std())
        tail = float(stats.norm.sf((observed - self.mean) / spread)) if spread > 0 else 0.0
        return min(1 / (1 + len(self.draws)), max(tail, FLOOR))


def permuted(statistic: Callable[[Tensor], float], n: int, *, coins: torch.Generator, draws: int = 199) -> Null:
    """The statistic of `draws` random permutations of n rows: statistic(order), order (n,) int64."""
    return Null(torch.tensor([statistic(torch.randperm(n, generator=coins)) for _ in range(draws)]).double())


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values: controls the chance of any false alarm among all of them."""
    order = sorted(range(len(p)), key=p.__getitem__)
    adjusted, running = [0.0] * len(p), 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p) - rank) * p[index]))
        adjusted[index] = running
    return adjusted


def benjamini_hochberg(p: Sequence[float]) -> list[float]:
    """Benjamini and Hochberg's adjusted p-values: controls the share of false alarms among the alarms."""
    return [float(q) for q in stats.false_discovery_control(p)] if p else []


def binomial_p(hits: int, n: int, chance: float) -> float:
    """P(at least `hits` of n by chance alone)."""
    return max(float(stats.binom.sf(hits - 1, n, chance)), FLOOR) if n else 1.0
