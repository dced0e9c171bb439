"""Bytes between parties: foretold from the graph, the method and the shapes; and counted at the parties' doors.

*Payload* is the tensors alone. *Sealed* is what the record layer puts on the wire for a message: the payload padded to
64 bytes a tensor, the header that describes it, the session's label, and the tags of `channels.records`. What neither
counts: handshakes, and the few messages by which an idle session shows that it lives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import msgspec
import torch

from channels.records import sealed_bytes
from channels.session import LABEL
from secsplit.compression import compressed
from secsplit.envelopes import envelope_bytes
from secsplit.message import DTYPES, NAMES, SEALED, Kind, Message, Stamp
from secsplit.run import Run
from secsplit.schedule import Event, Gather, Handover, Schedule, Spread, Turn
from secsplit.transcript import Direction, Transcript
from secsplit.wire import ALIGNMENT, Facts, MessageHeader, TensorHeader, plain


class Route(NamedTuple):
    """Who sends what to whom, and whether in training or in evaluation."""

    sender: str
    receiver: str
    kind: Kind
    training: bool


@dataclass
class Tally:
    """How much went that way."""

    messages: int = 0
    payload: int = 0  # bytes
    sealed: int = 0  # bytes

    def add(self, payload: int, sealed: int) -> None:
        self.messages += 1
        self.payload += payload
        self.sealed += sealed


Traffic = dict[Route, Tally]
Shapes = Mapping[str, tuple[str, tuple[int, ...]]]  # name of a tensor -> dtype and shape


def size_of(kind: Kind, edge: str, stamp: Stamp, shapes: Shapes, facts: Facts) -> tuple[int, int]:
    """(payload, sealed) bytes of a message, from the shapes of its tensors alone."""
    payload, padded, meta = _encoded(kind, edge, stamp, shapes, facts)
    return payload, sealed_bytes(meta + LABEL.size, padded)


def _encoded(kind: Kind, edge: str, stamp: Stamp, shapes: Shapes, facts: Facts) -> tuple[int, int, int]:
    """(payload, payload padded, header) bytes of a message."""
    tensors = [TensorHeader(name, dtype, shape) for name, (dtype, shape) in shapes.items()]
    s = stamp
    header = MessageHeader(kind, edge, (s.step, s.micro, s.epoch, s.cast, s.training), tensors, facts)
    padded = sum(-(-tensor.nbytes // ALIGNMENT) * ALIGNMENT for tensor in tensors)
    return sum(t.nbytes for t in tensors), padded, len(msgspec.msgpack.encode(header))


def _enveloped(kind: Kind, edge: str, stamp: Stamp, shapes: Shapes) -> Shapes:
    """The envelope of such a message, as its carrier passes it on."""
    _, padded, meta = _encoded(kind, edge, stamp, shapes, {})
    return {SEALED: ("uint8", (envelope_bytes(meta, padded),))}


class Meter(Transcript):
    """Counts what a party sends instead of recording it."""

    def __init__(self, party: str, traffic: Traffic) -> None:
        super().__init__(party)
        self.traffic = traffic

    def append(self, direction: Direction, peer: str, message: Message) -> None:
        """Count a message that was sent; what is received was counted by its sender."""
        if direction == "sent":
            shapes = {name: (NAMES[t.dtype], tuple(t.shape)) for name, t in message.tensors.items()}
            size = size_of(message.kind, message.edge, message.stamp, shapes, plain(message.facts))
            route = Route(self.party, peer, message.kind, message.stamp.training)
            self.traffic.setdefault(route, Tally()).add(*size)


@dataclass(frozen=True)
class Forecast:
    """What a run will send, by its graph, its method and its shapes.

    ``made``: segment -> shape of one record of each tensor it hands out; ``targets``: label column -> (dtype, shape) of
    one record; ``weights``: role -> what a client of it hands over or has averaged. Defenses that change the size of
    what leaves are not foreseen.
    """

    run: Run
    schedule: Schedule
    made: Mapping[str, tuple[torch.Size, ...]]
    targets: Mapping[str, tuple[str, torch.Size]]
    weights: Mapping[str, Shapes]

    def traffic(self) -> Traffic:
        """All that is sent, evaluation included; the census before it and goodbyes after are not."""
        traffic: Traffic = {}
        for event in self.schedule:
            for sender, receiver, message in self.messages(event):
                kind, edge, stamp, shapes = message
                size = size_of(kind, edge, stamp, *self._compressed(kind, edge, shapes))
                traffic.setdefault(Route(sender, receiver, kind, stamp.training), Tally()).add(*size)
        return traffic

    def messages(self, event: Event) -> Iterator[tuple[str, str, tuple[Kind, str, Stamp, Shapes]]]:
        """(sender, receiver, message) of one event."""
        if isinstance(event, Turn):
            yield from self._turn(event)
        elif isinstance(event, Handover):
            for role in self.run.cohort_roles:
                giver, taker = self.run.casts[event.giver][role], self.run.casts[event.taker][role]
                stamp = Stamp(event.step, 0, event.epoch, event.taker)
                yield giver, taker, (Kind.WEIGHTS, role, stamp, self.weights[role])
                if (carrier := self.run.carrier(role)) is not None:
                    sealed = _enveloped(Kind.WEIGHTS, role, stamp, self.weights[role])
                    yield carrier, taker, (Kind.WEIGHTS, role, stamp, sealed)
        elif isinstance(event, Gather | Spread) and self.run.aggregator is not None:
            for role in self.run.cohort_roles:
                for cast in event.casts:
                    client, stamp = self.run.casts[cast][role], Stamp(event.step, 0, event.epoch, cast)
                    ends = (client, self.run.aggregator) if isinstance(event, Gather) else (self.run.aggregator, client)
                    yield *ends, (Kind.WEIGHTS, role, stamp, self.weights[role])

    def _turn(self, turn: Turn) -> Iterator[tuple[str, str, tuple[Kind, str, Stamp, Shapes]]]:
        cast, rows = self.run.casts[turn.cast], self.schedule.rows(turn)
        parts = rows.chunk(self.run.file.train.micro_batches) if turn.training else (rows,)
        for micro, part in enumerate(parts):
            for crossing in self.run.topology.crossings:
                if crossing.kind in (Kind.CUT_GRAD, Kind.OUTPUT_GRAD) and not turn.training:
                    continue
                shapes = self._shapes(crossing.kind, crossing.edge, len(part))
                message = (crossing.kind, crossing.edge, turn.stamp(micro), shapes)
                yield cast[crossing.sender], cast[crossing.receiver], message

    def _compressed(self, kind: Kind, edge: str, shapes: Shapes) -> tuple[Shapes, Facts]:
        """What crosses an edge instead, where the run says that it is made smaller; and what an envelope tells."""
        if SEALED in shapes:
            return shapes, {SEALED: shapes[SEALED][1][0]}
        spec = self.run.compression(edge)
        codec = spec.codec(kind) if spec is not None else None
        if spec is None or codec is None:
            return shapes, {}
        blank = {n: torch.empty(shape, dtype=DTYPES[dtype], device="meta") for n, (dtype, shape) in shapes.items()}
        made, facts = compressed(codec, spec.keep, blank)
        return shapes_of(made), plain(facts)

    def _shapes(self, kind: Kind, edge: str, rows: int) -> Shapes:
        topology = self.run.topology
        if kind in (Kind.SMASHED, Kind.CUT_GRAD):
            segment = edge.split("->")[0]
        else:
            objective = next(o for o in topology.objectives if o.name == edge)
            segment = objective.segment
            if kind is Kind.LABELS:
                dtype, shape = self.targets[objective.target]
                return {"y": (dtype, (rows, *shape))}
        return {f"h{i or ''}": ("float32", (rows, *shape)) for i, shape in enumerate(self.made[segment])}


def shapes_of(tensors: Mapping[str, torch.Tensor]) -> Shapes:
    """Names, dtypes and shapes of tensors."""
    return {name: (NAMES[tensor.dtype], tuple(tensor.shape)) for name, tensor in tensors.items()}


def total(traffic: Traffic, keep: Callable[[Route], bool] = lambda route: True) -> Tally:
    """The sum over the routes that are kept."""
    kept = [tally for route, tally in traffic.items() if keep(route)]
    return Tally(sum(t.messages for t in kept), sum(t.payload for t in kept), sum(t.sealed for t in kept))
