import pytest
import torch

from attacks.base import NotApplicable
from attacks.direct_label import DirectLabel
from secsplit.datasets import Dataset, Records
from secsplit.topology import Objective, Segment, Topology
from tests.attacks.figures import accuracy
from tests.attacks.victims import Victim, mlp, train

SUM = Topology(
    "sum",
    (
        Segment("left", "left", ("data:left",)),
        Segment("right", "right", ("data:right",)),
        Segment("top", "server", ("left", "right"), merge="sum"),
    ),
    (Objective("loss", "top", holder="server", at="server"),),
)
ELSEWHERE = Topology(
    "elsewhere",
    (Segment("bottom", "client", ("data:x",)),),
    (Objective("loss", "bottom", holder="judge", at="judge"),),
)


def halves(data: Dataset) -> Dataset:
    def split(r: Records) -> Records:
        x = r.inputs["x"].flatten(1)
        return Records({"x": x, "left": x[:, :32], "right": x[:, 32:]}, r.labels, r.ids)

    return Dataset(data.name, split(data.train), split(data.test), data.classes, data.card)


@pytest.mark.parametrize("roles", [("left",), ("right",), ("left", "right")])
def test_without_a_trainable_top_every_label_is_read_exactly(
    digits: Dataset, roles: tuple[str, ...], coins: torch.Generator
):
    models = {"left": mlp(32, 32, 10), "right": mlp(32, 10), "top": torch.nn.Identity()}
    victim = train(SUM, halves(digits), models, epochs=2)
    guess = DirectLabel().infer(victim.view(*roles), coins=coins)
    assert len(guess.position) == len(digits.train)
    assert accuracy(victim, guess) == 1.0


def test_a_loss_computed_elsewhere_hands_the_labels_back(digits: Dataset, coins: torch.Generator):
    victim = train(ELSEWHERE, halves(digits), {"bottom": mlp(64, 32, 10)})
    assert DirectLabel().why_not(ELSEWHERE, victim.threat("client")) is None
    assert accuracy(victim, DirectLabel().infer(victim.view("client"), coins=coins)) == 1.0


def test_a_trainable_top_is_said_to_be_one(ten_classes: Victim, coins: torch.Generator):
    with pytest.raises(NotApplicable, match="width 64"):
        DirectLabel().infer(ten_classes.view("client"), coins=coins)
