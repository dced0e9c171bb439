"""What the attacks on candidates share: records given to the adversary, of which some were trained on.

A party that holds a column or label of every record is told by the alignment of the records who takes part, and needs
no attack; so these attacks are for those who hold none.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from attacks.base import NotApplicable
from attacks.upstream import Upstream, above, known_networks
from secsplit.threat import Known, Threat, View
from secsplit.topology import Topology

CHUNK = 500  # candidates run through the segments at once


def holds_records(topology: Topology, threat: Threat) -> str | None:
    """Why membership is no question to that adversary: it holds something of every record; None where it is one."""
    held = [role for role in threat.who if topology.columns(role) or topology.labels(role)]
    return f"{' + '.join(held)} holds something of every record, and so knows whose are there" if held else None


def given(view: View) -> Known:
    """The candidates. Raises NotApplicable where there are none."""
    if view.candidates is None or not view.candidates.inputs:
        raise NotApplicable("it was given no candidates")
    return view.candidates


@torch.no_grad()
def sent(view: View, candidates: Known, *, edge: str | None = None, times: int = 1) -> tuple[Upstream, Tensor]:
    """(what is above the edge, (n, width) what would cross it for each candidate, the mean of so many queries)."""
    up = above(view, edge=edge)
    networks = known_networks(view, up)
    if unknown := [segment.name for segment in up.segments if segment.name not in networks]:
        raise NotApplicable(f"it cannot run {', '.join(unknown)}: neither queried, nor known, nor held")
    if missing := [column for column in up.columns if column not in candidates.inputs]:
        raise NotApplicable(f"the candidates have no column {', '.join(missing)}")
    columns: Mapping[str, Tensor] = {name: candidates.inputs[name] for name in up.columns}
    n = len(columns[up.columns[0]])
    total: Tensor | None = None
    for _ in range(times):
        chunks = [slice(i, i + CHUNK) for i in range(0, n, CHUNK)]
        answer = torch.cat([up.run(networks, {name: c[rows] for name, c in columns.items()}) for rows in chunks])
        total = answer if total is None else total + answer
    assert total is not None
    return up, (total / times).flatten(1)
