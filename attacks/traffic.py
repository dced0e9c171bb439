"""What the lengths of encrypted messages tell a wiretap about what is in them.

Encryption hides content and not length. Where a message's length depends on the data (entropy coding, a variable number
of entries kept, one record a message), its length is a side channel; where all messages of a kind are of one length it
tells no label, and this attack shows that by failing. The classifier of traffic analysis since Herrmann, Wendolsky,
Federrath 2009 (multinomial naive Bayes over lengths): how often each length went with each class among known records.

The order of batches is drawn from the run's seed; the wiretap is taken to know it, which is the worst case.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from attacks.base import Attack, Goal, Guess, Needs, NotApplicable
from attacks.rows import told
from secsplit.threat import Knows, Threat, View
from secsplit.topology import Topology

SMOOTHING = 0.5  # added to every count


@dataclass(frozen=True, kw_only=True)
class MessageLengths(Attack):
    """Name the label of each record from the lengths of the messages that its batches were in.

    column: the label column (None: the first there is); most: how many messages of a record are looked at.
    """

    name: ClassVar[str] = "message-lengths"
    paper: ClassVar[str] = "Herrmann, Wendolsky, Federrath, CCSW 2009"
    goal: ClassVar[Goal] = "traffic"
    needs: ClassVar[Needs] = Needs(knows=frozenset({Knows.CLUES}))
    cost: ClassVar[float] = 2.0

    column: str | None = None
    most: int = 200

    def why_not(self, topology: Topology, threat: Threat) -> str | None:
        if threat.behaviour != "wiretap":
            return f"{' + '.join(threat.who)} reads its messages; lengths are for a wiretap"
        return super().why_not(topology, threat)

    def infer(self, view: View, *, coins: torch.Generator) -> Guess:
        clues = view.clues
        column = self.column or next(iter(clues.labels), None) if clues is not None else None
        if clues is None or column is None:
            raise NotApplicable("it needs the labels of a few records")
        if not view.wire:
            raise NotApplicable("it saw no message pass")
        counts, cast, position = lengths(view, self.most)
        label = told(clues, column, cast, position)
        classes = max(view.classes.get(column, 0), int(label.max()) + 1)
        if len(label[label >= 0].unique()) < 2:
            raise NotApplicable("the clues name fewer than two classes among the records that it saw pass")
        scores = naive_bayes(counts, label, classes)
        unknown = (label < 0).nonzero().flatten()
        nothing = torch.full_like(position, -1)
        guess = Guess(
            "traffic", column, cast, position, nothing, scores=scores, labels=scores.argmax(1),
            facts={"messages": len(view.wire), "lengths": counts.shape[1],
                   "links": len({(p.sender, p.receiver) for p in view.wire})},
        )  # fmt: skip
        return guess.of(unknown)


def lengths(view: View, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """((rows, kinds) how often each row was in a message of each kind, cast, position).

    A kind is a link and a length; only training turns count.
    """
    kinds: dict[tuple[str, str, int], int] = {}
    seen: dict[tuple[int, int], dict[int, int]] = defaultdict(lambda: defaultdict(int))
    looked: dict[tuple[int, int], int] = defaultdict(int)
    for passage in view.wire:
        if passage.rows is None or not passage.rows.training:
            continue
        at = view.order(passage.rows).tolist()
        kind = kinds.setdefault((passage.sender, passage.receiver, passage.bytes), len(kinds))
        for key in ((passage.rows.cast, position) for position in at):
            if looked[key] < most:
                looked[key] += 1
                seen[key][kind] += 1
    if not seen:
        raise NotApplicable("it saw no batch pass")
    counts = torch.zeros(len(seen), len(kinds), dtype=torch.float64)
    for row, found in enumerate(seen.values()):
        for kind, times in found.items():
            counts[row, kind] = times
    cast, position = torch.tensor(list(seen)).unbind(1)
    return counts, cast, position


def naive_bayes(counts: Tensor, label: Tensor, classes: int) -> Tensor:
    """(rows, classes) log-posteriors with a flat prior, from the rows whose label is known (>= 0)."""
    scores = torch.full((len(counts), classes), -torch.inf, dtype=torch.float64)
    for c in label[label >= 0].unique().tolist():
        often = counts[label == c].sum(0) + SMOOTHING
        scores[:, c] = counts @ (often / often.sum()).log()
    return scores
