"""F3 and F4: settings of a sweep beside each other: leakage along an axis such as the cut, and against utility."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from markupsafe import Markup

from audits.report.figures.drawing import WIDTH, Plot, Scale, key, line, mark, svg, text
from audits.report.value import Said, Value

SCORES = ((0.0, "0"), (0.5, "0.5"), (1.0, "1"))
DODGE = 7
SHARES = ((0.0, "0%"), (0.5, "50%"), (1.0, "100%"))


def letter(index: int) -> str:
    """The mark of a setting: A, B, ..., Z, AA, AB, ..."""
    return (letter(index // 26 - 1) if index >= 26 else "") + chr(ord("A") + index % 26)


def frontier(settings: Value, shown: str) -> Markup:
    """F4: worst score over attacks (across) against accuracy (up), over seeds; full where nothing beats a setting."""
    plot = Plot(Scale(0, 1, 60, WIDTH - 30), Scale(0, 1, 276, 30), "score of the worst attack", "accuracy")
    body, said = plot.frame(SCORES, SHARES), Said("Leakage against utility. ")
    for index, setting in enumerate(settings):
        worst = max((leak.score for leak in setting.leakages), key=lambda score: score["mean"].raw, default=None)
        if worst is None or not setting.accuracy:
            continue
        accuracy = setting.accuracy
        x, y = plot.x(worst["mean"].raw), plot.y(accuracy["mean"].raw)
        if worst.low.raw is not None:
            body.append(line(plot.x(worst.low.raw), y, plot.x(worst.high.raw), y, "interval"))
        if accuracy.low.raw is not None:
            body.append(line(x, plot.y(accuracy.low.raw), x, plot.y(accuracy.high.raw), "interval"))
        body.append(mark(x, y, "disc" if setting.best else "cross", "s1"))
        if setting.name == shown:
            body.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="10" class="s2 stroke"/>')
        body.append(text(x + 9, y - 8, letter(index), kind="strong"))
        said.add(f"{letter(index)} ", setting.name, ": leak ", (worst["mean"], "short"), ", accuracy ",
                 (accuracy["mean"], "percent"), "; ")  # fmt: skip
    return svg(320, said, body)


def along(settings: Value, axis: Value, goal: str) -> Markup | None:
    """F3: the worst score on one goal along an axis, a line for each setting of everything else; None without any."""
    values = axis["values"].raw
    lines: dict[str, list[tuple[int, Value, Value]]] = {}
    for setting in settings:
        for leak in setting.leakages:
            if leak.goal == goal:
                rest = [str(setting["at"][name]) for name in setting["at"].raw if name != axis.name]
                found = lines.setdefault(" ".join([str(setting.configuration), *rest]), [])
                found.append((values.index(setting["at"][axis.name.raw].raw), setting, leak.score))
    if not any(len(points) > 1 for points in lines.values()):
        return None
    height = 250 + 18 * len(lines)
    plot = Plot(Scale(0, len(values) - 1, 60, WIDTH - 60), Scale(0, 1, 190, 30), "", "score of the worst attack")
    body = plot.frame([], SCORES)
    for i, name in enumerate(axis["values"]):
        body.append(line(plot.x(i), 190, plot.x(i), 30, "grid"))
        body.append(text(plot.x(i), 206, name, anchor="middle", kind="small"))
    body.append(text(WIDTH / 2, 222, axis.name, anchor="middle", kind="small"))
    said = Said("Leakage along ", axis.name, f", attacks on the {goal}. ")
    for index, points in enumerate(lines.values()):
        body += _line(plot, index, points, said)
        body += key(index, 66, 244 + 18 * index, *_name(points[0][1], axis))
    return svg(height, said, body)


def _line(plot: Plot, index: int, points: Sequence[tuple[int, Value, Value]], said: Said) -> list[str]:
    beside = DODGE * index  # so that one interval does not hide another
    plot = replace(plot, x=replace(plot.x, start=plot.x.start + beside, end=plot.x.end + beside))
    body = [part for x, _, score in points for part in plot.whisker(x, score.low.raw, score.high.raw)]
    body += plot.series([(x, score["mean"].raw) for x, _, score in points], index)
    for _, setting, score in points:
        said.add(setting.name, ": ", (score["mean"], "short"), "; ")
    return body


def _name(setting: Value, axis: Value) -> list[str | Value]:
    """Of a line: its configuration, and where it stands on the other axes."""
    others = [setting["at"][name] for name in setting["at"].raw if name != axis.name]
    return [setting.configuration, *(part for value in others for part in (", ", value))]
