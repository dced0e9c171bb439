"""White-box inversion: exact near the input, weaker with depth, without any data; empty-handed it finds nobody."""

import pytest
import torch

from attacks.base import NotApplicable
from attacks.white_box import WhiteBox
from secsplit.threat import Knows, Threat
from secsplit.topologies import vanilla
from tests.attacks import runs

KNOWN = {Knows.WEIGHTS}


def coins(seed=0):
    return torch.Generator().manual_seed(seed)


def test_digits_are_found_without_any_data():
    shallow, deep = (
        runs.score(v, WhiteBox(rows=32, steps=600).infer(v.view("server", knows=KNOWN), coins=coins()))
        for v in (runs.small(cuts=(2,)), runs.small(cuts=(4,)))
    )
    assert shallow.mse < 0.001 < deep.mse < deep.mean_mse
    assert shallow.reid > 0.95 > deep.reid > 0.2


def test_empty_handed_it_finds_nobody():
    victim = runs.small(cuts=(2,))
    score = runs.score(victim, WhiteBox(rows=32, steps=300).infer(victim.noise("server", knows=KNOWN), coins=coins()))
    assert score.reid < 0.1
    assert score.mse > 0.9 * score.mean_mse


def test_a_coalition_searches_through_its_own_layers():
    victim = runs.small("multi_hop", cuts=(2, 4, 6))
    view = victim.view("client-2", "client-3", knows=KNOWN)
    score = runs.score(victim, WhiteBox(rows=16, steps=600).infer(view, coins=coins()))
    assert score.reid > 0.9


def test_without_the_weights_it_does_not_apply():
    assert "'weights'" in str(WhiteBox().why_not(vanilla(), Threat("a", ("server",))))
    with pytest.raises(NotApplicable, match=r"cannot run bottom|does not know the weights"):
        WhiteBox().infer(runs.small().view("server"), coins=coins())


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("cut", "mse", "ssim"), [(2, 0.003, 0.95), (3, 0.02, 0.80)])
def test_on_set_up_s(seed, cut, mse, ssim):
    victim = runs.setup_s(cuts=(cut,), seed=seed)
    score = runs.score(victim, WhiteBox(rows=10).infer(victim.view("server", knows=KNOWN), coins=coins(seed)))
    assert score.mse <= mse
    assert score.ssim >= ssim
