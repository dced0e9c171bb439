"""Victims for the tests of attacks: any topology trained in plain PyTorch, one cast, every message written down.

It is an implementation of its own, apart from the parties and drivers, so that the attacks are tested on messages
whose origin is plain to see.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, l1_loss, mse_loss

from secsplit import datasets
from secsplit.datasets import Dataset, DataSpec, Records
from secsplit.message import Kind, Message, Stamp
from secsplit.threat import Known, Knows, Snapshot, Threat, View
from secsplit.topology import Topology
from secsplit.transcript import Transcript

Defence = Callable[[Kind, Tensor], Tensor]
Optimiser = Callable[[str, nn.Module], torch.optim.Optimizer]


@dataclass
class Victim:
    """A trained run: what crossed, the models, and the truth (which only the tests look at)."""

    topology: Topology
    data: Dataset
    models: Mapping[str, nn.Module]
    transcripts: dict[str, Transcript]
    snapshots: dict[str, list[Snapshot]]
    orders: dict[int, Tensor] = field(default_factory=dict)

    def view(self, *roles: str, knows: frozenset[Knows] = frozenset(), clues: int = 1, pairs: int = 0) -> View:
        """What that coalition saw and, by the threat's grants, knows. Clues and pairs are the first rows in order."""
        train, test = self.data.train, self.data.test
        columns = [c for role in roles for c in self.topology.columns(role)]
        labels = [c for role in roles for c in self.topology.labels(role)]
        own = Known({c: train.inputs[c] for c in columns}, {c: train.labels[c] for c in labels}, *_rows(len(train)))
        clue = torch.cat([rows[:clues] for c in train.labels for rows in self._of_each_class(c)]).unique()
        weights = {s.name: _maker(self.models[s.name]) for s in self.topology.segments if s.role not in roles}
        return View(
            self.topology, roles, {role: self.transcripts[role] for role in roles},
            {s.name: tuple(self.snapshots[s.name]) for s in self.topology.segments if s.role in roles},
            {0: own}, self.data.classes, self.order,
            aux=Known(test.inputs, test.labels) if Knows.AUX in knows else None,
            clues=_known(train, clue, inputs=False) if Knows.CLUES in knows else None,
            pairs=_known(train, torch.arange(pairs), labels=False) if Knows.PAIRS in knows else None,
            prior={c: y.bincount().float() / len(y) for c, y in train.labels.items() if self.data.classes[c]}
            if Knows.PRIOR in knows else {},
            query={name: make() for name, make in weights.items()} if Knows.QUERY in knows else {},
            weights=weights if Knows.WEIGHTS in knows else {},
        )  # fmt: skip

    def order(self, stamp: Stamp) -> Tensor:
        return self.orders[stamp.step]

    def threat(self, *roles: str, knows: frozenset[Knows] = frozenset()) -> Threat:
        return Threat("test", roles, knows=knows)

    def truth(self, column: str, position: Tensor) -> Tensor:
        return self.data.train.labels[column][position]

    def _of_each_class(self, column: str) -> list[Tensor]:
        """The rows that were trained on: those of each class, or all where the label is a number."""
        seen = torch.cat(list(self.orders.values())).unique()
        label, count = self.data.train.labels[column][seen], self.data.classes[column]
        return [seen[label == k] for k in range(count)] if count else [seen]


def train(
    topology: Topology,
    data: Dataset,
    models: Mapping[str, nn.Module],
    *,
    epochs: int = 1,
    batch: int = 64,
    steps: int = 10**9,
    seed: int = 0,
    lr: float = 1e-3,
    optimiser: Optimiser | None = None,
    defence: Defence | None = None,
    frozen: tuple[str, ...] = (),
    record: bool = True,
) -> Victim:
    """Adam on every segment; the orders of the rows are drawn from `seed`."""
    make = optimiser or (lambda _, module: torch.optim.Adam(module.parameters(), lr))
    parameters = {name: m for name, m in models.items() if name not in frozen and any(True for _ in m.parameters())}
    optimisers = [make(name, module) for name, module in parameters.items()]
    victim = Victim(topology, data, models, {role: Transcript(role) for role in topology.roles},
                    {name: [_snapshot(-1, module)] for name, module in models.items()})  # fmt: skip
    coins = torch.Generator().manual_seed(seed)
    step = 0
    for epoch in range(epochs):
        for rows in torch.randperm(len(data.train), generator=coins).split(batch):
            if step >= steps:
                break
            victim.orders[step] = rows
            for o in optimisers:
                o.zero_grad(set_to_none=True)
            turn(victim, rows, Stamp(step, 0, epoch), defence, record=record)
            for o in optimisers:
                o.step()
            step += 1
        for name, module in models.items():
            victim.snapshots[name].append(_snapshot(step - 1, module))
    return victim


def turn(victim: Victim, rows: Tensor, stamp: Stamp, defence: Defence | None, *, record: bool) -> None:
    """Forward and backward through the graph, every edge cut; gradients are left on the parameters."""
    topology, train = victim.topology, victim.data.train

    def cross(kind: Kind, edge: str, sender: str, receiver: str, tensor: Tensor) -> Tensor:
        if sender == receiver:
            return tensor
        tensor = tensor if defence is None else defence(kind, tensor)
        message = Message(kind, edge, stamp, {"h": tensor.detach().clone()})
        for role, direction, peer in ((sender, "sent", receiver), (receiver, "received", sender)):
            if record:
                victim.transcripts[role].append(direction, peer, message)
        return tensor

    outputs: dict[str, Tensor] = {}
    leaves: dict[str, Tensor] = {}
    for segment in topology.order:
        inputs = [train.inputs[name.removeprefix("data:")][rows] for name in segment.columns]
        for name in segment.sources:
            edge = f"{name}->{segment.name}"
            sent = cross(Kind.SMASHED, edge, topology[name].role, segment.role, outputs[name].detach())
            leaves[edge] = sent.clone().requires_grad_()
            inputs.append(leaves[edge])
        merged = {"concat": lambda i: torch.cat(i, 1) if len(i) > 1 else i[0], "sum": sum,
                  "mean": lambda i: sum(i) / len(i)}[segment.merge](inputs)  # fmt: skip
        outputs[segment.name] = victim.models[segment.name](merged)
    grads: dict[str, Tensor] = {}
    for objective in topology.objectives:
        leaf = outputs[objective.segment].detach().requires_grad_()
        y = train.labels[objective.target][rows]
        cross(Kind.OUTPUT, objective.name, topology[objective.segment].role, objective.at, leaf.detach())
        cross(Kind.LABELS, objective.name, objective.holder, objective.at, y)
        (LOSSES[objective.loss](leaf, y) * objective.weight).backward()
        g = cross(Kind.OUTPUT_GRAD, objective.name, objective.at, topology[objective.segment].role, leaf.grad)
        grads[objective.segment] = grads.get(objective.segment, 0) + g
    for segment in reversed(topology.order):
        if outputs[segment.name].requires_grad:
            outputs[segment.name].backward(grads[segment.name])
        for name in segment.sources:
            edge = f"{name}->{segment.name}"
            g = leaves[edge].grad
            g = torch.zeros_like(leaves[edge]) if g is None else g
            g = cross(Kind.CUT_GRAD, edge, segment.role, topology[name].role, g)
            grads[name] = grads.get(name, 0) + g


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": cross_entropy,
    "binary_cross_entropy": lambda p, y: binary_cross_entropy_with_logits(p.flatten(), y.float()),
    "mse": lambda p, y: mse_loss(p.flatten(), y),
    "l1": lambda p, y: l1_loss(p.flatten(), y),
}


def mnistnet(cut: int, *, classes: int = 10, seed: int = 0) -> tuple[nn.Sequential, nn.Sequential]:
    """UnSplit's MnistNet in two: its first `cut` modules and the rest. 3: pool1, 6: pool2, 8: fc120, 10: fc84."""
    torch.manual_seed(seed)
    layers = [
        nn.Conv2d(1, 8, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Sequential(nn.Flatten(), nn.Linear(256, 120)), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(),
        nn.Linear(84, classes),
    ]  # fmt: skip
    return nn.Sequential(*layers[:cut]), nn.Sequential(*layers[cut:])


def mlp(*widths: int, last_relu: bool = False, seed: int = 0) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*(layers if last_relu else layers[:-1]))


@cache
def fashion() -> Dataset:
    """Fashion-MNIST, its published split."""
    return datasets.load(DataSpec(name="fashion-mnist"))


def part(data: Dataset, rows: Tensor) -> Dataset:
    """The same data set with fewer training records."""
    return Dataset(data.name, data.train.take(rows), data.test, data.classes, data.card)


def binary(data: Dataset, positive: int, *, share: float | None = None, n: int | None = None, seed: int = 0) -> Dataset:
    """One class against the rest; `share` of positives among `n` training records."""
    coins = torch.Generator().manual_seed(seed)

    def one_against_rest(records: Records) -> Records:
        return Records(records.inputs, {"y": (records.labels["y"] == positive).long()}, records.ids)

    train = one_against_rest(data.train)
    ones, rest = ((train.labels["y"] == k).nonzero().flatten() for k in (1, 0))
    n = n or len(train)
    share = share if share is not None else len(ones) / len(train)
    k = round(n * share)
    rows = torch.cat([ones[torch.randperm(len(ones), generator=coins)[:k]],
                      rest[torch.randperm(len(rest), generator=coins)[: n - k]]])  # fmt: skip
    return Dataset(data.name, train.take(rows), one_against_rest(data.test), {"y": 2}, data.card)


def _rows(n: int) -> tuple[Tensor, Tensor]:
    return torch.zeros(n, dtype=torch.int64), torch.arange(n)


def _known(records: Records, rows: Tensor, *, inputs: bool = True, labels: bool = True) -> Known:
    taken = records.take(rows)
    return Known(taken.inputs if inputs else {}, taken.labels if labels else {}, torch.zeros_like(rows), rows)


def _maker(module: nn.Module) -> Callable[[], nn.Module]:
    from copy import deepcopy

    kept = deepcopy(module)
    return lambda: deepcopy(kept)


def _snapshot(step: int, module: nn.Module) -> Snapshot:
    return Snapshot(step, _maker(module))
