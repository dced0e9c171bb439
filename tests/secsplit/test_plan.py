"""Planned noise spends no more than the target, and hardly less, for every adjacency and form of run."""

from __future__ import annotations

import pytest

from secsplit.accounting import epsilon_of
from secsplit.errors import RunError
from secsplit.plan import Plan, Point, plan, sweep, total_mu, useful_from


def spent(found: Plan, **options: int) -> float:
    return epsilon_of(total_mu(found, **options), found.delta)  # type: ignore[arg-type]


@pytest.mark.parametrize("adjacency", ["replace-one", "zero-out"])
@pytest.mark.parametrize("options", [{}, {"nonnegative": True}, {"once": True}, {"learns": True}, {"receivers": 3},
                                     {"per_unit": 4}, {"learns": True, "per_unit": 2}])  # fmt: skip
def test_spends_the_target_and_no_more(adjacency: str, options: dict[str, object]) -> None:
    found = plan(epsilon=8.0, delta=1e-5, epochs=10, adjacency=adjacency, **options)  # type: ignore[arg-type]
    per_unit = {"per_unit": options["per_unit"]} if "per_unit" in options else {}
    assert 7.97 < spent(found, epochs=10, **per_unit) <= 8.0  # type: ignore[arg-type]
    assert 7.97 < found.prv < found.rdp


def test_known_noise_multipliers() -> None:
    """Epsilon 8 at delta 1e-5 in ten epochs takes about 1.90 at sensitivity 1, so twice that for replaced records."""
    zero, replace = (plan(epsilon=8, delta=1e-5, epochs=10, adjacency=a) for a in ("zero-out", "replace-one"))
    assert zero.sigma == pytest.approx(1.90, abs=0.01)
    assert replace.sigma == pytest.approx(2 * zero.sigma, rel=1e-3)
    assert plan(epsilon=8, delta=1e-5, epochs=10, once=True).sigma == pytest.approx(replace.sigma / 10**0.5, rel=1e-3)


def test_the_ledger_agrees_with_the_plan() -> None:
    """A run with the planned sigma, by its forecast."""
    from secsplit.forecast import forecasts
    from secsplit.run import Run
    from secsplit.runfile import parse

    found = plan(epsilon=8, delta=1e-5, epochs=10, learns=True)
    run = Run.of(
        parse(
            {
                "train": {"epochs": 10},
                "data": {"name": "digits"},
                "defenses": [
                    {"kind": "dp-sgd", "segment": "bottom", "clip": 1.0, "sigma": found.weights_sigma},
                    {"kind": "gaussian", "edge": "bottom->top", "clip": 1.0, "sigma": found.sigma},
                ],
                "parties": {"a": {"role": "client"}, "b": {"role": "server"}},
            }
        )
    )
    (forecast,) = [f for f in forecasts(run) if (f.protects, f.to, f.training) == ("inputs", "server", True)]
    assert 7.97 < forecast.epsilon(1e-5) <= 8.0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"epsilon": 0}, "--epsilon 0"),
        ({"epsilon": float("inf")}, "--epsilon inf"),
        ({"delta": 0}, "--delta 0"),
        ({"delta": 1}, "--delta 1"),
        ({"epochs": 0}, "--epochs 0"),
        ({"receivers": 0}, "--receivers 0"),
        ({"per_unit": 0}, "--records-per-unit 0"),
        ({"once": True, "learns": True}, "give one of them"),
    ],
)
def test_senseless_targets_are_refused(options: dict[str, object], told: str) -> None:
    chosen: dict[str, object] = {"epsilon": 8.0, "delta": 1e-5, "epochs": 10, **options}
    with pytest.raises(RunError, match=told):
        plan(**chosen)  # type: ignore[arg-type]


def test_useful_from() -> None:
    points = [Point(e, 1.0, a, 100, 0.1) for e, a in ((8, 0.12), (50, 0.5), (300, 0.8), (float("inf"), 0.97))]
    assert useful_from(points) == 300
    assert useful_from(points[:2]) == float("inf")


def test_the_sweep_shows_where_use_begins() -> None:
    """At epsilon 8 over ten epochs the digits are not learnt; without noise they are."""
    points = sweep(plan(epsilon=8, delta=1e-5, epochs=10))
    accuracy = {point.epsilon: point.accuracy for point in points}
    assert accuracy[float("inf")] > 0.9
    assert accuracy[8.0] < 0.3
    assert points[0].n > 300
