"""Accuracy on test records, epoch by epoch."""

from __future__ import annotations

from markupsafe import Markup

from audits.report.figures.drawing import HALF, Plot, Scale, svg
from audits.report.value import Said, Value

SHARES = ((0.0, "0%"), (0.5, "50%"), (1.0, "100%"))


def accuracy(result: Value) -> Markup:
    """Of one objective at one party; epochs are counted from 1."""
    history = result.history
    plot = Plot(Scale(1, len(history), 46, HALF - 16), Scale(0, 1, 120, 24), "epoch", "accuracy")
    body = plot.frame([(1, "1"), (len(history), str(len(history)))], SHARES)
    body += plot.series([(i, value.raw) for i, value in enumerate(history, 1)], 0)
    said = Said("Accuracy on test records at ", result.party, ", by epoch from the first: ")
    for i, value in enumerate(history):
        said.add(", " if i else "", (value, "percent"))
    return svg(160, said, body, width=HALF)
