"""Authenticated encrypted channels: identities, handshakes, records, streams. Bytes only.

Two parties of one signed roster meet in a hybrid post-quantum Noise handshake that binds the digest of what they are
about to run, then exchange whole messages in sealed records:

    me = Identity.generate("radiology", roles=["client"])                # once; me.save("radiology.key")
    roster = Roster.load("roster.toml", signer="lokus-takuf-...")        # who may talk; the signer is pinned
    session = open_session("server:7000", me, roster, "server", digest=digest)          # one side
    session = SessionListener(Listener("0.0.0.0:7000", me, roster, digest=digest)).accept()     # the other
    session.send(b"meta", tensor_memory)
    frame = session.recv(timeout=60)                                     # frame.meta, frame.payload

A `Session` outlives its connections and reads beside compute; `connect` and `Listener.accept` give the bare `Channel`.
"""

from channels.channel import Channel, ChannelFacts, SealedChannel
from channels.contact import Reception, accept_invite
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
from channels.invite import Invite, Invites
from channels.listen import Listener
from channels.pairs import memory_pair, socketpair_pair
from channels.records import Frame, Limits
from channels.resume import SessionListener, open_session
from channels.roster import Roster
from channels.session import Session, SessionFacts

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
    "Invite",
    "InviteRefused",
    "Invites",
    "KeyExhausted",
    "KeyFileError",
    "Limits",
    "Listener",
    "MessageTooLarge",
    "PeerClosed",
    "PeerLost",
    "PublicIdentity",
    "Reception",
    "Roster",
    "RosterExpired",
    "RosterRollback",
    "SealedChannel",
    "Session",
    "SessionFacts",
    "SessionListener",
    "SuiteRefused",
    "Truncated",
    "UnknownPeer",
    "accept_invite",
    "connect",
    "memory_pair",
    "open_session",
    "socketpair_pair",
]
