"""Reconstructed inputs, scored: images by `images`, rows of a table by scaled error; always against a pool.

The same records are evaluated for every attack. Chance is the best blind rival (the mean record) and, for
re-identification, one in the pool; p-values are paired, record by record, against that rival.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from scipy import stats
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from attacks.base import Guess
from audits import images, statistics
from audits.evidence import Case, Level, Rival, best, groups, kept
from audits.leakage import METRICS, Baseline, Leakage

EVALUATED = 1000  # records a cast that are scored
POOL = 5000  # records a re-identification chooses among
HEADLINES = ("re-identification", "mse", "affine-mse")
ONE_IN_POOL = "one of the {} private records at random"


def scored(case: Case, guess: Guess) -> tuple[Leakage, ...]:
    """The leakages of a set of reconstructions, re-identification first."""
    guess = evaluated(case, guess)
    if guess.inputs is None or not len(guess.position):
        return ()
    beside = []
    for rival in case.rivals:
        if rival.guess.inputs is not None and rival.guess.column == guess.column:
            beside.append((rival, figures(case, evaluated(case, rival.guess))))
    return tuple(_figure(case, guess, name, values, beside) for name, values in figures(case, guess).items())


def evaluated(case: Case, guess: Guess) -> Guess:
    """The rows that are scored: at most EVALUATED records a cast, the same for every attack."""
    guess = untangled(case, guess)
    keep = torch.zeros(len(guess.position), dtype=torch.bool)
    for cast in guess.cast.unique().tolist():
        rows = chosen(len(case.truth.inputs[cast][guess.column]), EVALUATED)
        keep |= (guess.cast == cast) & torch.isin(guess.position, rows)
    return kept(guess, keep)


def untangled(case: Case, guess: Guess) -> Guess:
    """Where it is not known which row of a step is which: each row with the guess that fits, at least squares in all.

    The attack on noise is untangled alike, so that what the matching gives away for nothing is in its chance level.
    """
    if not guess.up_to_permutation or guess.inputs is None or not len(guess.position):
        return guess
    inputs = guess.inputs.clone()
    truth = case.truth.input(guess.column, guess.cast, guess.position).flatten(1).double()
    for cast, step in dict.fromkeys(zip(guess.cast.tolist(), guess.step.tolist(), strict=True)):
        rows = ((guess.cast == cast) & (guess.step == step)).nonzero().flatten()
        costs = torch.cdist(truth[rows], guess.inputs[rows].flatten(1).double()).square()
        true, found = linear_sum_assignment(costs.numpy())
        inputs[rows[torch.as_tensor(true)]] = guess.inputs[rows[torch.as_tensor(found)]]
    return replace(guess, inputs=inputs, up_to_permutation=False)


def figures(case: Case, guess: Guess) -> dict[str, Tensor]:
    """Every figure of the reconstructions, one number a row: (n,). Re-identification first."""
    assert guess.inputs is not None
    truth = case.truth.input(guess.column, guess.cast, guess.position)
    found = guess.inputs.to(truth.dtype)
    pool, index = _pool(case, guess)
    if truth.ndim != 4:
        return _table_figures(found, truth, pool, index)
    by: images.By = "correlation" if guess.up_to_affine else "l2"
    again = {"re-identification": images.reidentified(found, pool, index, by=by)}
    if guess.up_to_affine:
        return again | {
            "affine-mse": images.affine_mse(found, truth),
            "ssim": images.ssim(images.aligned(found, truth), truth),
            "correlation": images.correlation(found, truth),
        }
    every = images.fidelity(found, truth)
    return again | {"mse": every.mse, "ssim": every.ssim, "psnr": every.psnr, "correlation": every.correlation}


def _table_figures(found: Tensor, truth: Tensor, pool: Tensor, index: Tensor) -> dict[str, Tensor]:
    """A table's rows: features scaled to [0, 1] by their range in the pool, then mean squared error and the nearest."""
    low = pool.flatten(1).min(0).values
    width = (pool.flatten(1).max(0).values - low).clamp_min(1e-9)
    guess, true, others = (((t.flatten(1) - low) / width).double() for t in (found, truth, pool))
    guess = guess.clamp(0, 1)
    near = torch.cat([torch.cdist(rows, others).argmin(1) for rows in guess.split(images.CHUNK)])
    return {"re-identification": (near == index).double(), "mse": (guess - true).square().mean(1)}


def _figure(
    case: Case, guess: Guess, name: str, values: Tensor, beside: Sequence[tuple[Rival, Mapping[str, Tensor]]]
) -> Leakage:
    more = METRICS[name].more
    others = [(rival, float(found[name].mean())) for rival, found in beside if name in found]
    blind = {rival.name: value for rival, value in others if rival.blind}
    anyone: tuple[Baseline, ...] = ()
    if name == "re-identification":
        many = len(_pool(case, guess)[0])
        anyone = (Baseline(ONE_IN_POOL.format(many), 1 / many),)
        blind[anyone[0].name] = anyone[0].value
    chance = best(blind, more=more) or Level("no blind rival was run", float("nan"))
    p: float | None = None
    if name == "re-identification":
        p = statistics.binomial_p(int(values.sum()), len(values), chance.value)
    elif chance.name in blind:
        p = _paired(values, next(found[name] for rival, found in beside if rival.name == chance.name), more=more)
    tenth = values.argsort(descending=more)[: max(1, len(values) // 10)]
    worst = torch.zeros(len(values), dtype=torch.bool)
    worst[tenth] = True
    parts = (
        *groups("worst tenth", {"records": worst}, lambda rows: case.mean(values, guess, rows)),
        *case.by_class(guess, lambda rows: case.mean(values, guess, rows)),
        *case.parts(guess, lambda rows: case.mean(values, guess, rows)),
    )
    return case.leakage(
        guess, name, case.mean(values, guess), chance, p=p, headline=name in HEADLINES, groups=parts,
        baselines=(*anyone, *(Baseline(rival.name, value, rival.sees) for rival, value in others)),
    )  # fmt: skip


def _paired(values: Tensor, rival: Tensor, *, more: bool) -> float | None:
    """Wilcoxon's signed-rank test, record by record, that the attack comes closer than the rival."""
    if len(values) != len(rival) or not bool((values != rival).any()):
        return None
    found = stats.wilcoxon(values.numpy(), rival.numpy(), alternative="greater" if more else "less")
    return max(float(found.pvalue), statistics.FLOOR)


def _pool(case: Case, guess: Guess) -> tuple[Tensor, Tensor]:
    """(pool, index): private records of the casts concerned, at most POOL, and where each row's truth lies in it."""
    parts, index, at = [], torch.empty(len(guess.position), dtype=torch.int64), 0
    casts = guess.cast.unique().tolist()
    for cast in casts:
        column = case.truth.inputs[cast][guess.column]
        rows = chosen(len(column), max(EVALUATED, POOL // len(casts)))
        place = torch.full((len(column),), -1)
        place[rows] = torch.arange(len(rows)) + at
        mine = guess.cast == cast
        index[mine] = place[guess.position[mine]]
        parts.append(column[rows])
        at += len(rows)
    return torch.cat(parts), index


def chosen(size: int, most: int) -> Tensor:
    """At most so many of 0..size-1: always the same ones, a smaller choice within a larger."""
    return torch.randperm(size, generator=torch.Generator().manual_seed(size))[:most]
