import json
from importlib.metadata import EntryPoint

import pytest
import torch
import typer
from typer.testing import CliRunner

from attacks import catalogue, cli
from attacks.base import Attack, Guess, Needs
from secsplit.errors import RunError
from secsplit.threat import View


class Plugged(Attack):
    """Guesses nothing."""

    name = "plugged"
    paper = "none"
    goal = "label"
    needs = Needs()

    def infer(self, view: View, *, coins: torch.Generator) -> Guess:
        nobody = torch.empty(0, dtype=torch.int64)
        return Guess("label", "y", nobody, nobody, nobody)


class Taken(Plugged):
    name = "spectral"


@pytest.fixture
def plug(monkeypatch: pytest.MonkeyPatch):
    def plug(name: str, place: str) -> None:
        point = EntryPoint(name, place, "secsplit.attacks")
        monkeypatch.setattr(catalogue, "entry_points", lambda group: [point] if group == "secsplit.attacks" else [])
        catalogue.catalogue.cache_clear()

    yield plug
    catalogue.catalogue.cache_clear()


def test_every_attack_says_what_it_is():
    for name, attack in catalogue.catalogue().items():
        assert attack.name == name
        assert attack.paper
        assert attack.cost > 0
        assert len(cli.about(attack)) > 20
        assert catalogue.attack(name).why_not


def test_a_plugin_is_found_and_listed_like_ours(plug):
    plug("plugged", f"{__name__}:Plugged")
    assert catalogue.catalogue()["plugged"] is Plugged
    app = typer.Typer()
    cli.register(app)
    shown = CliRunner().invoke(app, ["attacks", "list", "--json"])
    listed = json.loads(shown.stdout)
    assert listed["plugged"]["about"] == "Guesses nothing."
    assert listed["gradient-hint"]["knows"] == ["clues"]
    assert "plugged: Guesses nothing." in CliRunner().invoke(app, ["attacks", "list"]).stdout


@pytest.mark.parametrize(
    ("name", "place", "said"),
    [
        ("spectral", f"{__name__}:Taken", "both have that name"),
        ("other", f"{__name__}:Plugged", "calls itself 'plugged'"),
        ("plugged", f"{__name__}:nothing", "cannot load"),
        ("plugged", f"{__name__}:json", "expected a subclass"),
    ],
)
def test_a_broken_plugin_is_named(plug, name: str, place: str, said: str):
    plug(name, place)
    with pytest.raises(RunError, match=said):
        catalogue.catalogue()


def test_options_and_names_are_checked():
    assert catalogue.attack("gradient-norm", batches=3) == catalogue.attack("gradient-norm", batches=3)
    with pytest.raises(RunError, match="did you mean 'gradient-norm'"):
        catalogue.attack("gradient-nrm")
    with pytest.raises(RunError, match="unknown option 'bathces'; did you mean 'batches'"):
        catalogue.attack("gradient-norm", bathces=3)
