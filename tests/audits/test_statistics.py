"""Intervals against exact enumeration, scikit-learn, scipy and coverage by simulation."""

from __future__ import annotations

from math import isnan

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import roc_auc_score

from audits import statistics as st


def coins(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("seed", range(5))
def test_auc_is_that_of_scikit_learn_ties_included(seed: int) -> None:
    g = coins(seed)
    scores = torch.randint(6, (80,), generator=g).float()
    positive = torch.rand(80, generator=g) < 0.3
    assert st.auc(scores, positive) == pytest.approx(roc_auc_score(positive, scores), abs=1e-12)


def test_auc_of_one_class_is_not_a_number() -> None:
    assert isnan(st.auc(torch.randn(4), torch.ones(4, dtype=torch.bool)))


def test_delong_variance_is_that_of_all_pairs() -> None:
    g = coins(1)
    positive = torch.arange(60) < 20
    scores = torch.randn(60, generator=g).round(decimals=1).double() + positive
    x, y = scores[positive], scores[~positive]
    psi = (x[:, None] > y[None]).double() + 0.5 * (x[:, None] == y[None]).double()
    slow = psi.mean(1).var() / 20 + psi.mean(0).var() / 40
    assert st._delong_variance(scores, positive, 40, 20) == pytest.approx(float(slow), rel=1e-10)


def test_delong_covers_the_true_area_as_often_as_it_says() -> None:
    g, truth = coins(2), float(stats.norm.cdf(1 / 2**0.5))
    positive, hit = torch.arange(120) < 40, 0
    for _ in range(400):
        found = st.auc_interval(torch.randn(120, generator=g) + positive, positive)
        hit += found.low <= truth <= found.high
    assert 0.92 <= hit / 400 <= 0.98


def test_a_perfect_area_is_not_called_certain() -> None:
    positive = torch.arange(30) < 10
    found = st.auc_interval(positive.float(), positive)
    assert found.high == 1.0
    assert found.low == pytest.approx(0.025 ** (1 / 10))


def test_clopper_pearson_inverts_the_binomial_test() -> None:
    found = st.proportion(7, 20)
    assert stats.binom.sf(6, 20, found.low) == pytest.approx(0.025)
    assert stats.binom.cdf(7, 20, found.high) == pytest.approx(0.025)
    assert (st.proportion(0, 0).low, st.proportion(0, 0).high) == (0.0, 1.0)


@pytest.mark.parametrize("n", [6, 9, 15, 40])
def test_median_interval_has_at_least_its_level(n: int) -> None:
    g, hit = coins(n), 0
    for _ in range(500):
        found = st.median(torch.rand(n, generator=g))
        hit += found.low <= 0.5 <= found.high
    assert hit / 500 >= 0.93


def test_median_of_few_is_a_range_and_says_so() -> None:
    found = st.median(torch.tensor([0.2, 0.9, 0.4]))
    assert (found.low, found.high) == pytest.approx((0.2, 0.9))
    assert found.method.startswith("range")


def test_bootstrap_agrees_with_the_normal_interval_of_a_mean() -> None:
    values = torch.randn(400, generator=coins(3), dtype=torch.float64)
    found = st.bootstrap(values, coins=coins(), draws=2000)
    half = 1.96 * float(values.std()) / 20
    assert found.high - found.low == pytest.approx(2 * half, rel=0.1)
    assert (found.low + found.high) / 2 == pytest.approx(float(values.mean()), abs=0.02)


def test_bootstrap_over_records_is_wider_than_over_their_repetitions() -> None:
    once = (torch.rand(50, generator=coins(4)) < 0.5).double()
    by_record = st.bootstrap(once, weights=torch.full((50,), 20.0), coins=coins())
    by_row = st.bootstrap(once.repeat(20), coins=coins())
    assert by_record.high - by_record.low > 3 * (by_row.high - by_row.low)


def test_permutation_p_values_are_uniform_under_the_null() -> None:
    g, ps = coins(5), []
    for _ in range(200):
        x, y = torch.randn(20, generator=g), torch.randn(20, generator=g)
        null = st.permuted(lambda order, x=x, y=y: float((x * y[order]).sum()), 20, coins=g, draws=99)  # type: ignore[misc]
        ps.append(null.p(float((x * y).sum())))
    assert stats.kstest(ps, "uniform").pvalue > 0.01
    assert min(ps) >= 0.01


def test_holm_by_hand_and_never_below_the_raw_value() -> None:
    assert st.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    raw = list(np.random.default_rng(0).random(20))
    assert all(a >= p for a, p in zip(st.holm(raw), raw, strict=True))
    assert all(h >= b - 1e-12 for h, b in zip(st.holm(raw), st.benjamini_hochberg(raw), strict=True))
    assert st.holm([]) == []
    assert st.benjamini_hochberg([]) == []


def test_over_seeds_is_students_t() -> None:
    found = st.over_seeds([0.9, 0.8, 1.0])
    low, high = stats.t.interval(0.95, 2, loc=0.9, scale=stats.sem([0.9, 0.8, 1.0]))
    assert (found.low, found.high) == pytest.approx((low, high))
    assert isnan(st.over_seeds([0.9]).low)


def test_binomial_p() -> None:
    assert st.binomial_p(3, 10, 0.1) == pytest.approx(stats.binomtest(3, 10, 0.1, "greater").pvalue)
