"""A U-Net trained over a cut that its skips cross: masks as labels, one step equal to the unsplit network's."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from secsplit.assemble import modules_of, parties_of, truth_of
from secsplit.drive import simulate
from secsplit.party import Party
from secsplit.run import Run
from secsplit.runfile import parse
from secsplit.steps import News


def folder(root: Path) -> dict[str, Any]:
    """Sixteen images of a bright square, and where it is."""
    coins = np.random.default_rng(0)
    for i in range(16):
        mask, (row, column) = np.zeros((16, 16), np.uint8), coins.integers(0, 8, 2)
        mask[row : row + 8, column : column + 8] = 255
        for kind, pixels in (("x", mask // 2 + coins.integers(0, 60, (16, 16), dtype=np.uint8)), ("m", mask)):
            (root / kind).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(root / kind / f"scan{i:02d}_{i % 2}.png")
    return {"name": "image-folder", "path": root / "x", "masks": root / "m", "size": 16, "labels": {"mask": "mask"}}


def run(data: dict[str, Any], skips: str, **train: Any) -> Run:
    tables = {
        "topology": {
            "name": "segmentation",
            "segments": [
                {"name": "bottom", "role": "hospital", "inputs": ["data:x"]},
                {"name": "top", "role": "server", "inputs": ["bottom"]},
            ],
            "objectives": [{"segment": "top", "holder": "hospital", "at": "server", "target": "mask"}],
        },
        "model": {"name": "unet", "widths": [4, 8, 16], "cut": ["down3"], "skips": skips, "normalisation": "group"},
        "optimizer": {"name": "sgd", "lr": 1.0},
        "train": {"batch_size": 64, **train},
        "data": data,
        "parties": {"clinic": {"role": "hospital"}, "compute": {"role": "server"}},
    }
    return Run.of(parse(tables))


@pytest.mark.parametrize("skips", ["cross", "drop"])
def test_one_step_over_the_cut_is_one_step_of_the_unsplit_network(skips: str, tmp_path: Path) -> None:
    split = run(folder(tmp_path), skips, evaluate_every=0)
    before, records = modules_of(split), truth_of(split, 0).train
    handed = before["bottom"](records.inputs["x"])
    assert isinstance(handed, tuple) is (skips == "cross")
    output = before["top"](*handed) if isinstance(handed, tuple) else before["top"](handed)
    F.cross_entropy(output, records.labels["mask"]).backward()
    parties = parties_of(split)
    simulate(parties)
    for segment, party in (("bottom", "clinic"), ("top", "compute")):
        trained = dict(parties[party].modules[segment].named_parameters())
        for name, parameter in before[segment].named_parameters():
            assert parameter.grad is not None
            expected = parameter.detach() - parameter.grad
            assert torch.allclose(trained[name], expected, rtol=1e-5, atol=1e-6), name


def test_it_learns_to_find_the_square(tmp_path: Path) -> None:
    told: list[float] = []

    def observe(party: Party, news: News) -> None:
        told.extend(m["test_accuracy"] for m in news.metrics.values() if "test_accuracy" in m)

    simulate(parties_of(run(folder(tmp_path), "cross", epochs=12)), observe=observe)
    background = 1 - 64 / 256  # of the pixels: what calling all of them background would get
    assert told[-1] > background + 0.1
