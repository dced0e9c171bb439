"""How much noise a target takes: sigma for an epsilon, for each adjacency, and whether anything useful is left.

The exact arithmetic of `accounting`, turned round. A sweep trains a small public data set with that noise, so that the
price in accuracy is seen before a hospital pays it; the epsilon of the sweep's own data is nobody's concern.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from secsplit.accounting import Adjacency, compose, gaussian_mu, mu_of, prv_epsilon, rdp_epsilon
from secsplit.errors import RunError
from secsplit.steps import News


@dataclass(frozen=True)
class Plan:
    """The noise that a target takes: N(0, (sigma * clip)^2) on every message of a record, `releases` in all.

    prv, rdp: what those accountants say of that sigma (upper bounds, for comparison). weights_sigma: of DP-SGD beside
    it, where the segment learns: the two share the target evenly.
    """

    adjacency: Adjacency
    nonnegative: bool
    releases: int
    epsilon: float
    delta: float
    sigma: float
    prv: float
    rdp: float
    weights_sigma: float | None = None


def plan(
    *,
    epsilon: float,
    delta: float,
    epochs: int,
    adjacency: Adjacency = "replace-one",
    nonnegative: bool = False,
    once: bool = False,
    learns: bool = False,
    receivers: int = 1,
    per_unit: int = 1,
) -> Plan:
    """The least sigma whose total epsilon does not exceed the target.

    once: each record's message is drawn once and sent again (a frozen segment); learns: the segment learns with DP-SGD,
    which takes half of the target's mu squared; receivers: how many are sent a message of each record in an epoch;
    per_unit: records of one unit (a patient). Raises RunError for a target that no noise reaches.
    """
    _check(epsilon, delta, epochs, receivers, per_unit)
    if once and learns:
        raise RunError("--once needs a frozen segment, and --learns says that it learns; give one of them")
    releases = (1 if once else epochs) * receivers
    allowed = mu_of(epsilon, delta)
    messages = allowed / math.sqrt(2) if learns else allowed
    one = gaussian_mu(1.0, adjacency=adjacency, orthant=nonnegative)
    sigma = _up(one * math.sqrt(releases * per_unit) / messages)
    weights = _up(gaussian_mu(1.0, adjacency=adjacency) * math.sqrt(epochs) * per_unit / messages) if learns else None
    spent = [(one / sigma, releases * per_unit)]
    if weights is not None:
        spent.append((gaussian_mu(weights, adjacency=adjacency) * per_unit, epochs))
    return Plan(
        adjacency, nonnegative, releases, epsilon, delta, sigma,
        prv_epsilon(spent, delta), rdp_epsilon(spent, delta), weights,
    )  # fmt: skip


def total_mu(found: Plan, *, epochs: int, per_unit: int = 1) -> float:
    """What the plan spends, composed again from its sigmas."""
    one = gaussian_mu(found.sigma, adjacency=found.adjacency, orthant=found.nonnegative)
    weights = gaussian_mu(found.weights_sigma, adjacency=found.adjacency) * per_unit if found.weights_sigma else 0.0
    return compose([one] * (found.releases * per_unit) + [weights] * epochs)


def _up(sigma: float) -> float:
    """Rounded up to four digits: what is written in a run file must not spend more than was planned."""
    unit = 10.0 ** (math.floor(math.log10(sigma)) - 3)
    return round(math.ceil(sigma / unit - 1e-9) * unit, 12)


def _check(epsilon: float, delta: float, epochs: int, receivers: int, per_unit: int) -> None:
    if not (epsilon > 0 and math.isfinite(epsilon)):
        raise RunError(f"--epsilon {epsilon:g}: expected a positive number, for example 8")
    if not 0 < delta < 1:
        raise RunError(f"--delta {delta:g}: expected well below 1/n for n records, for example 1e-5")
    for name, value in (("--epochs", epochs), ("--receivers", receivers), ("--records-per-unit", per_unit)):
        if value < 1:
            raise RunError(f"{name} {value}: expected at least 1")


# what is left of the task

EPOCHS = 12  # of the sweep's own training
RULER = (50.0, 300.0)  # larger epsilons to try beside the target, to see where use begins


@dataclass(frozen=True)
class Point:
    """Accuracy of a small model on public data, trained and tested with that noise on its smashed data.

    epsilon: what the noise would spend in the planned run (inf: no noise); baseline: always saying the commonest class.
    """

    epsilon: float
    sigma: float
    accuracy: float
    n: int
    baseline: float

    @property
    def useful(self) -> bool:
        """Whether most of what can be had over the commonest class is left: see `vacuous`."""
        return self.accuracy >= self.baseline + 0.5 * (1 - self.baseline)


def sweep(found: Plan, *, per_unit: int = 1, clip: float = 1.0, seed: int = 0) -> tuple[Point, ...]:
    """Accuracy without noise, at the planned noise, and at that of larger epsilons (`RULER`); some seconds in all."""
    one = gaussian_mu(1.0, adjacency=found.adjacency, orthant=found.nonnegative)
    root = math.sqrt(found.releases * per_unit)
    targets = [found.epsilon, *(epsilon for epsilon in RULER if epsilon > found.epsilon)]
    noises = [
        (math.inf, 0.0),
        *((e, found.sigma if e == found.epsilon else one * root / mu_of(e, found.delta)) for e in targets),
    ]
    return tuple(Point(e, sigma, *accuracy(sigma, clip=clip, seed=seed)) for e, sigma in noises)


def useful_from(points: Sequence[Point]) -> float:
    """The least epsilon tried at which the task is still learnt; inf where none is."""
    return min((point.epsilon for point in points if point.useful), default=math.inf)


def accuracy(sigma: float, *, clip: float = 1.0, seed: int = 0) -> tuple[float, int, float]:
    """(accuracy, n, commonest class's share) of a simulated run on scikit-learn's digits, cut after a hidden layer.

    sigma 0 is the same run without clip or noise. What leaves is rescaled to about unit size.
    """
    from secsplit.assemble import parties_of, truth_of
    from secsplit.drive import simulate
    from secsplit.run import Run
    from secsplit.runfile import parse

    noise = {
        "kind": "gaussian",
        "edge": "bottom->top",
        "clip": clip,
        "sigma": sigma,
        "rescale": 8 / clip,
        "noise": "float",
    }
    run = Run.of(
        parse(
            {
                "model": {"name": "mlp", "widths": [64, 64]},
                "data": {"name": "digits"},
                "train": {"epochs": EPOCHS, "evaluate_every": EPOCHS, "seed": seed},
                "optimizer": {"lr": 2e-3},
                "defenses": [noise] if sigma else [],
                "parties": {"site": {"role": "client"}, "server": {"role": "server"}},
            }
        )
    )
    told: list[News] = []
    simulate(parties_of(run), observe=lambda party, news: told.append(news) if party.name == "server" else None)
    metrics = next(news.metrics for news in reversed(told) if news.metrics)
    y = truth_of(run, 0).test.labels["y"]
    return metrics["loss"]["test_accuracy"], len(y), float(y.bincount().max()) / len(y)
