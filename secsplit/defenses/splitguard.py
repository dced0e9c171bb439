"""SplitGuard: now and then send wrong labels, and see whether the server's gradients mind.

Erdogan, Kupcu, Cicek, WPES 2022 (arXiv 2108.09052). A server that trains the task returns quite other gradients for
batches with wrong labels; one that hijacks the client does not look at labels. The score compares the angle and the
magnitude of fake batches' gradients with those of regular ones, at the client's first layer; batches with wrong labels
teach the client nothing. It needs many fake batches to be sure, and costs the server's model that many wrong batches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from secsplit.defenses.base import Defense, Host, Outgoing
from secsplit.defenses.noise import Noise
from secsplit.defenses.spec import AtCut, Fraction, Positive, Spec
from secsplit.errors import PeerError, RunError
from secsplit.message import Kind, Stamp
from secsplit.topology import Topology


class SplitGuardSpec(AtCut):
    """kind = "splitguard": a share `fakes` of the batches leaves with wrong labels; stop at a mean score below
    threshold.

    alpha, beta: the paper's; patience: fake batches before the first verdict; action: "watch" only keeps the scores.
    """

    guarantee = "detector"
    paper = "Erdogan et al. 2022, arXiv 2108.09052"
    about = "sends some wrong labels and watches whether gradients mind"

    kind: Literal["splitguard"] = "splitguard"
    fakes: Fraction = 0.1
    alpha: Positive = 7.0
    beta: Positive = 1.0
    threshold: Fraction = 0.9
    patience: Annotated[int, Field(ge=2)] = 10
    action: Literal["stop", "watch"] = "stop"

    def fits(self, topology: Topology, specs: Sequence[Spec], micro_batches: int) -> None:
        del specs, micro_batches
        self.needs_labels(topology)
        role = self.role(topology)
        if not any(c.kind is Kind.LABELS and c.sender == role for c in topology.crossings):
            raise RunError(f"defenses.edge: splitguard: role {role!r} sends no labels in {topology.name!r}; use "
                           "hijack-detector, which only looks")  # fmt: skip

    def build(self, noise: Noise, classes: Mapping[str, int]) -> SplitGuard:
        counts = [k for k in classes.values() if k > 1]
        if not counts:
            raise RunError("defenses.kind: splitguard needs class labels; this task's labels are numbers")
        return SplitGuard(self, noise, counts[0])


class SplitGuard(Defense):
    """Fakes labels of whole batches, keeps the first layer's gradients, and scores them."""

    steps = True

    def __init__(self, spec: SplitGuardSpec, noise: Noise, classes: int) -> None:
        self.spec = spec
        self.classes = classes
        self.scores: list[float] = []
        self._noise = noise
        self._step, self._fake, self._server = "", False, ""
        self._fakes, self._even, self._odd = Pile(), Pile(), Pile()

    def covers(self, kind: Kind, edge: str) -> bool:
        return kind is Kind.LABELS

    def prepare(self, host: Host) -> None:
        segment = self.spec.edge.partition("->")[0]
        first = next(p for p in host.modules[segment].parameters() if p.requires_grad)
        host.optimizers[segment].register_step_pre_hook(lambda optimizer, *_: self._watch(optimizer, first))

    def begin(self, stamp: Stamp, rows: Tensor) -> None:
        self._step = f"splitguard|{stamp.step}|{stamp.epoch}|{stamp.cast}"
        self._fake = bool(self._noise.uniform(self._step, 1) < self.spec.fakes)

    def outgoing(self, out: Outgoing) -> Tensor:
        """(batch,) labels: the true ones, or, in a fake batch, wrong ones throughout."""
        self._server = out.receiver
        if not self._fake or not out.stamp.training:
            return out.tensor
        u = self._noise.uniform(f"{self._step}|labels|{out.stamp.micro}", len(out.tensor))
        wrong = (out.tensor + 1 + (u * (self.classes - 1)).long()) % self.classes
        return wrong.to(out.tensor).where(out.tensor >= 0, out.tensor)

    def _watch(self, optimizer: torch.optim.Optimizer, first: torch.nn.Parameter) -> None:
        """Before the client learns: keep the gradient, judge, and undo what a fake batch would teach."""
        if first.grad is None:
            return
        if not self._fake:
            (self._even if self._even.count <= self._odd.count else self._odd).add(first.grad.detach().flatten())
            return
        self._fakes.add(first.grad.detach().flatten())
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None
        if self._odd.count >= 2:
            self.scores.append(score(self._fakes, self._even, self._odd, self.spec.alpha, self.spec.beta))
            self._judge()

    def _judge(self) -> None:
        recent = self.scores[-self.spec.patience :]
        mean = sum(recent) / len(recent)
        if self.spec.action == "stop" and len(recent) >= self.spec.patience and mean < self.spec.threshold:
            raise PeerError(
                self._server,
                f"its gradients do not mind wrong labels (SplitGuard score {mean:.2f} over {len(recent)} fake batches, "
                f"expected {self.spec.threshold:g}): it may be training this party for another end; stopped",
            )


@dataclass
class Pile:
    """Gradients seen so far: their sum, the sum of their norms, how many."""

    total: Tensor | float = 0.0
    norms: float = 0.0
    count: int = 0

    def add(self, gradient: Tensor) -> None:
        """Put one (d,) gradient on the pile."""
        self.total = self.total + gradient
        self.norms += float(gradient.norm())
        self.count += 1

    def __or__(self, other: Pile) -> Pile:
        return Pile(self.total + other.total, self.norms + other.norms, self.count + other.count)

    def angle(self, other: Pile) -> float:
        """Radians between the sums."""
        cosine = torch.nn.functional.cosine_similarity(torch.as_tensor(self.total), torch.as_tensor(other.total), dim=0)
        return math.acos(max(-1.0, min(1.0, float(cosine))))

    def apart(self, other: Pile) -> float:
        """The difference of the mean norms."""
        return abs(self.norms / self.count - other.norms / other.count)


def score(fakes: Pile, even: Pile, odd: Pile, alpha: float, beta: float) -> float:
    """The paper's score in (0, 1), near 1 for an honest server; even and odd: the regular gradients in two halves."""
    regular = even | odd
    told = fakes.angle(regular) * fakes.apart(regular)
    base = even.angle(odd) * even.apart(odd)
    s = (told - base) / (fakes.apart(regular) + even.apart(odd) + 1e-12)
    return float((1 / (1 + math.exp(-alpha * s))) ** beta)
