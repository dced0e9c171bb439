"""Points of a sweep: planned whole before any runs, named by all they depend on, never computed twice, bit-equal."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from audits import grid as grids
from audits import shelf as shelves
from audits import sweep as sweeps
from audits.frontier import _not_measured, settings
from audits.grid import GridSpec, Point, PointResult, carry_out, grid_spec, points
from audits.policy import load
from audits.report.assemble import report_of_sweep
from audits.report.write import write
from audits.seal import seal
from audits.sweep import Grid, sweep
from audits.verify import verify
from channels import Identity
from secsplit.errors import RunError
from tests.audits.report.places import misplaced, unsaid

POLICY = Path(__file__).parents[2] / "examples" / "policy.toml"
NOISE = {"kind": "gaussian", "edge": "bottom->top", "clip": 1.0, "sigma": 0.3}
TABLES: dict[str, Any] = {
    "name": "small",
    "topology": {"name": "vanilla", "labels": "server"},
    "model": {"name": "mlp", "widths": [24, 16]},
    "data": {"name": "digits", "limit": 160, "limit_test": 80},
    "train": {"epochs": 1, "batch_size": 40},
    "parties": {"hospital": {"role": "client"}, "compute": {"role": "server"}},
    "audit": {
        "attacks": ["gradient-clustering", "inverse-network"],
        "gallery": 0,
        "threats": {"client": {"who": ["client"]}, "server": {"who": ["server"]}},
    },
    "grid": {
        "seeds": [1, 2],
        "held_out": [3],
        "control": "nothing",
        "axes": {"model.cut": [["relu1"], ["relu2"]]},
        "configurations": [{"name": "nothing"}, {"name": "noise", "set": {"defenses": [NOISE]}}],
    },
}


def tables(**grid: Any) -> dict[str, Any]:
    return {**TABLES, "grid": {**TABLES["grid"], **grid}}


FEW = tables(seeds=[1], held_out=[], axes={})


@contextmanager
def here(executor: str, jobs: int) -> Iterator[sweeps.CarryOut]:
    """The same sweep without processes, last point first."""

    def carried_out(plan: Sequence[Point], folder: Path) -> Iterator[PointResult]:
        for point in reversed(plan):
            yield carry_out(point, folder)

    yield carried_out


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Grid]:
    folder = tmp_path_factory.mktemp("grid")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweeps, "_workers", here)
        return folder, sweep(FEW, folder)


def test_every_combination_is_planned() -> None:
    plan = points(TABLES)
    assert len(plan) == 2 * 2 * 3
    assert len({point.key for point in plan}) == len(plan)
    assert {point.setting for point in plan} == {
        f"{name}, model.cut = {cut}" for name in ("nothing", "noise") for cut in ("relu1", "relu2")
    }
    assert all(point.run().file.train.seed == point.seed for point in plan)
    assert [p.held_out for p in plan[:3]] == [False, False, True]
    assert len(plan[-1].run().file.defenses) == 1


def test_a_key_is_all_that_a_point_depends_on() -> None:
    keys = {point.key for point in points(TABLES)}
    assert {point.key for point in points({**TABLES})} == keys
    assert keys.isdisjoint({p.key for p in points({**TABLES, "optimizer": {"lr": 0.5}})})
    more = {point.key for point in points(tables(seeds=[1, 2, 5]))}
    assert keys < more  # another seed does not make the others anew


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"sedes": [1]}, "grid.sedes: unknown key; did you mean 'seeds'"),
        ({"control": "nothign"}, "no configuration 'nothign'; did you mean 'nothing'"),
        ({"held_out": [2]}, "a seed that judges may not be one that chooses"),
        ({"axes": {"train.seed": [1]}}, "swept by grid.seeds"),
        ({"configurations": [{"name": "a"}, {"name": "a"}], "control": "a"}, "two configurations have one name"),
        ({"axes": {"train.epochz": [1]}}, r"grid point 'nothing, train.epochz = 1': train.epochz: unknown key"),
        ({"axes": {"name.x": [1]}}, "'name' is no table"),
        ({"seeds": []}, "grid.seeds"),
    ],
)
def test_what_makes_no_sense_is_named_before_anything_runs(grid: dict[str, Any], message: str) -> None:
    with pytest.raises(RunError, match=message):
        points(tables(**grid))


def test_defaults() -> None:
    assert grid_spec({}) == GridSpec()
    assert len(points({name: table for name, table in TABLES.items() if name != "grid"})) == 3


def test_controls_stand_beside(made: tuple[Path, Grid]) -> None:
    _, grid = made
    for point in grid.points:
        for cell in point.audit.cells:
            assert (cell.control is not None) == (cell.status == "ran")
    noisy = grid.of("noise")[0].audit.cells
    plain = grid.of("nothing")[0].audit.cells
    for a, b in zip(noisy, plain, strict=True):
        if b.status == "ran":
            assert a.control is not None
            assert a.control.leaks == any(leak.leaks for leak in b.leakages if leak.headline)


def test_what_is_kept_is_small_and_enough(made: tuple[Path, Grid]) -> None:
    folder, grid = made
    assert not list(folder.rglob("*.safetensors"))
    assert Grid.load(folder) == grid
    home = folder / grids.POINTS / grid.points[0].key
    assert (home / "parties" / "compute" / "transcript" / "index.jsonl").exists()


def test_nothing_finished_is_computed_again(made: tuple[Path, Grid], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, grid = made
    monkeypatch.setattr(sweeps, "_workers", here)
    monkeypatch.setattr(grids, "train_simulated", lambda *_: pytest.fail("trained again"))
    assert sweep(FEW, folder) == grid


class Killed(BaseException):
    """What a kill looks like from inside."""


@pytest.mark.parametrize("where", ["train_simulated", "audit_with_control", "utilities", "_slim"])
def test_a_point_killed_anywhere_ends_alike(
    made: tuple[Path, Grid], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def dies(*_: object, **__: object) -> None:
        raise Killed

    monkeypatch.setattr(sweeps, "_workers", here)
    with monkeypatch.context() as patch:
        patch.setattr(grids, where, dies)
        with pytest.raises(Killed):
            sweep(FEW, tmp_path)
    sweep(FEW, tmp_path)
    assert (tmp_path / sweeps.GRID).read_bytes() == (made[0] / sweeps.GRID).read_bytes()


def test_a_sweep_has_a_report_and_an_advisor(made: tuple[Path, Grid], tmp_path: Path) -> None:
    folder, grid = made
    report = report_of_sweep(grid, folder, policy=load(POLICY))
    html = write(report, tmp_path)[2].read_text()
    assert report.sweep is not None
    assert report.sweep.advice is not None
    assert report.sweep.shown in grid.settings
    assert all(setting in html for setting in grid.settings)
    assert "Leakage against utility" in html
    value = json.loads(report.model_dump_json())
    assert misplaced(value, html) == unsaid(value, html) == []
    assert any("three are the least to tell" in line for line in report.sweep.advice.not_measured)
    other = report_of_sweep(grid, folder, "noise").sweep
    assert other is not None
    assert other.shown == "noise"
    with pytest.raises(RunError, match="no setting 'nosie'; did you mean 'noise'"):
        report_of_sweep(grid, folder, "nosie")


def test_nothing_beats_what_is_marked(made: tuple[Path, Grid]) -> None:
    found = settings(made[1])
    places = [(s.worst() or 0.0, s.accuracy.mean if s.accuracy else 0.0) for s in found]
    for setting, mine in zip(found, places, strict=True):
        assert setting.best == (not any(o[0] <= mine[0] and o[1] >= mine[1] and o != mine for o in places))


def test_a_goal_that_a_seed_lacks_is_told(made: tuple[Path, Grid]) -> None:
    _, grid = made
    point = grid.points[0]
    bare = point.audit.model_copy(update={"cells": ()})
    again = point.model_copy(update={"seed": point.seed + 1, "audit": bare})
    lines = _not_measured(grid.model_copy(update={"points": (*grid.points, again)}), load(POLICY))
    assert any(f"in {point.setting!r} on every seed" in line for line in lines)
    assert not any("on every seed" in line for line in _not_measured(grid, load(POLICY)))


def test_another_version_of_the_code_computes_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {point.key for point in points(TABLES)}
    monkeypatch.setattr(shelves, "code", lambda: "another")
    assert keys.isdisjoint({point.key for point in points(TABLES)})


def test_a_worker_with_other_code_is_named(
    made: tuple[Path, Grid], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its results are those of another program: they are not taken, and what to do is said."""

    @contextmanager
    def elsewhere(executor: str, jobs: int) -> Iterator[sweeps.CarryOut]:
        yield lambda plan, folder: iter([point.model_copy(update={"key": "another"}) for point in made[1].points])

    monkeypatch.setattr(sweeps, "_workers", elsewhere)
    with pytest.raises(RunError, match="other code than this process has"):
        sweep(FEW, tmp_path)


def test_a_sweep_is_sealed_and_verified(made: tuple[Path, Grid], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made[0], tmp_path / "grid"))
    write(report_of_sweep(made[1], folder), folder)
    seal(folder, Identity.generate("auditor"))
    assert all(check.ok for check in verify(folder)), [check for check in verify(folder) if not check.ok]
    point = made[1].points[0]
    audit = folder / grids.POINTS / point.key / "audit.json"
    lines = audit.read_text().splitlines(keepends=True)
    changed = next(i for i, line in enumerate(lines) if '"seed"' in line)
    audit.write_text("".join([*lines[:changed], lines[changed].replace("1", "2", 1), *lines[changed + 1 :]]))
    wrong = {check.what: check.text for check in verify(folder) if not check.ok}
    assert wrong[f"{grids.POINTS}/{point.key}/audit.json"].startswith(f"{audit}:{changed + 1}:")
    assert "contradicts it" in wrong[f"{point.setting}, seed {point.seed}: audit.json"]


def test_an_unfinished_sweep_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no finished sweep here"):
        Grid.load(tmp_path)


# real processes -----------------------------------------------------------------------------------------------------


def started(run_file: Path, out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "secsplit.cli", "audit", str(run_file), "-j", "2", "--out", str(out)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def pieces(folder: Path) -> list[Path]:
    """Every finished cell and point."""
    return list((folder / grids.POINTS).rglob("*.json"))


@pytest.mark.slow
def test_killed_five_times_nothing_finished_is_computed_again_and_the_end_is_bit_equal(tmp_path: Path) -> None:
    small = tables(held_out=[], seeds=[1, 2])
    run_file = tmp_path / "grid.toml"
    run_file.write_text(tomli_w.dumps(small))
    whole = tmp_path / "whole"
    assert started(run_file, whole).wait() == 0
    killed, dice, seen = tmp_path / "killed", random.Random(7), dict[Path, int]()
    for _ in range(5):
        process = started(run_file, killed)
        known = len(pieces(killed))
        while len(pieces(killed)) <= known:
            assert process.poll() is None
            time.sleep(0.2)
        time.sleep(dice.uniform(0, 3))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for piece in pieces(killed):
            seen.setdefault(piece, piece.stat().st_mtime_ns)
    assert started(run_file, killed).wait() == 0
    assert seen
    assert {piece: piece.stat().st_mtime_ns for piece in seen if piece.exists()} == seen
    assert (killed / sweeps.GRID).read_bytes() == (whole / sweeps.GRID).read_bytes()


@pytest.mark.slow
def test_a_ray_cluster_and_processes_agree_bit_for_bit(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    sweep(FEW, tmp_path / "processes", jobs=2)
    sweep(FEW, tmp_path / "ray", jobs=2, executor="ray")
    assert (tmp_path / "ray" / sweeps.GRID).read_bytes() == (tmp_path / "processes" / sweeps.GRID).read_bytes()
