"""From a method to the sequence of events that every party walks, each for itself and all alike.

The sequence follows from what the parties agreed on (method, epochs, batch size, seed, and how many records each cast
has), so nobody directs it. Batches are drawn from the run's seed, which every party knows: whoever receives a batch
can tell which positions of the cast's records it holds, and link them over epochs.

Steps number the turns, from 0; every other event bears the number of the turn before it (-1: none yet). Events are made
round by round, and a party of many is given those of its own cast only, so nothing grows with clients times steps.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from hashlib import blake2b
from itertools import pairwise
from math import ceil
from typing import Literal

import torch
from torch import Tensor

from secsplit.message import Stamp
from secsplit.method import Method

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")
KEPT_ROUNDS = 3  # rounds whose events are kept in memory: the parties of a simulation are never further apart


def derive(seed: int, *names: str | int) -> int:
    """A 63-bit seed of its own for each purpose: neither order nor neighbours change what a party draws."""
    text = "/".join([str(seed), *map(str, names)]).encode()
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "big") >> 1


@dataclass(frozen=True, slots=True)
class Turn:
    """One mini-batch taken by one cast: a training step, or an evaluation on the test records."""

    step: int
    epoch: int
    cast: int
    batch: int
    split: Split = "train"

    @property
    def training(self) -> bool:
        return self.split == "train"

    def stamp(self, micro: int = 0) -> Stamp:
        return Stamp(self.step, micro, self.epoch, self.cast, self.training)


@dataclass(frozen=True, slots=True)
class Handover:
    """The cohort's weights pass from one cast's parties to the next's."""

    step: int
    epoch: int
    giver: int
    taker: int


@dataclass(frozen=True, slots=True)
class Gather:
    """What these casts trained since the last Spread is taken into the average, each with its share of it."""

    step: int
    epoch: int
    casts: tuple[int, ...]
    shares: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Spread:
    """The average is complete; these casts are given it."""

    step: int
    epoch: int
    casts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Save:
    """Every party writes a checkpoint: no message is under way here. last: the round is over."""

    step: int
    epoch: int
    round: int
    last: bool


@dataclass(frozen=True, slots=True)
class EpochEnd:
    """An epoch (a round, where weights are averaged) and its evaluation are over: what was trained is saved."""

    step: int
    epoch: int


Event = Turn | Handover | Gather | Spread | Save | EpochEnd


@dataclass(frozen=True)
class Schedule:
    """All events of a run. sizes: cast -> records by split; evaluate_every: epochs between evaluations (0: never);
    save_every: turns between checkpoints, besides those at the end of every round (0: only those)."""

    method: Method
    sizes: Mapping[int, Mapping[Split, int]]
    epochs: int
    batch_size: int
    seed: int
    evaluate_every: int = 1
    save_every: int = 0

    @cached_property
    def casts(self) -> tuple[int, ...]:
        return tuple(sorted(self.sizes))

    @property
    def averages(self) -> bool:
        """Whether there is anything to average: a method that does, and more than one cast."""
        return self.method.averages and len(self.casts) > 1

    def batches(self, cast: int, split: Split) -> int:
        return ceil(self.sizes[cast][split] / self.batch_size)

    def rows(self, turn: Turn) -> Tensor:
        """(batch,) int64: the positions, among the cast's records, that this turn takes."""
        n = self.sizes[turn.cast][turn.split]
        start = turn.batch * self.batch_size
        if not turn.training:
            return torch.arange(start, min(start + self.batch_size, n))
        return _permutation(self.seed, turn.cast, turn.epoch, n)[start : start + self.batch_size]

    # rounds

    @property
    def rounds(self) -> int:
        return ceil(self.epochs / self.method.local_epochs)

    def epochs_of(self, index: int) -> range:
        """The epochs of a round; the last round is shorter where local_epochs does not divide the epochs."""
        local = self.method.local_epochs
        return range(index * local, min((index + 1) * local, self.epochs))

    def participants(self, index: int) -> tuple[int, ...]:
        """The casts that take part in a round, in the order in which they begin."""
        casts, method = self.casts, self.method
        if method.fraction < 1:
            count = max(1, round(method.fraction * len(casts)))
            casts = tuple(sorted(_drawn(casts, derive(self.seed, "participants", index))[:count]))
        if method.order == "random-sequence":
            casts = _drawn(casts, derive(self.seed, "sequence", index))
        return casts

    def judged(self, index: int) -> tuple[int, ...]:
        """The casts that are evaluated at the end of a round: all that have test records, or none."""
        epochs, every = self.epochs_of(index), self.evaluate_every
        due = every and (epochs[-1] + 1 == self.epochs or any((epoch + 1) % every == 0 for epoch in epochs))
        return tuple(cast for cast in self.casts if self.sizes[cast]["test"]) if due else ()

    def turns_in(self, index: int) -> int:
        """How many turns a round has."""
        training = sum(self.batches(cast, "train") for cast in self.participants(index))
        return training * len(self.epochs_of(index)) + sum(self.batches(cast, "test") for cast in self.judged(index))

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """The step at which each round begins, and the number of all turns at the end."""
        if self.method.fraction == 1 and self.evaluate_every in (0, 1) and self.epochs % self.method.local_epochs == 0:
            return tuple(range(0, self.turns_in(0) * self.rounds + 1, self.turns_in(0)))
        starts = [0]
        for index in range(self.rounds):
            starts.append(starts[-1] + self.turns_in(index))
        return tuple(starts)

    @property
    def steps(self) -> int:
        """How many turns the whole run has."""
        return self.starts[-1]

    # events

    def __iter__(self) -> Iterator[Event]:
        for index in range(self.rounds):
            yield from self.events(index)

    def events(self, index: int) -> tuple[Event, ...]:
        """All events of a round."""
        return self._made(index).all

    def of(self, cast: int | None, *, start: Save | None = None) -> Iterator[tuple[int, Event]]:
        """(round, event), those that concern a cast, or (None) all; from the checkpoint `start` on, itself included."""
        for index in range(start.round if start else 0, self.rounds):
            made = self._made(index)
            for event in made.all if cast is None else made.by_cast[cast]:
                if start is None or event == start:
                    start = None
                    yield index, event

    @cached_property
    def _rounds(self) -> dict[int, _Made]:
        return {}

    def _made(self, index: int) -> _Made:
        made = self._rounds.get(index)
        if made is None:
            made = self._rounds[index] = _Made(tuple(_Round(self, index).events()), self.casts)
            for old in sorted(self._rounds)[:-KEPT_ROUNDS]:
                if old < index:
                    del self._rounds[old]
        return made

    def last_to_hold(self, index: int) -> int | None:
        """The cast that holds handed-over weights at the end of a round; None before the first."""
        if index < 0:
            return None
        if judged := self.judged(index):
            return judged[-1]
        return _Round(self, index).last_trained()


class _Made:
    """A round's events, and for each cast those that concern it."""

    def __init__(self, events: tuple[Event, ...], casts: tuple[int, ...]) -> None:
        self.all = events
        self._casts = casts

    @cached_property
    def by_cast(self) -> Mapping[int, list[Event]]:
        found: dict[int, list[Event]] = defaultdict(list)
        for event in self.all:
            for cast in _concerned(event, self._casts):
                found[cast].append(event)
        return found


def _concerned(event: Event, casts: tuple[int, ...]) -> Iterable[int]:
    if isinstance(event, Turn):
        return (event.cast,)
    if isinstance(event, Handover):
        return (event.giver, event.taker)
    if isinstance(event, Gather | Spread):
        return event.casts
    return casts


class _Round:
    """Makes one round's events, counting the turns."""

    def __init__(self, schedule: Schedule, index: int) -> None:
        self.schedule = schedule
        self.index = index
        self.step = schedule.starts[index] - 1
        self.epoch = schedule.epochs_of(index)[0]
        self.holder = schedule.last_to_hold(index - 1) if schedule.method.client_side == "handed-over" else None

    def events(self) -> Iterator[Event]:
        s = self.schedule
        for group in self.groups():
            yield from self.trained(group)
            if s.averages:
                yield Gather(self.step, self.epoch, group, self.shares(group))
        if s.averages:
            yield Spread(self.step, self.epoch, self.takers())
        for cast in s.judged(self.index):
            yield from self.hand_to(cast)
            for batch in range(s.batches(cast, "test")):
                yield self.turn(cast, batch, "test")
        yield EpochEnd(self.step, self.epoch)
        yield Save(self.step, self.epoch, self.index, True)

    def groups(self) -> Iterator[tuple[int, ...]]:
        """The participants, so many at a time as alternate."""
        casts = self.schedule.participants(self.index)
        size = self.schedule.method.group(len(casts))
        bounds = [*range(0, len(casts), size), len(casts)]
        return (casts[a:b] for a, b in pairwise(bounds))

    def last_trained(self) -> int:
        """The cast that takes the last training turn: of the last group, the last of those with the most batches."""
        *_, group = self.groups()
        most = max(self.schedule.batches(cast, "train") for cast in group)
        return [cast for cast in group if self.schedule.batches(cast, "train") == most][-1]

    def batches(self, group: tuple[int, ...]) -> Iterator[tuple[int, int, tuple[int, ...]]]:
        """(epoch, batch, the casts of the group that have such a batch)."""
        counts = {cast: self.schedule.batches(cast, "train") for cast in group}
        for epoch in self.schedule.epochs_of(self.index):
            for batch in range(max(counts.values())):
                yield epoch, batch, tuple(cast for cast in group if batch < counts[cast])

    def trained(self, group: tuple[int, ...]) -> Iterator[Event]:
        s = self.schedule
        together = s.method.client_side == "gradients-averaged" and len(s.casts) > 1
        for epoch, batch, casts in self.batches(group):
            self.epoch = epoch
            for cast in casts:
                yield from self.hand_to(cast)
                yield self.turn(cast, batch)
                if not together:
                    yield from self.saves(1)
            if together:
                rows = [min(s.batch_size, s.sizes[cast]["train"] - batch * s.batch_size) for cast in casts]
                yield Gather(self.step, self.epoch, casts, _shares(rows))
                yield Spread(self.step, self.epoch, s.casts)
                yield from self.saves(len(casts))

    def saves(self, turns: int) -> Iterator[Save]:
        """A checkpoint, where one fell due within the last so many turns."""
        every, done = self.schedule.save_every, self.step + 1
        if every and done // every > (done - turns) // every:
            yield Save(self.step, self.epoch, self.index, False)

    def turn(self, cast: int, batch: int, split: Split = "train") -> Turn:
        self.step += 1
        return Turn(self.step, self.epoch, cast, batch, split)

    def hand_to(self, cast: int) -> Iterator[Handover]:
        if self.schedule.method.client_side != "handed-over" or self.holder == cast:
            return
        giver, self.holder = self.holder, cast
        if giver is not None:  # everyone starts from the same weights, so the first holder needs none
            yield Handover(self.step, self.epoch, giver, cast)

    def shares(self, group: tuple[int, ...]) -> tuple[float, ...]:
        """The shares of a group's casts in the average over all participants."""
        s = self.schedule
        casts = s.participants(self.index)
        n = {cast: s.sizes[cast]["train"] if s.method.weighting == "records" else 1 for cast in casts}
        total = sum(n.values())
        return tuple(n[cast] / total for cast in group)

    def takers(self) -> tuple[int, ...]:
        """Who needs the average: those of the next round and those evaluated now; at the end, all."""
        s = self.schedule
        if s.method.client_side != "averaged":
            return ()
        if self.index + 1 == s.rounds:
            return s.casts
        return tuple(sorted({*s.participants(self.index + 1), *s.judged(self.index)}))


def _shares(counts: list[int]) -> tuple[float, ...]:
    return tuple(n / sum(counts) for n in counts)


def _drawn(casts: tuple[int, ...], seed: int) -> tuple[int, ...]:
    """The casts in an order drawn from the seed."""
    order = torch.randperm(len(casts), generator=torch.Generator().manual_seed(seed))
    return tuple(casts[i] for i in order.tolist())


@lru_cache(maxsize=64)
def _permutation(seed: int, cast: int, epoch: int, n: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(derive(seed, "order", cast, epoch)))
