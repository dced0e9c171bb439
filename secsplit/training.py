"""A run carried out: simulated here, or one party of it over its channels; either leaves the same folder behind.

Either can be resumed: every party goes on from the newest checkpoint that all have, and what it recorded after that is
dropped, for it will be sent and received again, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, MutableMapping
from dataclasses import asdict, dataclass
from pathlib import Path

from channels import Identity, Roster
from secsplit.auditlog import FILE as LOG
from secsplit.auditlog import AuditLog, kept
from secsplit.books import Books, opened
from secsplit.checkpoint import START, Checkpoint, name_of, newest_common, restored, taken
from secsplit.circuits import Circuits
from secsplit.drive import Observer, serve, simulate
from secsplit.envelopes import Envelopes
from secsplit.errors import RunError
from secsplit.failpoint import failpoint
from secsplit.inference import Predictor
from secsplit.journal import Head
from secsplit.links import say_goodbye
from secsplit.message import Message
from secsplit.network import connected, linked
from secsplit.party import Party
from secsplit.run import Run
from secsplit.rundir import INITIAL, PartyDir, RunDir
from secsplit.steps import News, Step
from secsplit.transcript import SHARD_BYTES, Transcript


def _save_weights(folder: PartyDir, party: Party, when: str) -> None:
    for segment, module in party.modules.items():
        folder.save_weights(segment, when, module)


@dataclass(frozen=True)
class Keeper:
    """Saves each party's weights, metrics and checkpoints when the party says so, then passes the news on."""

    folder: RunDir
    books: Books
    tell: Observer
    transcripts: MutableMapping[str, Transcript | None]

    def __call__(self, party: Party, news: News) -> None:
        folder = self.folder.party(party.name)
        if news.what == "turn":
            failpoint("turn", party.name)
        elif news.what == "epoch":
            _save_weights(folder, party, f"epoch-{news.epoch:03d}")
            folder.tell(news.epoch, news.metrics)
            party.log.keep(folder.path / LOG)
        elif news.what == "save":
            failpoint("save", party.name)
            self.checkpoint(party)
        elif news.what == "saved":
            failpoint("saved", party.name)
            folder.drop_checkpoints(but=name_of(party.position))
        elif news.what == "done":
            if isinstance(party, Predictor) and party.predictions:
                answers = {f"{objective}/{cast}": output for (objective, cast), output in party.predictions.items()}
                folder.save_predictions(answers)
            folder.end()
        self.tell(party, news)

    def begin(self, party: Party) -> None:
        """Begin anew, with a checkpoint from before the first message."""
        folder = self.folder.party(party.name)
        folder.begin_anew()
        self.transcripts[party.name] = folder.transcript(party.run.file.train.record, shard_bytes=self.shard_bytes)
        _save_weights(folder, party, INITIAL)
        party.log = AuditLog(party.run, party.name, kept(folder.path / LOG))
        self.checkpoint(party)

    def go_on(self, party: Party, name: str) -> None:
        """Go on from the checkpoint of that name. Raises RunError, LedgerDamaged where what lies there does not fit."""
        folder = self.folder.party(party.name)
        checkpoint: Checkpoint = folder.load_checkpoint(name)
        restored(party, checkpoint)
        party.log = AuditLog(party.run, party.name, kept(folder.path / LOG))
        self.books.ledgers[party.name].follows(Head(*checkpoint.outside["ledger"]))
        folder.sweep()
        folder.keep_metrics(checkpoint.outside["metrics"])
        self.transcripts[party.name] = folder.transcript(
            party.run.file.train.record, length=checkpoint.outside["records"], shard_bytes=self.shard_bytes
        )

    def checkpoint(self, party: Party) -> None:
        """Write the party's checkpoint, after all that it speaks of is on the disk."""
        folder, transcript = self.folder.party(party.name), self.transcripts[party.name]
        if transcript is not None:
            transcript.sync()
        head = self.books.ledgers[party.name].head
        outside = {
            "records": 0 if transcript is None else len(transcript),
            "metrics": len(folder.metrics()),
            "ledger": [head.lines, head.link],
        }
        folder.save_checkpoint(taken(party, outside))

    @property
    def shard_bytes(self) -> int:
        """What a transcript may keep in memory: less where many parties share this process."""
        return max(SHARD_BYTES // max(1, len(self.books.parties) // 4), 1 << 18)


def train_simulated(
    run: Run,
    out: Path,
    tell: Observer,
    *,
    resume: bool = False,
    prepare: Callable[[Mapping[str, Party]], None] | None = None,
) -> RunDir:
    """All parties in this process. resume: from the newest checkpoint that all have; raises RunError for none.

    prepare: is handed the parties before the first message, to change what some of them compute or send.
    """
    folder = RunDir.open(out) if resume else RunDir.create(out, run)
    with opened(run, folder, run.file.parties) as books:
        if prepare is not None:
            prepare(books.parties)
        keeper = Keeper(folder, books, tell, {})
        if resume:
            name = _newest_here(folder, run)
            for party in books.parties.values():
                keeper.go_on(party, name)
        else:
            for party in books.parties.values():
                keeper.begin(party)
        transcripts = {name: kept for name, kept in keeper.transcripts.items() if kept is not None}
        simulate(books.parties, transcripts=transcripts, observe=keeper, charge=books)
    return folder


def _newest_here(folder: RunDir, run: Run) -> str:
    """The newest checkpoint that all parties have in this folder."""
    have: Mapping[str, set[str]] = {name: set(folder.party(name).checkpoints()) for name in run.file.parties}
    if not (common := set.intersection(*have.values())):
        lacking = ", ".join(name for name, names in have.items() if not names)
        why = f"{lacking} has none" if lacking else "each party has others"
        raise RunError(f"{folder.path}: no checkpoint that all parties have ({why}); start with 'secsplit train' again")
    return max(common)


def train_party(
    run: Run, out: Path, name: str, me: Identity, roster: Roster, tell: Observer, *, resume: bool = False
) -> RunDir:
    """One party, over mutually authenticated encrypted channels to its peers.

    resume: go on from the newest checkpoint that all parties have. Raises PeerError naming the party that went away or
    broke the agreement; what was trained so far is on disk.
    """
    folder = RunDir.create(out, run)
    mine = folder.party(name)
    with opened(run, folder, [name]) as books, connected(run, name, me, roster) as sessions:
        party = books.parties[name]
        keeper = Keeper(folder, books, tell, {})
        circuits = Circuits(run, name, me, roster, sessions)
        if not resume:
            keeper.begin(party)
        try:
            with linked(run, name, sessions, circuits) as (links, inbox):
                try:
                    begin = _settled(keeper, party, mine.checkpoints())
                    sealing = Envelopes(me, {member.name: member for member in roster}, run.digest())
                    serve(party, links, inbox, begin=begin, envelopes=sealing, observe=keeper, charge=books)
                except BaseException as error:
                    _save_weights(mine, party, "broken-off")
                    say_goodbye(links, error, name)
                    raise
        finally:
            near = {peer: asdict(session.facts) for peer, session in sessions.items()}
            mine.save_channels({**near, **circuits.facts()})
    return folder


def _settled(keeper: Keeper, party: Party, offered: list[str]) -> Generator[Step, Message | None, Transcript | None]:
    """Settle with all parties from where to go on, and go back there."""
    name = yield from newest_common(party.run, party.name, offered)
    if name != START or party.name not in keeper.transcripts:
        keeper.go_on(party, name)
    return keeper.transcripts[party.name]
