"""F9: bytes that crossed over the run, forward above the line and backward below."""

from __future__ import annotations

from markupsafe import Markup

from audits.report.figures.drawing import WIDTH, line, svg, text
from audits.report.value import Said, Value

WAYS = ("forward", "backward", "other")
LEFT, MIDDLE, HALF = 80.0, 82.0, 66.0


def timeline(cost: Value) -> Markup:
    """One bar a part of the run; weights and control messages below the gradients."""
    bins = cost.raw["timeline"]
    most = max([1, *(max(b["forward"], b["backward"] + b["other"]) for b in bins)])
    width = (WIDTH - LEFT - 8) / max(1, len(bins))
    body = [text(LEFT - 8, MIDDLE - 24, "forward", anchor="end", kind="small"),
            text(LEFT - 8, MIDDLE + 32, "backward", anchor="end", kind="small")]  # fmt: skip
    for i, b in enumerate(bins):
        up, down, rest = (HALF * b[way] / most for way in WAYS)
        for top, height, kind in ((MIDDLE - up, up, "s1"), (MIDDLE, down, "s2"), (MIDDLE + down, rest, "s3")):
            body.append(f'<rect x="{LEFT + i * width:.1f}" y="{top:.1f}" width="{width * 0.8:.1f}" '
                        f'height="{height:.1f}" class="{kind}"/>')  # fmt: skip
    body.append(line(LEFT, MIDDLE, WIDTH - 8, MIDDLE, "axis"))
    body.append(text(LEFT, 166, "first step", kind="small"))
    body.append(text(WIDTH - 8, 166, "last step", anchor="end", kind="small"))
    said = Said("Bytes over the run: ")
    for way, name in zip(WAYS, ("forward, ", "backward, ", "of weights and control"), strict=True):
        said.add((cost[way], "bytes"), f" {name}")
    return svg(170, said, body)
