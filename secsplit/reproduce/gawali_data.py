"""The records that the comparison of Gawali et al. 2021 is made on: chest X-rays where they are given, else what ships.

The paper's own X-rays are not published. Taken are, in this order: a folder of images with binary labels (folders
``images`` and ``masks`` side by side give a segmentation too), FLCHAIN's file, Fashion-MNIST made binary and unequal,
and the digits that scikit-learn ships.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from secsplit.datasets import DataError, Dataset, DataSpec, load
from secsplit.reproduce.gawali_arms import Task
from secsplit.reproduce.result import Options

DENSE: Mapping[str, Any] = {"name": "densenet121"}
UNET: Mapping[str, Any] = {"name": "unet", "widths": (64, 128, 256, 512, 1024)}
SMALL_UNET: Mapping[str, Any] = {"name": "unet", "widths": (8, 16)}
ILL = 0.2  # the part of class 1 where a set is made binary
SHIRT = 6  # the class of Fashion-MNIST that is hardest to tell from others


def tasks_of(options: Options, folder: Path) -> list[Task]:
    """Classification, and segmentation where there are masks or images to make them from; `folder`: to write in."""
    if options.data is None:
        return _shipped(options, folder)
    if options.data.is_file():
        return [_flchain(options.data, options)]
    return _given(options.data, options)


def _given(root: Path, options: Options) -> list[Task]:
    """A folder of images of one's own, as the Shenzhen and Montgomery sets are named, or one folder a class."""
    images, masks = (root / "images", root / "masks") if (root / "masks").is_dir() else (root, None)
    size = 64 if options.quick else 224
    data = {"name": "image-folder", "path": str(images), "size": size}
    tasks = [_classification(f"{root.name}, {size}x{size}", data, {"name": "cnn"}, options)]
    if masks is not None:
        tasks.append(_segmentation(f"{root.name}, {size}x{size}", {**data, "masks": str(masks)}, options))
    return tasks


def _flchain(path: Path | None, options: Options) -> Task:
    data: dict[str, Any] = {"name": "flchain", **({"path": str(path)} if path else {})}
    if options.quick:
        data |= {"limit": 3000, "limit_test": 1000}
    epochs = 4 if options.quick else 20
    return Task("classification", "FLCHAIN: death", data, {"name": "mlp"}, epochs, 20, rate=3e-3)


def _shipped(options: Options, folder: Path) -> list[Task]:
    """Fashion-MNIST, else the digits: shirts (eights) against the rest, and scenes whose masks are known."""
    data: dict[str, Any] = {"name": "fashion-mnist", "positive": SHIRT, "positive_fraction": ILL}
    what = "Fashion-MNIST, shirts against the rest"
    try:
        items = load(DataSpec(name="fashion-mnist", limit=500 if options.quick else 4000, seed=options.seed))
    except DataError:
        data = {"name": "digits", "positive": 8, "positive_fraction": 0.1}
        what = "digits, eights against the rest"
        items = load(DataSpec(name="digits", limit=500, seed=options.seed))
    if options.quick:
        data |= {"limit": 1800, "limit_test": 1000}
    else:  # DenseNet halves a side five times
        data = write_items(load(DataSpec(limit=4000, limit_test=2000, seed=options.seed, **data)), folder / "items")
        what += ", 64x64"
    size = 32 if options.quick else 64
    scenes = write_scenes(items, folder / "scenes", size, torch.Generator().manual_seed(options.seed))
    about = f"pieces of {items.name} before a ground as bright as they are, {size}x{size}"
    return [_classification(what, data, {"name": "lenet"}, options), _segmentation(about, scenes, options)]


def _classification(what: str, data: Mapping[str, Any], small: Mapping[str, Any], options: Options) -> Task:
    if options.quick:
        return Task("classification", what, data, small, 5, 20, rate=3e-3)
    return Task("classification", what, data, DENSE, 20, 16)


def _segmentation(what: str, data: Mapping[str, Any], options: Options) -> Task:
    table = {**data, "labels": {"y": "mask"}}
    if options.quick:
        return Task("segmentation", what, table, SMALL_UNET, 4, 10, rate=3e-3)
    return Task("segmentation", what, table, UNET, 20, 8)


def write_items(items: Dataset, folder: Path) -> dict[str, Any]:
    """Images of two classes as files under train and test, for networks that want them larger; the [data] table."""
    for part, records in (("train", items.train), ("test", items.test)):
        for i, (image, label) in enumerate(zip(records.inputs["x"], records.labels["y"].tolist(), strict=True)):
            _write(folder / part / str(label) / f"{i:05d}.png", image[0])
    return {"name": "image-folder", "path": str(folder), "size": 64}


def write_scenes(items: Dataset, folder: Path, size: int, coins: torch.Generator) -> dict[str, Any]:
    """Scenes with their masks as files; the [data] table.

    Each piece lies somewhere before a clouded, noisy ground that is as bright as it: no threshold finds the mask.
    """
    images = items.train.inputs["x"][:, 0]
    side = size - size // 8
    for i, image in enumerate(F.interpolate(images[:, None], size=(side, side), mode="bilinear")[:, 0]):
        scene, mask = _scene(image, size, coins)
        _write(folder / "images" / f"{i:05d}_0.png", scene)
        _write(folder / "masks" / f"{i:05d}_0.png", mask)
    places = {"path": str(folder / "images"), "masks": str(folder / "masks")}
    return {"name": "image-folder", "size": size, **places}


def _scene(image: Tensor, size: int, coins: torch.Generator) -> tuple[Tensor, Tensor]:
    """(size, size) in [0, 1], and its mask, from one image of a piece."""
    up, left = torch.randint(0, size - len(image) + 1, (2,), generator=coins).tolist()
    piece = F.pad(image, (left, size - len(image) - left, up, size - len(image) - up))
    mask = (piece > 0.1).float()
    clouds = F.interpolate(torch.rand(1, 1, 8, 8, generator=coins), size=(size, size), mode="bilinear")[0, 0]
    noise = 0.08 * torch.randn(size, size, generator=coins)
    return torch.where(mask > 0, 0.2 + 0.5 * piece + 0.3 * (clouds - 0.5), 0.15 + 0.5 * clouds + noise), mask


def _write(path: Path, image: Tensor) -> None:
    """(height, width) in [0, 1], as a grey picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((image.clamp(0, 1) * 255).round().byte().numpy()).save(path)
