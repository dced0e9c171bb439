"""Noise that a peer can neither predict nor average away: drawn from the operating system's randomness, by name.

A key of 32 bytes comes from the operating system; each draw is a ChaCha20 keystream under a key derived from it and
from the NAME of what is released. So a resend, or a party resumed after a crash, gets the same noise again, and there
is no generator state to lose; the key is the state, and whoever reads it can remove the noise. The seed of a run
never enters.

Two laws. `normal` is Box-Muller in float32: fast, but floating-point numbers near a value are unevenly spaced, so the
low bits of a sum can betray its addend (Mironov, CCS 2012): its guarantee is that of real numbers, not of the bits
sent. `rounded_normal` has no such hole: integers, P(k) = Phi((k + 1/2)/s) - Phi((k - 1/2)/s), drawn from integers
alone by the alias method (Walker 1977). A message on the integer grid plus this noise is the rounding of message plus
Gaussian, hence post-processing of it: the exact Gaussian bound and its composition hold as they stand. (The discrete
Gaussian of Canonne, Kamath, Steinke 2020, proportional to exp(-k^2/2s^2), has this shape to a relative 1/(24 s^2),
but only a concentrated-DP bound.) Distance from the stated law: `NORMAL_TV` and `ROUNDED_TV` a draw, to be added to
delta times (1 + e^epsilon).
"""

from __future__ import annotations

import hmac
import math
import os
from functools import lru_cache
from pathlib import Path
from typing import NoReturn

import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from torch import Tensor

from secsplit.errors import EnvironmentFault, RunError

KEY_BYTES = 32
LABEL = b"secsplit/noise/1"
BLOCK = 1 << 20  # words of keystream at a time, so that memory stays near the cache

COLUMNS = 1 << 16  # of the alias table
MIN_SCALE, MAX_SCALE = 256.0, 2048.0  # of the rounded normal, in grid steps
TAIL = 12.0  # standard deviations kept; beyond lies 4e-33
UNITS = 1 << 47  # of probability in a column; 16 + 47 bits a draw

NEAR_END = 256  # of 2^31: draws whose radius gets more bits
NORMAL_TV = 4e-27  # two-sided mass beyond 10.75 standard deviations, where the float32 Box-Muller ends
ROUNDED_TV = 2.0**-46  # rounding of the table's probabilities, and the tail


class Noise:
    """A secret key, and the draws made under it. It has no repr, no pickle and no log line."""

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"noise key: expected {KEY_BYTES} bytes, got {len(key)}")
        self._key = bytes(key)

    @classmethod
    def fresh(cls) -> Noise:
        """A new key from the operating system, kept nowhere: a crash loses it, and no resume can go on from it."""
        return cls(os.urandom(KEY_BYTES))

    @classmethod
    def kept(cls, path: Path) -> Noise:
        """The key kept in `path` (mode 0600), made on first use and on disk before anything is drawn from it."""
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            return cls._read(path)
        except OSError as error:
            raise EnvironmentFault(f"{path}: cannot keep the noise key here: {error.strerror}") from None
        with os.fdopen(descriptor, "wb") as file:
            key = os.urandom(KEY_BYTES)
            file.write(key)
            file.flush()
            os.fsync(file.fileno())
        return cls(key)

    @classmethod
    def _read(cls, path: Path) -> Noise:
        mode = path.stat().st_mode & 0o777
        if mode & 0o077:
            raise RunError(f"{path}: mode {mode:04o} lets others read the noise key; expected 0600: chmod 600 {path}")
        key = path.read_bytes()
        if len(key) != KEY_BYTES:
            raise RunError(f"{path}: expected a noise key of {KEY_BYTES} bytes, got {len(key)}; restore it from backup")
        return cls(key)

    @classmethod
    def predictable_for_testing_only(cls, seed: int) -> Noise:
        """Noise that anyone who knows `seed` can remove: to compare two drivers bit by bit, and for nothing else."""
        return cls(hmac.digest(b"for testing only", str(seed).encode(), "sha256"))

    @property
    def fingerprint(self) -> str:
        """Which key this is, without telling it."""
        return hmac.digest(self._key, LABEL + b"/fingerprint", "sha256")[:8].hex()

    def __repr__(self) -> str:
        return "Noise(...)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a noise key is never pickled")

    # draws

    def words(self, name: str, n: int, *, purpose: str = "words") -> Tensor:
        """(n,) int64, uniform over all 2^64 bit patterns; the first words of a name are the same whatever n."""
        words = torch.empty(n, dtype=torch.int64)
        self._fill(f"{purpose}|{name}", words)
        return words

    def uniform(self, name: str, n: int) -> Tensor:
        """(n,) float64 in [0, 1), 53 bits each."""
        return (self.words(name, n, purpose="uniform") & ((1 << 53) - 1)).double() * 2.0**-53

    def normal(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Standard normal float32 of that shape, by Box and Muller; no value exceeds 10.8.

        31 bits give a radius of at most 6.66. A shift of a few standard deviations would show beyond that, and cost
        more than delta; so the few draws near the end get 53 bits more.
        """
        n = math.prod(shape)
        half = (n + 1) // 2
        bits = torch.empty(2, half, dtype=torch.int32)
        self._fill(f"normal|{name}", bits)
        whole = bits[0].bitwise_and_(0x7FFFFFFF)
        radius = whole.to(torch.float32).add_(0.5)
        if half and int(whole.min()) < NEAR_END:
            self._lengthen(name, whole, radius)
        radius.mul_(2.0**-31).log_().mul_(-2.0).clamp_(min=0.0).sqrt_()
        angle = bits[1].to(torch.float32).mul_(2.0 * math.pi * 2.0**-32)
        drawn = torch.empty(2, half)
        torch.mul(radius, torch.sin(angle), out=drawn[0])
        torch.mul(radius, angle.cos_(), out=drawn[1])
        return drawn.view(-1)[:n].view(shape)

    def _lengthen(self, name: str, whole: Tensor, radius: Tensor) -> None:
        """Give the draws below NEAR_END a fraction of their own: whole, radius (n,)."""
        few = (whole < NEAR_END).nonzero().flatten()
        radius[few] = (whole[few] + self.uniform(f"normal|end|{name}", len(few)) + 2.0**-54).float()

    def rounded_normal(self, name: str, shape: tuple[int, ...], scale: float) -> Tensor:
        """int64 of that shape: N(0, scale^2) rounded to integers; scale between 256 and 2048 grid steps."""
        if not MIN_SCALE <= scale <= MAX_SCALE:
            raise ValueError(f"scale: expected {MIN_SCALE:g} to {MAX_SCALE:g} grid steps, got {scale}")
        keep, alias, low = _alias_table(scale)
        words = self.words(name, math.prod(shape), purpose=f"rounded-normal|{scale!r}")
        column = words & (COLUMNS - 1)
        unit = (words >> 16) & (UNITS - 1)
        drawn = torch.where(unit < keep[column], column, alias[column])
        return drawn.add_(low).view(shape)

    def _fill(self, name: str, out: Tensor) -> None:
        """Fill a contiguous integer tensor with the keystream of that name."""
        key = hmac.digest(self._key, LABEL + b"|" + name.encode(), "sha256")
        stream = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()
        room = out.view(-1).numpy().data.cast("B")
        for start in range(0, len(room), len(_ZEROS)):
            part = room[start : start + len(_ZEROS)]
            stream.update_into(_ZEROS[: len(part)], part)


_ZEROS = memoryview(bytes(8 * BLOCK))


@lru_cache(maxsize=8)
def _alias_table(scale: float) -> tuple[Tensor, Tensor, int]:
    """(keep, alias, low): column c gives low + c where its unit is below keep[c], else low + alias[c]."""
    weights, low = rounded_weights(scale)
    share = UNITS  # a column's part of the 2^63 units
    left = weights + [0] * (COLUMNS - len(weights))
    keep, alias = [share] * COLUMNS, list(range(COLUMNS))
    small = [c for c, w in enumerate(left) if w < share]
    large = [c for c, w in enumerate(left) if w >= share]
    while small:
        c, donor = small.pop(), large[-1]
        keep[c], alias[c] = left[c], donor
        left[donor] -= share - left[c]
        if left[donor] < share:
            small.append(large.pop())
            if not large:
                break
    return torch.tensor(keep), torch.tensor(alias), low


def rounded_weights(scale: float) -> tuple[list[int], int]:
    """P(k) of the rounded normal as whole parts of 2^63, for k = low, low + 1, ...; they sum to 2^63 exactly.

    P(k) = phi(x)/s (1 + He2(x)/(24 s^2) + He4(x)/(1920 s^4)), x = k/s: the midpoint rule with its corrections, whose
    next term is below 1e-13 of P(k) at the tail and 1e-19 in the middle for s >= 256.
    """
    high = min(int(TAIL * scale), (COLUMNS - 1) // 2)
    total = COLUMNS * UNITS
    weights = [int(_cell(k / scale, scale) * total + 0.5) for k in range(-high, high + 1)]
    weights[high] += total - sum(weights)
    return weights, -high


def _cell(x: float, s: float) -> float:
    he2 = x * x - 1
    he4 = x**4 - 6 * x * x + 3
    density = math.exp(-x * x / 2) / (math.sqrt(2 * math.pi) * s)
    return density * (1 + he2 / (24 * s * s) + he4 / (1920 * s**4))
