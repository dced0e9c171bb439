"""Onion circuits over real channels: a Router per party, and a Wire over a circuit for whatever is said end to end.

Neighbours exchange packets as messages of the channel or session they share anyway, among its other messages: `meta` is
MARK, the circuit and the kind, the payload one cell. What a circuit carries is a stream of bytes, so the ordinary
handshake and sealed records run over it: the ends authenticate each other as on any wire, hops see cells only.

    hop:     Router(me, {"left": left.send, "right": right.send})     router.receive(peer, frame) for each marked frame
    client:  wire = router.dial([left, ..., server]); SealedChannel(wire, converse(wire, NOISE_IK.initiate(...), ...))
    server:  wire = router.accept(timeout); SealedChannel(wire, converse(wire, NOISE_IK.respond(...), ...))

Packets leave from a thread of their own, in the order they were made. Who speaks here waits while many wait to leave;
what is passed on for others never waits, for two hops that did could wait for each other for ever: a circuit that
outruns its hops is torn down. So circuits carry labels and control; tensors go from neighbour to neighbour. The first
hop sees who builds circuits, every hop sees when cells pass and how many: see the limits in `onion`.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import struct
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from channels.errors import ChannelDead, ChannelError, DeadlineExceeded, HandshakeTimeout, IntegrityError, Truncated
from channels.identity import Identity, PublicIdentity
from channels.onion import Client, Kind, Packet, Relay
from channels.records import Frame
from channels.wire import STALL, MemoryWire, Pipe

log = logging.getLogger("secsplit.channels")

MARK = b"\0onion"
HEAD = struct.Struct(f">{len(MARK)}sIB")  # mark, circuit, kind
WAITING = 1024  # packets waiting to leave from which on who speaks here waits: 4 MiB
MOST = 16 * WAITING  # from which on whatever circuit would pass more is torn down
PIECE = 1 << 16  # bytes of a stream in one onion message
UNREAD = 1 << 22  # bytes that may wait to be read at an end of a circuit
HOP_SECONDS = 10.0  # for one hop's handshake, through the hops before it

Send = Callable[..., None]  # a channel's or session's `send`: (meta, *payload)


def marked(meta: bytes) -> bool:
    """Whether a message between neighbours is a packet of some circuit."""
    return meta.startswith(MARK)


class CircuitWire(MemoryWire):
    """One end of a circuit, as a two-way stream of bytes. Reading it is reading memory; writing makes cells."""

    def __init__(self, say: Callable[[bytes], None], hang_up: Callable[[], None], *, stall: float = STALL) -> None:
        super().__init__(Pipe(UNREAD), Pipe(0), stall=stall)
        self._say, self._hang_up = say, hang_up

    def write(self, piece: memoryview) -> None:
        """See `Wire.write`; raises Truncated where the circuit is gone."""
        if self._closed:
            raise ChannelDead("closed here")
        for at in range(0, len(piece), PIECE):
            self._say(bytes(piece[at : at + PIECE]))
        self.sent += len(piece)

    def came(self, message: bytes) -> None:
        """Put what the other end said where `fill` takes it; waits while the reader is far behind."""
        pipe = self._in
        with pipe.changed:
            pipe.changed.wait_for(lambda: len(pipe.bytes) < pipe.capacity or pipe.ended, self._stall)
            pipe.bytes += message
            pipe.changed.notify_all()

    @property
    def ended(self) -> bool:
        """Whether the circuit is gone."""
        return self._in.ended

    def end(self) -> None:
        """The circuit is gone: what has come can still be read, then the stream is truncated."""
        with self._in.changed:
            self._in.ended = True
            self._in.changed.notify_all()

    def close(self) -> None:
        """See `Wire.close`; the circuit is torn down."""
        if not self._closed:
            super().close()
            self._hang_up()


class Router:
    """All circuits of one party: those it dials, those that end here, and those it only passes on."""

    def __init__(self, me: Identity, neighbours: Mapping[str, Send], *, accepts: bool = False) -> None:
        self._neighbours, self._accepts = neighbours, accepts
        self._relay = Relay(me, frozenset(neighbours))
        self._dialled: dict[tuple[str, int], tuple[Client, CircuitWire]] = {}
        self._ended_here: dict[tuple[str, int], CircuitWire] = {}
        self._arrivals: queue.SimpleQueue[CircuitWire] = queue.SimpleQueue()
        self._changed = threading.Condition()  # guards all above; packets are queued in the order they are made
        self._leaving: queue.SimpleQueue[Packet | None] = queue.SimpleQueue()
        self._left = threading.Condition()
        self._sender = threading.Thread(target=self._send_all, name=f"onion {me.public.name}", daemon=True)
        self._sender.start()

    def receive(self, neighbour: str, frame: Frame) -> None:
        """Take a marked frame that came from that neighbour; raises IntegrityError where it is malformed."""
        try:
            _, circuit, number = HEAD.unpack(frame.meta)
            packet = Packet(neighbour, circuit, Kind(number), bytes(frame.payload))
        except (struct.error, ValueError):
            raise IntegrityError("a malformed onion packet", peer=neighbour, fault="peer") from None
        link, inward = (neighbour, circuit), list[tuple[CircuitWire, bytes]]()
        with self._changed:
            if link in self._dialled:
                inward = self._answered(link, packet)
            else:
                full = self._leaving.qsize() >= MOST
                self._leave(self._relay.end(link) if full else self._relay.receive(packet))
                inward = self._delivered()
            self._changed.notify_all()
        for wire, message in inward:  # not under the lock: a slow reader must not stop the others
            wire.came(message)

    def dial(self, path: Sequence[PublicIdentity], *, timeout: float = 30.0) -> CircuitWire:
        """A circuit through these hops, neighbours in a row, to the last; raises HandshakeTimeout, ChannelError."""
        client = Client(path[0].name)
        link = client.first, client.circuit
        wire = CircuitWire(lambda said: self._say(client, said), lambda: self._hang_up(link))
        deadline = time.monotonic() + timeout
        with self._changed:
            self._dialled[link] = client, wire
            for hops, hop in enumerate(path, 1):
                self._leave([client.extend(hop)])
                limit = min(deadline, time.monotonic() + HOP_SECONDS)
                self._changed.wait_for(partial(_answered, client, wire, hops), limit - time.monotonic())
                if client.hops < hops:
                    if self._dialled.pop(link, None) is not None:
                        self._leave([client.end()])
                    why = "refused" if wire.ended else f"no answer in {timeout:g} s"
                    raise HandshakeTimeout(f"the circuit reached {hops - 1} of {len(path)} hops: {why}", peer=hop.name)
        return wire

    def accept(self, timeout: float | None = None) -> CircuitWire:
        """The next circuit that ends here, its first bytes waiting to be read; raises DeadlineExceeded."""
        try:
            return self._arrivals.get(timeout=timeout)
        except queue.Empty:
            raise DeadlineExceeded(f"no circuit reached us in {timeout:g} s") from None

    def lost(self, neighbour: str) -> None:
        """That neighbour is gone, and with it every circuit that passes it."""
        with self._changed:
            for link in [link for link in self._dialled if link[0] == neighbour]:
                self._dialled.pop(link)[1].end()
            self._leave(self._relay.lost(neighbour))
            self._delivered()
            self._changed.notify_all()

    def drain(self, timeout: float) -> bool:
        """Wait until no circuit passes or ends here any more; whether that came to be."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._relay.carrying, timeout)

    def close(self) -> None:
        """Let what is queued leave, then end every circuit's wire here."""
        with self._changed:
            for _, wire in self._dialled.values():
                wire.end()
            for wire in self._ended_here.values():
                wire.end()
        self._leaving.put(None)
        self._sender.join()

    def _answered(self, link: tuple[str, int], packet: Packet) -> list[tuple[CircuitWire, bytes]]:
        client, wire = self._dialled[link]
        try:
            message = client.receive(packet)
        except ChannelError as error:
            log.info("a circuit ended: %s", error)
            del self._dialled[link]
            wire.end()
            return []
        return [(wire, message)] if message is not None else []

    def _delivered(self) -> list[tuple[CircuitWire, bytes]]:
        """What came for this party itself; and the wires of circuits that are gone end."""
        found, self._relay.delivered = self._relay.delivered, []
        inward = []
        for origin, message in found:
            wire = self._ended_here.get(origin)
            if wire is None:
                if not self._accepts:
                    self._leave(self._relay.end(origin))
                    continue
                wire = self._ended_here[origin] = self._arrival(origin)
            inward.append((wire, message))
        for origin in [origin for origin in self._ended_here if not self._relay.knows(origin)]:
            self._ended_here.pop(origin).end()
        return inward

    def _arrival(self, origin: tuple[str, int]) -> CircuitWire:
        wire = CircuitWire(lambda said: self._reply(origin, said), lambda: self._hang_up(origin))
        self._arrivals.put(wire)
        return wire

    def _say(self, client: Client, said: bytes) -> None:
        self._await_room()
        with self._changed:
            try:
                self._leave(client.send(said))
            except ChannelDead:
                raise Truncated("the circuit is gone", fault="network") from None

    def _reply(self, origin: tuple[str, int], said: bytes) -> None:
        self._await_room()
        with self._changed:
            if not self._relay.knows(origin):
                raise Truncated("the circuit is gone", fault="network")
            self._leave(self._relay.reply(origin, said))

    def _hang_up(self, link: tuple[str, int]) -> None:
        with self._changed:
            if link in self._dialled:
                self._leave([self._dialled.pop(link)[0].end()])
            else:
                self._ended_here.pop(link, None)
                self._leave(self._relay.end(link))
            self._changed.notify_all()

    def _leave(self, packets: Iterable[Packet]) -> None:
        for packet in packets:
            self._leaving.put(packet)

    def _await_room(self) -> None:
        """Not under the lock, which those need who make room."""
        with self._left:
            if not self._left.wait_for(lambda: self._leaving.qsize() < WAITING, STALL):
                raise DeadlineExceeded(f"no packet left for {STALL:g} s")

    def _send_all(self) -> None:
        while (packet := self._leaving.get()) is not None:
            with self._left:
                self._left.notify_all()
            meta = HEAD.pack(MARK, packet.circuit, packet.kind)
            with contextlib.suppress(ChannelError, KeyError):  # a neighbour that is gone is named by its own reader
                self._neighbours[packet.neighbour](meta, packet.cell)


def _answered(client: Client, wire: CircuitWire, hops: int) -> bool:
    """Whether a circuit being built has that many hops, or never will."""
    return client.hops >= hops or wire.ended
