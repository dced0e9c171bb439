"""Undoing the drift of a learning network, on Gaussians where the answer is known and on a network that learns."""

import torch

from attacks import drift
from attacks.observed import Observed


def rows(values, step):
    n = len(values)
    return Observed(torch.zeros(n, dtype=torch.int64), torch.arange(n), step, values)


def test_transport_moves_mean_and_covariance():
    coins = torch.Generator().manual_seed(0)
    source = torch.randn(4000, 6, generator=coins) @ (torch.eye(6) + 0.2 * torch.randn(6, 6, generator=coins)) + 3
    target = torch.randn(4000, 6, generator=coins) @ (torch.eye(6) + 0.2 * torch.randn(6, 6, generator=coins))
    moved = drift.transported(source, target)
    torch.testing.assert_close(moved.mean(0), target.mean(0), atol=1e-4, rtol=0)
    torch.testing.assert_close(torch.cov(moved.T), torch.cov(target.T), atol=0.05, rtol=0.05)


def test_a_slowly_scaled_network_is_undone_without_touching_the_newest():
    coins = torch.Generator().manual_seed(0)
    n = 12_000
    z = torch.randn(n, 4, generator=coins) + 1
    step = torch.arange(n) // 64
    age = (step.max() - step).float() / step.max()
    seen = z * (1 + age)[:, None] + 2 * age[:, None]
    settled = drift.settled(rows(seen, step)).values
    before, after = (seen - z).square().mean(), (settled - z).square().mean()
    assert after < 0.05 * before
    assert torch.equal(settled[-200:], seen[-200:])


def test_few_rows_are_left_alone():
    seen = rows(torch.randn(1500, 3, 2), torch.arange(1500))
    assert drift.settled(seen) is seen


def test_kinds_are_moved_each_to_its_own_and_too_few_rows_with_all():
    coins = torch.Generator().manual_seed(0)
    kind = torch.arange(3).repeat_interleave(torch.tensor([400, 400, 3]))
    centre = torch.tensor([[0.0, 0.0], [8.0, 0.0], [0.0, 8.0]])
    source = torch.randn(803, 2, generator=coins) + centre[kind]
    target = torch.randn(803, 2, generator=coins) - centre[kind]
    moved = drift.transported_within(source, target, kind, kind)
    for k in (0, 1):
        torch.testing.assert_close(moved[kind == k].mean(0), target[kind == k].mean(0), rtol=0, atol=1e-4)
        torch.testing.assert_close(moved[kind == k].T.cov(), target[kind == k].T.cov(), rtol=0.05, atol=0.1)
    torch.testing.assert_close(moved[kind == 2], drift.transported(source, target)[kind == 2])
