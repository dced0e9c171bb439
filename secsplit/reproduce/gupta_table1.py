"""Table 1 of Vepakomma et al. 2018 (arXiv 1812.00564), taken from Gupta and Raskar 2018 (arXiv 1810.06060).

Computation per client to train VGG on CIFAR-10, in teraflops. The text gives neither the variant of VGG, nor where it
is cut, nor epochs, nor what counts as a flop. The ratio of whole to client part needs only the first two, so it is
compared first; what is left is one constant, which is fitted.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from secsplit.cut import cut
from secsplit.flops import Work, flops, macs
from secsplit.reproduce.result import Options, Reproduction, Table
from secsplit.vision import torchvision

PUBLISHED = {("whole", 100): (29.4, 0.05), ("whole", 500): (5.89, 0.005), ("client", 100): (0.1548, 0.00005),
             ("client", 500): (0.03, 0.005)}  # TFLOPs and half a unit of the last digit printed  # fmt: skip
NAMES = {"whole": "large batch, federated", "client": "split"}
IMAGES = 50_000
PASSES = 175
HEAD = (4096, 4096, 1000)  # VGG-16's own, made for ImageNet


@dataclass(frozen=True)
class Candidate:
    """A variant of VGG, and where it is cut."""

    name: str
    variant: str
    head: tuple[int, ...]
    at: str = "features.0"


CANDIDATES = (
    Candidate("VGG-16, ImageNet head 4096-4096-1000, first convolution", "vgg16", HEAD),
    Candidate("VGG-16, head 4096-4096-10, first convolution", "vgg16", (4096, 4096, 10)),
    Candidate("VGG-16, head 512-10, first convolution", "vgg16", (512, 10)),
    Candidate("VGG-13, ImageNet head, first convolution", "vgg13", HEAD),
    Candidate("VGG-19, ImageNet head, first convolution", "vgg19", HEAD),
    Candidate("VGG-16, ImageNet head, second convolution", "vgg16", HEAD, "features.2"),
)


@dataclass(frozen=True)
class Counts:
    """Of one image: the whole network and the client's part, by arithmetic (MACs) and by torch's counter (FLOPs)."""

    whole: Work
    client: Work
    whole_flops: Work
    client_flops: Work

    @property
    def ratio(self) -> float:
        """Whole to client, forward."""
        return self.whole.forward / self.client.forward


def vgg(variant: str, head: tuple[int, ...]) -> nn.Module:
    """VGG for 32x32 images, without memory for its weights: five poolings leave 512 features, which meet the head."""
    with torch.device("meta"):
        model: nn.Module = torchvision.models.get_model(variant)
        layers: list[nn.Module] = []
        for taken, given in zip((512, *head), head, strict=False):
            layers += [nn.Linear(taken, given), nn.ReLU()]
        model.avgpool, model.classifier = nn.Identity(), nn.Sequential(*layers[:-1])
    return model


def counts(candidate: Candidate) -> Counts:
    """Count one image's way through the network and through the client's part of it."""
    model = vgg(candidate.variant, candidate.head)
    image = (torch.zeros(1, 3, 32, 32, device="meta"),)
    client, _ = cut(model, [candidate.at], image[0])
    return Counts(
        macs(model, image, onward=False),
        macs(client, image, onward=False),
        flops(model, image, onward=False),
        flops(client, image, onward=False),
    )


def published_ratio() -> tuple[float, float]:
    """The ratios of whole to client part that the printed digits allow."""
    (a, ea), (b, eb), (c, ec) = (PUBLISHED[key] for key in (("whole", 100), ("whole", 500), ("client", 100)))
    low, high = max(a - ea, 5 * (b - eb)), min(a + ea, 5 * (b + eb))
    return low / (c + ec), high / (c - ec)


def table1(options: Options) -> Reproduction:
    """Computation per client: published, reproduced, and what a training step really takes."""
    found = {candidate: counts(candidate) for candidate in CANDIDATES}
    best = found[CANDIDATES[0]]
    low, high = published_ratio()
    rows: list[tuple[str, ...]] = []
    values: list[dict[str, object]] = []
    for (part, clients), (value, half) in PUBLISHED.items():
        forward = best.whole.forward if part == "whole" else best.client.forward
        ours = forward * PASSES * IMAGES / clients / 1e12
        fits = abs(ours - value) <= half
        values.append(
            {"part": part, "clients": clients, "published": value, "reproduced": ours, "within_rounding": fits}
        )
        name = "large batch, federated" if part == "whole" else "split"
        rows.append(
            (name, f"{clients}", f"{value:g}", f"{ours:.4f}", f"{ours / value - 1:+.2%}", "yes" if fits else "no")
        )
    ranges = {key: _passes(key, best) for key in PUBLISHED}
    return Reproduction(
        name="gupta-table1",
        paper="Vepakomma et al. 2018 (arXiv 1812.00564), table 1, from Gupta and Raskar 2018 (arXiv 1810.06060)",
        tables=(
            Table(
                "teraflops per client, VGG on CIFAR-10",
                ("method", "clients", "published", "reproduced", "difference", "within rounding"),
                tuple(rows),
            ),
            Table(
                f"which network: whole to client part, forward; the printed digits allow {low:.2f} to {high:.2f}",
                ("network and cut", "whole MMAC", "client MMAC", "ratio", "outside by"),
                tuple(
                    (c.name, f"{n.whole.forward / 1e6:.3f}", f"{n.client.forward / 1e6:.6f}", f"{n.ratio:.2f}",
                     f"{_outside(n.ratio, low, high):.2%}")
                    for c, n in found.items()
                ),
            ),
            Table(
                f"what {PASSES} passes really take: FLOPs, two to a MAC, forward and backward, as torch counts them",
                ("method", "clients", "TFLOP", "times the published"),
                tuple(_honest(part, clients, best) for part, clients in PUBLISHED),
            ),
        ),
        assumptions=(
            "VGG-16 with its ImageNet head (4096-4096-1000) on 32x32 images, cut after the first convolution: the "
            "variant whose ratio of whole to client part comes nearest to the published one",
            "a flop is one multiply-accumulate of the forward pass; backward passes are not counted",
            f"{PASSES} passes over {IMAGES:,} images, shared evenly: fitted to the table, not published",
            "federated learning and large-batch SGD cost a client the same: the whole network on its share",
        ),
        differences=(
            f"the ratio is {best.ratio:.2f}, {_outside(best.ratio, low, high):.2%} outside the printed digits' range",
            "no one number of passes fits all four printed values within rounding: "
            + "; ".join(f"{part} at {clients}: {a:.2f} to {b:.2f}" for (part, clients), (a, b) in ranges.items()),
            "counting forward MACs only understates a training step: see the last table",
        ),
        values={
            "rows": values,
            "passes": {"used": PASSES, "fitted": True, "allowed": [[*key, *bounds] for key, bounds in ranges.items()]},
            "published_ratio": [low, high],
            "candidates": [
                {"name": c.name, "whole_macs": n.whole.forward, "client_macs": n.client.forward, "ratio": n.ratio}
                for c, n in found.items()
            ],
            "torch_counter": {"whole_flops": best.whole_flops.forward, "client_flops": best.client_flops.forward},
            "training_step_flops": {"whole": best.whole_flops.step, "client": best.client_flops.step},
        },
    )  # fmt: skip


def _passes(key: tuple[str, int], best: Counts) -> tuple[float, float]:
    """The numbers of passes that one printed value allows."""
    (value, half), (part, clients) = PUBLISHED[key], key
    forward = best.whole.forward if part == "whole" else best.client.forward
    one = forward * IMAGES / clients / 1e12
    return (value - half) / one, (value + half) / one


def _outside(ratio: float, low: float, high: float) -> float:
    return max(low / ratio - 1, ratio / high - 1, 0.0)


def _honest(part: str, clients: int, best: Counts) -> tuple[str, ...]:
    work = best.whole_flops if part == "whole" else best.client_flops
    teraflop = work.step * PASSES * IMAGES / clients / 1e12
    return NAMES[part], f"{clients}", f"{teraflop:.4f}", f"{teraflop / PUBLISHED[part, clients][0]:.2f}"
