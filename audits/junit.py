"""The gate's outcomes as JUnit XML, which build servers show as tests: one case a rule."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree

from audits.gate import Outcome
from audits.policy import Policy


def junit(policy: Policy, outcomes: Sequence[Outcome]) -> bytes:
    """The suite, as UTF-8 XML."""
    failed = sum(outcome.state == "fail" for outcome in outcomes)
    counts = {"tests": str(len(outcomes)), "failures": str(failed), "errors": "0", "skipped": "0"}
    suites = ElementTree.Element("testsuites", {"name": "secsplit gate", **counts})
    suite = ElementTree.SubElement(suites, "testsuite", {"name": policy.name, **counts})
    for outcome in outcomes:
        case = ElementTree.SubElement(suite, "testcase", {"classname": policy.name, "name": outcome.id})
        if outcome.state == "fail":
            failure = ElementTree.SubElement(case, "failure", {"type": outcome.severity, "message": outcome.text})
            failure.text = f"{outcome.asks}\n{outcome.text}\n{outcome.remedy}".strip()
        else:
            ElementTree.SubElement(case, "system-out").text = outcome.text
    ElementTree.indent(suites)
    return bytes(ElementTree.tostring(suites, encoding="utf-8", xml_declaration=True))
