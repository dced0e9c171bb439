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
from torch.nn.functional import cross_entropy, mse_loss, normalize

from attacks import shadows
from attacks.base import Attack, Guess
from attacks.feature_inference import EqualitySolving
from attacks.gradient_clustering import GradientClustering
from attacks.gradient_norm import GradientDirection, GradientNorm
from attacks.inverse_network import InverseNetwork
from attacks.model_completion import ModelCompletion
from attacks.property_probe import PropertyProbe
from attacks.rows import told
from attacks.simulated_client import SimulatedClient
from attacks.spectral import Spectral
from attacks.white_box import WhiteBox
from secsplit import datasets
from secsplit.datasets import DataSpec
from secsplit.message import Kind
from secsplit.threat import Knows, View
from secsplit.topologies import multi_task, vanilla
from tests.attacks import runs, test_feature_inference, test_model_completion
from tests.attacks.figures import accuracy, leak_aucs
from tests.attacks.victims import Victim, binary, fashion, mlp, part, train

CLUES = frozenset({Knows.CLUES})
Made = Callable[[], Guess]
Figure = Callable[[Guess], float]


@dataclass(frozen=True)
class Case:
    """Two ways to the same guess; figure: its quality, higher being better, which nobody is timed for."""

    ours: Made
    theirs: Made
    figure: Figure
    theirs_is: str


def attack(view: View, chosen: Attack) -> Made:
    return lambda: chosen.infer(view, coins=torch.Generator().manual_seed(0))


def median_auc(victim: Victim) -> Figure:
    return lambda guess: float(leak_aucs(victim, guess).median())


def share(victim: Victim) -> Figure:
    return lambda guess: accuracy(victim, guess)


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


def scored(victim: Victim, score: Callable[[Tensor, Tensor], Tensor], *, signed: bool = True) -> Guess:
    """A score of each batch's gradients, in a plain loop over the batches."""
    found = messages(victim, victim.view("client"))
    scores = torch.cat([score(g, victim.truth("y", p)) for _, p, g in found])
    position = torch.cat([p for _, p, _ in found])
    step = torch.cat([torch.full((len(p),), s) for s, p, _ in found])
    return Guess("label", "y", torch.zeros_like(position), position, step, scores, up_to_permutation=not signed)


def norm() -> Case:
    victim = digits(0)
    return Case(
        attack(victim.view("client"), GradientNorm()),
        lambda: scored(victim, lambda g, y: g.norm(dim=1)),
        median_auc(victim),
        "a loop over batches",
    )


def direction() -> Case:
    """Theirs is given a known positive in every batch; ours has one in the whole run."""
    victim = digits(0)

    def theirs(g: Tensor, y: Tensor) -> Tensor:
        hint = g[y == 1][:1] if bool((y == 1).any()) else g[:1]
        return (normalize(g, dim=1) @ normalize(hint, dim=1).T).flatten()

    return Case(
        attack(victim.view("client", knows=CLUES), GradientDirection()),
        lambda: scored(victim, theirs),
        median_auc(victim),
        "a loop over batches, a hint in each",
    )


def spectral() -> Case:
    victim = digits(0)

    def theirs(g: Tensor, y: Tensor) -> Tensor:
        centred = g - g.mean(0)
        return centred @ torch.linalg.svd(centred, full_matrices=False).Vh[0]

    return Case(
        attack(victim.view("client"), Spectral()),
        lambda: scored(victim, theirs, signed=False),
        median_auc(victim),
        "the whole singular value decomposition",
    )


def clustering() -> Case:
    victim = digits()
    view = victim.view("client")

    def theirs() -> Guess:
        found = [(p, g) for _, p, g in messages(victim, view)][:8]
        position, u = torch.cat([p for p, _ in found]), normalize(torch.cat([g for _, g in found]), dim=1)
        coins = torch.Generator().manual_seed(0)
        label = min((lloyd(u, 10, coins) for _ in range(10)), key=lambda fitted: fitted[0])[1]
        nothing = torch.zeros_like(position)
        return Guess("label", "y", nothing, position, nothing - 1, labels=label, up_to_permutation=True)

    return Case(attack(view, GradientClustering()), theirs, share(victim), "Lloyd's k-means, ten restarts")


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
    victim = test_model_completion.victim(fashion_part(), epochs=4)
    view = victim.view("left", knows=CLUES, clues=4)
    return Case(
        attack(view, ModelCompletion()), attack(view, ModelCompletion(head="mixmatch")), share(victim),
        "MixMatch, 3000 steps",
    )  # fmt: skip


def fashion_part() -> datasets.Dataset:
    return part(fashion(), torch.arange(20_000))


def probe() -> Case:
    data = datasets.load(DataSpec(name="digits", modalities={"x1": "all"}, labels={"parity": "parity", "y": "y"}))
    models = {"bottom-1": nn.Sequential(nn.Flatten(), mlp(64, 64, last_relu=True)), "top-1": mlp(64, 2),
              "top-2": mlp(64, 10)}  # fmt: skip
    victim = train(multi_task(clients=1, tasks=("parity", "y")), data, models, epochs=3)
    view = victim.view("server-1", knows=CLUES, clues=30)

    def theirs() -> Guess:
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
        return guess.of(label < 0)

    return Case(attack(view, PropertyProbe()), theirs, share(victim), "a linear probe, 500 Adam steps")


# attacks on records, on a small network for digits


def known() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    _, _, x, y = runs.digits()
    return {"x": x}, {"y": y}


def fidelity(victim: runs.Victim) -> Figure:
    """1 - error over the mean record's."""

    def figure(guess: Guess) -> float:
        found = runs.score(victim, guess)
        return 1 - found.mse / found.mean_mse

    return figure


def last_messages(victim: runs.Victim, view: View) -> tuple[Tensor, Tensor]:
    """(positions, smashed data), the last of each record, by a dictionary."""
    last = {
        int(p): z for r in view.records(Kind.SMASHED) for p, z in zip(victim.order[r.stamp.step], r.tensor, strict=True)
    }
    return torch.tensor(list(last)), torch.stack(list(last.values()))


def rebuilt(position: Tensor, inputs: Tensor) -> Guess:
    return Guess("input", "x", position * 0, position, position * 0 - 1, inputs=inputs)


def network(inner: int, outer: int, steps: int, z: Tensor, x: Tensor) -> nn.Module:
    """He et al.'s decoder: an MLP of two hidden layers, Adam."""
    torch.manual_seed(0)
    decoder = nn.Sequential(
        nn.Flatten(),
        nn.Linear(z[0].numel(), inner),
        nn.ReLU(),
        nn.Linear(inner, inner),
        nn.ReLU(),
        nn.Linear(inner, outer),
    )
    optimizer = torch.optim.Adam(decoder.parameters(), 1e-3)
    for _ in range(steps):
        rows = torch.randint(len(x), (128,))
        optimizer.zero_grad()
        mse_loss(decoder(z[rows]), x[rows].flatten(1)).backward()
        optimizer.step()
    return decoder


def inverse() -> Case:
    victim = runs.small(cuts=(4,))
    view = victim.view("server", aux=known(), knows={Knows.QUERY})

    def theirs() -> Guess:
        x = known()[0]["x"]
        with torch.no_grad():
            z = view.query["bottom"](x)
        decoder = network(512, 64, 1500, z, x)
        position, messages = last_messages(victim, view)
        with torch.no_grad():
            return rebuilt(position, decoder(messages).reshape(-1, 1, 8, 8))

    return Case(attack(view, InverseNetwork()), theirs, fidelity(victim), "an MLP decoder, 1500 Adam steps")


def white_box() -> Case:
    victim = runs.small(cuts=(2,))
    view = victim.view("server", knows={Knows.WEIGHTS})
    ours = attack(view, WhiteBox(rows=16, steps=600))

    def theirs() -> Guess:
        position = ours_position
        _, messages = last_messages(victim, view)
        where = {int(p): i for i, p in enumerate(last_messages(victim, view)[0])}
        bottom = view.weights["bottom"]().eval().requires_grad_(False)
        made = []
        for p in position.tolist():
            x, z = torch.full((1, 1, 8, 8), 0.5, requires_grad=True), messages[where[p]][None]
            optimizer = torch.optim.Adam([x], 0.03)
            for _ in range(600):
                optimizer.zero_grad()
                tv = (x[..., 1:] - x[..., :-1]).abs().mean() + (x[..., 1:, :] - x[..., :-1, :]).abs().mean()
                ((bottom(x) - z).square().sum() + 0.01 * tv).backward()
                optimizer.step()
                x.data.clamp_(0, 1)
            made.append(x.detach())
        return rebuilt(position, torch.cat(made))

    ours_position = ours().position
    return Case(ours, theirs, fidelity(victim), "one record at a time, 600 Adam steps each")


def simulated() -> Case:
    victim = runs.small(cuts=(2,))
    view = victim.view("server", aux=known(), knows={Knows.ARCHITECTURE})

    def theirs() -> Guess:
        (x, y), top = (known()[0]["x"], known()[1]["y"]), view.models["top"][-1].make().eval().requires_grad_(False)
        position, z = last_messages(victim, view)
        torch.manual_seed(0)
        stand_in = view.architecture["bottom"]()
        optimizer = torch.optim.Adam(stand_in.parameters(), 1e-3)
        for _ in range(3000):
            mine, real = torch.randint(len(x), (128,)), torch.randint(len(z), (128,))
            sent = stand_in(x[mine])
            optimizer.zero_grad()
            (cross_entropy(top(sent), y[mine]) + discrepancy(sent.flatten(1), z[real].flatten(1))).backward()
            optimizer.step()
        with torch.no_grad():
            sent = stand_in(x)
        decoder = network(512, 64, 3000, sent, x)
        with torch.no_grad():
            return rebuilt(position, decoder(z).reshape(-1, 1, 8, 8))

    return Case(
        attack(view, SimulatedClient()), theirs, fidelity(victim), "PCAT with MK-MMD, 3000 steps, then an MLP decoder"
    )


def discrepancy(a: Tensor, b: Tensor) -> Tensor:
    """MK-MMD with Gaussian kernels of widths 2^-3 to 2^1 of the mean distance."""
    both = torch.cat([a, b])
    distance = torch.cdist(both, both).square()
    width = distance.detach().mean()
    kernel = torch.stack([(-distance / (width * 2.0**i)).exp() for i in range(-3, 2)]).sum(0)
    n = len(a)
    return (kernel[:n, :n] + kernel[n:, n:] - kernel[:n, n:] - kernel[n:, :n]).mean()


def shadows_together() -> Case:
    """Sixteen shadows of a small network: one stack of weights, against one network after the other."""
    x, y, _, _ = runs.digits()
    coins = torch.Generator().manual_seed(0)
    members = torch.rand(16, 600, generator=coins).argsort(1)[:, :300]
    rows = torch.arange(600)

    def whole(seed: int) -> shadows.Whole:
        torch.manual_seed(seed)
        return shadows.Whole(vanilla(), {"bottom": nn.Sequential(nn.Flatten(), mlp(64, 48, last_relu=True, seed=seed)),
                                         "top": mlp(48, 24, 10, seed=seed)})  # fmt: skip

    def guess(sure: Tensor) -> Guess:
        return Guess("membership", "member", rows * 0, rows, rows * 0, scores=sure.mean(0))

    def ours() -> Guess:
        fitted = shadows.trained(
            [whole(seed) for seed in range(16)], {"x": x[:600]}, {"y": y[:600]}, members, epochs=10, batch=32, lr=2e-3,
            enough=lambda _: False, coins=torch.Generator().manual_seed(0),
        )  # fmt: skip
        return guess(fitted.confidences({"x": x[:600]}, {"y": y[:600]}))

    def theirs() -> Guess:
        sure = []
        for seed, mine in enumerate(members):
            net = whole(seed)
            optimizer = torch.optim.Adam(net.parameters(), 2e-3)
            for _ in range(10):
                for part_ in mine[torch.randperm(300, generator=coins)].split(32):
                    optimizer.zero_grad()
                    cross_entropy(net({"x": x[part_]})[0], y[part_]).backward()
                    optimizer.step()
            with torch.no_grad():
                sure.append(shadows.confidence(vanilla().objectives, net({"x": x[:600]}), {"y": y[:600]}))
        return guess(torch.stack(sure))

    def figure(made: Guess) -> float:
        assert made.scores is not None
        return float((made.scores > 0).double().mean())

    return Case(ours, theirs, figure, "sixteen networks, one after the other")


def equality() -> Case:
    victim = test_feature_inference.victim(datasets.load(DataSpec(name="digits")), 9)
    view = victim.view("active", knows=frozenset({Knows.WEIGHTS, Knows.AUX}))
    truth = victim.data.train.inputs["theirs"]
    ours = attack(view, EqualitySolving())

    def theirs() -> Guess:
        """The paper's formula, one record at a time."""
        mine, other = view.models["mine"][-1].make(), view.weights["theirs"]()
        w, offset = (other.weight[1:] - other.weight[:-1]).detach(), (other.bias[1:] - other.bias[:-1]).detach()
        position, made = [], []
        for record in view.records(Kind.OUTPUT):
            for p, v in zip(victim.order(record.stamp).tolist(), record.tensor, strict=True):
                with torch.no_grad():
                    own = mine(view.own[0].inputs["mine"][p])
                right = (v[1:] - v[:-1]) - (own[1:] - own[:-1]) - offset
                position.append(p)
                made.append(torch.linalg.pinv(w) @ right)
        where = torch.tensor(position)
        return Guess("input", "theirs", where * 0, where, where * 0, inputs=torch.stack(made))

    def figure(guess: Guess) -> float:
        assert guess.inputs is not None
        return 1 - float((guess.inputs - truth[guess.position]).square().mean())

    return Case(ours, theirs, figure, "the formula, one record at a time")


ROWS: dict[str, Callable[[], Case]] = {
    "gradient-norm": norm,
    "gradient-direction": direction,
    "spectral": spectral,
    "gradient-clustering": clustering,
    "model-completion": completion,
    "property-probe": probe,
    "inverse-network": inverse,
    "white-box": white_box,
    "simulated-client": simulated,
    "membership-lira": shadows_together,
    "equality-solving": equality,
}


def cpu(call: Made) -> tuple[float, Guess]:
    """(CPU seconds of one call, guess): the mean of as many as fill a tenth of a second."""
    start, calls = time.process_time(), 0
    while (spent := time.process_time() - start) < 0.1:
        guess = call()
        calls += 1
    return spent / calls, guess


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer blocks")
    parser.add_argument("--only", nargs="*", default=list(ROWS), choices=list(ROWS), help="rows, by the attack's name")
    chosen = parser.parse_args()
    blocks = 2 if chosen.quick else 5
    torch.set_num_threads(1)
    print(f"{'attack':20} {'ours s':>8} {'theirs s':>8} {'theirs/ours':>12} {'quality':>16}   theirs is")
    for name in chosen.only:
        case = ROWS[name]()
        timed = [(cpu(case.ours), cpu(case.theirs)) for _ in range(blocks)]
        ours, theirs = (statistics.median(block[side][0] for block in timed) for side in (0, 1))
        ratio = statistics.median(b[0] / a[0] for a, b in timed)
        good, other = (case.figure(side[1]) for side in timed[0])
        print(
            f"{name:20} {ours:8.3f} {theirs:8.3f} {ratio:11.1f}x {good:7.3f} {other:8.3f}   {case.theirs_is}",
            flush=True,
        )


if __name__ == "__main__":
    main()
