"""What a wiretap saw of a finished run: lengths and order of encrypted messages, and who sent them to whom.

The lengths are those that the record layer puts on the wire for what was recorded, to the byte. When they passed is not
part of a transcript: of time only the order of the turns is known here, and of each sender's messages within one.
`bursts` reads a real tap, on a real network.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from audits.finished import OF_STEPS, Finished
from channels.tap import Seen
from secsplit.message import Kind
from secsplit.threat import Passage
from secsplit.traffic import size_of
from secsplit.wire import plain


def passages(finished: Finished) -> tuple[Passage, ...]:
    """Every message of a turn, as it passed; those that nobody recorded are missing."""
    found = []
    for party, transcript in finished.transcripts.items():
        for record in transcript:
            if record.direction == "sent" and record.kind is not Kind.CONTROL:
                sealed = size_of(record.kind, record.edge, record.stamp, record.shapes, plain(record.facts))[1]
                found.append((record.stamp.step, record.stamp.micro, record.index, party, record.peer, sealed, record))
    found.sort(key=lambda passage: passage[:4])
    return tuple(
        Passage(sender, receiver, sealed, at, record.stamp if record.kind in OF_STEPS else None)
        for at, (_, _, _, sender, receiver, sealed, record) in enumerate(found)
    )


def bursts(seen: Sequence[Seen], *, pause: float = 0.05) -> tuple[tuple[str, int], ...]:
    """(direction, bytes) of each run of pieces that went one way on a connection without a pause (in seconds)."""
    made: list[tuple[str, int]] = []
    for _, pieces in groupby(sorted(seen), key=lambda piece: piece.connection):
        last: Seen | None = None
        for piece in sorted(pieces, key=lambda piece: piece.seconds):
            if last is not None and last.direction == piece.direction and piece.seconds - last.seconds < pause:
                made[-1] = (piece.direction, made[-1][1] + piece.length)
            else:
                made.append((piece.direction, piece.length))
            last = piece
    return tuple(made)
