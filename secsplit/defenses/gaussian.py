"""The Gaussian mechanism on a message: clip each example's whole vector, add noise, and nothing else.

Dwork and Roth 2014; exact bound of Balle and Wang (arXiv 1805.06530). Two examples' clipped vectors lie at most 2 C
apart (sqrt 2 C where no coordinate is negative), so replacing one example's value is mu-GDP with mu = 2 / sigma. It
covers that message's example against everyone who reads it, GIVEN the weights that made it; what those weights learnt
from the example is another charge. It does not cover labels sent elsewhere, nor who takes part.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import model_validator
from torch import Tensor

from secsplit.accounting import Adjacency, Charge, gaussian_mu
from secsplit.defenses.base import DEPENDS, Outgoing
from secsplit.defenses.frozen import FrozenSpec
from secsplit.defenses.iso import IsoSpec
from secsplit.defenses.marvell import MarvellSpec
from secsplit.defenses.max_norm import MaxNormSpec
from secsplit.defenses.noise import MAX_SCALE, TAIL, Noise
from secsplit.defenses.prune import PruneSpec
from secsplit.defenses.quantise import SignSpec
from secsplit.defenses.spec import AtCrossing, OnMessage, Positive, Spec
from secsplit.errors import RunError
from secsplit.message import Kind
from secsplit.topology import Topology

INSIDE = 1 - 2.0**-22  # clip a hair inside C, so that float32 rounding cannot leave the ball
STEPS = 1024.0  # grid steps in a standard deviation, at least (at most twice that)
LARGEST = 1e18  # beyond, the factor would be so small that float32 rounds it coarsely
EXACT = 1 << 24  # integers that float32 holds exactly


class GaussianSpec(AtCrossing):
    """kind = "gaussian": clip to norm `clip`, add N(0, (sigma * clip)^2) to every coordinate.

    noise: "grid" (integers on a power-of-two grid, no floating-point hole) or "float" (faster, weaker). nonnegative:
    negative coordinates become 0 first, which shrinks the sensitivity to sqrt(2) clip. rescale: a public factor on what
    leaves. once: draw and charge once for each example, and send that again in later epochs (the segment must be
    frozen).
    """

    guarantee = "dp"
    paper = "Dwork and Roth 2014; Balle and Wang 2018"
    about = "clipped Gaussian noise on a message"

    kind: Literal["gaussian"] = "gaussian"
    clip: Positive
    sigma: Positive
    adjacency: Adjacency = "replace-one"
    nonnegative: bool = False
    noise: Literal["grid", "float"] = "grid"
    rescale: Positive = 1.0
    once: bool = False

    @model_validator(mode="before")
    @classmethod
    def _explain(cls, data: Any) -> Any:
        if isinstance(data, dict):
            if "clip" not in data:
                raise ValueError("clip is missing; noise without clipping is not differential privacy: give clip = 1.0")
            sigma = data.get("sigma")
            if isinstance(sigma, int | float) and not sigma > 0:
                raise ValueError(f"sigma = {sigma} adds no noise; expected a positive multiple of clip, or no defense")
        return data

    @model_validator(mode="after")
    def _fits_grid(self) -> GaussianSpec:
        if self.noise == "grid" and 2 * STEPS / self.sigma + TAIL * MAX_SCALE >= EXACT:
            raise ValueError(f"sigma = {self.sigma} is too small for the grid; expected at least 0.00013")
        if self.message != "smashed" and (self.nonnegative or self.once):
            raise ValueError(f"nonnegative and once are for smashed data, not for {self.message} messages")
        return self

    def fits(self, topology: Topology, specs: Sequence[Spec], micro_batches: int) -> None:
        del micro_batches
        self._alone(topology, specs)
        source = self.edge.partition("->")[0]
        frozen = {spec.segment for spec in specs if isinstance(spec, FrozenSpec)}
        if self.once and source not in frozen:
            raise RunError(
                f"defenses.once: gaussian: segment {source!r} learns, so what it sends of an example changes, and "
                f"cannot be sent once; add a defense kind = 'frozen' with segment = {source!r}, or leave once out"
            )

    def _alone(self, topology: Topology, specs: Sequence[Spec]) -> None:
        """Raises RunError where another defense of the same message would make the bound false."""
        crossing, before = self.crossing(topology), True
        for spec in specs:
            if spec is self:
                before = False
                continue
            reason = _spoils(spec, before) if spec.crossing(topology) == crossing else None
            if reason is not None:
                raise RunError(
                    f"defenses.kind: {spec.kind} and gaussian on {self.edge!r}: {reason}, so the noise would not bound "
                    f"what one record changes; leave {spec.kind} out"
                )

    def bounds(self, kind: Kind, edge: str, *, training: bool = True) -> tuple[Charge, ...]:
        del training
        if kind != self.message or edge != self.edge:
            return ()
        mu = gaussian_mu(self.sigma, adjacency=self.adjacency, orthant=self.nonnegative)
        text = f"gaussian sigma={self.sigma:g} clip={self.clip:g} {self.noise}"
        once = edge if self.once else ""
        return tuple(Charge(what, text, mu=mu, once=once, adjacency=self.adjacency) for what in DEPENDS[kind])

    def build(self, noise: Noise, classes: Mapping[str, int]) -> Gaussian:
        del classes
        return Gaussian(self, noise)


def _spoils(spec: Spec, before: bool) -> str | None:
    """Why a defense of the same message spoils the bound: it mixes rows before, or reads what is not noised after."""
    if isinstance(spec, GaussianSpec):
        return "its noise is drawn under the same name, and is not independent"
    if isinstance(spec, IsoSpec | MaxNormSpec | MarvellSpec):
        return "its noise follows from the other rows or the labels, and is drawn under the same name"
    if before and (isinstance(spec, SignSpec) or (isinstance(spec, PruneSpec) and spec.by == "batch")):
        return "one record changes what it leaves of all rows of the batch"
    return None


class Gaussian(OnMessage[GaussianSpec]):
    """The mechanism at one edge. It holds no state but what it has sent once."""

    def __init__(self, spec: GaussianSpec, noise: Noise) -> None:
        super().__init__(spec)
        self.step, self.scale = grid(spec.sigma * spec.clip)
        self._noise = noise
        self._sent: dict[str, _Sent] = {}
        self._memory = secrets.token_hex(4)  # of what was sent once; where it is lost, the ledger charges anew

    def outgoing(self, out: Outgoing) -> Tensor:
        """(batch, ...): clipped, noised, rescaled; its gradient is that of the clipped tensor."""
        wide = (
            out.tensor if out.tensor.dtype == torch.float64 else out.tensor.float()
        )  # half precision rounds too coarsely
        inside = clipped(wide, self.spec.clip, nonnegative=self.spec.nonnegative)
        released = self._noised(inside.detach(), out.name)
        if self.spec.once:
            sent = self._sent.setdefault(self._once(out), _Sent())
            released = sent.first(released, out.rows)
        if self.spec.rescale != 1:
            released = released * self.spec.rescale
        left: Tensor = _Replaced.apply(inside, released, self.spec.rescale)  # type: ignore[no-untyped-call]
        return left.to(out.tensor.dtype)

    def bounds(self, out: Outgoing) -> tuple[Charge, ...]:
        once = f"{self._once(out)}|{self._memory}" if self.spec.once else ""
        times = math.sqrt(out.of)  # each tensor of the message is clipped by itself
        charges = self.spec.bounds(out.kind, out.edge)
        return tuple(replace(charge, mu=charge.mu * times, once=once) for charge in charges)

    def state(self) -> dict[str, Tensor]:
        if not self._sent:
            return {}
        kept = {f"{key}/{part}": value for key, sent in self._sent.items() for part, value in sent.tensors().items()}
        return {"memory": torch.tensor(list(self._memory.encode()), dtype=torch.uint8), **kept}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        if not state:
            return
        self._memory = bytes(state["memory"].tolist()).decode()
        keys = {key.rpartition("/")[0] for key in state if key != "memory"}
        self._sent = {key: _Sent(state[f"{key}/rows"], state[f"{key}/values"]) for key in keys}

    def _noised(self, inside: Tensor, name: str) -> Tensor:
        shape = tuple(inside.shape)
        if self.spec.noise == "float":
            drawn = self._noise.normal(name, shape).to(inside)
            return inside + drawn.mul_(self.spec.sigma * self.spec.clip)
        lattice = torch.trunc(inside.double() / self.step).long()  # towards zero: the norm cannot grow
        lattice += self._noise.rounded_normal(name, shape, self.scale)
        return (lattice.double() * self.step).to(inside)

    def _once(self, out: Outgoing) -> str:
        return f"{out.edge}|{out.receiver}|{out.index}|{out.stamp.cast}|{'train' if out.stamp.training else 'eval'}"


def grid(deviation: float) -> tuple[float, float]:
    """(step, scale): a power-of-two grid step such that `deviation` is scale = 1024 to 2048 of them."""
    step = 2.0 ** math.floor(math.log2(deviation / STEPS))
    return step, deviation / step


def clipped(h: Tensor, clip: float, *, nonnegative: bool = False) -> Tensor:
    """Each example of h (batch, ...) scaled into the ball of radius `clip`; NaN counts as 0, any |h| > 1e18 as 1e18."""
    h = torch.nan_to_num(h).clamp(-LARGEST, LARGEST)
    if nonnegative:
        h = h.clamp(min=0)
    norms = torch.linalg.vector_norm(h.detach().flatten(1), dim=1, dtype=torch.float64)
    if bool((norms <= clip * INSIDE).all()):
        return h
    shape = (-1, *[1] * (h.ndim - 1))
    differentiable = torch.linalg.vector_norm(h.flatten(1), dim=1).clamp(min=1e-30)
    factor = (clip * INSIDE / differentiable).clamp(max=1.0)
    # The factor in force is the float64 one; the float32 one only carries the gradient.
    exact = (clip * INSIDE / norms.clamp(min=1e-300)).clamp(max=1.0).to(h.dtype)
    inside: Tensor = h * (factor + (exact - factor).detach()).view(shape)
    return inside


class _Sent:
    """The rows already sent, and what was sent of them."""

    def __init__(self, rows: Tensor | None = None, values: Tensor | None = None) -> None:
        self.place = {int(row): i for i, row in enumerate(rows)} if rows is not None else {}
        self.values = list(values) if values is not None else []

    def first(self, released: Tensor, rows: Tensor) -> Tensor:
        """(batch, ...): for each row what was sent of it first, which is `released` where it never was."""
        for row, value in zip(rows.tolist(), released, strict=True):
            if row not in self.place:
                self.place[row] = len(self.values)
                self.values.append(value.clone())
        return torch.stack([self.values[self.place[row]] for row in rows.tolist()])

    def tensors(self) -> dict[str, Tensor]:
        return {"rows": torch.tensor(list(self.place)), "values": torch.stack(self.values)}


class _Replaced(torch.autograd.Function):
    """What is released, exactly; backward, the gradient of what was clipped (a sum in floats could shift the grid)."""

    @staticmethod
    def forward(ctx: Any, inside: Tensor, released: Tensor, factor: float) -> Tensor:
        del inside
        ctx.factor = factor
        return released

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient * ctx.factor, None, None
