"""Whose message is it? Candidates matched to messages: re-identification, and membership at the cut.

Smashed data is a function of the record, so whoever may run the segments above the cut computes what each candidate
would have sent, and takes the nearest: the most likely one under Gaussian noise. Over epochs the messages of a record
are averaged, which undoes noise that is drawn anew each time; how many are averaged is chosen by what brings the
messages nearest to some candidate, and no truth. Matching by likelihood is how the reconstruction robustness of Balle,
Cherubin, Hayes 2022 (arXiv 2201.04845) is attacked by Hayes, Mahloujifar, Balle 2023 (arXiv 2302.07225).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from attacks import drift
from attacks.base import Attack, Goal, Guess, Need, Needs
from attacks.candidates import given, holds_records, sent
from attacks.observed import Observed, asked, latest
from attacks.upstream import network_missing
from secsplit.message import Kind
from secsplit.threat import Knows, Threat, View
from secsplit.topology import Topology

CHUNK = 1024  # messages compared with all candidates at once


@dataclass(frozen=True, kw_only=True)
class CandidateMatching(Attack):
    """Name the candidate that each message came from.

    edge: where (None: the shallowest received); averages: how many messages of a record to average, of which the best
    is taken; queries: how often each candidate is run, against noise in the answers; rows: most rows looked at.
    """

    name: ClassVar[str] = "candidate-matching"
    paper: ClassVar[str] = "Hayes, Mahloujifar, Balle, NeurIPS 2023"
    goal: ClassVar[Goal] = "distinguish"
    needs: ClassVar[Needs] = Needs((Need(Kind.SMASHED),), frozenset({Knows.CANDIDATES}))
    cost: ClassVar[float] = 2.0

    edge: str | None = None
    averages: tuple[int, ...] = (1, 4, 16, 64)
    queries: int = 8
    rows: int = 20_000

    def why_not(self, topology: Topology, threat: Threat) -> str | None:
        if held := [role for role in threat.who if topology.columns(role)]:
            return f"{' + '.join(held)} holds the records themselves"
        return super().why_not(topology, threat) or network_missing(topology, threat, {Knows.QUERY, Knows.WEIGHTS})

    def infer(self, view: View, *, coins: torch.Generator) -> Guess:
        up, answers = sent(view, given(view), edge=self.edge, times=self.queries)
        rows, distances, average = nearest(view, up.edge, answers, self.averages, self.rows)
        place = asked(view, rows)
        rows, distances = rows.take(place), distances[place]
        return Guess(
            self.goal, "record", rows.cast, rows.position, rows.step, scores=-distances, labels=distances.argmin(1),
            facts={"candidates": len(answers), "messages averaged": average,
                   "selection": "the number averaged that brings messages nearest to some candidate"},
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class NearestMessage(CandidateMatching):
    """Call a candidate a member where some message lies near what it would have sent."""

    name: ClassVar[str] = "membership-at-cut"
    paper: ClassVar[str] = "Hayes, Mahloujifar, Balle, NeurIPS 2023, as a membership test"
    goal: ClassVar[Goal] = "membership"

    def why_not(self, topology: Topology, threat: Threat) -> str | None:
        return holds_records(topology, threat) or super().why_not(topology, threat)

    def infer(self, view: View, *, coins: torch.Generator) -> Guess:
        up, answers = sent(view, given(view), edge=self.edge, times=self.queries)
        rows, distances, average = nearest(view, up.edge, answers, self.averages, self.rows)
        place = torch.arange(len(answers))
        nothing = torch.full_like(place, -1)
        return Guess(
            self.goal, "member", nothing, place, nothing, scores=-distances.min(0).values,
            facts={"candidates": len(answers), "messages": len(rows), "messages averaged": average},
        )  # fmt: skip


def nearest(
    view: View, edge: str, answers: Tensor, averages: tuple[int, ...], most: int
) -> tuple[Observed, Tensor, int]:
    """(rows, (rows, candidates) distances, how many messages of each row were averaged)."""
    best: tuple[float, Observed, Tensor, int] | None = None
    for average in averages:
        rows = drift.settled(latest(view, Kind.SMASHED, edge=edge, limit=most, average=average))
        distances = torch.cat([torch.cdist(part, answers) for part in rows.values.flatten(1).split(CHUNK)])
        gap = float(distances.min(1).values.median())
        if best is not None and gap >= best[0]:
            break
        best = gap, rows, distances, average
    assert best is not None
    return best[1:]
