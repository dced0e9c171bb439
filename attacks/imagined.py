"""The whole network as an adversary imagines it: its own segments as they are, stand-ins for everybody else's.

A party that holds a part of the graph and records of the same domain can train the rest itself, so that its own frozen
part works on the stand-ins' messages as well as on the real ones (Gao and Zhang 2023, and all who followed). Written
over the graph, this serves a server, a U-shape's middle, an intermediate client, a hop, a server of several tasks. It
knows the graph and the shapes of what was seen; what is done with it is the attack's affair.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from attacks import networks
from attacks.base import NotApplicable
from attacks.observed import Observed, joined
from attacks.upstream import Upstream
from secsplit.losses import LOSSES
from secsplit.message import Kind
from secsplit.threat import View
from secsplit.topology import DATA, Objective, Segment
from secsplit.walk import Tensors, merged

Columns = Mapping[str, Tensor]


class Imagined:
    """Stand-ins above every edge on which the coalition receives smashed data, its own segments, stand-ins below.

    Where the architecture of all segments concerned is known, the stand-ins have it; elsewhere one network of our own
    takes their place. `stand_ins` are all that is trained; own segments stay as they are, in evaluation. Raises
    NotApplicable where the coalition holds nothing.
    """

    def __init__(self, view: View, records: Columns, messages: Mapping[str, Observed]) -> None:
        self.view, self.topology = view, view.topology
        self.own = {
            segment.name: view.models[segment.name][-1].make().eval().requires_grad_(False)
            for segment in view.topology.order
            if view.models.get(segment.name)
        }
        if not self.own:
            raise NotApplicable("it holds no segment of its own, and so has nothing to train stand-ins with")
        self.ups = {edge: Upstream(view.topology, edge) for edge in messages}
        self.blanks: dict[str, nn.Module] = {}  # segment -> a stand-in of its own architecture
        self.above: dict[str, nn.Module] = {}  # edge -> one stand-in for all that is above it
        self.tails: dict[str, nn.Module] = {}  # objective -> one stand-in for all that is below
        for edge, up in self.ups.items():
            self._stand_above(up, records, messages[edge].values)
        self.below = {
            segment.name for segment in view.topology.order if segment.name not in self.own and self._feeds(segment)
        }
        for name in self.below & set(view.architecture):
            self.blanks[name] = view.architecture[name]()
        self.objectives = tuple(self._reachable(records))
        self.stand_ins = nn.ModuleList([*self.blanks.values(), *self.above.values(), *self.tails.values()])

    def imagine(self, columns: Columns) -> dict[str, Tensor]:
        """edge -> what the stand-ins above would send there for these records."""
        sent: dict[str, Tensor] = {}
        for edge, up in self.ups.items():
            if edge in self.above:
                sent[edge] = self.above[edge](side_by_side(up, columns))
            else:
                sent[edge] = up.run(self._nets(up), columns)
        return sent

    def follow(self, messages: Mapping[str, Tensor], columns: Columns) -> dict[str, Tensors]:
        """segment -> its output, for the own segments and those below of known architecture, from these messages."""
        outputs: dict[str, Tensors] = {}
        for segment in self.topology.order:
            net = self.own.get(segment.name) or (self.blanks[segment.name] if segment.name in self._drawn else None)
            taken = [_taken(segment, name, messages, outputs, columns) for name in segment.inputs]
            if net is not None and all(part is not None for part in taken):
                made = net(*merged(segment, [part for part in taken if part is not None]))
                outputs[segment.name] = made if isinstance(made, tuple) else (made,)
        return outputs

    def scores(self, objective: Objective, outputs: Mapping[str, Tensors]) -> Tensor:
        """(n, ...): what the objective scores: the real output where it can be had, else a tail's."""
        if objective.segment in outputs:
            return outputs[objective.segment][0]
        return torch.as_tensor(self.tails[objective.name](self._frontier(objective, outputs)))

    def loss(self, columns: Columns, labels: Columns) -> tuple[Tensor, dict[str, Tensor]]:
        """The task's loss on the adversary's own labelled records, and what the stand-ins sent on the way."""
        sent = self.imagine(columns)
        outputs = self.follow(sent, columns)
        total = torch.zeros((), device=next(iter(sent.values())).device)
        for objective in self.objectives:
            score = self.scores(objective, outputs)
            total = total + objective.weight * LOSSES[objective.loss](score, labels[objective.target])
        return total, sent

    def seen_class(self, messages: Mapping[str, Tensor], columns: Columns) -> Tensor:
        """(n,) the class that the network gives those messages by its first objective of classes; 0 without one."""
        for objective in self.objectives:
            if self.view.classes.get(objective.target, 0) > 1:
                scores = self.scores(objective, self.follow(messages, columns))
                return scores.flatten(1).argmax(1) if scores[0].numel() > 1 else (scores.flatten() > 0).long()
        return torch.zeros(len(next(iter(messages.values()))), dtype=torch.int64)

    @property
    def blind(self) -> bool:
        """Whether the task is judged by a stand-in: which class a message belongs to must be found out as well."""
        return any(o.segment not in self.own for o in self.objectives)

    @property
    def _drawn(self) -> set[str]:
        return self.below & set(self.view.architecture)

    def _stand_above(self, up: Upstream, records: Columns, seen: Tensor) -> None:
        unknown = [segment.name for segment in up.segments if segment.name not in self.own]
        if all(name in self.view.architecture for name in unknown):
            for name in unknown:
                if name not in self.blanks:
                    self.blanks[name] = self.view.architecture[name]()
        else:
            record = side_by_side(up, {name: values[:1] for name, values in records.items()}).shape[1:]
            self.above[up.edge] = networks.simulator(record, seen.shape[1:], positive=networks.positive(seen))

    def _nets(self, up: Upstream) -> dict[str, nn.Module]:
        return {s.name: self.own.get(s.name) or self.blanks[s.name] for s in up.segments}

    def _feeds(self, segment: Segment) -> bool:
        """Whether an own segment lies above this one."""
        return any(name in self.own or self._feeds(self.topology[name]) for name in segment.sources)

    def _reachable(self, records: Columns) -> list[Objective]:
        """The objectives that own segments lead to and whose labels the adversary has; tails are made for them."""
        labels = self.view.aux.labels if self.view.aux is not None else {}
        few = {name: values[:2] for name, values in records.items()}
        with torch.no_grad():
            outputs = self.follow(self.imagine(few), few)
        found = []
        for o in self.topology.objectives:
            if o.target not in labels or not (o.segment in self.own or o.segment in self.below):
                continue
            if o.segment not in outputs:
                width = self._frontier(o, outputs).shape[1:]
                self.tails[o.name] = networks.tail(width, max(1, self.view.classes.get(o.target, 0)))
            found.append(o)
        return found

    def _frontier(self, objective: Objective, outputs: Mapping[str, Tensors]) -> Tensor:
        """(n, width): all that is known on the way to the objective, where the known part of the graph ends."""
        names: list[str] = []
        waiting = [objective.segment]
        while waiting:
            for source in self.topology[waiting.pop()].sources:
                (names if source in outputs else waiting).append(source)
        return torch.cat([joined(outputs[name]).flatten(1) for name in dict.fromkeys(names)], 1)


def received_edges(view: View) -> tuple[str, ...]:
    """The edges on which smashed data came to the coalition from outside it."""
    mine = set(view.roles)
    return tuple(
        edge.name
        for edge in view.topology.edges
        if edge.user.role in mine and edge.source.role not in mine and edge.name in view.edges(Kind.SMASHED)
    )


def side_by_side(up: Upstream, columns: Columns) -> Tensor:
    """The columns above an edge as one record each: along dim 1 where their shapes allow, else flat."""
    parts = [columns[name] for name in up.columns]
    if len({part.shape[2:] for part in parts}) > 1 or parts[0].ndim == 2:
        parts = [part.flatten(1) for part in parts]
    return torch.cat(parts, 1)


def _taken(
    segment: Segment, name: str, messages: Mapping[str, Tensor], outputs: Mapping[str, Tensors], columns: Columns
) -> Tensors | None:
    """One input of a segment, or None where it cannot be had."""
    if name.startswith(DATA):
        column = columns.get(name.removeprefix(DATA))
        return None if column is None else (column,)
    edge = f"{name}->{segment.name}"
    return (messages[edge],) if edge in messages else outputs.get(name)
