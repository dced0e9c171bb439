"""Attacks against a straightforward PyTorch rendering of each paper's loop: CPU time at equal quality.

    python -m benchmarks.attacks [--quick]

One thread, ours and theirs interleaved in one run on the same messages, median of the blocks' ratios. Claim: at least
1.0 times as fast, with a quality (share of labels right, leak AUC, 1 - error) that is no worse. A row is a function
that returns a `Case`; to add one, write it and put it into ROWS.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from attacks.base import Attack, Guess
from attacks.gradient_clustering import GradientClustering
from attacks.gradient_norm import GradientDirection, GradientNorm
from attacks.model_completion import ModelCompletion
from attacks.property_probe import PropertyProbe
from attacks.rows import told
from attacks.spectral import Spectral
from secsplit import datasets
from secsplit.datasets import DataSpec
from secsplit.message import Kind
from secsplit.threat import Knows, View
from secsplit.topologies import multi_task, vanilla
from tests.attacks.figures import accuracy, leak_aucs
from tests.attacks.victims import Victim, binary, mlp, train

CLUES = frozenset({Knows.CLUES})
Quality = Callable[[], float]


@dataclass(frozen=True)
class Case:
    """Two ways to the same end; each call does the whole attack and returns its quality, higher being better."""

    ours: Quality
    theirs: Quality
    theirs_is: str


def attack(victim: Victim, view: View, chosen: Attack, figure: Callable[[Victim, Guess], float]) -> Quality:
    return lambda: figure(victim, chosen.infer(view, coins=torch.Generator().manual_seed(0)))


def median_auc(victim: Victim, guess: Guess) -> float:
    return float(leak_aucs(victim, guess).median())


@cache
def digits(positive: int | None = None) -> Victim:
    """Two parties on digits, all ten classes or one against the rest; the server owns the labels."""
    data = datasets.load(DataSpec(name="digits"))
    data = data if positive is None else binary(data, positive)
    models = {"bottom": nn.Sequential(nn.Flatten(), mlp(64, 64, last_relu=True)),
              "top": mlp(64, 32, 10 if positive is None else 2)}  # fmt: skip
    return train(vanilla(labels="server"), data, models, epochs=5, batch=128)


def messages(victim: Victim, view: View) -> list[tuple[int, Tensor, Tensor]]:
    """(step, positions, gradients) of every turn, as a script beside the training loop would have kept them."""
    return [(r.stamp.step, victim.order(r.stamp), r.tensor.flatten(1)) for r in view.records(Kind.CUT_GRAD)]


def scored(victim: Victim, score: Callable[[Tensor, Tensor], Tensor], *, signed: bool = True) -> float:
    """Median leak AUC of a score of a batch's gradients, in a plain loop over the batches."""
    found = messages(victim, victim.view("client"))
    scores = torch.cat([score(g, victim.truth("y", p)) for _, p, g in found])
    position = torch.cat([p for _, p, _ in found])
    step = torch.cat([torch.full((len(p),), s) for s, p, _ in found])
    guess = Guess("label", "y", torch.zeros_like(position), position, step, scores, up_to_permutation=not signed)
    return median_auc(victim, guess)


def norm() -> Case:
    victim = digits(0)
    return Case(
        attack(victim, victim.view("client"), GradientNorm(), median_auc),
        lambda: scored(victim, lambda g, y: g.norm(dim=1)),
        "a loop over batches",
    )


def direction() -> Case:
    """Theirs is given a known positive in every batch; ours has one in the whole run."""
    victim = digits(0)

    def theirs(g: Tensor, y: Tensor) -> Tensor:
        hint = g[y == 1][:1] if bool((y == 1).any()) else g[:1]
        return (normalize(g, dim=1) @ normalize(hint, dim=1).T).flatten()

    return Case(
        attack(victim, victim.view("client", knows=CLUES), GradientDirection(), median_auc),
        lambda: scored(victim, theirs),
        "a loop over batches, a hint in each",
    )


def spectral() -> Case:
    victim = digits(0)

    def theirs(g: Tensor, y: Tensor) -> Tensor:
        centred = g - g.mean(0)
        return centred @ torch.linalg.svd(centred, full_matrices=False).Vh[0]

    return Case(
        attack(victim, victim.view("client"), Spectral(), median_auc),
        lambda: scored(victim, theirs, signed=False),
        "the whole singular value decomposition",
    )


def clustering() -> Case:
    victim = digits()
    view = victim.view("client")

    def theirs() -> float:
        found = [(p, g) for _, p, g in messages(victim, view)][:8]
        position, u = torch.cat([p for p, _ in found]), normalize(torch.cat([g for _, g in found]), dim=1)
        coins = torch.Generator().manual_seed(0)
        label = min((lloyd(u, 10, coins) for _ in range(10)), key=lambda fitted: fitted[0])[1]
        nothing = torch.zeros_like(position)
        guess = Guess("label", "y", nothing, position, nothing - 1, labels=label, up_to_permutation=True)
        return accuracy(victim, guess)

    return Case(attack(victim, view, GradientClustering(), accuracy), theirs, "Lloyd's k-means, ten restarts")


def lloyd(u: Tensor, k: int, coins: torch.Generator, steps: int = 100) -> tuple[float, Tensor]:
    """(inertia, labels) of k-means from random rows."""
    centre = u[torch.randperm(len(u), generator=coins)[:k]].clone()
    label = torch.zeros(len(u), dtype=torch.int64)
    for _ in range(steps):
        distance = torch.cdist(u, centre)
        label = distance.argmin(1)
        for c in range(k):
            if bool((label == c).any()):
                centre[c] = u[label == c].mean(0)
    return float(torch.cdist(u, centre).min(1).values.square().sum()), label


def completion() -> Case:
    victim = digits()
    view = victim.view("client", knows=CLUES, clues=4)
    theirs = ModelCompletion(head="mixmatch")
    return Case(
        attack(victim, view, ModelCompletion(), accuracy),
        attack(victim, view, theirs, accuracy),
        "MixMatch, 3000 steps",
    )


def probe() -> Case:
    data = datasets.load(DataSpec(name="digits", modalities={"x1": "all"}, labels={"parity": "parity", "y": "y"}))
    models = {"bottom-1": nn.Sequential(nn.Flatten(), mlp(64, 64, last_relu=True)), "top-1": mlp(64, 2),
              "top-2": mlp(64, 10)}  # fmt: skip
    victim = train(multi_task(clients=1, tasks=("parity", "y")), data, models, epochs=3)
    view = victim.view("server-1", knows=CLUES, clues=30)

    def theirs() -> float:
        last = {int(p): (z, i) for r in view.records(Kind.SMASHED, edge="bottom-1->top-1")
                for i, (p, z) in enumerate(zip(victim.order(r.stamp), r.tensor, strict=True))}  # fmt: skip
        position = torch.tensor(list(last))
        z = torch.stack([value[0] for value in last.values()])
        label = told(view.clues, "y", torch.zeros_like(position), position)
        torch.manual_seed(0)
        head = nn.Linear(z.shape[1], 10)
        optimizer = torch.optim.Adam(head.parameters(), 1e-2)
        for _ in range(500):
            optimizer.zero_grad()
            cross_entropy(head(z[label >= 0]), label[label >= 0]).backward()
            optimizer.step()
        guess = Guess("attribute", "y", position * 0, position, position * 0, labels=head(z).argmax(1))
        return accuracy(victim, guess.of(label < 0))

    return Case(attack(victim, view, PropertyProbe(), accuracy), theirs, "a linear probe, 500 Adam steps")


ROWS: dict[str, Callable[[], Case]] = {
    "gradient-norm": norm,
    "gradient-direction": direction,
    "spectral": spectral,
    "gradient-clustering": clustering,
    "model-completion": completion,
    "property-probe": probe,
}


def cpu(call: Quality) -> tuple[float, float]:
    """(CPU seconds, quality) of one call."""
    start = time.process_time()
    quality = call()
    return time.process_time() - start, quality


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer blocks")
    blocks = 3 if parser.parse_args().quick else 9
    torch.set_num_threads(1)
    print(f"{'attack':20} {'ours s':>8} {'theirs s':>8} {'theirs/ours':>12} {'quality':>16}   theirs is")
    for name, make in ROWS.items():
        case = make()
        case.ours(), case.theirs()
        timed = [(cpu(case.ours), cpu(case.theirs)) for _ in range(blocks)]
        ours, theirs = (statistics.median(block[side][0] for block in timed) for side in (0, 1))
        ratio = statistics.median(b[0] / a[0] for a, b in timed)
        good, other = timed[0][0][1], timed[0][1][1]
        print(f"{name:20} {ours:8.3f} {theirs:8.3f} {ratio:11.1f}x {good:7.3f} {other:8.3f}   {case.theirs_is}")


if __name__ == "__main__":
    main()
