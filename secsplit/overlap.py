"""How well a mask is met: Dice 1945 and Jaccard 1912 (IoU), the mean over images, each with an interval.

An image whose mask and guess are both empty is met in full. Intervals are percentiles of a bootstrap over images.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from secsplit.diagnosis import Figure


@dataclass(frozen=True)
class Overlap:
    """Of n images."""

    n: int
    dice: Figure
    iou: Figure


def overlap(
    guess: Tensor, truth: Tensor, *, coins: torch.Generator, resamples: int = 1000, confidence: float = 0.95
) -> Overlap:
    """Judge guessed masks (n, height, width) against the true ones, both of 0 and 1. Raises ValueError."""
    if guess.shape != truth.shape or guess.ndim != 3 or not len(guess):
        raise ValueError(f"expected masks (n, height, width) of one shape, got {guess.shape} and {truth.shape}")
    ours, theirs = guess.flatten(1).bool(), truth.flatten(1).bool()
    both, either = (ours & theirs).sum(1).double(), (ours | theirs).sum(1).double()
    empty = either == 0
    dice = torch.where(empty, 1.0, 2 * both / (both + either).clamp(min=1))
    iou = torch.where(empty, 1.0, both / either.clamp(min=1))
    drawn = torch.randint(len(guess), (resamples, len(guess)), generator=coins)
    tails = 100 * (1 - confidence) / 2
    figures = []
    for each in (dice, iou):
        low, high = np.percentile(each[drawn].mean(1).numpy(), [tails, 100 - tails])
        figures.append(Figure(float(each.mean()), float(low), float(high)))
    return Overlap(len(guess), *figures)
