"""What every channel must do, as a check that any implementation can call: `check_channel(make_pair)`.

In the manner of trio's `check_two_way_stream`: `make_pair` gives two fresh connected channels, and an AssertionError
says what one of them did wrong. It asks about the contract of `Channel` only, not about how bytes are protected; what
an adversary on the wire may do is another matter, which needs the wire (see `channels.tap`).
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import dataclasses
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from channels.channel import Channel
from channels.errors import ChannelDead, ChannelError, DeadlineExceeded, MessageTooLarge, PeerClosed, Truncated
from channels.primitives import Buffer
from channels.records import ALIGNMENT, Frame

MakePair = Callable[[], tuple[Channel, Channel]]
SIZES = (0, 1, 63, 4095, 4096, 4097, 65_537, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3_000_001)
PATIENCE = 20.0  # seconds before a check that waits is a check that failed


def check_channel(make_pair: MakePair) -> None:
    """Raise AssertionError where channels made by `make_pair` break the contract of `Channel`."""
    bindings = set()
    for check in CHECKS:
        with _pair(make_pair) as (left, right):
            bindings.add(left.binding)
            check(left, right)
    assert len(bindings) == len(CHECKS), "a binding repeats: it must be unique to each session"


@contextlib.contextmanager
def _pair(make_pair: MakePair) -> Iterator[tuple[Channel, Channel]]:
    left, right = make_pair()
    try:
        yield left, right
    finally:
        left.abandon()
        right.abandon()


@contextlib.contextmanager
def _beside(act: Callable[[], object]) -> Iterator[Future[object]]:
    """Run something in another thread meanwhile; its error is raised at the end."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(act)
        yield future
        future.result(PATIENCE)


def _expect(error: type[ChannelError], act: Callable[[], object], when: str) -> None:
    try:
        act()
    except ChannelError as raised:
        if isinstance(raised, error) and str(raised):
            return
        raise AssertionError(f"{when}: expected {error.__name__} with a message, got {raised!r}") from raised
    raise AssertionError(f"{when}: expected {error.__name__}, got nothing")


def _carry(sender: Channel, receiver: Channel, meta: bytes, *payload: Buffer) -> Frame:
    with _beside(lambda: sender.send(meta, *payload)):
        return receiver.recv(PATIENCE)


def identities(left: Channel, right: Channel) -> None:
    """Both know whom they talk to, and share a binding."""
    assert left.peer.name, "peer has no name"
    assert left.peer.fingerprint != right.peer.fingerprint, "both sides see the same peer"
    assert left.binding == right.binding, "the binding differs between the sides"
    assert len(left.binding) == 32, "the binding is not 32 bytes"


def every_size(left: Channel, right: Channel) -> None:
    """Messages arrive whole and unchanged, both ways, whatever their size and however many buffers they come in."""
    for size in SIZES:
        data = (bytes(range(256)) * (size // 256 + 1))[:size]
        third = size // 3
        for sender, receiver in ((left, right), (right, left)):
            frame = _carry(sender, receiver, b"meta %d" % size, data[:third], data[third:third], data[third:])
            assert frame.meta == b"meta %d" % size, f"meta changed at {size} bytes"
            assert frame.payload == data, f"payload changed at {size} bytes"


def own_memory(left: Channel, right: Channel) -> None:
    """A received payload is the receiver's alone: writable, aligned, untouched by what comes after."""
    memory = bytearray(b"a" * 5000)
    first = _carry(left, right, b"", memory)
    memory[:] = b"b" * 5000
    second = _carry(left, right, b"", memory)
    assert not first.payload.readonly, "the payload is read-only"
    first.payload[:] = b"c" * 5000
    assert second.payload == b"b" * 5000, "two payloads share memory"
    for frame in (first, second):
        address = _address(frame.payload)
        assert address % ALIGNMENT == 0, f"the payload starts at {address}, not at a multiple of {ALIGNMENT}"


def _address(memory: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def full_duplex(left: Channel, right: Channel) -> None:
    """Both sides send much at once while both receive: nobody waits for ever, order holds."""
    big = bytes(1 << 20)

    def pump(channel: Channel) -> None:
        for number in range(8):
            channel.send(b"%d" % number, big)

    def drain(channel: Channel) -> None:
        for number in range(8):
            assert channel.recv(PATIENCE).meta == b"%d" % number, "messages out of order"

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(run, side) for run in (pump, drain) for side in (left, right)]:
            future.result(PATIENCE)


def idle_timeout(left: Channel, right: Channel) -> None:
    """A wait that times out before a message began changes nothing."""
    _expect(DeadlineExceeded, lambda: right.recv(0.02), "nothing was sent")
    _expect(DeadlineExceeded, lambda: right.recv(0), "nothing was sent")
    assert _carry(left, right, b"later").meta == b"later", "the channel is dead after an idle wait"


def too_large(left: Channel, right: Channel) -> None:
    """A message of our own above the limits is refused before anything is sent."""
    meta = bytes(left.limits.max_meta + 1)
    _expect(MessageTooLarge, lambda: left.send(meta), "meta above the limit")
    assert _carry(left, right, b"small").meta == b"small", "the channel is dead after refusing a large message"


def goodbye(left: Channel, right: Channel) -> None:
    """After a close the peer still gets what was sent, then PeerClosed; the closed side is dead; twice is no harm."""
    left.send(b"last words")
    left.close()
    left.close()
    assert right.recv(PATIENCE).meta == b"last words", "what was sent before the close is lost"
    _expect(PeerClosed, lambda: right.recv(PATIENCE), "the peer closed")
    _expect(PeerClosed, lambda: right.recv(PATIENCE), "the peer closed, asked again")
    for name, act in (("send", lambda: left.send(b"")), ("recv", lambda: left.recv(PATIENCE))):
        _expect(ChannelDead, act, f"{name} after close")


def truncation(left: Channel, right: Channel) -> None:
    """An end without goodbye is never taken for one."""
    left.abandon()
    _expect(Truncated, lambda: right.recv(PATIENCE), "the peer vanished")
    _expect(ChannelDead, lambda: right.recv(PATIENCE), "a dead channel")
    _expect(ChannelDead, lambda: right.send(b""), "a dead channel")


def close_wakes(left: Channel, right: Channel) -> None:
    """Closing wakes a thread of the same side that waits for a message."""
    started = threading.Event()

    def wait() -> None:
        started.set()
        _expect(ChannelDead, lambda: left.recv(PATIENCE), "closed while waiting")

    with _beside(wait):
        started.wait(PATIENCE)
        left.close()


def facts(left: Channel, right: Channel) -> None:
    """The facts are plain, and count."""
    for _ in range(3):
        _carry(left, right, b"x", bytes(100_000))
    said = json.loads(json.dumps(dataclasses.asdict(left.facts)))
    assert (said["messages_sent"], said["messages_received"]) == (3, 0), f"messages counted wrongly: {said}"
    assert said["bytes_sent"] >= 300_003, f"bytes counted wrongly: {said}"
    assert said["peer_fingerprint"] == left.peer.fingerprint, "the facts name another peer"
    assert right.facts.messages_received == 3, "messages counted wrongly by the receiver"


def secretive(left: Channel, right: Channel) -> None:
    """A channel is not copied, and its repr holds no long number."""
    try:
        copied: object = copy.deepcopy(left)
    except TypeError:
        copied = None
    assert copied is None, "a channel can be copied, and its counters with it"
    assert left.binding.hex() not in repr(left), "the repr shows the binding"


CHECKS = (
    identities,
    every_size,
    own_memory,
    full_duplex,
    idle_timeout,
    too_large,
    goodbye,
    truncation,
    close_wakes,
    facts,
    secretive,
)
