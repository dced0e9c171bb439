"""What is encoded comes back, from the same memory; what is malformed is refused before anything is allocated."""

import contextlib

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secsplit.errors import PeerError
from secsplit.message import DTYPES, Kind, Message, Stamp
from secsplit.wire import ALIGNMENT, decode, encode

STAMP = Stamp(step=7, micro=1, epoch=2, cast=3, training=False)


def joined(buffers: list[memoryview]) -> memoryview:
    return memoryview(bytearray(b"".join(buffers)))


def there_and_back(message: Message) -> Message:
    meta, buffers = encode(message)
    return decode(meta, joined(buffers), peer="peer")


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 5), (2, 0, 4), (2, 3, 4, 5)], ids=str)
def test_every_dtype_and_shape_comes_back(name: str, shape: tuple[int, ...]) -> None:
    tensor = (torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2).to(DTYPES[name])
    facts = {"sizes": {"0/train": 5}, "why": "because", "list": [1, 2]}
    message = Message(Kind.SMASHED, "bottom->top", STAMP, {"h": tensor, "h1": tensor}, facts)
    back = there_and_back(message)
    assert (back.kind, back.edge, back.stamp, back.facts) == (message.kind, message.edge, message.stamp, facts)
    for key in ("h", "h1"):
        assert back.tensors[key].dtype is tensor.dtype
        assert torch.equal(back.tensors[key], tensor)


def test_a_transposed_tensor_comes_back() -> None:
    tensor = torch.arange(12.0).reshape(3, 4).t()
    assert torch.equal(there_and_back(Message(Kind.SMASHED, "e", tensors={"h": tensor})).tensors["h"], tensor)


def test_nothing_is_copied() -> None:
    tensor = torch.arange(32.0)
    meta, buffers = encode(Message(Kind.SMASHED, "e", tensors={"h": tensor}))
    tensor[0] = 5
    assert torch.frombuffer(buffers[0], dtype=torch.float32)[0] == 5
    payload = joined(buffers)
    back = decode(meta, payload, peer="peer").tensors["h"]
    back[1] = 9
    assert torch.frombuffer(payload, dtype=torch.float32)[1] == 9


def test_tensors_start_aligned() -> None:
    tensors = {str(i): torch.zeros(i, dtype=torch.uint8) for i in range(1, 130)}
    meta, buffers = encode(Message(Kind.WEIGHTS, "e", tensors=tensors))
    start = 0
    for i, buffer in enumerate(buffers):
        if buffer.nbytes != ALIGNMENT - start % ALIGNMENT or start % ALIGNMENT == 0:
            assert start % ALIGNMENT == 0, i
        start += buffer.nbytes
    assert decode(meta, joined(buffers), peer="p").tensors.keys() == tensors.keys()


def header(**change: object) -> bytes:
    parts = {
        "kind": "smashed",
        "edge": "e",
        "stamp": [0, 0, 0, 0, True],
        "tensors": [["h", "float32", [2]]],
        "facts": {},
    }
    return msgspec.msgpack.encode(list({**parts, **change}.values()))


@pytest.mark.parametrize(
    ("meta", "nbytes", "reason"),
    [
        (header(), 0, "payload of 0 bytes, expected 64"),
        (header(), 128, "payload of 128 bytes, expected 64"),
        (header(tensors=[["h", "float32", [1 << 39]]]), 64, "payload of 64 bytes, expected"),
        (header(tensors=[["h", "float32", [0, 1 << 62]]]), 0, "expected at most 8 sizes >= 0 and sane"),
        (header(tensors=[["h", "float32", [-2]]]), 64, "expected at most 8 sizes >= 0"),
        (header(tensors=[["h", "float32", [1] * 9]]), 64, "expected at most 8 sizes"),
        (header(tensors=[["h", "complex64", [1]]]), 64, "of dtype 'complex64'"),
        (header(tensors=[["h", "float32", [2]]] * 2), 128, "two tensors of one name"),
        (header(tensors=[[str(i), "bool", [0]] for i in range(5000)]), 0, "5000 tensors"),
        (header(kind="pickle"), 64, "malformed message header"),
        (header(stamp=[0, 0, 0, True]), 64, "malformed message header"),
        (header(facts={"x": [[1]]}), 64, "malformed message header"),
        (b"", 0, "malformed message header"),
        (bytes(2 << 20), 0, "message header of 2097152 bytes"),
        (b"\x91" * 100_000, 0, "malformed message header"),
    ],
)
def test_hostile_headers_are_refused(meta: bytes, nbytes: int, reason: str) -> None:
    with pytest.raises(PeerError, match=reason) as error:
        decode(meta, memoryview(bytearray(nbytes)), peer="mallory")
    assert error.value.peer == "mallory"


@given(st.binary(max_size=300), st.integers(0, 300))
@settings(max_examples=500, deadline=None)
def test_garbage_is_refused_or_is_a_message(meta: bytes, nbytes: int) -> None:
    with contextlib.suppress(PeerError):
        assert isinstance(decode(meta, memoryview(bytearray(nbytes)), peer="p"), Message)


def test_a_message_with_a_graph_is_refused() -> None:
    with pytest.raises(ValueError, match="carries a graph"):
        Message(Kind.SMASHED, "e", tensors={"h": torch.zeros(1, requires_grad=True)})


def test_a_dtype_that_the_wire_does_not_carry_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a dtype among"):
        Message(Kind.SMASHED, "e", tensors={"h": torch.zeros(1, dtype=torch.complex64)})
