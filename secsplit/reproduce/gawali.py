"""The comparison of Gawali et al. 2021 (arXiv 2012.12591), on the records at hand.

Federated, split and SplitFed learning of a binary diagnosis (and of a segmentation), with labels shared and kept:
how well, at what communication, computation and time. Of the paper only the abstract is at hand: its two findings are
tested here, its numbers are not.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from secsplit.diagnosis import Diagnosis, Figure, difference
from secsplit.reproduce.gawali_arms import ARMS, KEPT, SHARED, WEIGHTS, Task
from secsplit.reproduce.gawali_data import tasks_of
from secsplit.reproduce.gawali_draw import draw
from secsplit.reproduce.gawali_train import RESAMPLES, Outcome, outcome
from secsplit.reproduce.result import Options, Reproduction, Table
from secsplit.schedule import derive

CLAIMS = (("SplitFed v3", "SL-AC"), ("SplitFed v3", "SL-AM"), ("SplitFed v3", "SplitFed v2"), ("SL-AM", "SL-AC"))


def gawali(options: Options) -> Reproduction:
    """Every arm on every task: figures with intervals, bytes foretold beside counted, operations, seconds."""
    with tempfile.TemporaryDirectory(prefix="secsplit-gawali-") as folder:
        tasks = tasks_of(options, Path(folder))
        found = {task.name: [outcome(task, arm, options.seed) for arm in ARMS] for task in tasks}
    claims = _claims(found["classification"], options.seed)
    tables = [table for task in tasks for table in (_figures(task, found[task.name]), _costs(task, found[task.name]))]
    figures = draw(found, options.out) if options.out else ()
    return Reproduction(
        name="gawali",
        paper="Gawali et al. 2021, Comparison of Privacy-Preserving Distributed Deep Learning Methods in Healthcare "
        "(arXiv 2012.12591)",
        tables=(*tables, _claimed(claims)),
        assumptions=_assumptions(tasks, options),
        differences=(
            "other records, hospitals and sizes than the paper's, which are not published; only its abstract is at "
            "hand, so no number of it is compared, and only its two findings are tested",
            *(() if len(tasks) == 2 else ("no masks at hand: no segmentation",)),
            *_disagreements(found),
        ),
        values={
            "seed": options.seed,
            "tasks": {task.name: _task(task, found[task.name]) for task in tasks},
            "claims": [
                {"labels": kind, "better": a, "worse": b, **_plain(figure)} for (kind, a, b), figure in claims.items()
            ],
        },
        figures=figures,
    )


def _claims(found: Sequence[Outcome], seed: int) -> dict[tuple[str, str, str], Figure]:
    """(labels, better, worse) -> by how much in AUROC, for all that the abstract says."""
    by_name = {(done.arm.name, done.arm.labels): done for done in found}
    claims = {}
    for labels in (SHARED, KEPT):
        for better, worse in CLAIMS:
            ours, theirs = by_name[better, labels], by_name[worse, labels]
            assert ours.scores is not None
            assert theirs.scores is not None
            assert torch.equal(ours.truth, theirs.truth)  # the same records in the same order
            coins = torch.Generator().manual_seed(derive(seed, "difference", labels, better, worse))
            claims[labels, better, worse] = difference(
                ours.scores, theirs.scores, ours.truth, coins=coins, resamples=RESAMPLES
            )
    return claims


def _figures(task: Task, found: Sequence[Outcome]) -> Table:
    judged = found[0].judged
    if isinstance(judged, Diagnosis):
        chance = ", ".join(f"{name} {value:.2f}" for name, value in judged.chance.items())
        title = f"{task.what}: n = {judged.n} test records, {judged.ill} of class 1; chance: {chance}"
        names = tuple(judged.figures)
    else:
        title, names = f"{task.what}: n = {judged.n} test images, mean over images", ("dice", "iou")
    rows = tuple(
        (done.arm.name, done.arm.labels, *(str(figure) for figure in _judged(done).values())) for done in found
    )
    return Table(title, ("method", "labels", *names), rows)


def _judged(done: Outcome) -> Mapping[str, Figure]:
    judged = done.judged
    return judged.figures if isinstance(judged, Diagnosis) else {"dice": judged.dice, "iou": judged.iou}


def _costs(task: Task, found: Sequence[Outcome]) -> Table:
    header = (
        "method", "labels", "tensor bytes", "sealed bytes", "foretold", "client GFLOP", "server GFLOP", "CPU s",
        "wall s",
    )  # fmt: skip
    rows = tuple(
        (
            done.arm.name,
            done.arm.labels,
            f"{done.counted.payload:,}",
            f"{done.counted.sealed:,}",
            "exactly" if not done.disagreement else f"{done.foretold.sealed:,}",
            f"{done.client_flops / 1e9:.2f}",
            f"{done.server_flops / 1e9:.2f}",
            f"{done.cpu_seconds:.1f}",
            f"{done.wall_seconds:.1f}",
        )
        for done in found
    )
    title = f"{task.name}, {task.epochs} epochs: bytes between all parties in training; the mean client's operations"
    return Table(title, header, rows)


def _claimed(claims: Mapping[tuple[str, str, str], Figure]) -> Table:
    def verdict(figure: Figure) -> str:
        return "held here" if figure.low > 0 else "opposite here" if figure.high < 0 else "not told apart here"

    rows = tuple(
        (f"{better} better than {worse}", labels, f"{figure.value:+.3f} ({figure.low:+.3f} to {figure.high:+.3f})",
         verdict(figure))
        for (labels, better, worse), figure in claims.items()
    )  # fmt: skip
    title = "what the abstract finds: difference in AUROC on the same test records, 95 % each, not adjusted for eight"
    return Table(title, ("finding", "labels", "difference", "verdict"), rows)


def _assumptions(tasks: Sequence[Task], options: Options) -> tuple[str, ...]:
    told = "; ".join(f"{task.name}: {task.model['name']}, {task.epochs} epochs of {task.batch_size}" for task in tasks)
    return (
        f"{told}; Adam at {tasks[0].rate:g} everywhere, not tuned for any method; averages start it anew",
        f"{tasks[0].hospitals} hospitals, records drawn alike, in proportion {WEIGHTS[: tasks[0].hospitals]}",
        "every hospital judges its part of the test records with the network it has at the end; v3's networks differ",
        f"one run with seed {options.seed}: intervals are of the test records ({RESAMPLES} resamples within each "
        "class), not of the training; Youden's threshold is chosen on the records it is judged on",
        "all parties in one process on one thread, every message sealed: seconds are of all parties' work together",
        "operations: forward and backward, two to a multiply-accumulate; bytes: no handshakes, no signs of life",
        *(
            ("smaller networks and fewer records (--quick); without it DenseNet-121 and U-Net",)
            if options.quick
            else ()
        ),
    )


def _disagreements(found: Mapping[str, Sequence[Outcome]]) -> list[str]:
    return [
        f"{name}, {done.arm.title}: bytes foretold and counted differ by {done.disagreement:.2%}"
        for name, outcomes in found.items()
        for done in outcomes
        if done.disagreement
    ]


def _task(task: Task, found: Sequence[Outcome]) -> dict[str, Any]:
    return {
        "what": task.what,
        "model": dict(task.model),
        "epochs": task.epochs,
        "batch_size": task.batch_size,
        "rate": task.rate,
        "hospitals": task.hospitals,
        "arms": [_arm(done) for done in found],
    }


def _arm(done: Outcome) -> dict[str, Any]:
    judged = done.judged
    known: dict[str, Any] = {}
    if isinstance(judged, Diagnosis):
        known = {"prevalence": judged.prevalence, "threshold": judged.threshold, "chance": dict(judged.chance)}
    return {
        "method": done.arm.name,
        "labels": done.arm.labels,
        "n": judged.n,
        **known,
        "figures": {name: _plain(figure) for name, figure in _judged(done).items()},
        "auroc_by_hospital": dict(done.each),
        "train_loss": list(done.losses),
        "bytes": {
            "tensors": done.counted.payload,
            "sealed": done.counted.sealed,
            "foretold_tensors": done.foretold.payload,
            "foretold_sealed": done.foretold.sealed,
            "messages": done.counted.messages,
        },
        "client_flops": done.client_flops,
        "server_flops": done.server_flops,
        "cpu_seconds": done.cpu_seconds,
        "wall_seconds": done.wall_seconds,
    }


def _plain(figure: Figure) -> dict[str, float]:
    return {"value": figure.value, "low": figure.low, "high": figure.high}
