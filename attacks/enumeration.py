"""Enumeration: which label, or which private features, would have sent exactly this gradient back?

Qiu, Leontiadis, Melis, Sablayrolles, Stock, "Evaluating Privacy Leakage in Split Learning", 2023, arXiv 2305.12997
(EXACT). Private values of a table are few. For every candidate the gradient that it would give at the adversary's own
cut is computed through the label party's network, and the candidate whose gradient lies nearest to the one that came
back is named. The weights of the segments on the way must be known; those of the last turns are the ones known best, so
each row's last gradient is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import ClassVar

import torch
from torch import Tensor

from attacks.base import Attack, Goal, Guess, Need, Needs, NotApplicable
from attacks.model_completion import own_edges
from attacks.observed import Observed, asked, find, latest
from attacks.rows import secret_column, untold
from attacks.upstream import Network, Upstream, known_networks
from secsplit.losses import LOSSES
from secsplit.message import Kind
from secsplit.threat import Knows, View
from secsplit.topology import Objective

SEES = (Need(Kind.SMASHED, "sent"), Need(Kind.CUT_GRAD))
AT_ONCE = 1 << 14  # rows x candidates put through the network together


@dataclass(frozen=True, kw_only=True)
class LabelEnumeration(Attack):
    """Name the label whose gradient through the known network lies nearest to the one that came back.

    column: the label column (None: the first secret one); candidates: at most so many combinations of the label and of
    hidden features, which are tried too where they go in.
    """

    name: ClassVar[str] = "label-enumeration"
    paper: ClassVar[str] = "Qiu et al., 2023, arXiv 2305.12997"
    goal: ClassVar[Goal] = "label"
    needs: ClassVar[Needs] = Needs(
        messages=SEES, knows=frozenset({Knows.WEIGHTS}), own_records=True, secret_labels=True
    )
    cost: ClassVar[float] = 10.0

    column: str | None = None
    candidates: int = 1000

    def infer(self, view: View, *, coins: torch.Generator) -> Guess:
        found = enumerated(view, self.column, self.candidates)
        count = view.classes[found.objective.target]
        scores = torch.full((len(found.rows), count), -torch.inf)
        label = found.label.expand(len(found.rows), -1)
        scores.scatter_reduce_(1, label, -found.distance, "amax")
        rows = found.rows
        guess = Guess(
            "label",
            found.objective.target,
            rows.cast,
            rows.position,
            rows.step,
            scores=scores,
            labels=scores.argmax(1),
            facts={"candidates": len(found.label)},
        )
        return untold(guess, view.clues)


@dataclass(frozen=True, kw_only=True)
class FeatureEnumeration(Attack):
    """Name the private features whose gradient lies nearest to the one that came back; the label is tried with them.

    hidden: the column to reconstruct (None: the first that the adversary does not hold); column: the label column;
    candidates: at most so many combinations, of the values that auxiliary records have.
    """

    name: ClassVar[str] = "feature-enumeration"
    paper: ClassVar[str] = "Qiu et al., 2023, arXiv 2305.12997"
    goal: ClassVar[Goal] = "input"
    needs: ClassVar[Needs] = Needs(
        messages=SEES, knows=frozenset({Knows.WEIGHTS, Knows.AUX}), own_records=True, secret_labels=True
    )
    cost: ClassVar[float] = 20.0

    column: str | None = None
    hidden: str | None = None
    candidates: int = 1000

    def infer(self, view: View, *, coins: torch.Generator) -> Guess:
        found = enumerated(view, self.column, self.candidates)
        name = self.hidden or next(iter(found.features), None)
        if name is None or name not in found.features:
            raise NotApplicable(f"no hidden column {name or ''!r} goes into what the loss is computed of")
        best = found.distance.argmin(1)
        rows, facts = found.rows, {"candidates": len(found.label)}
        made = found.features[name][best]
        return Guess("input", name, rows.cast, rows.position, rows.step, inputs=made, facts=facts)


@dataclass(frozen=True)
class Enumerated:
    """distance: (n, candidates) between each row's gradient and what a candidate would give.

    label: (candidates,) the candidates' labels; features: hidden column -> (candidates, ...) their features.
    """

    objective: Objective
    rows: Observed
    label: Tensor
    features: Mapping[str, Tensor]
    distance: Tensor


def enumerated(view: View, column: str | None, most: int) -> Enumerated:
    """Try every candidate on every row. Raises NotApplicable where weights are missing or candidates are too many."""
    column = secret_column(view, column)
    objective = next(o for o in view.topology.objectives if o.target == column)
    whole = Upstream(view.topology, objective.segment)
    networks = known_networks(view, whole, query=False)
    edges = [e for e in own_edges(view.topology, view.roles) if e.split("->")[0] in networks]
    if len(edges) != 1 or len(networks) != len(whole.segments):
        raise NotApplicable("it needs the weights of every segment to the loss, and one cut of its own before them")
    sent = latest(view, Kind.SMASHED, edge=edges[0], direction="sent")
    back = latest(view, Kind.CUT_GRAD, edge=edges[0])
    place = find(back, sent)
    back = back.take((place >= 0).nonzero().flatten())
    back = _own_losses(view, edges[0], back.take(asked(view, back)))
    sent = sent.take(find(back, sent))
    held = {name for known in view.own.values() for name in known.inputs}
    label, features = _candidates(view, [c for c in whole.columns if c not in held], column, most)
    own = edges[0].split("->")[0]
    chunk = max(1, AT_ONCE // len(label))
    distance = [
        _distance(view, whole, networks, own, objective, sent.take(i), back.take(i), label, features)
        for i in torch.arange(len(back)).split(chunk)
    ]
    return Enumerated(objective, back, label, features, torch.cat(distance))


def _distance(
    view: View,
    whole: Upstream,
    networks: Mapping[str, Network],
    own: str,
    objective: Objective,
    sent: Observed,
    back: Observed,
    label: Tensor,
    features: Mapping[str, Tensor],
) -> Tensor:
    """(n, candidates): one pass forward and back for all rows and candidates; rows do not touch each other."""
    n, m = len(sent), len(label)
    leaf = sent.values.repeat_interleave(m, 0).requires_grad_()
    columns = {name: values.repeat(n, *[1] * (values.ndim - 1)) for name, values in features.items()}
    for name in whole.columns:
        if name not in columns:
            mine = [view.own[c].inputs[name][p] for c, p in zip(sent.cast.tolist(), sent.position, strict=True)]
            columns[name] = torch.stack(mine).repeat_interleave(m, 0)
    made = whole.run({**networks, own: lambda *_: leaf}, columns)
    loss = LOSSES[objective.loss](made, label.repeat(n)) * (n * m)  # the mean over rows undone: each row's own loss
    (g,) = torch.autograd.grad(loss, leaf)
    distance: Tensor = (g.reshape(n, m, -1) - back.values.reshape(n, 1, -1)).norm(dim=2)
    return distance


def _own_losses(view: View, edge: str, back: Observed) -> Observed:
    """The gradients of each row's own loss: what came back is that of the mean over its turn's rows."""
    size: dict[int, int] = {}
    for record in view.records(Kind.CUT_GRAD, edge=edge):
        size[record.stamp.step] = size.get(record.stamp.step, 0) + next(iter(record.shapes.values()))[1][0]
    factor = torch.tensor([size[step] for step in back.step.tolist()]).to(back.values)
    return back.holding(back.values * factor.reshape(-1, *[1] * (back.values.ndim - 1)))


def _candidates(view: View, hidden: list[str], column: str, most: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Every combination of the label's classes and of the values that each hidden feature takes among aux records."""
    count = view.classes.get(column, 0)
    if count < 2:
        raise NotApplicable(f"label {column!r} has no classes to enumerate")
    known = view.aux.inputs if view.aux is not None else {}
    if missing := [name for name in hidden if name not in known]:
        raise NotApplicable(f"the values that {', '.join(missing)} may take are not known")
    values = [feature.unique() for name in hidden for feature in known[name].flatten(1).T]
    if count * prod(map(len, values)) > most:
        raise NotApplicable(f"{count * prod(map(len, values))} candidates; at most {most} are tried")
    table = torch.tensor(list(product(range(count), *(v.tolist() for v in values))), dtype=torch.float64)
    features, start = {}, 1
    for name in hidden:
        shape = known[name].shape[1:]
        features[name] = table[:, start : start + shape.numel()].reshape(-1, *shape).to(known[name].dtype)
        start += shape.numel()
    return table[:, 0].long(), features
