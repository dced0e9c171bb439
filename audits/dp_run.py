"""The epsilon audit of a run file: every noised link by canaries, and the whole training by one run of it.

A link is audited through the very defense that the run builds, with crafted canaries (the worst pair there is) and with
the two records farthest apart after clipping; its claim is what the mechanism charges for all epochs. A training is
audited by exchanging some of its records for others on fair coins, and guessing the coins from what the receiver was
sent; its claim is the run's forecast. Re-identification among the run's own records stands beside the bound that the
noise gives.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from audits.dp import (
    EpsilonAudit,
    OneRun,
    Pair,
    Reidentification,
    audit_mechanism,
    crafted,
    farthest,
    guess_coins,
    reidentify,
)
from secsplit.accounting import INPUTS, compose, epsilon_of
from secsplit.assemble import parties_of
from secsplit.claims import EVERYONE
from secsplit.defenses import Noise, Outgoing
from secsplit.defenses.gaussian import Gaussian, GaussianSpec, clipped
from secsplit.drive import simulate
from secsplit.errors import RunError
from secsplit.forecast import forecasts
from secsplit.message import Kind, Stamp
from secsplit.party import Party
from secsplit.run import Run
from secsplit.schedule import SPLITS, Turn
from secsplit.transcript import Transcript

CANDIDATES = 1000  # records to tell apart
CANARIES = 1000  # of a one-run audit, at most half of the records


@dataclass(frozen=True)
class DPAudit:
    """All that was measured of a run's claims; `violations` counts the contradicted ones."""

    links: tuple[EpsilonAudit, ...]
    trainings: tuple[OneRun, ...]
    reidentifications: tuple[Reidentification, ...]

    @property
    def violations(self) -> int:
        """How many claims are contradicted."""
        verdicts = [a.verdict for a in self.links] + [t.verdict for t in self.trainings]
        return [*verdicts, *(r.verdict for r in self.reidentifications)].count("violation")

    @property
    def statements(self) -> tuple[str, ...]:
        """One sentence for each thing measured."""
        told = [a.statement for a in self.links] + [t.statement for t in self.trainings]
        return (*told, *(r.statement for r in self.reidentifications))


def audit_run(run: Run, *, trials: int = 10_000, delta: float = 1e-5, seed: int = 0) -> DPAudit:
    """Audit every link that the Gaussian mechanism covers, and the training. Raises RunError where there is none."""
    specs = [spec for spec in run.file.defenses if isinstance(spec, GaussianSpec)]
    if not specs:
        raise RunError("audit --dp: no defense of kind 'gaussian' in this run, so there is no claim of noise to audit")
    links, reidentifications = [], []
    parties = parties_of(run)
    for spec in specs:
        links.append(_link(run, spec, crafted(spec), trials, delta))
        messages = _messages(run, parties, spec)
        if messages is not None:
            links.append(_link(run, spec, farthest(messages, spec), trials // 2, delta))
            reidentifications.append(_reidentified(run, spec, messages))
    return DPAudit(tuple(links), tuple(_trainings(run, parties, specs, delta, seed)), tuple(reidentifications))


def _epochs(run: Run, spec: GaussianSpec) -> tuple[int, float]:
    """(messages of a record in all, mu that the mechanism charges for them)."""
    epochs = run.file.train.epochs
    (mu, *_) = (charge.mu for charge in spec.bounds(Kind(spec.message), spec.edge))
    return epochs, mu if spec.once else compose([mu] * epochs)


def _link(run: Run, spec: GaussianSpec, pair: Pair, trials: int, delta: float) -> EpsilonAudit:
    epochs, mu = _epochs(run, spec)
    return audit_mechanism(
        Gaussian(spec, Noise.fresh()), pair, epsilon_of(mu, delta), kind=Kind(spec.message), edge=spec.edge,
        delta=delta, releases=epochs, trials=trials, mechanism=f"gaussian on {spec.edge}", adjacency=spec.adjacency,
    )  # fmt: skip


@torch.no_grad()
def _messages(run: Run, parties: Mapping[str, Party], spec: GaussianSpec) -> Tensor | None:
    """(N, ...) what the segment makes of the first records, undefended; None where it takes others' messages."""
    segment = run.topology[spec.edge.partition("->")[0]] if spec.message == "smashed" else None
    if segment is None or segment.sources or len(segment.columns) != 1:
        return None
    party = parties[run.parties(segment.role)[0]]
    shard = next(iter(party.shards.values()))
    module = party.modules[segment.name].eval()
    made: Tensor = module(shard.inputs["train"][segment.columns[0]][:CANDIDATES])
    module.train()
    return made


def _reidentified(run: Run, spec: GaussianSpec, messages: Tensor) -> Reidentification:
    """Every record's messages of all epochs, averaged, held against all records' messages without noise."""
    epochs, mu = _epochs(run, spec)
    defense, truth = Gaussian(spec.model_copy(update={"rescale": 1.0}), Noise.fresh()), torch.arange(len(messages))
    outs = [Outgoing(Kind.SMASHED, spec.edge, Stamp(k), messages, None, truth, "receiver") for k in range(epochs)]
    sent = torch.stack([defense.outgoing(out) for out in outs]).mean(0)
    return reidentify(sent, clipped(messages, spec.clip, nonnegative=spec.nonnegative), truth, mu=mu)


# the whole training


def _trainings(
    run: Run, parties: Mapping[str, Party], specs: list[GaussianSpec], delta: float, seed: int
) -> list[OneRun]:
    """One audit for each role whose inputs have a finite claim and cross by a Gaussian mechanism."""
    claims = {
        f.role: f.epsilon(delta) for f in forecasts(run)
        if f.protects == INPUTS and f.training and f.to == EVERYONE
    }  # fmt: skip
    found = []
    for spec in specs:
        role = spec.role(run.topology)
        replaced = spec.adjacency == "replace-one"  # which is what the canaries of a training are
        if replaced and spec.message == "smashed" and math.isfinite(claims.get(role, math.inf)) and len(run.casts) == 1:
            found.append(_training(run, parties, spec, claims[role], delta, seed))
    return found


def _training(
    run: Run, parties: Mapping[str, Party], spec: GaussianSpec, claimed: float, delta: float, seed: int
) -> OneRun:
    source = run.topology[spec.edge.partition("->")[0]]
    name, column = run.parties(source.role)[0], source.columns[0]
    party = parties[name]
    shard, records = party.shards[0], party.shards[0].inputs["train"][column]
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(records), generator=generator)
    m = min(CANARIES, len(records) // 2)
    places, others = order[:m], order[m : 2 * m]
    coins = torch.rand(m, generator=generator) < 0.5
    one, other = records[places].clone(), records[others].clone()
    swapped = records.clone()
    swapped[places] = torch.where(coins.view(-1, *[1] * (records.ndim - 1)), one, other)
    train = {**shard.inputs["train"], column: swapped}
    party.shards = {0: replace(shard, inputs={**shard.inputs, "train": train})}
    transcript = Transcript(name)
    simulate(parties, transcripts={name: transcript})
    scores = _scores(run, party, spec, transcript, (one, other), places, source.name)
    return guess_coins(scores, coins, claimed, delta=delta)


@torch.no_grad()
def _scores(
    run: Run,
    party: Party,
    spec: GaussianSpec,
    transcript: Transcript,
    pair: tuple[Tensor, Tensor],
    places: Tensor,
    segment: str,
) -> Tensor:
    """(m,) how much nearer each canary's messages lie to the one value than to the other, by the trained segment."""
    module = party.modules[segment].eval()
    one, other = (clipped(module(x), spec.clip, nonnegative=spec.nonnegative).flatten(1).double() for x in pair)
    index = torch.full((len(party.shards[0].inputs["train"][run.topology[segment].columns[0]]),), -1)
    index[places] = torch.arange(len(places))
    scores = torch.zeros(len(places), dtype=torch.float64)
    schedule = run.schedule({0: {split: party.shards[0].size(split) or 0 for split in SPLITS}})
    turns = {event.step: event for event in schedule if isinstance(event, Turn) and event.training}
    for record in transcript:
        if (record.kind, record.edge, record.stamp.training) == (Kind.SMASHED, spec.edge, True):
            rows = schedule.rows(turns[record.stamp.step]).chunk(run.file.train.micro_batches)[record.stamp.micro]
            at = index[rows]
            kept = at >= 0
            z, i = record.tensor.flatten(1).double()[kept] / spec.rescale, at[kept]
            scores.index_add_(0, i, ((z - (one[i] + other[i]) / 2) * (one[i] - other[i])).sum(1))
    return scores
