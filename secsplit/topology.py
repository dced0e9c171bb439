"""A topology is data: segments of a network, who holds each, what each takes, and who holds the labels.

The vocabulary is that of Vepakomma et al. 2018, "Split learning for health" (arXiv 1812.00564). Nothing here computes,
sends or trains; `party` interprets the graph. Nonsense is refused here, with its reason, before anything runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from typing import Literal

from secsplit.errors import TopologyError, nearest
from secsplit.message import Kind

DATA = "data:"  # prefix of an input or target that is a column of the holder's own records

Merge = Literal["concat", "sum", "mean"]
Loss = Literal["cross_entropy", "binary_cross_entropy", "mse", "l1"]


@dataclass(frozen=True)
class Segment:
    """One piece of the network, held by one role.

    inputs: names of segments, or "data:COLUMN" for a column of the role's own records;
    merge: how several inputs become one: concatenated along dim 1, summed, or averaged.
    """

    name: str
    role: str
    inputs: tuple[str, ...]
    merge: Merge = "concat"

    @property
    def sources(self) -> tuple[str, ...]:
        """The segments among the inputs."""
        return tuple(name for name in self.inputs if not name.startswith(DATA))

    @property
    def columns(self) -> tuple[str, ...]:
        """The data columns among the inputs."""
        return tuple(name.removeprefix(DATA) for name in self.inputs if name.startswith(DATA))


@dataclass(frozen=True)
class Objective:
    """A loss: which segment's output it scores, against what, who holds that, and who computes it.

    target: a label column, or "data:COLUMN" (reconstruction of an input). Unlabelled rows carry the label -1
    (NaN where it is a float) and do not count. weight: factor in the sum of all objectives.
    """

    name: str
    segment: str
    holder: str  # the role that holds the target
    at: str  # the role that computes the loss
    target: str = "y"
    loss: Loss = "cross_entropy"
    weight: float = 1.0


@dataclass(frozen=True)
class Edge:
    """One use of a segment's output by another segment: a cut, where their roles differ."""

    source: Segment
    user: Segment

    @cached_property
    def name(self) -> str:
        return f"{self.source.name}->{self.user.name}"

    @cached_property
    def crosses(self) -> bool:
        return self.source.role != self.user.role


@dataclass(frozen=True)
class Crossing:
    """One kind of message that a topology makes cross from a role to another."""

    kind: Kind
    edge: str
    sender: str
    receiver: str


@dataclass(frozen=True)
class Topology:
    """The graph. Raises TopologyError, with the reason, where it makes no sense."""

    name: str
    segments: tuple[Segment, ...]
    objectives: tuple[Objective, ...]
    about: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        _validate(self)

    @cached_property
    def order(self) -> tuple[Segment, ...]:
        """The segments, each after all it takes; the declared order wherever that already holds."""
        place = {segment.name: index for index, segment in enumerate(self.segments)}
        sorter = TopologicalSorter({segment.name: segment.sources for segment in self.segments})
        sorter.prepare()
        ordered: list[Segment] = []
        ready: list[str] = []
        while sorter.is_active():
            ready = sorted([*ready, *sorter.get_ready()], key=place.__getitem__)
            first = ready.pop(0)
            ordered.append(self[first])
            sorter.done(first)
        return tuple(ordered)

    @cached_property
    def roles(self) -> tuple[str, ...]:
        """Every role, in order of first appearance."""
        named = [segment.role for segment in self.segments]
        named += [role for objective in self.objectives for role in (objective.holder, objective.at)]
        return tuple(dict.fromkeys(named))

    @cached_property
    def edges(self) -> tuple[Edge, ...]:
        """Every edge between segments, in graph order."""
        return tuple(Edge(self[name], segment) for segment in self.order for name in segment.sources)

    def __getitem__(self, name: str) -> Segment:
        for segment in self.segments:
            if segment.name == name:
                return segment
        raise TopologyError(f"no segment {name!r} in topology {self.name!r}; {nearest(name, self.names)}")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(segment.name for segment in self.segments)

    def edge(self, source: str, user: str) -> Edge:
        """The edge between two segments that have one."""
        return self._by_ends[source, user]

    def users(self, name: str) -> tuple[Edge, ...]:
        """The edges that leave segment `name`, in graph order."""
        return self._by_source[name]

    @cached_property
    def _by_ends(self) -> Mapping[tuple[str, str], Edge]:
        return {(edge.source.name, edge.user.name): edge for edge in self.edges}

    @cached_property
    def _by_source(self) -> Mapping[str, tuple[Edge, ...]]:
        return {name: tuple(edge for edge in self.edges if edge.source.name == name) for name in self.names}

    def scored(self, name: str) -> tuple[Objective, ...]:
        """The objectives that score segment `name`."""
        return tuple(objective for objective in self.objectives if objective.segment == name)

    def held(self, role: str) -> tuple[Segment, ...]:
        """The segments that `role` holds, in graph order."""
        return tuple(segment for segment in self.order if segment.role == role)

    @cached_property
    def crossings(self) -> tuple[Crossing, ...]:
        """All that a training step makes cross between roles: who will see what."""
        return tuple(self._crossings())

    def _crossings(self) -> Iterator[Crossing]:
        for edge in self.edges:
            if edge.crosses:
                yield Crossing(Kind.SMASHED, edge.name, edge.source.role, edge.user.role)
                yield Crossing(Kind.CUT_GRAD, edge.name, edge.user.role, edge.source.role)
        for objective in self.objectives:
            maker = self[objective.segment].role
            if maker != objective.at:
                yield Crossing(Kind.OUTPUT, objective.name, maker, objective.at)
                yield Crossing(Kind.OUTPUT_GRAD, objective.name, objective.at, maker)
            if objective.holder != objective.at:
                yield Crossing(Kind.LABELS, objective.name, objective.holder, objective.at)

    @cached_property
    def reconstructions(self) -> frozenset[str]:
        """The objectives whose target is a column of the inputs."""
        return frozenset(o.name for o in self.objectives if o.target.startswith(DATA))

    @cached_property
    def links(self) -> tuple[tuple[str, str], ...]:
        """The pairs of roles that exchange messages, each pair once, in graph order."""
        pairs = [(crossing.sender, crossing.receiver) for crossing in self.crossings]
        return tuple(dict.fromkeys((a, b) if self.roles.index(a) < self.roles.index(b) else (b, a) for a, b in pairs))

    def columns(self, role: str) -> tuple[str, ...]:
        """The data columns that `role` must hold to run its segments and its reconstruction targets."""
        named = [column for segment in self.held(role) for column in segment.columns]
        targets = [
            o.target.removeprefix(DATA) for o in self.objectives if o.holder == role and o.target.startswith(DATA)
        ]
        return tuple(dict.fromkeys([*named, *targets]))

    def labels(self, role: str) -> tuple[str, ...]:
        """The label columns that `role` must hold."""
        held = [o.target for o in self.objectives if o.holder == role and not o.target.startswith(DATA)]
        return tuple(dict.fromkeys(held))


def _validate(topology: Topology) -> None:
    refuse = _Refuse(topology.name)
    if not topology.segments:
        refuse("it has no segment")
    names = [segment.name for segment in topology.segments]
    for name in names:
        if names.count(name) > 1:
            refuse(f"two segments are named {name!r}; give each its own name")
        if ":" in name or "->" in name or not name:
            refuse(f"segment name {name!r} may not be empty or contain ':' or '->'")
    for segment in topology.segments:
        if not segment.role:
            refuse(f"segment {segment.name!r} has no role; say who holds it")
        if not segment.inputs:
            refuse(f"segment {segment.name!r} has no input; give it a segment's name or 'data:COLUMN'")
        if len(set(segment.inputs)) != len(segment.inputs):
            refuse(f"segment {segment.name!r} takes an input twice: {', '.join(segment.inputs)}")
        for source in segment.sources:
            if source not in names:
                refuse(f"segment {segment.name!r} takes {source!r}, which is no segment; {nearest(source, names)}")
        if segment.merge not in ("concat", "sum", "mean"):
            refuse(f"segment {segment.name!r} has merge {segment.merge!r}; expected concat, sum or mean")
    try:
        tuple(TopologicalSorter({s.name: s.sources for s in topology.segments}).static_order())
    except CycleError as error:
        refuse(f"its segments form a cycle: {' -> '.join(reversed(error.args[1]))}; split learning needs a direction")
    _validate_objectives(topology, refuse)


def _validate_objectives(topology: Topology, refuse: _Refuse) -> None:
    if not topology.objectives:
        refuse("it has no objective, so nothing would be trained; say which segment is scored and who holds the labels")
    names = [objective.name for objective in topology.objectives]
    for objective in topology.objectives:
        if names.count(objective.name) > 1:
            refuse(f"two objectives are named {objective.name!r}; give each its own name")
        if objective.segment not in topology.names:
            hint = nearest(objective.segment, topology.names)
            refuse(f"objective {objective.name!r} scores {objective.segment!r}, which is no segment; {hint}")
        if not objective.holder:
            refuse(f"objective {objective.name!r} has labels that nobody holds; name the role that holds them")
        if not objective.at:
            refuse(f"objective {objective.name!r} is computed nowhere; name the role that computes the loss")
        if objective.loss not in ("cross_entropy", "binary_cross_entropy", "mse", "l1"):
            refuse(f"objective {objective.name!r} has loss {objective.loss!r}")
    used = {name for segment in topology.segments for name in segment.sources} | {
        o.segment for o in topology.objectives
    }
    for segment in topology.segments:
        if segment.name not in used:
            refuse(f"segment {segment.name!r} feeds nothing and is scored by nothing; it would never be trained")


class _Refuse:
    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, reason: str) -> None:
        raise TopologyError(f"topology {self.name!r} cannot work: {reason}")
