"""Cut a model into pieces that, one after another, compute what it computed, with its own parameters under its names.

The graph comes from torch.fx (Reed et al. 2021, arXiv 2112.08429); an nn.Sequential is cut by the names of its layers,
whatever they hold. Nothing here knows of parties or messages.

Where another edge of the graph crosses the cut (a skip), the cut is refused and the edge named, unless skips are asked
to cross; then the piece hands out a tuple, and the next takes the same tuple in the same order. The model's own input
never crosses: what crosses a cut leaves the site.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp, TensorMetadata

from secsplit.errors import CutError, nearest


def cut(
    model: nn.Module, at: Sequence[str], example: Tensor, *, skips: Literal["refuse", "cross"] = "refuse"
) -> list[nn.Module]:
    """Cut after each of the named modules: ``len(at) + 1`` pieces that share the model's parameters and its mode.

    ``at``: module paths (``layer2``, ``features.4``, ``layer1.0.conv1``) in the order in which the model computes them;
    a module that is called again is ``layer1.0.relu@1``. ``example``: (batch, ...) inputs of any values.
    A piece's ``forward(*tensors)`` returns a Tensor, or a tuple of them where skips cross, the named module's output
    first. It leaves what it is given unchanged, even where the model works in place. Its ``state_dict`` has the model's
    keys. Raises CutError.
    """
    if not at:
        return [model]
    example = torch.cat([example, example]) if len(example) == 1 else example  # BatchNorm wants two rows
    with _kept(model):
        modes = []
        for training in (False, True):
            traced = _trace(model.train(training), at)
            traced.propagate(model, example)
            crossings = [traced.crossing(k, skips) for k in range(len(at))]
            modes.append([fx.GraphModule(model, graph) for graph in traced.pieces(crossings)])
            _work_on_copies(modes[-1], example)
        pieces = [_one(*pair) for pair in zip(*modes, strict=True)]
    _nothing_shared(pieces)
    modules = dict(model.named_modules())
    for piece in pieces:
        for name, module in piece.named_modules():
            module.training = modules[name].training
    return pieces


@dataclass(frozen=True)
class _Traced:
    """A model's graph and the nodes after which it is cut."""

    graph: fx.Graph
    ends: tuple[fx.Node, ...]

    def propagate(self, model: nn.Module, example: Tensor) -> None:
        """Note on every node what tensor it gives for the example."""
        try:
            ShapeProp(fx.GraphModule(model, self.graph)).propagate(example)
        except Exception as error:
            raise CutError(f"cut: the model does not take an input of shape {tuple(example.shape)}: {error}") from error

    def place(self, node: fx.Node) -> int:
        """Which piece computes the node. Order in the graph is order of computation."""
        return sum(end < node for end in self.ends)

    def crossing(self, k: int, skips: str) -> list[fx.Node]:
        """What piece k hands to the next: what is made up to there and used after it, the cut's own output first."""
        end, name = self.ends[k], _path(self.ends[k])
        made = [node for node in self.graph.nodes if node.op != "get_attr" and self.place(node) <= k]
        used = {node: [user for user in node.users if self.place(user) > k] for node in made}
        crossing = sorted((node for node in made if used[node]), key=lambda node: node is not end)
        if end not in crossing:
            raise CutError(f"cut after {name!r}: nothing after it uses what it computes")
        edges = [(node, f"{_path(node)} -> {_path(user)}") for node in crossing for user in used[node]]
        for node, edge in edges:
            if node.op == "placeholder":
                raise CutError(f"cut after {name!r}: the model's input would cross it too, by {edge}; cut elsewhere")
            if not isinstance(node.meta.get("tensor_meta"), TensorMetadata):
                raise CutError(f"cut after {name!r}: {edge} carries no tensor, so it cannot cross; cut elsewhere")
        across = [edge for node, edge in edges if node is not end]
        if across and skips == "refuse":
            raise CutError(
                f"cut after {name!r}: {_counted(across)} it too: {', '.join(across[:3])}"
                f'{", ..." if len(across) > 3 else ""}; cut where one value passes, or let skips = "cross"'
            )
        return crossing

    def pieces(self, crossings: list[list[fx.Node]]) -> Iterator[fx.Graph]:
        """The graph of each piece: takes the crossing before it, hands out the crossing after it."""
        given = [node for node in self.graph.nodes if node.op == "placeholder"]
        if len(given) > 1:
            raise CutError(
                f"cut: the model takes several inputs ({', '.join(node.name for node in given)}), expected one"
            )
        for k, (taken, handed) in enumerate(itertools.pairwise([given, *crossings, []])):
            piece = fx.Graph()
            copies = {node: piece.placeholder(node.name) for node in taken}
            for node in self.graph.nodes:
                if node.op == "get_attr" and any(self.place(user) == k for user in node.users):
                    copies[node] = piece.node_copy(node)
                elif node.op not in ("placeholder", "get_attr") and self.place(node) == k:
                    copies[node] = piece.node_copy(node, copies.__getitem__)
            if handed:
                piece.output(copies[handed[0]] if len(handed) == 1 else tuple(copies[node] for node in handed))
            yield piece


def _trace(model: nn.Module, at: Sequence[str]) -> _Traced:
    """Trace the model as deep as the cuts' names need: an nn.Sequential cut at its own layers is not looked into."""
    layers = dict(model.named_children()) if type(model).forward is nn.Sequential.forward else {}
    tracer = _LayerTracer() if all(name in layers for name in at) else fx.Tracer()
    try:
        graph = tracer.trace(model)
    except Exception as error:  # whatever the model's own code raises when run on symbols
        raise CutError(
            f"cut: {type(model).__name__} cannot be traced: {error}; give an nn.Sequential and cut between its layers"
        ) from error
    ends = tuple(_end(name, graph) for name in at)
    for (first, a), (second, b) in itertools.pairwise(zip(at, ends, strict=True)):
        if not a < b:
            raise CutError(f"cut: {second!r} does not come after {first!r}; name each cut once, in their order")
    return _Traced(graph, ends)


class _LayerTracer(fx.Tracer):
    """Sees a model's own layers and not what is in them."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def _end(name: str, graph: fx.Graph) -> fx.Node:
    """The last node that the named module, or function, computes."""
    inside: list[fx.Node] = [
        node for node in graph.nodes if name in (_path(node), *node.meta.get("nn_module_stack", ()))
    ]
    if not inside:
        known = {path for node in graph.nodes for path in node.meta.get("nn_module_stack", ())}
        raise CutError(f"cut: the model computes no module {name!r}; {nearest(name, known)}")
    return inside[-1]


def _path(node: fx.Node) -> str:
    """A node's name for a person: its module's path, or its function's name under the module that calls it."""
    if node.op in ("placeholder", "output"):
        return "the input" if node.op == "placeholder" else "the output"
    stack = list(node.meta.get("nn_module_stack", ()))
    return stack[-1] if node.op == "call_module" and stack else ".".join([*stack[-1:], node.name])


def _counted(edges: list[str]) -> str:
    return "another edge crosses" if len(edges) == 1 else f"{len(edges)} other edges cross"


def _work_on_copies(pieces: list[fx.GraphModule], example: Tensor) -> None:
    """Let a piece that changes in place what it is given change a copy of it instead.

    Found by running it: PyTorch counts the writes to a tensor, through whatever view of it they come. So a received
    leaf that requires gradients may be given to it, and a recorded message stays what was sent.
    """
    values: tuple[Tensor, ...] = (example,)
    for piece in pieces:
        shared = {value.untyped_storage().data_ptr() for value in values}
        given = tuple(value.clone() for value in values)
        before = [value._version for value in given]
        handed = piece(*given)
        values = handed if isinstance(handed, tuple) else (handed,)
        if len(shared) < len(given) and [value._version for value in given] != before:
            raise CutError("cut: two values that cross share memory which is then written to; cut elsewhere")
        taken = [node for node in piece.graph.nodes if node.op == "placeholder"]
        for node, value, version in zip(taken, given, before, strict=True):
            if value._version != version:
                with piece.graph.inserting_after(node):
                    copy = piece.graph.call_method("clone", (node,))
                node.replace_all_uses_with(copy, delete_user_cb=lambda user, copy=copy: user is not copy)
        piece.recompile()


def _one(evaluating: fx.GraphModule, training: fx.GraphModule) -> nn.Module:
    """One module of a piece traced in both modes; most compute the same in both, and then one graph is enough."""
    if evaluating.code != training.code:
        return _TwoModes(evaluating, training)
    return _sequential(evaluating) or evaluating


def _sequential(piece: fx.GraphModule) -> nn.Sequential | None:
    """The piece as a plain nn.Sequential, where it is one: each layer called once, on what the one before it gave."""
    last, *layers, output = piece.graph.nodes
    names = [str(node.target) for node in layers]
    for node in layers:
        if node.op != "call_module" or node.args != (last,) or node.kwargs or "." in str(node.target):
            return None
        last = node
    if output.args != (last,) or len(set(names)) != len(names):
        return None
    return nn.Sequential(OrderedDict((name, piece.get_submodule(name)) for name in names))


class _TwoModes(nn.Module):
    """A piece whose code asks whether it is training (``F.dropout(x, training=self.training)``): a graph a mode."""

    def __init__(self, evaluating: fx.GraphModule, training: fx.GraphModule) -> None:
        super().__init__()
        for graph in (evaluating.graph, training.graph):
            for node in graph.nodes:
                if node.op == "get_attr":
                    raise CutError(f"cut: {node.target} is read by code that differs between training and evaluation")
        for source in (evaluating, training):
            for name, child in source.named_children():
                _graft(self, name, child)
        self._graphs = (evaluating, training)  # a tuple, so that nothing is registered twice

    def forward(self, *tensors: Tensor) -> Any:
        return self._graphs[self.training](*tensors)


def _graft(parent: nn.Module, name: str, child: nn.Module) -> None:
    """Add the child, or where there is one of that name already, what that one lacks."""
    present = parent._modules.get(name)
    if present is None:
        parent.add_module(name, child)
    elif present is not child:
        for below, grandchild in child.named_children():
            _graft(present, below, grandchild)


def _nothing_shared(pieces: list[nn.Module]) -> None:
    """Each parameter and buffer must belong to one piece, for a piece is one party's."""
    owner: dict[int, int] = {}
    for k, piece in enumerate(pieces):
        for name, tensor in itertools.chain(piece.named_parameters(), piece.named_buffers()):
            if owner.setdefault(id(tensor), k) != k:
                raise CutError(
                    f"cut: {name!r} is used on both sides of a cut, and two parties cannot share it; cut elsewhere"
                )


@contextmanager
def _kept(model: nn.Module) -> Iterator[None]:
    """Leave the model's modes and buffers and the random state as they were, whatever is run on it."""
    modes = {module: module.training for module in model.modules()}
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
