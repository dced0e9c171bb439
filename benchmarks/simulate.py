"""What `simulate` costs beside the model's own compute: a split step in one process.

    python -m benchmarks.simulate [--quick]

The same network on the same batches with the same optimizer, one thread, interleaved in one run: unsplit; split and
written out by hand for this one graph; and simulated. Claims: at most 0.5 ms a step beyond the split step written
by hand, and at most 1.03 of the unsplit step for a convolutional network, where the machine is quiet.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterable, Mapping
from functools import partial

import torch
from torch import nn

from secsplit.drive import simulate
from secsplit.models import build
from secsplit.models.spec import ModelSpec
from secsplit.party import Party, Shard
from secsplit.run import Run
from secsplit.runfile import parse
from secsplit.topologies import named

CASES = {
    "mlp on 64 features, batch 32": ("mlp", (), 32, (64,)),
    "cnn on 28x28, batch 128": ("cnn", ("pool1",), 128, (1, 28, 28)),
}
ROWS = 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer blocks")
    blocks = 5 if parser.parse_args().quick else 15
    torch.set_num_threads(1)
    print(
        f"{'CPU ms a step (median)':34}{'unsplit':>10}{'by hand':>10}{'simulate':>10}{'/ unsplit':>10}{'overhead':>10}"
    )
    for case, (name, cut, batch, shape) in CASES.items():
        whole, hand, ours = _interleaved(name, cut, batch, shape, 8 if name == "mlp" else 2, blocks)
        times = f"{whole * 1e3:10.3f}{hand * 1e3:10.3f}{ours * 1e3:10.3f}"
        print(f"{case:34}{times}{ours / whole:10.3f}{(ours - hand) * 1e3:10.3f}")


def _interleaved(
    name: str, cut: tuple[str, ...], batch: int, shape: tuple[int, ...], epochs: int, blocks: int
) -> tuple[float, ...]:
    """Median CPU seconds a step, block by block in turns; the first block warms up."""
    coins = torch.Generator().manual_seed(0)
    x, y = torch.randn(ROWS, *shape, generator=coins), torch.randint(0, 10, (ROWS,), generator=coins)
    spec, times = ModelSpec(name=name, cut=cut), ([], [], [])
    for block in range(blocks + 1):
        one, two, three = (build(spec, named("vanilla"), {"x": torch.Size(shape)}, {"y": 10}, seed=1) for _ in range(3))
        ways = (
            partial(_unsplit, one, x, y, batch, epochs),
            partial(_by_hand, two, x, y, batch, epochs),
            partial(simulate, _parties(three, x, y, batch, epochs)),
        )
        for way, kept in zip(ways, times, strict=True):
            began = time.process_time()
            way()
            if block:
                kept.append((time.process_time() - began) / (epochs * ROWS // batch))
    return tuple(statistics.median(kept) for kept in times)


def sgd(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9)


def _unsplit(modules: Mapping[str, nn.Module], x: torch.Tensor, y: torch.Tensor, batch: int, epochs: int) -> None:
    """The loop that a user would write for the network without a cut."""
    whole = nn.Sequential(*modules.values())
    optimizer, coins = sgd(whole.parameters()), torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for rows in torch.randperm(ROWS, generator=coins).split(batch):
            optimizer.zero_grad(set_to_none=True)
            nn.functional.cross_entropy(whole(x[rows]), y[rows]).backward()
            optimizer.step()


def _by_hand(modules: Mapping[str, nn.Module], x: torch.Tensor, y: torch.Tensor, batch: int, epochs: int) -> None:
    """The split step written out for this one graph: two graphs, two optimizers, no messages."""
    bottom, top = modules["bottom"], modules["top"]
    optimizers, coins = [sgd(bottom.parameters()), sgd(top.parameters())], torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for rows in torch.randperm(ROWS, generator=coins).split(batch):
            for optimizer in optimizers:
                optimizer.zero_grad(set_to_none=True)
            h = bottom(x[rows])
            leaf = h.detach().requires_grad_()
            nn.functional.cross_entropy(top(leaf), y[rows]).backward()
            h.backward(leaf.grad)
            for optimizer in optimizers:
                optimizer.step()


def _parties(
    modules: Mapping[str, nn.Module], x: torch.Tensor, y: torch.Tensor, batch: int, epochs: int
) -> dict[str, Party]:
    """A client and a server; nothing is recorded, nothing evaluated."""
    tables = {
        "parties": {"client": {"role": "client"}, "server": {"role": "server"}},
        "train": {"batch_size": batch, "epochs": epochs, "evaluate_every": 0},
    }
    run = Run.of(parse(tables))
    mine = Shard({"train": {"x": x}, "test": {"x": x[:1]}}, {"train": {"y": y}, "test": {"y": y[:1]}})
    return {
        "client": Party(run, "client", {"bottom": modules["bottom"]}, {0: mine}, sgd),
        "server": Party(run, "server", {"top": modules["top"]}, {0: Shard({}, {})}, sgd),
    }


if __name__ == "__main__":
    main()
