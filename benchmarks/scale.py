"""From 2 to 500 clients: time for each client's step, and memory; in one process, and connected to one server.

    python -m benchmarks.scale [--quick]

*Simulated*: all parties in one process, each row in a process of its own. *Connected*: one server process, and every
client a process with its own key, session and party program, driven as `secsplit join` drives it; they are forked from
one that has imported all it needs, and so share its pages: 500 need some 10 GB instead of 150. CPU time is from the end
of the first step to the end of the last, averaging included; memory is the most that the process ever held, less that
of 2 clients. All clients' records are the same memory, so that what grows is what the system itself keeps.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any, NoReturn

os.environ.setdefault("GOMP_SPINCOUNT", "3000")

import torch

from benchmarks.transports import say
from benchmarks.ways import Clock, sgd
from channels import Identity, PublicIdentity, Roster
from secsplit.allocator import keep_large_blocks
from secsplit.drive import serve, simulate
from secsplit.launch import Keys, make_keys
from secsplit.models import build
from secsplit.models.spec import ModelSpec
from secsplit.network import connected, linked
from secsplit.party import Party, Shard
from secsplit.run import Run, parse
from secsplit.steps import News
from secsplit.topologies import named

CLIENTS = (2, 10, 100, 500)
METHODS = ("sl-ac", "sl-am", "splitfed-v1", "splitfed-v3")
BATCH, BATCHES = 32, 2  # records in a mini-batch, mini-batches of a client in an epoch
MEETING = 500.0  # seconds
TIME, MEMORY = 1.15, 150  # asked for: of 2 clients; MB more than with 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one method, fewer clients connected")
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.part:
        what, *words = told.part
        if what != "clients":
            keep_large_blocks()
        torch.set_num_threads(1)
        {"simulated": _simulated, "server": _server, "clients": _clients}[what](*words)
        return
    head = f"{'':14}{'clients':>8}{'CPU ms a step':>15}{'of 2':>7}{'wall ms':>9}{'MB':>7}{'more than 2':>13}"
    print(head)
    for method in ("splitfed-v1",) if told.quick else METHODS:
        _table(f"{method}", [_asked("simulated", method, str(n)) for n in CLIENTS])
    print("connected to one server process over encrypted sessions; the server's own CPU and memory")
    _table("splitfed-v1", [_connected(n) for n in (CLIENTS[:3] if told.quick else CLIENTS)])
    print(f"asked for: at most {TIME} of 2 clients, {MEMORY} MB more")


def _table(name: str, found: list[dict[str, float]]) -> None:
    first = found[0]
    for row in found:
        print(
            f"{name:14}{row['clients']:8.0f}{row['cpu_ms']:15.2f}{row['cpu_ms'] / first['cpu_ms']:7.2f}"
            f"{row['wall_ms']:9.1f}{row['mb']:7.0f}{row['mb'] - first['mb']:13.0f}"
        )


def _asked(*part: str) -> dict[str, float]:
    """What a process of its own found."""
    command = [sys.executable, "-m", "benchmarks.scale", "--part", *part]
    found: dict[str, float] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return found


def _run(method: str, clients: int) -> Run:
    """A server that listens, so many clients, and at least 60 steps."""
    parties: dict[str, Any] = {f"client-{i:03d}": {"role": "client"} for i in range(clients)}
    parties["server"] = {"role": "server", "address": os.environ.get("SCALE_ADDRESS", "127.0.0.1:7399")}
    epochs = max(1, 60 // (clients * BATCHES))
    train = {"batch_size": BATCH, "epochs": epochs, "evaluate_every": 0, "heartbeat": MEETING}
    return Run.of(parse({"method": {"name": method}, "parties": parties, "train": train}))


def _parties(run: Run, names: list[str]) -> dict[str, Party]:
    coins = torch.Generator().manual_seed(0)
    x = torch.randn(BATCH * BATCHES, 1, 28, 28, generator=coins)
    y = torch.randint(0, 10, (len(x),), generator=coins)
    shard = Shard({"train": {"x": x}, "test": {"x": x[:1]}}, {"train": {"y": y}, "test": {"y": y[:1]}})
    modules = build(ModelSpec(name="cnn", cut=("pool1",)), named("vanilla"), {"x": x.shape[1:]}, {"y": 10}, seed=1)
    empty = {cast: Shard({}, {}) for cast in range(len(run.casts))}
    made = {}
    for name in names:
        if name == "server":
            made[name] = Party(run, name, {"top": modules["top"]}, empty, sgd)
        else:
            cast = run.casts_of(name)[0]
            made[name] = Party(run, name, {"bottom": deepcopy(modules["bottom"])}, {cast: shard}, sgd)
    return made


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _told(clock: Clock, clients: int, steps: int) -> dict[str, float]:
    wall, cpu, _ = clock.spent
    return {"clients": clients, "cpu_ms": 1e3 * cpu / steps, "wall_ms": 1e3 * wall / steps, "mb": _peak()}


def _simulated(method: str, count: str) -> None:
    clients = int(count)
    run = _run(method, clients)
    clock = Clock()

    def observe(party: Party, news: News) -> None:
        if news.what == "turn" and party.name == "server":
            clock.tick()

    simulate(_parties(run, list(run.file.parties)[::-1]), observe=observe)
    say(_told(clock, clients, len(clock.marks) - 1))


def _connected(clients: int) -> dict[str, float]:
    """One server process, and hosts of clients."""
    os.environ["SCALE_ADDRESS"] = f"127.0.0.1:{_free_port()}"
    with tempfile.TemporaryDirectory(prefix="secsplit-scale-") as folder:
        make_keys(_run("splitfed-v1", clients), Path(folder))
        command = [sys.executable, "-m", "benchmarks.scale", "--part"]
        server = subprocess.Popen([*command, "server", folder, str(clients)], stdout=subprocess.PIPE, text=True)
        lean = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 17)}  # who waits gives its memory back
        hosts = subprocess.Popen([*command, "clients", folder, str(clients)], start_new_session=True, env=lean)
        try:
            assert server.stdout is not None
            found: dict[str, float] = json.loads(server.stdout.readline())
        finally:
            with suppress(ProcessLookupError):
                os.killpg(hosts.pid, signal.SIGKILL)
            for process in (server, hosts):
                process.kill()
                process.wait()
    return found


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


def _roster(folder: str) -> Roster:
    keys = Keys(Path(folder))
    return Roster.load(keys.roster, PublicIdentity.load(keys.signer_file))


def _key(folder: str, name: str) -> Identity:
    return Identity.load(Keys(Path(folder)).key(name))


def _server(folder: str, count: str) -> None:
    run, clock = _run("splitfed-v1", int(count)), Clock()
    (party,) = _parties(run, ["server"]).values()

    def observe(_: Party, news: News) -> None:
        if news.what == "turn":
            clock.tick()

    me, roster = _key(folder, "server"), _roster(folder)
    with (
        connected(run, "server", me, roster, timeout=MEETING) as sessions,
        linked(run, "server", sessions) as (links, inbox),
    ):
        serve(party, links, inbox, observe=observe)
        say(_told(clock, int(count), len(clock.marks) - 1))


def _clients(folder: str, count: str) -> None:
    """Every client a process of its own, forked from this one, which has imported all that it needs."""
    run, roster = _run("splitfed-v1", int(count)), _roster(folder)
    names = [name for name in run.file.parties if name != "server"]
    parties, keys = _parties(run, names), {name: _key(folder, name) for name in names}
    gc.freeze()  # or a child's first collection writes on every page, and nothing stays shared
    clients: set[int] = set()
    for name in names:  # nothing is made here any more: each page that this process writes on would be copied
        child = os.fork()
        if not child:
            _client(parties[name], keys[name], roster)
        clients.add(child)
    while clients:
        child, status = os.wait()
        clients.remove(child)
        if status:
            raise SystemExit(f"a client ended with status {status}")


def _client(party: Party, me: Identity, roster: Roster) -> NoReturn:
    """What `secsplit join` does, but for files; never returns into the code that forked."""
    try:
        os.nice(10)
        with (
            connected(party.run, party.name, me, roster, timeout=MEETING) as sessions,
            linked(party.run, party.name, sessions) as (links, inbox),
        ):
            serve(party, links, inbox)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


if __name__ == "__main__":
    main()
