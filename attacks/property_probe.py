"""Property probe: what smashed data tell of an attribute that the task does not need, or of another server's task.

Attribute inference from a shared representation, as in the property variant of feature-space hijacking (Pasquini,
Ateniese, Bernaschi, CCS 2021, arXiv 2012.02670) and in Mao et al., "Secure Split Learning against Property Inference,
Data Reconstruction, and Feature Space Hijacking Attacks", 2023, arXiv 2304.09515. A classifier is trained on smashed
data whose attribute is known, and read out on the rest; here it is the regression of `decoder`, on classes, which beats
a logistic regression at every cut tried. The known ones are clues, or auxiliary records put through the victim's
segment where that may be run.

Read the figure against what the task's own label already tells of the attribute.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn.functional import one_hot

from attacks import decoder, drift
from attacks.base import Attack, Goal, Guess, Need, Needs, NotApplicable
from attacks.inverse_network import answers
from attacks.observed import asked, latest
from attacks.rows import told, untold
from attacks.upstream import above, known_networks, network_missing
from secsplit.message import Kind
from secsplit.threat import Knows, Threat, View
from secsplit.topology import Topology


@dataclass(frozen=True, kw_only=True)
class PropertyProbe(Attack):
    """Guess an attribute of every row from the last smashed data seen of it.

    column: the attribute, a label column (None: the first that the adversary does not hold); edge: where (None: the
    shallowest received); average: messages of a row that are averaged; rows: at most so many; known: at most so many
    auxiliary records are run through the victim's segment.
    """

    name: ClassVar[str] = "property-probe"
    paper: ClassVar[str] = "Pasquini et al., CCS 2021, arXiv 2012.02670; Mao et al., 2023, arXiv 2304.09515"
    goal: ClassVar[Goal] = "attribute"
    needs: ClassVar[Needs] = Needs(messages=(Need(Kind.SMASHED),))
    cost: ClassVar[float] = 15.0

    column: str | None = None
    edge: str | None = None
    average: int = 1
    rows: int = 20_000
    known: int = 5000

    def why_not(self, topology: Topology, threat: Threat) -> str | None:
        reason = super().why_not(topology, threat)
        if reason is None and Knows.CLUES not in threat.knows:
            if Knows.AUX not in threat.knows:
                return f"it needs 'clues' or 'aux', and {threat.name!r} has neither"
            return network_missing(topology, threat, {Knows.QUERY, Knows.WEIGHTS})
        return reason

    def infer(self, view: View, *, coins: torch.Generator) -> Guess:
        column = attribute(view, self.column)
        up = above(view, edge=self.edge)
        rows = drift.settled(latest(view, Kind.SMASHED, edge=up.edge, limit=self.rows, average=self.average))
        label = told(view.clues, column, rows.cast, rows.position)
        examples, names = [rows.values[label >= 0].flatten(1)], [label[label >= 0]]
        networks = known_networks(view, up)
        if view.aux is not None and column in view.aux.labels and len(networks) == len(up.segments):
            some = torch.randperm(len(view.aux.labels[column]), generator=coins)[: self.known]
            inputs = {c: view.aux.inputs[c][some] for c in up.columns}
            examples.append(answers(up, networks, inputs).flatten(1))
            names.append(view.aux.labels[column][some])
        known = torch.cat(names)
        if len(known.unique()) < 2:
            raise NotApplicable(f"what is known of {column!r} names {len(known.unique())} classes; two are needed")
        taught = decoder.fit(torch.cat(examples), one_hot(known, view.classes[column]).float(), coins=coins)
        rows = rows.take(asked(view, rows))
        scores = taught(rows.values)
        guess = Guess(
            "attribute",
            column,
            rows.cast,
            rows.position,
            rows.step,
            scores=scores,
            labels=scores.argmax(1),
            facts={"clues": len(names[0]), "auxiliary records": len(known) - len(names[0])},
        )
        return untold(guess, view.clues)


def attribute(view: View, column: str | None) -> str:
    """The column to guess: the one asked for, else the first that nobody gave to the adversary."""
    held = {name for known in view.own.values() for name in known.labels}
    sent = {o.target for o in view.topology.objectives if o.name in view.edges(Kind.LABELS)}
    secret = [name for name, count in view.classes.items() if count >= 2 and name not in held | sent]
    if column is None and secret:
        return secret[0]
    if column not in secret:
        raise NotApplicable(
            f"there is no attribute {repr(column) + ' ' if column else ''}that it was neither given nor sent"
        )
    return column
