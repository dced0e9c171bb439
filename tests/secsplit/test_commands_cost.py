"""`secsplit cost` and `secsplit reproduce` on the command line: results on stdout, the same numbers as JSON."""

import json

import pytest
import typer
from typer.testing import CliRunner

from secsplit.commands import cost, reproduce
from secsplit.commands.console import table
from secsplit.commands.cost import size

app = typer.Typer(pretty_exceptions_enable=False)
cost.register(app)
reproduce.register(app)


def run(*words: str) -> str:
    done = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_cost_prints_tables_and_the_same_as_json() -> None:
    short = ["cost", "examples/vertical.toml", "--steps", "1", "--set", "train.epochs=2"]
    text, told = run(*short), json.loads(run(*short, "--json"))
    assert "largest difference between foretold and measured bytes: 0.000%" in text
    server = next(party for party in told["parties"] if party["name"] == "compute")
    assert server["payload_per_epoch"] * 2 == server["sent"]["payload"] + server["received"]["payload"]
    assert told["measured"]["largest_relative_difference"] == 0.0
    assert [s["name"] for s in told["segments"]][-1] == "top"


def test_reproduce_lists_what_there_is_and_prints_a_table_with_its_assumptions() -> None:
    assert "gupta-table1: client computation" in run("reproduce")
    text = run("reproduce", "gupta-table1")
    assert "29.4146" in text
    assert "assumed:" in text
    told = json.loads(run("reproduce", "gupta-table1", "--json"))
    assert told["passes"]["fitted"] is True


@pytest.mark.parametrize(
    ("nbytes", "said"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.00 KiB"), (3 << 29, "1.50 GiB"), (1 << 41, "2048.00 GiB")],
)
def test_sizes_for_people(nbytes: int, said: str) -> None:
    assert size(nbytes) == said


def test_columns_line_up() -> None:
    assert table(["a", "n"], [["long", "1"], ["b", "100"]]) == ["  a       n", "  long    1", "  b     100"]
