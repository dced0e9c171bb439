"""`secsplit cost RUN.toml`: what a run costs each party, foretold beside measured."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from secsplit.commands.console import Json, Overrides, RunPath, result, result_json, say, table

if TYPE_CHECKING:
    from secsplit.cost import Cost, PartyCost
    from secsplit.traffic import Traffic


def register(app: typer.Typer) -> None:
    app.command("cost")(cost)


def cost(
    run_file: RunPath,
    steps: Annotated[int, typer.Option("--steps", min=1, help="mini-batches a client to measure")] = 4,
    processes: Annotated[
        bool, typer.Option("--processes", help="measure real processes' bytes on the wire too")
    ] = False,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """What a run costs each party: operations, bytes, memory, seconds; foretold, and measured on its start."""
    from secsplit.cost import cost as found
    from secsplit.cost import on_the_wire
    from secsplit.run import load

    say(f"measuring {steps} mini-batches a client")
    told = found(load(run_file, overrides or []), steps=steps)
    wire = on_the_wire(told.short.run) if processes else {}
    if as_json:
        result_json(as_dict(told, wire))
        return
    for line in lines(told, wire):
        result(line)


def as_dict(cost: Cost, wire: dict[tuple[str, str], int]) -> dict[str, Any]:
    """All of it as plain values."""
    return {
        "run": cost.run.file.name,
        "digest": cost.run.digest().hex(),
        "batch_size": cost.run.file.train.batch_size,
        "epochs": cost.run.file.train.epochs,
        "segments": [asdict(segment) for segment in cost.segments.values()],
        "parties": [_party(party, cost.run.file.train.epochs) for party in cost.parties()],
        "traffic": _routes(cost.traffic),
        "measured": {
            "traffic": _routes(cost.short.traffic),
            "foretold": _routes(cost.foretold),
            "largest_relative_difference": cost.disagreement(),
            "wall_seconds": cost.short.wall_seconds,
            "cpu_seconds": cost.short.cpu_seconds,
            "on_the_wire": [{"sender": a, "receiver": b, "bytes": n} for (a, b), n in wire.items()],
        },
        "notes": NOTES,
    }


NOTES = [
    "operations are two to a multiply-accumulate (MAC) of convolutions and linear layers, by arithmetic; counted: what "
    "torch's counter saw, which takes the backward pass of grouped convolutions for dense ones",
    "memory is weights, gradients, optimizer state and what waits for backward, without the runtime's own",
    "sealed bytes are payload, headers and tags; handshakes, the census and signs of life come on top",
]


def _party(party: PartyCost, epochs: int) -> dict[str, Any]:
    payload, sealed = party.sent.payload + party.received.payload, party.sent.sealed + party.received.sealed
    steps = max(party.steps, 1)
    return {
        **asdict(party),
        "payload_per_step": payload / steps,
        "sealed_per_step": sealed / steps,
        "payload_per_epoch": payload / epochs,
        "sealed_per_epoch": sealed / epochs,
    }


def _routes(traffic: Traffic) -> list[dict[str, Any]]:
    return [{**route._asdict(), **asdict(tally)} for route, tally in sorted(traffic.items())]


def lines(cost: Cost, wire: dict[tuple[str, str], int]) -> list[str]:
    """The same for people."""
    from secsplit.traffic import total

    train = cost.run.file.train
    out = [f"one mini-batch of {train.batch_size}, by segment"]
    out += table(
        ["segment", "role", "parameters", "forward", "backward", "counted", "activations", "CPU"],
        [
            [
                s.name,
                s.role,
                f"{s.parameters:,}",
                f"{s.macs.forward / 1e6:,.2f} MMAC",
                f"{s.macs.backward / 1e6:,.2f} MMAC",
                f"{s.flops.step / 1e6:,.2f} MFLOP",
                size(s.activations),
                f"{s.seconds * 1e3:.2f} ms",
            ]
            for s in cost.segments.values()
        ],
    )
    out += ["", f"the whole run (epochs: {train.epochs}), foretold, by party"]
    out += table(
        ["party", "role", "steps", "operations", "memory", "CPU", "sends", "receives", "a step", "an epoch"],
        [
            [
                p.name,
                p.role,
                f"{p.steps}",
                f"{2 * p.macs / 1e12:.4f} TFLOP",
                size(p.memory),
                f"{p.seconds:.1f} s",
                size(p.sent.sealed),
                size(p.received.sealed),
                size((p.sent.sealed + p.received.sealed) / max(p.steps, 1)),
                size((p.sent.sealed + p.received.sealed) / train.epochs),
            ]
            for p in cost.parties()
        ],
    )
    short = total(cost.short.traffic)
    out += ["", f"its first mini-batches, measured: {short.messages} messages, {cost.short.wall_seconds:.2f} s"]
    out += table(
        ["from", "to", "what", "payload", "foretold", "sealed", "foretold"],
        [
            [
                route.sender,
                route.receiver,
                route.kind + ("" if route.training else ", judging"),
                f"{tally.payload:,}",
                f"{cost.foretold[route].payload:,}" if route in cost.foretold else "-",
                f"{tally.sealed:,}",
                f"{cost.foretold[route].sealed:,}" if route in cost.foretold else "-",
            ]
            for route, tally in sorted(cost.short.traffic.items())
        ],
    )
    out.append(f"largest difference between foretold and measured bytes: {cost.disagreement():.3%}")
    if wire:
        out += ["", "the same between processes: bytes on the wire after the handshakes"]
        out += table(
            ["from", "to", "on the wire", "sealed, foretold"],
            [
                [a, b, f"{n:,}", f"{total(cost.foretold, lambda r, a=a, b=b: r[:2] == (a, b)).sealed:,}"]  # type: ignore[misc]
                for (a, b), n in wire.items()
            ],
        )
    return [*out, "", *(f"note: {note}" for note in NOTES)]


def size(nbytes: float) -> str:
    """Bytes for people, in powers of 1024."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if nbytes < 1024 or unit == "GiB":
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.2f} {unit}"
        nbytes /= 1024
    raise AssertionError
