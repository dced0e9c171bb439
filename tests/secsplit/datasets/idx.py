"""Writes a folder of idx files as Fashion-MNIST ships them, with random pixels."""

import gzip
import struct
from pathlib import Path

import torch
from torch import Tensor


def write_fashion_mnist(folder: Path, *, packed: bool) -> tuple[Tensor, Tensor]:
    """70000 images of which only the first rows and columns vary, and labels that count up; returns both."""
    folder.mkdir(parents=True, exist_ok=True)
    images = torch.zeros(70_000, 28, 28, dtype=torch.uint8)
    images[:, :2, :2] = torch.randint(256, (70_000, 2, 2), generator=torch.Generator().manual_seed(0)).byte()
    labels = torch.arange(70_000) % 10
    for part, rows in (("train", slice(0, 60_000)), ("t10k", slice(60_000, None))):
        for name, values in (("images-idx3-ubyte", images[rows]), ("labels-idx1-ubyte", labels[rows].byte())):
            header = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
            content = header + values.numpy().tobytes()
            path = folder / f"{part}-{name}"
            if packed:
                path.with_name(path.name + ".gz").write_bytes(gzip.compress(content, 1))
            else:
                path.write_bytes(content)
    return images, labels
