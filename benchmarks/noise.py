"""The noise samplers against torch.randn: CPU time of 8 MB of draws, interleaved, medians of 15 blocks.

Claim: the float sampler, keyed from the operating system, takes at most 1.5 times torch.randn. The grid sampler's
ratio is printed beside it, and what either adds to a training step on set-up S.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from secsplit.defenses import Noise

DRAWS, BLOCKS = 2_000_000, 15


def cpu_ms(call: Callable[[], object]) -> float:
    """CPU milliseconds of one call."""
    start = time.process_time()
    call()
    return 1000 * (time.process_time() - start)


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    noise = Noise.fresh()
    calls: dict[str, Callable[[], object]] = {
        "torch.randn": lambda: torch.randn(DRAWS),
        "float (ChaCha20, Box-Muller)": lambda: noise.normal("benchmark", (DRAWS,)),
        "grid (ChaCha20, alias table)": lambda: noise.rounded_normal("benchmark", (DRAWS,), 1024.0),
    }
    for call in calls.values():
        call()
    blocks = [{name: cpu_ms(call) for name, call in calls.items()} for _ in range(BLOCKS)]
    for name in calls:
        median = statistics.median(block[name] for block in blocks)
        ratio = statistics.median(block[name] / block["torch.randn"] for block in blocks)
        print(f"{name:32} {median:7.1f} ms for {4 * DRAWS / 1e6:.0f} MB   {ratio:5.2f} x torch.randn")


if __name__ == "__main__":
    main()
