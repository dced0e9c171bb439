"""Small networks, each an nn.Sequential to be cut between any two layers. A flatten is part of the linear after it."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import nn

from secsplit.errors import RunError


def mlp(shape: torch.Size, outputs: int, widths: Sequence[int]) -> nn.Sequential:
    """fc1, relu1, fc2, relu2, ..., one pair for each width, then a last linear layer. Any shape."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    taken = math.prod(shape)
    for i, width in enumerate(widths, 1):
        layers[f"fc{i}"] = linear(taken, width, flatten=len(shape) > 1 and i == 1)
        layers[f"relu{i}"] = nn.ReLU()
        taken = width
    layers[f"fc{len(widths) + 1}"] = linear(taken, outputs, flatten=len(shape) > 1 and not widths)
    return nn.Sequential(layers)


def mnistnet(shape: torch.Size, outputs: int) -> nn.Sequential:
    """UnSplit's MnistNet (Erdogan, Kupcu, Cicek 2022, arXiv 2108.09033): eleven layers, so "cut N" is after the Nth.

    On 28x28: cut 3 is pool1 (8x12x12), cut 6 pool2 (16x4x4 = 256), cut 8 relu3 (120), cut 10 relu4 (84).
    """
    channels, height, width = image(shape, "mnistnet", smallest=16)
    flat = 16 * _pooled(_pooled(height - 4) - 4) * _pooled(_pooled(width - 4) - 4)
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(channels, 8, 5),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(8, 16, 5),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            fc1=linear(flat, 120, flatten=True),
            relu3=nn.ReLU(),
            fc2=nn.Linear(120, 84),
            relu4=nn.ReLU(),
            fc3=nn.Linear(84, outputs),
        )
    )


def cnn(shape: torch.Size, outputs: int) -> nn.Sequential:
    """Two 3x3 convolutions of 32 and 64 with pooling, then 128 hidden: 421,642 parameters on 28x28 with ten classes."""
    return _convolutional(shape, outputs, (32, 64), 128, "cnn")


def lenet(shape: torch.Size, outputs: int) -> nn.Sequential:
    """The same for tiny images, such as the 8x8 digits: convolutions of 8 and 16, then 32 hidden."""
    return _convolutional(shape, outputs, (8, 16), 32, "lenet")


def _convolutional(shape: torch.Size, outputs: int, widths: tuple[int, int], hidden: int, name: str) -> nn.Sequential:
    channels, height, width = image(shape, name, smallest=4)
    first, second = widths
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(channels, first, 3, padding=1),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(first, second, 3, padding=1),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            fc1=linear(second * _pooled(_pooled(height)) * _pooled(_pooled(width)), hidden, flatten=True),
            relu3=nn.ReLU(),
            fc2=nn.Linear(hidden, outputs),
        )
    )


def convolutions(channels: int, widths: Sequence[int]) -> nn.Sequential:
    """conv, norm, relu, pool for each width."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i, width in enumerate(widths, 1):
        layers[f"conv{i}"] = nn.Conv2d(channels, width, 3, padding=1)
        layers[f"norm{i}"] = nn.BatchNorm2d(width)
        layers[f"relu{i}"] = nn.ReLU()
        layers[f"pool{i}"] = nn.MaxPool2d(2)
        channels = width
    return nn.Sequential(layers)


def linear(taken: int, given: int, *, flatten: bool) -> nn.Module:
    """A linear layer, which flattens what comes first where asked to."""
    layer = nn.Linear(taken, given)
    return nn.Sequential(OrderedDict(flatten=nn.Flatten(), linear=layer)) if flatten else layer


def image(shape: torch.Size, name: str, *, smallest: int) -> tuple[int, int, int]:
    """Channels, height and width. Raises RunError for a table or too small an image."""
    if len(shape) != 3 or min(shape[1:]) < smallest:
        raise RunError(
            f"model.name: {name!r} expects images (channels, height, width) of at least {smallest}x{smallest} pixels, "
            f"got records of shape {tuple(shape)}; use mlp, or larger images"
        )
    return shape[0], shape[1], shape[2]


def _pooled(size: int) -> int:
    return size // 2
