"""What Gawali et al. 2021 (arXiv 2012.12591) compare, as run files: every method, with labels shared and labels kept.

An *arm* is one method in one topology. All arms of a task have the same records, hospitals, network and optimizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from secsplit.run import Run
from secsplit.runfile import parse

SHARED, KEPT, NONE = "shared", "kept", "no cut"
TOPOLOGY = {SHARED: "vanilla", KEPT: "u_shaped", NONE: "whole"}
WEIGHTS = (3.0, 2.5, 2.0, 1.5, 1.0)  # relative numbers of the hospitals' records
SPLIT = {
    "SL-AC": "sl-ac",
    "SL-AM": "sl-am",
    "SplitFed v1": "splitfed-v1",
    "SplitFed v2": "splitfed-v2",
    "SplitFed v3": "splitfed-v3",
}


@dataclass(frozen=True)
class Task:
    """Records and a network, which is cut at its usual places; data, model: the run file's tables."""

    name: str  # "classification" | "segmentation"
    what: str
    data: Mapping[str, Any]
    model: Mapping[str, Any]
    epochs: int
    batch_size: int
    rate: float = 1e-3
    hospitals: int = len(WEIGHTS)


@dataclass(frozen=True)
class Arm:
    """One row of the comparison."""

    name: str
    labels: str
    method: str
    central: bool = field(default=False)  # all records at one place

    @property
    def title(self) -> str:
        return self.name if self.labels == NONE else f"{self.name}, labels {self.labels}"


ARMS = (
    Arm("centralised", NONE, "large-batch", central=True),
    Arm("large batch", NONE, "large-batch"),
    Arm("FL", NONE, "federated"),
    *(Arm(name, labels, method) for labels in (SHARED, KEPT) for name, method in SPLIT.items()),
)


def run_of(task: Task, arm: Arm, seed: int) -> Run:
    """The arm as a run; its network is judged once, at the end."""
    names = ["centre"] if arm.central else [f"hospital-{i + 1}" for i in range(task.hospitals)]
    parties = {name: {"role": "client"} for name in names}
    if not arm.central:
        parties["server"] = {"role": "aggregator" if arm.labels == NONE else "server"}
    tables: dict[str, Any] = {
        "name": f"gawali-{task.name}",
        "topology": {"name": TOPOLOGY[arm.labels]},
        "method": {"name": arm.method},
        "model": dict(task.model),
        "optimizer": {"name": "adam", "lr": task.rate},
        "train": {
            "seed": seed,
            "epochs": task.epochs,
            "batch_size": task.batch_size,
            "evaluate_every": task.epochs,
            "device": "auto",
        },
        "data": {**task.data, "seed": seed, **({} if arm.central else {"weights": WEIGHTS[: task.hospitals]})},
        "parties": parties,
    }
    return Run.of(parse(tables))
