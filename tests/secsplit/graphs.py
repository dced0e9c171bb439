"""Graphs, small modules and made-up records for tests, and the unsplit network that every split run must equal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from secsplit.losses import LOSSES
from secsplit.party import Party, Shard
from secsplit.run import Run
from secsplit.runfile import parse
from secsplit.topologies import named
from secsplit.topology import DATA, Objective, Segment, Topology
from secsplit.walk import merged

WIDTH, CLASSES, ROWS = 6, 3, 24

DIAMOND = Topology(
    "diamond",
    (
        Segment("left", "clinic", ("data:a",)),
        Segment("right", "lab", ("data:b",)),
        Segment("hop", "relay", ("left", "right")),
        Segment("top", "server", ("hop", "left")),  # left skips around the hop
    ),
    (Objective("loss", "top", holder="registry", at="server"),),  # labels at a party that computes nothing
)

GRAPHS = {
    "vanilla": named("vanilla"),
    "vanilla-server-labels": named("vanilla", labels="server"),
    "u_shaped": named("u_shaped"),
    "vertical": named("vertical"),
    "vertical-3": named("vertical", modalities=("a", "b", "c"), labels="a"),
    "extended_vanilla": named("extended_vanilla"),
    "multi_task": named("multi_task"),
    "multi_task-3": named("multi_task", clients=1, tasks=("y", "y2", "y3")),
    "multi_hop": named("multi_hop"),
    "multi_hop-5": named("multi_hop", hops=5, labels="client-1"),
    "diamond": DIAMOND,
}
SIX = ("vanilla", "u_shaped", "vertical", "extended_vanilla", "multi_task", "multi_hop")


def run_of(topology: Topology, *, parties: Mapping[str, str] | None = None, **train: object) -> Run:
    """A run of that graph, one party a role (named after it) unless `parties` (name -> role) says otherwise."""
    parties = parties or {role: role for role in topology.roles}
    columns = {column: "all" for role in topology.roles for column in topology.columns(role)}
    labels = {label: label for role in topology.roles for label in topology.labels(role)}
    tables = {
        "parties": {name: {"role": role} for name, role in parties.items()},
        "train": {"batch_size": 8, **train},
        "data": {"modalities": columns or {"x": "all"}, "labels": labels or {"y": "y"}},
        "method": {"name": "sl-am" if topology.crossings else "federated"},
    }
    return Run.of(parse(tables), topology)


def width_in(topology: Topology, segment: Segment) -> int:
    return WIDTH * (len(segment.inputs) if segment.merge == "concat" else 1)


def module_of(topology: Topology, segment: Segment, *, dropout: float = 0.0) -> nn.Module:
    width = CLASSES if topology.scored(segment.name) else WIDTH
    layers: list[nn.Module] = [nn.Linear(width_in(topology, segment), 10), nn.Tanh(), nn.Linear(10, width)]
    return nn.Sequential(*layers, *([nn.Dropout(dropout)] if dropout and width == WIDTH else []))


def modules_of(topology: Topology, *, seed: int = 0, dropout: float = 0.0) -> dict[str, nn.Module]:
    """float64 modules for every segment."""
    torch.manual_seed(seed)
    return {s.name: module_of(topology, s, dropout=dropout).double() for s in topology.order}


def records_of(topology: Topology, *, rows: int = ROWS, seed: int = 1) -> dict[str, Shard]:
    """role -> made-up records of the columns and labels that the role holds; the test records are the same."""
    coins = torch.Generator().manual_seed(seed)
    columns = {
        c: torch.randn(rows, WIDTH, generator=coins).double() for r in topology.roles for c in topology.columns(r)
    }
    labels = {
        c: torch.randint(0, CLASSES, (rows,), generator=coins) for r in topology.roles for c in topology.labels(r)
    }
    shards = {}
    for role in topology.roles:
        mine = {c: columns[c] for c in topology.columns(role)}
        held = {c: labels[c] for c in topology.labels(role)}
        shards[role] = Shard({"train": mine, "test": mine}, {"train": held, "test": held})
    return shards


SGD = partial(torch.optim.SGD, lr=0.1)


def parties_of(
    run: Run,
    modules: Mapping[str, nn.Module],
    records: Mapping[int, Mapping[str, Shard]],
    make_optimizer: object = SGD,
) -> dict[str, Party]:
    """All parties of a run; records: cast -> role -> shard. Segments of a shared role are copied for each party."""
    parties = {}
    for name, spec in run.file.parties.items():
        held = {s.name: modules[s.name] for s in run.topology.held(spec.role)}
        if spec.role in run.cohort_roles:
            held = {segment: _copy(module) for segment, module in held.items()}
        shards = {cast: records[cast][spec.role] for cast in run.casts_of(name)}
        parties[name] = Party(run, name, held, shards, make_optimizer)  # type: ignore[arg-type]
    return parties


def _copy(module: nn.Module) -> nn.Module:
    import copy

    return copy.deepcopy(module)


def unsplit_loss(
    topology: Topology, modules: Mapping[str, nn.Module], records: Mapping[str, Shard], rows: Tensor
) -> Tensor:
    """The same network as one autograd graph, nothing detached: the oracle."""
    outputs: dict[str, Tensor] = {}
    for segment in topology.order:
        taken = []
        for name in segment.inputs:
            if name.startswith(DATA):
                taken.append((records[segment.role].inputs["train"][name.removeprefix(DATA)][rows],))
            else:
                taken.append((outputs[name],))
        outputs[segment.name] = modules[segment.name](*merged(segment, taken))
    losses = [
        LOSSES[o.loss](outputs[o.segment], records[o.holder].labels["train"][o.target][rows]) * o.weight
        for o in topology.objectives
    ]
    return torch.stack(losses).sum()


def gradients(modules: Iterable[nn.Module]) -> list[Tensor]:
    return [p.grad.clone() for m in modules for p in m.parameters() if p.grad is not None]
