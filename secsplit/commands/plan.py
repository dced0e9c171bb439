"""`secsplit plan --epsilon 8 --delta 1e-5 --epochs 10`: the noise a target takes, and what it leaves of the task."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from secsplit.commands.console import Json, result, result_json, say


def register(app: typer.Typer) -> None:
    app.command("plan")(plan)


def plan(
    epsilon: Annotated[float, typer.Option("--epsilon", help="the target, for each record")],
    delta: Annotated[float, typer.Option("--delta", help="well below 1 / number of records")] = 1e-5,
    epochs: Annotated[int, typer.Option("--epochs", help="how often each record is sent")] = 10,
    receivers: Annotated[int, typer.Option("--receivers", help="how many are sent a message of each record")] = 1,
    per_unit: Annotated[int, typer.Option("--records-per-unit", help="records of one patient")] = 1,
    once: Annotated[bool, typer.Option("--once", help="frozen segment: noise drawn once for a record")] = False,
    learns: Annotated[bool, typer.Option("--learns", help="the segment learns, with DP-SGD beside the noise")] = False,
    sweep: Annotated[bool, typer.Option(help="try the noise on a small public data set")] = True,
    as_json: Json = False,
) -> None:
    """The noise on each message (and on the weights) that brings the whole run to a target epsilon."""
    from secsplit.plan import plan as planned
    from secsplit.plan import sweep as tried
    from secsplit.plan import useful_from

    options = {"epsilon": epsilon, "delta": delta, "epochs": epochs, "receivers": receivers, "per_unit": per_unit,
               "once": once, "learns": learns}  # fmt: skip
    plans = [
        planned(adjacency=adjacency, nonnegative=nonnegative, **options)  # type: ignore[arg-type]
        for adjacency, nonnegative in (("replace-one", False), ("replace-one", True), ("zero-out", False))
    ]
    points = tried(plans[0], per_unit=per_unit) if sweep else ()
    if as_json:
        result_json({"plans": [asdict(p) for p in plans], "sweep": [asdict(p) for p in points]})
        return
    for p in plans:
        where = "replace-one, no coordinate negative" if p.nonnegative else p.adjacency
        result(f"{where}: sigma = {p.sigma:g}" + (f", dp-sgd sigma = {p.weights_sigma:g}" if p.weights_sigma else ""))
        result(
            f"    {p.releases} messages a record; PRV says {p.prv:.4g}, RDP {p.rdp:.4g}, at most {epsilon:g} exactly"
        )
    for point in points:
        what = f"epsilon {point.epsilon:g}, sigma {point.sigma:.3g}" if point.sigma else "no noise"
        result(f"digits, {what}: accuracy {point.accuracy:.3f} (n = {point.n}; commonest class {point.baseline:.3f})")
    _warn(epsilon, learns, once, useful_from(points) if points else 0.0)


def _warn(epsilon: float, learns: bool, once: bool, useful: float) -> None:
    from secsplit.check import VACUOUS

    if epsilon >= VACUOUS:
        say(f"warning: epsilon {epsilon:g} is vacuous as a guarantee; call it empirical protection, and audit it")
    if useful > epsilon:
        say(f"warning: in the sweep the task is not learnt at epsilon {epsilon:g}, {_from(useful)}")
        say("hint: fewer epochs, or sending once (--once), take less noise for the same epsilon")
    if not learns and not once:
        say(
            "note: this bounds messages of a frozen segment; where it learns, add DP-SGD (--learns), or nothing is "
            "bounded"
        )
    say("note: labels, test records, and who takes part are not covered; see what is with 'secsplit check'")


def _from(useful: float) -> str:
    from secsplit.check import VACUOUS

    if useful == float("inf"):
        return "and at none that was tried with noise"
    return f"and first at {useful:g}" + (", where the guarantee is vacuous" if useful >= VACUOUS else "")
