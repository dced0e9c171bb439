"""FLCHAIN: serum free light chain and death in 7874 residents of a county. Dispenzieri et al. 2012, Mayo Clin Proc.

Read from the ARFF file that scikit-survival ships, without importing it. Time to death and its cause are left out: they
are known only of those who died.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from secsplit.datasets.records import DatasetCard, mismatch
from secsplit.datasets.source import Source
from secsplit.datasets.spec import DataSpec
from secsplit.datasets.table import columns_of, tabulated

CARD = DatasetCard(
    source="Dispenzieri et al. 2012, by way of scikit-survival's flchain.arff",
    licence="as scikit-survival and R's survival package distribute it (GPL, LGPL)",
    what="residents over 50: age, sex, kappa and lambda light chains, creatinine, MGUS; y: death during follow-up",
    real_patients=True,
)
KNOWN_AFTERWARDS = ("futime", "chapter")


def read(spec: DataSpec) -> Source:
    """(7874, features); label ``y`` (1: dead, 27.5%)."""
    columns = columns_of(spec.path or find())
    if "death" not in columns:
        raise mismatch(f"{spec.path}", expected="a column 'death'", got=", ".join(columns), fix="give flchain.arff")
    kept = {name: column for name, column in columns.items() if name not in KNOWN_AFTERWARDS}
    return tabulated(kept, "death", spec, CARD)


def find() -> Path:
    """The file in scikit-survival's package, or among the data sets."""
    package = find_spec("sksurv")
    folders = (
        [Path(place) / "datasets" / "data" for place in (package.submodule_search_locations or [])] if package else []
    )
    for folder in (*folders, Path("data")):
        if (folder / "flchain.arff").is_file():
            return folder / "flchain.arff"
    raise mismatch(
        "data set 'flchain'",
        expected="flchain.arff in scikit-survival's package or in ./data",
        got="neither",
        fix="pip install scikit-survival, or set data.path to the file",
    )
