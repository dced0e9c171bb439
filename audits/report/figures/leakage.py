"""F2, F7 and F8: how far attacks came from chance, their ROC curves, and the same by class, site and epoch."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from audits.report.figures.drawing import HALF, WIDTH, Plot, Scale, line, mark, path, svg, text
from audits.report.value import Said, Value

LABELS = 250  # width kept for row labels
LINEAR = ((0.0, "0"), (0.5, "0.5"), (1.0, "1"))
Part = tuple[float, Value, Value]  # how dark from 0 to 1, name, value


def scores(found: Value) -> Markup:
    """Headline figures from chance to everything; the bar is the interval. Discs: labels; squares: records."""
    height, body, said = 56 + 30 * len(found), list[str](), Said("How far each attack came from chance to everything. ")
    x = Scale(0, 1, LABELS + 20, WIDTH - 16)
    for tick, words in ((0.0, "chance"), (0.5, "halfway"), (1.0, "everything")):
        body.append(line(x(tick), 24, x(tick), height - 20, "chance" if tick == 0 else "grid"))
        body.append(text(x(tick), 14, words, anchor="end" if tick == 1 else "middle", kind="small"))
    for index, score in enumerate(found):
        y = 44 + 30 * index
        body.append(text(LABELS, y - 2, score.attack, anchor="end", kind="strong"))
        body.append(text(LABELS, y + 11, [score.metric, ", ", score.threat], anchor="end", kind="small"))
        body.append(line(x(score.low.raw), y, x(score.high.raw), y, "interval"))
        label = score.goal == "label"
        body.append(mark(x(score.value.raw), y, "disc" if label else "square", "s1" if label else "s2"))
        said.add(score.attack, " by ", score.threat, ", ", score.metric, ": ", (score.value, "short"), "; ")
    return svg(height, said, body)


def roc(cell: Value) -> Markup:
    """F2: true against false positives, on straight and on logarithmic scales, with the interval and chance."""
    curve = cell.roc
    points = [(p.fpr.raw, p.tpr.raw, p.low.raw, p.high.raw) for p in curve.points]
    least = min(fpr for fpr, *_ in points)
    plain = Plot(Scale(0, 1, 50, HALF - 24), Scale(0, 1, 240, 30), "false positives", "true positives")
    far = Scale(least, 1, HALF + 50, WIDTH - 24, log=True), Scale(least, 1, 240, 30, log=True)
    logarithmic = Plot(*far, "false positives, logarithmic", "true positives, logarithmic")
    decades = [(10.0**-k, f"{10.0**-k:g}") for k in range(4) if 10.0**-k >= least * 0.999]
    body = [*plain.frame(LINEAR, LINEAR), *logarithmic.frame(decades, decades)]
    for plot, start in ((plain, [(0.0, 0.0, 0.0, 0.0)]), (logarithmic, [])):
        all_points = [*start, *points]
        band = [(plot.x(f), plot.y(high)) for f, _, _, high in all_points]
        band += [(plot.x(f), plot.y(low)) for f, _, low, _ in reversed(all_points)]
        body.append(path(band, "band", closed=True))
        body.append(line(plot.x(plot.x.low), plot.y(plot.x.low), plot.x(1), plot.y(1), "chance"))
        body.append(path([(plot.x(f), plot.y(t)) for f, t, *_ in all_points], "s1 stroke"))
    said = Said("ROC of ", cell.attack, " by ", cell.threat, ": area ", curve.area)
    for point in curve.points:
        if point.fpr.raw in (0.001, 0.01, 0.1):
            said.add("; at ", (point.fpr, "percent"), " false positives ", (point.tpr, "percent"), " true")
    return svg(286, said, body)


def heat(rows: Sequence[tuple[Value, Sequence[Part], str]], what: str) -> Markup:
    """F7: a row a figure, a cell a part with its name and value in a style; darker is a larger leak."""
    columns = max((len(cells) for _, cells, _ in rows), default=1)
    width = min(90.0, (WIDTH - LABELS - 10) / columns)
    body, said = [], Said(f"Leakage by {what}. ")
    for i, (leak, cells, style) in enumerate(rows):
        y = 8 + i * 44
        body.append(text(LABELS - 4, y + 22, [leak.attack, ", ", leak.threat], anchor="end", kind="small"))
        said.add(leak.attack, ", ", leak.threat, ": ")
        for j, (dark, part, value) in enumerate(cells):
            x, shade = LABELS + 6 + j * width, round(min(1, max(0, dark)) * 4)
            body.append(f'<rect x="{x:.1f}" y="{y}" width="{width - 4:.1f}" height="36" rx="4" '
                        f'class="heat h{shade}"/>')  # fmt: skip
            middle = x + (width - 4) / 2
            body.append(text(middle, y + 15, part, anchor="middle", kind=f"small h{shade}t"))
            body.append(text(middle, y + 30, value, style, anchor="middle", kind=f"strong h{shade}t"))
            said.add(part, " ", (value, style), ", ")
    return svg(16 + 44 * len(rows), said, body)


def over_training(leak: Value, metric: Value) -> Markup:
    """F8: one figure by the epoch in which the messages were sent, with its interval and its chance level."""
    points = [group for group in leak.groups if group.by == "epoch"]
    style = "percent" if metric.percent else "plain"
    values = [v for p in points for v in (p.value.raw, p.low.raw, p.high.raw) if v is not None]
    high = metric.ideal.raw if metric.more else max([*values, leak.chance.raw or 0.0])
    high = max(values) if high is None else high
    plot = Plot(Scale(0, len(points) - 1, 56, HALF - 16), Scale(0, high, 120, 24), "epoch", "")
    ends = ((0.0, "0"), (high, "100%" if metric.percent else f"{high:.2g}"))
    body = plot.frame([], ends)
    for i in {0, len(points) - 1}:
        body.append(text(plot.x(i), 136, points[i].name, anchor="middle", kind="small"))
    if leak.chance.raw is not None:
        body.append(line(plot.x.start, plot.y(leak.chance.raw), plot.x.end, plot.y(leak.chance.raw), "chance"))
    for i, point in enumerate(points):
        body += plot.whisker(i, point.low.raw, point.high.raw)
    body += plot.series([(i, point.value.raw) for i, point in enumerate(points)], 0)
    said = Said(metric.title, " of ", leak.attack, " by ", leak.threat, ", by epoch: ")
    for i, point in enumerate(points):
        said.add(", " if i else "", (point.value, style))
    return svg(160, said, body, width=HALF)


def parts(leak: Value, metric: Value, by: str) -> list[Part]:
    """The groups of a leakage by class or site, for `heat`."""
    ideal, chance = metric.ideal.raw, leak.chance.raw
    scaled = ideal is not None and chance is not None and ideal != chance
    return [
        ((group.value.raw - chance) / (ideal - chance) if scaled else 0.0, group.name, group.value)
        for group in leak.groups
        if group.by == by
    ]
