"""White-box inversion: search for the input whose message is the one that was seen.

Regularised maximum likelihood (rMLE): He, Zhang, Lee, "Model Inversion Attacks Against Collaborative Inference", ACSAC
2019: minimise |f(x) - z|^2 + tv TV(x) over x by Adam, from a uniform grey. It needs the weights above the edge and no
data at all: those of a colluding client, or that were handed over or averaged, or a coalition's own layers.

Where we differ, and why: all rows are one batch, where the paper's loop takes one image at a time; the error is
measured in units of the messages' own variance, so that one set of constants serves every cut; the rate decays to
nothing, so that the search ends in a minimum. TV is that of columns that are images; tables have none.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from attacks import drift
from attacks.base import Attack, Goal, Guess, Need, Needs, NotApplicable
from attacks.observed import Observed, freshest, held, latest
from attacks.upstream import Network, Upstream, above, column_of, known_networks, network_missing
from secsplit.message import Kind
from secsplit.threat import Knows, Threat, View
from secsplit.topology import Topology

log = logging.getLogger(__name__)

PATIENCE = 5000  # steps without an improvement of PROGRESS before the search ends
PROGRESS = 1e-3


@dataclass(frozen=True, kw_only=True)
class WhiteBox(Attack):
    """Reconstruct inputs from smashed data by optimisation through the known weights above the edge.

    column: what to report (None: the first column above the edge); all unknown columns above are searched for at once.
    edge: where (None: the shallowest received); rows: how many, those seen last; tv: weight of the total variation;
    average: messages of a row that are averaged over epochs.
    """

    name: ClassVar[str] = "white-box"
    paper: ClassVar[str] = "rMLE, He, Zhang, Lee, ACSAC 2019"
    goal: ClassVar[Goal] = "input"
    needs: ClassVar[Needs] = Needs(messages=(Need(Kind.SMASHED),))
    cost: ClassVar[float] = 10.0

    column: str | None = None
    edge: str | None = None
    rows: int = 64
    steps: int = 1500
    lr: float = 0.03
    tv: float = 0.01
    average: int = 1

    def why_not(self, topology: Topology, threat: Threat) -> str | None:
        return super().why_not(topology, threat) or network_missing(topology, threat, {Knows.WEIGHTS})

    def infer(self, view: View, *, coins: torch.Generator) -> Guess:
        del coins  # nothing is drawn: the search starts from grey
        up = above(view, edge=self.edge)
        column = column_of(up, self.column)
        networks = known_networks(view, up, query=False)
        if unknown := [segment.name for segment in up.segments if segment.name not in networks]:
            raise NotApplicable(f"it does not know the weights of {', '.join(unknown)}")
        every = latest(view, Kind.SMASHED, edge=up.edge, average=self.average)
        chosen = freshest(view, every, self.rows)
        rows = (drift.settled(every) if self.average == 1 else every).take(chosen)
        fixed = {name: own for name, own in held(view, rows).items() if name in up.columns and name != column}
        found, error, steps = self.search(up, networks, rows, {name: view.shapes[name] for name in up.columns}, fixed)
        return Guess(
            "input", column, rows.cast, rows.position, rows.step, inputs=found[column], facts={
                "steps": steps, "error left": error, "tv": self.tv,
                "rows": "those seen last, of those asked about",
                "selection": "fixed beforehand; the step of the least loss",
            },
        )  # fmt: skip

    def search(
        self,
        up: Upstream,
        networks: Mapping[str, Network],
        rows: Observed,
        records: Mapping[str, torch.Size],
        fixed: Mapping[str, Tensor],
    ) -> tuple[dict[str, Tensor], float, int]:
        """(column -> (n, ...), mean squared error left over in units of the messages' variance, steps taken)."""
        z = rows.values.flatten(1)
        unit = z.var().clamp_min(1e-12)
        xs = {
            name: torch.full((len(rows), *shape), 0.5, device=z.device).requires_grad_()
            for name, shape in records.items()
            if name not in fixed
        }
        optimizer = torch.optim.Adam(xs.values(), self.lr)
        rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        best, since, step, error = float("inf"), 0, 0, z.new_zeros(())
        for step in range(1, self.steps + 1):
            sent = up.run(networks, {**fixed, **xs}).flatten(1)
            error = (sent - z).square().mean(1).sum() / unit
            loss = error + self.tv * torch.stack([total_variation(x) for x in xs.values()]).sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            rate.step()
            with torch.no_grad():
                for x in xs.values():
                    if x.ndim == 4:
                        x.clamp_(0, 1)
            since += 1
            if loss.item() < best * (1 - PROGRESS):
                best, since = loss.item(), 0
            if step % 100 == 0:
                log.info("step %d of %d: error %.5f", step, self.steps, error.item() / len(rows))
            if since >= PATIENCE:
                break
        return {name: x.detach() for name, x in xs.items()}, error.item() / max(1, len(rows)), step


def total_variation(x: Tensor) -> Tensor:
    """The squared differences of neighbouring pixels, summed over an image's mean: images (n, c, h, w), else 0."""
    if x.ndim != 4:
        return x.new_zeros(())
    down = (x[:, :, 1:] - x[:, :, :-1]).square().mean((1, 2, 3))
    right = (x[..., 1:] - x[..., :-1]).square().mean((1, 2, 3))
    return (down + right).sum()
