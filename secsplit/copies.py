"""Copies of one party's segments, one for each client being served, and the mean they leave behind.

SplitFed v1 and v3 give every client a server-side copy of its own and average the copies at the end of a round (Thapa
et al. 2022, Gawali et al. 2021). No more copies than clients in flight are alive at once: a client's copy starts from
the round's weights, and once the client is done it is added to a running mean and used for the next. The mean is exact,
and memory is that of two networks and the clients in flight, however many clients there are.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from secsplit.errors import RunError
from secsplit.optimizers import MakeOptimizer, Optimizer, drop_gradients

Weights = dict[str, Tensor]  # "segment.name" -> tensor
NORMALISED = (nn.modules.batchnorm._BatchNorm,)


@dataclass
class Replica:
    """Segments with their optimizers, and which of their layers follow the training mode."""

    modules: MutableMapping[str, nn.Module]
    optimizers: MutableMapping[str, Optimizer]
    live: list[nn.Module] = field(init=False)
    training: bool = field(init=False, default=True)

    def __post_init__(self) -> None:
        self.live = [layer for module in self.modules.values() for layer in module.modules() if layer.training]

    def mode(self, training: bool) -> None:
        """Put the segments into training or evaluation mode; what its owner put into eval mode stays there."""
        if training != self.training:
            for layer in self.live:
                layer.training = training
            self.training = training

    def named(self, *, without_norms: bool = False) -> Weights:
        """The weights and buffers themselves; without_norms: but those of BatchNorm layers."""
        left_out = _norms(self.modules) if without_norms else ()
        return {
            name: tensor
            for segment, module in self.modules.items()
            for key, tensor in module.state_dict().items()
            if not (name := f"{segment}.{key}").startswith(left_out)
        }

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Copy these weights in; names that are absent stay as they are."""
        own = self.named()
        for name, tensor in weights.items():
            own[name].copy_(tensor)

    def parameters(self) -> list[nn.Parameter]:
        return [parameter for module in self.modules.values() for parameter in module.parameters()]

    def forget(self) -> None:
        """Start the optimizers anew."""
        for optimizer in self.optimizers.values():
            optimizer.state.clear()

    def zero(self) -> None:
        for optimizer in self.optimizers.values():
            drop_gradients(optimizer)


def _norms(modules: Mapping[str, nn.Module]) -> tuple[str, ...]:
    """Prefixes of the names of all that belongs to BatchNorm layers."""
    return tuple(
        f"{segment}.{name}." if name else f"{segment}."
        for segment, module in modules.items()
        for name, layer in module.named_modules()
        if isinstance(layer, NORMALISED)
    )


class Mean:
    """A weighted mean that is handed one member after another and keeps none of them.

    Half-precision members are summed in float32. Integers (BatchNorm's count of batches) are not averaged: the
    largest is kept.
    """

    def __init__(self) -> None:
        self.sums: Weights = {}
        self.dtypes: dict[str, torch.dtype] = {}

    def add(self, members: Mapping[str, Tensor], share: float) -> None:
        """share: the member's weight; all members' shares sum to 1."""
        first = not self.sums
        for name, tensor in members.items():
            if not tensor.is_floating_point():
                self.sums[name] = (
                    tensor.clone() if first else torch.maximum(self.sums[name], tensor.to(self.sums[name]))
                )
            elif first:
                self.dtypes[name] = tensor.dtype
                wide = torch.promote_types(tensor.dtype, torch.float32)
                self.sums[name] = tensor.detach().to(wide, copy=True).mul_(share)
            else:
                self.sums[name].add_(tensor.to(self.sums[name]), alpha=share)

    def take(self) -> Weights:
        """The mean; the next one starts from nothing."""
        ordered = sorted(self.sums.items())  # those of a restored mean come in another order
        mean = {name: tensor.to(self.dtypes.get(name, tensor.dtype)) for name, tensor in ordered}
        self.sums, self.dtypes = {}, {}
        return mean


class Copies:
    """own: the party's segments, which hold the round's weights between rounds; size: clients in flight."""

    def __init__(self, own: Replica, make_optimizer: MakeOptimizer, size: int, *, plain: bool) -> None:
        if size > 1 and not plain:
            raise RunError("method.in_flight: a defense that wraps the server's segments serves one client at a time")
        self.own = own
        self.size = size
        self.mean = Mean()
        self.start: Weights = {}  # what every copy of the round starts from
        self.busy: dict[int, Replica] = {}  # by cast
        self._make_optimizer = make_optimizer
        self._free: list[Replica] = [own]
        self._made = 1

    def of(self, cast: int) -> Replica:
        """The copy that serves a cast in this round."""
        replica = self.busy.get(cast)
        if replica is None:
            if not self.start:
                self.start = {name: tensor.clone() for name, tensor in self.own.named().items()}
            replica = self.busy[cast] = self._idle()
            replica.load(self.start)
            replica.forget()
        return replica

    def gather(self, casts: Sequence[int], shares: Sequence[float]) -> None:
        """Take these casts' copies into the mean, in that order; they are free for others then."""
        for cast, share in zip(casts, shares, strict=True):
            replica = self.busy.pop(cast)
            self.mean.add(replica.named(), share)
            self._free.append(replica)

    def spread(self) -> None:
        """The mean becomes what the next round starts from."""
        self.own.load(self.mean.take())
        self.own.forget()
        self.own.zero()
        self.start = {}

    def _idle(self) -> Replica:
        if self._free:
            return self._free.pop()
        if self._made >= self.size:
            raise AssertionError(f"more than {self.size} casts in flight")
        self._made += 1
        self.own.mode(True)
        modules = {segment: deepcopy(module) for segment, module in self.own.modules.items()}
        return Replica(modules, optimizers_for(modules, self._make_optimizer))


class Stash:
    """Weights as they were when a turn began, kept until its gradient is back, while others already move them.

    Weight stashing: Narayanan et al. 2019, PipeDream (SOSP). A gradient is that of the weights its turn began with; it
    moves the weights that are there when it comes. Buffers (BatchNorm's statistics) are shared, not stashed.
    """

    def __init__(self, own: Replica, size: int, *, plain: bool) -> None:
        if not plain:
            raise RunError("train.staleness: a defense that wraps a segment's optimizer needs every gradient in turn")
        self.own = own
        self.busy: dict[int, Replica] = {}  # by step
        self._free = [self._made() for _ in range(size)]

    def of(self, step: int) -> Replica:
        """The segments as they are now, for the turn of that step until it is settled."""
        replica = self.busy.get(step)
        if replica is None:
            replica = self.busy[step] = self._free.pop()
            for ours, stashed in zip(self.own.parameters(), replica.parameters(), strict=True):
                stashed.detach().copy_(ours.detach())
                stashed.grad = None
        return replica

    def settle(self, step: int) -> None:
        """The turn's gradients are in: they are the own segments' now."""
        replica = self.busy.pop(step)
        for ours, stashed in zip(self.own.parameters(), replica.parameters(), strict=True):
            ours.grad = stashed.grad
            stashed.grad = None
        self._free.append(replica)

    def _made(self) -> Replica:
        modules = {segment: deepcopy(module) for segment, module in self.own.modules.items()}
        for segment, module in modules.items():
            for name, layer in module.named_modules():
                layer._buffers = self.own.modules[segment].get_submodule(name)._buffers
        return Replica(modules, {})


def optimizers_for(modules: Mapping[str, nn.Module], make_optimizer: MakeOptimizer) -> dict[str, Optimizer]:
    """An optimizer for every segment that learns."""
    return {
        segment: make_optimizer([p for p in module.parameters() if p.requires_grad])
        for segment, module in modules.items()
        if any(p.requires_grad for p in module.parameters())
    }
