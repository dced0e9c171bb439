"""Lengths that depend on the label give it away; lengths of one size do not; the wire is the record layer's own."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from attacks.base import NotApplicable
from attacks.traffic import MessageLengths
from secsplit.message import Stamp
from secsplit.threat import Known, Passage, Threat, View
from secsplit.topologies import vanilla

N = 600


def tapped(length: Callable[[int, int], int]) -> tuple[View, torch.Tensor]:
    """One record a message, three epochs; length(label, position) bytes."""
    coins = torch.Generator().manual_seed(0)
    y = torch.randint(3, (N,), generator=coins)
    wire = tuple(
        Passage("hospital", "compute", length(int(y[i % N]), i % N), i, Stamp(i, 0, i // N, 0, True))
        for i in range(3 * N)
    )
    rows = torch.arange(60)
    clues = Known({}, {"y": y[rows]}, torch.zeros_like(rows), rows)
    view = View(
        vanilla(), (), {}, {}, {}, {"y": 3}, lambda stamp: torch.tensor([stamp.step % N]), clues=clues, wire=wire
    )
    return view, y


def share(view: View, y: torch.Tensor) -> float:
    guess = MessageLengths().infer(view, coins=torch.Generator())
    assert guess.labels is not None
    assert len(guess.position) == N - 60
    return float((guess.labels == y[guess.position]).double().mean())


def test_lengths_that_follow_the_label_tell_it():
    assert share(*tapped(lambda label, _: 1000 + 64 * label)) == 1.0
    noisy = tapped(lambda label, i: 1000 + 64 * (label if i % 3 else i % 2))
    assert 0.6 < share(*noisy) < 1.0


@pytest.mark.parametrize("length", [lambda label, i: 4096, lambda label, i: 64 * (i % 7)], ids=["padded", "unrelated"])
def test_other_lengths_do_not(length: Callable[[int, int], int]):
    assert share(*tapped(length)) < 0.45


def test_where_it_applies():
    view, _ = tapped(lambda label, i: 64)
    with pytest.raises(NotApplicable, match="saw no message pass"):
        MessageLengths().infer(replace(view, wire=()), coins=torch.Generator())
    with pytest.raises(NotApplicable, match="labels of a few records"):
        MessageLengths().infer(replace(view, clues=None), coins=torch.Generator())
    assert "reads its messages" in str(MessageLengths().why_not(vanilla(), Threat("t", ("server",))))
