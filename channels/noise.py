"""The Noise Protocol Framework (revision 34), sans I/O: bytes in, bytes out, the caller owns the socket.

The three objects and their methods carry the names of section 5. One writer and one reader interpret the pattern's
tokens for both roles; `into_transport` consumes a finished handshake and gives another type, so nobody can encrypt
data under a half-made one. Tokens `e1` and `ekem1` are the hybrid forward secrecy extension with ML-KEM-768.
A message that fails leaves the handshake dead: there is nothing to retry with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

from cryptography.exceptions import InvalidTag

from channels.errors import ChannelDead, HandshakeError, IntegrityError, KeyExhausted
from channels.patterns import Pattern, parse
from channels.primitives import (
    CIPHERS,
    DH_LENGTH,
    HASHES,
    KEM_CIPHERTEXT,
    KEM_PUBLIC,
    TAG,
    Aead,
    Cipher,
    Hash,
    MLKEM768PrivateKey,
    MLKEM768PublicKey,
    X25519PrivateKey,
    check_kem_key,
    dh,
    encapsulate,
    hkdf,
)

MAX_MESSAGE = 65535
LAST_NONCE = 2**64 - 1  # reserved for rekey (section 11.3); never used to send


@dataclass(frozen=True)
class Protocol:
    """A Noise protocol name, taken apart: `Noise_IKhfs_25519+MLKEM768_AESGCM_SHA256`."""

    name: str
    pattern: Pattern
    cipher: Cipher
    hash: Hash
    hybrid: bool

    @classmethod
    def of(cls, name: str) -> Protocol:
        """Take a name apart; raises ValueError on one that this library does not speak."""
        try:
            prefix, pattern, groups, cipher, hash_ = name.split("_")
        except ValueError:
            raise ValueError(f"not a Noise protocol name: {name!r}") from None
        parsed = parse(pattern)
        hybrid = any("ekem1" in message for message in parsed.messages)
        if prefix != "Noise" or groups != ("25519+MLKEM768" if hybrid else "25519"):
            raise ValueError(f"{name!r}: expected 25519, and +MLKEM768 with hfs only")
        if cipher not in CIPHERS or hash_ not in HASHES:
            raise ValueError(f"{name!r}: expected a cipher of {list(CIPHERS)} and a hash of {list(HASHES)}")
        return cls(name, parsed, CIPHERS[cipher], HASHES[hash_], hybrid)


class Secretive:
    """Objects that hold keys: they neither print, nor copy, nor pickle."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError(f"{type(self).__name__} holds keys and is never copied or pickled")


class CipherState(Secretive):
    """Section 5.1: a key and its counter. Nonces count; the last one is never used."""

    __slots__ = ("_aead", "_cipher", "_key", "_n")

    def __init__(self, cipher: Cipher, key: bytes | None = None) -> None:
        self._cipher, self._key, self._n = cipher, key, 0
        self._aead: Aead | None = None  # made when it is first used: many a key of a handshake never is

    def has_key(self) -> bool:
        """Whether a key has been set."""
        return self._key is not None

    def set_nonce(self, n: int) -> None:
        """Section 5.1, for transports that number their messages."""
        self._n = n

    def encrypt_with_ad(self, ad: bytes, plaintext: bytes) -> bytes:
        """Encrypt and authenticate, or pass through where there is no key yet."""
        if self._key is None:
            return plaintext
        return self._ready(self._key).encrypt(self._next(), plaintext, ad)

    def decrypt_with_ad(self, ad: bytes, ciphertext: bytes) -> bytes:
        """Open what the peer's `encrypt_with_ad` made; raises IntegrityError, and counts only what opened."""
        if self._key is None:
            return ciphertext
        n = self._n
        try:
            return self._ready(self._key).decrypt(self._next(), ciphertext, ad)
        except InvalidTag:
            self._n = n
            raise IntegrityError("a handshake or transport message did not open") from None

    def rekey(self) -> None:
        """Section 4.2's REKEY: the key becomes the encryption of zeros under the reserved nonce."""
        if self._key is None:
            raise ChannelDead("no key to renew")
        self._key = self._ready(self._key).encrypt(self._cipher.nonce(0, LAST_NONCE), bytes(32), b"")[:32]
        self._aead = None

    def _ready(self, key: bytes) -> Aead:
        if self._aead is None:
            self._aead = self._cipher.new(key)
        return self._aead

    def _next(self) -> bytes:
        if self._n >= LAST_NONCE:
            raise KeyExhausted(f"all {LAST_NONCE} nonces of this key are used")
        nonce = self._cipher.nonce(0, self._n)
        self._n += 1
        return nonce


class SymmetricState(Secretive):
    """Section 5.2: the chaining key, the transcript hash, and a cipher that both keep renewing."""

    __slots__ = ("_ck", "_hash", "cipher", "h", "protocol")

    def __init__(self, protocol: Protocol) -> None:
        self.protocol, self._hash = protocol, protocol.hash
        name = protocol.name.encode()
        long = len(name) > self._hash.length
        self.h = self._hash.digest(name) if long else name.ljust(self._hash.length, b"\0")
        self._ck = self.h
        self.cipher = CipherState(protocol.cipher)

    def mix_key(self, material: bytes) -> None:
        """Fold a shared secret in and start a new cipher key."""
        self._ck, key = hkdf(self._hash, self._ck, material, 2)
        self.cipher = CipherState(self.protocol.cipher, key[:32])

    def mix_hash(self, data: bytes) -> None:
        """Fold anything said into the transcript."""
        self.h = self._hash.digest(self.h + data)

    def mix_key_and_hash(self, material: bytes) -> None:
        """Fold a pre-shared key into both."""
        self._ck, said, key = hkdf(self._hash, self._ck, material, 3)
        self.mix_hash(said)
        self.cipher = CipherState(self.protocol.cipher, key[:32])

    def encrypt_and_hash(self, plaintext: bytes) -> bytes:
        """Encrypt under the transcript so far, then add the ciphertext to it."""
        ciphertext = self.cipher.encrypt_with_ad(self.h, plaintext)
        self.mix_hash(ciphertext)
        return ciphertext

    def decrypt_and_hash(self, ciphertext: bytes) -> bytes:
        """Open under the transcript so far, then add the ciphertext to it."""
        plaintext = self.cipher.decrypt_with_ad(self.h, ciphertext)
        self.mix_hash(ciphertext)
        return plaintext

    def split(self) -> tuple[CipherState, CipherState]:
        """The two transport ciphers, initiator's first."""
        first, second = hkdf(self._hash, self._ck, b"", 2)
        cipher = self.protocol.cipher
        return CipherState(cipher, first[:32]), CipherState(cipher, second[:32])

    def export(self, label: bytes, outputs: int) -> list[bytes]:
        """Keys for another use than Noise's own transport, bound to the transcript.

        Independent of `split`, whose material is the empty string, and of every DH input, which is 32 bytes long.
        """
        return hkdf(self._hash, self._ck, label + b"\0" + self.h, outputs)


class Transport(Secretive):
    """A finished handshake: Noise's own transport ciphers (`send`, `receive`), and keys for other uses by `export`."""

    __slots__ = ("_ciphers", "_symmetric", "handshake_hash", "initiator", "remote_static")

    def __init__(self, symmetric: SymmetricState, initiator: bool, remote_static: bytes | None) -> None:
        self._symmetric, self.initiator, self.remote_static = symmetric, initiator, remote_static
        self._ciphers: tuple[CipherState, CipherState] | None = None  # made when first asked for: records need neither
        self.handshake_hash = symmetric.h

    @property
    def send(self) -> CipherState:
        """The cipher of what this side sends."""
        return self._split()[not self.initiator]

    @property
    def receive(self) -> CipherState:
        """The cipher of what the peer sends."""
        return self._split()[self.initiator]

    def _split(self) -> tuple[CipherState, CipherState]:
        if self._ciphers is None:
            self._ciphers = self._symmetric.split()
        return self._ciphers

    def export(self, label: bytes, outputs: int) -> list[bytes]:
        """Independent keys under a label, equal on both sides."""
        return self._symmetric.export(label, outputs)


class HandshakeState(Secretive):
    """Section 5.3: writes and reads the messages of one pattern, for either role.

    `static` and `remote_static` are needed as the pattern says; a pre-shared key is 32 bytes. The two arguments named
    `..._for_testing_only` make a run repeatable, and unsafe: published vectors need them, nothing else may.
    """

    __slots__ = (
        "_dead",
        "_e",
        "_e1",
        "_psks",
        "_public",
        "_s",
        "_symmetric",
        "_turn",
        "initiator",
        "pattern",
        "re",
        "re1",
        "rs",
    )

    def __init__(
        self,
        protocol: Protocol,
        *,
        initiator: bool,
        prologue: bytes = b"",
        static: X25519PrivateKey | None = None,
        remote_static: bytes | None = None,
        psks: tuple[bytes, ...] = (),
        ephemeral_for_testing_only: X25519PrivateKey | None = None,
        kem_for_testing_only: MLKEM768PrivateKey | None = None,
    ) -> None:
        self.pattern, self.initiator = protocol.pattern, initiator
        self._require(static, remote_static, psks)
        self._s, self.rs, self._psks = static, remote_static, list(psks)
        self._e, self._e1 = ephemeral_for_testing_only, kem_for_testing_only
        self.re: bytes | None = None
        self.re1: MLKEM768PublicKey | None = None
        self._turn, self._dead = 0, False
        self._symmetric = SymmetricState(protocol)
        self._symmetric.mix_hash(prologue)
        own = self._public = static.public_key().public_bytes_raw() if static is not None else b""
        for known, mine in ((self.pattern.initiator_known, initiator), (self.pattern.responder_known, not initiator)):
            key = own if mine else remote_static
            if known and key:
                self._symmetric.mix_hash(key)

    def _require(self, static: X25519PrivateKey | None, remote_static: bytes | None, psks: tuple[bytes, ...]) -> None:
        """A key missing or too many is a programming error, told before a byte is sent."""
        pattern = self.pattern
        mine, theirs = pattern.initiator_known, pattern.responder_known
        if not self.initiator:
            mine, theirs = theirs, mine
        sends = [turn for index, turn in enumerate(pattern.messages) if (index % 2 == 0) == self.initiator]
        if static is None and (mine or any("s" in turn for turn in sends)):
            raise ValueError(f"{pattern.name} needs this side's static key")
        if (remote_static is not None) != theirs:
            raise ValueError(f"{pattern.name} {'needs' if theirs else 'must not be given'} the peer's static key")
        if len(psks) != pattern.psks or any(len(psk) != 32 for psk in psks):
            raise ValueError(f"{pattern.name} takes {pattern.psks} pre-shared keys of 32 bytes")

    @property
    def finished(self) -> bool:
        """All messages of the pattern have passed."""
        return self._turn == len(self.pattern.messages)

    @property
    def handshake_hash(self) -> bytes:
        """The transcript so far; the channel binding once finished (section 11.2)."""
        return self._symmetric.h

    def write_message(self, payload: bytes = b"") -> bytes:
        """The next message of this side's turn; raises HandshakeError out of turn."""
        turn = self._take_turn(writing=True)
        out = bytearray()
        for token in turn:
            out += self._write(token)
        out += self._symmetric.encrypt_and_hash(payload)
        if len(out) > MAX_MESSAGE:
            raise HandshakeError(f"handshake message of {len(out)} bytes, at most {MAX_MESSAGE}", fault="local")
        self._end_turn()
        return bytes(out)

    def read_message(self, message: bytes) -> bytes:
        """The payload of the peer's next message; raises HandshakeError or IntegrityError, after which all is over."""
        turn = self._take_turn(writing=False)
        if len(message) > MAX_MESSAGE:
            raise HandshakeError(f"handshake message of {len(message)} bytes, at most {MAX_MESSAGE}")
        rest = message
        for token in turn:
            rest = self._read(token, rest)
        payload = self._symmetric.decrypt_and_hash(rest)
        self._end_turn()
        return payload

    def into_transport(self) -> Transport:
        """End the handshake and take its keys; the handshake itself cannot be used again."""
        if not self.finished or self._dead:
            raise HandshakeError("the handshake is not finished, or already consumed", fault="local")
        self._dead = True
        return Transport(self._symmetric, self.initiator, self.rs)

    def _take_turn(self, *, writing: bool) -> tuple[str, ...]:
        ours = (self._turn % 2 == 0) == self.initiator
        if self._dead or self.finished or ours != writing:
            raise HandshakeError(f"not the turn to {'write' if writing else 'read'}", fault="local")
        self._dead = True  # until the whole message has passed
        return self.pattern.messages[self._turn]

    def _end_turn(self) -> None:
        self._turn += 1
        self._dead = False

    def _write(self, token: str) -> bytes:
        symmetric = self._symmetric
        if token == "e":
            self._e = self._e or X25519PrivateKey.generate()
            public = self._e.public_key().public_bytes_raw()
            self._mix_ephemeral(public)
            return public
        if token == "s":
            return symmetric.encrypt_and_hash(self._public)
        if token == "e1":
            self._e1 = self._e1 or MLKEM768PrivateKey.generate()
            return symmetric.encrypt_and_hash(self._e1.public_key().public_bytes_raw())
        if token == "ekem1":
            assert self.re1 is not None
            secret, ciphertext = encapsulate(self.re1)
            sealed = symmetric.encrypt_and_hash(ciphertext)
            symmetric.mix_key(secret)
            return sealed
        self._agree(token)
        return b""

    def _read(self, token: str, rest: bytes) -> bytes:
        symmetric = self._symmetric
        tag = TAG if symmetric.cipher.has_key() else 0
        if token == "e":
            self.re, rest = _cut(rest, DH_LENGTH)
            self._mix_ephemeral(self.re)
        elif token == "s":
            field, rest = _cut(rest, DH_LENGTH + tag)
            self.rs = symmetric.decrypt_and_hash(field)
        elif token == "e1":
            field, rest = _cut(rest, KEM_PUBLIC + tag)
            self.re1 = _valid_kem_key(symmetric.decrypt_and_hash(field))
        elif token == "ekem1":
            field, rest = _cut(rest, KEM_CIPHERTEXT + tag)
            assert self._e1 is not None
            symmetric.mix_key(self._e1.decapsulate(symmetric.decrypt_and_hash(field)))
        else:
            self._agree(token)
        return rest

    def _mix_ephemeral(self, public: bytes) -> None:
        """Section 9.2: with pre-shared keys, ephemerals enter the key as well, or nonces could repeat."""
        self._symmetric.mix_hash(public)
        if self.pattern.psks:
            self._symmetric.mix_key(public)

    def _agree(self, token: str) -> None:
        """`ee es se ss`: first letter the initiator's key, second the responder's. `psk`: the next pre-shared key."""
        if token == "psk":
            self._symmetric.mix_key_and_hash(self._psks.pop(0))
            return
        own, other = (0, 1) if self.initiator else (1, 0)
        private = self._e if token[own] == "e" else self._s
        public = self.re if token[other] == "e" else self.rs
        assert private is not None
        assert public is not None
        try:
            self._symmetric.mix_key(dh(private, public))
        except ValueError:
            raise HandshakeError("the peer's X25519 key is a low-order point") from None


def _cut(data: bytes, length: int) -> tuple[bytes, bytes]:
    if len(data) < length:
        raise HandshakeError(f"handshake message too short: expected {length} more bytes, got {len(data)}")
    return data[:length], data[length:]


def _valid_kem_key(public: bytes) -> MLKEM768PublicKey:
    try:
        return check_kem_key(public)
    except ValueError:
        raise HandshakeError("the peer's ML-KEM key is malformed") from None
