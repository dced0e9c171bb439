"""An audit of somebody else's split training: from the tensors that crossed its cut, recorded by whatever tool.

Two parties are assumed, as in vanilla split learning whose server owns the labels: a client that holds the records and
is sent gradients, a server that holds the labels and is sent activations. There are no networks to run here, so attacks
that need one do not apply; where the file holds what the client's network made of an attacker's own records, those
count as answered queries. Everything else is as for our own runs: baselines, controls, intervals, chance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import file_digest
from pathlib import Path

import torch
from torch import Tensor

from attacks.base import Attack, NotApplicable
from audits.config import AuditSpec
from audits.plain import read
from audits.privacy import Audit, Auditor, Tell, audit_of, chosen
from audits.truth import Truth
from secsplit.errors import DataError
from secsplit.message import NAMES, Kind, Stamp
from secsplit.schedule import derive
from secsplit.threat import Known, Knows, Threat, View
from secsplit.topologies import vanilla
from secsplit.topology import Topology
from secsplit.transcript import Direction, Record, Transcript

MOST_CLASSES = 1000
ROWS = ("activations", "gradients", "labels", "inputs", "step", "position")
KNOWN = (*ROWS, "cast", "aux_inputs", "aux_labels", "aux_activations")


@dataclass(frozen=True)
class Foreign:
    """A file's tensors, checked. evidence: the digest of the file."""

    tensors: Mapping[str, Tensor]
    evidence: str

    @classmethod
    def open(cls, path: Path) -> Foreign:
        """Raises DataError naming the tensor that is missing, misshapen, unknown or not finite."""
        tensors = read(path)
        _check(path, tensors)
        with path.open("rb") as file:
            return cls(tensors, file_digest(file, "sha256").hexdigest())

    @property
    def topology(self) -> Topology:
        return vanilla(labels="server")

    @cached_property
    def size(self) -> int:
        return len(self.tensors["labels"])

    @cached_property
    def step(self) -> Tensor:
        return self.tensors.get("step", torch.zeros(self.size)).long()

    @cached_property
    def position(self) -> Tensor:
        """(n,) which record each row is of; every row its own where the file does not say."""
        return self.tensors.get("position", torch.arange(self.size)).long()

    @cached_property
    def classes(self) -> Mapping[str, int]:
        y = self.tensors["labels"]
        return {"y": 0 if y.is_floating_point() else int(y.max()) + 1}

    @cached_property
    def truth(self) -> Truth:
        many = int(self.position.max()) + 1
        y = self.tensors["labels"]
        label = torch.full((many,), torch.nan if y.is_floating_point() else -1, dtype=y.dtype)
        label[self.position] = y
        inputs: dict[str, Tensor] = {}
        if "inputs" in self.tensors:
            x = self.tensors["inputs"].float()
            inputs["x"] = x.new_zeros(many, *x.shape[1:]).index_copy_(0, self.position, x)
        return Truth({0: inputs}, {0: {"y": label}}, self.classes, {0: "foreign"})

    def order(self, stamp: Stamp) -> Tensor:
        return self.position[self.step == stamp.step]

    def transcript(self, role: str) -> Transcript:
        """The messages, turn by turn, as the client or the server saw them."""
        other = "server" if role == "client" else "client"
        records: list[Record] = []
        for step in self.step.unique().tolist():
            rows = self.step == step
            for kind, name, sender in (
                (Kind.SMASHED, "activations", "client"), (Kind.CUT_GRAD, "gradients", "server"),
            ):  # fmt: skip
                if name in self.tensors:
                    part = self.tensors[name][rows].float()
                    direction: Direction = "sent" if role == sender else "received"
                    shapes = {"h": (NAMES[part.dtype], tuple(part.shape))}
                    records.append(
                        Record(
                            len(records), direction, other, kind, "bottom->top", Stamp(step), shapes, {}, _held(part)
                        )
                    )
        return Transcript.of(role, records)


class ForeignAuditor(Auditor):
    """Cells over a file's tensors instead of a finished run."""

    def __init__(self, foreign: Foreign, spec: AuditSpec) -> None:
        self.foreign, self.spec = foreign, spec
        self.topology, self.epochs = foreign.topology, None

    def truth(self, view: View) -> Truth:
        return self.foreign.truth

    def outcome(self, each: Attack, threat: Threat) -> dict[str, object]:
        try:
            return self.found(each, threat, self.view(threat))
        except KeyError as error:
            raise NotApplicable(f"it needs a network, and a file of tensors holds none ({error})") from None

    def view(self, threat: Threat) -> View:
        f, (role,) = self.foreign, threat.who
        own = Known(dict(f.truth.inputs[0]), {}) if role == "client" else Known({}, dict(f.truth.labels[0]))
        rows = torch.arange(len(f.truth.labels[0]["y"]))
        query = {"bottom": self.answers} if role == "server" and "aux_activations" in f.tensors else {}
        return View(
            topology=f.topology, roles=threat.who, transcripts={role: f.transcript(role)}, models={},
            own={0: replace(own, cast=torch.zeros_like(rows), position=rows)}, classes=f.classes, order=f.order,
            shapes={name: column.shape[1:] for name, column in f.truth.inputs[0].items()},
            asked={0: f.position.unique()}, aux=self.aux(), clues=self.clues(), prior=self.prior(), query=query,
        )  # fmt: skip

    def aux(self) -> Known | None:
        tensors = self.foreign.tensors
        if "aux_inputs" not in tensors:
            return None
        labels = {"y": tensors["aux_labels"]} if "aux_labels" in tensors else {}
        return Known({"x": tensors["aux_inputs"].float()}, labels)

    def clues(self) -> Known | None:
        """One record of each class, drawn by the audit's seed."""
        y = self.foreign.truth.labels[0]["y"]
        if not self.foreign.classes["y"]:
            return None
        coins = torch.Generator().manual_seed(derive(self.spec.seed, "threat", "clues"))
        mixed = torch.randperm(len(y), generator=coins)
        rows = torch.stack([mixed[(y[mixed] == c).nonzero()[0, 0]] for c in y.unique().tolist() if c >= 0])
        return Known({}, {"y": y[rows]}, torch.zeros_like(rows), rows)

    def prior(self) -> Mapping[str, Tensor]:
        y = self.foreign.truth.labels[0]["y"]
        if not self.foreign.classes["y"]:
            return {}
        counts = y[y >= 0].bincount(minlength=self.foreign.classes["y"]).double()
        return {"y": (counts / counts.sum()).float()}

    def answers(self, x: Tensor) -> Tensor:
        """What the client's network made of the attacker's own records: only those that the file answers."""
        known, answers = self.foreign.tensors["aux_inputs"].float(), self.foreign.tensors["aux_activations"].float()
        distance = torch.cdist(x.flatten(1).float(), known.flatten(1), compute_mode="donot_use_mm_for_euclid_dist")
        if float(distance.min(1).values.max()) > 1e-4:
            raise NotApplicable("the file answers queries about its own auxiliary records only")
        return answers[distance.argmin(1)]


def audit_foreign(
    foreign: Foreign,
    spec: AuditSpec,
    tell: Tell = lambda done, of, what: None,
    *,
    attacks: Sequence[Attack] | None = None,
) -> Audit:
    """Every attack by the client and by the server, with what the file gives them to know."""
    knows = {Knows.CLUES, Knows.PRIOR} if foreign.classes["y"] else set()
    knows |= {Knows.AUX} if "aux_inputs" in foreign.tensors else set()
    asked = knows | ({Knows.QUERY} if "aux_activations" in foreign.tensors else set())
    threats = (
        Threat("feature party", ("client",), knows=frozenset(knows)),
        Threat("label party", ("server",), knows=frozenset(asked)),
    )
    return audit_of(
        ForeignAuditor(foreign, spec), threats, chosen(spec) if attacks is None else attacks, tell,
        digest=foreign.evidence, evidence=foreign.evidence,
    )  # fmt: skip


def _held(tensor: Tensor) -> Callable[[], Mapping[str, Tensor]]:
    return lambda: {"h": tensor}


def _check(path: Path, tensors: Mapping[str, Tensor]) -> None:
    if unknown := [name for name in tensors if name not in KNOWN]:
        raise DataError(f"{path}: unknown tensor {unknown[0]!r}; these are known: {', '.join(KNOWN)}")
    if "labels" not in tensors or not {"activations", "gradients"} & tensors.keys():
        got = ", ".join(tensors) or "nothing"
        raise DataError(f"{path}: expected 'labels' and 'activations' or 'gradients', got {got}")
    n = len(tensors["labels"])
    for name, tensor in tensors.items():
        if not tensor.ndim or (name in ROWS and len(tensor) != n):
            raise DataError(f"{path}: {name!r} has shape {tuple(tensor.shape)}, expected {n} rows as 'labels' has")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise DataError(f"{path}: {name!r} has NaN or infinity")
    for name in ("labels", "step", "position"):
        if name in tensors and tensors[name].ndim != 1:
            raise DataError(f"{path}: {name!r} has shape {tuple(tensors[name].shape)}, expected one number a row")
    for name in ("step", "position", "labels"):
        integer = name in tensors and not (name == "labels" and tensors[name].is_floating_point())
        if integer and (int(tensors[name].min()) < 0 or int(tensors[name].max()) >= 1 << 31):
            raise DataError(f"{path}: {name!r} holds numbers outside of 0 to 2^31")
    if "position" in tensors and int(tensors["position"].max()) >= 100 * n:
        last = int(tensors["position"].max())
        raise DataError(f"{path}: 'position' names record {last} in {n} rows; number the records from 0")
    if not tensors["labels"].is_floating_point() and int(tensors["labels"].max()) >= MOST_CLASSES:
        raise DataError(f"{path}: 'labels' names more than {MOST_CLASSES} classes; a number to predict must be a float")
    if "aux_activations" in tensors and len(tensors["aux_activations"]) != len(tensors.get("aux_inputs", ())):
        raise DataError(f"{path}: 'aux_activations' needs an 'aux_inputs' of as many rows")
