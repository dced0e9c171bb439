"""Whole messages over plain TCP, stdlib TLS 1.3, a gRPC stream with mutual TLS, and our channel: one shape for all.

`Far` is the serving end of each, in a process of its own, told what to do on its standard input. Certificates are
P-256, as institutions use. Used by `benchmarks.channel`.
"""

from __future__ import annotations

import datetime
import json
import queue
import socket
import ssl
import struct
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from channels import Identity, Listener, Roster, SealedChannel
from channels.handshake import NoiseIK
from channels.primitives import CIPHERS, TAG
from channels.records import PIECE
from channels.suites import IKHFS_AESGCM, IKHFS_CHACHA

DIGEST = bytes(32)
LENGTH = struct.Struct(">Q")
NUMBERED = struct.Struct(">QQ")
NONCE = CIPHERS["AESGCM"].nonce
ANY_SUITE = NoiseIK((IKHFS_AESGCM, IKHFS_CHACHA))
GRPC_OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


class Transport(Protocol):
    """Whole messages over one connection."""

    def send(self, payload: memoryview) -> None: ...
    def recv(self) -> Any: ...


class Plain:
    """TCP as fast as Python does it: sendmsg, and recv_into on a buffer that is reused."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock, self.buffer = sock, memoryview(bytearray(16 << 20))

    def send(self, payload: memoryview) -> None:
        """A length and the payload, in one call where the kernel takes them."""
        sent = self.sock.sendmsg([LENGTH.pack(len(payload)), payload]) - LENGTH.size
        while sent < len(payload):
            sent += self.sock.send(payload[sent:])

    def recv(self) -> memoryview:
        """A view of the reused buffer."""
        (length,) = LENGTH.unpack(self._exactly(LENGTH.size))
        return self._exactly(length)

    def _exactly(self, length: int, flags: int = socket.MSG_WAITALL) -> memoryview:
        got = 0
        while got < length:
            got += self.sock.recv_into(self.buffer[got:length], 0, flags)
        return self.buffer[:length]


class Tls(Plain):
    """The same over stdlib TLS 1.3."""

    def send(self, payload: memoryview) -> None:
        """TLS has no sendmsg."""
        self.sock.sendall(LENGTH.pack(len(payload)))
        self.sock.sendall(payload)

    def _exactly(self, length: int, flags: int = 0) -> memoryview:
        return super()._exactly(length, flags)


class Bare:
    """The least that AES-256-GCM over TCP can do in Python: sealed headers and records, no protocol, one fixed key.

    What our channel loses against it is our own overhead; what it loses against TCP is what encryption costs here.
    """

    def __init__(self, sock: socket.socket) -> None:
        aead = CIPHERS["AESGCM"].new(bytes(32))
        self.sock, self.seal, self.open, self.sealed, self.opened = sock, aead.encrypt_into, aead.decrypt_into, 0, 0
        self.scratch, self.ring = memoryview(bytearray(PIECE + 64)), memoryview(bytearray(PIECE + 4096))
        self.memory, self.header = memoryview(bytearray(16 << 20)), memoryview(bytearray(16))
        self.start = self.end = 0

    def send(self, payload: memoryview) -> None:
        """A header and the first record in one call, then record by record."""
        at = self._seal(NUMBERED.pack(0, len(payload)), 0)
        for begin in range(0, len(payload), PIECE):
            self.sock.sendall(self.scratch[: self._seal(payload[begin : begin + PIECE], at)])
            at = 0

    def _seal(self, plain: bytes | memoryview, at: int) -> int:
        end = at + len(plain) + TAG
        self.seal(NONCE(0, self.sealed), plain, None, self.scratch[at:end])
        self.sealed += 1
        return end

    def recv(self) -> memoryview:
        """A view of the reused buffer."""
        self._open(self.header)
        _, length = NUMBERED.unpack(self.header)
        for begin in range(0, length, PIECE):
            self._open(self.memory[begin : min(begin + PIECE, length)])
        return self.memory[:length]

    def _open(self, out: memoryview) -> None:
        length, ring = len(out) + TAG, self.ring
        left = self.end - self.start
        if left < length and (not left or self.start + length > len(ring)):
            ring[:left] = ring[self.start : self.end]
            self.start, self.end = 0, left
        while self.end - self.start < length:
            self.end += self.sock.recv_into(ring[self.end :])
        self.open(NONCE(0, self.opened), ring[self.start : self.start + length], None, out)
        self.start += length
        self.opened += 1


class Sealed:
    """Our channel: every message is received into fresh memory of its own."""

    def __init__(self, channel: SealedChannel) -> None:
        self.channel = channel

    def send(self, payload: memoryview) -> None:
        """No meta."""
        self.channel.send(b"", payload)

    def recv(self) -> memoryview:
        """The payload."""
        return self.channel.recv().payload


class GrpcStream:
    """A bidirectional gRPC stream of raw bytes."""

    def __init__(self, out: queue.Queue[bytes], incoming: Iterator[bytes]) -> None:
        self.out, self.incoming = out, incoming

    def send(self, payload: memoryview) -> None:
        """gRPC takes bytes only."""
        self.out.put(bytes(payload))

    def recv(self) -> bytes:
        """The next message."""
        return next(self.incoming)


def tuned(sock: socket.socket) -> socket.socket:
    """Without delay."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


class Credentials:
    """Everything both processes need, in a folder: identities, a roster, and P-256 certificates of a small CA."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.paths = {name: str(folder / f"{name}.pem") for name in ("ca", "cert", "key")}

    def create(self) -> None:
        """Fill the folder."""
        near, far = Identity.generate("near"), Identity.generate("far")
        near.save(self.folder / "near.key")
        far.save(self.folder / "far.key")
        Roster.of([near.public, far.public], epoch=1, signer=near).save(self.folder / "roster.toml")
        ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
        for name, made in (
            ("ca", _certificate("ca", ca_key, ca_key, authority=True)),
            ("cert", _certificate("localhost", key, ca_key, authority=False)),
        ):
            Path(self.paths[name]).write_bytes(made.public_bytes(serialization.Encoding.PEM))
        form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        Path(self.paths["key"]).write_bytes(key.private_bytes(serialization.Encoding.PEM, *form))

    def side(self, name: str) -> tuple[Identity, Roster]:
        """One party's keys, and the roster."""
        near = Identity.load(self.folder / "near.key")
        return Identity.load(self.folder / f"{name}.key"), Roster.load(self.folder / "roster.toml", near.public)

    def context(self, *, server: bool) -> ssl.SSLContext:
        """Mutual TLS 1.3."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(self.paths["ca"])
        context.load_cert_chain(self.paths["cert"], self.paths["key"])
        return context

    def pems(self) -> tuple[bytes, bytes, bytes]:
        """Authority, key, certificate."""
        ca, key, cert = (Path(self.paths[name]).read_bytes() for name in ("ca", "key", "cert"))
        return ca, key, cert


def _certificate(name: str, key: Any, issuer_key: Any, *, authority: bool) -> x509.Certificate:
    def title(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
    builder = x509.CertificateBuilder(title("ca"), title(name), key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - day).not_valid_after(now + day)
    builder = builder.add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


class Far:
    """The serving process."""

    def __init__(self, credentials: Credentials) -> None:
        self.credentials = credentials
        me, roster = credentials.side("far")
        self.tcp, self.bare, self.tls = (socket.create_server(("127.0.0.1", 0)) for _ in range(3))
        self.context = credentials.context(server=True)
        self.sealed = Listener("127.0.0.1:0", me, roster, digest=DIGEST, handshake=ANY_SUITE)
        self.streams: queue.Queue[GrpcStream] = queue.Queue()
        self.transports: dict[str, Transport] = {}

    def serve(self) -> None:
        """Say the ports, then follow orders, a JSON line each, until standard input ends."""
        ports = {name: getattr(self, name).getsockname()[1] for name in ("tcp", "bare", "tls")}
        say({**ports, "grpc": self._serve_grpc(), "sealed": int(self.sealed.address.rpartition(":")[2])})
        for line in sys.stdin:
            order = json.loads(line)
            say(getattr(self, order.pop("do"))(**order))

    def meet(self, name: str) -> bool:
        """Accept one connection."""
        if name == "tcp":
            self.transports[name] = Plain(tuned(self.tcp.accept()[0]))
        elif name == "bare":
            self.transports[name] = Bare(tuned(self.bare.accept()[0]))
        elif name == "tls":
            self.transports[name] = Tls(self.context.wrap_socket(tuned(self.tls.accept()[0]), server_side=True))
        elif name == "grpc":
            self.transports[name] = self.streams.get(timeout=20)
        else:
            self.transports[name] = Sealed(self.sealed.accept(20))
        return True

    def _serve_grpc(self) -> int:
        import grpc

        def run(incoming: Iterator[bytes], context: Any) -> Iterator[bytes]:
            out: queue.Queue[bytes] = queue.Queue(4)
            self.streams.put(GrpcStream(out, incoming))
            return iter(out.get, None)

        handler = grpc.stream_stream_rpc_method_handler(run)
        self.server = grpc.server(ThreadPoolExecutor(4), options=GRPC_OPTIONS)
        self.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench", {"run": handler}),))
        ca, key, cert = self.credentials.pems()
        secure = grpc.ssl_server_credentials([(key, cert)], ca, require_client_auth=True)
        port: int = self.server.add_secure_port("127.0.0.1:0", secure)
        self.server.start()
        return port

    def sink(self, name: str, count: int) -> float:
        """Receive so many, say so on the same connection; CPU seconds."""
        transport, before = self.transports[name], time.process_time()
        for _ in range(count):
            transport.recv()
        transport.send(memoryview(b"k"))
        return time.process_time() - before

    def echo(self, name: str, count: int) -> bool:
        """Send back so many."""
        transport = self.transports[name]
        for _ in range(count):
            transport.send(memoryview(transport.recv()))
        return True

    def greet(self, name: str, count: int) -> bool:
        """Accept so many new connections and echo one byte on each."""
        for _ in range(count):
            if name == "sealed":
                with self.sealed.accept(20) as channel:
                    channel.send(channel.recv().meta)
                continue
            sock = tuned(getattr(self, name).accept()[0])
            if name == "tls":
                sock = self.context.wrap_socket(sock, server_side=True)
            with sock:
                sock.sendall(sock.recv(1))
        return True

    def swallow(self, name: str) -> int:
        """Receive one message; bytes of memory at the peak beyond the message itself."""
        before = fresh_peak()
        length = len(self.transports[name].recv())
        return peak() - before - length


def say(value: Any) -> None:
    """One line of JSON on standard output."""
    print(json.dumps(value), flush=True)


def peak() -> int:
    """Most resident bytes of this process since `fresh_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


def fresh_peak() -> int:
    """Forget the peak so far (proc(5), clear_refs): what is resident now, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak()
