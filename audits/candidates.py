"""Records whose membership is in question: some of the run's training records among as many that nobody trained on.

The adversary is handed them without being told which is which. Those that nobody trained on are taken from the test
records, and are kept out of the adversary's auxiliary records, where it would recognise them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from audits.finished import Finished
from audits.score_inputs import chosen
from secsplit.schedule import derive
from secsplit.threat import Known

MOST = 500  # of each kind
SHARE = 5  # at most one in so many of the test records, for the adversary needs the others


@dataclass(frozen=True)
class Candidates:
    """records: as they are handed over; cast, position: (n,) where each was trained on, -1 for outsiders;

    outsiders: which of the run's outside records they are.
    """

    records: Known
    cast: Tensor
    position: Tensor
    outsiders: Tensor


def candidates_of(finished: Finished, seed: int) -> Candidates:
    """As many members as outsiders, mixed by `seed`; the members are among the rows that attacks are asked about."""
    truth, outside = finished.truth, finished.outside
    coins = torch.Generator().manual_seed(derive(seed, "threat", "candidates"))
    n = next((len(t) for t in outside.inputs.values()), 0)
    sizes = {cast: finished.schedule.sizes[cast]["train"] for cast in truth.casts}
    many = min(MOST, n // SHARE, sum(sizes.values()))
    outsiders = torch.randperm(n, generator=coins)[:many]
    each = [chosen(size, -(-many // len(sizes))) for size in sizes.values()]
    cast = torch.cat([torch.full((len(rows),), c) for c, rows in zip(sizes, each, strict=True)])[:many]
    position = torch.cat(each)[:many]
    mixed = torch.randperm(2 * many, generator=coins)
    nobody = torch.full((many,), -1)
    inputs = {
        name: torch.cat([truth.input(name, cast, position), column[outsiders]])[mixed]
        for name, column in outside.inputs.items()
    }
    labels = {
        name: torch.cat([truth.label(name, cast, position), column[outsiders]])[mixed]
        for name, column in outside.labels.items()
        if all(name in truth.labels[c] for c in truth.casts)
    }
    return Candidates(
        Known(inputs, labels), torch.cat([cast, nobody])[mixed], torch.cat([position, nobody])[mixed], outsiders
    )
