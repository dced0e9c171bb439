"""A module for every segment of a topology, with weights that follow from the seed alone, whoever holds which.

A chain holds the named model, cut. In a branching graph each source (a segment fed by data) gets the first piece of the
named model for its own column, a segment between gets one hidden layer, and a scored one a head of one hidden layer.
Any segment can be given its own ``[model.segments.NAME]``; what is left, where it is a chain, is still cut.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from secsplit.cut import cut
from secsplit.errors import RunError, nearest
from secsplit.models.named import network, normalised, places
from secsplit.models.small import convolutions, linear
from secsplit.models.spec import ModelSpec, SegmentModel, parse
from secsplit.schedule import derive
from secsplit.topology import DATA, Objective, Segment, Topology
from secsplit.walk import merged

Tensors = tuple[Tensor, ...]


def build(
    spec: ModelSpec | Mapping[str, Any],
    topology: Topology,
    shapes: Mapping[str, torch.Size],
    classes: Mapping[str, int],
    *,
    seed: int = 0,
) -> dict[str, nn.Module]:
    """segment -> module, in training mode. ``shapes``: of one record in each data column; ``classes``: of each label.

    Raises RunError where the model does not fit the records or the graph, CutError where it cannot be cut there.
    """
    spec = spec if isinstance(spec, ModelSpec) else parse(spec)
    for name in spec.segments:
        if name not in topology.names:
            hint = nearest(name, topology.names)
            raise RunError(f"model.segments.{name}: topology {topology.name!r} has no such segment; {hint}")
    chain = chain_of(topology, spec)
    modules: dict[str, nn.Module] = {}
    if chain:
        modules.update(_cut_along(chain, spec, topology, shapes, classes, seed))
    given: dict[str, Tensors] = {f"{DATA}{name}": (torch.zeros(2, *shape),) for name, shape in shapes.items()}
    for segment in topology.order:
        taken = merged(segment, [given[_known(name, given)] for name in segment.inputs])
        if segment.name not in modules:
            with _drawn(seed, segment.name):
                modules[segment.name] = _placed(segment, spec, topology, taken, shapes, classes)
        given[segment.name] = _tried(segment, modules[segment.name], taken)
    return {segment.name: modules[segment.name].train() for segment in topology.order}


def chain_of(topology: Topology, spec: ModelSpec) -> tuple[Segment, ...]:
    """The segments, but for those with a table of their own, where they are one chain from data to loss; else none."""
    rest = tuple(segment for segment in topology.order if segment.name not in spec.segments)
    if not rest or len(rest[0].columns) != 1 or len(rest[0].inputs) != 1 or not topology.scored(rest[-1].name):
        return ()
    follows = all(b.inputs == (a.name,) for a, b in pairwise(rest))
    return rest if follows and not any(topology.scored(segment.name) for segment in rest[:-1]) else ()


def _cut_along(
    chain: tuple[Segment, ...],
    spec: ModelSpec,
    topology: Topology,
    shapes: Mapping[str, torch.Size],
    classes: Mapping[str, int],
    seed: int,
) -> dict[str, nn.Module]:
    """The named model, drawn whole from the seed and cut into the chain's segments."""
    shape = shapes[_known(chain[0].columns[0], shapes)]
    outputs, image = _outputs(topology.scored(chain[-1].name), shapes, classes)
    with _drawn(seed, "model"):
        model = network(spec, shape, outputs, cuts=len(chain) - 1)
    at = spec.cut or _usual(model, spec, len(chain) - 1, topology)
    if len(at) != len(chain) - 1:
        raise RunError(
            f"model.cut: topology {topology.name!r} has {len(chain)} segments in a chain, so {len(chain) - 1} cuts; "
            f"got {len(at)}; usual places in {spec.name!r}: {', '.join(places(model, spec.name))}"
        )
    pieces = cut(model, at, torch.zeros(2, *shape), skips="cross" if spec.skips == "cross" else "refuse")
    if image:
        pieces[-1] = nn.Sequential(OrderedDict(piece=pieces[-1], image=nn.Unflatten(1, image)))
    return {segment.name: piece for segment, piece in zip(chain, pieces, strict=True)}


def _usual(model: nn.Module, spec: ModelSpec, count: int, topology: Topology) -> tuple[str, ...]:
    """So many of the model's usual places to cut: the first, the last, and evenly between."""
    usual = places(model, spec.name)
    if count > len(usual):
        more = "give more widths" if spec.name == "mlp" else f"name {count} modules to cut after"
        raise RunError(
            f"model.cut: topology {topology.name!r} needs {count} cuts, and {spec.name!r} has {len(usual)} usual "
            f"places ({', '.join(usual)}); {more}"
        )
    if count < 2:
        return tuple(usual[:count])
    return tuple(usual[round(i * (len(usual) - 1) / (count - 1))] for i in range(count))


def _placed(
    segment: Segment,
    spec: ModelSpec,
    topology: Topology,
    taken: Tensors,
    shapes: Mapping[str, torch.Size],
    classes: Mapping[str, int],
) -> nn.Module:
    """A module by the segment's own table, or by its place in a branching graph."""
    shape, objectives = taken[0].shape[1:], topology.scored(segment.name)
    own = spec.segments.get(segment.name)
    if own is not None:
        return normalised(_own(own, shape, objectives, shapes, classes, segment), spec.normalisation)
    if objectives:
        outputs, image = _outputs(objectives, shapes, classes)
        if not segment.sources:
            return network(spec, shape, outputs)
        return _mlp(shape, (spec.hidden,), outputs, image)
    if segment.sources:
        return _mlp(shape, (spec.hidden,), None, None)
    model = network(spec, shape, 1)
    return cut(model, [(*spec.cut, *places(model, spec.name))[0]], torch.zeros(2, *shape))[0]


def _own(
    own: SegmentModel,
    shape: torch.Size,
    objectives: tuple[Objective, ...],
    shapes: Mapping[str, torch.Size],
    classes: Mapping[str, int],
    segment: Segment,
) -> nn.Module:
    outputs, image = _outputs(objectives, shapes, classes) if objectives else (None, None)
    if own.kind == "mlp":
        return _mlp(shape, own.widths, outputs, image)
    if own.kind == "conv" and len(shape) != 3:
        raise RunError(f"model.segments.{segment.name}: kind 'conv' expects images, got shape {tuple(shape)}; use mlp")
    body = convolutions(shape[0], own.widths) if own.kind == "conv" else nn.Identity()
    if outputs is None:
        return body
    with torch.no_grad():
        made = body.eval()(torch.zeros(2, *shape)).shape[1:]
    return nn.Sequential(OrderedDict(body=body, head=_mlp(made, (), outputs, image)))


def _mlp(shape: torch.Size, widths: tuple[int, ...], outputs: int | None, image: torch.Size | None) -> nn.Sequential:
    """fc1, relu1, ...; then a last linear layer where there are outputs, which become an image where that is wanted."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    taken, flatten = math.prod(shape), len(shape) > 1
    for i, width in enumerate(widths, 1):
        layers[f"fc{i}"], layers[f"relu{i}"] = linear(taken, width, flatten=flatten), nn.ReLU()
        taken, flatten = width, False
    if outputs is not None:
        layers[f"fc{len(widths) + 1}"] = linear(taken, outputs, flatten=flatten)
    if image:
        layers["image"] = nn.Unflatten(1, image)
    return nn.Sequential(layers)


def _outputs(
    objectives: tuple[Objective, ...], shapes: Mapping[str, torch.Size], classes: Mapping[str, int]
) -> tuple[int, torch.Size | None]:
    """How many outputs the objectives want, and the shape they take where a data column is to be reconstructed."""
    wanted = {o.name: _wanted(o, shapes, classes) for o in objectives}
    if len(set(wanted.values())) > 1:
        told = ", ".join(f"{name}: {outputs}" for name, (outputs, _) in wanted.items())
        raise RunError(f"model: objectives that score one segment want different outputs ({told}); give each a segment")
    return next(iter(wanted.values()))


def _wanted(
    objective: Objective, shapes: Mapping[str, torch.Size], classes: Mapping[str, int]
) -> tuple[int, torch.Size | None]:
    if objective.target.startswith(DATA):
        shape = shapes[_known(objective.target.removeprefix(DATA), shapes)]
        return math.prod(shape), shape if len(shape) > 1 else None
    if objective.loss != "cross_entropy":
        return 1, None
    count = classes[_known(objective.target, classes)]
    if not count:
        raise RunError(
            f"objective {objective.name!r}: label {objective.target!r} is a number, not a class; use loss mse or l1"
        )
    return count, None


def _tried(segment: Segment, module: nn.Module, taken: Tensors) -> Tensors:
    """What the segment makes of a batch of two, in eval mode."""
    try:
        with torch.no_grad():
            made = module.eval()(*taken)
    except Exception as error:
        got = ", ".join(str(tuple(t.shape[1:])) for t in taken)
        raise RunError(f"model: segment {segment.name!r} does not take records of shape {got}: {error}") from error
    return made if isinstance(made, tuple) else (made,)


def _known(name: str, known: Mapping[str, Any]) -> str:
    if name not in known:
        raise RunError(f"data: the topology needs {name!r}, which the data do not have; {nearest(name, known)}")
    return name


@contextmanager
def _drawn(seed: int, name: str) -> Iterator[None]:
    """Random weights from the seed and the name, and torch's own random state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive(seed, "weights", name))
        yield
