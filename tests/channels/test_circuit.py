"""Circuits over real channels on sockets: what crosses each link, what hops cannot do, how circuits end."""

import os
import threading
import time
from collections.abc import Iterator
from itertools import pairwise

import pytest

from channels import (
    ChannelDead,
    DeadlineExceeded,
    Identity,
    IntegrityError,
    PeerClosed,
    Roster,
    SealedChannel,
    Session,
    SessionListener,
    Truncated,
    circuit,
    open_session,
    socketpair_pair,
)
from channels.channel import Channel
from channels.circuit import HEAD, MARK, CircuitWire, Router, marked
from channels.dial import NOISE_IK, connect, converse
from channels.errors import ChannelError, HandshakeTimeout
from channels.listen import Listener
from channels.meeting import Side
from channels.onion import CELL
from channels.records import Frame

NAMES = ["clinic", "relay-1", "relay-2", "relay-3", "compute"]
KEYS = {name: Identity.generate(name) for name in NAMES}
ROSTER = Roster.of([identity.public for identity in KEYS.values()], epoch=1, signer=KEYS["compute"])
DIGEST = bytes(32)


class Row:
    """Parties in a row, each with a real channel over TCP to its neighbours only, a router, and a reader a channel.

    With `sessions`, those channels are sessions, which survive their connections.
    """

    def __init__(self, names: list[str], *, sessions: bool = False) -> None:
        self.names, self.frames = names, list[tuple[str, str, Frame]]()
        self.channels: dict[tuple[str, str], Channel | Session] = {}
        self.hosts: list[SessionListener] = []
        for left, right in pairwise(names):
            host = Listener("127.0.0.1:0", KEYS[right], ROSTER, digest=DIGEST)
            if sessions:
                self.hosts.append(SessionListener(host))
                self.channels[left, right] = open_session(host.address, KEYS[left], ROSTER, right, digest=DIGEST)
                self.channels[right, left] = self.hosts[-1].accept(5)
                continue
            with host:
                self.channels[left, right] = connect(host.address, KEYS[left], ROSTER, right, digest=DIGEST)
                self.channels[right, left] = host.accept(5)
        self.routers = {name: self._router(name) for name in names}
        self.threads = [threading.Thread(target=self._read, args=pair, daemon=True) for pair in self.channels]
        for thread in self.threads:
            thread.start()

    def _router(self, name: str) -> Router:
        sends = {peer: self.channels[me, peer].send for me, peer in self.channels if me == name}
        return Router(KEYS[name], sends, accepts=name == self.names[-1])

    def _read(self, me: str, peer: str) -> None:
        try:
            while True:
                frame = self.channels[me, peer].recv()
                assert marked(frame.meta)
                self.frames.append((peer, me, frame))
                self.routers[me].receive(peer, frame)
        except ChannelError:
            self.routers[me].lost(peer)

    def dial(self) -> CircuitWire:
        return self.routers[self.names[0]].dial([KEYS[name].public for name in self.names[1:]], timeout=20)

    def meet(self) -> tuple[SealedChannel, SealedChannel]:
        """The first party's channel to the last, end to end, and the last one's."""
        first, last = (Side(KEYS[self.names[end]], ROSTER, DIGEST) for end in (0, -1))
        wire = self.dial()
        made: list[SealedChannel] = []

        def answer() -> None:
            arrived = self.routers[self.names[-1]].accept(10)
            made.append(SealedChannel(arrived, converse(arrived, NOISE_IK.respond(last), time.monotonic() + 10)))

        answering = threading.Thread(target=answer)
        answering.start()
        agreed = converse(wire, NOISE_IK.initiate(first, last.me.public), time.monotonic() + 10)
        answering.join()
        return SealedChannel(wire, agreed), made[0]

    def close(self) -> None:
        for router in self.routers.values():
            router.close()
        for channel in self.channels.values():
            channel.close()
        for thread in self.threads:
            thread.join(5)
        for host in self.hosts:
            host.close()


@pytest.fixture(params=[2, 3, 5])
def row(request: pytest.FixtureRequest) -> Iterator[Row]:
    names = NAMES[: request.param - 1] + NAMES[-1:]
    made = Row(names)
    yield made
    made.close()


@pytest.fixture
def three() -> Iterator[Row]:
    made = Row(["clinic", "relay-1", "relay-2", "compute"])
    yield made
    made.close()


def test_labels_and_control_pass_both_ways_end_to_end(row: Row) -> None:
    near, far = row.meet()
    assert (near.peer, far.peer) == (KEYS["compute"].public, KEYS["clinic"].public)
    assert near.binding == far.binding
    for size in (0, 512, 70_000, 300_000):
        labels = os.urandom(size)
        near.send(b"labels", labels)
        frame = far.recv(10)
        assert (frame.meta, frame.payload) == (b"labels", labels)
        far.send(b"gradient", labels[::-1])
        assert near.recv(10).payload == labels[::-1]
    near.close()
    with pytest.raises(PeerClosed):
        far.recv(10)
    far.close()
    assert all(router.drain(5) for router in row.routers.values())


def test_every_message_on_every_link_is_one_cell_and_names_nobody_else(three: Row) -> None:
    near, far = three.meet()
    near.send(b"labels", b"diagnosis 7" * 200)
    far.recv(10)
    crossed = list(three.frames)
    assert {(len(frame.meta), len(frame.payload)) for _, _, frame in crossed} == {(HEAD.size, CELL)}
    for sender, receiver, frame in crossed:
        cell = bytes(frame.payload)
        others = [name for name in three.names if name not in (sender, receiver)]
        assert not [name for name in others if name.encode() in cell or KEYS[name].public.noise in cell]
        assert b"diagnosis" not in cell
    circuits = {frozenset((a, b)): frame.meta for a, b, frame in crossed}
    assert len({HEAD.unpack(meta)[1] for meta in circuits.values()}) == 3  # another number on every link


def test_a_hop_that_changes_a_cell_ends_the_circuit_and_nothing_wrong_arrives(three: Row) -> None:
    near, far = three.meet()
    near.send(b"one")
    assert far.recv(10).meta == b"one"
    relay = three.routers["relay-1"]
    send = relay._neighbours["relay-2"]

    def spoil(meta: bytes, cell: bytes) -> None:
        send(meta, bytes([cell[0] ^ 1]) + cell[1:])

    relay._neighbours = {**relay._neighbours, "relay-2": spoil}
    near.send(b"two")
    for channel in (near, far):
        with pytest.raises(Truncated):
            channel.recv(10)


def test_a_circuit_outlives_the_connections_beneath_it() -> None:
    """Links between neighbours break again and again; their sessions come back under new keys, and not a cell is lost,
    repeated or out of order, or the circuit, which counts them, would have ended."""
    row = Row(["clinic", "relay-1", "relay-2", "compute"], sessions=True)
    near, far = row.meet()
    for turn in range(6):
        for pair, link in row.channels.items():
            if pair[0] == row.names[turn % 3]:
                assert isinstance(link, Session)
                link.drop_link()
        for sender, receiver in ((near, far), (far, near)):
            sender.send(b"turn %d" % turn, bytes(20_000))
            frame = receiver.recv(20)
            assert (frame.meta, bytes(frame.payload)) == (b"turn %d" % turn, bytes(20_000))
    broken = [link for link in row.channels.values() if isinstance(link, Session) and len(link.facts.channels) > 2]
    assert len(broken) == 6
    near.close()
    with pytest.raises(PeerClosed):
        far.recv(5)
    row.close()


def test_a_hop_that_goes_away_is_noticed_at_both_ends(three: Row) -> None:
    near, far = three.meet()
    for pair in [pair for pair in three.channels if pair[0] == "relay-2"]:
        three.channels[pair].close()  # as when its process ends
    for channel in (near, far):
        with pytest.raises(Truncated):
            channel.recv(5)


def test_a_circuit_that_outruns_its_hops_is_torn_down(three: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hop keeps so many packets and no more, whatever its neighbours send."""
    near, far = three.meet()
    monkeypatch.setattr(circuit, "MOST", 0)
    near.send(b"more than they can carry")
    for channel in (near, far):
        with pytest.raises(Truncated):
            channel.recv(5)
    assert all(router.drain(5) for router in three.routers.values())


def test_a_party_that_takes_no_circuits_ends_them(three: Row) -> None:
    wire = three.routers["clinic"].dial([KEYS["relay-1"].public], timeout=5)
    wire.write(memoryview(b"hello"))
    with pytest.raises(Truncated):
        wire.fill(memoryview(bytearray(1)), time.monotonic() + 5)
    wire.close()
    with pytest.raises(ChannelDead):
        wire.write(memoryview(b"more"))


def test_a_circuit_to_somebody_who_is_no_neighbour_is_refused(three: Row) -> None:
    with pytest.raises(HandshakeTimeout, match="reached 1 of 2 hops: refused"):
        three.routers["clinic"].dial([KEYS["relay-1"].public, KEYS["compute"].public], timeout=5)


def test_a_hop_that_says_nothing_is_given_up() -> None:
    router = Router(KEYS["clinic"], {"relay-1": lambda meta, cell: None})
    with pytest.raises(HandshakeTimeout, match="reached 0 of 1 hops: no answer"):
        router.dial([KEYS["relay-1"].public], timeout=0.3)
    router.close()


def test_another_hop_than_the_one_meant_cannot_answer(three: Row) -> None:
    """relay-1 passes for relay-2 to nobody: the circuit's handshake is with the key of the one meant."""
    impostor = Identity.generate("relay-1")
    with pytest.raises(HandshakeTimeout, match="reached 0 of 1 hops: refused"):
        three.routers["clinic"].dial([impostor.public], timeout=5)


@pytest.mark.parametrize("meta", [MARK, MARK + bytes(4), MARK + bytes(4) + b"\x09", MARK + bytes(90)])
def test_malformed_packets_are_refused(meta: bytes) -> None:
    router = Router(KEYS["relay-1"], {"x": lambda meta, cell: None})
    with pytest.raises(IntegrityError, match="malformed"):
        router.receive("x", Frame(meta, memoryview(bytes(CELL))))
    router.receive("x", Frame(HEAD.pack(MARK, 1, 2), memoryview(b"short")))  # a stray: its circuit is torn down
    router.close()


def test_nobody_dials() -> None:
    router = Router(KEYS["compute"], {}, accepts=True)
    with pytest.raises(DeadlineExceeded, match="no circuit"):
        router.accept(0.05)
    router.close()


def test_ordinary_messages_are_not_taken_for_packets() -> None:
    left, right = socketpair_pair()
    left.send(b"\x95ordinary", bytes(CELL))
    assert not marked(right.recv(5).meta)
    left.close()
    right.close()
