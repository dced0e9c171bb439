"""From a run to its parties: each party's records, segments, optimizer and defenses, the same wherever it runs."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from functools import lru_cache

import torch
from torch import nn

from secsplit.datasets import Dataset, DataSpec, load, shards
from secsplit.defenses import Noise
from secsplit.defenses import build as defend
from secsplit.models import build
from secsplit.optimizers import optimizer_of, rates_of
from secsplit.party import Party, Shard
from secsplit.run import Run
from secsplit.schedule import SPLITS


def _loaded(spec: DataSpec) -> Dataset:
    return _read(spec.model_dump_json())


@lru_cache(maxsize=4)
def _read(spec: str) -> Dataset:
    return load(DataSpec.model_validate_json(spec))


def dataset_of(run: Run, party: str, cast: int) -> Dataset:
    """The records of `party` in that cast: its own where it has data, else its share of the run's data set.

    Of a shared data set every cast gets its own part of the test records too, so that each is judged on by one.
    """
    own = run.file.parties[party].data
    if own is not None:
        return _loaded(own)
    return truth_of(run, cast)


@lru_cache(maxsize=4)
def _shared(text: str, casts: int, seed: int) -> tuple[Dataset, ...]:
    spec = DataSpec.model_validate_json(text)
    parts = shards(_read(text), casts, how=spec.partition, alpha=spec.alpha, seed=seed, weights=spec.weights)
    rows = [torch.arange(i, len(part.test), casts) for i, part in enumerate(parts)]
    return tuple(
        Dataset(part.name, part.train, part.test.take(mine), part.classes, part.card)
        for part, mine in zip(parts, rows, strict=True)
    )


def shard_of(run: Run, party: str, cast: int) -> Shard:
    """The columns and labels that the party's role holds, of its records in that cast; nothing else is kept."""
    role = run.file.parties[party].role
    columns, labels = run.topology.columns(role), run.topology.labels(role)
    if not columns and not labels:
        return Shard({}, {})
    dataset = dataset_of(run, party, cast)
    records = {"train": dataset.train, "test": dataset.test}
    return Shard(
        {split: {name: records[split].inputs[name] for name in columns} for split in SPLITS},
        {split: {name: records[split].labels[name] for name in labels} for split in SPLITS},
    )


def modules_of(run: Run) -> dict[str, nn.Module]:
    """All segments with their initial weights, which follow from the run's seed: every party builds the same."""
    dataset = _loaded(run.file.data)
    shapes: Mapping[str, torch.Size] = dataset.shapes()
    return build(run.file.model, run.topology, shapes, dataset.classes, seed=run.file.train.seed)


def party_of(
    run: Run,
    name: str,
    modules: Mapping[str, nn.Module] | None = None,
    *,
    noise: Noise | None = None,
    accounted: bool = False,
) -> Party:
    """The party of that name, ready to be driven; `modules`: the run's segments, where they are built already.

    noise: what its defenses draw from (None: a fresh key).
    """
    role = run.file.parties[name].role
    built = modules_of(run) if modules is None else modules
    held = {segment.name: built[segment.name] for segment in run.topology.held(role)}
    if modules is not None and not run.shared(role):
        held = deepcopy(held)
    data = {cast: shard_of(run, name, cast) for cast in run.casts_of(name)}
    classes = _loaded(run.file.data).classes
    defenses = defend(run.file.defenses, run.topology, role, noise or Noise.fresh(), classes)
    spec = run.optimizer(role)
    rates = rates_of(spec, run.file.train.epochs)
    return Party(run, name, held, data, optimizer_of(spec), defenses, rates=rates, accounted=accounted)


def parties_of(run: Run) -> dict[str, Party]:
    """All parties of the run, for a simulation."""
    modules = modules_of(run)
    return {name: party_of(run, name, modules) for name in run.file.parties}


def truth_of(run: Run, cast: int) -> Dataset:
    """All records of a cast with every column and label: for those who hold the truth, never for a party."""
    if len(run.casts) == 1:
        return _loaded(run.file.data)
    return _shared(run.file.data.model_dump_json(), len(run.casts), run.file.train.seed)[cast]
