"""How well scores tell ill from well: the figures of Gawali et al. 2021 (arXiv 2012.12591), each with an interval.

AUROC, AUPRC (average precision), and, at the threshold of Youden's index (Youden 1950), sensitivity, specificity, F1
and Cohen's kappa; all computed by scikit-learn. Intervals are percentiles of a bootstrap within each class (Efron and
Tibshirani 1993); the threshold is chosen anew in every resample, so its choice is in the interval. It is chosen on the
records that it is judged on, as in the paper: the four figures at it are optimistic.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

CHANCE = {"auroc": 0.5, "kappa": 0.0}  # auprc: the prevalence
FIGURES = ("auroc", "auprc", "f1", "kappa", "sensitivity", "specificity")
Floats = NDArray[np.float64]


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
    figures: dict[str, Figure]

    @property
    def prevalence(self) -> float:
        return self.ill / self.n


def diagnosis(
    scores: Tensor, truth: Tensor, *, coins: torch.Generator, resamples: int = 1000, confidence: float = 0.95
) -> Diagnosis:
    """Judge scores (n,), higher for ill, against truth (n,) of 0 and 1.

    Raises ValueError where one class is missing: nothing can be told apart then.
    """
    score, ill = scores.double().numpy(), truth.numpy().astype(bool)
    if score.shape != ill.shape or score.ndim != 1:
        raise ValueError(f"expected as many scores as labels, got {score.shape} and {ill.shape}")
    if ill.all() or not ill.any():
        raise ValueError(f"expected records of both classes, got {int(ill.sum())} ill of {len(ill)}")
    point, threshold = _figures(score, ill)
    sick, well = np.flatnonzero(ill), np.flatnonzero(~ill)
    drawn = np.array([_figures(*_resampled(score, sick, well, coins))[0] for _ in range(resamples)])
    tails = 100 * (1 - confidence) / 2
    low, high = np.percentile(drawn, [tails, 100 - tails], axis=0) if resamples else (point, point)
    figures = {
        name: Figure(float(value), float(a), float(b))
        for name, value, a, b in zip(FIGURES, point, low, high, strict=True)
    }
    return Diagnosis(len(ill), int(ill.sum()), threshold, figures)


def _resampled(
    score: Floats, sick: NDArray[np.int64], well: NDArray[np.int64], coins: torch.Generator
) -> tuple[Floats, NDArray[np.bool_]]:
    """As many of each class, drawn with replacement."""
    rows = [group[torch.randint(len(group), (len(group),), generator=coins).numpy()] for group in (sick, well)]
    return score[np.concatenate(rows)], np.repeat([True, False], [len(sick), len(well)])


def _figures(score: Floats, ill: NDArray[np.bool_]) -> tuple[Floats, float]:
    """(the figures in order, the threshold)."""
    from sklearn.metrics import average_precision_score, cohen_kappa_score, f1_score, roc_auc_score, roc_curve

    false, true, thresholds = roc_curve(ill, score)
    best = int(np.argmax(true - false))
    guess = score >= thresholds[best]
    values = (
        roc_auc_score(ill, score),
        average_precision_score(ill, score),
        f1_score(ill, guess, zero_division=0),
        cohen_kappa_score(ill, guess),
        true[best],
        1 - false[best],
    )
    return np.array(values, dtype=np.float64), float(thresholds[best])
