"""A party: the segments it holds, its own records, and one straight-line program that trains them with its peers.

A party does no I/O and knows no channel: its program is a generator that computes, and yields what it wants to send or
be given. One program serves every topology and method; `walk` is its way through the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, MutableMapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from secsplit.defenses.base import Defenses, Incoming, Outgoing
from secsplit.errors import PeerError, RunError
from secsplit.message import Kind, Message, Stamp
from secsplit.metrics import Judge
from secsplit.run import Run
from secsplit.schedule import SPLITS, EpochEnd, Handover, Split, Turn, derive
from secsplit.steps import News, Recv, Send, Step
from secsplit.topology import Segment
from secsplit.walk import Steps, Tensors, Walk

BATCH_DEPENDENT = (nn.modules.batchnorm._BatchNorm,)
NO_ROWS = torch.empty(0, dtype=torch.int64)  # of a message that is about no record in particular


@dataclass(frozen=True)
class Shard:
    """A party's own records of one cast, split by split: column -> (n, ...), and the labels it holds."""

    inputs: Mapping[Split, Mapping[str, Tensor]]
    labels: Mapping[Split, Mapping[str, Tensor]]

    def size(self, split: Split) -> int | None:
        """How many records; None for a party that holds none."""
        for columns in (self.inputs, self.labels):
            for tensor in columns.get(split, {}).values():
                return len(tensor)
        return None


class Party:
    """One party of a run.

    modules: the segments that its role holds; shards: cast -> its own records; make_optimizer: parameters -> optimizer,
    called once a segment; defenses: what acts on what leaves it; accounted: whether a ledger is charged for messages.
    Raises RunError where micro-batches meet layers whose output depends on the whole batch.
    """

    def __init__(
        self,
        run: Run,
        name: str,
        modules: Mapping[str, nn.Module],
        shards: Mapping[int, Shard],
        make_optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
        defenses: Defenses | None = None,
        *,
        accounted: bool = False,
    ) -> None:
        self.run = run
        self.name = name
        self.role = run.file.parties[name].role
        self.topology = run.topology
        self.held = run.topology.held(self.role)
        self.modules: MutableMapping[str, nn.Module] = dict(modules)
        self.shards = shards
        self.defenses = defenses or Defenses()
        self.accounted = accounted
        self.judge = Judge()
        self.optimizers: MutableMapping[str, torch.optim.Optimizer] = {
            segment: make_optimizer([p for p in module.parameters() if p.requires_grad])
            for segment, module in self.modules.items()
            if any(p.requires_grad for p in module.parameters())
        }
        self.inputs = any(shard.inputs.get("train") for shard in shards.values())
        self.labels: MutableMapping[tuple[int, str], Tensor] = {
            (cast, name): y for cast, s in shards.items() for name, y in s.labels.get("train", {}).items()
        }
        _refuse_batch_dependence(run, self.modules)
        self.defenses.prepare(self)
        self._stochastic = {segment: draws(module) for segment, module in self.modules.items()}
        self._live = [layer for module in self.modules.values() for layer in module.modules() if layer.training]
        self._training = True

    # the program

    def program(self) -> Steps:
        """The whole run, from the census to the last epoch."""
        sizes = yield from self.census()
        schedule = self.run.schedule(sizes)
        steps = sum(1 for _ in schedule)
        for event in schedule:
            if isinstance(event, Turn):
                if self.name in self.run.casts[event.cast].values():
                    yield from self.turn(event, schedule.rows(event))
                    yield News("turn", event.step, event.epoch, steps)
            elif isinstance(event, Handover):
                yield from self.hand_over(event)
            elif isinstance(event, EpochEnd):
                yield News("epoch", event.step, event.epoch, steps, self.judge.finish())
        yield News("done", steps, self.run.file.train.epochs - 1, steps)

    def turn(self, turn: Turn, rows: Tensor) -> Steps:
        """One mini-batch: forward all micro-batches, then each backward, then one optimizer step."""
        cast = self.run.casts[turn.cast]
        self.mode(turn.training)
        parts = rows.chunk(self.run.file.train.micro_batches) if turn.training else (rows,)
        walks = [Walk(self, cast, turn.stamp(i), part, len(part) / len(rows)) for i, part in enumerate(parts)]
        if not turn.training:
            yield from walks[0].forward()
            yield from walks[0].objectives()
            return
        self.defenses.begin(turn.stamp(), rows)
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        for walk in walks:
            yield from walk.forward()
        for walk in walks:
            yield from walk.objectives()
            yield from walk.backward()
        for optimizer in self.optimizers.values():
            optimizer.step()

    def census(self) -> Generator[Step, Message | None, dict[int, dict[Split, int]]]:
        """Tell neighbours how many records each cast has, and pass on what they tell, until everybody knows."""
        known = {
            f"{cast}/{split}": n
            for cast, shard in self.shards.items()
            for split in SPLITS
            if (n := shard.size(split)) is not None
        }
        peers = self.run.peers(self.name)
        for hop in range(len(self.run.file.parties)):
            stamp = Stamp(step=hop, training=False)
            for peer in peers:
                yield Send(peer, Message(Kind.CONTROL, "census", stamp, facts={"sizes": dict(known)}))
            for peer in peers:
                message = yield Recv(peer, Kind.CONTROL, "census", stamp)
                assert message is not None
                _merge_census(known, message, peer)
        return sizes_of(known, len(self.run.casts))

    def hand_over(self, event: Handover) -> Steps:
        """Pass the cohort's weights on, peer to peer, over the clients' own channel."""
        for role in self.run.cohort_roles:
            if role != self.role:
                continue
            giver, taker = self.run.casts[event.giver][role], self.run.casts[event.taker][role]
            stamp = Stamp(event.step, 0, event.epoch, event.taker)
            if self.name == giver:
                weights = {
                    f"{s}.{k}": v.detach().clone() for s, m in self.modules.items() for k, v in m.state_dict().items()
                }
                yield self.send(taker, Message(Kind.WEIGHTS, role, stamp, weights), NO_ROWS)
            elif self.name == taker:
                message = yield Recv(giver, Kind.WEIGHTS, role, stamp)
                assert message is not None
                self.take_weights(self.accepted(giver, message), giver)

    def take_weights(self, message: Message, giver: str) -> None:
        """Replace the own weights by those handed over, which must have exactly the same names, shapes and dtypes."""
        own = {f"{s}.{k}": v for s, m in self.modules.items() for k, v in m.state_dict().items()}
        came = {k: (v.shape, v.dtype) for k, v in message.tensors.items()}
        if came != {k: (v.shape, v.dtype) for k, v in own.items()}:
            raise PeerError(
                giver, f"weights handed over do not fit: expected {len(own)} tensors of this role's segments"
            )
        for name, tensor in own.items():
            tensor.copy_(message.tensors[name])

    # what a walk asks of its party

    def compute(self, segment: Segment, inputs: Tensors, stamp: Stamp) -> Tensors:
        """Run a segment forward; where it draws random numbers, they are this party's own."""
        if self._stochastic[segment.name] and stamp.training:
            torch.default_generator.manual_seed(
                derive(self.run.file.train.seed, "draw", self.name, segment.name, stamp.step, stamp.micro)
            )
        with torch.set_grad_enabled(stamp.training):  # never around a yield: the mode belongs to the whole thread
            made = self.modules[segment.name](*inputs)
        return made if isinstance(made, tuple) else (made,)

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
        out = Outgoing(message.kind, message.edge, message.stamp, tensors[0], None, rows, to, of=len(tensors))
        return Send(to, message, self.defenses.releases(out))

    def accepted(self, peer: str, message: Message) -> Message:
        """The message, whose numbers must be finite: one NaN from a peer would spoil every weight here."""
        for name, tensor in message.tensors.items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor.sum())):
                finite = bool(torch.isfinite(tensor).all())
                if not finite:
                    raise PeerError(peer, f"{message.kind} on {message.edge!r}: tensor {name!r} has NaN or infinity")
        return message

    def mode(self, training: bool) -> None:
        """Put the segments into training or evaluation mode; what its owner put into eval mode stays there."""
        if training != self._training:
            for layer in self._live:
                layer.training = training
            self._training = training

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


def sizes_of(known: Mapping[str, int], casts: int) -> dict[int, dict[Split, int]]:
    """The census as the schedule wants it. Raises RunError where a cast has no records to train on."""
    sizes: dict[int, dict[Split, int]] = {
        cast: {"train": known.get(f"{cast}/train", 0), "test": known.get(f"{cast}/test", 0)} for cast in range(casts)
    }
    for cast, by_split in sizes.items():
        if not by_split["train"]:
            raise RunError(f"census: cast {cast} has no records to train on")
    return sizes


def _merge_census(known: dict[str, int], message: Message, peer: str) -> None:
    told = message.facts.get("sizes")
    if not isinstance(told, dict):
        raise PeerError(peer, "census without sizes")
    for key, n in told.items():
        if not isinstance(n, int) or not 0 <= n < 1 << 40 or len(key) > 64:
            raise PeerError(peer, f"census says {key!r} = {n!r}; expected a number of records")
        if known.setdefault(key, n) != n:
            raise PeerError(
                peer,
                f"census: it says {n} records for {key!r}, {known[key]} were known; parties must hold the same records",
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
