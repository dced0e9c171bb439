"""Guesses about candidates, scored: which of them were trained on, and which of them a message came from.

Membership is judged where it hurts, at few false accusations (Carlini et al. 2022, arXiv 2112.03570): the share of
members found while at most 1 in 100, or in 1000, of the others is accused; with few others that is a threshold above
nearly all of them, and the null, members shuffled, moves with it. Matching is judged by hits among all candidates, and
by the game that differential privacy bounds: of the true candidate and one other, which?
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from attacks.base import Guess
from audits import statistics
from audits.evidence import DRAWS, Case, Level, Part
from audits.leakage import Baseline, Leakage
from audits.statistics import Interval

SHUFFLED = "members and others shuffled"
RATES = (("tpr-at-1", 0.01), ("tpr-at-0.1", 0.001))
BOOTSTRAPS = 400


def scored(case: Case, guess: Guess) -> tuple[Leakage, ...]:
    """Area under the curve, true positives at few false ones, and the best advantage; higher scores mean members."""
    if guess.scores is None or case.truth.candidates is None:
        return ()
    member = case.truth.candidates[0][guess.position] >= 0
    scores = guess.scores.double()
    if not bool(member.any()) or bool(member.all()):
        return ()
    found = [_leak(case, guess, "auc", scores, member, statistics.auc, statistics.auc_interval(scores, member))]
    for metric, rate in RATES:
        found.append(_leak(case, guess, metric, scores, member, partial(true_positives, rate=rate)))
    found.append(_leak(case, guess, "advantage", scores, member, advantage))
    return tuple(found)


def true_positives(scores: Tensor, member: Tensor, rate: float) -> float:
    """Share of members scored above all but a `rate` of the others."""
    others = scores[~member].sort(descending=True).values
    threshold = others[min(int(rate * len(others)), len(others) - 1)]
    return float((scores[member] > threshold).double().mean())


def advantage(scores: Tensor, member: Tensor) -> float:
    """The largest true-positive rate less false-positive rate over all thresholds."""
    order = scores.argsort(descending=True, stable=True)
    hits, misses = member[order].double().cumsum(0), (~member[order]).double().cumsum(0)
    last = torch.ones(len(scores), dtype=torch.bool)
    last[:-1] = scores[order][1:] != scores[order][:-1]  # a threshold does not part what scores alike
    gap = hits / hits[-1] - misses / misses[-1]
    return max(0.0, float(gap[last].max()))


def _leak(
    case: Case,
    guess: Guess,
    metric: str,
    scores: Tensor,
    member: Tensor,
    of: Callable[[Tensor, Tensor], float],
    within: Interval | None = None,
) -> Leakage:
    value, n = of(scores, member), len(scores)
    within = within or statistics.never_certain(_stratified(case, scores, member, of), value, int(member.sum()))
    null = statistics.permuted(lambda order: of(scores, member[order]), n, coins=case.coins, draws=DRAWS)
    part: Part = value, within, n
    beside = tuple(_rivals(case, guess, member, of))
    return case.leakage(guess, metric, part, Level(SHUFFLED, null.mean), unit="candidates", null=null,
                        headline=metric in ("auc", "tpr-at-1"), baselines=beside)  # fmt: skip


def _stratified(case: Case, scores: Tensor, member: Tensor, of: Callable[[Tensor, Tensor], float]) -> Interval:
    """Percentile bootstrap over members and others apart."""
    groups = [member.nonzero().flatten(), (~member).nonzero().flatten()]
    drawn = []
    for _ in range(BOOTSTRAPS):
        rows = torch.cat([g[torch.randint(len(g), (len(g),), generator=case.coins)] for g in groups])
        drawn.append(of(scores[rows], member[rows]))
    low, high = torch.tensor(drawn).double().quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Interval(low, high, f"stratified bootstrap, {BOOTSTRAPS} draws")


def _rivals(case: Case, guess: Guess, member: Tensor, of: Callable[[Tensor, Tensor], float]) -> list[Baseline]:
    return [
        Baseline(rival.name, of(rival.guess.scores.double(), member), rival.sees)
        for rival in case.rivals
        if rival.guess.goal == guess.goal and rival.guess.scores is not None and len(rival.guess.scores) == len(member)
    ]


# matching -----------------------------------------------------------------------------------------------------------


def matched(case: Case, guess: Guess) -> tuple[Leakage, ...]:
    """Of the rows whose record is a candidate: the share matched rightly, and the advantage between two."""
    if guess.scores is None or case.truth.candidates is None:
        return ()
    true = _places(case, guess)
    guess, true = guess.of(true >= 0), true[true >= 0]
    if not len(true) or guess.scores is None:
        return ()
    n = guess.scores.shape[1]
    hits = (guess.scores.argmax(1) == true).double()
    chance = Level("one of the candidates at random", 1 / n)
    part = case.mean(hits, guess)
    p = statistics.binomial_p(round(part[0] * part[2]), part[2], chance.value)
    first = case.leakage(guess, "re-identification", part, chance, p=p, headline=True,
                         groups=case.parts(guess, lambda rows: case.mean(hits, guess, rows)))  # fmt: skip
    return first, _between_two(case, guess, true)


def _between_two(case: Case, guess: Guess, true: Tensor) -> Leakage:
    """The true candidate against one other, drawn for each row: right less wrong."""
    assert guess.scores is not None
    n, rows = guess.scores.shape[1], torch.arange(len(true))
    other = (true + torch.randint(1, n, true.shape, generator=case.coins)) % n
    wins = guess.scores[rows, true] > guess.scores[rows, other]
    value, within, count = case.mean(wins, guess)
    part = 2 * value - 1, Interval(2 * within.low - 1, 2 * within.high - 1, within.method), count
    return case.leakage(guess, "advantage", part, Level("a coin", 0.0), headline=True,
                        p=statistics.binomial_p(round(value * count), count, 0.5))  # fmt: skip


def _places(case: Case, guess: Guess) -> Tensor:
    """(n,) which candidate each guessed row is, -1 where it is none."""
    assert case.truth.candidates is not None
    casts, positions = (t.tolist() for t in case.truth.candidates)
    known = {key: i for i, key in enumerate(zip(casts, positions, strict=True)) if key[0] >= 0}
    rows = zip(guess.cast.tolist(), guess.position.tolist(), strict=True)
    return torch.tensor([known.get(row, -1) for row in rows], dtype=torch.int64)
