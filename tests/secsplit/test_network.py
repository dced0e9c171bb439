"""Parties meet their peers, and every way in which they cannot is one clear error."""

import socket
import threading
from pathlib import Path

import pytest

from channels import Identity, KeyFileError, Roster
from secsplit.errors import EnvironmentFault, PeerError, RunError
from secsplit.launch import addressed, make_keys
from secsplit.network import connected, listens
from secsplit.run import Run
from secsplit.runfile import parse


def run_of(**parties: dict[str, str]) -> Run:
    both = {"hospital": {"role": "client"}, "compute": {"role": "server"}}
    return Run.of(parse({"parties": {name: {**both[name], **parties.get(name, {})} for name in both}}))


def member(run: Run, folder: Path, name: str) -> tuple[Identity, Roster]:
    signer = folder / "signer.pub.toml"
    from channels import PublicIdentity

    return Identity.load(folder / f"{name}.key"), Roster.load(folder / "roster.toml", PublicIdentity.load(signer))


def meet(run: Run, folder: Path, name: str, *, timeout: float = 20.0):
    return connected(run, name, *member(run, folder, name), timeout=timeout)


def test_two_parties_meet(tmp_path) -> None:
    run = addressed(run_of())
    make_keys(run, tmp_path)
    met = {}

    def join(name: str) -> None:
        with meet(run, tmp_path, name) as sessions:
            met[name] = {peer: session.peer.name for peer, session in sessions.items()}
            done.wait()

    done = threading.Barrier(2)
    threads = [threading.Thread(target=join, args=(name,)) for name in run.file.parties]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert met == {"hospital": {"compute": "compute"}, "compute": {"hospital": "hospital"}}


def test_the_party_with_an_address_listens() -> None:
    assert listens(run_of(hospital={"address": "h:1"}), "hospital", "compute") == "hospital"
    assert listens(run_of(compute={"address": "c:1"}), "hospital", "compute") == "compute"
    assert listens(run_of(compute={"address": "c:1"}, hospital={"address": "h:1"}), "hospital", "compute") == "compute"


def test_two_parties_without_an_address_cannot_meet() -> None:
    with pytest.raises(RunError, match=r"'hospital' and 'compute' exchange messages and neither has an address"):
        listens(run_of(), "hospital", "compute")


def test_a_port_in_use_is_named(tmp_path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        run = run_of(compute={"address": address})
        make_keys(run, tmp_path)
        with pytest.raises(EnvironmentFault, match=rf"parties.compute.address: cannot listen at '{address}'") as error:
            meet(run, tmp_path, "compute").__enter__()
    assert error.value.exit_code == 3


def test_a_peer_that_never_comes_is_named(tmp_path) -> None:
    run = addressed(run_of())
    make_keys(run, tmp_path)
    with pytest.raises(PeerError, match=r"peer 'hospital': did not connect in time"):
        meet(run, tmp_path, "compute", timeout=0.3).__enter__()
    with pytest.raises(PeerError, match=r"peer 'compute': no channel to 127.0.0.1:\d+"):
        meet(run, tmp_path, "hospital", timeout=0.3).__enter__()


def test_parties_with_different_runs_cannot_meet(tmp_path) -> None:
    run = addressed(run_of())
    make_keys(run, tmp_path)
    other = Run.of(run.file.model_copy(update={"train": run.file.train.model_copy(update={"epochs": 9})}))
    errors: dict[str, PeerError] = {}

    def join(name: str, run: Run) -> None:
        try:
            with meet(run, tmp_path, name, timeout=5):
                pass
        except PeerError as error:
            errors[name] = error

    server = threading.Thread(target=join, args=("compute", run))
    server.start()
    join("hospital", other)
    server.join()
    assert "give both sides the same run file" in str(errors["hospital"])
    assert errors["hospital"].exit_code == 4
    assert errors["compute"].peer == "hospital"


def test_a_key_file_that_others_can_read_is_refused(tmp_path) -> None:
    run = addressed(run_of())
    make_keys(run, tmp_path)
    (tmp_path / "hospital.key").chmod(0o644)
    with pytest.raises(KeyFileError, match="chmod 600"):
        member(run, tmp_path, "hospital")
