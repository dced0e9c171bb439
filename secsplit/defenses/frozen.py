"""A segment that does not learn: the simplest sound way to a finite epsilon for a whole transcript.

What it sends depends on each example through that example's own message alone, so the per-message bounds compose
exactly. Sound only where its weights never saw these records: pretrained on public data, or random.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from secsplit.defenses.base import Defense, Host
from secsplit.defenses.noise import Noise
from secsplit.defenses.spec import AtSegment


class FrozenSpec(AtSegment):
    """kind = "frozen": `segment` keeps the weights it starts with, which must not come from these records."""

    guarantee = "none"
    paper = ""
    about = "a segment that does not learn, so that per-message bounds compose"

    kind: Literal["frozen"] = "frozen"

    def freezes(self, segment: str) -> bool:
        return segment == self.segment

    def build(self, noise: Noise, classes: Mapping[str, int]) -> Frozen:
        del noise, classes
        return Frozen(self)


class Frozen(Defense):
    """Switches off the gradient of a segment's weights before the first step."""

    def __init__(self, spec: FrozenSpec) -> None:
        self.spec = spec

    def prepare(self, host: Host) -> None:
        host.modules[self.spec.segment].requires_grad_(False)
        host.modules[self.spec.segment].eval()
        host.optimizers.pop(self.spec.segment, None)
