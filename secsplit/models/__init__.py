"""Networks by name, and a module for every segment of a topology."""

from secsplit.models.build import build
from secsplit.models.named import OWN, network, normalised, places
from secsplit.models.spec import ModelSpec, SegmentModel
from secsplit.models.unet import UNet

__all__ = ["OWN", "ModelSpec", "SegmentModel", "UNet", "build", "network", "normalised", "places"]
