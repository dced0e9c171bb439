"""From messages back to inputs by regression: an inverse network of infinite width, in closed form.

A fully connected ReLU network with Gaussian weights becomes, as its width grows, a Gaussian process whose covariance is
the arc-cosine kernel, once a layer (Cho and Saul 2009; Lee et al. 2018, arXiv 1711.00165). Its posterior mean given
pairs (message, input) is one linear solve, the global optimum that training by gradient descent approaches. The noise
level is chosen by the exact leave-one-out error on those pairs, which the adversary holds. It knows no view.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import pi

import torch
from torch import Tensor

LAYERS = 3  # hidden layers, as many as the inverse networks of the papers have
NOISES = (1e-3, 1e-2, 1e-1, 1.0)  # relative to the mean variance of the pairs
CHOSEN_ON = 1500  # pairs whose leave-one-out error chooses the noise
CHUNK = 2048  # rows decoded at once
NUMBERS = 1 << 28  # the most numbers in pairs and kernel: the pairs are thinned out beyond it


@dataclass(frozen=True)
class Decoder:
    """A fitted regression. Called on messages (n, ...) it gives inputs (n, ...) within the range of those it saw."""

    centre: Tensor  # (d,)
    scale: Tensor  # (d,)
    anchors: Tensor  # (pairs, d), standardised
    weights: Tensor  # (pairs, pixels)
    mean: Tensor  # (pixels,)
    low: float
    high: float
    shape: torch.Size
    noise: float
    held_out_mse: float  # leave-one-out, on the adversary's own pairs
    layers: int

    def __call__(self, messages: Tensor) -> Tensor:
        flat = (messages.flatten(1).to(self.anchors) - self.centre) / self.scale
        decoded = [kernel(rows, self.anchors, self.layers) @ self.weights for rows in torch.split(flat, CHUNK)]
        whole = torch.cat(decoded) if decoded else self.mean.new_empty(0, len(self.mean))
        return (whole + self.mean).clamp(self.low, self.high).reshape(-1, *self.shape)


def fit(
    messages: Tensor,
    inputs: Tensor,
    *,
    coins: torch.Generator,
    layers: int = LAYERS,
    noises: Sequence[float] = NOISES,
) -> Decoder:
    """Fit on pairs: messages (n, ...), inputs (n, ...). Raises ValueError for no pairs, or numbers not finite."""
    x, z = inputs.flatten(1).float(), messages.flatten(1).float()
    if len(x) != len(z) or len(x) < 2:
        raise ValueError(f"expected pairs to learn from, got {len(z)} messages and {len(x)} inputs")
    if not bool(torch.isfinite(z).all() and torch.isfinite(x).all()):
        raise ValueError("expected finite messages and inputs, got NaN or infinity")
    order = torch.randperm(len(x), generator=coins)[: affordable(len(x), z.shape[1] + x.shape[1])].to(x.device)
    low, high = float(x.min()), float(x.max())
    x, z = x[order], z[order]
    centre, spread = z.mean(0), z.std(0)
    scale = (spread + 0.1 * z.std()).clamp_min(1e-9)  # a feature that hardly varies must not be blown up
    z, mean = (z - centre) / scale, x.mean(0)
    x = x - mean
    few = slice(0, CHOSEN_ON)
    noise, error = choose(kernel(z[few], z[few], layers), x[few], noises)
    weights = solve(kernel(z, z, layers), x, noise)
    return Decoder(centre, scale, z, weights, mean, low, high, inputs.shape[1:], noise, error, layers)


def affordable(pairs: int, width: int) -> int:
    """How many pairs fit in NUMBERS: their own numbers and the kernel's, three times over for the solve."""
    n = pairs
    while n > 256 and n * (width + 3 * n) > NUMBERS:
        n = n * 9 // 10
    return n


def kernel(a: Tensor, b: Tensor, layers: int) -> Tensor:
    """(n, m): the arc-cosine kernel of order 1, `layers` times over: the covariance of infinitely wide ReLU layers."""
    lengths = a.norm(dim=1, keepdim=True) * b.norm(dim=1)
    lengths.clamp_min_(1e-12)
    cosine = (a @ b.T).div_(lengths)
    for _ in range(layers):
        cosine.clamp_(-1, 1)
        sine = (1 - cosine.square()).sqrt_()
        angle = torch.acos(cosine)
        cosine.mul_(1 - angle / pi).add_(sine, alpha=1 / pi)
    return cosine.mul_(lengths)


def choose(covariance: Tensor, targets: Tensor, noises: Sequence[float]) -> tuple[float, float]:
    """(noise, its mean squared leave-one-out error), the best of `noises`, exactly, from one eigendecomposition."""
    values, vectors = torch.linalg.eigh(covariance.double())
    unit, rotated = covariance.diagonal().double().mean(), vectors.T @ targets.double()
    errors = {}
    for noise in noises:
        inverse = 1 / (values.clamp_min(0) + noise * unit)
        alpha = vectors @ (inverse[:, None] * rotated)
        own = (vectors.square() * inverse).sum(1, keepdim=True)
        errors[noise] = float((alpha / own).square().mean())
    best = min(errors, key=errors.__getitem__)
    return best, errors[best]


def solve(covariance: Tensor, targets: Tensor, noise: float) -> Tensor:
    """(n, pixels): the regression's weights; the noise is raised until the factorisation succeeds."""
    unit = float(covariance.diagonal().mean())
    for _ in range(8):
        noisy = covariance.clone()
        noisy.diagonal().add_(noise * unit)
        factor, failed = torch.linalg.cholesky_ex(noisy)
        if not int(failed):
            return torch.cholesky_solve(targets, factor)
        noise *= 10
    raise ValueError("the messages are degenerate: their covariance cannot be factorised")
