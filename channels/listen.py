"""Listening: meet whoever dials in, without letting strangers cost more than a little.

One thread holds all half-open connections, non-blocking: at most 64, at most 8 from one address (or as many as the
roster lists, who may all start at once behind one address), 5 seconds and two small frames each; the oldest gives way
to a newcomer, so a flood of silent connections does not keep honest peers out. A stranger is closed on without a word,
whichever check it failed; the reason goes to the local log, one line.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import selectors
import socket
import threading
import time
from collections import deque
from dataclasses import dataclass, replace

from channels.channel import SealedChannel
from channels.dial import HANDSHAKE_SECONDS, NOISE_IK, check_own, split_address
from channels.errors import (
    ChannelDead,
    ChannelError,
    DeadlineExceeded,
    HandshakeTimeout,
    RosterRollback,
    Truncated,
)
from channels.identity import Identity
from channels.meeting import Agreement, Conversation, Responder, Side
from channels.records import DEFAULT_LIMITS, Limits
from channels.roster import Roster
from channels.wire import STALL, SocketWire

log = logging.getLogger("secsplit.channels")

HALF_OPEN = 64
HALF_OPEN_PER_ADDRESS = 8
MAX_LINE = 300  # characters of one log line


@dataclass(frozen=True)
class Refusal:
    """Somebody who did not get in."""

    address: str
    error: ChannelError

    def __str__(self) -> str:
        return f"refused {self.address}: {self.error}"[:MAX_LINE]


class _Caller:
    """One half-open connection: a conversation, and exactly the bytes it still needs."""

    def __init__(self, sock: socket.socket, address: str, conversation: Conversation) -> None:
        self.sock, self.address, self._conversation = sock, address, conversation
        self.born = time.monotonic()
        self._heard, self._ask = bytearray(), next(conversation)

    def hear(self) -> Agreement | None:
        """Take what has arrived; the agreement once the caller is authenticated and live. Raises ChannelError."""
        try:
            while piece := self.sock.recv(self._ask.want - len(self._heard)):
                self._heard += piece
                if len(self._heard) == self._ask.want:
                    self._go_on()
            raise Truncated("hung up during the handshake")
        except BlockingIOError:
            return None
        except StopIteration as done:
            agreement: Agreement = done.value
            return agreement

    def _go_on(self) -> None:
        said = bytes(self._heard)
        self._heard.clear()
        self._ask = self._conversation.send(said)
        while self._ask.say or not self._ask.want:
            self.sock.sendall(self._ask.say)  # a few KiB into an empty buffer: never blocks
            self._ask = self._ask._replace(say=b"") if self._ask.want else self._conversation.send(b"")


class Listener:
    """Accepts channels at "host:port" (port 0: any) or "unix:/path", in a thread of its own, until closed."""

    def __init__(
        self,
        address: str,
        me: Identity,
        roster: Roster,
        *,
        digest: bytes,
        handshake: Responder = NOISE_IK,
        limits: Limits = DEFAULT_LIMITS,
        pad: bool = False,
        stall: float = STALL,
    ) -> None:
        self._side = Side(me, check_own(me, roster), digest, limits, pad)
        self._handshake, self._stall = handshake, stall
        self._sock = bind(address)
        self.address = name_of(self._sock)
        self.refusals: deque[Refusal] = deque(maxlen=64)
        self._met: queue.SimpleQueue[SealedChannel] = queue.SimpleQueue()
        self._callers: dict[int, _Caller] = {}
        self._closed = False
        self._selector = selectors.DefaultSelector()
        self._bell, self._bell_end = socket.socketpair()
        for source in (self._sock, self._bell):
            source.setblocking(False)
            self._selector.register(source, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name=f"listen {self.address}", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"<Listener {self.address}>"

    def accept(self, timeout: float | None = None) -> SealedChannel:
        """The next authenticated channel; raises DeadlineExceeded, which names who was refused meanwhile."""
        if self._closed:
            raise ChannelDead("the listener is closed")
        try:
            channel = self._met.get(timeout=timeout)
        except queue.Empty:
            raise DeadlineExceeded(f"nobody connected to {self.address} in {timeout:g} s{self.recent()}") from None
        if self._closed:
            raise ChannelDead("the listener is closed")
        return channel

    def recent(self) -> str:
        """The last three refusals, to be appended to an error."""
        return "".join(f"; {refusal}" for refusal in list(self.refusals)[-3:])

    def replace_roster(self, roster: Roster) -> None:
        """From now on, accept by this roster; raises RosterRollback where its epoch does not rise."""
        if roster.epoch <= self._side.roster.epoch:
            raise RosterRollback(f"epoch {roster.epoch} offered, {self._side.roster.epoch} in force")
        self._side = replace(self._side, roster=check_own(self._side.me, roster))

    def close(self) -> None:
        """Stop listening; channels already accepted live on."""
        if not self._closed:
            self._closed = True
            with contextlib.suppress(OSError):  # a busy listener may have seen the flag first, and hung up the bell
                self._bell_end.send(b"x")
            self._thread.join()
            self._bell_end.close()
            while not self._met.empty():
                self._met.get().abandon()

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        while not self._closed:
            for key, _ in self._selector.select(self._patience()):
                if key.fileobj is self._sock:
                    self._admit()
                elif key.data is not None and key.data.sock.fileno() in self._callers:
                    self._hear(key.data)
            now = time.monotonic()
            for caller in [c for c in self._callers.values() if now - c.born >= HANDSHAKE_SECONDS]:
                self._refuse(caller, HandshakeTimeout(f"no handshake within {HANDSHAKE_SECONDS:g} s"))
        self._shut()

    def _patience(self) -> float | None:
        """Seconds until the oldest half-open connection is due."""
        if not self._callers:
            return None
        oldest = next(iter(self._callers.values()))
        return max(0.0, oldest.born + HANDSHAKE_SECONDS - time.monotonic())

    def _admit(self) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
            sock, name = self._sock.accept()
            host = name[0] if isinstance(name, tuple) else "unix"
            self._make_room(host)
            sock.setblocking(False)
            caller = _Caller(sock, host, self._handshake.respond(self._side))
            self._callers[sock.fileno()] = caller
            self._selector.register(sock, selectors.EVENT_READ, caller)

    def _make_room(self, host: str) -> None:
        """The oldest goes; an honest caller needs milliseconds, so it is hardly ever the oldest."""
        same = [caller for caller in self._callers.values() if caller.address == host]
        listed = len(self._side.roster.parties)
        crowd = same if len(same) >= max(HALF_OPEN_PER_ADDRESS, listed) else list(self._callers.values())
        if crowd is same or len(crowd) >= max(HALF_OPEN, listed):
            self._refuse(crowd[0], HandshakeTimeout("too many half-open connections; the oldest gave way"))

    def _hear(self, caller: _Caller) -> None:
        try:
            agreement = caller.hear()
        except ChannelError as error:
            self._refuse(caller, error)
            return
        except OSError as error:
            self._refuse(caller, Truncated(f"the connection broke: {error.strerror}"))
            return
        if agreement is not None:
            self._forget(caller)
            self._met.put(SealedChannel(SocketWire(caller.sock, stall=self._stall), agreement))

    def _refuse(self, caller: _Caller, error: ChannelError) -> None:
        refusal = Refusal(caller.address, error)
        self.refusals.append(refusal)
        log.warning("%s", refusal)
        self._forget(caller)
        caller.sock.close()

    def _forget(self, caller: _Caller) -> None:
        self._callers.pop(caller.sock.fileno(), None)
        self._selector.unregister(caller.sock)

    def _shut(self) -> None:
        for caller in list(self._callers.values()):
            self._forget(caller)
            caller.sock.close()
        self._selector.close()
        for sock in (self._sock, self._bell):
            sock.close()
        if self.address.startswith("unix:"):
            with contextlib.suppress(OSError):
                os.unlink(self.address.removeprefix("unix:"))


def bind(address: str) -> socket.socket:
    """A listening socket at "host:port" or "unix:/path"."""
    if address.startswith("unix:"):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.bind(address.removeprefix("unix:"))
        sock.listen(128)
        return sock
    host, port = split_address(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=128)


def name_of(sock: socket.socket) -> str:
    """Its address in the same form."""
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return f"unix:{name}"
    host = f"[{name[0]}]" if ":" in name[0] else name[0]
    return f"{host}:{name[1]}"
