"""The checklist of residual risks: what NIST SP 800-226 and ISO/IEC 27559 ask, and what this audit can answer.

What only the controller knows is marked as the controller's; nothing is ticked without evidence.
"""

from __future__ import annotations

from audits.finished import Finished
from audits.privacy import Audit
from audits.report.model import Channel, Hazard, SweepSection
from secsplit.message import Kind

NIST, ISO = "NIST SP 800-226", "ISO/IEC 27559:2022"


def hazards(finished: Finished, audit: Audit, *, channel: Channel, sweep: SweepSection | None) -> tuple[Hazard, ...]:
    """Every line, in the order of the sources."""
    topology = finished.run.topology
    ran = {(cell.attack, cell.threat) for cell in audit.cells if cell.status == "ran"}
    missing = [f"{cell.attack} ({cell.threat})" for cell in audit.cells if cell.status == "failed"]
    labels = [c for c in topology.crossings if c.kind is Kind.LABELS]
    malicious = any(threat.behaviour == "malicious" for threat in audit.threats)
    together = any(len(threat.who) > 1 for threat in audit.threats)
    members = any(cell.goal == "membership" and cell.status == "ran" for cell in audit.cells)
    traffic = any(cell.goal == "traffic" and cell.status == "ran" for cell in audit.cells)
    used = [each for each in channel.attacked if each.used]
    attacked = used if channel.encrypted else channel.attacked
    weights = finished.run.method.client_side in ("handed-over", "averaged") and bool(finished.run.cohort_roles)
    return (
        Hazard(
            id="adversarial-testing", question="Was identifiability tested by attack?", source=f"{ISO} clause 8",
            state="assessed" if ran else "open",
            text=f"{len(ran)} combinations of attack and adversary ran" if ran else "no attack ran",
        ),
        Hazard(
            id="evidence-gaps", question="Is any evidence missing?", source=f"{ISO} clause 8",
            state="open" if missing else "assessed",
            text=f"these failed: {', '.join(missing)}" if missing else "every applicable attack gave a result",
        ),
        Hazard(
            id="one-seed", question="Do the figures hold for other seeds?", source=f"{ISO} clause 8",
            state="open" if sweep is None or len(sweep.seeds) < 3 else "assessed",
            text="this run was trained once, with one seed; a grid over seeds shows how the figures vary"
            if sweep is None else
            f"every setting was trained and attacked with {len(sweep.seeds)} seeds; see Settings compared",
        ),
        Hazard(
            id="collusion", question="What do parties learn together?", source=f"{ISO} clause 6",
            state="assessed" if together else "open",
            text="coalitions were among the adversaries" if together
            else "every adversary here acts alone",
        ),
        Hazard(
            id="malicious", question="What does a party learn that breaks the protocol?", source=f"{ISO} clause 6",
            state="assessed" if malicious else "open",
            text="malicious parties were among the adversaries" if malicious
            else "every adversary here follows the protocol",
        ),
        Hazard(
            id="labels", question="Do labels leave those who hold them?", source=f"{ISO} clause 7", state="assessed",
            text="yes: " + ", ".join(f"{c.sender} to {c.receiver}" for c in labels) if labels
            else "they are not sent; what the gradients say of them is tested by attack",
        ),
        Hazard(
            id="weights", question="Do weights trained on records leave a site?", source=f"{ISO} clause 7",
            state="open" if weights else "assessed",
            text="yes: clients share their weights, which no attack here examined" if weights
            else "no weights are exchanged between sites",
        ),
        Hazard(
            id="channel", question="Are messages protected on the way?", source=f"{NIST}, security",
            state="assessed" if channel.encrypted else "open",
            text="every link was authenticated and encrypted" if channel.encrypted else "this run used no network",
        ),
        Hazard(
            id="channel-attacked", question="Were the channels themselves attacked?", source=f"{NIST}, security",
            state="assessed" if attacked else "open",
            text=f"{sum(each.faults for each in attacked)} faults were committed on the wire; see Channels"
            if attacked else "not measured: secsplit audit --channel DIR commits every fault of a tap",
        ),
        Hazard(
            id="traffic", question="What do sizes and times of messages reveal?", source=f"{NIST}, side channels",
            state="assessed" if traffic else "open",
            text="tested by attack" if traffic
            else "not measured",
        ),
        Hazard(
            id="membership", question="Can it be told who took part?", source=f"{ISO} clause 8",
            state="assessed" if members else "open",
            text="tested by attack" if members else "no attack on membership ran",
        ),
        Hazard(
            id="output", question="What does the trained network itself reveal to its users?", source=f"{ISO} clause 7",
            state="open", text="not measured: this audit is about what crossed during training",
        ),
        Hazard(
            id="collection", question="Is no more collected than is needed?", source=f"{NIST}, data collection",
            state="for the controller", text="",
        ),
        Hazard(
            id="governance", question="Who watches, and who may stop it?", source=f"{ISO} clause 9",
            state="for the controller", text="",
        ),
    )  # fmt: skip
