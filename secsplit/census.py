"""How many records each cast has, and in what order: told from neighbour to neighbour before the run, until all know.

The schedule follows from it, and parties that hold columns of the same records find out if they hold others, or in
another order. Only numbers cross, along a tree that spans the parties, and only what is news; every party asks the same
questions in the same order, so nobody waits for nothing.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import TYPE_CHECKING, NamedTuple

from secsplit.errors import PeerError, RunError
from secsplit.message import Fact, Kind, Message, Stamp
from secsplit.schedule import SPLITS, Split
from secsplit.steps import Recv, Send, Step

if TYPE_CHECKING:
    from secsplit.party import Party

CENSUS = "census"  # the edge of its messages
MOST = 1 << 40  # records; more than that is a lie


class Tally(NamedTuple):
    """records: how many; order: which and in what order, as a digest of keyed ids (0: not told)."""

    records: int
    order: int


Tallies = dict[tuple[int, Split], Tally]  # by (cast, split)
COLUMNS = ("casts", "records", "orders")


def census(party: Party) -> Generator[Step, Message | None, Mapping[int, Mapping[Split, int]]]:
    """The number of records of every cast. Raises PeerError where two parties disagree, RunError where none trains."""
    known: Tallies = {
        (cast, split): Tally(n, shard.orders.get(split, 0))
        for cast, shard in party.shards.items()
        for split in SPLITS
        if (n := shard.size(split)) is not None
    }
    news = dict(known)
    peers, casts = party.run.near(party.name), len(party.run.casts)
    for hop in range(party.run.breadth):
        stamp = Stamp(step=hop, training=False)
        facts = _facts(news)
        for peer in peers:
            yield Send(peer, Message(Kind.CONTROL, CENSUS, stamp, facts=facts))
        news = {}
        for peer in peers:
            message = yield Recv(peer, Kind.CONTROL, CENSUS, stamp)
            assert message is not None
            news |= _merged(known, _told(message, casts, peer), peer)
    return _sizes(known, casts)


def _facts(news: Tallies) -> Mapping[str, Fact]:
    rows = {split: [(cast, *tally) for (cast, of), tally in news.items() if of == split] for split in SPLITS}
    return {f"{split}-{name}": [row[i] for row in rows[split]] for split in SPLITS for i, name in enumerate(COLUMNS)}


def _told(message: Message, casts: int, peer: str) -> Tallies:
    """What a peer says, checked."""
    told: Tallies = {}
    for split in SPLITS:
        columns = [column for name in COLUMNS if isinstance(column := message.facts.get(f"{split}-{name}"), list)]
        if len(columns) != len(COLUMNS) or len({len(column) for column in columns}) != 1:
            raise PeerError(peer, f"census: expected a cast, a number and an order for all {split} records")
        for cast, n, order in zip(*columns, strict=True):
            if not all(type(number) is int for number in (cast, n, order)) or not (
                0 <= cast < casts and 0 <= n < MOST and 0 <= order < 1 << 63
            ):
                raise PeerError(peer, f"census says cast {cast!r} has {n!r} {split} records; expected a number of them")
            told[cast, split] = Tally(n, order)
    return told


def _merged(known: Tallies, told: Tallies, peer: str) -> Tallies:
    """What of `told` is news, now known."""
    news = {key: tally for key, tally in told.items() if key not in known}
    known |= news
    for (cast, split), theirs in told.items():
        ours = known[cast, split]
        if ours.records != theirs.records:
            where = f"{theirs.records} {split} records of cast {cast}"
            raise PeerError(
                peer, f"census: it has {where}, {ours.records} were known; parties must hold the same records"
            )
        if ours.order != theirs.order:
            raise PeerError(
                peer,
                f"census: its {split} records of cast {cast} are others than were known, or in another order; "
                "name them with data.id and data.id_key, and agree on data.common (secsplit data common)",
            )
    return news


def _sizes(known: Tallies, casts: int) -> Mapping[int, Mapping[Split, int]]:
    sizes: dict[int, dict[Split, int]] = {
        cast: {split: known[cast, split].records if (cast, split) in known else 0 for split in SPLITS}
        for cast in range(casts)
    }
    for cast, by_split in sizes.items():
        if not by_split["train"]:
            raise RunError(f"census: cast {cast} has no records to train on")
    return sizes
