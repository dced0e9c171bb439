"""Wires: what is read ahead, what is not lost by a deadline, how long silence is borne, and what an idle wire keeps."""

import contextlib
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from math import inf

import pytest

from channels import wire as wires
from channels.channel import SealedChannel
from channels.errors import ChannelDead, DeadlineExceeded, Truncated
from channels.pairs import socketpair_pair
from channels.records import Warm
from channels.wire import MOST_AHEAD, READ_AHEAD, MemoryWire, SocketWire, Wire


def sockets(*, stall: float = wires.STALL) -> tuple[Wire, Wire]:
    left, right = socket.socketpair()
    return SocketWire(left, stall=stall), SocketWire(right, stall=stall)


Make = Callable[..., tuple[Wire, Wire]]


@contextlib.contextmanager
def closing(ends: tuple[Wire, Wire]) -> Iterator[tuple[Wire, Wire]]:
    try:
        yield ends
    finally:
        for end in ends:
            end.close()


@pytest.fixture(params=[sockets, MemoryWire.pair], ids=["socket", "memory"])
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    """Makes a pair of either kind, closed at the end."""
    with contextlib.ExitStack() as stack:
        yield lambda **options: stack.enter_context(closing(request.param(**options)))


def test_bytes_come_in_order_however_they_are_asked_for(make: Make) -> None:
    left, right = make()
    data = bytes(i * 7 % 251 for i in range(600_000))
    writing = threading.Thread(target=left.write, args=(memoryview(data),))
    writing.start()
    got, lengths = b"", [1, 32, 4096, 5000, 40, 200_000, 16, MOST_AHEAD, 3, 100_000]
    for turn, length in enumerate(lengths):
        here = right.look(length, None) if turn % 3 else None
        if here is None:
            memory = memoryview(bytearray(length))
            right.fill(memory, None)
            here = memory
        assert len(here) == length
        got += bytes(here)
    assert got == data[: len(got)]
    assert right.look(MOST_AHEAD + 1, None) is None
    rest = memoryview(bytearray(len(data) - len(got)))
    right.fill(rest, None)
    writing.join()
    assert got + bytes(rest) == data
    assert left.sent == right.received == len(data)


def test_a_look_that_times_out_loses_no_byte(make: Make) -> None:
    left, right = make()
    left.write(memoryview(b"half"))
    with pytest.raises(DeadlineExceeded):
        right.look(8, time.monotonic() + 0.05)
    left.write(memoryview(b"ness"))
    here = right.look(8, time.monotonic() + 5)
    assert here is not None
    assert bytes(here) == b"halfness"


@pytest.mark.parametrize("length", [8, 100_000])
def test_inside_a_message_silence_is_borne_for_so_long_and_no_longer(make: Make, length: int) -> None:
    """A peer that stops in the middle of a message does not hold its receiver, however small the rest is."""
    left, right = make(stall=0.1)
    left.write(memoryview(b"half"))
    with pytest.raises(DeadlineExceeded):
        read(right, length)


def read(wire: Wire, length: int) -> None:
    if wire.look(length, None) is None:
        wire.fill(memoryview(bytearray(length)), None)


def test_slow_progress_is_progress() -> None:
    def write() -> None:
        for _ in range(6):
            time.sleep(0.1)
            left.write(memoryview(b"x"))

    with closing(sockets(stall=0.3)) as (left, right):
        writing = threading.Thread(target=write)
        writing.start()
        assert bytes(right.look(6, None) or b"") == b"x" * 6
        writing.join()


def test_closing_wakes_whoever_waits_as_long_as_it_takes(make: Make) -> None:
    _, right = make()
    threading.Timer(0.05, right.close).start()
    with pytest.raises((ChannelDead, Truncated)):
        right.look(1, inf)


@pytest.mark.parametrize("seconds", [0.05, 5, inf])
def test_a_wire_that_another_thread_has_closed_says_so(make: Make, seconds: float) -> None:
    """Also to a reader that had not begun to wait, however near its deadline."""
    _, right = make()
    right.close()
    for act in (
        lambda: right.look(1, time.monotonic() + seconds),
        lambda: right.fill(memoryview(bytearray(9000)), None),
    ):
        with pytest.raises(ChannelDead):
            act()


def test_several_small_messages_come_by_one_system_call() -> None:
    left, right = socketpair_pair()
    with left, right:
        for _ in range(2):  # the first one makes the receiver's read-ahead large
            for number in range(10):
                left.send(b"%d" % number, bytes(5000))
            calls = counted(right)
            assert [right.recv(5).meta for _ in range(10)] == [b"%d" % number for number in range(10)]
        assert len(calls) == 1


def counted(channel: SealedChannel) -> list[int]:
    """The sizes of what this channel's wire receives from now on."""
    wire, sizes = channel._wire, list[int]()
    assert isinstance(wire, SocketWire)
    receive = SocketWire._receive

    def watched(memory: memoryview, deadline: float, *, whole: bool = False) -> int:
        sizes.append(receive(wire, memory, deadline, whole=whole))
        return sizes[-1]

    wire._receive = watched  # type: ignore[method-assign]
    return sizes


def test_an_idle_wire_keeps_no_large_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of sessions that wait must not hold a quarter of a MiB each."""
    monkeypatch.setattr(wires, "TICK", 0.05)
    with closing(sockets()) as (left, right):
        assert isinstance(right, SocketWire)
        left.write(memoryview(bytes(10_000)))
        assert right.look(10_000, None) is not None
        assert len(right._ahead) == MOST_AHEAD
        with pytest.raises(DeadlineExceeded):
            right.look(1, time.monotonic() + 0.3)
        assert len(right._ahead) == READ_AHEAD
        left.write(memoryview(b"still here"))
        assert bytes(right.look(10, None) or b"") == b"still here"


def test_an_idle_channel_has_let_its_large_buffer_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing refers to it any more, so that another channel of the process reads into it."""
    monkeypatch.setattr(wires, "AHEAD", Warm())
    monkeypatch.setattr(wires, "TICK", 0.05)
    near, far = socketpair_pair()
    with near, far:
        near.send(b"meta", bytes(100_000))
        assert len(far.recv(5).payload) == 100_000
        with pytest.raises(DeadlineExceeded):
            far.recv(0.3)
        ((buffer, _),) = wires.AHEAD._kept[MOST_AHEAD]
        assert sys.getrefcount(buffer) == 3  # the pool's, this function's, and the question's own
