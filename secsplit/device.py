"""Where a party computes: on its processor, or on a GPU where it has one; each party for itself.

What a party sends and is handed, its records, its labels and its losses are always in the memory of the processor:
defenses, transcripts and the wire know no device.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from secsplit.errors import EnvironmentFault

CPU = torch.device("cpu")


def device_of(name: str, place: int = 0) -> torch.device:
    """ "cpu", "cuda", "cuda:1"; or "auto": a GPU where there is one, parties in turn where there are several.

    ``place``: the party's place in the run file. Raises EnvironmentFault where that GPU is not here.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda", place % count) if count else CPU
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= count:
        raise EnvironmentFault(f'device: {name!r} is not here ({count} GPUs); use "cpu" or "auto"')
    return device


def device_in(module: nn.Module) -> torch.device:
    """Where a module's weights are; the processor where it has none."""
    return next((tensor.device for tensor in (*module.parameters(), *module.buffers())), CPU)


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on that device; autograd brings its gradient back."""
    return tensor if tensor.device == device else tensor.to(device)


def seeded(seed: int, device: torch.device) -> None:
    """Seed what layers draw from on the processor, and on that device."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)
