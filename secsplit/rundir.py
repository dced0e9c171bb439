"""The folder that a run leaves: what was agreed, and each party's own part, written so that a crash loses little.

    DIR/run.toml, digest                     what was agreed
    DIR/parties/NAME/transcript/             index.jsonl and shards of safetensors
    DIR/parties/NAME/weights/                SEGMENT/initial.safetensors, epoch-000.safetensors, ...
    DIR/parties/NAME/metrics.jsonl           one line an epoch
    DIR/parties/NAME/checkpoints/            what the party goes on from after a crash
    DIR/parties/NAME/predictions.safetensors answers of an inference run, at the party that asked
    DIR/parties/NAME/ended                   there once the party's part was over
    DIR/parties/NAME/channel.json            the facts of each peer's channel

A party writes only below its own name, so parties on several hosts each leave their own part.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w
from safetensors.torch import load_file, save
from torch import Tensor, nn

from secsplit.checkpoint import START, Checkpoint, decoded, encoded
from secsplit.errors import EnvironmentFault, RunError
from secsplit.failpoint import failpoint
from secsplit.run import Run, load
from secsplit.runfile import RunFile
from secsplit.transcript import SHARD_BYTES, Transcript

INITIAL = "initial"
ENDED = "ended"
PREDICTIONS = "predictions.safetensors"


def write_atomically(path: Path, content: bytes) -> None:
    """Replace `path` by `content`, so that a crash leaves the old file or the new one and never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        failpoint("write")
        aside.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise EnvironmentFault(f"{path}: cannot be written: {error}") from None


def _sync_folder(path: Path) -> None:
    """Return when the names in a folder are on the disk: a rename is not before that."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@dataclass(frozen=True)
class PartyDir:
    """One party's part of a run's folder."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    def transcript(self, record: str | int, *, length: int = 0, shard_bytes: int = SHARD_BYTES) -> Transcript | None:
        """A transcript that spills here, by the run's `record` setting, after the first `length` records."""
        if record == "off":
            return None
        every = 1 if record == "all" else int(record)
        transcript = Transcript(self.name, folder=self.path / "transcript", every=every, shard_bytes=shard_bytes)
        transcript.cut(length)
        return transcript

    def load_transcript(self) -> Transcript:
        return Transcript.load(self.path / "transcript", self.name)

    def save_weights(self, segment: str, when: str, module: nn.Module) -> None:
        """when: "initial" or "epoch-007"."""
        state = {key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}
        write_atomically(self.path / "weights" / segment / f"{when}.safetensors", save(state))

    def weights(self, segment: str) -> list[tuple[str, Path]]:
        """(when, file) in time order."""
        folder = self.path / "weights" / segment
        files = sorted(folder.glob("epoch-*.safetensors"), key=lambda file: int(file.stem.removeprefix("epoch-")))
        initial = folder / f"{INITIAL}.safetensors"
        return [(file.stem, file) for file in ([initial] if initial.exists() else []) + files]

    def segments(self) -> list[str]:
        """The segments whose weights lie here."""
        folder = self.path / "weights"
        return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []

    def save_predictions(self, answers: Mapping[str, Tensor]) -> None:
        """answers: "OBJECTIVE/CAST" -> (test records, outputs)."""
        content = save({name: output.detach().cpu().contiguous() for name, output in answers.items()})
        write_atomically(self.path / PREDICTIONS, content)

    def predictions(self) -> dict[str, Tensor]:
        """What this party was answered in inference; empty where it asked nothing."""
        path = self.path / PREDICTIONS
        return load_file(path) if path.exists() else {}

    def tell(self, epoch: int, metrics: Mapping[str, Mapping[str, float]]) -> None:
        """Append an epoch's metrics."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"epoch": epoch, "metrics": metrics}) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """One mapping an epoch: {"epoch": ..., "metrics": {objective: {metric: value}}}."""
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return []
        try:
            lines = [json.loads(line) for line in path.read_bytes().splitlines()]
            return [{"epoch": int(line["epoch"]), "metrics": dict(line["metrics"])} for line in lines]
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"{path}: not metrics of a party: {error}; restore it") from None

    def keep_metrics(self, lines: int) -> None:
        """Drop the metrics after so many lines: a party that goes on from a checkpoint will tell them again."""
        path = self.path / "metrics.jsonl"
        if path.exists():
            os.truncate(path, sum(map(len, path.read_bytes().splitlines(keepends=True)[:lines])))

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        write_atomically(self._checkpoint(checkpoint.name), encoded(checkpoint))

    def load_checkpoint(self, name: str) -> Checkpoint:
        """Raises RunError where it cannot be read."""
        path = self._checkpoint(name)
        return decoded(str(path), path.read_bytes())

    def checkpoints(self) -> list[str]:
        """The names of those that lie here, oldest first."""
        return sorted(path.stem for path in (self.path / "checkpoints").glob("*.safetensors"))

    def drop_checkpoints(self, *, but: str) -> None:
        """Forget all others; for when every party has this one."""
        for name in self.checkpoints():
            if name != but:
                self._checkpoint(name).unlink()

    def _checkpoint(self, name: str) -> Path:
        return self.path / "checkpoints" / f"{name}.safetensors"

    def sweep(self) -> None:
        """Remove what a crash left half written beside the files that it was to replace."""
        for path in self.path.rglob(".*"):
            if path.is_file() and path.suffix[1:].isdecimal():
                path.unlink()

    def end(self) -> None:
        """The party's part of the run is over."""
        write_atomically(self.path / ENDED, b"")

    @property
    def broken_off(self) -> bool:
        """Whether a run got somewhere here and did not end."""
        return not (self.path / ENDED).exists() and self.checkpoints()[-1:] > [START]

    def begin_anew(self) -> None:
        """Drop what an earlier run of the same folder left; the noise key and the ledger stay.

        Raises RunError where that run was broken off and can go on.
        """
        if self.broken_off:
            raise RunError(f"{self.path}: holds a run that was broken off; go on with 'secsplit resume', or remove it")
        self.sweep()
        (self.path / ENDED).unlink(missing_ok=True)
        for name in ("transcript", "weights", "checkpoints"):
            shutil.rmtree(self.path / name, ignore_errors=True)
        self.keep_metrics(0)

    def save_channels(self, facts: Mapping[str, Mapping[str, Any]]) -> None:
        write_atomically(self.path / "channel.json", json.dumps(facts, indent=1).encode())

    def channels(self) -> dict[str, Any]:
        """peer -> the facts of the channel to it; empty for a simulated run, which had none."""
        path = self.path / "channel.json"
        if not path.exists():
            return {}
        try:
            facts = json.loads(path.read_bytes())
            return {peer: {**told, "channels": [dict(channel) for channel in told["channels"]]}
                    for peer, told in facts.items()}  # fmt: skip
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(f"{path}: not facts of channels: {error}; restore it") from None


def read_weights(path: Path) -> dict[str, Tensor]:
    """A segment's saved weights."""
    return load_file(path)


@dataclass(frozen=True)
class RunDir:
    """A run's folder."""

    path: Path

    @classmethod
    def create(cls, path: Path, run: Run) -> RunDir:
        """Begin a folder for this run. Raises RunError where another run's results lie there already."""
        folder = cls(path)
        digest = path / "digest"
        if digest.exists() and digest.read_text().strip() != run.digest().hex():
            raise RunError(f"{path}: holds the results of another run; choose another --out, or remove it")
        write_atomically(path / "run.toml", to_toml(run.file).encode())
        write_atomically(digest, f"{run.digest().hex()}\n".encode())
        return folder

    @classmethod
    def open(cls, path: Path) -> RunDir:
        """A finished or broken-off run's folder. Raises RunError where it is none."""
        if not (path / "run.toml").is_file():
            raise RunError(f"{path}: no run.toml here; expected a folder that 'secsplit train' left")
        return cls(path)

    def run(self) -> Run:
        """The run that was agreed on. Raises RunError where the file no longer fits its digest."""
        run = load(self.path / "run.toml")
        agreed = (self.path / "digest").read_text().strip() if (self.path / "digest").exists() else ""
        if agreed != run.digest().hex():
            raise RunError(f"{self.path}/run.toml: changed since the run: its digest no longer fits {self.path}/digest")
        return run

    def party(self, name: str) -> PartyDir:
        return PartyDir(self.path / "parties" / name)

    def parties(self) -> Iterator[PartyDir]:
        """Every party whose part lies here."""
        folder = self.path / "parties"
        for path in sorted(folder.iterdir()) if folder.is_dir() else []:
            yield PartyDir(path)


def to_toml(file: RunFile) -> str:
    """The run file with every default written out."""
    return tomli_w.dumps(file.model_dump(mode="json", exclude_none=True))
