"""Randomised response: the law, drawn once, and what it does and does not cover."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError
from scipy import stats

from secsplit.accounting import LABELS, label_bound
from secsplit.defenses import Noise, Outgoing
from secsplit.defenses.label_dp import LabelDP, LabelDPSpec
from secsplit.errors import RunError
from secsplit.message import Kind, Stamp
from secsplit.topologies import named

N, K = 200_000, 10
SOURCE = Noise.predictable_for_testing_only(3)


def built(epsilon: float = 2.0, classes: int = K) -> LabelDP:
    return LabelDP(LabelDPSpec(epsilon=epsilon), SOURCE, classes)


def hosted(defense: LabelDP, labels: dict[tuple[int, str], torch.Tensor]) -> SimpleNamespace:
    host = SimpleNamespace(name="c", inputs=True, modules={}, optimizers={}, labels=dict(labels))
    defense.prepare(host)
    return host


@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("epsilon", [0.5, 1.0, 2.0, 4.0])
def test_the_law(epsilon: float, classes: int) -> None:
    """Kept with e^eps / (e^eps + K - 1); otherwise every other class equally often."""
    y = torch.arange(N) % classes
    noisy = built(epsilon, classes).randomised(y, "y|0")
    kept = int((noisy == y).sum())
    assert stats.binomtest(kept, N, label_bound(epsilon, classes)).pvalue > 1e-4
    moved = ((noisy - y) % classes)[noisy != y]
    counts = torch.bincount(moved, minlength=classes)[1:].numpy()
    assert classes == 2 or stats.chisquare(counts).pvalue > 1e-4
    worst = math.log(label_bound(epsilon, classes) / ((1 - label_bound(epsilon, classes)) / (classes - 1)))
    assert worst == pytest.approx(epsilon)


def test_a_record_draws_the_same_whatever_the_others_are() -> None:
    y = torch.arange(1000) % K
    whole = built().randomised(y, "y|0")
    assert torch.equal(built().randomised(y[:10], "y|0"), whole[:10])
    assert not torch.equal(built().randomised(y, "y|1"), whole)


def test_missing_labels_stay_missing() -> None:
    assert torch.equal(built().randomised(torch.full((50,), -1), "y|0"), torch.full((50,), -1))


def test_labels_are_replaced_once_before_anything_sees_them() -> None:
    y = torch.arange(1000) % K
    host = hosted(built(), {(0, "y"): y, (1, "y"): y})
    assert not torch.equal(host.labels[0, "y"], y)
    assert not torch.equal(host.labels[0, "y"], host.labels[1, "y"])
    assert torch.equal(hosted(built(), {(0, "y"): y}).labels[0, "y"], host.labels[0, "y"])  # resumed


def out(kind: Kind, training: bool = True) -> Outgoing:
    y = torch.zeros(3, dtype=torch.int64)
    return Outgoing(kind, "loss", Stamp(training=training), y, None, torch.arange(3))


def test_what_it_covers() -> None:
    defense = built(2.0)
    hosted(defense, {(0, "y"): torch.zeros(3, dtype=torch.int64)})
    for kind in (Kind.LABELS, Kind.CUT_GRAD, Kind.OUTPUT_GRAD):
        (charge,) = defense.bounds(out(kind))
        assert (charge.protects, charge.epsilon, charge.mu) == (LABELS, 2.0, 0.0)
        assert charge.once
    assert defense.bounds(out(Kind.SMASHED)) == ()
    assert defense.bounds(out(Kind.LABELS, training=False)) == ()  # validation labels leave as they are
    assert defense.updates("bottom")[0].once == defense.bounds(out(Kind.LABELS))[0].once


def test_a_second_column_is_refused() -> None:
    spec = LabelDPSpec(epsilon=1)
    two = named("multi_task", labels="client-1")
    with pytest.raises(RunError, match="several label columns"):
        spec.fits(two, [spec], 1)
    with pytest.raises(RunError, match="randomised twice"):
        spec.fits(named("vanilla"), [spec, LabelDPSpec(epsilon=2)], 1)
    spec.fits(named("vanilla"), [spec], 1)


def test_misuse_is_refused() -> None:
    with pytest.raises(ValidationError, match="greater than 0"):
        LabelDPSpec(epsilon=0)
    with pytest.raises(RunError, match=r"no objective.*'z'"):
        LabelDPSpec(column="z", epsilon=1).role(named("vanilla"))
    with pytest.raises(RunError, match="needs classes"):
        LabelDPSpec(epsilon=1).build(SOURCE, {"y": 0})
    assert LabelDPSpec(epsilon=1).role(named("vanilla")) == "client"
    assert LabelDPSpec(epsilon=1).role(named("vanilla", labels="server")) == "server"
