"""What every handshake has in common: what a side brings, what it claims, how a conversation runs, what it agrees on.

A conversation is a generator: it yields what to say and how many bytes it must hear next, is given exactly those, and
its value is an Agreement. So one text serves a blocking dialler, a listener with a thousand half-open connections and
a test without any socket. This file knows no cryptography.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Generator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from channels.errors import DigestMismatch, HandshakeError, IdentityMismatch
from channels.identity import Identity, PublicIdentity, proquints
from channels.records import DEFAULT_LIMITS, Limits, Opener, Sealer
from channels.roster import Roster
from channels.wire import Wire

DIGEST = 32  # bytes
WORDS = re.compile(r"[a-z]{5}(-[a-z]{5}){7}")


class Ask(NamedTuple):
    """Send `say`, then hear exactly `want` bytes (0: go on at once)."""

    say: bytes
    want: int


@dataclass(frozen=True)
class Claims:
    """What each side says, sealed, in its handshake message."""

    digest: bytes
    epoch: int
    speaker: str  # fingerprints
    listener: str

    def pack(self) -> bytes:
        """136 bytes, always: the length tells nothing."""
        return struct.pack(">32sQ48s48s", self.digest, self.epoch, self.speaker.encode(), self.listener.encode())

    @classmethod
    def unpack(cls, raw: bytes) -> Claims:
        """Raises HandshakeError on anything else."""
        try:
            digest, epoch, speaker, listener = struct.unpack(">32sQ48s48s", raw)
            names = [words.rstrip(b"\0").decode("ascii") for words in (speaker, listener)]
            if not all(WORDS.fullmatch(name) for name in names):
                raise ValueError("not fingerprints")  # they go to the log
            return cls(digest, epoch, *names)
        except (struct.error, ValueError):
            raise HandshakeError("the handshake's claims are malformed") from None


@dataclass(frozen=True)
class Side:
    """All that one side brings to a handshake."""

    me: Identity
    roster: Roster
    digest: bytes
    limits: Limits = DEFAULT_LIMITS
    pad: bool = False

    def __post_init__(self) -> None:
        if len(self.digest) != DIGEST:
            raise ValueError(f"expected a run digest of {DIGEST} bytes, got {len(self.digest)}")
        if self.limits.record not in (1 << bits for bits in range(14, 23)):
            raise ValueError(f"expected a record size of 2**14 to 2**22 bytes, got {self.limits.record}")

    def claims(self, listener: PublicIdentity) -> Claims:
        """What this side says to that peer."""
        return Claims(self.digest, self.roster.epoch, self.me.public.fingerprint, listener.fingerprint)

    def compare_identities(self, theirs: Claims, peer: PublicIdentity) -> None:
        """Raise IdentityMismatch where the peer sees another identity on either side than we do."""
        if peer.noise == self.me.public.noise:
            raise IdentityMismatch("this is our own key: a party does not talk to itself", peer=peer.name)
        if (theirs.speaker, theirs.listener) != (peer.fingerprint, self.me.public.fingerprint):
            raise IdentityMismatch("it sees another identity on one of the two sides than we do", peer=peer.name)

    def compare(self, theirs: Claims, peer: PublicIdentity) -> None:
        """Raise IdentityMismatch or DigestMismatch where the two sides do not see the same."""
        self.compare_identities(theirs, peer)
        if theirs.digest != self.digest:
            ours, said = proquints(self.digest[:6]), proquints(theirs.digest[:6])
            raise DigestMismatch(f"it was started with run {said}..., this side with run {ours}...", peer=peer.name)


@dataclass(frozen=True, repr=False)
class Agreement:
    """A finished handshake: the peer, a binding unique to it, and the two sealed directions."""

    side: Side
    suite: str
    peer: PublicIdentity
    peer_epoch: int
    binding: bytes
    sealer: Sealer
    opener: Opener

    def over(self, wire: Wire) -> Wire:
        """The wire that records travel on: the one of the handshake itself."""
        return wire


Conversation = Generator[Ask, bytes, Agreement]


class Responder(Protocol):
    """A way to be met, over any wire."""

    def respond(self, side: Side) -> Conversation:
        """The listening side."""
        ...


class Handshake(Responder, Protocol):
    """A way for two parties of one roster to meet, over any wire."""

    def initiate(self, side: Side, peer: PublicIdentity) -> Conversation:
        """The dialling side; raises HandshakeError in its kinds."""
        ...
