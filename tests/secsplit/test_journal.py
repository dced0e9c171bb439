"""The journal survives a crash at any byte, and shows every edit and every rollback."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import pytest

from secsplit.errors import EnvironmentFault, LedgerDamaged
from secsplit.journal import Head, Journal, anchor_of

PAYLOADS = [b"one", b'{"two": 2}', b"", b"four " * 20]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "site" / "ledger.jsonl"
    with Journal(path) as journal:
        for payload in PAYLOADS:
            journal.append(payload)
    return path


def lines(path: Path) -> list[bytes]:
    with Journal(path) as journal:
        return journal.lines


def test_reads_back_what_was_written(path: Path) -> None:
    assert lines(path) == PAYLOADS
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_crash_in_the_middle_of_a_line_loses_that_line_alone(path: Path) -> None:
    """The last line is cut at every byte; the head still says three, since it is written after the line."""
    whole, head = path.read_bytes(), None
    before = whole[: whole.rindex(b"\n", 0, -1) + 1]
    for cut in range(len(before), len(whole)):
        path.write_bytes(before)
        anchor_of(path).unlink()
        anchor_of(path).write_text(str(Head(3, before.splitlines()[-1][:64].decode())))
        path.write_bytes(whole[:cut])
        with Journal(path) as journal:
            assert journal.lines == PAYLOADS[:3]
            head = journal.append(PAYLOADS[3])
        assert path.read_bytes() == whole
    assert head is not None
    assert head.lines == 4


def test_a_crash_between_line_and_head_keeps_the_line(path: Path) -> None:
    third = path.read_bytes().splitlines()[2][:64].decode()
    anchor_of(path).write_text(str(Head(3, third)))
    assert lines(path) == PAYLOADS


def test_every_flipped_bit_shows(path: Path) -> None:
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(LedgerDamaged):
            Journal(path)
    path.write_bytes(whole)
    assert lines(path) == PAYLOADS


@pytest.mark.parametrize("kept", [0, 1, 2, 3])
def test_a_shorter_copy_shows(path: Path, kept: int) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:kept]))
    with pytest.raises(LedgerDamaged, match="rolled back"):
        Journal(path)


def test_a_removed_journal_shows(path: Path) -> None:
    path.unlink()
    with pytest.raises(LedgerDamaged, match="rolled back"):
        Journal(path)


def test_a_removed_head_shows(path: Path) -> None:
    anchor_of(path).unlink()
    with pytest.raises(LedgerDamaged, match="no head"):
        Journal(path)


def test_a_rewritten_history_shows(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    with Journal(other) as journal:
        for payload in [b"less", *PAYLOADS[1:], b"more"]:
            journal.append(payload)
    shutil.copy(other, path)
    with pytest.raises(LedgerDamaged, match="rewritten"):
        Journal(path)


def test_a_head_kept_elsewhere_shows_that_both_files_were_rolled_back(path: Path) -> None:
    copies = {file: file.read_bytes() for file in (path, anchor_of(path))}
    with Journal(path) as journal:
        seen = journal.append(b"five")
    for file, content in copies.items():
        file.write_bytes(content)
    with Journal(path) as journal:
        assert not journal.follows(seen)
        assert journal.follows(Head())


def test_one_process_at_a_time(path: Path) -> None:
    with Journal(path), pytest.raises(EnvironmentFault, match="another process"):
        Journal(path)
    assert lines(path) == PAYLOADS


def test_nothing_follows_a_write_that_failed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with Journal(path) as journal:
        monkeypatch.setattr(os, "fdatasync", full)
        with pytest.raises(EnvironmentFault, match="No space"):
            journal.append(b"five")
        monkeypatch.undo()
        with pytest.raises(EnvironmentFault, match="anew"):
            journal.append(b"six")
    assert lines(path) == [*PAYLOADS, b"five"]  # it may have reached the disk, so it counts


def test_nothing_follows_a_head_that_could_not_be_written(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Journal(path) as journal:
        journal.append(b"one")
        with monkeypatch.context() as broken:
            broken.setattr(os, "pwrite", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
            with pytest.raises(EnvironmentFault, match="No space left on device; nothing sent"):
                journal.append(b"two")
        with pytest.raises(EnvironmentFault, match="an earlier write failed"):
            journal.append(b"three")
    with Journal(path) as journal:
        assert journal.lines == [*PAYLOADS, b"one", b"two"]


def test_a_payload_is_one_line(path: Path) -> None:
    with Journal(path) as journal, pytest.raises(ValueError, match="newline"):
        journal.append(b"a\nb")


def test_all_who_wait_for_the_disk_wait_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Group commit: whoever comes while the disk is busy finds the lines written so far settled by the next one."""
    synced: list[int] = []
    busy, begun = threading.Event(), threading.Event()

    def slow(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_size)
        begun.set()
        assert busy.wait(10)

    monkeypatch.setattr(os, "fdatasync", slow)
    with Journal(path) as journal:
        journal.write(b"five")
        waiting = [threading.Thread(target=journal.settle)]
        waiting[0].start()
        assert begun.wait(10)
        for payload in (b"six", b"seven", b"eight"):
            journal.write(payload)
            waiting.append(threading.Thread(target=journal.settle))
            waiting[-1].start()
        assert anchor_of(path).read_text().split()[0] == str(len(PAYLOADS))  # the head is that of what is on the disk
        busy.set()
        for thread in waiting:
            thread.join(10)
        assert anchor_of(path).read_text().split()[0] == str(len(PAYLOADS) + 4)
    assert len(synced) == 2
    assert synced[1] == path.stat().st_size


def test_closing_settles(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    with Journal(path) as journal:
        journal.write(b"five")
        assert not synced
    assert len(synced) == 1
    assert lines(path) == [*PAYLOADS, b"five"]
