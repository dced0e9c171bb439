"""Both drivers give the same weights and transcripts bit for bit, dropout included, for every configuration."""

import threading
from contextlib import ExitStack, nullcontext

import pytest
import torch

from channels import memory_pair
from secsplit.drive import MAX_EARLY, Door, serve, simulate
from secsplit.errors import PeerError, SplitError
from secsplit.links import ChannelInbox, ChannelLink, say_goodbye
from secsplit.message import Kind, Message, Stamp
from secsplit.party import Party
from secsplit.run import Run
from secsplit.steps import Recv
from secsplit.topologies import named
from secsplit.transcript import Transcript
from tests.secsplit.graphs import DIAMOND, SIX, modules_of, parties_of, records_of, run_of

COHORT = {"hospital-a": "client", "hospital-b": "client", "server": "server"}
CASES = {name: (named(name), None) for name in SIX} | {
    "diamond": (DIAMOND, None),
    "two hospitals": (named("vanilla"), COHORT),
    "two hospitals, u-shaped": (named("u_shaped"), COHORT),
}


def fresh(case: str) -> tuple[Run, dict[str, Party]]:
    topology, cohort = CASES[case]
    run = run_of(topology, parties=cohort, epochs=2, batch_size=7)
    records = {cast: records_of(topology, rows=20 + 3 * cast, seed=cast) for cast in range(len(run.casts))}
    return run, parties_of(run, modules_of(topology, dropout=0.5), records)


def simulated(case: str) -> tuple[dict[str, Party], dict[str, Transcript]]:
    _, parties = fresh(case)
    transcripts = {name: Transcript(name) for name in parties}
    simulate(parties, transcripts=transcripts)
    return parties, transcripts


def networked(case: str) -> tuple[dict[str, Party], dict[str, Transcript]]:
    """Every party on a thread of its own over encrypted channels; only one computes at a time, as torch is global."""
    run, parties = fresh(case)
    transcripts = {name: Transcript(name) for name in parties}
    inboxes = {name: ChannelInbox(timeout=30) for name in parties}
    links: dict[str, dict[str, ChannelLink]] = {name: {} for name in parties}
    errors: list[BaseException] = []

    def drive(name: str) -> None:
        try:
            serve(parties[name], links[name], inboxes[name], transcript=transcripts[name])
        except BaseException as error:
            errors.append(error)

    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr("secsplit.drive.pinned", lambda threads: nullcontext())  # it sets the shared generator back
        for a, b in run.links:
            ends = memory_pair()
            for mine, other, end in ((a, b, ends[0]), (b, a, ends[1])):
                links[mine][other] = ChannelLink(other, end, inboxes[mine])
        for by_peer in links.values():
            for link in by_peer.values():
                stack.callback(link.close)
        threads = [threading.Thread(target=drive, args=(name,)) for name in parties]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]
    return parties, transcripts


@pytest.fixture(autouse=True)
def one_generator_a_thread(monkeypatch):
    """Threads share torch's generator, processes do not: give drawing and computing one lock, as each process has."""
    lock, compute = threading.Lock(), Party.compute

    def locked(self, segment, inputs, stamp):
        with lock:
            return compute(self, segment, inputs, stamp)

    monkeypatch.setattr(Party, "compute", locked)


@pytest.mark.parametrize("case", CASES)
def test_both_drivers_agree_bit_for_bit(case: str) -> None:
    ours, recorded = simulated(case)
    theirs, sent = networked(case)
    for name in ours:
        for segment, module in ours[name].modules.items():
            for key, value in module.state_dict().items():
                assert torch.equal(value, theirs[name].modules[segment].state_dict()[key])
        assert len(recorded[name]) == len(sent[name]) > 0
        for mine, other in zip(recorded[name], sent[name], strict=True):
            assert (mine.direction, mine.peer, mine.kind, mine.edge, mine.stamp) == (
                other.direction, other.peer, other.kind, other.edge, other.stamp,
            )  # fmt: skip
            assert mine.tensors.keys() == other.tensors.keys()
            assert all(torch.equal(tensor, other.tensors[key]) for key, tensor in mine.tensors.items())


def test_dropout_really_draws() -> None:
    parties, _ = simulated("vanilla")
    topology = named("vanilla")
    plain = parties_of(
        run_of(topology, epochs=2, batch_size=7), modules_of(topology), {0: records_of(topology, rows=20)}
    )
    simulate(plain)
    dropped = parties["client"].modules["bottom"][0].weight
    assert not torch.equal(dropped, plain["client"].modules["bottom"][0].weight)


def test_neighbours_do_not_change_what_a_party_draws() -> None:
    torch.manual_seed(1)
    first, _ = simulated("multi_hop")
    torch.manual_seed(2)
    torch.rand(100)
    second, _ = simulated("multi_hop")
    assert torch.equal(first["client-2"].modules["hop-2"][0].weight, second["client-2"].modules["hop-2"][0].weight)


def test_the_callers_random_state_is_left_alone() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    _, parties = fresh("vanilla")
    torch.random.set_rng_state(before)
    simulate(parties)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_what_a_receiver_does_changes_no_record() -> None:
    class Greedy(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                x.data.zero_()
            return x @ torch.ones(6, 3, dtype=x.dtype)

    topology = named("vanilla")
    modules = modules_of(topology)
    run = run_of(topology)
    parties = parties_of(run, {**modules, "top": Greedy()}, {0: records_of(topology)})
    transcripts = {name: Transcript(name) for name in parties}
    simulate(parties, transcripts=transcripts)
    for transcript in transcripts.values():
        smashed = [r.tensor for r in transcript if r.kind is Kind.SMASHED]
        assert smashed
        assert all(bool(h.abs().sum() > 0) for h in smashed)


def test_a_deadlock_is_named() -> None:
    class Silent(Party):
        def program(self):
            yield Recv("client", Kind.CONTROL, "never", Stamp())

    topology = named("vanilla")
    parties = parties_of(run_of(topology), modules_of(topology), {0: records_of(topology)})
    parties["server"].__class__ = Silent
    with pytest.raises(SplitError, match=r"deadlock: .*server waits for .*never"):
        simulate(parties)


def test_a_flood_of_unasked_messages_is_refused() -> None:
    door = Door("p", None)
    for step in range(MAX_EARLY):
        door.arrived("mallory", Message(Kind.CONTROL, "x", Stamp(step)))
    with pytest.raises(PeerError, match="more than 4096 messages that nobody asked for"):
        door.arrived("mallory", Message(Kind.CONTROL, "x", Stamp(MAX_EARLY)))


def test_the_same_message_twice_is_refused() -> None:
    door = Door("p", None)
    door.arrived("mallory", Message(Kind.SMASHED, "x", Stamp(3)))
    with pytest.raises(PeerError, match="sent smashed on 'x' twice for step 3"):
        door.arrived("mallory", Message(Kind.SMASHED, "x", Stamp(3)))


def test_a_goodbye_names_the_party_at_fault() -> None:
    ends = memory_pair()
    inbox = ChannelInbox(timeout=10)
    link = ChannelLink("relay", ends[0], inbox)
    other = ChannelLink("me", ends[1], ChannelInbox())
    say_goodbye({"me": other}, PeerError("hospital-a", "went away"), "relay")
    other.close()
    with pytest.raises(PeerError, match=r"peer 'hospital-a': PeerError: .*went away.*told by 'relay'"):
        inbox.get()
    link.close()


def test_a_peer_that_closes_too_early_is_named() -> None:
    topology = named("vanilla")
    parties = parties_of(run_of(topology), modules_of(topology), {0: records_of(topology)})
    ends = memory_pair()
    inbox = ChannelInbox(timeout=10)
    link = ChannelLink("server", ends[0], inbox)
    ends[1].close()
    with pytest.raises(PeerError, match=r"peer 'server': (closed the channel before the run was over|went away)"):
        serve(parties["client"], {"server": link}, inbox)
    link.close()


def test_a_peer_whose_part_is_over_may_close() -> None:
    class Brief(Party):
        def program(self):
            message = yield Recv("server", Kind.CONTROL, "wanted", Stamp())
            assert message is not None

    topology = named("vanilla")
    parties = parties_of(run_of(topology), modules_of(topology), {0: records_of(topology)})
    parties["client"].__class__ = Brief
    inbox = ChannelInbox(timeout=10)
    inbox.put("another", None)
    inbox.put("server", Message(Kind.CONTROL, "wanted", Stamp()))
    serve(parties["client"], {}, inbox)
