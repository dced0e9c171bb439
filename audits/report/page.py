"""The page: one HTML file without script or remote asset, rendered from the report's JSON and from nothing else.

Every number on it carries the place that it came from (see `value`): one without a place cannot be printed.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from audits.findings import severity_of
from audits.leakage import Leakage
from audits.report import figures
from audits.report.value import Value, beginning, num, words


def weight(value: Value) -> str:
    """The severity of a leakage, in one word: also its class in the page."""
    known = {key: value for key, value in value.raw.items() if key not in ("groups", "baselines")}
    leak = Leakage(**known)
    return severity_of(leak) or ("above chance" if leak.leaks else "none")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("audits.report", "."),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"num": num, "weight": weight, "beginning": beginning}
    environment.globals |= {"figures": figures, "len": len}
    return environment


def ask(field: Value) -> str:
    """A question to the controller, answered or left open."""
    return f"**{field.question}** ({field.reference})\n\n{field.answer or '____ (to be filled in by the controller)'}\n"


def document(name: str, report: dict[str, Any]) -> str:
    """A Markdown document of the report's JSON: model_card or dpia. Cells of tables hold no line break or bar."""
    environment = _environment().overlay(autoescape=False)
    environment.filters = {**environment.filters, "plain": words}
    made = environment.get_template(f"{name}.md.jinja").render(r=Value(report), ask=ask)
    return made.rstrip() + "\n"


def page(report: dict[str, Any]) -> str:
    """The page of a report's JSON, as parsed from `report.json`."""
    template = _environment().get_template("report.html.jinja")
    style = (Path(__file__).parent / "report.css").read_text(encoding="utf-8")
    trusted = Markup(style)  # nosec B704
    return template.render(r=Value(report), style=trusted)
