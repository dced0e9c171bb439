"""DP-SGD across a cut: against one example at a time, and against Opacus's own optimizer."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secsplit.accounting import INPUTS, LABELS
from secsplit.defenses import Noise, check
from secsplit.defenses.dp_sgd import DPSGD, DPSGDSpec
from secsplit.defenses.nopeek import NoPeekSpec
from secsplit.errors import RunError
from secsplit.message import Stamp
from secsplit.topologies import named

B, CLIP = 9, 0.05
NETS = ("conv", "linear", "norm")


def bottom(kind: str) -> nn.Module:
    if kind == "linear":
        return nn.Linear(64, 5)
    normalised = [nn.GroupNorm(2, 4)] if kind == "norm" else []
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), *normalised, nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(4 * 6 * 6, 5), nn.LayerNorm(5)
    )


def case(kind: str) -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    net, top = bottom(kind), nn.Linear(5, 3)
    x = torch.randn(B, 64) if kind == "linear" else torch.randn(B, 1, 8, 8)
    return net, top, x, torch.randint(0, 3, (B,))


def hosted(net: nn.Module, sigma: float = 1e-9, **options: object) -> SimpleNamespace:
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    host = SimpleNamespace(name="c", inputs=True, modules={"b": net}, optimizers={"b": optimizer}, labels={})
    spec = DPSGDSpec.model_validate({"segment": "b", "clip": CLIP, "sigma": sigma, **options})
    host.defense = DPSGD(spec, Noise.predictable_for_testing_only(0))
    host.defense.prepare(host)
    return host


def step(host: SimpleNamespace, top: nn.Module, x: Tensor, y: Tensor, number: int = 0) -> Tensor:
    """One step as a party takes it: the loss lives at another party; the gradient of the input."""
    host.defense.begin(Stamp(number), torch.arange(len(x)))
    host.optimizers["b"].zero_grad(set_to_none=True)
    taken = x.clone().requires_grad_()
    h = host.modules["b"](taken)
    leaf = h.detach().requires_grad_()
    F.cross_entropy(top(leaf), y).backward()
    torch.autograd.backward([h], [leaf.grad])
    host.optimizers["b"].step()
    assert taken.grad is not None
    return taken.grad


def one_by_one(net: nn.Module, top: nn.Module, x: Tensor, y: Tensor) -> list[Tensor]:
    """The clipped sum over B, example by example, the slow obvious way."""
    parameters = list(net.parameters())
    total = [torch.zeros_like(p) for p in parameters]
    for i in range(len(x)):
        gradients = torch.autograd.grad(F.cross_entropy(top(net(x[i : i + 1])), y[i : i + 1]), parameters)
        norm = torch.cat([g.flatten() for g in gradients]).norm()
        for kept, g in zip(total, gradients, strict=True):
            kept += g * min(1.0, CLIP / float(norm)) / len(x)
    return total


@pytest.mark.parametrize("clipping", ["hooks", "ghost"])
@pytest.mark.parametrize("kind", NETS)
def test_equals_one_example_at_a_time(kind: str, clipping: str) -> None:
    slow_net, top, x, y = case(kind)
    host = hosted(case(kind)[0], clipping=clipping)
    for number in range(3):
        expected = one_by_one(slow_net, top, x, y)
        with torch.no_grad():
            for p, g in zip(slow_net.parameters(), expected, strict=True):
                p -= g
        step(host, top, x, y, number)
    for p, q in zip(slow_net.parameters(), host.modules["b"].parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("clipping", ["hooks", "ghost"])
def test_the_gradient_passed_further_down_is_not_clipped(clipping: str) -> None:
    net, top, x, y = case("conv")
    taken = x.clone().requires_grad_()
    F.cross_entropy(top(net(taken)), y).backward()
    host = hosted(case("conv")[0], clipping=clipping)
    torch.testing.assert_close(step(host, top, x, y), taken.grad)


def test_equals_opacus_own_optimizer() -> None:
    """Opacus sees the whole model's loss and no cut; the noise is switched off on both sides."""
    from opacus import GradSampleModule
    from opacus.optimizers import DPOptimizer

    net, top, x, y = case("conv")
    for layer in net.modules():
        if isinstance(layer, nn.ReLU):
            layer.inplace = False
    wrapped = GradSampleModule(net)
    optimizer = DPOptimizer(
        torch.optim.SGD(net.parameters(), lr=1.0), noise_multiplier=0.0, max_grad_norm=CLIP, expected_batch_size=B
    )
    F.cross_entropy(top(wrapped(x.clone().requires_grad_())), y).backward()
    optimizer.step()
    host = hosted(case("conv")[0])
    step(host, top, x, y)
    for p, q in zip(net.parameters(), host.modules["b"].parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


def test_noise_has_the_stated_size_and_is_its_steps_own() -> None:
    moved = []
    for number in (0, 0, 1):
        net, top, x, y = case("linear")
        before = [p.detach().clone() for p in net.parameters()]
        host = hosted(net, sigma=1000.0)
        step(host, top, x, y, number)
        moved.append(torch.cat([(p - b).flatten() for p, b in zip(net.parameters(), before, strict=True)]).detach())
    assert torch.equal(moved[0], moved[1])
    assert not torch.equal(moved[0], moved[2])
    assert float(moved[0].std()) == pytest.approx(1000 * CLIP / B, rel=0.15)


def test_an_example_moves_the_weights_by_two_clips_at_most() -> None:
    """Replace one example, with a peer that sends gradients a million times too large: the sum moves by 2 C / B."""
    results = []
    for swap in (False, True):
        net, _, x, y = case("conv")
        if swap:
            x[4], y[4] = 1000.0, (y[4] + 1) % 3
        before = [p.detach().clone() for p in net.parameters()]
        host = hosted(net)
        host.defense.begin(Stamp(0), torch.arange(B))
        h = host.modules["b"](x)
        h.backward(torch.randn(B, 5, generator=torch.Generator().manual_seed(1)) * 1e6)
        host.optimizers["b"].step()
        results.append(torch.cat([(p - b).flatten() for p, b in zip(net.parameters(), before, strict=True)]))
    assert float((results[0] - results[1]).detach().norm()) <= 2 * CLIP / B * 1.0001


@pytest.mark.parametrize(
    "layer", [nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False), nn.InstanceNorm2d(4, track_running_stats=True)]
)
def test_layers_that_mix_examples_are_refused_by_name(layer: nn.Module) -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), layer, nn.ReLU())
    with pytest.raises(RunError, match=rf"1 \({type(layer).__name__}\).*fix = true"):
        hosted(net)


def test_batch_norm_is_replaced_where_asked() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
    host = hosted(net, fix=True, sigma=1.0)
    assert any(isinstance(m, nn.GroupNorm) for m in host.modules["b"].modules())
    _, top, x, y = case("conv")
    before = [p.detach().clone() for p in host.modules["b"].parameters()]
    step(host, top, x, y)
    assert all(not torch.equal(p, b) for p, b in zip(host.modules["b"].parameters(), before, strict=True))


@pytest.mark.parametrize("clipping", ["hooks", "ghost"])
def test_weights_keep_their_names(clipping: str) -> None:
    host = hosted(case("conv")[0], clipping=clipping)
    assert set(host.modules["b"].state_dict()) == set(case("conv")[0].state_dict())


def test_what_it_charges() -> None:
    host = hosted(case("linear")[0], sigma=4.0)
    charges = host.defense.updates("b")
    assert {c.protects for c in charges} == {INPUTS, LABELS}
    assert {c.mu for c in charges} == {0.5}
    assert host.defense.updates("other") == ()


def test_misuse_is_refused() -> None:
    spec = DPSGDSpec(segment="bottom", clip=1, sigma=1)
    with pytest.raises(RunError, match="micro_batches = 1"):
        spec.fits(named("vanilla"), [spec], 2)
    with pytest.raises(RunError, match="another defense"):
        spec.fits(named("vanilla"), [spec, DPSGDSpec(segment="bottom", clip=2, sigma=1)], 1)
    with pytest.raises(RunError, match="no segment 'botom'"):
        DPSGDSpec(segment="botom", clip=1, sigma=1).role(named("vanilla"))


@pytest.mark.parametrize("clipping", ["hooks", "ghost"])
@pytest.mark.parametrize("scale", [1.0, 1e20, 3e38])
def test_a_peer_s_largest_gradients_are_clipped_all_the_same(scale: float, clipping: str) -> None:
    """Overflow on the way must neither spoil the weights, which would tell of one record, nor escape the clip."""
    net, _, x, _ = case("linear")
    host = hosted(net, clipping=clipping)
    before = [p.detach().clone() for p in net.parameters()]
    host.defense.begin(Stamp(0), torch.arange(B))
    h = host.modules["b"](x * 3)
    h.backward(torch.ones_like(h) * scale)
    host.optimizers["b"].step()
    moved = torch.cat([(p.detach() - q).flatten() for p, q in zip(net.parameters(), before, strict=True)])
    assert bool(torch.isfinite(moved).all())
    assert float(moved.norm()) <= CLIP


def test_terms_that_cancel_do_not_escape_a_ghost_s_clip() -> None:
    """Two positions of one sequence, gradients of 1e9 and -1e9: norms by Gram matrices read as nothing."""
    net = nn.Linear(4, 2, bias=False)
    host = hosted(net, clipping="ghost")
    for number in range(60):
        coins = torch.Generator().manual_seed(number)
        before = net.weight.detach().clone()
        apart = 10 ** -float(torch.rand((), generator=coins) * 4 + 3)
        a = torch.randn(1, 1, 4, generator=coins)
        host.defense.begin(Stamp(number), torch.arange(1))
        h = host.modules["b"](torch.cat([a, a * (1 + apart)], 1))
        h.backward(torch.tensor([[[1e9, 0.0], [-1e9, 0.0]]]))
        host.optimizers["b"].step()
        host.optimizers["b"].zero_grad(set_to_none=True)
        assert float((net.weight.detach() - before).norm()) <= CLIP * (1 + 1e-3)


def test_a_penalty_over_the_whole_batch_is_refused_beside_it() -> None:
    specs = [NoPeekSpec(edge="bottom->top", a=0.5), DPSGDSpec(segment="bottom", clip=1.0, sigma=1.0)]
    with pytest.raises(RunError, match="depend on all examples of the batch"):
        check(specs, named("vanilla"))
