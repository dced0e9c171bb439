"""The ROC curve of a guess that ranks, with an interval that counts patients and not rows.

Rows of one record are one unit: records are drawn with replacement, and a curve's 95% band is where 95 of 100 such
draws run, point by point. False-positive rates below one negative in the data are not given. Where the guess scores
every class, each class against the others is one trial of a row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from attacks.base import Guess
from audits import score_labels, statistics
from audits.evidence import Case, kept
from audits.frozen import Frozen

RATES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
DRAWS = 200
ENDS = (0.025, 0.975)


class RocPoint(Frozen):
    """The share of positives found where that share of negatives is accused, and its interval."""

    fpr: float
    tpr: float
    low: float
    high: float


class Roc(Frozen):
    """A curve over all rows at once. positive: what counts as positive; n: records that the interval rests on."""

    positive: str
    positives: int
    negatives: int
    n: int
    area: float
    interval: str
    points: tuple[RocPoint, ...]


def roc(case: Case, guess: Guess) -> Roc | None:
    """Of a guess about a class; None where it does not rank, or where only one class is there."""
    if guess.goal not in ("label", "attribute") or guess.scores is None or not case.truth.classes.get(guess.column):
        return None
    truth = case.truth.label(guess.column, guess.cast, guess.position).long()
    if truth.ndim != 1 or not len(truth):
        return None
    guess, truth = kept(guess, truth >= 0), truth[truth >= 0]
    assert guess.scores is not None
    record = torch.stack([guess.cast, guess.position], 1).unique(dim=0, return_inverse=True)[1]
    if guess.scores.ndim == 1:
        which = score_labels.positive_class(case, guess, truth)
        scores, positive, name = guess.scores.double(), truth == which, f"{guess.column} = {which}"
    else:
        classes = guess.scores.shape[1]
        scores = guess.scores.double().flatten()
        positive = (truth[:, None] == torch.arange(classes)).flatten()
        record, name = record.repeat_interleave(classes), f"the true {guess.column}, each class against the others"
    area = statistics.auc(scores, positive)
    if area != area:  # only one class
        return None
    if guess.up_to_permutation and area < 0.5:
        scores, area = -scores, 1 - area
    return _curve(scores, positive, record, name, area, coins=case.coins)


def _curve(scores: Tensor, positive: Tensor, record: Tensor, name: str, area: float, *, coins: torch.Generator) -> Roc:
    order = scores.argsort(descending=True)
    ends = torch.cat([scores[order].diff() != 0, torch.tensor([True])])  # ties are one step
    positive, record = positive[order], record[order]
    n, negatives = int(record.max()) + 1, int((~positive).sum())
    rates = torch.tensor([rate for rate in RATES if rate * negatives >= 1], dtype=torch.float64)
    drawn = []
    for _ in range(DRAWS):
        weight = torch.bincount(torch.randint(n, (n,), generator=coins), minlength=n).double()[record]
        drawn.append(_rises(positive, weight, ends, rates))
    low, high = torch.stack(drawn).nan_to_num(0.0).quantile(torch.tensor(ENDS, dtype=torch.float64), dim=0)
    found = _rises(positive, torch.ones(len(positive), dtype=torch.float64), ends, rates)
    points = zip(rates.tolist(), found.tolist(), low.tolist(), high.tolist(), strict=True)
    return Roc(
        positive=name, positives=int(positive.sum()), negatives=negatives, n=n, area=area,
        interval=f"bootstrap over records, {DRAWS} draws",
        points=tuple(RocPoint(fpr=f, tpr=t, low=min(lo, t), high=max(hi, t)) for f, t, lo, hi in points),
    )  # fmt: skip


def _rises(positive: Tensor, weight: Tensor, ends: Tensor, rates: Tensor) -> Tensor:
    """(rates,) true positives at each rate of false ones, on straight lines between the steps of the curve."""
    hits = torch.where(positive, weight, 0.0).cumsum(0)
    alarms = torch.where(positive, 0.0, weight).cumsum(0)
    x = torch.cat([torch.zeros(1, dtype=torch.float64), alarms[ends] / alarms[-1]])
    y = torch.cat([torch.zeros(1, dtype=torch.float64), hits[ends] / hits[-1]])
    at = torch.searchsorted(x, rates.clamp(max=float(x[-1])), right=True).clamp(1, len(x) - 1)
    run = (x[at] - x[at - 1]).clamp(min=1e-300)
    share = ((rates - x[at - 1]) / run).clamp(0, 1)
    return y[at - 1] + share * (y[at] - y[at - 1])
