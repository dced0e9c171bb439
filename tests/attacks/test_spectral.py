import pytest
import torch

from attacks.spectral import Spectral, top_direction
from secsplit.topologies import vanilla
from tests.attacks.figures import leak_aucs
from tests.attacks.victims import Victim, binary, fashion, mnistnet, train


def test_no_hint_at_all_is_enough(one_in_ten: Victim, coins: torch.Generator):
    guess = Spectral().infer(one_in_ten.view("client"), coins=coins)
    assert guess.up_to_permutation
    assert leak_aucs(one_in_ten, guess).median() >= 0.95


@pytest.mark.parametrize("shape", [(40, 7), (7, 40)])
def test_top_direction_is_that_of_the_singular_value_decomposition(shape: tuple[int, int], coins: torch.Generator):
    rows = torch.randn(shape, generator=coins)
    right = torch.linalg.svd(rows).Vh[0]
    assert abs(float(top_direction(rows) @ right)) == pytest.approx(1, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("share", "required"), [(0.10, 0.98), (0.25, 0.95)])
def test_published_strength_on_fashion_mnist(share: float, required: float, seed: int, coins: torch.Generator):
    bottom, top = mnistnet(6, classes=2, seed=seed)
    data = binary(fashion(), 0, share=share, n=20_000, seed=seed)
    victim = train(vanilla(labels="server"), data, {"bottom": bottom, "top": top}, epochs=3, batch=256, seed=seed)
    assert leak_aucs(victim, Spectral().infer(victim.view("client"), coins=coins)).median() >= required
