"""Drawings say what they draw: marks where the scales put them, and no digit without the place it came from."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest

from audits.report.figures import accuracy, along, epsilon, frontier, letter, over_training, roc
from audits.report.figures.drawing import Scale
from audits.report.value import Said, Value
from tests.audits.report.places import misplaced, unsaid


def seeds(mean: float) -> dict[str, Any]:
    return {"mean": mean, "low": mean - 0.05, "high": mean + 0.05, "pessimistic": mean + 0.05, "n": 3, "values": []}


def setting(name: str, cut: str, leak: float) -> dict[str, Any]:
    leakages = [{"goal": "label", "score": seeds(leak), "attacks": []}]
    return {
        "name": f"{name}, model.cut = {cut}", "configuration": name, "at": {"model.cut": cut}, "leakages": leakages,
        "accuracy": seeds(0.8), "best": leak < 0.5,
    }  # fmt: skip


SWEEP = {
    "axes": [{"name": "model.cut", "values": ["relu1", "relu2"]}],
    "settings": [setting("nothing", "relu1", 0.9), setting("nothing", "relu2", 0.7),
                 setting("noise 0.2", "relu1", 0.4), setting("noise 0.2", "relu2", 0.1)],
}  # fmt: skip


def sound(value: Any, drawn: str) -> bool:
    return misplaced(value, drawn) == unsaid(value, drawn) == []


def test_leakage_along_the_cut_has_a_line_for_each_configuration() -> None:
    r = Value(SWEEP)
    drawn = along(r.settings, r.axes[0], "label")
    assert drawn is not None
    assert sound(SWEEP, drawn)
    assert drawn.count("<circle") == 3  # two marks and the legend's
    assert drawn.count('class="interval"') == 4
    heights = [float(y) for y in re.findall(r'<circle cx="[\d.]+" cy="([\d.]+)"', drawn)][:2]
    assert heights[0] < heights[1]  # 0.9 is drawn above 0.7
    assert along(r.settings, r.axes[0], "input") is None


def test_the_frontier_marks_what_nothing_beats() -> None:
    drawn = frontier(Value(SWEEP).settings, SWEEP["settings"][3]["name"])
    assert sound(SWEEP, drawn)
    assert drawn.count('r="5"') == 2
    assert drawn.count('r="10"') == 1


def test_marks_of_settings_have_no_digit() -> None:
    assert [letter(i) for i in (0, 25, 26, 51, 52, 701, 702)] == ["A", "Z", "AA", "AZ", "BA", "ZZ", "AAA"]


def test_epsilon_is_drawn_from_both_sides() -> None:
    points = [{"epoch": e, "step": 10 * e, "claimed": float(e), "lower": e / 2 if e < 3 else None} for e in (1, 2, 3)]
    curve = {"role": "client", "protects": "inputs", "delta": 1e-5, "points": points}
    drawn = epsilon(Value(curve))
    assert sound(curve, drawn)
    assert (drawn.count("<circle"), drawn.count('width="9"')) == (3 + 1, 2 + 1)
    assert "measured lower bound 1 after 20 steps" in drawn


def test_roc_is_drawn_on_both_scales() -> None:
    points = [{"fpr": f, "tpr": f**0.5, "low": f, "high": 1.0} for f in (0.001, 0.01, 0.1, 1.0)]
    cell = {"attack": "a-1", "threat": "client-2", "roc": {"area": 0.75, "points": points}}
    drawn = roc(Value(cell))
    assert sound(cell, drawn)
    assert drawn.count('class="band"') == drawn.count('class="chance"') == 2
    assert "at 1.0% false positives 10.0% true" in drawn


def test_a_figure_over_training_keeps_its_chance_level() -> None:
    groups = [
        {"by": "epoch", "name": str(e), "value": 0.5 + 0.1 * e, "low": 0.4, "high": 0.9, "n": 9} for e in range(3)
    ]
    leak = {"attack": "a", "threat": "t", "metric": "auc", "chance": 0.5, "groups": groups}
    metric = {"title": "Leak AUC", "percent": False, "more": True, "ideal": 1.0}
    value = {"leak": leak, "metric": metric}
    r = Value(value)
    drawn = over_training(r.leak, r.metric)
    assert sound(value, drawn)
    assert drawn.count('class="interval"') == 3
    assert 'class="chance"' in drawn


def test_accuracy_counts_epochs_from_one() -> None:
    value = {"party": "hospital-a", "history": [0.5, 0.75]}
    drawn = accuracy(Value(value))
    assert sound(value, drawn)
    assert "50.0%, 75.0%" in drawn


@pytest.mark.parametrize(("value", "place"), [(0.001, 0.0), (0.0001, 0.0), (1.0, 30.0), (math.sqrt(0.001), 15.0)])
def test_a_logarithmic_scale(value: float, place: float) -> None:
    assert Scale(0.001, 1, 0, 30, log=True)(value) == pytest.approx(place)


def test_what_is_said_keeps_the_place_of_each_value() -> None:
    r = Value({"a": 0.5, "b": "noise 2", "c": None})
    said = Said("x ", r.a, (r.a, "percent"))
    said.add(r.b, r.c)
    assert (said.words, said.keys) == ("x 0.550.0%noise 2not measured", ["/a", "/a", "/b"])
