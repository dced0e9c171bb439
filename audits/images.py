"""How close a reconstruction is to the image it came from, in the conventions that every report of this project uses.

Images are (n, channels, height, width) in [0, 1], clamped before they are compared; the range is stated as 1.0.
SSIM is Wang et al. 2004 (Gaussian window 11x11, sigma 1.5, population covariance). Affine-aligned error and pixel
correlation are for attacks whose scale is not identifiable (UnSplit). Re-identification is the one figure that a
blurred class average cannot fake: the mean image finds its original once in N. This file knows no attack and no view.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor

SIGMA = 1.5
WINDOW = 11
K1, K2 = 0.01, 0.03
CHUNK = 256  # rows compared with a pool at once

By = Literal["l2", "correlation"]


@dataclass(frozen=True)
class Fidelity:
    """Every figure of one set of reconstructions, an image each: (n,)."""

    mse: Tensor
    psnr: Tensor  # decibel
    ssim: Tensor
    correlation: Tensor
    affine_mse: Tensor


def fidelity(guess: Tensor, truth: Tensor) -> Fidelity:
    """All the figures that need no pool. Raises ValueError where the shapes differ or are no images."""
    return Fidelity(
        mse(guess, truth), psnr(guess, truth), ssim(guess, truth), correlation(guess, truth), affine_mse(guess, truth)
    )


def mse(guess: Tensor, truth: Tensor) -> Tensor:
    """(n,): mean squared error a pixel."""
    guess, truth = _clamped(guess, truth)
    return (guess - truth).square().flatten(1).mean(1)


def psnr(guess: Tensor, truth: Tensor) -> Tensor:
    """(n,): peak signal-to-noise ratio in decibel, an image each (their mean is not the PSNR of the mean error)."""
    return -10 * mse(guess, truth).clamp_min(1e-12).log10()


def ssim(guess: Tensor, truth: Tensor) -> Tensor:
    """(n,): structural similarity, averaged over channels and over the pixels whose window lies inside the image.

    An image smaller than the window (8x8 digits) is mirrored at its border instead, and all its pixels count.
    """
    x, y = _clamped(guess, truth)
    rows, columns = _blur(x.shape[2], x), _blur(x.shape[3], x)

    def blurred(t: Tensor) -> Tensor:
        return rows @ t @ columns.T

    mx, my = blurred(x), blurred(y)
    vx, vy, vxy = blurred(x * x) - mx * mx, blurred(y * y) - my * my, blurred(x * y) - mx * my
    c1, c2 = K1**2, K2**2
    index = (2 * mx * my + c1) * (2 * vxy + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))
    edge = WINDOW // 2 if min(x.shape[2:]) > WINDOW - 1 else 0
    inside = index[..., edge : x.shape[2] - edge, edge : x.shape[3] - edge]
    return inside.flatten(1).mean(1)


def correlation(guess: Tensor, truth: Tensor) -> Tensor:
    """(n,): Pearson correlation of the pixels; 0 where either image is constant."""
    guess, truth = _checked(guess, truth)
    return (_standardised(guess) * _standardised(truth)).sum(1)


def affine_mse(guess: Tensor, truth: Tensor) -> Tensor:
    """(n,): the least error a pixel over all a*guess+b, unclamped: var(truth) * (1 - correlation^2)."""
    guess, truth = _checked(guess, truth)
    variance = truth.flatten(1).var(1, correction=0)
    return variance * (1 - correlation(guess, truth).square()).clamp_min(0)


def aligned(guess: Tensor, truth: Tensor) -> Tensor:
    """The best a*guess+b for each image, for showing or for SSIM: it uses the truth, so it is a ceiling."""
    guess, truth = _checked(guess, truth)
    g, t = guess.flatten(1), truth.flatten(1)
    centred = g - g.mean(1, keepdim=True)
    slope = (centred * t).sum(1, keepdim=True) / centred.square().sum(1, keepdim=True).clamp_min(1e-12)
    return (t.mean(1, keepdim=True) + slope * centred).reshape(truth.shape).clamp(0, 1)


def reidentified(guess: Tensor, pool: Tensor, index: Tensor, *, by: By = "l2") -> Tensor:
    """(n,): 1 where the nearest image of `pool` (N, ...) is the true one, pool[index]; a tie counts its share.

    Chance is 1/N. by="correlation" for attacks up to an affine change. A constant guess cannot win by a tie.
    """
    if len(guess) != len(index) or guess.shape[1:] != pool.shape[1:]:
        raise ValueError(f"expected guesses like the pool {tuple(pool.shape)} and an index each, got "
                         f"{tuple(guess.shape)} and {tuple(index.shape)}")  # fmt: skip
    if by == "l2":
        points, candidates = guess.clamp(0, 1).flatten(1), pool.flatten(1)
        offset = candidates.square().sum(1)
    else:
        points, candidates = _standardised(guess), _standardised(pool)
        offset = torch.zeros(len(pool), dtype=pool.dtype, device=pool.device)
    hits = []
    for rows, truth in zip(torch.split(points, CHUNK), torch.split(index, CHUNK), strict=True):
        # nearness up to a constant of the row: 2<g,p> - |p|^2 for Euclid, <g,p> for correlation
        nearness = 2 * rows @ candidates.T - offset
        own = nearness.gather(1, truth[:, None])
        ties = (nearness == own).sum(1)
        hits.append((nearness <= own).all(1) / ties)
    return torch.cat(hits) if hits else torch.empty(0)


def feature_cosine(guess: Tensor, truth: Tensor) -> Tensor:
    """(n,): cosine of the features (n, d) that an independently trained classifier gives to guess and truth."""
    return torch.nn.functional.cosine_similarity(guess.flatten(1), truth.flatten(1), dim=1)


def _checked(guess: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    if guess.shape != truth.shape or truth.ndim != 4:
        raise ValueError(
            f"expected two sets of images (n, channels, height, width), got {tuple(guess.shape)} and "
            f"{tuple(truth.shape)}"
        )
    if not (torch.isfinite(guess).all() and torch.isfinite(truth).all()):
        raise ValueError("expected finite pixels, got NaN or infinity")
    return guess.double(), truth.double()


def _clamped(guess: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    guess, truth = _checked(guess, truth)
    return guess.clamp(0, 1), truth.clamp(0, 1)


def _standardised(images: Tensor) -> Tensor:
    """(n, pixels) of unit length and zero mean; zeros where the image is constant."""
    flat = images.flatten(1)
    centred = flat - flat.mean(1, keepdim=True)
    length = centred.norm(dim=1, keepdim=True)
    return torch.where(length > 1e-9, centred / length.clamp_min(1e-12), 0)


@cache
def _taps() -> tuple[float, ...]:
    offsets = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    weights = torch.exp(-offsets.square() / (2 * SIGMA**2))
    return tuple((weights / weights.sum()).tolist())


def _blur(size: int, like: Tensor) -> Tensor:
    """(size, size): the Gaussian window along one axis as a matrix, borders mirrored (d c b a | a b c d)."""
    matrix = torch.zeros(size, size, dtype=like.dtype)
    for row in range(size):
        for tap, weight in enumerate(_taps()):
            at = (row + tap - WINDOW // 2) % (2 * size)
            matrix[row, at if at < size else 2 * size - 1 - at] += weight
    return matrix.to(like.device)
