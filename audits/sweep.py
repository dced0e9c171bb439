"""Many points carried out, by processes on this machine or by a Ray cluster; the results are the same, bit for bit.

Each worker computes with one thread, whatever the machine has: thread counts change floating-point sums. A worker that
is killed leaves its finished cells behind. Ray is one trust domain: never between hospitals.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

from audits.control import with_control
from audits.frozen import Frozen
from audits.grid import Point, PointResult, Tell, carry_out, grid_spec, points
from audits.shelf import key_of
from secsplit.errors import EnvironmentFault, RunError
from secsplit.rundir import write_atomically

GRID = "grid.json"
SCHEMA_VERSION = "1.0"
Executor = Literal["processes", "ray"]
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


class Grid(Frozen):
    """All points of a sweep. key: of the tables that it was made from."""

    schema_version: str = SCHEMA_VERSION
    name: str
    key: str
    control: str | None
    seeds: tuple[int, ...]
    held_out: tuple[int, ...]
    axes: tuple[str, ...]
    points: tuple[PointResult, ...]

    @property
    def settings(self) -> tuple[str, ...]:
        """Every setting, in the order of the sweep."""
        return tuple(dict.fromkeys(point.setting for point in self.points))

    def of(self, setting: str, *, held_out: bool | None = None) -> tuple[PointResult, ...]:
        """The points of a setting: those that choose, those that judge, or (None) all."""
        return tuple(p for p in self.points if p.setting == setting and held_out in (None, p.held_out))

    def save(self, folder: Path) -> Path:
        write_atomically(folder / GRID, self.model_dump_json(indent=1).encode())
        return folder / GRID

    @classmethod
    def load(cls, folder: Path) -> Grid:
        """Raises RunError where no finished sweep of this version lies there."""
        path = folder / GRID
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            raise RunError(
                f"{path}: no finished sweep here; run 'secsplit audit RUN.toml' with a [grid] table"
            ) from None
        except ValueError as error:
            raise RunError(f"{path}: not a sweep of version {SCHEMA_VERSION}: {error}") from None


def sweep(
    tables: Mapping[str, Any],
    folder: Path,
    *,
    jobs: int = 1,
    executor: Executor = "processes",
    tell: Tell = lambda done, of, what: None,
) -> Grid:
    """Carry out every point of the run file's [grid], and write grid.json."""
    spec, plan = grid_spec(tables.get("grid", {})), points(tables)
    folder.mkdir(parents=True, exist_ok=True)
    results: dict[str, PointResult] = {}
    with _workers(executor, jobs) as carried_out:
        for result in carried_out(plan, folder):
            results[result.key] = result
            tell(len(results), len(plan), result.setting)
    made = _controlled([_found(results, point) for point in plan], spec.control)
    grid = Grid(
        name=str(tables.get("name", "run")), key=key_of(tables), control=spec.control, seeds=spec.seeds,
        held_out=spec.held_out, axes=tuple(spec.axes), points=made,
    )  # fmt: skip
    grid.save(folder)
    return grid


def _found(results: Mapping[str, PointResult], point: Point) -> PointResult:
    if point.key not in results:
        raise RunError(
            f"{point.setting}: a worker computed it with other code than this process has (edited meanwhile, or "
            "another version on its host); start the sweep again: nothing of this code's is computed twice"
        )
    return results[point.key]


def _controlled(results: Sequence[PointResult], control: str | None) -> tuple[PointResult, ...]:
    """Each point beside the control configuration's point of the same axes and seed."""
    controls = {(repr(p.at), p.seed): p for p in results if p.configuration == control}
    return tuple(_beside(point, controls.get((repr(point.at), point.seed))) for point in results)


def _beside(point: PointResult, control: PointResult | None) -> PointResult:
    if control is None:
        return point
    known = {(cell.attack, cell.threat): cell for cell in control.audit.cells}
    cells = tuple(
        with_control(cell, known[key]) if (key := (cell.attack, cell.threat)) in known else cell
        for cell in point.audit.cells
    )
    return point.model_copy(update={"audit": point.audit.model_copy(update={"cells": cells})})


CarryOut = Callable[[Sequence[Point], Path], Iterator[PointResult]]


@contextmanager
def _workers(executor: Executor, jobs: int) -> Iterator[CarryOut]:
    """Something that carries points out and yields their results as they come."""
    if executor == "ray":
        with _ray(jobs) as carried_out:
            yield carried_out
        return
    before = {name: os.environ.get(name) for name in ONE_THREAD}
    os.environ.update(ONE_THREAD)  # read by the libraries of the processes that are spawned, when they are loaded
    try:
        with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:

            def carried_out(plan: Sequence[Point], folder: Path) -> Iterator[PointResult]:
                futures = [pool.submit(_one, point, folder) for point in plan]
                try:
                    for future in as_completed(futures):
                        yield future.result()
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise

            yield carried_out
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _ray(jobs: int) -> Iterator[CarryOut]:
    """A Ray cluster: the one that RAY_ADDRESS names, else one on this machine."""
    try:
        import ray
    except ImportError:
        raise EnvironmentFault("--executor ray: ray is not installed; pip install 'secsplit[ray]'") from None
    local = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": jobs, "include_dashboard": False}
    ray.init(runtime_env={"env_vars": ONE_THREAD}, configure_logging=False, log_to_driver=False, **local)
    try:
        remote = ray.remote(num_cpus=1, max_retries=2)(_one)

        def carried_out(plan: Sequence[Point], folder: Path) -> Iterator[PointResult]:
            waiting = [remote.remote(point, folder.resolve()) for point in plan]
            while waiting:
                ready, waiting = ray.wait(waiting)
                yield from ray.get(ready)

        yield carried_out
    finally:
        ray.shutdown()


def _one(point: Point, folder: Path) -> PointResult:
    """In a worker: one point, with one thread."""
    import torch

    torch.set_num_threads(1)
    return carry_out(point, folder)
