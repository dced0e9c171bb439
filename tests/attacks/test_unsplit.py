"""UnSplit on the digits in seconds, on set-up S in full; scored by aligned figures, which is all it can be."""

import pytest
import torch

from attacks.base import NotApplicable
from attacks.conformance import check_attack
from attacks.unsplit import UnSplit
from secsplit.threat import Knows
from tests.attacks import runs

ARCHITECTURE = {Knows.ARCHITECTURE}


def coins(seed=0):
    return torch.Generator().manual_seed(seed)


def test_shapes_are_found_without_data_or_weights():
    victim = runs.small(cuts=(1,))
    guess = UnSplit(steps=1500).infer(victim.view("server", knows=ARCHITECTURE), coins=coins())
    score = runs.score(victim, guess)
    assert guess.up_to_affine
    assert score.correlation > 0.85
    assert score.reid > 0.5
    assert score.affine < 0.5 * score.mean_mse


def test_empty_handed_it_finds_nobody():
    victim = runs.small(cuts=(1,))
    guess = UnSplit(steps=300).infer(victim.noise("server", knows=ARCHITECTURE), coins=coins())
    score = runs.score(victim, guess)
    assert score.correlation < 0.3
    assert score.reid < 0.1


def test_behind_a_dense_layer_it_fails():
    victim = runs.small(cuts=(4,))
    guess = UnSplit(steps=1000).infer(victim.view("server", knows=ARCHITECTURE), coins=coins())
    assert runs.score(victim, guess).correlation < 0.5


def test_it_is_the_same_again_with_the_same_coins():
    victim = runs.small(cuts=(1,))
    view = victim.view("server", knows=ARCHITECTURE)
    one, two = (UnSplit(steps=20).infer(view, coins=coins(5)) for _ in range(2))
    torch.testing.assert_close(one.inputs, two.inputs, rtol=0, atol=0)


def test_it_keeps_to_the_contract():
    def make_view(poisoned):
        victim = runs.small(cuts=(1,), steps=30)
        view = victim.view("server", knows=ARCHITECTURE)
        if poisoned:  # the client's own records and weights, which no view holds
            victim.inputs = {"x": torch.full_like(victim.inputs["x"], 7.0)}  # the digits themselves are all tests'
            for p in victim.nets["bottom"].parameters():
                p.data.fill_(7.0)
        return view

    check_attack(UnSplit(steps=20), make_view)


def test_it_needs_the_architecture():
    with pytest.raises(NotApplicable, match="architecture of bottom"):
        UnSplit().infer(runs.small().view("server"), coins=coins())


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("cut", "low", "high"), [(2, 0.95, 1.0), (3, 0.80, 1.0), (6, -1.0, 0.5)])
def test_set_up_s(cut, low, high, seed):
    victim = runs.setup_s(cuts=(cut,), seed=seed)
    guess = UnSplit(rows=10).infer(victim.view("server", knows=ARCHITECTURE), coins=coins(seed))
    assert low <= runs.score(victim, guess).correlation <= high
