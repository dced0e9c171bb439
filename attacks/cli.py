"""`secsplit attacks list`: every attack, ours and plug-ins', with what it needs, what it costs and whose it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from secsplit.commands.console import Json, result, result_json

if TYPE_CHECKING:
    from attacks.base import Need, Needs

attacks = typer.Typer(help="what an adversary can try", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    app.add_typer(attacks, name="attacks")


@attacks.command("list")
def list_attacks(as_json: Json = False) -> None:
    """Every attack: its goal, the threat it belongs to, what it needs, its cost in CPU seconds, its paper."""
    from attacks.catalogue import catalogue

    found = catalogue()
    if as_json:
        result_json(
            {
                name: {
                    "about": about(attack),
                    "goal": attack.goal,
                    "behaviour": behaviour(attack.needs),
                    "messages": [words(need) for need in attack.needs.messages],
                    "any_of": [words(need) for need in attack.needs.any_of],
                    "knows": sorted(attack.needs.knows),
                    "needs": in_words(attack.needs),
                    "cost": attack.cost,
                    "paper": attack.paper,
                }
                for name, attack in found.items()
            }
        )
        return
    for name, attack in found.items():
        result(f"{name}: {about(attack)}")
        result(f"    goal {attack.goal}; {behaviour(attack.needs)}; needs {'; '.join(in_words(attack.needs))}")
        result(f"    about {attack.cost:g} CPU seconds; {attack.paper}")


def about(attack: type) -> str:
    """The first sentence of its docstring."""
    return " ".join((attack.__doc__ or "").strip().split("\n\n")[0].split())


def behaviour(needs: Needs) -> str:
    return "malicious" if needs.active else "curious"


def in_words(needs: Needs) -> list[str]:
    """All that an attack needs, in words; ["nothing"] where it needs nothing."""
    found = [words(need) for need in needs.messages]
    found += [" or ".join(words(need) for need in needs.any_of)] if needs.any_of else []
    found += [f"known: {known}" for known in sorted(needs.knows)]
    found += ["a label it does not hold"] if needs.secret_labels else []
    found += ["the scored segment"] if needs.holds_scored else []
    found += ["records of its own"] if needs.own_records else []
    return found or ["nothing"]


def words(need: Need) -> str:
    return f"{need.kind} {need.direction}"
