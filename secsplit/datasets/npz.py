"""Images in one .npz file as MedMNIST ships them (Yang et al. 2023, arXiv 2110.14795): nothing in it is unpickled.

``{train,val,test}_images``: (n, h, w) or (n, h, w, 3) bytes; ``{train,val,test}_labels``: (n, 1), or (n, k) for k
binary labels. The validation records join those to train on, since nothing here is chosen by them.
"""

from __future__ import annotations

import zipfile

import numpy as np
import torch

from secsplit.datasets.records import DatasetCard, mismatch
from secsplit.datasets.source import Source
from secsplit.datasets.spec import DataSpec

PARTS = ("train", "val", "test")


def read(spec: DataSpec) -> Source:
    """(n, 1 or 3, h, w) bytes; label ``y``, or ``y0``, ``y1``, ... where a record has several."""
    if spec.path is None:
        raise mismatch("data set 'npz'", expected="data.path, a .npz file", got="none", fix="set data.path")
    images, labels, test = [], [], []
    try:
        with np.load(spec.path, allow_pickle=False) as arrays:
            for part in PARTS:
                if part == "val" and "val_images" not in arrays:
                    continue
                images.append(arrays[f"{part}_images"])
                labels.append(arrays[f"{part}_labels"].reshape(len(images[-1]), -1))
                test += [part == "test"] * len(images[-1])
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise mismatch(
            f"data.path {spec.path}",
            expected="a .npz of train_images, train_labels, test_images, test_labels",
            got=f"{error}",
            fix="write it as MedMNIST does, with plain arrays",
        ) from None
    pixels, y = np.concatenate(images), np.concatenate(labels)
    if pixels.dtype != np.uint8 or pixels.ndim not in (3, 4) or (pixels.ndim == 4 and pixels.shape[3] not in (1, 3)):
        raise mismatch(
            f"data.path {spec.path}, images",
            expected="bytes of shape (n, h, w) or (n, h, w, 3)",
            got=f"{pixels.dtype} {pixels.shape}",
            fix="convert them",
        )
    if not np.issubdtype(y.dtype, np.integer) or y.min() < 0:
        raise mismatch(
            f"data.path {spec.path}, labels", expected="classes from 0", got=f"{y.dtype}", fix="convert them"
        )
    tensor = torch.from_numpy(pixels)
    tensor = tensor.unsqueeze(1) if tensor.ndim == 3 else tensor.permute(0, 3, 1, 2)
    names = ["y"] if y.shape[1] == 1 else [f"y{i}" for i in range(y.shape[1])]
    columns = {name: torch.from_numpy(y[:, i].astype(np.int64)) for i, name in enumerate(names)}
    return Source(
        DatasetCard(spec.path.name, "not stated: a local file", f"images; labels {', '.join(names)}", True),
        tensor.contiguous(),
        columns,
        {name: max(2, int(column.max()) + 1) for name, column in columns.items()},
        torch.arange(len(tensor)),
        test=torch.tensor(test),
    )
