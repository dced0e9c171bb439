"""From a finished run and its audit to a Report: what is measured is taken over, what is not is said to be missing.

Here every sentence is made from the evidence; nothing that only a controller can know is made up.
"""

from __future__ import annotations

import platform
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from audits.findings import Finding, findings, severity_of
from audits.finished import Finished
from audits.frontier import advise, settings
from audits.gate import Evidence, judge
from audits.grid import POINTS
from audits.leakage import METRICS, Leakage, worst
from audits.matrix import matrices_of, matrix_of, several_topologies
from audits.policy import Policy
from audits.privacy import Audit
from audits.report import words
from audits.report.hazards import hazards
from audits.report.model import (
    Channel,
    Cost,
    Data,
    Dp,
    Flow,
    FreeText,
    LeakageSection,
    Link,
    Node,
    PartyFacts,
    Report,
    Reproduction,
    Residual,
    Scope,
    SignOff,
    Site,
    SweepSection,
    Term,
    ThreatText,
    Traffic,
    UtilitySection,
    Verdict,
)
from audits.spent import spent
from audits.sweep import Grid
from audits.utility import utilities
from secsplit import __version__
from secsplit.assemble import dataset_of
from secsplit.errors import RunError, nearest
from secsplit.message import Kind
from secsplit.run import Run
from secsplit.rundir import RunDir
from secsplit.topology import Topology
from secsplit.transcript import Record

BINS = 60  # of the traffic's timeline
FORWARD = (Kind.SMASHED, Kind.OUTPUT, Kind.LABELS)
BACKWARD = (Kind.CUT_GRAD, Kind.OUTPUT_GRAD)


def report_of(
    finished: Finished,
    audit: Audit,
    *,
    policy: Policy | None = None,
    sweep: SweepSection | None = None,
    now: datetime | None = None,
) -> Report:
    """The report of a run that lies in a folder. policy: whose rules the verdict is by; None: there is no verdict.

    sweep: the settings that it is one of.
    """
    assert finished.folder is not None
    folder, run = RunDir.open(finished.folder), finished.run
    found = findings(run.topology, audit)
    channel = _channel(folder, run)
    return Report(
        title=f"Privacy report of {run.file.name!r}",
        made=(now or datetime.now(UTC)).replace(microsecond=0).isoformat(),
        verdict=_verdict(audit, found, policy, Evidence(run, audit, folder)),
        scope=_scope(finished),
        purpose=tuple(FreeText(id=i, question=q, reference=r) for i, q, r in words.PURPOSE),
        data=_data(finished),
        threats=tuple(_threat(facts.model_dump()) for facts in audit.threats),
        channel=channel,
        dp=_dp(folder),
        leakage=_leakage(audit, run),
        utility=_utility(folder),
        cost=_cost(finished),
        sweep=sweep,
        residual=Residual(findings=found, hazards=hazards(finished, audit, encrypted=channel.encrypted)),
        reproduction=_reproduction(run, audit, finished.folder),
        sign_off=SignOff(
            fields=tuple(FreeText(id=i, question=q, reference=r) for i, q, r in words.SIGN_OFF),
            triggers=words.TRIGGERS,
        ),
        glossary=tuple(Term(term=t, meaning=m) for t, m in words.GLOSSARY),
    )


def report_of_sweep(
    grid: Grid, folder: Path, setting: str | None = None, *, policy: Policy | None = None, now: datetime | None = None
) -> Report:
    """The report of one setting of a sweep, the advised one where a policy chooses, beside all others.

    It shows a seed that judged, where there is one. Raises RunError where there is no such setting.
    """
    advice = advise(grid, policy, folder) if policy else None
    name = setting or (advice.chosen if advice else None) or grid.settings[0]
    if name not in grid.settings:
        raise RunError(f"{folder}: no setting {name!r}; {nearest(name, grid.settings)}")
    point = (grid.of(name, held_out=True) or grid.of(name))[0]
    section = SweepSection(
        shown=name,
        seed=point.seed,
        seeds=grid.seeds,
        held_out=grid.held_out,
        control=grid.control,
        settings=settings(grid),
        advice=advice,
        matrices=matrices_of(grid) if several_topologies(grid) else (),
    )
    finished = Finished.open(folder / POINTS / point.key, whole=False)
    return report_of(finished, point.audit, policy=policy, sweep=section, now=now)


def sentence(leak: Leakage) -> str:
    """A leakage in words."""
    title = METRICS[leak.metric].title
    value, chance = (_number(leak, v) for v in (leak.value, leak.chance))
    more = "That is more than chance." if leak.leaks else "That is not shown to be more than chance."
    return (
        f"{leak.attack!r} by the {leak.threat}, {title[:1].lower()}{title[1:]} {value}; "
        f"without the messages {chance} ({leak.chance_is}). {more}"
    )


def _number(leak: Leakage, value: float | None) -> str:
    if value is None:
        return "not measured"
    return f"{value:.1%}" if METRICS[leak.metric].percent else f"{value:.3g}"


def _verdict(audit: Audit, found: tuple[Finding, ...], policy: Policy | None, evidence: Evidence) -> Verdict:
    ran = [cell for cell in audit.cells if cell.status == "ran"]
    severe = sum(finding.severity in ("critical", "high") for finding in found)
    sentences = []
    for goal, secret in (("label", "labels"), ("input", "records")):
        leak = worst(leak for leak in audit.leakages if leak.goal == goal)
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


def _scope(finished: Finished) -> Scope:
    run = finished.run
    parties = tuple(
        PartyFacts(
            name=name,
            role=party.role,
            segments=tuple(s.name for s in run.topology.held(party.role)),
            columns=run.topology.columns(party.role),
            labels=run.topology.labels(party.role),
        )
        for name, party in run.file.parties.items()
    )
    setting = run.file.train.record
    kept = {"all": "every message", "off": "no message"}.get(str(setting), f"the messages of every {setting}th step")
    return Scope(
        topology=run.topology.name,
        about=run.topology.about,
        method=run.method.name,
        method_about=run.method.about,
        parties=parties,
        nodes=_nodes(run.topology),
        flows=_flows(finished),
        recorded=kept,
    )


def _nodes(topology: Topology) -> tuple[Node, ...]:
    column: dict[str, int] = {}
    for segment in topology.order:
        column[segment.name] = 1 + max((column[name] for name in segment.sources), default=-1)
    return tuple(Node(name=s.name, role=s.role, column=column[s.name], inputs=s.inputs) for s in topology.order)


def crossed(finished: Finished) -> Iterator[tuple[str, str, Record]]:
    """(sender, receiver, record): every message once, as its sender recorded it, else as its receiver did."""
    for party, transcript in finished.transcripts.items():
        for record in transcript:
            if record.direction == "sent":
                yield party, record.peer, record
            elif record.peer not in finished.transcripts:
                yield record.peer, party, record


def _flows(finished: Finished) -> tuple[Flow, ...]:
    first: dict[tuple[str, str, str, str, str], tuple[str, tuple[int, ...]]] = {}
    count: dict[tuple[str, str, str, str, str], int] = defaultdict(int)
    nbytes: dict[tuple[str, str, str, str, str], int] = defaultdict(int)
    for sender, receiver, record in crossed(finished):
        whole = record.kind is Kind.WEIGHTS  # many tensors, which the reader needs as one
        for i, (name, (dtype, shape)) in enumerate(record.shapes.items()):
            key = (sender, receiver, str(record.kind), record.edge, "all" if whole else name)
            first.setdefault(key, (dtype, () if whole else shape))
            count[key] += not (whole and i)
            nbytes[key] += size(dtype, shape)
    flows = []
    for key, (dtype, shape) in first.items():
        title, about = words.MESSAGES[Kind(key[2])]
        flows.append(
            Flow(
                sender=key[0],
                receiver=key[1],
                kind=key[2],
                title=title,
                about=about,
                edge=key[3],
                tensor=key[4],
                dtype=dtype,
                shape=shape,
                messages=count[key],
                bytes=nbytes[key],
            )
        )
    return tuple(flows)


def size(dtype: str, shape: Iterable[int]) -> int:
    """Bytes of a tensor."""
    from math import prod

    from secsplit.message import DTYPES

    return prod(shape) * DTYPES[dtype].itemsize


def _data(finished: Finished) -> Data:
    run, truth = finished.run, finished.truth
    card = dataset_of(run, next(iter(run.casts[0].values())), 0).card
    sites = []
    for cast in truth.casts:
        classes = {
            name: {str(c): int((y == c).sum()) for c in range(truth.classes[name])}
            for name, y in truth.labels[cast].items()
            if truth.classes.get(name) and y.ndim == 1
        }
        sizes = finished.schedule.sizes[cast]
        sites.append(Site(name=truth.site(cast), train=sizes["train"], test=sizes["test"], classes=classes))
    features = sum(column[0].numel() for column in truth.inputs[0].values())
    return Data(
        name=run.file.data.name, source=card.source, licence=card.licence, about=card.what,
        real_patients=truth.real_patients, unit="one record", features=features, sites=tuple(sites),
    )  # fmt: skip


def _threat(facts: dict[str, object]) -> ThreatText:
    knows = facts["knows"]
    assert isinstance(knows, tuple)
    text = {"behaves": words.BEHAVIOURS[str(facts["behaviour"])], "knowledge": tuple(words.KNOWLEDGE[k] for k in knows)}
    return ThreatText.model_validate({**facts, **text})


def _channel(folder: RunDir, run: Run) -> Channel:
    links = tuple(_link(p.name, peer, told) for p in folder.parties() for peer, told in p.channels().items())
    if not links:
        return Channel(
            encrypted=False, links=(), still_visible=(),
            about="This run was simulated in one process: no network was used, and nothing is claimed of a channel.",
        )  # fmt: skip
    padded = all(link.padded for link in links)
    visible = (
        "who talks to whom, and when",
        "how many records of one fixed size are sent" if padded else "the size of every message",
        "how long each side computes",
    )
    return Channel(
        encrypted=True, links=links, still_visible=visible,
        about="Every message crossed a channel on which both ends proved who they are and everything is encrypted. "
        "That keeps out the network; it does not keep anything from the party at the other end.",
    )  # fmt: skip


def _link(party: str, peer: str, told: Mapping[str, Any]) -> Link:
    """A session's facts: one channel after the other, where the connection broke and was resumed."""
    channels = told["channels"]
    return Link(
        party=party,
        peer=peer,
        suite=", ".join(dict.fromkeys(facts["suite"] for facts in channels)),
        own_fingerprint=channels[0]["own_fingerprint"],
        peer_fingerprint=channels[0]["peer_fingerprint"],
        connections=len(channels),
        resent=told["resent"],
        bytes_sent=sum(facts["bytes_sent"] for facts in channels),
        bytes_received=sum(facts["bytes_received"] for facts in channels),
        rekeys=sum(facts["rekeys"] for facts in channels),
        refused=sum(facts["refused"] for facts in channels),
        padded=all(facts["padded"] for facts in channels),
    )


def _dp(folder: RunDir) -> Dp:
    lines = spent(folder)
    if not lines:
        return Dp(
            spent=(),
            not_covered=(),
            about="No differential privacy is claimed. What is said about leakage rests on attacks, which show what "
            "can be learnt and never that nothing more can.",
        )
    finite = any(line.epsilon is not None for line in lines)
    return Dp(
        spent=lines,
        about="Epsilon bounds what anybody can learn about one record, whatever they know and however they attack. "
        + ("It holds for what is named, and for nothing else." if finite else "Here no finite bound exists."),
        not_covered=words.NOT_COVERED,
    )


def _leakage(audit: Audit, run: Run) -> LeakageSection:
    return LeakageSection(
        worst_label=_pointer(audit, "label"), worst_input=_pointer(audit, "input"), cells=audit.cells,
        matrix=matrix_of(audit, setting=run.file.name, topology=run.topology.name), hidden=audit.hidden,
        seed=audit.seed, evidence=audit.evidence,
    )  # fmt: skip


def _pointer(audit: Audit, goal: str) -> str | None:
    leak = worst(leak for leak in audit.leakages if leak.goal == goal)
    for i, cell in enumerate(audit.cells):
        for j, other in enumerate(cell.leakages):
            if leak is other:
                return f"/leakage/cells/{i}/leakages/{j}"
    return None


def _utility(folder: RunDir) -> UtilitySection:
    missing = ("the same network trained without a split", "each site's training on its own records alone")
    return UtilitySection(results=utilities(folder), not_measured=missing)


def _cost(finished: Finished) -> Cost:
    steps = max(finished.turns, default=0) + 1
    width = max(1, -(-steps // BINS))
    parts = [[0, 0, 0] for _ in range(-(-steps // width))]
    messages = 0
    for _, _, record in crossed(finished):
        messages += 1
        if record.stamp.step < steps:
            way = 0 if record.kind in FORWARD else 1 if record.kind in BACKWARD else 2
            parts[record.stamp.step // width][way] += sum(size(*shape) for shape in record.shapes.values())
    timeline = tuple(
        Traffic(first_step=i * width, last_step=min(steps, (i + 1) * width) - 1, forward=f, backward=b, other=o)
        for i, (f, b, o) in enumerate(parts)
    )
    total = sum(t.forward + t.backward + t.other for t in timeline)
    return Cost(
        bytes=total, messages=messages, timeline=timeline,
        not_measured=("energy", "wall-clock time of each party"),
    )  # fmt: skip


def _reproduction(run: Run, audit: Audit, folder: Path) -> Reproduction:
    return Reproduction(
        digest=run.digest().hex(), command="secsplit train run.toml && secsplit audit DIR && secsplit report DIR",
        seed=run.file.train.seed, audit_seed=audit.seed, threads=run.file.train.threads,
        versions={"secsplit": __version__, "torch": torch.__version__, "python": platform.python_version()},
        run_file=(folder / "run.toml").read_text(),
    )  # fmt: skip
