"""Folders of images and of DICOM files, .npz files: classes from names, pixels as stored, and nothing of a patient."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from secsplit.datasets import DataError, Dataset, DataSpec, describe, load

NAME = "Doe^Jane"


def picture(path: Path, seed: int, size: int = 16) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def by_folder(root: Path) -> None:
    for i in range(20):
        picture(root / ("ill" if i % 2 else "well") / f"{i:02d}.png", i)


def by_name(root: Path) -> None:
    for i in range(20):
        picture(root / f"CHNCXR_{i:04d}_{i % 2}.png", i)


def by_table(root: Path) -> None:
    for i in range(20):
        picture(root / f"{i:02d}.png", i)
    (root / "labels.csv").write_text("file,y\n" + "".join(f"{i:02d},{'ab'[i % 2]}\n" for i in range(20)))


def read(root: Path, **options: object) -> Dataset:
    tables = {"name": "image-folder", "path": root, "size": 16, **options}
    return load(DataSpec.model_validate(tables))


@pytest.mark.parametrize(("write", "table"), [(by_folder, None), (by_name, None), (by_table, "labels.csv")])
def test_classes_come_from_folders_names_or_a_table(
    write: Callable[[Path], None], table: str | None, tmp_path: Path
) -> None:
    write(tmp_path)
    data = read(tmp_path, **({"table": tmp_path / table} if table else {}))
    assert data.classes == {"y": 2}
    assert data.shapes() == {"x": torch.Size([1, 16, 16])}
    assert torch.bincount(torch.cat([data.train.labels["y"], data.test.labels["y"]])).tolist() == [10, 10]
    drawn = {np.random.default_rng(i).integers(0, 256, (16, 16), dtype=np.uint8).tobytes(): i for i in range(20)}
    for pixels, y in zip(data.train.inputs["x"], data.train.labels["y"], strict=True):
        i = drawn[pixels.mul(255).round().byte().numpy().tobytes()]
        assert int(y) == (i % 2 if write is not by_folder else 1 - i % 2)  # "ill" comes before "well"


def test_published_parts_stay_what_they_are_and_sizes_and_colours_are_made_equal(tmp_path: Path) -> None:
    for part, n in (("train", 6), ("test", 4)):
        for i in range(n):
            picture(tmp_path / part / "ab"[i % 2] / f"{i}.png", i, size=10 + i)
    data = read(tmp_path, channels=3)
    assert (len(data.train), len(data.test)) == (6, 4)
    assert data.shapes() == {"x": torch.Size([3, 16, 16])}
    assert describe(data)["balance"] == {"train": {"y": [3, 3]}, "test": {"y": [2, 2]}}
    assert describe(data)["test_records_also_in_train"] == 4  # the same pixels were written to both


def test_masks_by_the_same_names_become_a_label_of_the_image_s_size(tmp_path: Path) -> None:
    by_name(tmp_path / "x")
    for i in range(20):
        mask = np.zeros((32, 32), np.uint8)
        mask[:, : 2 * (i % 8)] = 255
        (tmp_path / "m").mkdir(exist_ok=True)
        Image.fromarray(mask).save(tmp_path / "m" / f"CHNCXR_{i:04d}_{i % 2}_mask.png")
    data = read(tmp_path / "x", masks=tmp_path / "m", labels={"mask": "mask"})
    assert data.classes == {"mask": 2}
    for i, mask in zip(data.train.ids.tolist(), data.train.labels["mask"], strict=True):
        assert torch.equal(mask, (torch.arange(16) < i % 8).long().expand(16, 16))


def scan(path: Path, stored: np.ndarray, **tags: object) -> None:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = pydicom.uid.CTImageStorage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    file.PatientName, file.PatientID, file.PatientBirthDate = NAME, "12345678", "19700101"
    file.Rows, file.Columns = stored.shape
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
    file.BitsAllocated = file.BitsStored = 16
    file.HighBit, file.PixelRepresentation = 15, 0
    file.PixelData = stored.astype("<u2").tobytes()
    for tag, value in tags.items():
        setattr(file, tag, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    file.save_as(path, enforce_file_format=True)


RAMP = np.arange(256, dtype=np.uint16).reshape(16, 16)


def scans(root: Path, **tags: object) -> Dataset:
    for i in range(6):
        scan(root / "ab"[i % 2] / f"{i}.dcm", RAMP, **tags)
    return read(root, name="dicom")


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({}, RAMP),
        ({"PhotometricInterpretation": "MONOCHROME1"}, 255 - RAMP.astype(int)),
        ({"RescaleSlope": 2, "RescaleIntercept": -1024}, RAMP),
        (
            {"WindowCenter": 64, "WindowWidth": 128, "VOILUTFunction": "LINEAR_EXACT"},
            np.clip(RAMP * 255.0 / 128, 0, 255),
        ),
    ],
    ids=["plain", "inverted", "rescaled", "windowed"],
)
def test_dicom_pixels_go_through_the_file_s_own_transformations(
    tags: dict[str, object], expected: np.ndarray, tmp_path: Path
) -> None:
    data = scans(tmp_path, **tags)
    got = data.train.inputs["x"][0, 0].mul(255).numpy()
    assert np.abs(got - expected).max() < 1


def test_nothing_of_the_patient_is_in_the_data_set(tmp_path: Path) -> None:
    assert NAME not in repr(scans(tmp_path))


def test_burned_in_text_is_refused_unless_allowed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="got BurnedInAnnotation"):
        scans(tmp_path, BurnedInAnnotation="YES")
    assert len(read(tmp_path, name="dicom", allow_burned_in=True).train) > 0


def test_a_npz_as_medmnist_writes_them(tmp_path: Path) -> None:
    coins = np.random.default_rng(0)
    arrays = {}
    for part, n in (("train", 30), ("val", 10), ("test", 20)):
        arrays[f"{part}_images"] = coins.integers(0, 256, (n, 28, 28, 3), dtype=np.uint8)
        arrays[f"{part}_labels"] = coins.integers(0, 2, (n, 4))
    np.savez_compressed(tmp_path / "m.npz", **arrays)
    spec = DataSpec(name="npz", path=tmp_path / "m.npz", labels={"y": "y2", "z": "y0"})
    data = load(spec)
    assert (len(data.train), len(data.test), data.shapes()) == (40, 20, {"x": torch.Size([3, 28, 28])})
    assert torch.equal(data.test.labels["z"], torch.from_numpy(arrays["test_labels"][:, 0]))
    assert np.array_equal(
        data.train.inputs["x"].mul(255).round().byte().permute(0, 2, 3, 1).numpy()[:30], arrays["train_images"]
    )


def pickled(root: Path) -> DataSpec:
    np.savez(root / "m.npz", train_images=np.array([{"a": 1}], dtype=object), train_labels=np.zeros((1, 1)))
    return DataSpec(name="npz", path=root / "m.npz")


def floats(root: Path) -> DataSpec:
    arrays = {f"{p}_images": np.zeros((2, 8, 8)) for p in ("train", "test")}
    np.savez(root / "m.npz", **arrays, **{f"{p}_labels": np.zeros((2, 1), int) for p in ("train", "test")})
    return DataSpec(name="npz", path=root / "m.npz")


def empty(root: Path) -> DataSpec:
    return DataSpec(name="image-folder", path=root)


def unnamed(root: Path) -> DataSpec:
    picture(root / "a.png", 0)
    return DataSpec(name="image-folder", path=root)


def corrupt(root: Path) -> DataSpec:
    (root / "a").mkdir()
    (root / "a" / "x.png").write_bytes(b"no image")
    return DataSpec(name="image-folder", path=root)


def corrupt_scan(root: Path) -> DataSpec:
    (root / "a").mkdir()
    (root / "a" / "x.dcm").write_bytes(b"no scan")
    return DataSpec(name="dicom", path=root)


def missing_row(root: Path) -> DataSpec:
    by_table(root)
    with (root / "labels.csv").open("a") as file:
        file.write("99,a\n")
    return DataSpec(name="image-folder", path=root, table=root / "labels.csv")


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (pickled, "with plain arrays"),
        (floats, "expected bytes of shape"),
        (empty, "in one folder a class"),
        (unnamed, "its class at the end of its name"),
        (corrupt, "expected an image"),
        (corrupt_scan, "expected a DICOM image"),
        (missing_row, "record '99': expected an image of that name"),
        (lambda root: DataSpec(name="npz", path=root / "none.npz"), "expected a .npz"),
        (lambda root: DataSpec(name="dicom", path=root / "none"), "expected data.path, a folder"),
    ],
)
def test_what_is_not_as_expected_is_refused(spec: Callable[[Path], DataSpec], says: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=says):
        load(spec(tmp_path))
