"""The image figures, against scikit-image and against the slow obvious way."""

import numpy as np
import pytest
import torch
from skimage.metrics import mean_squared_error, peak_signal_noise_ratio, structural_similarity

from audits import images


def pair(shape=(6, 1, 28, 28), noise=0.15, seed=0):
    coins = torch.Generator().manual_seed(seed)
    truth = torch.nn.functional.avg_pool2d(torch.rand(shape, generator=coins), 3, 1, 1)
    return (truth + noise * torch.randn(shape, generator=coins)).clamp(0, 1), truth


@pytest.mark.parametrize("shape", [(3, 1, 28, 28), (2, 3, 32, 20), (2, 1, 11, 11)], ids=str)
def test_agrees_with_scikit_image(shape):
    guess, truth = pair(shape)
    got = images.fidelity(guess, truth)
    for i in range(len(truth)):
        a, b = guess[i].numpy().astype(np.float64), truth[i].numpy().astype(np.float64)
        assert got.mse[i].item() == pytest.approx(mean_squared_error(a, b), rel=1e-6)
        assert got.psnr[i].item() == pytest.approx(peak_signal_noise_ratio(b, a, data_range=1.0), rel=1e-6)
        wang = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
        expected = structural_similarity(a, b, channel_axis=0, **wang)
        assert got.ssim[i].item() == pytest.approx(expected, abs=1e-6)
        assert got.correlation[i].item() == pytest.approx(np.corrcoef(a.ravel(), b.ravel())[0, 1], rel=1e-6)


def test_ssim_of_small_images_is_the_mirrored_window():
    guess, truth = pair((4, 1, 8, 8))
    a, b = guess[0, 0].numpy().astype(np.float64), truth[0, 0].numpy().astype(np.float64)
    # the same figure on the image mirrored by hand: scikit-image drops the 5-pixel frame, leaving the 8x8 inside
    wide = [np.pad(t, 5, mode="symmetric") for t in (a, b)]
    expected = structural_similarity(
        *wide, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1.0
    )
    assert images.ssim(guess, truth)[0].item() == pytest.approx(expected, abs=1e-6)


def test_affine_mse_is_the_least_squares_fit():
    guess, truth = pair()
    for i, got in enumerate(images.affine_mse(guess, truth)):
        design = np.stack([guess[i].double().ravel(), np.ones(28 * 28)], 1)
        residual = np.linalg.lstsq(design, truth[i].double().ravel().numpy(), rcond=None)[1][0] / (28 * 28)
        assert got.item() == pytest.approx(residual, rel=1e-6)
    assert images.affine_mse(1 - truth, truth).max() < 1e-6
    assert images.mse(images.aligned(truth * 0.1 + 0.3, truth), truth).max() < 1e-10


def test_reidentification_is_the_nearest_neighbour():
    guess, pool = pair((40, 1, 8, 8), noise=0.3)
    index = torch.arange(40)
    nearest = torch.cdist(guess.flatten(1), pool.flatten(1)).argmin(1)
    assert torch.equal(images.reidentified(guess, pool, index), (nearest == index).float())
    assert images.reidentified(0.2 * guess + 0.4, pool, index, by="correlation").sum() == pytest.approx(
        images.reidentified(guess, pool, index, by="correlation").sum()
    )


def test_a_guess_that_says_nothing_is_at_chance():
    _, pool = pair((50, 1, 8, 8))
    index = torch.arange(50)
    mean = pool.mean(0, keepdim=True).expand_as(pool)
    flat = torch.full_like(pool, 0.5)
    assert images.reidentified(mean, pool, index).mean() == pytest.approx(1 / 50)
    assert images.reidentified(flat, pool, index, by="correlation").mean() == pytest.approx(1 / 50)
    assert images.correlation(flat, pool).abs().max() == 0


def test_bad_input_is_named():
    guess, truth = pair()
    with pytest.raises(ValueError, match="expected two sets of images"):
        images.mse(guess[:2], truth)
    with pytest.raises(ValueError, match="finite"):
        images.ssim(torch.full_like(truth, float("nan")), truth)
    with pytest.raises(ValueError, match="index"):
        images.reidentified(guess, truth, torch.arange(2))
