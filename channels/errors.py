"""Errors of this floor: one small tree, each leaf naming who is at fault and what mends it.

    ChannelError
    ├── KeyFileError          a key, roster or invite file cannot be read or must not be trusted
    ├── RosterRollback        a roster older than one already seen
    ├── HandshakeError        no channel came to be
    │   ├── UnknownPeer       the other side's key is not in our roster
    │   ├── IdentityMismatch  the key is known, but belongs to somebody else
    │   ├── RosterExpired     the roster lists it, but its time is over
    │   ├── SuiteRefused      the offered cryptography is not allowed here
    │   ├── DigestMismatch    both are who they say, but they disagree on what to run
    │   ├── InviteRefused     an invite that is unknown, expired or already used
    │   └── HandshakeTimeout  nothing, or too little, came in time
    ├── IntegrityError        a record did not open: changed, replayed, reordered or forged
    ├── Truncated             the stream ended without a sealed close
    ├── MessageTooLarge       a message above the agreed limit
    ├── KeyExhausted          a key has sealed as much as it may
    ├── PeerClosed            the peer closed, properly
    ├── PeerLost              the peer has not been heard for too long
    ├── DeadlineExceeded      our own deadline passed; the channel may still be used where said so
    └── ChannelDead           used after close, after an error, or in a forked child

Verification raises; it never returns False. After any of these but DeadlineExceeded on an idle wait and a
MessageTooLarge of our own, the channel stays dead. A stranger is never told which check refused it; that goes to
the local log only.
"""

from __future__ import annotations

from typing import ClassVar, Literal

Fault = Literal["local", "peer", "network"]


class ChannelError(Exception):
    """Base of all errors of this floor: `peer`, `fault` and `fix` say who, whose fault and what to do."""

    fault: Fault = "local"
    default_fix: ClassVar[str] = ""

    def __init__(self, what: str, *, peer: str = "", fix: str = "", fault: Fault | None = None) -> None:
        self.what, self.peer, self.fix = what, peer, fix or self.default_fix
        if fault is not None:
            self.fault = fault
        super().__init__(what)

    def __str__(self) -> str:
        who = f"{self.peer}: " if self.peer else ""
        return f"{who}{self.what}" + (f"; fix: {self.fix}" if self.fix else "")


class KeyFileError(ChannelError):
    """A key, roster or invite file is unreadable, open to others, wrongly sealed or wrongly signed."""


class RosterRollback(ChannelError):
    """A roster with a lower epoch than one already accepted."""

    fault: Fault = "peer"
    default_fix = "fetch the newest roster from its signer; an old one may list revoked parties"


class HandshakeError(ChannelError):
    """No channel was made."""

    fault: Fault = "peer"


class UnknownPeer(HandshakeError):
    """The other side proved a key that our roster does not list."""

    default_fix = "compare fingerprints with the peer's operator, then have the roster's signer add it"


class IdentityMismatch(HandshakeError):
    """The key is in the roster, but under another name than the one called, or the two sides see it differently."""

    default_fix = "check the address dialled, and that both sides hold the same roster"


class RosterExpired(HandshakeError):
    """The identity is listed, but its time is over."""

    default_fix = "have its owner renew the identity and the roster's signer publish a new epoch"


class SuiteRefused(HandshakeError):
    """The cryptographic suite offered is unknown, weaker than both sides allow, or forbidden here."""

    default_fix = "run the same release on both sides; classical suites need an explicit policy"


class DigestMismatch(HandshakeError):
    """Both sides are authentic but were started with different runs."""

    default_fix = "give both sides the same run file: topology, cut, method, defenses and schedule must be equal"


class InviteRefused(HandshakeError):
    """The invite is unknown, expired or already used."""

    default_fix = "ask whoever issued it for a new invite; each works once"


class HandshakeTimeout(HandshakeError):
    """The handshake did not finish before its deadline."""

    fault: Fault = "network"
    default_fix = "check that the address is right, that the peer listens, and that no firewall drops the connection"


class IntegrityError(ChannelError):
    """A record did not open under its key and counter: it was changed, replayed, reordered or forged."""

    fault: Fault = "network"
    default_fix = "dial again; if it repeats, something between the two hosts alters traffic"


class Truncated(ChannelError):
    """The stream ended, or was cut, without the peer's sealed close."""

    fault: Fault = "network"
    default_fix = "see whether the peer still runs, then dial again"


class MessageTooLarge(ChannelError):
    """A message is larger than the channel allows."""

    default_fix = "send it in parts, or raise max_message on both sides"


class KeyExhausted(ChannelError):
    """A key has sealed as many records as it safely may."""

    default_fix = "dial again: a new handshake brings new keys"


class PeerClosed(ChannelError):
    """The peer closed the channel properly: everything it sent has been received."""

    fault: Fault = "peer"


class PeerLost(ChannelError):
    """The peer has not been heard for longer than the session allows."""

    fault: Fault = "peer"
    default_fix = "see whether the peer's process still runs and its host can be reached"


class DeadlineExceeded(ChannelError):
    """A wait reached its deadline."""

    fault: Fault = "network"


class ChannelDead(ChannelError):
    """The channel was used after it was closed, after an error ended it, or in a forked child."""

    default_fix = "dial again"
