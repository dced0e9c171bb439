"""Authenticated encrypted channels: identities, handshakes, records, streams. Bytes only.

Two parties of one signed roster meet in a hybrid post-quantum Noise handshake that binds the digest of what they are
about to run, then exchange whole messages in sealed records. Start at `Identity`, `Roster`, `connect`, `Listener`.
"""

from channels.channel import Channel, ChannelFacts, SealedChannel
from channels.dial import connect
from channels.errors import (
    ChannelDead,
    ChannelError,
    DeadlineExceeded,
    DigestMismatch,
    HandshakeError,
    HandshakeTimeout,
    IdentityMismatch,
    IntegrityError,
    InviteRefused,
    KeyExhausted,
    KeyFileError,
    MessageTooLarge,
    PeerClosed,
    PeerLost,
    RosterExpired,
    RosterRollback,
    SuiteRefused,
    Truncated,
    UnknownPeer,
)
from channels.identity import Identity, PublicIdentity
from channels.listen import Listener
from channels.pairs import memory_pair, socketpair_pair
from channels.records import Frame, Limits
from channels.roster import Roster

__all__ = [
    "Channel",
    "ChannelDead",
    "ChannelError",
    "ChannelFacts",
    "DeadlineExceeded",
    "DigestMismatch",
    "Frame",
    "HandshakeError",
    "HandshakeTimeout",
    "Identity",
    "IdentityMismatch",
    "IntegrityError",
    "InviteRefused",
    "KeyExhausted",
    "KeyFileError",
    "Limits",
    "Listener",
    "MessageTooLarge",
    "PeerClosed",
    "PeerLost",
    "PublicIdentity",
    "Roster",
    "RosterExpired",
    "RosterRollback",
    "SealedChannel",
    "SuiteRefused",
    "Truncated",
    "UnknownPeer",
    "connect",
    "memory_pair",
    "socketpair_pair",
]
