"""The [audit] table of a run file: which threats, which attacks, with what options; and the threats taken where it
names none.

By default every role that takes part in a step is an adversary of its own, curious, and malicious where an attack takes
a party's place, with all the help that a report should assume: records of the same domain, candidates to name members
among, one known label a class, the class shares, the victim's architecture, and queries to the victim's segments. A
weaker adversary is asked for by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, ValidationError

from secsplit.config import Strict, explain
from secsplit.errors import RunError
from secsplit.method import AGGREGATOR
from secsplit.run import Run
from secsplit.threat import Behaviour, Knows, Threat
from secsplit.topology import Topology

ASSUMED = frozenset({Knows.AUX, Knows.CLUES, Knows.PRIOR, Knows.ARCHITECTURE, Knows.QUERY, Knows.CANDIDATES})
OUTSIDE = frozenset({Knows.AUX, Knows.PRIOR, Knows.CLUES})  # of a wiretap


class ThreatSpec(Strict):
    """One [audit.threats.NAME] table."""

    who: tuple[str, ...] = ()
    behaviour: Behaviour = "curious"
    knows: frozenset[Knows] = ASSUMED
    clues: Annotated[int, Field(ge=0)] = 1
    pairs: Annotated[int, Field(ge=0)] = 0
    aux: Annotated[int, Field(ge=0)] = 0
    parties: tuple[str, ...] = ()

    def build(self, name: str) -> Threat:
        return Threat(name, self.who, self.behaviour, self.knows, self.clues, self.pairs, self.aux, self.parties)


class AuditSpec(Strict):
    """The [audit] table.

    attacks, skip: names, or "all"; options: attack -> its own options; control: also run every attack on noise in
    place of messages; positive_control: of a defended run, also attack its undefended twin; gallery: how many records
    to show a reconstruction of (0: none); reveal: show real patients' too.
    """

    attacks: tuple[str, ...] = ("all",)
    skip: tuple[str, ...] = ()
    threats: dict[str, ThreatSpec] = Field(default={})
    options: dict[str, dict[str, Any]] = Field(default={})
    seed: int = 0
    control: bool = True
    positive_control: bool = True
    gallery: Annotated[int, Field(ge=0, le=64)] = 8
    reveal: bool = False

    def adversaries(self, topology: Topology, *, active: bool = False, averaged: bool = False) -> tuple[Threat, ...]:
        """The threats asked for, else every role by itself and a wiretap. active: every role in malice too.

        averaged: somebody averages the clients' weights, and so has them.
        """
        if self.threats:
            return tuple(spec.build(name) for name, spec in self.threats.items())
        involved = dict.fromkeys(role for c in topology.crossings for role in (c.sender, c.receiver))
        roles = [role for role in topology.roles if role in involved]
        ways: tuple[Behaviour, ...] = ("curious", "malicious") if active else ("curious",)
        averaging = (Threat("curious aggregator", (AGGREGATOR,), "curious", ASSUMED | {Knows.WEIGHTS}),) * averaged
        return (*(Threat(f"{way} {role}", (role,), way, ASSUMED) for way in ways for role in roles), *averaging,
                Threat("wiretap", (), "wiretap", OUTSIDE, clues=20))  # fmt: skip


def audit_spec(run: Run) -> AuditSpec:
    """The run's [audit] table, checked. Raises RunError naming each wrong key."""
    return checked(run.file.audit)


def checked(table: Mapping[str, Any]) -> AuditSpec:
    """An [audit] table, checked. Raises RunError naming each wrong key."""
    try:
        return AuditSpec.model_validate(table)
    except ValidationError as error:
        problems = "\n".join(f"audit.{explain(AuditSpec, problem, table)}" for problem in error.errors())
        raise RunError(problems) from None
