import pytest
import torch
from torch import Tensor, nn

from attacks.base import Attack, NotApplicable
from attacks.feature_inference import EqualitySolving
from attacks.generative_regression import GenerativeRegression
from secsplit.datasets import Dataset, Records
from secsplit.message import Kind
from secsplit.threat import Knows
from secsplit.topology import Objective, Segment, Topology
from tests.attacks.victims import Victim, train

CONFIDENCES = Topology(
    "confidences",
    (
        Segment("mine", "active", ("data:mine",)),
        Segment("theirs", "passive", ("data:theirs",)),
        Segment("sum", "server", ("mine", "theirs"), merge="sum"),
    ),
    (Objective("loss", "sum", holder="active", at="active"),),
    "a logistic regression over two parties' features, whose confidences the active party is told",
)
AUX = frozenset({Knows.WEIGHTS, Knows.AUX})


def victim(digits: Dataset, hidden: int, *, decimals: int | None = None, seed: int = 0) -> Victim:
    """Logistic regression on digits, in double precision; the last epoch answers with final weights."""

    def split(r: Records) -> Records:
        x = r.inputs["x"].flatten(1).double()
        order = torch.randperm(64, generator=torch.Generator().manual_seed(1 + seed))
        return Records({"mine": x[:, order[hidden:]], "theirs": x[:, order[:hidden]]}, r.labels, r.ids)

    data = Dataset(digits.name, split(digits.train), split(digits.test), digits.classes, digits.card)
    torch.manual_seed(seed)
    models = {"mine": nn.Linear(64 - hidden, 10).double(), "theirs": nn.Linear(hidden, 10).double(),
              "sum": nn.LogSoftmax(1)}  # fmt: skip
    trained = train(CONFIDENCES, data, models, epochs=4, batch=64, lr=1e-2, record=False)

    def rounded(kind: Kind, values: Tensor) -> Tensor:
        if kind is not Kind.OUTPUT or decimals is None:
            return values
        return values.exp().round(decimals=decimals).log()

    return train(CONFIDENCES, data, trained.models, frozen=("mine", "theirs"), defence=rounded)


def errors(v: Victim, **options: bool) -> tuple[float, float]:
    """Mean squared error of the attack and of guessing the auxiliary mean."""
    guess = EqualitySolving(**options).infer(v.view("active", knows=AUX), coins=torch.Generator())
    truth = v.data.train.inputs["theirs"][guess.position]
    assert guess.inputs is not None
    mean = v.data.test.inputs["theirs"].mean(0)
    return float((guess.inputs - truth).square().mean()), float((mean - truth).square().mean())


@pytest.mark.parametrize("hidden", [1, 4, 9])
def test_as_many_classes_as_features_give_them_away_exactly(digits: Dataset, hidden: int):
    assert errors(victim(digits, hidden))[0] < 1e-12


def test_with_too_few_equations_it_does_not_beat_the_mean_unless_it_starts_there(digits: Dataset):
    v = victim(digits, 20)
    error, mean = errors(v)
    assert error > mean
    assert errors(v, around_mean=True)[0] < mean


def test_rounding_confidences_to_two_decimals_defeats_it(digits: Dataset):
    error, mean = errors(victim(digits, 9, decimals=2))
    assert error > 0.1 > mean


def test_without_auxiliary_records_shapes_are_read_off_the_weights(digits: Dataset):
    v = victim(digits, 4)
    guess = EqualitySolving().infer(v.view("active", knows=frozenset({Knows.WEIGHTS})), coins=torch.Generator())
    assert guess.inputs is not None
    torch.testing.assert_close(guess.inputs, v.data.train.inputs["theirs"][guess.position])
    assert guess.facts["rank"] == 4


def test_any_linear_bottom_is_inverted_from_its_smashed_data(digits: Dataset):
    guess = EqualitySolving().infer(victim(digits, 6).view("server", knows=AUX), coins=torch.Generator())
    assert guess.facts["equations"] == 10


def test_what_is_not_linear_is_said_to_be_so(digits: Dataset):
    v = victim(digits, 4)
    v.models = {**v.models, "theirs": nn.Sequential(nn.Linear(4, 10), nn.ReLU()).double()}  # type: ignore[misc]
    with pytest.raises(NotApplicable, match="not linear in theirs"):
        EqualitySolving().infer(v.view("active", knows=AUX), coins=torch.Generator())


def test_without_the_weights_it_does_not_apply(digits: Dataset):
    threat = victim(digits, 1).threat("active")
    assert "needs 'weights'" in str(EqualitySolving().why_not(CONFIDENCES, threat))


@pytest.mark.parametrize("attack", [EqualitySolving(), GenerativeRegression()], ids=lambda attack: attack.name)
def test_who_may_only_ask_the_model_does_not_know_it(digits: Dataset, attack: Attack):
    """The architecture alone is not refused beforehand, since the weights might be sent; here they never are."""
    v, knows = victim(digits, 4), frozenset({Knows.QUERY, Knows.ARCHITECTURE})
    assert attack.why_not(CONFIDENCES, v.threat("active", knows=knows)) is None
    with pytest.raises(NotApplicable, match="with the weights of every segment"):
        attack.infer(v.view("active", knows=knows), coins=torch.Generator())
