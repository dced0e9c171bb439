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

from channels.errors import ChannelError, HandshakeError, IntegrityError, SuiteRefused, UnknownPeer
from channels.identity import PublicIdentity
from channels.meeting import Agreement, Ask, Claims, Conversation, Side
from channels.noise import HandshakeState, Transport
from channels.records import Frame, Keys, Kind, Limits, Opener, Sealer
from channels.suites import ENROLLED, Suite, accept, offer

PREFACE = struct.Struct(">8sBBHBB2x")
MAGIC = b"SECSPLIT"
VERSION = 1
MAX_FRAME = 4096  # bytes


@dataclass(frozen=True)
class NoiseIK:
    """The handshake between parties of one roster; its suites, preferred first, are this side's policy."""

    suites: Sequence[Suite] = ENROLLED

    def initiate(self, side: Side, peer: PublicIdentity) -> Conversation:
        """Meet that party. Raises DigestMismatch where it is about to run something else."""
        suite = self.suites[0]
        record_bits = side.limits.record.bit_length() - 1
        preface = PREFACE.pack(MAGIC, VERSION, suite.number, offer(self.suites), record_bits, 0)
        noise = HandshakeState(
            suite.protocol, initiator=True, prologue=preface, static=side.me.noise, remote_static=peer.noise
        )
        head = yield Ask(frame(preface + noise.write_message(side.claims(peer).pack())), 2)
        answer = yield Ask(b"", frame_length(head))
        theirs = Claims.unpack(read(noise, answer))
        side.compare(theirs, peer)
        agreement = agree(side, suite, side.limits, peer, theirs, noise.into_transport())
        (hello,) = agreement.sealer.seal(Kind.HELLO, b"")
        yield Ask(bytes(hello), 0)
        return agreement

    def respond(self, side: Side) -> Conversation:
        """Be met by any party of the roster. Raises DigestMismatch once the peer has been told ours."""
        head = yield Ask(b"", 2)
        first = yield Ask(b"", frame_length(head))
        preface = first[: PREFACE.size]
        suite, limits = self._judge(preface, side)
        noise = HandshakeState(suite.protocol, initiator=False, prologue=preface, static=side.me.noise)
        theirs = Claims.unpack(read(noise, first[PREFACE.size :]))
        peer = _enrolled(side, noise, theirs)
        side.compare_identities(theirs, peer)
        last = frame(noise.write_message(side.claims(peer).pack()))
        agreement = agree(side, suite, limits, peer, theirs, noise.into_transport())
        if theirs.digest != side.digest:
            yield Ask(last, 0)
            side.compare(theirs, peer)
        hearing = agreement.opener.open()
        memory = next(hearing)
        memory[:] = yield Ask(last, len(memory))
        if kind_of(hearing) is not Kind.HELLO:
            raise HandshakeError("no hello under the new keys: a replayed or forged first message", peer=peer.name)
        return agreement

    def _judge(self, preface: bytes, side: Side) -> tuple[Suite, Limits]:
        magic, version, number, offered, record_bits, flags = PREFACE.unpack(preface)
        if magic != MAGIC:
            raise HandshakeError("not a secsplit handshake: wrong first bytes")
        if version != VERSION or flags:
            raise SuiteRefused(f"protocol version {version}, expected {VERSION}")
        if not 14 <= record_bits <= 22:
            raise SuiteRefused(f"record size 2**{record_bits}, expected 2**14 to 2**22")
        suite, limits, record = accept(number, offered, self.suites), side.limits, 1 << record_bits
        return suite, limits if limits.record == record else replace(limits, record=record)


def agree(
    side: Side, suite: Suite, limits: Limits, peer: PublicIdentity, theirs: Claims, noise: Transport
) -> Agreement:
    """The record keys of a finished handshake, and the facts of it."""
    there, back = noise.export(b"secsplit/1 records", 2)
    mine, from_peer = (there, back) if noise.initiator else (back, there)
    cipher = suite.protocol.cipher
    return Agreement(
        side=side,
        suite=suite.name,
        peer=peer,
        peer_epoch=theirs.epoch,
        binding=noise.handshake_hash,
        sealer=Sealer(Keys(cipher, mine), limits, pad=side.pad),
        opener=Opener(Keys(cipher, from_peer), limits),
    )


def frame(message: bytes) -> bytes:
    """A handshake message after its length."""
    if len(message) > MAX_FRAME:
        raise HandshakeError(f"handshake frame of {len(message)} bytes, at most {MAX_FRAME}", fault="local")
    return len(message).to_bytes(2, "big") + message


def frame_length(head: bytes, most: int = MAX_FRAME) -> int:
    """The length announced; raises HandshakeError where nothing of ours is that long."""
    length = int.from_bytes(head, "big")
    if not PREFACE.size <= length <= most:
        raise HandshakeError(f"not a secsplit handshake: first bytes announce {length}, expected at most {most}")
    return length


def read(noise: HandshakeState, message: bytes) -> bytes:
    """The payload of a handshake message; raises HandshakeError."""
    try:
        return noise.read_message(message)
    except IntegrityError:
        raise HandshakeError(
            "a handshake message did not open: made for another key, or changed on its way",
            fix="check that both sides hold the same roster and that this address is the peer's",
        ) from None


def kind_of(hearing: Generator[memoryview, None, tuple[Kind, Frame]]) -> Kind | None:
    """The kind of the message that ends here; None where it does not open, or does not end."""
    try:
        hearing.send(None)
    except StopIteration as done:
        kind: Kind = done.value[0]
        return kind
    except ChannelError:
        pass
    return None


def _enrolled(side: Side, noise: HandshakeState, theirs: Claims) -> PublicIdentity:
    assert noise.rs is not None
    try:
        return side.roster.by_key(noise.rs)
    except UnknownPeer as error:
        error.what += f"; it calls itself {theirs.speaker}"
        raise
