"""A run: all that the parties agree on, read from a TOML file or made in Python, checked before anything moves.

The same file serves simulation, processes on one machine, and parties on several hosts. `Run.digest()` covers
everything on which two parties could disagree to harm; addresses, local paths and audits are each site's own.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from secsplit.config import Strict, explain
from secsplit.datasets.spec import DataSpec
from secsplit.defenses import DefenseSpec, check
from secsplit.errors import RunError, TopologyError, nearest
from secsplit.ledger import BudgetSpec
from secsplit.message import Kind
from secsplit.method import METHODS, ClientSide, Method
from secsplit.models.spec import ModelSpec
from secsplit.schedule import Schedule, Split
from secsplit.topologies import named
from secsplit.topology import Loss, Merge, Objective, Segment, Topology

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

    def build(self) -> Method:
        if self.name not in METHODS:
            raise RunError(f"method.name: unknown method {self.name!r}; {nearest(self.name, METHODS)}")
        method = METHODS[self.name]
        return replace(method, client_side=self.client_side) if self.client_side else method


class OptimizerSpec(Strict):
    """The [optimizer] table: a torch optimizer by name, and its options."""

    name: Literal["adam", "adamw", "sgd", "rmsprop", "adagrad"] = "adam"
    lr: Annotated[float, Field(gt=0)] = 1e-3
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    betas: tuple[float, float] | None = None


class PartySpec(Strict):
    """One [parties.NAME] table.

    address: "host:port" where it listens; data: its own records, on its own disk; budget: its own privacy budget.
    """

    role: str
    address: str | None = None
    data: DataSpec | None = None
    budget: BudgetSpec = BudgetSpec()


class TrainSpec(Strict):
    """The [train] table."""

    seed: int = 0
    epochs: Annotated[int, Field(ge=1)] = 1
    batch_size: Annotated[int, Field(ge=1)] = 64
    micro_batches: Annotated[int, Field(ge=1)] = 1
    evaluate_every: Annotated[int, Field(ge=0)] = 1
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
    train: TrainSpec = TrainSpec()
    data: DataSpec = DataSpec()
    defenses: tuple[DefenseSpec, ...] = ()
    parties: dict[str, PartySpec]
    audit: dict[str, Any] = {}
    grid: dict[str, Any] = {}


AGREED = ("topology", "method", "model", "optimizer", "train", "data", "defenses")
LOCAL = {"data": {"path", "download", "id_key", "table", "masks"}, "train": {"threads", "record", "heartbeat"}}


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
    def links(self) -> tuple[tuple[str, str], ...]:
        """The pairs of parties that exchange messages, each pair once."""
        pairs = [(cast[a], cast[b]) for cast in self.casts for a, b in self.topology.links]
        if self.method.client_side == "handed-over":
            for role in self.cohort_roles:
                cohort = self.parties(role)
                pairs += pairwise(cohort)
                pairs += [(cohort[0], cohort[-1])] if cohort[2:] else []
        return tuple(dict.fromkeys(pairs))

    def peers(self, party: str) -> tuple[str, ...]:
        """Everyone `party` has a link with."""
        return tuple(dict.fromkeys(b if a == party else a for a, b in self.links if party in (a, b)))

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
        """The events of this run, for that census."""
        train = self.file.train
        return Schedule(self.method, sizes, train.epochs, train.batch_size, train.seed, train.evaluate_every)

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
    for override in overrides:
        _override(tables, override)
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


def _override(tables: dict[str, Any], text: str) -> None:
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


def _check_parties(run: Run) -> None:
    roles = run.topology.roles
    for name, party in run.file.parties.items():
        if party.role not in roles:
            raise RunError(
                f"parties.{name}.role: {party.role!r} is no role of topology {run.topology.name!r}; "
                f"{nearest(party.role, roles)}"
            )
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
