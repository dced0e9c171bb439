"""The inverse network on the digits in a second, on set-up S in full, and empty-handed."""

import pytest
import torch

from attacks.base import NotApplicable
from attacks.inverse_network import InverseNetwork
from secsplit.threat import Knows, Threat
from secsplit.topologies import vanilla
from tests.attacks import runs

QUERY = {Knows.QUERY}


def coins(seed=0):
    return torch.Generator().manual_seed(seed)


def aux(data, n=None):
    _, _, x, y = data
    return {"x": x[:n]}, {"y": y[:n]}


@pytest.mark.parametrize(("cut", "mse", "reid"), [(2, 0.004, 0.98), (4, 0.022, 0.40)])
def test_digits_are_read_back_from_three_hundred_records(cut, mse, reid):
    victim = runs.small(cuts=(cut,))
    guess = InverseNetwork().infer(victim.view("server", aux=aux(runs.digits(), 300), knows=QUERY), coins=coins())
    assert len(guess.position) == 1438
    score = runs.score(victim, guess)
    assert score.mse < mse < score.mean_mse / 3
    assert score.reid > reid


def test_deeper_cuts_leak_less():
    found = []
    for cut in (2, 4, 7):
        victim = runs.small(cuts=(cut,))
        view = victim.view("server", aux=aux(runs.digits(), 300), knows=QUERY)
        found.append(runs.score(victim, InverseNetwork().infer(view, coins=coins())).reid)
    assert found[0] > found[1] > found[2] > 10 / 1438


def test_empty_handed_it_finds_nobody():
    victim = runs.small(cuts=(4,))
    view = victim.noise("server", aux=aux(runs.digits()), knows=QUERY)
    score = runs.score(victim, InverseNetwork().infer(view, coins=coins()))
    assert score.mse > 0.9 * score.mean_mse
    assert score.reid < 0.01


def test_only_rows_asked_for_are_guessed_in_their_order():
    victim = runs.small()
    asked = torch.tensor([7, 3, 900])
    view = victim.view("server", aux=aux(runs.digits()), knows=QUERY, asked=asked)
    assert InverseNetwork().infer(view, coins=coins()).position.tolist() == [7, 3, 900]


def test_weights_known_or_held_serve_as_well_as_queries():
    victim = runs.small()
    by_query = InverseNetwork().infer(victim.view("server", aux=aux(runs.digits()), knows=QUERY), coins=coins())
    known = InverseNetwork().infer(victim.view("server", aux=aux(runs.digits()), knows={Knows.WEIGHTS}), coins=coins())
    torch.testing.assert_close(by_query.inputs, known.inputs)


def test_what_it_lacks_is_said():
    victim = runs.small()
    attack = InverseNetwork()
    with pytest.raises(NotApplicable, match="auxiliary records of column x"):
        attack.infer(victim.view("server", knows=QUERY), coins=coins())
    with pytest.raises(NotApplicable, match="cannot run bottom"):
        attack.infer(victim.view("server", aux=aux(runs.digits())), coins=coins())
    can = Threat("a", ("server",), knows=frozenset({Knows.AUX, Knows.QUERY}))
    assert attack.why_not(vanilla(), can) is None
    assert "'query' or 'weights'" in attack.why_not(vanilla(), Threat("b", ("server",), knows=frozenset({Knows.AUX})))
    assert "never received smashed" in attack.why_not(vanilla(), Threat("c", ("client",), knows=can.knows))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("cut", "mse", "reid"), [(3, 0.010, 0.98), (6, 0.015, 0.80)])
def test_set_up_s(cut, mse, reid, seed):
    victim = runs.setup_s(cuts=(cut,), seed=seed)
    x, y = aux(runs.fashion(), 5000)
    asked = victim.rows - 1 - torch.arange(1000)
    guess = InverseNetwork().infer(victim.view("server", aux=(x, y), knows=QUERY, asked=asked), coins=coins(seed))
    score = runs.score(victim, guess)
    assert score.mse <= mse
    assert score.reid >= reid
    assert score.pool == 5000
