"""Data sets: what each source holds, which columns of it, and how it is shared among clients. Files: one a source."""

from secsplit.datasets import breast_cancer, digits, fashion_mnist, flchain, images, npz, table
from secsplit.datasets.describe import describe
from secsplit.datasets.own import of_torch
from secsplit.datasets.records import Dataset, DatasetCard, Records, mismatch
from secsplit.datasets.shards import shards
from secsplit.datasets.source import Source, shape
from secsplit.datasets.spec import DataSpec
from secsplit.errors import DataError, nearest

SOURCES = {
    "digits": digits.read,
    "breast-cancer": breast_cancer.read,
    "fashion-mnist": fashion_mnist.read,
    "flchain": flchain.read,
    "csv": table.read,
    "npz": npz.read,
    "image-folder": images.read,
    "dicom": images.read,
}


def load(spec: DataSpec) -> Dataset:
    """Load the data set that the ``[data]`` table of a run file asks for. Raises DataError."""
    if spec.name not in SOURCES:
        raise mismatch("data.name", expected="a data set", got=repr(spec.name), fix=nearest(spec.name, SOURCES))
    return shape(SOURCES[spec.name](spec), spec)


__all__ = [
    "SOURCES",
    "DataError",
    "DataSpec",
    "Dataset",
    "DatasetCard",
    "Records",
    "Source",
    "describe",
    "load",
    "of_torch",
    "shape",
    "shards",
]
