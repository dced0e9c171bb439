"""Equality solving: private features as the solution of the linear equations that a linear model's answers are.

Luo, Wu, Xiao, Ooi, "Feature Inference Attack on Model Predictions in Vertical Federated Learning", ICDE 2021, arXiv
2010.10152, section IV (ESA). Whoever knows the weights and sees confidences v of c classes has c - 1 equations for each
record,
    ln v_{k+1} - ln v_k - (b_{k+1} - b_k) - (W_{k+1} - W_k)_own x_own = (W_{k+1} - W_k)_target x_target,
and logits or smashed data of a linear bottom give one equation a number. The least-squares solution of least norm is
exact wherever there are as many independent equations as features. The same equations invert every linear hop.

With fewer equations the solution of least norm is often further off than the mean. `around_mean` takes the solution
nearest to the mean of auxiliary records instead, which is never further off; that is ours and not the paper's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor, nn

from attacks.base import Attack, Goal, Guess, Need, Needs, NotApplicable
from attacks.observed import Observed, asked, latest
from attacks.upstream import Network, Upstream, column_of, known_networks, network_missing
from secsplit.message import Kind
from secsplit.threat import Knows, Threat, View
from secsplit.topology import DATA, Topology

LEAST = -27.6  # ln of a confidence that was rounded to zero
SEES = (Need(Kind.SMASHED), Need(Kind.OUTPUT))


@dataclass(frozen=True, kw_only=True)
class EqualitySolving(Attack):
    """Solve for one private column from messages that are linear in it, all weights being known.

    column: what to reconstruct (None: the first private one that goes in); edge: which messages (None: smashed data
    first, the shallowest); around_mean: solve for the deviation from the auxiliary mean.
    """

    name: ClassVar[str] = "equality-solving"
    paper: ClassVar[str] = "Luo et al., ICDE 2021, arXiv 2010.10152"
    goal: ClassVar[Goal] = "input"
    needs: ClassVar[Needs] = Needs(any_of=SEES)
    cost: ClassVar[float] = 1.0

    column: str | None = None
    edge: str | None = None
    around_mean: bool = False

    def why_not(self, topology: Topology, threat: Threat) -> str | None:
        return super().why_not(topology, threat) or network_missing(topology, threat, {Knows.WEIGHTS})

    def infer(self, view: View, *, coins: torch.Generator) -> Guess:
        answers = answering(view, self.edge)
        column = column_of(answers.up, self.column or answers.hidden[0])
        rows = answers.rows
        start = answers.spread_out(answers.mean if self.around_mean else None, len(rows))
        matrix = answers.equations(coins)  # (equations, unknowns)
        residual = answers.linear(rows.values) - answers(start, rows)
        solved = start + residual @ torch.linalg.pinv(matrix).T
        made = answers.columns(answers.clamped(solved))[column]
        facts = {
            "equations": matrix.shape[0],
            "unknowns": matrix.shape[1],
            "rank": int(torch.linalg.matrix_rank(matrix)),
        }
        return Guess("input", column, rows.cast, rows.position, rows.step, inputs=made, facts=facts)


@dataclass(frozen=True)
class Answers:
    """What an adversary sees of each record, as a function of the private columns it does not hold; in doubles.

    shapes: hidden column -> the shape of one record in it; rows: what was seen, newest first.
    """

    view: View
    up: Upstream
    networks: Mapping[str, Network]
    rows: Observed
    shapes: Mapping[str, torch.Size]

    @property
    def hidden(self) -> tuple[str, ...]:
        return tuple(self.shapes)

    def __call__(self, unknown: Tensor, rows: Observed) -> Tensor:
        """(n, equations) the answers for those rows if their hidden columns were `unknown` (n, unknowns)."""
        return self.linear(self.raw(unknown, rows))

    def raw(self, unknown: Tensor, rows: Observed) -> Tensor:
        own = {column: self.own(column, rows) for column in self.up.columns if column not in self.shapes}
        return self.up.run(self.networks, self.columns(unknown) | own)

    def linear(self, values: Tensor) -> Tensor:
        """(n, equations) linear in the logits: confidences and their logarithms as log ratios of neighbours."""
        values = values.flatten(1).double()
        if self.confidences:
            values = values.log()
        return values.clamp_min(LEAST).diff(dim=1) if self.normalised else values

    @cached_property
    def confidences(self) -> bool:
        """Whether the model answers with probabilities."""
        made = self._sample
        return made.shape[1] > 1 and bool((made >= 0).all() and torch.allclose(made.sum(1), torch.ones(()).double()))

    @cached_property
    def normalised(self) -> bool:
        """Whether it answers with probabilities or their logarithms, so that one number a record is not free."""
        made = self._sample
        zero = torch.zeros(()).double()
        return self.confidences or (made.shape[1] > 1 and torch.allclose(made.logsumexp(1), zero, atol=1e-9))

    @cached_property
    def _sample(self) -> Tensor:
        few = self.rows.take(torch.arange(min(16, len(self.rows))))
        return self.raw(self.spread_out(None, len(few)), few).flatten(1)

    def own(self, column: str, rows: Observed) -> Tensor:
        """(n, ...) the adversary's own column of those rows."""
        first = next(known.inputs[column] for known in self.view.own.values() if column in known.inputs)
        taken = first.new_empty(len(rows), *first.shape[1:])
        for cast in rows.cast.unique().tolist():
            mine = rows.cast == cast
            taken[mine] = self.view.own[cast].inputs[column][rows.position[mine]]
        return taken.double()

    def columns(self, unknown: Tensor) -> dict[str, Tensor]:
        """The hidden columns that a matrix (n, unknowns) holds side by side."""
        parts = torch.split(unknown, [shape.numel() for shape in self.shapes.values()], dim=1)
        return {c: part.reshape(-1, *shape) for part, (c, shape) in zip(parts, self.shapes.items(), strict=True)}

    def equations(self, coins: torch.Generator) -> Tensor:
        """(equations, unknowns) the matrix of the linear map. Raises NotApplicable where the map is not linear."""
        one = self.rows.take(torch.zeros(1, dtype=torch.int64))
        width = sum(shape.numel() for shape in self.shapes.values())
        unit = torch.eye(width, dtype=torch.float64)
        many = one.take(torch.zeros(width, dtype=torch.int64))
        origin = self(unit[:1] * 0, one)
        matrix = (self(unit, many) - origin).T
        probe = torch.randn(1, width, generator=coins, dtype=torch.float64)
        if not torch.allclose(self(probe, one), origin + probe @ matrix.T, rtol=1e-6, atol=1e-8):
            raise NotApplicable(f"what crosses {self.up.edge!r} is not linear in {', '.join(self.hidden)}")
        return matrix

    @property
    def mean(self) -> Tensor | None:
        """(unknowns,) the mean of the auxiliary records, where there are any."""
        known = self._auxiliary()
        return None if known is None else known.mean(0)

    def spread_out(self, start: Tensor | None, n: int) -> Tensor:
        width = sum(shape.numel() for shape in self.shapes.values())
        return torch.zeros(n, width, dtype=torch.float64) if start is None else start.expand(n, -1)

    def clamped(self, unknown: Tensor) -> Tensor:
        """Within the range of all auxiliary values, and as much again on either side, so that no outlier is cut off."""
        known = self._auxiliary()
        if known is None:
            return unknown
        low, high = float(known.min()), float(known.max())
        return unknown.clamp(2 * low - high, 2 * high - low)

    def ranges(self) -> tuple[Tensor, Tensor]:
        """(unknowns,) the least and the greatest auxiliary value of each feature; 0 and 1 where there are none."""
        known = self._auxiliary()
        if known is None:
            width = sum(shape.numel() for shape in self.shapes.values())
            return torch.zeros(width).double(), torch.ones(width).double()
        return known.min(0).values, known.max(0).values

    def _auxiliary(self) -> Tensor | None:
        if self.view.aux is None or any(column not in self.view.aux.inputs for column in self.shapes):
            return None
        return torch.cat([self.view.aux.inputs[column].flatten(1).double() for column in self.shapes], dim=1)


def answering(view: View, edge: str | None = None) -> Answers:
    """The messages from hidden columns, and the networks between. Raises NotApplicable where either is missing."""
    for kind in (Kind.SMASHED, Kind.OUTPUT):
        for name in view.edges(kind):
            segment = name if kind is Kind.SMASHED else _scored(view.topology, name)
            up = Upstream(view.topology, segment)
            held = {column for known in view.own.values() for column in known.inputs}
            hidden = [column for column in up.columns if column not in held]
            networks = known_networks(view, up, query=False)
            if edge in (None, name) and hidden and len(networks) == len(up.segments):
                doubled = {n: m.double() if isinstance(m, nn.Module) else m for n, m in networks.items()}
                rows = latest(view, kind, edge=name)
                rows = rows.take(asked(view, rows))
                return Answers(view, up, doubled, rows, _shapes(view, up, networks, hidden))
    raise NotApplicable("it has no message from a private column, with the weights of every segment between, to solve")


def _scored(topology: Topology, objective: str) -> str:
    return next(o.segment for o in topology.objectives if o.name == objective)


def _shapes(view: View, up: Upstream, networks: Mapping[str, Network], hidden: Sequence[str]) -> dict[str, torch.Size]:
    """From records of its own kind, else from the weights: the first linear layer of what a column goes into."""
    shapes: dict[str, torch.Size] = {}
    for column in hidden:
        for known in (view.aux, view.pairs):
            if known is not None and column in known.inputs:
                shapes[column] = known.inputs[column].shape[1:]
        for segment in up.segments:
            network = networks[segment.name]
            if column not in shapes and segment.inputs == (DATA + column,) and isinstance(network, nn.Module):
                first = next((layer for layer in network.modules() if isinstance(layer, nn.Linear)), None)
                shapes |= {} if first is None else {column: torch.Size([first.in_features])}
        if column not in shapes:
            raise NotApplicable(f"it does not know the shape of {column!r}")
    return shapes
