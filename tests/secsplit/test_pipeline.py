"""Turns under way beside each other: exact where nothing is stale, and exactly so stale as was asked for."""

import copy
import threading
import time
from contextlib import ExitStack, nullcontext

import pytest
import torch
from torch import nn

from channels import memory_pair
from secsplit.drive import Door, serve, simulate
from secsplit.errors import RunError
from secsplit.links import ChannelInbox, ChannelLink
from secsplit.message import Kind, Message, Stamp
from secsplit.schedule import Turn
from secsplit.steps import News, Recv, Send, rotate
from secsplit.topologies import named
from secsplit.transcript import Transcript
from tests.secsplit.graphs import GRAPHS, modules_of, parties_of, records_of, run_of, unsplit_loss
from tests.secsplit.test_method import COHORTS, SGD, WHOLE, assert_same, data_of, trained
from tests.secsplit.test_method import run_of as run_with


def conversation(name: str, said: list[str]):
    """Two round trips with a peer."""
    for trip in range(2):
        yield Send("peer", Message(Kind.CONTROL, f"{name}{trip}"))
        said.append(f"{name}{trip}")
        yield Recv("peer", Kind.CONTROL, f"{name}{trip}", Stamp())


def order_of(width: int | None) -> list[str]:
    said: list[str] = []
    program = rotate((conversation(name, said) for name in "abcd"), width)
    step = next(program)
    try:
        while True:
            step = program.send(Message(Kind.CONTROL, "answer") if isinstance(step, Recv) else None)
    except StopIteration:
        return said


def test_rotation_never_waits_for_an_answer_while_another_program_can_speak() -> None:
    assert order_of(1) == ["a0", "a1", "b0", "b1", "c0", "c1", "d0", "d1"]
    assert order_of(None) == ["a0", "b0", "c0", "d0", "a1", "b1", "c1", "d1"]
    assert order_of(2) == ["a0", "b0", "a1", "b1", "c0", "d0", "c1", "d1"]


def test_what_receives_first_and_speaks_last_is_never_interrupted() -> None:
    def answerer(name: str):
        yield Recv("peer", Kind.SMASHED, name, Stamp())
        yield Recv("peer", Kind.LABELS, name, Stamp())
        yield Send("peer", Message(Kind.CUT_GRAD, name))
        yield News("turn", 0, 0)

    steps = []
    program = rotate(answerer(name) for name in "ab")
    step = next(program)
    for _ in range(7):
        steps.append(step)
        step = program.send(Message(Kind.SMASHED, "answer") if isinstance(step, Recv) else None)
    assert [getattr(s, "edge", None) or getattr(s, "what", None) or s.message.edge for s in [*steps, step]] == [
        "a", "a", "a", "turn", "b", "b", "b", "turn",
    ]  # fmt: skip


@pytest.mark.parametrize("graph", ["vanilla", "u_shaped", "multi_hop", "diamond"])
@pytest.mark.parametrize("in_flight", [2, 3])
def test_clients_in_flight_change_nothing(graph: str, in_flight: int) -> None:
    topology, records = GRAPHS[graph], data_of(GRAPHS[graph], 3)
    one, several = (
        trained(
            run_with(topology, "splitfed-v1", 3, cohort=COHORTS[graph], in_flight=n), modules_of(topology), records, SGD
        )
        for n in (1, in_flight)
    )
    for cast in records:
        assert_same(one[cast], several[cast], exactly=True)


def test_the_middle_serves_the_next_client_while_the_first_one_computes() -> None:
    topology = named("u_shaped")
    run = run_with(topology, "splitfed-v3", 2, cohort=("client",), in_flight=2)
    transcript = Transcript("server")
    trained(run, modules_of(topology), data_of(topology, 2), SGD, {"server": transcript})
    first = [f"{r.stamp.cast} {r.direction} {r.edge}" for r in transcript if r.kind in (Kind.SMASHED, Kind.CUT_GRAD)][
        :8
    ]
    assert first == [
        "0 received bottom->middle", "0 sent middle->head", "1 received bottom->middle", "1 sent middle->head",
        "0 received middle->head", "0 sent bottom->middle", "1 received middle->head", "1 sent bottom->middle",
    ]  # fmt: skip


def stale_by_hand(run, modules, records, staleness: int):
    """Training where each turn's gradient, of a stale segment, is of the weights so many updates ago."""
    schedule = run.schedule({0: {"train": 24, "test": 24}})
    past = [copy.deepcopy(modules)]
    for turn in (event for event in schedule if isinstance(event, Turn)):
        began = past[max(0, len(past) - 1 - staleness)]
        net = {"bottom": copy.deepcopy(began["bottom"]), "top": copy.deepcopy(past[-1]["top"])}
        unsplit_loss(run.topology, net, records, schedule.rows(turn)).backward()
        now = copy.deepcopy(past[-1])
        with torch.no_grad():
            for name, module in now.items():
                for p, q in zip(module.parameters(), net[name].parameters(), strict=True):
                    p -= 0.1 * q.grad
        past.append(now)
    return past[-1]


@pytest.mark.parametrize("staleness", [0, 1, 2])
def test_stale_gradients_are_those_of_the_weights_their_turn_began_with(staleness: int) -> None:
    topology = named("vanilla")
    run = run_of(topology, staleness=staleness, batch_size=4, evaluate_every=0)
    modules, records = modules_of(topology), records_of(topology)
    by_hand = stale_by_hand(run, modules, records, staleness)
    simulate(parties_of(run, modules, {0: records}))
    for name, module in modules.items():
        for p, q in zip(module.parameters(), by_hand[name].parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("graph", GRAPHS)
def test_staleness_waits_for_nobody_for_ever(graph: str) -> None:
    topology = GRAPHS[graph]
    parties = parties_of(
        run_of(topology, staleness=2, batch_size=4, epochs=2), modules_of(topology), {0: records_of(topology)}
    )
    simulate(parties)


def test_staleness_shares_the_statistics_of_batch_normalisation() -> None:
    topology = named("vanilla")
    modules = modules_of(topology)
    modules["bottom"] = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6)).double()
    simulate(parties_of(run_of(topology, staleness=1, batch_size=4), modules, {0: records_of(topology)}))
    assert int(modules["bottom"][1].num_batches_tracked) == 6


def test_more_clients_in_flight_than_a_wrapped_server_can_serve_are_refused() -> None:
    from secsplit.copies import Copies, Replica

    with pytest.raises(RunError, match=r"method.in_flight: a defense that wraps"):
        Copies(Replica({}, {}), SGD, 2, plain=False)


@pytest.mark.parametrize("method", ["splitfed-v1", "splitfed-v3", "sl-am", "federated"])
def test_a_simulation_computes_nothing_long_before_its_use(monkeypatch, method: str) -> None:
    """However many clients there are, few messages wait: memory does not grow with clients."""
    topology = WHOLE if method == "federated" else named("vanilla")
    run = run_with(topology, method, 12, cohort=("client",))
    records = {c: records_of(topology, rows=12, seed=c) for c in range(12)}
    most, arrived = [0], Door.arrived

    def counted(self, peer, message):
        arrived(self, peer, message)
        if message.kind in (Kind.SMASHED, Kind.WEIGHTS, Kind.CUT_GRAD):
            most[0] = max(most[0], sum(kind is not Kind.CONTROL for _, kind, _, _ in self.waiting))

    monkeypatch.setattr(Door, "arrived", counted)
    trained(run, modules_of(topology), records, SGD)
    assert 0 < most[0] <= 3


SECONDS = 0.04  # that either side of a cut computes in a turn


class Busy(nn.Module):
    """Takes its time forward and backward, in proportion to the rows, on no core: what overlaps does not depend on
    how many are free."""

    def forward(self, h):
        return _Busy.apply(h)


class _Busy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h):
        time.sleep(SECONDS / 2 * len(h) / BATCH)
        return h.clone()

    @staticmethod
    def backward(ctx, gradient):
        time.sleep(SECONDS / 2 * len(gradient) / BATCH)
        return gradient.clone()


BATCH, TURNS = 4, 6


def seconds_a_turn(method: str, clients: int, **train: int) -> float:
    """Over real channels, every party on a thread of its own: from the end of the server's first turn to its last."""
    topology = named("vanilla")
    cohort = ("client",) if clients > 1 else ()
    run = run_with(topology, method, clients, cohort=cohort, train={"batch_size": BATCH, "epochs": 1, **train})
    modules = modules_of(topology)
    modules = {
        "bottom": nn.Sequential(modules["bottom"], Busy()).double(),
        "top": nn.Sequential(Busy(), modules["top"]).double(),
    }
    parties = parties_of(run, modules, {c: records_of(topology, rows=BATCH * TURNS, seed=c) for c in range(clients)})
    inboxes = {name: ChannelInbox(timeout=30) for name in parties}
    links: dict[str, dict[str, ChannelLink]] = {name: {} for name in parties}
    ends: list[float] = []

    def observe(party, news):
        if news.what == "turn" and party.name == "server":
            ends.append(time.monotonic())

    with ExitStack() as stack:
        for a, b in run.links:
            here, there = memory_pair()
            links[a][b], links[b][a] = ChannelLink(b, here, inboxes[a]), ChannelLink(a, there, inboxes[b])
            stack.callback(links[a][b].close)
            stack.callback(links[b][a].close)
        driven = [
            threading.Thread(target=serve, args=(parties[n], links[n], inboxes[n]), kwargs={"observe": observe})
            for n in parties
        ]
        for thread in driven:
            thread.start()
        for thread in driven:
            thread.join()
    assert len(ends) == clients * TURNS
    return (ends[-1] - ends[0]) / (len(ends) - 1)


def test_client_and_server_compute_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """With both sides equally busy, half the time of one after the other is the least possible."""
    monkeypatch.setattr("secsplit.drive.pinned", lambda threads: nullcontext())
    alone = seconds_a_turn("sl-am", 1)
    assert alone > 1.9 * SECONDS
    overlapping = {
        "two clients, copies of the server": seconds_a_turn("splitfed-v1", 2),
        "two clients, their own parts": seconds_a_turn("splitfed-v3", 2),
        "staleness": seconds_a_turn("sl-am", 1, staleness=1),
        "micro-batches": seconds_a_turn("sl-am", 1, micro_batches=2),
    }
    assert {name: round(each / alone, 2) for name, each in overlapping.items() if each > 0.8 * alone} == {}
