"""What a wiretap is said to have seen is what passes on a real wire."""

from __future__ import annotations

from audits.config import AuditSpec
from audits.finished import Finished
from audits.privacy import audit
from audits.views import view_of
from audits.wiretap import bursts, passages
from channels.tap import Seen
from secsplit.message import Kind
from secsplit.threat import Threat
from secsplit.traffic import size_of
from secsplit.wire import plain


def test_every_message_passes_once_in_order(finished: Finished) -> None:
    wire = passages(finished)
    sent = [r for t in finished.transcripts.values() for r in t if r.direction == "sent" and r.kind is not Kind.CONTROL]
    assert sorted(p.bytes for p in wire) == sorted(
        size_of(r.kind, r.edge, r.stamp, r.shapes, plain(r.facts))[1] for r in sent
    )
    steps = [p.rows.step for p in wire if p.rows is not None]
    assert steps == sorted(steps)
    assert [p.at for p in wire] == list(range(len(wire)))


def test_only_a_wiretap_is_given_the_wire(finished: Finished) -> None:
    assert view_of(finished, Threat("t", (), "wiretap")).wire
    assert not view_of(finished, Threat("t", ("server",))).wire


def test_messages_of_one_size_tell_no_label(finished: Finished) -> None:
    found = audit(finished, AuditSpec(attacks=("message-lengths",)))
    cell = next(c for c in found.cells if c.threat == "wiretap")
    assert cell.status == "ran"
    assert cell.goal == "traffic"
    assert not any(leak.leaks for leak in cell.leakages)


def test_pieces_become_messages_again() -> None:
    pieces = [
        Seen(0, "there", 0.000, 1000), Seen(0, "there", 0.001, 400), Seen(0, "back", 0.002, 700),
        Seen(1, "there", 0.001, 50), Seen(0, "there", 0.003, 200), Seen(0, "there", 0.500, 300),
    ]  # fmt: skip
    assert bursts(pieces) == (("there", 1400), ("back", 700), ("there", 200), ("there", 300), ("there", 50))
