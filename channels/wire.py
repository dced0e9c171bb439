"""Wires: what carries a channel's bytes. A socket, or memory for tests; both are read by filling memory exactly.

A wire knows no keys and no messages. Waiting costs no extra system calls: the kernel wakes a blocked call every
`TICK` seconds, and only then, or when a deadline is nearer than that, is the clock asked. What fits the read-ahead is
looked at there, all or nothing, so that a wait that times out loses no byte, and one system call may bring several
records; what is larger goes straight into the caller's memory.

A deadline is a time.monotonic(); `math.inf` waits as long as it takes, None as long as bytes keep coming, each within
`STALL` seconds of the last.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from math import inf
from typing import Protocol

from channels.errors import ChannelDead, DeadlineExceeded, Truncated
from channels.records import Warm

TICK = 1.0  # seconds
READ_AHEAD = 4096  # bytes
MOST_AHEAD = (1 << 18) + READ_AHEAD  # bytes, once a look at so much has been asked for, and until nothing comes
MUCH = 1 << 16  # bytes; so much is waited for beneath
AHEAD = Warm()  # of all wires of a process: as many as are busy at once
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

        Up to READ_AHEAD bytes nothing is lost on DeadlineExceeded; above, the deadline is None, whichever is given.
        """
        ...

    def look(self, length: int, deadline: float | None) -> memoryview | None:
        """So many bytes where they are, valid until more is read; None where they must be filled into memory.

        At least up to READ_AHEAD bytes are looked at. All or nothing; raises as `fill`.
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
    """`look` and `fill` over what arrives: small reads in a buffer, all or nothing, large ones straight into memory."""

    stall = STALL

    def __init__(self) -> None:
        self._ahead = self._little = memoryview(bytearray(READ_AHEAD))
        self._start = self._end = 0

    def _receive(self, memory: memoryview, deadline: float, *, whole: bool = False) -> int:
        """At least one byte from beneath, or 0 after a TICK; all, where `whole` is asked for and nothing goes wrong."""
        raise NotImplementedError

    def take(self, memory: memoryview, deadline: float | None) -> int:
        """See `Wire.take`."""
        count = min(self._end - self._start, len(memory))
        if not count:
            until = self._until(deadline)
            while not count:
                count = self._receive(memory, until)
            return count
        memory[:count] = self._ahead[self._start : self._start + count]
        self._start += count
        return count

    def look(self, length: int, deadline: float | None) -> memoryview | None:
        """See `Wire.look`."""
        start = self._start
        end = start + length
        if end > self._end:
            if length > MOST_AHEAD:
                return None
            start = self._read_ahead(length, deadline)
            end = start + length
        self._start = end
        return self._ahead[start:end]

    def fill(self, memory: memoryview, deadline: float | None) -> None:
        """See `Wire.fill`."""
        if len(memory) <= READ_AHEAD:
            here = self.look(len(memory), deadline)
            assert here is not None
            memory[:] = here
            return
        got, length = min(self._end - self._start, len(memory)), len(memory)
        memory[:got] = self._ahead[self._start : self._start + got]
        self._start += got
        until = self._until(None)
        while got < length:
            if count := self._receive(memory[got:], until, whole=True):
                got, until = got + count, self._until(None)

    def _read_ahead(self, length: int, deadline: float | None) -> int:
        """Have so many bytes in the buffer, and whatever else has come; where they start."""
        left, ahead = self._end - self._start, self._ahead
        if length > len(ahead):
            self._ahead = AHEAD.take(MOST_AHEAD)
        if not left or self._start + length > len(ahead):
            self._ahead[:left] = ahead[self._start : self._end]
            self._start, self._end = 0, left
        del ahead  # or an idle wire would hold on to it here
        until = self._until(deadline)
        while True:
            missing = length - (self._end - self._start)
            if missing < MUCH:
                count = self._receive(self._ahead[self._end :], until)
            else:  # one call that waits for it all, not one for each segment that arrives
                count = self._receive(self._ahead[self._end : self._end + missing], until, whole=True)
            self._end += count
            if self._end - self._start >= length:
                break
            if count:
                until = self._until(deadline)
            elif self._start == self._end and length <= READ_AHEAD:
                self._ahead, self._start, self._end = self._little, 0, 0  # an idle wire keeps no large buffer
        return self._start

    def _until(self, deadline: float | None) -> float:
        return time.monotonic() + self.stall if deadline is None else deadline


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

    def _receive(self, memory: memoryview, deadline: float, *, whole: bool = False) -> int:
        try:
            if deadline != inf and (left := deadline - time.monotonic()) < TICK:
                self._await_readable(left)
            count = self._sock.recv_into(memory, 0, socket.MSG_WAITALL if whole else 0)
        except BlockingIOError:
            return 0
        except (OSError, ValueError) as error:  # ValueError: closed by another thread before this one began to wait
            raise self._broken(f"the connection broke: {error}") from None
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
            while self._sock.recv_into(bytearray(MOST_AHEAD), 0, socket.MSG_DONTWAIT):
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
            at += self._draw(memory[at:], len(memory) if small else 1, deadline if small else None)

    def look(self, length: int, deadline: float | None) -> memoryview | None:
        """See `Wire.look`."""
        if length > READ_AHEAD:
            return None
        here = memoryview(bytearray(length))
        self._draw(here, length, deadline)
        return here

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
            self._await(pipe, lambda: len(pipe.bytes) < pipe.capacity or pipe.ended, None)
            if pipe.ended:
                raise Truncated("the peer is gone")
            pipe.bytes += piece
            pipe.changed.notify_all()
        self.sent += len(piece)

    def _await(self, pipe: Pipe, ready: Callable[[], bool], deadline: float | None) -> None:
        until = time.monotonic() + self._stall if deadline is None else deadline
        while not (ready() or self._closed):
            left = until - time.monotonic()
            if left <= 0:
                raise DeadlineExceeded("nothing came before the deadline")
            pipe.changed.wait(min(left, threading.TIMEOUT_MAX))
        if self._closed:
            raise ChannelDead("closed here")

    def close(self) -> None:
        """See `Wire.close`."""
        self._closed = True
        for pipe in (self._in, self._out):
            with pipe.changed:
                pipe.ended = True
                pipe.changed.notify_all()
