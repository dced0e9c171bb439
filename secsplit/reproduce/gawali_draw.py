"""Figures of the comparison: how well each method does, with its interval, and what that cost in bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from secsplit.diagnosis import Diagnosis, Figure
from secsplit.errors import EnvironmentFault
from secsplit.reproduce.gawali_arms import KEPT, NONE, SHARED
from secsplit.reproduce.gawali_train import Outcome

LOOKS = {NONE: ("#555555", "s"), SHARED: ("#b5402a", "o"), KEPT: ("#0b6e99", "^")}
LABELS = {NONE: "no cut", SHARED: "labels shared", KEPT: "labels kept"}


def draw(found: Mapping[str, Sequence[Outcome]], out: Path) -> tuple[Path, ...]:
    """Two SVG files a task in `out`."""
    try:
        from matplotlib.figure import Figure as Canvas
    except ImportError:
        raise EnvironmentFault("figures need matplotlib: pip install 'secsplit[report]', or leave out --out") from None
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    for task, outcomes in found.items():
        for name, plot in (("figures", _ranked), ("bytes", _against_bytes)):
            canvas = Canvas(figsize=(7, 4.5), layout="constrained")
            plot(canvas.subplots(), outcomes)
            path = out / f"gawali-{task}-{name}.svg"
            canvas.savefig(path, metadata={"Date": None})
            paths.append(path)
    return tuple(paths)


def _main(done: Outcome) -> tuple[str, Figure]:
    if isinstance(done.judged, Diagnosis):
        return "AUROC", done.judged.figures["auroc"]
    return "Dice", done.judged.dice


def _ranked(axes: Any, outcomes: Sequence[Outcome]) -> None:
    """One line an arm, in the table's order."""
    for place, done in enumerate(outcomes):
        name, figure = _main(done)
        colour, marker = LOOKS[done.arm.labels]
        axes.plot([figure.low, figure.high], [place, place], color=colour)
        axes.plot(figure.value, place, marker, color=colour)
        axes.set_xlabel(f"{name} and its 95 % interval, n = {done.judged.n}")
    axes.set_yticks(range(len(outcomes)), [done.arm.title for done in outcomes])
    axes.invert_yaxis()


def _against_bytes(axes: Any, outcomes: Sequence[Outcome]) -> None:
    """Better is up, cheaper is left."""
    named: set[str] = set()
    for done in outcomes:
        if not done.counted.sealed:  # centralised: nothing is sent
            continue
        name, figure = _main(done)
        colour, marker = LOOKS[done.arm.labels]
        label = None if done.arm.labels in named else LABELS[done.arm.labels]
        named.add(done.arm.labels)
        errors = [[figure.value - figure.low], [figure.high - figure.value]]
        x = done.counted.sealed / 1e6
        axes.errorbar(x, figure.value, errors, fmt=marker, color=colour, label=label, capsize=2)
        axes.annotate(done.arm.name, (x, figure.value), textcoords="offset points", xytext=(5, 3), fontsize=7)
        axes.set_ylabel(name)
    axes.set_xscale("log")
    axes.set_xlabel("bytes sent in training, sealed, MB")
    axes.legend()
