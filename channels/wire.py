"""Wires: what carries a channel's bytes. A socket, or memory for tests; both are read by filling memory exactly.

A wire knows no keys and no messages. Waiting costs no extra system calls: the kernel wakes a blocked call every
`TICK` seconds, and only then, or when a deadline is nearer than that, is the clock asked. Small reads pass through a
read-ahead of a few KiB and are all or nothing, so a wait that times out loses no byte; large ones go straight into
the caller's memory.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Protocol

from channels.errors import ChannelDead, DeadlineExceeded, Truncated

TICK = 1.0  # seconds
READ_AHEAD = 4096  # bytes
STALL = 30.0  # seconds without a single byte of progress inside a message


class Wire(Protocol):
    """A two-way stream of bytes; one thread may read while another writes."""

    @property
    def received(self) -> int:
        """Bytes so far."""
        ...

    @property
    def sent(self) -> int:
        """Bytes so far."""
        ...

    @property
    def heard(self) -> float:
        """time.monotonic() of the last bytes in."""
        ...

    def fill(self, memory: memoryview, deadline: float | None) -> None:
        """Fill all of it; raises DeadlineExceeded, Truncated at the end of the stream, ChannelDead once closed here.

        `deadline` is a time.monotonic(); None waits as long as it takes. Up to READ_AHEAD bytes, nothing is lost on
        DeadlineExceeded; above, each byte of progress starts the patience of STALL seconds anew, whatever the deadline.
        """
        ...

    def take(self, memory: memoryview, deadline: float | None) -> int:
        """Take what is there, waiting for at least one byte; how many. Raises as `fill`."""
        ...

    def write(self, piece: memoryview) -> None:
        """Write all of it; raises DeadlineExceeded after STALL seconds without progress, Truncated, ChannelDead."""
        ...

    def close(self) -> None:
        """End it, waking whoever waits."""
        ...


class ReadAhead:
    """`fill` over `take`: small reads through a buffer and all or nothing, large ones straight into the memory."""

    stall = STALL

    def __init__(self) -> None:
        self._ahead = memoryview(bytearray(READ_AHEAD))
        self._start = self._end = 0

    def _receive(self, memory: memoryview, deadline: float | None, *, whole: bool) -> int:
        """At least one byte from beneath; all, where `whole` is asked for and nothing goes wrong."""
        raise NotImplementedError

    def take(self, memory: memoryview, deadline: float | None) -> int:
        """See `Wire.take`."""
        count = min(self._end - self._start, len(memory))
        if not count:
            return self._receive(memory, deadline, whole=False)
        memory[:count] = self._ahead[self._start : self._start + count]
        self._start += count
        return count

    def fill(self, memory: memoryview, deadline: float | None) -> None:
        """See `Wire.fill`."""
        length, start = len(memory), self._start
        if length <= READ_AHEAD:
            if self._end - start < length:
                self._read_ahead(length, deadline)
                start = self._start
            self._start = start + length
            memory[:] = self._ahead[start : start + length]
            return
        got = self._end - start
        if got:
            memory[:got] = self._ahead[start : self._end]
        self._start = self._end = 0
        while got < length:
            got += self._receive(memory[got:], time.monotonic() + self.stall, whole=True)

    def _read_ahead(self, length: int, deadline: float | None) -> None:
        left = self._end - self._start
        if left:
            self._ahead[:left] = self._ahead[self._start : self._end]
        self._start, self._end = 0, left
        while self._end < length:
            self._end += self._receive(self._ahead[self._end :], deadline, whole=False)


class SocketWire(ReadAhead):
    """A connected stream socket, which it owns."""

    def __init__(self, sock: socket.socket, *, stall: float = STALL) -> None:
        super().__init__()
        self.received = self.sent = 0
        self.heard = time.monotonic()
        self._sock, self.stall, self._closed = sock, stall, False
        sock.setblocking(True)
        tick = struct.pack("ll", int(TICK), int(TICK % 1 * 1e6))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, tick)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, tick)
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _receive(self, memory: memoryview, deadline: float | None, *, whole: bool) -> int:
        while True:
            try:
                if deadline is not None and (left := deadline - time.monotonic()) < TICK:
                    self._await_readable(left)
                count = self._sock.recv_into(memory, 0, socket.MSG_WAITALL if whole else 0)
            except BlockingIOError:
                continue
            except OSError as error:
                raise self._broken(f"the connection broke: {error.strerror}") from None
            if not count:
                raise self._broken("the stream ended without a sealed close")
            self.received += count
            self.heard = time.monotonic()
            return count

    def _await_readable(self, seconds: float) -> None:
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        if not poll.poll(max(0.0, seconds) * 1000):
            raise DeadlineExceeded("nothing came before the deadline")

    def write(self, piece: memoryview) -> None:
        """See `Wire.write`."""
        since = 0.0
        while True:
            try:
                count = self._sock.send(piece)
            except BlockingIOError:
                since = since or time.monotonic() - TICK
                if time.monotonic() - since >= self.stall:
                    raise DeadlineExceeded(f"the peer took no byte for {self.stall:g} s") from None
                continue
            except OSError as error:
                raise self._broken(f"the connection broke: {error.strerror}") from None
            self.sent += count
            if count == len(piece):
                return
            piece, since = piece[count:], 0.0

    def _broken(self, what: str) -> ChannelDead | Truncated:
        return ChannelDead("closed here") if self._closed else Truncated(what)

    def close(self) -> None:
        """See `Wire.close`. Unread input is drained, or it would cut off what the peer has yet to read."""
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)
            while self._sock.recv_into(self._ahead, 0, socket.MSG_DONTWAIT):
                pass
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()


class Pipe:
    """One direction of a memory wire, holding at most `capacity` bytes before the writer waits."""

    def __init__(self, capacity: int) -> None:
        self.bytes, self.capacity, self.ended = bytearray(), capacity, False
        self.changed = threading.Condition()


class MemoryWire:
    """Two threads of one process, for tests: the same contract without a socket."""

    def __init__(self, inward: Pipe, outward: Pipe, *, stall: float = STALL) -> None:
        self.received = self.sent = 0
        self.heard = time.monotonic()
        self._in, self._out, self._stall, self._closed = inward, outward, stall, False

    @classmethod
    def pair(cls, *, capacity: int = 1 << 20, stall: float = STALL) -> tuple[MemoryWire, MemoryWire]:
        """Two ends of one wire."""
        there, back = Pipe(capacity), Pipe(capacity)
        return cls(back, there, stall=stall), cls(there, back, stall=stall)

    def fill(self, memory: memoryview, deadline: float | None) -> None:
        """See `Wire.fill`."""
        at, small = 0, len(memory) <= READ_AHEAD
        while at < len(memory):
            wanted = len(memory) if small else 1
            at += self._draw(memory[at:], wanted, deadline if small else time.monotonic() + self._stall)

    def take(self, memory: memoryview, deadline: float | None) -> int:
        """See `Wire.take`."""
        return self._draw(memory, 1, deadline)

    def _draw(self, memory: memoryview, wanted: int, deadline: float | None) -> int:
        pipe = self._in
        with pipe.changed:
            self._await(pipe, lambda: len(pipe.bytes) >= wanted or pipe.ended, deadline)
            count = min(len(memory), len(pipe.bytes))
            if count < wanted:
                raise Truncated("the stream ended without a sealed close")
            memory[:count] = pipe.bytes[:count]
            del pipe.bytes[:count]
            pipe.changed.notify_all()
        self.received += count
        self.heard = time.monotonic()
        return count

    def write(self, piece: memoryview) -> None:
        """See `Wire.write`."""
        pipe = self._out
        with pipe.changed:
            self._await(pipe, lambda: len(pipe.bytes) < pipe.capacity or pipe.ended, time.monotonic() + self._stall)
            if pipe.ended:
                raise Truncated("the peer is gone")
            pipe.bytes += piece
            pipe.changed.notify_all()
        self.sent += len(piece)

    def _await(self, pipe: Pipe, ready: Callable[[], bool], deadline: float | None) -> None:
        while not (ready() or self._closed):
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise DeadlineExceeded("nothing came before the deadline")
            pipe.changed.wait(left)
        if self._closed:
            raise ChannelDead("closed here")

    def close(self) -> None:
        """See `Wire.close`."""
        self._closed = True
        for pipe in (self._in, self._out):
            with pipe.changed:
                pipe.ended = True
                pipe.changed.notify_all()
