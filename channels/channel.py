"""A channel: whole messages over a wire, sealed, in order, to one authenticated peer.

One thread may send while another receives. Any failure ends the channel for good, with two exceptions that change
nothing: a receive that timed out before a message began, and a message of our own that is too large to start.
This file knows records and wires, not sockets and not handshakes.
"""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass
from math import inf
from typing import NoReturn, Protocol, Self, cast

from channels.errors import ChannelDead, ChannelError, DeadlineExceeded, IntegrityError, MessageTooLarge, PeerClosed
from channels.identity import PublicIdentity
from channels.meeting import Agreement
from channels.primitives import Buffer
from channels.records import WARM, Frame, Kind, Limits, Opened
from channels.wire import Wire

DATA = Kind.DATA


@dataclass(frozen=True)
class ChannelFacts:
    """What an audit may know of a channel: plain values, no secret."""

    suite: str
    own_fingerprint: str
    peer_name: str
    peer_fingerprint: str
    roster_epoch: int
    peer_roster_epoch: int
    record_size: int  # bytes
    padded: bool
    messages_sent: int
    messages_received: int
    records_sent: int
    records_received: int
    bytes_sent: int  # on the wire, after the handshake
    bytes_received: int
    rekeys: int  # both directions
    refused: int  # frames that did not open: 0 or 1, since the first one ends the channel


class Channel(Protocol):
    """What every channel offers; `check_channel` tests it."""

    @property
    def peer(self) -> PublicIdentity:
        """The authenticated peer."""
        ...

    @property
    def binding(self) -> bytes:
        """32 bytes unique to this session and equal on both sides."""
        ...

    @property
    def facts(self) -> ChannelFacts:
        """A snapshot of what has passed."""
        ...

    @property
    def limits(self) -> Limits:
        """The largest message and meta it takes."""
        ...

    @property
    def heard(self) -> float:
        """time.monotonic() of the last bytes received, whether or not they make a whole message yet."""
        ...

    def send(self, meta: bytes, *payload: Buffer) -> None:
        """Send one message: meta, and the concatenation of the payload buffers, which must not change meanwhile."""
        ...

    def recv(self, timeout: float | None = None) -> Frame:
        """The next message; raises DeadlineExceeded where none began in `timeout` seconds, PeerClosed at the end."""
        ...

    def close(self) -> None:
        """Say goodbye under seal, and end."""
        ...

    def abandon(self) -> None:
        """End without goodbye, at once: the peer will find its stream truncated."""
        ...


class SealedChannel:
    """A Channel of our own records."""

    def __init__(self, wire: Wire, agreement: Agreement) -> None:
        self.peer, self.binding = agreement.peer, agreement.binding
        self._wire, self._agreement = agreement.over(wire), agreement
        self._sealer, self._opener = agreement.sealer, agreement.opener
        self._incoming = self._opener.messages()
        self._head = len(cast(memoryview, next(self._incoming)))
        self.limits = agreement.sealer.limits
        self._sending, self._receiving = threading.Lock(), threading.Lock()
        self._end: ChannelError | None = None
        self._sent = self._received = self._refused = 0
        self._before = wire.sent, wire.received

    def __repr__(self) -> str:
        return f"<channel with {self.peer.name}{', ended' if self._end else ''}>"

    @property
    def heard(self) -> float:
        """See `Channel.heard`."""
        return self._wire.heard

    @property
    def facts(self) -> ChannelFacts:
        """See `Channel.facts`."""
        mine, theirs, agreed = self._sealer.keys, self._opener.keys, self._agreement
        return ChannelFacts(
            suite=agreed.suite,
            own_fingerprint=agreed.side.me.public.fingerprint,
            peer_name=self.peer.name,
            peer_fingerprint=self.peer.fingerprint,
            roster_epoch=agreed.side.roster.epoch,
            peer_roster_epoch=agreed.peer_epoch,
            record_size=self._sealer.limits.record,
            padded=agreed.side.pad,
            messages_sent=self._sent,
            messages_received=self._received,
            records_sent=mine.records,
            records_received=theirs.records,
            bytes_sent=self._wire.sent - self._before[0],
            bytes_received=self._wire.received - self._before[1],
            rekeys=mine.rekeys + theirs.rekeys,
            refused=self._refused,
        )

    def send(self, meta: bytes, *payload: Buffer) -> None:
        """See `Channel.send`."""
        with self._sending:
            if self._end is not None:
                self._refuse()
            self._write(DATA, meta, payload)
            self._sent += 1

    def recv(self, timeout: float | None = None) -> Frame:
        """See `Channel.recv`."""
        with self._receiving:
            if self._end is not None:
                self._refuse()
            kind, frame = self._read(inf if timeout is None else time.monotonic() + timeout)
            if kind is DATA:
                self._received += 1
                return frame
            if kind is Kind.CLOSE:
                raise self._die(PeerClosed("closed the channel", peer=self.peer.name))
            raise self._die(IntegrityError(f"a record of kind {kind.name} out of place", fault="peer"))

    def close(self) -> None:
        """See `Channel.close`."""
        if self._end is not None:
            return
        if self._sending.acquire(timeout=1):  # a sender that is stuck does not keep us here
            with contextlib.suppress(ChannelError):
                self._write(Kind.CLOSE, b"", ())
            self._sending.release()
        self._die(ChannelDead("closed here"))

    def abandon(self) -> None:
        """See `Channel.abandon`."""
        self._die(ChannelDead("abandoned here"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, kind: Kind, meta: bytes, payload: tuple[Buffer, ...]) -> None:
        pieces = self._sealer.seal(kind, meta, payload)  # MessageTooLarge rises here, before anything is sealed
        try:
            for piece in pieces:
                self._wire.write(piece)
        except ChannelError as error:
            raise self._die(error) from None
        except BaseException:
            self._die(ChannelDead("a send was interrupted half way", peer=self.peer.name))
            raise

    def _read(self, deadline: float) -> Opened:
        incoming, look, begun = self._incoming, self._wire.look, False
        try:
            here = look(self._head, deadline)
            begun = True
            step = incoming.send(here)
            while type(step) is memoryview:
                here = look(len(step), None)
                if here is None:
                    self._wire.fill(step, None)
                step = incoming.send(here)
            next(incoming)  # the next header is asked for, in the same memory
        except DeadlineExceeded as error:
            if begun:
                raise self._die(error, receiving=True) from None
            error.peer = self.peer.name
            raise
        except ChannelError as error:
            raise self._die(error, receiving=True) from None
        except BaseException:
            self._die(ChannelDead("a receive was interrupted half way", peer=self.peer.name), receiving=True)
            raise
        return step

    def _refuse(self) -> NoReturn:
        assert self._end is not None
        if isinstance(self._end, PeerClosed | ChannelDead):
            raise self._end
        raise ChannelDead(f"ended earlier: {self._end.what}", peer=self.peer.name)

    def _die(self, error: ChannelError, *, receiving: bool = False) -> ChannelError:
        """End everything because of this error, which is returned to be raised; the first error stays the reason."""
        error.peer = error.peer or self.peer.name
        if self._end is None:
            self._end = error
            self._refused += not isinstance(error, ChannelDead | PeerClosed | DeadlineExceeded | MessageTooLarge)
            self._wire.close()
            WARM.forget()  # no plaintext stays behind in memory that would have served again
        if receiving:
            self._incoming.close()  # wipes what had come of a message
        for keys in (self._sealer.keys, self._opener.keys):
            keys.drop(self._end.what)
        return error
