"""Label differential privacy by k-ary randomised response, drawn once for each record.

Warner 1965; Ghazi, Golowich, Kumar, Manurangsi, Zhang 2021 (arXiv 2102.06062): the true label is kept with probability
e^eps / (e^eps + K - 1), else another is drawn evenly. Everything that follows is post-processing of the noisy labels,
for any number of epochs, provided the true ones touch nothing else: validation labels are not covered. It covers
labels only; inputs are as exposed as without it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from secsplit.accounting import LABELS, Charge, label_bound
from secsplit.defenses.base import DEPENDS, Defense, Host, Outgoing
from secsplit.defenses.noise import Noise
from secsplit.defenses.spec import Positive, Spec
from secsplit.errors import RunError, nearest
from secsplit.message import Kind
from secsplit.topology import Topology


class LabelDPSpec(Spec):
    """kind = "label-dp": the training labels in `column` are randomised once, before anything else sees them."""

    guarantee = "label-dp"
    paper = "Ghazi et al. 2021, arXiv 2102.06062"
    about = "training labels by randomised response, drawn once"

    kind: Literal["label-dp"] = "label-dp"
    column: str = "y"
    epsilon: Positive

    def role(self, topology: Topology) -> str:
        holders = {o.target: o.holder for o in topology.objectives}
        if self.column not in holders:
            raise RunError(
                f"defenses.column: label-dp: no objective of topology {topology.name!r} has label column "
                f"{self.column!r}; {nearest(self.column, holders)}"
            )
        return holders[self.column]

    def fits(self, topology: Topology, specs: Sequence[Spec], micro_batches: int) -> None:
        del micro_batches
        role = self.role(topology)
        if len(topology.labels(role)) > 1:
            held = ", ".join(topology.labels(role))
            raise RunError(
                f"defenses.column: label-dp: role {role!r} holds several label columns ({held}), and the bound is for "
                "a "
                "role whose only labels are randomised"
            )
        if sum(isinstance(spec, LabelDPSpec) and spec.column == self.column for spec in specs) > 1:
            raise RunError(f"defenses.column: label-dp: {self.column!r} would be randomised twice; once is enough")

    def bounds(self, kind: Kind, edge: str, *, training: bool = True) -> tuple[Charge, ...]:
        del edge
        if LABELS not in DEPENDS[kind] or not training:
            return ()
        text = f"randomised response epsilon={self.epsilon:g} on {self.column}"
        return (Charge(LABELS, text, epsilon=self.epsilon, once=f"label-dp|{self.column}"),)

    def updates(self, segment: str) -> tuple[Charge, ...]:
        del segment
        return self.bounds(Kind.LABELS, "")

    def build(self, noise: Noise, classes: Mapping[str, int]) -> LabelDP:
        k = classes.get(self.column, 0)
        if k < 2:
            raise RunError(
                f"defenses.column: label-dp needs classes, and {self.column!r} has {k or 'none: it is a number'}"
            )
        return LabelDP(self, noise, k)


class LabelDP(Defense):
    """Replaces a column of training labels when its party is prepared; what is sent later is already noisy."""

    def __init__(self, spec: LabelDPSpec, noise: Noise, classes: int) -> None:
        self.spec = spec
        self.classes = classes
        self._noise = noise

    def covers(self, kind: Kind, edge: str) -> bool:
        return kind is Kind.LABELS

    def prepare(self, host: Host) -> None:
        for cast, column in list(host.labels):
            if column == self.spec.column:
                host.labels[cast, column] = self.randomised(host.labels[cast, column], f"{column}|{cast}")

    def randomised(self, labels: Tensor, name: str) -> Tensor:
        """(n,) labels after randomised response; -1 (no label) stays. Row i draws the same whatever the others are."""
        u = self._noise.uniform(f"label-dp|{name}", 2 * len(labels)).view(-1, 2)
        other = (labels + 1 + (u[:, 1] * (self.classes - 1)).long()) % self.classes
        noisy = torch.where(u[:, 0] < label_bound(self.spec.epsilon, self.classes), labels, other.to(labels))
        return torch.where(labels < 0, labels, noisy)

    def bounds(self, out: Outgoing) -> tuple[Charge, ...]:
        return self.spec.bounds(out.kind, out.edge, training=out.stamp.training)

    def updates(self, segment: str) -> tuple[Charge, ...]:
        return self.spec.updates(segment)
