"""The audit of a networked run's saved transcripts gives the figures of the simulated run's, to the last bit."""

import json
from pathlib import Path

from typer.testing import CliRunner

from secsplit import cli

RUN = """
name = "small"
[topology]
name = "u_shaped"
[model]
name = "lenet"
[data]
name = "digits"
limit = 500
[train]
epochs = 2
[parties]
hospital = { role = "client" }
compute = { role = "server" }
[audit]
attacks = ["gradient-clustering", "clue-distance", "inverse-network"]


"""


def told(folder: Path, *words: str) -> list[dict[str, object]]:
    """Train and audit; the audit's cells, without the time they took."""
    run, out = folder / "small.toml", folder / ("net" if words else "sim")
    run.write_text(RUN)
    runner = CliRunner()
    trained = runner.invoke(cli.app, ["train", str(run), "--out", str(out), *words], catch_exceptions=False)
    assert trained.exit_code == 0
    audited = runner.invoke(cli.app, ["audit", str(out), "--json"], catch_exceptions=False)
    assert audited.exit_code == 0
    return [{k: v for k, v in cell.items() if k != "cpu_seconds"} for cell in json.loads(audited.stdout)["cells"]]


def test_networked_and_simulated_runs_have_the_same_audit(tmp_path: Path) -> None:
    if not cli.app.registered_commands:
        cli.load_commands()
    simulated, networked = told(tmp_path), told(tmp_path, "--processes")
    assert simulated == networked
    ran = [cell for cell in simulated if cell["status"] == "ran"]
    assert {cell["attack"] for cell in ran} == {"gradient-clustering", "clue-distance", "inverse-network"}
    assert all(cell["leakages"] for cell in ran)
