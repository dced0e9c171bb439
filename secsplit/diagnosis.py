"""How well scores tell ill from well: the figures of Gawali et al. 2021 (arXiv 2012.12591), each with an interval.

AUROC, AUPRC (average precision) and, at the threshold of Youden's index (Youden 1950), sensitivity, specificity, F1 and
Cohen's kappa. Intervals are percentiles of a bootstrap within each class (Efron and Tibshirani 1993); the threshold is
chosen anew in every resample, so its choice is in the interval. It is chosen on the records that it is judged on: the
four figures at it are optimistic. A bootstrap says nothing of errors that did not happen, so the bounds of sensitivity
and specificity are never narrower than Clopper and Pearson's (1934).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import binomtest
from torch import Tensor

FIGURES = ("auroc", "auprc", "f1", "kappa", "sensitivity", "specificity")
Floats = NDArray[np.float64]
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Figure:
    """One figure, and the bounds of its interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True)
class Diagnosis:
    """n records of which `ill` are of class 1; threshold: of the score, at Youden's point."""

    n: int
    ill: int
    threshold: float
    figures: Mapping[str, Figure]

    @property
    def prevalence(self) -> float:
        return self.ill / self.n

    @property
    def chance(self) -> Mapping[str, float]:
        """What scores that tell nothing would have, where that does not depend on the threshold."""
        return {"auroc": 0.5, "auprc": self.prevalence, "kappa": 0.0}


def diagnosis(
    scores: Tensor, truth: Tensor, *, coins: torch.Generator, resamples: int = 1000, confidence: float = 0.95
) -> Diagnosis:
    """Judge scores (n,), higher for ill, against truth (n,) of 0 and 1.

    Raises ValueError where one class is missing: nothing can be told apart then.
    """
    ill = _classes(scores, truth)
    drawn = [_drawn(group, resamples, coins) for group in (ill.nonzero()[0], (~ill).nonzero()[0])]
    levels, (point, best), (again, _) = _judged(scores, ill, drawn)
    tails = 100 * (1 - confidence) / 2
    low, high = np.percentile(again, [tails, 100 - tails], axis=0) if resamples else (point[0], point[0])
    figures = dict(zip(FIGURES, map(Figure, point[0].tolist(), low.tolist(), high.tolist()), strict=True))
    for name, count in (("sensitivity", ill.sum()), ("specificity", (~ill).sum())):
        figures[name] = _widened(figures[name], int(count), confidence)
    return Diagnosis(len(ill), int(ill.sum()), float(-levels[best[0]]), figures)


def difference(
    ours: Tensor,
    theirs: Tensor,
    truth: Tensor,
    *,
    coins: torch.Generator,
    resamples: int = 1000,
    confidence: float = 0.95,
) -> Figure:
    """AUROC of our scores (n,) less that of theirs (n,), of the same records: every resample judges both."""
    ill = _classes(ours, truth)
    drawn = [_drawn(group, resamples, coins) for group in (ill.nonzero()[0], (~ill).nonzero()[0])]
    (_, (a, _), (a_again, _)), (_, (b, _), (b_again, _)) = (_judged(scores, ill, drawn) for scores in (ours, theirs))
    tails = 100 * (1 - confidence) / 2
    low, high = np.percentile(a_again[:, 0] - b_again[:, 0], [tails, 100 - tails])
    return Figure(float(a[0, 0] - b[0, 0]), float(low), float(high))


def _classes(scores: Tensor, truth: Tensor) -> NDArray[np.bool_]:
    """(n,) whether ill. Raises ValueError where nothing can be judged."""
    ill: NDArray[np.bool_] = truth.numpy().astype(bool)
    if scores.shape != truth.shape or ill.ndim != 1:
        raise ValueError(f"expected as many scores as labels, got {tuple(scores.shape)} and {ill.shape}")
    if ill.all() or not ill.any():
        raise ValueError(f"expected records of both classes, got {int(ill.sum())} ill of {len(ill)}")
    return ill


def _drawn(rows: Counts, resamples: int, coins: torch.Generator) -> Counts:
    """(resamples, len(rows)): as many rows, drawn with replacement."""
    drawn: Counts = rows[torch.randint(len(rows), (resamples, len(rows)), generator=coins).numpy()]
    return drawn


def _judged(
    scores: Tensor, ill: NDArray[np.bool_], drawn: list[Counts]
) -> tuple[Floats, tuple[Floats, Counts], tuple[Floats, Counts]]:
    """The scores' levels, highest first and negated; the figures; and those of the rows (ill, well) drawn."""
    levels, place = np.unique(-scores.double().numpy(), return_inverse=True)
    point = _figures(*(_counted(place[group][None], len(levels)) for group in (ill, ~ill)))
    return levels, point, _figures(*(_counted(place[rows], len(levels)) for rows in drawn))


def _counted(places: Counts, levels: int) -> Counts:
    """(resamples, levels): how many records of each resample have each score."""
    rows = np.arange(len(places))[:, None] * levels
    return np.bincount((places + rows).ravel(), minlength=len(places) * levels).reshape(len(places), levels)


def _figures(sick: Counts, well: Counts) -> tuple[Floats, Counts]:
    """(resamples, figures), and (resamples,) the level at Youden's point. Counts (resamples, levels), highest first."""
    tp, fp = sick.cumsum(1), well.cumsum(1)
    ill, healthy = tp[:, -1:], fp[:, -1:]
    sensitivity, false = tp / ill, fp / healthy
    before = np.concatenate([np.zeros_like(ill), tp[:, :-1]], axis=1)
    auroc = (well * (before + tp)).sum(1) / (2 * ill * healthy)[:, 0]  # a tie is half won
    auprc = (sick * (tp / np.maximum(tp + fp, 1))).sum(1) / ill[:, 0]
    best = (sensitivity - false).argmax(1)
    rows = np.arange(len(best))
    hit, alarm = tp[rows, best], fp[rows, best]
    n, positive = (ill + healthy)[:, 0], ill[:, 0]
    agreed = (hit + healthy[:, 0] - alarm) / n
    lucky = ((hit + alarm) * positive + (n - hit - alarm) * (n - positive)) / n**2
    f1, kappa = 2 * hit / (hit + alarm + positive), (agreed - lucky) / (1 - lucky)
    values = (auroc, auprc, f1, kappa, sensitivity[rows, best], 1 - false[rows, best])
    return np.stack(values, axis=1), best


def _widened(figure: Figure, n: int, confidence: float) -> Figure:
    """The interval, and Clopper and Pearson's for so many records, in one."""
    exact = binomtest(round(figure.value * n), n).proportion_ci(confidence, method="exact")
    return Figure(figure.value, min(figure.low, float(exact.low)), max(figure.high, float(exact.high)))
