"""One small run, trained once, and its audit: two hospitals and a server that owns the labels, on 8x8 digits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from audits.config import AuditSpec
from audits.finished import Finished
from audits.privacy import Audit, audit
from secsplit.run import Run
from secsplit.runfile import parse
from secsplit.training import train_simulated
from tests.audits import toys

HOSPITALS = {"hospital-a": {"role": "client"}, "hospital-b": {"role": "client"}, "compute": {"role": "server"}}


def run_of(**tables: Any) -> Run:
    """The run's tables, with some replaced."""
    default = {
        "name": "digits",
        "topology": {"name": "vanilla", "labels": "server"},
        "model": {"name": "mlp", "widths": (48, 24), "cut": ["relu1"]},
        "data": {"name": "digits", "limit": 240, "limit_test": 120},
        "train": {"seed": 1, "epochs": 2, "batch_size": 40},
        "optimizer": {"lr": 0.01},
        "parties": HOSPITALS,
    }
    return Run.of(parse({**default, **tables}))


def trained(folder: Path, **tables: Any) -> Finished:
    """A run with these tables, carried out and opened."""
    train_simulated(run_of(**tables), folder, lambda party, news: None)
    return Finished.open(folder)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return trained(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="session")
def audited(finished: Finished) -> Audit:
    found = audit(finished, AuditSpec(), attacks=toys.ALL)
    assert finished.folder is not None
    found.save(finished.folder)
    return found
