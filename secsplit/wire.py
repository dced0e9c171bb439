"""Messages as bytes: a typed msgspec header, then the tensors' own memory, each aligned to 64 bytes.

What is decoded came from a peer and is hostile until proven otherwise: the header is typed and bounded, and every
size is checked against the payload that is already there; nothing is allocated from a number that a peer wrote.
This file knows no channel: it makes and takes (meta, buffers).
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import msgspec
import torch
from torch import Tensor

from secsplit.errors import PeerError
from secsplit.message import DTYPES, NAMES, Fact, Kind, Message, Scalar, Stamp

ALIGNMENT = 64  # bytes
MAX_META = 1 << 20  # bytes of header
MAX_TENSORS = 4096
MAX_DIMS = 8
MAX_SIZE = 1 << 40  # of one dimension
_PADDING = bytes(ALIGNMENT)
_ITEMSIZE = {name: dtype.itemsize for name, dtype in DTYPES.items()}


Facts = dict[str, Scalar | list[Scalar] | dict[str, Scalar]]  # what a Message's facts decode to


class TensorHeader(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Name, dtype and shape of one tensor of the payload."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * _ITEMSIZE[self.dtype]


class MessageHeader(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """All of a message but its tensors' bytes."""

    kind: Kind
    edge: str
    stamp: tuple[int, int, int, int, bool]
    tensors: list[TensorHeader]
    facts: Facts


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(MessageHeader)


def _padding(nbytes: int) -> int:
    return -nbytes % ALIGNMENT


def raw(tensor: Tensor) -> memoryview:
    """The tensor's elements as bytes, in row-major order; zero copy where it is contiguous and on the CPU."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def plain(facts: Mapping[str, Fact]) -> Facts:
    """Facts as the plain lists and dicts that they decode to."""
    return {
        key: dict(fact) if isinstance(fact, Mapping) else fact if isinstance(fact, Scalar) else list(fact)
        for key, fact in facts.items()
    }


def encode(message: Message) -> tuple[bytes, list[memoryview]]:
    """(meta, buffers): the header, and the payload in pieces that point into the tensors' own memory."""
    headers, buffers = [], []
    for name, tensor in message.tensors.items():
        headers.append(TensorHeader(name, NAMES[tensor.dtype], tuple(tensor.shape)))
        buffers.append(raw(tensor))
        if pad := _padding(buffers[-1].nbytes):
            buffers.append(memoryview(_PADDING)[:pad])
    s = message.stamp
    header = MessageHeader(
        message.kind, message.edge, (s.step, s.micro, s.epoch, s.cast, s.training), headers, plain(message.facts)
    )
    return _encoder.encode(header), buffers


def decode(meta: bytes, payload: memoryview, *, peer: str) -> Message:
    """The message that `peer` sent; its tensors lie in `payload`'s memory (zero copy).

    Raises PeerError where the header is malformed or disagrees with the payload's size.
    """
    if len(meta) > MAX_META:
        raise PeerError(peer, f"message header of {len(meta)} bytes, expected at most {MAX_META}")
    try:
        header = _decoder.decode(meta)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PeerError(peer, f"malformed message header: {error}") from None
    _check(header, payload.nbytes, peer)
    tensors, at = {}, 0
    for part in header.tensors:
        piece = payload[at : at + part.nbytes]
        dtype = DTYPES[part.dtype]
        flat = torch.frombuffer(piece, dtype=dtype) if part.nbytes else torch.empty(0, dtype=dtype)
        tensors[part.name] = flat.reshape(part.shape)
        at += part.nbytes + _padding(part.nbytes)
    return Message(header.kind, header.edge, Stamp(*header.stamp), tensors, header.facts)


def _check(header: MessageHeader, nbytes: int, peer: str) -> None:
    if len(header.tensors) > MAX_TENSORS:
        raise PeerError(peer, f"{len(header.tensors)} tensors in one message, expected at most {MAX_TENSORS}")
    if len({part.name for part in header.tensors}) != len(header.tensors):
        raise PeerError(peer, "two tensors of one name in a message")
    claimed = 0
    for part in header.tensors:
        if part.dtype not in DTYPES:
            raise PeerError(peer, f"tensor {part.name!r} of dtype {part.dtype!r}, expected one of {', '.join(DTYPES)}")
        if len(part.shape) > MAX_DIMS or any(not 0 <= size <= MAX_SIZE for size in part.shape):
            raise PeerError(
                peer, f"tensor {part.name!r} of shape {part.shape}, expected at most {MAX_DIMS} sizes >= 0 and sane"
            )
        claimed += part.nbytes + _padding(part.nbytes)
    if claimed != nbytes:
        raise PeerError(peer, f"payload of {nbytes} bytes, expected {claimed} from its header")
