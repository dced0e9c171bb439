"""What one party sent and was handed, in its own order, recorded at its own door.

In memory, or spilled to disk in shards of bounded size: safetensors for the tensors, one typed JSON line a record for
the index. The same class reads back what a finished run left. It knows no other party and no truth.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from secsplit.compression import restored
from secsplit.errors import RunError
from secsplit.message import NAMES, SEALED, Fact, Kind, Message, Stamp
from secsplit.wire import Facts, plain

Direction = Literal["sent", "received"]
SHARD_BYTES = 32 << 20  # spilled once this many bytes wait in memory
INDEX = "index.jsonl"
VERSION = 1


class Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of the index."""

    index: int
    direction: Direction
    peer: str
    kind: Kind
    edge: str
    stamp: tuple[int, int, int, int, bool]
    shard: str
    tensors: dict[str, tuple[str, tuple[int, ...]]]  # name -> (dtype, shape)
    facts: Facts


@dataclass(frozen=True)
class Record:
    """One message that passed a party's door. `tensors` is read from disk where the transcript was spilled."""

    index: int
    direction: Direction
    peer: str
    kind: Kind
    edge: str
    stamp: Stamp
    shapes: Mapping[str, tuple[str, tuple[int, ...]]]
    facts: Mapping[str, Fact]
    load: Callable[[], Mapping[str, Tensor]]

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """What the receiver had of it; `load` gives what crossed, where that was compressed."""
        return restored(self.load(), self.facts)

    @property
    def tensor(self) -> Tensor:
        """The first tensor, which for most messages is the only one."""
        return next(iter(self.tensors.values()))


class Transcript:
    """An append-only list of records; `folder` makes it spill, None keeps it in memory.

    every: record only the steps divisible by it (evaluation turns count by their own step too).
    """

    def __init__(
        self, party: str, *, folder: Path | None = None, every: int = 1, shard_bytes: int = SHARD_BYTES
    ) -> None:
        self.party = party
        self.folder = folder
        self.every = every
        self._shard_bytes = shard_bytes
        self._records: list[Record] = []
        self._waiting: list[tuple[Line, Mapping[str, Tensor]]] = []
        self._waiting_bytes = 0
        self._shards = self._synced = 0
        self._spilled = 0  # records on disk or about to be: they are read from there, not kept
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def append(self, direction: Direction, peer: str, message: Message) -> None:
        """Record a message; its tensors must not be changed afterwards by anyone."""
        if self.every < 1 or message.stamp.step % self.every:
            return
        if SEALED in message.tensors:  # new bytes with every sealing, which say nothing to whoever carries them
            message = Message(message.kind, message.edge, message.stamp, {}, message.facts)
        index = len(self)
        shapes = {name: (NAMES[t.dtype], tuple(t.shape)) for name, t in message.tensors.items()}
        if self.folder is None:
            load: Callable[[], Mapping[str, Tensor]] = lambda: message.tensors  # noqa: E731
            self._records.append(
                Record(index, direction, peer, message.kind, message.edge, message.stamp, shapes, message.facts, load)
            )
            return
        s = message.stamp
        stamp = (s.step, s.micro, s.epoch, s.cast, s.training)
        shard = f"{self._shards:05d}.safetensors"
        line = Line(index, direction, peer, message.kind, message.edge, stamp, shard, shapes, plain(message.facts))
        self._waiting.append((line, message.tensors))
        self._waiting_bytes += message.nbytes
        self._spilled += 1
        if self._waiting_bytes >= self._shard_bytes:
            self.flush()

    def flush(self) -> None:
        """Write what waits in memory; the index line follows its shard, so a torn write leaves no dangling line."""
        if self.folder is None or not self._waiting:
            return
        tensors = {
            f"{line.index}/{name}": t.contiguous().clone() for line, ts in self._waiting for name, t in ts.items()
        }
        shard = self.folder / f"{self._shards:05d}.safetensors"
        save_file(tensors, shard, {"version": str(VERSION), "party": self.party})
        with (self.folder / INDEX).open("ab") as index:
            for line, _ in self._waiting:
                index.write(msgspec.json.encode(line) + b"\n")
        self._waiting, self._waiting_bytes = [], 0
        self._shards += 1

    def sync(self) -> None:
        """Write what waits, and return when all of it is on the disk."""
        self.flush()
        if self.folder is None:
            return
        for name in (INDEX, *(f"{shard:05d}.safetensors" for shard in range(self._synced, self._shards))):
            if (path := self.folder / name).exists():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        self._synced = self._shards

    def save(self, folder: Path) -> None:
        """Write the whole transcript to `folder`, wherever it is kept now."""
        copy = Transcript(self.party, folder=folder)
        for r in self:
            copy.append(r.direction, r.peer, Message(r.kind, r.edge, r.stamp, r.load(), r.facts))
        copy.flush()

    @classmethod
    def of(cls, party: str, records: Iterable[Record]) -> Transcript:
        """A transcript in memory of these records, in their order."""
        transcript = cls(party)
        transcript._records = list(records)
        return transcript

    def cut(self, length: int) -> None:
        """Go on after the first `length` records that an earlier writer left in the folder; what follows is dropped.

        Raises RunError where there are fewer.
        """
        assert self.folder is not None
        path = self.folder / INDEX
        lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
        if len(lines) < length:
            raise RunError(f"{path}: {len(lines)} records, and a checkpoint was made after {length}: it was cut short")
        kept = [msgspec.json.decode(line, type=Line).shard for line in lines[:length]]
        if path.is_file():
            os.truncate(path, sum(map(len, lines[:length])))
        for shard in self.folder.glob("*.safetensors"):
            if shard.name not in kept:
                shard.unlink()
        self._spilled, self._shards = length, len(set(kept))
        self._synced = self._shards

    @classmethod
    def load(cls, folder: Path, party: str | None = None) -> Transcript:
        """Read back a saved transcript. Raises RunError naming the file and line that cannot be read."""
        transcript = cls(party or folder.name)
        path = folder / INDEX
        if not path.is_file():
            raise RunError(f"{path}: no transcript index here; was the run made with record = 'all'?")
        for number, text in enumerate(path.read_bytes().splitlines(), 1):
            try:
                line = msgspec.json.decode(text, type=Line)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise RunError(f"{path}:{number}: not a transcript line: {error}") from None
            if Path(line.shard).name != line.shard:
                raise RunError(f"{path}:{number}: shard {line.shard!r} is not a plain file name")
            load = _Loader(folder / line.shard, line.index, tuple(line.tensors))
            transcript._records.append(
                Record(line.index, line.direction, line.peer, line.kind, line.edge, Stamp(*line.stamp), line.tensors,
                       line.facts, load)
            )  # fmt: skip
        return transcript

    def __iter__(self) -> Iterator[Record]:
        if not self._spilled:
            return iter(self._records)
        self.flush()
        assert self.folder is not None
        return iter(Transcript.load(self.folder, self.party))

    def __len__(self) -> int:
        return self._spilled or len(self._records)


@dataclass(frozen=True)
class _Loader:
    """Reads one record's tensors from its shard, and nothing else."""

    path: Path
    index: int
    names: tuple[str, ...]

    def __call__(self) -> Mapping[str, Tensor]:
        if not self.names:
            return {}
        try:
            with safe_open(self.path, framework="pt") as shard:
                return {name: shard.get_tensor(f"{self.index}/{name}") for name in self.names}
        except (OSError, SafetensorError) as error:
            raise RunError(f"{self.path}: cannot read record {self.index}: {error}") from None
