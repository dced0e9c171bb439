"""Was this record trained on? The likelihood-ratio attack, by networks that were and were not.

Carlini, Chien, Nasr, Song, Terzis, Tramer, "Membership Inference Attacks From First Principles", IEEE S&P 2022
(arXiv 2112.03570), the online attack: shadow networks are trained on random halves of the candidates and on auxiliary
records, so that each candidate is in half of them; the victim's log-odds of the candidate's label is then more likely
under the one half or the other. As the paper does where shadows are few, one variance serves all candidates.

Here the victim is a whole split network: the adversary runs its own segments, and queries or knows the others. Its
shadows are trained until they are as sure of the candidates as the victim is, which needs no truth. The paper's
sixty-four and more networks are sixteen by default.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from attacks import shadows
from attacks.base import Attack, Goal, Guess, Needs, NotApplicable, drawing
from attacks.candidates import CHUNK, given, holds_records
from attacks.shadows import Shadows, Whole
from secsplit.threat import Known, Knows, Threat, View
from secsplit.topology import Topology
from secsplit.walk import Tensors

Network = Callable[..., Tensor | Tensors]


@dataclass(frozen=True, kw_only=True)
class LikelihoodRatio(Attack):
    """Score each candidate by how much likelier the victim's confidence is if it was a member.

    networks: how many shadows; epochs: at most; batch, lr: of their Adam.
    """

    name: ClassVar[str] = "membership-lira"
    paper: ClassVar[str] = "Carlini et al., IEEE S&P 2022"
    goal: ClassVar[Goal] = "membership"
    needs: ClassVar[Needs] = Needs(
        knows=frozenset({Knows.CANDIDATES, Knows.AUX, Knows.ARCHITECTURE, Knows.QUERY}),
    )
    cost: ClassVar[float] = 20.0

    networks: int = 16
    epochs: int = 60
    batch: int = 32
    lr: float = 2e-3

    def why_not(self, topology: Topology, threat: Threat) -> str | None:
        if not threat.who:
            return "a wiretap has no segment and runs nothing"
        return holds_records(topology, threat) or super().why_not(topology, threat)

    def infer(self, view: View, *, coins: torch.Generator) -> Guess:
        candidates, n = given(view), len(next(iter(given(view).inputs.values())))
        victim = surety(view, candidates)
        columns, labels = pool(view, candidates)
        inside = torch.rand(self.networks // 2, n, generator=coins).argsort(1) < n // 2
        inside = torch.cat([inside, ~inside])  # each candidate is in exactly half of them
        members = _members(inside, len(next(iter(columns.values()))), coins)
        sure: list[Tensor] = []

        def enough(fitted: Shadows) -> bool:
            sure[:] = [fitted.confidences(candidates.inputs, candidates.labels)]
            return bool(sure[0].mean() >= victim.mean())

        with drawing(coins):
            nets = [Whole(view.topology, dict(_blanks(view))) for _ in range(len(inside))]
            shadows.trained(
                nets, columns, labels, members, epochs=self.epochs, batch=self.batch, lr=self.lr, enough=enough,
                coins=coins,
            )  # fmt: skip
        place = torch.arange(n)
        nothing = torch.full_like(place, -1)
        return Guess(
            "membership", "member", nothing, place, nothing, scores=likelihood_ratio(victim, sure[0], inside),
            facts={"shadows": len(inside), "candidates": n,
                   "selection": "shadows trained until they are as sure of the candidates as the victim"},
        )  # fmt: skip


def likelihood_ratio(victim: Tensor, shadow: Tensor, inside: Tensor) -> Tensor:
    """(n,): log p(victim's confidence | member) - log p(. | not).

    victim: (n,); shadow: (networks, n) their confidences; inside: (networks, n) whether each was trained on it.
    """
    means, errors = [], []
    for mask in (inside, ~inside):
        mean = (shadow * mask).sum(0) / mask.sum(0).clamp_min(1)
        means.append(mean)
        errors.append(((shadow - mean).square() * mask).sum() / mask.sum())
    member, other = (
        -0.5 * (victim - mean).square() / error.clamp_min(1e-9) - 0.5 * error.clamp_min(1e-9).log()
        for mean, error in zip(means, errors, strict=True)
    )
    return member - other


@torch.no_grad()
def surety(view: View, records: Known) -> Tensor:
    """(n,): the victim's log-odds of the records' labels. Raises NotApplicable where a segment cannot be run."""
    networks: dict[str, Network] = {}
    for segment in view.topology.order:
        if view.models.get(segment.name):
            networks[segment.name] = view.models[segment.name][-1].make().eval()
        elif segment.name in view.query:
            networks[segment.name] = view.query[segment.name]
        else:
            raise NotApplicable(f"it cannot run {segment.name}: neither queried nor held")
    n = len(next(iter(records.inputs.values())))
    found = []
    for start in range(0, n, CHUNK):
        part = {name: values[start : start + CHUNK] for name, values in records.inputs.items()}
        labels = {name: values[start : start + CHUNK] for name, values in records.labels.items()}
        scores = shadows.run(view.topology, networks, part)
        found.append(shadows.confidence(view.topology.objectives, scores, labels))
    return torch.cat(found)


def pool(view: View, candidates: Known) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(columns, labels) of the candidates, followed by the auxiliary records."""
    aux = view.aux
    targets = {o.target for o in view.topology.objectives}
    if aux is None or not candidates.labels.keys() & aux.labels.keys() & targets:
        raise NotApplicable("it needs labels of the candidates and of its auxiliary records")
    columns = {name: torch.cat([values, aux.inputs[name]]) for name, values in candidates.inputs.items()}
    shared = [name for name in candidates.labels if name in aux.labels]
    return columns, {name: torch.cat([candidates.labels[name], aux.labels[name]]) for name in shared}


def _members(inside: Tensor, size: int, coins: torch.Generator) -> Tensor:
    """(networks, m): the candidates each network is trained on, and a random half of the auxiliary records."""
    n = inside.shape[1]
    least = int(inside.sum(1).min())
    mine = [rows.nonzero().flatten()[:least] for rows in inside]
    extra = [n + torch.randperm(size - n, generator=coins)[: (size - n) // 2] for _ in inside]
    return torch.stack([torch.cat(parts) for parts in zip(mine, extra, strict=True)])


def _blanks(view: View) -> list[tuple[str, nn.Module]]:
    """Every segment, untrained: of its own architecture where that is held, else of the one it was told."""
    made = []
    for segment in view.topology.order:
        if segment.name in view.architecture:
            made.append((segment.name, view.architecture[segment.name]()))
        elif view.models.get(segment.name):
            made.append((segment.name, view.models[segment.name][-1].make()))
        else:
            raise NotApplicable(f"it does not know how {segment.name} is built")
    for _, module in made:
        for layer in module.modules():
            if callable(reset := getattr(layer, "reset_parameters", None)):
                reset()
    return made
