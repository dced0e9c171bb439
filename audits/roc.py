"""The ROC curve of a guess that ranks, with an interval that counts patients and not rows.

Rows of one record are one unit: records are drawn with replacement, and a curve's 95% band is where 95 of 100 such
draws run, point by point. False-positive rates below one negative in the data are not given. Where the guess scores
every class, each class against the others is one trial of a row.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

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


@dataclass(frozen=True)
class Ranked:
    """scores: (n,), higher means positive; positive: (n,) bool; record: (n,) which unit each belongs to."""

    scores: Tensor
    positive: Tensor
    record: Tensor
    name: str


def roc(case: Case, guess: Guess) -> Roc | None:
    """Of a guess that ranks, about a class or about who was trained on; None of others, and where one side is empty."""
    if guess.scores is None or not len(guess.scores):
        return None
    found = None
    if guess.goal == "membership" and case.truth.candidates is not None:
        member = case.truth.candidates[0][guess.position] >= 0
        found = Ranked(guess.scores.double(), member, torch.arange(len(member)), "a record that was trained on")
    elif guess.goal in ("label", "attribute", "traffic") and case.truth.classes.get(guess.column):
        found = _by_class(case, guess)
    if found is None or not 0 < int(found.positive.sum()) < len(found.positive):
        return None
    area = statistics.auc(found.scores, found.positive)
    if guess.up_to_permutation and area < 0.5:
        found, area = replace(found, scores=-found.scores), 1 - area
    return _curve(found, area, coins=case.coins)


def _by_class(case: Case, guess: Guess) -> Ranked | None:
    truth = case.truth.label(guess.column, guess.cast, guess.position).long()
    if truth.ndim != 1:
        return None
    guess, truth = kept(guess, truth >= 0), truth[truth >= 0]
    assert guess.scores is not None
    record = torch.stack([guess.cast, guess.position], 1).unique(dim=0, return_inverse=True)[1]
    if not len(truth):
        return None
    if guess.scores.ndim == 1:
        which = score_labels.positive_class(case, guess, truth)
        return Ranked(guess.scores.double(), truth == which, record, f"{guess.column} = {which}")
    classes = guess.scores.shape[1]
    positive = (truth[:, None] == torch.arange(classes)).flatten()
    name = f"the true {guess.column}, each class against the others"
    return Ranked(guess.scores.double().flatten(), positive, record.repeat_interleave(classes), name)


def _curve(ranked: Ranked, area: float, *, coins: torch.Generator) -> Roc:
    order = ranked.scores.argsort(descending=True)
    ends = torch.cat([ranked.scores[order].diff() != 0, torch.tensor([True])])  # ties are one step
    positive, record = ranked.positive[order], ranked.record[order]
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
        positive=ranked.name, positives=int(positive.sum()), negatives=negatives, n=n, area=area,
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
