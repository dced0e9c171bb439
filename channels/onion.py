"""Onion circuits: what the first client says to the last server passes hops that learn only their neighbours.

Telescoped in the manner of Tor (Dingledine et al. 2004): one `NKhfs` Noise handshake with each hop, run through the
hops before it. Every cell has CELL bytes on every link. Going out, each hop opens its layer (AES-256-GCM, so the first
honest hop rejects what was tampered with: no tagging) and refills the cell with bytes that the client, who knows the
hop's key, has foreseen and sealed into the next layer, as in Sphinx (Danezis and Goldberg 2009); coming back, each hop
seals a layer on and drops known bytes from the end. So neither length nor padding tells a hop where it stands.

Sans I/O: a Client and a Relay turn packets into packets, which travel as messages of the channels between neighbours.
What remains visible: a hop sees its two neighbours, how many cells pass, and when. Whoever watches both ends of a
circuit can match them by timing; there is no cover traffic. The client is anonymous to the hops, not authenticated.
"""

from __future__ import annotations

import hmac
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import pairwise
from typing import NamedTuple

from cryptography.exceptions import InvalidTag

from channels.errors import ChannelDead, ChannelError, HandshakeError, IntegrityError, MessageTooLarge
from channels.identity import Identity, PublicIdentity
from channels.noise import HandshakeState, Protocol, Secretive, Transport
from channels.primitives import CIPHERS, TAG

PROTOCOL = Protocol.of("Noise_NKhfs_25519+MLKEM768_AESGCM_SHA256")
CELL = 4096  # bytes on every link, always
HOPS = 8  # at most
LAYER = TAG + 1  # bytes a layer takes going out: a tag and a command
BODY = CELL - TAG - LAYER * (HOPS - 1)  # bytes for the hop that is meant
HEAD = struct.Struct(">BH")  # command, length of what follows
ROOM = BODY - HEAD.size
MAX_MESSAGE = 16 << 20
MAX_CIRCUITS = 1024  # of one neighbour, in one relay
_AES = CIPHERS["AESGCM"]


class Kind(IntEnum):
    """What a packet between neighbours is."""

    CREATE = 0
    CREATED = 1
    CELL = 2
    DESTROY = 3


class Command(IntEnum):
    """What an opened layer tells its hop, or the client."""

    RELAY = 0  # pass the rest on
    EXTEND = 1  # neighbour's name, its handshake message
    EXTENDED = 2  # the answer
    DATA = 3  # the end of a message
    MORE = 4  # a message that goes on


class Packet(NamedTuple):
    """To be sent to, or come from, a neighbour: always one cell long."""

    neighbour: str
    circuit: int
    kind: Kind
    cell: bytes


class Layer(Secretive):
    """One hop's keys and counters: the same object on the client and on the hop."""

    __slots__ = ("_back", "_fill", "_forth", "n_back", "n_forth")

    def __init__(self, transport: Transport) -> None:
        forth, back, self._fill = transport.export(b"secsplit/1 onion", 3)
        self._forth, self._back = _AES.new(forth), _AES.new(back)
        self.n_forth = self.n_back = 0

    def seal_forth(self, plaintext: bytes) -> bytes:
        """Client: a cell for this hop."""
        return self._seal(self._forth, self._count_forth(), plaintext)

    def open_forth(self, cell: bytes) -> bytes:
        """Hop: what this hop is told; raises IntegrityError."""
        return self._open(self._forth, self._count_forth(), cell)

    def seal_back(self, plaintext: bytes) -> bytes:
        """Hop: a cell towards the client."""
        return self._seal(self._back, self._count_back(), plaintext)

    def open_back(self, cell: bytes) -> bytes:
        """Client: raises IntegrityError."""
        return self._open(self._back, self._count_back(), cell)

    def filler(self, n: int) -> bytes:
        """What this hop appends to its n-th outgoing cell."""
        return hmac.digest(self._fill, n.to_bytes(8, "big"), "sha256")[:LAYER]

    def stream_forth(self) -> bytes:
        """The next outgoing cell's keystream: the encryption of zeros, computed by the client and never sent."""
        return self._forth.encrypt(_AES.nonce(0, self.n_forth), bytes(CELL - TAG), None)[:-TAG]

    def stream_back(self) -> bytes:
        """The same for the next incoming cell."""
        return self._back.encrypt(_AES.nonce(0, self.n_back), bytes(CELL - TAG), None)[:-TAG]

    def _count_forth(self) -> bytes:
        self.n_forth += 1
        return _AES.nonce(0, self.n_forth - 1)

    def _count_back(self) -> bytes:
        self.n_back += 1
        return _AES.nonce(0, self.n_back - 1)

    @staticmethod
    def _seal(aead, nonce: bytes, plaintext: bytes) -> bytes:  # type: ignore[no-untyped-def]
        sealed: bytes = aead.encrypt(nonce, plaintext, None)
        return sealed[-TAG:] + sealed[:-TAG]  # the tag first: what hops add and drop is at the end

    @staticmethod
    def _open(aead, nonce: bytes, cell: bytes) -> bytes:  # type: ignore[no-untyped-def]
        try:
            opened: bytes = aead.decrypt(nonce, cell[TAG:] + cell[:TAG], None)
        except InvalidTag:
            raise IntegrityError("an onion layer did not open") from None
        return opened


@dataclass
class Assembly:
    """Cells of data joined to messages."""

    parts: list[bytes] = field(default_factory=list)

    def add(self, command: int, data: bytes) -> bytes | None:
        """A whole message at its end; raises MessageTooLarge."""
        self.parts.append(data)
        if sum(map(len, self.parts)) > MAX_MESSAGE:
            raise MessageTooLarge(f"an onion message above {MAX_MESSAGE} bytes")
        if command == Command.MORE:
            return None
        whole, self.parts = b"".join(self.parts), []
        return whole


def build(layers: list[Layer], command: Command, data: bytes) -> bytes:
    """Client: the cell that tells the last of these hops something, and all before it to pass it on."""
    tails, tail = [b""], b""
    for before, layer in pairwise(layers):
        foreseen = tail + before.filler(before.n_forth)
        stream = layer.stream_forth()
        tail = _xor(foreseen, stream[-len(foreseen) :])
        tails.append(tail)
    plaintext = _body(command, data, CELL - TAG - len(tail)) + tail
    for layer in reversed(layers[1:]):
        plaintext = bytes([Command.RELAY]) + layer.seal_forth(plaintext)[: CELL - LAYER]
    return layers[0].seal_forth(plaintext)


def peel(layers: list[Layer], cell: bytes) -> tuple[int, bytes]:
    """Client: what the last of these hops said; the bytes that hops dropped on the way are known, and put back."""
    known = bytes(TAG * HOPS)  # the end of the last hop's plaintext
    tails = []
    for layer in reversed(layers):
        sealed = _xor(known, layer.stream_back()[-len(known) :])
        tails.append(sealed)
        known = sealed[:-TAG]
    for depth, (layer, tail) in enumerate(zip(layers, reversed(tails), strict=True)):
        if depth:
            cell = cell + tail[-TAG:]
        cell = layer.open_back(cell)
    return _parse(cell)


def _body(command: Command, data: bytes, length: int) -> bytes:
    return (HEAD.pack(command, len(data)) + data).ljust(length, b"\0")


def _parse(plaintext: bytes) -> tuple[int, bytes]:
    command, length = HEAD.unpack_from(plaintext)
    if length > ROOM:
        raise IntegrityError(f"an onion cell claims {length} bytes, at most {ROOM}", fault="peer")
    return command, plaintext[HEAD.size : HEAD.size + length]


def _xor(one: bytes, other: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(one, other, strict=True))


class Client:
    """One circuit, from its first end: extend it hop by hop, then send and receive whole messages."""

    def __init__(self, first: str) -> None:
        self.first, self.circuit = first, int.from_bytes(os.urandom(4), "big")
        self._layers: list[Layer] = []
        self._pending: HandshakeState | None = None
        self._assembly, self._dead = Assembly(), False

    @property
    def hops(self) -> int:
        """How many hops the circuit has so far."""
        return len(self._layers)

    def end(self) -> Packet:
        """The packet that tears the circuit down, all along."""
        self._dead, self._layers = True, []
        return Packet(self.first, self.circuit, Kind.DESTROY, bytes(CELL))

    def extend(self, hop: PublicIdentity) -> Packet:
        """The packet that adds a hop; its answer goes to `receive`, after which the next may be added."""
        self._check()
        if len(self._layers) >= HOPS or self._pending is not None:
            raise HandshakeError(f"at most {HOPS} hops, one at a time", fault="local")
        self._pending = HandshakeState(PROTOCOL, initiator=True, remote_static=hop.noise)
        message = self._pending.write_message()
        if not self._layers:
            return Packet(self.first, self.circuit, Kind.CREATE, message.ljust(CELL, b"\0"))
        name = hop.name.encode()
        return self._packet(Command.EXTEND, bytes([len(name)]) + name + message)

    def send(self, message: bytes) -> Iterator[Packet]:
        """The packets that carry a message to the last hop."""
        self._check()
        for start in range(0, max(1, len(message)), ROOM):
            last = start + ROOM >= len(message)
            yield self._packet(Command.DATA if last else Command.MORE, message[start : start + ROOM])

    def receive(self, packet: Packet) -> bytes | None:
        """A whole message from the last hop, when this packet ends one; after an IntegrityError all is over."""
        self._check()
        try:
            return self._take(packet)
        except ChannelError:
            self._dead, self._layers = True, []
            raise

    def _take(self, packet: Packet) -> bytes | None:
        if packet.circuit != self.circuit or len(packet.cell) != CELL or packet.kind is Kind.DESTROY:
            raise IntegrityError("the circuit was torn down on its way", fault="peer")
        if packet.kind is Kind.CREATED and not self._layers:
            self._join(packet.cell)
            return None
        if packet.kind is not Kind.CELL or not self._layers:
            raise IntegrityError("a packet out of place", fault="peer")
        command, data = peel(self._layers, packet.cell)
        if command == Command.EXTENDED:
            self._join(data)
            return None
        if command not in (Command.DATA, Command.MORE):
            raise IntegrityError(f"unknown onion command {command}", fault="peer")
        return self._assembly.add(command, data)

    def _join(self, answer: bytes) -> None:
        if self._pending is None:
            raise IntegrityError("an answer to nothing", fault="peer")
        handshake, self._pending = self._pending, None
        handshake.read_message(answer[:ANSWER])
        self._layers.append(Layer(handshake.into_transport()))

    def _packet(self, command: Command, data: bytes) -> Packet:
        return Packet(self.first, self.circuit, Kind.CELL, build(self._layers, command, data))

    def _check(self) -> None:
        if self._dead:
            raise ChannelDead("the circuit is over", fix="build another one")


QUESTION = 32 + 1184 + TAG  # bytes of NKhfs's two messages
ANSWER = 32 + 1088 + TAG + TAG


@dataclass
class _Passage:
    """One circuit through a relay."""

    layer: Layer
    origin: tuple[str, int]
    onward: tuple[str, int] | None = None
    assembly: Assembly = field(default_factory=Assembly)


class Delivery(NamedTuple):
    """A message for this hop itself; `origin` is where answers go."""

    origin: tuple[str, int]
    message: bytes


class Relay:
    """One hop: takes packets from neighbours, gives packets for neighbours, and hands out what is for itself."""

    def __init__(self, me: Identity, neighbours: frozenset[str]) -> None:
        self._me, self._neighbours = me, neighbours
        self._passages: dict[tuple[str, int], _Passage] = {}  # by the link towards the client
        self._onward: dict[tuple[str, int], _Passage] = {}  # by the link away from it
        self.delivered: list[Delivery] = []

    def receive(self, packet: Packet) -> list[Packet]:
        """What to send now. A packet that does not belong, or does not open, tears its circuit down, both ways."""
        link = packet.neighbour, packet.circuit
        try:
            return self._take(packet, link)
        except ChannelError:
            return self._destroy(link)

    def reply(self, origin: tuple[str, int], message: bytes) -> Iterator[Packet]:
        """The packets that carry an answer back to a circuit's client."""
        passage = self._passages[origin]
        for start in range(0, max(1, len(message)), ROOM):
            command = Command.DATA if start + ROOM >= len(message) else Command.MORE
            yield self._back(passage, _body(command, message[start : start + ROOM], CELL - TAG))

    @property
    def carrying(self) -> int:
        """How many circuits pass or end here."""
        return len(self._passages)

    def knows(self, origin: tuple[str, int]) -> bool:
        """Whether that circuit is still there."""
        return origin in self._passages

    def end(self, link: tuple[str, int]) -> list[Packet]:
        """The packets that tear the circuit of that link down, both ways."""
        return self._destroy(link) if link in self._passages or link in self._onward else []

    def lost(self, neighbour: str) -> list[Packet]:
        """The packets that tear down every circuit through a neighbour that is gone, away from it."""
        links = [link for link in (*self._passages, *self._onward) if link[0] == neighbour]
        return [packet for link in links for packet in self._destroy(link, echo=False)]

    def _take(self, packet: Packet, link: tuple[str, int]) -> list[Packet]:
        if len(packet.cell) != CELL:
            raise IntegrityError("a packet of another length", fault="peer")
        if packet.kind is Kind.CREATE:
            return [self._create(packet, link)]
        if packet.kind is Kind.DESTROY:
            return self._destroy(link, echo=False)
        if link in self._passages and packet.kind is Kind.CELL:
            return self._forth(self._passages[link], packet.cell)
        if link in self._onward:
            passage = self._onward[link]
            if packet.kind is Kind.CREATED:
                return [self._back(passage, _body(Command.EXTENDED, packet.cell[:ANSWER], CELL - TAG))]
            return [self._back(passage, packet.cell[: CELL - TAG])]
        raise IntegrityError("a packet for no circuit", fault="peer")

    def _create(self, packet: Packet, link: tuple[str, int]) -> Packet:
        if link in self._passages or sum(key[0] == link[0] for key in self._passages) >= MAX_CIRCUITS:
            raise HandshakeError("this circuit exists, or there are too many")
        handshake = HandshakeState(PROTOCOL, initiator=False, static=self._me.noise)
        handshake.read_message(packet.cell[:QUESTION])
        answer = handshake.write_message()
        self._passages[link] = _Passage(Layer(handshake.into_transport()), link)
        return Packet(*link, Kind.CREATED, answer.ljust(CELL, b"\0"))

    def _forth(self, passage: _Passage, cell: bytes) -> list[Packet]:
        n = passage.layer.n_forth
        plaintext = passage.layer.open_forth(cell)
        if plaintext[0] == Command.RELAY:
            if passage.onward is None:
                raise IntegrityError("nobody to pass it on to", fault="peer")
            return [Packet(*passage.onward, Kind.CELL, plaintext[1:] + passage.layer.filler(n))]
        command, data = _parse(plaintext)
        if command == Command.EXTEND:
            return [self._extend(passage, data)]
        if command not in (Command.DATA, Command.MORE):
            raise IntegrityError(f"unknown onion command {command}", fault="peer")
        if (message := passage.assembly.add(command, data)) is not None:
            self.delivered.append(Delivery(passage.origin, message))
        return []

    def _extend(self, passage: _Passage, data: bytes) -> Packet:
        name = data[1 : 1 + data[0]].decode("ascii", "replace") if data else ""
        question = data[1 + len(name) :]
        if passage.onward is not None or name not in self._neighbours or len(question) != QUESTION:
            raise HandshakeError(f"cannot extend to {name[:64]!r}")
        passage.onward = name, int.from_bytes(os.urandom(4), "big")
        self._onward[passage.onward] = passage
        return Packet(*passage.onward, Kind.CREATE, question.ljust(CELL, b"\0"))

    def _back(self, passage: _Passage, plaintext: bytes) -> Packet:
        return Packet(*passage.origin, Kind.CELL, passage.layer.seal_back(plaintext))

    def _destroy(self, link: tuple[str, int], *, echo: bool = True) -> list[Packet]:
        passage = self._passages.get(link) or self._onward.get(link)
        ends = {link} if echo else set()
        if passage is not None:
            ends |= {end for end in (passage.origin, passage.onward) if end and (echo or end != link)}
            self._passages.pop(passage.origin, None)
            self._onward.pop(passage.onward or link, None)
        return [Packet(*end, Kind.DESTROY, bytes(CELL)) for end in sorted(ends)]
