"""The ways to take a split step between processes, one shape for all; used by `benchmarks.step`.

Every end of a way is made from the same case and asked for blocks of steps on the same rows. Ours is the party program
under `serve`, as `secsplit join` drives it: over sessions on sealed records, on TLS 1.3, and over plain TCP with the
same messages and framing. The peers are what a practitioner would write: gloo's send and recv (plaintext), and a gRPC
call with mutual TLS and safetensors.
"""

from __future__ import annotations

import hashlib
import os
import socket
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from benchmarks.transports import GRPC_OPTIONS, Credentials, tuned
from channels import Frame, Listener, PeerClosed, SessionListener, open_session
from channels.dial import NOISE_IK
from channels.tls import MutualTls
from channels.x509 import Authority, request
from secsplit.drive import serve
from secsplit.ledger import Ledger
from secsplit.links import ChannelInbox, ChannelLink
from secsplit.models import build
from secsplit.models.spec import ModelSpec
from secsplit.party import Party, Shard
from secsplit.run import Run, parse
from secsplit.schedule import Turn
from secsplit.steps import News, Send
from secsplit.topologies import named
from secsplit.transcript import Transcript

DIGEST = bytes(32)
PREFIX = struct.Struct(">QI")
PATIENCE = 60.0  # seconds


@dataclass(frozen=True)
class Case:
    """A network, where it is cut, and its mini-batches; steps: so many a block; clients: in flight at once."""

    name: str
    model: str
    cut: str
    batch: int
    shape: tuple[int, ...]
    steps: int
    clients: int = 1
    micro: int = 1
    staleness: int = 0
    stem: str = "imagenet"

    @cached_property
    def run(self) -> Run:
        """One epoch is one block."""
        clients = {f"client-{i + 1}": {"role": "client"} for i in range(self.clients)}
        tables = {
            "method": {"name": "splitfed-v1" if self.clients > 1 else "sl-am"},
            "parties": {**clients, "server": {"role": "server"}},
            "train": {
                "batch_size": self.batch,
                "evaluate_every": 0,
                "micro_batches": self.micro,
                "staleness": self.staleness,
            },
        }
        return Run.of(parse(tables))

    def modules(self) -> dict[str, nn.Module]:
        """The two segments, the same weights in every process."""
        spec = ModelSpec(name=self.model, cut=(self.cut,), stem=self.stem, normalisation="group")
        return build(spec, named("vanilla"), {"x": torch.Size(self.shape)}, {"y": 10}, seed=1)

    def records(self) -> tuple[Tensor, Tensor]:
        """The same for every client, for only the time of a step matters."""
        coins = torch.Generator().manual_seed(0)
        n = self.steps * self.batch
        return torch.randn(n, *self.shape, generator=coins), torch.randint(0, 10, (n,), generator=coins)

    def rows(self) -> list[Tensor]:
        """Of one client's steps, as the party program takes them."""
        sizes = {cast: {"train": self.steps * self.batch, "test": 1} for cast in range(self.clients)}
        schedule = self.run.schedule(sizes)
        return [schedule.rows(event) for event in schedule if isinstance(event, Turn) and event.cast == 0]


class Clock:
    """Wall and CPU seconds of this process from the end of the first step of a block to the end of its last."""

    def __init__(self) -> None:
        self.marks: list[tuple[float, float]] = []

    def tick(self) -> None:
        """A step is over."""
        self.marks.append((time.perf_counter(), time.process_time()))

    @property
    def spent(self) -> tuple[float, float, int]:
        """(wall seconds, CPU seconds, steps)."""
        (wall, cpu), (last_wall, last_cpu) = self.marks[0], self.marks[-1]
        return last_wall - wall, last_cpu - cpu, len(self.marks) - 1


def sgd(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9)


def fingerprint(module: nn.Module) -> str:
    """Of all its weights, to the bit."""
    return hashlib.blake2b(save(dict(module.state_dict())), digest_size=8).hexdigest()


class PlainChannel:
    """A channel's send and recv over plain TCP: no keys, every message received into fresh memory."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = tuned(sock)

    def send(self, meta: bytes, *payload: Any) -> None:
        """In one call where the kernel takes all of it."""
        parts = [memoryview(part).cast("B") for part in payload]
        left = [memoryview(PREFIX.pack(sum(map(len, parts)), len(meta))), memoryview(meta), *parts]
        while left:
            sent = self.sock.sendmsg(left)
            while left and sent >= len(left[0]):
                sent -= len(left.pop(0))
            if left and sent:
                left[0] = left[0][sent:]

    def recv(self) -> Frame:
        """The next message."""
        payload, meta = PREFIX.unpack(self._exactly(PREFIX.size))
        return Frame(bytes(self._exactly(meta)), self._exactly(payload))

    def _exactly(self, length: int) -> memoryview:
        buffer, got = memoryview(torch.empty(length, dtype=torch.uint8).numpy()), 0
        while got < length:
            count = self.sock.recv_into(buffer[got:], 0, socket.MSG_WAITALL)
            if not count:
                raise PeerClosed("closed")
            got += count
        return buffer

    def close(self) -> None:
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()


def certify(folder: Path, credentials: Credentials) -> None:
    """Certificates of the roster's own keys, for sessions over TLS."""
    authority = Authority.new("authority")
    (folder / "authority.pem").write_text(authority.pem)
    for name in ("near", "far"):
        (folder / f"{name}.crt").write_text(authority.sign(request(credentials.side(name)[0])))


class End:
    """One process's end of all ways: the server's ("far"), or a client's ("near")."""

    def __init__(self, party: str, credentials: Credentials) -> None:
        self.party, self.credentials = party, credentials
        self.me, self.roster = credentials.side("far" if party == "server" else "near")
        self.links: dict[str, tuple[dict[str, ChannelLink], ChannelInbox]] = {
            way: ({}, ChannelInbox(PATIENCE)) for way in ("sealed", "tls", "plain")
        }
        self.clock = Clock()

    def handshake(self, way: str) -> Any:
        """Our own, or TLS's."""
        if way == "sealed":
            return NOISE_IK
        folder, name = self.credentials.folder, "far" if self.party == "server" else "near"
        return MutualTls((folder / f"{name}.crt").read_text(), (folder / "authority.pem").read_text())

    # meeting

    def listen(self) -> dict[str, Any]:
        """At the server: where each way is met."""
        self.listeners = {
            way: SessionListener(
                Listener("127.0.0.1:0", self.me, self.roster, digest=DIGEST, handshake=self.handshake(way)),
                silence=PATIENCE,
            )
            for way in ("sealed", "tls")
        }
        self.tcp = socket.create_server(("127.0.0.1", 0))
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.gloo_port = free.getsockname()[1]
        ports = {way: listener.address for way, listener in self.listeners.items()}
        return {**ports, "plain": self.tcp.getsockname()[1], "gloo": self.gloo_port, "grpc": self._serve_grpc()}

    def accept(self, client: str) -> None:
        """At the server: that client on all ways, in its order."""
        for way, listener in self.listeners.items():
            self._linked(way, client, listener.accept(PATIENCE))
        self._linked("plain", client, PlainChannel(self.tcp.accept()[0]))
        if client == "client-1":
            self._gloo(self.gloo_port, 0)

    def dial(self, ports: Mapping[str, Any]) -> None:
        """At a client: the server on all ways."""
        for way in ("sealed", "tls"):
            session = open_session(
                ports[way], self.me, self.roster, "far", digest=DIGEST, handshake=self.handshake(way), silence=PATIENCE
            )
            self._linked(way, "server", session)
        self._linked("plain", "server", PlainChannel(socket.create_connection(("127.0.0.1", ports["plain"]))))
        if self.party == "client-1":
            self._gloo(ports["gloo"], 1)
            self._dial_grpc(ports["grpc"])

    def _linked(self, way: str, peer: str, channel: Any) -> None:
        links, inbox = self.links[way]
        links[peer] = ChannelLink(peer, channel, inbox)

    def _gloo(self, port: int, rank: int) -> None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)

    def _serve_grpc(self) -> int:
        import grpc

        handler = grpc.unary_unary_rpc_method_handler(lambda asked, context: self.answer(asked))
        self.grpc = grpc.server(ThreadPoolExecutor(1), options=GRPC_OPTIONS)
        self.grpc.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench", {"step": handler}),))
        ca, key, cert = self.credentials.pems()
        secure = grpc.ssl_server_credentials([(key, cert)], ca, require_client_auth=True)
        port: int = self.grpc.add_secure_port("127.0.0.1:0", secure)
        self.grpc.start()
        return port

    def _dial_grpc(self, port: int) -> None:
        import grpc

        ca, key, cert = self.credentials.pems()
        secure = grpc.ssl_channel_credentials(ca, key, cert)
        self.call = grpc.secure_channel(f"localhost:{port}", secure, options=GRPC_OPTIONS).unary_unary("/bench/step")

    # steps

    def prepare(self, case: Case, folder: Path) -> None:
        """Fresh weights for every way."""
        self.case, x, y = case, *case.records()
        self.x, self.y, self.rows = x, y, case.rows()
        self.plain = {way: case.modules() for way in ("unsplit", "gloo", "grpc")}
        self.optimizers = {
            way: {segment: sgd(module.parameters()) for segment, module in modules.items()}
            for way, modules in self.plain.items()
        }
        self.parties = {way: self._party(accounted=way == "recorded") for way in ("sealed", "tls", "plain", "recorded")}
        folder = folder / case.name.replace(" ", "-").replace(",", "") / self.party
        self.transcript = Transcript(self.party, folder=folder)
        self.ledger = Ledger(folder / "ledger.jsonl", party=self.party, run="0" * 16)

    def _party(self, *, accounted: bool) -> Party:
        modules, run = self.case.modules(), self.case.run
        if self.party == "server":
            empty = {cast: Shard({}, {}) for cast in range(self.case.clients)}
            return Party(run, "server", {"top": modules["top"]}, empty, sgd, accounted=accounted)
        mine = Shard(
            {"train": {"x": self.x}, "test": {"x": self.x[:1]}}, {"train": {"y": self.y}, "test": {"y": self.y[:1]}}
        )
        cast = run.casts_of(self.party)[0]
        return Party(run, self.party, {"bottom": modules["bottom"]}, {cast: mine}, sgd, accounted=accounted)

    def block(self, way: str) -> tuple[float, float, int]:
        """Take the case's steps one way; what they took here."""
        self.clock = Clock()
        if way in self.parties:
            self._ours(way)
        elif way == "grpc" and self.party == "server":
            while len(self.clock.marks) < self.case.steps:
                time.sleep(0.002)
        else:
            ends: Mapping[str, Callable[[Tensor], None]] = {
                "unsplit": self._unsplit,
                "gloo": self._gloo_server if self.party == "server" else self._gloo_client,
                "grpc": self._grpc_client,
            }
            for rows in self.rows:
                ends[way](rows)
                self.clock.tick()
        return self.clock.spent

    def weights(self, way: str) -> str:
        """A fingerprint of this end's weights."""
        segment = "top" if self.party == "server" else "bottom"
        modules = self.parties[way].modules if way in self.parties else self.plain[way]
        return fingerprint(modules[segment])

    def top(self) -> str:
        """Of the unsplit network's second part."""
        return fingerprint(self.plain["unsplit"]["top"])

    def _ours(self, way: str) -> None:
        party = self.parties[way]
        party.position = None  # begin anew
        links, inbox = self.links["sealed" if way == "recorded" else way]
        mine = {peer: link for peer, link in links.items() if peer in party.run.file.parties}

        def observe(_: Party, news: News) -> None:
            if news.what == "turn":
                self.clock.tick()

        def charge(_: Party, send: Send) -> Callable[[], None]:
            self.ledger.charge(send.release, send.message, send.to, settle=False)  # type: ignore[arg-type]
            return self.ledger.settle

        if way == "recorded":
            serve(party, mine, inbox, transcript=self.transcript, observe=observe, charge=charge)
        else:
            serve(party, mine, inbox, observe=observe)

    def _begin(self, way: str) -> tuple[Mapping[str, nn.Module], Iterator[torch.optim.Optimizer]]:
        segments = {"unsplit": ("bottom", "top")}.get(way, ("top",) if self.party == "server" else ("bottom",))
        optimizers = [self.optimizers[way][segment] for segment in segments]
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        return self.plain[way], iter(optimizers)

    def _unsplit(self, rows: Tensor) -> None:
        modules, optimizers = self._begin("unsplit")
        nn.functional.cross_entropy(modules["top"](modules["bottom"](self.x[rows])), self.y[rows]).backward()
        for optimizer in optimizers:
            optimizer.step()

    def _served(self, way: str, h: Tensor, y: Tensor) -> tuple[Tensor, torch.optim.Optimizer]:
        """The server's part: the cut gradient, and the optimizer, which steps once that is sent."""
        modules, optimizers = self._begin(way)
        leaf = h.requires_grad_()
        nn.functional.cross_entropy(modules["top"](leaf), y).backward()
        assert leaf.grad is not None
        return leaf.grad, next(optimizers)

    def _gloo_server(self, rows: Tensor) -> None:
        h = torch.empty(len(rows), *self.cut_shape)
        y = torch.empty(len(rows), dtype=torch.int64)
        torch.distributed.recv(h, 1)
        torch.distributed.recv(y, 1)
        gradient, optimizer = self._served("gloo", h, y)
        torch.distributed.send(gradient, 1)
        optimizer.step()

    def _gloo_client(self, rows: Tensor) -> None:
        modules, optimizers = self._begin("gloo")
        h = modules["bottom"](self.x[rows])
        torch.distributed.send(h.detach(), 0)
        torch.distributed.send(self.y[rows], 0)
        gradient = torch.empty_like(h)
        torch.distributed.recv(gradient, 0)
        h.backward(gradient)
        next(optimizers).step()

    @property
    def cut_shape(self) -> torch.Size:
        with torch.no_grad():
            return self.plain["gloo"]["bottom"](self.x[:1]).shape[1:]

    def _grpc_client(self, rows: Tensor) -> None:
        modules, optimizers = self._begin("grpc")
        h = modules["bottom"](self.x[rows])
        answer = self.call(save({"h": h.detach(), "y": self.y[rows]}))
        h.backward(load(answer)["g"])
        next(optimizers).step()

    def answer(self, asked: bytes) -> bytes:
        """At the server, one gRPC call."""
        tensors = load(asked)
        gradient, optimizer = self._served("grpc", tensors["h"], tensors["y"])
        optimizer.step()
        self.clock.tick()
        return save({"g": gradient})
