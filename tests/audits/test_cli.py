"""What the audit commands refuse before they compute anything."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from audits.cli import register
from secsplit.errors import RunError


@pytest.mark.parametrize("given", [["--set", "audit.seed=2"], ["--out", "elsewhere"]])
def test_a_finished_run_is_audited_as_it_is(tmp_path: Path, given: list[str]) -> None:
    app = typer.Typer()
    register(app)
    came = CliRunner().invoke(app, ["audit", str(tmp_path), *given])
    assert isinstance(came.exception, RunError)
    assert "finished run" in str(came.exception)
