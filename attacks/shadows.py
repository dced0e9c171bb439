"""Many shadow networks of one architecture, trained at once: each on its own records, with its own first weights.

All of them are one stack of weights and one batched computation (torch.func), so that sixteen cost little more than
one; what holds BatchNorm, whose statistics cannot be batched, is trained one after the other by the same code. This
file knows a topology's graph and no view: whose records they are trained on is the attack's affair.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional

from secsplit.topology import DATA, Objective, Topology
from secsplit.walk import Tensors, merged

Columns = Mapping[str, Tensor]
ELEMENTWISE: Mapping[str, Callable[..., Tensor]] = {
    "binary_cross_entropy": functional.binary_cross_entropy_with_logits,
    "mse": functional.mse_loss,
    "l1": functional.l1_loss,
}


def run(topology: Topology, networks: Mapping[str, Callable[..., Tensor | Tensors]], columns: Columns) -> list[Tensor]:
    """What each objective scores, for these records: the whole graph, one network a segment."""
    outputs: dict[str, Tensors] = {}
    for segment in topology.order:
        taken = [(columns[n.removeprefix(DATA)],) if n.startswith(DATA) else outputs[n] for n in segment.inputs]
        made = networks[segment.name](*merged(segment, taken))
        outputs[segment.name] = made if isinstance(made, tuple) else (made,)
    return [outputs[o.segment][0] for o in topology.objectives]


class Whole(nn.Module):
    """A topology's network in one piece: columns in, one score tensor an objective out."""

    def __init__(self, topology: Topology, segments: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.topology = topology
        self.segments = nn.ModuleDict(segments)

    def forward(self, columns: Columns) -> list[Tensor]:
        return run(self.topology, dict(self.segments.items()), columns)


def confidence(objectives: tuple[Objective, ...], scores: list[Tensor], labels: Columns) -> Tensor:
    """(n,): log-odds of the true labels, summed over the objectives; minus the loss where there are no classes."""
    total = torch.zeros(len(scores[0]), dtype=torch.float64)
    for o, score in zip(objectives, scores, strict=True):
        if o.target not in labels:
            continue
        y = labels[o.target]
        if o.loss == "cross_entropy" and score.ndim == 2:
            true = score.double().gather(1, y.long()[:, None])[:, 0]
            others = score.double().scatter(1, y.long()[:, None], -torch.inf).logsumexp(1)
            total = total + true - others
        else:
            total = total - losses(o.loss, score, y).double()
    return total


def losses(name: str, score: Tensor, y: Tensor) -> Tensor:
    """(n,): each row's loss, 0 where it has no label. Nothing here depends on the values, so that it can be batched."""
    if name == "cross_entropy":
        each = functional.cross_entropy(score, y.long(), ignore_index=-1, reduction="none")
        return each.reshape(len(each), -1).mean(1)
    missing = torch.isnan(y) if y.is_floating_point() else y < 0
    target = torch.where(missing, torch.zeros_like(y), y).to(score.dtype)
    each = ELEMENTWISE[name](score.reshape(target.shape), target, reduction="none")
    return torch.where(missing, torch.zeros_like(each), each).reshape(len(each), -1).mean(1)


@dataclass(frozen=True)
class Shadows:
    """count networks, trained. `confidences` gives (count, n) log-odds of labelled records."""

    blank: Whole
    parameters: dict[str, Tensor]
    buffers: dict[str, Tensor]
    count: int

    @torch.no_grad()
    def confidences(self, columns: Columns, labels: Columns) -> Tensor:
        found = []
        objectives = self.blank.topology.objectives
        self.blank.eval()
        for i in range(self.count):
            state = {name: value[i] for name, value in (*self.parameters.items(), *self.buffers.items())}
            found.append(confidence(objectives, functional_call(self.blank, state, (columns,)), labels))
        self.blank.train()
        return torch.stack(found)


def trained(
    nets: list[Whole],
    columns: Columns,
    labels: Columns,
    members: Tensor,
    *,
    epochs: int,
    batch: int,
    lr: float,
    enough: Callable[[Shadows], bool],
    coins: torch.Generator,
) -> Shadows:
    """Adam on all networks, each on its own rows; until `enough` says so after an epoch, or after so many.

    members: (networks, m) which rows each is trained on, as many for all.
    """
    count, m = members.shape
    parameters, buffers = stack_module_state(nets)
    for value in parameters.values():
        value.requires_grad_()
    blank = nets[0]
    shadows = Shadows(blank, parameters, buffers, count)
    together = not any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in blank.modules())
    optimizer = torch.optim.Adam(parameters.values(), lr)
    for _ in range(epochs):
        order = torch.rand(count, m, generator=coins).argsort(1)
        rows = members.gather(1, order)
        for part in rows.split(batch, dim=1):
            if part.shape[1] == 1:
                continue  # BatchNorm cannot learn from one record
            x = {name: values[part] for name, values in columns.items()}
            y = {name: values[part] for name, values in labels.items()}
            optimizer.zero_grad()
            loss = _loss(blank, parameters, buffers, x, y, together=together)
            loss.backward()
            optimizer.step()
        if enough(shadows):
            break
    return shadows


def _loss(
    blank: Whole, parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Columns, y: Columns, *, together: bool
) -> Tensor:
    """The sum over the networks of each one's loss on its own batch."""

    def one(p: dict[str, Tensor], b: dict[str, Tensor], x: Columns, y: Columns) -> Tensor:
        scores = functional_call(blank, (p, b), (x,))
        parts = [
            o.weight * losses(o.loss, score, y[o.target]).mean()
            for o, score in zip(blank.topology.objectives, scores, strict=True)
            if o.target in y
        ]
        return torch.stack(parts).sum()

    if together:
        each: Tensor = vmap(one, randomness="different")(parameters, buffers, x, y)
        return each.sum()
    alone = []
    for i in range(len(next(iter(parameters.values())))):
        parts = ({name: value[i] for name, value in table.items()} for table in (parameters, buffers, x, y))
        alone.append(one(*parts))
    return torch.stack(alone).sum()
