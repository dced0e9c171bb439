"""Tables from files: CSV, Parquet or ARFF to named columns, and columns to numbers.

A column whose every value reads as a number is one feature. Another is text: each of its levels becomes a feature of 0
and 1, ``sex=F``, as long as they are few; a column of many levels is a name or free text and is left out.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from secsplit.datasets.align import identified
from secsplit.datasets.records import DatasetCard, mismatch
from secsplit.datasets.source import Source
from secsplit.datasets.spec import DataSpec
from secsplit.errors import EnvironmentFault, nearest

MISSING = frozenset({"", "?", "na", "n/a", "nan", "null", "none"})
MOST_LEVELS = 50

Column = list[str | None]


def read(spec: DataSpec) -> Source:
    """A table in a CSV, Parquet or ARFF file: label ``y`` is ``data.label``; every other column can be a label too."""
    if spec.path is None:
        raise mismatch(
            "data set 'csv'", expected="data.path, a CSV, Parquet or ARFF file", got="none", fix="set data.path"
        )
    columns = columns_of(spec.path)
    label = spec.label or "y"
    for what, name in (("data.label", label), ("data.id", spec.id)):
        if name is not None and name not in columns and (what == "data.id" or spec.labels):
            raise mismatch(what, expected=f"a column of {spec.path}", got=repr(name), fix=nearest(name, columns))
    card = DatasetCard(
        source=str(spec.path.name),
        licence="not stated: a local file",
        what="a local table",
        real_patients=True,  # not known, so taken to be so
    )
    return tabulated(columns, label, spec, card)


def tabulated(columns: Mapping[str, Column], label: str, spec: DataSpec, card: DatasetCard) -> Source:
    """A Source of the columns, where ``y`` is the label column and ``data.id`` names the records."""
    names = columns.get(spec.id or "")
    if names is not None and (None in names or spec.id_key is None):
        raise mismatch(
            f"data.id {spec.id!r}",
            expected="a name for every record, and data.id_key to hash it with: no hospital number leaves a file",
            got="no key" if spec.id_key is None else f"{names.count(None)} records without",
            fix="set data.id_key to a file that the sites share" if spec.id_key is None else "name them",
        )
    n = len(next(iter(columns.values())))
    ids = identified((name or "" for name in names) if names else None, n, spec.id_key)
    features: dict[str, Tensor] = {}
    labels: dict[str, Tensor] = {}
    classes: dict[str, int] = {}
    told: list[str] = []
    for name, column in columns.items():
        if name == spec.id:
            continue
        coded = code(column)
        target = "y" if name == label else name
        if coded.levels and (name == label or name != "y"):
            labels[target], classes[target] = coded.classes(), len(coded.levels)
        elif name == label and coded.numbers is not None:
            labels[target], classes[target] = coded.numbers.float(), 0
        if name == label:
            told.append("label y: " + (", ".join(f"{i} {level}" for i, level in enumerate(coded.levels)) or "a number"))
        elif coded.numbers is not None:
            features[name] = coded.numbers.float()
        else:
            features.update({f"{name}={level}": coded.of(level) for level in coded.levels})
            told += [] if coded.levels else [f"left out: {name}, of too many levels"]
    if "y" not in labels and spec.labels:
        raise mismatch(
            f"data.label {label!r}",
            expected=f"numbers, or at most {MOST_LEVELS} classes",
            got="text of more levels, or no value at all",
            fix="choose another column",
        )
    card = DatasetCard(card.source, card.licence, "; ".join([card.what, *told]), card.real_patients, tuple(features))
    inputs = torch.stack(list(features.values()), 1) if features else torch.zeros(n, 0)
    return Source(card, inputs, labels, classes, ids)


@dataclass(frozen=True)
class Coded:
    """A column as numbers (NaN where missing), or as text; and its levels, where they are few."""

    column: Column
    numbers: Tensor | None
    levels: tuple[str, ...]

    def classes(self) -> Tensor:
        """(n,) int64: the level of each row, -1 where missing."""
        place = {level: i for i, level in enumerate(self.levels)}
        return torch.tensor([-1 if value is None else place[value] for value in self.column])

    def of(self, level: str) -> Tensor:
        """(n,) float32: 1 in rows of that level."""
        return torch.tensor([float(value == level) for value in self.column])


def code(column: Column) -> Coded:
    """Find out what a column holds. Levels are the distinct texts of up to MOST_LEVELS, numbers in order of size."""
    try:
        values = [np.nan if value is None else float(value) for value in column]
        numbers = torch.tensor(values, dtype=torch.float64) if any(value is not None for value in column) else None
    except ValueError:
        numbers = None
    if numbers is not None and bool(torch.isinf(numbers).any()):
        numbers = None
    distinct = {value for value in column if value is not None}
    whole = numbers is None or bool((numbers.nan_to_num().frac() == 0).all())
    few = 0 < len(distinct) <= MOST_LEVELS and whole
    levels = sorted(distinct, key=(lambda value: (float(value), value)) if numbers is not None else str) if few else []
    return Coded(column, numbers, tuple(levels))


def columns_of(path: Path) -> dict[str, Column]:
    """Every column of the file as text, None where a value is missing. Raises DataError."""
    readers = {".csv": _csv, ".tsv": _csv, ".parquet": _parquet, ".arff": _arff}
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    reader = readers.get(suffix.lower())
    if reader is None:
        raise mismatch(
            f"data.path {path}", expected=", ".join(readers), got=suffix or "no suffix", fix="convert the file"
        )
    try:
        columns = reader(path)
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise mismatch(
            f"data.path {path}", expected="a table", got=f"{error}", fix="check the path and the file"
        ) from None
    if not columns or not len(next(iter(columns.values()))):
        raise mismatch(
            f"data.path {path}", expected="rows under a line of column names", got="none", fix="check the file"
        )
    return {name: [_value(value) for value in values] for name, values in columns.items()}


def _value(value: str) -> str | None:
    text = value.strip()
    return None if text.lower() in MISSING else text


def _csv(path: Path) -> dict[str, list[str]]:
    with (
        gzip.open(path, "rt", encoding="utf-8-sig", newline="")
        if path.suffix == ".gz"
        else path.open(encoding="utf-8-sig", newline="") as file
    ):
        rows = csv.reader(file, delimiter="\t" if ".tsv" in path.suffixes else ",", strict=True)
        header = [name.strip() for name in next(rows, [])]
        _named_once(header, path)
        table = [row for row in rows if row]
    for line, row in enumerate(table, 2):
        if len(row) != len(header):
            raise mismatch(
                f"{path}, row {line}",
                expected=f"{len(header)} values",
                got=f"{len(row)}",
                fix="quote values with commas",
            )
    return {name: [row[i] for row in table] for i, name in enumerate(header)}


def _parquet(path: Path) -> dict[str, list[str]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise EnvironmentFault("Parquet files need pyarrow: pip install 'secsplit[tabular]'") from None
    try:
        table = parquet.read_table(path)
    except ArrowException as error:
        raise mismatch(f"data.path {path}", expected="a Parquet file", got=f"{error}", fix="check the file") from None
    _named_once(table.column_names, path)
    columns = {name: table.column(name).to_pylist() for name in table.column_names}
    return {name: ["" if value is None else str(_plain(value)) for value in values] for name, values in columns.items()}


def _plain(value: object) -> object:
    return int(value) if isinstance(value, bool) else value


def _arff(path: Path) -> dict[str, list[str]]:
    from scipy.io import arff

    try:
        with path.open(encoding="utf-8") as file:
            rows, meta = arff.loadarff(file)
    except (arff.ArffError, NotImplementedError, StopIteration, ValueError) as error:
        raise mismatch(f"data.path {path}", expected="an ARFF file", got=f"{error}", fix="check the file") from None
    return {
        name: [value.decode() if isinstance(value, bytes) else f"{value:.17g}" for value in rows[name].tolist()]
        for name in meta.names()
    }


def _named_once(header: Sequence[str], path: Path) -> None:
    wrong = [name for name in header if not name or header.count(name) > 1]
    if wrong:
        raise mismatch(f"{path}", expected="a name for each column, each once", got=repr(wrong[0]), fix="rename it")
