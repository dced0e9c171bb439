"""Table 2 of Vepakomma et al. 2018 (arXiv 1812.00564), taken from Gupta and Raskar 2018 (arXiv 1810.06060).

Bandwidth per client to train ResNet-50 on CIFAR-100, in gigabytes. The split row follows from the size of what crosses
the cut, and the bytes an image are measured here on real messages, sealed by a real channel. The other two rows are
rounds (or steps) times twice the weights; the rounds are not published, so they can only be inferred from the table.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from secsplit.cost import measured
from secsplit.reproduce.result import Options, Reproduction, Table
from secsplit.run import Run
from secsplit.runfile import parse
from secsplit.traffic import Tally, total

PUBLISHED = {("large batch", 100): (13, 0.5), ("large batch", 500): (14, 0.5), ("federated", 100): (3, 0.5),
             ("federated", 500): (2.4, 0.05), ("split", 100): (6, 0.5), ("split", 500): (1.2, 0.05)}  # fmt: skip
IMAGES, EPOCHS = 50_000, 100
GIB, GB = 2**30, 10**9
BATCH, BATCHES = 8, 2


@dataclass(frozen=True)
class PerImage:
    """What crosses for one image in training, measured."""

    images: int
    activations: Tally  # up and down
    labels: Tally

    @property
    def payload(self) -> float:
        """Bytes of smashed data and cut gradient, an image."""
        return self.activations.payload / self.images

    @property
    def sealed(self) -> float:
        """Bytes on the wire, an image, labels and all."""
        return (self.activations.sealed + self.labels.sealed) / self.images

    @property
    def overhead(self) -> float:
        """What labels, headers and sealing add, relative to the payload."""
        return self.sealed / self.payload - 1


def images(folder: Path, n: int) -> Path:
    """Random 32x32 colour images of a hundred classes: bytes on the wire do not depend on what is in them."""
    coins = np.random.default_rng(0)
    path = folder / "images.npz"
    arrays: dict[str, Any] = {}
    for part in ("train", "test"):
        arrays[f"{part}_images"] = coins.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
        arrays[f"{part}_labels"] = np.append(coins.integers(0, 100, n - 1), 99).reshape(-1, 1)
    np.savez(path, **arrays)
    return path


def run(folder: Path, method: str) -> Run:
    """Two mini-batches of split learning, or one round of a method that shares the whole network's weights."""
    split = method == "split"
    clients = 1 if split else 2
    roles = [("client", f"client-{i}") for i in range(clients)] + [("server" if split else "aggregator", "server")]
    tables: dict[str, Any] = {
        "topology": {"name": "vanilla" if split else "whole"},
        "method": {"name": "sl-am" if split else {"federated": "federated", "large batch": "large-batch"}[method]},
        "model": {"name": "resnet50", "cut": ["conv1"] if split else []},
        "optimizer": {"name": "sgd", "lr": 0.01},
        "train": {"batch_size": BATCH, "evaluate_every": 0},
        "data": {"name": "npz", "path": images(folder, BATCH * BATCHES)},
        "parties": {name: {"role": role} for role, name in roles},
    }
    return Run.of(parse(tables))


def measure() -> tuple[PerImage, dict[str, Tally]]:
    """Bytes an image of split learning; bytes a client and round (or step), both ways, of the other two."""
    with tempfile.TemporaryDirectory(prefix="secsplit-table2-") as folder:
        split = measured(run(Path(folder), "split")).traffic
        shared = {
            method: total(
                measured(run(Path(folder), method)).traffic, lambda route: "client-0" in (route.sender, route.receiver)
            )
            for method in ("federated", "large batch")
        }
    activations = total(split, lambda route: route.kind in ("smashed", "cut-grad"))
    return PerImage(BATCH * BATCHES, activations, total(split, lambda route: route.kind == "labels")), shared


def epochs_that_fit(payload: float, unit: int) -> tuple[float, float]:
    """The epochs for which both figures of the split row come out, within rounding, in that unit."""
    bounds = []
    for clients in (100, 500):
        (value, half), epoch = PUBLISHED["split", clients], payload * IMAGES / clients / unit
        bounds.append(((value - half) / epoch, (value + half) / epoch))
    return max(low for low, _ in bounds), min(high for _, high in bounds)


def table2(options: Options) -> Reproduction:
    """Bandwidth per client: published, reproduced where it can be, inferred where it cannot."""
    image, shared = measure()
    gib, gb = epochs_that_fit(image.payload, GIB), epochs_that_fit(image.payload, GB)
    rows: list[tuple[str, ...]] = []
    values: list[dict[str, Any]] = []
    for clients in (100, 500):
        value, half = PUBLISHED["split", clients]
        sent = image.payload * EPOCHS * IMAGES / clients
        fits = abs(sent / GIB - value) <= half
        rows.append(
            ("split", f"{clients}", f"{value:g}", f"{sent / GIB:.3f}", f"{sent / GB:.3f}", "yes" if fits else "no")
        )
        values.append({"method": "split", "clients": clients, "published": value, "gib": sent / GIB, "gb": sent / GB,
                       "within_rounding": fits})  # fmt: skip
    rounds: list[tuple[str, ...]] = []
    for method in ("federated", "large batch"):
        both_ways = shared[method].payload
        for clients in (100, 500):
            value, half = PUBLISHED[method, clients]
            low, high = ((value + sign * half) * GIB / both_ways for sign in (-1, 1))
            rounds.append((method, f"{clients}", f"{value:g}", f"{both_ways / 1e6:.2f} MB", f"{low:.1f} to {high:.1f}"))
            values.append({"method": method, "clients": clients, "published": value, "bytes_a_round": both_ways,
                           "inferred_rounds": [low, high]})  # fmt: skip
    return Reproduction(
        name="gupta-table2",
        paper="Vepakomma et al. 2018 (arXiv 1812.00564), table 2, from Gupta and Raskar 2018 (arXiv 1810.06060)",
        tables=(
            Table(
                "gigabytes per client, ResNet-50 on CIFAR-100: reproduced",
                ("method", "clients", "published", "GiB", "GB", "within rounding, in GiB"),
                tuple(rows),
            ),
            Table(
                "gigabytes per client: not reproduced; rounds (or steps) inferred from the published figure",
                ("method", "clients", "published", "measured a round", "rounds that the figure implies"),
                tuple(rounds),
            ),
            Table(
                f"measured on {BATCHES} mini-batches of {BATCH}, every message sealed",
                ("what", "bytes"),
                (
                    ("smashed data and cut gradient, an image", f"{image.payload:,.0f}"),
                    ("labels, an image", f"{image.labels.payload / image.images:,.0f}"),
                    (
                        "all of it sealed, an image",
                        f"{image.sealed:,.1f}",
                    ),
                    ("labels, headers and tags, of the payload", f"{image.overhead:.3%}"),
                ),
            ),
        ),
        assumptions=(
            "torchvision's ResNet-50 on 32x32 images, cut after its first convolution: 64x16x16 float32 up and down "
            "(a cut after layer1, 256x8x8, gives the same size and fits as well)",
            f"{EPOCHS} epochs over {IMAGES:,} images, shared evenly, and a unit of GiB: chosen together, neither is "
            f"published; {gib[0]:.1f} to {gib[1]:.1f} epochs fit both columns in GiB, {gb[0]:.1f} to {gb[1]:.1f} in "
            "decimal gigabytes fit as well",
            "weights in float32, BatchNorm's statistics with them; a client sends and is sent all of them every round",
        ),
        differences=(
            "the federated and large-batch rows are not reproduced: they are rounds until an accuracy, by choices "
            "that are not published; the rounds above are what the figures imply, and nothing more",
            f"labels, headers and sealing add {image.overhead:.3%} to the split row, which the table leaves out",
        ),
        values={
            "rows": values,
            "payload_bytes_an_image": image.payload,
            "sealed_bytes_an_image": image.sealed,
            "epochs": EPOCHS,
            "epochs_that_fit": {"GiB": gib, "GB": gb},
        },
    )
