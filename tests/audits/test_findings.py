"""What was put to the test reaches the findings, the gate and the page: a claim contradicted, a channel unsound."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from audits import channel
from audits.dp_found import FILE, After, DpFound, LinkFound
from audits.findings import findings
from audits.finished import Finished
from audits.gate import Evidence, Outcome, judge
from audits.policy import Policy
from audits.privacy import Audit
from audits.report.assemble import report_of
from audits.report.page import page
from secsplit.errors import RunError
from tests.audits.conftest import trained
from tests.audits.report.places import misplaced, unsaid

NOISE = {"kind": "gaussian", "edge": "bottom->top", "clip": 1.0, "sigma": 2.0}


def link(claimed: float, lower: float) -> LinkFound:
    return LinkFound(
        mechanism="gaussian on bottom->top", role="client", canaries="crafted", claimed=claimed,
        adjacency="replace-one", messages=2, delta=1e-5, lower=lower, lower_clopper_pearson=lower / 2,
        lower_gaussian=lower, confidence=0.95, n=1000, verdict="violation" if lower > claimed else "no violation found",
        over=(After(messages=1, lower=lower / 2), After(messages=2, lower=lower)),
    )  # fmt: skip


def put_to_test(digest: str, lower: float = 1.0) -> DpFound:
    each = link(9.0, lower)
    return DpFound(
        digest=digest, links=(each,), trainings=(), reidentifications=(), violations=int(each.verdict == "violation"),
        statements=(f"gaussian on bottom->top: {each.verdict}",),
    )  # fmt: skip


def trial(outcome: channel.Outcome, suite: str = "Noise_X") -> channel.Trial:
    return channel.Trial(
        suite=suite, fault="flip", direction="there", at=40, during="handshake", outcome=outcome, delivered=0,
        connections=1,
    )  # fmt: skip


@pytest.fixture
def folder(finished: Finished, audited: Audit, tmp_path: Path) -> Path:
    assert finished.folder is not None
    return Path(shutil.copytree(finished.folder, tmp_path / "run"))


def judged(folder: Path, **rule: Any) -> Outcome:
    policy = Policy.model_validate({"name": "p", "rules": [{"id": "r", **rule}]})
    return next(outcome for outcome in judge(policy, Evidence.open(folder)) if outcome.id == "r")


def test_a_contradicted_claim_is_critical(finished: Finished, audited: Audit) -> None:
    digest = finished.run.digest().hex()
    assert not any("epsilon" in f.id for f in findings(finished.run.topology, audited, tested=put_to_test(digest)))
    worst = findings(finished.run.topology, audited, tested=put_to_test(digest, 10.0))[0]
    assert (worst.id, worst.severity) == ("epsilon-contradicted", "critical")


def test_an_unsound_channel_is_critical(finished: Finished, audited: Audit) -> None:
    assert not any("channel" in f.id for f in findings(finished.run.topology, audited, trials=[trial("refused")]))
    worst = findings(finished.run.topology, audited, trials=[trial("DELIVERED CHANGED")])[0]
    assert (worst.id, worst.severity) == ("channel-unsound", "critical")
    assert "Noise_X" in worst.text


def test_the_gate_asks_that_claims_were_put_to_the_test(folder: Path, finished: Finished) -> None:
    assert "no claim was put to the test" in judged(folder, check="epsilon-audit").text
    digest = finished.run.digest().hex()
    put_to_test(digest).save(folder)
    assert judged(folder, check="epsilon-audit").state == "pass"
    put_to_test(digest, 10.0).save(folder)
    outcome = judged(folder, check="epsilon-audit")
    assert outcome.state == "fail"
    assert "at least 10, claimed 9, n = 1000" in outcome.text
    assert "contradicts its claim" in judged(folder, check="epsilon", max=20).text


def test_a_claim_that_was_left_out_of_the_test_is_missing_evidence(tmp_path: Path) -> None:
    defenses = ({"kind": "frozen", "segment": "bottom"}, NOISE)
    finished = trained(tmp_path, defenses=defenses, audit={"attacks": ["inverse-network"]})
    Audit(digest=finished.run.digest().hex(), seed=0, threats=(), cells=(), hidden=False, evidence="").save(tmp_path)
    found = put_to_test(finished.run.digest().hex())
    found.model_copy(update={"links": ()}).save(tmp_path)
    assert (
        "the epsilon that hospital-a claims for its inputs was not put to the test"
        in judged(tmp_path, check="epsilon-audit").text
    )
    found.save(tmp_path)
    assert judged(tmp_path, check="epsilon-audit").state == "pass"


def test_epsilon_over_the_training_ends_at_what_the_ledger_charged(tmp_path: Path) -> None:
    defenses = ({"kind": "frozen", "segment": "bottom"}, NOISE)
    finished = trained(tmp_path, defenses=defenses)
    audit = Audit(digest=finished.run.digest().hex(), seed=0, threats=(), cells=(), hidden=False, evidence="")
    put_to_test(finished.run.digest().hex()).save(tmp_path)
    report = report_of(finished, audit)
    (curve,) = report.dp.curves
    charged = {s.epsilon or 0.0 for s in report.dp.spent if s.everyone and s.training and s.protects == "inputs"}
    assert charged
    assert max(charged) == pytest.approx(min(charged)) == pytest.approx(curve.points[-1].claimed)
    assert [point.epoch for point in curve.points] == [1, 2]
    assert [point.lower for point in curve.points] == [0.5, 1.0]
    steps = [point.step for point in curve.points]
    assert steps == sorted(set(steps))
    value = json.loads(report.model_dump_json())
    assert "measured lower bound" in page(value)
    assert misplaced(value, page(value)) == unsaid(value, page(value)) == []


def test_the_epsilon_audit_of_another_run_is_refused(folder: Path, finished: Finished) -> None:
    put_to_test("0" * 64).save(folder)
    with pytest.raises(RunError, match="of run 0000000000000000, expected"):
        DpFound.load(folder, finished.run.digest().hex())
    (folder / FILE).write_text("{")
    with pytest.raises(RunError, match="not an epsilon audit"):
        DpFound.load(folder, finished.run.digest().hex())


def test_the_gate_asks_that_channels_were_attacked(folder: Path) -> None:
    suite = "Noise_X"
    for party, peer in (("hospital-a", "compute"), ("hospital-b", "compute"), ("compute", "hospital-a")):
        path = folder / "parties" / party / "channel.json"
        facts = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**facts, peer: {"channels": [{"suite": suite}]}}))
    path = folder / "parties" / "compute" / "channel.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "hospital-b": {"channels": [{"suite": suite}]}}))
    peers = judged(folder, check="channel")
    assert "no channel by" not in peers.text
    assert "no channel by Noise_X was attacked" in judged(folder, check="channel", attacked=True).text
    channel.save([trial("refused")], folder)
    assert "no channel by" not in judged(folder, check="channel", attacked=True).text
    channel.save([trial("DELIVERED CHANGED")], folder)
    outcome = judged(folder, check="channel")
    assert outcome.state == "fail"
    assert "a flip in the handshake got changed bytes delivered by Noise_X" in outcome.text


def test_the_page_tells_of_both(folder: Path, finished: Finished, audited: Audit) -> None:
    put_to_test(finished.run.digest().hex(), 10.0).save(folder)
    channel.save([trial("refused"), trial("DELIVERED CHANGED", "other")], folder)
    report = report_of(Finished.open(folder), audited)
    value = json.loads(report.model_dump_json())
    html = page(value)
    assert misplaced(value, html) == unsaid(value, html) == []
    assert report.verdict.headline.startswith(
        f"{sum(f.severity in ('critical', 'high') for f in report.residual.findings)}"
    )
    assert '<span class="tag fail">violation</span>' in html
    assert [(each.suite, each.refused, each.changed) for each in report.channel.attacked] == [
        ("Noise_X", 1, 0),
        ("other", 0, 1),
    ]
    assert "A channel delivers what was changed on the wire" in html


def test_a_cell_that_is_missing_is_named_and_not_left_out(finished: Finished, audited: Audit) -> None:
    less = audited.model_copy(update={"cells": audited.cells[1:]})
    with pytest.raises(RunError, match="evidence is missing; audit this run anew"):
        report_of(finished, less)
