"""The contract of an attack: what it needs, what it is given (a View), what it gives (a Guess).

An attack never sees the truth, prints nothing, writes no file and touches no global device. Whether it succeeded is
decided by `audits`, never by the attack itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from secsplit.message import Kind
from secsplit.threat import Knows, Threat, View
from secsplit.topology import Topology
from secsplit.transcript import Direction

Goal = Literal["label", "input", "attribute", "membership", "distinguish", "traffic"]


@dataclass(frozen=True)
class Need:
    """A kind of message the adversary must have sent or received."""

    kind: Kind
    direction: Direction = "received"


@dataclass(frozen=True)
class Needs:
    """All that an attack needs: messages (every one of them), knowledge, and whether it takes a party's place."""

    messages: tuple[Need, ...] = ()
    knows: frozenset[Knows] = frozenset()
    active: bool = False
    holds_scored: bool = False  # the adversary must hold the segment whose output is scored
    own_records: bool = False  # the adversary must hold records of its own


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
    for need in needs.messages:
        if not any(
            c.kind is need.kind and (c.receiver if need.direction == "received" else c.sender) in threat.who
            for c in topology.crossings
        ):
            return f"{who} never {need.direction} {need.kind} messages in topology {topology.name!r}"
    for known in sorted(needs.knows - threat.knows):
        return f"it needs {known!r}, which {threat.name!r} does not have"
    if needs.holds_scored and not any(topology[o.segment].role in threat.who for o in topology.objectives):
        return f"{who} holds no scored segment"
    if needs.own_records and not any(topology.columns(role) or topology.labels(role) for role in threat.who):
        return f"{who} holds no records"
    return None
