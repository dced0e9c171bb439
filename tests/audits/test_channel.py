"""No fault on the wire gets a changed byte delivered; an auditor that could not tell would be no auditor."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from audits import channel
from audits.channel import MESSAGES, Trial, audit_channel, load, save
from channels.tap import Kind
from secsplit.errors import RunError


@pytest.fixture(scope="module")
def trials() -> tuple[Trial, ...]:
    return audit_channel()


def test_every_fault_is_refused(trials: tuple[Trial, ...]) -> None:
    assert {trial.fault for trial in trials} == set(get_args(Kind))
    assert {trial.during for trial in trials} == {"handshake", "records"}
    assert all(trial.sound for trial in trials), [trial for trial in trials if not trial.sound]


def test_every_suite_and_tls_stand_every_fault(trials: tuple[Trial, ...]) -> None:
    suites = dict.fromkeys(trial.suite for trial in trials)
    assert list(suites) == [*(suite.name for suite in channel.SUITES), channel.TLS]
    for suite in suites:
        mine = [trial for trial in trials if trial.suite == suite]
        assert len(mine) == len(list(channel.faults()))
        in_records = [t for t in mine if t.during == "records" and t.fault not in ("delay", "reflect")]
        assert {t.outcome for t in in_records} == {"refused"}
        assert all(t.delivered < len(MESSAGES) for t in in_records)


def test_only_what_changes_nothing_is_delivered_whole(trials: tuple[Trial, ...]) -> None:
    whole = {trial.fault for trial in trials if trial.outcome == "delivered unchanged"}
    assert "delay" in whole
    assert whole.isdisjoint({"flip", "drop", "duplicate", "swap", "insert", "truncate"})


def test_a_channel_that_delivers_what_was_changed_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    changed = [MESSAGES[0], (MESSAGES[1][0], b"changed")]
    monkeypatch.setattr(channel, "delivered", lambda *_: changed)
    default = dict([next(iter(channel.every_channel().items()))])
    assert not any(trial.sound for trial in audit_channel(default))


def test_saved_and_read_back(trials: tuple[Trial, ...], tmp_path: Path) -> None:
    assert load(tmp_path) == ()
    save(trials, tmp_path)
    assert load(tmp_path) == trials
    (tmp_path / channel.FILE).write_text("[{}]")
    with pytest.raises(RunError, match="not a channel audit"):
        load(tmp_path)
