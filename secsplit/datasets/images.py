"""A folder of images, or of DICOM files, with their classes in folder names, in file names or in a table.

Folders: one a class (``ill/a.png``), by themselves or under ``train`` and ``test``. File names: ``NAME_0.png`` and
``NAME_1.png``, as the Shenzhen and Montgomery chest X-ray sets do (Jaeger et al. 2014). Table: ``data.table``, whose
column ``data.id`` names the file without its suffix and whose ``data.label`` is its class.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from secsplit.datasets import dicom
from secsplit.datasets.align import identified
from secsplit.datasets.records import DatasetCard, mismatch
from secsplit.datasets.source import Source
from secsplit.datasets.spec import DataSpec
from secsplit.datasets.table import code, columns_of
from secsplit.errors import nearest

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".pgm")
SUFFIXES = (*PICTURES, *dicom.SUFFIXES)
NUMBERED = re.compile(r"(.+)_(\d+)")


@dataclass(frozen=True)
class File:
    """One image, the name of its record, its class in words, and whether it is of a published test set."""

    path: Path
    name: str
    label: str
    test: bool | None = None


def read(spec: DataSpec) -> Source:
    """(n, channels, size, size) bytes; label ``y``, and ``mask`` where ``data.masks`` has one for each."""
    if spec.path is None or not spec.path.is_dir():
        raise mismatch(
            f"data set {spec.name!r}", expected="data.path, a folder of images", got=f"{spec.path}", fix="set data.path"
        )
    files = listed(spec)
    levels = code([file.label for file in files]).levels
    labels = {"y": torch.tensor([levels.index(file.label) for file in files])}
    classes = {"y": len(levels)}
    if spec.masks is not None:
        masks = {path.stem: path for path in _images(spec.masks)}
        labels["mask"] = torch.stack([_mask(file, spec.masks, masks, spec.size) for file in files])
        classes["mask"] = 2
    told = ", ".join(f"{i} {level}" for i, level in enumerate(levels))
    return Source(
        DatasetCard(spec.path.name, "not stated: a local folder", f"{len(files)} images; label y: {told}", True),
        torch.stack([pixels(file.path, spec) for file in files]),
        labels,
        classes,
        identified((file.name for file in files), len(files), spec.id_key),
        test=torch.tensor([bool(file.test) for file in files]) if files[0].test is not None else None,
    )


def listed(spec: DataSpec) -> list[File]:
    """Every image in the folder with its class, in the order of their paths. Raises DataError."""
    root = spec.path
    assert root is not None
    if spec.table is not None:
        return _by_table(root, spec)
    if (root / "train").is_dir() and (root / "test").is_dir():
        parts = [(root / part, part == "test") for part in ("train", "test")]
        return [file for folder, test in parts for file in _by_folder(folder, test)]
    files = _by_folder(root, None) or _by_name(root)
    if not files:
        raise mismatch(
            f"data.path {root}",
            expected=f"images ({', '.join(SUFFIXES)}) in one folder a class, or named NAME_0.png and NAME_1.png",
            got="none",
            fix="sort them so, or give data.table",
        )
    return files


def _by_folder(root: Path, test: bool | None) -> list[File]:
    folders = sorted(path for path in root.iterdir() if path.is_dir())
    return [
        File(
            path,
            f"{folder.name}/{path.stem}" if test is None else f"{root.name}/{folder.name}/{path.stem}",
            folder.name,
            test,
        )
        for folder in folders
        for path in _images(folder)
    ]


def _by_name(root: Path) -> list[File]:
    files = []
    for path in _images(root):
        match = NUMBERED.fullmatch(path.stem)
        if match is None:
            raise mismatch(
                f"{path}", expected="its class at the end of its name, NAME_0 or NAME_1", got=path.stem, fix="rename it"
            )
        files.append(File(path, match[1], match[2]))
    return files


def _by_table(root: Path, spec: DataSpec) -> list[File]:
    assert spec.table is not None
    columns = columns_of(spec.table)
    wanted = {"data.id": spec.id or "file", "data.label": spec.label or "y"}
    for key, column in wanted.items():
        if column not in columns:
            raise mismatch(key, expected=f"a column of {spec.table}", got=repr(column), fix=nearest(column, columns))
    present = {path.stem: path for path in _images(root)} | {path.name: path for path in _images(root)}
    files = []
    for name, label in zip(columns[wanted["data.id"]], columns[wanted["data.label"]], strict=True):
        path = present.get(name) if name else None
        if path is None or label is None:
            raise mismatch(
                f"{spec.table}, record {name!r}",
                expected=f"an image of that name in {root}, and a label",
                got="no image" if path is None else "no label",
                fix="remove the row, or add what is missing",
            )
        files.append(File(path, path.stem, label))
    return files


def _images(folder: Path) -> list[Path]:
    """The images in a folder and below, but nothing that a link leads to elsewhere."""
    root = folder.resolve()
    found = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in SUFFIXES and path.is_file()]
    return [path for path in found if path.resolve().is_relative_to(root)]


def pixels(path: Path, spec: DataSpec) -> Tensor:
    """(channels, size, size) bytes."""
    try:
        if path.suffix.lower() in dicom.SUFFIXES:
            picture: Image.Image = Image.fromarray(dicom.grey(path, allow_burned_in=spec.allow_burned_in))
        else:
            picture = Image.open(path)
        array = np.asarray(_fitted(picture, spec)).copy()
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise mismatch(f"{path}", expected="an image", got=f"{error}", fix="remove or replace the file") from None
    return torch.from_numpy(array).reshape(spec.size, spec.size, spec.channels).permute(2, 0, 1).contiguous()


def _mask(file: File, folder: Path, masks: Mapping[str, Path], size: int) -> Tensor:
    """(size, size) int64: 1 where the mask of the same name, of those by their names, is not black."""
    found = masks.get(file.path.stem) or masks.get(f"{file.path.stem}_mask")
    if found is None:
        raise mismatch("data.masks", expected=f"a mask for {file.path.name} in {folder}", got="none", fix="add it")
    picture = Image.open(found).convert("L").resize((size, size), Image.Resampling.NEAREST)
    return torch.from_numpy(np.asarray(picture) > 0).long()


def _fitted(picture: Image.Image, spec: DataSpec) -> Image.Image:
    """Grey or coloured, and of the size asked for."""
    return picture.convert("L" if spec.channels == 1 else "RGB").resize(
        (spec.size, spec.size), Image.Resampling.BILINEAR
    )
