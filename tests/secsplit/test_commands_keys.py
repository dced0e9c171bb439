"""`secsplit keys`: from two fresh identities to a roster that lists both, by an invite that works once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from channels import Invites, PublicIdentity, Roster
from secsplit.cli import app, load_commands

load_commands()


def secsplit(folder: Path, *words: str, code: int = 0) -> str:
    before = Path.cwd()
    os.chdir(folder)
    try:
        done = CliRunner().invoke(app, ["keys", *words])
    finally:
        os.chdir(before)
    if code:
        assert done.exception is not None
        return str(done.exception)
    assert done.exit_code == 0, done.output + repr(done.exception)
    return done.stdout


class Admitting:
    """`secsplit keys admit` in a process of its own, once it listens."""

    def __init__(self, folder: Path) -> None:
        command = [
            sys.executable,
            "-m",
            "secsplit.cli",
            "keys",
            "admit",
            "--key",
            "host.key",
            "--listen",
            "127.0.0.1:0",
        ]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        self.process = subprocess.Popen(
            [*command, "--wait", "20"],
            cwd=folder,
            env=environment,
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stderr is not None
        self.first = self.process.stderr.readline()
        self.address = self.first.split()[2]

    def ended(self) -> str:
        out, _ = self.process.communicate(timeout=30)
        assert self.process.returncode == 0
        return out


@pytest.fixture
def sites(tmp_path: Path) -> tuple[Path, Path]:
    host, hospital = tmp_path / "host", tmp_path / "hospital"
    host.mkdir()
    hospital.mkdir()
    secsplit(host, "new", "host", "--role", "server")
    secsplit(host, "roster", "sign", "host.pub.toml", "--key", "host.key", "--epoch", "1")
    return host, hospital


@pytest.mark.parametrize("by", ["secret", "fingerprint"])
def test_a_hospital_joins_by_invite(sites: tuple[Path, Path], by: str) -> None:
    host, hospital = sites
    words = secsplit(hospital, "new", "radiology", "--role", "client").strip()
    options = ["--fingerprint", words] if by == "fingerprint" else []
    secsplit(host, "invite", "radiology", "--key", "host.key", "--address", "h:1", "--role", "client", *options)
    (host / "radiology.invite").rename(hospital / "radiology.invite")  # handed over

    admitting = Admitting(host)
    assert "for radiology" in admitting.first
    accept = "accept", "radiology.invite", "--key", "radiology.key", "--address", admitting.address
    assert secsplit(hospital, *accept).strip() == "signer.pub.toml"
    entry = admitting.ended().strip()
    secsplit(host, "roster", "add", "roster.toml", entry, "--key", "host.key")

    signer = PublicIdentity.load(hospital / "signer.pub.toml")
    roster = Roster.load(host / "roster.toml", signer, seen=hospital / "seen")  # as the hospital reads it
    assert roster.epoch == 2
    assert roster.by_name("radiology") == PublicIdentity.load(hospital / "radiology.pub.toml")
    assert roster.by_name("host").fingerprint == signer.fingerprint
    assert not Invites(host / "invites").open()


def test_an_invite_for_a_name_that_is_none(sites: tuple[Path, Path]) -> None:
    host, _ = sites
    assert "name of 1 to 64" in secsplit(host, "invite", "a/b", "--key", "host.key", "--address", "h:1", code=2)
