import pytest
import torch

from attacks.base import NotApplicable
from attacks.gradient_clustering import ClueDistance, GradientClustering, GradientTransfer, SmashedClustering, projected
from secsplit.datasets import Dataset
from secsplit.threat import Knows
from secsplit.topologies import u_shaped, vanilla
from tests.attacks.figures import accuracy
from tests.attacks.victims import Victim, fashion, mlp, mnistnet, part, train

CLUES = frozenset({Knows.CLUES})


def test_the_opening_falls_into_its_classes(ten_classes: Victim, coins: torch.Generator):
    guess = GradientClustering().infer(ten_classes.view("client"), coins=coins)
    assert guess.up_to_permutation
    assert len(guess.position) >= 1000
    assert accuracy(ten_classes, guess) >= 0.98


def test_clues_give_the_clusters_their_names(ten_classes: Victim, coins: torch.Generator):
    guess = GradientClustering().infer(ten_classes.view("client", knows=CLUES, clues=10), coins=coins)
    assert not guess.up_to_permutation
    assert accuracy(ten_classes, guess) >= 0.98


def test_rows_that_were_told_are_not_guessed(ten_classes: Victim, coins: torch.Generator):
    view = ten_classes.view("client", knows=CLUES, clues=3)
    assert view.clues is not None
    for attack in (GradientClustering(), GradientTransfer(), ClueDistance()):
        guess = attack.infer(view, coins=coins)
        assert not set(guess.position.tolist()) & set(view.clues.position.tolist())


def test_transfer_labels_every_row_from_one_clue_a_class(ten_classes: Victim, coins: torch.Generator):
    guess = GradientTransfer().infer(ten_classes.view("client", knows=CLUES), coins=coins)
    assert not guess.up_to_permutation
    assert len(guess.position) == len(ten_classes.data.train) - 10
    assert accuracy(ten_classes, guess) >= 0.98


def test_clue_distance_beats_the_majority_class(ten_classes: Victim, coins: torch.Generator):
    guess = ClueDistance().infer(ten_classes.view("client", knows=CLUES), coins=coins)
    assert accuracy(ten_classes, guess) >= 0.7


def test_a_u_shape_does_not_hide_labels_from_its_server(digits: Dataset, coins: torch.Generator):
    models = {
        "bottom": torch.nn.Sequential(torch.nn.Flatten(), mlp(64, 64, last_relu=True)),
        "middle": mlp(64, 32, last_relu=True),
        "head": mlp(32, 10),
    }
    victim = train(u_shaped(), digits, models, epochs=5, batch=128)
    view = victim.view("server", knows=CLUES)
    assert accuracy(victim, GradientTransfer().infer(view, coins=coins)) >= 0.98
    assert accuracy(victim, SmashedClustering().infer(view, coins=coins)) >= 0.4
    assert accuracy(victim, SmashedClustering().infer(victim.view("server"), coins=coins)) >= 0.4


def test_noise_in_place_of_the_gradients_is_at_chance(digits: Dataset, coins: torch.Generator):
    models = {"bottom": torch.nn.Flatten(), "top": mlp(64, 10)}
    noise = torch.Generator().manual_seed(1)
    victim = train(
        vanilla(labels="server"),
        digits,
        models,
        epochs=2,
        batch=128,
        defence=lambda kind, h: torch.randn(h.shape, generator=noise) if kind == "cut-grad" else h,
    )
    view = victim.view("client", knows=CLUES)
    for attack in (GradientTransfer(), ClueDistance()):
        assert accuracy(victim, attack.infer(view, coins=coins)) < 0.2


def test_one_epoch_is_too_few_for_a_transfer(digits: Dataset, coins: torch.Generator):
    victim = train(vanilla(labels="server"), digits, {"bottom": torch.nn.Flatten(), "top": mlp(64, 10)}, batch=128)
    with pytest.raises(NotApplicable, match="second epoch"):
        GradientTransfer().infer(victim.view("client"), coins=coins)


@pytest.mark.parametrize("shape", [(50, 8), (8, 50)])
def test_projection_keeps_distances_where_it_keeps_every_direction(shape: tuple[int, int], coins: torch.Generator):
    rows = torch.randn(shape, generator=coins)
    rows[:, 4:] = 0
    near = torch.pdist(projected(rows.double(), 4)), torch.pdist(rows.double())
    torch.testing.assert_close(*near)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("cut", [3, 6, 8, 10])
def test_published_strength_on_fashion_mnist(cut: int, seed: int, coins: torch.Generator):
    """Set-up S: the first batch, and by transfer every row, at any cut."""
    bottom, top = mnistnet(cut, seed=seed)
    data = part(fashion(), torch.arange(20_000))
    victim = train(vanilla(labels="server"), data, {"bottom": bottom, "top": top}, epochs=2, batch=256, seed=seed)
    first = GradientClustering(rows=25).infer(victim.view("client"), coins=coins)
    assert len(first.position) == 256
    assert accuracy(victim, first) >= 0.98
    assert accuracy(victim, GradientClustering().infer(victim.view("client"), coins=coins)) >= 0.98
    assert accuracy(victim, GradientTransfer().infer(victim.view("client", knows=CLUES), coins=coins)) >= 0.98
