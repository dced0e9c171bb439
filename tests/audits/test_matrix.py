"""The matrix holds every combination once, with a figure or a reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from attacks.catalogue import catalogue
from audits.grid import points
from audits.matrix import matrix_of
from audits.privacy import Audit
from audits.tables import show_matrix
from secsplit.runfile import read
from secsplit.topologies import TOPOLOGIES
from tests.audits import toys

EXAMPLE = Path(__file__).parents[2] / "examples" / "matrix.toml"


def test_every_cell_stands_in_its_place(audited: Audit) -> None:
    matrix = matrix_of(audited, setting="digits", topology="vanilla")
    assert matrix.threats == ("curious client", "curious server", "wiretap")
    assert [line.attack for line in matrix.lines] == [each.name for each in toys.ALL]
    reasons = {reason.mark: reason.text for reason in matrix.reasons}
    for line in matrix.lines:
        for threat, square in zip(matrix.threats, line.squares, strict=True):
            cell = next(c for c in audited.cells if (c.attack, c.threat) == (line.attack, threat))
            assert square.status == cell.status
            assert reasons.get(square.mark, "") == cell.because
            assert (square.value is not None) == bool(cell.leakages)
    assert sum(matrix.count(status) for status in ("ran", "not applicable", "failed")) == len(audited.cells)


def test_a_missing_cell_is_refused(audited: Audit) -> None:
    with pytest.raises(ValueError, match="11 cells of 4 attacks by 3 adversaries"):
        matrix_of(audited.model_copy(update={"cells": audited.cells[1:]}), setting="s", topology="t")


def test_it_is_printed_with_its_reasons(audited: Audit, capsys: pytest.CaptureFixture[str]) -> None:
    show_matrix(matrix_of(audited, setting="digits", topology="vanilla"))
    text = capsys.readouterr().out
    assert "linear-inverse" in text
    assert "failed (" in text
    assert "client never received smashed messages" in text


def test_the_example_has_every_topology_and_every_attack() -> None:
    plan = points(read(EXAMPLE))
    assert {point.run().topology.name for point in plan} == set(TOPOLOGIES)
    assert all(point.run().file.audit.get("attacks", ["all"]) == ["all"] for point in plan)
    assert len(catalogue()) >= 20
