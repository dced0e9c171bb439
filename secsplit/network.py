"""How one party meets its peers: who listens, who dials, and the mutually authenticated channel to each.

Of two linked parties the one with an address listens; where both have one, the later in the run file does. A party
without an address only dials out.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

from channels import Channel, ChannelError, Identity, Listener, Roster, connect
from secsplit.errors import EnvironmentFault, PeerError, RunError
from secsplit.links import ChannelInbox, ChannelLink
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
) -> Iterator[Mapping[str, Channel]]:
    """Channels to all of `name`'s peers, open for the length of the context. Raises PeerError, EnvironmentFault."""
    deadline = time.monotonic() + timeout
    digest = run.digest()
    peers = run.peers(name)
    inbound = {peer for peer in peers if listens(run, name, peer) == name}
    channels: dict[str, Channel] = {}
    with ExitStack() as stack:
        listener = stack.enter_context(_listening(run, name, me, roster, digest)) if inbound else None
        for peer in peers:
            if peer not in inbound:
                channels[peer] = _dial(run, peer, me, roster, digest, deadline)
                stack.callback(channels[peer].close)
        while listener is not None and not inbound <= channels.keys():
            missing = ", ".join(sorted(inbound - channels.keys()))
            channel = _accept(listener, deadline, missing, timeout)
            stack.callback(channel.close)
            if channel.peer.name not in inbound or channel.peer.name in channels:
                raise PeerError(channel.peer.name, f"connected to {name!r}, which expects {missing}")
            channels[channel.peer.name] = channel
        yield channels


@contextmanager
def _listening(run: Run, name: str, me: Identity, roster: Roster, digest: bytes) -> Iterator[Listener]:
    address = run.file.parties[name].address
    assert address is not None
    try:
        listener = Listener(address, me, roster, digest=digest)
    except (OSError, ValueError) as error:
        raise EnvironmentFault(
            f"parties.{name}.address: cannot listen at {address!r}: {error}; is the port in use? choose another one"
        ) from None
    try:
        yield listener
    finally:
        listener.close()


def _dial(run: Run, peer: str, me: Identity, roster: Roster, digest: bytes, deadline: float) -> Channel:
    address = run.file.parties[peer].address
    assert address is not None
    try:
        return connect(address, me, roster, peer, digest=digest, timeout=max(0.1, deadline - time.monotonic()))
    except ChannelError as error:
        raise PeerError(peer, f"no channel to {address}: {error}") from None
    except ValueError as error:
        raise RunError(f"parties.{peer}.address: {error}") from None


def _accept(listener: Listener, deadline: float, missing: str, timeout: float) -> Channel:
    try:
        return listener.accept(max(0.1, deadline - time.monotonic()))
    except ChannelError as error:
        raise PeerError(missing, f"did not connect within {timeout:g} seconds: {error}") from None


@contextmanager
def linked(channels: Mapping[str, Channel]) -> Iterator[tuple[Mapping[str, ChannelLink], ChannelInbox]]:
    """Links over channels, closed in order when the context ends."""
    inbox = ChannelInbox()
    links = {peer: ChannelLink(peer, channel, inbox) for peer, channel in channels.items()}
    try:
        yield links, inbox
    finally:
        for link in links.values():
            link.close()
