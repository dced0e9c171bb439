"""A run that was killed and resumed leaves what an uninterrupted one leaves, bit for bit."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from secsplit.assemble import parties_of
from secsplit.checkpoint import START, decoded, encoded, name_of, newest_common, restored, taken
from secsplit.drive import simulate
from secsplit.errors import PeerError, RunError
from secsplit.message import Kind, Message, Stamp
from secsplit.run import load
from secsplit.rundir import RunDir
from secsplit.steps import Recv, Send
from secsplit.training import train_simulated

RUN = """
[topology]
name = "{topology}"
[method]
{method}
[model]
name = "mlp"
hidden = 12
[data]
name = "breast-cancer"
modalities = {{ x = "mean *" }}
limit = 90
limit_test = 24
[optimizer]
name = "adam"
[train]
seed = 3
epochs = {epochs}
batch_size = 16
save_every = 4
[parties]
a = {{ role = "client" }}
b = {{ role = "client" }}
server = {{ role = "server" }}
"""
METHODS = {
    "sl-am": 'name = "sl-am"',
    "sl-am with its optimizer": 'name = "sl-am"\nhands = "weights-and-optimizer"',
    "splitfed-v1": 'name = "splitfed-v1"',
    "splitfed-v2": 'name = "splitfed-v2"',
    "splitfed-v3": 'name = "splitfed-v3"',
}


def written(folder: Path, method: str, *, topology: str = "vanilla", epochs: int = 3) -> Path:
    path = folder / "run.toml"
    path.write_text(RUN.format(method=METHODS[method], topology=topology, epochs=epochs))
    return path


def left(folder: Path) -> dict[str, object]:
    """What a run's folder holds that must not depend on whether it was interrupted; tensors as their bytes."""
    found: dict[str, object] = {}
    for path in sorted((folder / "parties").rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name.split("/")[2] in ("transcript", "weights", "metrics.jsonl", "checkpoints"):
            found[name] = path.read_bytes()
            if path.suffix == ".safetensors":  # its header is written in any order
                found[name] = {key: (str(t.dtype), t.numpy().tobytes()) for key, t in load_file(path).items()}
    return found


def secsplit(*words: object, failpoint: str = "", timeout: float = 400) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "SECSPLIT_FAILPOINT": failpoint}
    command = [sys.executable, "-m", "secsplit.cli", *map(str, words)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)


def assert_same(one: dict[str, object], other: dict[str, object]) -> None:
    assert one.keys() == other.keys()
    different = [name for name in one if one[name] != other[name]]
    assert not different


# in one process: stop a simulation at a place of one's choice


class Stop(Exception):
    pass


def stopped(run, folder: Path, *, after: int) -> None:
    """Train until so many turns were told, then stop as a crash would."""
    told = [0]

    def tell(party, news) -> None:
        told[0] += news.what == "turn"
        if told[0] >= after:
            raise Stop

    with pytest.raises(Stop):
        train_simulated(run, folder, tell)


@pytest.mark.parametrize("method", METHODS)
def test_a_simulation_goes_on_exactly(tmp_path: Path, method: str) -> None:
    run = load(written(tmp_path, method))
    train_simulated(run, tmp_path / "whole", lambda *_: None)
    for after in (3, 20, 38):
        folder = tmp_path / f"after-{after}"
        stopped(run, folder, after=after)
        train_simulated(run, folder, lambda *_: None, resume=True)
        assert_same(left(folder), left(tmp_path / "whole"))


def test_u_shaped_copies_in_flight_go_on_exactly_from_the_midst_of_a_round(tmp_path: Path) -> None:
    run = load(written(tmp_path, "splitfed-v3", topology="u_shaped"))
    train_simulated(run, tmp_path / "whole", lambda *_: None)
    stopped(run, tmp_path / "broken", after=11)
    middle = RunDir.open(tmp_path / "broken").party("server").checkpoints()
    assert middle[-1].endswith("-0")
    assert middle[-1] != START
    train_simulated(run, tmp_path / "broken", lambda *_: None, resume=True)
    assert_same(left(tmp_path / "broken"), left(tmp_path / "whole"))


def test_a_run_may_be_broken_off_again_and_again(tmp_path: Path) -> None:
    run = load(written(tmp_path, "splitfed-v1"))
    train_simulated(run, tmp_path / "whole", lambda *_: None)
    stopped(run, tmp_path / "broken", after=5)
    for after in (9, 4, 13):
        told = [0]

        def tell(party, news, after=after, told=told) -> None:
            told[0] += news.what == "turn"
            if told[0] >= after:
                raise Stop

        with pytest.raises(Stop):
            train_simulated(run, tmp_path / "broken", tell, resume=True)
    train_simulated(run, tmp_path / "broken", lambda *_: None, resume=True)
    assert_same(left(tmp_path / "broken"), left(tmp_path / "whole"))


# killed


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_a_simulation_killed_anywhere_goes_on_exactly(tmp_path: Path, seed: int) -> None:
    coins = random.Random(seed)
    method = coins.choice(list(METHODS))
    path = written(tmp_path, method)
    assert secsplit("train", path, "--out", tmp_path / "whole").returncode == 0
    places = ["turn", "send", "receive", "save", "write", "saved"]
    failpoint = f"{coins.choice(places)}:{coins.randint(4, 30)}"
    killed = secsplit("train", path, "--out", tmp_path / "killed", failpoint=failpoint)
    assert killed.returncode == -signal.SIGKILL, failpoint
    went_on = secsplit("resume", tmp_path / "killed")
    if went_on.returncode:
        assert "no checkpoint that all parties have" in went_on.stderr
        assert secsplit("train", path, "--out", tmp_path / "killed").returncode == 0
    assert_same(left(tmp_path / "killed"), left(tmp_path / "whole"))


@pytest.mark.slow
@pytest.mark.parametrize("failpoint", ["server/turn:9", "a/send:14", "b/save:3", "server/saved:2", "a/receive:12"])
def test_processes_of_which_one_is_killed_go_on_exactly(tmp_path: Path, failpoint: str) -> None:
    path = written(tmp_path, "splitfed-v1")
    assert secsplit("train", path, "--processes", "--out", tmp_path / "whole").returncode == 0
    assert secsplit("train", path, "--processes", "--out", tmp_path / "killed", failpoint=failpoint).returncode == 4
    assert secsplit("resume", tmp_path / "killed", "--processes").returncode == 0
    weights = {name: data for name, data in left(tmp_path / "killed").items() if "broken-off" not in name}
    assert_same(weights, left(tmp_path / "whole"))


# what does not fit


def test_a_checkpoint_survives_its_bytes(tmp_path: Path) -> None:
    parties = parties_of(load(written(tmp_path, "splitfed-v1", epochs=1)))
    simulate(parties)
    checkpoint = taken(parties["server"], {"records": 7})
    path = tmp_path / "c.safetensors"
    path.write_bytes(encoded(checkpoint))
    back = decoded(str(path), path.read_bytes())
    assert (back.position, back.sizes, back.outside) == (checkpoint.position, checkpoint.sizes, {"records": 7})
    assert back.name == name_of(parties["server"].position)
    assert back.tensors.keys() == checkpoint.tensors.keys()
    assert all(torch.equal(tensor, back.tensors[name]) for name, tensor in checkpoint.tensors.items())


def test_a_checkpoint_of_another_run_or_party_is_refused(tmp_path: Path) -> None:
    parties = parties_of(load(written(tmp_path, "splitfed-v1", epochs=1)))
    others = parties_of(load(written(tmp_path, "splitfed-v1", epochs=2)))
    with pytest.raises(RunError, match="was made by another run"):
        restored(others["a"], taken(parties["a"]))
    with pytest.raises(RunError, match="is 'a''s, expected 'b''s"):
        restored(parties["b"], taken(parties["a"]))


def test_half_a_file_is_named(tmp_path: Path) -> None:
    parties = parties_of(load(written(tmp_path, "sl-am", epochs=1)))
    path = tmp_path / "half.safetensors"
    content = encoded(taken(parties["a"]))
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(RunError, match=r"half.safetensors: not a checkpoint that can be read"):
        decoded(str(path), path.read_bytes())


def test_a_run_that_was_broken_off_is_not_begun_anew_by_mistake(tmp_path: Path) -> None:
    run = load(written(tmp_path, "sl-am"))
    stopped(run, tmp_path / "out", after=20)
    with pytest.raises(RunError, match="holds a run that was broken off; go on with 'secsplit resume'"):
        train_simulated(run, tmp_path / "out", lambda *_: None)


def conversation(run, offers: dict[str, list[str]]) -> dict[str, str | Exception]:
    """What each party settles on."""
    programs = {name: newest_common(run, name, offers[name]) for name in offers}
    boxes: dict[tuple[str, str, str], Message] = {}
    waiting: dict[str, Recv | None] = dict.fromkeys(programs)
    ended: dict[str, str | Exception] = {}
    while len(ended) < len(programs):
        for name, program in programs.items():
            if name in ended:
                continue
            recv = waiting[name]
            if recv is not None and (recv.frm, name, recv.edge) not in boxes:
                continue
            try:
                step = program.send(boxes.pop((recv.frm, name, recv.edge)) if recv else None)
                while isinstance(step, Send):
                    boxes[name, step.to, step.message.edge] = step.message
                    step = program.send(None)
                waiting[name] = step
            except StopIteration as end:
                ended[name] = end.value
            except RunError as error:
                ended[name] = error
    return ended


def test_parties_settle_on_the_newest_checkpoint_that_all_have(tmp_path: Path) -> None:
    run = load(written(tmp_path, "splitfed-v1"))
    offers = {"a": ["0000000008-0"], "b": ["0000000008-0", "0000000012-0"], "server": ["0000000008-0", "0000000012-0"]}
    assert set(conversation(run, offers).values()) == {"0000000008-0"}


def test_a_party_that_lost_its_part_is_not_gone_on_without(tmp_path: Path) -> None:
    run = load(written(tmp_path, "splitfed-v1"))
    offers = {"a": [START], "b": ["0000000012-0"], "server": ["0000000008-0", "0000000012-0"]}
    told = conversation(run, offers)
    assert all(
        isinstance(error, RunError) and "no checkpoint that all parties have" in str(error) for error in told.values()
    )


def test_lies_about_checkpoints_are_refused(tmp_path: Path) -> None:
    run = load(written(tmp_path, "splitfed-v1"))
    program = newest_common(run, "server", [START])
    recv = next(program)
    assert isinstance(recv, Recv)
    with pytest.raises(PeerError, match="expected the names of at most 64 checkpoints"):
        program.send(Message(Kind.CONTROL, "checkpoints", Stamp(training=False), facts={"names": [1, 2]}))


DEFENDED = """
[[defenses]]
kind = "gaussian"
edge = "bottom->top"
clip = 1.0
sigma = 0.5
[[defenses]]
kind = "hijack-detector"
edge = "bottom->top"
action = "watch"
"""


def test_a_defended_run_goes_on_with_its_noise_and_what_its_detectors_saw(tmp_path: Path) -> None:
    path = written(tmp_path, "sl-am", epochs=2)
    path.write_text(path.read_text() + DEFENDED)
    run = load(path)
    train_simulated(run, tmp_path / "whole", lambda *_: None)
    for key in (tmp_path / "whole").glob("parties/*/noise.key"):  # else every run draws noise of its own
        kept = tmp_path / "broken" / "parties" / key.parent.name / key.name
        kept.parent.mkdir(parents=True)
        kept.write_bytes(key.read_bytes())
        kept.chmod(0o600)
    stopped(run, tmp_path / "broken", after=11)
    train_simulated(run, tmp_path / "broken", lambda *_: None, resume=True)
    one, other = left(tmp_path / "broken"), left(tmp_path / "whole")
    assert_same(one, other)
    ends = [content for name, content in one.items() if "checkpoints" in name]
    assert any("gaps" in key for content in ends if isinstance(content, dict) for key in content)
