"""What the messages of a view say about each private row: one matrix a turn, read only when asked for.

Every attack on labels starts here. Micro-batches of a turn are put back together, the edges of a coalition stand side
by side, and rows are named by (cast, position) so that they can be linked over epochs. It knows no attack and no truth.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.base import Guess, NotApplicable, secret_labels
from secsplit.message import Kind
from secsplit.threat import Known, View
from secsplit.transcript import Direction, Record

Lane = tuple[str, Kind]  # an edge and what crosses it


@dataclass(frozen=True)
class Batch:
    """One turn's messages on the chosen edges: edges x micro-batches of records, not yet read.

    cast, position: (rows,) of it, which private rows; step, epoch: when.
    """

    step: int
    epoch: int
    cast: int
    position: Tensor
    parts: tuple[tuple[Record, ...], ...]

    def __len__(self) -> int:
        return self.position.numel()

    def values(self) -> Tensor:
        """(rows, d) float: each row's message, flattened, the edges side by side."""
        return _beside([_below([_flat(record) for record in part]) for part in self.parts])


def places(found: Sequence[Batch]) -> tuple[Tensor, Tensor, Tensor]:
    """(rows,) cast, position and step of all rows of the batches, one batch after the other."""
    position = torch.cat([batch.position for batch in found])
    turns = torch.tensor([(batch.cast, batch.step) for batch in found])
    sizes = torch.tensor([len(batch) for batch in found])
    return turns[:, 0].repeat_interleave(sizes), position, turns[:, 1].repeat_interleave(sizes)


def secret_column(view: View, column: str | None) -> str:
    """The label column to guess: the one asked for, else the first that the coalition does not hold."""
    secret = secret_labels(view.topology, view.roles)
    if column is None and secret:
        return secret[0]
    if column is None or column not in secret:
        raise NotApplicable(f"no label column {column or ''!r} that {_who(view)} does not hold itself")
    return column


def classes(view: View, column: str, *, exactly: int | None = None) -> int:
    """How many classes a label column has. Raises NotApplicable for regression or another number than asked for."""
    count = view.classes.get(column, 0)
    if count < 2 or exactly not in (None, count):
        wanted = "classes" if exactly is None else f"{exactly} classes"
        raise NotApplicable(f"label {column!r} has {count or 'no'} classes; this attack needs {wanted}")
    return count


def batches(
    view: View,
    kinds: Iterable[Kind],
    *,
    column: str | None = None,
    direction: Direction = "received",
    training: bool | None = True,
) -> list[Batch]:
    """The turns in time order; with a label `column`, only what lies on the way to its loss.

    An objective that several edges lead to gives them all, side by side; a turn that lacks one of them is left out.
    """
    wanted = {kind: None if column is None else _towards(view, column, kind, direction) for kind in kinds}
    turns: dict[tuple[int, int], dict[Lane, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for kind, edges in wanted.items():
        for record in view.records(kind, direction=direction, training=training):
            if (edges is None or record.edge in edges) and record.shapes:
                turns[record.stamp.step, record.stamp.cast][record.edge, kind].append(record)
    chosen = _widest(turns.values())
    return [
        _batch(view, [sorted(found[lane], key=lambda r: r.stamp.micro) for lane in chosen])
        for _, found in sorted(turns.items())
        if all(lane in found for lane in chosen)
    ]


def gradients(view: View, column: str) -> list[Batch]:
    """The turns' gradients on the way back from the loss on `column`. Raises NotApplicable where there are none."""
    found = batches(view, [Kind.OUTPUT_GRAD], column=column) or batches(view, [Kind.CUT_GRAD], column=column)
    if not found:
        raise NotApplicable(f"{_who(view)} received no gradient of the loss on {column!r}")
    return found


def spread(found: list[Batch], most: int, *, keep: Sequence[int] = ()) -> list[Batch]:
    """At most `most` batches, evenly spread over time; those whose index is in `keep` always stay."""
    if len(found) <= most:
        return found
    chosen = {*torch.linspace(0, len(found) - 1, most).round().long().tolist(), *keep}
    return [found[index] for index in sorted(chosen)]


def told(known: Known | None, column: str, cast: Tensor, position: Tensor) -> Tensor:
    """(rows,) the class that the adversary was told for each row, -1 where it was told none."""
    if known is None or column not in known.labels:
        return torch.full_like(position, -1)
    place = _found(known, cast, position)
    label = torch.cat([known.labels[column].to(position.dtype), position.new_tensor([-1])])
    return label[place]


def told_number(known: Known | None, column: str, cast: Tensor, position: Tensor) -> Tensor:
    """(rows,) the number that the adversary was told for each row, NaN where it was told none."""
    nothing = torch.full((1,), torch.nan)
    if known is None or column not in known.labels:
        return nothing.expand(len(position))
    label = torch.cat([known.labels[column].float(), nothing])
    return label[_found(known, cast, position)]


def untold(guess: Guess, known: Known | None) -> Guess:
    """The guess about the rows that were not told: what was given is no leakage."""
    if known is None or not len(known.position):
        return guess
    return guess.of(_found(known, guess.cast, guess.position) < 0)


def _found(known: Known, cast: Tensor, position: Tensor) -> Tensor:
    """(rows,) the index of each row among the known ones, -1 where it is not."""
    if not len(known.position):
        return torch.full_like(position, -1)
    keys, order = _key(known.cast, known.position).sort()
    wanted = _key(cast, position)
    place = torch.searchsorted(keys, wanted).clamp_(max=len(keys) - 1)
    return torch.where(keys[place] == wanted, order[place], -1)


def unique_rows(cast: Tensor, position: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each row once: its cast, its position, and (rows,) the index of every given row among them."""
    keys, index = torch.unique(_key(cast, position), return_inverse=True)
    return keys >> 40, keys & ((1 << 40) - 1), index


def _key(cast: Tensor, position: Tensor) -> Tensor:
    return (cast.long() << 40) + position.long()


def _batch(view: View, parts: list[list[Record]]) -> Batch:
    stamp = parts[0][0].stamp
    sizes = [next(iter(record.shapes.values()))[1][0] for record in parts[0]]
    position = view.order(stamp)
    if len(position) != sum(sizes):
        position = torch.cat([view.order(record.stamp) for record in parts[0]])
    if len(position) != sum(sizes):
        raise ValueError(
            f"step {stamp.step}: {sum(sizes)} rows were seen on {parts[0][0].edge!r} where the run's order has "
            f"{len(position)}; give the transcript together with the run that made it"
        )
    return Batch(stamp.step, stamp.epoch, stamp.cast, position, tuple(tuple(part) for part in parts))


def _flat(record: Record) -> Tensor:
    tensors = [t for t in record.tensors.values() if t.is_floating_point()]
    return _beside([t.flatten(1).float() for t in tensors])


def _beside(tensors: list[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, 1)


def _below(tensors: list[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def _towards(view: View, column: str, kind: Kind, direction: Direction) -> set[str]:
    """Where such a message last crosses the coalition's border before the loss on that column."""
    topology, roles = view.topology, view.roles
    at_source = (kind is Kind.CUT_GRAD) == (direction == "received")
    found: set[str] = set()
    waiting: list[str] = []
    for objective in topology.objectives:
        if objective.target == column:
            if kind not in (Kind.OUTPUT, Kind.OUTPUT_GRAD):
                waiting.append(objective.segment)
            elif (topology[objective.segment].role in roles) != (objective.at in roles):
                found.add(objective.name)
    while waiting:
        name = waiting.pop()
        for edge in topology.edges:
            if edge.user.name != name:
                continue
            mine, theirs = (edge.source, edge.user) if at_source else (edge.user, edge.source)
            if mine.role in roles and theirs.role not in roles:
                found.add(edge.name)
            else:
                waiting.append(edge.source.name)
    return found


def _widest(turns: Iterable[Mapping[Lane, list[Record]]]) -> tuple[Lane, ...]:
    """The lanes that the greatest number of turns has all of, so that one rare lane does not hide the others."""
    sets = Counter(tuple(sorted(found)) for found in turns)
    return max(sets, key=lambda lanes: (sets[lanes], len(lanes)), default=())


def _who(view: View) -> str:
    return " + ".join(view.roles) or "a wiretap"
