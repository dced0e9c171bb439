import pytest
import torch
from sklearn.linear_model import Ridge
from torch import Tensor

from attacks.base import NotApplicable
from attacks.conformance import check_attack
from attacks.regression_labels import RegressionLabels
from secsplit import datasets
from secsplit.datasets import Dataset, DataSpec, Records
from secsplit.message import Kind
from secsplit.threat import Knows
from secsplit.topologies import vanilla
from tests.attacks.victims import Defence, Victim, mlp, train

CLUES = frozenset({Knows.CLUES})


def victim(*, at_random: bool = False, defence: Defence | None = None, seed: int = 0) -> Victim:
    """Worst area of breast cancer, predicted from the other features; or numbers that no feature tells of."""
    data = datasets.load(DataSpec(name="breast-cancer", labels={"y": "worst area"}))
    x, y = data.train.inputs["x"], data.train.labels["y"]
    coins = torch.Generator().manual_seed(seed)

    def scaled(r: Records) -> Records:
        drawn = torch.randn(len(r), generator=coins)
        label = drawn if at_random else (r.labels["y"] - y.mean()) / y.std()
        return Records({"x": (r.inputs["x"] - x.mean(0)) / x.std(0)}, {"y": label}, r.ids)

    data = Dataset(data.name, scaled(data.train), scaled(data.test), {"y": 0}, data.card)
    models = {"bottom": mlp(29, 16, last_relu=True, seed=seed), "top": mlp(16, 16, 1, seed=seed)}
    topology = vanilla(labels="server", loss="mse")
    return train(topology, data, models, epochs=4, batch=32, seed=seed, lr=3e-3, defence=defence)


def raw_features(v: Victim) -> float:
    """What ridge regression on the raw features makes of the same ten known labels."""
    known = v.view("client", knows=CLUES, clues=10).clues
    assert known is not None
    x, y = v.data.train.inputs["x"], v.data.train.labels["y"]
    rest = torch.ones(len(y), dtype=torch.bool)
    rest[known.position] = False
    return float(Ridge().fit(x[known.position], y[known.position]).score(x[rest], y[rest]))


def explained(v: Victim, values: Tensor, position: Tensor) -> float:
    y = v.truth("y", position)
    return float(1 - (values - y).square().mean() / y.var())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("at_random", "required"), [(False, 0.95), (True, 0.85)])
def test_numbers_are_read_off_their_gradients(at_random: bool, required: float, seed: int, coins: torch.Generator):
    """Also numbers that no feature tells of, so that it cannot be the features that are read."""
    v = victim(at_random=at_random, seed=seed)
    guess = RegressionLabels().infer(v.view("client", knows=CLUES, clues=10), coins=coins)
    assert guess.scores is not None
    assert len(guess.position) == len(v.data.train) - 10
    assert explained(v, guess.scores, guess.position) >= max(required, raw_features(v) + 0.05)


def test_it_keeps_to_the_contract_and_fails_on_noise(coins: torch.Generator):
    noise = torch.Generator().manual_seed(0)

    def defence(kind: Kind, h: Tensor) -> Tensor:
        return torch.randn(h.shape, generator=noise) if kind in (Kind.CUT_GRAD, Kind.SMASHED) else h

    v = victim(defence=defence)
    view = v.view("client", knows=CLUES, clues=10)
    guess = check_attack(RegressionLabels(), lambda _: view)  # with others poisoned: in the test of all attacks
    assert guess.scores is not None
    assert explained(v, guess.scores, guess.position) < 0.1


def test_classes_and_too_few_clues_are_said(ten_classes: Victim, coins: torch.Generator):
    with pytest.raises(NotApplicable, match="cross_entropy; this attack needs mse"):
        RegressionLabels().infer(ten_classes.view("client", knows=CLUES), coins=coins)
    with pytest.raises(NotApplicable, match="1 known labels"):
        RegressionLabels().infer(victim().view("client", knows=CLUES, clues=1), coins=coins)
