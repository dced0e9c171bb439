"""Dice and IoU against their definitions, and intervals that hold what they promise."""

import pytest
import torch

from secsplit.overlap import overlap


def coins(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_figures_by_their_definitions() -> None:
    truth, guess = (torch.rand(9, 6, 6, generator=coins(seed)) < 0.4 for seed in (1, 2))
    found = overlap(guess.long(), truth.long(), coins=coins())
    dice, iou = [], []
    for a, b in zip(guess, truth, strict=True):
        ours = {tuple(place) for place in a.nonzero().tolist()}
        theirs = {tuple(place) for place in b.nonzero().tolist()}
        dice.append(2 * len(ours & theirs) / (len(ours) + len(theirs)))
        iou.append(len(ours & theirs) / len(ours | theirs))
    assert found.n == 9
    assert found.dice.value == pytest.approx(sum(dice) / 9)
    assert found.iou.value == pytest.approx(sum(iou) / 9)
    assert found.dice.low < found.dice.value < found.dice.high


def test_empty_masks_met_and_missed() -> None:
    empty, full = torch.zeros(2, 4, 4), torch.ones(2, 4, 4)
    assert overlap(empty, empty, coins=coins()).iou.value == 1.0
    assert overlap(full, empty, coins=coins()).dice.value == 0.0
    with pytest.raises(ValueError, match="of one shape"):
        overlap(empty, full[:1], coins=coins())


def test_nine_in_ten_intervals_hold_the_true_mean() -> None:
    pool_truth = torch.rand(4000, 4, 4, generator=coins(7)) < 0.5
    pool_guess = pool_truth ^ (torch.rand(4000, 4, 4, generator=coins(8)) < torch.rand(4000, 1, 1, generator=coins(9)))
    true = overlap(pool_guess, pool_truth, coins=coins(), resamples=1).dice.value
    held = 0
    for seed in range(150):
        rows = torch.randint(4000, (60,), generator=coins(seed))
        figure = overlap(
            pool_guess[rows], pool_truth[rows], coins=coins(seed + 1000), resamples=200, confidence=0.9
        ).dice
        held += figure.low <= true <= figure.high
    assert held >= 121  # fewer than 121 of 150 at 0.88, what a bootstrap of 60 holds of 0.9: one in 200
