"""The sampler against its laws, on ten million draws, and the rules that keep its key and its draws safe."""

from __future__ import annotations

import math
import pickle
from pathlib import Path

import mpmath
import numpy as np
import pytest
import torch
from scipy import stats

from secsplit.defenses import noise as module
from secsplit.defenses.noise import COLUMNS, NORMAL_TV, ROUNDED_TV, UNITS, Noise, _alias_table, rounded_weights
from secsplit.errors import RunError

N = 10_000_000
SCALE = 1300.0
SOURCE = Noise.predictable_for_testing_only(7)


@pytest.fixture(scope="module", params=["normal", "rounded"])
def draws(request: pytest.FixtureRequest) -> np.ndarray:
    """Ten million draws, in standard deviations."""
    if request.param == "normal":
        return SOURCE.normal("draws", (N,)).double().numpy()
    return SOURCE.rounded_normal("draws", (N,), SCALE).double().numpy() / SCALE


def test_moments(draws: np.ndarray) -> None:
    x2 = draws * draws
    for value, expected, variance in (
        (draws.mean(), 0, 1),
        (x2.mean(), 1, 2),
        ((x2 * draws).mean(), 0, 15),
        ((x2 * x2).mean(), 3, 96),
    ):
        assert abs(value - expected) < 4.5 * math.sqrt(variance / N)


def test_shape(draws: np.ndarray) -> None:
    """Chi-square over 401 bins between -4 and 4; bin edges lie between the grid's points."""
    edges = (np.round(np.linspace(-4, 4, 400) * SCALE) + 0.5) / SCALE
    counted = np.histogram(draws, np.concatenate([[-np.inf], edges, [np.inf]]))[0]
    expected = np.diff(stats.norm.cdf(np.concatenate([[-np.inf], edges, [np.inf]]))) * N
    assert stats.chisquare(counted, expected * counted.sum() / expected.sum()).pvalue > 1e-4


@pytest.mark.parametrize("beyond", [3.0, 4.0, 5.0])
def test_tails(draws: np.ndarray, beyond: float) -> None:
    edge = (round(beyond * SCALE) + 0.5) / SCALE
    for side in (draws > edge, draws < -edge):
        assert stats.binomtest(int(side.sum()), N, float(stats.norm.sf(edge))).pvalue > 1e-4


def test_neighbours_are_independent(draws: np.ndarray) -> None:
    """Of the draws, and of their magnitudes: neighbours, and the two halves that Box-Muller makes of one point."""
    for f in (draws, (np.abs(draws) - math.sqrt(2 / math.pi)) / math.sqrt(1 - 2 / math.pi)):
        for lag in (1, 2, 64, N // 2):
            assert abs(float(f[:-lag] @ f[lag:])) < 4.5 * math.sqrt(N - lag)


def test_names_are_independent() -> None:
    a, b = SOURCE.normal("a", (1_000_000,)), SOURCE.normal("b", (1_000_000,))
    assert abs(float((a * b).mean())) < 4.5e-3
    c = SOURCE.rounded_normal("a", (1_000_000,), 1024.0).float() / 1024
    assert abs(float((a * c).mean())) < 4.5e-3


def test_the_float_law_ends_where_it_says() -> None:
    least = 2.0**-54 * 2.0**-31
    assert 10.7 < math.sqrt(-2 * math.log(least)) < 10.9
    assert 2 * stats.norm.sf(math.sqrt(-2 * math.log(least))) <= NORMAL_TV


def test_the_float_law_does_not_end_where_31_bits_do() -> None:
    """Two values a few deviations apart must not be told apart by where the noise of the one can no longer reach."""
    whole = torch.zeros(10_000, dtype=torch.int32)
    radius = whole.float() + 0.5
    SOURCE._lengthen("end", whole, radius)
    assert stats.kstest(radius.numpy(), "uniform").pvalue > 1e-3
    assert float((radius.double() * 2.0**-31).log().mul(-2).sqrt().max()) > 7.5


@pytest.mark.parametrize("scale", [256.0, 1024.0, 1999.7])
def test_rounded_weights_are_the_rounded_normal(scale: float) -> None:
    """Total variation distance against forty digits, on every 23rd point."""
    weights, low = rounded_weights(scale)
    assert sum(weights) == COLUMNS * UNITS
    with mpmath.workdps(40):
        root = scale * mpmath.sqrt(2)
        apart = [
            abs((mpmath.erfc((k - 0.5) / root) - mpmath.erfc((k + 0.5) / root)) / 2 - mpmath.mpf(w) / (COLUMNS * UNITS))
            for k, w in zip(range(0, -low, 23), weights[-low::23], strict=False)
        ]
        assert 23 * float(sum(apart)) < ROUNDED_TV / 2


@pytest.mark.parametrize("scale", [256.0, 777.7, 2048.0])
def test_alias_table_holds_the_weights_exactly(scale: float) -> None:
    weights, low = rounded_weights(scale)
    keep, alias, start = _alias_table(scale)
    assert start == low
    got = [0] * COLUMNS
    for column, (kept, other) in enumerate(zip(keep.tolist(), alias.tolist(), strict=True)):
        got[column] += kept
        got[other] += UNITS - kept
    assert got == weights + [0] * (COLUMNS - len(weights))


def test_a_name_always_draws_the_same() -> None:
    assert torch.equal(SOURCE.normal("x", (5, 7)), SOURCE.normal("x", (5, 7)))
    assert torch.equal(SOURCE.words("x", 10), SOURCE.words("x", 1000)[:10])
    assert not torch.equal(SOURCE.words("x", 10), SOURCE.words("y", 10))
    assert not torch.equal(SOURCE.words("x", 10), Noise.predictable_for_testing_only(8).words("x", 10))


def test_blocks_of_keystream_join(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = SOURCE.words("long", 1000)
    monkeypatch.setattr(module, "_ZEROS", memoryview(bytes(64)))
    assert torch.equal(SOURCE.words("long", 1000), whole)


def test_odd_and_empty_shapes() -> None:
    assert SOURCE.normal("odd", (3, 3)).shape == (3, 3)
    assert SOURCE.normal("none", (0,)).shape == (0,)
    assert SOURCE.rounded_normal("none", (0, 4), 1024.0).shape == (0, 4)


def test_uniform_fills_its_range() -> None:
    u = SOURCE.uniform("u", 1_000_000)
    assert 0 <= float(u.min()) < 1e-5
    assert 1 - 1e-5 < float(u.max()) < 1
    assert stats.kstest(u.numpy(), "uniform").pvalue > 1e-4


@pytest.mark.parametrize("scale", [0.0, -1.0, 100.0, 4096.0, math.nan])
def test_scales_off_the_table_are_refused(scale: float) -> None:
    with pytest.raises(ValueError, match="grid steps"):
        SOURCE.rounded_normal("x", (1,), scale)


def test_the_key_does_not_show() -> None:
    key = bytes(range(32))
    secret = Noise(key)
    assert repr(secret) == "Noise(...)"
    assert key.hex() not in secret.fingerprint
    with pytest.raises(TypeError):
        pickle.dumps(secret)


def test_fresh_keys_differ() -> None:
    assert Noise.fresh().fingerprint != Noise.fresh().fingerprint


def test_kept_key_is_private_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "noise.key"
    first = Noise.kept(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert Noise.kept(path).fingerprint == first.fingerprint


def test_bad_key_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "noise.key"
    Noise.kept(path)
    path.chmod(0o644)
    with pytest.raises(RunError, match="0600"):
        Noise.kept(path)
    path.chmod(0o600)
    path.write_bytes(b"short")
    with pytest.raises(RunError, match="got 5"):
        Noise.kept(path)
