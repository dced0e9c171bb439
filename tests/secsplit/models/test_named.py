"""The named networks: their sizes and layers as published, and fitted to the records at hand."""

import copy

import pytest
import torch
from torch import nn

from secsplit.cut import cut
from secsplit.errors import CutError, RunError
from secsplit.models import ModelSpec, network, places

GREY = torch.Size([1, 28, 28])


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_mnistnet_cut_n_is_its_first_n_layers_with_the_published_widths() -> None:
    model = network(ModelSpec(name="mnistnet"), GREY, 10)
    assert parameters(model) == (25 * 8 + 8) + (25 * 8 * 16 + 16) + (256 * 120 + 120) + (120 * 84 + 84) + (84 * 10 + 10)
    names = list(dict(model.named_children()))
    x = torch.randn(3, *GREY)
    for n, width in ((3, 8 * 12 * 12), (6, 256), (8, 120), (10, 84)):
        bottom, top = cut(model, [names[n - 1]], x)
        assert [type(piece) for piece in (bottom, top)] == [nn.Sequential, nn.Sequential]
        smashed = bottom(x)
        assert smashed.flatten(1).shape == (3, width)
        assert torch.equal(smashed, nn.Sequential(*list(model.children())[:n])(x))
        assert torch.equal(top(smashed), model(x))


def test_cnn_has_the_parameters_it_says() -> None:
    model = network(ModelSpec(name="cnn"), GREY, 10)
    assert parameters(model) == 421_642
    assert places(model, "cnn") == ["pool1", "pool2", "relu3"]


def test_a_model_takes_grey_images_and_gives_as_many_outputs_as_there_are_classes() -> None:
    x = torch.zeros(2, 1, 32, 32)
    for name in ("resnet18", "densenet121", "mobilenet_v3_small", "efficientnet_b0"):
        model = network(ModelSpec(name=name), x.shape[1:], 3)
        assert model.eval()(x).shape == (2, 3)
        assert len(cut(model, places(model, name)[:2], x)) == 3


def test_the_cifar_stem_keeps_the_size_of_small_images() -> None:
    model = network(ModelSpec(name="resnet18", stem="cifar"), torch.Size([3, 32, 32]), 10)
    bottom, _ = cut(model, ["layer1"], torch.zeros(2, 3, 32, 32))
    assert bottom.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 64, 32, 32)


@pytest.mark.parametrize(("how", "left"), [("group", nn.GroupNorm), ("none", nn.Identity)])
def test_without_batchnorm_a_record_s_output_does_not_depend_on_the_others(how: str, left: type[nn.Module]) -> None:
    model = network(ModelSpec(name="resnet18", normalisation=how), GREY, 10)  # type: ignore[arg-type]
    assert not [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert sum(isinstance(layer, left) for layer in model.modules()) == 20
    x = torch.randn(4, *GREY)
    assert torch.allclose(model.train()(x)[:1], model(x[:1]), atol=1e-4)


UNET = torch.Size([1, 16, 16])


def test_a_unet_gives_a_mask_of_the_image_s_size() -> None:
    model = network(ModelSpec(name="unet", widths=(4, 8, 16)), UNET, 2)
    assert model(torch.randn(2, *UNET)).shape == (2, 2, 16, 16)


@pytest.mark.parametrize(
    ("at", "crossing", "kept"),
    [
        (("down1",), 1, {1, 2}),
        (("down2",), 2, {2}),
        (("down3",), 3, set()),
        (("join2",), 2, {2}),
        (("join1",), 1, {1, 2}),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, tuple) else None,
)
def test_a_unet_s_skips_cross_or_are_refused_or_are_left_out(
    at: tuple[str, ...], crossing: int, kept: set[int]
) -> None:
    spec = ModelSpec(name="unet", widths=(4, 8, 16), cut=at)
    model, x = network(spec, UNET, 2), torch.randn(2, *UNET)
    if crossing > 1:
        with pytest.raises(CutError, match=r"down1\.relu2 -> cat"):
            cut(model, at, x)
    bottom, top = cut(model, at, x, skips="cross")
    smashed = bottom.eval()(x)
    tensors = smashed if isinstance(smashed, tuple) else (smashed,)
    assert len(tensors) == crossing
    assert torch.equal(top.eval()(*tensors), copy.deepcopy(model).eval()(x))
    dropped = network(spec.model_copy(update={"skips": "drop"}), UNET, 2)
    assert {1, 2} - set(dropped.without) == kept  # type: ignore[arg-type]
    assert len(cut(dropped, at, x)) == 2


REFUSED = {
    "misspelt": (ModelSpec(name="resnet81"), GREY, "did you mean 'resnet18'"),
    "image model of a table": (ModelSpec(name="resnet18"), torch.Size([30]), "got records of shape \\(30,\\); use mlp"),
    "too small": (ModelSpec(name="mnistnet"), torch.Size([1, 8, 8]), "at least 16x16 pixels"),
    "stem of another": (ModelSpec(name="densenet121", stem="cifar"), GREY, "'cifar' is for ResNets"),
    "odd sides": (ModelSpec(name="unet", widths=(4, 8, 16, 32)), GREY, "multiples of 8, got 28x28"),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused(case: tuple[ModelSpec, torch.Size, str]) -> None:
    spec, shape, says = case
    with pytest.raises(RunError, match=says):
        network(spec, shape, 10)
