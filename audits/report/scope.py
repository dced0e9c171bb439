"""Sections 2, 4, 5 and 10: who takes part and what leaves each site, whose data, which adversaries, at what cost."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from math import prod

from audits.finished import Finished
from audits.privacy import ThreatFacts
from audits.report import words
from audits.report.model import Cost, Data, Flow, Node, PartyFacts, Scope, Site, ThreatText, Traffic
from secsplit.assemble import dataset_of
from secsplit.message import DTYPES, Kind
from secsplit.topology import Topology
from secsplit.transcript import Record

BINS = 60  # of the traffic's timeline
FORWARD = (Kind.SMASHED, Kind.OUTPUT, Kind.LABELS)
BACKWARD = (Kind.CUT_GRAD, Kind.OUTPUT_GRAD)


def scope_of(finished: Finished) -> Scope:
    """Who holds what, and every kind of message that crossed."""
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
        crossings=sum(edge.crosses for edge in run.topology.edges),
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
    return prod(shape) * DTYPES[dtype].itemsize


def data_of(finished: Finished) -> Data:
    """Records, classes and sites."""
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


def threat_of(facts: ThreatFacts) -> ThreatText:
    """An adversary in words."""
    knowledge = tuple(words.KNOWLEDGE[k] for k in facts.knows)
    return ThreatText(**facts.model_dump(), behaves=words.BEHAVIOURS[facts.behaviour], knowledge=knowledge)


def cost_of(finished: Finished) -> Cost:
    """Bytes and messages, in all and over the run."""
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
    forward, backward, other = (sum(part[way] for part in parts) for way in range(3))
    return Cost(
        bytes=forward + backward + other, messages=messages, forward=forward, backward=backward, other=other,
        timeline=timeline,
        not_measured=("energy", "wall-clock time of each party"),
    )  # fmt: skip
