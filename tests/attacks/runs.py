"""Victims to attack: networks trained in plain PyTorch over a topology's graph, every crossing recorded.

Written without the project's parties and drivers, so that attacks are tested against an independent rendering of
split training: one autograd graph, whose cut tensors are read off. One party a role, one cast.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor, nn

from attacks.base import Guess
from audits import images
from secsplit.datasets import DataSpec, load
from secsplit.message import Kind, Message, Stamp
from secsplit.threat import Known, Knows, Snapshot, View
from secsplit.topologies import named
from secsplit.topology import DATA, Topology
from secsplit.transcript import Transcript

Columns = Mapping[str, Tensor]


@dataclass
class Victim:
    """A finished run: what everybody saw, and the truth, which only tests may read."""

    topology: Topology
    nets: Mapping[str, nn.Module]
    snapshots: Mapping[str, list[Snapshot]]
    transcripts: Mapping[str, Transcript]  # role -> its transcript
    inputs: Columns
    labels: Columns
    classes: Mapping[str, int]
    order: dict[int, Tensor] = field(default_factory=dict)  # step -> positions

    def view(
        self,
        *roles: str,
        aux: tuple[Columns, Columns] | None = None,
        knows: frozenset[Knows] | set[Knows] = frozenset(),
        asked: Tensor | None = None,
    ) -> View:
        """What a coalition of `roles` saw, with what `knows` grants it of the segments it does not hold."""
        theirs = [s.name for s in self.topology.segments if s.role not in roles]
        last = {name: copy.deepcopy(net).eval().requires_grad_(False) for name, net in self.nets.items()}

        def blank(name: str) -> nn.Module:
            net = copy.deepcopy(self.nets[name])
            for module in net.modules():
                if hasattr(module, "reset_parameters"):
                    module.reset_parameters()
            return net

        own = {
            0: Known(
                {c: self.inputs[c] for role in roles for c in self.topology.columns(role)},
                {c: self.labels[c] for role in roles for c in self.topology.labels(role)},
                torch.zeros(self.rows, dtype=torch.int64),
                torch.arange(self.rows),
            )
        }
        return View(
            topology=self.topology,
            roles=roles,
            transcripts={role: self.transcripts[role] for role in roles},
            models={s.name: tuple(self.snapshots[s.name]) for s in self.topology.segments if s.role in roles},
            own=own,
            classes=self.classes,
            order=lambda stamp: self.order[stamp.step],
            shapes={name: column.shape[1:] for name, column in self.inputs.items()},
            asked={} if asked is None else {0: asked},
            aux=Known(*aux) if aux else None,
            query={n: last[n] for n in theirs} if Knows.QUERY in knows else {},
            architecture={n: (lambda n=n: blank(n)) for n in theirs} if Knows.ARCHITECTURE in knows else {},
            weights={n: (lambda n=n: copy.deepcopy(last[n])) for n in theirs} if Knows.WEIGHTS in knows else {},
        )

    @property
    def rows(self) -> int:
        return len(next(iter(self.inputs.values())))

    def noise(self, *roles: str, **options: object) -> View:
        """The same view with noise in place of every message: the empty-handed control."""
        view = self.view(*roles, **options)  # type: ignore[arg-type]
        coins = torch.Generator().manual_seed(99)
        transcripts = {}
        for role, transcript in view.transcripts.items():
            empty = Transcript(role)
            for r in transcript:
                tensors = {
                    n: torch.randn(t.shape, generator=coins) * t.std() + t.mean() if t.is_floating_point() else t
                    for n, t in r.tensors.items()
                }
                empty.append(r.direction, r.peer, Message(r.kind, r.edge, r.stamp, tensors))
            transcripts[role] = empty
        return View(**{**view.__dict__, "transcripts": transcripts})


def train(
    topology: Topology,
    nets: Mapping[str, nn.Module],
    inputs: Columns,
    labels: Columns,
    classes: Mapping[str, int],
    *,
    steps: int,
    batch: int = 64,
    lr: float = 1e-3,
    seed: int = 0,
    keep: int | None = None,
    snapshot_every: int = 0,
) -> Victim:
    """Adam on every segment; only the last `keep` steps are recorded (None: all)."""
    coins = torch.Generator().manual_seed(seed)
    rows = len(next(iter(inputs.values())))
    victim = Victim(
        topology,
        nets,
        {name: [] for name in nets},
        {role: Transcript(role) for role in topology.roles},
        inputs,
        labels,
        classes,
    )
    optimizer = torch.optim.Adam([p for net in nets.values() for p in net.parameters()], lr=lr)
    queue = torch.empty(0, dtype=torch.int64)
    for step in range(steps):
        if step == 0 or (snapshot_every and step % snapshot_every == 0):
            _snap(victim, step - 1)
        if len(queue) < batch:
            queue = torch.randperm(rows, generator=coins)
        index, queue = queue[:batch], queue[batch:]
        outputs: dict[str, Tensor] = {}
        for s in topology.order:
            parts = [inputs[n.removeprefix(DATA)][index] if n.startswith(DATA) else outputs[n] for n in s.inputs]
            merged = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
            outputs[s.name] = nets[s.name](merged)
            outputs[s.name].retain_grad()
        loss = sum(
            o.weight * nn.functional.cross_entropy(outputs[o.segment], labels[o.target][index])
            for o in topology.objectives
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if keep is None or step >= steps - keep:
            victim.order[step] = index
            _record(victim, step, index, outputs)
        optimizer.step()
    _snap(victim, steps - 1)
    return victim


def _record(victim: Victim, step: int, index: Tensor, outputs: Mapping[str, Tensor]) -> None:
    stamp = Stamp(step)
    for crossing in victim.topology.crossings:
        objective = next((o for o in victim.topology.objectives if o.name == crossing.edge), None)
        source = objective.segment if objective else crossing.edge.split("->")[0]
        if crossing.kind is Kind.LABELS:
            assert objective is not None
            tensor = victim.labels[objective.target][index]
        elif crossing.kind in (Kind.CUT_GRAD, Kind.OUTPUT_GRAD):
            grad = outputs[source].grad
            assert grad is not None
            tensor = grad.clone()
        else:
            tensor = outputs[source].detach().clone()
        message = Message(crossing.kind, crossing.edge, stamp, {"h": tensor})
        victim.transcripts[crossing.sender].append("sent", crossing.receiver, message)
        victim.transcripts[crossing.receiver].append("received", crossing.sender, message)


def _snap(victim: Victim, step: int) -> None:
    for name, net in victim.nets.items():
        frozen = copy.deepcopy(net).eval().requires_grad_(False)
        victim.snapshots[name].append(Snapshot(step, lambda frozen=frozen: copy.deepcopy(frozen)))


@dataclass(frozen=True)
class Score:
    """How good a guess of images was: means over its rows, and the best blind rival, the mean image."""

    mse: float
    ssim: float
    reid: float
    correlation: float
    affine: float
    mean_mse: float
    pool: int


def score(victim: Victim, guess: Guess, *, column: str = "x", pool: int = 5000) -> Score:
    """Against the truth; re-identified among `pool` private images, the true ones included."""
    assert guess.inputs is not None
    truth = victim.inputs[column]
    rest = torch.ones(len(truth), dtype=torch.bool)
    rest[guess.position] = False
    candidates = torch.cat([truth[guess.position], truth[rest][: max(0, pool - len(guess.position))]])
    by = "correlation" if guess.up_to_affine else "l2"
    found = images.reidentified(guess.inputs, candidates, torch.arange(len(guess.position)), by=by)
    true = truth[guess.position]
    f = images.fidelity(guess.inputs, true)
    mean = images.mse(truth.mean(0, keepdim=True).expand_as(true), true)
    figures = (f.mse, f.ssim, found, f.correlation, f.affine_mse, mean)
    return Score(*(float(values.mean()) for values in figures), len(candidates))


@cache
def fashion() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """60000 images to train on and their classes, 10000 of the test set and theirs."""
    data = load(DataSpec(name="fashion-mnist"))
    return data.train.inputs["x"], data.train.labels["y"], data.test.inputs["x"], data.test.labels["y"]


@cache
def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The 8x8 digits, split alike."""
    data = load(DataSpec(name="digits"))
    return data.train.inputs["x"], data.train.labels["y"], data.test.inputs["x"], data.test.labels["y"]


def mnistnet(seed: int) -> nn.Sequential:
    """UnSplit's MnistNet (Erdogan et al. 2022), as a flat list of modules to cut anywhere."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 8, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Sequential(nn.Flatten(), nn.Linear(256, 120)), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip


def digitnet(seed: int) -> nn.Sequential:
    """A small network for 8x8 digits: cut 2 gives 8 feature maps, cut 4 a vector of 64."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(),
        nn.Sequential(nn.Flatten(), nn.Linear(512, 64)), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10),
    )  # fmt: skip


def split(net: nn.Sequential, *cuts: int) -> list[nn.Sequential]:
    """The pieces between the cuts."""
    edges = [0, *cuts, len(net)]
    return [net[a:b] for a, b in pairwise(edges)]


def small(topology: str = "vanilla", cuts: Sequence[int] = (2,), *, seed: int = 0, steps: int = 150) -> Victim:
    """A victim on the digits, in about a second; the topology's segments are the pieces between the cuts."""
    x, y, _, _ = digits()
    graph = named(topology)
    nets = dict(zip([s.name for s in graph.order], split(digitnet(seed), *cuts), strict=True))
    return train(graph, nets, {"x": x}, {"y": y}, {"y": 10}, steps=steps, lr=3e-3, seed=seed, snapshot_every=50)


@cache
def setup_s(topology: str = "vanilla", cuts: tuple[int, ...] = (6,), seed: int = 0, steps: int = 1876) -> Victim:
    """Set-up S: MnistNet on Fashion-MNIST, Adam 1e-3, batches of 64, two epochs; the last 400 steps recorded."""
    x, y, _, _ = fashion()
    graph = named(topology)
    nets = dict(zip([s.name for s in graph.order], split(mnistnet(seed), *cuts), strict=True))
    return train(graph, nets, {"x": x}, {"y": y}, {"y": 10}, steps=steps, seed=seed, keep=400, snapshot_every=50)
