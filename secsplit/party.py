"""A party: the segments it holds, its own records, and one straight-line program that trains them with its peers.

A party does no I/O and knows no channel: its program is a generator that computes, and yields what it wants to send or
be given. One program serves every topology and method; `walk` is its way through the graph.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from itertools import count, groupby
from math import isfinite
from typing import NamedTuple

import torch
from torch import Tensor, nn

from secsplit.auditlog import AuditLog, attest
from secsplit.census import census
from secsplit.checkpoint import all_saved
from secsplit.copies import Copies, Mean, Replica, Stash, optimizers_for
from secsplit.defenses.base import Defenses, Incoming, Outgoing
from secsplit.device import CPU, device_in, moved, seeded
from secsplit.errors import PeerError, RunError
from secsplit.message import Kind, Message, Stamp
from secsplit.metrics import Judge
from secsplit.optimizers import MakeOptimizer, Optimizer, set_rate
from secsplit.run import Run
from secsplit.schedule import EpochEnd, Event, Gather, Handover, Save, Schedule, Split, Spread, Turn, derive
from secsplit.sharing import gather, hand_over, spread
from secsplit.steps import Begin, News, Send, Steps, rotate
from secsplit.topology import Segment
from secsplit.walk import Tensors, Walk

BATCH_DEPENDENT = (nn.modules.batchnorm._BatchNorm,)


class Strand(NamedTuple):
    """Events that are taken together: equal keys, side by side; width: so many at once (None: all)."""

    key: tuple[int, ...]
    width: int | None


@dataclass(frozen=True)
class Shard:
    """A party's own records of one cast, split by split: column -> (n, ...), and the labels it holds."""

    inputs: Mapping[Split, Mapping[str, Tensor]]
    labels: Mapping[Split, Mapping[str, Tensor]]
    orders: Mapping[Split, int] = field(default_factory=dict)  # which records, in what order; see datasets.align

    def size(self, split: Split) -> int | None:
        """How many records; None for a party that holds none."""
        for columns in (self.inputs, self.labels):
            for tensor in columns.get(split, {}).values():
                return len(tensor)
        return None


class Party:
    """One party of a run.

    modules: the segments that its role holds; shards: cast -> its own records; make_optimizer: parameters -> optimizer,
    called once a segment; rates: the learning rate of every epoch (empty: the optimizer's own); defenses: what acts on
    what leaves it; accounted: whether a ledger is charged for messages.
    Raises RunError where micro-batches meet layers whose output depends on the whole batch.
    """

    def __init__(
        self,
        run: Run,
        name: str,
        modules: Mapping[str, nn.Module],
        shards: Mapping[int, Shard],
        make_optimizer: MakeOptimizer,
        defenses: Defenses | None = None,
        *,
        rates: Sequence[float] = (),
        accounted: bool = False,
    ) -> None:
        self.run = run
        self.name = name
        self.role = run.file.parties[name].role
        self.topology = run.topology
        self.held = run.topology.held(self.role)
        self.modules: MutableMapping[str, nn.Module] = dict(modules)
        self.device = next((device_in(module) for module in modules.values()), CPU)
        self.shards = shards
        self.rates = rates
        self.defenses = defenses or Defenses()
        self.accounted = accounted
        self.judge = Judge()
        self.log = AuditLog(run, name)
        self.sizes: Mapping[int, Mapping[Split, int]] | None = None  # cast -> records by split, since the census
        self.position: Save | None = None  # the last checkpoint, from which a resumed party goes on
        self.means: MutableMapping[str, Mean] = defaultdict(Mean)  # by role: what this party averages for others
        self.optimizers: MutableMapping[str, Optimizer] = dict(optimizers_for(self.modules, make_optimizer))
        self.inputs = any(shard.inputs.get("train") for shard in shards.values())
        self.labels: MutableMapping[tuple[int, str], Tensor] = {
            (cast, name): y for cast, s in shards.items() for name, y in s.labels.get("train", {}).items()
        }
        _refuse_batch_dependence(run, self.modules)
        self.defenses.prepare(self)
        self._stochastic = {segment: draws(module) for segment, module in self.modules.items()}
        self.own = Replica(self.modules, self.optimizers)
        unwrapped = not any(defense.steps for defense in self.defenses)
        self.copies = self._copies(make_optimizer, unwrapped)
        stale = run.file.train.staleness
        self.stash = Stash(self.own, stale + 1, plain=unwrapped) if stale and self.copies is None else None
        if run.method.client_side == "gradients-averaged" and not unwrapped:
            raise RunError(
                "method.name: 'large-batch' sends gradients before a defense that acts as optimizers step sees them"
            )

    def _copies(self, make_optimizer: MakeOptimizer, plain: bool) -> Copies | None:
        """What serves each client with a copy of its own; None where the method has no copies, or not here."""
        casts = len(self.run.casts)
        if self.run.method.server_side != "copies" or casts == 1 or self.role in self.run.cohort_roles or not self.held:
            return None
        return Copies(self.own, make_optimizer, self.run.method.group(casts), plain=plain)

    # the program

    def program(self) -> Steps:
        """The whole run, from the census (or the checkpoint that the party goes on from) to the last epoch."""
        if self.sizes is None:
            self.sizes = yield from census(self)
        schedule = self.run.schedule(self.sizes)
        cast = self.run.casts_of(self.name)[0] if self.role in self.run.cohort_roles else None
        for strand, events in groupby(schedule.of(cast, start=self.position), self.strands()):
            takes = (self.take(schedule, event) for _, event in events)
            yield from rotate(takes, strand.width)
        yield News("done", schedule.steps, self.run.file.train.epochs - 1, schedule.steps)

    def strands(self) -> Callable[[tuple[int, Event]], Strand]:
        """Tells which events follow each other one by one, and which turns may be under way beside each other.

        Each client's next mini-batch, where each has a copy of its own; or, where staleness is asked for, a client's
        next turns before the gradient of the first is back.
        """
        alone = count(1)
        wide = self.run.file.train.staleness + 1

        def strand(numbered: tuple[int, Event]) -> Strand:
            index, event = numbered
            if isinstance(event, Turn) and event.training:
                if self.copies is not None and self.copies.size > 1:
                    return Strand((event.epoch, event.batch), None)
                if wide > 1 and self.copies is None:
                    return Strand((index,), wide)
            return Strand((-next(alone),), 1)

        return strand

    def take(self, schedule: Schedule, event: Event) -> Steps:
        """One event of the schedule."""
        if isinstance(event, Turn):
            if self.held or self.shards:
                yield Begin(event.step)
                yield from self.turn(event, schedule.rows(event))
                yield News("turn", event.step, event.epoch, schedule.steps)
        elif isinstance(event, Handover):
            yield from hand_over(self, event)
        elif isinstance(event, Gather):
            yield from gather(self, event)
        elif isinstance(event, Spread):
            yield from spread(self, event)
        elif isinstance(event, EpochEnd):
            metrics = self.judge.finish()
            yield from attest(self, event, metrics, last=event.epoch + 1 == schedule.epochs)
            yield News("epoch", event.step, event.epoch, schedule.steps, metrics)
        elif isinstance(event, Save):
            self.position = event
            yield News("save", event.step, event.epoch, schedule.steps)
            yield from all_saved(self, event)
            yield News("saved", event.step, event.epoch, schedule.steps)

    def turn(self, turn: Turn, rows: Tensor) -> Steps:
        """One mini-batch: its micro-batches in rotation, then one optimizer step."""
        cast, stamp = self.run.casts[turn.cast], turn.stamp()
        copy = self.copy(stamp)
        copy.mode(turn.training)
        if not turn.training:
            walk = Walk(self, cast, stamp, rows, 1.0)
            yield from walk.forward()
            yield from walk.objectives()
            return
        self.defenses.begin(stamp, rows)
        if self.accounted:
            self.defenses.learns(stamp, rows)
        copy.zero()
        count = self.run.file.train.micro_batches
        parts = rows.chunk(count) if count > 1 else (rows,)
        walks = [Walk(self, cast, turn.stamp(i), part, len(part) / len(rows)) for i, part in enumerate(parts)]
        yield from rotate((walk.through() for walk in walks), count)
        if self.stash is not None:
            self.stash.settle(turn.step)
        if self.run.method.client_side != "gradients-averaged" or len(self.run.casts) == 1:
            self.update(copy if self.stash is None else self.own, turn.epoch)

    def update(self, copy: Replica, epoch: int) -> None:
        """One optimizer step from the gradients that are there."""
        for optimizer in copy.optimizers.values():
            if self.rates:
                set_rate(optimizer, self.rates[epoch])
            optimizer.step()

    def copy(self, stamp: Stamp) -> Replica:
        """The segments that serve a turn: a copy of the cast's, or of the step's, where several are under way."""
        if not stamp.training:
            return self.own
        if self.copies is not None:
            return self.copies.of(stamp.cast)
        return self.own if self.stash is None else self.stash.of(stamp.step)

    # what a walk asks of its party

    def compute(self, segment: Segment, inputs: Tensors, stamp: Stamp) -> Tensors:
        """Run a segment forward; where it draws random numbers, they are this party's own."""
        if self._stochastic[segment.name] and stamp.training:
            names = (self.name, segment.name, stamp.step, stamp.micro)
            seeded(derive(self.run.file.train.seed, "draw", *names), self.device)
        with torch.set_grad_enabled(stamp.training):  # never around a yield: the mode belongs to the whole thread
            made = self.copy(stamp).modules[segment.name](*inputs)
        return made if isinstance(made, tuple) else (made,)

    def here(self, tensor: Tensor) -> Tensor:
        """The tensor where this party computes."""
        return moved(tensor, self.device)

    def away(self, tensor: Tensor) -> Tensor:
        """The tensor where messages, labels and losses are."""
        return moved(tensor, CPU)

    def column(self, stamp: Stamp, name: str) -> Tensor:
        return self.shards[stamp.cast].inputs["train" if stamp.training else "test"][name]

    def target(self, stamp: Stamp, name: str) -> Tensor:
        """The label column that this party holds: as its defenses left it in training, true in evaluation."""
        return self.labels[stamp.cast, name] if stamp.training else self.shards[stamp.cast].labels["test"][name]

    def outgoing(self, kind: Kind, edge: str, stamp: Stamp, tensors: Tensors, rows: Tensor, to: str) -> Tensors:
        """What leaves instead of a message's `tensors`, after the party's defenses."""
        if not len(self.defenses):
            return tensors
        labels, n = self._own_labels(stamp, rows), len(tensors)
        outs = (Outgoing(kind, edge, stamp, t, labels, rows, to, i, n) for i, t in enumerate(tensors))
        return tuple(self.defenses.outgoing(out) for out in outs)

    def incoming(self, message: Message, rows: Tensor, frm: str) -> Message:
        """What the party goes on with after its defenses looked at what came."""
        if not len(self.defenses):
            return message
        labels = self._own_labels(message.stamp, rows)
        tensors = {
            name: self.defenses.incoming(Incoming(message.kind, message.edge, message.stamp, t, labels, rows, frm))
            for name, t in message.tensors.items()
        }
        return Message(message.kind, message.edge, message.stamp, tensors, message.facts)

    def send(self, to: str, message: Message, rows: Tensor) -> Send:
        """A send, with what the ledger must be charged before it leaves."""
        if not self.accounted:
            return Send(to, message)
        tensors = tuple(message.tensors.values())
        target = message.edge in self.topology.reconstructions
        out = Outgoing(
            message.kind, message.edge, message.stamp, tensors[0], None, rows, to, of=len(tensors), target=target
        )
        return Send(to, message, self.defenses.releases(out))

    def accepted(self, peer: str, message: Message) -> Message:
        """The message, whose numbers must be finite: one NaN from a peer would spoil every weight here."""
        for name, tensor in message.tensors.items():
            suspect = tensor.is_floating_point() and not isfinite(tensor.sum().item())  # or a sum that overflowed
            if suspect and not bool(torch.isfinite(tensor).all()):
                raise PeerError(peer, f"{message.kind} on {message.edge!r}: tensor {name!r} has NaN or infinity")
        return message

    def _own_labels(self, stamp: Stamp, rows: Tensor) -> Tensor | None:
        shard = self.shards.get(stamp.cast)
        if shard is None:
            return None
        names = shard.labels.get("train" if stamp.training else "test", {})
        return next((self.target(stamp, name)[rows] for name in names), None)


def draws(module: nn.Module) -> bool:
    """Whether a module may draw random numbers: it has dropout, is unknown to torch, or is a traced graph."""
    return any(
        isinstance(m, nn.modules.dropout._DropoutNd | nn.RReLU | nn.Transformer | nn.RNNBase)
        or not type(m).__module__.startswith("torch.nn.")
        for m in module.modules()
    )


def _refuse_batch_dependence(run: Run, modules: Mapping[str, nn.Module]) -> None:
    if run.file.train.micro_batches == 1:
        return
    for segment, module in modules.items():
        for name, layer in module.named_modules():
            if isinstance(layer, BATCH_DEPENDENT):
                raise RunError(
                    f"train.micro_batches: {run.file.train.micro_batches} with {type(layer).__name__} {name!r} in "
                    f"segment {segment!r}: its statistics would be those of a micro-batch, and the result another; "
                    "use micro_batches = 1, or a model with group normalisation"
                )
