"""A run rehearsed with one adversary that takes its own parties' places: what an active attack is judged on.

The honest run says nothing of an attack that changes what a party sends. So the same run is simulated again, from the
same file and seed, with the adversary's parties changed before the first message. It spends no budget and no message of
it ever leaves this machine; its noise follows from the run, so that the rehearsal can be repeated.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from tempfile import mkdtemp

import torch

from attacks.base import Attack
from audits.finished import Finished
from audits.views import coalition
from secsplit.books import KEY
from secsplit.party import Party
from secsplit.run import Run
from secsplit.rundir import RunDir
from secsplit.threat import Threat, View
from secsplit.training import train_simulated
from secsplit.transcript import Transcript


@contextmanager
def rehearsed(
    finished: Finished, attack: Attack, threat: Threat, view: View, *, coins: torch.Generator
) -> Iterator[Finished]:
    """The run as it goes with `attack` in the adversary's place; its folder is removed afterwards.

    view: the adversary's of the honest run, of which only what is known beforehand is handed on.
    """
    run = without_ledgers(finished.run)
    folder = Path(mkdtemp(prefix=f"rehearsal-{attack.name}-", dir=finished.folder))
    try:
        for name in run.file.parties:
            fix_noise(RunDir(folder / "run").party(name).path / KEY, run, name)

        def prepare(parties: Mapping[str, Party]) -> None:
            mine = {name: parties[name] for name in coalition(run, threat)}
            attack.corrupt(mine, beforehand(view), coins=coins)

        train_simulated(run, folder / "run", lambda party, news: None, prepare=prepare)
        yield Finished.open(folder / "run")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def beforehand(view: View) -> View:
    """What is left of a view before the first message: no transcript, no trained segment, nobody to query."""
    blank = {name: Transcript(name) for name in view.transcripts}
    return replace(view, transcripts=blank, models={}, query={}, weights={}, history={})


def without_ledgers(run: Run) -> Run:
    """The run with ledgers of its own: a rehearsal spends no real budget."""
    parties = {
        name: party.model_copy(update={"budget": party.budget.model_copy(update={"ledger": None})})
        for name, party in run.file.parties.items()
    }
    return Run.of(run.file.model_copy(update={"parties": parties}), run.topology)


def fix_noise(path: Path, run: Run, name: str) -> None:
    """The noise key of a simulation that is to be repeated: it follows from the run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.write_bytes(sha256(b"noise of a simulated sweep/" + run.digest() + name.encode()).digest())
