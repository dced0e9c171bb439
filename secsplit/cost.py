"""What a run costs each party: operations, bytes, memory, seconds; foretold by arithmetic beside what was measured.

Operations, memory and seconds are those of each party's segments on one batch. Bytes are foretold for the whole run
from its graph, method and shapes; and measured on a short run, whose every message is sealed by a real channel.
Losses, optimizers and defenses are in the seconds of a run, and not in the operations.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from channels import ChannelError, SealedChannel, memory_pair
from channels.session import LABEL
from secsplit.assemble import dataset_of, modules_of, parties_of, shard_of
from secsplit.copies import Replica
from secsplit.drive import Observer, pinned, simulate
from secsplit.flops import Tensors, Work, flops, macs, saved_bytes, seconds
from secsplit.launch import train_processes
from secsplit.message import NAMES, Message
from secsplit.optimizers import optimizer_of, state_of
from secsplit.party import Party
from secsplit.run import Run
from secsplit.schedule import SPLITS, Schedule, Split, Turn
from secsplit.sharing import STATE
from secsplit.topology import DATA, Segment
from secsplit.traffic import Forecast, Meter, Route, Shapes, Tally, Traffic, shapes_of, total
from secsplit.transcript import Direction
from secsplit.walk import merged
from secsplit.wire import encode


@dataclass(frozen=True)
class SegmentCost:
    """Of one segment on one batch of so many rows, in training."""

    name: str
    role: str
    rows: int
    parameters: int  # numbers
    state: int  # bytes of weights, buffers, gradients and the optimizer's state
    activations: int  # bytes that wait for backward
    macs: Work  # by arithmetic
    flops: Work  # as torch's counter saw them
    seconds: float  # CPU, forward and backward


@dataclass(frozen=True)
class PartyCost:
    """Of one party over the whole run."""

    name: str
    role: str
    steps: int  # mini-batches that it trains on
    evaluated: int  # mini-batches that it is judged on
    flops: int  # as torch's counter saw them
    macs: int  # by arithmetic
    memory: int  # bytes of all its segments' state and of one step's activations
    seconds: float  # CPU, of forward and backward over all training steps
    sent: Tally
    received: Tally


def sizes_of(run: Run) -> dict[int, dict[Split, int]]:
    """How many records each cast has, as the parties' census would find."""
    sizes: dict[int, dict[Split, int]] = {}
    for cast, players in enumerate(run.casts):
        shards = [shard_of(run, party, cast) for party in dict.fromkeys(players.values())]
        sizes[cast] = {split: max(shard.size(split) or 0 for shard in shards) for split in SPLITS}
    return sizes


def segment_costs(run: Run, modules: Mapping[str, nn.Module]) -> tuple[dict[str, SegmentCost], dict[str, Tensors]]:
    """The cost of each segment on a batch of zeros, and what it hands out."""
    rows = run.file.train.batch_size
    costs: dict[str, SegmentCost] = {}
    given: dict[str, Tensors] = {f"{DATA}{name}": (torch.zeros(rows, *shape),) for name, shape in _columns(run).items()}
    for segment in run.topology.order:
        module, taken = modules[segment.name], merged(segment, [given[name] for name in segment.inputs])
        costs[segment.name] = _segment_cost(run, segment, module, taken, rows)
        with torch.no_grad():
            made = deepcopy(module)(*taken)
        given[segment.name] = made if isinstance(made, tuple) else (made,)
    return costs, {segment.name: given[segment.name] for segment in run.topology.order}


def _columns(run: Run) -> dict[str, torch.Size]:
    """The shape of one record in every data column that the topology needs."""
    found: dict[str, torch.Size] = {}
    for role, party in run.casts[0].items():
        shapes = dataset_of(run, party, 0).shapes()
        found |= {name: shapes[name] for name in run.topology.columns(role)}
    return found


def _segment_cost(run: Run, segment: Segment, module: nn.Module, taken: Tensors, rows: int) -> SegmentCost:
    onward = bool(segment.sources)
    return SegmentCost(
        name=segment.name,
        role=segment.role,
        rows=rows,
        parameters=sum(p.numel() for p in module.parameters()),
        state=_state_bytes(run, segment.role, module),
        activations=saved_bytes(module, taken, onward=onward),
        macs=macs(module, taken, onward=onward),
        flops=flops(module, taken, onward=onward),
        seconds=seconds(module, taken, onward=onward),
    )


def _state_bytes(run: Run, role: str, module: nn.Module) -> int:
    """Weights and buffers, gradients, and what the optimizer keeps after a step."""
    own = sum(t.nbytes for t in (*module.parameters(), *module.buffers()))
    learning = [p for p in module.parameters() if p.requires_grad]
    kept = sum(t.nbytes for t in _stepped(run, role, module).values()) if learning else 0
    return own + sum(p.nbytes for p in learning) + kept


def _stepped(run: Run, role: str, module: nn.Module) -> dict[str, torch.Tensor]:
    """The optimizer's state after one step of a copy of the module."""
    copy = deepcopy(module)
    learning = [p for p in copy.parameters() if p.requires_grad]
    optimizer = optimizer_of(run.optimizer(role))(learning)
    for parameter in learning:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return state_of(optimizer)


def forecast(run: Run, modules: Mapping[str, nn.Module], made: Mapping[str, Tensors]) -> Forecast:
    """What the run will send, for the records that it has."""
    return Forecast(
        run,
        run.schedule(sizes_of(run)),
        {name: tuple(tensor.shape[1:] for tensor in tensors) for name, tensors in made.items()},
        _targets(run),
        {role: _shared(run, role, modules) for role in run.cohort_roles},
    )


def _targets(run: Run) -> dict[str, tuple[str, torch.Size]]:
    """dtype and shape of one record of every label or column that an objective is held against."""
    found: dict[str, tuple[str, torch.Size]] = {}
    for objective in run.topology.objectives:
        records = dataset_of(run, run.casts[0][objective.holder], 0).train
        name = objective.target
        column = records.inputs[name.removeprefix(DATA)] if name.startswith(DATA) else records.labels[name]
        found[name] = (NAMES[column.dtype], column.shape[1:])
    return found


def _shared(run: Run, role: str, modules: Mapping[str, nn.Module]) -> Shapes:
    """What a client of a cohort hands over, or gives to be averaged."""
    held = {segment.name: modules[segment.name] for segment in run.topology.held(role)}
    method = run.method
    shapes = shapes_of(Replica(held, {}).named(without_norms=method.averages and method.batch_norm == "local"))
    if method.client_side == "unique":
        return {}
    if method.client_side == "gradients-averaged" and method.batch_norm == "local":
        learning = {f"{segment}.{name}" for segment, module in held.items() for name, _ in module.named_parameters()}
        return {name: shape for name, shape in shapes_of(Replica(held, {}).named()).items() if name in learning}
    if method.client_side == "handed-over" and method.hands == "weights-and-optimizer":
        states = {f"{STATE}{s}/{k}": t for s, module in held.items() for k, t in _stepped(run, role, module).items()}
        return {**shapes, **shapes_of(states)}
    return shapes


class _SealedMeter(Meter):
    """Counts what a party sends by sealing it, as a channel would, and asking the wire how long it was."""

    def __init__(self, party: str, traffic: Traffic, channel: SealedChannel) -> None:
        super().__init__(party, traffic)
        self.channel = channel

    def append(self, direction: Direction, peer: str, message: Message) -> None:
        if direction == "sent":
            before = self.channel.facts.bytes_sent
            meta, buffers = encode(message)
            self.channel.send(bytes(LABEL.size) + meta, *buffers)
            route = Route(self.party, peer, message.kind, message.stamp.training)
            self.traffic.setdefault(route, Tally()).add(message.nbytes, self.channel.facts.bytes_sent - before)


@contextmanager
def _channel() -> Iterator[SealedChannel]:
    """A sealed channel whose other end takes all that comes."""
    near, far = memory_pair()

    def drain() -> None:
        try:
            while True:
                far.recv()
        except ChannelError:
            return

    thread = threading.Thread(target=drain, daemon=True)
    thread.start()
    try:
        yield near
    finally:
        near.close()
        thread.join()


@dataclass(frozen=True)
class Measured:
    """A short run: what was sent, and how long it took."""

    run: Run
    traffic: Traffic
    wall_seconds: float
    cpu_seconds: float


def _unobserved(*_: object) -> None:
    return None


def measured(run: Run, parties: Mapping[str, Party] | None = None, *, observe: Observer = _unobserved) -> Measured:
    """Simulate the run, counting and sealing every message. No ledger is charged: nothing leaves this process."""
    traffic: Traffic = {}
    parties = parties_of(run) if parties is None else parties
    with _channel() as channel:
        meters = {name: _SealedMeter(name, traffic, channel) for name in parties}
        wall, cpu = time.perf_counter(), time.process_time()
        simulate(parties, transcripts=meters, observe=observe)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return Measured(run, {route: t for route, t in traffic.items() if route.kind != "control"}, wall, cpu)


def on_the_wire(run: Run) -> dict[tuple[str, str], int]:
    """Carry the run out as real processes; (sender, receiver) -> bytes on the wire after the handshakes.

    Beyond sealed messages that is the census, sessions' greetings and goodbyes, and signs of life while one waits.
    """
    with tempfile.TemporaryDirectory(prefix="secsplit-cost-") as folder:
        silent = run.file.train.model_copy(update={"record": "off"})
        done = train_processes(
            Run.of(run.file.model_copy(update={"train": silent}), run.topology), Path(folder), lambda *_: None
        )
        return {
            (party.name, peer): sum(link["bytes_sent"] for link in facts["channels"])
            for party in done.parties()
            for peer, facts in party.channels().items()
        }


def shortened(run: Run, steps: int) -> Run:
    """The same run with so many mini-batches a client to train on, one to be judged on, and one epoch."""
    train, casts = run.file.train, len(run.casts)
    limits = {"limit": steps * train.batch_size * casts, "limit_test": train.batch_size * casts}

    def fewer(data: Any) -> Any:
        smaller = {key: min(value, getattr(data, key) or value) for key, value in limits.items()}
        return data.model_copy(update=smaller)

    parties = {
        name: party.model_copy(update={"data": fewer(party.data)}) if party.data else party
        for name, party in run.file.parties.items()
    }
    update = {"train": train.model_copy(update={"epochs": 1}), "data": fewer(run.file.data), "parties": parties}
    return Run.of(run.file.model_copy(update=update), run.topology)


@dataclass(frozen=True)
class Cost:
    """What a run costs, foretold; and what its first mini-batches cost, foretold and measured."""

    run: Run
    schedule: Schedule
    segments: Mapping[str, SegmentCost]
    traffic: Traffic  # of the whole run
    short: Measured
    foretold: Traffic  # of the short run

    def parties(self) -> list[PartyCost]:
        """The cost of each party over the whole run."""
        turns = Counter((turn.cast, turn.training) for turn in self.schedule if isinstance(turn, Turn))
        rows: Counter[tuple[int, bool]] = Counter()
        for turn in self.schedule:
            if isinstance(turn, Turn):
                rows[turn.cast, turn.training] += len(self.schedule.rows(turn))
        return [self._party(name, turns, rows) for name in self.run.file.parties]

    def _party(self, name: str, turns: Counter[tuple[int, bool]], rows: Counter[tuple[int, bool]]) -> PartyCost:
        role, casts = self.run.file.parties[name].role, self.run.casts_of(name)
        held = [self.segments[segment.name] for segment in self.run.topology.held(role)]
        trained, judged = (sum(rows[cast, training] for cast in casts) for training in (True, False))
        steps = sum(turns[cast, True] for cast in casts)
        return PartyCost(
            name=name,
            role=role,
            steps=steps,
            evaluated=sum(turns[cast, False] for cast in casts),
            flops=sum((s.flops.step * trained + s.flops.forward * judged) // s.rows for s in held),
            macs=sum((s.macs.step * trained + s.macs.forward * judged) // s.rows for s in held),
            memory=sum(s.state + s.activations for s in held),
            seconds=sum(s.seconds for s in held) * steps,
            sent=total(self.traffic, lambda route: route.sender == name),
            received=total(self.traffic, lambda route: route.receiver == name),
        )

    def disagreement(self) -> float:
        """The largest relative difference between bytes foretold and measured, payload or sealed, on any route."""
        worst = 0.0
        for route in self.foretold.keys() | self.short.traffic.keys():
            a, b = self.foretold.get(route, Tally()), self.short.traffic.get(route, Tally())
            for said, was in ((a.payload, b.payload), (a.sealed, b.sealed)):
                worst = max(worst, abs(said - was) / max(was, 1))
        return worst


def cost(run: Run, *, steps: int = 4) -> Cost:
    """Foretell what the run costs, and measure its first ``steps`` mini-batches of every client."""
    with pinned(run.file.train.threads):
        modules = modules_of(run)
        segments, made = segment_costs(run, modules)
    whole = forecast(run, modules, made)
    short = measured(shortened(run, steps))
    foretold = forecast(short.run, modules, made).traffic()
    return Cost(run, whole.schedule, segments, whole.traffic(), short, foretold)
