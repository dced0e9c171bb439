"""X.509 for sites whose rules ask for it: requests, a small authority, certificates over a party's own Ed25519 key.

A certificate here proves nothing that the roster does not: the key in it must be the one the roster lists for that
name. So an authority may be the institution's own, or the small one below, and a mistake in it admits nobody new.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from channels.errors import KeyFileError
from channels.identity import Identity, check_name
from channels.keyfile import read_file, write_file
from channels.noise import Secretive

PEM = serialization.Encoding.PEM


def request(me: Identity) -> str:
    """A certificate signing request (PKCS 10, PEM) for a party's key and name, to hand to an authority."""
    name = me.public.name
    builder = x509.CertificateSigningRequestBuilder().subject_name(_title(name))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
    return builder.sign(me.signing, None).public_bytes(PEM).decode()


class Authority(Secretive):
    """A small certificate authority: one Ed25519 key and its self-signed certificate."""

    __slots__ = ("_key", "certificate")

    def __init__(self, key: Ed25519PrivateKey, certificate: x509.Certificate) -> None:
        self._key, self.certificate = key, certificate

    @classmethod
    def new(cls, name: str, *, days: float = 3650) -> Authority:
        """A fresh authority."""
        key = Ed25519PrivateKey.generate()
        builder = _builder(_title(check_name(name)), _title(name), key.public_key(), days)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        return cls(key, builder.sign(key, None))

    @property
    def pem(self) -> str:
        """Its certificate, for others to trust."""
        return self.certificate.public_bytes(PEM).decode()

    def sign(self, csr: str, *, days: float = 365) -> str:
        """The certificate (PEM) for a request; raises KeyFileError where it is not properly self-signed."""
        try:
            asked = x509.load_pem_x509_csr(csr.encode())
            proven = asked.is_signature_valid
        except ValueError as error:
            raise KeyFileError(f"not a signing request: {error}") from None
        key = asked.public_key()
        if not proven or not isinstance(key, Ed25519PublicKey):
            raise KeyFileError("the signing request is not signed by the Ed25519 key it asks for")
        name = common_name(asked.subject)
        builder = _builder(_title(name), self.certificate.subject, key, days)
        for extension, critical in (
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (_usage(signs_certificates=False), True),
            (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]), False),
            (x509.SubjectAlternativeName([x509.DNSName(name)]), False),
            (x509.SubjectKeyIdentifier.from_public_key(key), False),
            (x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), False),
        ):
            builder = builder.add_extension(extension, critical=critical)
        return builder.sign(self._key, None).public_bytes(PEM).decode()

    def save(self, path: str | Path) -> None:
        """Its private key and certificate in one file, mode 0600."""
        form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        write_file(Path(path), self._key.private_bytes(PEM, *form).decode() + self.pem, mode=0o600, exclusive=True)

    @classmethod
    def load(cls, path: str | Path) -> Authority:
        """Read what `save` wrote; raises KeyFileError."""
        text = read_file(Path(path), private=True).encode()
        try:
            key = serialization.load_pem_private_key(text, None)
            certificate = x509.load_pem_x509_certificate(text)
        except (ValueError, TypeError) as error:
            raise KeyFileError(f"not an authority's file: {error}") from None
        if not isinstance(key, Ed25519PrivateKey):
            raise KeyFileError("expected an Ed25519 authority")
        return cls(key, certificate)


def common_name(name: x509.Name) -> str:
    """The one common name in it; raises KeyFileError."""
    found = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    try:
        (attribute,) = found
        return check_name(str(attribute.value))
    except ValueError:
        raise KeyFileError(f"expected one party name as common name, got {len(found)}") from None


def _title(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _builder(subject: x509.Name, issuer: x509.Name, key: Ed25519PublicKey, days: float) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    builder = builder.serial_number(x509.random_serial_number())
    return builder.not_valid_before(now - timedelta(minutes=5)).not_valid_after(now + timedelta(days=days))


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
