"""The run file: what its tables may hold, read from TOML and checked key by key, each error naming key, value and fix.

It knows the form of a run and not whether its parts fit together (`run` does, through `fit`).
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from secsplit.claims import ClaimSpec
from secsplit.compression import CompressionSpec
from secsplit.config import Strict, explain
from secsplit.datasets.spec import DataSpec
from secsplit.defenses import DefenseSpec
from secsplit.errors import RunError, TopologyError, nearest
from secsplit.ledger import BudgetSpec
from secsplit.method import AVERAGED, METHODS, BatchNorm, ClientSide, Hands, Method, Via, Weighting
from secsplit.models.spec import ModelSpec
from secsplit.optimizers import OptimizerSpec
from secsplit.topologies import named
from secsplit.topology import Loss, Merge, Objective, Segment, Topology


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


Device = Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")]


class PartySpec(Strict):
    """One [parties.NAME] table.

    address: "host:port" where it listens; through: parties, neighbour after neighbour, that carry what it exchanges
    with whoever is beyond them, by an onion circuit; data: its own records, on its own disk; budget: its own privacy
    budget.
    """

    role: str
    address: str | None = None
    through: tuple[str, ...] = ()
    data: DataSpec | None = None
    budget: BudgetSpec = BudgetSpec()
    device: Device | None = None  # where it computes; else as [train] says


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
    device: Device = "cpu"  # where parties compute: "cpu", "cuda", "cuda:1", or "auto", a GPU where there is one
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


def read(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The tables of a run file; `overrides` are "a.b=value" with TOML values. Raises RunError."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"{path}: no such run file; expected a TOML file, see the examples folder") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, IsADirectoryError) as error:
        raise RunError(f"{path}: not a TOML run file: {error}") from None
    for text in overrides:
        override(tables, text)
    return tables


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
