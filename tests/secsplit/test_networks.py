"""Real networks, cut and trained split, give the unsplit network's gradients: ResNet-18 with BatchNorm at any cut."""

import copy

import pytest
import torch
from torch.nn import functional as F

from secsplit.drive import simulate
from secsplit.models import build
from secsplit.models.spec import ModelSpec
from secsplit.party import Shard
from secsplit.topologies import named
from tests.secsplit.graphs import parties_of, run_of

SHAPE, CLASSES, ROWS = torch.Size((3, 32, 32)), 10, 8
CUTS = {
    "vanilla": [("relu",), ("maxpool",), ("layer1.0.conv1",), ("layer1",), ("layer2.0",), ("layer3",), ("layer4",)],
    "u_shaped": [("maxpool", "layer4"), ("layer1", "avgpool")],
    "multi_hop": [("relu", "layer1", "layer3")],
}
CASES = [(topology, cut) for topology, cuts in CUTS.items() for cut in cuts]


def in_order(modules: dict[str, torch.nn.Module]) -> dict[str, torch.Tensor]:
    return {name: p.grad for module in modules.values() for name, p in module.named_parameters() if p.grad is not None}


def readable(value: object) -> str:
    return "+".join(value) if isinstance(value, tuple) else str(value)


@pytest.mark.parametrize(("name", "cut"), CASES, ids=readable)
def test_resnet18_with_batch_normalisation_at_any_cut(name: str, cut: tuple[str, ...]) -> None:
    topology = named(name)
    if "relu" in cut or "layer1.0.conv1" in cut:
        spec = ModelSpec(name="resnet18", cut=cut, stem="cifar" if "relu" in cut else "imagenet", skips="cross")
    else:
        spec = ModelSpec(name="resnet18", cut=cut)
    modules = build(spec, topology, {"x": SHAPE}, {"y": CLASSES}, seed=3)
    oracle = build(spec, topology, {"x": SHAPE}, {"y": CLASSES}, seed=3)
    coins = torch.Generator().manual_seed(0)
    x, y = torch.randn(ROWS, *SHAPE, generator=coins), torch.randint(0, CLASSES, (ROWS,), generator=coins)
    records = {
        role: Shard(
            {split: dict.fromkeys(topology.columns(role), x) for split in ("train", "test")},
            {split: dict.fromkeys(topology.labels(role), y) for split in ("train", "test")},
        )
        for role in topology.roles
    }
    run = run_of(topology, batch_size=ROWS, evaluate_every=0)
    simulate(parties_of(run, modules, {0: records}))
    schedule = run.schedule({0: {"train": ROWS, "test": ROWS}})
    rows = schedule.rows(next(iter(schedule)))
    taken = (x[rows],)
    for segment in topology.order:
        made = oracle[segment.name](*taken)
        taken = made if isinstance(made, tuple) else (made,)
    F.cross_entropy(taken[0], y[rows]).backward()
    ours, theirs = in_order(modules), in_order(oracle)
    assert ours.keys() == theirs.keys()
    for key, gradient in theirs.items():
        torch.testing.assert_close(ours[key], gradient, rtol=1e-6, atol=1e-9)
    statistics = [m for m in modules.values() for m in m.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert statistics
    assert all(layer.num_batches_tracked == 1 for layer in statistics)


def test_several_models_built_apart_are_the_same() -> None:
    spec, topology = ModelSpec(name="resnet18", cut=("layer2",)), named("vanilla")
    one, two = (build(spec, topology, {"x": SHAPE}, {"y": CLASSES}, seed=3) for _ in range(2))
    for segment, module in one.items():
        for key, value in copy.deepcopy(module).state_dict().items():
            assert torch.equal(value, two[segment].state_dict()[key])
