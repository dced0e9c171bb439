"""Weights handed over by way of the server: it carries envelopes that it cannot read, and the training is the same."""

import pytest
import torch

from channels import Identity
from secsplit.drive import Door, simulate
from secsplit.envelopes import Envelopes, envelope_of
from secsplit.errors import PeerError, RunError
from secsplit.message import SEALED, Kind, Message, Stamp
from secsplit.run import Run
from secsplit.topologies import named
from secsplit.transcript import Transcript
from tests.secsplit.graphs import modules_of, parties_of
from tests.secsplit.test_method import ADAM, assert_same, data_of, run_of, trained

A, B, EVE = (Identity.generate(name, days=1) for name in ("a", "b", "eve"))
MEMBERS = {"a": A.public, "b": B.public}
RUN, OTHER = b"r" * 32, b"o" * 32
WEIGHTS = Message(Kind.WEIGHTS, "client", Stamp(step=4, cast=1), {"bottom.w": torch.randn(40, 50)})


def test_the_next_client_reads_what_was_sealed_for_it() -> None:
    envelope = Envelopes(A, MEMBERS, RUN).sealed(WEIGHTS, "b")
    opened = Envelopes(B, MEMBERS, RUN).opened(envelope, "a")
    assert (opened.kind, opened.edge, opened.stamp) == (WEIGHTS.kind, WEIGHTS.edge, WEIGHTS.stamp)
    assert torch.equal(opened.tensors["bottom.w"], WEIGHTS.tensors["bottom.w"])


def test_the_carrier_finds_nothing_of_the_weights_in_an_envelope() -> None:
    envelope = Envelopes(A, MEMBERS, RUN).sealed(WEIGHTS, "b")
    carried = envelope.tensors[SEALED].numpy().tobytes()
    plain = WEIGHTS.tensors["bottom.w"].numpy().tobytes()
    assert len(carried) > len(plain)
    assert not any(plain[i : i + 8] in carried for i in range(0, len(plain), 8))
    assert b"bottom.w" not in carried


@pytest.mark.parametrize(
    ("reader", "writer", "digest", "stamp"),
    [
        (EVE, "a", RUN, WEIGHTS.stamp),
        (B, "b", RUN, WEIGHTS.stamp),
        (B, "a", OTHER, WEIGHTS.stamp),
        (B, "a", RUN, Stamp(step=5, cast=1)),
    ],
    ids=["another reader", "another writer", "another run", "another step"],
)
def test_an_envelope_opens_for_one_reader_at_one_place_only(reader, writer, digest, stamp) -> None:
    envelope = Envelopes(A, MEMBERS, RUN).sealed(WEIGHTS, "b")
    moved = Message(envelope.kind, envelope.edge, stamp, envelope.tensors, envelope.facts)
    with pytest.raises(PeerError, match="its envelope does not open"):
        Envelopes(reader, MEMBERS, digest).opened(moved, writer)


@pytest.mark.parametrize("place", [0, 40, -1])
def test_a_changed_envelope_is_refused(place: int) -> None:
    envelope = Envelopes(A, MEMBERS, RUN).sealed(WEIGHTS, "b")
    envelope.tensors[SEALED][place] ^= 1
    with pytest.raises(PeerError, match="peer 'a': its envelope does not open: changed by whoever carried it"):
        Envelopes(B, MEMBERS, RUN).opened(envelope, "a")


def test_a_carrier_takes_no_weights_in_the_clear() -> None:
    with pytest.raises(PeerError, match="expected a sealed envelope and nothing beside it"):
        envelope_of(WEIGHTS, "a")


@pytest.mark.parametrize("graph", ["vanilla", "u_shaped"])
@pytest.mark.parametrize("method", ["sl-ac", "sl-am"])
def test_training_by_way_of_the_server_equals_training_peer_to_peer(graph: str, method: str) -> None:
    topology, records = named(graph), data_of(named(graph), 3)
    runs = [
        run_of(topology, method, 3, cohort=("client",), via=via, hands="weights-and-optimizer")
        for via in ("peer", "server")
    ]
    peer, server = (trained(run, modules_of(topology), records, ADAM) for run in runs)
    for cast in records:
        assert_same(peer[cast], server[cast], exactly=True)


def test_clients_need_no_link_and_the_servers_transcript_holds_no_weight() -> None:
    topology = named("vanilla")
    run = run_of(topology, "sl-ac", 3, cohort=("client",), via="server")
    assert all("server" in link for link in run.links)
    transcripts = {name: Transcript(name) for name in run.file.parties}
    trained(run, modules_of(topology), data_of(topology, 3), ADAM, transcripts)
    carried = [r for r in transcripts["server"] if r.kind is Kind.WEIGHTS]
    assert carried
    assert all(not r.shapes and r.facts[SEALED] > 0 for r in carried)
    given = [r for r in transcripts["client-0"] if r.kind is Kind.WEIGHTS]
    assert {r.peer for r in given} <= {"client-1", "client-2"}
    assert all("bottom.0.weight" in r.shapes for r in given)


def test_two_simulations_record_the_same_though_every_sealing_is_new() -> None:
    topology = named("vanilla")

    def recorded(run: Run) -> list[tuple[object, ...]]:
        transcripts = {"server": Transcript("server")}
        trained(run, modules_of(topology), data_of(topology, 2), ADAM, transcripts)
        return [(r.peer, r.kind, r.edge, r.stamp, r.shapes, dict(r.facts)) for r in transcripts["server"]]

    run = run_of(topology, "sl-am", 2, cohort=("client",), via="server")
    assert recorded(run) == recorded(run)


def test_a_carrier_that_changes_an_envelope_is_found_out(monkeypatch) -> None:
    topology = named("vanilla")
    run = run_of(topology, "sl-am", 2, cohort=("client",), via="server")
    parties = parties_of(run, modules_of(topology), data_of(topology, 2), ADAM)
    sent = Door.sent

    def tampered(self, send):
        message = sent(self, send)
        if self.party == "server" and SEALED in message.tensors:
            message.tensors[SEALED][50] ^= 1
        return message

    monkeypatch.setattr(Door, "sent", tampered)
    with pytest.raises(PeerError, match="its envelope does not open"):
        simulate(parties)


def test_without_anyone_to_carry_it_is_refused() -> None:
    topology = named("multi_hop", hops=2)
    with pytest.raises(RunError, match=r"method\.via: no single party exchanges messages with all who play 'client-1'"):
        run_of(topology, "sl-am", 2, cohort=("client-1", "client-2"), via="server")
