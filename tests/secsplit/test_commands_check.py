"""`secsplit check`, `secsplit defenses list` and `secsplit plan` as their user meets them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from secsplit.commands import check, plan
from secsplit.defenses import SPECS

EXAMPLES = Path(__file__).parents[2] / "examples"


def invoke(*words: str) -> Result:
    app = typer.Typer()
    check.register(app)
    plan.register(app)
    return CliRunner().invoke(app, words)


def test_check_says_who_sees_what() -> None:
    told = invoke("check", str(EXAMPLES / "vanilla.toml"), "--no-build")
    assert told.exit_code == 0
    for line in (
        "client -> server: smashed on bottom->top",
        "acted on by: nothing; inputs unbounded",
        "no finite epsilon",
        "loss: client sends every training label to server in clear",
    ):
        assert line in told.stdout


def test_check_gives_the_epsilon_of_a_defended_run() -> None:
    told = json.loads(invoke("check", str(EXAMPLES / "dp-cut.toml"), "--no-build", "--json").stdout)
    found = {(f["protects"], f["against"]): f["epsilon"] for f in told["forecasts"]}
    assert found["inputs", "server"] == pytest.approx(24.38, abs=0.01)
    assert found["labels", "server"] == 2.0
    assert told["refusals"] == []


def test_a_refusal_ends_with_two_and_goes_to_stderr() -> None:
    told = invoke("check", str(EXAMPLES / "wrong" / "one-epoch-as-total.toml"), "--no-build")
    assert told.exit_code == 2
    assert "refused: claims[0]" in told.stderr
    assert "refused" not in told.stdout


def test_defenses_are_listed_with_what_is_proven_of_them() -> None:
    told = invoke("defenses", "list")
    assert all(kind in told.stdout for kind in SPECS)
    assert "gaussian: clipped Gaussian noise on a message [guarantee: dp]" in told.stdout
    listed = json.loads(invoke("defenses", "list", "--json").stdout)
    assert listed["marvell"]["guarantee"] == "none"
    assert listed["gaussian"]["parameters"] == [
        "edge", "message", "clip", "sigma", "adjacency", "nonnegative", "noise", "rescale", "once",
    ]  # fmt: skip


def test_plan_gives_sigma_and_says_what_it_leaves_out() -> None:
    told = invoke("plan", "--epsilon", "8", "--epochs", "10", "--no-sweep")
    assert told.exit_code == 0
    assert "replace-one: sigma = 3.797" in told.stdout
    assert "zero-out: sigma = 1.899" in told.stdout
    assert "nothing is bounded" in told.stderr
    assert "who takes part are not covered" in told.stderr


def test_plan_warns_of_an_empty_guarantee() -> None:
    told = invoke("plan", "--epsilon", "200", "--no-sweep", "--json")
    assert json.loads(told.stdout)["plans"][0]["sigma"] > 0
    assert "vacuous" in invoke("plan", "--epsilon", "200", "--no-sweep").stderr
