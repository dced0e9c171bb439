"""Circuits of every length: what arrives, what a hop could learn from what it holds, and what tampering comes to."""

import os

import pytest

from channels import ChannelDead, Identity, IntegrityError
from channels.onion import ANSWER, CELL, HOPS, QUESTION, ROOM, Client, Kind, Packet, Relay

NAMES = [f"hop{n}" for n in range(HOPS + 1)]
KEYS = {name: Identity.generate(name) for name in NAMES}


class Chain:
    """A client and hops in a row, each knowing its neighbours only; everything that crosses a link is kept."""

    def __init__(self, hops: int) -> None:
        self.names = NAMES[:hops]
        self.relays = {}
        for place, name in enumerate(self.names):
            around = {self.names[n] for n in (place - 1, place + 1) if 0 <= n < hops}
            self.relays[name] = Relay(KEYS[name], frozenset(around))
        self.client, self.crossed = Client(self.names[0]), list[tuple[str, Packet]]()
        for name in self.names:
            assert self.carry(self.client.extend(KEYS[name].public)) == []

    def carry(self, packet: Packet) -> list[bytes]:
        """Deliver a packet of the client and all that follows; messages that come back to the client."""
        came, flying = [], [("client", packet)]
        while flying:
            sender, packet = flying.pop(0)
            self.crossed.append((sender, packet))
            if packet.neighbour == "client":
                message = self.client.receive(packet._replace(neighbour=sender))
                came += [message] if message is not None else []
            else:
                answers = self.relays[packet.neighbour].receive(packet._replace(neighbour=sender))
                flying += [(packet.neighbour, answer) for answer in answers]
        return came

    def reply(self, message: bytes) -> list[bytes]:
        last = self.names[-1]
        (origin, _), came = self.relays[last].delivered[-1], []
        for packet in self.relays[last].reply(origin, message):
            flying = [(last, packet)]
            while flying:
                sender, packet = flying.pop(0)
                self.crossed.append((sender, packet))
                if packet.neighbour == "client":
                    done = self.client.receive(packet._replace(neighbour=sender))
                    came += [done] if done is not None else []
                else:
                    answers = self.relays[packet.neighbour].receive(packet._replace(neighbour=sender))
                    flying += [(packet.neighbour, answer) for answer in answers]
        return came


@pytest.mark.parametrize("hops", range(1, HOPS + 1))
def test_messages_of_every_size_there_and_back(hops: int) -> None:
    chain = Chain(hops)
    for size in (0, 1, ROOM, ROOM + 1, 3 * ROOM + 7):
        message = os.urandom(size)
        for packet in chain.client.send(message):
            assert chain.carry(packet) == []
        assert chain.relays[chain.names[-1]].delivered[-1].message == message
        assert chain.reply(message[::-1]) == [message[::-1]]
    assert all(not chain.relays[name].delivered for name in chain.names[:-1])


def test_every_cell_on_every_link_has_one_length_and_repeats_no_other() -> None:
    chain = Chain(4)
    for packet in chain.client.send(b"label 7" * 100):
        chain.carry(packet)
    chain.reply(b"loss 0.3")
    assert {len(packet.cell) for _, packet in chain.crossed} == {CELL}
    cells = [packet.cell for _, packet in chain.crossed if packet.kind is Kind.CELL]
    blocks = [cell[at : at + 16] for cell in cells for at in range(0, CELL, 16)]
    assert len(set(cells)) == len(cells)
    assert sum(blocks.count(block) > 1 for block in blocks[:400]) == 0
    assert not any(b"label" in cell or b"loss" in cell for cell in cells)


def test_a_hop_knows_its_neighbours_only() -> None:
    """Names of others than neighbours pass no hop in the clear, and ids differ on every link."""
    chain = Chain(5)
    for sender, packet in chain.crossed:
        around = {sender, packet.neighbour}
        assert not [name for name in chain.names if name not in around and name.encode() in packet.cell]
    ids = {packet.circuit for _, packet in chain.crossed}
    assert len(ids) == 5


def test_the_end_of_a_cell_does_not_tell_a_hops_place() -> None:
    """It ends in bytes that look random on every link, not in padding that grows from hop to hop."""
    chain = Chain(4)
    chain.crossed.clear()
    for packet in chain.client.send(b"x"):
        chain.carry(packet)
    assert len(chain.crossed) == 4
    for _, packet in chain.crossed:
        assert len(set(packet.cell[-200:])) > 80


@pytest.mark.parametrize("place", range(3))
def test_tampering_is_stopped_by_the_next_honest_hop(place: int) -> None:
    chain = Chain(4)
    (packet,) = chain.client.send(b"label")
    sender = "client"
    for _ in range(place):
        (onward,) = chain.relays[packet.neighbour].receive(packet._replace(neighbour=sender))
        sender, packet = packet.neighbour, onward
    spoiled = bytearray(packet.cell)
    spoiled[-1] ^= 1
    victim = packet.neighbour
    answers = chain.relays[victim].receive(Packet(sender, packet.circuit, packet.kind, bytes(spoiled)))
    assert {answer.kind for answer in answers} == {Kind.DESTROY}
    assert not chain.relays[victim]._passages
    assert not chain.relays[NAMES[3]].delivered


@pytest.mark.parametrize("position", [0, 16, 2000, CELL - 17, CELL - 1])
def test_a_changed_answer_ends_the_circuit(position: int) -> None:
    chain = Chain(3)
    for packet in chain.client.send(b"x"):
        chain.carry(packet)
    last = chain.relays[NAMES[2]]
    (packet,) = last.reply(last.delivered[-1].origin, b"answer")
    (packet,) = chain.relays[NAMES[1]].receive(packet._replace(neighbour=NAMES[2]))
    spoiled = bytearray(packet.cell)
    spoiled[position] ^= 1
    (packet,) = chain.relays[NAMES[0]].receive(Packet(NAMES[1], packet.circuit, packet.kind, bytes(spoiled)))
    if position < CELL - 16:
        with pytest.raises(IntegrityError):
            chain.client.receive(packet)
        with pytest.raises(ChannelDead):
            next(chain.client.send(b"more"))
    else:
        assert chain.client.receive(packet) == b"answer"  # these bytes are dropped, and known beforehand


def test_replayed_cells_tear_the_circuit_down() -> None:
    chain = Chain(2)
    (packet,) = chain.client.send(b"once")
    chain.carry(packet)
    answers = chain.relays[NAMES[0]].receive(packet._replace(neighbour="client"))
    assert {answer.kind for answer in answers} == {Kind.DESTROY}
    assert len(chain.relays[NAMES[1]].delivered) == 1


def test_a_hop_that_is_not_the_one_meant_cannot_answer() -> None:
    relay = Relay(KEYS["hop1"], frozenset())
    client = Client("hop1")
    answers = relay.receive(client.extend(KEYS["hop2"].public)._replace(neighbour="client"))
    assert [answer.kind for answer in answers] == [Kind.DESTROY]
    with pytest.raises(IntegrityError, match="torn down"):
        client.receive(answers[0])


def test_only_neighbours_can_be_extended_to_and_strays_are_refused() -> None:
    chain = Chain(1)
    answers = chain.relays[NAMES[0]].receive(chain.client.extend(KEYS["hop5"].public)._replace(neighbour="client"))
    assert {answer.kind for answer in answers} == {Kind.DESTROY}
    stray = Relay(KEYS["hop1"], frozenset())
    for packet in (Packet("x", 1, Kind.CELL, bytes(CELL)), Packet("x", 1, Kind.CREATE, b"short")):
        assert [answer.kind for answer in stray.receive(packet)] == [Kind.DESTROY]
    assert stray.receive(Packet("x", 1, Kind.DESTROY, bytes(CELL))) == []


def test_handshakes_are_as_long_as_stated() -> None:
    client, relay = Client("hop1"), Relay(KEYS["hop1"], frozenset())
    question = client.extend(KEYS["hop1"].public)
    (answer,) = relay.receive(question._replace(neighbour="client"))
    assert not any(question.cell[QUESTION:])
    assert any(question.cell[QUESTION - 16 : QUESTION])
    assert not any(answer.cell[ANSWER:])
