"""The label-cosine gap, by hand and over steps."""

from __future__ import annotations

import pytest
import torch

from secsplit.defenses import Incoming, Noise
from secsplit.defenses.hijack import Hijack, HijackSpec, label_gap
from secsplit.errors import PeerError, RunError
from secsplit.message import Kind, Stamp
from secsplit.topologies import named

EDGE = "bottom->top"


def came(g: torch.Tensor, y: torch.Tensor | None, kind: Kind = Kind.CUT_GRAD) -> Incoming:
    return Incoming(kind, EDGE, Stamp(), g, y, torch.arange(len(g)), "server")


def honest(n: int = 40, *, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    coins = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 4, (n,), generator=coins)
    return torch.eye(4)[y] + 0.3 * torch.randn(n, 4, generator=coins), y


def hijack(defense: Hijack, *, steps: int) -> None:
    """Gradients that follow something else than the labels."""
    for seed in range(steps):
        g, y = honest(seed=1000 + seed)
        defense.incoming(came(g, y.flip(0)))


def watcher(**options: object) -> Hijack:
    return HijackSpec.model_validate({"edge": EDGE, **options}).build(Noise.fresh(), {"y": 4})


def test_gap_by_hand() -> None:
    g = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0], [0.0, 0.0]])
    assert label_gap(g, torch.tensor([0, 0, 1, 1])) == pytest.approx(1.0)  # a zero row has no direction
    assert label_gap(g, torch.tensor([0, 1, 0, 1])) == pytest.approx(0.0 - 0.5)
    assert label_gap(g, torch.tensor([0, 0, 0, 0])) is None
    assert label_gap(g, torch.tensor([0, 1, 2, 3])) is None
    assert label_gap(g, torch.tensor([0, 0, 1, -1])) == pytest.approx(1.0)
    assert label_gap(torch.zeros(4, 2), torch.tensor([0, 0, 1, 1])) is None


def test_honest_gradients_pass() -> None:
    defense = watcher()
    for seed in range(50):
        g, y = honest(seed=seed)
        assert torch.equal(defense.incoming(came(g, y)), g)
    assert defense.gap > 0.6
    assert len(defense.gaps) == 20


def test_gradients_that_ignore_labels_stop_the_party() -> None:
    with pytest.raises(PeerError, match=r"server.*do not follow the labels.*stopped"):
        hijack(defense := watcher(), steps=50)
    assert len(defense.gaps) == 10


def test_a_server_that_turns_is_caught_within_a_window() -> None:
    defense = watcher()
    for seed in range(30):
        defense.incoming(came(*honest(seed=seed)))
    with pytest.raises(PeerError):
        hijack(defense, steps=20)


def test_watching_only_keeps_the_gaps() -> None:
    defense = watcher(action="watch")
    hijack(defense, steps=30)
    assert abs(defense.gap) < 0.1


def test_other_messages_and_missing_labels_are_left_alone() -> None:
    defense = watcher(patience=1)
    g, y = honest(seed=0)
    defense.incoming(came(g, y.flip(0), Kind.SMASHED))
    defense.incoming(came(g, None))
    assert defense.gaps == []


def test_goes_on_after_a_resume() -> None:
    one, two = watcher(patience=100), watcher(patience=100)
    for seed in range(7):
        one.incoming(came(*honest(seed=seed)))
    two.restore(one.state())
    assert two.gaps == one.gaps
    assert two._seen == 7


def test_needs_labels_where_it_stands() -> None:
    with pytest.raises(RunError, match="holds no labels"):
        HijackSpec(edge=EDGE).fits(named("vanilla", labels="server"), [], 1)
    with pytest.raises(RunError, match="no cut 'x->y'"):
        HijackSpec(edge="x->y").fits(named("vanilla"), [], 1)
    HijackSpec(edge=EDGE).fits(named("vanilla"), [], 1)
