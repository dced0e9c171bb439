"""The private part of the graph: the segments that turn private columns into the messages on one edge.

An attack on inputs sees what crosses an edge and asks what went into it. In a plain split that is one segment; at the
end of a chain, or behind an intermediate client, it is several, of which the coalition may hold some itself. This file
knows the graph and runs it; whose networks stand for the segments is the attack's affair.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor, nn

from attacks.base import NotApplicable
from attacks.observed import joined
from secsplit.message import Kind
from secsplit.threat import Knows, Threat, View
from secsplit.topology import DATA, Segment, Topology
from secsplit.walk import Tensors, merged

Network = Callable[..., Tensor | Tensors]


@dataclass(frozen=True)
class Upstream:
    """The segments above `edge` (a name "source->user") in graph order, ending with the edge's source."""

    topology: Topology
    edge: str

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        wanted = {self.edge.split("->")[0]}
        for segment in reversed(self.topology.order):
            if segment.name in wanted:
                wanted.update(segment.sources)
        return tuple(s for s in self.topology.order if s.name in wanted)

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The data columns that go in."""
        return tuple(dict.fromkeys(column for segment in self.segments for column in segment.columns))

    def run(self, networks: Mapping[str, Network], columns: Mapping[str, Tensor]) -> Tensor:
        """What crosses the edge for these columns. networks: segment -> its network, for every segment above.

        Gradients flow. A cut crossed by several tensors gives them flattened, side by side, as `observed` reads them.
        """
        outputs: dict[str, Tensors] = {}
        for segment in self.segments:
            taken = [(columns[n.removeprefix(DATA)],) if n.startswith(DATA) else outputs[n] for n in segment.inputs]
            made = networks[segment.name](*merged(segment, taken))
            outputs[segment.name] = made if isinstance(made, tuple) else (made,)
        return joined(outputs[self.segments[-1].name])


def above(view: View, *, edge: str | None = None, kind: Kind = Kind.SMASHED) -> Upstream:
    """The private part above `edge`, or above the shallowest edge on which the coalition receives such messages.

    What comes from the coalition's own roles comes last: a colluding client's records are no secret to it.

    Raises NotApplicable where it receives none, or none on the edge asked for.
    """
    edges = view.edges(kind)
    if not edges:
        raise NotApplicable(f"{' + '.join(view.roles) or 'a wiretap'} was sent no {kind} message")
    if edge is not None and edge not in edges:
        raise NotApplicable(f"no {kind} message on edge {edge!r}; there are some on {', '.join(edges)}")
    strange = [name for name in edges if view.topology[name.split("->")[0]].role not in view.roles]
    ups = [Upstream(view.topology, name) for name in ([edge] if edge else strange or edges)]
    return min(ups, key=lambda up: len(up.segments))


def column_of(up: Upstream, column: str | None) -> str:
    """The column to reconstruct: the one asked for, or the first. Raises NotApplicable where it does not go in."""
    if column is not None and column not in up.columns:
        raise NotApplicable(f"column {column!r} does not go into {up.edge!r}; these do: {', '.join(up.columns)}")
    return column or up.columns[0]


def known_networks(view: View, up: Upstream, *, query: bool = True) -> dict[str, Network]:
    """segment -> network, for those above that the coalition holds, knows or was sent the weights of, or may query.

    query: whether those that can only be queried are among them.
    """
    known: dict[str, Network] = {}
    for segment in up.segments:
        if view.models.get(segment.name):
            known[segment.name] = view.models[segment.name][-1].make().eval().requires_grad_(False)
        elif segment.name in view.weights:
            known[segment.name] = view.weights[segment.name]().eval().requires_grad_(False)
        elif (given := given_weights(view, segment)) is not None:
            known[segment.name] = given
        elif query and segment.name in view.query:
            known[segment.name] = view.query[segment.name]
    return known


def given_weights(view: View, segment: Segment) -> nn.Module | None:
    """A segment with the last weights that a client gave to be averaged or handed over; None where none were seen."""
    if segment.name not in view.architecture:
        return None
    net, prefix = view.architecture[segment.name]().eval().requires_grad_(False), f"{segment.name}."
    last: dict[str, Tensor] = {}
    for record in view.records(Kind.WEIGHTS, edge=segment.role):
        if any(name.startswith(prefix) for name in record.shapes):
            last = dict(record.tensors)
    weights = {name.removeprefix(prefix): t for name, t in last.items() if name.startswith(prefix)}
    if weights.keys() != net.state_dict().keys():
        return None
    net.load_state_dict(weights)
    return net


def network_missing(topology: Topology, threat: Threat, grants: set[Knows]) -> str | None:
    """Why the adversary cannot run the segments above an edge: no such grant, and it does not hold them all itself."""
    if grants & threat.knows or held_above(topology, threat):
        return None
    if Knows.ARCHITECTURE in threat.knows:
        return None  # a method may have clients send their weights: the messages will tell
    wanted = " or ".join(repr(str(known)) for known in sorted(grants))
    return f"it needs {wanted} of the segments above, which {threat.name!r} does not have"


def held_above(topology: Topology, threat: Threat) -> bool:
    """Whether the coalition itself holds every segment above some edge on which it receives smashed data."""
    return any(
        all(segment.role in threat.who for segment in Upstream(topology, c.edge).segments)
        for c in topology.crossings
        if c.kind is Kind.SMASHED and c.receiver in threat.who
    )
