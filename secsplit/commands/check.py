"""`secsplit check RUN.toml` and `secsplit defenses list`: what a run lets be seen, and what there is against it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

from secsplit.commands.console import Json, Overrides, RunPath, result, result_json, say

if TYPE_CHECKING:
    from secsplit.check import Checkup
    from secsplit.forecast import Forecast, Link

defenses = typer.Typer(help="what a party may do to its messages", no_args_is_help=True)
DELTA = 1e-5


def register(app: typer.Typer) -> None:
    app.command("check")(check)
    app.add_typer(defenses, name="defenses")


def check(
    run_file: RunPath,
    overrides: Overrides = None,
    build: Annotated[bool, typer.Option(help="also build the parties here, which reads their data")] = True,
    as_json: Json = False,
) -> None:
    """Say who will see what, what acts on it and what is left open; refuse false claims. Exit code 2 where refused."""
    from secsplit.check import check as look
    from secsplit.run import load

    found = look(load(run_file, overrides or []), build=build)
    if as_json:
        result_json(_plain(found))
    else:
        _show(found)
    for refusal in found.refusals:
        say(f"refused: {refusal.about}: {refusal.text}")
    if found.refusals:
        raise typer.Exit(2)


def _show(found: Checkup) -> None:
    result("who sees what, in training:")
    for link in found.links:
        c = link.crossing
        result(f"  {c.sender} -> {c.receiver}: {c.kind} on {c.edge}")
        result(f"      acted on by: {', '.join(link.covered) or 'nothing'}{_cost(link)}")
    result(f"what it comes to (delta {DELTA:g}):")
    for forecast in found.forecasts:
        result(f"  {_sum(forecast)}")
    result("not covered:")
    for gap in found.gaps:
        result(f"  {gap.about}: {gap.text}")


def _cost(link: Link) -> str:
    told = []
    for charge in link.charges:
        if not charge.finite:
            told.append(f"{charge.protects} unbounded")
        elif charge.once and charge.epsilon:
            told.append(f"{charge.protects} epsilon {charge.epsilon:g} once")
        else:
            told.append(f"{charge.protects} mu {charge.mu:.3g} a message ({charge.adjacency})")
    return f"; {', '.join(told)}" if told else ""


def _sum(forecast: Forecast) -> str:
    records = "training" if forecast.training else "test"
    what = f"{forecast.protects} of {forecast.role}'s {records} records, against {forecast.to}"
    epsilon = forecast.epsilon(DELTA)
    if epsilon < math.inf:
        return f"{what}: epsilon {epsilon:.4g} ({forecast.adjacency})"
    return f"{what}: no finite epsilon: {'; '.join(forecast.why)}"


def _plain(found: Checkup) -> dict[str, Any]:
    return {
        "links": [
            {
                "from": link.crossing.sender, "to": link.crossing.receiver, "kind": link.crossing.kind,
                "edge": link.crossing.edge, "defenses": link.covered,
                "charges": [
                    {"protects": c.protects, "mechanism": c.mechanism, "mu": c.mu if c.finite else None,
                     "epsilon": c.epsilon, "adjacency": c.adjacency, "why": c.why}
                    for c in link.charges
                ],
            }
            for link in found.links
        ],
        "forecasts": [
            {
                "whose": f.role, "protects": f.protects, "against": f.to, "training": f.training,
                "epsilon": e if (e := f.epsilon(DELTA)) < math.inf else None, "delta": DELTA, "adjacency": f.adjacency,
                "mechanisms": f.mechanisms, "why": f.why,
            }
            for f in found.forecasts
        ],
        "gaps": [{"about": r.about, "text": r.text} for r in found.gaps],
        "refusals": [{"about": r.about, "text": r.text} for r in found.refusals],
    }  # fmt: skip


@defenses.command("list")
def list_defenses(as_json: Json = False) -> None:
    """Every defense: what it does, what is proven of it, whose idea it is, and its parameters."""
    from secsplit.defenses import SPECS

    found = {
        kind: {
            "about": spec.about, "guarantee": spec.guarantee, "paper": spec.paper,
            "parameters": [name for name in spec.model_fields if name != "kind"],
        }
        for kind, spec in SPECS.items()
    }  # fmt: skip
    if as_json:
        result_json(found)
        return
    for kind, facts in found.items():
        result(f"{kind}: {facts['about']} [guarantee: {facts['guarantee']}]")
        result(f"    {', '.join(facts['parameters'])}" + (f"; {facts['paper']}" if facts["paper"] else ""))
