"""The contract of an attack: what it needs, what it is given (a View), what it gives (a Guess).

An attack never sees the truth, prints nothing, writes no file and touches no global device. Whether it succeeded is
decided by `audits`, never by the attack itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from secsplit.message import Kind
from secsplit.threat import Knows, Threat, View
from secsplit.topology import DATA, Topology
from secsplit.transcript import Direction

if TYPE_CHECKING:
    from secsplit.party import Party

Goal = Literal["label", "input", "attribute", "membership", "distinguish", "traffic"]


@dataclass(frozen=True)
class Need:
    """A kind of message the adversary must have sent or received."""

    kind: Kind
    direction: Direction = "received"


@dataclass(frozen=True)
class Needs:
    """All that an attack needs: messages (every one of them), knowledge, and whether it takes a party's place.

    any_of: messages of which one will do. secret_labels: there must be a label column that the adversary does not hold
    itself.
    """

    messages: tuple[Need, ...] = ()
    knows: frozenset[Knows] = frozenset()
    active: bool = False
    holds_scored: bool = False  # the adversary must hold the segment whose output is scored
    own_records: bool = False  # the adversary must hold records of its own
    any_of: tuple[Need, ...] = ()
    secret_labels: bool = False


@dataclass(frozen=True)
class Guess:
    """What an attack inferred about private rows.

    cast, position: (n,) which rows (position in the cast's training records); step: (n,) the turn each guess rests on
    (-1 where it rests on many). scores: (n,) or (n, classes), higher = more; labels: (n,) hard guess up to
    `up_to_permutation`; inputs: (n, ...) reconstructions in data scale; column: the label or data column guessed.
    facts: small numbers worth reporting (iterations, chosen hyper-parameters, the selection rule).
    """

    goal: Goal
    column: str
    cast: Tensor
    position: Tensor
    step: Tensor
    scores: Tensor | None = None
    labels: Tensor | None = None
    inputs: Tensor | None = None
    up_to_permutation: bool = False
    up_to_affine: bool = False
    facts: Mapping[str, float | int | str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.position)
        for name in ("cast", "step", "scores", "labels", "inputs"):
            value = getattr(self, name)
            if value is not None and len(value) != n:
                raise ValueError(f"a guess about {n} rows has {len(value)} {name}")

    def of(self, rows: Tensor) -> Guess:
        """The guess about those rows alone; rows: (n,) bool, or indices."""
        rows = rows.nonzero().flatten() if rows.dtype == torch.bool else rows
        return replace(
            self,
            cast=self.cast[rows],
            position=self.position[rows],
            step=self.step[rows],
            scores=None if self.scores is None else self.scores[rows],
            labels=None if self.labels is None else self.labels[rows],
            inputs=None if self.inputs is None else self.inputs[rows],
        )


class Attack(ABC):
    """One published attack: configured once with keyword arguments (the paper's symbols), then asked to infer.

    Subclasses are frozen dataclasses with class attributes `name`, `paper`, `goal`, `needs` and `cost`
    (rough CPU seconds).
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    goal: ClassVar[Goal]
    needs: ClassVar[Needs]
    cost: ClassVar[float] = 10.0

    @abstractmethod
    def infer(self, view: View, *, coins: torch.Generator) -> Guess:
        """The guess. Raises NotApplicable where the view lacks what `needs` declares."""

    def corrupt(self, parties: Mapping[str, Party], before: View, *, coins: torch.Generator) -> None:
        """Before a run begins: change what the adversary's own parties, given by name, compute or send.

        before: what the adversary knows beforehand: the graph, its own records and what its threat grants, without a
        message, a trained model or a query. The same object is asked to infer once the run is over.
        Raises TypeError for a passive attack, which has nothing to change.
        """
        raise TypeError(f"{self.name} is passive: it corrupts nobody")

    def why_not(self, topology: Topology, threat: Threat) -> str | None:
        """Why this attack does not apply to that adversary in that topology; None where it does."""
        return why_not(self.needs, topology, threat)


class NotApplicable(Exception):
    """The view does not hold what the attack declares to need."""


def why_not(needs: Needs, topology: Topology, threat: Threat) -> str | None:
    """The first thing `threat` lacks, in words; None where nothing is missing."""
    who = " + ".join(threat.who) or "a wiretap"
    if needs.active and threat.behaviour != "malicious":
        return f"it takes a party's place, and {threat.name!r} is {threat.behaviour}"
    if needs.secret_labels and not secret_labels(topology, threat.who):
        return f"{who} holds every label itself"
    if not threat.who and (needs.messages or needs.any_of):
        return "a wiretap reads no message: the links are encrypted"
    for need in needs.messages:
        if not _crosses(need, topology, threat):
            return f"{who} never {need.direction} {need.kind} messages in topology {topology.name!r}"
    if needs.any_of and not any(_crosses(need, topology, threat) for need in needs.any_of):
        kinds = ", nor ".join(f"{need.direction} {need.kind}" for need in needs.any_of)
        return f"{who} never {kinds} messages in topology {topology.name!r}"
    for known in sorted(needs.knows - threat.knows):
        return f"it needs {known.value!r}, which {threat.name!r} does not have"
    if needs.holds_scored and not any(topology[o.segment].role in threat.who for o in topology.objectives):
        return f"{who} holds no scored segment"
    if needs.own_records and not any(topology.columns(role) or topology.labels(role) for role in threat.who):
        return f"{who} holds no records"
    return None


def secret_labels(topology: Topology, roles: Sequence[str]) -> tuple[str, ...]:
    """The label columns that none of these roles holds, in graph order."""
    held = {o.target for o in topology.objectives if o.holder in roles}
    targets = [o.target for o in topology.objectives if not o.target.startswith(DATA)]
    return tuple(dict.fromkeys(target for target in targets if target not in held))


@contextmanager
def drawing(coins: torch.Generator) -> Iterator[None]:
    """Where layers are initialised or dropped out by torch's global generator: seeded by `coins`, restored after."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(torch.randint(2**62, (), generator=coins)))
        yield


def _crosses(need: Need, topology: Topology, threat: Threat) -> bool:
    return any(
        c.kind is need.kind
        and (c.receiver if need.direction == "received" else c.sender) in threat.who
        and (threat.parties or not {c.receiver, c.sender} <= set(threat.who))
        for c in topology.crossings
    )
