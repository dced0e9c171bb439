"""Where sessions come from: dialling again on one side, and being dialled again on the other.

A new session opens with an empty hello; a resumed one with the session's name, the binding of its first connection.
The name is no secret: only the same peer, authenticated anew, may resume.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time

from channels.channel import Channel
from channels.dial import HANDSHAKE_SECONDS, NOISE_IK, connect
from channels.errors import (
    ChannelDead,
    ChannelError,
    DeadlineExceeded,
    DigestMismatch,
    IdentityMismatch,
    PeerLost,
    RosterExpired,
    SuiteRefused,
    UnknownPeer,
)
from channels.identity import Identity
from channels.listen import Listener
from channels.meeting import Handshake
from channels.records import DEFAULT_LIMITS, Limits
from channels.roster import Roster
from channels.session import LABEL, SILENCE, Session, Type, hear_hello, link_silence, say_hello

log = logging.getLogger("secsplit.channels")

TRY_SECONDS = 2.0  # for one attempt to find a lost peer: what swallows packets answers no sooner than it works again
FINAL = (PeerLost, UnknownPeer, IdentityMismatch, RosterExpired, SuiteRefused, DigestMismatch)  # no use in asking again


def open_session(
    address: str,
    me: Identity,
    roster: Roster,
    peer_name: str,
    *,
    digest: bytes,
    timeout: float = 30.0,
    silence: float = SILENCE,
    patience: float | None = None,
    proxy: str | None = None,
    handshake: Handshake = NOISE_IK,
    limits: Limits = DEFAULT_LIMITS,
    pad: bool = False,
) -> Session:
    """Dial a peer and open a session with it; the arguments of `connect`, and those of `Session`.

    A link on which nothing is heard for `silence` seconds (and for half of `patience` at the latest) is given up; the
    peer itself after `patience` seconds (by default `silence`) without a word on any link.
    """

    def dial(seconds: float) -> Channel:
        return connect(
            address,
            me,
            roster,
            peer_name,
            digest=digest,
            timeout=seconds,
            proxy=proxy,
            handshake=handshake,
            limits=limits,
            pad=pad,
            stall=link_silence(silence, patience),
        )

    def redial(delivered: int, deadline: float) -> tuple[Channel, int]:
        while True:
            try:
                channel = dial(min(TRY_SECONDS, deadline - time.monotonic()))
                return channel, _exchange(channel, delivered, name, deadline)
            except FINAL:
                raise
            except ChannelError:
                if time.monotonic() + 0.1 >= deadline:
                    raise
                time.sleep(0.1)

    channel = dial(timeout)
    name = channel.binding
    _exchange(channel, 0)
    return Session(channel, redial, silence=silence, patience=patience)


def _exchange(channel: Channel, delivered: int, name: bytes = b"", deadline: float = float("inf")) -> int:
    """Say how far we got and hear how far they did; the channel is dropped where that fails."""
    try:
        say_hello(channel, delivered, name)
        return hear_hello(channel, max(0.0, min(HANDSHAKE_SECONDS, deadline - time.monotonic())))[0]
    except BaseException:
        channel.abandon()
        raise


class _Awaiting:
    """The listening side of one session: where its next connection will be handed in."""

    def __init__(self) -> None:
        self.arrivals: queue.SimpleQueue[tuple[Channel, int]] = queue.SimpleQueue()
        self.session: Session | None = None

    def relink(self, delivered: int, deadline: float) -> tuple[Channel, int]:
        """See `Relink`; the newest arrival counts, for the dialler only comes again where the last one failed."""
        while True:
            try:
                channel, peer_delivered = self.arrivals.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise DeadlineExceeded("it did not dial again") from None
            try:
                if self.arrivals.empty():
                    say_hello(channel, delivered)
                    return channel, peer_delivered
            except ChannelError as error:
                log.info("a resumed link broke at once: %s", error)
            channel.abandon()


class SessionListener:
    """A Listener whose callers open or resume sessions."""

    def __init__(self, listener: Listener, *, silence: float = SILENCE, patience: float | None = None) -> None:
        self._listener, self._silence, self._patience = listener, silence, patience
        self._met: queue.SimpleQueue[Session] = queue.SimpleQueue()
        self._known: dict[tuple[str, bytes], _Awaiting] = {}
        self._guard = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=f"sessions {listener.address}", daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        """Where it listens."""
        return self._listener.address

    def accept(self, timeout: float | None = None) -> Session:
        """The next new session; raises DeadlineExceeded, which names who was refused meanwhile."""
        try:
            return self._met.get(timeout=timeout)
        except queue.Empty:
            raise DeadlineExceeded(f"no session at {self.address} in {timeout:g} s{self._listener.recent()}") from None

    def close(self) -> None:
        """Stop listening; sessions live on, but cannot be resumed."""
        self._closed = True
        self._listener.close()
        self._thread.join()
        while not self._met.empty():
            self._met.get().close()

    def __enter__(self) -> SessionListener:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        while not self._closed:
            with contextlib.suppress(DeadlineExceeded, ChannelDead):
                channel = self._listener.accept(0.2)
                threading.Thread(target=self._greet, args=(channel,), daemon=True).start()

    def _greet(self, channel: Channel) -> None:
        try:
            delivered, name = hear_hello(channel, HANDSHAKE_SECONDS)
            if name:
                self._resume(channel, name, delivered)
            else:
                say_hello(channel, 0)
                self._open(channel)
        except ChannelError as error:
            log.warning("refused a session: %s", error)
            channel.abandon()

    def _open(self, channel: Channel) -> None:
        awaiting = _Awaiting()
        with self._guard:
            ended = [key for key, known in self._known.items() if known.session and known.session.ended]
            for key in ended:
                del self._known[key]
            self._known[channel.peer.fingerprint, channel.binding] = awaiting
        awaiting.session = Session(channel, awaiting.relink, silence=self._silence, patience=self._patience)
        self._met.put(awaiting.session)

    def _resume(self, channel: Channel, name: bytes, delivered: int) -> None:
        with self._guard:
            awaiting = self._known.get((channel.peer.fingerprint, name))
        if awaiting is None or awaiting.session is None or awaiting.session.ended:
            channel.send(LABEL.pack(Type.GONE, 0, 0))
            channel.close()
            return
        awaiting.arrivals.put((channel, delivered))
        awaiting.session.drop_link()
