"""What crosses a cut: a frozen, detached `Message`, and nothing else ever does.

This file knows no party, no channel and no bytes (`wire` turns messages into bytes).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType

import torch
from torch import Tensor

Scalar = bool | int | float | str
Fact = Scalar | Sequence[Scalar] | Mapping[str, Scalar]

DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {
        "float64": torch.float64,
        "float32": torch.float32,
        "float16": torch.float16,
        "bfloat16": torch.bfloat16,
        "int64": torch.int64,
        "int32": torch.int32,
        "int8": torch.int8,
        "uint8": torch.uint8,
        "bool": torch.bool,
    }
)
NAMES: Mapping[torch.dtype, str] = MappingProxyType({dtype: name for name, dtype in DTYPES.items()})


class Kind(StrEnum):
    """What a message is. The names are those of the split-learning literature."""

    SMASHED = "smashed"  # a segment's output, crossing the cut forward
    CUT_GRAD = "cut-grad"  # its gradient, crossing back
    OUTPUT = "output"  # a scored segment's output, going to the party that computes the loss
    OUTPUT_GRAD = "output-grad"  # the loss's gradient with respect to that output, coming back
    LABELS = "labels"  # labels, going to the party that computes the loss
    WEIGHTS = "weights"  # a segment's parameters: handed over, or to be averaged
    CONTROL = "control"  # small facts: census, metrics, audit-log heads; never tensors of records


@dataclass(frozen=True, slots=True)
class Stamp:
    """When a message belongs: both ends know it beforehand, so a message out of place is refused.

    step: number of the turn in the run's schedule; micro: micro-batch within it; epoch: from 0;
    cast: which set of parties takes the turn; training: False in evaluation and inference.
    """

    step: int = 0
    micro: int = 0
    epoch: int = 0
    cast: int = 0
    training: bool = True


SEALED = "sealed"  # an envelope's only tensor, and the fact that tells its length: its carrier cannot read it


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Message:
    """One message. `edge` names the graph's edge ("bottom->top"), objective or segment it belongs to.

    tensors: name -> tensor without a graph; treated as immutable from here on.
    Raises ValueError where a tensor still carries a graph or has a dtype that the wire does not carry.
    """

    kind: Kind
    edge: str
    stamp: Stamp = field(default_factory=Stamp)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    facts: Mapping[str, Fact] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, tensor in self.tensors.items():
            if tensor.requires_grad:
                raise ValueError(
                    f"tensor {name!r} of a {self.kind} message on {self.edge!r} carries a graph; detach it"
                )
            if tensor.dtype not in NAMES:
                raise ValueError(f"tensor {name!r}: expected a dtype among {', '.join(DTYPES)}, got {tensor.dtype}")

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors alone."""
        return sum(t.numel() * t.element_size() for t in self.tensors.values())

    def copy(self) -> Message:
        """The same message on memory of its own, so that its receiver cannot change what was recorded."""
        own = {name: tensor.clone() for name, tensor in self.tensors.items()}
        return Message(self.kind, self.edge, self.stamp, own, self.facts)
