"""The Gaussian mechanism: what leaves is inside the ball plus the stated noise, on a grid, the same on a resend."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from secsplit.accounting import INPUTS, LABELS
from secsplit.defenses import AnySpec, DefenseSpec, Noise, Outgoing, check
from secsplit.defenses.frozen import FrozenSpec
from secsplit.defenses.gaussian import Gaussian, GaussianSpec, clipped, grid
from secsplit.defenses.quantise import Sign, SignSpec
from secsplit.errors import RunError
from secsplit.message import Kind, Stamp
from secsplit.topologies import named

EDGE = "bottom->top"


def spec(**options: object) -> GaussianSpec:
    return GaussianSpec.model_validate({"kind": "gaussian", "edge": EDGE, "clip": 1.0, "sigma": 0.5, **options})


def built(seed: int = 0, **options: object) -> Gaussian:
    return Gaussian(spec(**options), Noise.predictable_for_testing_only(seed))


def out(h: Tensor, step: int = 0, **options: object) -> Outgoing:
    chosen: dict[str, object] = {"receiver": "server", **options}
    return Outgoing(Kind.SMASHED, EDGE, Stamp(step), h, None, torch.arange(len(h)), **chosen)  # type: ignore[arg-type]


@pytest.mark.parametrize("nonnegative", [False, True])
@pytest.mark.parametrize("scale", [1e-20, 1e-3, 1.0, 1e3, 1e25, 3e38])
@pytest.mark.parametrize("clip", [0.01, 1.0, 34.0])
def test_nothing_leaves_the_ball(scale: float, clip: float, nonnegative: bool) -> None:
    h = torch.randn(64, 3, 7, 5, generator=torch.Generator().manual_seed(0)) * scale
    inside = clipped(h, clip, nonnegative=nonnegative)
    norms = inside.double().flatten(1).norm(dim=1)
    assert float(norms.max()) <= clip
    assert bool(torch.isfinite(inside).all())
    if nonnegative:
        assert float(inside.min()) >= 0
    elif 1e3 <= scale <= 1e25:
        assert float(norms.min()) > clip * (1 - 1e-6)


def test_what_is_no_number_is_bounded_too() -> None:
    h = torch.tensor([[math.nan, 1.0], [math.inf, 1.0], [-math.inf, math.inf], [0.0, 0.0]])
    inside = clipped(h, 1.0)
    assert bool(torch.isfinite(inside).all())
    assert float(inside.norm(dim=1).max()) <= 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_precision_leaves_as_it_came(dtype: torch.dtype) -> None:
    h = torch.randn(500, 40).to(dtype)
    left = built(sigma=1.0).outgoing(out(h))
    assert left.dtype == dtype
    assert float((left.double() - clipped(h.double(), 1.0)).std()) == pytest.approx(1.0, rel=0.03)


def test_what_is_inside_stays_as_it_is() -> None:
    h = torch.randn(8, 10) * 0.01
    assert torch.equal(clipped(h, 1.0), h)


def test_the_clip_is_differentiated() -> None:
    h = torch.randn(6, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: clipped(x, 1.5), h, atol=1e-4)


@pytest.mark.parametrize("noise", ["grid", "float"])
def test_the_noise_has_the_stated_deviation(noise: str) -> None:
    h = torch.randn(2000, 300)
    left = built(noise=noise, clip=2.0, sigma=0.7).outgoing(out(h))
    added = (left - clipped(h, 2.0)).double()
    assert float(added.mean()) == pytest.approx(0, abs=4.5 * 1.4 / math.sqrt(added.numel()))
    assert float(added.std()) == pytest.approx(1.4, rel=4.5 / math.sqrt(2 * added.numel()))


@pytest.mark.parametrize("sigma", [0.001, 0.3, 4.0, 77.0])
def test_the_grid_leaves_no_trace_of_the_input(sigma: float) -> None:
    """Every value that leaves is a whole multiple of one power of two, whatever the input; with floats it is not."""
    defense = built(sigma=sigma)
    assert math.log2(defense.step) == round(math.log2(defense.step))
    for h in (torch.zeros(50, 40), torch.randn(50, 40), torch.rand(50, 40) * 1e-9):
        left = defense.outgoing(out(h)).double() / defense.step
        assert torch.equal(left, left.round())
    holed = built(sigma=sigma, noise="float").outgoing(out(torch.randn(50, 40))).double() / defense.step
    assert not torch.equal(holed, holed.round())


def test_truncation_to_the_grid_does_not_grow_the_norm() -> None:
    h = torch.randn(100, 200)
    inside = clipped(h, 1.0).double()
    step, scale = grid(0.5)
    assert 1024 <= scale < 2048
    assert bool(((torch.trunc(inside / step) * step).norm(dim=1) <= inside.norm(dim=1)).all())


def test_a_resend_has_the_same_noise_and_nothing_else_has() -> None:
    h = torch.randn(4, 5)
    defense = built()
    base = out(h, 3)
    first = defense.outgoing(base)
    assert torch.equal(first, defense.outgoing(base))
    assert torch.equal(first, built().outgoing(base))  # resumed after a crash, with the key that was kept
    others = [
        out(h, 4),
        out(h, 3, receiver="other"),
        out(h, 3, index=1, of=2),
        replace(base, stamp=Stamp(3, micro=1)),
        replace(base, stamp=Stamp(3, training=False)),
        replace(base, kind=Kind.OUTPUT),
    ]
    seen = [first, built(seed=1).outgoing(base), *map(defense.outgoing, others)]
    for i, a in enumerate(seen):
        assert not any(torch.equal(a, b) for b in seen[:i])


def test_backward_goes_through_noise_and_rescaling() -> None:
    h = torch.randn(4, 5, requires_grad=True)
    built(clip=100.0, rescale=8.0).outgoing(out(h)).sum().backward()  # type: ignore[no-untyped-call]
    assert h.grad is not None
    assert torch.equal(h.grad, torch.full((4, 5), 8.0))


def test_what_it_charges() -> None:
    (charge,) = built(sigma=4.0).bounds(out(torch.zeros(2, 2)))
    assert (charge.protects, charge.mu, charge.adjacency) == (INPUTS, 0.5, "replace-one")
    assert built(sigma=4.0, nonnegative=True).bounds(out(torch.zeros(2, 2)))[0].mu == pytest.approx(0.5 / math.sqrt(2))
    assert built(sigma=4.0, adjacency="zero-out").bounds(out(torch.zeros(2, 2)))[0].mu == 0.25
    assert built(sigma=4.0).bounds(out(torch.zeros(2, 2), of=4))[0].mu == 1.0  # four tensors, each clipped by itself
    gradient = replace(out(torch.zeros(2, 2)), kind=Kind.CUT_GRAD)
    assert built().bounds(gradient) == ()
    assert {c.protects for c in built(message="cut-grad").bounds(gradient)} == {INPUTS, LABELS}


def test_once_sends_each_example_once() -> None:
    h, rows = torch.randn(6, 5), torch.tensor([3, 1, 4, 1, 5, 9])
    defense = built(once=True)
    first = defense.outgoing(replace(out(h, 0), rows=rows))
    assert torch.equal(first[1], first[3])
    again = defense.outgoing(replace(out(h.flip(0), 7), rows=rows.flip(0)))
    assert torch.equal(again, first.flip(0))
    assert defense.bounds(out(h, 0))[0].once == defense.bounds(out(h, 7))[0].once
    resumed = built(once=True)
    resumed.restore(defense.state())
    assert torch.equal(resumed.outgoing(replace(out(h, 8), rows=rows)), first)
    assert resumed.bounds(out(h, 8)) == defense.bounds(out(h, 8))
    assert built(once=True).bounds(out(h, 8)) != defense.bounds(out(h, 8))  # what was sent is forgotten: charged anew


def test_once_needs_a_frozen_segment() -> None:
    once, topology = spec(once=True), named("vanilla")
    with pytest.raises(RunError, match="frozen"):
        once.fits(topology, [once], 1)
    once.fits(topology, [once, FrozenSpec(segment="bottom")], 1)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"clip": None}, "clip"),
        ({"sigma": 0.0}, "adds no noise"),
        ({"sigma": -1.0}, "adds no noise"),
        ({"sigma": math.nan}, "sigma"),
        ({"clip": 0.0}, "greater than 0"),
        ({"sigma": 1e-6}, "too small for the grid"),
        ({"message": "cut-grad", "once": True}, "smashed data"),
        ({"noise": "laplace"}, "grid"),
        ({"sigm": 1.0}, "sigm"),
    ],
)
def test_bad_tables_are_refused(options: dict[str, object], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        spec(**options)


def test_noise_without_a_clip_is_refused() -> None:
    with pytest.raises(ValidationError, match="noise without clipping is not differential privacy"):
        GaussianSpec.model_validate({"kind": "gaussian", "edge": EDGE, "sigma": 1.0})


def test_a_message_that_does_not_cross_is_refused() -> None:
    with pytest.raises(RunError, match=r"no smashed message crosses 'botom->top'.*did you mean 'bottom->top'"):
        spec(edge="botom->top").role(named("vanilla"))
    assert spec().role(named("vanilla")) == "client"
    assert spec(message="cut-grad").role(named("vanilla")) == "server"


BESIDE = {
    "sign": {"kind": "sign"},
    "prune": {"kind": "prune", "keep": 0.1},
    "iso": {"kind": "iso", "t": 1.0},
    "max-norm": {"kind": "max-norm"},
    "gaussian": {"kind": "gaussian", "clip": 1.0, "sigma": 2.0},
    "quantise": {"kind": "quantise", "levels": 4},
    "prune-row": {"kind": "prune", "keep": 0.1, "by": "row"},
    "dropout": {"kind": "dropout", "p": 0.5},
}
SPOILS = {"before": {"sign", "prune", "iso", "max-norm", "gaussian"}, "after": {"iso", "max-norm", "gaussian"}}


@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize("name", BESIDE)
def test_what_would_make_its_bound_false_is_refused(name: str, where: str) -> None:
    """Before it: one record that changes all rows' messages. On either side: noise that is not independent of it."""
    adapter = TypeAdapter[AnySpec](DefenseSpec)
    other = adapter.validate_python({"edge": EDGE, "message": "smashed", **BESIDE[name]})
    specs = [other, spec()] if where == "before" else [spec(), other]
    if name in SPOILS[where]:
        with pytest.raises(RunError, match="the noise would not bound what one record changes"):
            check(specs, named("vanilla"))
    else:
        check(specs, named("vanilla"))


def test_mixing_before_the_noise_does_change_the_other_rows() -> None:
    """Why: with one record replaced, the sign's mean magnitude moves every row that the noise should have hidden."""
    h = torch.randn(16, 8, generator=torch.Generator().manual_seed(0)) * 0.05
    other = h.clone()
    other[0] *= 100
    signed = [Sign(SignSpec(edge=EDGE)).outgoing(out(each)) for each in (h, other)]
    apart = clipped(signed[0], 1.0) - clipped(signed[1], 1.0)
    assert float(apart.norm()) > 2.0  # the sensitivity that was accounted for


@pytest.mark.parametrize("sigma", [True, "0.5", math.nan, math.inf, 0, -1.0])
def test_a_sigma_that_is_no_positive_number_is_refused(sigma: object) -> None:
    with pytest.raises(ValidationError, match="sigma"):
        spec(sigma=sigma)
    assert spec(sigma=2).sigma == 2
