"""Marvell's optimum against a brute-force search, and its bound against the best detector."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from secsplit.defenses import Noise, Outgoing
from secsplit.defenses.marvell import Marvell, MarvellSpec, Variances, _sum_kl, detection_error, variances
from secsplit.errors import RunError
from secsplit.message import Kind, Stamp
from secsplit.topologies import named

CASES = [(0.02, 0.05, 1.0, 64, 0.1, 4.0), (0.5, 0.1, 2.0, 16, 0.5, 1.0), (1e-4, 1e-4, 0.01, 256, 0.02, 0.25)]


def power(found: Variances, dimension: int, p: float) -> float:
    traces = [first + (dimension - 1) * other for first, other in zip(found.first, found.other, strict=True)]
    return (1 - p) * traces[0] + p * traces[1]


@pytest.mark.parametrize(("u", "v", "distance", "dimension", "p", "s"), CASES)
def test_no_grid_point_is_better(u: float, v: float, distance: float, dimension: int, p: float, s: float) -> None:
    found = variances(u, v, distance, dimension, p, s * distance)
    assert power(found, dimension, p) == pytest.approx(s * distance, rel=1e-6)
    budget = s * distance
    best = np.inf
    shares = np.concatenate([[0, 1e-4, 1e-3, 1e-2], np.linspace(0.05, 1, 20)])
    for a, b, c in itertools.product(shares, repeat=3):
        if a + b + c <= 1 + 1e-9:
            d = max(1 - a - b - c, 0)
            l10, l11 = a * budget / (1 - p), b * budget / p
            l20, l21 = (x * budget / (q * (dimension - 1)) for x, q in ((c, 1 - p), (d, p)))
            noise = np.array([l10, l11, l20, l21]) / distance
            best = min(best, _sum_kl(noise, u / distance, v / distance, dimension)[0])
    assert found.sum_kl <= best * (1 + 1e-6)
    assert found.sum_kl > best * 0.8


def test_more_power_hides_more() -> None:
    kls = [variances(0.02, 0.05, 1.0, 64, 0.1, s).sum_kl for s in (0.1, 1.0, 4.0, 10.0)]
    assert kls == sorted(kls, reverse=True)
    assert detection_error(kls[-1]) > detection_error(kls[0])
    assert detection_error(100.0) == 0


def test_sum_kl_is_that_of_the_two_gaussians() -> None:
    """Against the textbook formula for full covariance matrices."""
    l10, l11, l20, l21, u, v, d = 0.3, 0.7, 0.05, 0.02, 0.1, 0.2, 5
    mean = np.eye(d)[0]
    s0, s1 = (np.diag([first + w] + [other + w] * (d - 1)) for first, other, w in ((l10, l20, u), (l11, l21, v)))

    def kl(a: np.ndarray, b: np.ndarray) -> float:
        inverse = np.linalg.inv(b)
        return 0.5 * (np.trace(inverse @ a) + mean @ inverse @ mean - d + np.log(np.linalg.det(b) / np.linalg.det(a)))

    noise = np.array([l10, l11, l20, l21])
    value, slope = _sum_kl(noise, u, v, d)
    assert value == pytest.approx(kl(s0, s1) + kl(s1, s0))
    for i in range(4):
        near = noise + 1e-7 * np.eye(4)[i]
        assert slope[i] == pytest.approx((_sum_kl(near, u, v, d)[0] - value) / 1e-7, rel=1e-4)


def batch(n: int = 400, d: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    coins = torch.Generator().manual_seed(0)
    y = (torch.rand(n, generator=coins) < 0.2).long()
    return torch.randn(n, d, generator=coins) * 0.05 + y.unsqueeze(1) * torch.eye(d)[0], y


def test_the_noise_added_is_the_one_found() -> None:
    g, y = batch(20_000)
    defense = Marvell(MarvellSpec(edge="bottom->top", s=4.0), Noise.predictable_for_testing_only(0))
    out = Outgoing(Kind.CUT_GRAD, "bottom->top", Stamp(), g, y, torch.arange(len(y)))
    added = defense.outgoing(out) - g
    spent = float(added.square().sum(1).mean())
    distance = float((g[y == 1].mean(0) - g[y == 0].mean(0)).square().sum())
    assert spent == pytest.approx(4 * distance, rel=0.05)
    assert len(defense.sum_kl) == 1
    first, rest = added[:, 0].var(), added[:, 1:].var()
    assert float(first) > 10 * float(rest)  # nearly all of it where the classes differ


def test_batches_of_one_class_stay() -> None:
    g, y = batch(50)
    defense = Marvell(MarvellSpec(edge="bottom->top", s=4.0), Noise.predictable_for_testing_only(0))
    for labels in (torch.zeros_like(y), None):
        out = Outgoing(Kind.CUT_GRAD, "bottom->top", Stamp(), g, labels, torch.arange(50))
        assert torch.equal(defense.outgoing(out), g)


def test_misuse_is_refused() -> None:
    spec = MarvellSpec(edge="bottom->top", s=1.0)
    with pytest.raises(RunError, match="binary"):
        spec.build(Noise.fresh(), {"y": 10})
    with pytest.raises(RunError, match="holds no labels"):
        spec.fits(named("vanilla"), [spec], 1)
    spec.fits(named("vanilla", labels="server"), [spec], 1)
