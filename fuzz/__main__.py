"""Run one fuzz target under atheris until told to stop: see `fuzz.targets`."""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["channels"]):
    from fuzz.targets import CORPUS, TARGETS


def main() -> None:
    """The target is the first argument; the rest are libFuzzer's."""
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"expected one of {', '.join(TARGETS)}")
    name = sys.argv.pop(1)
    atheris.Setup([sys.argv[0], str(CORPUS / name), *sys.argv[1:]], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
