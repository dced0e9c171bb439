"""Sealed envelopes: one message for one party, readable by nobody who carries it, and signed by its writer.

HPKE in base mode (RFC 9180) with HKDF-SHA256 and AES-256-GCM over X25519 (the recipient's Noise key), and an Ed25519
signature of the writer's identity over everything, the recipient and the context included. The signature is inside the
encryption: whoever carries the envelope learns its length alone, and cannot put another name under it.

    envelope = seal(weights, me, to, context=run_digest)        # carried by anybody, stored anywhere
    weights = open_sealed(envelope, me, writer, context=run_digest)

Unlike a channel, an envelope has no forward secrecy: whoever gets the recipient's key later reads it. And its key
exchange is classical X25519: a carrier that keeps envelopes until it owns a quantum computer reads them then. On the
wire it travels inside channels, which are hybrid; against its carrier it is as strong as X25519.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from channels.errors import IntegrityError, KeyFileError
from channels.identity import Identity, PublicIdentity, pack
from channels.primitives import Buffer, X25519PublicKey
from channels.records import flat

SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
SIGNATURE = 64
OVERHEAD = 32 + SIGNATURE + 16  # encapsulated key, signature, tag


def seal(message: Buffer, me: Identity, to: PublicIdentity, *, context: bytes) -> bytes:
    """An envelope for `to`, OVERHEAD bytes longer than the message; the reader must name the same context."""
    body = bytes(flat(message))
    signed = me.sign(_statement(body, me.public, to, context)) + body
    key = X25519PublicKey.from_public_bytes(to.noise)
    return SUITE.encrypt(signed, key, info=_info(me.public, to, context))


def open_sealed(envelope: Buffer, me: Identity, writer: PublicIdentity, *, context: bytes) -> bytes:
    """The message; raises IntegrityError unless `writer` sealed it for us in this context."""
    try:
        signed = SUITE.decrypt(flat(envelope), me.noise, info=_info(writer, me.public, context))
        body = signed[SIGNATURE:]
        writer.verify_signature(signed[:SIGNATURE], _statement(body, writer, me.public, context))
    except (InvalidTag, ValueError, KeyFileError):
        raise IntegrityError(
            f"the envelope was not sealed by {writer.name} for {me.public.name} in this context, or was changed",
            peer=writer.name,
            fix="check who wrote it, for whom and for which run; it may have been altered by whoever carried it",
        ) from None
    return body


def _info(writer: PublicIdentity, reader: PublicIdentity, context: bytes) -> bytes:
    return pack(b"secsplit envelope 1", writer.fingerprint.encode(), reader.fingerprint.encode(), context)


def _statement(body: bytes, writer: PublicIdentity, reader: PublicIdentity, context: bytes) -> bytes:
    return pack(b"secsplit envelope signature 1", _info(writer, reader, context), body)
