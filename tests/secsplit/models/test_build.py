"""Modules for every segment of every topology: the unsplit model where it is a chain, the same for all who build it."""

from typing import Any

import pytest
import torch
from torch import nn

from secsplit.errors import CutError, RunError
from secsplit.models import ModelSpec, build, network
from secsplit.topologies import named
from secsplit.topology import Objective, Segment, Topology
from secsplit.walk import merged
from tests.secsplit.graphs import GRAPHS

GREY, TABLE = torch.Size([1, 28, 28]), torch.Size([30])
CLASSES = {"y": 10, "y2": 2, "y3": 3, "size": 0}


def shapes_of(topology: Topology, shape: torch.Size) -> dict[str, torch.Size]:
    return {column: shape for role in topology.roles for column in topology.columns(role)}


def composed(topology: Topology, modules: dict[str, nn.Module], x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Every segment's output where every data column holds x."""
    made: dict[str, tuple[torch.Tensor, ...]] = {}
    for segment in topology.order:
        taken = merged(segment, [made.get(name, (x,)) for name in segment.inputs])
        out = modules[segment.name].eval()(*taken)
        made[segment.name] = out if isinstance(out, tuple) else (out,)
    return {name: tensors[0] for name, tensors in made.items()}


def same(one: dict[str, nn.Module], other: dict[str, nn.Module]) -> bool:
    pairs = [(a, b) for name in one for a, b in zip(one[name].parameters(), other[name].parameters(), strict=True)]
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("shape", [GREY, TABLE], ids=["images", "table"])
@pytest.mark.parametrize("graph", GRAPHS)
def test_every_topology_gets_modules_that_fit_and_end_in_the_classes(graph: str, shape: torch.Size) -> None:
    topology = GRAPHS[graph]
    spec = {"name": "cnn"} if shape is GREY and graph != "multi_hop-5" else {}
    modules = build(spec, topology, shapes_of(topology, shape), CLASSES, seed=3)
    assert list(modules) == [segment.name for segment in topology.order]
    assert all(module.training for module in modules.values())
    made = composed(topology, modules, torch.randn(4, *shape))
    for objective in topology.objectives:
        assert made[objective.segment].shape == (4, CLASSES[objective.target])


@pytest.mark.parametrize("graph", ["vanilla", "u_shaped", "multi_hop"])
def test_a_chain_is_the_named_model_cut(graph: str) -> None:
    topology = GRAPHS[graph]
    modules = build({"name": "mnistnet"}, topology, {"x": GREY}, CLASSES, seed=5)
    x = torch.randn(4, *GREY)
    whole = build({"name": "mnistnet"}, named("whole"), {"x": GREY}, CLASSES, seed=5)["network"]
    assert torch.equal(composed(topology, modules, x)[topology.order[-1].name], whole.eval()(x))
    keys = [key for module in modules.values() for key in module.state_dict()]
    assert keys == list(network(ModelSpec(name="mnistnet"), GREY, 10).state_dict())


def test_weights_follow_from_the_seed_alone_and_torch_s_random_state_stays() -> None:
    for graph in ("u_shaped", "diamond"):
        topology = GRAPHS[graph]
        made = []
        for seed in (1, 1, 2):
            torch.manual_seed(len(made))
            state = torch.get_rng_state()
            made.append(build({"name": "cnn"}, topology, shapes_of(topology, GREY), CLASSES, seed=seed))
            assert torch.equal(torch.get_rng_state(), state)
        assert same(made[0], made[1])
        assert not same(made[0], made[2])


def test_a_segment_s_weights_do_not_depend_on_what_else_there_is() -> None:
    two, three = (named("vertical", modalities=columns) for columns in (("a", "b"), ("a", "b", "c")))
    small = build({}, two, shapes_of(two, TABLE), CLASSES)
    large = build({}, three, shapes_of(three, TABLE), CLASSES)
    bottoms = ("a-bottom", "b-bottom")
    assert same({n: small[n] for n in bottoms}, {n: large[n] for n in bottoms})
    assert not same({"x": small["a-bottom"]}, {"x": small["b-bottom"]})


def test_the_usual_cuts_are_the_first_and_the_last_and_evenly_between() -> None:
    modules = build({"name": "resnet18"}, named("u_shaped"), {"x": GREY}, CLASSES)
    assert "layer1.1.conv2.weight" in modules["bottom"].state_dict()
    assert "layer2.0.conv1.weight" in modules["middle"].state_dict()
    assert list(modules["head"].state_dict()) == ["fc.weight", "fc.bias"]


DECODER = Topology(
    "semi-supervised",
    (
        Segment("bottom", "client", ("data:x",)),
        Segment("top", "server", ("bottom",)),
        Segment("decoder", "client", ("bottom",)),
    ),
    (
        Objective("loss", "top", holder="client", at="server"),
        Objective("rebuilt", "decoder", holder="client", at="client", target="data:x", loss="mse"),
    ),
)


def test_a_segment_with_a_table_of_its_own_leaves_the_rest_a_chain() -> None:
    spec = {"name": "mnistnet", "cut": ["pool1"], "segments": {"decoder": {"kind": "mlp", "widths": [50]}}}
    modules = build(spec, DECODER, {"x": GREY}, CLASSES)
    made = composed(DECODER, modules, torch.randn(2, *GREY))
    assert made["bottom"].shape == (2, 8, 12, 12)
    assert made["top"].shape == (2, 10)
    assert made["decoder"].shape == (2, *GREY)
    assert "fc3.weight" in modules["top"].state_dict()


def test_kinds_of_segments() -> None:
    topology = named("vertical", modalities=("scan", "blood"))
    segments = {
        "scan-bottom": {"kind": "conv", "widths": [4, 8]},
        "blood-bottom": {"kind": "identity"},
        "top": {"widths": [9]},
    }
    spec = {"segments": segments, "normalisation": "group"}
    modules = build(spec, topology, {"scan": GREY, "blood": TABLE}, CLASSES)
    assert sum(isinstance(layer, nn.GroupNorm) for layer in modules["scan-bottom"].modules()) == 2
    assert [tuple(p.shape) for p in modules["top"].parameters()] == [(9, 8 * 7 * 7 + 30), (9,), (10, 9), (10,)]


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "unknown key": ({"nmae": "mlp"}, "vanilla", "model.nmae: unknown key; did you mean 'name'"),
    "wrong type": ({"widths": ["a"]}, "vanilla", "model.widths.0: got 'a'"),
    "unknown segment": ({"segments": {"botom": {}}}, "vanilla", "no such segment; did you mean 'bottom'"),
    "unknown kind": ({"segments": {"top": {"kind": "cnv"}}}, "vanilla", "model.segments.top.kind: got 'cnv'"),
    "too few cuts": ({"name": "mnistnet", "cut": ["pool1"]}, "u_shaped", "has 3 segments in a chain, so 2 cuts; got 1"),
    "no usual place": (
        {"widths": [8]},
        "u_shaped",
        "needs 2 cuts, and 'mlp' has 1 usual places (relu1); give more widths",
    ),
    "misspelt cut": ({"name": "mnistnet", "cut": ["pol1"]}, "vanilla", "did you mean 'pool1'"),
    "convolution of a table": ({"segments": {"top": {"kind": "conv"}}}, "vanilla", "expects images"),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_what_makes_no_sense_is_refused(case: tuple[dict[str, Any], str, str]) -> None:
    spec, graph, says = case
    shape = TABLE if spec.get("segments") else GREY
    with pytest.raises((RunError, CutError)) as refusal:
        build(spec, named(graph), {"x": shape}, CLASSES)
    assert says in str(refusal.value)


def test_data_and_objectives_that_do_not_fit_are_refused() -> None:
    with pytest.raises(RunError, match="the topology needs 'x', which the data do not have"):
        build({}, named("vanilla"), {"image": GREY}, CLASSES)
    vanilla = named("vanilla")
    regression = Topology("r", vanilla.segments, (Objective("loss", "top", "client", "server", target="size"),))
    with pytest.raises(RunError, match="'size' is a number, not a class; use loss mse or l1"):
        build({}, regression, {"x": TABLE}, CLASSES)
    two = Topology("t", vanilla.segments, (*vanilla.objectives, Objective("b", "top", "client", "server", target="y2")))
    with pytest.raises(RunError, match="want different outputs"):
        build({}, two, {"x": TABLE}, CLASSES)
