"""What the ledgers will say at the end of a run, from its tables alone, before any data moves.

The same charges as those of the parties' defenses, summed over the epochs that the run plans: so a forecast equals what
`ledger` reports after the run, and a claim or a budget can be judged beforehand.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from secsplit.accounting import (
    INPUTS,
    LABELS,
    Adjacency,
    Charge,
    Protects,
    epsilon_of,
    tightest,
    unbounded,
)
from secsplit.claims import EVERYONE
from secsplit.defenses import Spec
from secsplit.defenses.base import depends_on
from secsplit.message import Kind
from secsplit.run import Run
from secsplit.topology import Crossing, Topology


@dataclass(frozen=True)
class Link:
    """One kind of message from a role to another: what acts on it, and what one such message costs.

    charges: by what it protects, of the sender's own records (none where the sender has none); covered: the kinds of
    the defenses that change it.
    """

    crossing: Crossing
    covered: tuple[str, ...]
    charges: tuple[Charge, ...]


@dataclass(frozen=True)
class Forecast:
    """What one role's records will have told by the end. training: of training records, else of test records.

    mu, pure: as the ledger sums them; why: why there is no finite bound; given_weights: epsilon of messages alone.
    """

    role: str
    protects: Protects
    to: str
    training: bool
    mu: float
    pure: float
    alone: float
    mechanisms: tuple[str, ...]
    why: tuple[str, ...]
    adjacency: Adjacency = "replace-one"

    def epsilon(self, delta: float) -> float:
        """inf where no finite epsilon exists."""
        return self.pure + epsilon_of(self.mu, delta)

    def given_weights(self, delta: float) -> float:
        """Epsilon of the messages alone, as if the weights had learnt nothing from the records."""
        return self.pure + epsilon_of(self.alone, delta)


@dataclass
class _Sum:
    square: float = 0.0
    once: dict[str, Charge] = field(default_factory=dict)
    names: dict[str, None] = field(default_factory=dict)
    why: dict[str, None] = field(default_factory=dict)

    def add(self, charge: Charge, times: int) -> None:
        if not times:
            return
        if charge.once:
            self.once[charge.once] = charge
        else:
            self.square += times * charge.mu**2
        self.names[charge.mechanism] = None
        if charge.why:
            self.why[charge.why] = None

    @property
    def mu(self) -> float:
        return math.sqrt(self.square + sum(charge.mu**2 for charge in self.once.values()))

    @property
    def pure(self) -> float:
        return sum(charge.epsilon for charge in self.once.values())


def links(topology: Topology, specs: Sequence[Spec], *, training: bool = True) -> tuple[Link, ...]:
    """Every crossing with what acts on it and what one message over it costs."""
    found = []
    for crossing in topology.crossings:
        if not training and crossing.kind in (Kind.CUT_GRAD, Kind.OUTPUT_GRAD):
            continue
        mine = [spec for spec in specs if spec.role(topology) == crossing.sender]
        covered = tuple(
            spec.kind for spec in mine if spec.crossing(topology) == crossing or _acts(spec, crossing, training)
        )
        charges = tuple(
            _bound(mine, crossing, what, training)
            for what in depends_on(crossing.kind, target=crossing.edge in topology.reconstructions)
            if what in owned(topology, crossing.sender)
        )
        found.append(Link(crossing, covered, charges))
    return tuple(found)


def owned(topology: Topology, role: str) -> tuple[Protects, ...]:
    """Whether a role has inputs, labels, both or neither of its own."""
    return ((INPUTS,) if topology.columns(role) else ()) + ((LABELS,) if topology.labels(role) else ())


def learning(topology: Topology, specs: Sequence[Spec], role: str) -> tuple[str, ...]:
    """The segments of a role that learn."""
    return tuple(s.name for s in topology.held(role) if not any(spec.freezes(s.name) for spec in specs))


def forecasts(run: Run) -> tuple[Forecast, ...]:
    """By role that has records, by what is protected, by receiver and together, for training and for test records."""
    return tuple(_forecasts(run))


def _forecasts(run: Run) -> Iterator[Forecast]:
    topology, specs, train = run.topology, run.file.defenses, run.file.train
    evaluations = math.ceil(train.epochs / train.evaluate_every) if train.evaluate_every else 0
    for role in topology.roles:
        for training, times in ((True, train.epochs), (False, evaluations)):
            sent = [link for link in links(topology, specs, training=training) if link.crossing.sender == role]
            receivers = tuple(dict.fromkeys(link.crossing.receiver for link in sent))
            if not times or not sent:
                continue
            for protects in owned(topology, role):
                for to in (*receivers, EVERYONE):
                    mine = [link for link in sent if to in (link.crossing.receiver, EVERYONE)]
                    forecast = _forecast(run, role, protects, to, training, times, mine)
                    if forecast.mechanisms:  # else nothing that leaves depends on it
                        yield forecast


def _forecast(
    run: Run, role: str, protects: Protects, to: str, training: bool, times: int, sent: Sequence[Link]
) -> Forecast:
    messages, everything = _Sum(), _Sum()
    for charge in (charge for link in sent for charge in link.charges if charge.protects == protects):
        messages.add(charge, times)
        everything.add(charge, times)
    if training:
        for charge in updates(run.topology, run.file.defenses, role, protects):
            everything.add(charge, times)
    found = [charge for link in sent for charge in link.charges]
    adjacency: Adjacency = next((charge.adjacency for charge in found if charge.mu), "replace-one")
    return Forecast(
        role, protects, to, training, everything.mu, everything.pure, messages.mu,
        tuple(everything.names), tuple(everything.why), adjacency,
    )  # fmt: skip


def updates(topology: Topology, specs: Sequence[Spec], role: str, protects: Protects) -> Iterator[Charge]:
    """What one step of training costs through the weights of a role's segments."""
    mine = [spec for spec in specs if spec.role(topology) == role]
    for segment in learning(topology, specs, role):
        known = tightest(charge for spec in mine for charge in spec.updates(segment) if charge.protects == protects)
        yield known or unbounded(protects, "none", f"{segment} learns from these records without DP-SGD")


def _bound(specs: Sequence[Spec], crossing: Crossing, what: Protects, training: bool) -> Charge:
    known = tightest(
        charge
        for spec in specs
        for charge in spec.bounds(crossing.kind, crossing.edge, training=training)
        if charge.protects == what
    )
    return known or unbounded(what, "none", f"nothing bounds what {crossing.kind} messages on {crossing.edge} tell")


def _acts(spec: Spec, crossing: Crossing, training: bool) -> bool:
    """Label noise acts on label messages without a crossing of its own."""
    return crossing.kind is Kind.LABELS and bool(spec.bounds(crossing.kind, crossing.edge, training=training))
