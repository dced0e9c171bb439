"""Notice that the server trains the client for something else, and stop: the label-cosine gap.

Fu et al., "Focusing on Pinocchio's Nose", NDSS 2023, simplified: while the task's own loss is trained, returned
gradients of rows with the same label point the same way and those of different labels do not; under feature-space
hijacking (Pasquini, Ateniese, Bernaschi, CCS 2021) labels do not matter and the gap vanishes. It needs labels at the
client. It detects the attacks it was measured on; an attacker who knows it and keeps the gap is not excluded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from secsplit.defenses.base import Defense, Incoming
from secsplit.defenses.noise import Noise
from secsplit.defenses.spec import AtCut, Spec
from secsplit.errors import PeerError
from secsplit.message import Kind
from secsplit.topology import Topology


class HijackSpec(AtCut):
    """kind = "hijack-detector": stop once the mean gap of the last `window` steps, `patience` at least, is too small.

    action: "watch" only keeps the gaps, for a report.
    """

    guarantee = "detector"
    paper = "Fu et al. 2023, Focusing on Pinocchio's Nose"
    about = "stops training when returned gradients do not follow the labels"

    kind: Literal["hijack-detector"] = "hijack-detector"
    threshold: float = 0.3
    patience: Annotated[int, Field(ge=1)] = 10
    window: Annotated[int, Field(ge=1)] = 20
    action: Literal["stop", "watch"] = "stop"

    def fits(self, topology: Topology, specs: Sequence[Spec], micro_batches: int) -> None:
        del specs, micro_batches
        self.needs_labels(topology)

    def build(self, noise: Noise, classes: Mapping[str, int]) -> Hijack:
        del noise, classes
        return Hijack(self)


class Hijack(Defense):
    """Looks at each returned gradient before the segment learns from it; `gaps` keeps the last ones."""

    def __init__(self, spec: HijackSpec) -> None:
        self.spec = spec
        self.gaps: list[float] = []
        self._seen = 0

    def incoming(self, came: Incoming) -> Tensor:
        """Raises PeerError where the gradients have stopped following the labels."""
        if came.kind is Kind.CUT_GRAD and came.edge == self.spec.edge and came.labels is not None:
            gap = label_gap(came.tensor, came.labels)
            if gap is not None:
                self._seen += 1
                self.gaps = [*self.gaps, gap][-self.spec.window :]
                self._judge(came.sender)
        return came.tensor

    @property
    def gap(self) -> float:
        """The mean gap over the window; NaN before the first step."""
        return sum(self.gaps) / len(self.gaps) if self.gaps else float("nan")

    def _judge(self, sender: str) -> None:
        if self.spec.action == "stop" and self._seen >= self.spec.patience and self.gap < self.spec.threshold:
            raise PeerError(
                sender,
                f"its gradients on {self.spec.edge!r} do not follow the labels (gap {self.gap:.3f} over "
                f"{len(self.gaps)} steps, expected at least {self.spec.threshold:g}): it may be training this party "
                "for another end; stopped",
            )

    def state(self) -> dict[str, Tensor]:
        return {"gaps": torch.tensor([float(self._seen), *self.gaps], dtype=torch.float64)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        seen, *self.gaps = state["gaps"].tolist()
        self._seen = int(seen)


def label_gap(gradients: Tensor, labels: Tensor) -> float | None:
    """Mean cosine of rows of gradients (n, ...) with equal labels (n,) minus that of rows with different labels.

    None where the batch has no pair of either sort. Rows without a label (-1) and zero rows are left out.
    """
    rows = gradients.detach().flatten(1)
    keep = (labels >= 0) & (rows.abs().amax(1) > 0)
    rows, labels = F.normalize(rows[keep].float(), dim=1), labels[keep]
    cosines = rows @ rows.T
    same = labels[:, None] == labels[None, :]
    other = ~same
    same.fill_diagonal_(False)
    if not bool(same.any()) or not bool(other.any()):
        return None
    return float(cosines[same].mean() - cosines[other].mean())
