"""From messages of mini-batches to one tensor a private row: who it is about, when it was seen, what it said.

The order of the batches is public (`View.order`), so the messages about one row can be linked over epochs, and where a
defense draws fresh noise they can be averaged. Messages are chosen by their index first, newest first, and only those
that count are loaded: a long transcript on disk is never held in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from attacks.base import NotApplicable
from secsplit.message import Kind
from secsplit.threat import View
from secsplit.transcript import Direction, Record

NUMBERS = 1 << 26  # the most numbers of rows not asked about that are held at once


@dataclass(frozen=True)
class Observed:
    """cast, position, step: (n,), which row and the last turn it was seen in; values: (n, ...)."""

    cast: Tensor
    position: Tensor
    step: Tensor
    values: Tensor

    def __len__(self) -> int:
        return len(self.position)

    def take(self, index: Tensor) -> Observed:
        """Some of the rows."""
        return Observed(self.cast[index], self.position[index], self.step[index], self.values[index])

    def holding(self, values: Tensor) -> Observed:
        """The same rows with other values."""
        return replace(self, values=values)


def latest(
    view: View,
    kind: Kind,
    *,
    edge: str,
    direction: Direction = "received",
    limit: int = 0,
    average: int = 1,
    training: bool | None = True,
) -> Observed:
    """The last message about every row, or the mean of its last `average`, newest row first.

    At most `limit` rows (0: all) besides those that the view asks about, which are always there where they were seen.
    Raises NotApplicable where no such message was seen.
    """
    records = list(view.records(kind, direction=direction, edge=edge, training=training))
    if not records:
        raise NotApplicable(f"no {kind} message was {direction} on {edge!r}")
    records.sort(key=lambda r: (r.stamp.step, r.stamp.micro), reverse=True)
    width = max(1, sum(prod(shape[1:]) for _, shape in records[0].shapes.values()))
    plan = _Plan(view, records, min(limit or NUMBERS, max(1, NUMBERS // width)), average)
    rows = torch.arange(plan.n)
    total: Tensor | None = None
    for record, batch, slots in plan.wanted:
        message = joined(tuple(record.tensors.values()))
        if total is None:
            total = message.new_zeros(plan.n, *message.shape[1:])
        total.index_add_(0, slots.to(message.device), message[batch.to(message.device)])
    assert total is not None
    if average > 1:
        total = total / plan.count[rows].to(total).reshape(-1, *[1] * (total.ndim - 1))
    return Observed(plan.cast[rows], plan.position[rows], plan.step[rows], total)


def joined(tensors: Sequence[Tensor]) -> Tensor:
    """(n, ...): the one tensor of a message, or, where a cut is crossed by several, all flattened side by side."""
    return tensors[0] if len(tensors) == 1 else torch.cat([t.flatten(1) for t in tensors], 1)


def asked(view: View, rows: Observed, most: int = 0) -> Tensor:
    """(k,): which of `rows` to guess: those the view asks about, in its order, else all; at most `most` (0: all)."""
    if not view.asked:
        chosen = torch.arange(len(rows))
    else:
        position = torch.cat(list(view.asked.values()))
        cast = torch.cat([torch.full_like(at, key) for key, at in view.asked.items()])
        place = find(Observed(cast, position, position, position), rows)
        chosen = place[place >= 0]
    return chosen[:most] if most else chosen


def freshest(view: View, rows: Observed, most: int) -> Tensor:
    """(k,): of those asked about, the `most` seen last: for attacks that are dear, on what has drifted least."""
    chosen = asked(view, rows)
    return chosen[rows.step[chosen].argsort(descending=True, stable=True)[:most]]


def held(view: View, rows: Observed) -> dict[str, Tensor]:
    """column -> (n, ...): what the coalition itself holds of every one of those rows."""
    casts = [view.own[cast].inputs if cast in view.own else {} for cast in rows.cast.unique().tolist()]
    names = set.intersection(*(set(inputs) for inputs in casts)) if casts else set()
    places = list(zip(rows.cast.tolist(), rows.position.tolist(), strict=True))
    return {name: torch.stack([view.own[c].inputs[name][p] for c, p in places]) for name in sorted(names)}


def find(rows: Observed, among: Observed) -> Tensor:
    """(n,): where each of `rows` stands in `among`, -1 for those that are not there."""
    places: dict[tuple[int, int], int] = {
        key: i for i, key in enumerate(zip(among.cast.tolist(), among.position.tolist(), strict=True))
    }
    keys = zip(rows.cast.tolist(), rows.position.tolist(), strict=True)
    return torch.tensor([places.get(key, -1) for key in keys], dtype=torch.int64)


class _Plan:
    """Which rows of which records to load: `wanted` lists (record, places in its batch, places in the answer)."""

    def __init__(self, view: View, records: Sequence[Record], limit: int, average: int) -> None:
        bound = sum(_length(record) for record in records)
        self.cast, self.position, self.step, self.count = torch.zeros(4, bound, dtype=torch.int64)
        self.wanted: list[tuple[Record, Tensor, Tensor]] = []
        self.n = 0
        room = limit
        missing = {cast: set(at.tolist()) for cast, at in view.asked.items()}
        slots: dict[int, Tensor] = {}  # cast -> (positions,) places in the answer, -1 for none
        for record in records:
            cast, at = record.stamp.cast, view.order(record.stamp)
            table = slots[cast] = _reaching(slots.get(cast), at)
            fresh = (table[at] < 0).nonzero().flatten()
            due = torch.tensor([p in missing.get(cast, ()) for p in at[fresh].tolist()], dtype=torch.bool)
            due |= (~due).cumsum(0) <= room
            fresh = fresh[due]
            seen = at[fresh]
            new = slice(self.n, self.n + len(seen))
            table[seen] = torch.arange(new.start, new.stop)
            self.cast[new], self.position[new], self.step[new] = cast, seen, record.stamp.step
            self.n = new.stop
            found = missing.get(cast, set()) & set(seen.tolist())
            missing.get(cast, set()).difference_update(found)
            room -= len(seen) - len(found)
            slot = table[at]
            batch = ((slot >= 0) & (self.count[slot] < average)).nonzero().flatten()
            self.count[slot[batch]] += 1
            if len(batch):
                self.wanted.append((record, batch, slot[batch]))
            if not room and not any(missing.values()) and bool((self.count[: self.n] == average).all()):
                return


def _length(record: Record) -> int:
    """Observed of a record's batch, known without loading it."""
    _, shape = next(iter(record.shapes.values()))
    return shape[0]


def _reaching(table: Tensor | None, positions: Tensor) -> Tensor:
    """The table of places, long enough for these positions."""
    old = torch.empty(0, dtype=torch.int64) if table is None else table
    size = int(positions.max()) + 1 if len(positions) else 0
    return torch.cat([old, torch.full((2 * size - len(old),), -1)]) if size > len(old) else old
