"""UnSplit: inputs and the client's network found together, from messages and the architecture alone.

Erdogan, Kupcu, Cicek, "UnSplit: Data-Oblivious Model Inversion, Model Stealing, and Label Inference Attacks Against
Split Learning", WPES 2022, arXiv 2108.09033. Adam (amsgrad) on the inputs x and on a clone c of the client's network,
minimising MSE(c(x), z) + tv TV(x) + l2 |x|^2. No record of the domain is used.

What is found is found up to the joint scale of x and c, which nothing in z fixes: the guess says `up_to_affine`, and is
to be scored by aligned figures only. Where we differ, and why: all rows share one clone and are one batch, where the
paper attacks one image at a time with a clone each, for more rows tell more of c; inputs and clone step together, where
the paper alternates 100 steps each for 1000 rounds, for one backward pass serves both; messages are taken in units of
their standard deviation, so that one set of constants serves every cut; tv is 1 for 0.1, which at a pooled cut keeps
the inputs from fitting what the clone should (correlation 0.92 for 0.71 there, and no worse before the pooling).

The paper also infers labels, by comparing gradients of the client's own last weights: no split-learning protocol sends
those to the server. What can be had from the gradients that are sent is `gradient-clustering`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from attacks import drift
from attacks.base import Attack, Goal, Guess, Need, Needs, NotApplicable, drawing
from attacks.observed import freshest, latest
from attacks.upstream import Network, Upstream, above, column_of
from attacks.white_box import total_variation
from secsplit.message import Kind
from secsplit.threat import Knows, View

log = logging.getLogger(__name__)

PATIENCE = 1000  # steps without an improvement of PROGRESS before the search ends
PROGRESS = 1e-3


@dataclass(frozen=True, kw_only=True)
class UnSplit(Attack):
    """Reconstruct inputs from smashed data by searching for them and for a clone of the client's network at once.

    column: what to report (None: the first column above the edge); edge: where (None: the shallowest received); rows:
    how many, those seen last.
    """

    name: ClassVar[str] = "unsplit"
    paper: ClassVar[str] = "Erdogan, Kupcu, Cicek, WPES 2022, arXiv 2108.09033"
    goal: ClassVar[Goal] = "input"
    needs: ClassVar[Needs] = Needs(messages=(Need(Kind.SMASHED),), knows=frozenset({Knows.ARCHITECTURE}))
    cost: ClassVar[float] = 40.0

    column: str | None = None
    edge: str | None = None
    rows: int = 16
    steps: int = 4000
    lr_input: float = 5e-3
    lr_clone: float = 2e-3
    tv: float = 1.0
    l2: float = 1.0

    def infer(self, view: View, *, coins: torch.Generator) -> Guess:
        up = above(view, edge=self.edge)
        column = column_of(up, self.column)
        if unknown := [s.name for s in up.segments if s.name not in view.architecture and not view.models.get(s.name)]:
            raise NotApplicable(f"it does not know the architecture of {', '.join(unknown)}")
        every = drift.settled(latest(view, Kind.SMASHED, edge=up.edge))
        rows = every.take(freshest(view, every, self.rows))
        z = rows.values.flatten(1).float()
        with drawing(coins):
            clone, networks = clones(view, up)
            xs = {name: torch.full((len(rows), *view.shapes[name]), 0.5, device=z.device) for name in up.columns}
            error, steps = self.search(up, networks, clone, xs, z / z.std().clamp_min(1e-12))
        return Guess(
            "input", column, rows.cast, rows.position, rows.step, inputs=xs[column].detach(), up_to_affine=True, facts={
                "steps": steps, "error left": error,
                "rows": "those seen last, of those asked about", "selection": "fixed beforehand",
            },
        )  # fmt: skip

    def search(
        self, up: Upstream, networks: dict[str, Network], clone: nn.ModuleList, xs: dict[str, Tensor], z: Tensor
    ) -> tuple[float, int]:
        """Find the inputs, in place, and the clone's weights; (mean squared error that is left, steps taken)."""
        groups = [
            {"params": [x.requires_grad_() for x in xs.values()], "lr": self.lr_input},
            {"params": list(clone.parameters()), "lr": self.lr_clone},
        ]
        optimizer = torch.optim.Adam([group for group in groups if group["params"]], amsgrad=True)
        best, since, step, error = float("inf"), 0, 0, z.new_zeros(())
        for step in range(1, self.steps + 1):
            error = (up.run(networks, xs).flatten(1) - z).square().mean()
            prior = [self.tv * total_variation(x) / len(z) + self.l2 * x.square().mean() for x in xs.values()]
            loss = error + torch.stack(prior).sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            since += 1
            if loss.item() < best * (1 - PROGRESS):
                best, since = loss.item(), 0
            if since >= PATIENCE:
                break
            if step % 500 == 0:
                log.info("step %d of %d: error %.5f", step, self.steps, error.item())
        return error.item(), step


def clones(view: View, up: Upstream) -> tuple[nn.ModuleList, dict[str, Network]]:
    """(networks to be learnt, segment -> its network): new ones of the known architecture, own ones as they are."""
    networks: dict[str, Network] = {}
    learnt = nn.ModuleList()
    for segment in up.segments:
        if view.models.get(segment.name):
            networks[segment.name] = view.models[segment.name][-1].make().eval().requires_grad_(False)
        else:
            clone = view.architecture[segment.name]().train()
            learnt.append(clone)
            networks[segment.name] = clone
    return learnt, networks
