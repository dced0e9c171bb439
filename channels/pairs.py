"""Pairs of connected channels in one process, for tests, examples and simulations: the real handshake, no network."""

from __future__ import annotations

import socket
import threading

from channels.channel import SealedChannel
from channels.dial import NOISE_IK, converse
from channels.identity import Identity
from channels.meeting import Agreement, Handshake, Side
from channels.records import DEFAULT_LIMITS, Limits
from channels.roster import Roster
from channels.wire import STALL, MemoryWire, SocketWire, Wire


def memory_pair(
    *, limits: Limits = DEFAULT_LIMITS, handshake: Handshake = NOISE_IK, pad: bool = False, stall: float = STALL
) -> tuple[SealedChannel, SealedChannel]:
    """Two channels, initiator's first, between fresh identities `left` and `right`, over memory."""
    return meet(*MemoryWire.pair(stall=stall), *fresh_sides(limits=limits, pad=pad), handshake)


def socketpair_pair(
    *, limits: Limits = DEFAULT_LIMITS, handshake: Handshake = NOISE_IK, pad: bool = False, stall: float = STALL
) -> tuple[SealedChannel, SealedChannel]:
    """The same over a socket pair of the operating system."""
    left, right = (SocketWire(sock, stall=stall) for sock in socket.socketpair())
    return meet(left, right, *fresh_sides(limits=limits, pad=pad), handshake)


def fresh_sides(*, limits: Limits = DEFAULT_LIMITS, pad: bool = False, digest: bytes = bytes(32)) -> tuple[Side, Side]:
    """Two new parties of one new roster."""
    left, right = Identity.generate("left"), Identity.generate("right")
    roster = Roster.of([left.public, right.public], epoch=1, signer=left)
    return Side(left, roster, digest, limits, pad), Side(right, roster, digest, limits, pad)


def meet(
    left: Wire, right: Wire, near: Side, far: Side, handshake: Handshake = NOISE_IK
) -> tuple[SealedChannel, SealedChannel]:
    """Let two sides meet over the two ends of a wire; raises what the initiator's side raises."""
    agreed: list[Agreement] = []
    answering = threading.Thread(target=lambda: agreed.append(converse(right, handshake.respond(far), None)))
    answering.start()
    first = SealedChannel(left, converse(left, handshake.initiate(near, far.me.public), None))
    answering.join()
    return first, SealedChannel(right, agreed[0])
