"""From a method to the sequence of events that every party walks, each for itself and all alike.

The sequence follows from what the parties agreed on (method, epochs, batch size, seed, and how many records each cast
has), so nobody directs it. Batches are drawn from the run's seed, which every party knows: whoever receives a batch
can tell which positions of the cast's records it holds, and link them over epochs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from math import ceil
from typing import Literal

import torch
from torch import Tensor

from secsplit.message import Stamp
from secsplit.method import Method

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")


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
    """The cohort's weights pass from one cast's parties to the next's; `step` numbers it among the events."""

    step: int
    epoch: int
    giver: int
    taker: int


@dataclass(frozen=True, slots=True)
class EpochEnd:
    """An epoch and its evaluation are over: what was trained is saved, metrics are told."""

    step: int
    epoch: int


Event = Turn | Handover | EpochEnd


@dataclass(frozen=True)
class Schedule:
    """All events of a run. sizes: cast -> records by split; evaluate_every: epochs between evaluations (0: never)."""

    method: Method
    sizes: Mapping[int, Mapping[Split, int]]
    epochs: int
    batch_size: int
    seed: int
    evaluate_every: int = 1

    @property
    def casts(self) -> tuple[int, ...]:
        return tuple(sorted(self.sizes))

    def batches(self, cast: int, split: Split) -> int:
        return ceil(self.sizes[cast][split] / self.batch_size)

    def rows(self, turn: Turn) -> Tensor:
        """(batch,) int64: the positions, among the cast's records, that this turn takes."""
        n = self.sizes[turn.cast][turn.split]
        start = turn.batch * self.batch_size
        if not turn.training:
            return torch.arange(start, min(start + self.batch_size, n))
        return _permutation(self.seed, turn.cast, turn.epoch, n)[start : start + self.batch_size]

    def __iter__(self) -> Iterator[Event]:
        return _Walker(self).events()


@lru_cache(maxsize=64)
def _permutation(seed: int, cast: int, epoch: int, n: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(derive(seed, "order", cast, epoch)))


class _Walker:
    """Counts events and remembers which cast holds the weights that are handed over."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.step = 0
        self.holder: int | None = None

    def events(self) -> Iterator[Event]:
        s = self.schedule
        for epoch in range(s.epochs):
            for cast, batch in self.order(epoch):
                yield from self.hand_to(cast, epoch)
                yield Turn(self.tick(), epoch, cast, batch)
            if s.evaluate_every and ((epoch + 1) % s.evaluate_every == 0 or epoch + 1 == s.epochs):
                for cast in s.casts:
                    yield from self.hand_to(cast, epoch)
                    for batch in range(s.batches(cast, "test")):
                        yield Turn(self.tick(), epoch, cast, batch, "test")
            yield EpochEnd(self.tick(), epoch)

    def tick(self) -> int:
        self.step += 1
        return self.step - 1

    def hand_to(self, cast: int, epoch: int) -> Iterator[Handover]:
        if self.schedule.method.client_side != "handed-over" or self.holder == cast:
            return
        giver, self.holder = self.holder, cast
        if giver is not None:  # everyone starts from the same weights, so the first holder needs none
            yield Handover(self.tick(), epoch, giver, cast)

    def order(self, epoch: int) -> Iterator[tuple[int, int]]:
        s = self.schedule
        counts = {cast: s.batches(cast, "train") for cast in s.casts}
        if s.method.order == "alternate-client":
            yield from ((cast, batch) for cast in s.casts for batch in range(counts[cast]))
            return
        yield from ((cast, batch) for batch in range(max(counts.values())) for cast in s.casts if batch < counts[cast])
