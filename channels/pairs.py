"""Pairs of connected channels in one process, for tests, examples and simulations: the real handshake, no network."""

from __future__ import annotations

import socket
import threading
from collections.abc import Sequence

from channels.channel import SealedChannel
from channels.dial import converse
from channels.handshake import Agreement, Side, initiate, respond
from channels.identity import Identity
from channels.records import DEFAULT_LIMITS, Limits
from channels.roster import Roster
from channels.suites import ENROLLED, Suite
from channels.wire import STALL, MemoryWire, SocketWire, Wire


def memory_pair(
    *, limits: Limits = DEFAULT_LIMITS, suites: Sequence[Suite] = ENROLLED, pad: bool = False, stall: float = STALL
) -> tuple[SealedChannel, SealedChannel]:
    """Two channels, initiator's first, between fresh identities `left` and `right`, over memory."""
    return _meet(*MemoryWire.pair(stall=stall), limits, suites, pad)


def socketpair_pair(
    *, limits: Limits = DEFAULT_LIMITS, suites: Sequence[Suite] = ENROLLED, pad: bool = False, stall: float = STALL
) -> tuple[SealedChannel, SealedChannel]:
    """The same over a socket pair of the operating system."""
    left, right = socket.socketpair()
    return _meet(SocketWire(left, stall=stall), SocketWire(right, stall=stall), limits, suites, pad)


def _meet(
    left: Wire, right: Wire, limits: Limits, suites: Sequence[Suite], pad: bool
) -> tuple[SealedChannel, SealedChannel]:
    a, b = Identity.generate("left"), Identity.generate("right")
    roster = Roster.of([a.public, b.public], epoch=1, signer=a)
    near, far = (Side(me, roster, bytes(32), suites, limits, pad) for me in (a, b))
    agreed: list[Agreement] = []
    answering = threading.Thread(target=lambda: agreed.append(converse(right, respond(far), None)))
    answering.start()
    first = SealedChannel(left, converse(left, initiate(near, b.public), None))
    answering.join()
    first.hello()
    second = SealedChannel(right, agreed[0])
    second.greeted()
    return first, second
