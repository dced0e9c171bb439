"""The simulated client: train a stand-in for the client against the server's own frozen part, then invert the stand-in.

PCAT: Gao and Zhang, USENIX Security 2023 (the task's loss alone); SDAR: Zhu et al., NDSS 2025, arXiv 2310.10483 (and a
discriminator); FORA: Xu et al., CVPR 2024, arXiv 2405.04115 (and multi-kernel discrepancy). One family: a simulator is
trained so that the server's part classifies auxiliary records well from its messages, while those are pulled towards
the real ones; inputs are read back by a decoder of the simulator's messages. Passive: no message is changed.

Where we differ, and why: the server attacks after the session, with its last weights and the last messages, and so
takes 1000 steps at a higher, decaying rate where the papers take 20,000 and 40,000 beside the training; the decoder is
the closed-form one; before decoding, messages are carried onto the simulator's by optimal transport between Gaussians,
one for each class that the network itself sees in them, which undoes what is left of the difference between the two
clients. regulariser="none" switches all alignment off: a
negative control, PCAT's loss alone with no other of its measures.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from attacks import decoder, drift
from attacks.alignment import Discriminator, mk_mmd
from attacks.base import Attack, Goal, Guess, Need, Needs, NotApplicable, drawing, secret_labels
from attacks.imagined import Imagined, received_edges
from attacks.observed import Observed, asked, find, held, latest
from attacks.upstream import above, column_of
from secsplit.message import Kind
from secsplit.threat import Known, Knows, View

log = logging.getLogger(__name__)

Regulariser = Literal["mk-mmd", "gan", "none"]
CHUNK = 500  # rows put through the network at once
PAIRS = 5000  # auxiliary records that the decoder learns from


@dataclass(frozen=True, kw_only=True)
class Training:
    """How the stand-ins are trained, the same whatever is inferred from them afterwards.

    regulariser, weight: what pulls the simulated messages towards the real ones, and how hard (None: 1 for the
    discrepancy, FORA's; 0.05 for the discriminator, SDAR's 0.02 on this loss's scale); rows: at most so many messages;
    restarts: where what lies below is a stand-in too, classes can be mistaken for each other, and a start that did so
    has the higher task loss: so many short trainings are tried, and the one of the lowest goes on.
    """

    steps: int = 1000
    batch: int = 128
    lr: float = 3e-3
    regulariser: Regulariser = "mk-mmd"
    weight: float | None = None
    rows: int = 60_000
    restarts: int = 4

    def messages(self, view: View) -> dict[str, Observed]:
        """edge -> the last message about each row, carried to the last turn."""
        edges = received_edges(view)
        if not edges:
            raise NotApplicable(f"{' + '.join(view.roles) or 'a wiretap'} was sent no smashed data from outside")
        return {e: drift.settled(latest(view, Kind.SMASHED, edge=e, limit=self.rows)) for e in edges}

    def run(self, view: View, aux: Known, seen: Mapping[str, Observed], coins: torch.Generator) -> Imagined:
        """The stand-ins, trained. coins draws their initial weights, dropout and batches."""
        with drawing(coins):
            first = Imagined(view, aux.inputs, seen)
            entrants = [first, *(Imagined(view, aux.inputs, seen) for _ in range(self.restarts - 1) if first.blind)]
            heat = max(1, self.steps // 5)
            losses = [self.train(each, aux, seen, heat, coins) for each in entrants] if len(entrants) > 1 else [0.0]
            best = entrants[losses.index(min(losses))]
            self.train(best, aux, seen, self.steps, coins)
        best.stand_ins.eval().requires_grad_(False)
        return best

    def train(
        self, imagined: Imagined, aux: Known, seen: Mapping[str, Observed], steps: int, coins: torch.Generator
    ) -> float:
        """Train in place; the task's loss over the last quarter of the steps."""
        pulls = {
            edge: Discriminator(rows.values[0].numel(), lr=self.lr / 2) if self.regulariser == "gan" else None
            for edge, rows in seen.items()
        }
        optimizer = torch.optim.Adam(imagined.stand_ins.parameters(), self.lr)
        rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.lr, total_steps=steps, pct_start=0.1)
        tasks = []
        for step in range(steps):
            loss, apart = self.step(imagined, aux, seen, pulls, coins)
            optimizer.zero_grad(set_to_none=True)
            (loss + apart).backward()
            optimizer.step()
            rate.step()
            tasks.append(loss.item())
            if step % 100 == 0:
                log.info("step %d of %d: task %.4f, apart %.4f", step, steps, tasks[-1], apart.item())
        return sum(tasks[-steps // 4 :]) / len(tasks[-steps // 4 :])

    def step(
        self,
        imagined: Imagined,
        aux: Known,
        seen: Mapping[str, Observed],
        pulls: Mapping[str, Discriminator | None],
        coins: torch.Generator,
    ) -> tuple[Tensor, Tensor]:
        """(task loss, weighted distance between simulated and real messages) on a batch of each."""
        chosen = torch.randint(len(next(iter(aux.inputs.values()))), (self.batch,), generator=coins)
        inputs = {name: values[chosen] for name, values in aux.inputs.items()}
        loss, sent = imagined.loss(inputs, {name: values[chosen] for name, values in aux.labels.items()})
        apart = torch.zeros(())
        for edge, rows in seen.items() if self.regulariser != "none" else ():
            real = rows.values[torch.randint(len(rows), (self.batch,), generator=coins)]
            pull = pulls[edge]
            apart = apart + (pull.deceived(sent[edge], real) if pull else mk_mmd(sent[edge], real))
        weight = {"mk-mmd": 1.0, "gan": 0.05, "none": 0.0}[self.regulariser] if self.weight is None else self.weight
        return loss, weight * apart


@dataclass(frozen=True, kw_only=True)
class SimulatedClient(Training, Attack):
    """Reconstruct inputs from smashed data by a client of one's own, trained against one's own part of the network.

    column: what to reconstruct (None: the first column above the edge); edge: where (None: the shallowest received).
    """

    name: ClassVar[str] = "simulated-client"
    paper: ClassVar[str] = "PCAT, Gao and Zhang, USENIX Security 2023; SDAR, arXiv 2310.10483; FORA, arXiv 2405.04115"
    goal: ClassVar[Goal] = "input"
    needs: ClassVar[Needs] = Needs(messages=(Need(Kind.SMASHED),), knows=frozenset({Knows.AUX}))
    cost: ClassVar[float] = 30.0

    column: str | None = None
    edge: str | None = None

    def infer(self, view: View, *, coins: torch.Generator) -> Guess:
        seen = self.messages(view)
        up = above(view, edge=self.edge or min(seen, key=lambda edge: len(above(view, edge=edge).segments)))
        column, aux = column_of(up, self.column), labelled(view)
        imagined = self.run(view, aux, seen, coins)
        chosen = torch.randperm(len(aux.inputs[column]), generator=coins)[: self.rows]
        simulated, kinds = simulate(imagined, aux, chosen)
        z = simulated[up.edge].flatten(1)
        fitted = decoder.fit(z[:PAIRS], aux.inputs[column][chosen[:PAIRS]], coins=coins)
        rows = seen[up.edge]
        if self.regulariser != "none":
            source, seen_kinds = rows.values.flatten(1), classified(imagined, view, rows, seen)
            moved = drift.transported_within(source, z, seen_kinds, kinds)
            rows = rows.holding(moved.reshape(rows.values.shape))
        rows = rows.take(asked(view, rows))
        return Guess(
            "input", column, rows.cast, rows.position, rows.step, inputs=fitted(rows.values), facts={
                "steps": self.steps, "regulariser": self.regulariser, "auxiliary records": len(aux.inputs[column]),
                "held-out mse of the simulator": fitted.held_out_mse,
                "architecture": "known" if not imagined.above else "unknown",
                "selection": "fixed beforehand; the decoder's noise by leave-one-out error on auxiliary records",
            },
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SimulatedTail(Training, Attack):
    """Infer labels that never leave the client, by stand-ins for both its ends.

    The adversary's own part, run on the real messages, is followed by the tail that was trained on the simulated ones.
    column: the label column (None: the first that the coalition does not hold).
    """

    name: ClassVar[str] = "simulated-tail"
    paper: ClassVar[str] = "SDAR (U-shape), Zhu et al., NDSS 2025, arXiv 2310.10483"
    goal: ClassVar[Goal] = "label"
    needs: ClassVar[Needs] = Needs(messages=(Need(Kind.SMASHED),), knows=frozenset({Knows.AUX}), secret_labels=True)
    cost: ClassVar[float] = 30.0

    column: str | None = None

    def infer(self, view: View, *, coins: torch.Generator) -> Guess:
        seen, aux = self.messages(view), labelled(view)
        imagined = self.run(view, aux, seen, coins)
        secret = secret_labels(view.topology, view.roles)
        objectives = [o for o in imagined.objectives if o.target in secret and self.column in (None, o.target)]
        if not objectives or not view.classes.get(objectives[0].target, 0):
            raise NotApplicable(f"no secret label column {self.column or ''!r} of classes is below its own segments")
        rows = next(iter(seen.values()))
        rows = rows.take(asked(view, rows))
        scores = []
        for part in torch.split(torch.arange(len(rows)), 500):
            some = rows.take(part)
            messages = {edge: other.values[find(some, other)] for edge, other in seen.items()}
            with torch.no_grad():
                outputs = imagined.follow(messages, held(view, some))
                scores.append(imagined.scores(objectives[0], outputs).softmax(1))
        found = torch.cat(scores)
        return Guess(
            "label", objectives[0].target, rows.cast, rows.position, rows.step, scores=found, labels=found.argmax(1),
            facts={"steps": self.steps, "regulariser": self.regulariser, "selection": "fixed beforehand"},
        )  # fmt: skip


@torch.no_grad()
def simulate(imagined: Imagined, aux: Known, chosen: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """(edge -> the stand-ins' messages for those auxiliary records, the class that the network sees in each)."""
    sent: dict[str, list[Tensor]] = {}
    kinds = []
    for rows in torch.split(chosen, CHUNK):
        part = {name: values[rows] for name, values in aux.inputs.items()}
        messages = imagined.imagine(part)
        for edge, message in messages.items():
            sent.setdefault(edge, []).append(message)
        kinds.append(imagined.seen_class(messages, part))
    return {edge: torch.cat(parts) for edge, parts in sent.items()}, torch.cat(kinds)


@torch.no_grad()
def classified(imagined: Imagined, view: View, rows: Observed, seen: Mapping[str, Observed]) -> Tensor:
    """(n,) the class that the network sees in each row's real messages; 0 where some of them were not seen."""
    places = {edge: find(rows, other) for edge, other in seen.items()}
    if any(bool((place < 0).any()) for place in places.values()):
        return torch.zeros(len(rows), dtype=torch.int64)
    kinds = []
    for part in torch.split(torch.arange(len(rows)), CHUNK):
        messages = {edge: other.values[places[edge][part]] for edge, other in seen.items()}
        kinds.append(imagined.seen_class(messages, held(view, rows.take(part))))
    return torch.cat(kinds)


def labelled(view: View) -> Known:
    """The auxiliary records. Raises NotApplicable where there are none."""
    if view.aux is None or not view.aux.inputs:
        raise NotApplicable("it needs auxiliary records")
    return view.aux
