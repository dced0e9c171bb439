"""Transcripts as plain tensors: out, for anybody's attack; and in, for ours.

A file (npz or safetensors) holds one row a record and turn, in the order in which they crossed:

    activations (n, ...)   gradients (n, ...)   labels (n,)         what crossed a cut, and the truth
    step (n,)              position (n,)        inputs (n, ...)     which batch, which record; the true records
    aux_inputs (m, ...)    aux_labels (m,)      aux_activations (m, ...)   what an attacker knows besides

An exported transcript of several edges has `activations.EDGE` and so on for each. This file knows formats only: what is
attacked with it is `foreign`'s affair.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from audits.finished import Finished
from secsplit.errors import DataError, RunError, nearest
from secsplit.message import Kind, Stamp

SUFFIXES = (".npz", ".safetensors")
NAMES: Mapping[Kind, str] = {Kind.SMASHED: "activations", Kind.CUT_GRAD: "gradients"}


def exported(finished: Finished, party: str) -> dict[str, Tensor]:
    """What a party sent and received in training, and the true labels of those rows. Raises RunError for a stranger."""
    if party not in finished.transcripts:
        raise RunError(f"no transcript of {party!r} here; {nearest(party, finished.transcripts)}")
    found: dict[str, dict[str, dict[Stamp, Tensor]]] = {}
    for record in finished.transcripts[party]:
        if record.kind in NAMES and record.stamp.training:
            found.setdefault(record.edge, {}).setdefault(NAMES[record.kind], {})[record.stamp] = record.tensor
    made: dict[str, Tensor] = {}
    for edge, kinds in found.items():
        shared = set.intersection(*(set(seen) for seen in kinds.values()))
        stamps = sorted(shared, key=lambda stamp: (stamp.step, stamp.micro))
        orders = [finished.order(stamp) for stamp in stamps]
        columns = {kind: torch.cat([seen[stamp] for stamp in stamps]) for kind, seen in kinds.items()}
        columns["step"] = torch.cat([torch.full((len(o),), s.step) for s, o in zip(stamps, orders, strict=True)])
        columns["cast"] = torch.cat([torch.full((len(o),), s.cast) for s, o in zip(stamps, orders, strict=True)])
        columns["position"] = torch.cat(orders)
        for name in finished.truth.classes:
            if all(name in finished.truth.labels[cast] for cast in finished.truth.casts):
                key = "labels" if len(finished.truth.classes) == 1 else f"labels.{name}"
                columns[key] = finished.truth.label(name, columns["cast"], columns["position"])
        made |= {name if len(found) == 1 else f"{name}.{edge}": value for name, value in columns.items()}
    if not made:
        raise RunError(f"{party!r} sent and received nothing across a cut in training")
    return made


def write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raises DataError for a file of another kind."""
    _suffix(path)
    if path.suffix == ".npz":
        np.savez(path, **{name: value.numpy() for name, value in tensors.items()})  # type: ignore[arg-type]
    else:
        save_file({name: value.contiguous() for name, value in tensors.items()}, path)


def read(path: Path) -> dict[str, Tensor]:
    """Raises DataError for what is no such file, or holds anything but plain numbers."""
    _suffix(path)
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return {name: torch.as_tensor(arrays[name]) for name in arrays.files}
        return load_file(path)
    except (OSError, ValueError, TypeError, BadZipFile, SafetensorError) as error:
        raise DataError(f"{path}: cannot be read as plain tensors: {error}") from None


def _suffix(path: Path) -> None:
    if path.suffix not in SUFFIXES:
        raise DataError(f"{path}: expected a file that ends with {' or '.join(SUFFIXES)}")
