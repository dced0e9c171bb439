"""A run: all that the parties agree on, read from a TOML file or made in Python, checked before anything moves.

The same file serves simulation, processes on one machine, and parties on several hosts. `Run.digest()` covers
everything on which two parties could disagree to harm; addresses, local paths and audits are each site's own.
"""

from __future__ import annotations

import json
import tomllib
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b
from itertools import combinations
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from secsplit.claims import ClaimSpec
from secsplit.compression import CompressionSpec
from secsplit.config import Strict, explain
from secsplit.datasets.spec import DataSpec
from secsplit.defenses import DefenseSpec, check
from secsplit.errors import RunError, TopologyError, nearest
from secsplit.ledger import BudgetSpec
from secsplit.message import Kind
from secsplit.method import METHODS, BatchNorm, ClientSide, Hands, Method, Via, Weighting
from secsplit.models.spec import ModelSpec
from secsplit.optimizers import OptimizerSpec, optimizer_of, rates_of
from secsplit.schedule import Schedule, Split
from secsplit.topologies import named
from secsplit.topology import Loss, Merge, Objective, Segment, Topology

AGGREGATOR = "aggregator"  # the role of a party that only averages; else the only server does
AVERAGED = ("averaged", "gradients-averaged")
PROTOCOL = 1  # raised whenever two versions could misunderstand each other


class SegmentSpec(Strict):
    """One [[topology.segments]] table."""

    name: str
    role: str
    inputs: tuple[str, ...]
    merge: Merge = "concat"


class ObjectiveSpec(Strict):
    """One [[topology.objectives]] table."""

    name: str = "loss"
    segment: str
    holder: str
    at: str
    target: str = "y"
    loss: Loss = "cross_entropy"
    weight: float = 1.0


class TopologySpec(Strict):
    """The [topology] table: a known name with its options, or a graph of one's own."""

    name: str = "vanilla"
    labels: str | None = None
    modalities: tuple[str, ...] | None = None
    clients: int | None = None
    hops: int | None = None
    tasks: tuple[str, ...] | None = None
    loss: Loss | None = None
    segments: tuple[SegmentSpec, ...] = ()
    objectives: tuple[ObjectiveSpec, ...] = ()

    def build(self) -> Topology:
        """The graph. Raises TopologyError where it makes no sense."""
        options = self.model_dump(exclude={"name", "segments", "objectives"}, exclude_none=True)
        if not self.segments:
            return named(self.name, **options)
        if options:
            raise TopologyError(f"topology.{next(iter(options))}: not for a graph of one's own; leave it out")
        segments = tuple(Segment(s.name, s.role, s.inputs, s.merge) for s in self.segments)
        objectives = tuple(Objective(**o.model_dump()) for o in self.objectives)
        return Topology(self.name, segments, objectives)


class MethodSpec(Strict):
    """The [method] table."""

    name: str = "sl-am"
    client_side: ClientSide | None = None  # e.g. "unique": each client keeps its own instead of handing over
    fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    local_epochs: Annotated[int, Field(ge=1)] | None = None
    in_flight: Annotated[int, Field(ge=1)] | None = None
    weighting: Weighting | None = None
    batch_norm: BatchNorm | None = None
    via: Via | None = None
    hands: Hands | None = None

    def build(self) -> Method:
        """The method with these options. Raises RunError for an option that means nothing to it."""
        if self.name not in METHODS:
            raise RunError(f"method.name: unknown method {self.name!r}; {nearest(self.name, METHODS)}")
        options = self.model_dump(exclude={"name"}, exclude_none=True)
        method = replace(METHODS[self.name], **options)
        for option, (sense, why) in _OPTIONS.items():
            if option in options and not sense(method):
                raise RunError(f"method.{option}: means nothing to {self.name!r} {why}; leave it out")
        return method


_OPTIONS: Mapping[str, tuple[Callable[[Method], bool], str]] = MappingProxyType(
    {
        "local_epochs": (lambda m: m.averages, "here, which averages no weights"),
        "weighting": (lambda m: m.averages, "here, which averages no weights"),
        "batch_norm": (lambda m: m.client_side in AVERAGED, "here, whose clients' weights are not averaged"),
        "in_flight": (lambda m: m.order in ("parallel", "random-sequence"), "whose order leaves no choice"),
        "via": (lambda m: m.client_side == "handed-over", "here, which hands no weights over"),
        "hands": (lambda m: m.client_side == "handed-over", "here, which hands no weights over"),
    }
)


class PartySpec(Strict):
    """One [parties.NAME] table.

    address: "host:port" where it listens; data: its own records, on its own disk; budget: its own privacy budget.
    """

    role: str
    address: str | None = None
    data: DataSpec | None = None
    budget: BudgetSpec = BudgetSpec()


class FormSpec(Strict):
    """The [form] table: what one record looks like, for parties that hold no data from which it could be read.

    shapes: data column -> shape of one record; classes: label column -> number of classes (0: regression).
    """

    shapes: dict[str, tuple[int, ...]] = {}
    classes: dict[str, int] = {}


class TrainSpec(Strict):
    """The [train] table.

    purpose: "predict" lets a trained network answer for the test records instead of training; start: the folder of a
    finished run, on this host, whose last weights the party begins with.
    """

    purpose: Literal["train", "predict"] = "train"
    start: str | None = None
    seed: int = 0
    epochs: Annotated[int, Field(ge=1)] = 1
    batch_size: Annotated[int, Field(ge=1)] = 64
    micro_batches: Annotated[int, Field(ge=1)] = 1
    evaluate_every: Annotated[int, Field(ge=0)] = 1
    staleness: Annotated[int, Field(ge=0)] = 0  # turns that may begin before an earlier one's gradient is back: inexact
    save_every: Annotated[int, Field(ge=0)] = 0  # turns between checkpoints; one is made at every round's end besides
    threads: Annotated[int, Field(ge=1)] = 1
    record: Literal["all", "off"] | Annotated[int, Field(ge=1)] = "all"
    heartbeat: Annotated[float, Field(gt=0)] = 5.0  # seconds without a sign of life before a peer is given up


class RunFile(Strict):
    """A run file. [audit] and [grid] belong to the floor above and are checked there."""

    name: str = "run"
    topology: TopologySpec = TopologySpec()
    method: MethodSpec = MethodSpec()
    model: ModelSpec = ModelSpec()
    optimizer: OptimizerSpec = OptimizerSpec()
    optimizers: dict[str, OptimizerSpec] = Field(default={})  # by role, where one differs
    train: TrainSpec = TrainSpec()
    data: DataSpec = DataSpec()
    form: FormSpec = FormSpec()
    defenses: tuple[DefenseSpec, ...] = ()
    compression: tuple[CompressionSpec, ...] = ()
    claims: tuple[ClaimSpec, ...] = ()  # what a report would say; judged by `secsplit check`
    parties: dict[str, PartySpec]
    audit: dict[str, Any] = Field(default={})
    grid: dict[str, Any] = Field(default={})


AGREED = ("topology", "method", "model", "optimizer", "optimizers", "train", "data", "form", "defenses", "compression")
LOCAL = {"data": {"path", "download", "id_key", "table", "masks"}, "train": {"threads", "record", "heartbeat", "start"}}


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
        _check_parties(run)
        _check_method(run)
        _check_compression(run)
        _check_columns(run)
        check(run.file.defenses, run.topology, micro_batches=run.file.train.micro_batches)
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
        return {"protocol": PROTOCOL, **tables, "graph": graph, "parties": roles}

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
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"{path}: no such run file; expected a TOML file, see the examples folder") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, IsADirectoryError) as error:
        raise RunError(f"{path}: not a TOML run file: {error}") from None
    for text in overrides:
        override(tables, text)
    try:
        return Run.of(parse(tables))
    except RunError as error:
        raise type(error)(f"{path}: {error}") from None


def parse(tables: Mapping[str, Any]) -> RunFile:
    """Check tables against the run file's form. Raises RunError naming each wrong key, its value and the fix."""
    try:
        return RunFile.model_validate(tables)
    except ValidationError as error:
        raise RunError("\n".join(explain(RunFile, problem, tables) for problem in error.errors())) from None


def override(tables: dict[str, Any], text: str) -> None:
    """Set one key of a run file's tables by "a.b=value". Raises RunError where it is not of that form."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise RunError(f"--set {text!r}: expected KEY.KEY=VALUE, for example train.epochs=3")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value
    *tables_on_the_way, last = key.strip().split(".")
    for name in tables_on_the_way:
        tables = tables.setdefault(name, {})
        if not isinstance(tables, dict):
            raise RunError(f"--set {text!r}: {name!r} is not a table")
    tables[last] = parsed


def _neighbours(links: Iterable[tuple[str, str]]) -> Mapping[str, tuple[str, ...]]:
    found: dict[str, list[str]] = defaultdict(list)
    for a, b in links:
        found[a].append(b)
        found[b].append(a)
    return {name: tuple(peers) for name, peers in found.items()}


def _check_parties(run: Run) -> None:
    roles = run.topology.roles
    averaged = run.method.client_side in AVERAGED
    for name, party in run.file.parties.items():
        if party.role == AGGREGATOR and averaged and AGGREGATOR not in roles:
            continue
        if party.role not in roles:
            raise RunError(
                f"parties.{name}.role: {party.role!r} is no role of topology {run.topology.name!r}; "
                f"{nearest(party.role, roles)}"
            )
    if len(run.parties(AGGREGATOR)) > 1 and AGGREGATOR not in roles:
        raise RunError(f"parties: {len(run.parties(AGGREGATOR))} play {AGGREGATOR!r}; one averages")
    for role in roles:
        if not run.parties(role):
            raise RunError(
                f"parties: nobody plays role {role!r} of topology {run.topology.name!r}; add a party with it"
            )
    sizes = {role: len(run.parties(role)) for role in roles if len(run.parties(role)) > 1}
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{role}: {n}" for role, n in sizes.items())
        raise RunError(f"parties: roles shared by several parties need the same number of them, got {listed}")


def _check_method(run: Run) -> None:
    cut = any(edge.crosses for edge in run.topology.edges)
    if run.method.server_side == "none" and cut:
        raise RunError(
            f"method.name: {run.method.name!r} trains a network without a cut, and topology {run.topology.name!r} has "
            "cuts; use topology 'whole', or a split method"
        )
    if run.method.server_side != "none" and not run.topology.crossings:
        raise RunError(f"topology.name: {run.topology.name!r} has no cut; use method 'federated' or 'large-batch'")
    if run.method.client_side in AVERAGED and len(run.casts) > 1 and run.aggregator is None:
        raise RunError(
            f"parties: method {run.method.name!r} averages what clients trained, and it is not clear who does that; "
            f'add one party with role = "{AGGREGATOR}"'
        )
    for role in run.cohort_roles if run.method.via == "server" else ():
        if run.carrier(role) is None:
            raise RunError(
                f"method.via: no single party exchanges messages with all who play {role!r}; use via = 'peer'"
            )
    for role in run.file.optimizers:
        if role not in run.topology.roles:
            raise RunError(f"optimizers.{role}: no role of this topology; {nearest(role, run.topology.roles)}")
    specs = {"optimizer": run.file.optimizer} | {f"optimizers.{r}": spec for r, spec in run.file.optimizers.items()}
    for where, spec in specs.items():
        optimizer_of(spec, where=where)
        rates_of(spec, run.file.train.epochs, where=where)


def _check_compression(run: Run) -> None:
    cuts = [edge.name for edge in run.topology.edges if edge.crosses]
    for place, spec in enumerate(run.file.compression):
        if spec.edge != "*" and spec.edge not in cuts:
            raise RunError(f"compression.{place}.edge: {spec.edge!r} is no cut here; {nearest(spec.edge, cuts)}")


def _check_columns(run: Run) -> None:
    for role in run.topology.roles:
        for party in run.parties(role):
            spec = run.file.parties[party].data or run.file.data
            where = f"parties.{party}.data" if run.file.parties[party].data else "data"
            for column in run.topology.columns(role):
                if column not in spec.modalities:
                    raise RunError(
                        f"{where}.modalities: role {role!r} needs input column {column!r}, which is not declared; "
                        f"{nearest(column, spec.modalities)}"
                    )
            for column in run.topology.labels(role):
                if column not in spec.labels:
                    raise RunError(
                        f"{where}.labels: role {role!r} needs label column {column!r}, which is not declared; "
                        f"{nearest(column, spec.labels)}"
                    )


def crossing_kinds(run: Run, party: str) -> frozenset[Kind]:
    """The kinds of messages that `party` may ever be sent."""
    role = run.file.parties[party].role
    return frozenset(c.kind for c in run.topology.crossings if c.receiver == role) | {Kind.CONTROL, Kind.WEIGHTS}
