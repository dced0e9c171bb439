"""A split step between real processes beside the unsplit network's step, and beside what else one might use.

    python -m benchmarks.step [--quick]

Every process has one torch thread; the server and the clients each have a core of their own where there are two. All
ways take the same steps, interleaved block by block in one run; medians over blocks. *wall* is the time of a client's
step over that of the unsplit network; *CPU* the CPU time of all processes together over the unsplit network's. Where
other work keeps the cores busy only the CPU ratio means anything: the last line says how long this process waited.
The weights that each way ends with are compared to the bit with the unsplit network's.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "3000")

import torch

from benchmarks.transports import Credentials, say
from benchmarks.ways import Case, End, certify
from secsplit.allocator import keep_large_blocks

CORES = sorted(os.sched_getaffinity(0))
FASHION, COLOUR = (1, 28, 28), (3, 32, 32)
WAYS = ("unsplit", "plain", "sealed", "recorded", "tls", "gloo", "grpc")
OURS = ("unsplit", "plain", "sealed")
CUTS = {"early": "pool1", "middle": "pool2", "late": "relu3"}
CASES = (
    *(Case(f"cnn {place} 128", "cnn", cut, 128, FASHION, 4) for place, cut in CUTS.items()),
    Case("cnn early 32", "cnn", "pool1", 32, FASHION, 10),
    Case("cnn middle 128, two clients", "cnn", "pool2", 128, FASHION, 4, clients=2),
    Case("cnn early 128, staleness 1", "cnn", "pool1", 128, FASHION, 6, staleness=1),
)
MORE = (
    *(Case(f"cnn {place} 32", "cnn", cut, 32, FASHION, 10) for place, cut in CUTS.items() if place != "early"),
    Case("cnn early 128, two clients", "cnn", "pool1", 128, FASHION, 4, clients=2),
    Case("resnet18 early 32", "resnet18", "layer1", 32, COLOUR, 5),
    Case("resnet18 middle 32", "resnet18", "layer2", 32, COLOUR, 5),
    Case("resnet18 middle 32, two clients", "resnet18", "layer2", 32, COLOUR, 4, clients=2),
    Case("resnet18 cifar balanced 64, micro 2", "resnet18", "layer2", 64, COLOUR, 3, micro=2, stem="cifar"),
)
TARGET = {
    "cnn early 128": 1.12, "cnn middle 128": 1.05, "cnn late 128": 1.05, "cnn early 32": 1.20, "cnn middle 32": 1.15,
    "cnn late 32": 1.12, "resnet18 early 32": 1.05, "resnet18 middle 32": 1.05, "cnn middle 128, two clients": 0.70,
    "cnn early 128, two clients": 0.80, "resnet18 middle 32, two clients": 0.66, "cnn early 128, staleness 1": 0.88,
    "resnet18 cifar balanced 64, micro 2": 0.80,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer cases and blocks")
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--party", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    told = parser.parse_args()
    _settle(told.party or "client-1")
    if told.party:
        _follow(End(told.party, Credentials(told.folder)), told.folder)
        return
    cases, blocks = (CASES, 4) if told.quick else ((*CASES, *MORE), 9)
    with tempfile.TemporaryDirectory(prefix="secsplit-step-") as name, _others(Path(name)) as (end, others):
        waited = _waited()
        found = {case.name: _measured(case, end, others, Path(name), blocks) for case in cases}
        waited = _waited() - waited
    _print(found)
    print(f"this process waited {waited:.0f} s for its core; {os.cpu_count()} cores, torch {torch.__version__}")
    if told.json:
        told.json.write_text(json.dumps(found, indent=1))


def _settle(party: str) -> None:
    """One torch thread."""
    keep_large_blocks()
    torch.set_num_threads(1)


def _seat(party: str, case: Case) -> None:
    """A core of its own for the server and for the client; more than two processes share all cores."""
    mine = CORES[:1] if party == "server" else CORES[-1:]
    os.sched_setaffinity(0, mine if case.clients == 1 else CORES)


class Other:
    """Another process, which follows orders, a JSON line each."""

    def __init__(self, party: str, folder: Path) -> None:
        command = [sys.executable, "-m", "benchmarks.step", "--party", party, "--folder", str(folder)]
        self.party = party
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def tell(self, do: str, **more: Any) -> None:
        """An order."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": do, **more}) + "\n")
        self.process.stdin.flush()

    def hear(self) -> Any:
        """The answer to an order."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.party} ended early")
        return json.loads(line)

    def ask(self, do: str, **more: Any) -> Any:
        self.tell(do, **more)
        return self.hear()


@contextmanager
def _others(folder: Path) -> Iterator[tuple[End, dict[str, Other]]]:
    """The server and a second client, all met."""
    credentials = Credentials(folder)
    credentials.create()
    certify(folder, credentials)
    others = {party: Other(party, folder) for party in ("server", "client-2")}
    try:
        ports = others["server"].ask("listen")
        end = End("client-1", credentials)
        for dialler in (end, others["client-2"]):
            others["server"].tell("accept", client=dialler.party)
            if isinstance(dialler, End):
                dialler.dial(ports)
            else:
                dialler.ask("dial", ports=ports)
            others["server"].hear()
        yield end, others
    finally:
        for other in others.values():
            other.process.kill()
            other.process.wait()


def _follow(end: End, folder: Path) -> None:
    """Be one of the other processes."""
    cases = {case.name: case for case in (*CASES, *MORE)}
    for line in sys.stdin:
        told = json.loads(line)
        match told.pop("do"):
            case "listen":
                say(end.listen())
            case "accept":
                say(end.accept(**told))
            case "dial":
                say(end.dial(**told))
            case "prepare":
                _seat(end.party, cases[told["case"]])
                say(end.prepare(cases[told["case"]], folder))
            case "block":
                say(end.block(**told))
            case "weights":
                say(end.weights(**told))


def _measured(case: Case, end: End, others: Mapping[str, Other], folder: Path, blocks: int) -> dict[str, Any]:
    """way -> median ratios to the unsplit step, and whether its weights are the same; the first block warms up."""
    present = {"server": others["server"], **({"client-2": others["client-2"]} if case.clients > 1 else {})}
    for other in present.values():
        other.tell("prepare", case=case.name)
    _seat(end.party, case)
    end.prepare(case, folder)
    for other in present.values():
        other.hear()
    ways = WAYS if case.clients == 1 and not case.staleness and case.micro == 1 else OURS
    wall, cpu = defaultdict(list), defaultdict(list)
    for block in range(blocks + 1):
        for way in ways if block % 2 else reversed(ways):
            spent = _block(way, end, present)
            if block:
                wall[way].append(spent[0])
                cpu[way].append(spent[1])
    found: dict[str, Any] = {"unsplit_ms": 1e3 * statistics.median(wall["unsplit"]), "ways": {}}
    for way in ways[1:]:
        equal = end.weights(way) == end.weights("unsplit") and others["server"].ask("weights", way=way) == end.top()
        found["ways"][way] = {
            "wall": statistics.median(a / b for a, b in zip(wall[way], wall["unsplit"], strict=True)),
            "cpu": statistics.median(a / b for a, b in zip(cpu[way], cpu["unsplit"], strict=True)),
            "best_wall": min(wall[way]) / min(wall["unsplit"]),
            "bit_equal": equal,
        }
    return found


def _block(way: str, end: End, others: Mapping[str, Other]) -> tuple[float, float]:
    """(wall, CPU of all processes), seconds for each client's step."""
    if way == "unsplit":
        wall, cpu, steps = end.block(way)
        return wall / steps, cpu / steps
    for other in others.values():
        other.tell("block", way=way)
    wall, cpu, steps = end.block(way)
    answers = [other.hear() for other in others.values()]
    per_step = [cpu / steps, *(used / many for _, used, many in answers)]
    clients = len(others)  # one of the others is the server, and this process is a client
    return wall / steps / clients, statistics.mean([per_step[0], *per_step[2:]]) + per_step[1]


def _waited() -> float:
    """Seconds that this process's threads were ready and had no core."""
    total = 0.0
    for task in Path("/proc/self/task").iterdir():
        total += int((task / "schedstat").read_text().split()[1]) / 1e9
    return total


def _print(found: Mapping[str, Any]) -> None:
    print(f"{'ratio to the unsplit step, wall / CPU':38}{'unsplit ms':>11}" + "".join(f"{way:>15}" for way in WAYS[1:]))
    for name, case in found.items():
        cells = []
        for way in WAYS[1:]:
            ratios = case["ways"].get(way)
            mark = "" if ratios is None or ratios["bit_equal"] else "~"
            cells.append(f"{'-':>15}" if ratios is None else f"{ratios['wall']:8.2f} /{ratios['cpu']:5.2f}{mark:1}")
        sealed = case["ways"]["sealed"]
        asked = f"  asked {TARGET[name]:.2f}" if name in TARGET else ""
        print(f"{name:38}{case['unsplit_ms']:11.1f}{''.join(cells)}{asked} best {sealed['best_wall']:.2f}")
    print("~: other weights than the unsplit network's, to the bit (averaged, stale, or micro-batches)")


if __name__ == "__main__":
    main()
