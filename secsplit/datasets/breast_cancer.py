"""Breast cancer Wisconsin (diagnostic), from scikit-learn: nothing to download. Street, Wolberg, Mangasarian 1993."""

import torch

from secsplit.datasets.records import DatasetCard
from secsplit.datasets.source import Source
from secsplit.datasets.spec import DataSpec


def read(spec: DataSpec) -> Source:
    """(569, 30) features of real patients; label ``y`` (1: malignant, the reverse of scikit-learn's order).

    Ten measures of the cell nuclei in three modalities: ``mean *``, ``* error`` and ``worst *``.
    """
    from sklearn.datasets import load_breast_cancer

    bunch = load_breast_cancer()
    card = DatasetCard(
        source="scikit-learn load_breast_cancer: UCI Breast Cancer Wisconsin (Diagnostic)",
        licence="CC BY 4.0",
        what="569 patients, 30 measures of cell nuclei in fine needle aspirates; label y: 1 malignant, 0 benign",
        real_patients=True,
        features=tuple(str(name) for name in bunch.feature_names),
    )
    y = 1 - torch.from_numpy(bunch.target).long()
    return Source(card, torch.from_numpy(bunch.data).float(), {"y": y}, {"y": 2}, torch.arange(len(y)))
