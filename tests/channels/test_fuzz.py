"""The kept fuzzing corpus, and random bytes, through the targets that `python -m fuzz` explores by coverage."""

import random

import pytest

from fuzz.targets import CORPUS, TARGETS


@pytest.mark.parametrize("target", TARGETS)
def test_the_kept_corpus(target: str) -> None:
    inputs = sorted((CORPUS / target).iterdir())
    assert inputs
    for path in inputs:
        TARGETS[target](path.read_bytes())


@pytest.mark.parametrize("target", TARGETS)
def test_random_bytes(target: str) -> None:
    coins = random.Random(20261122)
    for _ in range(300):
        TARGETS[target](coins.randbytes(coins.choice([0, 1, 2, 16, 100, 3000])))
