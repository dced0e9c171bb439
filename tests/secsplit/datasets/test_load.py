"""What `load` makes of the sources that ship: shapes, scales, splits, columns, labels, and its refusals."""

import gzip
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_breast_cancer

from secsplit.datasets import DataError, DataSpec, load
from tests.secsplit.datasets.idx import write_fashion_mnist


def test_digits_are_scaled_split_within_classes_and_never_shared_between_train_and_test() -> None:
    digits = load(DataSpec())
    assert digits.shapes() == {"x": torch.Size([1, 8, 8])}
    assert digits.classes == {"y": 10}
    x = digits.train.inputs["x"]
    assert x.dtype == torch.float32
    assert (float(x.min()), float(x.max())) == (0.0, 1.0)
    ids = torch.cat([digits.train.ids, digits.test.ids])
    assert ids.sort().values.tolist() == list(range(1797))
    shares = torch.bincount(digits.test.labels["y"]) / torch.bincount(
        torch.cat([digits.train.labels["y"], digits.test.labels["y"]])
    )
    assert shares.sub(0.2).abs().max() < 0.005


def test_the_same_spec_gives_the_same_records_and_another_seed_another_split() -> None:
    one, same, other = (load(DataSpec(seed=seed)) for seed in (0, 0, 1))
    assert torch.equal(one.train.ids, same.train.ids)
    assert not torch.equal(one.test.ids, other.test.ids)


def test_breast_cancer_is_standardised_by_the_records_to_train_on_and_malignant_is_one() -> None:
    cancer = load(DataSpec(name="breast-cancer", modalities={"mean": "mean *", "error": "* error", "worst": "20:30"}))
    raw = load_breast_cancer()
    assert {name: tuple(shape) for name, shape in cancer.shapes().items()} == {
        "mean": (10,),
        "error": (10,),
        "worst": (10,),
    }
    for column in cancer.train.inputs.values():
        assert column.mean(0).abs().max() < 1e-5
        assert (column.std(0, correction=0) - 1).abs().max() < 1e-5
    train, seen = raw.data[cancer.train.ids], cancer.test.inputs["worst"]
    expected = (raw.data[cancer.test.ids] - train.mean(0)) / train.std(0)
    assert torch.allclose(seen.double(), torch.from_numpy(expected[:, 20:]), atol=1e-5)
    assert torch.equal(cancer.test.labels["y"], torch.from_numpy(1 - raw.target[cancer.test.ids]))


def test_regions_of_an_image_put_together_again_are_the_image() -> None:
    whole = load(DataSpec()).train.inputs["x"]
    spec = DataSpec(modalities={n: n for n in ("left", "right", "top-left", "bottom-left")} | {"strip": "columns 4:6"})
    part = load(spec).train.inputs
    assert torch.equal(torch.cat([part["left"], part["right"]], dim=3), whole)
    assert torch.equal(torch.cat([part["top-left"], part["bottom-left"]], dim=2), part["left"])
    assert torch.equal(part["strip"], part["right"][..., :2])


def test_several_labels_groups_of_classes_and_a_feature_as_label() -> None:
    labels = {"y": "y", "odd": "parity", "loop": "y in 0, 6,8,9"}
    digits = load(DataSpec(labels=labels))
    assert digits.classes == {"y": 10, "odd": 2, "loop": 2}
    y = digits.train.labels["y"]
    assert torch.equal(digits.train.labels["odd"], y % 2)
    assert torch.equal(digits.train.labels["loop"] == 1, (y == 0) | (y == 6) | (y == 8) | (y == 9))
    cancer = load(DataSpec(name="breast-cancer", labels={"y": "y", "size": "mean area"}))
    assert cancer.classes == {"y": 2, "size": 0}
    assert cancer.shapes()["x"] == (29,)
    assert float(cancer.train.labels["size"].max()) > 1000


def test_binary_and_imbalanced_and_limited() -> None:
    digits = load(DataSpec(positive=3, positive_fraction=0.05, limit=400, limit_test=100))
    assert digits.classes == {"y": 2}
    assert (len(digits.train), len(digits.test)) == (400, 100)
    rare = load(DataSpec(positive=3, positive_fraction=0.05))
    assert rare.train.labels["y"].float().mean() == pytest.approx(0.05, abs=0.001)
    common = load(DataSpec(positive=3, positive_fraction=0.5))
    assert common.train.labels["y"].float().mean() == pytest.approx(0.5, abs=0.01)


def test_a_fraction_of_the_records_to_train_on_loses_its_labels() -> None:
    digits = load(DataSpec(labelled_fraction=0.1))
    assert (digits.train.labels["y"] >= 0).float().mean() == pytest.approx(0.1, abs=0.001)
    assert (digits.test.labels["y"] >= 0).all()


@pytest.mark.parametrize(("inside", "packed"), [("", False), ("FashionMNIST/raw", True)], ids=["idx", "idx.gz"])
def test_fashion_mnist_is_read_from_a_folder(tmp_path: Path, packed: bool, inside: str) -> None:
    images, labels = write_fashion_mnist(tmp_path / inside, packed=packed)
    spec = DataSpec(name="fashion-mnist", path=tmp_path, limit=50, limit_test=20, labels={"y": "y", "shoe": "footwear"})
    fashion = load(spec)
    assert fashion.shapes() == {"x": torch.Size([1, 28, 28])}
    assert (fashion.test.ids >= 60_000).all()
    assert (fashion.train.ids < 60_000).all()
    assert torch.equal(fashion.train.inputs["x"][:, 0].mul(255).round().byte(), images[fashion.train.ids])
    assert torch.equal(fashion.test.labels["y"], labels[fashion.test.ids])
    assert torch.equal(fashion.test.labels["shoe"] == 1, torch.isin(fashion.test.labels["y"], torch.tensor([5, 7, 9])))


def test_a_truncated_or_foreign_file_is_refused_with_what_came(tmp_path: Path) -> None:
    write_fashion_mnist(tmp_path, packed=False)
    broken = tmp_path / "t10k-images-idx3-ubyte"
    whole = broken.read_bytes()
    spec = DataSpec(name="fashion-mnist", path=tmp_path)
    for content in (whole[:-1], whole + b"\0", b"\0\0\x0d\x03" + whole[4:]):
        broken.write_bytes(content)
        with pytest.raises(DataError, match="expected an idx file of unsigned bytes"):
            load(spec)
    broken.unlink()
    broken.with_suffix(".gz").write_bytes(gzip.compress(whole)[:5000])
    with pytest.raises(DataError, match="expected an idx file, got"):
        load(spec)
    broken.with_suffix(".gz").unlink()
    with pytest.raises(DataError, match="no such file"):
        load(spec)


REFUSED = {
    "misspelt set": ({"name": "fashon-mnist"}, "did you mean 'fashion-mnist'"),
    "misspelt label": ({"labels": {"y": "partiy"}}, "did you mean 'parity'"),
    "misspelt region": ({"modalities": {"x": "letf"}}, "did you mean 'left'"),
    "misspelt feature": ({"name": "breast-cancer", "modalities": {"x": "mean radios"}}, "did you mean 'mean radius'"),
    "range too far": ({"name": "breast-cancer", "modalities": {"x": "0:31"}}, "a range within 0:30"),
    "empty range": ({"modalities": {"x": "rows 4:4"}}, "a range within 0:8"),
    "class beyond the last": ({"positive": 10}, "expected a class of label y, 0 to 9, got 10"),
    "group beyond the last": ({"labels": {"y": "y in 3,12"}}, "expected classes 0 to 9"),
    "fraction of ten classes": ({"positive_fraction": 0.1}, "set data.positive"),
    "only the label is left": (
        {"name": "breast-cancer", "labels": {"y": "mean area"}, "modalities": {"x": "mean area"}},
        "a feature that is not also a label",
    ),
    "no such folder": ({"name": "fashion-mnist", "path": "/nonexistent"}, "set data.path"),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_is_refused_with_a_hint(case: tuple[dict[str, object], str]) -> None:
    options, hint = case
    with pytest.raises(DataError, match=hint):
        load(DataSpec.model_validate(options))
