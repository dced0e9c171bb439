"""How two parties of one roster meet: a Noise IK handshake, sans I/O, as two conversations written as generators.

    -> u16 length | preface (16 bytes) | e, e1, es, s, ss, {claims}
    <- u16 length | e, ekem1, ee, se, {claims}
    -> the first sealed record, kind HELLO: it proves that the initiator has the keys, now

The preface (magic, version, suite, suites offered, record size) is the prologue: whoever edits it breaks the
handshake. The claims are sealed and so part of the transcript that all later keys and the channel binding depend on:
run digest, roster epoch, and the fingerprints of who speaks and who is meant. Being sealed they can be compared and
a mismatch named, to an enrolled peer and to nobody else; a stranger gets silence, whichever check it failed.

Known limits of IK, and what is done about them: its first message can be replayed, and whoever stole the responder's
static key can forge it (key-compromise impersonation). It therefore carries no data, and the responder hands out no
channel before HELLO, which only the holder of the initiator's fresh and static keys can seal.
"""

from __future__ import annotations

import struct
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace

from channels.errors import DigestMismatch, HandshakeError, IdentityMismatch, IntegrityError, SuiteRefused, UnknownPeer
from channels.identity import Identity, PublicIdentity, proquints
from channels.noise import HandshakeState, Secretive, Transport
from channels.records import DEFAULT_LIMITS, Keys, Limits, Opener, Sealer
from channels.roster import Roster
from channels.suites import ENROLLED, Suite, accept, offer

PREFACE = struct.Struct(">8sBBHBB2x")
MAGIC = b"SECSPLIT"
VERSION = 1
MAX_FRAME = 4096  # bytes
DIGEST = 32  # bytes
RECORD_BITS = range(14, 23)  # 16 KiB to 4 MiB

Conversation = Generator[bytes, bytes, "Agreement"]
"""Yields a frame to send (or nothing) and is given the next frame received; its value is what was agreed."""


@dataclass(frozen=True)
class Claims:
    """What each side says, sealed, in its handshake message."""

    digest: bytes
    epoch: int
    speaker: str  # fingerprints
    listener: str

    def pack(self) -> bytes:
        """96 to 200 bytes, always the same for the same protocol: lengths tell nothing."""
        said = self.speaker.encode(), self.listener.encode()
        return struct.pack(">32sQ48s48s", self.digest, self.epoch, *said)

    @classmethod
    def unpack(cls, raw: bytes) -> Claims:
        """Raises HandshakeError on anything else."""
        try:
            digest, epoch, speaker, listener = struct.unpack(">32sQ48s48s", raw)
            return cls(digest, epoch, speaker.rstrip(b"\0").decode(), listener.rstrip(b"\0").decode())
        except (struct.error, UnicodeDecodeError):
            raise HandshakeError("the handshake's claims are malformed") from None


@dataclass(frozen=True)
class Side:
    """All that one side brings to a handshake."""

    me: Identity
    roster: Roster
    digest: bytes
    suites: Sequence[Suite] = ENROLLED
    limits: Limits = DEFAULT_LIMITS
    pad: bool = False

    def __post_init__(self) -> None:
        if len(self.digest) != DIGEST:
            raise ValueError(f"expected a run digest of {DIGEST} bytes, got {len(self.digest)}")
        if self.limits.record.bit_length() - 1 not in RECORD_BITS or self.limits.record.bit_count() != 1:
            raise ValueError(f"expected a record size of 2**14 to 2**22 bytes, got {self.limits.record}")

    def claims(self, listener: PublicIdentity) -> Claims:
        """What this side says to that peer."""
        return Claims(self.digest, self.roster.epoch, self.me.public.fingerprint, listener.fingerprint)

    def compare(self, theirs: Claims, peer: PublicIdentity) -> DigestMismatch | None:
        """Check what the peer said; raises IdentityMismatch, and returns the one error the peer may be told."""
        if (theirs.speaker, theirs.listener) != (peer.fingerprint, self.me.public.fingerprint):
            raise IdentityMismatch("it sees another identity on one of the two sides than we do", peer=peer.name)
        if theirs.digest != self.digest:
            ours, said = proquints(self.digest[:6]), proquints(theirs.digest[:6])
            return DigestMismatch(f"it was started with run {said}..., this side with run {ours}...", peer=peer.name)
        return None


class Agreement(Secretive):
    """A finished handshake: the peer, the binding, the sealed directions, and the frame still to be sent."""

    def __init__(self, side: Side, suite: Suite, limits: Limits, peer: PublicIdentity, noise: Transport) -> None:
        self.side, self.suite, self.peer, self.binding = side, suite, peer, noise.handshake_hash
        self.last = b""  # to be sent before anything else
        self.refusal: HandshakeError | None = None  # to be raised once `last` is sent
        self.peer_epoch = 0
        there, back = noise.export(b"secsplit/1 records", 2)
        mine, theirs = (there, back) if noise.initiator else (back, there)
        cipher = suite.protocol.cipher
        self.sealer = Sealer(Keys(cipher, mine), limits, pad=side.pad)
        self.opener = Opener(Keys(cipher, theirs), limits)


def frame(message: bytes) -> bytes:
    """A handshake message after its length."""
    if len(message) > MAX_FRAME:
        raise HandshakeError(f"handshake frame of {len(message)} bytes, at most {MAX_FRAME}", fault="local")
    return len(message).to_bytes(2, "big") + message


def frame_length(head: bytes) -> int:
    """The length announced; raises HandshakeError where nothing of ours is that long."""
    length = int.from_bytes(head, "big")
    if not PREFACE.size <= length <= MAX_FRAME:
        raise HandshakeError(f"not a secsplit handshake: first bytes announce {length}, expected at most {MAX_FRAME}")
    return length


def initiate(side: Side, peer: PublicIdentity) -> Conversation:
    """Meet that party; the value is an Agreement whose refusal, if any, names a differing run."""
    suite = side.suites[0]
    preface = PREFACE.pack(MAGIC, VERSION, suite.number, offer(side.suites), side.limits.record.bit_length() - 1, 0)
    noise = HandshakeState(
        suite.protocol, initiator=True, prologue=preface, static=side.me.noise, remote_static=peer.noise
    )
    answer = yield frame(preface + noise.write_message(side.claims(peer).pack()))
    theirs = Claims.unpack(_read(noise, answer))
    refusal = side.compare(theirs, peer)
    agreement = Agreement(side, suite, side.limits, peer, noise.into_transport())
    agreement.refusal, agreement.peer_epoch = refusal, theirs.epoch
    return agreement


def respond(side: Side) -> Conversation:
    """Be met by any party of the roster."""
    first = yield b""
    preface = first[: PREFACE.size]
    suite, limits = _judge(preface, side)
    noise = HandshakeState(suite.protocol, initiator=False, prologue=preface, static=side.me.noise)
    theirs = Claims.unpack(_read(noise, first[PREFACE.size :]))
    assert noise.rs is not None
    try:
        peer = side.roster.by_key(noise.rs)
    except UnknownPeer as error:
        error.what += f"; it calls itself {theirs.speaker[:60]}"
        raise
    refusal = side.compare(theirs, peer)
    last = frame(noise.write_message(side.claims(peer).pack()))
    agreement = Agreement(side, suite, limits, peer, noise.into_transport())
    agreement.last, agreement.refusal, agreement.peer_epoch = last, refusal, theirs.epoch
    return agreement


def _judge(preface: bytes, side: Side) -> tuple[Suite, Limits]:
    magic, version, number, offered, record_bits, flags = PREFACE.unpack(preface)
    if magic != MAGIC:
        raise HandshakeError("not a secsplit handshake: wrong first bytes")
    if version != VERSION or flags:
        raise SuiteRefused(f"protocol version {version}, expected {VERSION}")
    if record_bits not in RECORD_BITS:
        raise SuiteRefused(f"record size 2**{record_bits}, expected 2**14 to 2**22")
    return accept(number, offered, side.suites), replace(side.limits, record=1 << record_bits)


def _read(noise: HandshakeState, message: bytes) -> bytes:
    try:
        return noise.read_message(message)
    except IntegrityError:
        raise HandshakeError(
            "a handshake message did not open: made for another key, or changed on its way",
            fix="check that both sides hold the same roster and that this address is the peer's",
        ) from None
