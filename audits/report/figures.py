"""The drawings of the page, as small SVG made by hand: no script, colours from the page's style, readable in grey.

Each takes a Value of the report's JSON and has a text alternative made from its numbers; the page prints the same
numbers in a table beside it. Marks differ in shape as well as in colour.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from audits.leakage import METRICS

if TYPE_CHECKING:
    from audits.report.page import Value

WIDTH = 720
WAYS = ("forward", "backward", "other")
LABELS = 250  # width kept for row labels


def svg(height: float, title: str, body: Iterable[str], *, width: float = WIDTH) -> Markup:
    """A drawing with its text alternative."""
    kind = "figure half" if width < WIDTH else "figure"
    return Markup(  # nosec B704 - every word in it went through escape()
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(title)}" class="{kind}">'
        f"<title>{escape(title)}</title>{''.join(body)}</svg>"
    )


def text(x: float, y: float, words: object, *, anchor: str = "start", kind: str = "") -> str:
    css = f' class="{kind}"' if kind else ""
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}"{css}>{escape(str(words))}</text>'


def line(x1: float, y1: float, x2: float, y2: float, kind: str = "") -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def mark(x: float, y: float, shape: str = "disc", kind: str = "s1") -> str:
    """A point: disc, square, diamond or cross."""
    if shape == "disc":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" class="{kind}"/>'
    if shape == "square":
        return f'<rect x="{x - 4.5:.1f}" y="{y - 4.5:.1f}" width="9" height="9" class="{kind}"/>'
    if shape == "diamond":
        return f'<path d="M{x:.1f} {y - 6:.1f}l6 6l-6 6l-6-6z" class="{kind}"/>'
    return f'<path d="M{x - 4:.1f} {y - 4:.1f}l8 8m0-8l-8 8" class="{kind} stroke"/>'


def topology(scope: Value) -> Markup:
    """F1: segments in the order data flows, one lane a role, with what crosses each trust boundary."""
    nodes: list[dict[str, Any]] = scope.raw["nodes"]
    roles = list(dict.fromkeys(node["role"] for node in nodes))
    columns = 1 + max(node["column"] for node in nodes)
    left, lane = 120, 84
    step = (WIDTH - left - 10) / columns
    place = {n["name"]: (left + n["column"] * step + 6, roles.index(n["role"]) * lane + 22) for n in nodes}
    box = min(150.0, step - 46)
    body = []
    for index, role in enumerate(roles):
        body.append(f'<rect x="1" y="{index * lane + 4}" width="{WIDTH - 2}" height="{lane - 8}" rx="8" class="lane"/>')
        body.append(text(14, index * lane + lane / 2 + 4, role, kind="strong"))
    for node in nodes:
        x, y = place[node["name"]]
        for name in node["inputs"]:
            if name.startswith("data:"):
                continue
            from_x, from_y = place[name]
            crosses = next(n["role"] for n in nodes if n["name"] == name) != node["role"]
            kind = "crossing" if crosses else "inside"
            body.append(line(from_x + box, from_y + 20, x - 7, y + 20, kind))
            body.append(f'<path d="M{x - 8:.1f} {y + 15:.1f}l8 5l-8 5z" class="{kind} head"/>')
    for node in nodes:
        x, y = place[node["name"]]
        data = ", ".join(name.removeprefix("data:") for name in node["inputs"] if name.startswith("data:"))
        body.append(f'<rect x="{x:.1f}" y="{y}" width="{box:.1f}" height="40" rx="6" class="box"/>')
        body.append(text(x + box / 2, y + (17 if data else 24), node["name"], anchor="middle", kind="strong"))
        if data:
            body.append(text(x + box / 2, y + 32, f"reads {data}", anchor="middle", kind="small"))
    crossing = sum(1 for n in nodes for i in n["inputs"] if _crosses(nodes, n, i))
    title = (
        f"Who holds which part of the network: {'; '.join(_holds(nodes, role) for role in roles)}. "
        f"{crossing} connection(s) cross from one party to another."
    )
    return svg(len(roles) * lane, title, body)


def _crosses(nodes: Sequence[dict[str, Any]], node: dict[str, Any], name: str) -> bool:
    return any(other["name"] == name and other["role"] != node["role"] for other in nodes)


def _holds(nodes: Sequence[dict[str, Any]], role: str) -> str:
    return f"{role} holds {', '.join(n['name'] for n in nodes if n['role'] == role)}"


def leakage(leaks: Sequence[Value]) -> Markup:
    """Scores of the headline figures: 0 is chance, 1 is everything; the bar is the 95% interval."""
    rows = [(leak, scores) for leak in leaks if (scores := _scores(leak.raw)) is not None]
    height, body = 34 + 30 * len(rows) + 22, []
    right = WIDTH - 16

    def x(score: float) -> float:
        return LABELS + 20 + score * (right - LABELS - 20)

    for tick, words in ((0.0, "chance"), (0.5, "halfway"), (1.0, "everything")):
        body.append(line(x(tick), 24, x(tick), height - 20, "chance" if tick == 0 else "grid"))
        body.append(text(x(tick), 14, words, anchor="end" if tick == 1 else "middle", kind="small"))
    for index, (leak, (low, value, high)) in enumerate(rows):
        y = 44 + 30 * index
        raw = leak.raw
        body.append(text(LABELS, y - 2, raw["attack"], anchor="end", kind="strong"))
        body.append(text(LABELS, y + 11, f"{METRICS[raw['metric']].title.lower()}, {raw['threat']}", anchor="end",
                         kind="small"))  # fmt: skip
        body.append(line(x(low), y, x(high), y, "interval"))
        body.append(mark(x(value), y, "disc" if raw["goal"] == "label" else "square",
                         "s1" if raw["goal"] == "label" else "s2"))  # fmt: skip
    said = "; ".join(f"{leak.raw['attack']} by {leak.raw['threat']}: {value:.2f}" for leak, (_, value, _) in rows)
    return svg(height, f"Leakage scores from 0 (chance) to 1 (everything). {said or 'No figure.'}", body)


def _scores(leak: dict[str, Any]) -> tuple[float, float, float] | None:
    """(low, value, high) on the scale from chance to everything; None where the metric has no such scale."""
    ideal, chance = METRICS[leak["metric"]].ideal, leak["chance"]
    if ideal is None or chance is None or ideal == chance:
        return None
    ends = [leak["value"] if end is None else end for end in (leak["low"], leak["high"])]
    low, value, high = (min(1.0, max(0.0, (v - chance) / (ideal - chance))) for v in (ends[0], leak["value"], ends[1]))
    return min(low, high), value, max(low, high)


def curve(points: Sequence[float], title: str, *, low: float = 0.0, high: float = 1.0, name: str = "epoch") -> Markup:
    """A line over epochs (from 1), marked at each; two thin lines at the ends of the scale."""
    height, left, right = 150.0, 46.0, WIDTH / 2 - 10
    top, bottom = 14.0, height - 30

    def x(index: float) -> float:
        return left + (right - left) * (index / max(1, len(points) - 1))

    def y(value: float) -> float:
        return bottom - (bottom - top) * (min(high, max(low, value)) - low) / (high - low)

    body = [line(left, y(tick), right, y(tick), "grid") for tick in (low, (low + high) / 2, high)]
    body += [text(left - 6, y(tick) + 4, f"{tick:.3g}", anchor="end", kind="small") for tick in (low, high)]
    path = " ".join(f"{'M' if i == 0 else 'L'}{x(i):.1f} {y(v):.1f}" for i, v in enumerate(points))
    body.append(f'<path d="{path}" class="s1 stroke"/>')
    body += [mark(x(i), y(v)) for i, v in enumerate(points)]
    body += [text(x(i), height - 10, i + 1, anchor="middle", kind="small") for i in {0, len(points) - 1}]
    body.append(text((left + right) / 2, height - 10, name, anchor="middle", kind="small"))
    said = ", ".join(f"{v:.3g}" for v in points)
    return svg(height, f"{title}, by {name} from the first: {said}", body, width=WIDTH / 2)


def letter(index: int) -> str:
    """The mark of a setting: A, B, ..., Z, A1, B1, ..."""
    return chr(ord("A") + index % 26) + (str(index // 26) if index >= 26 else "")


def frontier(settings: Value, shown: str) -> Markup:
    """F4: worst score over attacks (across) against accuracy (up), over seeds; full where nothing beats a setting."""
    height, left, right, top, bottom = 320.0, 60.0, WIDTH - 30.0, 16.0, 276.0

    def x(score: float) -> float:
        return left + (right - left) * min(1.0, max(0.0, score))

    def y(accuracy: float) -> float:
        return bottom - (bottom - top) * min(1.0, max(0.0, accuracy))

    body = []
    for tick in (0.0, 0.5, 1.0):
        body += [line(x(tick), top, x(tick), bottom, "grid"), line(left, y(tick), right, y(tick), "grid")]
        body += [text(x(tick), bottom + 16, f"{tick:g}", anchor="middle", kind="small"),
                 text(left - 8, y(tick) + 4, f"{tick:.0%}", anchor="end", kind="small")]  # fmt: skip
    body.append(text((left + right) / 2, height - 8, "score of the worst attack", anchor="middle", kind="small"))
    body.append(text(left + 6, top + 14, "accuracy", kind="small"))
    said = []
    for index, setting in enumerate(settings.raw):
        leaks = [leak["score"] for leak in setting["leakages"]]
        if not leaks or setting["accuracy"] is None:
            continue
        worst = max(leaks, key=lambda score: score["mean"])
        at = x(worst["mean"]), y(setting["accuracy"]["mean"])
        for low, high, across in ((worst["low"], worst["high"], True),
                                  (setting["accuracy"]["low"], setting["accuracy"]["high"], False)):  # fmt: skip
            if low is not None:
                ends = (x(low), at[1], x(high), at[1]) if across else (at[0], y(low), at[0], y(high))
                body.append(line(*ends, "interval"))
        body.append(mark(*at, "disc" if setting["best"] else "cross", "s1"))
        if setting["name"] == shown:
            body.append(f'<circle cx="{at[0]:.1f}" cy="{at[1]:.1f}" r="10" class="s2 stroke"/>')
        body.append(text(at[0] + 9, at[1] - 8, letter(index), kind="strong"))
        said.append(
            f"{letter(index)} {setting['name']}: leak {worst['mean']:.2f}, accuracy {setting['accuracy']['mean']:.2f}"
        )
    return svg(height, f"Leakage against utility. {'; '.join(said) or 'Nothing to compare.'}", body)


def timeline(cost: Value) -> Markup:
    """F9: bytes that crossed over the run, forward above the line and backward below."""
    bins = cost.raw["timeline"]
    most = max([1, *(max(b["forward"], b["backward"] + b["other"]) for b in bins)])
    height, left = 170.0, 80.0
    middle, half = 82.0, 66.0
    width = (WIDTH - left - 8) / max(1, len(bins))
    body = [text(left - 8, middle - 24, "forward", anchor="end", kind="small"),
            text(left - 8, middle + 32, "backward", anchor="end", kind="small")]  # fmt: skip
    for i, b in enumerate(bins):
        up, down, rest = (half * b[way] / most for way in WAYS)
        x = left + i * width
        body.append(f'<rect x="{x:.1f}" y="{middle - up:.1f}" width="{width * 0.8:.1f}" height="{up:.1f}" class="s1"/>')
        body.append(f'<rect x="{x:.1f}" y="{middle:.1f}" width="{width * 0.8:.1f}" height="{down:.1f}" class="s2"/>')
        body.append(
            f'<rect x="{x:.1f}" y="{middle + down:.1f}" width="{width * 0.8:.1f}" height="{rest:.1f}" class="s3"/>'
        )
    body.append(line(left, middle, WIDTH - 8, middle, "axis"))
    body.append(text(left, height - 4, "first step", kind="small"))
    body.append(text(WIDTH - 8, height - 4, "last step", anchor="end", kind="small"))
    forward, backward, other = (sum(b[way] for b in bins) for way in WAYS)
    said = f"{forward} forward, {backward} backward, {other} of weights and control"
    return svg(height, f"Bytes over the run, in {len(bins)} parts: {said}", body)


def heat(rows: Sequence[tuple[str, Sequence[tuple[str, float, str]]]], title: str) -> Markup:
    """F7: rows of cells, each (name, score from 0 to 1, printed value); darker is a larger leak."""
    columns = max((len(cells) for _, cells in rows), default=1)
    width = min(90.0, (WIDTH - LABELS - 10) / columns)
    body = []
    for i, (name, cells) in enumerate(rows):
        y = 8 + i * 44
        body.append(text(LABELS - 4, y + 22, name, anchor="end", kind="small"))
        for j, (part, score, printed) in enumerate(cells):
            x = LABELS + 6 + j * width
            body.append(f'<rect x="{x:.1f}" y="{y}" width="{width - 4:.1f}" height="36" rx="4" '
                        f'class="heat h{round(min(1, max(0, score)) * 4)}"/>')  # fmt: skip
            body.append(text(x + (width - 4) / 2, y + 15, part, anchor="middle", kind=f"small h{round(score * 4)}t"))
            body.append(
                text(x + (width - 4) / 2, y + 30, printed, anchor="middle", kind=f"strong h{round(score * 4)}t")
            )
    said = "; ".join(f"{name}: " + ", ".join(f"{part} {printed}" for part, _, printed in cells) for name, cells in rows)
    return svg(16 + 44 * len(rows), f"{title}. {said}", body)


def parts(leak: Value, by: str) -> list[tuple[str, float, str]]:
    """The groups of a leakage by class or site, for `heat`."""
    raw, metric = leak.raw, METRICS[leak.raw["metric"]]
    found = []
    for group in raw["groups"]:
        if group["by"] == by:
            scores = _scores({**raw, "value": group["value"], "low": None, "high": None})
            printed = f"{group['value']:.0%}" if metric.percent else f"{group['value']:.2g}"
            found.append((group["name"], scores[1] if scores else 0.0, printed))
    return found
