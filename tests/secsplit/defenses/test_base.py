"""All of a party's defenses together: order, tightest bound, whose records are charged, and what a checkpoint keeps."""

from __future__ import annotations

import math
from types import SimpleNamespace

import torch
from torch import nn

from secsplit.accounting import INPUTS, LABELS
from secsplit.defenses import Defenses, Noise, Outgoing
from secsplit.defenses.dp_sgd import DPSGDSpec
from secsplit.defenses.gaussian import GaussianSpec
from secsplit.defenses.prune import PruneSpec
from secsplit.message import Kind, Stamp

EDGE = "bottom->top"
SOURCE = Noise.predictable_for_testing_only(0)


def gaussian(sigma: float) -> GaussianSpec:
    return GaussianSpec(edge=EDGE, clip=1.0, sigma=sigma)


def shield(*specs: GaussianSpec | PruneSpec | DPSGDSpec, inputs: bool = True, labels: bool = True) -> Defenses:
    module = nn.Linear(4, 4)
    made = Defenses([spec.build(SOURCE, {}) for spec in specs])
    y = {(0, "y"): torch.zeros(9, dtype=torch.int64)} if labels else {}
    optimizers = {"bottom": torch.optim.SGD(module.parameters(), 0.1)}
    made.prepare(SimpleNamespace(name="c", inputs=inputs, modules={"bottom": module}, optimizers=optimizers, labels=y))
    return made


def out(kind: Kind = Kind.SMASHED, step: int = 0) -> Outgoing:
    return Outgoing(kind, EDGE, Stamp(step), torch.randn(3, 4), None, torch.tensor([4, 5, 6]), "server")


def test_defenses_act_in_order() -> None:
    sent = shield(gaussian(1.0), PruneSpec(edge=EDGE, keep=0.5)).outgoing(out())
    assert int((sent == 0).sum()) == 6
    sent = shield(PruneSpec(edge=EDGE, keep=0.5), gaussian(1.0)).outgoing(out())
    assert int((sent == 0).sum()) == 0


def test_the_tightest_bound_is_charged() -> None:
    (charge,) = shield(gaussian(1.0), gaussian(4.0)).releases(out()).charges
    assert charge.mu == 0.5


def test_only_a_partys_own_records_are_charged() -> None:
    assert shield(inputs=False, labels=False).releases(out()).charges == ()
    assert [c.protects for c in shield(inputs=False).releases(out(Kind.CUT_GRAD)).charges] == [LABELS]
    assert [c.protects for c in shield(labels=False).releases(out(Kind.CUT_GRAD)).charges] == [INPUTS]
    assert all(math.isinf(c.mu) for c in shield().releases(out(Kind.LABELS)).charges)


def test_steps_are_charged_with_the_next_message_once() -> None:
    made = shield(gaussian(1.0))
    made.learns(Stamp(0), torch.arange(3))
    made.learns(Stamp(1), torch.arange(3, 6))
    made.learns(Stamp(2, training=False), torch.arange(9))
    assert [update.key for update in made.releases(out()).updates] == ["update|0|0|0", "update|1|0|0"]
    assert made.releases(out()).updates == ()


def test_a_checkpoint_keeps_steps_that_are_not_charged_yet() -> None:
    """Federated learning takes many steps before its one message; a crash in between must not make them free."""
    spec = DPSGDSpec(segment="bottom", clip=1.0, sigma=2.0)
    one, two = shield(spec), shield(spec)
    for step in range(3):
        one.learns(Stamp(step, cast=2), torch.arange(step, step + 3))
    two.restore(one.state())
    kept, expected = two.releases(out(Kind.WEIGHTS)).updates, one.releases(out(Kind.WEIGHTS)).updates
    assert kept == expected
    assert all(torch.equal(a.rows, b.rows) for a, b in zip(kept, expected, strict=True))
    assert {(c.mu, update.cast) for update in kept for c in update.charges} == {(1.0, 2)}


def test_no_defense_leaves_a_message_as_it_is() -> None:
    message = out()
    assert shield().outgoing(message) is message.tensor
    assert shield().penalty(EDGE, message.tensor, message.tensor) is None
