"""What each party writes down as a run goes on, chained line to line, so that nobody can change it afterwards unseen.

At the end of every epoch a party writes what it trained (digests of its weights) and how it was judged, then tells its
peers how long its log is and its last link, and writes down what they tell. So a log that is cut short, rolled back or
rewritten as a whole contradicts its peers' logs. The chain is that of `journal`.

A line follows from the run alone: it holds no time and nothing of the machine. A run that is repeated or resumed writes
the same lines again, and one that differs from what stands there is refused.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from torch import Tensor

from secsplit.errors import LedgerDamaged, PeerError
from secsplit.journal import START, Head, Journal, link_of
from secsplit.message import Kind, Message, Stamp
from secsplit.room import crowded
from secsplit.run import PROTOCOL, Run
from secsplit.schedule import EpochEnd
from secsplit.steps import Recv, Send, Step
from secsplit.wire import raw

if TYPE_CHECKING:
    from secsplit.party import Party

HEADS = "audit-head"  # the edge of its messages
FILE = "audit.log"


class Begun(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="begun"):
    """The first line: who writes, in which run."""

    party: str
    run: str  # the run's digest
    protocol: int
    step: int = -1


class Epoch(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="epoch"):
    """The end of an epoch. weights: segment -> digest of what the party holds of it."""

    epoch: int
    step: int
    metrics: dict[str, dict[str, float]]
    weights: dict[str, str]


class Told(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="told"):
    """What a peer said of its own log at the end of an epoch."""

    peer: str
    epoch: int
    step: int
    lines: int
    link: str


class Done(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="done"):
    """The last line of a run that ended well."""

    epochs: int
    step: int


Entry = Begun | Epoch | Told | Done
_decoder = msgspec.json.Decoder(Entry)


def entry(payload: bytes) -> Entry:
    """A line's content. Raises msgspec.DecodeError where it is none."""
    made: Entry = _decoder.decode(payload)
    return made


class AuditLog:
    """One party's log, in memory; `keep` writes it to a file. lines: what stands there already."""

    def __init__(self, run: Run, party: str, lines: Iterable[bytes] = ()) -> None:
        self.lines = list(lines)
        if not self.lines:
            self.add(Begun(party, run.digest().hex(), PROTOCOL))

    @property
    def head(self) -> Head:
        link = START
        for payload in self.lines:
            link = link_of(link, payload)
        return Head(len(self.lines), link)

    def add(self, new: Entry) -> None:
        self.lines.append(msgspec.json.encode(new))

    def rewind(self, step: int) -> None:
        """Forget what stands at or after that step: it is about to be written again."""
        while entry(self.lines[-1]).step >= step:
            self.lines.pop()

    def keep(self, path: Path) -> None:
        """Write what is new. Raises LedgerDamaged where the file says something else than this log."""
        with Journal(path) as journal:
            for number, (stands, mine) in enumerate(zip(journal.lines, self.lines, strict=False), 1):
                if stands != mine:
                    raise LedgerDamaged(
                        f"{path}:{number}: another run of these parties stands here; choose another --out, or remove it"
                    )
            for payload in self.lines[len(journal.lines) :]:
                journal.write(payload)
            journal.settle()


def kept(path: Path) -> list[bytes]:
    """The lines of a log's file; none where there is no file. Raises LedgerDamaged where the chain is broken."""
    if not path.exists():
        return []
    with Journal(path) as journal:
        return journal.lines


def attest(
    party: Party, event: EpochEnd, metrics: Mapping[str, Mapping[str, float]], *, last: bool
) -> Generator[Step, Message | None, None]:
    """Write down the epoch, tell every peer the new head, and write down what each tells."""
    log = party.log
    log.rewind(event.step)
    weights = {segment: digest_of(module.state_dict()) for segment, module in sorted(party.modules.items())}
    log.add(Epoch(event.epoch, event.step, {name: dict(values) for name, values in metrics.items()}, weights))
    head, peers = log.head, witnesses(party.run, party.name)
    stamp = Stamp(event.step, 0, event.epoch, 0, training=False)
    for peer in peers:
        yield Send(peer, Message(Kind.CONTROL, HEADS, stamp, facts={"lines": head.lines, "link": head.link}))
    for peer in peers:
        message = yield Recv(peer, Kind.CONTROL, HEADS, stamp)
        assert message is not None
        log.add(_told(message, peer, event))
    if last:
        log.add(Done(event.epoch + 1, event.step))


def witnesses(run: Run, party: str) -> tuple[str, ...]:
    """The peers that tell each other their heads: all, but where hundreds of clients all have links to one another only
    those beside each other in the tree that spans the parties, or what is told would grow with their square."""
    near, few = run.near(party), not crowded(run.peers(party))
    return tuple(p for p in run.peers(party) if p in near or (few and not crowded(run.peers(p))))


def _told(message: Message, peer: str, event: EpochEnd) -> Told:
    lines, link = message.facts.get("lines"), message.facts.get("link")
    if not isinstance(lines, int) or not isinstance(link, str) or not 0 < lines < 1 << 40 or len(link) != len(START):
        raise PeerError(peer, f"told {message.facts!r} of its audit log; expected its number of lines and last link")
    return Told(peer, event.epoch, event.step, lines, link)


def digest_of(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over a segment's weights and buffers: names, dtypes, shapes and bytes."""
    digest = sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(raw(tensor))
    return digest.hexdigest()
