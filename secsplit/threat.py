"""Who attacks, what they know, and what they saw: `Threat` and `View`.

A View is all that an attack is ever given: the transcripts, models and data of the coalition's own parties, and what
the Threat grants beyond them. No other party's tensor, model or record is reachable from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from secsplit.message import Kind, Stamp
from secsplit.topology import Topology
from secsplit.transcript import Direction, Record, Transcript


class Knows(StrEnum):
    """What a threat grants an adversary beyond its own messages, models and data."""

    AUX = "aux"  # records of the same domain, disjoint from the private ones, with labels
    CLUES = "clues"  # the true labels of a few private records
    PRIOR = "prior"  # the label distribution
    QUERY = "query"  # may run the victim's segment on inputs of its own choice
    ARCHITECTURE = "architecture"  # the victim segment's architecture, untrained
    WEIGHTS = "weights"  # the victim segment's weights
    PAIRS = "pairs"  # a few private records with their true inputs
    CANDIDATES = "candidates"  # records of which some were trained on: it is asked which


Behaviour = Literal["curious", "malicious", "wiretap"]


@dataclass(frozen=True)
class Threat:
    """An adversary: a coalition of roles (empty for a wiretap), how it behaves, and what else it knows.

    clues: how many true labels a class; pairs: how many known records; aux: how many auxiliary records (0 = all);
    parties: where several share a role, only these of them (empty: all), as a client that is handed another's weights.
    """

    name: str
    who: tuple[str, ...]
    behaviour: Behaviour = "curious"
    knows: frozenset[Knows] = frozenset()
    clues: int = 1
    pairs: int = 0
    aux: int = 0
    parties: tuple[str, ...] = ()


@dataclass(frozen=True)
class Known:
    """Rows whose truth an adversary holds: inputs column -> (n, ...), labels column -> (n,).

    cast, position: which private rows they are, where they are private at all (else empty).
    """

    inputs: Mapping[str, Tensor] = field(default_factory=dict)
    labels: Mapping[str, Tensor] = field(default_factory=dict)
    cast: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    position: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))


@dataclass(frozen=True)
class Snapshot:
    """A segment as it was after `step` turns (-1: before the first); `make` rebuilds the module with these weights."""

    step: int
    make: Callable[[], nn.Module]


class Passage(NamedTuple):
    """One encrypted message as a wiretap sees it pass: between whom, how long, and in which place it came.

    bytes: its length on the wire; at: how many had passed before it on any link; rows: the stamp of its batch, by which
    the run's public order tells whose records are in it (None: it is about no batch).
    """

    sender: str
    receiver: str
    bytes: int
    at: int
    rows: Stamp | None


_NONE: Mapping[str, object] = MappingProxyType({})


@dataclass(frozen=True)
class View:
    """What a coalition saw.

    topology: the graph, which every party knows; roles: the coalition;
    transcripts: party name -> Transcript, the coalition's parties only;
    models: segment -> its snapshots in time order, for segments the coalition holds (all casts share the one key
        unless parties keep unique copies: then "segment@cast");
    own: cast -> the coalition's own records of that cast (inputs and labels that it legitimately holds);
    classes: label column -> number of classes (0: regression), which is public;
    shapes: input column -> the shape of one record, which is public;
    order: stamp -> (batch,) positions in the cast's records: the order is drawn from the run's seed, which every party
        knows, so whoever receives a batch can link rows over epochs;
    asked: cast -> positions that the adversary is asked about, in order of preference (empty: any row it saw);
    aux, clues, pairs, candidates, prior, query, architecture, weights, history: granted by the threat, else None or
        empty.
        query/architecture/weights: victim's segment -> callable, untrained module maker, and maker of its last weights;
        history: with the weights, the snapshots of that segment over time;
    wire: what a wiretap saw pass, in order; parties have no use for it.
    """

    topology: Topology
    roles: tuple[str, ...]
    transcripts: Mapping[str, Transcript]
    models: Mapping[str, tuple[Snapshot, ...]]
    own: Mapping[int, Known]
    classes: Mapping[str, int]
    order: Callable[[Stamp], Tensor]
    shapes: Mapping[str, torch.Size] = field(default_factory=dict)
    asked: Mapping[int, Tensor] = field(default_factory=dict)
    aux: Known | None = None
    clues: Known | None = None
    pairs: Known | None = None
    prior: Mapping[str, Tensor] = field(default_factory=dict)  # label column -> (classes,) probabilities
    query: Mapping[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    architecture: Mapping[str, Callable[[], nn.Module]] = field(default_factory=dict)
    weights: Mapping[str, Callable[[], nn.Module]] = field(default_factory=dict)
    history: Mapping[str, tuple[Snapshot, ...]] = field(default_factory=dict)
    candidates: Known | None = None
    wire: tuple[Passage, ...] = ()

    def records(
        self,
        kind: Kind,
        *,
        direction: Direction = "received",
        edge: str | None = None,
        training: bool | None = True,
    ) -> Iterator[Record]:
        """The coalition's records of that kind, party by party, each in its own order. training=None: both modes."""
        for transcript in self.transcripts.values():
            for record in transcript:
                if (
                    record.kind is kind
                    and record.direction == direction
                    and edge in (None, record.edge)
                    and training in (None, record.stamp.training)
                ):
                    yield record

    def edges(self, kind: Kind, *, direction: Direction = "received") -> tuple[str, ...]:
        """The edges on which such messages were seen, in order of first appearance."""
        return tuple(dict.fromkeys(r.edge for r in self.records(kind, direction=direction, training=None)))
