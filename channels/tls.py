"""The same Channel over TLS 1.3 with mutual X.509, for sites whose rules ask for it; stdlib ssl, nothing below 1.3.

    channel = connect(..., handshake=MutualTls(certificate=pem, authority=pem))     and so for Listener, open_session

Both sides present a certificate that chains to the trusted authority, carries the roster's name, and holds the very
Ed25519 key that the roster lists for it: the authority alone admits nobody. Inside, before a channel is handed out,
both say the run digest, the roster epoch and who they take each other for, with 32 fresh bytes each; Python has no
TLS exporter, so the binding is a hash over both sayings and both certificates.

Slower than our own records by design of others: 16 KiB records, and no key update or post-quantum group reachable
from here. Reading and writing share one lock, for an OpenSSL connection is not safe for two threads; waiting for the
network is outside of it.
"""

from __future__ import annotations

import hashlib
import secrets
import ssl
import tempfile
import threading
from collections.abc import Generator
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from channels.errors import ChannelDead, HandshakeError, IdentityMismatch, IntegrityError, KeyFileError, Truncated
from channels.identity import Identity, PublicIdentity, pack
from channels.meeting import Agreement, Ask, Claims, Conversation, Side
from channels.primitives import Buffer
from channels.records import Opener, Sealer, flat, forget_in_children
from channels.wire import ReadAhead, Wire
from channels.x509 import common_name

HEAD = 5  # bytes of a TLS record's header
MAX_RECORD = (1 << 14) + 256
MAX_FLIGHT = 8 << 10  # bytes taken from a peer that has not authenticated
NONCE = 32
BATCH = 256 << 10  # bytes moved through OpenSSL at a time
SAYING = NONCE + 136


@dataclass(frozen=True)
class MutualTls:
    """This side's certificate chain and the authorities it trusts, both PEM."""

    certificate: str
    authority: str

    def initiate(self, side: Side, peer: PublicIdentity) -> Conversation:
        """See `Handshake`."""
        return self._meet(side, peer)

    def respond(self, side: Side) -> Conversation:
        """See `Handshake`."""
        return self._meet(side, None)

    def _meet(self, side: Side, callee: PublicIdentity | None) -> Conversation:
        """Either side: without a callee we are the one called, and take whom the certificate and roster name."""
        tls = Tls(self._context(side.me, server=callee is None), server=callee is None)
        yield from tls.shake()
        peer = _pinned(tls.peer_certificate(), side)
        if callee is not None and peer != callee:
            raise IdentityMismatch(f"expected {callee.name}, but the certificate is {peer.name}'s", peer=callee.name)
        ours = secrets.token_bytes(NONCE) + side.claims(peer).pack()
        if callee is not None:
            tls.write(ours)
        said = yield from tls.read(SAYING)
        theirs = Claims.unpack(said[NONCE:])
        side.compare_identities(theirs, peer)
        if callee is None:
            tls.write(ours)
        yield Ask(tls.taken(), 0)
        side.compare(theirs, peer)
        sayings = (ours, said) if callee is not None else (said, ours)
        own = x509.load_pem_x509_certificate(self.certificate.encode()).public_bytes(serialization.Encoding.DER)
        ends = (own, tls.peer_certificate()) if callee is not None else (tls.peer_certificate(), own)
        return TlsAgreement(
            side=side,
            suite=tls.suite(),
            peer=peer,
            peer_epoch=theirs.epoch,
            binding=hashlib.sha256(pack(b"secsplit tls 1", *sayings, *ends)).digest(),
            sealer=Sealer(InsideTls(), side.limits, pad=side.pad),
            opener=Opener(InsideTls(), side.limits),
            tls=tls,
        )

    def _context(self, me: Identity, *, server: bool) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False  # the key is compared with the roster's instead, which is stricter
        context.verify_mode = ssl.CERT_REQUIRED
        context.options |= ssl.OP_NO_TICKET
        if server:
            context.num_tickets = 0
        try:
            context.load_verify_locations(cadata=self.authority)
            _load_key(context, self.certificate, me)
        except (ssl.SSLError, ValueError) as error:
            raise KeyFileError(
                f"certificate and authority do not serve {me.public.name}: {error}",
                fix="the certificate must be over this party's own key; see channels.x509.request",
            ) from None
        return context


def _load_key(context: ssl.SSLContext, certificate: str, me: Identity) -> None:
    """ssl reads keys from files only: this one is encrypted under a random passphrase and lives for a moment."""
    passphrase = secrets.token_hex(32)
    key = me.signing.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(passphrase.encode()),
    )
    with tempfile.NamedTemporaryFile(prefix="secsplit", suffix=".pem") as file:
        file.write(certificate.encode() + b"\n" + key)
        file.flush()
        context.load_cert_chain(file.name, password=passphrase)


def _pinned(der: bytes, side: Side) -> PublicIdentity:
    """The roster's party whose key and name the certificate holds; raises IdentityMismatch or UnknownPeer."""
    certificate = x509.load_der_x509_certificate(der)
    key = certificate.public_key()
    try:
        peer = side.roster.by_name(common_name(certificate.subject))
    except KeyFileError as error:
        raise IdentityMismatch(f"the certificate names no party: {error.what}") from None
    if not isinstance(key, Ed25519PublicKey) or key.public_bytes_raw() != peer.signing:
        raise IdentityMismatch(f"the certificate says {peer.name}, but its key is not the roster's", peer=peer.name)
    return peer


class Tls:
    """A TLS connection without a socket; while it shakes hands it hears whole TLS records, and never one too many."""

    def __init__(self, context: ssl.SSLContext, *, server: bool) -> None:
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_side=server)
        self._heard = 0

    def shake(self) -> Generator[Ask, bytes, None]:
        """The TLS handshake as part of a conversation; raises HandshakeError, having said the alert TLS asks for."""
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                yield from self._hear()
            except ssl.SSLError as error:
                yield Ask(self.taken(), 0)
                raise _refused(error) from None
        yield Ask(self.taken(), 0)

    def read(self, count: int) -> Generator[Ask, bytes, bytes]:
        """So many bytes of plaintext, as part of a conversation."""
        got = b""
        while len(got) < count:
            try:
                got += self._tls.read(count - len(got))
            except ssl.SSLWantReadError:
                yield from self._hear()
            except ssl.SSLError as error:
                raise _refused(error) from None
        return got

    def _hear(self) -> Generator[Ask, bytes, None]:
        head = yield Ask(self.taken(), HEAD)
        length = int.from_bytes(head[3:], "big")
        self._heard += HEAD + length
        if head[1] != 3 or not 0 < length <= MAX_RECORD or self._heard > MAX_FLIGHT:
            raise HandshakeError("not a TLS 1.3 handshake, or a longer one than any of ours")
        body = yield Ask(b"", length)
        self._in.write(head + body)

    def take(self, memory: memoryview) -> int:
        """Plaintext already here, at most as much as fits; 0 where more must be fed. Raises as `Wire.fill`."""
        try:
            count: int = self._tls.read(len(memory), memory)  # type: ignore[assignment]
        except ssl.SSLWantReadError:
            return 0
        except ssl.SSLZeroReturnError:
            raise Truncated("TLS ended without our sealed close") from None
        except ssl.SSLError as error:
            raise IntegrityError(f"a TLS record did not open: {error.reason}") from None
        if not count:
            raise Truncated("TLS ended without our sealed close")
        return count

    def feed(self, heard: memoryview) -> None:
        """Bytes from the network."""
        self._in.write(heard)

    def write(self, plaintext: Buffer) -> None:
        """Encrypt all of it; `taken` gives what is to be sent."""
        view = memoryview(plaintext)
        while len(view):
            view = view[self._tls.write(view) :]

    def taken(self) -> bytes:
        """What is to be sent now."""
        return self._out.read()

    def peer_certificate(self) -> bytes:
        """The peer's own certificate, DER."""
        certificate = self._tls.getpeercert(binary_form=True)
        assert certificate is not None  # CERT_REQUIRED
        return certificate

    def suite(self) -> str:
        """Protocol and cipher, such as `TLSv1.3 TLS_AES_256_GCM_SHA384`."""
        cipher = self._tls.cipher()
        assert cipher is not None
        return f"{self._tls.version()} {cipher[0]}"


def _refused(error: ssl.SSLError) -> HandshakeError:
    return HandshakeError(
        f"TLS handshake failed: {error.reason or error}",
        fix="both sides need a certificate over their own key, in time, from an authority that the other trusts",
    )


class InsideTls:
    """The place of record keys where TLS has done the sealing: records are then only frames."""

    tag = 0

    def __init__(self) -> None:
        self.records = self.rekeys = 0
        self._why = ""
        forget_in_children(self)

    def seal(self, plaintext: Buffer, out: memoryview) -> None:
        """Copy to where TLS takes it from."""
        self._count()
        out[:] = flat(plaintext)

    def seal_two(self, first: Buffer, first_out: memoryview, second: Buffer, second_out: memoryview) -> None:
        """The same, twice."""
        self.seal(first, first_out)
        self.seal(second, second_out)

    def open(self, record: memoryview, out: memoryview) -> None:
        """It came out of TLS open; only its place may differ."""
        self._count()
        if record.obj is not out.obj:
            out[:] = record

    def _count(self) -> None:
        if self._why:
            raise ChannelDead(self._why)
        self.records += 1

    def drop(self, why: str) -> None:
        """Refuse from now on."""
        self._why = self._why or why


class TlsWire(ReadAhead):
    """Plaintext on this side, TLS records on the wire beneath."""

    def __init__(self, wire: Wire, tls: Tls) -> None:
        super().__init__()
        self._wire, self._tls, self._lock = wire, tls, threading.Lock()
        self._scratch = memoryview(bytearray(BATCH))

    @property
    def received(self) -> int:
        """Bytes on the wire beneath."""
        return self._wire.received

    @property
    def sent(self) -> int:
        """Bytes on the wire beneath."""
        return self._wire.sent

    @property
    def heard(self) -> float:
        """See `Wire`."""
        return self._wire.heard

    def _receive(self, memory: memoryview, deadline: float, *, whole: bool = False) -> int:
        while True:
            with self._lock:
                if count := self._tls.take(memory):
                    return count
            got = self._wire.take(self._scratch, deadline)
            with self._lock:
                self._tls.feed(self._scratch[:got])

    def write(self, piece: memoryview) -> None:
        """See `Wire.write`."""
        for at in range(0, len(piece), BATCH):
            with self._lock:
                self._tls.write(piece[at : at + BATCH])
                sealed = self._tls.taken()
            self._wire.write(memoryview(sealed))

    def close(self) -> None:
        """See `Wire.close`."""
        self._wire.close()


@dataclass(frozen=True, repr=False)
class TlsAgreement(Agreement):
    """An agreement whose wire is a TLS connection."""

    tls: Tls

    def over(self, wire: Wire) -> Wire:
        """See `Agreement.over`."""
        return TlsWire(wire, self.tls)
