"""What a party may do to its messages, one file a defense, and the union of their run-file tables.

To add one: a file with its `Spec` and its `Defense`, and its line in `SPECS`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, get_args

from pydantic import Field

from secsplit.defenses.base import Defense, Defenses, Incoming, Outgoing
from secsplit.defenses.confidence import ConfidenceSpec
from secsplit.defenses.dp_sgd import DPSGDSpec
from secsplit.defenses.dropout import DropoutSpec
from secsplit.defenses.frozen import FrozenSpec
from secsplit.defenses.gaussian import GaussianSpec
from secsplit.defenses.hijack import HijackSpec
from secsplit.defenses.iso import IsoSpec
from secsplit.defenses.label_dp import LabelDPSpec
from secsplit.defenses.marvell import MarvellSpec
from secsplit.defenses.max_norm import MaxNormSpec
from secsplit.defenses.noise import Noise
from secsplit.defenses.nopeek import NoPeekSpec
from secsplit.defenses.prune import PruneSpec
from secsplit.defenses.quantise import QuantiseSpec, SignSpec
from secsplit.defenses.spec import Spec
from secsplit.defenses.splitguard import SplitGuardSpec
from secsplit.topology import Topology

AnySpec = (
    GaussianSpec
    | DPSGDSpec
    | LabelDPSpec
    | FrozenSpec
    | IsoSpec
    | MarvellSpec
    | MaxNormSpec
    | NoPeekSpec
    | PruneSpec
    | QuantiseSpec
    | SignSpec
    | DropoutSpec
    | ConfidenceSpec
    | HijackSpec
    | SplitGuardSpec
)
DefenseSpec = Annotated[AnySpec, Field(discriminator="kind")]
SPECS: Mapping[str, type[Spec]] = {spec.model_fields["kind"].default: spec for spec in get_args(AnySpec)}

__all__ = [
    "SPECS",
    "AnySpec",
    "Defense",
    "DefenseSpec",
    "Defenses",
    "Incoming",
    "Noise",
    "Outgoing",
    "Spec",
    "build",
    "check",
]


def check(specs: Sequence[AnySpec], topology: Topology, *, micro_batches: int = 1) -> None:
    """Raises RunError where a defense has no place in the topology, or contradicts another."""
    for spec in specs:
        spec.role(topology)
        spec.fits(topology, specs, micro_batches)


def build(specs: Sequence[Spec], topology: Topology, role: str, noise: Noise, classes: Mapping[str, int]) -> Defenses:
    """The defenses of one party of that role, in the run's order. classes: label column -> number of classes."""
    return Defenses([spec.build(noise, classes) for spec in specs if spec.role(topology) == role])
