"""Fewer bytes over a cut: half precision, eight bits a number, or the largest entries alone.

A part of what the parties agree on, edge by edge, so that bandwidth and leakage can be traded and audited: a transcript
holds what really crossed, and reading it gives what its receiver made of that. Rounding happens after every defense, so
it takes nothing from what they prove; by itself it proves nothing.

Half precision and eight bits (each row by its own range, Dettmers et al. 2022 among many) round the value and pass the
gradient straight through (Bengio et al. 2013, arXiv 1308.3432). Top-k sends the entries of a row that are largest in
magnitude, with their places; the others count as zero, and no gradient flows to them (Zheng et al. 2023,
arXiv 2305.18469, without their randomisation).
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from secsplit.config import Strict
from secsplit.message import DTYPES, NAMES, Fact, Kind

Codec = Literal["float16", "bfloat16", "int8", "top-k"]
CODEC, DTYPE, SHAPE = "codec", "dtype", "shape"  # facts of a compressed message
SCALE, LOW, AT = ".scale", ".low", ".at"  # endings of the tensors that come with a compressed one
LEVELS = 255


class CompressionSpec(Strict):
    """One [[compression]] table: what crosses an edge ("*": every cut), forward and back, in fewer bytes.

    keep: the part of each row's entries that top-k sends.
    """

    edge: str = "*"
    smashed: Codec | None = None
    cut_grad: Codec | None = None
    keep: float = Field(default=0.1, gt=0, le=1)

    def codec(self, kind: Kind) -> Codec | None:
        return {Kind.SMASHED: self.smashed, Kind.CUT_GRAD: self.cut_grad}.get(kind)


def compressed(codec: Codec, keep: float, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Fact]]:
    """(what crosses, facts) instead of `tensors`, each (rows, ...) without a graph; what is no float stays."""
    made: dict[str, Tensor] = {}
    facts: dict[str, Fact] = {CODEC: codec}
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            made[name] = tensor
            continue
        facts[DTYPE] = NAMES[tensor.dtype]
        if codec == "int8":
            made |= _eight_bits(name, tensor)
        elif codec == "top-k":
            facts[f"{name}.{SHAPE}"] = list(tensor.shape[1:])
            at = largest(tensor, keep)
            made |= {name: tensor.flatten(1).gather(1, at), name + AT: at.to(torch.int32)}
        else:
            kind = DTYPES[codec]
            made[name] = tensor.clamp(torch.finfo(kind).min, torch.finfo(kind).max).to(kind)
    return made, facts


def masked(tensor: Tensor, keep: float) -> Tensor:
    """The tensor with all but the largest entries of each row zero, and no gradient to them."""
    flat = tensor.flatten(1)
    mask = torch.zeros_like(flat, requires_grad=False).scatter_(1, largest(tensor, keep), 1.0)
    return (flat * mask).reshape(tensor.shape)


def largest(tensor: Tensor, keep: float) -> Tensor:
    """(rows, k) int64: places, in rising order, of each row's largest entries in magnitude."""
    flat = tensor.detach().flatten(1)
    return flat.abs().topk(kept(flat.shape[1], keep), dim=1).indices.sort(dim=1).values


def kept(entries: int, keep: float) -> int:
    """How many of so many entries top-k sends."""
    return max(1, min(entries, round(entries * keep)))


def restored(tensors: Mapping[str, Tensor], facts: Mapping[str, Fact]) -> Mapping[str, Tensor]:
    """What a receiver makes of a message's tensors; those that were not compressed stay as they are.

    Raises ValueError where they are not what their codec makes, before anything is allocated for them.
    """
    if CODEC not in facts:
        return tensors
    dtype = DTYPES.get(str(facts.get(DTYPE)), torch.float32)
    made: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.endswith((SCALE, LOW, AT)):
            continue
        if name + SCALE in tensors:
            made[name] = _from_eight_bits(name, tensors, dtype)
        elif name + AT in tensors:
            made[name] = _spread(name, tensor, tensors[name + AT], facts, dtype)
        else:
            made[name] = tensor.to(dtype) if tensor.is_floating_point() else tensor
    return made


def check(codec: Codec, keep: float, tensors: Mapping[str, Tensor], facts: Mapping[str, Fact]) -> None:
    """Raises ValueError unless a message was compressed as agreed: a peer's facts decide no size by themselves."""
    if facts.get(CODEC) != codec:
        raise ValueError(f"expected it compressed by {codec!r}, got {facts.get(CODEC)!r}")
    for name, tensor in tensors.items():
        if codec == "top-k" and name + AT in tensors:
            shape = _shape(name, facts)
            if tensor.ndim != 2 or tensor.shape[1] != kept(prod(shape), keep):
                raise ValueError(f"{name!r}: {tuple(tensor.shape)} are not the kept entries of rows of shape {shape}")


def _eight_bits(name: str, tensor: Tensor) -> dict[str, Tensor]:
    flat = tensor.flatten(1)
    low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    scale = (high - low) / LEVELS
    codes = ((flat - low) / scale.where(scale > 0, torch.ones_like(scale))).round_().clamp_(0, LEVELS)
    return {name: codes.to(torch.uint8).reshape(tensor.shape), name + SCALE: scale, name + LOW: low}


def _from_eight_bits(name: str, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    codes, scale, low = tensors[name], tensors[name + SCALE], tensors.get(name + LOW)
    if low is None or codes.dtype != torch.uint8 or {scale.shape, low.shape} != {(len(codes), 1)}:
        raise ValueError(f"{name!r}: expected eight-bit codes with a scale and a low end for each row")
    return (codes.flatten(1).to(dtype) * scale.to(dtype) + low.to(dtype)).reshape(codes.shape)


def _spread(name: str, values: Tensor, at: Tensor, facts: Mapping[str, Fact], dtype: torch.dtype) -> Tensor:
    shape = _shape(name, facts)
    entries = prod(shape)
    if at.dtype != torch.int32 or at.shape != values.shape or values.ndim != 2:
        raise ValueError(f"{name!r}: expected as many places as values, row by row")
    if at.numel() and not (int(at.min()) >= 0 and int(at.max()) < entries):
        raise ValueError(f"{name!r}: a place outside of its row of {entries} entries")
    flat = torch.zeros(len(values), entries, dtype=dtype)
    return flat.scatter_(1, at.long(), values.to(dtype)).reshape(len(values), *shape)


def _shape(name: str, facts: Mapping[str, Fact]) -> tuple[int, ...]:
    told = facts.get(f"{name}.{SHAPE}")
    if not isinstance(told, list | tuple) or not told or not all(type(n) is int and 0 < n < 1 << 31 for n in told):
        raise ValueError(f"{name!r}: expected the shape of a row, got {told!r}")
    return tuple(int(n) for n in told)
