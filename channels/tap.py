"""A tap between two peers: what a wiretap sees, and what an active adversary on the wire may do. For audits and tests.

A Tap is a proxy that a dialler is pointed at instead of its peer. It holds no key. Passively it notes direction,
length and time of every piece that passes: all that encryption leaves to see. Actively it commits one `Fault` at a
chosen byte of one direction of the next connection: flip, drop, duplicate, swap, insert (a replay or a splice of
recorded bytes), reflect, truncate, delay.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from channels.dial import open_socket
from channels.errors import ChannelError
from channels.listen import bind, name_of

Direction = Literal["there", "back"]  # from the dialler, and to it
Kind = Literal["flip", "drop", "duplicate", "swap", "insert", "reflect", "truncate", "delay"]
PIECE = 1 << 16  # bytes read at a time


class Seen(NamedTuple):
    """One piece on the wire: all that a wiretap learns of it."""

    connection: int
    direction: Direction
    seconds: float  # since the tap was made
    length: int  # bytes


@dataclass(frozen=True)
class Fault:
    """What to do to one direction of a connection, from byte `at` of that direction, over `length` bytes.

    `swap` exchanges that run with the next one as long; `insert` puts `data` before byte `at`; `truncate` ends the
    connection before byte `at`; `reflect` sends the run back to where it came from, too; `delay` waits `seconds`.
    """

    kind: Kind
    at: int
    direction: Direction = "there"
    length: int = 1
    data: bytes = b""
    seconds: float = 0.0


class Act(NamedTuple):
    """What a direction does with bytes: pass them on, send them back, wait first, or end."""

    kind: Literal["pass", "back", "wait", "end"]
    data: bytes = b""
    seconds: float = 0.0


class Mangler:
    """Applies one fault to one direction of a stream; sans I/O, whatever the pieces it comes in."""

    def __init__(self, fault: Fault | None) -> None:
        self._fault, self._position, self._held = fault, 0, b""

    def feed(self, piece: bytes) -> Iterator[Act]:
        """What to do, now that this has arrived; bytes that the fault needs together are held until they are."""
        fault = self._fault
        if fault is None:
            yield Act("pass", piece)
            return
        self._held += piece
        start = fault.at - self._position
        need = {"swap": 2 * fault.length, "insert": 0, "truncate": 0, "delay": 0}.get(fault.kind, fault.length)
        if start > 0:
            before, self._held = self._held[:start], self._held[start:]
            self._position += len(before)
            yield Act("pass", before)
        if self._position == fault.at and len(self._held) >= need:
            run, rest = self._held[:need], self._held[need:]
            self._fault, self._held = None, b""
            yield from _commit(fault, run)
            yield Act("pass", rest)

    def end(self) -> bytes:
        """What is still held when the stream ends."""
        held, self._held = self._held, b""
        return held


def _commit(fault: Fault, run: bytes) -> Iterator[Act]:
    n = fault.length
    if fault.kind == "flip":
        yield Act("pass", bytes([run[0] ^ 1]) + run[1:])
    elif fault.kind == "duplicate":
        yield Act("pass", run + run)
    elif fault.kind == "swap":
        yield Act("pass", run[n:] + run[:n])
    elif fault.kind == "insert":
        yield Act("pass", fault.data)
    elif fault.kind == "reflect":
        yield Act("back", run)
        yield Act("pass", run)
    elif fault.kind == "delay":
        yield Act("wait", seconds=fault.seconds)
    elif fault.kind == "truncate":
        yield Act("end")


@dataclass
class Recording:
    """The bytes of one connection, as they came, before any fault."""

    there: bytearray = field(default_factory=bytearray)
    back: bytearray = field(default_factory=bytearray)


class Tap:
    """A proxy at `address` in front of `target` ("host:port" or "unix:/path"), from its making until it is closed.

    `seen` grows while it runs. `fault` is committed once, on the next connection made. With `keep_bytes` the streams
    themselves are kept in `recordings`, to be replayed; for tests only, as it keeps everything.
    """

    def __init__(self, target: str, address: str = "127.0.0.1:0", *, keep_bytes: bool = False) -> None:
        self.target = target
        self.fault: Fault | None = None
        self.seen: list[Seen] = []
        self.recordings: list[Recording] = []
        self._keep, self._born, self._closed = keep_bytes, time.monotonic(), False
        self._sock = bind(address)
        self.address = name_of(self._sock)
        self._open: set[socket.socket] = set()
        self._threads = [threading.Thread(target=self._accept, name=f"tap {self.address}", daemon=True)]
        self._threads[0].start()

    def __enter__(self) -> Tap:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def cut(self) -> None:
        """Break every connection now open, as a network does."""
        for sock in list(self._open):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Stop, cutting what is open."""
        self._closed = True
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()
        self._threads[0].join()
        self.cut()
        for thread in self._threads[1:]:
            thread.join()

    def _accept(self) -> None:
        while not self._closed:
            with contextlib.suppress(OSError, ChannelError):
                near = self._sock.accept()[0]
                try:
                    far = open_socket(self.target, time.monotonic() + 1, "the tap's target")
                except ChannelError:
                    near.close()
                    continue
                self._join(near, far)

    def _join(self, near: socket.socket, far: socket.socket) -> None:
        fault, self.fault = self.fault, None
        number, recording = len(self.recordings), Recording()
        self.recordings.append(recording)
        for sock in (near, far):
            sock.settimeout(None)
            self._open.add(sock)
        done = threading.Barrier(2, action=lambda: self._part(near, far))
        for direction, source, sink in (("there", near, far), ("back", far, near)):
            mangler = Mangler(fault if fault and fault.direction == direction else None)
            kept = getattr(recording, direction)
            args = (number, direction, source, sink, mangler, kept, done)
            thread = threading.Thread(target=self._carry, args=args, daemon=True)
            self._threads.append(thread)
            thread.start()

    def _carry(
        self,
        number: int,
        direction: Direction,
        source: socket.socket,
        sink: socket.socket,
        mangler: Mangler,
        kept: bytearray,
        done: threading.Barrier,
    ) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(PIECE):
                self.seen.append(Seen(number, direction, time.monotonic() - self._born, len(piece)))
                if self._keep:
                    kept += piece
                for act in mangler.feed(piece):
                    if act.kind == "wait":
                        time.sleep(act.seconds)
                    elif act.kind == "end":
                        source.shutdown(socket.SHUT_RDWR)
                        break
                    elif act.data:
                        (source if act.kind == "back" else sink).sendall(act.data)
            sink.sendall(mangler.end())
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)
        done.wait()

    def _part(self, near: socket.socket, far: socket.socket) -> None:
        for sock in (near, far):
            self._open.discard(sock)
            sock.close()
