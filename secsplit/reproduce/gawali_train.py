"""One arm of the comparison trained, judged, and its cost foretold and counted."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from secsplit.assemble import modules_of, parties_of
from secsplit.cost import Cost, forecast, measured, segment_costs
from secsplit.diagnosis import Diagnosis, diagnosis
from secsplit.drive import pinned
from secsplit.errors import DataError
from secsplit.overlap import Overlap, overlap
from secsplit.party import Party
from secsplit.reproduce.gawali_arms import Arm, Task, run_of
from secsplit.run import Run
from secsplit.schedule import derive
from secsplit.steps import News
from secsplit.traffic import Tally, total

RESAMPLES = 1000


@dataclass(frozen=True)
class Outcome:
    """What an arm came to, judged on all hospitals' test records together.

    scores, truth: (n,) of a classification; each: AUROC by hospital, where it has both classes; losses: the mean
    training loss of every epoch; foretold, counted: what was sent in training.
    """

    arm: Arm
    run: Run
    judged: Diagnosis | Overlap
    scores: Tensor | None
    truth: Tensor
    each: Mapping[str, float]
    losses: tuple[float, ...]
    foretold: Tally
    counted: Tally
    disagreement: float  # the largest relative difference of foretold and counted bytes on any route
    client_flops: float  # training and judging, of the mean client
    server_flops: int
    cpu_seconds: float
    wall_seconds: float


def outcome(task: Task, arm: Arm, seed: int) -> Outcome:
    """Train the arm in this process, every message sealed, and judge it."""
    run = run_of(task, arm, seed)
    losses: dict[int, list[float]] = defaultdict(list)

    def observe(party: Party, news: News) -> None:
        del party
        for metrics in news.metrics.values() if news.what == "epoch" else ():
            losses[news.epoch] += [metrics["train_loss"]] if "train_loss" in metrics else []

    parties = parties_of(run)
    for party in parties.values():
        party.judge.keep = True
    done = measured(run, parties, observe=observe)
    with pinned(run.file.train.threads):
        modules = modules_of(run)
        segments, made = segment_costs(run, modules)
    whole = forecast(run, modules, made)
    spent = Cost(run, whole.schedule, segments, whole.traffic(), done, whole.traffic())
    costs = spent.parties()
    clients = [cost for cost in costs if cost.role == "client"]
    answers = [answer for party in parties.values() for answer in party.judge.answers.values()]
    outputs, truth = (torch.cat(column) for column in zip(*answers, strict=True))
    scores = None if task.name == "segmentation" else _score(outputs)
    coins = torch.Generator().manual_seed(derive(seed, "bootstrap", arm.title))
    return Outcome(
        arm=arm,
        run=run,
        judged=_judged(outputs, scores, truth, coins),
        scores=scores,
        truth=truth,
        each=_each(parties) if scores is not None else {},
        losses=tuple(fmean(losses[epoch]) for epoch in sorted(losses)),
        foretold=total(spent.traffic, lambda route: route.training),
        counted=total(done.traffic, lambda route: route.training),
        disagreement=spent.disagreement(),
        client_flops=fmean(cost.flops for cost in clients),
        server_flops=sum(cost.flops for cost in costs if cost.role == "server"),
        cpu_seconds=done.cpu_seconds,
        wall_seconds=done.wall_seconds,
    )


def _judged(outputs: Tensor, scores: Tensor | None, truth: Tensor, coins: torch.Generator) -> Diagnosis | Overlap:
    if scores is None:
        return overlap(outputs.argmax(1), truth, coins=coins, resamples=RESAMPLES)
    return diagnosis(scores, truth, coins=coins, resamples=RESAMPLES)


def _each(parties: Mapping[str, Party]) -> dict[str, float]:
    """AUROC of each hospital's own test records, where hospitals judge for themselves."""
    found = {}
    for name, party in parties.items():
        for outputs, truth in party.judge.answers.values():
            if party.role == "client" and truth.unique().numel() == 2:
                judged = diagnosis(_score(outputs), truth, coins=torch.Generator(), resamples=0)
                found[name] = judged.figures["auroc"].value
    return found


def _score(outputs: Tensor) -> Tensor:
    """(n,) log-odds of class 1 from (n, 2) logits."""
    if outputs.shape[1] != 2:
        raise DataError(f"gawali: expected records of two classes, got {outputs.shape[1]}; give binary labels")
    return outputs[:, 1] - outputs[:, 0]
