"""A run: all that the parties agree on, from a run file or made in Python, checked before anything moves.

The same file serves simulation, processes on one machine, and parties on several hosts. `Run.digest()` covers
everything on which two parties could disagree to harm; addresses, local paths and audits are each site's own.
"""

from __future__ import annotations

import json
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from itertools import combinations
from pathlib import Path
from typing import Any

from secsplit.compression import CompressionSpec
from secsplit.errors import RunError
from secsplit.fit import refuse_misfits
from secsplit.message import Kind
from secsplit.method import AGGREGATOR, AVERAGED, Method
from secsplit.optimizers import OptimizerSpec
from secsplit.runfile import RunFile, parse, read
from secsplit.schedule import Schedule, Split
from secsplit.topology import Topology

PROTOCOL = 1  # raised whenever two versions could misunderstand each other


AGREED = ("topology", "method", "model", "optimizer", "optimizers", "train", "data", "form", "defenses", "compression")
LOCAL = {
    "data": {"path", "download", "id_key", "common", "table", "masks"},
    "train": {"threads", "record", "heartbeat", "start", "device"},
}


@dataclass(frozen=True)
class Run:
    """A checked run. `casts`: each a mapping role -> party; a cohort's clients have one cast each."""

    file: RunFile
    topology: Topology
    method: Method

    @classmethod
    def of(cls, file: RunFile, topology: Topology | None = None) -> Run:
        """Check that everything fits together. Raises RunError with the key and the reason."""
        run = cls(file, topology or file.topology.build(), file.method.build())
        refuse_misfits(run)
        return run

    @cached_property
    def casts(self) -> tuple[Mapping[str, str], ...]:
        cohorts = {role: self.parties(role) for role in self.topology.roles}
        size = max(len(parties) for parties in cohorts.values())
        return tuple({role: ps[i] if len(ps) > 1 else ps[0] for role, ps in cohorts.items()} for i in range(size))

    def parties(self, role: str) -> tuple[str, ...]:
        """The parties that play `role`, in the file's order."""
        return tuple(name for name, party in self.file.parties.items() if party.role == role)

    @property
    def cohort_roles(self) -> tuple[str, ...]:
        """The roles that several parties share; they take turns."""
        return tuple(role for role in self.topology.roles if len(self.parties(role)) > 1)

    def casts_of(self, party: str) -> tuple[int, ...]:
        """The casts in which `party` takes part."""
        return tuple(i for i, cast in enumerate(self.casts) if party in cast.values())

    @cached_property
    def aggregator(self) -> str | None:
        """Who averages the cohort's weights or gradients: the party with that role, else the only server."""
        if self.method.client_side not in AVERAGED or len(self.casts) == 1:
            return None
        alone = [p for role in (AGGREGATOR, *self.topology.roles) for p in self.parties(role)[:1] if self.shared(role)]
        return alone[0] if len(alone) == 1 or self.parties(AGGREGATOR) else None

    def compression(self, edge: str) -> CompressionSpec | None:
        """How what crosses an edge is made smaller; None where it crosses as it is."""
        return self._compression.get(edge)

    @cached_property
    def _compression(self) -> Mapping[str, CompressionSpec]:
        every = [edge.name for edge in self.topology.edges if edge.crosses]
        return {edge: spec for spec in self.file.compression for edge in (every if spec.edge == "*" else [spec.edge])}

    def carrier(self, role: str) -> str | None:
        """Who carries the weights of a cohort's role from client to client, sealed; None where they go by themselves.

        The party, one for all casts, that all who play the role exchange messages with anyway.
        """
        if self.method.client_side != "handed-over" or self.method.via != "server" or self.shared(role):
            return None
        beside = [b if a == role else a for a, b in self.topology.links if role in (a, b)]
        return next((self.parties(other)[0] for other in beside if self.shared(other)), None)

    def shared(self, role: str) -> bool:
        """Whether one party plays `role` for all casts."""
        return role not in self.cohort_roles

    @cached_property
    def links(self) -> tuple[tuple[str, str], ...]:
        """The pairs of parties that exchange messages, each pair once."""
        pairs = [(cast[a], cast[b]) for cast in self.casts for a, b in self.topology.links]
        for idle in self.parties(AGGREGATOR) if len(self.casts) == 1 else ():  # nothing to average, but it belongs
            pairs += [(next(iter(self.casts[0].values())), idle)] if AGGREGATOR not in self.topology.roles else []
        if self.file.train.purpose == "predict":  # the answer goes to whoever would hold the labels
            makers = {o.holder: self.topology[o.segment].role for o in self.topology.objectives}
            pairs += [
                (cast[maker], cast[asker]) for cast in self.casts for asker, maker in makers.items() if maker != asker
            ]
        for role in self.cohort_roles:
            if self.method.client_side == "handed-over" and self.method.via == "peer":
                pairs += combinations(self.parties(role), 2)  # whoever has a batch next may be any of them
            elif self.aggregator is not None:
                pairs += [(party, self.aggregator) for party in self.parties(role)]
        kept: dict[frozenset[str], tuple[str, str]] = {}
        for pair in pairs:
            kept.setdefault(frozenset(pair), pair)
        return tuple(kept.values())

    def circuit(self, a: str, b: str) -> tuple[str, ...]:
        """The parties along the onion circuit that carries a link, the one that dials first; none for a direct link."""
        for one, other in ((a, b), (b, a)):
            through = self.file.parties[one].through
            if through and other not in through:
                return (one, *through, other)
        return ()

    def peers(self, party: str) -> tuple[str, ...]:
        """Everyone `party` has a link with."""
        return self._neighbours.get(party, ())

    @cached_property
    def _neighbours(self) -> Mapping[str, tuple[str, ...]]:
        return _neighbours(self.links)

    @cached_property
    def tree(self) -> tuple[tuple[str, str], ...]:
        """Links that span all parties, breadth first from the one with most: what is told to all travels along them."""
        names = list(self.file.parties)
        root = max(names, key=lambda name: (len(self.peers(name)), -names.index(name)))
        reached, edges = {root}, []
        queue = deque([root])
        while queue:
            here = queue.popleft()
            for peer in self.peers(here):
                if peer not in reached:
                    reached.add(peer)
                    edges.append((here, peer))
                    queue.append(peer)
        return tuple(edges)

    def near(self, party: str) -> tuple[str, ...]:
        """The party's neighbours in the tree."""
        return self._near.get(party, ())

    @cached_property
    def _near(self) -> Mapping[str, tuple[str, ...]]:
        return _neighbours(self.tree)

    def above(self, party: str) -> str | None:
        """The party's parent in the tree; None for the root."""
        return self._above.get(party)

    def below(self, party: str) -> tuple[str, ...]:
        """The party's children in the tree."""
        return tuple(peer for peer in self.near(party) if peer != self.above(party))

    @cached_property
    def _above(self) -> Mapping[str, str]:
        return {child: parent for parent, child in self.tree}

    @cached_property
    def breadth(self) -> int:
        """How many hops something told along the tree needs from one end to the other."""
        deep: dict[str, int] = {}
        longest = 0
        for parent, child in reversed(self.tree):
            down = deep.get(child, 0) + 1
            longest = max(longest, deep.get(parent, 0) + down)
            deep[parent] = max(deep.get(parent, 0), down)
        return longest

    def agreed(self) -> dict[str, Any]:
        """All that the parties must agree on, as plain values."""
        tables = self.file.model_dump(mode="json", include=set(AGREED))
        for table, keys in LOCAL.items():
            for key in keys:
                tables[table].pop(key, None)
        graph = {
            "segments": [[s.name, s.role, list(s.inputs), s.merge] for s in self.topology.segments],
            "objectives": [
                [o.name, o.segment, o.holder, o.at, o.target, o.loss, o.weight] for o in self.topology.objectives
            ],
        }
        roles = {name: party.role for name, party in self.file.parties.items()}
        circuits = {name: list(party.through) for name, party in self.file.parties.items() if party.through}
        agreed = {"protocol": PROTOCOL, **tables, "graph": graph, "parties": roles}
        return {**agreed, "circuits": circuits} if circuits else agreed

    def schedule(self, sizes: Mapping[int, Mapping[Split, int]]) -> Schedule:
        """The events of this run, for that census; one and the same for all parties of a simulation."""
        train = self.file.train
        for known in self._schedules:
            if known.sizes == sizes:
                return known
        self._schedules.append(
            Schedule(
                self.method, sizes, train.epochs, train.batch_size, train.seed, train.evaluate_every, train.save_every
            )
        )
        return self._schedules[-1]

    @cached_property
    def _schedules(self) -> list[Schedule]:
        return []

    def optimizer(self, role: str) -> OptimizerSpec:
        """The optimizer of that role's segments."""
        return self.file.optimizers.get(role, self.file.optimizer)

    def digest(self) -> bytes:
        """32 bytes over `agreed()`; two sides whose digests differ cannot connect."""
        text = json.dumps(self.agreed(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return blake2b(text.encode(), digest_size=32, person=b"secsplit/run").digest()


def load(path: Path | str, overrides: Sequence[str] = ()) -> Run:
    """Read a run file; `overrides` are "a.b=value" with TOML values. Raises RunError naming file, key, value, fix."""
    path = Path(path)
    tables = read(path, overrides)
    try:
        return Run.of(parse(tables))
    except RunError as error:
        raise type(error)(f"{path}: {error}") from None


def _neighbours(links: Iterable[tuple[str, str]]) -> Mapping[str, tuple[str, ...]]:
    found: dict[str, list[str]] = defaultdict(list)
    for a, b in links:
        found[a].append(b)
        found[b].append(a)
    return {name: tuple(peers) for name, peers in found.items()}


def crossing_kinds(run: Run, party: str) -> frozenset[Kind]:
    """The kinds of messages that `party` may ever be sent."""
    role = run.file.parties[party].role
    return frozenset(c.kind for c in run.topology.crossings if c.receiver == role) | {Kind.CONTROL, Kind.WEIGHTS}
