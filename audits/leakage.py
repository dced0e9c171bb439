"""`Leakage`: one number of evidence, always with its chance level, interval and n; and what each metric means.

The words here are the ones that a report prints, so they speak to people who are not engineers. This file knows no
attack and no view: `score` makes leakages, `report` shows them, `policy` judges them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

By = Literal["class", "site", "worst tenth", "epoch"]
Goal = Literal["label", "input", "attribute", "membership", "distinguish", "traffic"]


@dataclass(frozen=True)
class Metric:
    """What a figure measures. more: whether a larger value is a larger leak; ideal: a total leak (None: no bound)."""

    name: str
    title: str
    about: str
    more: bool = True
    ideal: float | None = 1.0
    percent: bool = False


_TABLE = (
    Metric(
        "leak-auc", "Leak AUC, median batch",
        "If one record of each class is picked from a batch, how often the attack ranks the two rightly. "
        "0.5 is guessing, 1 is every label read.",
    ),
    Metric(
        "leak-auc-high", "Leak AUC, worst batches",
        "The same, in the batch that only 1 in 20 exceeds: what the unluckiest patients face.",
    ),
    Metric("auc", "Leak AUC, all records", "The same, over all records at once. 0.5 is guessing, 1 is all read."),
    Metric("accuracy", "Accuracy", "Share of records whose secret the attack names rightly.", percent=True),
    Metric(
        "balanced-accuracy", "Balanced accuracy",
        "The same share, each class counting alike, so that always naming the common class earns nothing.",
        percent=True,
    ),
    Metric(
        "accuracy-permuted", "Accuracy up to permutation",
        "Share of records grouped rightly: which group carries which name is left to the scorer.", percent=True,
    ),
    Metric("advantage", "Advantage", "True-positive rate minus false-positive rate. 0 is guessing, 1 is certainty."),
    Metric("tpr-at-1", "True positives at 1% false", "Share of members found while 1 in 100 others is accused.",
           percent=True),
    Metric("tpr-at-0.1", "True positives at 0.1% false", "Share of members found while 1 in 1000 others is accused.",
           percent=True),
    Metric("r2", "R squared", "Share of a value's variation that the attack explains. 0 is naming the mean."),
    Metric("mse", "Mean squared error", "Mean squared difference from the true record; 0 is an exact copy.",
           more=False, ideal=0.0),
    Metric(
        "affine-mse", "Mean squared error, brightness aligned",
        "The same after the best change of brightness and contrast, for attacks that cannot know the scale.",
        more=False, ideal=0.0,
    ),
    Metric("psnr", "PSNR in decibel", "Peak signal-to-noise ratio, mean over images; higher is closer.", ideal=None),
    Metric("ssim", "SSIM", "How alike the structures of two images are: 0 is unlike, 1 is the same image."),
    Metric("correlation", "Correlation", "Correlation with the true record: 0 is none, 1 is the same up to scale."),
    Metric(
        "re-identification", "Re-identification",
        "Share of reconstructions whose nearest private record is the very record they came from.", percent=True,
    ),
    Metric("epsilon-lower-bound", "Epsilon, measured lower bound",
           "The privacy loss is at least this. It says nothing of how much larger it may be.", ideal=None),
)  # fmt: skip
METRICS: Mapping[str, Metric] = MappingProxyType({metric.name: metric for metric in _TABLE})


@dataclass(frozen=True)
class Group:
    """The same metric on a part of the rows: of a class, of a site, or the tenth that fared worst."""

    by: By
    name: str
    value: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Baseline:
    """What somebody who saw no message reaches on the same rows; or a ceiling (`sees`: what it was given)."""

    name: str
    value: float
    sees: str = "no message"


@dataclass(frozen=True, kw_only=True)
class Leakage:
    """How much one attack of one threat learnt, by one metric.

    chance: the best that was reached without any message, and `chance_is` by what (None: nothing was held against it);
    low, high: the interval at 95%, None where n is too small for one; n of `unit`s; p: the permutation, paired or
    binomial p-value against chance, None where there is no null.
    """

    attack: str
    threat: str
    goal: Goal
    column: str
    metric: str
    value: float
    chance: float | None
    chance_is: str
    low: float | None
    high: float | None
    interval: str
    n: int
    unit: str = "records"
    p: float | None = None
    p_adjusted: float | None = None  # p by Holm, over all headline figures of one audit
    null_high: float | None = None  # the 95% quantile of the null
    headline: bool = False  # the metric by which this goal's attacks are compared
    groups: tuple[Group, ...] = ()
    baselines: tuple[Baseline, ...] = ()

    @property
    def score(self) -> float | None:
        """0: no better than chance; 1: everything. None where it has no bound or no chance level."""
        ideal = METRICS[self.metric].ideal
        if ideal is None or self.chance is None or ideal == self.chance:
            return None
        return min(1.0, max(0.0, (self.value - self.chance) / (ideal - self.chance)))

    @property
    def pessimistic(self) -> float | None:
        """The end of the interval that is worse for the patient, which is what a gate reads; None: no evidence."""
        return self.high if METRICS[self.metric].more else self.low

    @property
    def leaks(self) -> bool:
        """Whether the whole interval lies beyond chance, and the (adjusted) p-value, where there is one, is <= 0.05."""
        if self.low is None or self.high is None or self.chance is None:
            return False
        beyond = self.low > self.chance if METRICS[self.metric].more else self.high < self.chance
        p = self.p if self.p_adjusted is None else self.p_adjusted
        return beyond and (p is None or p <= 0.05)


def worst(leakages: Iterable[Leakage]) -> Leakage | None:
    """The leakage by which the configuration is judged: the highest score among the headline metrics."""
    headlines = [leak for leak in leakages if leak.headline and leak.score is not None]
    return max(headlines, key=lambda leak: leak.score or 0.0, default=None)
