"""The positive control: the same run with nothing defended, in which an attack must succeed before its failure counts.

An attack that finds nothing against a defense, and nothing without it, was too weak to say anything. The twin is
simulated from the same run file and seed; no message of it ever leaves this machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from attacks.base import Attack
from audits.config import AuditSpec
from audits.finished import Finished
from audits.privacy import Audit, Cell, ControlFacts, Tell, audit
from audits.shelf import Shelf
from secsplit.ledger import BudgetSpec
from secsplit.run import Run
from secsplit.training import train_simulated

CONTROL = "control"


def undefended(run: Run) -> Run:
    """The run without its defenses, and without budgets, which nothing would keep."""
    parties = {name: p.model_copy(update={"budget": BudgetSpec()}) for name, p in run.file.parties.items()}
    return Run.of(run.file.model_copy(update={"defenses": (), "parties": parties}), run.topology)


def audit_with_control(
    finished: Finished,
    spec: AuditSpec,
    tell: Tell = lambda done, of, what: None,
    *,
    attacks: Sequence[Attack] | None = None,
    shelf: Shelf | None = None,
) -> Audit:
    """The audit; where the run is defended, each cell also says what the same attack did where nothing was."""
    found = audit(finished, spec, tell, attacks=attacks, shelf=shelf)
    if not finished.run.file.defenses:
        return found.model_copy(update={"cells": tuple(with_control(cell, cell) for cell in found.cells)})
    if not spec.positive_control:
        return found
    assert finished.folder is not None
    twin = _twin(finished.run, finished.folder / CONTROL)
    other = audit(twin, spec.model_copy(update={"gallery": 0}), tell, attacks=attacks, shelf=shelf)
    pairs = zip(found.cells, other.cells, strict=True)
    return found.model_copy(update={"cells": tuple(with_control(cell, control) for cell, control in pairs)})


def _twin(run: Run, folder: Path) -> Finished:
    """The undefended run in that folder, trained where it does not lie there whole."""
    twin, done = undefended(run), folder / "done"
    if not done.exists() or done.read_text() != twin.digest().hex():
        import shutil

        shutil.rmtree(folder, ignore_errors=True)
        train_simulated(twin, folder, lambda party, news: None)
        done.write_text(twin.digest().hex())
    return Finished.open(folder)


def with_control(cell: Cell, control: Cell) -> Cell:
    """The cell, with what the control's cell found."""
    if control.status != "ran":
        return cell
    leaks = [leak for leak in control.leakages if leak.headline]
    best = max((leak for leak in leaks if leak.score is not None), key=lambda leak: leak.score or 0.0, default=None)
    facts = ControlFacts(
        leaks=any(leak.leaks for leak in leaks),
        metric=best.metric if best else None,
        value=best.value if best else None,
        score=best.score if best else None,
    )
    return cell.model_copy(update={"control": facts})
