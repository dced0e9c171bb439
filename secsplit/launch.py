"""All parties of a run on this machine, each an operating-system process, over real channels, with keys made for it.

What each process does is `secsplit join`, as it would be on several hosts; only the keys and free ports are made here.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from channels import Identity, Roster
from secsplit.errors import PeerError
from secsplit.network import listens
from secsplit.run import Run
from secsplit.rundir import RunDir, to_toml, write_atomically
from secsplit.steps import News

GRACE = 5.0  # seconds beyond the heartbeat that the other parties have to notice a death and save their part
Tell = Callable[[str, News], None]


@dataclass(frozen=True)
class Keys:
    """Where a run's keys lie: one private key a party, the roster, and the signer's public identity."""

    folder: Path

    def key(self, party: str) -> Path:
        return self.folder / f"{party}.key"

    @property
    def roster(self) -> Path:
        return self.folder / "roster.toml"

    @property
    def signer_file(self) -> Path:
        return self.folder / "signer.pub.toml"


def make_keys(run: Run, folder: Path, *, days: float = 1) -> Keys:
    """An identity for every party and a roster of all, for a run on this machine alone."""
    signer = Identity.generate("launcher", days=days)
    identities = {name: Identity.generate(name, roles=(p.role,), days=days) for name, p in run.file.parties.items()}
    keys = Keys(folder)
    for name, identity in identities.items():
        identity.save(keys.key(name))
    Roster.of([i.public for i in identities.values()], epoch=1, signer=signer).save(keys.roster)
    signer.public.save(keys.signer_file)
    return keys


def addressed(run: Run) -> Run:
    """The run with a loopback address for every party that needs to listen and has none."""
    spare = [name for name in run.file.parties if run.file.parties[name].address is None]
    with _free_ports(len(spare)) as ports:
        free = dict(zip(spare, ports, strict=True))
    parties = {
        name: party.model_copy(update={"address": party.address or f"127.0.0.1:{free[name]}"})
        for name, party in run.file.parties.items()
    }
    full = Run.of(run.file.model_copy(update={"parties": parties}), run.topology)
    needed = {listens(full, a, b) for a, b in full.links if not full.circuit(a, b)}
    kept = {n: p if n in needed else p.model_copy(update={"address": None}) for n, p in parties.items()}
    return Run.of(run.file.model_copy(update={"parties": kept}), run.topology)


@contextmanager
def _free_ports(count: int) -> Iterator[list[int]]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        yield [s.getsockname()[1] for s in sockets]
    finally:
        for s in sockets:
            s.close()


def train_processes(run: Run, out: Path, tell: Tell, *, resume: bool = False) -> RunDir:
    """Train with one process a party; resume: from the newest checkpoint that all have.

    Raises PeerError naming the party that failed first, and why.
    """
    run = addressed(run)
    folder = RunDir.create(out, run)
    with tempfile.TemporaryDirectory(prefix="secsplit-keys-") as name:
        keys = make_keys(run, Path(name))
        run_file = Path(name) / "run.toml"
        write_atomically(run_file, to_toml(run.file).encode())
        members = {party: Member.start(party, run_file, keys, out, resume=resume) for party in run.file.parties}
        try:
            _watch(members, tell, run.file.train.heartbeat + GRACE)
        finally:
            for member in members.values():
                member.kill()
    return folder


class Member:
    """One party's process, its progress, and its last words."""

    def __init__(self, party: str, process: subprocess.Popen[str], log: Path) -> None:
        self.party = party
        self.process = process
        self.log = log
        self.news: News | None = None
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    @classmethod
    def start(cls, party: str, run_file: Path, keys: Keys, out: Path, *, resume: bool = False) -> Member:
        log = out / "parties" / party / "log.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        options = {"--party": party, "--key": keys.key(party), "--roster": keys.roster, "--signer": keys.signer_file}
        words = [str(word) for option in options.items() for word in option]
        command = [sys.executable, "-m", "secsplit.cli", "join", str(run_file), *words, "--out", str(out), "--tell"]
        command += ["--resume"] if resume else []
        with log.open("w") as errors:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        return cls(party, process, log)

    def _listen(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                told = json.loads(line)
                if told.get("what") in ("turn", "epoch", "done"):
                    self.news = News(**told)

    def words(self) -> str:
        """Why it ended, from its log, or by which signal."""
        if (self.process.returncode or 0) < 0:
            return f"was killed by signal {-self.process.returncode}"
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        return (errors or lines or [f"ended with exit code {self.process.returncode}"])[-1]

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._listener.join()


def _watch(members: Mapping[str, Member], tell: Tell, grace: float) -> None:
    """Wait for all; at the first failure give the others `grace` seconds to save their part and end."""
    failed: list[str] = []
    deadline = float("inf")
    while time.monotonic() < deadline:
        running = [name for name, member in members.items() if member.process.poll() is None]
        for name, member in members.items():
            if member.news is not None:
                tell(name, member.news)
            if member.process.returncode and name not in failed:
                failed.append(name)
                deadline = min(deadline, time.monotonic() + grace)
        if not running:
            break
        time.sleep(0.05)
    if failed:
        raise _failure(members, failed)


def _failure(members: Mapping[str, Member], failed: list[str]) -> Exception:
    """The error of the party at fault: one killed, or the first whose words do not merely name another."""
    killed = [name for name in failed if (members[name].process.returncode or 0) < 0]
    blaming = [name for name in failed if members[name].words().startswith("peer ")]
    first = next(iter([*killed, *(n for n in failed if n not in blaming), *failed]))
    words = members[first].words()
    others = "; ".join(f"{n}: {members[n].words()}" for n in failed if n != first and n not in blaming)
    error = PeerError(first, words + (f" (also {others})" if others else ""))
    code = members[first].process.returncode
    if code is not None and code > 0:
        error.exit_code = code
    return error
