"""Primitives under their Noise names (revision 34, section 12): X25519, two AEADs, four hashes, HKDF; ML-KEM-768.

All of it is `cryptography`'s and the standard library's; this file only gives them one shape. It knows no protocol.
Nonces are counters: both ciphers use four zero bytes and a 64-bit counter, big-endian for AES-GCM and little-endian
for ChaCha20-Poly1305, and every key starts its own counter at zero, so no nonce is ever used twice under one key.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.utils import Buffer

__all__ = [
    "CIPHERS",
    "DH_LENGTH",
    "HASHES",
    "KEM_CIPHERTEXT",
    "KEM_PUBLIC",
    "TAG",
    "Aead",
    "Buffer",
    "Cipher",
    "Hash",
    "MLKEM768PrivateKey",
    "MLKEM768PublicKey",
    "X25519PrivateKey",
    "X25519PublicKey",
    "check_kem_key",
    "dh",
    "encapsulate",
    "hkdf",
]

TAG = 16  # bytes an AEAD adds
DH_LENGTH = 32
KEM_PUBLIC = 1184
KEM_CIPHERTEXT = 1088


class Aead(Protocol):
    """What `cryptography`'s AEADs offer; both release the interpreter lock while they work."""

    def encrypt(self, nonce: Buffer, data: Buffer, associated_data: Buffer | None) -> bytes: ...
    def decrypt(self, nonce: Buffer, data: Buffer, associated_data: Buffer | None) -> bytes: ...
    def encrypt_into(self, nonce: Buffer, data: Buffer, associated_data: Buffer | None, buf: Buffer) -> int: ...
    def decrypt_into(self, nonce: Buffer, data: Buffer, associated_data: Buffer | None, buf: Buffer) -> int: ...


@dataclass(frozen=True)
class Cipher:
    """A cipher function of Noise: how to make one from a 32-byte key, and how it writes a counter as a nonce."""

    name: str
    new: Callable[[bytes], Aead]
    nonce: Callable[[int, int], bytes]  # (0, counter) -> 12 bytes


@dataclass(frozen=True)
class Hash:
    """A hash function of Noise."""

    name: str
    digest: Callable[[bytes], bytes]
    algorithm: hashes.HashAlgorithm
    length: int


CIPHERS = {
    "AESGCM": Cipher("AESGCM", AESGCM, struct.Struct(">IQ").pack),
    "ChaChaPoly": Cipher("ChaChaPoly", ChaCha20Poly1305, struct.Struct("<IQ").pack),
}
HASHES = {
    "SHA256": Hash("SHA256", lambda data: hashlib.sha256(data).digest(), hashes.SHA256(), 32),
    "SHA512": Hash("SHA512", lambda data: hashlib.sha512(data).digest(), hashes.SHA512(), 64),
    "BLAKE2s": Hash("BLAKE2s", lambda data: hashlib.blake2s(data).digest(), hashes.BLAKE2s(32), 32),
    "BLAKE2b": Hash("BLAKE2b", lambda data: hashlib.blake2b(data).digest(), hashes.BLAKE2b(64), 64),
}


def dh(private: X25519PrivateKey, public: bytes) -> bytes:
    """X25519 (RFC 7748); raises ValueError on low-order points, whose product would be known to all."""
    return private.exchange(X25519PublicKey.from_public_bytes(public))


def check_kem_key(public: bytes) -> MLKEM768PublicKey:
    """The ML-KEM-768 public key; raises ValueError where it is none (FIPS 203, 7.2)."""
    return MLKEM768PublicKey.from_public_bytes(public)


def encapsulate(public: MLKEM768PublicKey) -> tuple[bytes, bytes]:
    """A fresh secret, and the ciphertext from which the holder of the private key gets it."""
    return public.encapsulate()


def hkdf(hash_: Hash, chaining_key: bytes, material: bytes, outputs: int) -> list[bytes]:
    """Noise's HKDF (section 4.3): RFC 5869 with the chaining key as salt and empty info."""
    length = hash_.length
    derived = HKDF(hash_.algorithm, outputs * length, chaining_key, b"").derive(material)
    return [derived[at : at + length] for at in range(0, outputs * length, length)]
