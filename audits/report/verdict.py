"""Section 1: what was found, in sentences that a data-protection officer can quote, and the policy's verdict."""

from __future__ import annotations

from audits.findings import Finding, severity_of
from audits.gate import Evidence, judge
from audits.leakage import METRICS, Leakage, worst
from audits.policy import Policy
from audits.privacy import Audit
from audits.report.model import Verdict


def verdict_of(audit: Audit, found: tuple[Finding, ...], policy: Policy | None, evidence: Evidence) -> Verdict:
    """policy: None where there is none, and so no verdict."""
    ran = [cell for cell in audit.cells if cell.status == "ran"]
    severe = sum(finding.severity in ("critical", "high") for finding in found)
    sentences = []
    asked = {cell.goal for cell in audit.cells}
    for goal, secret in (("label", "labels"), ("input", "records"), ("membership", "who took part")):
        leak = worst(leak for leak in audit.leakages if leak.goal == goal)
        if leak is None and goal == "membership" and goal not in asked:
            continue  # the checklist says so
        if leak is None:
            sentences.append(f"No attack on {secret} gave a result, so nothing is known of them.")
        elif severity_of(leak) is None:
            sentences.append(f"No attack on {secret} did better than chance here; a stronger one may. {sentence(leak)}")
        else:
            sentences.append(f"Worst attack on {secret}: {sentence(leak)}")
    failed = sum(cell.status == "failed" for cell in audit.cells)
    if failed:
        sentences.append(f"Attacks that failed to run: {failed}. What they would have found is unknown.")
    if policy is None:
        return Verdict(state="not run", headline=_headline(ran=bool(ran), severe=severe), sentences=tuple(sentences))
    outcomes = judge(policy, evidence)
    failing = [outcome.id for outcome in outcomes if outcome.state == "fail"]
    headline = (
        f"This configuration fails the policy {policy.name!r}: {', '.join(failing)}."
        if failing
        else f"This configuration meets every rule of the policy {policy.name!r}, by the attacks that ran."
    )
    return Verdict(
        state="fail" if failing else "pass",
        headline=headline,
        sentences=tuple(sentences),
        gates=outcomes,
        policy=policy.name,
    )


def _headline(*, ran: bool, severe: int) -> str:
    if not ran:
        return "No attack ran, so this audit says nothing."
    if not severe:
        return "Nothing severe was found by the attacks that ran; that is no proof that there is nothing."
    count = "One finding is" if severe == 1 else f"{severe} findings are"
    return f"{count} severe enough to act on before this configuration is used with real patients."


def sentence(leak: Leakage) -> str:
    """A leakage in words."""
    title = METRICS[leak.metric].title
    value, chance = (_number(leak, v) for v in (leak.value, leak.chance))
    more = "That is more than chance." if leak.leaks else "That is not shown to be more than chance."
    return (
        f"{leak.attack!r} by {leak.threat!r}, {title[:1].lower()}{title[1:]} {value}; "
        f"without the messages {chance} ({leak.chance_is}). {more}"
    )


def _number(leak: Leakage, value: float | None) -> str:
    if value is None:
        return "not measured"
    return f"{value:.1%}" if METRICS[leak.metric].percent else f"{value:.3g}"
