"""A leaky configuration fails, a defended one passes, on a seed that chose nothing; what is missing fails."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from audits.config import audit_spec
from audits.control import audit_with_control
from audits.dp_found import DpFound, LinkFound
from audits.finished import Finished
from audits.gate import Evidence, Outcome, judge, passed, pessimistic_score
from audits.junit import junit
from audits.leakage import Leakage
from audits.policy import Policy, load
from audits.privacy import Audit, Cell
from audits.sarif import LEVELS, sarif
from audits.shelf import Shelf
from secsplit.errors import RunError
from secsplit.rundir import RunDir
from tests.audits.conftest import trained

EXAMPLE = Path(__file__).parents[2] / "examples" / "policy.toml"
AUDIT = {
    "attacks": ["gradient-clustering", "clue-distance", "inverse-network"],
    "threats": {"client": {"who": ["client"]}, "server": {"who": ["server"]}},
}
NOISE = (
    {"kind": "gaussian", "edge": "bottom->top", "clip": 1.0, "sigma": 0.15},
    {"kind": "label-dp", "epsilon": 2.5},
)
HELD_OUT = 41  # a seed that no threshold was chosen by


def evidence_of(folder: Path, **tables: Any) -> Evidence:
    tables = {"data": {"name": "digits"}, "train": {"seed": HELD_OUT, "epochs": 5, "batch_size": 40}, **tables}
    finished = trained(folder, audit=AUDIT, **tables)
    audit_with_control(finished, audit_spec(finished.run), shelf=Shelf(folder / "cells")).save(folder)
    return Evidence.open(folder)


@pytest.fixture(scope="module")
def leaky(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    return evidence_of(tmp_path_factory.mktemp("leaky"))


@pytest.fixture(scope="module")
def defended(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    return evidence_of(tmp_path_factory.mktemp("defended"), defenses=NOISE)


@pytest.fixture(scope="module")
def policy() -> Policy:
    return load(EXAMPLE)


def by_id(outcomes: tuple[Outcome, ...]) -> dict[str, Outcome]:
    return {outcome.id: outcome for outcome in outcomes}


def test_the_leaky_configuration_fails(leaky: Evidence, policy: Policy) -> None:
    found = judge(policy, leaky)
    assert {o.id for o in found if o.state == "fail"} == {"labels", "records"}
    assert not passed(found)
    assert "upper end of 95%" in by_id(found)["records"].text


def test_the_defended_configuration_passes(defended: Evidence, policy: Policy) -> None:
    found = judge(policy, defended)
    assert passed(found), [o for o in found if o.state == "fail"]
    assert "found the label in the undefended control" in by_id(found)["attacks-able"].text


def without(evidence: Evidence, attack: str) -> Evidence:
    cells = tuple(cell for cell in evidence.audit.cells if cell.attack != attack)
    return replace(evidence, audit=evidence.audit.model_copy(update={"cells": cells}))


@pytest.mark.parametrize("attack", AUDIT["attacks"])
def test_deleting_an_attack_s_evidence_fails(defended: Evidence, policy: Policy, attack: str) -> None:
    found = by_id(judge(policy, without(defended, attack)))
    assert found["evidence"].state == "fail"
    assert f"{attack} by client was planned and is not there" in found["evidence"].text


def changed(evidence: Evidence, **update: Any) -> Evidence:
    def change(cell: Cell) -> Cell:
        return cell.model_copy(update=update) if cell.attack == "inverse-network" and cell.status == "ran" else cell

    cells = tuple(change(cell) for cell in evidence.audit.cells)
    return replace(evidence, audit=evidence.audit.model_copy(update={"cells": cells}))


def test_deleting_a_cell_s_figures_fails(defended: Evidence, policy: Policy) -> None:
    found = by_id(judge(policy, changed(defended, leakages=())))
    assert found["evidence"].state == "fail"
    assert found["records"].state == "fail"


def test_a_failed_attack_fails(defended: Evidence, policy: Policy) -> None:
    found = by_id(judge(policy, changed(defended, status="failed", because="no memory", leakages=())))
    assert "failed: no memory" in found["evidence"].text
    assert "no evidence of inverse-network by server: it failed" in found["records"].text


def test_without_a_positive_control_nothing_is_shown(defended: Evidence, policy: Policy) -> None:
    cells = tuple(cell.model_copy(update={"control": None}) for cell in defended.audit.cells)
    bare = replace(defended, audit=defended.audit.model_copy(update={"cells": cells}))
    outcome = by_id(judge(policy, bare))["attacks-able"]
    assert outcome.state == "fail"
    assert "nothing shows that" in outcome.text


def test_the_gate_reads_the_worse_end_of_the_interval(defended: Evidence) -> None:
    leak = next(leak for leak in defended.audit.leakages if leak.metric == "re-identification")
    between = (leak.value + (leak.high or 0)) / 2
    rules = [{"id": "r", "check": "leakage", "goal": "input", "metric": "re-identification", "max": between}]
    assert by_id(judge(Policy.model_validate({"name": "p", "rules": rules}), defended))["r"].state == "fail"
    rules[0]["max"] = (leak.high or 0) + 1e-9
    assert by_id(judge(Policy.model_validate({"name": "p", "rules": rules}), defended))["r"].state == "pass"
    mse = next(leak for leak in defended.audit.leakages if leak.metric == "mse")
    assert mse.pessimistic == mse.low
    assert (pessimistic_score(mse) or 0) >= (mse.score or 0)
    assert pessimistic_score(replace(mse, low=None)) is None


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({"check": "epsilon", "max": 8}, "no finite epsilon"),
        ({"check": "epsilon", "protects": "labels", "max": 2.6}, "compute: epsilon 2.5"),
        ({"check": "channel"}, "no evidence of a channel from hospital-a to compute"),
        ({"check": "utility", "min": 0.99}, "lower end of 95%"),
        ({"check": "leakage", "goal": "membership", "max": 0.1}, "no attack on the membership"),
        (
            {"check": "leakage", "goal": "label", "max": 0.9, "attacks": ["spectral"]},
            "'spectral' on the label ran for none",
        ),
    ],
)
def test_other_rules(defended: Evidence, rule: dict[str, Any], words: str) -> None:
    outcome = by_id(judge(Policy.model_validate({"name": "p", "rules": [{"id": "r", **rule}]}), defended))["r"]
    assert words in outcome.text
    assert outcome.state == ("pass" if "epsilon 2.5" in words else "fail")


def test_nothing_passes_of_no_rule_and_an_unaudited_run_is_refused(finished: Finished, tmp_path: Path) -> None:
    assert not passed(())
    trained(tmp_path)
    with pytest.raises(RunError, match="not audited yet"):
        Evidence.open(tmp_path)


def test_an_audit_in_which_nothing_ran_is_never_green(leaky: Evidence) -> None:
    idle = tuple(c.model_copy(update={"status": "not applicable", "leakages": ()}) for c in leaky.audit.cells)
    empty = replace(leaky, audit=leaky.audit.model_copy(update={"cells": idle}))
    trivial = Policy.model_validate({"name": "p", "rules": [{"id": "r", "check": "utility", "min": 0.0}]})
    assert "no attack ran at all" in by_id(judge(trivial, empty))["evidence"].text


def ruled(**rule: Any) -> Policy:
    return Policy.model_validate({"name": "p", "rules": [{"id": "r", **rule}]})


def test_every_attack_that_a_rule_names_must_have_run(defended: Evidence) -> None:
    """One that ran does not speak for another that did not apply."""
    names = ("inverse-network", "gradient-clustering")
    rule = {"check": "leakage", "goal": "input", "max": 1.0}
    assert by_id(judge(ruled(**rule, attacks=names[:1]), defended))["r"].state == "pass"
    assert (
        "'gradient-clustering' on the input ran for none"
        in by_id(judge(ruled(**rule, attacks=names), defended))["r"].text
    )
    idle = changed(defended, status="not applicable", because="")
    assert by_id(judge(ruled(**rule, attacks=names[:1]), idle))["r"].state == "fail"
    assert "says that it did not apply" in by_id(judge(ruled(**rule), idle))["evidence"].text


@pytest.mark.parametrize("end", [math.nan, math.inf, None])
def test_an_end_that_is_no_number_is_no_evidence(defended: Evidence, end: float | None) -> None:
    leak = next(leak for leak in defended.audit.leakages if leak.metric == "re-identification")
    spoilt = replace(leak, high=end)
    assert pessimistic_score(spoilt) is None
    assert pessimistic_score(replace(leak, chance=math.nan)) is None
    broken = changed(defended, leakages=(spoilt,))
    for metric in ("score", "re-identification"):
        outcome = by_id(judge(ruled(check="leakage", goal="input", metric=metric, max=1.0), broken))["r"]
        assert outcome.state == "fail"
        assert "no evidence" in outcome.text


def test_too_few_for_an_interval_pass_nothing_and_fail_all_the_same(leaky: Evidence) -> None:
    few = Leakage(
        attack="gradient-norm", threat="client", goal="label", column="y", metric="leak-auc", value=0.5, chance=0.5,
        chance_is="shuffled", low=0.5, high=0.5, interval="range: n = 1 is too small for an interval", n=1,
        unit="batches", headline=True,
    )  # fmt: skip
    cells = tuple(c.model_copy(update={"leakages": (few,)} if c.goal == "label" else {}) for c in leaky.audit.cells)
    evidence = replace(leaky, audit=leaky.audit.model_copy(update={"cells": cells}))
    outcome = by_id(judge(ruled(check="leakage", goal="label", max=0.9), evidence))["r"]
    assert outcome.state == "fail"
    assert "no interval at 95%, n = 1 batches" in outcome.text


def test_a_party_s_missing_account_fails(tmp_path: Path) -> None:
    """What another party's ledger says is no evidence for it; nor is one objective's accuracy for another's."""
    finished = trained(
        tmp_path, audit=AUDIT, data={"name": "digits", "limit": 120}, train={"epochs": 1}, defenses=NOISE
    )
    cells = Audit(digest=finished.run.digest().hex(), seed=0, threats=(), cells=(), hidden=False, evidence="")
    evidence = Evidence(finished.run, cells, RunDir.open(tmp_path))
    gone = "hospital-b"
    (tmp_path / "parties" / gone / "privacy.json").unlink()
    assert (
        f"{gone} sent messages of its inputs, and left no account"
        in by_id(judge(ruled(check="epsilon", max=1e9), evidence))["r"].text
    )


def test_an_epsilon_audit_of_nothing_is_no_evidence(defended: Evidence, tmp_path: Path) -> None:
    digest = defended.run.digest().hex()
    nothing = DpFound(digest=digest, links=(), trainings=(), reidentifications=(), statements=(), violations=0)
    link = LinkFound(
        mechanism="gaussian on bottom->top", role="client", canaries="crafted", claimed=1.0, adjacency="replace-one",
        messages=1, delta=1e-5, lower=2.0, lower_clopper_pearson=2.0, lower_gaussian=2.0, confidence=0.95, n=10,
        verdict="no violation found", over=(),
    )  # fmt: skip
    for found, words in (
        (nothing, "no claim was put to the test"),
        (nothing.model_copy(update={"links": (link,)}), "at least 2"),
    ):
        evidence = replace(defended)
        evidence.__dict__["tested"] = found
        outcome = by_id(judge(ruled(check="epsilon-audit"), evidence))["r"]
        assert outcome.state == "fail"
        assert words in outcome.text


@pytest.mark.parametrize(("what", "words"), [("version", "of version 9.0"), ("twice", "stands there twice")])
def test_an_audit_file_of_another_version_or_with_a_cell_twice_is_refused(
    leaky: Evidence, tmp_path: Path, what: str, words: str
) -> None:
    audit = leaky.audit
    update = {"schema_version": "9.0"} if what == "version" else {"cells": (*audit.cells, audit.cells[0])}
    audit.model_copy(update=update).save(tmp_path)
    with pytest.raises(RunError, match=words):
        Audit.load(tmp_path)


def test_the_audit_of_another_run_is_refused(leaky: Evidence, tmp_path: Path) -> None:
    trained(tmp_path)
    leaky.audit.save(tmp_path)
    with pytest.raises(RunError, match="audit this run anew"):
        Evidence.open(tmp_path)


def test_sarif_has_what_services_need(leaky: Evidence, policy: Policy) -> None:
    log = json.loads(sarif(policy, judge(policy, leaky)))
    assert (log["version"], len(log["runs"])) == ("2.1.0", 1)
    run = log["runs"][0]
    ids = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    assert len(ids) == len(set(ids)) == len(policy.all)
    for result in run["results"]:
        assert ids[result["ruleIndex"]] == result["ruleId"]
        assert result["level"] in {*LEVELS.values(), "none"}
        assert (result["level"] == "none") == (result["kind"] == "pass")
        place = result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
        assert not place.startswith(("/", "file:"))
        assert len(result["partialFingerprints"]["policyRule/v1"]) == 64
    failing = {r["ruleId"] for r in run["results"] if r["kind"] == "fail"}
    assert failing == {"labels", "records"}


def test_junit_counts_what_it_shows(leaky: Evidence, policy: Policy) -> None:
    suites = ElementTree.fromstring(junit(policy, judge(policy, leaky)))
    suite = suites[0]
    assert suite.attrib["tests"] == str(len(suite.findall("testcase")))
    assert suite.attrib["failures"] == str(len(suite.findall("testcase/failure"))) == "2"


def test_the_audit_s_evidence_pointers_lead_somewhere(leaky: Evidence, policy: Policy) -> None:
    value = json.loads(leaky.audit.model_dump_json())
    for outcome in judge(policy, leaky):
        for pointer in outcome.evidence:
            place: Any = value
            for part in pointer.split("/")[1:]:
                place = place[int(part)] if isinstance(place, list) else place[part]
            assert place


def test_a_saved_audit_is_what_the_gate_reads(leaky: Evidence) -> None:
    assert Audit.load(leaky.folder.path) == leaky.audit
