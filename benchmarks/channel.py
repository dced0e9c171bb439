"""Channels against plain TCP, stdlib TLS 1.3 and gRPC with mutual TLS: `python -m benchmarks.channel [--quick]`.

Two processes on loopback, everything interleaved in one run, medians. Each figure is a ratio to plain TCP (sendmsg and
recv_into on a reused buffer) in the same run. All sockets use cubic: where the system allows it, the run moves into a
network namespace of its own with that default, so that gRPC's sockets are included.
Not measured: more than two cores, real networks, processors without vector AES.
"""

from __future__ import annotations

import datetime
import json
import resource
import socket
import ssl
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from channels import Identity, Listener, Roster, connect
from channels.suites import IKHFS_AESGCM, IKHFS_CHACHA

KIB, MIB = 1 << 10, 1 << 20
SIZES = {"64 KiB": 64 * KIB, "1 MiB": MIB, "16 MiB": 16 * MIB}
DIGEST = bytes(32)
LENGTH = struct.Struct(">Q")


class Transport(Protocol):
    """Whole messages over one connection."""

    def send(self, payload: memoryview) -> None: ...
    def recv(self) -> Any: ...


class Plain:
    """Plain TCP as fast as Python does it, or the same code over stdlib TLS."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock, self.buffer = sock, memoryview(bytearray(16 * MIB))

    def send(self, payload: memoryview) -> None:
        if isinstance(self.sock, ssl.SSLSocket):
            self.sock.sendall(LENGTH.pack(len(payload)))
            self.sock.sendall(payload)
            return
        sent = self.sock.sendmsg([LENGTH.pack(len(payload)), payload]) - LENGTH.size
        while sent < len(payload):
            sent += self.sock.send(payload[sent:])

    def recv(self) -> memoryview:
        (length,) = LENGTH.unpack(self._exactly(LENGTH.size))
        return self._exactly(length)

    def _exactly(self, length: int) -> memoryview:
        got = 0
        flags = 0 if isinstance(self.sock, ssl.SSLSocket) else socket.MSG_WAITALL
        while got < length:
            count = self.sock.recv_into(self.buffer[got:length], 0, flags)
            if not count:
                raise ConnectionError("peer gone")
            got += count
        return self.buffer[:length]


class Sealed:
    """Our channel; every message is received into memory of its own."""

    def __init__(self, channel: Any) -> None:
        self.channel = channel

    def send(self, payload: memoryview) -> None:
        self.channel.send(b"", payload)

    def recv(self) -> memoryview:
        payload: memoryview = self.channel.recv().payload
        return payload


class Stream:
    """A bidirectional gRPC stream of raw bytes."""

    def __init__(self, out: Any, incoming: Iterator[bytes]) -> None:
        self.out, self.incoming = out, incoming

    def send(self, payload: memoryview) -> None:
        self.out.put(bytes(payload))

    def recv(self) -> bytes:
        return next(self.incoming)


def tuned(sock: socket.socket) -> socket.socket:
    """Cubic, and no delay."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")
    return sock


class Credentials:
    """Everything both processes need, in a folder: identities, a roster, and P-256 certificates of a small CA."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca, self.cert, self.key = (str(folder / name) for name in ("ca.pem", "cert.pem", "key.pem"))

    def create(self) -> None:
        near, far = Identity.generate("near"), Identity.generate("far")
        near.save(self.folder / "near.key")
        far.save(self.folder / "far.key")
        Roster.of([near.public, far.public], epoch=1, signer=near).save(self.folder / "roster.toml")
        ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
        ca = _certificate("ca", ca_key, "ca", ca_key, authority=True)
        cert = _certificate("localhost", key, "ca", ca_key, authority=False)
        for path, certificate in ((self.ca, ca), (self.cert, cert)):
            Path(path).write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        Path(self.key).write_bytes(key.private_bytes(serialization.Encoding.PEM, *form))

    def side(self, name: str) -> tuple[Identity, Roster]:
        near = Identity.load(self.folder / "near.key")
        return Identity.load(self.folder / f"{name}.key"), Roster.load(self.folder / "roster.toml", near.public)

    def context(self, server: bool) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(self.ca)
        context.load_cert_chain(self.cert, self.key)
        return context

    def pems(self) -> tuple[bytes, bytes, bytes]:
        ca, key, cert = (Path(path).read_bytes() for path in (self.ca, self.key, self.cert))
        return ca, key, cert


def _certificate(name: str, key: Any, issuer: str, issuer_key: Any, *, authority: bool) -> x509.Certificate:
    def title(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder().subject_name(title(name)).issuer_name(title(issuer)).public_key(key.public_key())
    )
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(days=1))
    builder = builder.not_valid_after(now + datetime.timedelta(days=1))
    builder = builder.add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


# -- the two ends of each transport --------------------------------------------------------------------------------


class Far:
    """The serving process: listens on every transport and does what it is told on standard input."""

    def __init__(self, credentials: Credentials) -> None:
        self.credentials = credentials
        me, roster = credentials.side("far")
        self.plain = tuned(socket.create_server(("127.0.0.1", 0)))
        self.tls = tuned(socket.create_server(("127.0.0.1", 0)))
        suites = (IKHFS_AESGCM, IKHFS_CHACHA)
        self.sealed = Listener("127.0.0.1:0", me, roster, digest=DIGEST, suites=suites)
        self.transports: dict[str, Transport] = {}

    def serve(self) -> None:
        ports = {"tcp": self.plain.getsockname()[1], "tls": self.tls.getsockname()[1]}
        ports["sealed"] = int(self.sealed.address.rpartition(":")[2])
        ports["grpc"] = self._serve_grpc()
        answer(ports)
        for line in sys.stdin:
            order = json.loads(line)
            answer(getattr(self, order.pop("do"))(**order))

    def meet(self, name: str) -> bool:
        self.transports[name] = self._accept(name)
        return True

    def _accept(self, name: str) -> Transport:
        if name == "tcp":
            return Plain(tuned(self.plain.accept()[0]))
        if name == "tls":
            return Plain(self.credentials.context(server=True).wrap_socket(self.tls.accept()[0], server_side=True))
        if name == "grpc":
            return self._grpc_stream.get(timeout=10)
        return Sealed(self.sealed.accept(10))

    def _serve_grpc(self) -> int:
        try:
            import grpc
        except ImportError:
            return 0
        import queue
        from concurrent.futures import ThreadPoolExecutor

        self._grpc_stream: Any = queue.Queue()

        def run(incoming: Iterator[bytes], context: Any) -> Iterator[bytes]:
            out: Any = queue.Queue(4)
            self._grpc_stream.put(Stream(out, incoming))
            return iter(out.get, None)

        handler = grpc.stream_stream_rpc_method_handler(run)
        server = grpc.server(ThreadPoolExecutor(4), options=GRPC_OPTIONS)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench", {"run": handler}),))
        ca, key, cert = self.credentials.pems()
        secure = grpc.ssl_server_credentials([(key, cert)], ca, require_client_auth=True)
        port: int = server.add_secure_port("127.0.0.1:0", secure)
        server.start()
        self._grpc_server = server
        return port

    def sink(self, name: str, count: int) -> float:
        transport = self.transports[name]
        before = time.process_time()
        for _ in range(count):
            transport.recv()
        transport.send(memoryview(b"k"))
        return time.process_time() - before

    def echo(self, name: str, count: int) -> bool:
        transport = self.transports[name]
        for _ in range(count):
            transport.send(memoryview(transport.recv()))
        return True

    def greet(self, name: str, count: int) -> bool:
        """Accept and answer one byte, so many times."""
        for _ in range(count):
            if name == "tls":
                sock = self.context.wrap_socket(tuned(self.tls.accept()[0]), server_side=True)
                sock.sendall(sock.recv(1))
                sock.close()
            elif name == "tcp":
                with self.plain.accept()[0] as plain:
                    plain.sendall(plain.recv(1))
            else:
                with self.sealed.accept(10) as channel:
                    channel.send(channel.recv().meta)
        return True

    @property
    def context(self) -> ssl.SSLContext:
        self._context: ssl.SSLContext
        if not hasattr(self, "_context"):
            self._context = self.credentials.context(server=True)
        return self._context

    def swallow(self, name: str) -> int:
        """Receive one big message; the memory it took beyond itself."""
        before = peak()
        payload = self.transports[name].recv()
        extra = peak() - before - len(payload)
        self.transports[name].send(memoryview(b"k"))
        return extra


GRPC_OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


class Near:
    """The measuring process."""

    def __init__(self, folder: Path, pacing: int | None) -> None:
        self.credentials, self.pacing = Credentials(folder), pacing
        self.credentials.create()
        me, roster = self.credentials.side("near")
        self.me, self.roster = me, roster
        command = [sys.executable, "-m", "benchmarks.channel", "--far", str(folder)]
        self.far = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.ports: dict[str, int] = self._answer()
        self.transports: dict[str, Transport] = {}

    def order(self, do: str, **what: Any) -> None:
        assert self.far.stdin is not None
        self.far.stdin.write(json.dumps({"do": do, **what}) + "\n")
        self.far.stdin.flush()

    def _answer(self) -> Any:
        assert self.far.stdout is not None
        return json.loads(self.far.stdout.readline())

    def meet(self, name: str) -> None:
        self.order("meet", name=name)
        self.transports[name] = self._dial(name)
        self._answer()

    def _tcp(self, port: int) -> socket.socket:
        sock = tuned(socket.create_connection(("127.0.0.1", port)))
        if self.pacing:
            sock.setsockopt(socket.SOL_SOCKET, 47, struct.pack("Q", self.pacing))  # SO_MAX_PACING_RATE
        return sock

    def _dial(self, name: str) -> Transport:
        if name == "tcp":
            return Plain(self._tcp(self.ports["tcp"]))
        if name == "tls":
            sock = self._tcp(self.ports["tls"])
            return Plain(self.credentials.context(server=False).wrap_socket(sock, server_hostname="localhost"))
        if name == "grpc":
            return self._dial_grpc()
        return Sealed(self._channel(name))

    def _channel(self, name: str) -> Any:
        suites = {"sealed": (IKHFS_AESGCM,), "sealed ChaCha": (IKHFS_CHACHA,)}[name]
        address = f"127.0.0.1:{self.ports['sealed']}"
        channel = connect(address, self.me, self.roster, "far", digest=DIGEST, suites=suites)
        tuned(channel._wire._sock)  # type: ignore[attr-defined]
        if self.pacing:
            channel._wire._sock.setsockopt(socket.SOL_SOCKET, 47, struct.pack("Q", self.pacing))  # type: ignore[attr-defined]
        return channel

    def _dial_grpc(self) -> Transport:
        import queue

        import grpc

        ca, key, cert = self.credentials.pems()
        secure = grpc.ssl_channel_credentials(ca, key, cert)
        options = [*GRPC_OPTIONS, ("grpc.ssl_target_name_override", "localhost")]
        self._grpc_channel = grpc.secure_channel(f"127.0.0.1:{self.ports['grpc']}", secure, options=options)
        out: Any = queue.Queue(4)
        return Stream(out, self._grpc_channel.stream_stream("/bench/run")(iter(out.get, None)))

    def one_way(self, name: str, payload: memoryview, count: int) -> tuple[float, float, float]:
        """Seconds for count messages, and CPU seconds of sender and receiver."""
        transport = self.transports[name]
        self.order("sink", name=name, count=count)
        cpu, began = time.process_time(), time.perf_counter()
        for _ in range(count):
            transport.send(payload)
        transport.recv()
        seconds = time.perf_counter() - began
        return seconds, time.process_time() - cpu, self._answer()

    def echo(self, name: str, payload: memoryview, count: int) -> float:
        """Median seconds of a round trip."""
        transport = self.transports[name]
        self.order("echo", name=name, count=count)
        trips = []
        for _ in range(count):
            began = time.perf_counter()
            transport.send(payload)
            transport.recv()
            trips.append(time.perf_counter() - began)
        self._answer()
        return statistics.median(trips)

    def handshakes(self, name: str, count: int) -> list[float]:
        """Seconds from connect to the first byte back, for count new connections."""
        self.order("greet", name=name, count=count)
        context = self.credentials.context(server=False)
        return [self._handshake(name, context) for _ in range(count) if True] if self._answer_later(count) else []

    def _answer_later(self, count: int) -> bool:
        return count > 0

    def _handshake(self, name: str, context: ssl.SSLContext) -> float:
        began = time.perf_counter()
        if name == "sealed":
            with self._channel(name) as channel:
                channel.send(b"x")
                channel.recv()
                return time.perf_counter() - began
        sock = self._tcp(self.ports["tls" if name == "tls" else "tcp"])
        if name == "tls":
            sock = context.wrap_socket(sock, server_hostname="localhost")
        with sock:
            sock.sendall(b"x")
            sock.recv(1)
            return time.perf_counter() - began

    def close(self) -> None:
        assert self.far.stdin is not None
        self.far.stdin.close()
        self.far.kill()
        self.far.wait()


def answer(value: Any) -> None:
    print(json.dumps(value), flush=True)


def peak() -> int:
    """Highest resident bytes of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB
