"""The gate's outcomes as SARIF 2.1.0 (OASIS 2020), which code-scanning services show beside the code.

One rule a gate, one result a rule: a failure with its level, a pass as kind "pass". Results point at audit.json by its
name in the run's folder; fingerprints stay the same from run to run, so that a service knows an old finding again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import sha256
from typing import Any

from audits.findings import Severity
from audits.gate import Outcome
from audits.policy import Policy
from audits.privacy import AUDIT
from secsplit import __version__

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
HOME = "https://secsplit.readthedocs.io"
LEVELS: dict[Severity, str] = {
    "critical": "error", "high": "error", "medium": "warning", "low": "warning", "note": "note",
}  # fmt: skip
SEVERITY: dict[Severity, str] = {"critical": "9.5", "high": "8.0", "medium": "5.5", "low": "3.0", "note": "0.0"}


def sarif(policy: Policy, outcomes: Sequence[Outcome]) -> str:
    """The log, as JSON text."""
    driver = {
        "name": "secsplit",
        "semanticVersion": __version__,
        "informationUri": HOME,
        "rules": [_rule(outcome) for outcome in outcomes],
    }
    results = [_result(policy, index, outcome) for index, outcome in enumerate(outcomes)]
    run = {"tool": {"driver": driver}, "columnKind": "utf16CodeUnits", "results": results}
    return json.dumps({"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}, indent=1)


def _rule(outcome: Outcome) -> dict[str, Any]:
    return {
        "id": outcome.id,
        "name": "".join(part.capitalize() for part in ("policy", *outcome.id.split("-"))),
        "shortDescription": {"text": _sentence(outcome.asks)},
        "help": {"text": outcome.remedy or "No remedy is given by the policy."},
        "defaultConfiguration": {"level": LEVELS[outcome.severity]},
        "properties": {"security-severity": SEVERITY[outcome.severity], "tags": ["security", "privacy"]},
    }


def _result(policy: Policy, index: int, outcome: Outcome) -> dict[str, Any]:
    failed = outcome.state == "fail"
    print_of = sha256(f"{policy.name}/{outcome.id}".encode()).hexdigest()
    return {
        "ruleId": outcome.id,
        "ruleIndex": index,
        "kind": "fail" if failed else "pass",
        "level": LEVELS[outcome.severity] if failed else "none",
        "message": {"text": _sentence(outcome.text)},
        "locations": [
            {
                "physicalLocation": {"artifactLocation": {"uri": AUDIT}, "region": {"startLine": 1}},
                "logicalLocations": [{"fullyQualifiedName": at, "kind": "value"} for at in outcome.evidence],
            }
        ],
        "partialFingerprints": {"policyRule/v1": print_of},
    }


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")
