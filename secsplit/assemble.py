"""From a run to its parties: each party's records, segments, optimizer and defenses, the same wherever it runs."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from functools import lru_cache
from pathlib import Path

import torch
from torch import nn

from secsplit.datasets import Dataset, DataSpec, load, shards
from secsplit.datasets.align import order
from secsplit.defenses import Noise
from secsplit.defenses import build as defend
from secsplit.device import device_of
from secsplit.errors import DataError, RunError
from secsplit.inference import Predictor
from secsplit.models import build
from secsplit.optimizers import optimizer_of, rates_of
from secsplit.party import Party, Shard
from secsplit.run import Run
from secsplit.rundir import PartyDir, RunDir, read_weights
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
    shapes, _ = form_of(run)
    for name in columns:
        if dataset.shapes()[name] != shapes[name]:
            raise DataError(
                f"{party}: a record of column {name!r} has shape {tuple(dataset.shapes()[name])}, expected "
                f"{tuple(shapes[name])} as the parties agreed; see [form] and [data]"
            )
    records = {"train": dataset.train, "test": dataset.test}
    return Shard(
        {split: {name: records[split].inputs[name] for name in columns} for split in SPLITS},
        {split: {name: records[split].labels[name] for name in labels} for split in SPLITS},
        {split: order(records[split].ids) for split in SPLITS},
    )


def modules_of(run: Run) -> dict[str, nn.Module]:
    """All segments with their initial weights, which follow from the run's seed: every party builds the same."""
    shapes, classes = form_of(run)
    return build(run.file.model, run.topology, shapes, classes, seed=run.file.train.seed)


def form_of(run: Run) -> tuple[Mapping[str, torch.Size], Mapping[str, int]]:
    """(record shape by data column, number of classes by label): as the run file says, else read from its data."""
    form = run.file.form
    if form.shapes and form.classes:
        return {name: torch.Size(shape) for name, shape in form.shapes.items()}, form.classes
    dataset = _loaded(run.file.data)
    return dataset.shapes(), dataset.classes


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
    _, classes = form_of(run)
    defenses = defend(run.file.defenses, run.topology, role, noise or Noise.fresh(), classes)
    spec = run.optimizer(role)
    rates = rates_of(spec, run.file.train.epochs)
    if run.file.train.start is not None:
        begin_with(held, RunDir.open(Path(run.file.train.start)).party(name))
    chosen = run.file.parties[name].device or run.file.train.device
    device = device_of(chosen, list(run.file.parties).index(name))
    held = {segment: module.to(device) for segment, module in held.items()}
    kind = Party if run.file.train.purpose == "train" else Predictor
    return kind(run, name, held, data, optimizer_of(spec), defenses, rates=rates, accounted=accounted)


def begin_with(modules: Mapping[str, nn.Module], folder: PartyDir) -> None:
    """Load a finished run's last weights. Raises RunError where a segment's are missing or do not fit."""
    for segment, module in modules.items():
        saved = folder.weights(segment)
        if not saved:
            raise RunError(f"train.start: {folder.path} holds no weights of segment {segment!r}; this party needs them")
        try:
            module.load_state_dict(read_weights(saved[-1][1]))
        except RuntimeError as error:
            raise RunError(f"train.start: {saved[-1][1]} does not fit segment {segment!r}: {error}") from None


def parties_of(run: Run) -> dict[str, Party]:
    """All parties of the run, for a simulation."""
    modules = modules_of(run)
    return {name: party_of(run, name, modules) for name in run.file.parties}


def truth_of(run: Run, cast: int) -> Dataset:
    """All records of a cast with every column and label: for those who hold the truth, never for a party."""
    if len(run.casts) == 1:
        return _loaded(run.file.data)
    return _shared(run.file.data.model_dump_json(), len(run.casts), run.file.train.seed)[cast]
