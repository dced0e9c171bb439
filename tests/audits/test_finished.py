"""What lies in a run's folder must belong to that run, be whole, and be finite; each fault is named."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file

from audits.finished import Finished
from secsplit.errors import RunError
from secsplit.message import Kind
from secsplit.transcript import VERSION
from tests.audits.conftest import trained


@pytest.fixture
def copy(finished: Finished, tmp_path: Path) -> Path:
    assert finished.folder is not None
    return Path(shutil.copytree(finished.folder, tmp_path / "run"))


def test_all_is_there_and_in_order(finished: Finished) -> None:
    assert set(finished.transcripts) == {"hospital-a", "hospital-b", "compute"}
    assert finished.snapshots("compute", "top")[0].step == -1
    assert len(finished.snapshots("hospital-a", "bottom")) == 3
    assert finished.truth.site(1) == "hospital-b"
    assert len(finished.outside.labels["y"]) == 120


def test_rows_of_a_message_are_those_that_made_it(finished: Finished) -> None:
    """The first smashed data, rebuilt from the truth and the weights that everyone began with."""
    record = next(r for r in finished.transcripts["compute"] if r.kind is Kind.SMASHED)
    x = finished.truth.inputs[record.stamp.cast]["x"][finished.order(record.stamp)]
    bottom = finished.snapshots("hospital-a", "bottom")[0].make()
    assert torch.equal(bottom(x), record.tensor)


def index_of(folder: Path, party: str = "compute") -> Path:
    return folder / "parties" / party / "transcript" / "index.jsonl"


def edit(path: Path, change: Callable[[list[dict[str, object]]], None]) -> None:
    lines = [msgspec.json.decode(line) for line in path.read_bytes().splitlines()]
    change(lines)
    path.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))


def smashed(lines: list[dict[str, object]]) -> dict[str, object]:
    return next(line for line in lines if line["kind"] == "smashed")


@pytest.mark.parametrize(
    ("lost", "reason"),
    [
        (slice(-1, None), r"step 19 has no control on 'all saved' received from hospital-a"),
        (slice(-4, None), r"step 19 has no control on 'audit-head' received from hospital-a"),
        (slice(-12, -11), r"truncated: step \d+ has no"),
        (slice(10, 11), r"truncated: step \d+ has no"),
        (slice(10, None), r"truncated: step \d+ has no"),
    ],
)
def test_a_truncated_transcript_is_named(copy: Path, lost: slice, reason: str) -> None:
    edit(index_of(copy), lambda lines: lines.__delitem__(lost))
    with pytest.raises(RunError, match=reason):
        Finished.open(copy)


def test_a_record_of_another_run_is_named(copy: Path) -> None:
    edit(index_of(copy), lambda lines: smashed(lines).update(stamp=[9999, 0, 0, 0, True]))
    with pytest.raises(RunError, match=r"record \d+: smashed at step 9999 belongs to another run"):
        Finished.open(copy)


def test_a_message_that_cannot_cross_is_named(copy: Path) -> None:
    edit(index_of(copy), lambda lines: smashed(lines).update(peer="hospital-x"))
    with pytest.raises(RunError, match="nothing crosses so in this topology"):
        Finished.open(copy)


def test_rows_that_do_not_fit_the_order_are_named(copy: Path) -> None:
    edit(index_of(copy), lambda lines: smashed(lines).update(tensors={"h": ["float32", [3, 48]]}))
    with pytest.raises(RunError, match=r"has 3 rows where the run's order has \d+"):
        Finished.open(copy)


def test_not_a_number_is_named(copy: Path) -> None:
    shard = index_of(copy).parent / "00000.safetensors"
    tensors = load_file(shard)
    next(t for t in tensors.values() if t.is_floating_point())[0] = torch.nan
    save_file(tensors, shard, {"version": str(VERSION), "party": "compute"})
    with pytest.raises(RunError, match=r"transcript of 'compute', record \d+: tensor 'h' has NaN"):
        Finished.open(copy)


@pytest.mark.parametrize(
    ("facts", "message"),
    [({"version": "99", "party": "compute"}, "version 99, expected 1"), ({"version": "1", "party": "eve"}, "by 'eve'")],
)
def test_another_version_or_party_is_named(copy: Path, facts: dict[str, str], message: str) -> None:
    shard = index_of(copy).parent / "00000.safetensors"
    save_file(load_file(shard), shard, facts)
    with pytest.raises(RunError, match=message):
        Finished.open(copy)


def test_a_torn_shard_is_named(copy: Path) -> None:
    shard = index_of(copy).parent / "00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(RunError, match="is it truncated"):
        Finished.open(copy)


def test_a_party_of_no_run_is_named(copy: Path) -> None:
    (copy / "parties" / "eve").mkdir()
    with pytest.raises(RunError, match="eve: no party of this run"):
        Finished.open(copy)


def test_a_changed_run_file_is_named(copy: Path) -> None:
    path = copy / "run.toml"
    path.write_text(path.read_text().replace("epochs = 2", "epochs = 3"))
    with pytest.raises(RunError, match="changed since the run"):
        Finished.open(copy)


@pytest.mark.parametrize("tables", [
    {"topology": {"name": "u_shaped"}, "model": {"cut": ["relu1", "relu2"], "widths": (48, 24)}},
    {"train": {"seed": 3, "epochs": 1, "batch_size": 40, "micro_batches": 2, "record": 3}},
    {"method": {"name": "splitfed-v1"}}, {"method": {"name": "splitfed-v3"}},
], ids=["u-shaped", "micro-batches, every third", "splitfed-v1", "splitfed-v3"])  # fmt: skip
def test_other_runs_open_too(tmp_path: Path, tables: dict[str, object]) -> None:
    assert set(trained(tmp_path, **tables).transcripts) == {"hospital-a", "hospital-b", "compute"}
