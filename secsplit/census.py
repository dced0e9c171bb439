"""How many records each cast has: told from neighbour to neighbour before the run, until everybody knows.

The schedule follows from it. Only numbers cross, along a tree that spans the parties, and only what is news; every
party asks the same questions in the same order, so nobody waits for nothing.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import TYPE_CHECKING

from secsplit.errors import PeerError, RunError
from secsplit.message import Fact, Kind, Message, Stamp
from secsplit.schedule import SPLITS, Split
from secsplit.steps import Recv, Send, Step

if TYPE_CHECKING:
    from secsplit.party import Party

CENSUS = "census"  # the edge of its messages
MOST = 1 << 40  # records; more than that is a lie

Counts = dict[tuple[int, Split], int]  # (cast, split) -> records


def census(party: Party) -> Generator[Step, Message | None, Mapping[int, Mapping[Split, int]]]:
    """The number of records of every cast. Raises PeerError where two parties disagree, RunError where none trains."""
    known: Counts = {
        (cast, split): n
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


def _facts(news: Counts) -> Mapping[str, Fact]:
    return {
        f"{split}-{what}": [cast if what == "casts" else n for (cast, of), n in news.items() if of == split]
        for split in SPLITS
        for what in ("casts", "records")
    }


def _told(message: Message, casts: int, peer: str) -> Counts:
    """What a peer says, checked."""
    told: Counts = {}
    for split in SPLITS:
        which, counts = message.facts.get(f"{split}-casts"), message.facts.get(f"{split}-records")
        if not isinstance(which, list) or not isinstance(counts, list) or len(which) != len(counts):
            raise PeerError(peer, f"census: expected as many numbers of {split} records as casts")
        for cast, n in zip(which, counts, strict=True):
            if not (type(cast) is int and type(n) is int and 0 <= cast < casts and 0 <= n < MOST):
                raise PeerError(peer, f"census says cast {cast!r} has {n!r} {split} records; expected a number of them")
            told[cast, split] = n
    return told


def _merged(known: Counts, told: Counts, peer: str) -> Counts:
    """What of `told` is news, now known."""
    news = {key: n for key, n in told.items() if key not in known}
    known |= news
    for (cast, split), n in told.items():
        if (ours := known[cast, split]) != n:
            where = f"{n} {split} records of cast {cast}"
            raise PeerError(peer, f"census: it has {where}, {ours} were known; parties must hold the same records")
    return news


def _sizes(known: Counts, casts: int) -> Mapping[int, Mapping[Split, int]]:
    sizes: dict[int, dict[Split, int]] = {
        cast: {split: known.get((cast, split), 0) for split in SPLITS} for cast in range(casts)
    }
    for cast, by_split in sizes.items():
        if not by_split["train"]:
            raise RunError(f"census: cast {cast} has no records to train on")
    return sizes
