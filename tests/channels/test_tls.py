"""TLS 1.3 with mutual X.509, probed by OpenSSL's own client: nothing older, nobody without a certificate, nobody whose
certificate is not over the key that the roster lists."""

import shutil
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID

from channels import (
    Channel,
    DigestMismatch,
    HandshakeError,
    Identity,
    IntegrityError,
    KeyFileError,
    Listener,
    Roster,
    Truncated,
    connect,
)
from channels.meeting import Side
from channels.tls import MutualTls
from channels.x509 import Authority, common_name, request
from tests.channels.talk import together

OPENSSL = shutil.which("openssl")
ANN, BEN, EVE = (Identity.generate(name) for name in ("ann", "ben", "eve"))
ROSTER = Roster.of([ANN.public, BEN.public], epoch=1, signer=ANN)
CA = Authority.new("authority")
CERT = {who.public.name: CA.sign(request(who)) for who in (ANN, BEN, EVE)}
DIGEST = bytes(32)


def tls(name: str) -> MutualTls:
    return MutualTls(CERT[name], CA.pem)


@pytest.fixture
def host() -> Iterator[Listener]:
    with Listener("127.0.0.1:0", BEN, ROSTER, digest=DIGEST, handshake=tls("ben")) as listener:
        yield listener


def dial(listener: Listener, handshake: MutualTls, me: Identity = ANN, digest: bytes = DIGEST) -> Channel:
    roster = ROSTER if me is ANN else Roster.of([me.public, BEN.public], epoch=1, signer=me)
    return connect(listener.address, me, roster, "ben", digest=digest, handshake=handshake, timeout=5)


@dataclass
class Files:
    """PEM files for s_client: a party's certificate and key, and the authority."""

    folder: Path

    def of(self, who: Identity, certificate: str) -> list[str]:
        form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        key = who.signing.private_bytes(serialization.Encoding.PEM, *form).decode()
        (self.folder / "both.pem").write_text(certificate + key)
        return ["-cert", str(self.folder / "both.pem"), "-key", str(self.folder / "both.pem")]


def s_client(listener: Listener, *options: str, say: bytes = b"") -> str:
    """What OpenSSL's client prints when it connects, says something and hangs up."""
    assert OPENSSL, "these tests need the openssl command"
    command = [OPENSSL, "s_client", "-connect", listener.address, "-ign_eof", *options]
    done = subprocess.run(command, input=say, capture_output=True, timeout=20, check=False)
    return (done.stdout + done.stderr).decode(errors="replace")


@pytest.mark.parametrize("version", ["-tls1", "-tls1_1", "-tls1_2"])
def test_nothing_below_tls_1_3(host: Listener, version: str) -> None:
    printed = s_client(host, version, "-cipher", "ALL:@SECLEVEL=0")
    assert "Cipher is (NONE)" in printed or "no protocols available" in printed
    if version == "-tls1_2":
        assert "alert protocol version" in printed


def test_no_session_without_a_certificate(host: Listener) -> None:
    printed = s_client(host, "-tls1_3")
    assert "certificate required" in printed
    with pytest.raises(Exception, match="nobody connected"):
        host.accept(0.1)
    assert "PEER_DID_NOT_RETURN_A_CERTIFICATE" in str(host.refusals[0])


@pytest.mark.parametrize("whose", ["a stranger's", "another authority's", "self-signed", "a stolen name"])
def test_no_session_with_a_certificate_from_outside_the_roster(host: Listener, whose: str, tmp_path: Path) -> None:
    other = Authority.new("other")
    imposter = Identity.generate("ann")
    who, certificate = {
        "a stranger's": (EVE, CERT["eve"]),
        "another authority's": (ANN, other.sign(request(ANN))),
        "self-signed": (ANN, self_signed(ANN)),
        "a stolen name": (imposter, CA.sign(request(imposter))),
    }[whose]
    s_client(host, "-tls1_3", *Files(tmp_path).of(who, certificate), say=bytes(400))
    with pytest.raises(Exception, match="nobody connected"):
        host.accept(0.1)
    reason = str(host.refusals[0])
    assert {"a stranger's": "lists no 'eve'", "a stolen name": "key is not the roster's"}.get(
        whose, "CERTIFICATE_VERIFY_FAILED"
    ) in reason


def self_signed(who: Identity) -> str:
    import datetime

    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, who.public.name)])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(name, name, who.signing.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
    return builder.sign(who.signing, None).public_bytes(serialization.Encoding.PEM).decode()


def test_a_proper_certificate_without_our_claims_is_no_session_either(host: Listener, tmp_path: Path) -> None:
    printed = s_client(host, "-tls1_3", *Files(tmp_path).of(ANN, CERT["ann"]), say=b"GET / HTTP/1.0\r\n\r\n" * 20)
    assert "New, TLSv1.3" in printed
    assert "claims are malformed" in str(host.refusals[0])


def test_both_sides_agree_on_a_binding_and_a_suite(host: Listener) -> None:
    bindings = set()
    for _ in range(2):
        with dial(host, tls("ann")) as near, host.accept(5) as far:
            assert near.binding == far.binding
            assert (near.peer, far.peer) == (BEN.public, ANN.public)
            assert near.facts.suite.startswith("TLSv1.3 TLS_AES_256")
            bindings.add(near.binding)
    assert len(bindings) == 2


def test_a_differing_run_is_named_on_both_sides(host: Listener) -> None:
    with pytest.raises(DigestMismatch, match="ben"):
        dial(host, tls("ann"), digest=b"1" * 32)
    with pytest.raises(Exception, match="ann: it was started with run"):
        host.accept(0.1)


@pytest.mark.parametrize(
    ("listed", "said"),
    [((ANN, BEN), "lists no 'eve'"), ((ANN, BEN, EVE), "expected ben, but the certificate is eve's")],
    ids=["a stranger", "another party"],
)
def test_a_responder_with_another_certificate_is_not_believed(listed: tuple[Identity, ...], said: str) -> None:
    """Eve listens where Ben should be, with a certificate of the same authority. No socket, no clock."""
    near = Side(ANN, Roster.of([party.public for party in listed], epoch=1, signer=ANN), DIGEST)
    far = Side(EVE, Roster.of([EVE.public, ANN.public], epoch=1, signer=EVE), DIGEST)
    with pytest.raises(HandshakeError, match=said):
        together(tls("ann").initiate(near, BEN.public), tls("eve").respond(far))


def test_a_certificate_over_another_key_is_refused_before_dialling(host: Listener) -> None:
    with pytest.raises(KeyFileError, match="over this party's own key"):
        dial(host, tls("eve"))


def test_an_end_of_tls_without_our_goodbye_is_truncation(host: Listener) -> None:
    """close_notify is not authenticated as our close: whoever holds the socket could send a TLS end, not ours."""
    near, far = dial(host, tls("ann")), host.accept(5)
    wire = near._wire  # type: ignore[attr-defined]
    with pytest.raises(ssl.SSLWantReadError):
        wire._tls._tls.unwrap()
    wire._wire.write(memoryview(wire._tls.taken()))
    with pytest.raises(Truncated, match="TLS ended without our sealed close"):
        far.recv(5)
    near.abandon()


def test_a_changed_tls_record_poisons_the_channel(host: Listener) -> None:
    near, far = dial(host, tls("ann")), host.accept(5)
    wire = near._wire._wire  # type: ignore[attr-defined]
    send = wire.write
    wire.write = lambda piece: send(memoryview(bytes(piece[:-1]) + bytes([piece[-1] ^ 1])))
    near.send(b"meta", b"payload")
    with pytest.raises(IntegrityError):
        far.recv(5)
    with pytest.raises(Exception, match="ended earlier"):
        far.recv(5)
    near.abandon()


def test_the_private_key_leaves_no_file_behind(host: Listener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with dial(host, tls("ann")), host.accept(5):
        assert list(tmp_path.iterdir()) == []


# -- certificates --------------------------------------------------------------------------------------------------


def test_certificates_verify_with_openssl(tmp_path: Path) -> None:
    assert OPENSSL
    (tmp_path / "ca.pem").write_text(CA.pem)
    (tmp_path / "cert.pem").write_text(CERT["ann"])
    command = [OPENSSL, "verify", "-x509_strict", "-CAfile", str(tmp_path / "ca.pem"), str(tmp_path / "cert.pem")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.endswith("OK\n")


def test_a_request_holds_name_and_key_and_is_readable_by_openssl(tmp_path: Path) -> None:
    assert OPENSSL
    (tmp_path / "csr.pem").write_text(request(ANN))
    command = [OPENSSL, "req", "-in", str(tmp_path / "csr.pem"), "-verify", "-noout", "-text"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "CN = ann" in printed.stdout + printed.stderr
    assert "ED25519" in printed.stdout
    assert "verify OK" in printed.stdout + printed.stderr


@pytest.mark.parametrize("wrong", ["not a request", "another key", "no name"])
def test_requests_are_checked(wrong: str) -> None:
    text = request(ANN)
    if wrong == "not a request":
        text = CA.pem
    elif wrong == "another key":
        asked = x509.load_pem_x509_csr(text.encode())
        builder = x509.CertificateSigningRequestBuilder().subject_name(asked.subject)
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec

        curve = ec.generate_private_key(ec.SECP256R1())
        text = builder.sign(curve, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()
    else:
        empty = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        text = empty.sign(Ed25519PrivateKey.generate(), None).public_bytes(serialization.Encoding.PEM).decode()
    with pytest.raises(KeyFileError):
        CA.sign(text)


def test_an_authority_comes_back_from_its_file(tmp_path: Path) -> None:
    CA.save(tmp_path / "ca.key")
    again = Authority.load(tmp_path / "ca.key")
    assert again.pem == CA.pem
    assert common_name(x509.load_pem_x509_certificate(again.sign(request(ANN)).encode()).subject) == "ann"
    (tmp_path / "ca.key").chmod(0o644)
    with pytest.raises(KeyFileError, match="chmod"):
        Authority.load(tmp_path / "ca.key")
    assert repr(CA) == "<Authority>"
