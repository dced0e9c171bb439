"""F1: segments in the order data flows, one lane a role, with what crosses each trust boundary."""

from __future__ import annotations

from collections.abc import Mapping

from markupsafe import Markup

from audits.report.figures.drawing import WIDTH, line, svg, text
from audits.report.value import Said, Value

LEFT, LANE = 120, 84
Place = tuple[float, float]


def topology(scope: Value) -> Markup:
    """Thick arrows cross from one party to another."""
    nodes = {str(node.name): node for node in scope.nodes}
    roles = list({str(node.role): node.role for node in nodes.values()}.values())
    lanes = {str(role): i for i, role in enumerate(roles)}
    step = (WIDTH - LEFT - 10) / (1 + max(node.column.raw for node in nodes.values()))
    box = min(150.0, step - 46)
    place = {n: (LEFT + v.column.raw * step + 6, lanes[str(v.role)] * LANE + 22.0) for n, v in nodes.items()}
    body = []
    for i, role in enumerate(roles):
        body.append(f'<rect x="1" y="{i * LANE + 4}" width="{WIDTH - 2}" height="{LANE - 8}" rx="8" class="lane"/>')
        body.append(text(14, i * LANE + LANE / 2 + 4, role, kind="strong"))
    for name, node in nodes.items():
        body += _arrows(node, nodes, place, box, place[name])
    for name, node in nodes.items():
        body += _segment(node, box, *place[name])
    said = Said("Who holds which part of the network: ")
    for role in roles:
        said.add(role, " holds ")
        for i, node in enumerate(node for node in nodes.values() if node.role == role):
            said.add(", " if i else "", node.name)
        said.add("; ")
    said.add((scope.crossings, "count"), " connection(s) cross from one party to another.")
    return svg(len(roles) * LANE, said, body)


def _arrows(node: Value, nodes: Mapping[str, Value], place: Mapping[str, Place], box: float, at: Place) -> list[str]:
    """Into a segment, from those whose outputs it takes."""
    body = []
    for name in node.inputs.raw:
        if name.startswith("data:"):
            continue
        from_x, from_y = place[name]
        kind = "inside" if nodes[name].role == node.role else "crossing"
        body.append(line(from_x + box, from_y + 20, at[0] - 7, at[1] + 20, kind))
        body.append(f'<path d="M{at[0] - 8:.1f} {at[1] + 15:.1f}l8 5l-8 5z" class="{kind} head"/>')
    return body


def _segment(node: Value, box: float, x: float, y: float) -> list[str]:
    data = [value for value in node.inputs if str(value).startswith("data:")]
    body = [f'<rect x="{x:.1f}" y="{y}" width="{box:.1f}" height="40" rx="6" class="box"/>']
    body.append(text(x + box / 2, y + (17 if data else 24), node.name, anchor="middle", kind="strong"))
    if data:
        parts = [part for value in data for part in (", ", value)]
        body.append(text(x + box / 2, y + 32, parts[1:], anchor="middle", kind="small"))
    return body
