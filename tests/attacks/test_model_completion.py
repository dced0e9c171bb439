import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from attacks.model_completion import ActiveCompletion, Lengthened, ModelCompletion
from secsplit.datasets import Dataset, Records
from secsplit.threat import Knows, Threat
from secsplit.topologies import multi_hop, vanilla, vertical
from tests.attacks.figures import accuracy
from tests.attacks.victims import Victim, fashion, mlp, train

CLUES = frozenset({Knows.CLUES})
HALVES = vertical(modalities=("left", "right"))


def halves(data: Dataset) -> Dataset:
    """Each image's left and right half, flattened."""

    def split(r: Records) -> Records:
        left, right = r.inputs["x"].chunk(2, dim=-1)
        return Records({"left": left.flatten(1), "right": right.flatten(1)}, r.labels, r.ids)

    return Dataset(data.name, split(data.train), split(data.test), data.classes, data.card)


def victim(data: Dataset, *, epochs: int, gamma: float | None = None, seed: int = 0) -> Victim:
    data = halves(data)
    width = data.train.inputs["left"].shape[1]
    models = {
        "left-bottom": mlp(width, 256, 64, last_relu=True, seed=seed),
        "right-bottom": mlp(width, 256, 64, last_relu=True, seed=seed + 100),
        "top": mlp(128, 64, 10, seed=seed),
    }

    def optimiser(name: str, module: nn.Module) -> torch.optim.Optimizer:
        made = torch.optim.Adam(module.parameters(), 1e-3)
        if gamma is not None and name == "left-bottom":
            made.register_step_pre_hook(Lengthened(gamma))
        return made

    return train(HALVES, data, models, epochs=epochs, batch=128, seed=seed, record=False, optimiser=optimiser)


def raw_features(v: Victim, role: str, clues: int) -> float:
    """What the same clues tell by logistic regression on the adversary's own raw features."""
    known = v.view(role, knows=CLUES, clues=clues).clues
    assert known is not None
    x, y = v.data.train.inputs[v.topology.columns(role)[0]].flatten(1), v.data.train.labels["y"]
    rest = torch.ones(len(y), dtype=torch.bool)
    rest[known.position] = False
    fitted = LogisticRegression(max_iter=500).fit(x[known.position], y[known.position])
    return float(fitted.score(x[rest], y[rest]))


@pytest.mark.parametrize("attack", [ModelCompletion(), ModelCompletion(head="mixmatch")])
def test_a_trained_bottom_knows_more_than_its_features(digits: Dataset, attack: ModelCompletion):
    models = {"bottom": nn.Sequential(nn.Flatten(), mlp(64, 64, last_relu=True)), "top": mlp(64, 10)}
    v = train(vanilla(labels="server"), digits, models, epochs=15, record=False)
    view = v.view("client", knows=CLUES, clues=2)
    guess = attack.infer(view, coins=torch.Generator().manual_seed(0))
    assert len(guess.position) == len(digits.train) - 20
    assert accuracy(v, guess) >= raw_features(v, "client", 2) + 0.10


def test_where_it_applies(digits: Dataset):
    left = Threat("t", ("left",), knows=CLUES)
    assert ModelCompletion().why_not(HALVES, left) is None
    assert "holds every label" in str(ModelCompletion().why_not(HALVES, Threat("t", ("server",), knows=CLUES)))
    middle = Threat("t", ("client-2",), knows=CLUES)
    assert "holds no records" in str(ModelCompletion().why_not(multi_hop(hops=2), middle))
    assert "is curious" in str(ActiveCompletion().why_not(HALVES, left))
    assert ActiveCompletion().why_not(HALVES, Threat("t", ("left",), "malicious", CLUES)) is None
    with pytest.raises(TypeError, match="passive"):
        ModelCompletion().corrupt({}, victim(digits, epochs=1).view("left"), coins=torch.Generator())
    assert "holds every label" in str(ModelCompletion().why_not(vanilla(), Threat("t", ("client",), knows=CLUES)))


def test_steps_are_lengthened_where_gradients_agree_and_never_beyond_five_times():
    p = nn.Parameter(torch.zeros(4))
    optimizer = torch.optim.SGD([p], lr=1.0)
    optimizer.register_step_pre_hook(Lengthened(1.0))
    p.grad = torch.tensor([1.0, 1.0, 1.0, 0.0])
    optimizer.step()
    p.grad = torch.tensor([1.0, -3.0, 10.0, 0.0])
    optimizer.step()
    torch.testing.assert_close(p.detach(), -torch.tensor([1.0 + 2.0, 1.0 - 3.0, 1.0 + 50.0, 0.0]))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("gamma", [None, 1.0])
def test_published_strength_on_fashion_mnist(seed: int, gamma: float | None):
    """Half images, four labels a class: at least .70, and .10 over the same labels on raw pixels."""
    v = victim(fashion(), epochs=4, gamma=gamma, seed=seed)
    guess = ModelCompletion().infer(v.view("left", knows=CLUES, clues=4), coins=torch.Generator().manual_seed(seed))
    assert accuracy(v, guess) >= max(0.70, raw_features(v, "left", 4) + 0.10)
