"""What a trained network is worth: each objective as its party judged it on test records, with an interval."""

from __future__ import annotations

from audits.frozen import Frozen
from audits.statistics import proportion
from secsplit.rundir import RunDir


class Utility(Frozen):
    """One objective after the last epoch that was judged. history: accuracy by epoch."""

    party: str
    objective: str
    accuracy: float | None
    low: float | None
    high: float | None
    interval: str
    n: int
    loss: float | None
    history: tuple[float, ...]


def utilities(folder: RunDir) -> tuple[Utility, ...]:
    """Every objective of every party that judged one."""
    found = []
    for party in folder.parties():
        lines = party.metrics()
        for objective in dict.fromkeys(name for line in lines for name in line["metrics"]):
            told = [line["metrics"].get(objective, {}) for line in lines]
            last = next((metrics for metrics in reversed(told) if "test_n" in metrics), None)
            if last is None:
                continue
            n, accuracy = int(last["test_n"]), last.get("test_accuracy")
            within = None if accuracy is None else proportion(round(accuracy * n), n)
            found.append(
                Utility(
                    party=party.name,
                    objective=objective,
                    accuracy=accuracy,
                    low=within.low if within else None,
                    high=within.high if within else None,
                    interval=within.method if within else "none",
                    n=n,
                    loss=last.get("test_loss"),
                    history=tuple(metrics["test_accuracy"] for metrics in told if "test_accuracy" in metrics),
                )
            )
    return tuple(found)
