import pytest
import torch
from torch.nn.functional import one_hot

from attacks.base import NotApplicable
from attacks.property_probe import PropertyProbe
from secsplit import datasets
from secsplit.datasets import DataSpec
from secsplit.threat import Knows
from secsplit.topologies import multi_task, vanilla
from secsplit.topology import Objective, Segment, Topology
from tests.attacks.figures import accuracy
from tests.attacks.victims import Victim, mlp, mnistnet, part, train

CLUES, AUX = frozenset({Knows.CLUES}), frozenset({Knows.AUX, Knows.QUERY})
FOOTWEAR = Topology(
    "footwear",
    (Segment("bottom", "client", ("data:x",)), Segment("top", "server", ("bottom",))),
    (Objective("loss", "top", holder="server", at="server", target="footwear"),),
)


@pytest.fixture(scope="module")
def two_tasks() -> Victim:
    """One client, a server for the digit and one for its parity."""
    data = datasets.load(DataSpec(name="digits", modalities={"x1": "all"}, labels={"parity": "parity", "y": "y"}))
    models = {"bottom-1": torch.nn.Sequential(torch.nn.Flatten(), mlp(64, 64, last_relu=True)), "top-1": mlp(64, 2),
              "top-2": mlp(64, 10)}  # fmt: skip
    return train(multi_task(clients=1, tasks=("parity", "y")), data, models, epochs=3)


def task_only(victim: Victim, task: str, column: str) -> float:
    """The accuracy of naming the commonest attribute among rows of the same task label."""
    task_label, label = victim.data.train.labels[task], victim.data.train.labels[column]
    counts = one_hot(task_label).float().T @ one_hot(label).float()
    return float(counts.max(1).values.sum() / len(label))


@pytest.mark.parametrize("knows", [CLUES, AUX])
def test_a_task_server_reads_the_other_task(two_tasks: Victim, knows: frozenset[Knows]):
    view = two_tasks.view("server-1", knows=knows, clues=20)
    guess = PropertyProbe().infer(view, coins=torch.Generator().manual_seed(0))
    assert (guess.goal, guess.column) == ("attribute", "y")
    assert accuracy(two_tasks, guess) >= task_only(two_tasks, "parity", "y") + 0.5


def test_who_holds_the_attribute_has_nothing_to_guess(two_tasks: Victim, ten_classes: Victim):
    with pytest.raises(NotApplicable, match="no attribute 'parity'"):
        PropertyProbe(column="parity").infer(two_tasks.view("server-1", knows=CLUES), coins=torch.Generator())
    with pytest.raises(NotApplicable, match="no attribute"):
        PropertyProbe().infer(ten_classes.view("server", knows=CLUES), coins=torch.Generator())
    assert "neither" in str(PropertyProbe().why_not(vanilla(), ten_classes.threat("server")))
    assert "never received" in str(PropertyProbe().why_not(vanilla(), ten_classes.threat("client", knows=CLUES)))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("cut", "required"), [(3, 0.78), (6, 0.70)])
def test_published_strength_on_fashion_mnist(cut: int, required: float, seed: int):
    """Set-up S trained on footwear or not; the ten classes from 1000 smashed data whose class is known."""
    data = datasets.load(DataSpec(name="fashion-mnist", labels={"footwear": "footwear", "y": "y"}))
    bottom, top = mnistnet(cut, classes=2, seed=seed)
    victim = train(FOOTWEAR, part(data, torch.arange(20_000)), {"bottom": bottom, "top": top}, epochs=2, seed=seed)
    view = victim.view("server", knows=CLUES, clues=100)
    guess = PropertyProbe().infer(view, coins=torch.Generator().manual_seed(seed))
    assert accuracy(victim, guess) >= required
    assert task_only(victim, "footwear", "y") < 0.22
