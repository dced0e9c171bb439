"""The ``[model]`` table of a run file: which network, where it is cut, what the segments of a branching graph are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, PositiveInt, ValidationError

from secsplit.config import Strict, explain
from secsplit.errors import RunError


class SegmentModel(Strict):
    """One ``[model.segments.NAME]`` table: what that segment is, whatever its place.

    ``mlp``: flattened, then a linear layer and ReLU for each width. ``conv``: a 3x3 convolution, normalisation, ReLU
    and 2x2 pooling for each width. ``identity``: hands on what it takes. A segment that is scored ends in a linear
    layer to as many outputs as its objective wants.
    """

    kind: Literal["mlp", "conv", "identity"] = "mlp"
    widths: tuple[PositiveInt, ...] = (64,)


class ModelSpec(Strict):
    """The network. A chain of segments holds the named model, cut; a branching graph its first piece at each source.

    ``cut``: where, by module path; absent, the model's own places for so many cuts (the first and last of them, and
    evenly between). ``skips``: what to do where a skip connection would cross a cut: refuse, let it ``cross`` as a
    further tensor, or build the network without it (``drop``, U-Net only). ``widths``: of the mlp's hidden layers or
    the U-Net's levels. ``hidden``: width of middle segments and heads in a branching graph. ``normalisation`` replaces
    every BatchNorm. ``stem``: ``cifar`` gives a ResNet a 3x3 first convolution and no first pooling, for small images.
    """

    name: str = "mlp"
    cut: tuple[str, ...] = ()
    skips: Literal["refuse", "cross", "drop"] = "refuse"
    widths: tuple[PositiveInt, ...] | None = Field(default=None, min_length=1)
    hidden: PositiveInt = 64
    normalisation: Literal["batch", "group", "none"] = "batch"
    stem: Literal["imagenet", "cifar"] = "imagenet"
    segments: dict[str, SegmentModel] = Field(default_factory=dict)


def parse(table: Mapping[str, Any]) -> ModelSpec:
    """Check a ``[model]`` table. Raises RunError naming each wrong key, its value and the fix."""
    try:
        return ModelSpec.model_validate(table)
    except ValidationError as error:
        raise RunError("\n".join(f"model.{explain(ModelSpec, p, table)}" for p in error.errors())) from None
