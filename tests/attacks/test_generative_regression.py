import torch
from torch import nn

from attacks.generative_regression import GenerativeRegression
from secsplit.datasets import Dataset, Records
from secsplit.threat import Knows
from tests.attacks.test_feature_inference import CONFIDENCES
from tests.attacks.victims import mlp, train

AUX = frozenset({Knows.WEIGHTS, Knows.AUX})


def test_beats_random_guesses_through_a_network_that_no_equations_solve(patients: Dataset):
    """The paper's claim, on breast cancer with 6 of 30 features hidden; the mean is the better guess, and is shown."""

    def split(r: Records) -> Records:
        return Records({"mine": r.inputs["x"][:, 6:], "theirs": r.inputs["x"][:, :6]}, r.labels, r.ids)

    data = Dataset("breast-cancer", split(patients.train), split(patients.test), patients.classes, patients.card)
    torch.manual_seed(0)
    models = {"mine": mlp(24, 16, 2), "theirs": mlp(6, 16, 2), "sum": nn.LogSoftmax(1)}
    victim = train(CONFIDENCES, data, models, epochs=10, lr=3e-3, record=False)
    victim = train(CONFIDENCES, data, victim.models, frozen=("mine", "theirs"))
    view = victim.view("active", knows=AUX)
    coins = torch.Generator().manual_seed(0)
    guess = GenerativeRegression(iterations=400).infer(view, coins=coins)
    truth = data.train.inputs["theirs"][guess.position]
    low, high = (getattr(data.test.inputs["theirs"], end)(0).values for end in ("min", "max"))
    random = low + (high - low) * torch.rand(truth.shape, generator=coins)
    scale = (high - low).square()
    assert guess.inputs is not None
    error, blind = (((made - truth).square() / scale).mean() for made in (guess.inputs, random))
    assert error < 0.7 * blind
    assert guess.facts["last loss"] < 0.05
