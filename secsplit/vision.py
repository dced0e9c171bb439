"""torchvision, importable beside any build of torch: ``from secsplit.vision import torchvision``.

torchvision declares fake kernels for its compiled operators at import. Its wheel for CUDA, installed beside a CPU
torch, cannot load those operators, and the whole package fails on two names that no model of ours calls. Declaring
their signatures (the schemas of torchvision's own ``csrc/ops``) lets the pure-Python rest import: models, data sets,
feature extraction. Calling ``nms`` itself still raises, as it should: there is no kernel behind it.

Where torchvision imports by itself nothing is touched.
"""

import importlib
import sys
import warnings
from types import ModuleType

import torch

NMS = "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
QNMS = "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"

declared: torch.library.Library | None = None  # kept for the life of the process: dropping it withdraws the names


def load() -> ModuleType:
    """Import torchvision, declaring its missing operators only after a plain import failed for want of them."""
    global declared
    try:
        return quietly_import()
    except RuntimeError as refused:
        if "torchvision::" not in str(refused):
            raise
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]  # what the failed import left half done
    declared = torch.library.Library("torchvision", "DEF")
    for schema in (NMS, QNMS):
        declared.define(schema)
    return quietly_import()


def quietly_import() -> ModuleType:
    """Import torchvision without its warning that the image codecs, which we do not use, have no library."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Failed to load image Python extension")
        return importlib.import_module("torchvision")


torchvision = load()
