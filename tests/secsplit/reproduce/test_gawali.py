"""The comparison of Gawali et al.: every arm trains, every byte is foretold, every figure has its interval."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from secsplit.datasets import DataSpec, load
from secsplit.errors import DataError
from secsplit.reproduce import Options, gawali, gawali_data, gawali_train, named
from secsplit.reproduce.gawali_arms import ARMS, KEPT, NONE, SHARED, Arm, Task, run_of
from secsplit.reproduce.gawali_train import outcome
from tests.secsplit.test_commands_cost import app

DIGITS = {"name": "digits", "positive": 8, "positive_fraction": 0.1, "limit": 150}


def scenes(folder: Path, n: int = 20, size: int = 16) -> dict[str, object]:
    items = load(DataSpec(name="digits", limit=n))
    return gawali_data.write_scenes(items, folder, size, torch.Generator().manual_seed(0))


def classification(epochs: int = 1) -> Task:
    return Task("classification", "digits", DIGITS, {"name": "lenet"}, epochs, 15, rate=3e-3)


def segmentation(folder: Path) -> Task:
    data = {**scenes(folder), "labels": {"y": "mask"}}
    return Task("segmentation", "scenes", data, {"name": "unet", "widths": (2, 4)}, 1, 4)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("gawali")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gawali, "tasks_of", lambda options, _: [classification(), segmentation(folder / "scenes")])
        patch.setattr(gawali_train, "RESAMPLES", 100)
        yield gawali.gawali(Options(quick=True, out=folder / "out"))


def test_every_arm_is_judged_with_intervals_and_every_byte_is_foretold(done) -> None:
    tasks = done.values["tasks"]
    assert {name: len(task["arms"]) for name, task in tasks.items()} == {"classification": 13, "segmentation": 13}
    for task, names in (
        ("classification", ["auroc", "auprc", "f1", "kappa", "sensitivity", "specificity"]),
        ("segmentation", ["dice", "iou"]),
    ):
        for arm in tasks[task]["arms"]:
            assert list(arm["figures"]) == names
            for figure in arm["figures"].values():
                assert 0 <= figure["low"] <= figure["value"] <= figure["high"] <= 1 or names[3] == "kappa"
            sent = arm["bytes"]
            assert (sent["tensors"], sent["sealed"]) == (sent["foretold_tensors"], sent["foretold_sealed"])
            assert (sent["messages"] > 0) == (arm["method"] != "centralised")
            assert arm["n"] == tasks[task]["arms"][0]["n"]
    assert not any("foretold" in text for text in done.differences)
    assert all(row[4] == "exactly" for table in done.tables if "foretold" in table.header for row in table.rows)


def test_splitfed_v1_is_federated_averaging_here_too(done) -> None:
    arms = {(arm["method"], arm["labels"]): arm for arm in done.values["tasks"]["classification"]["arms"]}
    expected = arms["FL", NONE]["figures"]["auroc"]["value"]
    for labels in (SHARED, KEPT):
        assert arms["SplitFed v1", labels]["figures"]["auroc"]["value"] == pytest.approx(expected, abs=0.02)
    assert len(arms["FL", NONE]["auroc_by_hospital"]) == len(arms["SL-AM", KEPT]["auroc_by_hospital"]) > 0
    assert arms["SL-AM", SHARED]["auroc_by_hospital"] == {}  # the server judges


def test_what_is_said_of_the_paper_is_only_what_is_known_of_it(done) -> None:
    assert len(done.values["claims"]) == 8
    for claim, row in zip(done.values["claims"], done.tables[-1].rows, strict=True):
        verdict = "held" if claim["low"] > 0 else "opposite" if claim["high"] < 0 else "not told apart"
        assert row[-1] == f"{verdict} here"
    assert any("no number of it is compared" in text for text in done.differences)
    assert all(path.read_text().startswith("<?xml") for path in done.figures)
    assert len(done.figures) == 4
    json.dumps(done.values)


@pytest.mark.parametrize("labels", [SHARED, KEPT])
def test_the_arms_differ_in_who_is_sent_labels(labels: str) -> None:
    run = run_of(classification(), next(arm for arm in ARMS if arm.labels == labels), 0)
    sent = {crossing.kind for crossing in run.topology.crossings}
    assert ("labels" in sent) == (labels == SHARED)


def test_a_folder_named_as_the_shenzhen_set_with_masks_beside_it(tmp_path: Path) -> None:
    scenes(tmp_path)
    for i, path in enumerate(sorted((tmp_path / "images").iterdir())):
        name = f"CHNCXR_{i:04d}_{i % 2}.png"
        (tmp_path / "masks" / path.name).rename(tmp_path / "masks" / name.replace(".png", "_mask.png"))
        path.rename(path.with_name(name))
    first, second = gawali_data.tasks_of(Options(quick=True, data=tmp_path), tmp_path / "unused")
    small = replace(first, model={"name": "lenet"}, epochs=1, hospitals=2)
    judged = outcome(small, Arm("SL-AM", KEPT, "sl-am"), 0)
    assert judged.disagreement == 0
    assert judged.judged.n == 4
    assert load(DataSpec.model_validate(second.data)).train.labels["y"].shape[1:] == (64, 64)


def test_flchain_by_its_file(tmp_path: Path) -> None:
    coins = torch.Generator().manual_seed(0)
    lines = ["@relation flchain", "@attribute age numeric", "@attribute death {0,1}", "@data"]
    age = torch.randn(200, generator=coins)
    dead = age + torch.randn(200, generator=coins) > 0.5
    lines += [f"{a:.4f},{int(d)}" for a, d in zip(age.tolist(), dead.tolist(), strict=True)]
    path = tmp_path / "flchain.arff"
    path.write_text("\n".join(lines) + "\n")
    (task,) = gawali_data.tasks_of(Options(quick=True, data=path), tmp_path)
    judged = outcome(replace(task, hospitals=3), Arm("SplitFed v2", SHARED, "splitfed-v2"), 0).judged
    assert judged.figures["auroc"].low > 0.5


def test_more_than_two_classes_are_refused() -> None:
    task = replace(classification(), data={"name": "digits", "limit": 60, "limit_test": 40})
    with pytest.raises(DataError, match="two classes, got 10"):
        outcome(task, ARMS[0], 0)


def test_scenes_cannot_be_cut_out_by_a_threshold(tmp_path: Path) -> None:
    spec = DataSpec.model_validate({**scenes(tmp_path, n=40, size=32), "labels": {"y": "mask"}})
    records = load(spec).train
    image, mask = records.inputs["x"][:, 0], records.labels["y"]
    best = max(
        (2 * ((image > t) & (mask > 0)).sum() / ((image > t).sum() + (mask > 0).sum())).item()
        for t in torch.linspace(0, 1, 21)
    )
    everything = (2 * mask.sum() / (mask.numel() + mask.sum())).item()
    assert best < everything + 0.15


@pytest.mark.slow
@pytest.mark.parametrize("name", ["FL", "SL-AM", "SplitFed v3"])
def test_densenet_121_takes_a_step(tmp_path: Path, name: str) -> None:
    data = gawali_data.write_items(load(DataSpec(name="digits", positive=8, limit=16, limit_test=24)), tmp_path)
    task = Task("classification", "digits", data, gawali_data.DENSE, 1, 4, hospitals=2)
    for arm in [arm for arm in ARMS if arm.name == name]:
        judged = outcome(task, arm, 0)
        assert judged.judged.n == 24
        assert judged.disagreement == 0
        assert judged.losses[0] > 0


@pytest.mark.slow
def test_the_u_net_takes_a_step(tmp_path: Path) -> None:
    data = {**scenes(tmp_path, n=20, size=32), "labels": {"y": "mask"}}
    task = Task("segmentation", "scenes", data, gawali_data.UNET, 1, 4, hospitals=2)
    for arm in ARMS[1:4]:
        judged = outcome(task, arm, 0)
        assert 0 <= judged.judged.dice.value <= 1
        assert judged.disagreement == 0


@pytest.mark.slow
def test_the_command_gives_a_table_figures_and_json(tmp_path: Path) -> None:
    done = CliRunner().invoke(app(), ["reproduce", "gawali", "--quick", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    told = json.loads((tmp_path / "gawali.json").read_text())
    arms = {(arm["method"], arm["labels"]): arm for arm in told["tasks"]["classification"]["arms"]}
    assert arms["SL-AM", SHARED]["figures"]["auroc"]["low"] > 0.8
    assert named("gawali") is gawali.gawali
