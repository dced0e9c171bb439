"""SARIF as others read it: types generated from the 2.1.0 JSON schema, and the rules of Microsoft's validator."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from pydantic_sarif.model import StaticAnalysisResultsFormatSarifVersion210JsonSchema as Schema

from audits.gate import Outcome
from audits.policy import load
from audits.sarif import sarif
from tests.audits.npm import installed

POLICY = Path(__file__).parents[2] / "examples" / "policy.toml"
MULTITOOL = "@microsoft/sarif-multitool@5.7.0"


def log() -> str:
    policy = load(POLICY)
    states = ("pass", "fail") * len(policy.all)
    outcomes = [
        Outcome(id=rule.id, asks=rule.asks, state=state, severity=rule.severity, text=f"found {i}", remedy=rule.remedy,
                evidence=(f"/cells/{i}",))
        for i, (rule, state) in enumerate(zip(policy.all, states, strict=False))
    ]  # fmt: skip
    return sarif(policy, outcomes)


def test_it_fits_the_schema() -> None:
    read = Schema.model_validate_json(log())
    assert read.version.value == "2.1.0"
    (run,) = read.runs or []
    assert len(run.results or []) == len(load(POLICY).all)


@pytest.mark.parametrize("broken", [
    lambda log: log.update(version="2.0.0"), lambda log: log["runs"][0]["tool"]["driver"].pop("name"),
    lambda log: log["runs"][0]["results"][0].pop("message"), lambda log: log["runs"][0]["results"][0].update(other=1),
    lambda log: log["runs"][0]["results"][0].update(level="dreadful"),
])  # fmt: skip
def test_what_does_not_fit_the_schema_would_be_found(broken: Callable[[Any], object]) -> None:
    value = json.loads(log())
    broken(value)
    with pytest.raises(ValidationError):
        Schema.model_validate(value)


@pytest.fixture(scope="module")
def multitool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return installed(MULTITOOL, tmp_path_factory.mktemp("npm")) / ".bin" / "sarif-multitool"


def told(multitool: Path, text: str, folder: Path) -> str:
    """What the validator prints of a log."""
    file = folder / "gate.sarif"
    file.write_text(text)
    done = subprocess.run([str(multitool), "validate", str(file)], capture_output=True, timeout=300, check=False)
    return (done.stdout + done.stderr).decode()


@pytest.mark.slow
def test_the_validator_has_nothing_to_object_to(multitool: Path, tmp_path: Path) -> None:
    found = told(multitool, log(), tmp_path)
    assert "Analysis completed successfully" in found, found
    assert "error" not in found, found
    assert "warning" not in found, found


@pytest.mark.slow
def test_it_would_have_found_a_broken_rule(multitool: Path, tmp_path: Path) -> None:
    broken = json.loads(log())
    broken["runs"][0]["results"][0]["ruleIndex"] = 99
    assert "error" in told(multitool, json.dumps(broken), tmp_path)
