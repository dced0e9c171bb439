import pytest
import torch
from torch import nn

from attacks.base import Attack, Guess, Needs
from attacks.conformance import check_attack
from attacks.direct_label import DirectLabel
from attacks.exploit import ExPLoit
from attacks.feature_inference import EqualitySolving
from attacks.generative_regression import GenerativeRegression
from attacks.gradient_clustering import ClueDistance, GradientClustering, GradientTransfer, SmashedClustering
from attacks.gradient_norm import GradientDirection, GradientHint, GradientNorm
from attacks.model_completion import ModelCompletion
from attacks.property_probe import PropertyProbe
from attacks.spectral import Spectral
from secsplit.datasets import Dataset, Records
from secsplit.threat import Knows, View
from secsplit.topology import Objective, Segment, Topology
from tests.attacks.victims import Victim, train

ALL = frozenset({Knows.AUX, Knows.CLUES, Knows.PRIOR})
VERTICAL = Topology(
    "halves",
    (
        Segment("left", "left", ("data:left",)),
        Segment("right", "right", ("data:right",)),
        Segment("sum", "server", ("left", "right"), merge="sum"),
    ),
    (Objective("loss", "sum", holder="judge", at="judge"),),
)


def victim(digits: Dataset, classes: int, topology: Topology = VERTICAL) -> Victim:
    """Two halves of digits, in one linear layer each; labels and loss at a judge."""

    def split(r: Records) -> Records:
        left, right = r.inputs["x"].flatten(1).clone().chunk(2, dim=1)  # a copy: it is poisoned below
        y = r.labels["y"] if classes == 10 else (r.labels["y"] == 0).long()
        return Records({"left": left, "right": right}, {"y": y, "odd": r.labels["y"] % 2}, r.ids)

    data = Dataset("halves", split(digits.train), split(digits.test), {"y": classes, "odd": 2}, digits.card)
    torch.manual_seed(0)
    models = {"left": nn.Linear(32, classes), "right": nn.Linear(32, classes), "sum": nn.Identity()}
    return train(topology, data, models, epochs=3, batch=128)


def poison(v: Victim, *roles: str) -> None:
    """Spoil every message, weight and record that the coalition has no part in."""
    for role, transcript in v.transcripts.items():
        if role not in roles:
            shared = {id(t) for mine in roles for r in v.transcripts[mine] for t in r.tensors.values()}
            for record in transcript:
                for tensor in record.tensors.values():
                    if id(tensor) not in shared:
                        tensor.fill_(7)
    for segment in v.topology.segments:
        if segment.role not in roles:
            for p in v.models[segment.name].parameters():
                p.data.fill_(7.0)
            for column in segment.columns:
                v.data.train.inputs[column].fill_(7.0)


CASES = [
    (GradientNorm(), 2, "left", ALL),
    (GradientDirection(), 2, "left", ALL),
    (GradientHint(), 2, "left", ALL),
    (Spectral(), 2, "left", ALL),
    (DirectLabel(), 10, "left", ALL),
    (GradientClustering(), 10, "left", ALL),
    (GradientTransfer(), 10, "left", ALL),
    (ClueDistance(), 10, "left", ALL),
    (SmashedClustering(), 10, "server", ALL),
    (ExPLoit(epochs=1, rows=500), 10, "left", ALL),
    (ModelCompletion(), 10, "left", ALL),
    (PropertyProbe(column="odd"), 10, "server", ALL),
]


@pytest.mark.parametrize(("attack", "classes", "role", "knows"), CASES, ids=[case[0].name for case in CASES])
def test_every_attack_keeps_to_the_contract(
    digits: Dataset, attack: Attack, classes: int, role: str, knows: frozenset[Knows]
):
    def make_view(poisoned: bool) -> View:
        v = victim(digits, classes)
        view = v.view(role, knows=knows)
        if poisoned:
            poison(v, role)
        return view

    check_attack(attack, make_view)


@pytest.mark.parametrize("attack", [EqualitySolving(), GenerativeRegression(iterations=5)], ids=lambda a: a.name)
def test_attacks_that_know_weights_keep_to_it_too(digits: Dataset, attack: Attack):
    def make_view(poisoned: bool) -> View:
        v = victim(digits, 10)
        view = v.view("server", knows=frozenset({Knows.WEIGHTS, Knows.AUX}))
        if poisoned:
            poison(v, "server")
        return view

    check_attack(attack, make_view)


class Broken(Attack):
    """Breaks the contract in the way it is told to."""

    name = "broken"
    paper = "none"
    goal = "label"
    needs = Needs(knows=frozenset({Knows.CLUES}))

    def __init__(self, how: str) -> None:
        self.how, self.calls = how, 0

    def infer(self, view: View, *, coins: torch.Generator) -> Guess:
        self.calls += 1
        if self.how == "global":
            torch.rand(1)
        if self.how == "changed":
            next(iter(view.transcripts["left"])).tensor.add_(1)
        scores = torch.full((1,), float(self.calls) if self.how == "otherwise" else 0.0)
        nobody = torch.zeros(1, dtype=torch.int64)
        return Guess("label", "y", nobody, nobody, nobody, scores)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("global", "global random numbers"),
        ("changed", "changed a tensor"),
        ("otherwise", "guesses otherwise"),
        ("needless", "needs knowledge 'clues', and guesses without"),
    ],
)
def test_what_breaks_it_is_named(digits: Dataset, how: str, said: str):
    v = victim(digits, 10)
    with pytest.raises(AssertionError, match=said):
        check_attack(Broken(how), lambda poisoned: v.view("left", knows=ALL))
