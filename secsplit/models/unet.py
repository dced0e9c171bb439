"""A U-Net for segmentation (Ronneberger, Fischer, Brox 2015, arXiv 1505.04597), made so that it can be cut anywhere.

Its skips are what makes it hard to split: a cut inside the U is crossed by the skip of every level that it has entered
and not left. They may cross, as further smashed data, or be left out of the network.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secsplit.errors import RunError
from secsplit.models.small import image

WIDTHS = (16, 32, 64)


class UNet(nn.Module):
    """down1, down2, ..., then up and join from the deepest level: (batch, channels, h, w) -> (batch, outputs, h, w).

    ``widths``: channels of each level, the last the bottom of the U. ``without``: levels (from 1) built without skip.
    """

    def __init__(
        self, channels: int, outputs: int, widths: Sequence[int] = WIDTHS, without: Collection[int] = ()
    ) -> None:
        super().__init__()
        self.levels = len(widths) - 1
        self.without = frozenset(without)
        for level, width in enumerate(widths, 1):
            self.add_module(f"down{level}", _twice(channels, width))
            channels = width
        for level in range(self.levels, 0, -1):
            width = widths[level - 1]
            self.add_module(f"up{level}", nn.ConvTranspose2d(channels, width, 2, stride=2))
            self.add_module(f"join{level}", _twice(width if level in self.without else 2 * width, width))
            channels = width
        self.out = nn.Conv2d(channels, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for level in range(1, self.levels + 1):
            x = self.get_submodule(f"down{level}")(x)
            skips.append(x)
            x = F.max_pool2d(x, 2)
        x = self.get_submodule(f"down{self.levels + 1}")(x)
        for level in range(self.levels, 0, -1):
            x = self.get_submodule(f"up{level}")(x)
            joined = x if level in self.without else torch.cat([skips[level - 1], x], dim=1)
            x = self.get_submodule(f"join{level}")(joined)
        out: Tensor = self.out(x)
        return out


def unet(shape: torch.Size, outputs: int, widths: Sequence[int], without: Collection[int] = ()) -> UNet:
    """A U-Net for images of this shape, whose sides must halve once for each level."""
    channels, height, width = image(shape, "unet", smallest=2 ** (len(widths) - 1))
    step = 2 ** (len(widths) - 1)
    if height % step or width % step:
        raise RunError(
            f"model.name: 'unet' with {len(widths)} levels expects images whose sides are multiples of {step}, "
            f"got {height}x{width}; give model.widths fewer levels, or resize"
        )
    return UNet(channels, outputs, widths, without)


def crossed(levels: int, cuts: Sequence[str]) -> set[int]:
    """The levels whose skip would cross one of the cuts beside its own value: after down_k and before join_k."""
    order = [f"down{k}" for k in range(1, levels + 2)]
    for k in range(levels, 0, -1):
        order += [f"up{k}", f"join{k}"]
    places = [order.index(cut.split(".")[0]) for cut in cuts if cut.split(".")[0] in order]
    return {
        k for k in range(1, levels + 1) if any(order.index(f"down{k}") < p < order.index(f"join{k}") for p in places)
    }


def _twice(taken: int, given: int) -> nn.Sequential:
    """Two 3x3 convolutions, each with normalisation and ReLU, that keep the size."""
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(taken, given, 3, padding=1, bias=False),
            norm1=nn.BatchNorm2d(given),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(given, given, 3, padding=1, bias=False),
            norm2=nn.BatchNorm2d(given),
            relu2=nn.ReLU(),
        )
    )
