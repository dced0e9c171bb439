"""F5: epsilon over the steps of training: what is claimed, and the lower bound that canaries gave."""

from __future__ import annotations

from markupsafe import Markup

from audits.report.figures.drawing import WIDTH, Plot, Scale, key, svg
from audits.report.value import STYLES, Said, Value


def epsilon(curve: Value) -> Markup:
    """Of one role's records. The claim bounds everything from above, the measured bound some of it from below."""
    points = list(curve.points)
    highest = max(p[name].raw for p in points for name in ("claimed", "lower") if p[name].raw is not None)
    last = points[-1].step.raw
    plot = Plot(Scale(0, last, 70, WIDTH - 40), Scale(0, highest or 1.0, 190, 30), "steps taken", "epsilon")
    body = plot.frame([(0, "0"), (last, str(last))], [(0, "0"), (highest, STYLES["plain"](highest))])
    said = Said("Epsilon for the ", curve.protects, " of the ", curve.role, ": ")
    for index, (name, words) in enumerate((("claimed", "claimed"), ("lower", "measured lower bound"))):
        known = [p for p in points if p[name].raw is not None]
        if known:
            body += plot.series([(p.step.raw, p[name].raw) for p in known], index)
            body += key(index, 76, 244 + 18 * index, words)
            said.add(f"{words} ", known[-1][name], " after ", (known[-1].step, "count"), " steps; ")
    return svg(272, said, body)
