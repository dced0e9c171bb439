"""`secsplit topologies list` and `secsplit methods list`: what there is, and what each makes cross."""

from __future__ import annotations

import typer

from secsplit.commands.console import Json, result, result_json

topologies = typer.Typer(help="configurations of split learning", no_args_is_help=True)
methods = typer.Typer(help="training methods", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    app.add_typer(topologies, name="topologies")
    app.add_typer(methods, name="methods")


@topologies.command("list")
def list_topologies(as_json: Json = False) -> None:
    """Every named topology: its roles, and what crosses between them."""
    from secsplit.topologies import TOPOLOGIES

    found = {name: make() for name, make in TOPOLOGIES.items()}
    if as_json:
        result_json(
            {
                name: {
                    "about": t.about,
                    "roles": t.roles,
                    "segments": [{"name": s.name, "role": s.role, "inputs": s.inputs} for s in t.order],
                    "crossings": [
                        {"kind": c.kind, "edge": c.edge, "from": c.sender, "to": c.receiver} for c in t.crossings
                    ],
                }
                for name, t in found.items()
            }
        )
        return
    for name, topology in found.items():
        result(f"{name}: {topology.about}")
        for crossing in topology.crossings:
            result(f"    {crossing.sender} -> {crossing.receiver}: {crossing.kind} ({crossing.edge})")


@methods.command("list")
def list_methods(as_json: Json = False) -> None:
    """Every training method: order of turns, and whose weights are shared when."""
    from dataclasses import asdict

    from secsplit.method import METHODS

    if as_json:
        result_json({name: asdict(method) for name, method in METHODS.items()})
        return
    for method in METHODS.values():
        result(f"{method.name}: {method.about}")
        result(f"    order {method.order}; client side {method.client_side}; server side {method.server_side}")
