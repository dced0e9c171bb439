"""Identities: a long-term Ed25519 key that certifies an X25519 Noise key with a name, roles and an expiry.

The private half lives in one file, mode 0600, that never leaves its host; it may be sealed with a passphrase
(Argon2id, then ChaCha20-Poly1305). The public half is a small TOML text to hand around; its fingerprint is eight
pronounceable words (proquints, Wilkerson 2009, arXiv:0901.4016) to read aloud: 128 bits over name and keys.
This file knows nothing of rosters and handshakes.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from channels.errors import KeyFileError
from channels.keyfile import Hidden, from_text, parse_toml, read_file, seal, to_text, toml, unseal, write_file
from channels.noise import Secretive
from channels.primitives import X25519PrivateKey

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
DAY = 86_400  # seconds


def proquints(data: bytes) -> str:
    """Sixteen bits a word, five letters each: `lusab-babad`. Case and order matter, spelling does not slip."""
    consonants, vowels = "bdfghjklmnprstvz", "aiou"
    words = []
    for high, low in zip(data[::2], data[1::2], strict=True):
        n = high << 8 | low
        letters = (consonants[n >> 12], vowels[n >> 10 & 3], consonants[n >> 6 & 15], vowels[n >> 4 & 3])
        words.append("".join(letters) + consonants[n & 15])
    return "-".join(words)


def fingerprint_of(name: str, signing: bytes, noise: bytes) -> str:
    """Eight words for a name and its two public keys."""
    return proquints(hashlib.sha256(pack(b"secsplit fingerprint", name.encode(), signing, noise)).digest()[:16])


def pack(label: bytes, *fields: bytes) -> bytes:
    """An unambiguous byte string to hash or sign: a label that says for what, then each field after its length."""
    return label + b"\0" + b"".join(len(field).to_bytes(4, "big") + field for field in fields)


def check_name(name: str) -> str:
    """The name itself; raises ValueError where it is not 1 to 64 letters, digits, dots, dashes or underscores."""
    if not NAME.fullmatch(name):
        raise ValueError(f"expected a name of 1 to 64 letters, digits, '.', '_' or '-', got {name[:80]!r}")
    return name


@dataclass(frozen=True)
class PublicIdentity:
    """What others may know of a party: name, roles, both public keys, expiry (seconds since 1970), self-signature."""

    name: str
    roles: tuple[str, ...]
    signing: bytes  # Ed25519, 32 bytes
    noise: bytes  # X25519, 32 bytes
    expires: int
    signature: bytes  # by `signing`, over all of the above

    @cached_property
    def fingerprint(self) -> str:
        """Eight words that stand for the name and both keys; compare them over the telephone."""
        return fingerprint_of(self.name, self.signing, self.noise)

    @property
    def expired(self) -> bool:
        """Whether its time is over, by this host's clock."""
        return time.time() >= self.expires

    def statement(self) -> bytes:
        """The bytes its signature covers."""
        roles = ",".join(self.roles).encode()
        fields = self.name.encode(), roles, self.signing, self.noise, self.expires.to_bytes(8, "big")
        return pack(b"secsplit identity 1", *fields)

    def verify(self) -> PublicIdentity:
        """Itself; raises KeyFileError where its signature does not cover its fields."""
        try:
            check_name(self.name)
            for role in self.roles:
                check_name(role)
            Ed25519PublicKey.from_public_bytes(self.signing).verify(self.signature, self.statement())
        except (InvalidSignature, ValueError, OverflowError):
            raise KeyFileError(f"identity {self.name[:80]!r}: its self-signature does not match its fields") from None
        return self

    def verify_signature(self, signature: bytes, statement: bytes) -> None:
        """Raise KeyFileError unless this party signed the statement."""
        try:
            Ed25519PublicKey.from_public_bytes(self.signing).verify(signature, statement)
        except InvalidSignature:
            raise KeyFileError(f"not signed by {self.name} ({self.fingerprint})") from None

    def fields(self) -> dict[str, Any]:
        """As TOML-ready values."""
        return {
            "name": self.name,
            "roles": list(self.roles),
            "signing": to_text(self.signing),
            "noise": to_text(self.noise),
            "expires": datetime.fromtimestamp(self.expires, UTC),
            "signature": to_text(self.signature),
        }

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> PublicIdentity:
        """The identity that TOML values describe, verified; raises KeyFileError."""
        try:
            return cls(
                name=str(fields["name"]),
                roles=tuple(map(str, fields["roles"])),
                signing=from_text(fields["signing"], 32),
                noise=from_text(fields["noise"], 32),
                expires=int(fields["expires"].timestamp()),
                signature=from_text(fields["signature"], 64),
            ).verify()
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            raise KeyFileError(f"not a public identity: {error!r}", fix="use the file its owner exported") from None

    def dumps(self) -> str:
        """The TOML text to hand around."""
        return toml({"format": "secsplit public identity 1", **self.fields()})

    @classmethod
    def loads(cls, text: str) -> PublicIdentity:
        """Read and verify what `dumps` wrote; raises KeyFileError."""
        return cls.from_fields(parse_toml(text, "secsplit public identity 1"))

    def save(self, path: str | Path) -> None:
        """Write the text file."""
        write_file(Path(path), self.dumps(), mode=0o644)

    @classmethod
    def load(cls, path: str | Path) -> PublicIdentity:
        """Read and verify the text file; raises KeyFileError."""
        return cls.loads(read_file(Path(path)))


class Identity(Secretive):
    """A party's private keys; `public` is the half to give away. It has no repr, no copy and no pickle."""

    __slots__ = ("noise", "public", "signing")

    def __init__(self, signing: Ed25519PrivateKey, noise: X25519PrivateKey, public: PublicIdentity) -> None:
        mine = signing.public_key().public_bytes_raw(), noise.public_key().public_bytes_raw()
        if mine != (public.signing, public.noise):
            raise KeyFileError(f"the private keys are not those of {public.name}")
        self.signing, self.noise, self.public = signing, noise, public.verify()

    @classmethod
    def generate(cls, name: str, *, roles: Iterable[str] = (), days: float = 365) -> Identity:
        """New keys from the operating system's randomness, certified for so many days."""
        return cls._certify(Ed25519PrivateKey.generate(), X25519PrivateKey.generate(), name, tuple(roles), days)

    def renew(self, *, roles: Iterable[str] | None = None, days: float = 365) -> Identity:
        """The same keys and fingerprint with a new expiry (and roles)."""
        public = self.public
        return self._certify(
            self.signing, self.noise, public.name, public.roles if roles is None else tuple(roles), days
        )

    @classmethod
    def _certify(
        cls, signing: Ed25519PrivateKey, noise: X25519PrivateKey, name: str, roles: tuple[str, ...], days: float
    ) -> Identity:
        for word in (name, *roles):
            check_name(word)
        keys = signing.public_key().public_bytes_raw(), noise.public_key().public_bytes_raw()
        unsigned = PublicIdentity(name, roles, *keys, int(time.time() + days * DAY), b"")
        signature = signing.sign(unsigned.statement())
        return cls(signing, noise, PublicIdentity(name, roles, *keys, unsigned.expires, signature))

    def sign(self, statement: bytes) -> bytes:
        """An Ed25519 signature; statements begin with a label that says what they are for (see `pack`)."""
        return self.signing.sign(statement)

    def save(self, path: str | Path, passphrase: str | None = None) -> None:
        """Write the private key file, mode 0600; with a passphrase, sealed. Raises KeyFileError where one exists."""
        write_file(Path(path), self._text(passphrase), mode=0o600, exclusive=True)

    def _text(self, passphrase: str | None) -> Hidden:
        secret = self.signing.private_bytes_raw() + self.noise.private_bytes_raw()
        table: dict[str, Any] = {"format": "secsplit private identity 1", **self.public.fields()}
        if passphrase is None:
            table["secret"] = to_text(secret)
        else:
            table |= seal(secret, passphrase, self.public.statement())
        return Hidden("# Private key: keep it on this host. Give away the public identity only.\n" + toml(table))

    @classmethod
    def load(cls, path: str | Path, passphrase: str | None = None) -> Identity:
        """Read a private key file; raises KeyFileError where others may read it, or the passphrase is wrong."""
        table = parse_toml(read_file(Path(path), private=True), "secsplit private identity 1")
        plain = Hidden(table.pop("secret", ""))
        public = PublicIdentity.from_fields(table)
        signing, noise = _keys(plain, table, passphrase, public)
        return cls(signing, noise, public)


def _keys(
    plain: Hidden, table: dict[str, Any], passphrase: str | None, public: PublicIdentity
) -> tuple[Ed25519PrivateKey, X25519PrivateKey]:
    try:
        secret = from_text(plain.text, 64) if plain.text else unseal(table, passphrase, public.statement(), 64)
    except ValueError:
        raise KeyFileError("the key file is damaged", fix="restore it from a backup") from None
    return Ed25519PrivateKey.from_private_bytes(secret[:32]), X25519PrivateKey.from_private_bytes(secret[32:])
