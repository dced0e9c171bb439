"""A sweep: configurations x axes x seeds, each trained, audited and kept under a name that is all it depends on.

    [grid]
    seeds = [1, 2, 3]                 # a seed is a victim and an attacker of its own
    held_out = [4]                    # seeds that judge, and that choose nothing
    control = "nothing"               # the configuration in which attacks must succeed
    axes = { "model.cut" = [["pool1"], ["relu3"]] }
    [[grid.configurations]]
    name = "nothing"
    [[grid.configurations]]
    name = "noise 0.1"
    set = { defenses = [{ kind = "gaussian", edge = "bottom->top", clip = 1.0, sigma = 0.1 }] }

A point is one run of that product. What a killed sweep has finished is found again by its key and not computed twice.
This file plans and carries out one point; `sweep` carries out many, in processes or on a cluster.
"""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from audits.config import AuditSpec, checked
from audits.control import audit_with_control
from audits.finished import Finished
from audits.frozen import Frozen
from audits.privacy import Audit, chosen
from audits.rehearsal import fix_noise
from audits.shelf import Shelf, code_of, key_of
from audits.utility import Utility, utilities
from secsplit.books import KEY
from secsplit.config import Strict, explain
from secsplit.errors import RunError, nearest
from secsplit.run import Run
from secsplit.rundir import RunDir
from secsplit.runfile import parse
from secsplit.training import train_simulated

POINTS = "points"
SEED = "train.seed"


class Configuration(Strict):
    """One [[grid.configurations]] table: values of run-file keys by their dotted path, under a name."""

    name: str
    set: dict[str, Any] = Field(default={})


class GridSpec(Strict):
    """The [grid] table."""

    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (1, 2, 3)
    held_out: tuple[int, ...] = ()
    control: str | None = None
    axes: dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]] = Field(default={})
    configurations: tuple[Configuration, ...] = (Configuration(name="as given"),)

    @model_validator(mode="after")
    def _makes_sense(self) -> GridSpec:
        names = [configuration.name for configuration in self.configurations]
        if len(set(names)) != len(names):
            raise ValueError("two configurations have one name; give each its own")
        if self.control is not None and self.control not in names:
            raise ValueError(f"control: no configuration {self.control!r}; {nearest(self.control, names)}")
        if set(self.seeds) & set(self.held_out):
            raise ValueError("held_out: a seed that judges may not be one that chooses; use other seeds")
        if SEED in self.axes:
            raise ValueError(f"axes: {SEED!r} is swept by grid.seeds; put its values there")
        return self


@dataclass(frozen=True)
class Point:
    """One run of the sweep. at: axis -> value; tables: the run file with everything set; key: all it depends on."""

    configuration: str
    at: Mapping[str, Any]
    seed: int
    held_out: bool
    tables: Mapping[str, Any]

    @property
    def setting(self) -> str:
        """Configuration and axes in words, without the seed."""
        return ", ".join([self.configuration, *(f"{axis} = {spelled(value)}" for axis, value in self.at.items())])

    @cached_property
    def key(self) -> str:
        tables = {name: table for name, table in self.tables.items() if name != "grid"}
        return key_of(tables, [code_of(type(attack)) for attack in chosen(checked(tables.get("audit", {})))])

    def run(self) -> Run:
        """Raises RunError naming the point where its run makes no sense."""
        try:
            return Run.of(parse({name: table for name, table in self.tables.items() if name != "grid"}))
        except RunError as error:
            raise type(error)(f"grid point {self.setting!r}: {error}") from None


class PointResult(Frozen):
    """What a finished point left: its audit and what its network is worth."""

    key: str
    configuration: str
    at: dict[str, Any]
    setting: str
    seed: int
    held_out: bool
    topology: str = ""
    audit: Audit
    utility: tuple[Utility, ...]


def grid_spec(table: Mapping[str, Any]) -> GridSpec:
    """A [grid] table, checked. Raises RunError naming each wrong key."""
    try:
        return GridSpec.model_validate(table)
    except ValidationError as error:
        raise RunError("\n".join(f"grid.{explain(GridSpec, p, table)}" for p in error.errors())) from None


def points(tables: Mapping[str, Any]) -> tuple[Point, ...]:
    """Every point of the sweep that a run file's tables describe; each is checked before any is run."""
    spec = grid_spec(tables.get("grid", {}))
    made = []
    for configuration, values in product(spec.configurations, product(*spec.axes.values())):
        at = dict(zip(spec.axes, values, strict=True))
        for seed in (*spec.seeds, *spec.held_out):
            changed = deepcopy(dict(tables))
            for path, value in (*configuration.set.items(), *at.items(), (SEED, seed), ("audit.seed", seed)):
                _put(changed, path, value)
            if spec.control is not None and configuration.name != spec.control:
                _put(changed, "audit.positive_control", False)  # the control's own point serves
            for party in changed.get("parties", {}).values():
                party.get("budget", {}).pop("ledger", None)  # a simulation spends no real budget
            point = Point(configuration.name, at, seed, seed in spec.held_out, changed)
            checked(point.run().file.audit)
            made.append(point)
    return tuple(made)


def carry_out(point: Point, folder: Path) -> PointResult:
    """Train and audit a point in its own folder below `folder`, or read back what was finished there before.

    Of the trained run the audit, the metrics and the transcripts' indices stay; tensors, which are large, are removed.
    """
    home = folder / POINTS / point.key
    shelf = Shelf(folder / POINTS)
    with _alone(home.with_suffix(".lock")):
        kept = shelf.get(point.key, PointResult)
        return kept if kept is not None else _carried_out(point, home, shelf)


def _carried_out(point: Point, home: Path, shelf: Shelf) -> PointResult:
    run = point.run()
    spec: AuditSpec = checked(run.file.audit)
    finished = _trained(run, home)
    audit = audit_with_control(finished, spec, shelf=Shelf(home / "cells"))
    audit.save(home)
    result = PointResult(
        key=point.key, configuration=point.configuration, at=dict(point.at), setting=point.setting, seed=point.seed,
        held_out=point.held_out, topology=run.topology.name, audit=audit, utility=utilities(RunDir.open(home)),
    )  # fmt: skip
    shelf.put(point.key, result)
    _slim(home)
    return result


def _trained(run: Run, home: Path) -> Finished:
    """The run in that folder, trained anew where it is not whole.

    Its noise follows from the run, so that the sweep can be repeated; no message of it ever leaves this machine.
    """
    done = home / "done"
    if not done.exists():
        shutil.rmtree(home, ignore_errors=True)
        for name in run.file.parties:
            fix_noise(RunDir(home).party(name).path / KEY, run, name)
        train_simulated(run, home, lambda party, news: None)
        done.write_text(run.digest().hex())
    return Finished.open(home)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process at a time: the worker of a killed sweep may still be at this point."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _slim(home: Path) -> None:
    for file in home.rglob("*.safetensors"):
        file.unlink()


def _put(tables: dict[str, Any], path: str, value: Any) -> None:
    *way, last = path.split(".")
    for name in way:
        tables = tables.setdefault(name, {})
        if not isinstance(tables, dict):
            raise RunError(f"grid: {path!r} does not lead to a key of the run file: {name!r} is no table")
    tables[last] = deepcopy(value)


def spelled(value: Any) -> str:
    """A value of an axis in words."""
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


Tell = Callable[[int, int, str], None]
