"""Which part of a record a column holds: regions of images, features of tables, labels and groups of classes.

Vertical parties are made by these selectors: each holds other columns of the same records.
"""

from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from secsplit.datasets.records import mismatch
from secsplit.errors import nearest

HALVES = {"all": (), "left": ("left",), "right": ("right",), "top": ("top",), "bottom": ("bottom",)} | {
    f"{vertical}-{horizontal}": (vertical, horizontal)
    for vertical in ("top", "bottom")
    for horizontal in ("left", "right")
}


def choose_input(
    name: str, selector: str, inputs: Tensor, features: Sequence[str], *, without: Collection[str] = ()
) -> Tensor:
    """The part of (n, features) or (n, channels, height, width) inputs that the modality's selector names."""
    what = f"data.modalities.{name}"
    if features:
        kept = [i for i in feature_positions(what, selector, features) if features[i] not in without]
        if not kept:
            raise mismatch(what, expected="a feature that is not also a label", got=selector, fix="name other features")
        return inputs[:, kept]
    return region(what, selector, inputs)


def feature_positions(what: str, selector: str, features: Sequence[str]) -> list[int]:
    """Positions of the features that a list of names, patterns or ranges names, in the table's order."""
    chosen: set[int] = set()
    for word in (word.strip() for word in selector.split(",")):
        found = positions_of_word(what, word, features)
        if not found:
            raise mismatch(what, expected="features of the table", got=repr(word), fix=nearest(word, features))
        chosen.update(found)
    return sorted(chosen)


def positions_of_word(what: str, word: str, features: Sequence[str]) -> list[int]:
    """One name, pattern or range: all, ``mean *``, ``0:10``."""
    if word == "all":
        return list(range(len(features)))
    if word in features:
        return [features.index(word)]
    bounds = span(word, len(features), what)
    if bounds is not None:
        return list(range(*bounds))
    return [i for i, feature in enumerate(features) if fnmatchcase(feature, word)]


def region(what: str, selector: str, images: Tensor) -> Tensor:
    """A region of (n, channels, h, w) images: half, quarter, rows or columns. A middle line goes right or down."""
    height, width = images.shape[-2:]
    axis, _, word = selector.partition(" ")
    if axis in ("rows", "columns"):
        bounds = span(word.strip(), height if axis == "rows" else width, what)
        if bounds is not None:
            part = slice(*bounds)
            return (images[..., part, :] if axis == "rows" else images[..., part]).contiguous()
    if selector not in HALVES:
        known = [*HALVES, "rows A:B", "columns A:B"]
        raise mismatch(what, expected="a region of the image", got=repr(selector), fix=nearest(selector, known))
    cuts = {
        "left": (..., slice(0, width // 2)),
        "right": (..., slice(width // 2, width)),
        "top": (..., slice(0, height // 2), slice(None)),
        "bottom": (..., slice(height // 2, height), slice(None)),
    }
    part_of_image = images
    for half in HALVES[selector]:
        part_of_image = part_of_image[cuts[half]]
    return part_of_image.contiguous()


def span(word: str, length: int, what: str) -> tuple[int, int] | None:
    """The bounds of ``A:B``, or None where the word is not of that form."""
    start, colon, stop = word.partition(":")
    if not colon or not (start.isdigit() and stop.isdigit()):
        return None
    if not int(start) < int(stop) <= length:
        raise mismatch(what, expected=f"a range within 0:{length}", got=word, fix="give first:last+1, first < last")
    return int(start), int(stop)


def choose_label(
    selector: str, labels: dict[str, Tensor], classes: dict[str, int], inputs: Tensor, features: Sequence[str]
) -> tuple[Tensor, int]:
    """The label column that a selector names and its number of classes (0 for regression)."""
    name, group_of, group = (part.strip() for part in selector.partition(" in "))
    if name in labels:
        if not group_of:
            return labels[name], classes[name]
        return in_group(name, group, labels[name], classes[name])
    if name in features and not group_of:
        return inputs[:, features.index(name)].float(), 0
    raise mismatch(
        "data.labels", expected="a label column of the data", got=repr(name), fix=nearest(name, [*labels, *features])
    )


def in_group(name: str, group: str, column: Tensor, count: int) -> tuple[Tensor, int]:
    """``y in 5,7,9``: 1 where the class is one of the group."""
    members = [word.strip() for word in group.split(",")]
    if not all(word.isdigit() and int(word) < count for word in members):
        raise mismatch(
            f"data.labels, {name!r} in {group!r}",
            expected=f"classes 0 to {count - 1}, separated by commas",
            got=repr(group),
            fix="name classes that the label has",
        )
    return torch.isin(column, torch.tensor([int(word) for word in members])).long(), 2
