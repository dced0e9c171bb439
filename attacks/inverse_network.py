"""The inverse network: learn to undo the victim's segment from pairs it can be made to give.

He, Zhang, Lee, "Model Inversion Attacks Against Collaborative Inference", ACSAC 2019 (black-box setting); also the
training-based attack of ResSFL (Li et al., CVPR 2022, arXiv 2205.04007). Whoever may run the victim's segment on
records of its own choice, as SplitFed's weight sharing or a colluding client allow, regresses inputs on messages.

The papers train a decoder by Adam on the squared error. Ours is the infinitely wide limit of such a network, which has
the same minimiser in closed form (`decoder`): as good or better at every cut tried, in a tenth of the time, with no
step size to tune. Messages of earlier turns are first carried to the last one (`drift`). This is the practical upper
bound for every attack that cannot query, so figures of those are worth reading as a fraction of this one's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from attacks import decoder, drift
from attacks.base import Attack, Goal, Guess, Need, Needs, NotApplicable
from attacks.observed import asked, latest
from attacks.upstream import Network, Upstream, above, column_of, known_networks, network_missing
from secsplit.message import Kind
from secsplit.threat import Knows, Threat, View
from secsplit.topology import Topology

CHUNK = 500  # auxiliary records run through the victim's segment at once


@dataclass(frozen=True, kw_only=True)
class InverseNetwork(Attack):
    """Reconstruct inputs from smashed data, given auxiliary records and a way to run the victim's segment.

    column: what to reconstruct (None: the first column above the edge); edge: where (None: the shallowest received);
    pairs: at most so many auxiliary records; average: messages of a row that are averaged, over epochs, against a
    defense that draws fresh noise; rows: at most so many rows besides those asked for.
    """

    name: ClassVar[str] = "inverse-network"
    paper: ClassVar[str] = "He, Zhang, Lee, ACSAC 2019"
    goal: ClassVar[Goal] = "input"
    needs: ClassVar[Needs] = Needs(messages=(Need(Kind.SMASHED),), knows=frozenset({Knows.AUX}))
    cost: ClassVar[float] = 10.0

    column: str | None = None
    edge: str | None = None
    pairs: int = 5000
    average: int = 1
    rows: int = 60_000

    def why_not(self, topology: Topology, threat: Threat) -> str | None:
        return super().why_not(topology, threat) or network_missing(topology, threat, {Knows.QUERY, Knows.WEIGHTS})

    def infer(self, view: View, *, coins: torch.Generator) -> Guess:
        up = above(view, edge=self.edge)
        column = column_of(up, self.column)
        networks = known_networks(view, up)
        aux = auxiliary(view, up, self.pairs, coins)
        if unknown := [segment.name for segment in up.segments if segment.name not in networks]:
            raise NotApplicable(f"it cannot run {', '.join(unknown)}: neither queried, nor known, nor held")
        sent = torch.stack([answers(up, networks, aux) for _ in range(self.average)]).mean(0)
        fitted = decoder.fit(sent, aux[column], coins=coins)
        rows = drift.settled(latest(view, Kind.SMASHED, edge=up.edge, limit=self.rows, average=self.average))
        rows = rows.take(asked(view, rows))
        return Guess(
            "input",
            column,
            rows.cast,
            rows.position,
            rows.step,
            inputs=fitted(rows.values),
            facts={
                "auxiliary records": len(aux[column]),
                "messages averaged": self.average,
                "noise": fitted.noise,
                "held-out mse": fitted.held_out_mse,
                "selection": "noise of the regression by leave-one-out error on auxiliary records",
            },
        )


def auxiliary(view: View, up: Upstream, most: int, coins: torch.Generator) -> Mapping[str, Tensor]:
    """column -> (n, ...), the same `most` auxiliary records of every column above. Raises NotApplicable for none."""
    known = view.aux.inputs if view.aux is not None else {}
    if missing := [column for column in up.columns if column not in known]:
        raise NotApplicable(f"it needs auxiliary records of column {', '.join(missing)}")
    chosen = torch.randperm(len(known[up.columns[0]]), generator=coins)[:most]
    return {column: known[column][chosen] for column in up.columns}


@torch.no_grad()
def answers(up: Upstream, networks: Mapping[str, Network], columns: Mapping[str, Tensor]) -> Tensor:
    """(n, ...): what the segments above would send for these records, a chunk at a time."""
    n = len(next(iter(columns.values())))
    chunks = [slice(i, i + CHUNK) for i in range(0, n, CHUNK)]
    return torch.cat([up.run(networks, {name: values[chunk] for name, values in columns.items()}) for chunk in chunks])
