"""Channels against plain TCP, stdlib TLS 1.3 and gRPC with mutual TLS: `python -m benchmarks.channel [--quick]`.

Two processes on loopback, all transports interleaved in one run; medians; ratios within each round. `bare` is the
least that AES-256-GCM over TCP can do in Python, without any protocol: what encryption costs on this machine. TLS
resumes no session, verifies both chains, and reads its certificates before the clock starts, as our channel its roster.
Every socket uses cubic, by a small preloaded library built with the system's C compiler, so that gRPC's are included.
`ceiling` is what no interpreter time at all would reach: 1 / (1 + AES-GCM time / TCP time), in the same run.
Not measured: more than two cores, real networks, processors without vector AES.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import socket
import ssl
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.transports import (
    DIGEST,
    GRPC_OPTIONS,
    Bare,
    Credentials,
    Far,
    GrpcStream,
    Plain,
    Sealed,
    Tls,
    Transport,
    fresh_peak,
    peak,
    tuned,
)
from channels import SealedChannel, connect
from channels.handshake import NoiseIK
from channels.primitives import (
    CIPHERS,
    HASHES,
    MLKEM768PrivateKey,
    X25519PrivateKey,
    check_kem_key,
    dh,
    encapsulate,
    hkdf,
)
from channels.suites import IKHFS_AESGCM, IKHFS_CHACHA

SIZES = {"64 KiB": 64 << 10, "1 MiB": 1 << 20, "16 MiB": 16 << 20}
NAMES = ("tcp", "bare", "sealed", "sealed ChaCha20", "tls", "grpc")
SUITES = {"sealed": NoiseIK((IKHFS_AESGCM,)), "sealed ChaCha20": NoiseIK((IKHFS_CHACHA,))}
PACED = 10_000_000_000 // 8  # bytes a second
SO_MAX_PACING_RATE = 47
SHIM = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
int socket(int family, int type, int protocol) {
    int (*real)(int, int, int) = dlsym(RTLD_NEXT, "socket");
    int made = real(family, type, protocol);
    if (made >= 0 && (family == AF_INET || family == AF_INET6) && (type & 0xff) == SOCK_STREAM)
        setsockopt(made, IPPROTO_TCP, TCP_CONGESTION, "cubic", 5);
    return made;
}
"""


class Near:
    """The measuring process, and its far end."""

    def __init__(self, folder: Path, *, paced: bool = False) -> None:
        self.credentials, self.paced = Credentials(folder), paced
        self.credentials.create()
        self.me, self.roster = self.credentials.side("near")
        command = [sys.executable, "-m", "benchmarks.channel", "--far", str(folder)]
        self.far = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.ports: dict[str, int] = self._answer()
        self.context = self.credentials.context(server=False)
        self.transports: dict[str, Transport] = {}

    def _order(self, do: str, **what: Any) -> None:
        assert self.far.stdin is not None
        print(json.dumps({"do": do, **what}), file=self.far.stdin, flush=True)

    def _answer(self) -> Any:
        assert self.far.stdout is not None
        return json.loads(self.far.stdout.readline())

    def meet(self, name: str) -> None:
        """One connection of that transport."""
        self._order("meet", name=name)
        self.transports[name] = self._dial(name)
        self._answer()

    def _dial(self, name: str) -> Transport:
        if name == "tcp":
            return Plain(self._tcp("tcp"))
        if name == "bare":
            return Bare(self._tcp("bare"))
        if name == "tls":
            return Tls(self.context.wrap_socket(self._tcp("tls"), server_hostname="localhost"))
        if name == "grpc":
            return self._grpc()
        return Sealed(self._channel(name))

    def _tcp(self, name: str) -> socket.socket:
        return self._pace(tuned(socket.create_connection(("127.0.0.1", self.ports[name]))))

    def _pace(self, sock: socket.socket) -> socket.socket:
        if self.paced:
            sock.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, struct.pack("Q", PACED))
        return sock

    def _channel(self, name: str) -> SealedChannel:
        address = f"127.0.0.1:{self.ports['sealed']}"
        channel = connect(address, self.me, self.roster, "far", digest=DIGEST, handshake=SUITES[name])
        self._pace(channel._wire._sock)  # type: ignore[attr-defined]
        return channel

    def _grpc(self) -> Transport:
        import queue

        import grpc

        ca, key, cert = self.credentials.pems()
        options = [*GRPC_OPTIONS, ("grpc.ssl_target_name_override", "localhost")]
        secure = grpc.ssl_channel_credentials(ca, key, cert)
        self.grpc = grpc.secure_channel(f"127.0.0.1:{self.ports['grpc']}", secure, options=options)
        out: queue.Queue[bytes] = queue.Queue(4)
        return GrpcStream(out, self.grpc.stream_stream("/bench/run")(iter(out.get, None)))

    def one_way(self, name: str, payload: memoryview, count: int) -> tuple[float, float]:
        """Seconds a byte on the wall, and CPU seconds a byte of both ends together."""
        transport = self.transports[name]
        self._order("sink", name=name, count=count)
        cpu, began = time.process_time(), time.perf_counter()
        for _ in range(count):
            transport.send(payload)
        transport.recv()
        wall, cpu = time.perf_counter() - began, time.process_time() - cpu
        return wall / count / len(payload), (cpu + self._answer()) / count / len(payload)

    def echo(self, name: str, payload: memoryview, count: int) -> float:
        """Median seconds of a round trip."""
        transport, trips = self.transports[name], []
        self._order("echo", name=name, count=count)
        for _ in range(count):
            began = time.perf_counter()
            transport.send(payload)
            transport.recv()
            trips.append(time.perf_counter() - began)
        self._answer()
        return statistics.median(trips)

    def handshake(self, name: str, count: int) -> list[float]:
        """Seconds from connect to the first byte back, on so many new connections."""
        self._order("greet", name=name, count=count)
        taken = [self._first_byte(name) for _ in range(count)]
        self._answer()
        return taken

    def _first_byte(self, name: str) -> float:
        began = time.perf_counter()
        if name == "sealed":
            with self._channel(name) as channel:
                channel.send(b"x")
                channel.recv()
                return time.perf_counter() - began
        sock: socket.socket | ssl.SSLSocket = self._tcp(name)
        if name == "tls":
            sock = self.context.wrap_socket(sock, server_hostname="localhost")
        with sock:
            sock.sendall(b"x")
            sock.recv(1)
            return time.perf_counter() - began

    def extra_memory(self, length: int) -> tuple[int, int]:
        """Peak bytes beyond one large message itself, of sender and receiver."""
        payload = memoryview(bytearray(length))
        self._order("swallow", name="sealed")
        before = fresh_peak()
        self.transports["sealed"].send(payload)
        return peak() - before, self._answer()

    def close(self) -> None:
        """End the far process."""
        assert self.far.stdin is not None
        self.far.stdin.close()
        self.far.kill()
        self.far.wait()


def measure(*, quick: bool) -> dict[str, Any]:
    """All figures, as a plain table: {row: {transport: value}}."""
    rounds, volume = (9, 24 << 20) if quick else (15, 64 << 20)
    table: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        near = Near(Path(folder))
        try:
            for name in NAMES:
                near.meet(name)
            for row, size in SIZES.items():
                table |= _size(near, row, size, rounds, volume)
            table["handshake, ms"] = _handshakes(near, rounds, 6 if quick else 15)
            table["handshake, its primitives alone, ms"] = {"sealed": 1e3 * _primitives()}
            length = (256 << 20) if quick else (1 << 30)
            sender, receiver = near.extra_memory(length)
            table[f"extra memory of {length >> 20} MiB, MiB"] = {"sender": sender / 2**20, "receiver": receiver / 2**20}
        finally:
            near.close()
    with tempfile.TemporaryDirectory() as folder:
        near = Near(Path(folder), paced=True)
        try:
            paced = ("tcp", "bare", "sealed", "tls")
            for name in paced:
                near.meet(name)
            table |= _size(near, "10 Gbit/s, 1 MiB", 1 << 20, rounds, volume, names=paced)
        finally:
            near.close()
    table["AES-GCM alone, GB/s"] = {str(size): 1 / _aes(size) / 1e9 for size in SIZES.values()}
    return table


def _size(
    near: Near, row: str, size: int, rounds: int, volume: int, names: tuple[str, ...] = NAMES
) -> dict[str, dict[str, float]]:
    payload = memoryview(os.urandom(min(size, 1 << 20)) * max(1, size >> 20))
    count = max(3, volume // size)
    wall: dict[str, list[float]] = {name: [] for name in names}
    cpu: dict[str, list[float]] = {name: [] for name in names}
    echo: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            seconds, both = near.one_way(name, payload, count)
            wall[name].append(seconds)
            cpu[name].append(both)
            if size <= 1 << 20:
                echo[name].append(near.echo(name, payload, 20))
    median = statistics.median
    table = {
        f"{row}, one way, GB/s": {name: 1e-9 / median(wall[name]) for name in names},
        f"{row}, one way, ratio to tcp": {name: _ratio(wall["tcp"], wall[name]) for name in names},
        f"{row}, one way, sealed over it": {name: _ratio(wall[name], wall["sealed"]) for name in names},
        f"{row}, CPU of both ends, ns/byte": {name: 1e9 * median(cpu[name]) for name in names},
        f"{row}, ceiling": {"sealed": 1 / (1 + 2 * _aes(size) / median(cpu["tcp"]))},
    }
    if size <= 1 << 20:
        table[f"{row}, echo, times tcp"] = {name: _ratio(echo[name], echo["tcp"]) for name in names}
    return table


def _ratio(above: list[float], below: list[float]) -> float:
    """The median of the ratios within each round: what the machine does meanwhile changes both alike."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def _handshakes(near: Near, rounds: int, count: int) -> dict[str, float]:
    taken: dict[str, list[float]] = {"tcp": [], "sealed": [], "tls": []}
    for _ in range(rounds):
        for name, times in taken.items():
            times += near.handshake(name, count)
    return {name: 1e3 * statistics.median(times) for name, times in taken.items()}


def _primitives() -> float:
    """Seconds of what IKhfs computes on both sides together: cryptography's primitives, and nothing else."""
    ours, theirs = X25519PrivateKey.generate(), X25519PrivateKey.generate().public_key().public_bytes_raw()
    times = []
    for _ in range(50):
        began = time.perf_counter()
        kem = MLKEM768PrivateKey.generate()
        _, ciphertext = encapsulate(check_kem_key(kem.public_key().public_bytes_raw()))
        kem.decapsulate(ciphertext)
        for _ in range(2):
            X25519PrivateKey.generate().public_key().public_bytes_raw()
        for _ in range(8):
            dh(ours, theirs)
        for _ in range(12):
            hkdf(HASHES["SHA256"], bytes(32), theirs, 2)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def _aes(size: int) -> float:
    """CPU seconds a byte of AES-256-GCM alone, in records of at most 1 MiB."""
    size = min(size, 1 << 20)
    aead, data, out = CIPHERS["AESGCM"].new(bytes(32)), bytes(size), bytearray(size + 16)
    count, times = max(4, (4 << 20) // size), []
    for _ in range(9):
        before = time.process_time()
        for _ in range(count):
            aead.encrypt_into(bytes(12), data, None, out)
        times.append((time.process_time() - before) / count / size)
    return statistics.median(times)


def with_cubic() -> None:
    """Start this program again with cubic on all its sockets, where there is a C compiler; else say so and go on."""
    compiler = shutil.which("cc")
    if "CHANNEL_BENCH" in os.environ or compiler is None:
        if compiler is None:
            print("no C compiler: sockets keep the system's congestion control", file=sys.stderr)
        return
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder) / "cubic.c", Path(folder) / "cubic.so"
        source.write_text(SHIM)
        subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
        environment = {**os.environ, "LD_PRELOAD": str(library), "CHANNEL_BENCH": "1"}
        command = [sys.executable, "-m", "benchmarks.channel", *sys.argv[1:]]
        sys.exit(subprocess.run(command, env=environment, check=False).returncode)


def markdown(table: dict[str, Any]) -> str:
    """The table for docs/performance.md."""
    lines = [f"| | {' | '.join(NAMES)} |", "|---" * (len(NAMES) + 1) + "|"]
    notes = []
    for row, values in table.items():
        if set(values) & set(NAMES):
            cells = [f"{values[name]:.2f}" if name in values else "-" for name in NAMES]
            lines.append(f"| {row} | {' | '.join(cells)} |")
        else:
            notes.append(f"- {row}: " + ", ".join(f"{name} {value:.1f}" for name, value in values.items()))
    return "\n".join([*lines, "", *notes])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="under two minutes, fewer rounds")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--far", metavar="FOLDER", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.far:
        Far(Credentials(Path(arguments.far))).serve()
        return
    with_cubic()
    load = os.getloadavg()[0]
    table = measure(quick=arguments.quick)
    if arguments.json:
        print(json.dumps(table, indent=1))
        return
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {load:.1f} at the start\n")
    print(markdown(table))


if __name__ == "__main__":
    main()
