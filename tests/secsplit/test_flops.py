"""Arithmetic against torch's counter and against figures known from elsewhere."""

import pytest
import torch
from torch import nn

from secsplit.flops import Work, flops, macs, saved_bytes, seconds
from secsplit.vision import torchvision


@pytest.mark.parametrize("onward", [True, False])
@pytest.mark.parametrize("name", ["resnet18", "densenet121"])
def test_two_operations_to_a_multiply_accumulate_and_no_other_products(name: str, onward: bool) -> None:
    model, x = torchvision.models.get_model(name, num_classes=10), (torch.zeros(2, 3, 32, 32),)
    arithmetic, counted = macs(model, x, onward=onward), flops(model, x, onward=onward)
    assert counted == Work(2 * arithmetic.forward, 2 * arithmetic.backward)


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "efficientnet_b0"])
def test_the_counter_takes_grouped_convolutions_for_dense_ones_going_backward(name: str) -> None:
    model, x = torchvision.models.get_model(name, num_classes=10), (torch.zeros(2, 3, 32, 32),)
    arithmetic, counted = macs(model, x, onward=True), flops(model, x, onward=True)
    assert counted.forward == 2 * arithmetic.forward
    assert counted.backward > 2 * arithmetic.backward == 4 * arithmetic.forward


def test_resnet50_at_224_has_the_published_4_09_billion() -> None:
    with torch.device("meta"):
        model, x = torchvision.models.resnet50(), torch.zeros(1, 3, 224, 224)
    assert macs(model, (x,), onward=False).forward == 4_089_184_256


def test_backward_wants_as_much_again_for_weights_and_for_inputs_but_not_at_the_first_layer() -> None:
    model = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 5))
    x = (torch.zeros(3, 10),)
    assert macs(model, x, onward=False) == Work(3 * 300, 3 * (200 + 100 + 100))
    assert macs(model, x, onward=True) == Work(3 * 300, 2 * 3 * 300)
    frozen = nn.Linear(10, 20).requires_grad_(False)
    assert macs(nn.Sequential(frozen, nn.Linear(20, 5)), x, onward=False) == Work(3 * 300, 3 * 100)


def test_a_transposed_convolution_and_groups() -> None:
    x = (torch.zeros(2, 6, 5, 5),)
    up, grouped = nn.ConvTranspose2d(6, 4, 3, stride=2), nn.Conv2d(6, 4, 3, groups=2)
    for module, products in ((grouped, 2 * 4 * 9 * 3 * 9), (up, 2 * 6 * 25 * 4 * 9)):
        assert macs(module, x, onward=True) == Work(products, 2 * products)
        assert flops(module, x, onward=True).forward == 2 * products


def test_what_waits_for_backward_is_counted_once_and_without_the_weights() -> None:
    model = nn.Sequential(nn.Linear(10, 20), nn.Sigmoid(), nn.Linear(20, 5))
    # of 4 rows: the input of the first layer, and the sigmoid's output, which the last layer shares
    assert saved_bytes(model, (torch.zeros(4, 10),), onward=False) == 4 * (4 * 10 + 4 * 20)


def test_measuring_leaves_gradients_buffers_and_random_state_alone() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(), nn.Flatten(), nn.Linear(72, 3))
    x = (torch.randn(4, 1, 8, 8),)
    model(*x).sum().backward()
    before = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    buffers, state = [b.clone() for b in model.buffers()], torch.get_rng_state()
    for measure in (macs, flops, saved_bytes, seconds):
        measure(model, x, onward=True)  # type: ignore[operator]
    assert all(torch.equal(a, p.grad) for a, p in zip(before, model.parameters(), strict=True) if p.grad is not None)
    assert all(torch.equal(a, b) for a, b in zip(buffers, model.buffers(), strict=True))
    assert torch.equal(torch.get_rng_state(), state)
