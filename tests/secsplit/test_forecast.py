"""A forecast equals what the ledgers say after the run, whatever the topology and the defenses."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from secsplit.forecast import forecasts
from secsplit.run import Run
from secsplit.runfile import parse
from secsplit.training import train_simulated

GAUSSIAN = {"kind": "gaussian", "edge": "bottom->top", "clip": 1.0, "sigma": 2.0}
FROZEN = {"kind": "frozen", "segment": "bottom"}
DP_SGD = {"kind": "dp-sgd", "segment": "bottom", "clip": 1.0, "sigma": 3.0}
LABEL_DP = {"kind": "label-dp", "epsilon": 1.5}
TWO = {"client": "client", "server": "server"}
CUT_GRAD = {"kind": "gaussian", "edge": "bottom->top", "message": "cut-grad", "clip": 0.1, "sigma": 4.0}
CASES: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "undefended": ({"name": "vanilla"}, []),
    "frozen-noised": ({"name": "vanilla"}, [FROZEN, GAUSSIAN, LABEL_DP]),
    "sent-once": ({"name": "vanilla"}, [FROZEN, {**GAUSSIAN, "once": True}]),
    "orthant": ({"name": "vanilla"}, [FROZEN, {**GAUSSIAN, "nonnegative": True}]),
    "dp-sgd-and-noise": ({"name": "vanilla"}, [DP_SGD, GAUSSIAN]),
    "noise-alone": ({"name": "vanilla"}, [GAUSSIAN]),
    "labels-at-server": ({"name": "vanilla", "labels": "server"}, [CUT_GRAD, {"kind": "dp-sgd", "segment": "top",
                                                                          "clip": 1.0, "sigma": 3.0}]),
    "u-shaped": ({"name": "u_shaped"}, [{**GAUSSIAN, "edge": "bottom->middle"}, LABEL_DP]),
    "u-shaped-frozen": ({"name": "u_shaped"}, [
        {**GAUSSIAN, "edge": "bottom->middle"}, {**CUT_GRAD, "edge": "middle->head"}, FROZEN,
        {"kind": "frozen", "segment": "head"},
    ]),
}  # fmt: skip


def run_of(topology: dict[str, Any], defenses: list[dict[str, Any]], epochs: int = 2) -> Run:
    return Run.of(
        parse(
            {
                "topology": topology,
                "model": {"name": "mlp", "widths": [16, 16]},
                "data": {"name": "digits", "limit": 60, "limit_test": 20},
                "train": {"epochs": epochs, "batch_size": 32, "record": "off"},
                "defenses": defenses,
                "parties": {name: {"role": role} for name, role in TWO.items()},
            }
        )
    )


@pytest.mark.parametrize("case", CASES)
def test_equals_the_ledger(case: str, tmp_path: Path) -> None:
    run = run_of(*CASES[case])
    train_simulated(run, tmp_path, lambda party, news: None)
    compared = 0
    for role in TWO:
        told = json.loads((tmp_path / "parties" / role / "privacy.json").read_text())["spent"]
        spent = {(s["protects"], s["to"], s["training"]): s for s in told}
        expected = {(f.protects, f.to, f.training): f for f in forecasts(run) if f.role == role}
        assert spent.keys() == expected.keys()
        for key, forecast in expected.items():
            epsilon = forecast.epsilon(1e-5)
            assert spent[key]["epsilon"] == (pytest.approx(epsilon) if epsilon < math.inf else None), key
            given = forecast.given_weights(1e-5)
            assert spent[key]["given_weights"] == (pytest.approx(given) if given < math.inf else None), key
            compared += 1
    assert compared


def test_dp_sgd_and_noise_add_up_in_squares() -> None:
    (forecast,) = [
        f for f in forecasts(run_of(*CASES["dp-sgd-and-noise"], epochs=10))
        if (f.protects, f.to, f.training) == ("inputs", "server", True)
    ]  # fmt: skip
    assert forecast.mu == pytest.approx(math.sqrt(10 * (2 / 2.0) ** 2 + 10 * (2 / 3.0) ** 2))
    assert forecast.alone == pytest.approx(math.sqrt(10))
