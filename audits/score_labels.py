"""Guesses about labels, attributes and values, scored: leak AUC where they rank, hits where they name.

Chance is the majority class or the best blind rival for hits, the labels shuffled within their batch for AUC.
"""

from __future__ import annotations

from math import isnan

import torch
from torch import Tensor

from attacks.base import Guess
from audits import labels, statistics
from audits.evidence import DRAWS, Case, Level, Part, batches, best, groups, kept, named, per_record
from audits.leakage import Baseline, Leakage
from audits.statistics import Interval, Null

SHUFFLED = "labels shuffled within each batch"
ENDS = (0.025, 0.975)


def scored(case: Case, guess: Guess) -> tuple[Leakage, ...]:
    """The leakages of a guess about a class label, the headline first. Rows without a true label do not count."""
    truth = case.truth.label(guess.column, guess.cast, guess.position).long()
    if truth.ndim != 1:
        raise ValueError(f"label column {guess.column!r} has shape {tuple(truth.shape)}: expected one class a record")
    guess, truth = kept(guess, truth >= 0), truth[truth >= 0]
    if not len(truth):
        return ()
    found: list[Leakage] = []
    if guess.scores is not None and guess.scores.ndim == 1:
        found += _ranked(case, guess, guess.scores, truth)
    if (names := named(guess)) is not None:
        found += _named(case, guess, names, truth, headline=not found)
    return tuple(found)


def explained(case: Case, guess: Guess) -> tuple[Leakage, ...]:
    """A guess about a number: the share of its variation explained, against naming the mean."""
    if guess.scores is None:
        return ()
    truth = case.truth.label(guess.column, guess.cast, guess.position).double()
    error, spread = (guess.scores.double() - truth).square(), (truth - truth.mean()).square()
    pick = torch.randint(len(truth), (1000, len(truth)), generator=case.coins)
    drawn = 1 - error[pick].mean(1) / spread[pick].mean(1)
    part = 1 - float(error.mean() / spread.mean()), _ends(drawn, "bootstrap, 1000 draws"), len(truth)
    return (case.leakage(guess, "r2", part, Level("the mean", 0.0), headline=True),)


# ranking ------------------------------------------------------------------------------------------------------------


def _ranked(case: Case, guess: Guess, scores: Tensor, truth: Tensor) -> list[Leakage]:
    which = positive_class(case, guess, truth)
    beside = _rival_areas(case, guess.column, which)
    if bool((guess.step < 0).all()):
        return _one_area(case, guess, scores, truth == which, beside)
    return _batch_areas(case, guess, scores, truth == which, beside)


def _batch_areas(
    case: Case, guess: Guess, scores: Tensor, positive: Tensor, beside: tuple[Baseline, ...]
) -> list[Leakage]:
    batch, signed = batches(guess), not guess.up_to_permutation
    areas = labels.batch_areas(scores, positive, batch, coins=case.coins, signed=signed, draws=DRAWS)
    if areas is None:
        return []

    def of(rows: Tensor) -> Part | None:
        some = labels.batch_areas(scores[rows], positive[rows], batch[rows], coins=case.coins, signed=signed, draws=1)
        return None if some is None else _middle(some.areas)

    descending = areas.areas.sort(descending=True).values
    tenth = descending[: max(1, len(descending) // 10)]
    worst = groups(
        "worst tenth",
        {"batches": torch.ones(len(tenth), dtype=torch.bool)},
        lambda _: (float(tenth.mean()), Interval(float(tenth.min()), float(tenth.max()), "range"), len(tenth)),
    )
    n, high = len(descending), float(descending.quantile(0.95))
    reach = Interval(float(descending.median()), float(descending[0]), "range from the median batch to the worst")
    return [
        case.leakage(
            guess, "leak-auc", _middle(areas.areas), Level(SHUFFLED, areas.median_null.mean), unit="batches",
            null=areas.median_null, headline=True, groups=(*worst, *case.parts(guess, of)), baselines=beside,
        ),
        case.leakage(
            guess, "leak-auc-high", (high, reach, n), Level(SHUFFLED, areas.high_null.mean), unit="batches",
            null=areas.high_null,
        ),
    ]  # fmt: skip


def _middle(areas: Tensor) -> Part:
    return float(areas.quantile(0.5)), statistics.median(areas), len(areas)


def _one_area(
    case: Case, guess: Guess, scores: Tensor, positive: Tensor, beside: tuple[Baseline, ...]
) -> list[Leakage]:
    value, within = statistics.auc(scores, positive), statistics.auc_interval(scores, positive)
    if isnan(value):
        return []
    if guess.up_to_permutation and value < 0.5:
        value, within = 1 - value, Interval(1 - within.high, 1 - within.low, within.method)

    def shuffled(order: Tensor) -> float:
        drawn = statistics.auc(scores, positive[order])
        return max(drawn, 1 - drawn) if guess.up_to_permutation else drawn

    null = statistics.permuted(shuffled, len(positive), coins=case.coins, draws=DRAWS)
    chance = Level("labels shuffled", null.mean)
    part = value, within, len(positive)
    return [case.leakage(guess, "auc", part, chance, null=null, headline=True, baselines=beside)]


def _rival_areas(case: Case, column: str, which: int) -> tuple[Baseline, ...]:
    beside = []
    for rival in case.rivals:
        guess = rival.guess
        if guess.column != column or guess.scores is None or guess.scores.ndim != 1:
            continue
        truth = case.truth.label(column, guess.cast, guess.position).long()
        if bool((guess.step >= 0).all()):
            signed = not guess.up_to_permutation
            part = labels.batch_areas(
                guess.scores, truth == which, batches(guess), coins=case.coins, signed=signed, draws=1
            )
            value = float("nan") if part is None else float(part.areas.quantile(0.5))
        else:
            value = statistics.auc(guess.scores, truth == which)
            value = max(value, 1 - value) if guess.up_to_permutation else value
        if not isnan(value):
            beside.append(Baseline(rival.name, value, rival.sees))
    return tuple(beside)


def positive_class(case: Case, guess: Guess, truth: Tensor) -> int:
    """The class that a high score means: said by the attack, else 1 of two, else the rarest."""
    if "positive" in guess.facts:
        return int(guess.facts["positive"])
    if case.truth.classes.get(guess.column) == 2:
        return 1
    counts = truth.bincount()
    return int(torch.where(counts > 0, counts, counts.max() + 1).argmin())


# naming -------------------------------------------------------------------------------------------------------------


def _named(case: Case, guess: Guess, names: Tensor, truth: Tensor, *, headline: bool) -> list[Leakage]:
    batch = batches(guess)
    permuted = guess.up_to_permutation

    def hits_against(against: Tensor) -> Tensor:
        return (labels.matched_within(names, against, batch) if permuted else names) == against

    hits = hits_against(truth)
    shuffles = [truth[labels.shuffled_within(batch, coins=case.coins)] for _ in range(DRAWS)]
    drawn = [(hits_against(against), against) for against in shuffles]
    null = Null(torch.tensor([float(h.double().mean()) for h, _ in drawn]))

    beside, blind = _rival_hits(case, guess.column)
    levels = {"the commonest class": float(truth.bincount().max()) / len(truth), **blind}
    if permuted:
        levels["shuffled labels, renamed to their best alike"] = null.mean
    chance = best(levels)
    assert chance is not None
    parts = (
        *case.by_class(guess, lambda rows: case.mean(hits, guess, rows), guess.column),
        *case.parts(guess, lambda rows: case.mean(hits, guess, rows)),
    )
    metric = "accuracy-permuted" if permuted else "accuracy"
    overall = case.leakage(
        guess, metric, case.mean(hits, guess), chance, null=null, headline=headline, groups=parts, baselines=beside
    )
    if permuted or len(truth.unique()) < 2:
        return [overall]
    balanced_null = Null(torch.tensor([labels.balanced(h, against) for h, against in drawn]))
    return [overall, *_balanced(case, guess, hits, truth, overall.n, balanced_null)]


def _balanced(case: Case, guess: Guess, hits: Tensor, truth: Tensor, n: int, null: Null) -> list[Leakage]:
    classes, value = len(truth.unique()), labels.balanced(hits, truth)
    within = _stratified(case, guess, hits, truth)
    level = Level("every class guessed alike", 1 / classes)
    found = [case.leakage(guess, "balanced-accuracy", (value, within, n), level, null=null)]
    if classes == 2:
        doubled = Interval(2 * within.low - 1, 2 * within.high - 1, within.method)
        part = 2 * value - 1, doubled, n
        found.append(case.leakage(guess, "advantage", part, Level("guessing", 0.0), p=found[0].p))
    return found


def _stratified(case: Case, guess: Guess, hits: Tensor, truth: Tensor) -> Interval:
    """Each class's share is drawn by itself, records as units."""
    parts, few = [], len(truth)
    for c in truth.unique():
        rows = (truth == c).nonzero().flatten()
        rate, weight = per_record(hits[rows].double(), guess, rows)
        few = min(few, len(rate))
        pick = torch.randint(len(rate), (1000, len(rate)), generator=case.coins)
        parts.append((rate * weight)[pick].sum(1) / weight[pick].sum(1))
    drawn = torch.stack(parts).mean(0)
    within = _ends(drawn, "stratified bootstrap, 1000 draws")
    return statistics.never_certain(within, float(drawn.mean()), few)


def _ends(drawn: Tensor, method: str) -> Interval:
    low, high = drawn.quantile(torch.tensor(ENDS, dtype=torch.float64)).tolist()
    return Interval(low, high, method)


def _rival_hits(case: Case, column: str) -> tuple[tuple[Baseline, ...], dict[str, float]]:
    """Each rival's share of hits; and those of the blind ones, which count as chance."""
    beside, blind = [], {}
    for rival in case.rivals:
        names = named(rival.guess)
        if names is None or rival.guess.column != column:
            continue
        truth = case.truth.label(column, rival.guess.cast, rival.guess.position).long()
        known = truth >= 0
        if not bool(known.any()):
            continue
        names, truth = names[known], truth[known]
        if rival.guess.up_to_permutation:
            names = labels.matched_within(names, truth, batches(kept(rival.guess, known)))
        value = float((names == truth).double().mean())
        beside.append(Baseline(rival.name, value, rival.sees))
        if rival.blind:
            blind[rival.name] = value
    return tuple(beside), blind
