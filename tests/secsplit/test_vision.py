"""torchvision imports beside any torch, in a fresh process and with warnings as errors."""

import subprocess
import sys

FRESH = """
import torch
from secsplit.vision import torchvision
import secsplit.vision
print(tuple(torchvision.models.resnet18().eval()(torch.zeros(1, 3, 32, 32)).shape))
try:
    torch.ops.torchvision.nms
except AttributeError:
    raise SystemExit("nms is not declared")
before = secsplit.vision.declared
assert secsplit.vision.load() is torchvision
assert secsplit.vision.declared is before, "a second call declared again"
"""


def test_torchvision_imports_and_computes_in_a_fresh_process() -> None:
    run = subprocess.run([sys.executable, "-W", "error", "-c", FRESH], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "(1, 1000)"
