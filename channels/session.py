"""A session: the same send, recv and close as a channel, but it outlives its connections.

Messages are numbered. The sender keeps each one, the very bytes it was given, until the peer says that it is
delivered; after a broken connection the dialler makes a new handshake, both say under the new keys how far they got,
and what is missing is sent again, those same bytes (noise added by a defense is never drawn anew). So every message
is delivered exactly once, in order, as long as both processes live.

Each session reads in a thread of its own, beside compute, into an inbox of bounded size; a full inbox stops reading
and so, through TCP, the peer. A second thread keeps the link audibly alive and repeats what must be repeated. A link
that breaks, or on which nothing is heard for half of `patience` (at most `silence` seconds), is given up and another
one sought, whatever became of it: cut, filtered, or its host unreachable for a while. A peer from which nothing is
heard on any link for `patience` seconds is gone: PeerLost, which names it. Works over any Channel; knows nothing of
records and keys.
"""

from __future__ import annotations

import contextlib
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Self

from channels.channel import Channel, ChannelFacts
from channels.errors import ChannelDead, ChannelError, DeadlineExceeded, IntegrityError, PeerClosed, PeerLost
from channels.identity import PublicIdentity
from channels.primitives import Buffer
from channels.records import Frame, aligned

LABEL = struct.Struct(">BQQ")  # type, number, how many messages of the peer have been delivered here
SILENCE = 5.0  # seconds
OUTBOX = INBOX = 256 << 20  # bytes kept for the peer's acknowledgement, and waiting to be received
ACK_MESSAGES, ACK_BYTES = 32, 32 << 20  # acknowledge unasked at the latest after these
RENEW_SECONDS, RENEW_BYTES = 24 * 3600.0, 16 << 40  # a new handshake, and so fresh keys, at the latest after these


class Type(IntEnum):
    """What a session message is."""

    DATA = 0
    PING = 1  # only to be heard, and to acknowledge
    ASK = 2  # acknowledge at once
    HELLO = 3  # how far this side got; followed by the session's name where it is being resumed
    GONE = 4  # the session is not known here any more


@dataclass(frozen=True)
class SessionFacts:
    """What an audit may know of a session: one ChannelFacts for each connection it has had."""

    channels: tuple[ChannelFacts, ...]
    messages_sent: int
    messages_received: int
    resent: int
    delivered: int  # of those sent


@dataclass(frozen=True, slots=True)
class _Kept:
    number: int
    meta: bytes
    payload: tuple[Buffer, ...]
    size: int


Relink = Callable[[int, float], tuple[Channel, int]]
"""Given how far we got, and a time.monotonic(): a new channel to the peer, and how many of our messages it has."""


class Session:
    """Made by `open_session` on the dialling side and `SessionListener.accept` on the other."""

    def __init__(self, channel: Channel, relink: Relink, *, silence: float = SILENCE, patience: float | None = None):
        self.peer: PublicIdentity = channel.peer
        self.binding = channel.binding  # of the first connection; it is also the session's name
        self._channel: Channel | None = channel
        self._patience = silence if patience is None else patience
        self._silence = link_silence(silence, patience)
        self._relink, self._limits = relink, channel.limits
        self._past: list[ChannelFacts] = []
        self._born = time.monotonic()
        self._order = threading.Lock()  # messages leave in the order of their numbers
        self._state = threading.Condition()  # guards all below
        self._outbox: deque[_Kept] = deque()
        self._inbox: deque[Frame] = deque()
        self._outbox_bytes = self._inbox_bytes = 0
        self._numbered = self._delivered = self._resent = 0
        self._unacknowledged = self._unacknowledged_bytes = 0
        self._repeat = self._answer = self._closing = False
        self._spoke = time.monotonic()
        self._end: ChannelError | None = None
        self._threads = [
            threading.Thread(target=run, name=f"session {self.peer.name} {run.__name__}", daemon=True)
            for run in (self._read, self._pulse)
        ]
        for thread in self._threads:
            thread.start()

    def __repr__(self) -> str:
        return f"<session with {self.peer.name}{', ended' if self._end else ''}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def facts(self) -> SessionFacts:
        """A snapshot of what has passed."""
        with self._state:
            now = () if self._channel is None else (self._channel.facts,)
            delivered = self._numbered - len(self._outbox)
            return SessionFacts((*self._past, *now), self._numbered, self._delivered, self._resent, delivered)

    def send(self, meta: bytes, *payload: Buffer, frozen: bool = False) -> None:
        """Send one message; returns once it is on its way or safely kept until the link is back.

        The payload is copied to be kept, unless `frozen` promises that its memory never changes again. Raises
        PeerLost, PeerClosed, or MessageTooLarge; waits, at most `patience`, while too much is undelivered.
        """
        kept_payload = payload if frozen else (_copy(payload),)
        size = sum(memoryview(part).nbytes for part in kept_payload)
        self._limits.check(size, LABEL.size + len(meta))
        with self._order:
            kept, channel = self._keep(meta, kept_payload, size)
            if channel is not None:
                self._say(channel, kept)

    def recv(self, timeout: float | None = None) -> Frame:
        """The next message; raises DeadlineExceeded, and PeerClosed or PeerLost once all before it are received."""
        with self._state:
            self._state.wait_for(lambda: self._inbox or self._end, timeout)
            if self._inbox:
                frame = self._inbox.popleft()
                self._inbox_bytes -= len(frame.payload)
                self._state.notify_all()
                return frame
            if self._end is None:
                raise DeadlineExceeded(f"no message within {timeout:g} s", peer=self.peer.name)
            raise self._end

    def flush(self, timeout: float = SILENCE) -> None:
        """Wait until the peer has everything sent so far; raises DeadlineExceeded or why the session ended."""
        with self._state:
            target = self._numbered
        deadline = time.monotonic() + timeout
        self._ask()
        with self._state:
            if not self._state.wait_for(
                lambda: self._numbered - len(self._outbox) >= target or self._end, deadline - time.monotonic()
            ):
                raise DeadlineExceeded(f"not acknowledged within {timeout:g} s", peer=self.peer.name)
            if self._end is not None and self._outbox:
                raise self._end

    def close(self) -> None:
        """Wait a little until all is delivered, then close under seal."""
        with contextlib.suppress(ChannelError):
            self.flush()
        with self._state:
            self._closing = True
        self._finish(ChannelDead("closed here", peer=self.peer.name))
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(self._silence)

    @property
    def ended(self) -> bool:
        """Whether it is over, for whatever reason."""
        return self._end is not None

    def drop_link(self) -> None:
        """Give up the present connection: the peer has come back on another one."""
        with self._state:
            channel = self._channel
        if channel is not None:
            channel.abandon()

    # -- sending ---------------------------------------------------------------------------------------------------

    def _keep(self, meta: bytes, payload: tuple[Buffer, ...], size: int) -> tuple[_Kept, Channel | None]:
        """Number a message and keep it; the channel to say it on, if there is one that has said all before it."""
        with self._state:
            full = self._outbox_bytes + size > OUTBOX and self._outbox
        if full:
            self._ask()
        with self._state:
            room = self._state.wait_for(
                lambda: not self._outbox or self._outbox_bytes + size <= OUTBOX or self._end, self._patience
            )
            if self._end is not None:
                raise self._end
            if not room:
                raise DeadlineExceeded(f"{self._outbox_bytes} bytes are undelivered", peer=self.peer.name)
            kept = _Kept(self._numbered, meta, payload, size)
            self._numbered += 1
            self._outbox.append(kept)
            self._outbox_bytes += size
            return kept, None if self._repeat else self._channel

    def _say(self, channel: Channel, kept: _Kept) -> None:
        """Put a kept message on the wire; where that fails it stays kept, and the reader finds a new link."""
        with contextlib.suppress(ChannelError):
            channel.send(self._label(Type.DATA, kept.number) + kept.meta, *kept.payload)

    def _label(self, type_: Type, number: int = 0) -> bytes:
        with self._state:
            self._spoke = time.monotonic()
            self._unacknowledged = self._unacknowledged_bytes = 0
            return LABEL.pack(type_, number, self._delivered)

    def _ask(self) -> None:
        with self._state:
            channel = self._channel
        if channel is not None:
            with contextlib.suppress(ChannelError):
                channel.send(self._label(Type.ASK))

    def _pulse(self) -> None:
        """Repeat after a new link, acknowledge, and be heard; never in the reader's thread, which must not block."""
        while True:
            with self._state:
                self._state.wait_for(lambda: self._repeat or self._answer or self._end, self._silence / 4)
                if self._end is not None:
                    return
                channel, repeat = self._channel, self._repeat
                quiet = time.monotonic() - self._spoke >= self._silence / 4
                say = self._answer or quiet
                self._answer = False
            if channel is None:
                time.sleep(0.01)
            elif repeat:
                self._say_again(channel)
            elif say:
                with contextlib.suppress(ChannelError):
                    channel.send(self._label(Type.PING))

    def _say_again(self, channel: Channel) -> None:
        with self._order:
            with self._state:
                again = list(self._outbox)
                self._resent += len(again)
            for kept in again:
                self._say(channel, kept)
            with self._state:
                if self._channel is channel:
                    self._repeat = False

    # -- receiving -------------------------------------------------------------------------------------------------

    def _read(self) -> None:
        """The reader's thread: take messages until the link breaks, find a new link, until the session ends."""
        try:
            while True:
                channel = self._channel
                assert channel is not None
                try:
                    self._take_all(channel)
                except PeerClosed:
                    raise
                except ChannelError as error:
                    self._find_again(channel, error)
        except ChannelError as error:
            self._finish(error)
        except BaseException:
            self._finish(ChannelDead("its reader failed", peer=self.peer.name))  # nobody shall wait for it
            raise

    def _take_all(self, channel: Channel) -> None:
        while True:
            try:
                self._take(channel.recv(self._silence / 4))
            except DeadlineExceeded:
                if time.monotonic() - channel.heard > self._silence:
                    raise
            if time.monotonic() - self._born > RENEW_SECONDS or channel.facts.bytes_sent > RENEW_BYTES:
                raise ChannelDead("time for fresh keys")

    def _take(self, frame: Frame) -> None:
        try:
            type_, number, acknowledged = LABEL.unpack_from(frame.meta)
        except struct.error:
            raise IntegrityError("a message without a session label", fault="peer") from None
        with self._state:
            self._acknowledge(acknowledged)
            if type_ == Type.ASK:
                self._answer = True
                self._state.notify_all()
            if type_ != Type.DATA or number < self._delivered:
                return
            if number != self._delivered:
                raise IntegrityError(f"message {number} where {self._delivered} was due", fault="peer")
            size = len(frame.payload)
            self._state.wait_for(lambda: not self._inbox or self._inbox_bytes + size <= INBOX or self._end)
            self._delivered += 1
            self._inbox.append(Frame(frame.meta[LABEL.size :], frame.payload))
            self._inbox_bytes += size
            self._unacknowledged += 1
            self._unacknowledged_bytes += size
            self._answer |= self._unacknowledged >= ACK_MESSAGES or self._unacknowledged_bytes >= ACK_BYTES
            self._state.notify_all()

    def _acknowledge(self, count: int) -> None:
        """Forget what the peer has."""
        if count > self._numbered:
            raise IntegrityError(f"{count} messages acknowledged, {self._numbered} sent", fault="peer")
        while self._outbox and self._outbox[0].number < count:
            self._outbox_bytes -= self._outbox.popleft().size
        self._state.notify_all()

    # -- links -----------------------------------------------------------------------------------------------------

    def _find_again(self, channel: Channel, why: ChannelError) -> None:
        """Replace a broken link; raises PeerLost where none comes within the peer's patience."""
        with self._state:
            if self._end is not None or self._closing:
                raise ChannelDead("closed here", peer=self.peer.name)
            self._channel = None
        deadline = channel.heard + self._patience
        channel.abandon()
        self._past.append(channel.facts)
        try:
            new, delivered = self._relink(self._delivered, deadline)
        except PeerLost:
            raise
        except ChannelError as error:
            raise PeerLost(
                f"not heard for {time.monotonic() - channel.heard:.1f} s ({why.what}) nor found again: {error.what}",
                peer=self.peer.name,
            ) from None
        self._take_link(new, delivered)

    def _take_link(self, new: Channel, delivered: int) -> None:
        with self._state:
            if self._end is not None:  # closed while we were looking
                new.abandon()
                raise self._end
            self._acknowledge(delivered)
            self._channel, self._repeat = new, True
            self._born = time.monotonic()
            self._state.notify_all()

    def _finish(self, error: ChannelError) -> None:
        with self._state:
            self._end = self._end or error
            channel, self._channel = self._channel, None
            self._state.notify_all()
        if channel is not None:
            if self._closing:
                channel.close()
            else:
                channel.abandon()
            self._past.append(channel.facts)


def _copy(payload: tuple[Buffer, ...]) -> memoryview:
    """The concatenation, in memory of our own."""
    views = [memoryview(part).cast("B") for part in payload if memoryview(part).nbytes]
    whole, at = aligned(sum(map(len, views))), 0
    for view in views:
        whole[at : at + len(view)] = view
        at += len(view)
    return whole


def link_silence(silence: float, patience: float | None) -> float:
    """Seconds of silence after which a link is given up: early enough to find another within the peer's patience."""
    return min(silence, (silence if patience is None else patience) / 2)


def say_hello(channel: Channel, delivered: int, name: bytes = b"") -> None:
    """Say how far this side got, and, where the session is being resumed, which one."""
    channel.send(LABEL.pack(Type.HELLO, delivered, 0) + name)


def hear_hello(channel: Channel, timeout: float) -> tuple[int, bytes]:
    """How many of our messages the peer has, and the session's name or nothing; raises PeerLost where it is gone."""
    frame = channel.recv(timeout)
    try:
        type_, delivered, _ = LABEL.unpack_from(frame.meta)
    except struct.error:
        type_, delivered = -1, 0
    if type_ == Type.GONE:
        raise PeerLost("it was restarted and knows nothing of this session", peer=channel.peer.name)
    if type_ != Type.HELLO:
        raise IntegrityError("expected a session's hello", peer=channel.peer.name, fault="peer")
    return delivered, frame.meta[LABEL.size :]
