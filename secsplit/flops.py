"""What a piece of network costs: operations by arithmetic and by torch's counter, memory for backward, seconds.

Arithmetic counts multiply-accumulates (MACs) of convolutions and linear layers, from their shapes alone; PyTorch's
FlopCounterMode counts floating-point operations, two to a MAC, of what autograd really runs. Where a network has no
other large products the two agree exactly; but for the backward pass of grouped convolutions, which the counter takes
for dense ones. This file knows modules, not parties.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

Tensors = tuple[Tensor, ...]
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class Work:
    """Of one batch. Forward, and backward to the weights and (where another piece comes before) to the input."""

    forward: int
    backward: int

    @property
    def step(self) -> int:
        """Both."""
        return self.forward + self.backward


def macs(module: nn.Module, inputs: Tensors, *, onward: bool) -> Work:
    """Multiply-accumulates by arithmetic, of convolutions and linear layers. ``onward``: the inputs want gradients."""
    forward = backward = 0

    def count(layer: nn.Module, taken: Tensors, given: Tensor) -> None:
        nonlocal forward, backward
        products = _products(layer, taken[0], given)
        forward += products
        backward += products * (
            any(p.requires_grad and p.ndim > 1 for p in layer.parameters()) + taken[0].requires_grad
        )

    layers = [layer for layer in module.modules() if isinstance(layer, (nn.Linear, *CONVOLUTIONS, *TRANSPOSED))]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    try:
        with _undisturbed(module):
            module(*_leaves(inputs, onward))
    finally:
        for hook in hooks:
            hook.remove()
    return Work(forward, backward)


def _products(layer: nn.Module, taken: Tensor, given: Tensor) -> int:
    """Of one call of a layer: for each element it makes (or, transposed, takes), one for each weight that it meets."""
    if isinstance(layer, nn.Linear):
        return given.numel() * layer.in_features
    if isinstance(layer, CONVOLUTIONS):
        return given.numel() * layer.in_channels // layer.groups * math.prod(layer.kernel_size)
    assert isinstance(layer, TRANSPOSED)
    return taken.numel() * layer.out_channels // layer.groups * math.prod(layer.kernel_size)


def flops(module: nn.Module, inputs: Tensors, *, onward: bool) -> Work:
    """Floating-point operations that torch's own counter saw, forward and backward."""
    counter = FlopCounterMode(display=False)
    with _undisturbed(module), counter:
        made = _made(module, _leaves(inputs, onward))
        forward = counter.get_total_flops()
        wanted = [tensor for tensor in made if tensor.requires_grad]
        if wanted:
            torch.autograd.backward(wanted, [torch.ones_like(tensor) for tensor in wanted])
    return Work(forward, counter.get_total_flops() - forward)


def saved_bytes(module: nn.Module, inputs: Tensors, *, onward: bool) -> int:
    """Bytes that autograd keeps from forward to backward, besides parameters and buffers; each storage once."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*module.parameters(), *module.buffers())}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with _undisturbed(module), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        made = _made(module, _leaves(inputs, onward))
    del made  # alive until here, or storages would be freed and their addresses used again
    return sum(kept.values())


def seconds(module: nn.Module, inputs: Tensors, *, onward: bool, repeats: int = 5) -> float:
    """CPU seconds of one forward and backward: the median of ``repeats``, after one that does not count."""
    taken: list[float] = []
    with _undisturbed(module):
        for _ in range(repeats + 1):
            start = time.process_time()
            wanted = [tensor for tensor in _made(module, _leaves(inputs, onward)) if tensor.requires_grad]
            if wanted:
                torch.autograd.backward(wanted, [torch.ones_like(tensor) for tensor in wanted])
            taken.append(time.process_time() - start)
    return statistics.median(taken[1:])


def _leaves(inputs: Tensors, onward: bool) -> Tensors:
    return tuple(tensor.detach().requires_grad_(onward and tensor.is_floating_point()) for tensor in inputs)


def _made(module: nn.Module, inputs: Tensors) -> Tensors:
    made = module(*inputs)
    return made if isinstance(made, tuple) else (made,)


@contextmanager
def _undisturbed(module: nn.Module) -> Iterator[None]:
    """Run it, and leave gradients, buffers and the random state as they were."""
    gradients = [parameter.grad for parameter in module.parameters()]
    buffers = [buffer.clone() for buffer in module.buffers()]
    for parameter in module.parameters():
        parameter.grad = None
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            yield
    finally:
        for parameter, gradient in zip(module.parameters(), gradients, strict=True):
            parameter.grad = gradient
        with torch.no_grad():
            for buffer, value in zip(module.buffers(), buffers, strict=True):
                buffer.copy_(value)
