"""What a run file says about a defense: a strict table, and which role it binds.

Every [[defenses]] table is one `Spec`; `kind` picks which. All parties agree on the specs (they enter the run's
digest), and each party builds only those of its own role.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from secsplit.accounting import Charge
from secsplit.defenses.base import Defense, Guarantee
from secsplit.defenses.noise import Noise
from secsplit.errors import RunError, nearest
from secsplit.message import Kind
from secsplit.topology import Crossing, Topology

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]  # `true` is no sigma of 1
Fraction = Annotated[float, Field(gt=0, lt=1)]
Tensorial = Literal["smashed", "cut-grad", "output", "output-grad"]  # the kinds of messages a mechanism may act on


class Spec(BaseModel):
    """One [[defenses]] table. Subclasses say `kind`, their parameters, whom they bind and what is proven of them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    guarantee: ClassVar[Guarantee]
    paper: ClassVar[str]
    about: ClassVar[str]

    kind: str

    @abstractmethod
    def role(self, topology: Topology) -> str:
        """The role that applies it. Raises RunError where the topology has no place for it."""

    @abstractmethod
    def build(self, noise: Noise, classes: Mapping[str, int]) -> Defense:
        """The defense itself. classes: label column -> number of classes (0: regression)."""

    def bounds(self, kind: Kind, edge: str, *, training: bool = True) -> tuple[Charge, ...]:
        """What it proves about one such message, given the weights; empty where it proves nothing."""
        del kind, edge, training
        return ()

    def updates(self, segment: str) -> tuple[Charge, ...]:
        """What it proves about one optimizer step of a segment; empty where it proves nothing."""
        del segment
        return ()

    def freezes(self, segment: str) -> bool:
        """Whether it keeps a segment from learning."""
        del segment
        return False

    def fits(self, topology: Topology, specs: Sequence[Spec], micro_batches: int) -> None:
        """Raises RunError where it contradicts the rest of the run."""
        del topology, specs, micro_batches

    def crossing(self, topology: Topology) -> Crossing | None:
        """The crossing it acts on; None where it acts on a segment, or on labels before anything is sent."""
        del topology
        return None


class AtCrossing(Spec):
    """A defense that changes one kind of message on one edge (or objective, for outputs and labels)."""

    edge: str
    message: Tensorial = "smashed"

    def crossing(self, topology: Topology) -> Crossing:
        kind = Kind(self.message)
        for crossing in topology.crossings:
            if crossing.kind is kind and crossing.edge == self.edge:
                return crossing
        known = [c.edge for c in topology.crossings if c.kind is kind]
        raise RunError(
            f"defenses.edge: {self.kind}: no {kind} message crosses {self.edge!r} in topology {topology.name!r}; "
            f"{nearest(self.edge, known)}"
        )

    def role(self, topology: Topology) -> str:
        return self.crossing(topology).sender


S = TypeVar("S", bound=AtCrossing)


class OnMessage(Defense, Generic[S]):
    """A defense that changes the messages its table names, and no others."""

    def __init__(self, spec: S) -> None:
        self.spec = spec

    def covers(self, kind: Kind, edge: str) -> bool:
        return kind == self.spec.message and edge == self.spec.edge


class AtCut(Spec):
    """A defense at a cut, applied by the role that sends smashed data over it."""

    edge: str

    def role(self, topology: Topology) -> str:
        known = {edge.name: edge.source.role for edge in topology.edges if edge.crosses}
        if self.edge not in known:
            raise RunError(
                f"defenses.edge: {self.kind}: no cut {self.edge!r} in topology {topology.name!r}; "
                f"{nearest(self.edge, known)}"
            )
        return known[self.edge]

    def needs_labels(self, topology: Topology) -> None:
        """Raises RunError where the role that applies it holds no labels."""
        role = self.role(topology)
        if not topology.labels(role):
            raise RunError(f"defenses.edge: {self.kind}: role {role!r} holds no labels, without which it cannot tell")


class AtSegment(Spec):
    """A defense that acts on one segment's training."""

    segment: str

    def role(self, topology: Topology) -> str:
        if self.segment not in topology.names:
            raise RunError(
                f"defenses.segment: {self.kind}: no segment {self.segment!r} in topology {topology.name!r}; "
                f"{nearest(self.segment, topology.names)}"
            )
        return topology[self.segment].role
