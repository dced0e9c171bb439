"""A finished run as its auditor sees it: every party's transcript and weights, the schedule, and the truth.

Read from the folder that a run left, or taken from a simulation in memory. What lies there is checked before any attack
is run on it: records of another run, of another version, out of place, missing or with numbers that are not finite are
named. This file runs no attack; `views` cuts out of it what one adversary saw.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from hashlib import file_digest, sha256
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from audits.truth import Truth
from secsplit.assemble import dataset_of, modules_of, shard_of
from secsplit.auditlog import HEADS, witnesses
from secsplit.checkpoint import ALL_SAVED, SAVED
from secsplit.datasets import Dataset
from secsplit.errors import RunError
from secsplit.message import Kind, Stamp
from secsplit.run import Run
from secsplit.rundir import INITIAL, RunDir, read_weights
from secsplit.schedule import SPLITS, EpochEnd, Save, Schedule, Split, Turn
from secsplit.threat import Known, Snapshot
from secsplit.transcript import VERSION, Record, Transcript

State = Callable[[], Mapping[str, Tensor]]
Crossed = tuple[int, str, str, Kind, str]  # (step, direction, peer, kind, edge)
OF_STEPS = (Kind.SMASHED, Kind.CUT_GRAD, Kind.OUTPUT, Kind.OUTPUT_GRAD, Kind.LABELS)


@dataclass(frozen=True)
class Finished:
    """transcripts: party -> its own; states: (party, segment) -> [(step after which, how to read the weights)]."""

    run: Run
    transcripts: Mapping[str, Transcript]
    states: Mapping[tuple[str, str], tuple[tuple[int, State], ...]]
    folder: Path | None = None

    @classmethod
    def open(cls, path: Path, *, whole: bool = True) -> Finished:
        """The run whose folder this is, checked. whole: False where only the indices of its transcripts were kept.

        Raises RunError naming what does not belong to it.
        """
        folder = RunDir.open(path)
        run = folder.run()
        ends = {event.epoch: event.step for event in _schedule(run) if isinstance(event, EpochEnd)}
        transcripts, states = {}, {}
        for party in folder.parties():
            if party.name not in run.file.parties:
                raise RunError(f"{party.path}: no party of this run; its parties are {', '.join(run.file.parties)}")
            if (party.path / "transcript").is_dir():
                _check_shards(party.path / "transcript", party.name)
                transcripts[party.name] = party.load_transcript()
            for segment in party.segments():
                states[party.name, segment] = tuple(
                    (-1 if when == INITIAL else ends[int(when.removeprefix("epoch-"))], _reader(file))
                    for when, file in party.weights(segment)
                )
        finished = cls(run, transcripts, states, path)
        if whole:
            finished.check()
        return finished

    @cached_property
    def schedule(self) -> Schedule:
        return _schedule(self.run)

    @cached_property
    def turns(self) -> Mapping[int, Turn]:
        """step -> the turn taken then."""
        return {event.step: event for event in self.schedule if isinstance(event, Turn)}

    @cached_property
    def epochs(self) -> Mapping[int, int]:
        """step -> epoch, of training turns."""
        return {step: turn.epoch for step, turn in self.turns.items() if turn.training}

    @cached_property
    def modules(self) -> Mapping[str, nn.Module]:
        """segment -> the module with the weights that everyone began with."""
        return modules_of(self.run)

    @cached_property
    def truth(self) -> Truth:
        """Every column and label of the training records, by cast."""
        run, inputs, labels, sites = self.run, {}, {}, {}
        for index, cast in enumerate(run.casts):
            inputs[index], labels[index] = _columns(run, index, "train")
            cohort = [cast[role] for role in run.cohort_roles if run.topology.columns(role)]
            sites[index] = " + ".join(cohort or [p for r, p in cast.items() if run.topology.columns(r)])
        datasets = self._datasets
        real = any(dataset.card.real_patients for dataset in datasets)
        classes = {name: count for dataset in datasets for name, count in dataset.classes.items()}
        return Truth(inputs, labels, classes, sites, real)

    @cached_property
    def outside(self) -> Known:
        """Records of the same domain that nobody trained on, with labels: the test records of all casts."""
        parts = [_columns(self.run, cast, "test") for cast in range(len(self.run.casts))]
        inputs = {name: torch.cat([p[0][name] for p in parts]) for name in parts[0][0]}
        return Known(inputs, {name: torch.cat([p[1][name] for p in parts]) for name in parts[0][1]})

    @cached_property
    def _datasets(self) -> tuple[Dataset, ...]:
        run = self.run
        return tuple(
            dataset_of(run, party, cast) for cast in range(len(run.casts)) for party in run.casts[cast].values()
        )

    @cached_property
    def fingerprint(self) -> str:
        """A digest of all that was recorded, so that it can be told from anything else; "" for a run in memory."""
        return "" if self.folder is None else fingerprint_of(self.folder, self.transcripts)

    def order(self, stamp: Stamp) -> Tensor:
        """(batch,) the rows of the message with that stamp: which positions of the cast's records it holds."""
        turn = self.turns.get(stamp.step)
        if turn is None or (turn.cast, turn.training) != (stamp.cast, stamp.training):
            raise RunError(f"cast {stamp.cast} takes no such turn at step {stamp.step} of run {self.run.file.name!r}")
        rows = self.schedule.rows(turn)
        return rows.chunk(self.run.file.train.micro_batches)[stamp.micro] if turn.training else rows

    def snapshots(self, party: str, segment: str) -> tuple[Snapshot, ...]:
        """A party's segment over training time."""
        blank = self.modules[segment]
        return tuple(Snapshot(step, _maker(blank, state)) for step, state in self.states.get((party, segment), ()))

    def holder(self, role: str, cast: int | None = None) -> str:
        """The party whose weights of `role` count at the end: of that cast, or the last to take a turn."""
        if cast is None:
            cast = next((t.cast for t in reversed(list(self.turns.values()))), 0)
        return self.run.casts[cast][role]

    def check(self) -> None:
        """Raises RunError naming the party and record that does not belong to this run, or that is missing."""
        for party, transcript in self.transcripts.items():
            for record in transcript:
                if record.kind in OF_STEPS and (fault := self._fault(party, record)):
                    raise RunError(f"transcript of {party!r}, record {record.index}: {fault}")
            self._complete(party, transcript)

    def _fault(self, party: str, record: Record) -> str | None:
        stamp, turn = record.stamp, self.turns.get(record.stamp.step)
        if turn is None or (turn.epoch, turn.cast, turn.training) != (stamp.epoch, stamp.cast, stamp.training):
            return f"{record.kind} at step {stamp.step} belongs to another run: this one takes no such turn then"
        cast = self.run.casts[turn.cast]
        ends = (party, record.peer) if record.direction == "sent" else (record.peer, party)
        if not any(
            (c.kind, c.edge, cast[c.sender], cast[c.receiver]) == (record.kind, record.edge, *ends)
            for c in self.run.topology.crossings
        ):
            return f"{record.kind} on {record.edge!r} from {ends[0]} to {ends[1]}: nothing crosses so in this topology"
        rows = next(iter(record.shapes.values()), ("", (0,)))[1][:1]
        if rows != (len(self.order(stamp)),):
            return f"it has {rows[0] if rows else 0} rows where the run's order has {len(self.order(stamp))}"
        for name, tensor in record.tensors.items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                return f"tensor {name!r} has NaN or infinity"
        return None

    def _complete(self, party: str, transcript: Transcript) -> None:
        """Everything that the run's `record` setting keeps must be there, to the last."""
        setting = self.run.file.train.record
        if setting == "off":
            return
        every = 1 if setting == "all" else int(setting)
        there = {(r.stamp.step, r.direction, r.peer, r.kind, r.edge) for r in transcript}
        for expected in self._expected(party):
            if expected[0] % every == 0 and expected not in there:
                raise _truncated(party, *expected)

    def _expected(self, party: str) -> Iterator[Crossed]:
        """What a party sends and is handed in the course of the run: of its turns, epochs' ends and checkpoints."""
        run, role = self.run, self.run.file.parties[party].role
        for event in self.schedule:
            if isinstance(event, EpochEnd):
                for peer in witnesses(run, party):
                    yield event.step, "sent", peer, Kind.CONTROL, HEADS
                    yield event.step, "received", peer, Kind.CONTROL, HEADS
            elif isinstance(event, Save):
                for peer in run.near(party):
                    up = peer == run.above(party)
                    yield event.step, "sent" if up else "received", peer, Kind.CONTROL, SAVED
                    yield event.step, "received" if up else "sent", peer, Kind.CONTROL, ALL_SAVED
            elif isinstance(event, Turn) and party == (cast := run.casts[event.cast]).get(role):
                for crossing in run.topology.crossings:
                    if role in (crossing.sender, crossing.receiver) and (event.training or _forward(crossing.kind)):
                        sent = role == crossing.sender
                        peer = cast[crossing.receiver if sent else crossing.sender]
                        yield event.step, "sent" if sent else "received", peer, crossing.kind, crossing.edge


def _truncated(party: str, step: int, direction: str, peer: str, kind: Kind, edge: str) -> RunError:
    what = f"{kind} on {edge!r} {direction} {'to' if direction == 'sent' else 'from'} {peer}"
    return RunError(
        f"transcript of {party!r} is truncated: step {step} has no {what}; finish the run before it is audited"
    )


def _forward(kind: Kind) -> bool:
    return kind in (Kind.SMASHED, Kind.OUTPUT, Kind.LABELS)


def _schedule(run: Run) -> Schedule:
    sizes: dict[int, dict[Split, int]] = {}
    for index, cast in enumerate(run.casts):
        shards = [shard_of(run, party, index) for party in cast.values()]
        sizes[index] = {split: next((n for s in shards if (n := s.size(split)) is not None), 0) for split in SPLITS}
    return run.schedule(sizes)


def _columns(run: Run, cast: int, split: Split) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """All columns and labels of a cast's records, each from the party that holds it; labels that nobody holds too."""
    inputs: dict[str, Tensor] = {}
    labels: dict[str, Tensor] = {}
    for role, party in run.casts[cast].items():
        dataset = dataset_of(run, party, cast)
        records = dataset.train if split == "train" else dataset.test
        inputs |= {name: records.inputs[name] for name in run.topology.columns(role)}
        labels = {**records.labels, **labels} | {name: records.labels[name] for name in run.topology.labels(role)}
    return inputs, labels


def _reader(file: Path) -> State:
    return lambda: read_weights(file)


def _maker(blank: nn.Module, state: State) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        module = deepcopy(blank)
        module.load_state_dict(dict(state()), strict=True)
        return module

    return make


def fingerprint_of(folder: Path, parties: Iterable[str]) -> str:
    """A digest of those parties' transcripts in a run's folder."""
    digest = sha256()
    for party in sorted(parties):
        for file in sorted((folder / "parties" / party / "transcript").iterdir()):
            digest.update(f"{party}/{file.name}:{_content_digest(file)}\n".encode())
    return digest.hexdigest()


def _content_digest(file: Path) -> str:
    """Of an index, its bytes; of a shard, its header in one order (its keys have none) and its tensors' bytes."""
    with file.open("rb") as content:
        if file.suffix != ".safetensors":
            return file_digest(content, "sha256").hexdigest()
        header = json.loads(content.read(int.from_bytes(content.read(8), "little")))
        digest = sha256(json.dumps(header, sort_keys=True).encode())
        while piece := content.read(1 << 20):
            digest.update(piece)
        return digest.hexdigest()


def _check_shards(folder: Path, party: str) -> None:
    """The shards must be of this version and of this party."""
    for shard in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(shard, framework="pt") as file:
                facts = file.metadata() or {}
        except (OSError, SafetensorError) as error:
            raise RunError(f"{shard}: cannot be read, is it truncated? {error}") from None
        if facts.get("version") != str(VERSION):
            raise RunError(f"{shard}: transcript version {facts.get('version')}, expected {VERSION}")
        if facts.get("party") != party:
            raise RunError(f"{shard}: recorded by {facts.get('party')!r}, expected {party!r}")
