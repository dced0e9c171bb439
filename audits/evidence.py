"""What scoring one guess needs: the truth, the rivals it is held against, and how parts and intervals are taken.

Repeated guesses about one record are one unit of evidence, so that ten epochs do not pass for ten times the patients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import isnan

import torch
from torch import Tensor

from attacks.base import Guess
from audits import statistics
from audits.leakage import Baseline, By, Group, Leakage
from audits.statistics import Interval, Null
from audits.truth import Truth

DRAWS = 199  # permutations of a null

Part = tuple[float, Interval, int]  # value, interval, n
Of = Callable[[Tensor], Part | None]  # of which rows


@dataclass(frozen=True)
class Rival:
    """Another guess about the same rows: a baseline. blind: made without any message, so it counts as chance."""

    name: str
    guess: Guess
    sees: str = "no message"
    blind: bool = True


@dataclass(frozen=True)
class Level:
    """A chance level, and what reaches it."""

    name: str
    value: float


@dataclass(frozen=True)
class Case:
    """One attack of one threat against the truth. epochs: turn -> epoch, for leakage over training time."""

    truth: Truth
    coins: torch.Generator
    attack: str
    threat: str
    rivals: tuple[Rival, ...] = ()
    epochs: Mapping[int, int] | None = None

    def leakage(
        self,
        guess: Guess,
        metric: str,
        part: Part,
        chance: Level,
        *,
        unit: str = "records",
        null: Null | None = None,
        p: float | None = None,
        headline: bool = False,
        groups: tuple[Group, ...] = (),
        baselines: tuple[Baseline, ...] = (),
    ) -> Leakage:
        """The leakage of a value with its interval and n against chance, and against the null where there is one."""
        value, within, n = part
        return Leakage(
            attack=self.attack,
            threat=self.threat,
            goal=guess.goal,
            column=guess.column,
            metric=metric,
            value=value,
            chance=number(chance.value),
            chance_is=chance.name,
            low=number(within.low),
            high=number(within.high),
            interval=within.method,
            n=n,
            unit=unit,
            p=null.p(value) if null else p,
            null_high=null.quantile() if null else None,
            headline=headline,
            groups=groups,
            baselines=baselines,
        )

    def mean(self, values: Tensor, guess: Guess, rows: Tensor | None = None) -> Part:
        """Mean of one number a row, records as units: Clopper-Pearson where they are hits once each, else bootstrap."""
        rows = torch.arange(len(values)) if rows is None else rows
        values = values[rows].double()
        rate, weight = per_record(values, guess, rows)
        value = float(values.mean())
        if bool(((rate == 0) | (rate == 1)).all()) and bool((weight == 1).all()):
            return value, statistics.proportion(int(rate.sum()), len(rate)), len(rate)
        within = statistics.bootstrap(rate, weights=weight, coins=self.coins)
        if bool(((rate == 0) | (rate == 1)).all()):  # hits, some counted several times
            within = statistics.never_certain(within, value, len(rate))
        return value, within, len(rate)

    def parts(self, guess: Guess, of: Of) -> tuple[Group, ...]:
        """The same figure by site, where there are several, and by epoch, where the guess says when it was made."""
        casts = guess.cast.unique().tolist()
        sites = {self.truth.site(cast): guess.cast == cast for cast in casts} if len(casts) > 1 else {}
        epochs: dict[str, Tensor] = {}
        if self.epochs is not None and bool((guess.step >= 0).all()):
            epoch = torch.tensor([self.epochs.get(step, -1) for step in guess.step.tolist()])
            epochs = {str(e): epoch == e for e in epoch.unique().tolist() if e >= 0}
        return (*groups("site", sites, of), *groups("epoch", epochs, of))

    def by_class(self, guess: Guess, of: Of, column: str | None = None) -> tuple[Group, ...]:
        """The same figure by true class, of `column` or of the first label that every cast concerned holds."""
        held = [self.truth.labels.get(cast, {}) for cast in guess.cast.unique().tolist()]
        known = [c for c, count in self.truth.classes.items() if 1 < count <= 20 and all(c in h for h in held)]
        column = column or next(iter(known), None)
        if column is None:
            return ()
        truth = self.truth.label(column, guess.cast, guess.position)
        if truth.ndim != 1:
            return ()
        return groups("class", {str(int(c)): truth == c for c in truth.unique() if c >= 0}, of)


def groups(by: By, masks: Mapping[str, Tensor], of: Of) -> tuple[Group, ...]:
    """A Group for each mask whose part has a value."""
    found = {name: of(mask.nonzero().flatten()) for name, mask in masks.items()}
    return tuple(
        Group(by, name, p[0], number(p[1].low), number(p[1].high), p[2]) for name, p in found.items() if p is not None
    )


def number(value: float) -> float | None:
    """None for what is not a number, so that no file carries a NaN."""
    return None if isnan(value) else value


def per_record(values: Tensor, guess: Guess, rows: Tensor) -> tuple[Tensor, Tensor]:
    """(records,) the mean of each record's values, and how many values each had."""
    keys = torch.stack([guess.cast[rows], guess.position[rows]], 1)
    _, where, count = keys.unique(dim=0, return_inverse=True, return_counts=True)
    total = torch.zeros(len(count), dtype=torch.float64).index_add_(0, where, values.double())
    return total / count, count.double()


def kept(guess: Guess, keep: Tensor) -> Guess:
    """The guess about those rows alone; keep: (n,) bool."""
    return replace(
        guess,
        cast=guess.cast[keep],
        position=guess.position[keep],
        step=guess.step[keep],
        scores=None if guess.scores is None else guess.scores[keep],
        labels=None if guess.labels is None else guess.labels[keep],
        inputs=None if guess.inputs is None else guess.inputs[keep],
    )


def named(guess: Guess) -> Tensor | None:
    """(n,) the hard guess: as given, else the highest of the scores a class; None where there is neither."""
    if guess.labels is not None:
        return guess.labels.long()
    return guess.scores.argmax(1) if guess.scores is not None and guess.scores.ndim == 2 else None


def batches(guess: Guess) -> Tensor:
    """(n,) a number for each (cast, step): which rows were in a batch together."""
    _, number = torch.stack([guess.cast, guess.step], 1).unique(dim=0, return_inverse=True)
    return torch.as_tensor(number)


def best(levels: Mapping[str, float], *, more: bool = True) -> Level | None:
    """The level that a guesser without messages would choose."""
    if not levels:
        return None
    return Level(*(max if more else min)(levels.items(), key=lambda item: item[1]))
