"""Wrong run files are each refused with one clear message: file, key, value, fix."""

from pathlib import Path

import pytest

from secsplit.errors import RunError
from secsplit.run import Run, load
from secsplit.runfile import parse

GOOD = """
name = "good"
[topology]
name = "vanilla"
[train]
epochs = 2
[parties]
hospital = { role = "client" }
compute = { role = "server" }
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(text)
    return path


def test_a_good_file_is_a_run(tmp_path) -> None:
    run = load(written(tmp_path, GOOD))
    assert run.casts == ({"client": "hospital", "server": "compute"},)
    assert run.peers("hospital") == ("compute",)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("epochs = 2", "epoch = 2", r"train.epoch: unknown key; did you mean 'epochs'"),
        ("[train]", "[trian]", r"trian: unknown key; did you mean 'train'"),
        ("epochs = 2", 'epochs = "two"', r"train.epochs: got 'two'; .*valid integer"),
        ("epochs = 2", "epochs = 0", r"train.epochs: got 0; .*greater than or equal to 1"),
        ("epochs = 2", 'record = "some"', r"train.record: got 'some'"),
        ('name = "vanilla"', 'name = "vanila"', r"topology: unknown name 'vanila'; did you mean 'vanilla'"),
        ('name = "vanilla"', 'name = "vanilla"\nhops = 3', r"topology.hops: 'vanilla' has no such option"),
        ('role = "client"', 'role = "cliemt"', r"parties.hospital.role: 'cliemt' is no role .*did you mean 'client'"),
        ('hospital = { role = "client" }', "", r"nobody plays role 'client'"),
        ('role = "client"', 'roll = "client"', r"parties.hospital.role: missing"),
        ("[train]", '[method]\nname = "sl"\n[train]', r"method.name: unknown method 'sl'"),
        ("[train]", '[method]\nname = "federated"\n[train]', r"trains a network without a cut"),
        ("[train]", '[data]\nlabels = { z = "y" }\n[train]', r"data.labels: role 'client' needs label column 'y'"),
        ("[train]", '[data]\nmodalities = { xx = "all" }\n[train]', r"needs input column 'x', .*did you mean 'xx'"),
        ("[train]", '[optimizer]\nname = "adamm"\n[train]', r"optimizer.name: got 'adamm'"),
        ("[train]", "[optimizer]\nlr = -1.0\n[train]", r"optimizer.lr: got -1.0; .*greater than 0"),
        ("[parties]", "[parties", "not a TOML run file"),
        (
            "[train]",
            '[[topology.segments]]\nname = "a"\nrole = "client"\ninputs = ["b"]\n[train]',
            r"takes 'b', which is no segment",
        ),
    ],
)
def test_what_is_wrong_is_named(tmp_path, old: str, new: str, reason: str) -> None:
    path = written(tmp_path, GOOD.replace(old, new, 1))
    with pytest.raises(RunError, match=reason) as error:
        load(path)
    assert str(path) in str(error.value)
    assert error.value.exit_code == 2


def test_a_missing_file_is_named(tmp_path) -> None:
    with pytest.raises(RunError, match=r"none.toml: no such run file"):
        load(tmp_path / "none.toml")


def test_unequal_cohorts_are_refused() -> None:
    parties = {"r1": "radiology", "r2": "radiology", "r3": "radiology", "p1": "pathology", "p2": "pathology"}
    parties["s"] = "server"
    tables = {
        "topology": {"name": "vertical"},
        "data": {"modalities": {"radiology": "left", "pathology": "right"}},
        "parties": {name: {"role": role} for name, role in parties.items()},
    }
    with pytest.raises(RunError, match="need the same number of them, got radiology: 3, pathology: 2"):
        Run.of(parse(tables))


def test_overrides_reach_any_key(tmp_path) -> None:
    run = load(written(tmp_path, GOOD), ["train.epochs=5", "name=other", "optimizer.lr=0.5"])
    assert (run.file.train.epochs, run.file.name, run.file.optimizer.lr) == (5, "other", 0.5)


@pytest.mark.parametrize("text", ["train.epochs", "=3", "name.x=3"])
def test_a_malformed_override_is_refused(tmp_path, text: str) -> None:
    with pytest.raises(RunError, match=r"--set"):
        load(written(tmp_path, GOOD), [text])


def digest(tmp_path, *overrides: str) -> bytes:
    return load(written(tmp_path, GOOD), overrides).digest()


@pytest.mark.parametrize(
    "override",
    [
        "train.epochs=3",
        "train.seed=1",
        "topology.labels=server",
        "optimizer.lr=0.5",
        "data.limit=10",
        "method.name=sl-ac",
    ],
)
def test_what_must_be_agreed_changes_the_digest(tmp_path, override: str) -> None:
    assert digest(tmp_path, override) != digest(tmp_path)


@pytest.mark.parametrize(
    "override",
    [
        'parties.compute.address="10.0.0.1:7000"',
        "data.path=/elsewhere",
        "train.threads=2",
        "audit.attacks=[]",
        "name=other",
    ],
)
def test_what_is_each_sites_own_does_not(tmp_path, override: str) -> None:
    assert digest(tmp_path, override) == digest(tmp_path)


EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.toml"))


@pytest.mark.parametrize("path", [p for p in EXAMPLES if "parties" in p.read_text()], ids=lambda p: p.stem)
def test_every_example_is_a_run(path: Path) -> None:
    run = load(path)
    assert run.casts
    assert run.file.name == path.stem
