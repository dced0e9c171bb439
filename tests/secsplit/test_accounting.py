"""The arithmetic by four other roads: forty digits, Opacus's closed form, its RDP and PRV, dp-accounting."""

from __future__ import annotations

import math

import mpmath
import pytest
from dp_accounting import GaussianDpEvent, SelfComposedDpEvent
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from opacus.accountants.analysis.gdp import eps_from_mu

from secsplit import accounting
from secsplit.accounting import (
    compose,
    delta_of,
    epsilon_of,
    gaussian_mu,
    hidden_participation_epsilon,
    label_bound,
    mu_of,
    prv_epsilon,
    rdp_epsilon,
    reconstruction_bound,
)

DELTA = 1e-5
EXACT = {1: (10.0, 4.38, 1.99, 0.926, 0.434), 10: (46.2, 17.9, 7.51, 3.34, 1.54), 50: (159, 54.4, 20.7, 8.60, 3.80)}
SIGMAS = (1, 2, 4, 8, 16)
CASES = [(sigma, k, value) for k, values in EXACT.items() for sigma, value in zip(SIGMAS, values, strict=True)]


def mu(sigma: float, k: int) -> float:
    return compose([gaussian_mu(sigma)] * k)


@pytest.mark.parametrize(("sigma", "k", "published"), CASES)
def test_the_table_of_exact_epsilons(sigma: float, k: int, published: float) -> None:
    """Replace-one, delta = 1e-5, by four roads: table, Opacus's closed form, and above it PRV and RDP in that order."""
    exact = epsilon_of(mu(sigma, k), DELTA)
    assert exact == pytest.approx(published, rel=4e-3)
    assert exact == pytest.approx(eps_from_mu(mu=mu(sigma, k), delta=DELTA), abs=1e-3)
    releases = [(gaussian_mu(sigma), k)]
    assert exact <= prv_epsilon(releases, DELTA) <= rdp_epsilon(releases, DELTA)
    assert prv_epsilon(releases, DELTA) == pytest.approx(exact, abs=0.02)


@pytest.mark.parametrize(("sigma", "k"), [(4, 10), (1, 1), (16, 50)])
def test_rdp_equals_that_of_dp_accounting(sigma: float, k: int) -> None:
    theirs = RdpAccountant(orders=[1 + x / 10 for x in range(1, 100)] + list(range(11, 64)))
    theirs.compose(SelfComposedDpEvent(GaussianDpEvent(sigma / 2), k))
    assert rdp_epsilon([(gaussian_mu(sigma), k)], DELTA) == pytest.approx(theirs.get_epsilon(DELTA), abs=1e-3)


def test_pld_of_dp_accounting_agrees() -> None:
    theirs = PLDAccountant()
    theirs.compose(SelfComposedDpEvent(GaussianDpEvent(2.0), 10))
    assert epsilon_of(mu(4, 10), DELTA) == pytest.approx(theirs.get_epsilon(DELTA), abs=5e-3)


@pytest.mark.parametrize("mu", [1e-3, 0.1, 1.0, 5.0, 40.0])
@pytest.mark.parametrize("epsilon", [0.0, 0.5, 5.0, 500.0])
def test_delta_to_forty_digits(mu: float, epsilon: float) -> None:
    with mpmath.workdps(40):
        m, e = mpmath.mpf(mu), mpmath.mpf(epsilon)
        expected = mpmath.ncdf(m / 2 - e / m) - mpmath.exp(e) * mpmath.ncdf(-e / m - m / 2)
        assert delta_of(mu, epsilon) == pytest.approx(float(expected), rel=1e-6, abs=1e-15)


def test_extremes() -> None:
    assert epsilon_of(0.0, DELTA) == 0
    assert epsilon_of(1e-6, DELTA) == 0  # where a root finder on [0, 500] finds no change of sign
    assert 800 < epsilon_of(40.0, DELTA) < 1000  # and here too
    assert epsilon_of(math.inf, DELTA) == math.inf
    assert delta_of(math.inf, 3.0) == 1


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 8.0, 50.0])
def test_a_budget_allows_what_it_says(epsilon: float) -> None:
    allowed = mu_of(epsilon, DELTA)
    assert epsilon_of(allowed, DELTA) == pytest.approx(epsilon, rel=1e-6)
    assert epsilon_of(allowed * 1.001, DELTA) > epsilon


def test_sensitivities() -> None:
    assert gaussian_mu(4) == 0.5
    assert gaussian_mu(4, adjacency="zero-out") == 0.25
    assert gaussian_mu(4, orthant=True) == pytest.approx(math.sqrt(2) / 4)
    assert epsilon_of(compose([gaussian_mu(8, adjacency="zero-out")] * 10), DELTA) == pytest.approx(1.54, abs=0.01)


@pytest.mark.parametrize("sigma", [0.0, -1.0, math.inf, math.nan])
def test_no_noise_is_refused(sigma: float) -> None:
    with pytest.raises(ValueError, match="sigma"):
        gaussian_mu(sigma)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1.0, 2.0])
def test_senseless_deltas_are_refused(delta: float) -> None:
    for compute in (lambda: epsilon_of(1.0, delta), lambda: mu_of(1.0, delta)):
        with pytest.raises(ValueError, match="delta"):
            compute()


def test_amplification_is_another_claim() -> None:
    """DP-SGD, 20k records, batch 128, 2 epochs, noise 1: 1.13 for final weights alone, 7.08 with participation seen."""
    steps = 2 * math.ceil(20_000 / 128)
    hidden = hidden_participation_epsilon(sigma=1.0, sample_rate=128 / 20_000, steps=steps, delta=DELTA)
    assert hidden == pytest.approx(1.13, abs=0.02)
    assert rdp_epsilon([(gaussian_mu(1.0, adjacency="zero-out"), 2)], DELTA) == pytest.approx(7.08, abs=0.05)


def test_reconstruction_bound() -> None:
    assert reconstruction_bound(2.0, 1e-3) == pytest.approx(0.138, abs=1e-3)
    assert reconstruction_bound(1.0, 1e-3) == pytest.approx(0.018, abs=1e-3)
    assert reconstruction_bound(0.0, 0.25) == pytest.approx(0.25)
    assert reconstruction_bound(math.inf, 0.25) == 1


def test_label_bound() -> None:
    assert [round(label_bound(e, 10), 3) for e in (4.0, 2.0, 1.0, 0.5)] == [0.858, 0.451, 0.232, 0.155]


def test_the_central_limit_accountant_is_not_offered() -> None:
    assert not any("clt" in name.lower() or "gdp_epsilon" in name for name in dir(accounting))
