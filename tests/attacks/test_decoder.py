"""The closed-form inverse network: its kernel, its choice of noise and its solution, each against the slow way."""

import pytest
import torch
from torch import nn

from attacks import decoder


def pairs(n=60, d=7, seed=0):
    coins = torch.Generator().manual_seed(seed)
    z = torch.randn(n, d, generator=coins)
    return z, torch.sin(0.3 * z @ torch.randn(d, 5, generator=coins)).reshape(n, 1, 5, 1)


@pytest.mark.parametrize("layers", [1, 2])
def test_the_kernel_is_the_covariance_of_wide_relu_networks(layers):
    z, _ = pairs(4, 3)
    torch.manual_seed(0)
    draws, width = 200, 1000
    total = torch.zeros(4, 4)
    for _ in range(draws):
        h = z
        for _ in range(layers):
            h = torch.relu(nn.functional.linear(h, torch.randn(width, h.shape[1]))) * (2 / width) ** 0.5
        total += h @ h.T / draws
    torch.testing.assert_close(decoder.kernel(z, z, layers), total, rtol=0.05, atol=0.05)


def test_noise_is_chosen_by_the_true_leave_one_out_error():
    z, x = pairs(25)
    z, x = z, x.flatten(1)
    covariance = decoder.kernel(z, z, 3)
    noise, error = decoder.choose(covariance, x, [1e-2, 1.0])
    by_hand = {}
    for candidate in (1e-2, 1.0):
        errors = []
        for i in range(25):
            rest = [j for j in range(25) if j != i]
            k = covariance.double()
            ridge = candidate * k.diagonal().mean() * torch.eye(24)
            weights = torch.linalg.solve(k[rest][:, rest] + ridge, x[rest].double())
            errors.append((k[i, rest] @ weights - x[i]).square().mean())
        by_hand[candidate] = torch.stack(errors).mean().item()
    assert noise == min(by_hand, key=by_hand.get)
    assert error == pytest.approx(by_hand[noise], rel=1e-6)


def test_it_interpolates_its_pairs_and_predicts_others():
    z, x = pairs(600)
    fitted = decoder.fit(z[:500], x[:500], coins=torch.Generator().manual_seed(0))
    assert (fitted(z[:500]) - x[:500]).square().mean() < fitted.held_out_mse
    error = (fitted(z[500:]) - x[500:]).square().mean()
    assert error < 0.5 * x[500:].var()
    assert error.item() == pytest.approx(fitted.held_out_mse, rel=0.3)
    assert fitted(z).shape == x.shape
    assert fitted(100 * z).abs().max() <= x.abs().max()


def test_it_is_thinned_out_where_memory_would_not_suffice():
    assert decoder.affordable(5000, 2000) == 5000
    assert decoder.affordable(50_000, 2000) < 10_000
    assert decoder.affordable(5000, 150_000) * 150_000 < decoder.NUMBERS


@pytest.mark.parametrize("rows", ["constant", "duplicate"])
def test_degenerate_messages_give_the_mean(rows):
    _, x = pairs()
    z = torch.ones(60, 4) if rows == "constant" else torch.randn(1, 4).expand(60, 4)
    fitted = decoder.fit(z, x, coins=torch.Generator().manual_seed(0))
    assert (fitted(z[:3]) - x.mean(0)).abs().max() < 0.05


def test_bad_pairs_are_named():
    z, x = pairs()
    coins = torch.Generator()
    with pytest.raises(ValueError, match="pairs to learn from, got 59"):
        decoder.fit(z[:59], x, coins=coins)
    with pytest.raises(ValueError, match="NaN"):
        decoder.fit(z * float("nan"), x, coins=coins)
