"""The simulated client on the digits in seconds, on set-up S in full; without alignment it fails, as it should."""

import pytest
import torch

from attacks.base import NotApplicable
from attacks.simulated_client import SimulatedClient, SimulatedTail
from secsplit.threat import Knows
from tests.attacks import runs
from tests.attacks.runs import Columns

KNOWS = {Knows.ARCHITECTURE}


def coins(seed=0):
    return torch.Generator().manual_seed(seed)


def aux(data) -> tuple[Columns, Columns]:
    _, _, x, y = data
    return {"x": x}, {"y": y}


def attacked(cut: int, **options):
    victim = runs.small(cuts=(cut,))
    view = victim.view("server", aux=aux(runs.digits()), knows=KNOWS)
    return runs.score(victim, SimulatedClient(steps=300, **options).infer(view, coins=coins()))


def test_digits_are_read_back_without_a_query():
    shallow, deep = attacked(2), attacked(4)
    assert shallow.mse < 0.02
    assert shallow.reid > 0.8
    assert shallow.mse < deep.mse < 0.6 * deep.mean_mse


def test_without_alignment_it_is_worse_than_the_mean_image():
    score = attacked(4, regulariser="none")
    assert score.mse > score.mean_mse
    assert score.reid < 0.05


def test_a_discriminator_aligns_too():
    score = attacked(2, regulariser="gan")
    assert score.mse < score.mean_mse
    assert score.reid > 0.2


def test_empty_handed_it_finds_nobody():
    victim = runs.small(cuts=(4,))
    view = victim.noise("server", aux=aux(runs.digits()), knows=KNOWS)
    score = runs.score(victim, SimulatedClient(steps=200).infer(view, coins=coins()))
    assert score.reid < 0.02


def test_without_auxiliary_records_it_does_not_apply():
    with pytest.raises(NotApplicable, match="auxiliary records"):
        SimulatedClient().infer(runs.small().view("server"), coins=coins())


@pytest.mark.slow
def test_the_tail_gives_the_labels_that_never_left_the_client():
    victim = runs.small("u_shaped", cuts=(2, 6))
    view = victim.view("server", aux=aux(runs.digits()), knows=KNOWS)
    guess = SimulatedTail().infer(view, coins=coins())
    right = (guess.labels == victim.labels["y"][guess.position]).float().mean().item()
    assert right > 0.85


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_on_set_up_s(seed):
    victim = runs.setup_s(cuts=(6,), seed=seed)
    view = victim.view("server", aux=aux(runs.fashion()), knows=KNOWS)
    score = runs.score(victim, SimulatedClient().infer(view, coins=coins(seed)))
    assert score.mse <= 0.025
    assert score.ssim >= 0.53
    assert score.reid >= 0.40


@pytest.mark.slow
def test_the_tail_on_set_up_s():
    victim = runs.setup_s("u_shaped", cuts=(6, 10))
    view = victim.view("server", aux=aux(runs.fashion()), knows=KNOWS)
    guess = SimulatedTail().infer(view, coins=coins())
    assert (guess.labels == victim.labels["y"][guess.position]).float().mean() >= 0.82
