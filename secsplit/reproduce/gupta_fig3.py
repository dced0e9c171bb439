"""Figure 3 of Vepakomma et al. 2018 (arXiv 1812.00564): accuracy against what each client computes.

The paper trains VGG on CIFAR-10 with 100 clients and ResNet-50 on CIFAR-100 with 500. Here the same three methods train
a small network on the data at hand, so curves and their order can be compared, and no number can.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from scipy.stats import binomtest

from secsplit.assemble import dataset_of, modules_of, parties_of
from secsplit.datasets import DataError
from secsplit.drive import simulate
from secsplit.errors import EnvironmentFault
from secsplit.flops import flops
from secsplit.party import Party
from secsplit.reproduce.result import Options, Reproduction, Table
from secsplit.run import Run
from secsplit.runfile import parse
from secsplit.steps import News

METHODS = {"split": "sl-ac", "federated": "federated", "large batch": "large-batch"}
RATES = (1e-3, 5e-3)
COLOURS = {"split": "#0b6e99", "federated": "#b5402a", "large batch": "#3c7d3c"}


@dataclass(frozen=True)
class Setting:
    """What is trained on, by how many clients, for how long."""

    data: Mapping[str, Any]
    model: str
    cut: str
    clients: int
    epochs: int
    batch_size: int


FASHION = Setting({"name": "fashion-mnist", "limit": 4_000, "limit_test": 1_000}, "cnn", "pool1", 20, 5, 20)
DIGITS = Setting({"name": "digits"}, "lenet", "pool1", 10, 12, 16)


@dataclass(frozen=True)
class Point:
    """After an epoch: what each client has computed, and how many test records are judged rightly."""

    epoch: int
    client_flops: float
    right: int
    n: int

    @property
    def accuracy(self) -> float:
        return self.right / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval."""
        found = binomtest(self.right, self.n).proportion_ci(method="wilson")
        return float(found.low), float(found.high)


def run_of(setting: Setting, method: str, rate: float, options: Options) -> Run:
    """One method on that setting, with Adam at that rate."""
    split, seed = method == "split", options.seed
    path = {"path": options.data} if options.data and setting is FASHION else {}
    clients = {f"client-{i:03d}": {"role": "client"} for i in range(setting.clients)}
    tables: dict[str, Any] = {
        "topology": {"name": "vanilla" if split else "whole"},
        "method": {"name": METHODS[method]},
        "model": {"name": setting.model, "cut": [setting.cut] if split else []},
        "optimizer": {"name": "adam", "lr": rate},
        "train": {"seed": seed, "epochs": setting.epochs, "batch_size": setting.batch_size},
        "data": {**setting.data, "seed": seed, **path},
        "parties": {**clients, "server": {"role": "server" if split else "aggregator"}},
    }
    return Run.of(parse(tables))


@dataclass(frozen=True)
class Curve:
    """How a method did at one learning rate: a point an epoch, and the mean training loss of the last."""

    rate: float
    points: tuple[Point, ...]
    train_loss: float


def best(setting: Setting, method: str, options: Options) -> Curve:
    """The method at the rate that left the smallest training loss; the test records choose nothing."""
    curves = [curve(run_of(setting, method, rate, options), rate) for rate in RATES]
    return min(curves, key=lambda tried: tried.train_loss)


def curve(run: Run, rate: float) -> Curve:
    """Train, and tell after every epoch how good the network is and what it has cost a client."""
    losses: dict[int, list[float]] = defaultdict(list)
    right: dict[int, float] = defaultdict(float)
    judged: dict[int, float] = defaultdict(float)

    def observe(party: Party, news: News) -> None:
        for metrics in news.metrics.values() if news.what == "epoch" else ():
            losses[news.epoch] += [metrics["train_loss"]] if "train_loss" in metrics else []
            if "test_accuracy" in metrics:
                right[news.epoch] += metrics["test_accuracy"] * metrics["test_n"]
                judged[news.epoch] += metrics["test_n"]

    simulate(parties_of(run), observe=observe)
    per_epoch = client_flops(run)
    points = tuple(Point(e, per_epoch * (e + 1), round(right[e]), round(judged[e])) for e in sorted(judged))
    return Curve(rate, points, fmean(losses[points[-1].epoch]))


def client_flops(run: Run) -> float:
    """Training FLOPs of the mean client in one epoch: forward and backward of the segments it holds."""
    modules, first = modules_of(run), run.topology.order[0]
    shape = dataset_of(run, run.casts[0]["client"], 0).shapes()["x"]
    record = flops(modules[first.name], (torch.zeros(1, *shape),), onward=False).step
    clients = range(len(run.casts))
    return record * sum(len(dataset_of(run, run.casts[k]["client"], k).train) for k in clients) / len(clients)


def setting_of(options: Options) -> Setting:
    """Fashion-MNIST where it lies at hand, else (or to be quick) the digits that scikit-learn ships."""
    if options.quick:
        return DIGITS
    try:
        dataset_of(run_of(FASHION, "federated", RATES[0], options), "client-000", 0)
    except DataError:
        return DIGITS
    return FASHION


def fig3(options: Options) -> Reproduction:
    """Accuracy against client computation for split learning, federated averaging and large-batch SGD."""
    setting = setting_of(options)
    found = {method: best(setting, method, options) for method in METHODS}
    curves = {method: chosen.points for method, chosen in found.items()}
    figures = (draw(curves, setting, options.out),) if options.out else ()
    goal = 0.9 * max(point.accuracy for points in curves.values() for point in points)
    return Reproduction(
        name="gupta-fig3",
        paper="Vepakomma et al. 2018 (arXiv 1812.00564), figure 3, from Gupta and Raskar 2018 (arXiv 1810.06060)",
        tables=(
            Table(
                f"{setting.clients} clients, {setting.model} on {setting.data['name']}, {setting.epochs} epochs, "
                f"n = {curves['split'][-1].n} test records, chance 0.1",
                (
                    "method",
                    "rate",
                    "client GFLOP an epoch",
                    "accuracy at the end",
                    "95 % interval",
                    f"GFLOP to {goal:.3f}",
                ),
                tuple(_row(method, chosen, goal) for method, chosen in found.items()),
            ),
        ),
        assumptions=(
            f"{setting.model} cut after {setting.cut} on {setting.data['name']} stands in for VGG on CIFAR-10 and "
            "ResNet-50 on CIFAR-100, which are not shipped",
            f"{setting.clients} clients with equal shares, mini-batches of {setting.batch_size}, one local epoch a "
            f"round; Adam at the better of {RATES} for each method, by training loss; the paper states neither",
            "client computation: FLOPs of forward and backward of what the client holds, two to a multiply-accumulate",
            f"one run with seed {options.seed}; the intervals are of the test records, not of the training",
        ),
        differences=("other data, network and number of clients: only the order of the curves can be compared",),
        values={
            "setting": {**setting.__dict__, "data": dict(setting.data)},
            "seed": options.seed,
            "n": curves["split"][-1].n,
            "chance": 0.1,
            "rates": {method: chosen.rate for method, chosen in found.items()},
            "curves": {
                method: [
                    {
                        "epoch": p.epoch,
                        "client_flops": p.client_flops,
                        "accuracy": p.accuracy,
                        "interval": p.interval,
                    }
                    for p in points
                ]
                for method, points in curves.items()
            },
        },
        figures=figures,
    )


def _row(method: str, chosen: Curve, goal: float) -> tuple[str, ...]:
    points = chosen.points
    last = points[-1]
    reached = next((f"{point.client_flops / 1e9:.3f}" for point in points if point.accuracy >= goal), "not reached")
    return (
        method,
        f"{chosen.rate:g}",
        f"{points[0].client_flops / 1e9:.3f}",
        f"{last.accuracy:.3f}",
        f"{last.interval[0]:.3f} to {last.interval[1]:.3f}",
        reached,
    )


def draw(curves: Mapping[str, Sequence[Point]], setting: Setting, out: Path) -> Path:
    """The figure as SVG, with intervals as bands and chance as a line."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise EnvironmentFault("figures need matplotlib: pip install 'secsplit[report]', or leave out --out") from None
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for (method, points), marker in zip(curves.items(), "osv", strict=True):
        x = [point.client_flops / 1e9 for point in points]
        bounds = [point.interval for point in points]
        axes.plot(x, [point.accuracy for point in points], marker=marker, color=COLOURS[method], label=method)
        axes.fill_between(x, [b[0] for b in bounds], [b[1] for b in bounds], color=COLOURS[method], alpha=0.15)
    axes.axhline(0.1, color="#666666", linestyle=":", label="chance")
    axes.set_xscale("log")
    axes.set_xlabel("computation of each client so far, GFLOP (forward and backward)")
    axes.set_ylabel(f"test accuracy, n = {curves['split'][-1].n}")
    axes.set_title(f"{setting.clients} clients, {setting.model} on {setting.data['name']}")
    axes.legend()
    out.mkdir(parents=True, exist_ok=True)
    path = out / "gupta-fig3.svg"
    figure.savefig(path, metadata={"Date": None})
    return path
