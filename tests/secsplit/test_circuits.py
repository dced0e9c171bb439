"""Links through other parties: labels from the first client to the last server, past hops that see cells only."""

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from channels import Identity, PublicIdentity, Roster
from channels.circuit import marked
from secsplit.circuits import Circuits
from secsplit.errors import PeerError, RunError
from secsplit.launch import addressed, make_keys, train_processes
from secsplit.links import ChannelLink
from secsplit.message import Kind, Message
from secsplit.network import connected, linked
from secsplit.run import Run, parse
from secsplit.training import train_simulated

NAMES = ["clinic", "relay-1", "relay-2", "compute"]


def run_of(through: tuple[str, ...] = ("relay-1", "relay-2"), **more: Any) -> Run:
    roles = dict(zip(NAMES, ("client-1", "client-2", "client-3", "server"), strict=True))
    parties: dict[str, Any] = {name: {"role": role} for name, role in roles.items()}
    parties["clinic"]["through"] = through
    topology = {"name": "multi_hop", "hops": 3, "labels": "client-1"}
    return Run.of(parse({"topology": topology, "parties": parties, **more}))


def test_only_the_link_beyond_the_neighbours_is_a_circuit() -> None:
    run = run_of()
    assert run.circuit("compute", "clinic") == run.circuit("clinic", "compute") == tuple(NAMES)
    assert not run.circuit("clinic", "relay-1")
    assert not run.circuit("relay-1", "relay-2")
    assert run.digest() != run_of(()).digest()  # both ends must know


@pytest.mark.parametrize(
    ("through", "said"),
    [
        (("relay-2", "relay-1"), "'clinic' and 'relay-2' are no neighbours"),
        (("relay-1",), "'relay-1' and 'compute' are no neighbours"),
        (("relay-1", "relay-9"), "'relay-9' is no other party"),
        (("relay-1", "relay-1"), "'relay-1' is no other party, named once"),
        (("clinic", "relay-1"), "'clinic' is no other party"),
    ],
)
def test_hops_are_neighbours_in_a_row(through: tuple[str, ...], said: str) -> None:
    with pytest.raises(RunError, match=said):
        run_of(through)


def test_a_route_that_nothing_takes_is_refused() -> None:
    topology = {"name": "multi_hop", "hops": 3}  # the server holds the labels: nothing goes past a neighbour
    with pytest.raises(RunError, match="nobody beyond 'relay-2'"):
        run_of(topology=topology)


class Site(threading.Thread):
    """One party with its real sessions and circuits; no training."""

    def __init__(
        self, run: Run, folder: Path, name: str, done: threading.Barrier, seen: list[tuple[str, bytes]]
    ) -> None:
        super().__init__(daemon=True)
        self.run_, self.name, self.folder, self.done, self.seen = run, name, folder, done, seen
        self.heard: list[tuple[str, Message | None]] = []
        self.error: BaseException | None = None

    def run(self) -> None:
        me = Identity.load(self.folder / f"{self.name}.key")
        roster = Roster.load(self.folder / "roster.toml", PublicIdentity.load(self.folder / "signer.pub.toml"))
        try:
            with connected(self.run_, self.name, me, roster, timeout=20) as sessions:
                assert "compute" not in sessions or self.name != "clinic"
                circuits = Circuits(self.run_, self.name, me, roster, sessions)
                self._watch(circuits)
                with linked(self.run_, self.name, sessions, circuits, timeout=20) as (links, inbox):
                    self._talk(links, inbox)
                self.facts = circuits.facts()
        except BaseException as error:
            self.error = error

    def _watch(self, circuits: Circuits) -> None:
        take = circuits.take

        def watched(neighbour: str, frame: Any) -> bool:
            if marked(frame.meta):
                self.seen.append((self.name, bytes(frame.payload)))
            return take(neighbour, frame)

        circuits.take = watched  # type: ignore[method-assign]

    def _talk(self, links: Mapping[str, ChannelLink], inbox: Any) -> None:
        if self.name == "clinic":
            y = torch.arange(500)
            links["compute"].send(Message(Kind.LABELS, "loss", tensors={"y": y}))
            self.heard.append(inbox.get())
        elif self.name == "compute":
            self.heard.append(inbox.get())
            links["clinic"].send(Message(Kind.CONTROL, "loss", facts={"loss": 0.25}))
        self.done.wait(20)


def test_labels_and_control_pass_hops_that_see_only_cells(tmp_path: Path) -> None:
    run = addressed(run_of())
    make_keys(run, tmp_path)
    done, seen = threading.Barrier(4), list[tuple[str, bytes]]()
    sites = {name: Site(run, tmp_path, name, done, seen) for name in NAMES}
    for site in sites.values():
        site.start()
    for site in sites.values():
        site.join(40)
        assert site.error is None, site.error
    ((peer, labels),) = sites["compute"].heard
    assert peer == "clinic"
    assert labels is not None
    assert torch.equal(labels.tensors["y"], torch.arange(500))
    ((peer, told),) = sites["clinic"].heard
    assert (peer, told and told.facts) == ("compute", {"loss": 0.25})
    assert {name for name, _ in seen} == set(NAMES)
    assert {len(cell) for _, cell in seen} == {4096}
    plain = labels.tensors["y"].numpy().tobytes()[800:864]
    assert not any(plain in cell for _, cell in seen)
    assert sites["compute"].facts["clinic"]["messages_received"] == 1
    assert not sites["relay-1"].facts


def test_a_hop_that_is_missing_is_named(tmp_path: Path) -> None:
    run = addressed(run_of())
    make_keys(run, tmp_path)
    me = Identity.load(tmp_path / "clinic.key")
    roster = Roster.load(tmp_path / "roster.toml", PublicIdentity.load(tmp_path / "signer.pub.toml"))
    circuits = Circuits(run, "clinic", me, roster, {})
    with pytest.raises(PeerError, match=r"no circuit through relay-1, relay-2: .*reached 0 of 3 hops") as caught:
        list(circuits.meet(0.3))
    assert caught.value.peer == "compute"
    circuits.close()


@pytest.mark.slow
def test_a_run_whose_labels_travel_by_circuit_is_the_simulated_one(tmp_path: Path) -> None:
    """Four processes; every party's transcript equals the simulation's, bit for bit."""
    data = {"name": "digits", "limit": 200, "limit_test": 60}
    train = {"seed": 1, "epochs": 1, "batch_size": 64}
    model = {"name": "mlp", "widths": [24, 20, 16]}
    run = run_of(data=data, train=train, model=model)
    net = train_processes(run, tmp_path / "net", lambda name, news: None)
    sim = train_simulated(run, tmp_path / "sim", lambda party, news: None)
    for name in NAMES:
        ours, theirs = sim.party(name).load_transcript(), net.party(name).load_transcript()
        assert len(ours) == len(theirs) > 0
        for a, b in zip(ours, theirs, strict=True):
            assert (a.direction, a.peer, a.kind, a.edge, a.stamp) == (b.direction, b.peer, b.kind, b.edge, b.stamp)
            assert all(torch.equal(tensor, b.tensors[key]) for key, tensor in a.tensors.items())
    facts = net.party("clinic").channels()
    assert set(facts) == {"relay-1", "compute"}
    assert facts["compute"]["channels"][0]["suite"].startswith("Noise_IKhfs")
