"""Rounding or withholding of confidences: less of a model's output leaves the party that computes it.

Luo, Wu, Xiao, Ooi, ICDE 2021 (arXiv 2010.10152), section VII: exact feature inference by equation solving needs exact
confidences; two decimals destroy it. It acts on evaluation and inference only, since training needs exact outputs. A
measured control without a guarantee.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from secsplit.defenses.base import Outgoing
from secsplit.defenses.noise import Noise
from secsplit.defenses.spec import AtCrossing, OnMessage, Tensorial

FLOOR = 1e-6  # the confidence that a rounded-away or withheld class is given, so that logarithms stay finite


class ConfidenceSpec(AtCrossing):
    """kind = "confidence": confidences leave rounded to `decimals`, or only the `top` classes' confidences leave."""

    guarantee = "none"
    paper = "Luo et al. 2021, arXiv 2010.10152"
    about = "confidences rounded or withheld at inference"

    kind: Literal["confidence"] = "confidence"
    message: Tensorial = "output"
    decimals: Annotated[int, Field(ge=0, le=6)] | None = None
    top: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _one(self) -> Any:
        if (self.decimals is None) == (self.top is None):
            raise ValueError("give decimals = 2 to round confidences, or top = 1 to withhold all others; one of them")
        return self

    def build(self, noise: Noise, classes: Mapping[str, int]) -> Confidence:
        del noise, classes
        return Confidence(self)


class Confidence(OnMessage[ConfidenceSpec]):
    """Replaces logits by the logarithms of coarser confidences."""

    def outgoing(self, out: Outgoing) -> Tensor:
        """(batch, classes): log confidences; logits leave as they are in training."""
        return out.tensor if out.stamp.training else coarse(out.tensor.softmax(1), self.spec).clamp(min=FLOOR).log()


def coarse(confidences: Tensor, spec: ConfidenceSpec) -> Tensor:
    """(batch, classes) confidences after rounding, or with all but the top classes set to zero."""
    if spec.decimals is not None:
        return torch.round(confidences, decimals=spec.decimals)
    assert spec.top is not None
    kept = confidences.topk(min(spec.top, confidences.shape[1]), dim=1)
    return torch.zeros_like(confidences).scatter(1, kept.indices, kept.values)
