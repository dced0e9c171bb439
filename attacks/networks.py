"""Networks of the adversary's own, made from nothing but the shapes of what it has and what it saw.

An adversary that does not know the victim's architecture builds one that takes the same records and makes messages of
the same shape. This file knows shapes only: no view, no victim.
"""

from __future__ import annotations

from math import log2

import torch
from torch import Tensor, nn

WIDTH = 16  # channels of the hidden convolutions
KERNEL = 5
HIDDEN = 256  # units of the hidden layers for tables


def simulator(record: torch.Size, message: torch.Size, *, positive: bool) -> nn.Module:
    """A network from records (n, *record) to messages (n, *message); `positive` ends it with a ReLU.

    Maps (channels, height, width) to maps by convolutions, pooled as often as the sizes ask; to a vector by a
    convolutional network of two poolings; anything else by a fully connected network.
    """
    last: list[nn.Module] = [nn.ReLU()] if positive else []
    if len(record) == 3 and len(message) == 3:
        return nn.Sequential(*_to_maps(record, message), *last)
    if len(record) == 3 and min(record[1:]) >= 4:
        small = (max(1, record[1] // 4), max(1, record[2] // 4))
        maps = torch.Size((2 * WIDTH, *small))
        head = nn.Linear(maps.numel(), message.numel())
        return nn.Sequential(*_to_maps(record, maps), nn.ReLU(), nn.Flatten(), head, nn.Unflatten(1, message), *last)
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(record.numel(), HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, message.numel()),
        nn.Unflatten(1, message),
        *last,
    )


def _to_maps(record: torch.Size, message: torch.Size) -> list[nn.Module]:
    """Convolution, ReLU and pooling once a halving, then a convolution pooled to the size asked for."""
    halvings = max(0, min(int(log2(max(1.0, record[i] / message[i]))) for i in (1, 2)))
    layers: list[nn.Module] = []
    channels = record[0]
    for _ in range(halvings):
        layers += [nn.Conv2d(channels, WIDTH, KERNEL, padding=KERNEL // 2), nn.ReLU(), nn.MaxPool2d(2)]
        channels = WIDTH
    last = nn.Conv2d(channels, message[0], KERNEL, padding=KERNEL // 2)
    return [*layers, last, nn.AdaptiveMaxPool2d(tuple(message[1:]))]


def tail(output: torch.Size, classes: int) -> nn.Module:
    """A classifier on what a segment puts out: what an adversary guesses the head of a U-shape to be."""
    return nn.Sequential(nn.Flatten(), nn.Linear(output.numel(), HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, classes))


def positive(messages: Tensor) -> bool:
    """Whether messages never go below zero, as behind a ReLU; anybody who sees them can tell."""
    return bool((messages >= 0).all())
