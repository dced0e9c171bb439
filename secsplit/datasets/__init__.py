"""Data sets: what each source holds, which columns of it, and how it is shared among clients. Files: one a source."""

from secsplit.datasets import breast_cancer, digits, fashion_mnist, flchain, images, npz, table
from secsplit.datasets.align import places, read_ids
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
    return shape(source_of(spec), spec)


def source_of(spec: DataSpec) -> Source:
    """All records of the source; by keyed id where it names them, and only those that the sites have in common."""
    if spec.name not in SOURCES:
        raise mismatch("data.name", expected="a data set", got=repr(spec.name), fix=nearest(spec.name, SOURCES))
    source = SOURCES[spec.name](spec)
    if spec.id_key is None:
        if spec.common is not None:
            raise mismatch(
                "data.common", expected="data.id_key beside it", got="none", fix="set data.id and data.id_key"
            )
        return source
    ids = source.ids.sort().values if spec.common is None else read_ids(spec.common)
    return source.take(places(source.ids, ids))


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
    "source_of",
]
