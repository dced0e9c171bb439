"""Every cell ran, did not apply because, or failed because; figures are held against chance; nothing is silent."""

from __future__ import annotations

from pathlib import Path

import pytest

from attacks.base import Attack
from audits.config import AuditSpec, ThreatSpec, checked
from audits.finished import Finished
from audits.privacy import NOISE, Audit, Timed, _Auditor, audit, chosen
from audits.shelf import Shelf
from secsplit.errors import RunError
from secsplit.threat import Threat
from tests.audits import toys


def cell(audited: Audit, attack: str, threat: str):  # type: ignore[no-untyped-def]
    return next(c for c in audited.cells if (c.attack, c.threat) == (attack, threat))


def test_every_attack_meets_every_adversary(audited: Audit) -> None:
    assert len(audited.cells) == len(toys.ALL) * 3
    assert [t.name for t in audited.threats] == ["curious client", "curious server", "wiretap"]


def test_what_leaks_is_found(audited: Audit) -> None:
    rebuilt = {leak.metric: leak for leak in cell(audited, "linear-inverse", "curious server").leakages}
    assert rebuilt["re-identification"].value > 0.5
    assert rebuilt["mse"].leaks
    labels = cell(audited, "first-batches", "curious client").leakages[0]
    assert labels.metric == "accuracy"
    assert labels.value > 0.6
    assert labels.leaks


def test_what_does_not_leak_is_not_found(audited: Audit) -> None:
    assert not any(leak.leaks for leak in cell(audited, "blind", "curious client").leakages)


def test_the_same_attack_on_noise_is_at_chance(audited: Audit) -> None:
    for attack, threat in (("linear-inverse", "curious server"), ("first-batches", "curious client")):
        leak = cell(audited, attack, threat).leakages[0]
        noise = next(b for b in leak.baselines if b.name == NOISE)
        assert noise.value < 0.2


def test_what_cannot_run_says_why(audited: Audit) -> None:
    assert cell(audited, "linear-inverse", "curious client").because.startswith("client never received smashed")
    assert cell(audited, "linear-inverse", "wiretap").status == "not applicable"
    broken = cell(audited, "broken", "curious client")
    assert (broken.status, broken.because) == ("failed", "MemoryError: out of memory")


def test_weaker_adversaries_lack_what_they_lack(finished: Finished) -> None:
    spec = AuditSpec(threats={"no query": ThreatSpec(who=("server",), knows=frozenset())})
    found = audit(finished, spec, attacks=[toys.LinearInverse()])
    assert "which 'no query' does not have" in found.cells[0].because


def test_the_same_numbers_again_and_in_another_order(finished: Finished, audited: Audit) -> None:
    again = audit(finished, AuditSpec(), attacks=toys.ALL[::-1])
    mine = {(c.attack, c.threat): c.leakages for c in audited.cells}
    assert {(c.attack, c.threat): c.leakages for c in again.cells} == mine


def test_public_digits_are_shown_and_patients_are_not(finished: Finished, audited: Audit) -> None:
    shown = cell(audited, "linear-inverse", "curious server").gallery
    assert shown is not None
    assert [s.rank for s in shown.shown] == ["closest"] * 4 + ["median"] * 4
    assert not audited.hidden
    finished.truth.__dict__["real_patients"] = True
    try:
        private = audit(finished, AuditSpec(), attacks=[toys.LinearInverse()])
        asked = audit(finished, AuditSpec(reveal=True), attacks=[toys.LinearInverse()])
    finally:
        finished.truth.__dict__["real_patients"] = False
    assert private.hidden
    assert not any(c.gallery for c in private.cells)
    assert not asked.hidden
    assert any(c.gallery for c in asked.cells)


def test_saved_and_read_back_alike(audited: Audit, tmp_path: Path) -> None:
    audited.save(tmp_path)
    assert Audit.load(tmp_path) == audited
    with pytest.raises(RunError, match="not audited yet"):
        Audit.load(tmp_path / "elsewhere")
    (tmp_path / "audit.json").write_text('{"schema_version": "9"}')
    with pytest.raises(RunError, match="not an audit of version"):
        Audit.load(tmp_path)


class Killed(BaseException):
    """What a kill looks like from inside."""


@pytest.mark.parametrize("after", range(len(toys.ALL)))
def test_an_audit_that_was_killed_goes_on_where_it_was(
    finished: Finished, audited: Audit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    began: list[str] = []

    def counted(self: _Auditor, each: Attack, threat: Threat) -> Timed:
        if len(began) == 3 * after + 1:
            raise Killed
        began.append(f"{each.name} {threat.name}")
        return run(self, each, threat)

    run = _Auditor.run
    monkeypatch.setattr(_Auditor, "run", counted)
    with pytest.raises(Killed):
        audit(finished, AuditSpec(), attacks=toys.ALL, shelf=Shelf(tmp_path))
    finished_before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    monkeypatch.setattr(_Auditor, "run", run)
    found = audit(finished, AuditSpec(), attacks=toys.ALL, shelf=Shelf(tmp_path))
    assert found.model_dump_json() == audited.model_dump_json()
    assert len(finished_before) == len([b for b in began if not b.startswith("broken curious client")])
    assert {path: path.stat().st_mtime_ns for path in finished_before} == finished_before


def test_a_finished_cell_is_not_taken_for_another(finished: Finished, tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    audit(finished, AuditSpec(), attacks=[toys.LinearInverse()], shelf=shelf)
    files = len(list(tmp_path.iterdir()))
    for spec, attack in ((AuditSpec(), toys.LinearInverse(damping=1.0)), (AuditSpec(seed=1), toys.LinearInverse())):
        audit(finished, spec, attacks=[attack], shelf=shelf)
        assert len(list(tmp_path.iterdir())) == files + 3
        files += 3


def test_many_attacks_are_many_chances_of_a_false_alarm(audited: Audit) -> None:
    headlines = [leak for leak in audited.leakages if leak.headline and leak.p is not None]
    assert all(leak.p_adjusted is not None and leak.p_adjusted >= leak.p for leak in headlines)  # type: ignore[operator]
    smallest = min(headlines, key=lambda leak: leak.p or 0.0)
    assert smallest.p_adjusted == pytest.approx(min(1.0, (smallest.p or 0.0) * len(headlines)))


def test_an_empty_audit_is_refused(finished: Finished) -> None:
    with pytest.raises(RunError, match="an empty audit says nothing"):
        audit(finished, AuditSpec(), attacks=[])


def test_an_audit_belongs_to_its_run(audited: Audit) -> None:
    with pytest.raises(RunError, match="audit this run anew"):
        audited.belongs_to("00" * 32)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"atacks": ["all"]}, "audit.atacks: unknown key; did you mean 'attacks'"),
        ({"threats": {"x": {"knows": ["everything"]}}}, "audit.threats.x.knows"),
        ({"gallery": -1}, "audit.gallery: got -1"),
    ],
)
def test_a_wrong_audit_table_is_named(table: dict[str, object], message: str) -> None:
    with pytest.raises(RunError, match=message):
        checked(table)


def test_an_unknown_attack_is_named() -> None:
    with pytest.raises(RunError, match="no attack 'nrom'"):
        chosen(AuditSpec(skip=("nrom",)))
