"""Losses by name, each the MEAN over the rows that have a label (-1, or NaN where it is a float, means none)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional as F

Loss = Callable[[Tensor, Tensor], Tensor]


def present(target: Tensor) -> Tensor:
    """(batch, ...) bool: which rows have a label."""
    return ~torch.isnan(target) if target.is_floating_point() else target >= 0


def labelled(target: Tensor) -> int:
    """How many rows (pixels, for masks) have a label; mostly all of them, which one look tells."""
    if not target.is_floating_point() and target.numel() and target.min().item() >= 0:
        return target.numel()
    return int(present(target).sum().item())


def mean_loss(name: str, output: Tensor, target: Tensor) -> tuple[Tensor, int]:
    """The loss by its name, and of how many labelled rows; with none it is a zero whose gradient is zero."""
    count = labelled(target)
    return (LOSSES[name](output, target) if count else output.sum() * 0), count


def _cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output, target.long(), ignore_index=-1)


def _flat(loss: Callable[[Tensor, Tensor], Tensor]) -> Loss:
    """A loss between equal shapes: outputs (batch, 1) meet targets (batch,)."""

    def mean(output: Tensor, target: Tensor) -> Tensor:
        output = output.reshape(target.shape)
        keep = present(target)
        return (
            loss(output, target.to(output.dtype)) if bool(keep.all()) else loss(output[keep], target[keep].to(output))
        )

    return mean


LOSSES: Mapping[str, Loss] = MappingProxyType(
    {
        "cross_entropy": _cross_entropy,
        "binary_cross_entropy": _flat(F.binary_cross_entropy_with_logits),
        "mse": _flat(F.mse_loss),
        "l1": _flat(F.l1_loss),
    }
)
