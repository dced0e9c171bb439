"""The matrix holds every combination once, with a figure or a reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from markupsafe import escape
from typer.testing import CliRunner

from attacks.catalogue import catalogue
from audits.grid import points
from audits.matrix import matrix_of
from audits.privacy import Audit
from audits.tables import show_matrix
from secsplit import cli
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


TWO: dict[str, Any] = {
    "name": "two",
    "topology": {"name": "vanilla", "labels": "server"},
    "model": {"name": "mlp", "widths": [24, 16], "cut": ["relu1"]},
    "data": {"name": "digits", "limit": 160, "limit_test": 80},
    "train": {"epochs": 1, "batch_size": 40},
    "parties": {"hospital": {"role": "client"}, "compute": {"role": "server"}},
    "audit": {"attacks": ["gradient-clustering", "active-completion"], "gallery": 0},
    "grid": {
        "seeds": [1],
        "configurations": [
            {"name": "plain"},
            {"name": "u", "set": {"topology": {"name": "u_shaped"}, "model.cut": ["relu1", "relu2"]}},
        ],
    },
}


def test_settings_of_several_topologies_are_reported_as_matrices(tmp_path: Path) -> None:
    """From the run file to the page: a row an attack, a column an adversary, in every setting, and every reason."""
    file = tmp_path / "two.toml"
    file.write_text(tomli_w.dumps(TWO))
    if not cli.app.registered_commands:
        cli.load_commands()
    out, runner = tmp_path / "out", CliRunner()
    done = runner.invoke(cli.app, ["audit", str(file), "--out", str(out)], catch_exceptions=False)
    assert done.exit_code == 0
    assert "plain (vanilla)" in done.stdout
    assert "u (u_shaped)" in done.stdout
    assert "0 failed" in done.stdout
    assert runner.invoke(cli.app, ["report", str(out)], catch_exceptions=False).exit_code == 0
    report = json.loads((out / "report.json").read_text())
    matrices = report["sweep"]["matrices"]
    assert [(m["setting"], m["topology"]) for m in matrices] == [("plain", "vanilla"), ("u", "u_shaped")]
    for matrix in matrices:
        assert {line["attack"] for line in matrix["lines"]} == {"gradient-clustering", "active-completion"}
        assert all(len(line["squares"]) == len(matrix["threats"]) == 5 for line in matrix["lines"])
    page = (out / "report.html").read_text()
    for reason in (reason["text"] for matrix in matrices for reason in matrix["reasons"]):
        assert str(escape(reason)) in page
