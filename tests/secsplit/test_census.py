"""Parties that hold columns of the same records find out before the run whether they really do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from secsplit.assemble import parties_of
from secsplit.census import CENSUS, _told
from secsplit.cli import app, load_commands
from secsplit.drive import simulate
from secsplit.errors import PeerError
from secsplit.message import Kind, Message
from secsplit.run import Run
from secsplit.runfile import parse

PATIENTS = [f"MRN{i:03d}" for i in range(60)]


def site(folder: Path, name: str, patients: list[str], *, outcome: bool) -> dict[str, object]:
    """A hospital's own table: each patient's number as its only feature, and outcomes at one of them."""
    head = ["mrn", "number", *(["outcome"] if outcome else [])]
    rows = [[p, p[3:], *(["ill" if int(p[3:]) % 3 else "well"] if outcome else [])] for p in patients]
    (folder / f"{name}.csv").write_text("\n".join(",".join(row) for row in [head, *rows]))
    key = folder / "key"
    key.write_text("ab" * 32)
    key.chmod(0o600)
    data: dict[str, object] = {"name": "csv", "path": str(folder / f"{name}.csv"), "id": "mrn", "id_key": str(key)}
    return data | {"modalities": {name: "all"}, **({"label": "outcome"} if outcome else {"labels": {}})}


def run_of(left: dict[str, object], right: dict[str, object]) -> dict[str, object]:
    return {
        "topology": {"name": "vertical", "modalities": ["left", "right"], "labels": "right"},
        "model": {"name": "mlp"},
        "form": {"shapes": {"left": [1], "right": [1]}, "classes": {"y": 2}},
        "parties": {
            "one": {"role": "left", "data": left},
            "other": {"role": "right", "data": right},
            "compute": {"role": "server"},
        },
    }


def both(folder: Path, ours: list[str], theirs: list[str]) -> dict[str, object]:
    return run_of(site(folder, "left", ours, outcome=False), site(folder, "right", theirs, outcome=True))


def test_the_same_records_in_any_file_order_train_aligned(tmp_path: Path) -> None:
    parties = parties_of(Run.of(parse(both(tmp_path, PATIENTS, PATIENTS[::-1]))))
    for split in ("train", "test"):
        left, right = parties["one"].shards[0].inputs[split], parties["other"].shards[0].inputs[split]  # type: ignore[index]
        assert torch.equal(left["left"], right["right"])
    simulate(parties)


def test_other_records_of_the_same_number_are_refused(tmp_path: Path) -> None:
    parties = parties_of(Run.of(parse(both(tmp_path, PATIENTS[:-1], PATIENTS[1:]))))
    with pytest.raises(PeerError, match=r"records of cast 0 are others than were known.*data\.common"):
        simulate(parties)


def test_sites_agree_on_common_records_by_two_commands(tmp_path: Path) -> None:
    import tomli_w

    load_commands()
    tables = both(tmp_path, PATIENTS[:50], PATIENTS[:9:-1])
    (tmp_path / "run.toml").write_text(tomli_w.dumps(tables))
    lists = [str(tmp_path / f"{party}.ids") for party in ("one", "other")]
    for party, path in zip(("one", "other"), lists, strict=True):
        made = CliRunner().invoke(app, ["data", "ids", str(tmp_path / "run.toml"), "--party", party, "--out", path])
        assert made.exit_code == 0, made.output
    agreed = str(tmp_path / "common.ids")
    made = CliRunner().invoke(app, ["data", "common", *lists, "--out", agreed])
    assert "40 records in common" in made.output
    for party in tables["parties"].values():  # type: ignore[attr-defined]
        if "data" in party:
            party["data"]["common"] = agreed
    parties = parties_of(Run.of(parse(tables)))
    assert sum(parties["one"].shards[0].size(split) or 0 for split in ("train", "test")) == 40  # type: ignore[arg-type]
    simulate(parties)


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"train-casts": [0], "train-records": [3], "train-orders": []},
        {"train-casts": [0], "train-records": [-3], "train-orders": [0]},
        {"train-casts": [9], "train-records": [3], "train-orders": [0]},
        {"train-casts": [0], "train-records": [3], "train-orders": [1 << 63]},
        {"train-casts": [0], "train-records": [True], "train-orders": [0]},
    ],
)
def test_nonsense_is_refused(facts: dict[str, list[int]]) -> None:
    test = {"test-casts": [], "test-records": [], "test-orders": []} if facts else {}
    with pytest.raises(PeerError, match="census"):
        _told(Message(Kind.CONTROL, CENSUS, facts=facts | test), 2, "compute")
