"""Links that pass through other parties: onion circuits between the ends, carried by the sessions of neighbours.

A party with `through = ["relay-1", "relay-2"]` in the run file exchanges messages with whoever is beyond them over a
circuit: the hops pass cells of one length, and learn neither what they carry nor for whom. Over the circuit the two
ends hold the same handshake as over a wire, with the run's digest. This file knows no messages.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

from channels import ChannelError, Frame, Identity, Roster, SealedChannel, Session, SessionFacts
from channels.circuit import CircuitWire, Router, marked
from channels.dial import HANDSHAKE_SECONDS, NOISE_IK, converse
from channels.meeting import Conversation, Side
from secsplit.errors import PeerError
from secsplit.run import Run

DRAIN_SECONDS = 600.0  # how long a hop stays for others after its own part is over


class Circuits:
    """One party's part in all circuits of a run: those it dials, those that reach it, those it passes on."""

    def __init__(self, run: Run, name: str, me: Identity, roster: Roster, sessions: Mapping[str, Session]) -> None:
        paths = [path for link in run.links if (path := run.circuit(*link)) and name in path]
        self._outward = [path for path in paths if path[0] == name]
        self._inward = {path[0] for path in paths if path[-1] == name}
        self._side, self._name = Side(me, roster, run.digest()), name
        self._channels: dict[str, SealedChannel] = {}
        sends = {peer: partial(session.send, frozen=True) for peer, session in sessions.items()}
        self._router = Router(me, sends, accepts=bool(self._inward)) if paths else None

    def take(self, neighbour: str, frame: Frame) -> bool:
        """Whether a neighbour's message belonged to some circuit, and was dealt with. Raises ChannelError."""
        if self._router is None or not marked(frame.meta):
            return False
        self._router.receive(neighbour, frame)
        return True

    def lost(self, neighbour: str) -> None:
        """Every circuit through that neighbour is over."""
        if self._router is not None:
            self._router.lost(neighbour)

    def meet(self, seconds: float) -> Iterator[tuple[str, SealedChannel]]:
        """The channels to all parties at the other ends, within so many seconds. Raises PeerError."""
        deadline = time.monotonic() + seconds
        for path in self._outward:
            yield path[-1], self._dial(path, deadline)
        while missing := self._inward - self._channels.keys():
            channel = self._accept(", ".join(sorted(missing)), deadline)
            if channel.peer.name not in missing:
                channel.abandon()
                raise PeerError(channel.peer.name, f"reached {self._name!r} by a circuit, which expects {missing}")
            yield channel.peer.name, self._kept(channel)

    def facts(self) -> dict[str, Any]:
        """peer -> the facts of the channel to it, in the form of a session's."""
        every = {peer: channel.facts for peer, channel in self._channels.items()}
        return {
            peer: asdict(SessionFacts((facts,), facts.messages_sent, facts.messages_received, 0, facts.messages_sent))
            for peer, facts in every.items()
        }

    def drain(self) -> None:
        """Stay until no circuit passes here any more."""
        if self._router is not None:
            self._router.drain(DRAIN_SECONDS)

    def close(self) -> None:
        """Leave all circuits."""
        if self._router is not None:
            self._router.close()

    def _dial(self, path: tuple[str, ...], deadline: float) -> SealedChannel:
        assert self._router is not None
        peer = self._side.roster.by_name(path[-1])
        try:
            hops = [self._side.roster.by_name(hop) for hop in path[1:]]
            wire = self._router.dial(hops, timeout=deadline - time.monotonic())
            return self._kept(_met(wire, NOISE_IK.initiate(self._side, peer)))
        except ChannelError as error:
            raise PeerError(peer.name, f"no circuit through {', '.join(path[1:-1])}: {error}") from None

    def _accept(self, missing: str, deadline: float) -> SealedChannel:
        assert self._router is not None
        try:
            wire = self._router.accept(max(0.0, deadline - time.monotonic()))
            return _met(wire, NOISE_IK.respond(self._side))
        except ChannelError as error:
            raise PeerError(missing, f"did not reach {self._name!r} by a circuit: {error}") from None

    def _kept(self, channel: SealedChannel) -> SealedChannel:
        self._channels[channel.peer.name] = channel
        return channel


def _met(wire: CircuitWire, conversation: Conversation) -> SealedChannel:
    try:
        return SealedChannel(wire, converse(wire, conversation, time.monotonic() + HANDSHAKE_SECONDS))
    except ChannelError:
        wire.close()
        raise
