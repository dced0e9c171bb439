"""Channels over memory and sockets: what goes in comes out, whole and in order, and nothing after the end."""

import threading
from collections.abc import Callable

import pytest

from channels import DeadlineExceeded, Frame, Limits, PeerClosed, SealedChannel, memory_pair, socketpair_pair

SIZES = [0, 1, 15, 4095, 4096, 4097, 65536, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3 << 20]
Pair = Callable[..., tuple[SealedChannel, SealedChannel]]


def carry(sender: SealedChannel, receiver: SealedChannel, meta: bytes, *payload: bytes) -> Frame:
    thread = threading.Thread(target=sender.send, args=(meta, *payload))
    thread.start()
    frame = receiver.recv(10)
    thread.join()
    return frame


@pytest.mark.parametrize("pair", [memory_pair, socketpair_pair])
@pytest.mark.parametrize("options", [{}, {"pad": True}, {"limits": Limits(record=1 << 14)}], ids=str)
def test_sizes_around_every_boundary_both_ways(pair: Pair, options: dict[str, object]) -> None:
    left, right = pair(**options)
    assert left.binding == right.binding
    for size in SIZES:
        data = bytes(range(251)) * (size // 251 + 1)
        data = data[:size]
        for sender, receiver in ((left, right), (right, left)):
            frame = carry(sender, receiver, b"meta %d" % size, data[: size // 3], data[size // 3 :])
            assert (frame.meta, frame.payload) == (b"meta %d" % size, data)
            assert not frame.payload.readonly
    left.close()
    with pytest.raises(PeerClosed):
        right.recv(5)


def test_an_idle_wait_that_times_out_changes_nothing() -> None:
    left, right = socketpair_pair()
    with left, right:
        with pytest.raises(DeadlineExceeded):
            right.recv(0.01)
        assert carry(left, right, b"still here").meta == b"still here"
