"""One micro-batch's way through the segments that a party holds: forward in graph order, then the same backwards.

Every edge of the graph is cut: each user of an output gets a detached leaf of its own, and an edge inside a party just
does not travel. So each segment runs backward exactly once, with the sum of its users' gradients, and skips, fan-out,
several losses and labels at a third party need no special case. A walk yields what it wants sent or be given, and does
no I/O.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from secsplit.compression import check, compressed, masked, restored
from secsplit.errors import PeerError
from secsplit.losses import mean_loss
from secsplit.message import Kind, Message, Stamp
from secsplit.steps import Recv, Send, Step, Steps
from secsplit.topology import DATA, Edge, Objective, Segment

if TYPE_CHECKING:
    from secsplit.party import Party

Tensors = tuple[Tensor, ...]


def named(tensors: Tensors) -> dict[str, Tensor]:
    """A message's tensors for an edge: h, then h1, h2, ... where a cut is crossed by several."""
    return {"h" if i == 0 else f"h{i}": tensor.detach() for i, tensor in enumerate(tensors)}


@dataclass
class Walk:
    """The state of one micro-batch at one party.

    rows: (micro-batch,) positions in the cast's records; share: its part of the mini-batch, so that the gradients of
    all micro-batches sum to that of the mini-batch's MEAN loss.
    """

    party: Party
    cast: Mapping[str, str]  # role -> party
    stamp: Stamp
    rows: Tensor
    share: float
    outputs: dict[str, Tensors] = field(default_factory=dict)  # with graph
    leaves: dict[str, Tensors] = field(default_factory=dict)  # by edge: what a segment here took
    departed: dict[str, Tensors] = field(default_factory=dict)  # by edge: what left, with graph
    returned: dict[str, Tensors] = field(default_factory=dict)  # by objective: gradients of outputs that left
    scores: dict[str, Tensor] = field(default_factory=dict)  # by segment: gradients from objectives, summed
    losses: dict[str, list[Tensor]] = field(default_factory=dict)  # by segment: scalars it learns from by itself

    def through(self) -> Steps:
        """All of a training step but the optimizer's."""
        yield from self.forward()
        yield from self.objectives()
        yield from self.backward()

    # forward

    def forward(self) -> Steps:
        for segment in self.party.held:
            taken: list[Tensors] = []
            for name in segment.inputs:
                if name.startswith(DATA):
                    column = self.party.column(self.stamp, name.removeprefix(DATA))[self.rows]
                    taken.append((self.party.here(column),))
                else:
                    edge = self.party.topology.edge(name, segment.name)
                    taken.append((yield from self.take(edge)))
            inputs = merged(segment, taken)
            outputs = self.party.compute(segment, inputs, self.stamp)
            self.outputs[segment.name] = outputs
            for edge in self.party.topology.users(segment.name):
                if edge.crosses:
                    yield from self.depart(edge, outputs, inputs)

    def take(self, edge: Edge) -> Generator[Step, Message | None, Tensors]:
        """The edge's tensors as leaves of this party's own graph."""
        if edge.crosses:
            message = yield from self.receive(edge.source.role, Kind.SMASHED, edge.name)
            tensors = tuple(message.tensors.values())
            for tensor in tensors:
                self.check_rows(tensor, edge.source.role, edge.name)
            tensors = tuple(map(self.party.here, tensors))
        else:
            tensors = tuple(tensor.detach() for tensor in self.outputs[edge.source.name])
        if self.stamp.training:
            tensors = tuple(t.detach().requires_grad_() if t.is_floating_point() else t for t in tensors)
        self.leaves[edge.name] = tensors
        return tensors

    def depart(self, edge: Edge, outputs: Tensors, inputs: Tensors) -> Steps:
        """Send a segment's output over a cut, defended where the run says so; backward starts from what left."""
        left = self.defended(edge.user.role, Kind.SMASHED, edge.name, outputs)
        spec = self.party.run.compression(edge.name)
        if spec is not None and spec.smashed == "top-k":  # what is left out is zero here too, and gets no gradient
            left = tuple(masked(t, spec.keep) if t.is_floating_point() else t for t in left)
        self.departed[edge.name] = left
        penalty = self.party.defenses.penalty(edge.name, inputs[0], outputs[0]) if self.stamp.training else None
        if penalty is not None:
            self.losses.setdefault(edge.source.name, []).append(penalty * self.share)
        yield self.send(edge.user.role, Kind.SMASHED, edge.name, named(left))

    # objectives

    def objectives(self) -> Steps:
        """Outputs and labels to where the losses are, and the losses' gradients back."""
        me = self.party.role
        for objective in self.party.topology.objectives:
            maker = self.party.topology[objective.segment].role
            if me == maker != objective.at:
                left = self.defended(objective.at, Kind.OUTPUT, objective.name, self.outputs[objective.segment])
                self.departed[objective.name] = left
                yield self.send(objective.at, Kind.OUTPUT, objective.name, named(left))
            if me == objective.holder != objective.at:
                (labels,) = self.defended(objective.at, Kind.LABELS, objective.name, (self.target(objective),))
                yield self.send(objective.at, Kind.LABELS, objective.name, {"y": labels})
            if me == objective.at:
                yield from self.score(objective, maker)

    def score(self, objective: Objective, maker: str) -> Steps:
        """Compute the loss here; keep its gradient, or send it to the maker of the output."""
        me = self.party.role
        whole = maker == me and self.is_last(objective.segment)  # one graph with its segment: it needs no cut
        if maker == me:
            (made,) = self.outputs[objective.segment]
            output = self.party.away(made if whole else made.detach())
        else:
            message = yield from self.receive(maker, Kind.OUTPUT, objective.name)
            output = message.tensors["h"]
            self.check_rows(output, maker, objective.name)
        if objective.holder == me:
            target = self.target(objective)
        else:
            message = yield from self.receive(objective.holder, Kind.LABELS, objective.name)
            target = message.tensors["y"]
            self.check_rows(target, objective.holder, objective.name)
        if not self.stamp.training:
            self.party.judge.judged(objective, output, target)
            return
        leaf = output if whole else output.detach().requires_grad_()
        loss, labelled = mean_loss(objective.loss, leaf, target)
        if (weight := self.share * objective.weight) != 1.0:
            loss = loss * weight
        self.party.judge.lost(objective, loss.detach(), self.share, labelled)
        if whole:
            self.losses[objective.segment] = [loss]
            return
        loss.backward()
        gradient = leaf.grad if leaf.grad is not None else torch.zeros_like(leaf)
        if maker == me:
            self.add_score(objective.segment, self.party.here(gradient))
        else:
            (gradient,) = self.defended(maker, Kind.OUTPUT_GRAD, objective.name, (gradient,))
            yield self.send(maker, Kind.OUTPUT_GRAD, objective.name, {"h": gradient})

    def is_last(self, segment: str) -> bool:
        """Whether one loss is all that uses the segment's output."""
        return not self.party.topology.users(segment) and len(self.party.topology.scored(segment)) == 1

    def target(self, objective: Objective) -> Tensor:
        if objective.target.startswith(DATA):
            return self.party.column(self.stamp, objective.target.removeprefix(DATA))[self.rows]
        return self.party.target(self.stamp, objective.target)[self.rows]

    def add_score(self, segment: str, gradient: Tensor) -> None:
        held = self.scores.get(segment)
        self.scores[segment] = gradient if held is None else held + gradient

    # backward

    def backward(self) -> Steps:
        topology = self.party.topology
        for objective in topology.objectives:
            maker = topology[objective.segment].role
            if self.party.role == maker != objective.at:
                message = yield from self.receive(objective.at, Kind.OUTPUT_GRAD, objective.name)
                self.returned[objective.name] = self.checked_like(message, self.departed[objective.name], objective.at)
        for segment in reversed(self.party.held):
            yield from self.backward_through(segment)
            for name in segment.sources:
                edge = topology.edge(name, segment.name)
                if edge.crosses:
                    yield from self.return_gradient(edge)

    def backward_through(self, segment: Segment) -> Steps:
        """Run the segment backward once, from all its users' gradients, the latest user first (as autograd would)."""
        roots = _Roots()
        made = self.outputs[segment.name]
        if segment.name in self.scores:
            roots.add(made, (self.scores[segment.name],))
        for objective in self.party.topology.scored(segment.name):
            if objective.name in self.returned:
                roots.add(self.departed[objective.name], self.returned[objective.name])
        for edge in reversed(self.party.topology.users(segment.name)):
            if edge.crosses:
                message = yield from self.receive(edge.user.role, Kind.CUT_GRAD, edge.name)
                left = self.departed[edge.name]
                roots.add(left, self.checked_like(message, left, edge.user.role))
            else:
                roots.add(made, tuple(leaf.grad for leaf in self.leaves[edge.name]))
        for loss in self.losses.get(segment.name, ()):
            roots.start(loss)
        roots.backward()

    def return_gradient(self, edge: Edge) -> Steps:
        """Send back the gradient of the MEAN loss with respect to what came over the cut, row by row."""
        leaves = self.leaves[edge.name]
        gradients = tuple(leaf.grad if leaf.grad is not None else torch.zeros_like(leaf) for leaf in leaves)
        gradients = self.defended(edge.source.role, Kind.CUT_GRAD, edge.name, gradients)
        yield self.send(edge.source.role, Kind.CUT_GRAD, edge.name, named(gradients))

    # messages

    def send(self, role: str, kind: Kind, edge: str, tensors: Mapping[str, Tensor]) -> Send:
        spec = self.party.run.compression(edge)
        codec = spec.codec(kind) if spec is not None else None
        if spec is None or codec is None:
            return self.party.send(self.cast[role], Message(kind, edge, self.stamp, tensors), self.rows)
        made, facts = compressed(codec, spec.keep, tensors)
        return self.party.send(self.cast[role], Message(kind, edge, self.stamp, made, facts), self.rows)

    def receive(self, role: str, kind: Kind, edge: str) -> Generator[Step, Message | None, Message]:
        message = yield Recv(self.cast[role], kind, edge, self.stamp)
        assert message is not None  # a driver answers every Recv with the message it names, or raises
        peer = self.cast[role]
        return self.party.incoming(self.decompressed(self.party.accepted(peer, message), peer), self.rows, peer)

    def decompressed(self, message: Message, peer: str) -> Message:
        """The message as it was before it was made smaller. Raises PeerError unless it was made so as agreed."""
        spec = self.party.run.compression(message.edge)
        codec = spec.codec(message.kind) if spec is not None else None
        if spec is None or codec is None:
            return message
        try:
            check(codec, spec.keep, message.tensors, message.facts)
            tensors = restored(message.tensors, message.facts)
        except ValueError as error:
            raise PeerError(peer, f"{message.kind} on {message.edge!r}: {error}") from None
        return Message(message.kind, message.edge, message.stamp, tensors)

    def defended(self, role: str, kind: Kind, edge: str, tensors: Tensors) -> Tensors:
        """What leaves instead of `tensors`: the party's defenses at this edge."""
        left = tuple(map(self.party.away, tensors))
        return self.party.outgoing(kind, edge, self.stamp, left, self.rows, self.cast[role])

    def check_rows(self, tensor: Tensor, role: str, edge: str) -> None:
        if tensor.ndim == 0 or len(tensor) != len(self.rows):
            expected = f"{len(self.rows)} rows on {edge!r} at step {self.stamp.step}"
            raise PeerError(self.cast[role], f"expected {expected}, got shape {tuple(tensor.shape)}")

    def checked_like(self, message: Message, like: Tensors, role: str) -> Tensors:
        """The message's tensors, which must have the shapes and dtypes of `like`."""
        came = tuple(message.tensors.values())
        if [(t.shape, t.dtype) for t in came] != [(t.shape, t.dtype) for t in like]:
            expected = ", ".join(f"{tuple(t.shape)} {t.dtype}" for t in like)
            got = ", ".join(f"{tuple(t.shape)} {t.dtype}" for t in came) or "nothing"
            raise PeerError(self.cast[role], f"{message.kind} on {message.edge!r}: expected {expected}, got {got}")
        return came


class _Roots:
    """Where a backward pass starts, and with what gradients; gradients of one root are summed in order of coming."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self.gradients: list[Tensor | None] = []  # None: a scalar's own, which is 1

    def start(self, loss: Tensor) -> None:
        if loss.requires_grad:
            self.tensors.append(loss)
            self.gradients.append(None)

    def add(self, tensors: Tensors, gradients: tuple[Tensor | None, ...]) -> None:
        for tensor, gradient in zip(tensors, gradients, strict=True):
            if gradient is None or not tensor.requires_grad:
                continue
            for i, known in enumerate(self.tensors):
                if known is tensor:
                    held = self.gradients[i]
                    self.gradients[i] = gradient if held is None else held + gradient
                    break
            else:
                self.tensors.append(tensor)
                self.gradients.append(gradient)

    def backward(self) -> None:
        if self.tensors:
            torch.autograd.backward(self.tensors, self.gradients)


def merged(segment: Segment, taken: list[Tensors]) -> Tensors:
    """A segment's inputs as one, by its merge; a single input stays as it is, with all its tensors."""
    if len(taken) == 1:
        return taken[0]
    parts = [tensor for tensors in taken for tensor in tensors]
    if segment.merge == "concat":
        return (torch.cat([part.flatten(1) if _uneven(parts) else part for part in parts], dim=1),)
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return (total / len(parts) if segment.merge == "mean" else total,)


def _uneven(parts: list[Tensor]) -> bool:
    """Whether parts can only be concatenated flat: images of different sizes, or images and tables."""
    return len({(part.ndim, part.shape[2:]) for part in parts}) > 1
