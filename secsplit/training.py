"""A run carried out: simulated here, or one party of it over its channels; either leaves the same folder behind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from channels import Identity, Roster
from secsplit.auditlog import FILE as LOG
from secsplit.auditlog import AuditLog, kept
from secsplit.books import opened
from secsplit.drive import Observer, serve, simulate
from secsplit.inference import Predictor
from secsplit.links import say_goodbye
from secsplit.network import connected, linked
from secsplit.party import Party
from secsplit.run import Run
from secsplit.rundir import INITIAL, PartyDir, RunDir
from secsplit.steps import News


def _save_weights(folder: PartyDir, party: Party, when: str) -> None:
    for segment, module in party.modules.items():
        folder.save_weights(segment, when, module)


class Keeper:
    """Saves each party's weights and metrics as epochs end, then passes the news on."""

    def __init__(self, folder: RunDir, parties: Mapping[str, Party], tell: Observer) -> None:
        self._folder = folder
        self._tell = tell
        for name, party in parties.items():
            _save_weights(folder.party(name), party, INITIAL)
            party.log = AuditLog(party.run, name, kept(folder.party(name).path / LOG))

    def __call__(self, party: Party, news: News) -> None:
        if news.what == "epoch":
            folder = self._folder.party(party.name)
            _save_weights(folder, party, f"epoch-{news.epoch:03d}")
            folder.tell(news.epoch, news.metrics)
            party.log.keep(folder.path / LOG)
        if news.what == "done" and isinstance(party, Predictor) and party.predictions:
            answers = {f"{objective}/{cast}": output for (objective, cast), output in party.predictions.items()}
            self._folder.party(party.name).save_predictions(answers)
        self._tell(party, news)


def train_simulated(run: Run, out: Path, tell: Observer) -> RunDir:
    """All parties in this process."""
    folder = RunDir.create(out, run)
    transcripts = {
        name: transcript
        for name in run.file.parties
        if (transcript := folder.party(name).transcript(run.file.train.record)) is not None
    }
    with opened(run, folder, run.file.parties) as books:
        observe = Keeper(folder, books.parties, tell)
        simulate(books.parties, transcripts=transcripts, observe=observe, charge=books)
    return folder


def train_party(run: Run, out: Path, name: str, me: Identity, roster: Roster, tell: Observer) -> RunDir:
    """One party, over mutually authenticated encrypted channels to its peers.

    Raises PeerError naming the party that went away or broke the agreement; what was trained so far is on disk.
    """
    folder = RunDir.create(out, run)
    mine = folder.party(name)
    transcript = mine.transcript(run.file.train.record)
    with opened(run, folder, [name]) as books, connected(run, name, me, roster) as channels:
        party = books.parties[name]
        observe = Keeper(folder, books.parties, tell)
        try:
            with linked(channels) as (links, inbox):
                try:
                    serve(party, links, inbox, transcript=transcript, observe=observe, charge=books)
                except BaseException as error:
                    _save_weights(mine, party, "broken-off")
                    say_goodbye(links, error, name)
                    raise
        finally:
            mine.save_channels({peer: asdict(channel.facts) for peer, channel in channels.items()})
    return folder
