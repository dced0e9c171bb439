"""SplitGuard: now and then send wrong labels, and see whether the server's gradients mind.

Erdogan, Kupcu, Cicek, WPES 2022 (arXiv 2108.09052). A server that trains the task returns quite other gradients for
batches with wrong labels; one that hijacks the client does not look at labels. The score compares the angle and the
magnitude of fake batches' gradients with those of regular ones, at the client's first layer; batches with wrong labels
teach the client nothing. It needs many fake batches to be sure, and costs the server's model that many wrong batches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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

    def __init__(self, spec: SplitGuardSpec, noise: Noise, classes: int) -> None:
        self.spec = spec
        self.classes = classes
        self.scores: list[float] = []
        self._noise = noise
        self._step, self._fake, self._server = "", False, ""
        self._fakes: list[Tensor] = []
        self._regular: list[Tensor] = []

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
        (self._fakes if self._fake else self._regular).append(first.grad.detach().flatten().clone())
        if not self._fake:
            return
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None
        if len(self._regular) >= 4:
            self.scores.append(score(self._fakes, self._regular, self.spec.alpha, self.spec.beta))
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


def score(fakes: Sequence[Tensor], regular: Sequence[Tensor], alpha: float, beta: float) -> float:
    """The paper's score in (0, 1): near 1 for an honest server. The regular ones are split in two by turns."""
    one, two = regular[::2], regular[1::2]
    told = _angle(fakes, regular) * _apart(fakes, regular)
    base = _angle(one, two) * _apart(one, two)
    s = (told - base) / (_apart(fakes, regular) + _apart(one, two) + 1e-12)
    return float((1 / (1 + math.exp(-alpha * s))) ** beta)


def _angle(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """Radians between the sums."""
    cosine = torch.nn.functional.cosine_similarity(sum(a[1:], a[0]), sum(b[1:], b[0]), dim=0)
    return math.acos(max(-1.0, min(1.0, float(cosine))))


def _apart(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """The difference of the mean norms."""
    return abs(sum(float(g.norm()) for g in a) / len(a) - sum(float(g.norm()) for g in b) / len(b))
