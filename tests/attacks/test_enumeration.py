from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from attacks.base import NotApplicable
from attacks.conformance import check_attack
from attacks.enumeration import FeatureEnumeration, LabelEnumeration
from secsplit.datasets import Dataset, Records
from secsplit.message import Kind
from secsplit.threat import Knows, View
from secsplit.topology import Objective, Segment, Topology
from tests.attacks.figures import accuracy
from tests.attacks.victims import Victim, mlp, train

KNOWS = frozenset({Knows.WEIGHTS, Knows.AUX})
ADVERTS = Topology(
    "adverts",
    (
        Segment("bottom", "publisher", ("data:public",)),
        Segment("hidden", "shop", ("data:hidden",)),
        Segment("top", "shop", ("bottom", "hidden")),
    ),
    (Objective("loss", "top", holder="shop", at="shop"),),
)


@pytest.fixture(scope="module")
def shop(patients: Dataset) -> Victim:
    """The label party holds two features, in thirds, and the label; the last epoch's weights stand still."""

    def split(r: Records) -> Records:
        x = r.inputs["x"]
        thirds = torch.bucketize(x[:, :2].contiguous(), torch.tensor([-0.4, 0.4])).float()
        return Records({"public": x[:, 2:], "hidden": thirds}, r.labels, r.ids)

    data = Dataset("shop", split(patients.train), split(patients.test), patients.classes, patients.card)
    torch.manual_seed(0)
    models = {"bottom": mlp(28, 16, 8), "hidden": nn.Linear(2, 8), "top": nn.Sequential(nn.Tanh(), mlp(16, 16, 2))}
    trained = train(ADVERTS, data, models, epochs=5, lr=3e-3, record=False)
    return train(ADVERTS, data, trained.models, frozen=("bottom", "hidden", "top"))


def test_labels_and_features_are_named_from_one_gradient_a_row(shop: Victim, coins: torch.Generator):
    view = shop.view("publisher", knows=KNOWS)
    label = LabelEnumeration().infer(view, coins=coins)
    assert label.facts["candidates"] == 2 * 3 * 3
    assert accuracy(shop, label) >= 0.99
    guess = FeatureEnumeration().infer(view, coins=coins)
    assert guess.inputs is not None
    hits = (guess.inputs == shop.data.train.inputs["hidden"][guess.position]).float()
    assert hits.mean() >= 0.99


def test_noise_in_place_of_the_gradients_is_at_chance(shop: Victim, patients: Dataset, coins: torch.Generator):
    noise = torch.Generator().manual_seed(3)

    def defence(kind: Kind, h: Tensor) -> Tensor:
        return torch.randn(h.shape, generator=noise) if kind is Kind.CUT_GRAD else h

    blind = train(ADVERTS, shop.data, shop.models, frozen=("bottom", "hidden", "top"), defence=defence)
    guess = LabelEnumeration().infer(blind.view("publisher", knows=KNOWS), coins=coins)
    y = shop.data.train.labels["y"].float().mean()
    assert accuracy(blind, guess) <= max(y, 1 - y) + 0.05


def test_too_many_candidates_or_unknown_values_are_said(shop: Victim, coins: torch.Generator):
    with pytest.raises(NotApplicable, match="18 candidates; at most 10"):
        LabelEnumeration(candidates=10).infer(shop.view("publisher", knows=KNOWS), coins=coins)
    with pytest.raises(NotApplicable, match="values that hidden may take"):
        LabelEnumeration().infer(shop.view("publisher", knows=frozenset({Knows.WEIGHTS})), coins=coins)
    assert "holds every label" in str(LabelEnumeration().why_not(ADVERTS, shop.threat("shop", knows=KNOWS)))


@pytest.mark.parametrize("attack", [LabelEnumeration(), FeatureEnumeration()], ids=lambda attack: attack.name)
def test_it_keeps_to_the_contract(shop: Victim, attack: LabelEnumeration | FeatureEnumeration):
    def make_view(poisoned: bool) -> View:
        v = deepcopy(shop)
        view = v.view("publisher", knows=KNOWS)
        if poisoned:
            v.data.train.inputs["hidden"].fill_(7)
            v.data.train.labels["y"].fill_(0)
        return view

    check_attack(attack, make_view)
