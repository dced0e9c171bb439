"""Fashion-MNIST from a folder of idx or idx.gz files. Xiao, Rasul, Vollgraf 2017, arXiv 1708.07747.

The idx format is LeCun's: two zero bytes, the type (8: unsigned byte), the number of dimensions, each size as a
big-endian 32-bit integer, then the bytes.
"""

import gzip
import math
import os
import struct
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from secsplit.datasets.records import DatasetCard, mismatch
from secsplit.datasets.source import Source
from secsplit.datasets.spec import DataSpec

CARD = DatasetCard(
    source="Zalando Research, github.com/zalandoresearch/fashion-mnist",
    licence="MIT",
    what="70000 grey images of clothing, 28x28; labels y (10 classes) and footwear (sandal, sneaker, ankle boot)",
    real_patients=False,
)
FOOTWEAR = (5, 7, 9)
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
INSIDE = ("", "fashion-mnist", "FashionMNIST/raw")


def read(spec: DataSpec) -> Source:
    """(70000, 1, 28, 28) bytes, the last 10000 the published test set; labels ``y`` and ``footwear``."""
    folder = find(spec)
    images, y = [], []
    for part, n in (("train", 60_000), ("t10k", 10_000)):
        images.append(read_idx(folder, f"{part}-images-idx3-ubyte", (n, 28, 28)))
        y.append(read_idx(folder, f"{part}-labels-idx1-ubyte", (n,)))
    labels = torch.cat(y).long()
    return Source(
        CARD,
        torch.cat(images).unsqueeze(1),
        {"y": labels, "footwear": torch.isin(labels, torch.tensor(FOOTWEAR)).long()},
        {"y": 10, "footwear": 2},
        torch.arange(len(labels)),
        test=torch.arange(len(labels)) >= 60_000,
    )


def find(spec: DataSpec) -> Path:
    """The first folder that holds the files: the path given, else $SECSPLIT_DATA, ./data, Debian's package."""
    named = os.environ.get("SECSPLIT_DATA")
    roots = [spec.path] if spec.path else [*([Path(named)] if named else []), Path("data"), DEBIAN]
    for root in roots:
        for inside in INSIDE:
            if located(root / inside, "train-images-idx3-ubyte"):
                return root / inside
    if spec.download:
        return fetch(roots[0])
    raise mismatch(
        "data set 'fashion-mnist'",
        expected="train-images-idx3-ubyte or train-images-idx3-ubyte.gz in a folder",
        got=f"none in {', '.join(str(root) for root in roots)}",
        fix="install Debian's dataset-fashion-mnist, or set data.path to the folder, or set data.download = true",
    )


def fetch(root: Path) -> Path:
    """Let torchvision download the files into the folder."""
    from secsplit.vision import torchvision

    torchvision.datasets.FashionMNIST(root, download=True)
    return root / "FashionMNIST" / "raw"


def located(folder: Path, name: str) -> Path | None:
    """The file, plain or compressed."""
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def read_idx(folder: Path, name: str, shape: tuple[int, ...]) -> Tensor:
    """An idx file of unsigned bytes that must have exactly this shape; no more than it should hold is ever read."""
    path = located(folder, name)
    if path is None:
        raise mismatch(
            "data set 'fashion-mnist'", expected=f"{name} in {folder}", got="no such file", fix="copy it there"
        )
    header = struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape)
    size = len(header) + math.prod(shape)
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(size + 1)
    except (OSError, EOFError) as broken:
        raise mismatch(str(path), expected="an idx file", got=f"{broken}", fix="fetch the file again") from broken
    if content[: len(header)] != header or len(content) != size:
        raise mismatch(
            str(path),
            expected=f"an idx file of unsigned bytes of shape {shape}, {size} bytes",
            got=f"{len(content)} bytes beginning {content[: len(header)].hex()}",
            fix="fetch the file again",
        )
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=len(header)).copy()).reshape(shape)
