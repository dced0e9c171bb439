"""SplitGuard: a server that trains the task minds wrong labels, one that does not look at them does not."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from secsplit.defenses import Noise, Outgoing
from secsplit.defenses.splitguard import Pile, SplitGuard, SplitGuardSpec, score
from secsplit.errors import PeerError, RunError
from secsplit.message import Kind, Stamp
from secsplit.topologies import named


def pile(gradients: list[torch.Tensor]) -> Pile:
    kept = Pile()
    for gradient in gradients:
        kept.add(gradient)
    return kept


def session(*, honest: bool, steps: int, **options: object) -> tuple[SplitGuard, nn.Module, list[bool]]:
    """A client's linear bottom taught by a server with, or without, regard to labels."""
    torch.manual_seed(0)
    bottom, top = nn.Linear(8, 6), nn.Linear(6, 3)
    optimizer = torch.optim.Adam(bottom.parameters(), 3e-3)
    theirs = torch.optim.Adam(top.parameters(), 3e-3)
    host = SimpleNamespace(
        name="c", inputs=True, modules={"bottom": bottom}, optimizers={"bottom": optimizer}, labels={}
    )
    spec = SplitGuardSpec.model_validate({"edge": "bottom->top", "fakes": 0.2, **options})
    guard = SplitGuard(spec, Noise.predictable_for_testing_only(5), 3)
    guard.prepare(host)
    wanted, faked = torch.randn(6), []
    for step in range(steps):
        x = torch.randn(64, 8)
        y = x[:, :3].argmax(1)
        guard.begin(Stamp(step), torch.arange(64))
        optimizer.zero_grad(set_to_none=True)
        h = bottom(x)
        sent = guard.outgoing(Outgoing(Kind.LABELS, "loss", Stamp(step), y, y, torch.arange(64), "server"))
        faked.append(not torch.equal(sent, y))
        assert not faked[-1] or bool((sent != y).all())
        leaf = h.detach().requires_grad_()
        loss = F.cross_entropy(top(leaf), sent) if honest else (leaf - wanted).square().mean()
        theirs.zero_grad()
        loss.backward()
        theirs.step()
        h.backward(leaf.grad)
        before = bottom.weight.detach().clone()
        optimizer.step()
        assert torch.equal(bottom.weight.detach(), before) == faked[-1]  # wrong labels teach the client nothing
    return guard, bottom, faked


def test_an_honest_server_scores_high() -> None:
    guard, _, faked = session(honest=True, steps=400)
    assert sum(faked) == pytest.approx(80, abs=25)
    assert sum(guard.scores[-10:]) / 10 > 0.9


def test_a_hijacker_is_stopped() -> None:
    with pytest.raises(PeerError, match="do not mind wrong labels"):
        session(honest=False, steps=400)


def test_watching_does_not_stop() -> None:
    guard, _, _ = session(honest=False, steps=200, action="watch")
    assert sum(guard.scores[-10:]) / 10 < 0.9


def test_score_of_likes_and_unlikes() -> None:
    coins = torch.Generator().manual_seed(0)
    regular = [torch.ones(10) + 0.1 * torch.randn(10, generator=coins) for _ in range(8)]
    opposite = [-5 * torch.ones(10) + 0.1 * torch.randn(10, generator=coins) for _ in range(4)]
    even, odd = pile(regular[::2]), pile(regular[1::2])
    assert score(pile(opposite), even, odd, 7.0, 1.0) > 0.99
    assert score(pile(regular[:4]), even, odd, 7.0, 1.0) < 0.7


def test_needs_labels_to_send() -> None:
    with pytest.raises(RunError, match=r"sends no labels.*hijack-detector"):
        SplitGuardSpec(edge="bottom->middle").fits(named("u_shaped"), [], 1)
    with pytest.raises(RunError, match="class labels"):
        SplitGuardSpec(edge="bottom->top").build(Noise.fresh(), {"y": 0})
