"""Handwritten digits, 8x8, from scikit-learn: nothing to download. Alpaydin and Kaynak 1998, UCI repository."""

import torch

from secsplit.datasets.records import DatasetCard
from secsplit.datasets.source import Source
from secsplit.datasets.spec import DataSpec

CARD = DatasetCard(
    source="scikit-learn load_digits: test part of UCI Optical Recognition of Handwritten Digits",
    licence="CC BY 4.0",
    what="1797 images of handwritten digits, 8x8 grey pixels; labels y (10 classes) and parity",
    real_patients=False,
)


def read(spec: DataSpec) -> Source:
    """(1797, 1, 8, 8) images in [0, 1]; labels ``y`` (10 classes) and ``parity`` (1: odd)."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float().div_(16).unsqueeze(1)
    y = torch.from_numpy(bunch.target).long()
    return Source(CARD, images, {"y": y, "parity": y % 2}, {"y": 10, "parity": 2}, torch.arange(len(y)))
