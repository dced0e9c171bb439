"""SARIF as others read it: Microsoft's validator, which holds a log against the 2.1.0 schema and against its rules."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

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
def test_it_would_have_found_what_does_not_fit_the_schema(multitool: Path, tmp_path: Path) -> None:
    broken = json.loads(log())
    broken["runs"][0]["results"][0]["level"] = "dreadful"
    assert "error" in told(multitool, json.dumps(broken), tmp_path)
