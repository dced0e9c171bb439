"""How one party meets its peers: who listens, who dials, and the mutually authenticated session with each.

Of two linked parties the one with an address listens; where both have one, the later in the run file does. A party
without an address only dials out.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from channels import ChannelError, Identity, Listener, Roster, Session, SessionListener, open_session
from secsplit.circuits import Circuits
from secsplit.errors import EnvironmentFault, PeerError, RunError
from secsplit.links import ChannelInbox, ChannelLink
from secsplit.room import Room, crowded
from secsplit.run import Run

MEETING_SECONDS = 60.0  # how long parties of a run may take to start, one after the other


def listens(run: Run, a: str, b: str) -> str:
    """Which of two linked parties listens. Raises RunError where neither has an address."""
    names = list(run.file.parties)
    able = [name for name in (a, b) if run.file.parties[name].address]
    if not able:
        raise RunError(
            f"parties.{a}.address: {a!r} and {b!r} exchange messages and neither has an address; "
            f'give one of them address = "host:port"'
        )
    return max(able, key=names.index)


@contextmanager
def connected(
    run: Run, name: str, me: Identity, roster: Roster, *, timeout: float = MEETING_SECONDS
) -> Iterator[Mapping[str, Session]]:
    """Sessions with all of `name`'s peers, open for the length of the context. Raises PeerError, EnvironmentFault.

    A session outlives a broken connection; a peer from which nothing is heard for the run's heartbeat is given up.
    """
    meeting = Meeting(run, name, me, roster, time.monotonic() + timeout)
    peers = [peer for peer in run.peers(name) if not run.circuit(name, peer)]
    inbound = {peer for peer in peers if listens(run, name, peer) == name}
    sessions: dict[str, Session] = {}
    with ExitStack() as stack:
        listener = stack.enter_context(meeting.listen()) if inbound else None
        for peer in peers:
            if peer not in inbound:
                sessions[peer] = stack.enter_context(meeting.dial(peer))
        while listener is not None and not inbound <= sessions.keys():
            missing = ", ".join(sorted(inbound - sessions.keys()))
            session = stack.enter_context(meeting.accept(listener, missing))
            if session.peer.name not in inbound or session.peer.name in sessions:
                raise PeerError(session.peer.name, f"connected to {name!r}, which expects {missing}")
            sessions[session.peer.name] = session
        yield sessions


@dataclass(frozen=True)
class Meeting:
    """One party meeting its peers before a deadline (time.monotonic())."""

    run: Run
    name: str
    me: Identity
    roster: Roster
    deadline: float

    @property
    def left(self) -> float:
        return max(0.1, self.deadline - time.monotonic())

    def address(self, party: str) -> str:
        address = self.run.file.parties[party].address
        assert address is not None  # `listens` chose a party that has one
        return address

    def listen(self) -> SessionListener:
        address = self.address(self.name)
        try:
            listener = Listener(address, self.me, self.roster, digest=self.run.digest())
        except (OSError, ValueError) as error:
            raise EnvironmentFault(
                f"parties.{self.name}.address: cannot listen at {address!r}: {error}; "
                "is the port in use? choose another one"
            ) from None
        return SessionListener(listener, silence=self.run.file.train.heartbeat)

    def dial(self, peer: str) -> Session:
        address, silence = self.address(peer), self.run.file.train.heartbeat
        digest = self.run.digest()
        try:
            return open_session(address, self.me, self.roster, peer, digest=digest, timeout=self.left, silence=silence)
        except ChannelError as error:
            raise PeerError(peer, f"no channel to {address}: {error}") from None
        except ValueError as error:
            raise RunError(f"parties.{peer}.address: {error}") from None

    def accept(self, listener: SessionListener, missing: str) -> Session:
        try:
            return listener.accept(self.left)
        except ChannelError as error:
            raise PeerError(missing, f"did not connect in time: {error}") from None


@contextmanager
def linked(
    run: Run,
    name: str,
    sessions: Mapping[str, Session],
    circuits: Circuits | None = None,
    *,
    timeout: float = MEETING_SECONDS,
) -> Iterator[tuple[Mapping[str, ChannelLink], ChannelInbox]]:
    """Links over sessions, and over circuits through them, closed in order when the context ends. Raises PeerError."""
    inbox = ChannelInbox(room=Room() if crowded(run.peers(name)) else None)
    near = {
        peer: ChannelLink(peer, session, inbox, circuits, crowded=crowded(run.peers(peer)))
        for peer, session in sessions.items()
    }
    far: dict[str, ChannelLink] = {}
    try:
        for peer, channel in circuits.meet(timeout) if circuits is not None else ():
            far[peer] = ChannelLink(peer, channel, inbox, crowded=crowded(run.peers(peer)))
        yield {**near, **far}, inbox
        for link in far.values():
            link.close()
        if circuits is not None:
            circuits.drain()
    finally:
        for link in (*far.values(), *near.values()):
            link.close()
        if circuits is not None:
            circuits.close()
