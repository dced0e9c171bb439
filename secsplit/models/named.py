"""Whole networks by name: our small ones, our U-Net, and torchvision's classifiers fitted to the records at hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import nn

from secsplit.errors import RunError, nearest
from secsplit.models.small import cnn, image, lenet, mlp, mnistnet
from secsplit.models.spec import ModelSpec
from secsplit.models.unet import WIDTHS, crossed, unet

FIRST_WIDTH, WIDTH = 64, 32  # of the mlp where no widths are given
FIXED: Mapping[str, Callable[[torch.Size, int], nn.Module]] = MappingProxyType(
    {"mnistnet": mnistnet, "cnn": cnn, "lenet": lenet}
)
OWN = ("mlp", *FIXED, "unet")


def network(spec: ModelSpec, shape: torch.Size, outputs: int, *, cuts: int = 1) -> nn.Module:
    """The whole model that the spec names, for records of that shape; drawn from torch's global random state.

    ``cuts``: in how many places it must be possible to cut it, where the spec leaves the widths open.
    """
    if spec.name == "mlp":
        model: nn.Module = mlp(shape, outputs, spec.widths or (FIRST_WIDTH, *[WIDTH] * max(1, cuts - 1)))
    elif spec.name in FIXED:
        model = FIXED[spec.name](shape, outputs)
    elif spec.name == "unet":
        widths = spec.widths or WIDTHS
        model = unet(shape, outputs, widths, crossed(len(widths) - 1, spec.cut) if spec.skips == "drop" else ())
    else:
        model = classifier(spec, shape, outputs)
    return normalised(model, spec.normalisation)


def classifier(spec: ModelSpec, shape: torch.Size, outputs: int) -> nn.Module:
    """A torchvision classifier with so many outputs, for images of any number of channels; untrained."""
    from secsplit.vision import torchvision

    known = torchvision.models.list_models(module=torchvision.models)
    if spec.name not in known:
        raise RunError(f"model.name: unknown model {spec.name!r}; {nearest(spec.name, [*OWN, *known])}")
    channels, _, _ = image(shape, spec.name, smallest=2)
    model: nn.Module = torchvision.models.get_model(spec.name, weights=None, num_classes=outputs)
    path, first = next((path, layer) for path, layer in model.named_modules() if isinstance(layer, nn.Conv2d))
    if spec.stem == "cifar":
        if not isinstance(model, torchvision.models.ResNet):
            raise RunError(f"model.stem: 'cifar' is for ResNets, got model {spec.name!r}; leave it out")
        model.set_submodule(path, nn.Conv2d(channels, 64, 3, padding=1, bias=False))
        model.set_submodule("maxpool", nn.Identity())
    elif first.in_channels != channels:
        model.set_submodule(path, _taking(channels, first))
    return model


def _taking(channels: int, like: nn.Conv2d) -> nn.Conv2d:
    """The same convolution for another number of channels."""
    return nn.Conv2d(
        channels,
        like.out_channels,
        like.kernel_size,  # type: ignore[arg-type]
        like.stride,  # type: ignore[arg-type]
        like.padding,  # type: ignore[arg-type]
        bias=like.bias is not None,
    )


def normalised(model: nn.Module, how: str) -> nn.Module:
    """Every BatchNorm replaced: by GroupNorm of up to 32 groups, where no record depends on another, or by none.

    Wu and He 2018, arXiv 1803.08494; the same replacement that private training needs.
    """
    if how == "batch":
        return model
    for path, layer in list(model.named_modules()):
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            width = layer.num_features
            model.set_submodule(path, nn.GroupNorm(math.gcd(32, width), width) if how == "group" else nn.Identity())
    return model


def places(model: nn.Module, name: str) -> list[str]:
    """Where this model is usually cut, in order: after its blocks, where a single value passes."""
    if isinstance(model, nn.Sequential):
        layers = list(model.named_children())
        pools = [path for path, layer in layers if isinstance(layer, nn.MaxPool2d)]
        after = layers.index((pools[-1], model.get_submodule(pools[-1]))) if pools else 0
        return pools + [path for path, layer in layers[after:] if isinstance(layer, nn.ReLU)]
    if name == "unet":
        return [path for path, _ in model.named_children() if path == "down1" or path == "join1"]
    blocks = dict(model.named_children())
    if "layer1" in blocks:
        return [path for path in blocks if path.startswith("layer")]
    features = [(f"features.{path}", layer) for path, layer in blocks.get("features", nn.Module()).named_children()]
    pools = [path for path, layer in features if isinstance(layer, nn.MaxPool2d) or "transition" in path]
    return pools or [path for path, _ in features[:-1]]
