"""What the adversary rebuilt, beside what it was: a few records as images, the best rebuilt first, then median ones.

Shown only of data that is public by its card, or where the controller asked for it by name: a reconstruction of a real
patient is itself that patient's data. Each is shown with the training record nearest to it, who would be taken for the
patient, and with the adversary's own nearest record and the mean one, so that a reader can tell a rebuilt patient from
a likeness that anybody could have drawn.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from io import BytesIO

import torch
from torch import Tensor

from attacks.base import Guess
from audits import images, score_inputs
from audits.evidence import Case
from audits.frozen import Frozen
from secsplit.threat import View

LEAST_PIXELS = 64  # a side, so that 8x8 digits can be seen


class Shown(Frozen):
    """One record: PNG images in base64, and how near the reconstruction came."""

    rank: str  # "closest" | "median"
    label: str
    mse: float
    ssim: float
    reidentified: bool
    original: str
    reconstruction: str
    neighbour: str  # the training record nearest to the reconstruction: the original, where it was re-identified
    nearest: str | None  # the auxiliary record nearest to the reconstruction
    mean: str | None  # the mean auxiliary record


class Gallery(Frozen):
    """The records shown of one attack."""

    attack: str
    threat: str
    column: str
    shown: tuple[Shown, ...]


def gallery(case: Case, guess: Guess, view: View, *, count: int) -> Gallery | None:
    """Half of `count` records closest to their original, half around the median; None where inputs are no images."""
    guess = score_inputs.evaluated(case, guess)
    if guess.inputs is None or not len(guess.position) or not count:
        return None
    truth = case.truth.input(guess.column, guess.cast, guess.position)
    if truth.ndim != 4 or truth.shape[1] not in (1, 3):
        return None
    rebuilt = images.aligned(guess.inputs, truth) if guess.up_to_affine else guess.inputs.clamp(0, 1)
    order = images.mse(rebuilt, truth).argsort()
    closest, middle = order[: count - count // 2], order[len(order) // 2 :][: count // 2]
    picked = torch.cat([closest, middle])
    ranks = ["closest"] * len(closest) + ["median"] * len(middle)
    figures = score_inputs.figures(case, guess)
    aux = view.aux.inputs.get(guess.column) if view.aux is not None else None
    everyone = torch.cat([case.truth.inputs[cast][guess.column] for cast in case.truth.casts])
    mean = None if aux is None else png(aux.mean(0))
    shown = []
    for rank, i in zip(ranks, picked.tolist(), strict=True):
        near = None if aux is None else png(_nearest(rebuilt[i], aux))
        shown.append(
            Shown(
                rank=rank,
                label=_label(case, guess, i),
                original=png(truth[i]),
                reconstruction=png(rebuilt[i]),
                neighbour=png(_nearest(rebuilt[i], everyone)),
                nearest=near,
                mean=mean,
                mse=float(images.mse(rebuilt[i : i + 1], truth[i : i + 1])),
                ssim=float(figures["ssim"][i]),
                reidentified=bool(figures["re-identification"][i] > 0.5),
            )
        )
    return Gallery(attack=case.attack, threat=case.threat, column=guess.column, shown=tuple(shown))


def _nearest(one: Tensor, among: Tensor) -> Tensor:
    """The image of `among` with the least squared distance."""
    return among[(among - one).flatten(1).square().sum(1).argmin()]


def _label(case: Case, guess: Guess, i: int) -> str:
    """The true class of a shown record, in words; empty where it has none."""
    one = torch.tensor([i])
    cast, position = guess.cast[one], guess.position[one]
    labels: Mapping[str, Tensor] = case.truth.labels.get(int(cast), {})
    for name, count in case.truth.classes.items():
        if count > 1 and name in labels and labels[name].ndim == 1:
            return f"{name} = {int(case.truth.label(name, cast, position))}"
    return ""


def png(image: Tensor) -> str:
    """An image (channels, height, width) in [0, 1] as PNG in base64, enlarged without blur where it is very small."""
    from PIL import Image

    pixels = (image.detach().clamp(0, 1) * 255).round().to(torch.uint8)
    factor = max(1, -(-LEAST_PIXELS // max(pixels.shape[1:])))
    picture = Image.fromarray(pixels[0].numpy() if len(pixels) == 1 else pixels.permute(1, 2, 0).numpy())
    picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    out = BytesIO()
    picture.save(out, "PNG", optimize=True)
    return b64encode(out.getvalue()).decode()
