"""Each party's log: the same under both drivers' one program, refused where it was changed, and told to the peers."""

from __future__ import annotations

from pathlib import Path

import pytest

from secsplit.auditlog import FILE, AuditLog, Begun, Done, Epoch, Told, entry, kept, witnesses
from secsplit.errors import LedgerDamaged
from secsplit.journal import anchor_of, link_of
from secsplit.run import Run
from secsplit.runfile import parse
from secsplit.training import train_simulated

TABLES = {
    "topology": {"name": "vanilla"},
    "model": {"name": "mlp", "widths": [8]},
    "data": {"name": "digits", "limit": 60, "limit_test": 20},
    "train": {"epochs": 2, "batch_size": 30},
    "parties": {"a": {"role": "client"}, "b": {"role": "client"}, "s": {"role": "server"}},
}


def quiet(*_: object) -> None:
    return None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run")
    train_simulated(Run.of(parse(TABLES)), path, quiet)
    return path


def log_of(folder: Path, party: str) -> Path:
    return folder / "parties" / party / FILE


def test_every_epoch_is_written_and_told_to_every_peer(folder: Path) -> None:
    entries = [entry(line) for line in kept(log_of(folder, "s"))]
    assert isinstance(entries[0], Begun)
    assert isinstance(entries[-1], Done)
    assert [e.epoch for e in entries if isinstance(e, Epoch)] == [0, 1]
    assert [(e.epoch, e.peer) for e in entries if isinstance(e, Told)] == [(0, "a"), (0, "b"), (1, "a"), (1, "b")]


def test_what_a_peer_told_is_where_its_own_log_was(folder: Path) -> None:
    for told in (entry(line) for line in kept(log_of(folder, "s"))):
        if isinstance(told, Told):
            link = AuditLog(Run.of(parse(TABLES)), told.peer, kept(log_of(folder, told.peer))[: told.lines]).head.link
            assert link == told.link


def test_the_same_run_writes_the_same_log_and_adds_nothing(folder: Path, tmp_path: Path) -> None:
    before = log_of(folder, "a").read_bytes()
    train_simulated(Run.of(parse(TABLES)), tmp_path, quiet)
    assert log_of(tmp_path, "a").read_bytes() == before
    log = AuditLog(Run.of(parse(TABLES)), "a", kept(log_of(folder, "a")))
    log.keep(log_of(folder, "a"))
    assert log_of(folder, "a").read_bytes() == before


def test_going_on_from_an_earlier_step_writes_the_same_again(folder: Path) -> None:
    log = AuditLog(Run.of(parse(TABLES)), "a", kept(log_of(folder, "a")))
    last = next(e for e in map(entry, reversed(log.lines)) if isinstance(e, Epoch))
    log.rewind(last.step)
    assert [type(entry(line)) for line in log.lines] == [Begun, Epoch, *[Told] * (len(log.lines) - 2)]
    assert all(entry(line).step < last.step for line in log.lines)


def test_another_history_is_refused(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / FILE
    path.write_bytes(log_of(folder, "a").read_bytes())
    anchor_of(path).write_bytes(anchor_of(log_of(folder, "a")).read_bytes())
    other = AuditLog(Run.of(parse({**TABLES, "train": {"epochs": 3}})), "a")
    with pytest.raises(LedgerDamaged, match=r"audit.log:1: another run"):
        other.keep(path)


def test_an_edited_line_is_named(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / FILE
    path.write_bytes(log_of(folder, "a").read_bytes().replace(b'"epoch":1', b'"epoch":7', 1))
    with pytest.raises(LedgerDamaged, match=r"audit.log:\d+: the line does not fit the chain"):
        kept(path)


def test_the_head_is_the_chain_s(folder: Path) -> None:
    lines = kept(log_of(folder, "a"))
    link = "0" * 64
    for line in lines:
        link = link_of(link, line)
    head = AuditLog(Run.of(parse(TABLES)), "a", lines).head
    assert (head.lines, head.link) == (len(lines), link)


def test_what_is_told_does_not_grow_with_the_square_of_the_clients() -> None:
    """Clients that hand their weights to each other have a link each with all others; heads go along the tree."""

    def told(clients: int) -> int:
        names = [f"client-{i}" for i in range(clients)]
        parties = {**{name: {"role": "client"} for name in names}, "server": {"role": "server"}}
        run = Run.of(parse({"method": {"name": "sl-am"}, "parties": parties}))
        beside = {name: witnesses(run, name) for name in parties}
        assert all(name in beside[peer] for name, peers in beside.items() for peer in peers)
        assert all(beside.values())
        return sum(map(len, beside.values()))

    assert told(3) == 4 * 3  # everyone to everyone
    assert told(40) == 2 * 40
